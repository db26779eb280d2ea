//! The forward phase: every node through the dispatcher, its outputs checked against the typed graph (T4),
//! and the place of each tap in the autograd graph kept.

use crate::attention;
use crate::device::{Device, beside};
use crate::error::{EngineError, Result};
use crate::ffi::{self, CallArgument, Edge};
use crate::guards::{self, Counted, Replacement};
use crate::lowering;
use crate::operators::Guard;
use crate::pooling;
use crate::program::{Call, Expected, Function, Prepared, Program, saved_values};
use bastionai_graph::typed::{Origin, RecurrentCell, Tap, TypedGraph, TypedNode};
use tch::{Kind, Tensor};

/// What `rand` and `randn` return while nothing is drawn.
const FROZEN_DRAW: f64 = 0.5;

/// Whether random operators draw. Self-tests run without, so that rows can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Randomness {
    /// As in training: i.i.d. for every element, from the generator seeded at start.
    Drawn,
    /// Dropout is the identity, and every draw is [`FROZEN_DRAW`].
    Frozen,
}

/// A tapped node after the forward phase.
pub(crate) struct Tapped {
    /// Where its output's gradient arrives.
    pub(crate) edge: Edge,
    /// What its parameters' gradients need besides: the input, or the other operand; fixed statistics.
    pub(crate) saved: Vec<Tensor>,
    /// Of its output.
    pub(crate) shape: Vec<i64>,
    pub(crate) kind: Kind,
}

/// What a forward phase leaves.
pub(crate) struct Forward {
    /// The loss, `[B]`, with its autograd graph; or scores and label.
    pub(crate) results: Vec<Tensor>,
    /// `[B]`, bool: records that count.
    pub(crate) counted: Tensor,
    /// In node order.
    pub(crate) taps: Vec<Tapped>,
    /// In the program's order.
    pub(crate) functions: Vec<FunctionValue>,
}

/// A function of trainable parameters after the forward phase.
pub(crate) struct FunctionValue {
    /// With its autograd graph.
    pub(crate) value: Tensor,
    /// Where the gradients of its parameters arrive, in the program's order.
    pub(crate) edges: Vec<Edge>,
}

/// Runs the graph on one batch.
///
/// `inputs`: one tensor of B rows for each of the graph's inputs. `present`: `[B]`, bool, false for padding.
///
/// # Errors
/// [`EngineError::Operator`] and [`EngineError::TypeDiffers`] name the node.
pub(crate) fn forward(
    graph: &TypedGraph,
    program: &Program,
    parameters: &[Tensor],
    constants: &[Tensor],
    inputs: &[Tensor],
    present: &Tensor,
    randomness: Randomness,
) -> Result<Forward> {
    let mut values = origins(graph, program, parameters, constants, inputs)?;
    let mut functions = unevaluated(graph, program, &values)?;
    let mut counted = Counted::new(present, program.batch_size);
    let mut taps = Vec::new();
    for (call, node) in program.calls.iter().zip(graph.nodes()) {
        let replaced = guards::replacements(call, &values, &program.expected, &mut counted)?;
        let pooled = pooling::run(call, &values, &program.expected)?;
        let outputs = match (pooled, &call.recurrent) {
            (Some(output), _) => vec![output],
            (None, Some(layers)) => {
                let (outputs, own) = layers.run(call, &values, trained_cells(node), randomness)?;
                taps.extend(own);
                outputs
            }
            (None, None) => run(call, &values, &replaced, randomness, program.device)?,
        };
        check_outputs(call, &outputs, &program.expected)?;
        if let (Some(_), Some(tap), None) = (call.tap, &node.tap, &call.recurrent) {
            let saved = saved_values(tap).into_iter();
            let saved = saved.filter_map(|value| as_run(call, value, &replaced).or(values[value].as_ref()));
            taps.push(tapped(call, &outputs[0], saved)?);
        }
        for (slot, output) in call.outputs.iter().zip(outputs) {
            values[*slot] = Some(output);
        }
        for (function, (_, value)) in program.functions.iter().zip(&mut functions) {
            if call.outputs.contains(&function.value) {
                *value = values[function.value].as_ref().map(Tensor::shallow_clone);
            }
        }
        for value in &call.last_uses {
            values[*value] = None;
        }
    }
    let results = program
        .results
        .iter()
        .map(|&result| values[result].as_ref().map(Tensor::shallow_clone))
        .collect::<Option<_>>()
        .ok_or(EngineError::Job("typed graph: a result is not computed".into()))?;
    let functions = functions.into_iter().map(|(edges, value)| {
        let value =
            value.ok_or_else(|| EngineError::Job("typed graph: a tapped function is not computed".into()))?;
        Ok(FunctionValue { value, edges })
    });
    Ok(Forward {
        results,
        counted: counted.mask().shallow_clone(),
        taps,
        functions: functions.collect::<Result<_>>()?,
    })
}

