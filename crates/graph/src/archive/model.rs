//! From parsed JSON and loaded tensors to an [`Archive`]: signature, ties, arguments, source lines.

use super::json::{
    Argument, Float, InputSpec, Model, Node, OptionalTensor, OutputSpec, Size, SymIntArgument, TensorMeta,
};
use super::tensors::{StoredTensor, TieKey, dtype_from_archive};
use super::{Archive, ArchiveError, Limits, TensorMap};
use crate::program::{
    Hint, HintExtent, InputKind, OutputKind, Program, ProgramConstant, ProgramError, ProgramInput,
    ProgramNode, ProgramOutput, ProgramParameter, ProgramParts, RawArgument, RawOutput, RawSize,
};
use std::collections::HashMap;

/// Builds the archive.
pub(super) fn assemble(model: Model, tensors: TensorMap, limits: &Limits) -> Result<Archive, ArchiveError> {
    let module = model.graph_module;
    let found = module.graph.nodes.len();
    if found > limits.max_nodes {
        let (found, limit) = (found as u64, limits.max_nodes as u64);
        return Err(ArchiveError::Limit {
            what: "graph nodes",
            found,
            limit,
        });
    }
    let mut tables = Tables::new(tensors)?;
    let specs = module.signature.input_specs;
    let inputs = specs
        .into_iter()
        .map(|spec| tables.input(spec))
        .collect::<Result<Vec<_>, _>>()?;
    same_names(
        "inputs",
        inputs.iter().map(|input| Some(input.name.as_str())),
        &module.graph.inputs,
    )?;
    let outputs = module
        .signature
        .output_specs
        .into_iter()
        .map(output)
        .collect::<Result<Vec<_>, _>>()?;
    same_names(
        "outputs",
        outputs.iter().map(|output| output.value.names().next()),
        &module.graph.outputs,
    )?;
    let hints = module
        .graph
        .tensor_values
        .into_iter()
        .map(|(name, meta)| (name, hint(meta)))
        .collect();
    let nodes = module.graph.nodes.into_iter().map(node).collect();
    let Tables {
        parameters,
        parameter_bytes,
        constants,
        constant_bytes,
        ..
    } = tables;
    let program = Program::new(ProgramParts {
        parameters,
        constants,
        inputs,
        nodes,
        outputs,
        hints,
    })?;
    Ok(Archive {
        program,
        parameters: parameter_bytes,
        constants: constant_bytes,
    })
}

/// Parameters and constants in the order the signature first names them.
struct Tables {
    tensors: TensorMap,
    ties: HashMap<TieKey, usize>,
    tied_names: HashMap<TieKey, Vec<String>>,
    parameters: Vec<ProgramParameter>,
    parameter_bytes: Vec<Vec<u8>>,
    constants: Vec<ProgramConstant>,
    constant_bytes: Vec<Vec<u8>>,
}

impl Tables {
    fn new(tensors: TensorMap) -> Result<Self, ArchiveError> {
        let mut tied_names: HashMap<TieKey, Vec<String>> = HashMap::new();
        for (name, tensor) in tensors.iter().filter(|(_, tensor)| tensor.is_parameter) {
            tied_names
                .entry(tensor.tie.clone())
                .or_default()
                .push(name.clone());
        }
        tied_names.values_mut().for_each(|names| names.sort());
        check_overlaps(&tensors)?;
        Ok(Self {
            tensors,
            tied_names,
            ties: HashMap::new(),
            parameters: Vec::new(),
            parameter_bytes: Vec::new(),
            constants: Vec::new(),
            constant_bytes: Vec::new(),
        })
    }

