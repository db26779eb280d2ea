//! Leaky programs for T1, T3–T8, G2 and G4 in several variants; T2 (rounding that depends on the batch size) no type
//! can see: the trainer's oracles have its attack, at the one physical batch size of a run. Each is refused at the very node that leaks,
//! under its rule; most name the premise whose absence alone would let them through (see `mutants`).

mod attention;
mod contractions;
mod draws;
mod functions;
mod order;
mod parameters;
mod recurrent;
mod reductions;
mod repeat;
mod reshapes;
mod rows;
mod selection;
mod sizes;
mod state;
mod types;

use super::build::{Build, f, flag, i, ints, k, sizes, t};
use crate::check::premise::Premise;
use crate::dtype::DType;
use crate::program::{Hint, HintExtent, RawArgument, RawSize};

/// How the second oracle sees the leak once the premise is dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// The dependence of the loss.
    ByOracle,
    /// Not in the forward pass (gradients, metadata, ranges): acceptance alone is the defect.
    No,
}

/// One leaky program.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) rule: &'static str,
    pub(super) premise: Option<(Premise, Seen)>,
    pub(super) build: fn(&mut Build),
}

pub(super) const fn case(name: &'static str, rule: &'static str, build: fn(&mut Build)) -> Case {
    Case {
        name,
        rule,
        premise: None,
        build,
    }
}

pub(super) const fn mutant(
    name: &'static str,
    rule: &'static str,
    premise: Premise,
    seen: Seen,
    build: fn(&mut Build),
) -> Case {
    Case {
        name,
        rule,
        premise: Some((premise, seen)),
        build,
    }
}

pub(super) fn size_arg(size: &RawSize) -> RawArgument {
    RawArgument::Size(size.clone())
}

/// A bad reduction of some value to less, reduced to a scalar and added to the loss.
pub(super) fn bad_then_mean(b: &mut Build, operator: &str, arguments: &[(&str, RawArgument)]) {
    let bad = b.bad(operator, arguments);
    let mean = b.call("mean.default", &[("self", t(&bad))]);
    b.returns_loss_plus(&mean);
}

/// A bad value that has the shape of the loss.
fn bad_plus(b: &mut Build, operator: &str, arguments: &[(&str, RawArgument)]) {
    let bad = b.bad(operator, arguments);
    b.returns_loss_plus(&bad);
}

/// A bad [B, n] value, summed over axis 1 and added to the loss.
fn bad_rows(b: &mut Build, operator: &str, arguments: &[(&str, RawArgument)]) {
    let bad = b.bad(operator, arguments);
    let rows = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[1]))]);
    b.returns_loss_plus(&rows);
}

use Premise as P;
use Seen::{ByOracle, No};

/// All leaky programs.
pub(super) fn cases() -> Vec<Case> {
    [
        sizes::cases(),
        state::cases(),
        types::cases(),
        reshapes::cases(),
        rows::cases(),
        reductions::cases(),
        contractions::cases(),
        selection::cases(),
        repeat::cases(),
        parameters::cases(),
        super::embedding::cases(),
        attention::cases(),
        draws::cases(),
        super::leaky_windows::cases(),
        functions::cases(),
        order::cases(),
        recurrent::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn every_leaky_program_is_refused_at_the_leaking_node_under_its_rule() {
    for case in cases() {
        let mut build = Build::classifier();
        (case.build)(&mut build);
        let refusals = build.check().expect_err(case.name).refusals;
        let found: Vec<_> = refusals
            .iter()
            .map(|refusal| (refusal.node.as_str(), refusal.rule.as_deref()))
            .collect();
        assert_eq!(
            found,
            [(build.blamed.as_str(), Some(case.rule))],
            "{}: {refusals:?}",
            case.name
        );
        assert!(!refusals[0].reason.is_empty() && !refusals[0].remedy.is_empty());
    }
}

#[test]
fn a_refusal_names_node_operator_and_python_line() {
    let mut build = Build::classifier();
    let sum = build.bad("sum.dim_IntList", &[("self", t("x")), ("dim", ints(&[0]))]);
    let mean = build.call("mean.default", &[("self", t(&sum))]);
    build.returns_loss_plus(&mean);
    let refusals = build.check().unwrap_err();
    let text = refusals.to_string();
    assert!(
        text.contains("model.py:2: n1 (aten.sum.dim_IntList): it combines the samples"),
        "{text}"
    );
    let json: serde_json::Value = serde_json::to_value(&refusals).unwrap();
    assert_eq!(json[0]["operator"], "aten.sum.dim_IntList");
    assert_eq!(json[0]["source"], "model.py:2");
}

#[test]
fn all_leaks_of_a_program_are_reported_at_once() {
    let mut build = Build::classifier();
    let one = build.call("sum.default", &[("self", t("t"))]);
    let two = build.call("mul.Tensor", &[("self", t("t")), ("other", t("c3"))]);
    let three = build.call("add.Tensor", &[("self", t(&one)), ("other", t(&two))]);
    build.returns_loss_plus(&three);
    let refusals = build.check().unwrap_err().refusals;
    assert_eq!(
        refusals
            .iter()
            .map(|refusal| refusal.node.as_str())
            .collect::<Vec<_>>(),
        [one.as_str(), two.as_str()]
    );
}
