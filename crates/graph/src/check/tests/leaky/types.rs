//! Operands whose batch axes do not meet, and recorded types that contradict (T4).

use super::*;

pub(super) fn cases() -> Vec<Case> {
    vec![
        mutant("[B,1] - [B] is [B,B]", "T4", P::BatchAxesAligned, ByOracle, |b| {
            let column = b.call(
                "slice.Tensor",
                &[("self", t("x")), ("dim", i(1)), ("start", i(0)), ("end", i(1))],
            );
            bad_rows(b, "sub.Tensor", &[("self", t(&column)), ("other", t("t"))]);
        }),
        mutant(
            "[B,1] with [B] in mse_loss",
            "T4",
            P::BatchAxesAligned,
            ByOracle,
            |b| {
                let column = b.call("unsqueeze.default", &[("self", t("t")), ("dim", i(-1))]);
                bad_rows(
                    b,
                    "mse_loss.default",
                    &[("self", t(&column)), ("target", t("t")), ("reduction", i(0))],
                );
            },
        ),
        mutant(
            "where of [B] and [B,1]",
            "T4",
            P::BatchAxesAligned,
            ByOracle,
            |b| {
                let column = b.call("unsqueeze.default", &[("self", t("t")), ("dim", i(1))]);
                let bad = b.bad(
                    "where.self",
                    &[
                        ("condition", t("flag")),
                        ("self", t(&column)),
                        ("other", t(&column)),
                    ],
                );
                let rows = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[0]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        case("the transpose of [B,1] against [B,1]", "T4", |b| {
            let column = b.call("unsqueeze.default", &[("self", t("t")), ("dim", i(1))]);
            let row = b.call("t.default", &[("self", t(&column))]);
            bad_rows(b, "mul.Tensor", &[("self", t(&column)), ("other", t(&row))]);
        }),
        case("[2B] against [B]", "T4", |b| {
            let view = b.call("view.default", &[("self", t("x")), ("size", ints(&[-1, 3]))]);
            let long = b.call("sum.dim_IntList", &[("self", t(&view)), ("dim", ints(&[1]))]);
            bad_plus(b, "add.Tensor", &[("self", t(&long)), ("other", t("t"))]);
        }),
        mutant(
            "a constant with one row per batch slot",
            "T4",
            P::SharedSpansNoBatch,
            ByOracle,
            |b| {
                bad_plus(b, "mul.Tensor", &[("self", t("t")), ("other", t("c3"))]);
            },
        ),
        mutant(
            "a constant equal to B against [B,1]",
            "T4",
            P::SharedSpansNoBatch,
            ByOracle,
            |b| {
                let column = b.call("unsqueeze.default", &[("self", t("t")), ("dim", i(1))]);
                bad_rows(b, "maximum.default", &[("self", t(&column)), ("other", t("c33"))]);
            },
        ),
        mutant(
            "targets from a constant",
            "T4",
            P::SharedSpansNoBatch,
            ByOracle,
            |b| {
                bad_plus(
                    b,
                    "huber_loss.default",
                    &[("self", t("t")), ("target", t("c3")), ("reduction", i(0))],
                );
            },
        ),
        mutant(
            "a constant against the batch in the last place",
            "T4",
            P::SharedSpansNoBatch,
            ByOracle,
            |b| {
                let transposed = b.call("t.default", &[("self", t("x"))]);
                let bad = b.bad("mul.Tensor", &[("self", t(&transposed)), ("other", t("c3"))]);
                let back = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[0]))]);
                b.returns_loss_plus(&back);
            },
        ),
        mutant(
            "a recorded rank that is a lie",
            "T4",
            P::RecordedTypesAgree,
            No,
            |b| {
                let doubled = b.bad("mul.Tensor", &[("self", t("loss")), ("other", i(2))]);
                let shape = vec![
                    HintExtent::Symbolic("s0".into()),
                    HintExtent::Symbolic("s0".into()),
                ];
                b.hint(
                    &doubled,
                    Hint {
                        dtype: Some(DType::F32),
                        shape,
                    },
                );
                b.returns(&doubled);
            },
        ),
        mutant(
            "a second symbol for an axis of the sample",
            "T4",
            P::RecordedTypesAgree,
            No,
            |b| {
                let shape = vec![
                    HintExtent::Symbolic("s0".into()),
                    HintExtent::Symbolic("s1".into()),
                ];
                b.hint(
                    "x",
                    Hint {
                        dtype: Some(DType::F32),
                        shape,
                    },
                );
                b.blamed = "x".into();
                b.returns("loss");
            },
        ),
        mutant("a fixed batch size", "T4", P::RecordedTypesAgree, No, |b| {
            b.hint(
                "t",
                Hint {
                    dtype: Some(DType::F32),
                    shape: vec![HintExtent::Fixed(3)],
                },
            );
            b.blamed = "t".into();
            b.returns("loss");
        }),
        mutant(
            "another dtype than recorded",
            "T4",
            P::RecordedTypesAgree,
            No,
            |b| {
                let shape = vec![HintExtent::Symbolic("s0".into())];
                b.hint(
                    "loss",
                    Hint {
                        dtype: Some(DType::F64),
                        shape,
                    },
                );
                b.blamed = "loss".into();
                b.returns("loss");
            },
        ),
        mutant(
            "one_hot without the number of classes",
            "T5",
            P::ShapesDoNotDependOnValues,
            ByOracle,
            |b| {
                let labels = b.call(
                    "_to_copy.default",
                    &[("self", t("t")), ("dtype", RawArgument::ScalarType(5))],
                );
                let hot = b.bad("one_hot.default", &[("self", t(&labels))]);
                let rows = b.call("sum.dim_IntList", &[("self", t(&hot)), ("dim", ints(&[1]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        case("nonzero", "T5", |b| {
            bad_then_mean(b, "nonzero.default", &[("self", t("t"))])
        }),
        case("item", "T5", |b| {
            bad_plus(b, "item.default", &[("self", t("c1"))])
        }),
        case("masked_select", "T5", |b| {
            bad_then_mean(
                b,
                "masked_select.default",
                &[("self", t("t")), ("mask", t("flag"))],
            )
        }),
        case("the private spelling of item", "T5", |b| {
            bad_plus(b, "_local_scalar_dense.default", &[("self", t("c1"))])
        }),
        case("nonzero as a tuple", "T7", |b| {
            bad_then_mean(b, "nonzero_numpy.default", &[("self", t("t"))])
        }),
        case("boolean indexing", "T7", |b| {
            let indices = RawArgument::OptionalTensors(vec![Some("flag".into())]);
            bad_then_mean(b, "index.Tensor", &[("self", t("t")), ("indices", indices)]);
        }),
    ]
}
