//! Typed graphs made by hand, each beside the same model written with `tch` for batch-of-one autograd.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

pub mod convolutions;
pub mod devices;
pub mod hostile;
pub mod models;
pub mod text;

use bastionai_graph::dtype::DType;
use bastionai_graph::schema::{self, DefaultValue};
use bastionai_graph::typed::*;
use bastionai_trainer::{Batch, Engine, Settings, selftest};
pub use bastionai_wire::{Clipping, Compute, NoiseMode};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rand_distr::{Distribution as _, StandardNormal};
use std::cell::RefCell;
use std::sync::Once;
use tch::{Device, Kind, Tensor};

/// Builds a typed graph value by value; arguments that are not given take their schema's default.
#[derive(Default)]
pub struct Builder {
    inputs: Vec<Input>,
    parameters: Vec<Parameter>,
    constants: Vec<Constant>,
    values: Vec<Value>,
    nodes: Vec<TypedNode>,
}

/// An extent of a result: `b(k)` is `B·k`, `n(k)` a constant.
pub fn b(inner: u64) -> Extent {
    Extent::Batch(inner)
}
/// See [`b`].
pub fn n(size: u64) -> Extent {
    Extent::Fixed(size)
}

pub fn value_type(dtype: DType, shape: &[Extent]) -> ValueType {
    let axis = shape.iter().position(|extent| matches!(extent, Extent::Batch(_)));
    let dependence = axis.map_or(Dependence::Shared, |axis| Dependence::PerSample {
        axis: axis as u8,
    });
    ValueType {
        dependence,
        shape: shape.to_vec(),
        dtype,
    }
}

impl Builder {
    fn value(&mut self, name: &str, origin: Origin, value_type: ValueType, requires_grad: bool) -> ValueId {
        self.values.push(Value {
            name: name.into(),
            origin,
            value_type,
            requires_grad,
        });
        ValueId(self.values.len() as u32 - 1)
    }

    pub fn input(&mut self, name: &str, dtype: DType, shape: &[u64]) -> ValueId {
        self.inputs.push(Input {
            column: name.into(),
            dtype,
            shape: shape.to_vec(),
        });
        let extents: Vec<Extent> = std::iter::once(b(1))
            .chain(shape.iter().map(|&extent| n(extent)))
            .collect();
        self.value(
            name,
            Origin::Input(self.inputs.len() as u32 - 1),
            value_type(dtype, &extents),
            false,
        )
    }

    pub fn parameter(&mut self, name: &str, dtype: DType, shape: &[u64], trainable: bool) -> ValueId {
        self.parameters.push(Parameter {
            names: vec![name.into()],
            dtype,
            shape: shape.to_vec(),
            trainable,
        });
        let extents: Vec<Extent> = shape.iter().map(|&extent| n(extent)).collect();
        let id = ParameterId(self.parameters.len() as u32 - 1);
        self.value(
            name,
            Origin::Parameter(id),
            value_type(dtype, &extents),
            trainable,
        )
    }

    pub fn constant(&mut self, name: &str, dtype: DType, shape: &[u64]) -> ValueId {
        self.constants.push(Constant {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
        });
        let extents: Vec<Extent> = shape.iter().map(|&extent| n(extent)).collect();
        self.value(
            name,
            Origin::Constant(self.constants.len() as u32 - 1),
            value_type(dtype, &extents),
            false,
        )
    }

    /// One node with one output.
    pub fn node(
        &mut self,
        operator: &str,
        given: &[(&str, Argument)],
        dtype: DType,
        shape: &[Extent],
    ) -> ValueId {
        self.nodes(operator, given, dtype, &[shape])[0]
    }

