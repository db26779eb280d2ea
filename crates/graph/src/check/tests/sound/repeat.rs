//! Repeating, flipping, rolling and filling within a sample; BatchNorm under its core name.

use super::*;
use crate::typed::Extent;

fn shape_of(graph: &TypedGraph, operator: &str) -> Vec<Extent> {
    let node = graph.nodes().iter().find(|node| node.operator == operator);
    let output = node.expect("the node is there").outputs[0];
    graph.values()[output.0 as usize].value_type.shape.clone()
}

fn tap_of<'g>(graph: &'g TypedGraph, operator: &str) -> Option<&'g Tap> {
    let node = graph.nodes().iter().find(|node| node.operator == operator);
    node.expect("the node is there").tap.as_ref()
}

#[test]
fn copies_within_a_sample_are_accepted_and_lengthen_its_axes() {
    let graph = with(|b| {
        let copies = b.call("repeat.default", &[("self", t("x")), ("repeats", ints(&[1, 3]))]);
        rows(b, &copies)
    });
    assert_eq!(shape_of(&graph, "repeat"), [Extent::Batch(1), Extent::Fixed(18)]);
    let graph = with(|b| {
        let arguments = [("self", t("x")), ("repeats", ints(&[2, 1, 1]))];
        let copies = b.call("repeat.default", &arguments);
        b.call("sum.dim_IntList", &[("self", t(&copies)), ("dim", ints(&[0, 2]))])
    });
    assert_eq!(
        shape_of(&graph, "repeat"),
        [Extent::Fixed(2), Extent::Batch(1), Extent::Fixed(6)]
    );
    for dim in [1, -1] {
        let graph = with(|b| {
            let arguments = [("self", t("x")), ("repeats", i(2)), ("dim", i(dim))];
            let copies = b.call("repeat_interleave.self_int", &arguments);
            rows(b, &copies)
        });
        assert_eq!(
            shape_of(&graph, "repeat_interleave"),
            [Extent::Batch(1), Extent::Fixed(12)]
        );
    }
}

#[test]
fn rows_repeated_one_by_one_stay_with_their_sample() {
    let graph = with(|b| {
        let arguments = [("self", t("x")), ("repeats", i(2)), ("dim", i(0))];
        let copies = b.call("repeat_interleave.self_int", &arguments);
        let size = b.size("x", 0);
        let blocks = b.call(
            "view.default",
            &[("self", t(&copies)), ("size", sizes(&[size, k(12)]))],
        );
        rows(b, &blocks)
    });
    assert_eq!(
        shape_of(&graph, "repeat_interleave"),
        [Extent::Batch(2), Extent::Fixed(6)]
    );
}

#[test]
fn a_shared_row_repeated_to_the_batch_is_per_sample_and_a_trainable_one_is_tapped() {
    let repeated = |source: &'static str| {
        with(move |b| {
            let size = b.size("x", 0);
            let row = b.call("unsqueeze.default", &[("self", t(source)), ("dim", i(0))]);
            let copies = b.call(
                "repeat.default",
                &[("self", t(&row)), ("repeats", sizes(&[size, k(1)]))],
            );
            let scaled = b.call("mul.Tensor", &[("self", t(&copies)), ("other", t("x"))]);
            rows(b, &scaled)
        })
    };
    assert!(tap_of(&repeated("c6"), "repeat").is_none());
    let graph = repeated("w6");
    assert!(
        matches!(tap_of(&graph, "repeat"), Some(Tap::Expand { parameter }) if parameter.parameter.0 == 2),
        "{:?}",
        tap_of(&graph, "repeat")
    );
}

#[test]
fn a_trainable_row_repeated_along_two_axes_at_once_is_refused_with_a_remedy() {
    let mut build = Build::classifier();
    let size = build.size("x", 0);
    let copies = build.call(
        "repeat.default",
        &[("self", t("w6")), ("repeats", sizes(&[size, k(2)]))],
    );
    let rows = rows(&mut build, &copies);
    build.returns_loss_plus(&rows);
    let refusals = build.check().unwrap_err().to_string();
    assert!(refusals.contains("expand it to the batch"), "{refusals}");
}

