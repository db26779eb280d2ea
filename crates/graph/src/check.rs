//! The batch-axis type checker: untyped program × contract → [`TypedGraph`], or every refusal at once.
//!
//! DP-SGD bounds what one record can do by clipping *its* gradient, which holds only if the loss of
//! sample `i` depends on sample `i` alone. The checker proves that, with rules T1–T9 of soundness.md:
//! default-deny per operator, overload and argument. Shapes and dtypes are inferred from the contract and
//! the stored tensors; what the archive recorded is only compared.
//!
//! Call order: liveness → inputs → one rule per live node ([`rules`]) → taps and G2 → the loss.

mod broadcast;
mod call;
mod facts;
mod guards;
mod hints;
mod inputs;
mod premise;
mod refusal;
mod rules;
#[cfg(test)]
mod tests;

pub use guards::{ValueGuard, value_guards};
pub use refusal::{Refusal, Refusals};

use crate::archive::Archive;
use crate::contract::InputColumn;
use crate::program::{OutputKind, Program, ProgramNode, RawArgument, RawOutput, RawSize};
use crate::schema;
use crate::typed::{
    Constant, Dependence, Extent, Input, Origin, Parameter, Tap, TappedParameter, TypedGraph, TypedNode,
    Value, ValueId, ValueType,
};
use call::{Call, Named, Unresolved};
use facts::{Facts, Output, Typed};
use premise::{Premise, require};
use refusal::Objection;
use std::collections::{HashMap, HashSet};

/// Proves an archive's program against the columns its inputs are fed from.
///
/// # Guarantee
/// In the returned graph, for every physical batch size, element `i` of the loss depends on sample `i`,
/// the parameters and the constants only, and every trainable parameter meets per-sample data only at
/// nodes with a [`Tap`].
/// # Errors
/// [`Refusals`]: every node that has no rule or does not meet it, with reason and remedy.
pub fn check(archive: &Archive, inputs: &[InputColumn]) -> Result<TypedGraph, Refusals> {
    check_program(archive.program(), inputs)
}

/// [`check()`] for a program that did not come from an archive.
///
/// # Errors
/// As [`check()`].
pub fn check_program(program: &Program, inputs: &[InputColumn]) -> Result<TypedGraph, Refusals> {
    let mut checker = Checker::new(program);
    checker.inputs(inputs);
    checker.state();
    let live = live_nodes(program);
    for (node, live) in program.nodes().iter().zip(live) {
        checker.node(node, live);
    }
    checker.finish()
}

/// Nodes whose outputs reach a result. The others are dropped: what is not run cannot leak.
fn live_nodes(program: &Program) -> Vec<bool> {
    let results = program
        .outputs()
        .iter()
        .filter(|output| output.kind == OutputKind::Result);
    let mut needed: HashSet<&str> = results.flat_map(|output| output.value.names()).collect();
    let mut live = vec![false; program.nodes().len()];
    for (node, live) in program.nodes().iter().zip(&mut live).rev() {
        *live = node
            .outputs
            .iter()
            .flat_map(RawOutput::names)
            .any(|name| needed.contains(name.as_str()));
        if *live {
            needed.extend(node.arguments.iter().flat_map(|(_, argument)| argument.names()));
        }
    }
    live
}

/// Most axes of a value; far below what [`Dependence::PerSample`] can number.
const MAX_RANK: usize = 16;

struct Checker<'p> {
    program: &'p Program,
    names: HashMap<&'p str, Named>,
    graph_inputs: Vec<Input>,
    values: Vec<Value>,
    typed: Vec<Typed>,
    nodes: Vec<TypedNode>,
    refusals: Vec<Refusal>,
}

impl<'p> Checker<'p> {
    fn new(program: &'p Program) -> Self {
        Self {
            program,
            names: HashMap::new(),
            graph_inputs: Vec::new(),
            values: Vec::new(),
            typed: Vec::new(),
            nodes: Vec::new(),
            refusals: Vec::new(),
        }
    }

    fn define(&mut self, name: &'p str, origin: Origin, output: Output, hint_trusted: bool) -> ValueId {
        let id = ValueId(u32::try_from(self.values.len()).unwrap_or(u32::MAX));
        let Output {
            value_type,
            requires_grad,
            view,
            bounds,
        } = output;
        self.values.push(Value {
            name: name.to_owned(),
            origin,
            value_type: value_type.clone(),
            requires_grad,
        });
        self.typed.push(Typed {
            id,
            value_type,
            requires_grad,
            facts: Facts {
                view,
                bounds,
                hint_trusted,
            },
        });
        self.names.insert(name, Named::Value(id));
        id
    }

