//! The batch-axis type checker: untyped program × contract → [`TypedGraph`], or every refusal at once.
//!
//! DP-SGD bounds what one record can do by clipping *its* gradient, which holds only if the loss of
//! sample `i` depends on sample `i` alone. The checker proves that, with rules T1–T9 of soundness.md:
//! default-deny per operator, overload and argument. Shapes and dtypes are inferred from the contract and
//! the stored tensors; what the archive recorded is only compared.
//!
//! Call order: liveness → inputs → one rule per live node ([`rules`]) → taps and G2 → the results: a loss, or
//! scores and a label.

mod broadcast;
mod call;
mod facts;
mod guards;
mod hints;
mod inputs;
mod judge;
mod lower;
mod premise;
mod refusal;
mod resolve;
mod rules;
mod sizes;
#[cfg(test)]
mod tests;

pub use guards::{ValueGuard, value_guards};
pub use refusal::{Refusal, Refusals};

use crate::archive::Archive;
use crate::contract::InputColumn;
use crate::program::{OutputKind, Program, ProgramNode, RawArgument, RawOutput};
use crate::schema;
use crate::typed::{
    Constant, Dependence, Input, Origin, Parameter, ParameterId, Results, Tap, TappedParameter, TypedGraph,
    TypedNode, Value, ValueId,
};
use call::{Call, Named, Unresolved};
use facts::{Facts, Output, Typed};
use judge::{check_extents, check_parameters, judge_label, judge_loss, judge_scores};
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
    let mut checker = Checker::new(program, true);
    checker.run(inputs);
    let loss = checker.loss();
    checker.finish(loss.map(Results::Loss))
}

/// Proves an archive's program for evaluation: its two results are scores and label.
///
/// # Guarantee
/// In the returned graph, for every physical batch size, scores and label of sample `i` depend on sample `i`,
/// the parameters and the constants only. No parameter is trained, so none of rule G2's restrictions applies.
/// # Errors
/// [`Refusals`], as [`check()`].
pub fn check_scores(archive: &Archive, inputs: &[InputColumn]) -> Result<TypedGraph, Refusals> {
    check_scores_program(archive.program(), inputs)
}

/// [`check_scores()`] for a program that did not come from an archive.
///
/// # Errors
/// As [`check_scores()`].
pub fn check_scores_program(program: &Program, inputs: &[InputColumn]) -> Result<TypedGraph, Refusals> {
    let mut checker = Checker::new(program, false);
    checker.run(inputs);
    let results = checker.scores();
    checker.finish(results)
}

/// Nodes whose outputs reach a result, and the names that are read on the way. The others are dropped: what is not run
/// cannot leak.
fn live_nodes(program: &Program) -> (Vec<bool>, HashSet<&str>) {
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
    (live, needed)
}

struct Checker<'p> {
    program: &'p Program,
    /// Whether parameters get gradients: not in an evaluation.
    is_trained: bool,
    names: HashMap<&'p str, Named>,
    /// Names that results are computed from.
    needed: HashSet<&'p str>,
    graph_inputs: Vec<Input>,
    values: Vec<Value>,
    typed: Vec<Typed>,
    nodes: Vec<TypedNode>,
    refusals: Vec<Refusal>,
}

impl<'p> Checker<'p> {
    fn new(program: &'p Program, is_trained: bool) -> Self {
        Self {
            program,
            is_trained,
            names: HashMap::new(),
            needed: HashSet::new(),
            graph_inputs: Vec::new(),
            values: Vec::new(),
            typed: Vec::new(),
            nodes: Vec::new(),
            refusals: Vec::new(),
        }
    }

    fn run(&mut self, inputs: &[InputColumn]) {
        self.inputs(inputs);
        self.state();
        let (live, needed) = live_nodes(self.program);
        self.needed = needed;
        for (node, live) in self.program.nodes().iter().zip(live) {
            self.node(node, live);
        }
    }

