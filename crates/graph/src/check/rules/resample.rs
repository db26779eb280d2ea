//! Other resolutions of a sample: upsampling, padding, pixel shuffling.

use super::super::call::{Call, batch_axis};
use super::super::facts::{Output, Typed};
use super::super::refusal::Objection;
use super::Outcome;
use super::elementwise::require_float;
use super::reduce::require_within_sample;
use super::reshape::require_untouched;
use super::spatial::{named_axes, require_leading_batch, required};
use crate::typed::{Argument, Extent, ValueType};

/// Largest extent that upsampling or padding may make.
const LARGEST: f64 = (1u64 << 32) as f64;

/// `upsample_nearest1d.vec` … `upsample_nearest3d.vec`.
pub(in super::super) fn nearest(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    upsample(call)
}

/// `upsample_linear1d.vec`, `upsample_bilinear2d.vec`, `upsample_trilinear3d.vec`, `upsample_bicubic2d.vec`.
pub(in super::super) fn interpolate(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    call.bool("align_corners")?;
    upsample(call)
}

fn upsample(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let input = call.tensor("input")?;
    require_float("input", input)?;
    let axes = named_axes(call);
    require_leading_batch(input, axes, "upsampling")?;
    let rank = input.value_type.shape.len();
    let spatial: Vec<usize> = (rank - axes..rank).collect();
    require_within_sample(input, &spatial)?;
    let factors = call.floats("scale_factors")?;
    let sizes = match factors {
        Some(factors) if call.ints("output_size")?.is_none() => scaled(input, axes, &factors)?,
        None => {
            let sizes = required(call, "output_size", axes, 1)?;
            call.replace(
                "output_size",
                Argument::Ints(sizes.iter().map(|size| *size as i64).collect()),
            );
            sizes
        }
        Some(_) => {
            return Err(Objection::plain(
                "both a size and a scale are given",
                "give size or scale_factor",
            ));
        }
    };
    let mut shape = input.value_type.shape.clone();
    for (axis, size) in spatial.into_iter().zip(sizes) {
        if let Extent::Fixed(_) = shape[axis] {
            shape[axis] = Extent::Fixed(size);
        }
    }
    let value_type = ValueType {
        shape,
        ..input.value_type.clone()
    };
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// As `compute_output_size` (aten/src/ATen/native/UpSample.cpp): the f64 product, cut off.
fn scaled(input: &Typed, axes: usize, factors: &[f64]) -> Result<Vec<u64>, Objection> {
    let wrong = || {
        Objection::plain(
            format!("a scale_factor of {factors:?} has no result here"),
            "give one positive factor for every spatial axis, with a result of at least one element",
        )
    };
    if factors.len() != axes {
        return Err(wrong());
    }
    let shape = &input.value_type.shape;
    let extents = &shape[shape.len() - axes..];
    extents
        .iter()
        .zip(factors)
        .map(|(extent, factor)| {
            let (Extent::Fixed(size) | Extent::Batch(size)) = extent;
            let scaled = *size as f64 * factor;
            if factor.is_finite() && *factor > 0.0 && (1.0..LARGEST).contains(&scaled) {
                Ok(scaled as u64)
            } else {
                Err(wrong())
            }
        })
        .collect()
}

/// `constant_pad_nd` and `pad`: pairs of (before, after), from the last axis backwards.
pub(in super::super) fn pad(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let pads = call.ints("pad")?.unwrap_or_default();
    let mode = if call.schema.name == "pad" {
        call.number("value")?;
        call.string("mode")?.to_owned()
    } else {
        call.number("value")?;
        "constant".to_owned()
    };
    let rank = value.value_type.shape.len();
    if pads.len() % 2 != 0 || pads.len() / 2 > rank {
        return Err(Objection::plain(
            format!("{} numbers do not pad {rank} axes", pads.len()),
            "give a pair for every padded axis, the last axis first",
        ));
    }
    let axes = pads.len() / 2;
    if mode != "constant" {
        require_mirrorable(value, &mode, axes)?;
    }
    let mut shape = value.value_type.shape.clone();
    for (place, pair) in pads.chunks_exact(2).enumerate() {
        let axis = rank - 1 - place;
        if pair == [0, 0] {
            continue;
        }
        require_untouched(value, &[axis], "padding it makes rows that belong to no sample")?;
        let size = match shape[axis] {
            Extent::Fixed(size) | Extent::Batch(size) => size,
        };
        let padded = padded(size, pair, &mode)?;
        // Only in a rule mutant is the batch padded.
        if let Extent::Fixed(_) = shape[axis] {
            shape[axis] = Extent::Fixed(padded);
        }
    }
    call.replace("pad", Argument::Ints(pads));
    let value_type = ValueType {
        shape,
        ..value.value_type.clone()
    };
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// Modes that repeat the sample's own elements: libtorch knows them for 1 to 3 axes after a channel axis.
fn require_mirrorable(value: &Typed, mode: &str, axes: usize) -> Result<(), Objection> {
    if !["reflect", "replicate", "circular"].contains(&mode) {
        return Err(Objection::denied(
            format!("mode={mode:?} has no rule"),
            "use constant, reflect, replicate or circular",
        ));
    }
    require_float("self", value)?;
    let rank = value.value_type.shape.len();
    if (1..=3).contains(&axes) && (rank == axes + 1 || rank == axes + 2) {
        return require_within_sample(value, &(rank - axes..rank).collect::<Vec<_>>());
    }
    let reason = format!("mode={mode:?} does not pad {axes} of {rank} axes");
    Err(Objection::plain(reason, "pad the last axes of [B, channels, ..]"))
}

fn padded(size: u64, pair: &[i64], mode: &str) -> Result<u64, Objection> {
    let wrong = || {
        Objection::plain(
            format!("padding {size} elements by {pair:?} ({mode}) has no result"),
            "reflect pads by less than the size, circular by at most it, replicate and circular never crop",
        )
    };
    let most = match mode {
        "constant" => LARGEST as i64,
        "replicate" => 1 << 16,
        "reflect" => i64::try_from(size).map_err(|_| wrong())? - 1,
        _ => i64::try_from(size).map_err(|_| wrong())?,
    };
    let least = if mode == "constant" { -LARGEST as i64 } else { 0 };
    if pair.iter().any(|pad| !(least..=most).contains(pad)) {
        return Err(wrong());
    }
    let padded = i128::from(size) + i128::from(pair[0]) + i128::from(pair[1]);
    // A crop from one side may not reach beyond the axis.
    let crops_inside = pair.iter().all(|pad| i128::from(*pad) + i128::from(size) > 0);
    u64::try_from(padded)
        .ok()
        .filter(|padded| *padded > 0 && crops_inside)
        .ok_or_else(wrong)
}

/// `pixel_shuffle`: `[.., C·r², H, W]` → `[.., C, H·r, W·r]`, and `pixel_unshuffle` back.
pub(in super::super) fn pixel_shuffle(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let down = call.schema.name == "pixel_unshuffle";
    let factor = call.int(if down {
        "downscale_factor"
    } else {
        "upscale_factor"
    })?;
    let rank = value.value_type.shape.len();
    if rank < 3 || !(1..=1 << 16).contains(&factor) {
        return Err(Objection::plain(
            "it needs [.., channels, height, width] and a factor from 1 to 2^16",
            "check the shape",
        ));
    }
    require_within_sample(value, &[rank - 3, rank - 2, rank - 1])?;
    let mut shape = value.value_type.shape.clone();
    if batch_axis(&value.value_type).is_none_or(|(axis, _)| axis < rank - 3) {
        let fixed = |extent: &Extent| match extent {
            Extent::Fixed(size) | Extent::Batch(size) => *size,
        };
        let factor = factor.unsigned_abs();
        let [channels, height, width] = [&shape[rank - 3], &shape[rank - 2], &shape[rank - 1]].map(fixed);
        let shuffled = shuffled([channels, height, width], factor, down).ok_or_else(|| {
            Objection::plain(
                "the factor does not divide the channels or the image",
                "use channels divisible by its square, or sides divisible by it",
            )
        })?;
        for (extent, size) in shape[rank - 3..].iter_mut().zip(shuffled) {
            *extent = Extent::Fixed(size);
        }
    }
    let value_type = ValueType {
        shape,
        ..value.value_type.clone()
    };
    Ok(Output {
        bounds: value.facts.bounds,
        ..Output::new(value_type, call.any_requires_grad())
    }
    .into())
}

fn shuffled([channels, height, width]: [u64; 3], factor: u64, down: bool) -> Option<[u64; 3]> {
    let square = factor.checked_mul(factor)?;
    if down {
        let divides = height.is_multiple_of(factor) && width.is_multiple_of(factor);
        divides.then_some([channels.checked_mul(square)?, height / factor, width / factor])
    } else {
        let divides = channels.is_multiple_of(square);
        divides.then_some([
            channels / square,
            height.checked_mul(factor)?,
            width.checked_mul(factor)?,
        ])
    }
}