    fn refuse(&mut self, node: &str, operator: &str, source: Option<&str>, objection: Objection) {
        self.refusals.push(Refusal {
            node: node.to_owned(),
            operator: operator.to_owned(),
            source: source.map(str::to_owned),
            rule: objection.rule.map(str::to_owned),
            reason: objection.reason,
            remedy: objection.remedy,
        });
    }

    /// Rule T8: a program that writes buffers, parameters or inputs carries state from batch to batch.
    fn state(&mut self) {
        let program = self.program;
        let mut writers: Vec<(&str, String, Option<&str>)> = Vec::new();
        for output in program
            .outputs()
            .iter()
            .filter(|output| output.kind == OutputKind::Mutation)
        {
            let name = output.value.names().next().unwrap_or_default();
            let defines = |node: &&ProgramNode| {
                node.outputs
                    .iter()
                    .flat_map(RawOutput::names)
                    .any(|output| output == name)
            };
            let writer = program.nodes().iter().find(defines);
            let writer = writer.map_or((name, String::new(), None), |node| {
                (node.name.as_str(), short(&node.target), node.source.as_deref())
            });
            if !writers.contains(&writer) {
                writers.push(writer);
            }
        }
        for (node, operator, source) in writers {
            let verdict = require(Premise::NoState, false, || {
                let reason = "the program writes a buffer, a parameter or an input: what one batch leaves there \
                              reaches the next (BatchNorm in training mode does this)";
                (
                    reason.into(),
                    "return the loss only; bastionai.fix(model) replaces BatchNorm by GroupNorm".into(),
                )
            });
            if let Err(objection) = verdict {
                self.refuse(node, &operator, source, objection);
            }
        }
    }

    fn node(&mut self, node: &'p ProgramNode, live: bool) {
        let names = || node.outputs.iter().flat_map(RawOutput::names);
        if names().next().is_none() {
            self.effect(node);
            return;
        }
        let verdict = if live {
            self.live_node(node)
        } else {
            Err(Unresolved::Unknown)
        };
        if let Err(unresolved) = verdict {
            names().for_each(|name| {
                self.names.insert(name, Named::Unknown);
            });
            if let Unresolved::Objection(objection) = unresolved {
                self.refuse(
                    &node.name,
                    &short(&node.target),
                    node.source.as_deref(),
                    objection,
                );
            }
        }
    }

    /// A call without a result is there for its effect. Recorded-metadata assertions are dropped, since
    /// the checker infers and the trainer asserts every type; others could end a run on a value.
    fn effect(&mut self, node: &ProgramNode) {
        if node.target == "torch.ops.aten._assert_tensor_metadata.default" {
            return;
        }
        let verdict = require(Premise::BatchSizeOnlyInSizeLists, false, || {
            let reason = "it is called for its effect: an assertion can end the run on a sample's value or on the \
                          batch size, which tells them";
            (
                reason.into(),
                "remove the assertion or the call from the module".into(),
            )
        });
        if let Err(objection) = verdict {
            self.refuse(
                &node.name,
                &short(&node.target),
                node.source.as_deref(),
                objection,
            );
        }
    }

