//! Sorting, ranking and accumulating within a sample.

use super::*;
use crate::typed::Extent;

#[test]
fn running_totals_within_a_sample_are_accepted() {
    for (operator, dim) in [
        ("cumsum.default", 1),
        ("cumsum.default", -1),
        ("cumprod.default", 1),
    ] {
        with(|b| {
            let total = b.call(operator, &[("self", t("x")), ("dim", i(dim))]);
            rows(b, &total)
        });
    }
    let graph = with(|b| {
        let positive = b.call("gt.Scalar", &[("self", t("x")), ("other", i(0))]);
        let counted = b.call("cumsum.default", &[("self", t(&positive)), ("dim", i(1))]);
        let float = b.call(
            "_to_copy.default",
            &[("self", t(&counted)), ("dtype", RawArgument::ScalarType(7))],
        );
        rows(b, &float)
    });
    let counted = graph
        .nodes()
        .iter()
        .find(|node| node.operator == "cumsum")
        .unwrap();
    assert_eq!(
        graph.values()[counted.outputs[0].0 as usize].value_type.dtype,
        DType::I64,
        "bools are counted"
    );
}

#[test]
fn sorting_and_ranking_within_a_sample_are_accepted_and_positions_are_in_range() {
    for (operator, more, width) in [
        ("sort.default", vec![], 6),
        (
            "sort.stable",
            vec![("stable", flag(true)), ("descending", flag(true))],
            6,
        ),
        ("topk.default", vec![("k", i(2)), ("dim", i(1))], 2),
    ] {
        let graph = with(|b| {
            let mut arguments = vec![("self", t("x"))];
            arguments.extend(more);
            let ordered = b.calls(operator, &arguments, 2);
            let picked = b.call(
                "gather.default",
                &[("self", t("x")), ("dim", i(1)), ("index", t(&ordered[1]))],
            );
            let sum = b.call("add.Tensor", &[("self", t(&ordered[0])), ("other", t(&picked))]);
            rows(b, &sum)
        });
        let gather = graph
            .nodes()
            .iter()
            .find(|node| node.operator == "gather")
            .unwrap();
        let picked = &graph.values()[gather.outputs[0].0 as usize].value_type;
        assert_eq!(
            picked.shape,
            [Extent::Batch(1), Extent::Fixed(width)],
            "{operator}"
        );
    }
    with(|b| {
        let order = b.call("argsort.default", &[("self", t("m")), ("dim", i(1))]);
        let sorted = b.call(
            "gather.default",
            &[("self", t("m")), ("dim", i(1)), ("index", t(&order))],
        );
        b.call("sum.dim_IntList", &[("self", t(&sorted)), ("dim", ints(&[1, 2]))])
    });
}

#[test]
fn more_elements_than_an_axis_has_are_refused() {
    for k in [0, 7, -1] {
        let mut b = Build::classifier();
        let names = b.calls("topk.default", &[("self", t("x")), ("k", i(k))], 2);
        let total = rows(&mut b, &names[0]);
        b.returns_loss_plus(&total);
        let refusals = b.check().unwrap_err().refusals;
        assert!(
            refusals[0].reason.contains("does not have as many"),
            "{}",
            refusals[0].reason
        );
    }
}