    fn input(&mut self, spec: InputSpec) -> Result<ProgramInput, ArchiveError> {
        let (name, kind) = match spec {
            InputSpec::Parameter(spec) => (spec.arg.name, self.parameter(&spec.parameter_name)?),
            InputSpec::Buffer(spec) => (spec.arg.name, self.constant(&spec.buffer_name)?),
            InputSpec::TensorConstant(spec) => (spec.arg.name, self.constant(&spec.tensor_constant_name)?),
            InputSpec::UserInput(spec) => match spec.arg {
                Argument::AsTensor(tensor) => (tensor.name, InputKind::User),
                _ => {
                    return Err(signature(
                        "a model input is not a tensor; bind constants in the module",
                    ));
                }
            },
            InputSpec::CustomObj(_) | InputSpec::Token(_) | InputSpec::ConstantInput(_) => {
                return Err(signature(
                    "an input is a custom object, a token or a Python constant",
                ));
            }
        };
        Ok(ProgramInput { name, kind })
    }

    fn parameter(&mut self, name: &str) -> Result<InputKind, ArchiveError> {
        let tensor = stored(&mut self.tensors, name)?;
        if !tensor.is_parameter {
            return Err(tensor_error(
                name,
                "is a parameter for the graph and a buffer for the weights",
            ));
        }
        let next = self.parameters.len();
        let index = *self.ties.entry(tensor.tie.clone()).or_insert(next);
        if index == next {
            let names = self
                .tied_names
                .get(&tensor.tie)
                .cloned()
                .unwrap_or_else(|| vec![name.to_owned()]);
            let (dtype, shape, requires_grad) = (tensor.dtype, tensor.shape.clone(), tensor.requires_grad);
            self.parameters.push(ProgramParameter {
                names,
                dtype,
                shape,
                requires_grad,
            });
            self.parameter_bytes.push(std::mem::take(&mut tensor.bytes));
            return Ok(InputKind::Parameter(index));
        }
        let first = &self.parameters[index];
        if (first.dtype, first.requires_grad) != (tensor.dtype, tensor.requires_grad) {
            return Err(tensor_error(
                name,
                "shares memory with a parameter of another dtype or requires_grad",
            ));
        }
        Ok(InputKind::Parameter(index))
    }

    fn constant(&mut self, name: &str) -> Result<InputKind, ArchiveError> {
        let index = self.constants.len();
        let tensor = stored(&mut self.tensors, name)?;
        if tensor.is_parameter || tensor.requires_grad {
            return Err(tensor_error(
                name,
                "is a buffer for the graph and a parameter for the weights",
            ));
        }
        let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
        self.constants.push(ProgramConstant {
            name: name.to_owned(),
            dtype,
            shape,
        });
        self.constant_bytes.push(tensor.bytes.clone());
        Ok(InputKind::Constant(index))
    }
}

fn stored<'t>(tensors: &'t mut TensorMap, name: &str) -> Result<&'t mut StoredTensor, ArchiveError> {
    tensors
        .get_mut(name)
        .ok_or_else(|| tensor_error(name, "is named by the graph and not stored"))
}

/// Two different views of one storage would be one tensor in Python and two here: refused where training
/// one would change the other.
fn check_overlaps(tensors: &TensorMap) -> Result<(), ArchiveError> {
    let mut by_file: HashMap<&str, Vec<(&String, &StoredTensor)>> = HashMap::new();
    for (name, tensor) in tensors {
        by_file
            .entry(tensor.tie.0.as_str())
            .or_default()
            .push((name, tensor));
    }
    for views in by_file.values_mut() {
        views.sort_by_key(|(name, tensor)| (tensor.extent_bytes, name.as_str()));
        let mut reach: Option<(&StoredTensor, bool)> = None;
        for (name, tensor) in views.iter() {
            if let Some((widest, trains)) = reach {
                let differs = widest.tie != tensor.tie || widest.dtype != tensor.dtype;
                let overlaps = tensor.extent_bytes.0 < widest.extent_bytes.1;
                if overlaps && differs && (trains || tensor.requires_grad) {
                    return Err(tensor_error(
                        name,
                        "shares part of its memory with another tensor; clone one of them",
                    ));
                }
            }
            let wider = reach.is_none_or(|(widest, _)| tensor.extent_bytes.1 >= widest.extent_bytes.1);
            let overlapping_trains =
                reach.is_some_and(|(widest, trains)| trains && tensor.extent_bytes.0 < widest.extent_bytes.1);
            let trains = tensor.requires_grad || overlapping_trains;
            reach = if wider {
                Some((tensor, trains))
            } else {
                reach.map(|(widest, _)| (widest, trains))
            };
        }
    }
    Ok(())
}

