//! Leaky convolutions, pooling, resampling and channel-wise operators (rules T1, T3, T4, T7, T8).

use super::build::{Build, f, flag, i, ints, sizes, t};
use super::leaky::Seen::{ByOracle, No};
use super::leaky::{Case, bad_then_mean, case, mutant, size_arg};
use crate::check::premise::Premise as P;
use crate::dtype::DType;
use crate::program::RawArgument;

pub(super) fn cases() -> Vec<Case> {
    [
        unbatched(),
        misplaced(),
        sizes_of_the_batch(),
        weights(),
        pooled(),
        resampled(),
        channelwise(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// `m` f32[B,2,3] with its axes in another order.
fn permuted(b: &mut Build, dims: &[i64]) -> String {
    b.call("permute.default", &[("self", t("m")), ("dims", ints(dims))])
}

/// A frozen kernel.
fn kernel(b: &mut Build, shape: &[u64]) -> RawArgument {
    let name = format!("kernel{}", b.parts.constants.len());
    b.constant(&name, DType::F32, shape);
    t(&name)
}

/// A bad value with the batch last, `[.., B]`, summed over all other axes and added to the loss.
fn bad_batch_last(b: &mut Build, operator: &str, arguments: &[(&str, RawArgument)], others: &[i64]) {
    let bad = b.bad(operator, arguments);
    let sums = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(others))]);
    b.returns_loss_plus(&sums);
}

/// T4: what an unbatched convolution takes for channels is the batch.
fn unbatched() -> Vec<Case> {
    vec![
        mutant(
            "an unbatched conv1d on [B, 6]",
            "T4",
            P::BatchIsLeading,
            ByOracle,
            |b| {
                let kernel = kernel(b, &[4, 3, 2]);
                bad_then_mean(b, "conv1d.default", &[("input", t("x")), ("weight", kernel)]);
            },
        ),
        mutant(
            "an unbatched conv2d on [B, 2, 3]",
            "T4",
            P::BatchIsLeading,
            ByOracle,
            |b| {
                let kernel = kernel(b, &[1, 2, 2, 2]);
                bad_then_mean(b, "conv2d.default", &[("input", t("m")), ("weight", kernel)]);
            },
        ),
        mutant(
            "an unbatched conv3d on [B, 1, 2, 3]",
            "T4",
            P::BatchIsLeading,
            ByOracle,
            |b| {
                let image = b.call("unsqueeze.default", &[("self", t("m")), ("dim", i(1))]);
                let kernel = kernel(b, &[1, 2, 1, 1, 1]);
                bad_then_mean(b, "conv3d.default", &[("input", t(&image)), ("weight", kernel)]);
            },
        ),
        mutant(
            "an unbatched conv2d with padding same",
            "T4",
            P::BatchIsLeading,
            ByOracle,
            |b| {
                let kernel = kernel(b, &[1, 3, 3, 3]);
                let same = RawArgument::Str("same".into());
                bad_then_mean(
                    b,
                    "conv2d.padding",
                    &[("input", t("m")), ("weight", kernel), ("padding", same)],
                );
            },
        ),
        mutant(
            "an unbatched conv_transpose1d on [B, 6]",
            "T4",
            P::BatchIsLeading,
            ByOracle,
            |b| {
                let kernel = kernel(b, &[3, 1, 2]);
                bad_then_mean(
                    b,
                    "conv_transpose1d.default",
                    &[("input", t("x")), ("weight", kernel)],
                );
            },
        ),
        mutant(
            "an unbatched conv_transpose2d on [B, 2, 3]",
            "T4",
            P::BatchIsLeading,
            ByOracle,
            |b| {
                let kernel = kernel(b, &[2, 1, 2, 2]);
                bad_then_mean(
                    b,
                    "conv_transpose2d.input",
                    &[("input", t("m")), ("weight", kernel)],
                );
            },
        ),
        case("an unbatched conv2d with a trained kernel", "T4", |b| {
            b.parameter("trained", &[1, 3, 2, 2], true);
            bad_then_mean(
                b,
                "conv2d.default",
                &[("input", t("m")), ("weight", t("trained"))],
            );
        }),
        case("an unbatched upsampling on [B, 6]", "T4", |b| {
            let given = [
                ("input", t("x")),
                ("output_size", ints(&[3])),
                ("scale_factors", RawArgument::None),
            ];
            bad_then_mean(b, "upsample_nearest1d.vec", &given);
        }),
        case("a convolution of samples in blocks of two", "T4", |b| {
            let flat = b.call("view.default", &[("self", t("m")), ("size", ints(&[-1, 1, 3]))]);
            let kernel = kernel(b, &[1, 1, 2]);
            bad_then_mean(b, "conv1d.default", &[("input", t(&flat)), ("weight", kernel)]);
        }),
    ]
}

