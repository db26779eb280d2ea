//! Trainable parameters where nothing taps them (G2), values out of the declared range (G4), no loss per sample (T7).

use super::*;

pub(super) fn cases() -> Vec<Case> {
    vec![
        mutant(
            "a parameter where nothing taps it",
            "G2",
            P::ParametersAreTapped,
            No,
            |b| {
                bad_rows(b, "maximum.default", &[("self", t("x")), ("other", t("w6"))]);
            },
        ),
        mutant("data over a parameter", "G2", P::ParametersAreTapped, No, |b| {
            bad_rows(b, "div.Tensor", &[("self", t("x")), ("other", t("w6"))]);
        }),
        mutant(
            "a trainable scale in arithmetic with alpha on the wrong side",
            "G2",
            P::ParametersAreTapped,
            No,
            |b| {
                bad_rows(
                    b,
                    "where.self",
                    &[("condition", t("gate")), ("self", t("x")), ("other", t("w6"))],
                );
                let position = b.parts.nodes.len() - 3;
                let mut gate = Build::empty();
                gate.call_as("gate", "gt.Scalar", &[("self", t("x")), ("other", i(0))]);
                b.parts.nodes.insert(position, gate.parts.nodes.remove(0));
            },
        ),
        mutant("a tap behind another axis", "G2", P::TapsAreBatchFirst, No, |b| {
            let permuted = b.call("permute.default", &[("self", t("m")), ("dims", ints(&[1, 0, 2]))]);
            let joined = b.call(
                "cat.default",
                &[
                    ("tensors", RawArgument::Tensors(vec![permuted.clone(), permuted])),
                    ("dim", i(2)),
                ],
            );
            let hidden = b.bad("linear.default", &[("input", t(&joined)), ("weight", t("w"))]);
            let rows = b.call("sum.dim_IntList", &[("self", t(&hidden)), ("dim", ints(&[0, 2]))]);
            b.returns_loss_plus(&rows);
        }),
        mutant(
            "more classes than outputs",
            "G4",
            P::IndicesWithinContract,
            No,
            |b| {
                let two = b.call(
                    "slice.Tensor",
                    &[
                        ("self", t("logits")),
                        ("dim", i(1)),
                        ("start", i(0)),
                        ("end", i(2)),
                    ],
                );
                bad_plus(
                    b,
                    "nll_loss_nd.default",
                    &[("self", t(&two)), ("target", t("y")), ("reduction", i(0))],
                );
            },
        ),
        mutant(
            "one_hot of fewer classes than declared",
            "G4",
            P::IndicesWithinContract,
            No,
            |b| {
                let hot = b.bad("one_hot.default", &[("self", t("y")), ("num_classes", i(2))]);
                let rows = b.call("sum.dim_IntList", &[("self", t(&hot)), ("dim", ints(&[1]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        case("a loss that fails outside of [0, 1]", "G4", |b| {
            bad_plus(
                b,
                "binary_cross_entropy.default",
                &[("self", t("t")), ("target", t("t")), ("reduction", i(0))],
            );
        }),
        mutant("one loss for all", "T7", P::LossPerSample, ByOracle, |b| {
            let both = b.bad("mul.Tensor", &[("self", t("logits")), ("other", i(2))]);
            b.returns(&both);
        }),
    ]
}
