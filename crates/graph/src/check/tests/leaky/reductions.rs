//! Reductions and normalisations over the batch (T7).

use super::*;

fn over_batch(name: &'static str, build: fn(&mut Build)) -> Case {
    mutant(name, "T7", P::DimsExcludeBatch, ByOracle, build)
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        over_batch("sum over the batch", |b| {
            bad_then_mean(b, "sum.dim_IntList", &[("self", t("x")), ("dim", ints(&[0]))])
        }),
        over_batch("sum over the last axis of [B]", |b| {
            bad_then_mean(b, "sum.dim_IntList", &[("self", t("t")), ("dim", ints(&[-1]))]);
        }),
        over_batch("sum over everything", |b| {
            bad_plus(b, "sum.default", &[("self", t("t"))])
        }),
        over_batch("sum over no dims", |b| {
            bad_plus(b, "sum.dim_IntList", &[("self", t("t")), ("dim", ints(&[]))])
        }),
        over_batch("mean over None", |b| {
            bad_plus(b, "mean.dim", &[("self", t("t")), ("dim", RawArgument::None)])
        }),
        over_batch("mean over both axes", |b| {
            bad_plus(b, "mean.dim", &[("self", t("x")), ("dim", ints(&[1, 0]))])
        }),
        over_batch("mean of the transpose over axis 1", |b| {
            let transposed = b.call("t.default", &[("self", t("x"))]);
            bad_then_mean(
                b,
                "mean.dim",
                &[
                    ("self", t(&transposed)),
                    ("dim", ints(&[1])),
                    ("keepdim", flag(true)),
                ],
            );
        }),
        over_batch("mean of the permuted over axis 1", |b| {
            let permuted = b.call("permute.default", &[("self", t("m")), ("dims", ints(&[2, 0, 1]))]);
            bad_then_mean(b, "mean.dim", &[("self", t(&permuted)), ("dim", ints(&[-2]))]);
        }),
        over_batch("amax over everything", |b| {
            bad_plus(b, "amax.default", &[("self", t("x"))])
        }),
        over_batch("argmax of the flat tensor", |b| {
            bad_plus(b, "argmax.default", &[("self", t("x"))])
        }),
        over_batch("argmin over the batch", |b| {
            bad_plus(b, "argmin.default", &[("self", t("t")), ("dim", i(0))])
        }),
        over_batch("logsumexp over the batch", |b| {
            bad_plus(b, "logsumexp.default", &[("self", t("t")), ("dim", ints(&[0]))]);
        }),
        over_batch("variance of everything", |b| {
            bad_plus(b, "var.correction", &[("self", t("t"))])
        }),
        over_batch("standard deviation over the batch", |b| {
            bad_plus(b, "std.dim", &[("self", t("t")), ("dim", ints(&[0]))]);
        }),
        over_batch("norm of everything", |b| {
            bad_plus(b, "linalg_vector_norm.default", &[("self", t("x"))])
        }),
        over_batch("any over the batch", |b| {
            bad_plus(b, "any.dim", &[("self", t("flag")), ("dim", i(0))])
        }),
        over_batch("max over the batch", |b| {
            let values = b.calls("max.dim", &[("self", t("t")), ("dim", i(-1))], 2);
            b.blamed = values[0].clone();
            b.returns_loss_plus(&values[0]);
        }),
        over_batch("softmax over the batch", |b| {
            bad_plus(b, "softmax.int", &[("self", t("t")), ("dim", i(-1))])
        }),
        over_batch("log_softmax over axis 0", |b| {
            bad_rows(b, "log_softmax.int", &[("self", t("x")), ("dim", i(0))])
        }),
        over_batch("softmax over the batch by its private name", |b| {
            bad_rows(
                b,
                "_softmax.default",
                &[("self", t("x")), ("dim", i(-2)), ("half_to_float", flag(false))],
            );
        }),
        over_batch("layer_norm of the transpose", |b| {
            let transposed = b.call("t.default", &[("self", t("x"))]);
            let bad = b.bad(
                "layer_norm.default",
                &[("input", t(&transposed)), ("normalized_shape", ints(&[3]))],
            );
            let back = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[0]))]);
            b.returns_loss_plus(&back);
        }),
        over_batch("layer_norm over [B]", |b| {
            bad_plus(
                b,
                "layer_norm.default",
                &[("input", t("t")), ("normalized_shape", ints(&[3]))],
            );
        }),
        over_batch("group_norm with the batch as channels", |b| {
            let transposed = b.call("t.default", &[("self", t("x"))]);
            let row = b.call("permute.default", &[("self", t("m")), ("dims", ints(&[1, 2, 0]))]);
            let bad = b.bad("group_norm.default", &[("input", t(&row)), ("num_groups", i(1))]);
            let back = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[0, 1]))]);
            let other = b.call(
                "sum.dim_IntList",
                &[("self", t(&transposed)), ("dim", ints(&[0]))],
            );
            let both = b.call("add.Tensor", &[("self", t(&back)), ("other", t(&other))]);
            b.returns_loss_plus(&both);
        }),
        over_batch("cross-entropy with the batch as classes", |b| {
            let transposed = b.call("t.default", &[("self", t("x"))]);
            let bad = b.bad(
                "cross_entropy_loss.default",
                &[
                    ("self", t(&transposed)),
                    ("target", t(&transposed)),
                    ("reduction", i(0)),
                ],
            );
            let scalar = b.call("mean.default", &[("self", t(&bad))]);
            b.returns_loss_plus(&scalar);
        }),
        mutant(
            "amax with dims given as none",
            "T7",
            P::EmptyDimsMeanAll,
            ByOracle,
            |b| {
                let bad = b.bad("amax.default", &[("self", t("t")), ("dim", ints(&[]))]);
                b.returns_loss_plus(&bad);
            },
        ),
        mutant("argmax with dim None", "T7", P::EmptyDimsMeanAll, ByOracle, |b| {
            bad_plus(
                b,
                "argmax.default",
                &[("self", t("t")), ("dim", RawArgument::None)],
            );
        }),
    ]
}