/// T4: the batch is another axis.
fn misplaced() -> Vec<Case> {
    vec![
        mutant("conv1d along the batch", "T4", P::BatchIsLeading, ByOracle, |b| {
            let turned = permuted(b, &[1, 2, 0]);
            let kernel = kernel(b, &[3, 3, 3]);
            let given = [("input", t(&turned)), ("weight", kernel), ("padding", ints(&[1]))];
            bad_batch_last(b, "conv1d.default", &given, &[0, 1]);
        }),
        mutant(
            "conv1d with padding same along the batch",
            "T4",
            P::BatchIsLeading,
            ByOracle,
            |b| {
                let turned = permuted(b, &[1, 2, 0]);
                let kernel = kernel(b, &[2, 3, 5]);
                let same = RawArgument::Str("same".into());
                let given = [("input", t(&turned)), ("weight", kernel), ("padding", same)];
                bad_batch_last(b, "conv1d.padding", &given, &[0, 1]);
            },
        ),
        mutant(
            "a depthwise conv1d along the batch",
            "T4",
            P::BatchIsLeading,
            ByOracle,
            |b| {
                let turned = permuted(b, &[1, 2, 0]);
                let kernel = kernel(b, &[3, 1, 3]);
                let given = [
                    ("input", t(&turned)),
                    ("weight", kernel),
                    ("padding", ints(&[1])),
                    ("groups", i(3)),
                ];
                bad_batch_last(b, "conv1d.default", &given, &[0, 1]);
            },
        ),
        mutant(
            "a dilated convolution along the batch",
            "T4",
            P::BatchIsLeading,
            ByOracle,
            |b| {
                let turned = permuted(b, &[1, 2, 0]);
                let kernel = kernel(b, &[1, 3, 3]);
                let given = [
                    ("input", t(&turned)),
                    ("weight", kernel),
                    ("bias", RawArgument::None),
                    ("stride", ints(&[1])),
                    ("padding", ints(&[2])),
                    ("dilation", ints(&[2])),
                    ("transposed", flag(false)),
                    ("output_padding", ints(&[0])),
                    ("groups", i(1)),
                ];
                bad_batch_last(b, "convolution.default", &given, &[0, 1]);
            },
        ),
        mutant(
            "conv2d with the batch as height",
            "T4",
            P::BatchIsLeading,
            ByOracle,
            |b| {
                let turned = permuted(b, &[1, 0, 2]);
                let image = b.call("unsqueeze.default", &[("self", t(&turned)), ("dim", i(1))]);
                let kernel = kernel(b, &[1, 1, 3, 3]);
                let given = [
                    ("input", t(&image)),
                    ("weight", kernel),
                    ("padding", ints(&[1, 1])),
                ];
                let bad = b.bad("conv2d.default", &given);
                let sums = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[0, 1, 3]))]);
                b.returns_loss_plus(&sums);
            },
        ),
        mutant(
            "conv_transpose1d along the batch",
            "T4",
            P::BatchIsLeading,
            ByOracle,
            |b| {
                let turned = permuted(b, &[1, 2, 0]);
                let kernel = kernel(b, &[3, 1, 3]);
                let given = [("input", t(&turned)), ("weight", kernel), ("padding", ints(&[1]))];
                bad_batch_last(b, "conv_transpose1d.default", &given, &[0, 1]);
            },
        ),
        case("conv1d over the batch as channels", "T4", |b| {
            let turned = permuted(b, &[1, 0, 2]);
            let kernel = kernel(b, &[1, 2, 2]);
            bad_then_mean(b, "conv1d.default", &[("input", t(&turned)), ("weight", kernel)]);
        }),
        case("conv_transpose1d over the batch as channels", "T4", |b| {
            let turned = permuted(b, &[1, 0, 2]);
            let kernel = kernel(b, &[2, 1, 2]);
            bad_then_mean(
                b,
                "conv_transpose1d.default",
                &[("input", t(&turned)), ("weight", kernel)],
            );
        }),
        case("upsampling along the batch", "T4", |b| {
            let turned = permuted(b, &[1, 2, 0]);
            let given = [
                ("input", t(&turned)),
                ("output_size", ints(&[4])),
                ("align_corners", flag(false)),
                ("scale_factors", RawArgument::None),
            ];
            bad_batch_last(b, "upsample_linear1d.vec", &given, &[0, 1]);
        }),
    ]
}