#[test]
fn turning_axes_of_a_sample_is_accepted() {
    with(|b| {
        let flipped = b.call("flip.default", &[("self", t("m")), ("dims", ints(&[1, -1]))]);
        let arguments = [
            ("self", t(&flipped)),
            ("shifts", ints(&[1, -2])),
            ("dims", ints(&[1, 2])),
        ];
        let rolled = b.call("roll.default", &arguments);
        b.call("sum.dim_IntList", &[("self", t(&rolled)), ("dim", ints(&[1, 2]))])
    });
    with(|b| {
        let rolled = b.call("roll.default", &[("self", t("c33")), ("shifts", ints(&[4]))]);
        let arguments = [("self", t("m")), ("other", t(&rolled))];
        let product = b.call("matmul.default", &arguments);
        b.call(
            "sum.dim_IntList",
            &[("self", t(&product)), ("dim", ints(&[1, 2]))],
        )
    });
}

#[test]
fn filling_by_a_shared_number_is_accepted_and_by_a_row_or_a_trained_number_refused() {
    let filled = |value: &'static str| {
        let mut build = Build::classifier();
        build.constant("number", DType::F32, &[]);
        build.parameter("trained", &[], true);
        let mask = build.call("gt.Scalar", &[("self", t("x")), ("other", i(0))]);
        let arguments = [("self", t("x")), ("mask", t(&mask)), ("value", t(value))];
        let filled = build.call("masked_fill.Tensor", &arguments);
        let rows = rows(&mut build, &filled);
        build.returns_loss_plus(&rows);
        build
    };
    accepted(&filled("number"));
    for (value, reason) in [
        ("c6", "has axes"),
        ("t", "has axes"),
        ("trained", "no per-sample gradient rule"),
    ] {
        let refusals = filled(value).check().unwrap_err().to_string();
        assert!(refusals.contains(reason), "{value}: {refusals}");
    }
}

#[test]
fn batch_norm_under_its_core_name_is_run_as_batch_norm_by_fixed_statistics() {
    let build = |mean: &'static str| {
        let mut build = Build::classifier();
        build.parameter("scale", &[3], true);
        let arguments = [
            ("input", t("logits")),
            ("weight", t("scale")),
            ("bias", RawArgument::None),
            ("running_mean", t(mean)),
            ("running_var", t("c3")),
            ("momentum", f(0.1)),
            ("eps", f(1e-5)),
        ];
        let names = build.calls("_native_batch_norm_legit_no_training.default", &arguments, 3);
        let rows = rows(&mut build, &names[0]);
        build.returns_loss_plus(&rows);
        build
    };
    let graph = accepted(&build("c3"));
    assert!(matches!(
        tap_of(&graph, "batch_norm"),
        Some(Tap::FrozenBatchNorm {
            weight: Some(_),
            bias: None,
            ..
        })
    ));
    let refusals = build("c6").check().unwrap_err().to_string();
    assert!(
        refusals.contains("running_mean does not have one element per channel"),
        "statistics of another length would be read beyond their end: {refusals}"
    );
}

#[test]
fn an_input_without_elements_is_refused_and_nothing_that_uses_it_is_judged() {
    let mut build = Build::classifier();
    build.input("none", DType::F32, &[0, 6], None);
    let sum = build.call("sum.dim_IntList", &[("self", t("none")), ("dim", ints(&[1, 2]))]);
    build.returns_loss_plus(&sum);
    let refusals = build.check().unwrap_err().refusals;
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    assert_eq!(
        (refusals[0].node.as_str(), refusals[0].operator.as_str()),
        ("none", "")
    );
}

#[test]
fn values_beyond_any_machine_are_refused_by_node() {
    let huge = 1 << 21;
    for (arguments, what) in [
        (ints(&[-1, huge, huge, 6]), "expand"),
        (ints(&[-1, i64::MAX, i64::MAX, 6]), "expand"),
    ] {
        let mut build = Build::classifier();
        let rows = build.call(
            "view.default",
            &[("self", t("x")), ("size", ints(&[-1, 1, 1, 6]))],
        );
        let wide = build.call("expand.default", &[("self", t(&rows)), ("size", arguments)]);
        let tapped = build.call("mul.Tensor", &[("self", t(&wide)), ("other", t("w6"))]);
        let sum = build.call(
            "sum.dim_IntList",
            &[("self", t(&tapped)), ("dim", ints(&[1, 2, 3]))],
        );
        build.returns_loss_plus(&sum);
        let refusals = build.check().unwrap_err().refusals;
        assert_eq!(refusals.len(), 1, "{refusals:?}");
        assert_eq!(refusals[0].node, wide, "{what}");
        assert!(
            refusals[0].reason.contains("more than 2^40 elements a record"),
            "{refusals:?}"
        );
    }
}