fn output(spec: OutputSpec) -> Result<ProgramOutput, ArchiveError> {
    let (kind, value) = match spec {
        OutputSpec::UserOutput(spec) => (OutputKind::Result, raw(spec.arg)),
        OutputSpec::LossOutput(spec) => (OutputKind::Result, RawArgument::Tensor(spec.arg.name)),
        OutputSpec::BufferMutation(spec)
        | OutputSpec::ParameterMutation(spec)
        | OutputSpec::UserInputMutation(spec) => (OutputKind::Mutation, RawArgument::Tensor(spec.arg.name)),
        OutputSpec::GradientToParameter(_) | OutputSpec::GradientToUserInput(_) | OutputSpec::Token(_) => {
            return Err(signature(
                "the program returns gradients or tokens; export the forward pass only",
            ));
        }
    };
    Ok(ProgramOutput { kind, value })
}

/// The graph lists inputs and outputs a second time; a difference is a parser differential (rule T9).
fn same_names<'a>(
    what: &str,
    signature_names: impl Iterator<Item = Option<&'a str>>,
    arguments: &'a [Argument],
) -> Result<(), ArchiveError> {
    let graph_names = arguments.iter().map(|argument| match argument {
        Argument::AsTensor(tensor) => Some(tensor.name.as_str()),
        _ => None,
    });
    if signature_names.eq(graph_names) {
        return Ok(());
    }
    Err(signature(&format!(
        "the {what} of the graph are not those of its signature"
    )))
}

fn hint(meta: TensorMeta) -> Hint {
    let extent = |size| match size {
        Size::AsInt(size) => {
            u64::try_from(size).map_or_else(|_| HintExtent::Symbolic(size.to_string()), HintExtent::Fixed)
        }
        Size::AsExpr(expression) => HintExtent::Symbolic(expression.expr_str),
    };
    Hint {
        dtype: dtype_from_archive(meta.dtype),
        shape: meta.sizes.into_iter().map(extent).collect(),
    }
}

fn node(node: Node) -> ProgramNode {
    let outputs: Vec<RawOutput> = node.outputs.into_iter().filter_map(raw_output).collect();
    let first = outputs.first().and_then(|output| output.names().first().cloned());
    ProgramNode {
        name: node.name.or(first).unwrap_or_else(|| node.target.clone()),
        target: node.target,
        arguments: node
            .inputs
            .into_iter()
            .enumerate()
            .map(|(position, argument)| (named(argument.name, position), raw(argument.arg)))
            .collect(),
        outputs,
        source: node
            .metadata
            .get("stack_trace")
            .and_then(|trace| source_line(trace)),
    }
}

/// Calls of sub-graphs do not name their arguments.
fn named(name: String, position: usize) -> String {
    if name.is_empty() {
        format!("#{position}")
    } else {
        name
    }
}

/// The innermost frame of the user's own code, else the innermost frame, as `file:line`.
fn source_line(trace: &str) -> Option<String> {
    let frames = trace.lines().filter_map(|line| {
        let (file, rest) = line
            .trim_start()
            .strip_prefix("File \"")?
            .split_once("\", line ")?;
        let number: u64 = rest.split(',').next()?.parse().ok()?;
        Some((file.contains("/site-packages/torch/"), format!("{file}:{number}")))
    });
    let frames: Vec<_> = frames.collect();
    let own = frames.iter().rev().find(|(library, _)| !library);
    own.or(frames.last()).map(|(_, line)| line.clone())
}