/// T1: numbers that depend on the batch size.
fn sizes_of_the_batch() -> Vec<Case> {
    vec![
        case("a stride of the batch size", "T1", |b| {
            let size = b.size("x", 0);
            let kernel = kernel(b, &[1, 2, 2]);
            let given = [("input", t("m")), ("weight", kernel), ("stride", sizes(&[size]))];
            bad_then_mean(b, "conv1d.default", &given);
        }),
        case("a padding of the batch size", "T1", |b| {
            let size = b.size("x", 0);
            let kernel = kernel(b, &[1, 2, 2]);
            let given = [("input", t("m")), ("weight", kernel), ("padding", sizes(&[size]))];
            bad_then_mean(b, "conv1d.default", &given);
        }),
        case("a dilation of the batch size", "T1", |b| {
            let size = b.size("x", 0);
            let kernel = kernel(b, &[1, 2, 2]);
            let given = [
                ("input", t("m")),
                ("weight", kernel),
                ("dilation", sizes(&[size])),
            ];
            bad_then_mean(b, "conv1d.default", &given);
        }),
        case("groups of the batch size", "T1", |b| {
            let size = b.size("x", 0);
            let kernel = kernel(b, &[1, 2, 2]);
            let given = [("input", t("m")), ("weight", kernel), ("groups", size_arg(&size))];
            bad_then_mean(b, "conv1d.default", &given);
        }),
        case("a result of the batch's length by adaptive pooling", "T1", |b| {
            let size = b.size("x", 0);
            let image = b.call("unsqueeze.default", &[("self", t("m")), ("dim", i(1))]);
            let given = [("self", t(&image)), ("output_size", sizes(&[size.clone(), size]))];
            bad_then_mean(b, "adaptive_avg_pool2d.default", &given);
        }),
        case("upsampling to the batch size", "T1", |b| {
            let size = b.size("x", 0);
            let given = [
                ("input", t("m")),
                ("output_size", sizes(&[size])),
                ("scale_factors", RawArgument::None),
            ];
            bad_then_mean(b, "upsample_nearest1d.vec", &given);
        }),
        case("padding by the batch size", "T1", |b| {
            let size = b.size("x", 0);
            let given = [("self", t("x")), ("pad", sizes(&[size.clone(), size]))];
            bad_then_mean(b, "constant_pad_nd.default", &given);
        }),
        case("padding with the batch size", "T1", |b| {
            let size = b.size("x", 0);
            let given = [
                ("self", t("x")),
                ("pad", ints(&[1, 1])),
                ("value", size_arg(&size)),
            ];
            bad_then_mean(b, "constant_pad_nd.default", &given);
        }),
        case("groups of a norm as many as the batch", "T1", |b| {
            let size = b.size("x", 0);
            bad_then_mean(
                b,
                "group_norm.default",
                &[("input", t("m")), ("num_groups", size_arg(&size))],
            );
        }),
        case("a pixel shuffle by the batch size", "T1", |b| {
            let size = b.size("x", 0);
            let image = b.call("unsqueeze.default", &[("self", t("m")), ("dim", i(1))]);
            let given = [("self", t(&image)), ("upscale_factor", size_arg(&size))];
            bad_then_mean(b, "pixel_shuffle.default", &given);
        }),
    ]
}