    fn live_node(&mut self, node: &'p ProgramNode) -> Result<(), Unresolved> {
        if let Some(size) = self.size_node(node)? {
            node.outputs.iter().flat_map(RawOutput::names).for_each(|name| {
                self.names.insert(name, Named::Size(size));
            });
            return Ok(());
        }
        let (name, overload) = split_target(&node.target).ok_or_else(|| rules::no_rule(&node.target))?;
        let (schema, rule) = schema::find(name, overload)
            .zip(rules::find(name, overload))
            .ok_or_else(|| rules::no_rule(&node.target))?;
        let lookup = |name: &str| self.names.get(name).copied().unwrap_or(Named::Unknown);
        let mut call = Call::resolve(schema, &node.arguments, &lookup, &self.typed)?;
        let rules::Outcome { outputs, tap } = rule(&mut call)?;
        check_parameters(&call, &outputs, tap.as_ref())?;
        let trusted = call.hints_trusted();
        let arguments = call.finish()?;
        let names = output_names(node, outputs.len())?;
        let mut trust = Vec::with_capacity(outputs.len());
        for (name, output) in names.iter().zip(&outputs) {
            check_extents(&output.value_type)?;
            let hint = self.program.hint(name).filter(|_| trusted);
            trust.push(trusted && hints::agree(hint, &output.value_type, schema)?);
        }
        let index = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let mut ids = Vec::with_capacity(outputs.len());
        for (((output, value), name), trust) in (0u32..).zip(outputs).zip(names).zip(trust) {
            ids.push(self.define(name, Origin::Node { node: index, output }, value, trust));
        }
        self.nodes.push(TypedNode {
            name: node.name.clone(),
            operator: name.to_owned(),
            overload: overload.to_owned(),
            arguments,
            outputs: ids,
            tap,
            source: node.source.clone(),
        });
        Ok(())
    }

    /// Sizes are resolved here and leave no node: `sym_size.int` and multiplication (rule T1).
    fn size_node(&self, node: &ProgramNode) -> Result<Option<Extent>, Unresolved> {
        let [RawOutput::Size(_)] = node.outputs.as_slice() else {
            return Ok(None);
        };
        let argument = |name: &str| {
            node.arguments
                .iter()
                .find(|(found, _)| found == name)
                .map(|(_, value)| value)
        };
        if node.target == "torch.ops.aten.sym_size.int" {
            let (Some(RawArgument::Tensor(tensor)), Some(RawArgument::Int(dim))) =
                (argument("self"), argument("dim"))
            else {
                return Err(rules::no_rule(&node.target).into());
            };
            let Some(Named::Value(id)) = self.names.get(tensor.as_str()) else {
                return Err(Unresolved::Unknown);
            };
            let shape = &self.typed[id.0 as usize].value_type.shape;
            return Ok(Some(shape[broadcast::normalise_dim(*dim, shape.len())?]));
        }
        let mut operands = Vec::with_capacity(node.arguments.len());
        for (_, value) in &node.arguments {
            operands.push(match value {
                RawArgument::Int(value) => Some(i128::from(*value)).zip(Some(false)),
                RawArgument::Size(RawSize::Int(value)) => Some(i128::from(*value)).zip(Some(false)),
                RawArgument::Size(RawSize::Name(name)) => match self.names.get(name.as_str()) {
                    Some(Named::Size(Extent::Fixed(value))) => Some((i128::from(*value), false)),
                    Some(Named::Size(Extent::Batch(inner))) => Some((i128::from(*inner), true)),
                    _ => return Err(Unresolved::Unknown),
                },
                _ => None,
            });
        }
        size_product(&node.target, &operands).map(Some)
    }

    fn finish(mut self) -> Result<TypedGraph, Refusals> {
        let loss = self.loss();
        if let (Some(loss), true) = (loss, self.refusals.is_empty()) {
            return Ok(self.graph(loss));
        }
        Err(Refusals {
            refusals: self.refusals,
        })
    }

    /// The one result, which must be one floating loss per sample.
    fn loss(&mut self) -> Option<ValueId> {
        let results: Vec<_> = self
            .program
            .outputs()
            .iter()
            .filter(|output| output.kind == OutputKind::Result)
            .collect();
        let name = match results.as_slice() {
            [output] => match &output.value {
                RawArgument::Tensor(name) => name.as_str(),
                _ => "output",
            },
            _ => "output",
        };
        match self.names.get(name) {
            Some(Named::Value(id)) => match judge_loss(&self.typed[id.0 as usize]) {
                Ok(()) => return Some(*id),
                Err(objection) => {
                    let id = *id;
                    self.refuse_at_value(id, objection);
                }
            },
            // The node that makes it was refused already.
            Some(Named::Unknown) => {}
            _ => {
                let reason = format!(
                    "the module returns {} results; it must return one tensor: a loss per sample",
                    results.len()
                );
                self.refuse(
                    "output",
                    "",
                    None,
                    Objection::plain(reason, "return only the tensor of losses, of shape [batch]"),
                );
            }
        }
        None
    }