    /// `parameters`: the trainable ones that reach the value, if it is Shared and has a gradient.
    fn define(
        &mut self,
        name: &'p str,
        origin: Origin,
        output: Output,
        parameters: &[ParameterId],
        hint_trusted: bool,
    ) -> ValueId {
        let id = ValueId(u32::try_from(self.values.len()).unwrap_or(u32::MAX));
        let Output {
            value_type,
            requires_grad,
            view,
            bounds,
            iota,
        } = output;
        self.values.push(Value {
            name: name.to_owned(),
            origin,
            value_type: value_type.clone(),
            requires_grad,
        });
        let is_trainable = requires_grad && value_type.dependence == Dependence::Shared;
        let parameters = if is_trainable { parameters } else { &[] };
        self.typed.push(Typed {
            id,
            value_type,
            requires_grad,
            facts: Facts {
                view,
                parameters: parameters.to_vec(),
                bounds,
                iota,
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
        let lowered = lower::lowered(node, &self.needed)?;
        let (target, given) = lowered
            .as_ref()
            .map_or((&node.target[..], &node.arguments), |lowered| {
                (lowered.target, &lowered.arguments)
            });
        let (name, overload) = split_target(target).ok_or_else(|| rules::no_rule(target))?;
        let (schema, rule) = schema::find(name, overload)
            .zip(rules::find(name, overload))
            .ok_or_else(|| rules::no_rule(target))?;
        let lookup = |name: &str| self.names.get(name).copied().unwrap_or(Named::Unknown);
        let mut call = Call::resolve(schema, given, &lookup, &self.typed)?;
        let rules::Outcome { outputs, tap } = rule(&mut call)?;
        check_parameters(&call, &outputs, tap.as_ref())?;
        let (trusted, parameters) = (call.hints_trusted(), call.trained_parameters());
        let arguments = call.finish()?;
        let returned = lowered
            .as_ref()
            .map_or(&node.outputs[..], |lowered| &node.outputs[..lowered.results]);
        let names = output_names(returned, outputs.len())?;
        let mut trust = Vec::with_capacity(outputs.len());
        for (name, output) in names.iter().zip(&outputs) {
            check_extents(&output.value_type)?;
            let hint = self.program.hint(name).filter(|_| trusted);
            trust.push(trusted && hints::agree(hint, &output.value_type, schema)?);
        }
        let index = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let mut ids = Vec::with_capacity(outputs.len());
        for (((output, value), name), trust) in (0u32..).zip(outputs).zip(names).zip(trust) {
            let origin = Origin::Node { node: index, output };
            ids.push(self.define(name, origin, value, &parameters, trust));
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

    fn finish(self, results: Option<Results>) -> Result<TypedGraph, Refusals> {
        if let (Some(results), true) = (results, self.refusals.is_empty()) {
            return Ok(self.graph(results));
        }
        Err(Refusals {
            refusals: self.refusals,
        })
    }

    /// The two results of an evaluation: scores, then label.
    fn scores(&mut self) -> Option<Results> {
        let results: Vec<_> = self
            .program
            .outputs()
            .iter()
            .filter(|output| output.kind == OutputKind::Result)
            .collect();
        let [RawArgument::Tensor(scores), RawArgument::Tensor(label)] =
            results.iter().map(|output| &output.value).collect::<Vec<_>>()[..]
        else {
            let reason = format!(
                "the module returns {} results; to be evaluated it must return two tensors: scores and label",
                results.len()
            );
            let remedy = "return (logits, label): an evaluation computes no loss";
            self.refuse("output", "", None, Objection::plain(reason, remedy));
            return None;
        };
        let scores = self.result(scores, judge_scores);
        let label = self.result(label, judge_label);
        Some(Results::Scores {
            scores: scores?,
            label: label?,
        })
    }

    /// The value of this name, if it is what a result must be.
    fn result(&mut self, name: &str, judge: fn(&Typed) -> Result<(), Objection>) -> Option<ValueId> {
        match self.names.get(name) {
            Some(Named::Value(id)) => match judge(&self.typed[id.0 as usize]) {
                Ok(()) => return Some(*id),
                Err(objection) => {
                    let id = *id;
                    self.refuse_at_value(id, objection);
                }
            },
            // The node that makes it was refused already.
            Some(Named::Unknown) => {}
            _ => self.refuse(
                name,
                "",
                None,
                Objection::plain("a result is not a tensor", "return tensors only"),
            ),
        }
        None
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
            Some(Named::Value(_) | Named::Unknown) => return self.result(name, judge_loss),
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
    fn drop_idle_taps(&mut self, results: Results) {
        let mut reached: HashSet<ValueId> = results.values().into_iter().collect();
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

    fn graph(mut self, results: Results) -> TypedGraph {
        self.drop_idle_taps(results);
        let tapped: HashSet<u32> = self
            .nodes
            .iter()
            .filter_map(|node| node.tap.as_ref())
            .flat_map(Tap::parameters)
            .flat_map(TappedParameter::parameters)
            .map(|parameter| parameter.0)
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
            results,
        }
    }
}

/// Names the outputs: single slots, or the elements of one returned list.
fn output_names(returned: &[RawOutput], expected: usize) -> Result<Vec<&str>, Objection> {
    let mut names = Vec::with_capacity(expected);
    for output in returned {
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