/// T7: what should be shared depends on samples.
fn weights() -> Vec<Case> {
    vec![
        case("samples as a kernel", "T7", |b| {
            bad_then_mean(b, "conv1d.default", &[("input", t("m")), ("weight", t("m"))]);
        }),
        case("samples as a kernel of the general operator", "T7", |b| {
            let given = [
                ("input", t("m")),
                ("weight", t("m")),
                ("bias", RawArgument::None),
                ("stride", ints(&[1])),
                ("padding", ints(&[0])),
                ("dilation", ints(&[1])),
                ("transposed", flag(true)),
                ("output_padding", ints(&[0])),
                ("groups", i(1)),
            ];
            bad_then_mean(b, "convolution.default", &given);
        }),
        case("samples as a bias", "T7", |b| {
            let kernel = kernel(b, &[1, 2, 2]);
            bad_then_mean(
                b,
                "conv1d.default",
                &[("input", t("m")), ("weight", kernel), ("bias", t("t"))],
            );
        }),
        case("samples as slopes", "T7", |b| {
            bad_then_mean(b, "prelu.default", &[("self", t("m")), ("weight", t("t"))]);
        }),
        case("samples as the mean of fixed statistics", "T7", |b| {
            b.constant("c2", DType::F32, &[2]);
            bad_then_mean(
                b,
                "batch_norm.default",
                &batch_norm("m", Some(("t", "c2")), false),
            );
        }),
        case("samples as the variance of fixed statistics", "T7", |b| {
            b.constant("c2", DType::F32, &[2]);
            bad_then_mean(
                b,
                "batch_norm.default",
                &batch_norm("m", Some(("c2", "t")), false),
            );
        }),
        case("samples as the scale of a group norm", "T7", |b| {
            let given = [("input", t("m")), ("num_groups", i(1)), ("weight", t("t"))];
            bad_then_mean(b, "group_norm.default", &given);
        }),
    ]
}

