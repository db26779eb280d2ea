//! Selecting, joining and indexing across samples, and what no rule looks at (T7).

use super::*;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        mutant(
            "the first sample's value",
            "T7",
            P::BatchAxisUntouched,
            ByOracle,
            |b| {
                bad_plus(
                    b,
                    "select.int",
                    &[("self", t("t")), ("dim", i(0)), ("index", i(0))],
                );
            },
        ),
        mutant(
            "the last sample, axis from the end",
            "T7",
            P::BatchAxisUntouched,
            ByOracle,
            |b| {
                bad_then_mean(
                    b,
                    "select.int",
                    &[("self", t("x")), ("dim", i(-2)), ("index", i(-1))],
                );
            },
        ),
        mutant(
            "a slice of the batch",
            "T7",
            P::BatchAxisUntouched,
            ByOracle,
            |b| {
                bad_plus(
                    b,
                    "slice.Tensor",
                    &[("self", t("t")), ("dim", i(0)), ("start", i(0)), ("end", i(1))],
                );
            },
        ),
        mutant("every other sample", "T7", P::BatchAxisUntouched, ByOracle, |b| {
            bad_then_mean(
                b,
                "slice.Tensor",
                &[("self", t("x")), ("dim", i(0)), ("step", i(2))],
            );
        }),
        mutant("the batch unbound", "T7", P::BatchAxisUntouched, ByOracle, |b| {
            let parts = b.calls("unbind.int", &[("self", t("t"))], 3);
            b.blamed = parts[0].clone();
            b.returns_loss_plus(&parts[1]);
        }),
        mutant("the batch split", "T7", P::BatchAxisUntouched, ByOracle, |b| {
            let parts = b.calls("split.Tensor", &[("self", t("t")), ("split_size", i(1))], 3);
            b.blamed = parts[0].clone();
            b.returns_loss_plus(&parts[2]);
        }),
        mutant(
            "the batch split by sizes",
            "T7",
            P::BatchAxisUntouched,
            ByOracle,
            |b| {
                let parts = b.calls(
                    "split_with_sizes.default",
                    &[("self", t("t")), ("split_sizes", ints(&[1, 2]))],
                    2,
                );
                b.blamed = parts[0].clone();
                b.returns_loss_plus(&parts[0]);
            },
        ),
        mutant(
            "squeezing the batch axis",
            "T7",
            P::BatchAxisUntouched,
            ByOracle,
            |b| {
                let column = b.call("unsqueeze.default", &[("self", t("t")), ("dim", i(1))]);
                let bad = b.bad("squeeze.default", &[("self", t(&column))]);
                b.returns_loss_plus(&bad);
            },
        ),
        mutant("squeezing dim 0", "T7", P::BatchAxisUntouched, ByOracle, |b| {
            bad_plus(b, "squeeze.dim", &[("self", t("t")), ("dim", i(-1))]);
        }),
        mutant(
            "joining along the batch",
            "T7",
            P::JoinsWithinSample,
            ByOracle,
            |b| {
                let joined = b.bad(
                    "cat.default",
                    &[("tensors", RawArgument::Tensors(vec!["x".into(), "x".into()]))],
                );
                let size = b.size("x", 0);
                let rows = b.call(
                    "view.default",
                    &[("self", t(&joined)), ("size", sizes(&[size, k(12)]))],
                );
                let rows = b.call("sum.dim_IntList", &[("self", t(&rows)), ("dim", ints(&[1]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        mutant(
            "gather from a constant by place in the batch",
            "T7",
            P::GatherWithinSample,
            ByOracle,
            |b| {
                let index = b.call("unsqueeze.default", &[("self", t("y")), ("dim", i(1))]);
                bad_rows(
                    b,
                    "gather.default",
                    &[("self", t("c33")), ("dim", i(1)), ("index", t(&index))],
                );
            },
        ),
        mutant(
            "gather along the batch",
            "T7",
            P::GatherWithinSample,
            ByOracle,
            |b| {
                bad_plus(
                    b,
                    "gather.default",
                    &[("self", t("t")), ("dim", i(0)), ("index", t("y"))],
                );
            },
        ),
        mutant(
            "gather of the first samples by a constant",
            "T7",
            P::GatherWithinSample,
            ByOracle,
            |b| {
                bad_then_mean(
                    b,
                    "gather.default",
                    &[("self", t("t")), ("dim", i(0)), ("index", t("ci"))],
                );
            },
        ),
        mutant(
            "indexing the batch by labels",
            "T7",
            P::IndexWithinSample,
            ByOracle,
            |b| {
                let indices = RawArgument::OptionalTensors(vec![Some("y".into())]);
                bad_rows(b, "index.Tensor", &[("self", t("x")), ("indices", indices)]);
            },
        ),
        mutant(
            "indexing the batch by a constant",
            "T7",
            P::IndexWithinSample,
            ByOracle,
            |b| {
                let indices = RawArgument::Tensors(vec!["ci".into()]);
                bad_then_mean(b, "index.Tensor", &[("self", t("t")), ("indices", indices)]);
            },
        ),
        mutant(
            "a constant's row by place in the batch",
            "T7",
            P::IndexWithinSample,
            ByOracle,
            |b| {
                let size = b.size("x", 0);
                let iota = b.call("arange.default", &[("end", size_arg(&size))]);
                let indices = RawArgument::OptionalTensors(vec![Some(iota)]);
                bad_plus(b, "index.Tensor", &[("self", t("c3")), ("indices", indices)]);
            },
        ),
        case("x[:, idx] by per-sample idx", "T7", |b| {
            let indices = RawArgument::OptionalTensors(vec![None, Some("y".into())]);
            bad_rows(b, "index.Tensor", &[("self", t("x")), ("indices", indices)]);
        }),
        mutant(
            "a gradient divided by how often an index occurs",
            "T7",
            P::UnreadArgumentsAreDefault,
            No,
            |b| {
                let arguments = [
                    ("weight", t("table")),
                    ("indices", t("y")),
                    ("scale_grad_by_freq", flag(true)),
                ];
                bad_rows(b, "embedding.default", &arguments);
            },
        ),
        mutant("a sparse gradient", "T7", P::UnreadArgumentsAreDefault, No, |b| {
            let index = b.call("unsqueeze.default", &[("self", t("y")), ("dim", i(1))]);
            let arguments = [
                ("self", t("logits")),
                ("dim", i(1)),
                ("index", t(&index)),
                ("sparse_grad", flag(true)),
            ];
            bad_rows(b, "gather.default", &arguments);
        }),
    ];
    for name in [
        "bincount.default",
        "histc.default",
        "searchsorted.Tensor",
        "cdist.default",
        "index_put.default",
        "masked_scatter.default",
        "take.default",
        "lstm.data",
        "embedding_bag.default",
        "ctc_loss.IntList",
        "from_file.default",
        "as_strided.default",
        "empty.memory_format",
        "native_layer_norm.default",
    ] {
        assert!(
            crate::check::rules::find(name.split_once('.').unwrap().0, name.split_once('.').unwrap().1)
                .is_none(),
            "{name}"
        );
    }
    cases.push(case("reading a file", "T7", |b| {
        bad_plus(
            b,
            "from_file.default",
            &[("filename", RawArgument::Str("/etc/passwd".into()))],
        );
    }));
    cases
}
