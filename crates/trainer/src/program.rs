//! A typed graph made ready to run at one batch size: operators found, sizes resolved, every argument laid out.

use crate::attention;
use crate::device::Device;
use crate::error::{EngineError, Result};
use crate::ffi::{self, CallArgument, Operator};
use crate::lowering;
use crate::operators::{self, Guard};
use crate::pooling;
use crate::recurrent::Layers;
use bastionai_graph::dtype::DType;
use bastionai_graph::schema::{self, Schema};
use bastionai_graph::typed::{
    Argument, Dependence, Extent, MemoryFormat, NamedArgument, Number, Tap, TappedParameter, TypedGraph,
    TypedNode, ValueId, ValueType,
};
use tch::{Kind, Tensor};

/// What a value must be (rule T4).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expected {
    pub(crate) shape: Vec<i64>,
    pub(crate) kind: Kind,
    pub(crate) batch: Option<BatchAxis>,
}

/// Where the samples are: along `axis`, `inner` consecutive rows each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchAxis {
    pub(crate) axis: i64,
    pub(crate) inner: i64,
}

/// Most elements of a value at the physical batch size, and of a parameter: sums of a few of them stay below 2^63.
const MOST_ELEMENTS: i64 = 1 << 60;

/// One argument, with sizes resolved.
pub(crate) enum Prepared {
    None,
    Value(usize),
    Values(Vec<usize>),
    OptionalValues(Vec<Option<usize>>),
    Int(i64),
    Ints(Vec<i64>),
    Float(f64),
    Floats(Vec<f64>),
    Bool(bool),
    Bools(Vec<bool>),
    Str(String),
    DType(i64),
    Number(Number),
}

/// One node, ready to call.
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) operator: Operator,
    pub(crate) guard: Guard,
    /// Whether it is `max_pool2d`, which the engine has a pass of its own for.
    pub(crate) is_max_pool: bool,
    pub(crate) argument_names: Vec<String>,
    pub(crate) arguments: Vec<Prepared>,
    pub(crate) outputs: Vec<usize>,
    /// Whether it is a product whose operands are rounded to bfloat16.
    pub(crate) lowered: bool,
    /// Index among the taps, when the node is one.
    pub(crate) tap: Option<usize>,
    /// Of a recurrent layer: what it is made of.
    pub(crate) recurrent: Option<Layers>,
    /// Values that nothing after this node reads.
    pub(crate) last_uses: Vec<usize>,
}

/// The whole graph at one physical batch size.
pub(crate) struct Program {
    pub(crate) batch_size: i64,
    pub(crate) calls: Vec<Call>,
    pub(crate) expected: Vec<Expected>,
    /// The loss; or scores and label.
    pub(crate) results: Vec<usize>,
    /// Functions of trainable parameters that taps use: their values are kept with their autograd graph (rule G2).
    pub(crate) functions: Vec<Function>,
    /// Where its values are.
    pub(crate) device: Device,
}

/// A `Shared` value that trainable parameters reach.
pub(crate) struct Function {
    pub(crate) value: usize,
    /// Indices among the graph's parameters, ascending.
    pub(crate) parameters: Vec<usize>,
}

impl Program {
    /// # Errors
    /// [`EngineError::Unsupported`] for an operator that is not allowed, not in this libtorch, or whose schema is
    /// not the one the checker knew.
    pub(crate) fn new(graph: &TypedGraph, batch_size: u32) -> Result<Self> {
        let batch_size = i64::from(batch_size);
        let expected = graph
            .values()
            .iter()
            .map(|value| {
                let expected = expected(&value.value_type, batch_size)?;
                check_size(&value.name, &expected.shape)?;
                Ok(expected)
            })
            .collect::<Result<Vec<_>>>()?;
        for parameter in graph.parameters() {
            let shape = parameter.shape.iter().map(|&extent| to_i64(extent));
            check_size(&parameter.names.join(" = "), &shape.collect::<Result<Vec<_>>>()?)?;
        }
        let mut taps = 0;
        let mut calls = Vec::with_capacity(graph.nodes().len());
        for node in graph.nodes() {
            let tap = node.tap.as_ref().map(|_| {
                taps += 1;
                taps - 1
            });
            let mut call = call(node, tap, batch_size)?;
            attention::check(&call, &expected)?;
            pooling::check(&node.operator, &call, &expected)?;
            call.recurrent = Layers::new(&node.operator, &call, &expected)?;
            calls.push(call);
        }
        let mut program = Self {
            batch_size,
            calls,
            expected,
            results: graph.results().values().into_iter().map(index).collect(),
            functions: graph.tapped_functions().into_iter().map(function).collect(),
            device: Device::Cpu,
        };
        program.find_last_uses();
        Ok(program)
    }