/// T7: windows that move over the batch.
fn pooled() -> Vec<Case> {
    let along = |name, operator: fn(&mut Build)| mutant(name, "T7", P::DimsExcludeBatch, ByOracle, operator);
    vec![
        along("max_pool1d along the batch", |b| {
            let turned = permuted(b, &[1, 2, 0]);
            let given = [
                ("self", t(&turned)),
                ("kernel_size", ints(&[3])),
                ("stride", ints(&[1])),
                ("padding", ints(&[1])),
            ];
            bad_batch_last(b, "max_pool1d.default", &given, &[0, 1]);
        }),
        along("avg_pool1d along the batch", |b| {
            let turned = permuted(b, &[1, 2, 0]);
            let given = [
                ("self", t(&turned)),
                ("kernel_size", ints(&[3])),
                ("stride", ints(&[1])),
                ("padding", ints(&[1])),
            ];
            bad_batch_last(b, "avg_pool1d.default", &given, &[0, 1]);
        }),
        along("max_pool2d with the batch as height", |b| {
            let turned = permuted(b, &[1, 0, 2]);
            let given = [
                ("self", t(&turned)),
                ("kernel_size", ints(&[3])),
                ("stride", ints(&[1])),
                ("padding", ints(&[1])),
            ];
            let bad = b.bad("max_pool2d.default", &given);
            let sums = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[0, 2]))]);
            b.returns_loss_plus(&sums);
        }),
        along("avg_pool2d with the batch as width", |b| {
            let turned = permuted(b, &[1, 2, 0]);
            let given = [
                ("self", t(&turned)),
                ("kernel_size", ints(&[1, 3])),
                ("stride", ints(&[1])),
                ("padding", ints(&[0, 1])),
            ];
            bad_batch_last(b, "avg_pool2d.default", &given, &[0, 1]);
        }),
        along("max_pool1d over an unbatched [6, B]", |b| {
            let turned = b.call("t.default", &[("self", t("x"))]);
            let given = [
                ("self", t(&turned)),
                ("kernel_size", ints(&[3])),
                ("stride", ints(&[1])),
                ("padding", ints(&[1])),
            ];
            bad_batch_last(b, "max_pool1d.default", &given, &[0]);
        }),
        along("global average over the batch", |b| {
            let turned = permuted(b, &[1, 2, 0]);
            bad_batch_last(
                b,
                "adaptive_avg_pool1d.default",
                &[("self", t(&turned)), ("output_size", ints(&[2]))],
                &[0, 1],
            );
        }),
        case("maxima over the batch and where they are", "T7", |b| {
            let turned = permuted(b, &[1, 2, 0]);
            b.blamed = b.calls(
                "adaptive_max_pool1d.default",
                &[("self", t(&turned)), ("output_size", ints(&[1]))],
                2,
            )[0]
            .clone();
            let blamed = b.blamed.clone();
            let mean = b.call("mean.default", &[("self", t(&blamed))]);
            b.returns_loss_plus(&mean);
        }),
        // Measured on torch 2.11: the gradient of sample i's last channel arrives in sample i + 1's first.
        case("max_pool2d with a window wholly in the padding", "T7", |b| {
            let plane = b.call(
                "reshape.default",
                &[("self", t("x")), ("shape", ints(&[-1, 1, 1, 6]))],
            );
            let given = [
                ("self", t(&plane)),
                ("kernel_size", ints(&[2, 1])),
                ("stride", ints(&[1, 1])),
                ("padding", ints(&[1, 0])),
                ("dilation", ints(&[2, 1])),
            ];
            bad_then_mean(b, "max_pool2d.default", &given);
        }),
        case("max_pool1d whose taps straddle the sample", "T7", |b| {
            let given = [
                ("self", t("m")),
                ("kernel_size", ints(&[2])),
                ("stride", ints(&[1])),
                ("padding", ints(&[1])),
                ("dilation", ints(&[4])),
            ];
            bad_then_mean(b, "max_pool1d.default", &given);
        }),
        case("max_pool1d of a plain batch of numbers", "T7", |b| {
            let row = b.call("unsqueeze.default", &[("self", t("t")), ("dim", i(0))]);
            bad_then_mean(
                b,
                "max_pool1d.default",
                &[("self", t(&row)), ("kernel_size", ints(&[2]))],
            );
        }),
    ]
}

fn resampled() -> Vec<Case> {
    vec![
        mutant(
            "rows of zeros beside the samples",
            "T7",
            P::BatchAxisUntouched,
            ByOracle,
            |b| {
                let given = [("self", t("t")), ("pad", ints(&[1, 1]))];
                let bad = b.bad("constant_pad_nd.default", &given);
                b.returns_loss_plus(&bad);
            },
        ),
        mutant(
            "a row of zeros before the samples",
            "T7",
            P::BatchAxisUntouched,
            ByOracle,
            |b| {
                let given = [("self", t("x")), ("pad", ints(&[0, 0, 1, 0]))];
                let bad = b.bad("pad.default", &given);
                let sums = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[1]))]);
                b.returns_loss_plus(&sums);
            },
        ),
        mutant(
            "samples reflected at the edge of the batch",
            "T7",
            P::DimsExcludeBatch,
            No,
            |b| {
                let turned = permuted(b, &[1, 2, 0]);
                let given = [
                    ("self", t(&turned)),
                    ("pad", ints(&[0, 0])),
                    ("mode", RawArgument::Str("reflect".into())),
                ];
                bad_batch_last(b, "pad.default", &given, &[0, 1]);
            },
        ),
        case("the batch made circular", "T7", |b| {
            let turned = permuted(b, &[1, 2, 0]);
            let given = [
                ("self", t(&turned)),
                ("pad", ints(&[1, 1])),
                ("mode", RawArgument::Str("circular".into())),
            ];
            bad_then_mean(b, "pad.default", &given);
        }),
        mutant(
            "pixels of the batch shuffled",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                let turned = permuted(b, &[1, 2, 0]);
                let given = [("self", t(&turned)), ("upscale_factor", i(2))];
                bad_batch_last(b, "pixel_shuffle.default", &given, &[0, 1]);
            },
        ),
        mutant(
            "pixels of the batch unshuffled",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                let turned = permuted(b, &[1, 2, 0]);
                let given = [("self", t(&turned)), ("downscale_factor", i(3))];
                bad_batch_last(b, "pixel_unshuffle.default", &given, &[0, 1]);
            },
        ),
    ]
}

