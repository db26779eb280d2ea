//! Numbers of the samples, used for anything but to read each sample its own block (T1, T4, T7).

use super::*;

fn numbers(b: &mut Build) -> String {
    let size = b.size("x", 0);
    b.call("arange.default", &[("end", size_arg(&size))])
}

fn column(b: &mut Build, of: &str) -> String {
    b.call("unsqueeze.default", &[("self", t(of)), ("dim", i(1))])
}

fn picked(of: &[&str]) -> RawArgument {
    RawArgument::OptionalTensors(of.iter().map(|name| Some((*name).to_owned())).collect())
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        mutant(
            "a sample's column by its place in the batch",
            "T1",
            P::IotaOnlyIndexes,
            ByOracle,
            |b| {
                let numbers = numbers(b);
                let indices = picked(&[&numbers, &numbers]);
                bad_plus(b, "index.Tensor", &[("self", t("x")), ("indices", indices)]);
            },
        ),
        mutant(
            "every sample's block by every sample's own index",
            "T4",
            P::BatchAxesAligned,
            ByOracle,
            |b| {
                let numbers = numbers(b);
                let numbers = column(b, &numbers);
                let indices = picked(&[&numbers, "y"]);
                bad_rows(b, "index.Tensor", &[("self", t("x")), ("indices", indices)]);
            },
        ),
        mutant(
            "another column for every place of the batch",
            "T4",
            P::SharedSpansNoBatch,
            ByOracle,
            |b| {
                let numbers = numbers(b);
                let indices = picked(&[&numbers, "ci"]);
                bad_plus(b, "index.Tensor", &[("self", t("x")), ("indices", indices)]);
            },
        ),
        mutant(
            "a constant's rows by place in the batch, beside another index",
            "T7",
            P::IndexWithinSample,
            ByOracle,
            |b| {
                let numbers = numbers(b);
                let indices = picked(&[&numbers, "y"]);
                bad_plus(b, "index.Tensor", &[("self", t("c33")), ("indices", indices)]);
            },
        ),
        case("an axis before the batch's numbers", "T1", |b| {
            let numbers = numbers(b);
            let row = b.bad("unsqueeze.default", &[("self", t(&numbers)), ("dim", i(0))]);
            let indices = picked(&[&row, "y"]);
            let read = b.call("index.Tensor", &[("self", t("x")), ("indices", indices)]);
            let sum = b.call("sum.dim_IntList", &[("self", t(&read)), ("dim", ints(&[0]))]);
            b.returns_loss_plus(&sum);
        }),
        case("some of the batch's numbers", "T1", |b| {
            let numbers = numbers(b);
            let arguments = [("self", t(&numbers)), ("dim", i(0)), ("start", i(1))];
            let later = b.bad("slice.Tensor", &arguments);
            let read = b.call(
                "index.Tensor",
                &[("self", t("t")), ("indices", picked(&[&later]))],
            );
            b.returns_loss_plus(&read);
        }),
        case("the batch's numbers seen as one row", "T1", |b| {
            let numbers = numbers(b);
            let size = b.size("x", 0);
            let arguments = [("self", t(&numbers)), ("size", sizes(&[k(1), size]))];
            let row = b.bad("view.default", &arguments);
            let read = b.call("index.Tensor", &[("self", t("t")), ("indices", picked(&[&row]))]);
            b.returns_loss_plus(&read);
        }),
        case("the batch's numbers as values", "T1", |b| {
            let numbers = numbers(b);
            let column = column(b, &numbers);
            bad_rows(b, "mul.Tensor", &[("self", t("x")), ("other", t(&column))]);
        }),
        case("an index with more axes than the batch's numbers", "T7", |b| {
            let numbers = numbers(b);
            let deep = b.call(
                "view.default",
                &[("self", t("ci")), ("size", sizes(&[k(3), k(1)]))],
            );
            let indices = picked(&[&numbers, &deep]);
            let read = b.bad("index.Tensor", &[("self", t("x")), ("indices", indices)]);
            let sum = b.call("sum.dim_IntList", &[("self", t(&read)), ("dim", ints(&[0]))]);
            b.returns_loss_plus(&sum);
        }),
        case("an axis left out between the batch and an index", "T7", |b| {
            let numbers = numbers(b);
            let indices = RawArgument::OptionalTensors(vec![Some(numbers), None, Some("y".into())]);
            bad_rows(b, "index.Tensor", &[("self", t("m")), ("indices", indices)]);
        }),
    ]
}