    fn refuse_at_value(&mut self, id: ValueId, objection: Objection) {
        let value = &self.values[id.0 as usize];
        let (name, node) = (
            value.name.clone(),
            match value.origin {
                Origin::Node { node, .. } => Some(self.nodes[node as usize].clone()),
                _ => None,
            },
        );
        match node {
            Some(node) => {
                let operator = format!("aten.{}.{}", node.operator, node.overload);
                self.refuse(&node.name, &operator, node.source.as_deref(), objection);
            }
            None => self.refuse(&name, "", None, objection),
        }
    }

    /// Drops the taps that no gradient of the loss reaches (what is detached is not trained).
    fn drop_idle_taps(&mut self, loss: ValueId) {
        let mut reached: HashSet<ValueId> = HashSet::from([loss]);
        for node in self.nodes.iter_mut().rev() {
            if !node.outputs.iter().any(|output| reached.contains(output)) {
                node.tap = None;
                continue;
            }
            let operands = node
                .arguments
                .iter()
                .flat_map(|argument| argument.value.value_ids());
            reached.extend(operands.filter(|id| self.values[id.0 as usize].requires_grad));
        }
    }

    fn graph(mut self, loss: ValueId) -> TypedGraph {
        self.drop_idle_taps(loss);
        let tapped: HashSet<u32> = self
            .nodes
            .iter()
            .filter_map(|node| node.tap.as_ref())
            .flat_map(tapped_parameters)
            .map(|tapped| tapped.parameter.0)
            .collect();
        let parameters = self
            .program
            .parameters()
            .iter()
            .zip(0u32..)
            .map(|(parameter, index)| Parameter {
                names: parameter.names.clone(),
                dtype: parameter.dtype,
                shape: parameter.shape.clone(),
                trainable: parameter.requires_grad && tapped.contains(&index),
            });
        let constants = self.program.constants().iter().map(|constant| Constant {
            name: constant.name.clone(),
            dtype: constant.dtype,
            shape: constant.shape.clone(),
        });
        TypedGraph {
            parameters: parameters.collect(),
            constants: constants.collect(),
            inputs: self.graph_inputs,
            values: self.values,
            nodes: self.nodes,
            loss,
        }
    }
}

/// Parameters a tap trains.
pub(crate) fn tapped_parameters(tap: &Tap) -> Vec<&TappedParameter> {
    match tap {
        Tap::Linear { weight, bias, .. }
        | Tap::MatMul { weight, bias, .. }
        | Tap::LayerNorm { weight, bias, .. } => weight.iter().chain(bias).collect(),
        Tap::BroadcastAdd { parameter, .. } | Tap::BroadcastMul { parameter, .. } => vec![parameter],
    }
}

fn judge_loss(loss: &Typed) -> Result<(), Objection> {
    let ValueType {
        dependence,
        shape,
        dtype,
    } = &loss.value_type;
    let per_sample =
        *dependence == Dependence::PerSample { axis: 0 } && shape.as_slice() == [Extent::Batch(1)];
    require(Premise::LossPerSample, per_sample && dtype.is_float(), || {
        let reason = format!(
            "the result has type {}; it must be one floating loss per sample, f32[B]",
            crate::display::ty(&loss.value_type)
        );
        (
            reason,
            "reduce within each sample only (reduction=\"none\", then .mean(dim=1) over what is left)".into(),
        )
    })?;
    if loss.requires_grad {
        return Ok(());
    }
    Err(Objection::plain(
        "no trainable parameter reaches the loss",
        "set requires_grad on what is to be trained",
    ))
}

/// Rule G2: a trainable parameter is used whole, at a tap, or without gradient.
fn check_parameters(call: &Call<'_>, outputs: &[Output], tap: Option<&Tap>) -> Result<(), Objection> {
    let tapped: Vec<ValueId> = tap
        .map(tapped_parameters)
        .unwrap_or_default()
        .iter()
        .map(|tapped| tapped.value)
        .collect();
    let untapped = call
        .tensor_ids()
        .into_iter()
        .any(|id| call::is_trainable(call.value(id)) && !tapped.contains(&id));
    let shared = |output: &Output| output.value_type.dependence == Dependence::Shared;
    if untapped
        && outputs
            .iter()
            .any(|output| output.requires_grad && shared(output) && output.view.is_none())
    {
        require(Premise::ParametersAreTapped, false, || {
            let reason = "it computes a function of a trainable parameter: clipping the gradient of the result does not \
                          bound the gradient of the parameter";
            let remedy = "use the parameter itself (or a transpose or view of all of it), or freeze it with \
                          requires_grad_(False)";
            (reason.into(), remedy.into())
        })?;
    }
    if untapped
        && outputs
            .iter()
            .any(|output| output.requires_grad && !shared(output))
    {
        require(Premise::ParametersAreTapped, false, || {
            let reason =
                "a trainable parameter meets per-sample data where no per-sample gradient rule exists";
            let remedy = "use linear, matmul with the parameter on the right, layer_norm, or broadcast add, sub or mul \
                          with it; or freeze it with requires_grad_(False)";
            (reason.into(), remedy.into())
        })?;
    }
    Ok(())
}