fn raw_output(argument: Argument) -> Option<RawOutput> {
    Some(match raw(argument) {
        RawArgument::Tensor(name) => RawOutput::Tensor(name),
        RawArgument::Tensors(names) => RawOutput::Tensors(names),
        RawArgument::Size(RawSize::Name(name)) => RawOutput::Size(name),
        RawArgument::None => return None,
        RawArgument::Unsupported(tag) => RawOutput::Unsupported(tag),
        _ => RawOutput::Unsupported("constant output"),
    })
}

fn raw(argument: Argument) -> RawArgument {
    match argument {
        Argument::AsNone(_) => RawArgument::None,
        Argument::AsTensor(tensor) => RawArgument::Tensor(tensor.name),
        Argument::AsTensors(tensors) => {
            RawArgument::Tensors(tensors.into_iter().map(|tensor| tensor.name).collect())
        }
        Argument::AsOptionalTensors(tensors) => {
            RawArgument::OptionalTensors(tensors.into_iter().map(optional).collect())
        }
        Argument::AsOptionalTensor(tensor) => optional(tensor).map_or(RawArgument::None, RawArgument::Tensor),
        Argument::AsInt(value) => RawArgument::Int(value),
        Argument::AsInts(values) => RawArgument::Ints(values),
        Argument::AsFloat(value) => {
            float(&value).map_or(RawArgument::Unsupported("as_float"), RawArgument::Float)
        }
        Argument::AsFloats(values) => {
            let values: Option<Vec<f64>> = values.iter().map(float).collect();
            values.map_or(RawArgument::Unsupported("as_floats"), RawArgument::Floats)
        }
        Argument::AsBool(value) => RawArgument::Bool(value),
        Argument::AsBools(values) => RawArgument::Bools(values),
        Argument::AsString(text) => RawArgument::Str(text),
        Argument::AsSymInt(size) => RawArgument::Size(raw_size(size)),
        Argument::AsSymInts(sizes) => RawArgument::Sizes(sizes.into_iter().map(raw_size).collect()),
        Argument::AsScalarType(code) => RawArgument::ScalarType(code),
        Argument::AsMemoryFormat(code) => RawArgument::MemoryFormat(code),
        Argument::AsLayout(code) => RawArgument::Layout(code),
        Argument::AsDevice(device) => RawArgument::Device(device.kind),
        other => RawArgument::Unsupported(tag(&other)),
    }
}

fn tag(argument: &Argument) -> &'static str {
    match argument {
        Argument::AsStrings(_) => "as_strings",
        Argument::AsSymBool(_) | Argument::AsSymBools(_) => "as_sym_bool",
        Argument::AsGraph(_) => "as_graph (a sub-graph)",
        Argument::AsCustomObj(_) => "as_custom_obj",
        Argument::AsOperator(_) => "as_operator",
        Argument::AsSymFloat(_) | Argument::AsSymFloats(_) => "as_sym_float",
        Argument::AsComplex(_) => "as_complex",
        Argument::AsNestedTensors(_) => "as_nested_tensors",
        Argument::AsIntLists(_) => "as_int_lists",
        _ => "as_string_to_argument",
    }
}

fn optional(tensor: OptionalTensor) -> Option<String> {
    match tensor {
        OptionalTensor::AsTensor(tensor) => Some(tensor.name),
        OptionalTensor::AsNone(_) => None,
    }
}

fn raw_size(size: SymIntArgument) -> RawSize {
    match size {
        SymIntArgument::AsName(name) => RawSize::Name(name),
        SymIntArgument::AsInt(value) => RawSize::Int(value),
    }
}

fn float(value: &Float) -> Option<f64> {
    match value {
        Float::Number(value) => Some(*value),
        Float::Text(text) => match text.as_str() {
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            "NaN" => Some(f64::NAN),
            _ => None,
        },
    }
}

fn tensor_error(tensor: &str, reason: &str) -> ArchiveError {
    ArchiveError::Tensor {
        tensor: tensor.to_owned(),
        reason: reason.to_owned(),
    }
}

fn signature(reason: &str) -> ArchiveError {
    ArchiveError::Program(ProgramError::Signature(reason.to_owned()))
}
