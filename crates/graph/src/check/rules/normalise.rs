//! layer_norm and rms_norm: statistics of trailing axes of one sample.

use super::super::call::{Call, as_float};
use super::super::facts::{Output, Typed};
use super::super::premise::{Premise, require};
use super::super::refusal::Objection;
use super::elementwise::require_float;
use super::reduce::require_within_sample;
use super::{Outcome, tap};
use crate::dtype::DType;
use crate::typed::{Argument, Dependence, Extent, FloatBits, Tap};

/// layer_norm and rms_norm over trailing axes of the sample.
pub(in super::super) fn trailing(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let input = call.tensor("input")?;
    require_float("input", input)?;
    let is_layer_norm = call.schema.name == "layer_norm";
    let items = call.items("normalized_shape")?;
    let rank = input.value_type.shape.len();
    if items.is_empty() || items.len() > rank {
        return Err(Objection::plain(
            "normalized_shape does not fit the input",
            "give the trailing sizes of the sample",
        ));
    }
    let axes: Vec<usize> = (rank - items.len()..rank).collect();
    require_within_sample(input, &axes)?;
    let trailing = &input.value_type.shape[rank - items.len()..];
    let normalized_shape: Vec<u64> = trailing
        .iter()
        .map(|extent| match extent {
            Extent::Fixed(size) | Extent::Batch(size) => *size,
        })
        .collect();
    let over_batch = trailing.iter().any(|extent| matches!(extent, Extent::Batch(_)));
    if !over_batch
        && call.ints("normalized_shape")?.is_none_or(|sizes| {
            !sizes
                .iter()
                .map(|size| *size as u64)
                .eq(normalized_shape.iter().copied())
        })
    {
        return Err(Objection::plain(
            "normalized_shape is not the input's trailing shape",
            "give the trailing sizes",
        ));
    }
    let weight = scale(call, "weight", input, trailing)?;
    let bias = if is_layer_norm {
        scale(call, "bias", input, trailing)?
    } else {
        None
    };
    let eps = if is_layer_norm {
        // A backend switch without meaning for values.
        call.bool("cudnn_enable")?;
        call.replace("cudnn_enable", Argument::Bool(false));
        call.float("eps")?
    } else {
        // ATen's default: the machine epsilon of the input's dtype.
        let default = if input.value_type.dtype == DType::F64 {
            f64::EPSILON
        } else {
            f64::from(f32::EPSILON)
        };
        call.number("eps")?.map_or(default, as_float)
    };
    let value_type = input.value_type.clone();
    let (weight_tap, bias_tap) = (tap::parameter(weight), tap::parameter(bias));
    let per_sample = value_type.dependence != Dependence::Shared;
    let tapped = per_sample && (weight_tap.is_some() || bias_tap.is_some());
    if tapped {
        tap::require_tappable(&value_type, &[&weight_tap, &bias_tap], &[])?;
    }
    let (input, eps) = (input.id, FloatBits::new(eps));
    let tap = match (tapped, is_layer_norm, weight_tap) {
        (true, true, weight) => Some(Tap::LayerNorm {
            input,
            normalized_shape,
            weight,
            bias: bias_tap,
            eps,
        }),
        (true, false, Some(weight)) => Some(Tap::RmsNorm {
            input,
            normalized_shape,
            weight,
            eps,
        }),
        _ => None,
    };
    Ok(Outcome {
        outputs: vec![Output::new(value_type, call.any_requires_grad())],
        tap,
    })
}

/// An optional scale or shift: Shared, of exactly this shape and the input's dtype.
pub(super) fn scale<'c>(
    call: &Call<'c>,
    name: &str,
    input: &Typed,
    shape: &[Extent],
) -> Result<Option<&'c Typed>, Objection> {
    let Some(scale) = call.optional_tensor(name)? else {
        return Ok(None);
    };
    require(
        Premise::WeightIsShared,
        scale.value_type.dependence == Dependence::Shared,
        || {
            (
                format!("the {name} of the normalisation depends on the samples"),
                "use a parameter or a constant".into(),
            )
        },
    )?;
    let fits = scale.value_type.shape == shape || scale.value_type.dependence != Dependence::Shared;
    if fits && scale.value_type.dtype == input.value_type.dtype {
        return Ok(Some(scale));
    }
    Err(Objection::plain(
        format!("the {name} does not have the normalised shape and dtype"),
        "make them equal",
    ))
}
