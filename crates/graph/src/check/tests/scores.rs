//! Graphs for evaluation: scores and label per sample, under the same soundness rules as a loss.

use super::build::{Build, i, ints, t};
use super::leaky;
use super::oracle::judge;
use crate::Refusals;
use crate::typed::{Results, TypedGraph};

/// The classifier's program with these results.
fn with_results(results: &[&str]) -> Result<TypedGraph, Refusals> {
    let mut build = Build::classifier();
    results.iter().for_each(|result| build.returns(result));
    build.check_scores()
}

fn refused(results: &[&str]) -> String {
    with_results(results).unwrap_err().to_string()
}

#[test]
fn logits_with_a_label_are_scores() {
    let graph = with_results(&["logits", "y"]).unwrap();
    assert!(matches!(graph.results(), Results::Scores { .. }));
    assert_eq!((graph.score_width(), graph.loss()), (Some(3), None));
    assert!(graph.nodes().iter().all(|node| node.tap.is_none()));
    assert!(graph.parameters().iter().all(|parameter| !parameter.trainable));
    assert_eq!(TypedGraph::from_bytes(&graph.to_bytes()).unwrap(), graph);
    assert!(graph.to_string().ends_with("return %logits, %y"), "{graph}");
}

#[test]
fn one_logit_per_sample_with_a_bool_label_is_a_score() {
    let mut build = Build::classifier();
    let logit = build.call("sum.dim_IntList", &[("self", t("x")), ("dim", ints(&[1]))]);
    build.returns(&logit);
    build.returns("flag");
    let graph = build.check_scores().unwrap();
    assert_eq!(graph.score_width(), Some(1));
    judge(&graph).unwrap();
    let mut build = Build::classifier();
    let column = build.call("unsqueeze.default", &[("self", t("t")), ("dim", i(1))]);
    build.returns(&column);
    build.returns("y");
    assert_eq!(build.check_scores().unwrap().score_width(), Some(1));
}

/// What training refuses because of gradients (rule G2) can be evaluated.
#[test]
fn a_function_of_a_parameter_may_meet_samples_when_nothing_is_trained() {
    let mut build = Build::classifier();
    let doubled = build.call("mul.Tensor", &[("self", t("w")), ("other", t("w"))]);
    let logits = build.call("linear.default", &[("input", t("x")), ("weight", t(&doubled))]);
    build.returns(&logits);
    build.returns("y");
    build.check_scores().unwrap();
}

#[test]
fn a_loss_graph_is_refused_where_scores_are_expected_and_the_reverse() {
    assert!(refused(&["loss"]).contains("two tensors: scores and label"));
    assert!(refused(&["loss", "y", "y"]).contains("returns 3 results"));
    let mut build = Build::classifier();
    build.returns("logits");
    build.returns("y");
    let words = build.check().unwrap_err().to_string();
    assert!(words.contains("a loss per sample"), "{words}");
}

#[test]
fn scores_and_label_of_another_form_are_refused() {
    assert!(refused(&["m", "y"]).contains("f32[B, classes]"), "[B, 2, 3]");
    assert!(refused(&["y", "y"]).contains("the scores have type i64[B]"));
    assert!(refused(&["logits", "t"]).contains("the label has type f32[B]"));
    assert!(refused(&["logits", "x"]).contains("the label has type"));
    assert!(refused(&["c3", "y"]).contains("the scores have type shared"));
    assert!(refused(&["logits", "ci"]).contains("the label has type shared"));
}

/// Every leaky program of the suite, its result taken for scores: only what is about gradients may pass.
#[test]
fn leaky_scores_are_refused_under_the_same_rules() {
    let mut refused = 0;
    // [B, 3] is no loss, but it is scores; and one slope for all leaks by its gradient only.
    let passes = ["one loss for all", "a trained slope behind a misplaced batch"];
    let is_leaky = |case: &leaky::Case| case.rule != "G2" && !passes.contains(&case.name);
    for case in leaky::cases().into_iter().filter(is_leaky) {
        let mut build = Build::classifier();
        (case.build)(&mut build);
        build.returns("y");
        let verdict = build.check_scores();
        assert!(verdict.is_err(), "{}: accepted as scores", case.name);
        refused += 1;
    }
    assert!(refused > 80, "{refused} leaky programs");
}

/// The label is released too: it must be as much the sample's own as the scores.
#[test]
fn a_leaky_label_is_refused() {
    let mut build = Build::classifier();
    let rolled = build.bad(
        "roll.default",
        &[("self", t("y")), ("shifts", ints(&[1])), ("dims", ints(&[0]))],
    );
    build.returns("logits");
    build.returns(&rolled);
    assert!(build.check_scores().is_err());
}