    /// Runs the products of f32 values in bfloat16.
    pub(crate) fn lower_products(&mut self, graph: &TypedGraph) {
        for (call, node) in self.calls.iter_mut().zip(graph.nodes()) {
            call.lowered = lowering::is_product(&node.operator, call, &self.expected);
        }
    }

    /// Rows and widths `[input, output]` of a call that multiplies per-sample rows by one shared matrix.
    pub(crate) fn product(&self, call: &Call, node: &TypedNode) -> Option<(i64, [i64; 2])> {
        let (rows, matrix) = match node.operator.as_str() {
            "linear" => ("input", "weight"),
            "addmm" => ("mat1", "mat2"),
            "mm" => ("self", "mat2"),
            "matmul" => ("self", "other"),
            _ => return None,
        };
        let operand = |name| match call.arguments[call.position(name)?] {
            Prepared::Value(value) => Some(&self.expected[value]),
            _ => None,
        };
        let (rows, matrix) = (operand(rows)?, operand(matrix)?);
        let output = &self.expected[*call.outputs.first()?];
        let (&[_, _], None, Some(_)) = (&matrix.shape[..], matrix.batch, rows.batch) else {
            return None;
        };
        let (&input_width, &output_width) = (rows.shape.last()?, output.shape.last()?);
        let count = rows.shape.iter().product::<i64>() / input_width.max(1);
        Some((count, [input_width, output_width]))
    }

    /// Values are dropped after their last use; results never are. What taps need they keep themselves.
    fn find_last_uses(&mut self) {
        let mut seen = vec![false; self.expected.len()];
        for &result in &self.results {
            seen[result] = true;
        }
        for call in self.calls.iter_mut().rev() {
            let mut used = call.outputs.clone();
            call.arguments
                .iter()
                .for_each(|argument| argument.values(&mut used));
            for value in used {
                if !seen[value] {
                    seen[value] = true;
                    call.last_uses.push(value);
                }
            }
        }
    }
}

impl Prepared {
    fn values(&self, into: &mut Vec<usize>) {
        match self {
            Self::Value(value) => into.push(*value),
            Self::Values(list) => into.extend(list),
            Self::OptionalValues(list) => into.extend(list.iter().flatten()),
            _ => {}
        }
    }

    /// The argument of the call; `None` when a value it names is not there.
    pub(crate) fn resolve<'a>(&'a self, values: &'a [Option<Tensor>]) -> Option<CallArgument<'a>> {
        let tensor = |index: &usize| values.get(*index).and_then(Option::as_ref);
        Some(match self {
            Self::None => CallArgument::None,
            Self::Value(value) => CallArgument::Tensor(tensor(value)?),
            Self::Values(list) => CallArgument::Tensors(list.iter().map(tensor).collect::<Option<_>>()?),
            Self::OptionalValues(list) => CallArgument::OptionalTensors(
                list.iter()
                    .map(|item| item.as_ref().map_or(Some(None), |value| tensor(value).map(Some)))
                    .collect::<Option<_>>()?,
            ),
            Self::Int(value) => CallArgument::Int(*value),
            Self::Ints(values) => CallArgument::Ints(values),
            Self::Float(value) => CallArgument::Float(*value),
            Self::Floats(values) => CallArgument::Floats(values),
            Self::Bool(value) => CallArgument::Bool(*value),
            Self::Bools(values) => CallArgument::Bools(values),
            Self::Str(text) => CallArgument::Str(text),
            Self::DType(code) => CallArgument::DType(*code),
            Self::Number(number) => CallArgument::Number(*number),
        })
    }
}

/// Values whose tensors a tap needs for its parameters' gradients, the input first. A bias alone needs none.
pub(crate) fn saved_values(tap: &Tap) -> Vec<usize> {
    match tap {
        Tap::Linear { weight: None, .. }
        | Tap::MatMul { weight: None, .. }
        | Tap::LayerNorm { weight: None, .. }
        | Tap::Convolution { weight: None, .. }
        | Tap::GroupNorm { weight: None, .. }
        | Tap::FrozenBatchNorm { weight: None, .. } => Vec::new(),
        Tap::Linear { input, .. }
        | Tap::MatMul { input, .. }
        | Tap::LayerNorm { input, .. }
        | Tap::Convolution { input, .. }
        | Tap::GroupNorm { input, .. }
        | Tap::RmsNorm { input, .. }
        | Tap::Prelu { input, .. } => vec![index(*input)],
        Tap::Embedding { indices, .. } => vec![index(*indices)],
        Tap::FrozenBatchNorm {
            input,
            mean,
            variance,
            ..
        } => [input, mean, variance].map(|value| index(*value)).to_vec(),
        Tap::BroadcastMul { other, .. } => vec![index(*other)],
        // A recurrent layer saves its own.
        Tap::BroadcastAdd { .. } | Tap::Expand { .. } | Tap::Recurrent { .. } => Vec::new(),
    }
}