/// The cells of a recurrent layer that are trained.
fn trained_cells(node: &TypedNode) -> &[RecurrentCell] {
    match &node.tap {
        Some(Tap::Recurrent { cells }) => cells,
        _ => &[],
    }
}

/// For each function the places of its parameters in the autograd graph to come, and room for its value.
fn unevaluated(
    graph: &TypedGraph,
    program: &Program,
    values: &[Option<Tensor>],
) -> Result<Vec<(Vec<Edge>, Option<Tensor>)>> {
    let leaf = |parameter: usize| {
        let is_it = |origin: &Origin| matches!(origin, Origin::Parameter(id) if id.0 as usize == parameter);
        let position = graph.values().iter().position(|value| is_it(&value.origin));
        let tensor = position.and_then(|position| values[position].as_ref());
        tensor.and_then(|tensor| Edge::of(tensor).ok()).ok_or_else(|| {
            EngineError::Job("typed graph: a tapped function of a parameter that is not trained".into())
        })
    };
    let edges = |function: &Function| -> Result<Vec<Edge>> {
        function
            .parameters
            .iter()
            .map(|parameter| leaf(*parameter))
            .collect()
    };
    program
        .functions
        .iter()
        .map(|function| Ok((edges(function)?, None)))
        .collect()
}

/// Values that exist before the first node. Trainable parameters enter detached and requiring a gradient, so that
/// a tapped output is never a leaf.
fn origins(
    graph: &TypedGraph,
    program: &Program,
    parameters: &[Tensor],
    constants: &[Tensor],
    inputs: &[Tensor],
) -> Result<Vec<Option<Tensor>>> {
    let mut values = Vec::with_capacity(graph.values().len());
    for (position, value) in graph.values().iter().enumerate() {
        let tensor = match value.origin {
            Origin::Input(input) => Some(inputs[input as usize].shallow_clone()),
            Origin::Parameter(id) => {
                let trainable = graph.parameters()[id.0 as usize].trainable;
                Some(
                    parameters[id.0 as usize]
                        .f_detach()?
                        .f_set_requires_grad(trainable)?,
                )
            }
            Origin::Constant(constant) => Some(constants[constant as usize].shallow_clone()),
            Origin::Node { .. } => None,
        };
        if tensor
            .as_ref()
            .is_some_and(|tensor| !matches(tensor, &program.expected[position]))
        {
            return Err(EngineError::TypeDiffers {
                node: value.name.clone(),
            });
        }
        values.push(tensor);
    }
    Ok(values)
}