    /// One node with several outputs of one dtype.
    pub fn nodes(
        &mut self,
        operator: &str,
        given: &[(&str, Argument)],
        dtype: DType,
        shapes: &[&[Extent]],
    ) -> Vec<ValueId> {
        let (operator, overload) = operator.split_once('.').unwrap_or((operator, "default"));
        let known = schema::find(operator, overload).expect("an allowed operator");
        for (name, _) in given {
            assert!(
                known.arguments.iter().any(|argument| argument.name == *name),
                "{operator} has no {name}"
            );
        }
        let arguments = known
            .arguments
            .iter()
            .map(|argument| {
                let value = given
                    .iter()
                    .find(|(name, _)| *name == argument.name)
                    .map(|(_, value)| value.clone());
                let value = value.unwrap_or_else(|| default(argument.default.as_ref()));
                NamedArgument {
                    name: argument.name.clone(),
                    value,
                }
            })
            .collect::<Vec<_>>();
        let requires_grad = arguments
            .iter()
            .flat_map(|argument| argument.value.value_ids())
            .any(|value| self.values[value.0 as usize].requires_grad);
        let name = format!("{operator}_{}", self.nodes.len());
        let node = self.nodes.len() as u32;
        let requires_grad = requires_grad && dtype.is_float();
        let outputs: Vec<ValueId> = (0..)
            .zip(shapes)
            .map(|(output, shape)| {
                let origin = Origin::Node { node, output };
                self.value(&name, origin, value_type(dtype, shape), requires_grad)
            })
            .collect();
        let (operator, overload) = (operator.into(), overload.into());
        self.nodes.push(TypedNode {
            name,
            operator,
            overload,
            arguments,
            outputs: outputs.clone(),
            tap: None,
            source: None,
        });
        outputs
    }

    /// Element type of a value.
    pub fn dtype(&self, value: ValueId) -> DType {
        self.values[value.0 as usize].value_type.dtype
    }

    /// A value's type.
    pub fn type_of(&self, value: ValueId) -> &ValueType {
        &self.values[value.0 as usize].value_type
    }

    /// Makes the last node a tap.
    pub fn tap(&mut self, tap: Tap) {
        self.nodes.last_mut().expect("a node").tap = Some(tap);
    }

    /// A parameter as it is, in a tap.
    pub fn tapped(&self, value: ValueId) -> TappedParameter {
        let Origin::Parameter(parameter) = self.values[value.0 as usize].origin else {
            panic!("a parameter")
        };
        TappedParameter {
            parameter,
            value,
            views: vec![],
        }
    }

    /// A function of these trainable parameters, in a tap.
    pub fn function(&self, value: ValueId, of: &[ValueId]) -> TappedParameter {
        let mut parameters: Vec<ParameterId> = of.iter().map(|each| self.tapped(*each).parameter).collect();
        parameters.sort_unstable();
        TappedParameter {
            parameter: parameters[0],
            value,
            views: vec![ParameterView::Function(parameters)],
        }
    }

    /// `linear`, tapped for whichever parameters are trainable.
    pub fn linear(
        &mut self,
        input: ValueId,
        weight: ValueId,
        bias: Option<ValueId>,
        shape: &[Extent],
    ) -> ValueId {
        let dtype = self.values[weight.0 as usize].value_type.dtype;
        let mut given = vec![
            ("input", Argument::Value(input)),
            ("weight", Argument::Value(weight)),
        ];
        given.extend(bias.map(|bias| ("bias", Argument::Value(bias))));
        let output = self.node("linear", &given, dtype, shape);
        let trained = |value: ValueId| {
            self.values[value.0 as usize]
                .requires_grad
                .then(|| self.tapped(value))
        };
        let (weight, bias) = (trained(weight), bias.and_then(trained));
        if weight.is_some() || bias.is_some() {
            self.tap(Tap::Linear { input, weight, bias });
        }
        output
    }

    /// The graph, by its canonical bytes: a struct and the tuple of its fields have the same encoding.
    pub fn finish(self, loss: ValueId) -> TypedGraph {
        self.finish_with(Results::Loss(loss))
    }

    /// [`Self::finish`] with other results than a loss.
    pub fn finish_with(self, results: Results) -> TypedGraph {
        let fields = (
            self.inputs,
            self.parameters,
            self.constants,
            self.values,
            self.nodes,
            results,
        );
        let mut bytes = vec![TYPED_GRAPH_VERSION];
        bytes.extend(postcard::to_stdvec(&fields).expect("fields encode"));
        TypedGraph::from_bytes(&bytes).expect("the fields of a typed graph")
    }
}