fn function(tapped: &TappedParameter) -> Function {
    let parameters = tapped.parameters().iter();
    Function {
        value: index(tapped.value),
        parameters: parameters.map(|parameter| parameter.0 as usize).collect(),
    }
}

/// A value's number as an index.
pub(crate) fn index(value: ValueId) -> usize {
    value.0 as usize
}

/// libtorch's name of an element type.
pub(crate) fn kind(dtype: DType) -> Kind {
    match dtype {
        DType::U8 => Kind::Uint8,
        DType::I32 => Kind::Int,
        DType::I64 => Kind::Int64,
        DType::F32 => Kind::Float,
        DType::F64 => Kind::Double,
        DType::Bool => Kind::Bool,
    }
}

/// c10's number of an element type (c10/core/ScalarType.h), not the archive's.
fn scalar_type(dtype: DType) -> i64 {
    match dtype {
        DType::U8 => 0,
        DType::I32 => 3,
        DType::I64 => 4,
        DType::F32 => 6,
        DType::F64 => 7,
        DType::Bool => 11,
    }
}

fn expected(value: &ValueType, batch_size: i64) -> Result<Expected> {
    let shape = value
        .shape
        .iter()
        .map(|&extent| resolve(extent, batch_size))
        .collect::<Result<Vec<_>>>()?;
    let batch = match value.dependence {
        Dependence::PerSample { axis } => match value.shape.get(usize::from(axis)) {
            Some(&Extent::Batch(inner)) => Some(BatchAxis {
                axis: i64::from(axis),
                inner: to_i64(inner)?,
            }),
            _ => {
                return Err(EngineError::Job(
                    "typed graph: a per-sample value without a batch axis".into(),
                ));
            }
        },
        Dependence::Shared | Dependence::BatchIota => None,
    };
    Ok(Expected {
        shape,
        kind: kind(value.dtype),
        batch,
    })
}

fn resolve(extent: Extent, batch_size: i64) -> Result<i64> {
    match extent {
        Extent::Fixed(size) => to_i64(size),
        Extent::Batch(inner) => to_i64(inner)?.checked_mul(batch_size).ok_or_else(too_large),
    }
}

/// Elements of a shape; `None` above [`MOST_ELEMENTS`].
pub(crate) fn element_count(shape: &[i64]) -> Option<i64> {
    let product =
        |count: i64, extent: &i64| count.checked_mul(*extent).filter(|count| *count <= MOST_ELEMENTS);
    shape.iter().try_fold(1, product)
}

fn check_size(node: &str, shape: &[i64]) -> Result<()> {
    element_count(shape)
        .map(drop)
        .ok_or_else(|| EngineError::Unsupported {
            node: node.to_owned(),
            reason: "its value has more than 2^60 elements at this physical batch size; use smaller sizes"
                .into(),
        })
}

fn to_i64(size: u64) -> Result<i64> {
    i64::try_from(size).map_err(|_| too_large())
}

fn too_large() -> EngineError {
    EngineError::Job("typed graph: an extent is above 2^63".into())
}

fn call(node: &TypedNode, tap: Option<usize>, batch_size: i64) -> Result<Call> {
    let unsupported = |reason: &str| EngineError::Unsupported {
        node: node.name.clone(),
        reason: reason.to_owned(),
    };
    let guard = operators::guard(&node.operator, &node.overload).ok_or_else(|| {
        unsupported("the engine does not run this operator; server and trainer are of different builds")
    })?;
    let operator = Operator::find(&node.operator, &node.overload)
        .map_err(|_| unsupported("libtorch cannot look the operator up"))?
        .ok_or_else(|| unsupported("this libtorch has no such operator; run `make setup`"))?;
    check_schema(node, &operator)?;
    let arguments = node
        .arguments
        .iter()
        .map(|named| prepare(named, batch_size))
        .collect::<Result<_>>()?;
    Ok(Call {
        name: node.name.clone(),
        operator,
        is_max_pool: node.operator == "max_pool2d",
        guard,
        argument_names: node.arguments.iter().map(|named| named.name.clone()).collect(),
        arguments,
        outputs: node.outputs.iter().copied().map(index).collect(),
        lowered: false,
        tap,
        recurrent: None,
        last_uses: Vec::new(),
    })
}