/// Arguments of batch_norm: fixed statistics (mean, variance) or those of the batch.
fn batch_norm(
    input: &str,
    statistics: Option<(&str, &str)>,
    training: bool,
) -> Vec<(&'static str, RawArgument)> {
    let of = |name: Option<&str>| name.map_or(RawArgument::None, t);
    vec![
        ("input", t(input)),
        ("weight", RawArgument::None),
        ("bias", RawArgument::None),
        ("running_mean", of(statistics.map(|both| both.0))),
        ("running_var", of(statistics.map(|both| both.1))),
        ("training", flag(training)),
        ("momentum", f(0.1)),
        ("eps", f(1e-5)),
        ("cudnn_enabled", flag(true)),
    ]
}

fn channelwise() -> Vec<Case> {
    vec![
        mutant(
            "batch_norm in training",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                let bad = b.bad("batch_norm.default", &batch_norm("m", None, true));
                let sums = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[1, 2]))]);
                b.returns_loss_plus(&sums);
            },
        ),
        case("batch_norm in training with running statistics", "T7", |b| {
            b.constant("c2", DType::F32, &[2]);
            bad_then_mean(
                b,
                "batch_norm.default",
                &batch_norm("m", Some(("c2", "c2")), true),
            );
        }),
        case("batch_norm in training of [B, features]", "T7", |b| {
            bad_then_mean(b, "batch_norm.default", &batch_norm("x", None, true));
        }),
        case("an instance norm that keeps statistics", "T8", |b| {
            b.constant("c2", DType::F32, &[2]);
            bad_then_mean(b, "instance_norm.default", &instance_norm("m", Some("c2")));
        }),
        case("an instance norm over the batch", "T7", |b| {
            let turned = permuted(b, &[1, 2, 0]);
            bad_then_mean(b, "instance_norm.default", &instance_norm(&turned, None));
        }),
        case("a group norm over the batch", "T7", |b| {
            let turned = permuted(b, &[1, 0, 2]);
            bad_then_mean(
                b,
                "group_norm.default",
                &[("input", t(&turned)), ("num_groups", i(1))],
            );
        }),
        mutant(
            "feature dropout of a constant",
            "T3",
            P::RandomnessPerSample,
            ByOracle,
            |b| {
                let given = [("input", t("c33")), ("p", f(0.5)), ("train", flag(true))];
                bad_then_mean(b, "feature_dropout.default", &given);
            },
        ),
        mutant(
            "one draw of feature dropout for the whole batch",
            "T3",
            P::RandomnessPerSample,
            ByOracle,
            |b| {
                let turned = permuted(b, &[1, 2, 0]);
                let given = [("input", t(&turned)), ("p", f(0.5)), ("train", flag(true))];
                bad_batch_last(b, "feature_dropout.default", &given, &[0, 1]);
            },
        ),
        case("a trained slope behind a misplaced batch", "T4", |b| {
            b.parameter("slope", &[1], true);
            let turned = b.call("t.default", &[("self", t("x"))]);
            let bad = b.bad("prelu.default", &[("self", t(&turned)), ("weight", t("slope"))]);
            let sums = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[0]))]);
            b.returns_loss_plus(&sums);
        }),
    ]
}

/// Arguments of instance_norm.
fn instance_norm(input: &str, statistics: Option<&str>) -> Vec<(&'static str, RawArgument)> {
    let of = |name: Option<&str>| name.map_or(RawArgument::None, t);
    vec![
        ("input", t(input)),
        ("weight", RawArgument::None),
        ("bias", RawArgument::None),
        ("running_mean", of(statistics)),
        ("running_var", of(statistics)),
        ("use_input_stats", flag(true)),
        ("momentum", f(0.1)),
        ("eps", f(1e-5)),
        ("cudnn_enabled", flag(true)),
    ]
}
