//! Functions of trainable parameters are tapped as such, with every parameter that reaches them (G2).

use super::*;
use crate::typed::{ParameterId, TappedParameter};

/// What the last tap takes, of a program whose nodes after `linear` end in `build`'s.
fn last_tapped(graph: &TypedGraph) -> Vec<TappedParameter> {
    let mut taps = graph.nodes().iter().filter_map(|node| node.tap.as_ref());
    let last = taps.next_back().expect("a tap");
    last.parameters().into_iter().cloned().collect()
}

fn names(graph: &TypedGraph, parameters: &[ParameterId]) -> Vec<String> {
    let name = |id: &ParameterId| graph.parameters()[id.0 as usize].names[0].clone();
    parameters.iter().map(name).collect()
}

fn linear(b: &mut Build, weight: &str) -> String {
    let hidden = b.call("linear.default", &[("input", t("x")), ("weight", t(weight))]);
    rows(b, &hidden)
}

fn function_of(build: impl FnOnce(&mut Build) -> String) -> Vec<String> {
    let graph = with(build);
    let tapped = last_tapped(&graph);
    let function = tapped[0].function().unwrap_or_else(|| panic!("{tapped:?}"));
    assert_eq!(graph.tapped_functions(), [&tapped[0]]);
    for parameter in function {
        assert!(graph.parameters()[parameter.0 as usize].trainable);
    }
    names(&graph, function)
}

#[test]
fn a_scaled_weight_is_a_function_of_it() {
    let of = function_of(|b| {
        let scaled = b.call("mul.Tensor", &[("self", t("w")), ("other", i(100))]);
        linear(b, &scaled)
    });
    assert_eq!(of, ["w"]);
}

#[test]
fn a_sum_of_parameters_is_a_function_of_both() {
    let of = function_of(|b| {
        b.parameter("other", &[3, 6], true);
        let sum = b.call("add.Tensor", &[("self", t("other")), ("other", t("w"))]);
        linear(b, &sum)
    });
    assert_eq!(of, ["w", "other"]);
}

#[test]
fn a_merged_pair_of_factors_is_a_function_of_both_and_not_of_what_is_frozen() {
    let of = function_of(|b| {
        b.parameter("down", &[3, 2], true);
        b.parameter("up", &[2, 6], true);
        let product = b.call("mm.default", &[("self", t("down")), ("mat2", t("up"))]);
        let merged = b.call("add.Tensor", &[("self", t("frozen")), ("other", t(&product))]);
        linear(b, &merged)
    });
    assert_eq!(of, ["down", "up"]);
}

#[test]
fn factors_that_stay_apart_are_tapped_as_themselves() {
    let graph = with(|b| {
        b.parameter("down", &[6, 2], true);
        b.parameter("up", &[2, 3], true);
        let narrow = b.call("matmul.default", &[("self", t("x")), ("other", t("down"))]);
        let wide = b.call("matmul.default", &[("self", t(&narrow)), ("other", t("up"))]);
        rows(b, &wide)
    });
    assert!(graph.tapped_functions().is_empty());
    assert_eq!(names(&graph, last_tapped(&graph)[0].parameters()), ["up"]);
}

#[test]
fn a_normalised_weight_is_a_function_of_direction_and_length() {
    let of = function_of(|b| {
        b.parameter("length", &[3, 1], true);
        let arguments = [("self", t("w")), ("dim", ints(&[1])), ("keepdim", flag(true))];
        let norm = b.call("linalg_vector_norm.default", &arguments);
        let scale = b.call("div.Tensor", &[("self", t("length")), ("other", t(&norm))]);
        let weight = b.call("mul.Tensor", &[("self", t("w")), ("other", t(&scale))]);
        linear(b, &weight)
    });
    assert_eq!(of, ["w", "length"]);
}

#[test]
fn scales_of_data_may_be_functions() {
    for operator in ["exp.default", "softplus.default", "sigmoid.default"] {
        let of = function_of(|b| {
            let scale = b.call(operator, &[("self", t("w6"))]);
            let scaled = b.call("mul.Tensor", &[("self", t("x")), ("other", t(&scale))]);
            rows(b, &scaled)
        });
        assert_eq!(of, ["w6"]);
    }
}

#[test]
fn what_is_detached_is_not_named() {
    let of = function_of(|b| {
        let fixed = b.call("detach.default", &[("self", t("w"))]);
        b.parameter("other", &[3, 6], true);
        let sum = b.call("add.Tensor", &[("self", t("other")), ("other", t(&fixed))]);
        linear(b, &sum)
    });
    assert_eq!(of, ["other"]);
}

#[test]
fn every_other_row_of_a_table_is_a_function_and_a_range_of_rows_a_view() {
    let part = |step: i64| {
        move |b: &mut Build| {
            b.parameter("table6", &[6, 6], true);
            let arguments = [
                ("self", t("table6")),
                ("dim", i(0)),
                ("start", i(1)),
                ("end", i(5)),
                ("step", i(step)),
            ];
            let rows = b.call("slice.Tensor", &arguments);
            linear(b, &rows)
        }
    };
    assert_eq!(function_of(part(2)), ["table6"]);
    assert!(with(part(1)).tapped_functions().is_empty());
}

#[test]
fn rows_that_may_repeat_or_be_padding_are_a_function_of_their_table() {
    let read = |padding: i64| {
        move |b: &mut Build| {
            b.parameter("positions", &[7, 6], true);
            let ids = match padding {
                -1 => "ci".to_owned(),
                _ => b.call("arange.default", &[("end", i(3))]),
            };
            let arguments = [
                ("weight", t("positions")),
                ("indices", t(&ids)),
                ("padding_idx", i(padding)),
            ];
            let rows = b.call("embedding.default", &arguments);
            linear(b, &rows)
        }
    };
    assert_eq!(function_of(read(-1)), ["positions"]);
    assert_eq!(function_of(read(2)), ["positions"]);
    assert!(
        with(read(5)).tapped_functions().is_empty(),
        "consecutive rows are a view"
    );
}

#[test]
fn a_parameter_repeated_before_it_meets_data_is_a_function_of_it() {
    let of = function_of(|b| {
        let repeated = b.call("expand.default", &[("self", t("w6")), ("size", ints(&[3, 6]))]);
        linear(b, &repeated)
    });
    assert_eq!(of, ["w6"]);
}

#[test]
fn what_changes_nothing_keeps_a_parameter_a_parameter() {
    let whole = [("dim", i(0)), ("start", i(0)), ("end", i(i64::MAX))];
    for (operator, more) in [
        ("slice.Tensor", &whole[..]),
        ("to.dtype", &[("dtype", RawArgument::ScalarType(7))]),
        ("expand.default", &[("size", ints(&[3, 6]))]),
        ("contiguous.default", &[]),
    ] {
        let graph = with(|b| {
            let arguments = [&[("self", t("w"))], more].concat();
            let same = b.call(operator, &arguments);
            linear(b, &same)
        });
        assert!(graph.tapped_functions().is_empty(), "{operator}");
        assert_eq!(
            names(&graph, last_tapped(&graph)[0].parameters()),
            ["w"],
            "{operator}"
        );
    }
}