fn run(
    call: &Call,
    values: &[Option<Tensor>],
    replaced: &[Replacement],
    randomness: Randomness,
    device: Device,
) -> Result<Vec<Tensor>> {
    let failed = |detail: String| EngineError::Operator {
        node: call.name.clone(),
        detail,
    };
    let mut arguments = call
        .arguments
        .iter()
        .map(|argument| argument.resolve(values))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| failed("an argument is used before it is defined".into()))?;
    for replacement in replaced {
        match (&mut arguments[replacement.argument], replacement.element) {
            (CallArgument::OptionalTensors(list), Some(element)) => list[element] = Some(&replacement.tensor),
            (slot, _) => *slot = CallArgument::Tensor(&replacement.tensor),
        }
    }
    if let Some(position) = call.position("device").filter(|_| !device.is_cpu()) {
        arguments[position] = CallArgument::Device(device.number());
    }
    if randomness == Randomness::Frozen {
        let undrawn = match call.guard {
            Guard::Random => Some(("train", CallArgument::Bool(false))),
            Guard::Attention => Some(("dropout_p", CallArgument::Float(0.0))),
            _ => None,
        };
        if let Some((name, value)) = undrawn {
            let position = call
                .position(name)
                .ok_or_else(|| failed(format!("no argument '{name}'")))?;
            arguments[position] = value;
        }
    }
    if call.lowered {
        let lowered = lowering::lowered(&arguments)?;
        for (argument, operand) in arguments.iter_mut().zip(&lowered) {
            if let Some(operand) = operand {
                *argument = CallArgument::Tensor(operand);
            }
        }
        let products = call.operator.call(&arguments, call.outputs.len());
        let products = products.map_err(|_| failed(ffi::last_error()))?;
        let raised = products.iter().map(|product| product.f_to_kind(Kind::Float));
        return Ok(raised.collect::<std::result::Result<_, _>>()?);
    }
    let operator = || {
        let outputs = call.operator.call(&arguments, call.outputs.len());
        outputs.map_err(|_| failed(ffi::last_error()))
    };
    let outputs = match call.guard {
        Guard::Attention if device.is_cpu() => attention::run(call, operator)?,
        _ => operator()?,
    };
    if call.guard == Guard::Draw && randomness == Randomness::Frozen {
        let frozen = outputs.iter().map(|drawn| drawn.f_full_like(FROZEN_DRAW));
        return Ok(frozen.collect::<std::result::Result<_, _>>()?);
    }
    Ok(outputs)
}

fn check_outputs(call: &Call, outputs: &[Tensor], expected: &[Expected]) -> Result<()> {
    let fine = call
        .outputs
        .iter()
        .zip(outputs)
        .all(|(slot, output)| matches(output, &expected[*slot]));
    if fine {
        Ok(())
    } else {
        Err(EngineError::TypeDiffers {
            node: call.name.clone(),
        })
    }
}

fn matches(tensor: &Tensor, expected: &Expected) -> bool {
    !tensor.is_sparse() && tensor.kind() == expected.kind && tensor.size() == expected.shape
}

/// What stood in for a value in this call: ids of an embedding, brought into range (rule G4).
fn as_run<'r>(call: &Call, value: usize, replaced: &'r [Replacement]) -> Option<&'r Tensor> {
    let stands_in = |replacement: &&Replacement| {
        replacement.element.is_none()
            && matches!(call.arguments[replacement.argument], Prepared::Value(argument) if argument == value)
    };
    replaced
        .iter()
        .find(stands_in)
        .map(|replacement| &replacement.tensor)
}

fn tapped<'v>(call: &Call, output: &Tensor, saved: impl Iterator<Item = &'v Tensor>) -> Result<Tapped> {
    let edge = Edge::of(output).map_err(|_| EngineError::Operator {
        node: call.name.clone(),
        detail: ffi::last_error(),
    })?;
    let saved = saved
        .map(Tensor::f_detach)
        .collect::<std::result::Result<_, _>>()?;
    Ok(Tapped {
        edge,
        saved,
        shape: output.size(),
        kind: output.kind(),
    })
}

/// Output gradients at all taps, of the sum of the per-sample losses; zeros where the loss does not depend on one.
pub(crate) fn gradients_at_taps(forward: &Forward) -> Result<Vec<Tensor>> {
    let edges: Vec<&Edge> = forward.taps.iter().map(|tap| &tap.edge).collect();
    let loss = &forward.results[0];
    let gradients = if edges.is_empty() || !loss.requires_grad() {
        edges.iter().map(|_| None).collect()
    } else {
        let ones = loss.f_detach()?.f_ones_like()?;
        ffi::backward(loss, &ones, &edges, false).map_err(|_| EngineError::Torch {
            detail: ffi::last_error(),
        })?
    };
    gradients
        .into_iter()
        .zip(&forward.taps)
        .map(|(gradient, tap)| match gradient {
            Some(gradient) => Ok(gradient),
            None => beside(
                &Tensor::f_zeros(&tap.shape[..], (tap.kind, tch::Device::Cpu))?,
                &forward.results[0],
            ),
        })
        .collect()
}