fn default(value: Option<&DefaultValue>) -> Argument {
    match value.expect("an argument without default must be given") {
        DefaultValue::None => Argument::None,
        DefaultValue::Bool(value) => Argument::Bool(*value),
        DefaultValue::Int(value) => Argument::Int(*value),
        DefaultValue::Float(value) => Argument::Float(FloatBits::new(*value)),
        DefaultValue::Str(text) => Argument::Str(text.clone()),
        DefaultValue::Empty => Argument::Ints(vec![]),
        DefaultValue::Ints(values) => Argument::Ints(values.clone()),
    }
}

/// Contiguous little-endian bytes.
pub fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.contiguous();
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor
        .f_copy_data_u8(&mut bytes, tensor.numel())
        .expect("bytes of a tensor");
    bytes
}

/// libtorch set up once for a test binary.
pub fn set_up() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| selftest::prepare_process(2).expect("libtorch can be set up"));
}

pub fn settings(physical_batch_size: u32, max_grad_norm: f64) -> Settings {
    Settings {
        physical_batch_size,
        records_per_unit: 1,
        micro_batches: 1,
        max_grad_norm,
        clipping: Clipping::Flat,
        compute: Compute::Float32,
        noise_mode: NoiseMode::Standard,
        threads: 2,
    }
}

/// Every way to hold gradients to the clipping norm.
pub const CLIPPINGS: [Clipping; 3] = [Clipping::Flat, Clipping::PerLayer, Clipping::Automatic];

pub fn settings_clipping(physical_batch_size: u32, max_grad_norm: f64, clipping: Clipping) -> Settings {
    Settings {
        clipping,
        ..settings(physical_batch_size, max_grad_norm)
    }
}

/// A batch where every row is a record.
pub fn full(engine: &Engine, inputs: &[Tensor]) -> Batch {
    let size = i64::from(engine.settings().physical_batch_size);
    present(engine, inputs, &vec![true; size as usize])
}

/// A batch with padding.
pub fn present(engine: &Engine, inputs: &[Tensor], present: &[bool]) -> Batch {
    let inputs = inputs.iter().map(Tensor::shallow_clone).collect();
    engine
        .batch(inputs, Tensor::from_slice(present))
        .expect("a batch of the graph's inputs")
}

/// All parameters' sums as one vector.
pub fn joined(sums: &[Vec<f64>]) -> Vec<f64> {
    sums.concat()
}

pub fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

pub fn distance(left: &[f64], right: &[f64]) -> f64 {
    norm(&left.iter().zip(right).map(|(l, r)| l - r).collect::<Vec<_>>())
}

thread_local! {
    /// Each test runs on a thread of its own, and libtorch's generator is one for all of them: what a test
    /// draws would hang on which others run beside it.
    static GENERATOR: RefCell<StdRng> = RefCell::new(StdRng::seed_from_u64(20_261_124));
}

/// Standard normal values, the same in each run of a test.
pub fn rand(kind: Kind, shape: &[i64]) -> Tensor {
    drawn::<f64>(shape, |generator| StandardNormal.sample(generator)).to_kind(kind)
}

/// Uniform integers below `end`, the same in each run of a test.
pub fn randint(end: i64, shape: &[i64]) -> Tensor {
    drawn(shape, |generator| generator.random_range(0..end))
}

fn drawn<T: tch::kind::Element>(shape: &[i64], mut draw: impl FnMut(&mut StdRng) -> T) -> Tensor {
    let values: Vec<T> = GENERATOR.with_borrow_mut(|generator| {
        (0..shape.iter().product())
            .map(|_: i64| draw(generator))
            .collect()
    });
    Tensor::from_slice(&values).reshape(shape)
}

/// Copies a row of ones' own making into a tensor.
pub fn with_row(tensor: &Tensor, row: i64, value: f64) -> Tensor {
    let changed = tensor.copy();
    let _ = changed.get(row).fill_(value);
    changed
}
