//! Contractions with data on both sides, and attention across samples (T1, T3, T4, T7, G2).

use super::*;

fn permuted(b: &mut Build, value: &str, dims: &[i64]) -> String {
    b.call("permute.default", &[("self", t(value)), ("dims", ints(dims))])
}

/// `x` as one sequence of samples, `[1, 1, B, 6]`.
fn samples_as_sequence(b: &mut Build) -> String {
    let one = b.call("unsqueeze.default", &[("self", t("x")), ("dim", i(0))]);
    b.call("unsqueeze.default", &[("self", t(&one)), ("dim", i(0))])
}

/// `m` with one head, `[B, 1, 2, 3]`.
fn one_head(b: &mut Build) -> String {
    b.call("unsqueeze.default", &[("self", t("m")), ("dim", i(1))])
}

fn attend<'n>(query: &'n str, key: &'n str, value: &'n str) -> Vec<(&'static str, RawArgument)> {
    vec![("query", t(query)), ("key", t(key)), ("value", t(value))]
}

const ATTENTION: &str = "scaled_dot_product_attention.default";

/// Attention that must be refused, summed over `axes` and added to the loss.
fn bad_attention(b: &mut Build, operands: [&str; 3], more: &[(&'static str, RawArgument)], axes: &[i64]) {
    let [query, key, value] = operands;
    let mut arguments = attend(query, key, value);
    arguments.extend_from_slice(more);
    bad_then_sum(b, ATTENTION, &arguments, axes);
}

fn bad_then_sum(b: &mut Build, operator: &str, arguments: &[(&str, RawArgument)], axes: &[i64]) {
    let bad = b.bad(operator, arguments);
    let rows = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(axes))]);
    b.returns_loss_plus(&rows);
}

pub(super) fn cases() -> Vec<Case> {
    [products(), attention()].into_iter().flatten().collect()
}

