//! Contractions over the batch, weights from the data, losses reduced over the batch (T7).

use super::*;

pub(super) fn cases() -> Vec<Case> {
    vec![
        mutant(
            "matmul over the batch",
            "T7",
            P::ContractionWithinSample,
            ByOracle,
            |b| {
                let transposed = b.call("t.default", &[("self", t("x"))]);
                bad_then_mean(
                    b,
                    "matmul.default",
                    &[("self", t(&transposed)), ("other", t("c33"))],
                );
            },
        ),
        mutant(
            "linear over the batch",
            "T7",
            P::ContractionWithinSample,
            ByOracle,
            |b| {
                let transposed = b.call("t.default", &[("self", t("x"))]);
                bad_then_mean(
                    b,
                    "linear.default",
                    &[("input", t(&transposed)), ("weight", t("c33"))],
                );
            },
        ),
        mutant(
            "matmul of [B] with a vector",
            "T7",
            P::ContractionWithinSample,
            ByOracle,
            |b| {
                bad_plus(b, "matmul.default", &[("self", t("t")), ("other", t("c3"))]);
            },
        ),
        case("linear with per-sample weights", "T7", |b| {
            bad_rows(b, "linear.default", &[("input", t("x")), ("weight", t("x"))])
        }),
        mutant(
            "class weights from the data",
            "T7",
            P::WeightIsShared,
            ByOracle,
            |b| {
                let arguments = [
                    ("self", t("logits")),
                    ("target", t("y")),
                    ("weight", t("t")),
                    ("reduction", i(0)),
                ];
                bad_plus(b, "cross_entropy_loss.default", &arguments);
            },
        ),
        mutant(
            "a normalisation scale from the data",
            "T7",
            P::WeightIsShared,
            ByOracle,
            |b| {
                let arguments = [
                    ("input", t("x")),
                    ("normalized_shape", ints(&[6])),
                    ("weight", t("t")),
                ];
                bad_rows(b, "layer_norm.default", &arguments);
            },
        ),
        mutant(
            "mse_loss with its reduction omitted",
            "T7",
            P::ReductionNone,
            ByOracle,
            |b| {
                bad_plus(b, "mse_loss.default", &[("self", t("t")), ("target", t("t"))]);
            },
        ),
        mutant(
            "cross-entropy with its reduction omitted",
            "T7",
            P::ReductionNone,
            ByOracle,
            |b| {
                bad_plus(
                    b,
                    "cross_entropy_loss.default",
                    &[("self", t("logits")), ("target", t("y"))],
                );
            },
        ),
        mutant("nll_loss summed", "T7", P::ReductionNone, ByOracle, |b| {
            bad_plus(
                b,
                "nll_loss_nd.default",
                &[("self", t("logits")), ("target", t("y")), ("reduction", i(2))],
            );
        }),
        mutant("BCE averaged", "T7", P::ReductionNone, ByOracle, |b| {
            bad_plus(
                b,
                "binary_cross_entropy_with_logits.default",
                &[("self", t("t")), ("target", t("t")), ("reduction", i(1))],
            );
        }),
    ]
}
