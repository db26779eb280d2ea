//! Arguments of convolutions, pooling and resampling: mostly ones that fit, some that do not.

use super::super::build::{f, flag, i, ints, t};
use super::Draw;
use crate::program::{RawArgument, RawSize};
use crate::schema::Schema;
use crate::typed::{Dependence, Extent, ValueType};

/// None for operators that are drawn argument by argument.
pub(super) fn arguments(draw: &mut Draw<'_>, schema: &Schema) -> Option<Vec<(String, RawArgument)>> {
    let name = schema.name.as_str();
    let axes = name
        .chars()
        .find_map(|character| character.to_digit(10))
        .map(|digit| digit as usize);
    let given = match name {
        _ if name.starts_with("conv") => convolution(draw, schema, axes),
        _ if name.starts_with("adaptive") => {
            let axes = axes?;
            vec![
                ("self", image(draw, axes)),
                ("output_size", numbers(draw, axes, &[1, 2, 3])),
            ]
        }
        _ if name.contains("pool") => pool(draw, schema, axes?),
        _ if name.starts_with("upsample") => upsample(draw, schema, axes?),
        "constant_pad_nd" | "pad" => pad(draw, name),
        "pixel_shuffle" => {
            let value = draw.like_first(|found| found.shape.len() >= 3 && divisible(found, 3, 4));
            vec![
                ("self", t(&value)),
                ("upscale_factor", i(*draw.random.pick(&[1, 2]))),
            ]
        }
        "pixel_unshuffle" => {
            let value = draw.like_first(|found| {
                found.shape.len() >= 3 && divisible(found, 1, 2) && divisible(found, 2, 2)
            });
            vec![
                ("self", t(&value)),
                ("downscale_factor", i(*draw.random.pick(&[1, 2]))),
            ]
        }
        "repeat" | "repeat_interleave" | "flip" | "roll" => places(draw, name),
        "group_norm" | "instance_norm" | "batch_norm" => norm(draw, name),
        "prelu" => {
            let value = image(draw, 1);
            vec![
                ("self", value),
                ("weight", t(if draw.random.one_in(2) { "c1" } else { "c2" })),
            ]
        }
        "feature_dropout" => {
            let train = draw.random.one_in(2);
            vec![("input", image(draw, 1)), ("p", f(0.5)), ("train", flag(train))]
        }
        _ => return None,
    };
    Some(
        given
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

fn divisible(found: &ValueType, from_end: usize, by: u64) -> bool {
    matches!(found.shape[found.shape.len() - from_end], Extent::Fixed(size) if size % by == 0)
}

/// A floating value of two leading axes and this many more, mostly.
fn image(draw: &mut Draw<'_>, axes: usize) -> RawArgument {
    t(&draw.like_first(|found| found.dtype.is_float() && found.shape.len() == axes + 2))
}

fn numbers(draw: &mut Draw<'_>, axes: usize, from: &[i64]) -> RawArgument {
    if draw.random.one_in(20) {
        return ints(&[*draw.random.pick(&[0, -1, 7, i64::MAX])]);
    }
    let count = if draw.random.one_in(2) { 1 } else { axes };
    ints(&(0..count).map(|_| *draw.random.pick(from)).collect::<Vec<_>>())
}

fn convolution(
    draw: &mut Draw<'_>,
    schema: &Schema,
    axes: Option<usize>,
) -> Vec<(&'static str, RawArgument)> {
    let axes = axes.unwrap_or_else(|| 1 + draw.random.below(2));
    let input = draw.like_first(|found| {
        found.shape.len() == axes + 2 && found.shape[1] == Extent::Fixed(if axes == 3 { 1 } else { 2 })
    });
    let weight = draw.like_first(|found| {
        found.dependence == Dependence::Shared && found.shape.len() == axes + 2 && found.dtype.is_float()
    });
    let mut given = vec![("input", t(&input)), ("weight", t(&weight))];
    let general = schema.name == "convolution";
    if general || draw.random.one_in(2) {
        let bias = if draw.random.one_in(2) && axes < 3 {
            t("c2")
        } else {
            RawArgument::None
        };
        given.push(("bias", bias));
    }
    let full = general || draw.random.one_in(2);
    if full && schema.overload != "padding" {
        given.extend([
            ("stride", numbers(draw, axes, &[1, 1, 2])),
            ("padding", numbers(draw, axes, &[0, 1])),
            ("dilation", numbers(draw, axes, &[1, 1, 2])),
            ("groups", i(*draw.random.pick(&[1, 1, 1, 2]))),
        ]);
    }
    if schema.overload == "padding" {
        let mode = *draw.random.pick(&["same", "valid"]);
        given.push(("padding", RawArgument::Str(mode.into())));
    }
    if general {
        let transposed = draw.random.one_in(2);
        given.push(("transposed", flag(transposed)));
    }
    if general || (schema.name.starts_with("conv_transpose") && draw.random.one_in(3)) {
        given.push(("output_padding", numbers(draw, axes, &[0, 0, 1])));
    }
    given
}

fn pool(draw: &mut Draw<'_>, schema: &Schema, axes: usize) -> Vec<(&'static str, RawArgument)> {
    let mut given = vec![
        ("self", image(draw, axes)),
        ("kernel_size", numbers(draw, axes, &[1, 2, 2])),
    ];
    if draw.random.one_in(2) {
        given.push(("stride", numbers(draw, axes, &[1, 2])));
    }
    if draw.random.one_in(3) {
        given.push(("padding", numbers(draw, axes, &[0, 1])));
    }
    if draw.random.one_in(2) {
        let ceil = draw.random.one_in(2);
        given.push(("ceil_mode", flag(ceil)));
    }
    if schema.name.starts_with("max") && draw.random.one_in(3) {
        given.push(("dilation", numbers(draw, axes, &[1, 2])));
    }
    given
}

fn upsample(draw: &mut Draw<'_>, schema: &Schema, axes: usize) -> Vec<(&'static str, RawArgument)> {
    let value = image(draw, axes);
    let by_size = draw.random.one_in(2);
    let size = if by_size {
        numbers(draw, axes, &[1, 2, 3, 5])
    } else {
        RawArgument::None
    };
    let factor = *draw.random.pick(&[2.0, 1.5, 0.5]);
    let factors = if by_size {
        RawArgument::None
    } else {
        RawArgument::Floats(vec![factor; axes])
    };
    let mut given = vec![
        ("input", value),
        ("output_size", size),
        ("scale_factors", factors),
    ];
    if !schema.name.contains("nearest") {
        let corners = draw.random.one_in(2);
        given.push(("align_corners", flag(corners)));
    }
    given
}

fn pad(draw: &mut Draw<'_>, name: &str) -> Vec<(&'static str, RawArgument)> {
    let axes = 1 + draw.random.below(2);
    let value = image(draw, axes);
    let pads: Vec<i64> = (0..2 * axes)
        .map(|_| *draw.random.pick(&[0, 1, 1, 2, -1]))
        .collect();
    let mut given = vec![("self", value), ("pad", ints(&pads))];
    if name == "pad" && draw.random.one_in(2) {
        let mode = *draw
            .random
            .pick(&["reflect", "replicate", "circular", "constant"]);
        given.push(("mode", RawArgument::Str(mode.into())));
        let pads: Vec<i64> = (0..2 * axes).map(|_| *draw.random.pick(&[0, 1])).collect();
        given[1].1 = ints(&pads);
    }
    given
}

fn norm(draw: &mut Draw<'_>, name: &str) -> Vec<(&'static str, RawArgument)> {
    let value = draw.like_first(|found| {
        found.dtype.is_float() && found.shape.len() >= 3 && found.shape[1] == Extent::Fixed(2)
    });
    let mut given = vec![("input", t(&value))];
    let affine = |draw: &mut Draw<'_>| {
        if draw.random.one_in(2) {
            t("c2")
        } else {
            RawArgument::None
        }
    };
    given.push(("weight", affine(draw)));
    given.push(("bias", affine(draw)));
    if name == "group_norm" {
        given.push(("num_groups", i(*draw.random.pick(&[1, 2, 2, 3]))));
        return given;
    }
    let fixed = name == "batch_norm";
    let statistic = || if fixed { t("c2") } else { RawArgument::None };
    given.extend([
        ("running_mean", statistic()),
        ("running_var", statistic()),
        (
            if fixed { "training" } else { "use_input_stats" },
            flag(fixed == draw.random.one_in(8)),
        ),
        ("momentum", f(0.1)),
        ("eps", f(1e-5)),
        ("cudnn_enabled", flag(true)),
    ]);
    given
}

/// Repetitions and turns, mostly of axes of the sample.
fn places(draw: &mut Draw<'_>, name: &str) -> Vec<(&'static str, RawArgument)> {
    let value = draw.like_first(|_| true);
    let rank = draw
        .values
        .iter()
        .find(|(found, _)| *found == value)
        .map_or(0, |(_, found)| found.shape.len());
    let dim = if draw.random.one_in(4) {
        draw.random.dim()
    } else {
        rank.max(1) as i64 - 1
    };
    let mut given = vec![("self", t(&value))];
    match name {
        "repeat" => {
            let added = usize::from(draw.random.one_in(3));
            let mut repeats: Vec<RawSize> = (0..rank + added)
                .map(|_| RawSize::Int(*draw.random.pick(&[1, 1, 1, 2])))
                .collect();
            if draw.random.one_in(3) && !repeats.is_empty() {
                repeats[0] = draw.random.pick(draw.sizes).clone();
            }
            given.push(("repeats", RawArgument::Sizes(repeats)));
        }
        "repeat_interleave" => {
            given.extend([("repeats", i(*draw.random.pick(&[1, 2, 3]))), ("dim", i(dim))]);
        }
        "flip" => given.push(("dims", ints(&[dim]))),
        _ => given.extend([
            ("shifts", ints(&[*draw.random.pick(&[-1, 1, 2])])),
            (
                "dims",
                if draw.random.one_in(6) {
                    ints(&[])
                } else {
                    ints(&[dim])
                },
            ),
        ]),
    }
    given
}
