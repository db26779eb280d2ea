//! Sorting, ranking and accumulating over samples (T1, T7).

use super::*;

/// The first of several results must be refused, and is added to the loss after a reduction.
fn bad_pair(b: &mut Build, operator: &str, arguments: &[(&str, RawArgument)], which: usize) {
    let names = b.calls(operator, arguments, 2);
    b.blamed = names[0].clone();
    let float = b.call(
        "_to_copy.default",
        &[("self", t(&names[which])), ("dtype", RawArgument::ScalarType(7))],
    );
    b.returns_loss_plus(&float);
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        mutant(
            "running totals of the losses of a batch",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                bad_plus(b, "cumsum.default", &[("self", t("t")), ("dim", i(0))]);
            },
        ),
        mutant(
            "running totals along the last axis, which is the batch",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                bad_plus(b, "cumsum.default", &[("self", t("t")), ("dim", i(-1))]);
            },
        ),
        mutant(
            "running products over the batch",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                bad_rows(b, "cumprod.default", &[("self", t("x")), ("dim", i(0))]);
            },
        ),
        mutant(
            "samples sorted among each other",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                bad_pair(b, "sort.default", &[("self", t("t"))], 0);
            },
        ),
        mutant(
            "samples sorted stably among each other",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                bad_pair(
                    b,
                    "sort.stable",
                    &[("self", t("t")), ("stable", flag(true)), ("dim", i(0))],
                    0,
                );
            },
        ),
        mutant(
            "the rank of a sample in its batch",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                bad_pair(
                    b,
                    "sort.default",
                    &[("self", t("t")), ("descending", flag(true))],
                    1,
                );
            },
        ),
        mutant(
            "the order of the samples of a batch",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                let bad = b.bad("argsort.default", &[("self", t("t"))]);
                let float = b.call(
                    "_to_copy.default",
                    &[("self", t(&bad)), ("dtype", RawArgument::ScalarType(7))],
                );
                b.returns_loss_plus(&float);
            },
        ),
        mutant(
            "the largest loss of a batch",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                let names = b.calls("topk.default", &[("self", t("t")), ("k", i(1))], 2);
                b.blamed = names[0].clone();
                b.returns_loss_plus(&names[0]);
            },
        ),
        case("as many of the largest as there are samples", "T1", |b| {
            let size = b.size("x", 0);
            let names = b.calls("topk.default", &[("self", t("x")), ("k", size_arg(&size))], 2);
            b.blamed = names[0].clone();
            let rows = b.call("sum.dim_IntList", &[("self", t(&names[0])), ("dim", ints(&[1]))]);
            b.returns_loss_plus(&rows);
        }),
        case("a sample rolled into the next", "T7", |b| {
            bad_rows(
                b,
                "roll.default",
                &[("self", t("x")), ("shifts", ints(&[1])), ("dims", ints(&[0]))],
            );
        }),
        case("a batch turned over", "T7", |b| {
            bad_rows(b, "flip.default", &[("self", t("x")), ("dims", ints(&[0]))]);
        }),
    ]
}