/// No extent may be zero, no rank above [`MAX_RANK`], and B appears on the batch axis only (rule T1).
fn check_extents(value_type: &ValueType) -> Result<(), Objection> {
    if value_type
        .shape
        .iter()
        .any(|extent| matches!(extent, Extent::Fixed(0) | Extent::Batch(0)))
    {
        return Err(Objection::plain(
            "the result is empty",
            "remove it; tensors without elements have no rule",
        ));
    }
    if value_type.shape.len() > MAX_RANK {
        let reason = format!(
            "the result has {} axes, more than {MAX_RANK}",
            value_type.shape.len()
        );
        return Err(Objection::plain(reason, "merge axes"));
    }
    let batch_axes = value_type
        .shape
        .iter()
        .filter(|extent| matches!(extent, Extent::Batch(_)))
        .count();
    let expected = usize::from(value_type.dependence != Dependence::Shared);
    require(
        Premise::OneBatchAxis,
        batch_axes == expected || premise::is_dropped(Premise::BatchAxesAligned),
        || {
            let reason = format!(
                "the result {} would carry the batch size on {batch_axes} axes",
                crate::display::ty(value_type)
            );
            (
                reason,
                "keep one batch axis; samples must not be combined with one another".into(),
            )
        },
    )
}

/// Size arithmetic: products of constants with at most one factor that mentions B (rule T1).
fn size_product(target: &str, operands: &[Option<(i128, bool)>]) -> Result<Extent, Unresolved> {
    let batch_factors = operands.iter().flatten().filter(|(_, batch)| *batch).count();
    let scaled = target == "_operator.mul" && batch_factors <= 1 && operands.len() == 2;
    require(Premise::BatchSizeOnlyScaled, scaled, || {
        let reason =
            "it computes with the batch size; only a constant multiple of it is a size of the batch axis";
        (
            reason.into(),
            "use constants, or x.flatten(...) and x.view(B, ...) with sizes B or B*k".into(),
        )
    })?;
    let product = operands
        .iter()
        .try_fold(1i128, |product, operand| product.checked_mul((*operand)?.0));
    let value = product
        .and_then(|product| u64::try_from(product).ok())
        .filter(|value| *value >= 1);
    let value = value
        .ok_or_else(|| Objection::plain("a size is not a positive integer", "use positive constants"))?;
    Ok(if batch_factors > 0 {
        Extent::Batch(value)
    } else {
        Extent::Fixed(value)
    })
}

/// Names the outputs: single slots, or the elements of one returned list.
fn output_names(node: &ProgramNode, expected: usize) -> Result<Vec<&str>, Objection> {
    let mut names = Vec::with_capacity(expected);
    for output in &node.outputs {
        match output {
            RawOutput::Tensor(_) | RawOutput::Tensors(_) => {
                names.extend(output.names().iter().map(String::as_str))
            }
            RawOutput::Size(_) | RawOutput::Unsupported(_) => {
                return Err(Objection::denied(
                    "it returns something that is not a tensor",
                    "return tensors only",
                ));
            }
        }
    }
    if names.len() == expected {
        return Ok(names);
    }
    let reason = format!(
        "the archive records {} results where the operator has {expected}",
        names.len()
    );
    Err(Objection {
        rule: Some("T4"),
        reason,
        remedy: "export again; the archive is not what torch writes".into(),
    })
}

/// `torch.ops.aten.linear.default` → `("linear", "default")`.
fn split_target(target: &str) -> Option<(&str, &str)> {
    target.strip_prefix("torch.ops.aten.")?.split_once('.')
}

/// The target without `torch.ops.`.
fn short(target: &str) -> String {
    target.strip_prefix("torch.ops.").unwrap_or(target).to_owned()
}