fn products() -> Vec<Case> {
    vec![
        mutant(
            "bmm over the batch",
            "T7",
            P::ContractionWithinSample,
            ByOracle,
            |b| {
                let (left, right) = (permuted(b, "m", &[1, 2, 0]), permuted(b, "m", &[1, 0, 2]));
                bad_then_mean(b, "bmm.default", &[("self", t(&left)), ("mat2", t(&right))]);
            },
        ),
        mutant(
            "baddbmm over the batch",
            "T7",
            P::ContractionWithinSample,
            ByOracle,
            |b| {
                let (left, right) = (permuted(b, "m", &[1, 2, 0]), permuted(b, "m", &[1, 0, 2]));
                let arguments = [("self", t("c33")), ("batch1", t(&left)), ("batch2", t(&right))];
                bad_then_mean(b, "baddbmm.default", &arguments);
            },
        ),
        mutant(
            "matmul of every sample with a vector of all",
            "T7",
            P::ContractionWithinSample,
            ByOracle,
            |b| {
                let columns = b.call("t.default", &[("self", t("x"))]);
                bad_then_mean(b, "matmul.default", &[("self", t(&columns)), ("other", t("t"))]);
            },
        ),
        mutant(
            "mm of a sample's data with all others'",
            "T4",
            P::BatchAxesAligned,
            ByOracle,
            |b| {
                let columns = b.call("t.default", &[("self", t("x"))]);
                bad_rows(b, "mm.default", &[("self", t("x")), ("mat2", t(&columns))]);
            },
        ),
        mutant(
            "matmul of all pairs of samples",
            "T4",
            P::BatchAxesAligned,
            ByOracle,
            |b| {
                let columns = b.call("t.default", &[("self", t("x"))]);
                bad_rows(b, "matmul.default", &[("self", t("x")), ("other", t(&columns))]);
            },
        ),
        mutant(
            "bmm of the samples' rows with the samples' columns",
            "T4",
            P::BatchAxesAligned,
            ByOracle,
            |b| {
                let (left, right) = (permuted(b, "m", &[1, 0, 2]), permuted(b, "m", &[1, 2, 0]));
                bad_then_sum(
                    b,
                    "bmm.default",
                    &[("self", t(&left)), ("mat2", t(&right))],
                    &[0, 2],
                );
            },
        ),
        mutant(
            "matmul that broadcasts the samples' rows over the batch",
            "T4",
            P::BatchAxesAligned,
            ByOracle,
            |b| {
                let (rows, wide) = (permuted(b, "m", &[1, 0, 2]), permuted(b, "m", &[0, 2, 1]));
                let rows = b.call(
                    "select.int",
                    &[("self", t(&rows)), ("dim", i(0)), ("index", i(0))],
                );
                bad_then_sum(
                    b,
                    "matmul.default",
                    &[("self", t(&rows)), ("other", t(&wide))],
                    &[0, 2],
                );
            },
        ),
        mutant(
            "matmul with a constant matrix for every place of the batch",
            "T4",
            P::SharedSpansNoBatch,
            ByOracle,
            |b| {
                b.constant("places", DType::F32, &[3, 3, 2]);
                bad_then_sum(
                    b,
                    "matmul.default",
                    &[("self", t("m")), ("other", t("places"))],
                    &[1, 2],
                );
            },
        ),
        mutant(
            "baddbmm onto a constant for every place of the batch",
            "T4",
            P::SharedSpansNoBatch,
            ByOracle,
            |b| {
                b.constant("places", DType::F32, &[3, 2, 2]);
                let columns = permuted(b, "m", &[0, 2, 1]);
                let arguments = [("self", t("places")), ("batch1", t("m")), ("batch2", t(&columns))];
                bad_then_sum(b, "baddbmm.default", &arguments, &[1, 2]);
            },
        ),
        mutant(
            "baddbmm scaled by the batch size",
            "T1",
            P::BatchSizeOnlyInSizeLists,
            ByOracle,
            |b| {
                let (columns, size) = (permuted(b, "m", &[0, 2, 1]), b.size("x", 0));
                let arguments = [
                    ("self", t("c1")),
                    ("batch1", t("m")),
                    ("batch2", t(&columns)),
                    ("alpha", size_arg(&size)),
                ];
                let bad = b.bad("baddbmm.default", &arguments);
                let rows = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[1, 2]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        mutant(
            "a trainable parameter on the left of data",
            "G2",
            P::ParametersAreTapped,
            No,
            |b| {
                let columns = b.call("t.default", &[("self", t("x"))]);
                let bad = b.bad("matmul.default", &[("self", t("w")), ("other", t(&columns))]);
                let rows = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[0]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        mutant(
            "a trainable matrix for each head",
            "G2",
            P::ParametersAreTapped,
            No,
            |b| {
                b.parameter("heads", &[2, 3, 2], true);
                let heads = b.call("unsqueeze.default", &[("self", t("m")), ("dim", i(2))]);
                let bad = b.bad("matmul.default", &[("self", t(&heads)), ("other", t("heads"))]);
                let rows = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[1, 2, 3]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        case("einsum over the batch", "T7", |b| {
            let arguments = [
                ("equation", RawArgument::Str("bi,bi->i".into())),
                ("tensors", RawArgument::Tensors(vec!["x".into(), "x".into()])),
            ];
            bad_then_mean(b, "einsum.default", &arguments);
        }),
    ]
}

fn attention() -> Vec<Case> {
    vec![
        mutant(
            "samples that attend to one another",
            "T7",
            P::ContractionWithinSample,
            ByOracle,
            |b| {
                let sequence = samples_as_sequence(b);
                bad_attention(b, [&sequence; 3], &[], &[0, 1, 3]);
            },
        ),
        mutant(
            "samples that attend to earlier ones",
            "T7",
            P::ContractionWithinSample,
            ByOracle,
            |b| {
                let sequence = samples_as_sequence(b);
                bad_attention(b, [&sequence; 3], &[("is_causal", flag(true))], &[0, 1, 3]);
            },
        ),
        mutant(
            "MultiheadAttention(batch_first=False) fed [batch, length, width]",
            "T7",
            P::ContractionWithinSample,
            ByOracle,
            |b| {
                // What the module makes of [length, batch, width]: heads folded into the second axis, then moved first.
                let folded = b.call("view.default", &[("self", t("m")), ("size", ints(&[-1, 2, 3]))]);
                let first = b.call(
                    "transpose.int",
                    &[("self", t(&folded)), ("dim0", i(0)), ("dim1", i(1))],
                );
                let heads = b.call("unsqueeze.default", &[("self", t(&first)), ("dim", i(1))]);
                bad_attention(b, [&heads; 3], &[], &[0, 1, 3]);
            },
        ),
        mutant(
            "constant queries over all samples",
            "T7",
            P::ContractionWithinSample,
            ByOracle,
            |b| {
                b.constant("queries", DType::F32, &[1, 1, 2, 6]);
                let sequence = samples_as_sequence(b);
                bad_attention(b, ["queries", &sequence, &sequence], &[], &[]);
            },
        ),
        mutant(
            "a width of samples",
            "T7",
            P::ContractionWithinSample,
            ByOracle,
            |b| {
                b.constant("values", DType::F32, &[1, 6, 2]);
                let columns = b.call("t.default", &[("self", t("x"))]);
                let columns = b.call("unsqueeze.default", &[("self", t(&columns)), ("dim", i(0))]);
                let bad = b.bad(ATTENTION, &attend(&columns, &columns, "values"));
                let mean = b.call("mean.default", &[("self", t(&bad))]);
                b.returns_loss_plus(&mean);
            },
        ),
        case("a mask whose rows are samples", "T4", |b| {
            let heads = one_head(b);
            let mask = b.call("slice.Tensor", &[("self", t("x")), ("dim", i(1)), ("end", i(2))]);
            bad_attention(b, [&heads; 3], &[("attn_mask", t(&mask))], &[1, 2, 3]);
        }),
        mutant(
            "a mask for every place of the batch",
            "T4",
            P::SharedSpansNoBatch,
            ByOracle,
            |b| {
                b.constant("places", DType::F32, &[3, 1, 2, 2]);
                let heads = one_head(b);
                bad_attention(b, [&heads; 3], &[("attn_mask", t("places"))], &[1, 2, 3]);
            },
        ),
        case("keys of a constant for every place of the batch", "T4", |b| {
            b.constant("places", DType::F32, &[3, 1, 2, 3]);
            let heads = one_head(b);
            bad_attention(b, [&heads, "places", &heads], &[], &[1, 2, 3]);
        }),
        case("attention among heads that are samples", "T4", |b| {
            let heads = one_head(b);
            let swapped = permuted(b, &heads, &[1, 0, 2, 3]);
            bad_attention(b, [&heads, &swapped, &swapped], &[], &[1, 2, 3]);
        }),
        mutant(
            "dropout in attention among constants",
            "T3",
            P::RandomnessPerSample,
            ByOracle,
            |b| {
                b.constant("queries", DType::F32, &[2, 3, 3]);
                bad_attention(b, ["queries"; 3], &[("dropout_p", f(0.5))], &[]);
            },
        ),
        case("grouped queries", "T7", |b| {
            let heads = one_head(b);
            bad_attention(b, [&heads; 3], &[("enable_gqa", flag(true))], &[1, 2, 3]);
        }),
    ]
}