/// The node must list every argument of the operator's schema, in order, and the checker's schema must be libtorch's.
fn check_schema(node: &TypedNode, operator: &Operator) -> Result<()> {
    let unsupported = |reason: String| EngineError::Unsupported {
        node: node.name.clone(),
        reason,
    };
    let known = schema::find(&node.operator, &node.overload)
        .ok_or_else(|| unsupported("the checker's table has no such operator".into()))?;
    same_schema(known, operator).map_err(unsupported)?;
    let names = known.arguments.iter().map(|argument| argument.name.as_str());
    if !names.eq(node.arguments.iter().map(|named| named.name.as_str())) {
        return Err(unsupported(format!(
            "its arguments are not those of {}",
            known.text
        )));
    }
    Ok(())
}

fn same_schema(known: &Schema, operator: &Operator) -> std::result::Result<(), String> {
    let text = operator
        .schema()
        .map_err(|_| format!("libtorch gives no schema: {}", ffi::last_error()))?;
    if text == known.text {
        Ok(())
    } else {
        Err(format!(
            "libtorch's schema is {text}, the checker's {}: run `make setup`",
            known.text
        ))
    }
}

/// Compares the checker's whole table with this libtorch (rule T7).
///
/// # Errors
/// [`EngineError::Unsupported`] with the first operator that differs or is missing.
pub(crate) fn compare_schemas() -> Result<()> {
    for known in schema::table() {
        let name = format!("aten::{}.{}", known.name, known.overload);
        let unsupported = |reason: String| EngineError::Unsupported {
            node: name.clone(),
            reason,
        };
        let operator = Operator::find(&known.name, &known.overload)
            .map_err(|_| unsupported("libtorch cannot look the operator up".into()))?
            .ok_or_else(|| unsupported("this libtorch has no such operator; run `make setup`".into()))?;
        same_schema(known, &operator).map_err(unsupported)?;
    }
    Ok(())
}

fn prepare(named: &NamedArgument, batch_size: i64) -> Result<Prepared> {
    Ok(match &named.value {
        Argument::None => Prepared::None,
        Argument::Value(value) => Prepared::Value(index(*value)),
        Argument::Values(list) => Prepared::Values(list.iter().copied().map(index).collect()),
        Argument::OptionalValues(list) => {
            Prepared::OptionalValues(list.iter().map(|item| item.map(index)).collect())
        }
        Argument::Int(value) => Prepared::Int(*value),
        // `arange(B)`: the one place where the batch size stands for a number.
        Argument::Sizes(sizes) if named.name == "end" && sizes.len() == 1 => {
            Prepared::Int(resolve(sizes[0], batch_size)?)
        }
        Argument::Sizes(sizes) => Prepared::Ints(
            sizes
                .iter()
                .map(|&extent| resolve(extent, batch_size))
                .collect::<Result<_>>()?,
        ),
        Argument::Ints(values) => Prepared::Ints(values.clone()),
        Argument::Float(bits) => Prepared::Float(bits.get()),
        Argument::Floats(list) => Prepared::Floats(list.iter().map(|bits| bits.get()).collect()),
        Argument::Bool(value) => Prepared::Bool(*value),
        Argument::Bools(values) => Prepared::Bools(values.clone()),
        Argument::Str(text) => Prepared::Str(text.clone()),
        Argument::DType(dtype) => Prepared::DType(scalar_type(*dtype)),
        Argument::NumberAsTensor(number) => Prepared::Number(*number),
        // c10's numbers (c10/core/MemoryFormat.h), not the archive's.
        Argument::MemoryFormat(MemoryFormat::Contiguous) => Prepared::Int(0),
        Argument::MemoryFormat(MemoryFormat::Preserve) => Prepared::Int(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_alone_saves_no_input() {
        let tapped = |value| TappedParameter {
            parameter: bastionai_graph::typed::ParameterId(value),
            value: ValueId(value),
            views: Vec::new(),
        };
        let of = |weight| Tap::Linear {
            input: ValueId(7),
            weight,
            bias: Some(tapped(1)),
        };
        assert_eq!(saved_values(&of(None)), Vec::<usize>::new());
        assert_eq!(saved_values(&of(Some(tapped(0)))), [7]);
    }

    #[test]
    fn the_checkers_schema_table_is_this_libtorchs() {
        compare_schemas().unwrap();
    }

    #[test]
    fn every_operator_of_the_checker_is_allowed_here_and_none_else() {
        let mut known: Vec<_> = schema::table()
            .iter()
            .map(|each| (&each.name[..], &each.overload[..]))
            .collect();
        known.sort_unstable();
        assert_eq!(known, operators::allowed());
    }
}
