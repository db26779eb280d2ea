//! layer_norm, rms_norm, group_norm: statistics of one sample only.

use super::super::call::{Call, batch_axis};
use super::super::facts::{Output, Typed};
use super::super::premise::{Premise, require};
use super::super::refusal::Objection;
use super::elementwise::require_float;
use super::reduce::require_within_sample;
use super::{Outcome, tap};
use crate::typed::{Argument, Dependence, Extent, FloatBits, Tap, ValueType};

/// layer_norm (tapped) and rms_norm over trailing axes of the sample.
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
        call.number("eps")?;
        0.0
    };
    let value_type = input.value_type.clone();
    let (weight_tap, bias_tap) = (tap::parameter(weight), tap::parameter(bias));
    let per_sample = value_type.dependence != Dependence::Shared;
    let tap = (is_layer_norm && per_sample && (weight_tap.is_some() || bias_tap.is_some())).then(|| {
        Tap::LayerNorm {
            input: input.id,
            normalized_shape,
            weight: weight_tap.clone(),
            bias: bias_tap.clone(),
            eps: FloatBits::new(eps),
        }
    });
    if tap.is_some() {
        tap::require_tappable(&value_type, &[&weight_tap, &bias_tap], &[])?;
    }
    Ok(Outcome {
        outputs: vec![Output::new(value_type, call.any_requires_grad())],
        tap,
    })
}

/// group_norm(input[N, C, ...], num_groups): frozen or no affine parameters.
pub(in super::super) fn group(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let input = call.tensor("input")?;
    require_float("input", input)?;
    call.float("eps")?;
    call.bool("cudnn_enabled")?;
    call.replace("cudnn_enabled", Argument::Bool(false));
    let groups = call.int("num_groups")?;
    let ValueType { shape, .. } = &input.value_type;
    let batch_first = batch_axis(&input.value_type).is_none_or(|batch| batch == (0, 1));
    require(Premise::DimsExcludeBatch, batch_first, || {
        let reason = "group_norm takes axis 0 as the batch, and here it is not: groups would span samples";
        (reason.into(), "move the batch to axis 0".into())
    })?;
    let Some(Extent::Fixed(channels)) = shape.get(1) else {
        return Err(Objection::plain(
            "the input has no channel axis",
            "give an input of shape [B, channels, ...]",
        ));
    };
    if u64::try_from(groups)
        .ok()
        .is_none_or(|groups| groups == 0 || channels % groups != 0)
    {
        return Err(Objection::plain(
            "the channels do not divide into the groups",
            "choose a divisor of the channels",
        ));
    }
    let per_channel = [Extent::Fixed(*channels)];
    let (weight, bias) = (
        scale(call, "weight", input, &per_channel)?,
        scale(call, "bias", input, &per_channel)?,
    );
    if [weight, bias]
        .into_iter()
        .flatten()
        .any(|scale| scale.requires_grad)
    {
        let reason = "group_norm has no per-sample gradient rule for its trainable scale";
        return Err(Objection::denied(
            reason,
            "use GroupNorm(affine=False) and multiply and add parameters, or LayerNorm",
        ));
    }
    Ok(Output::new(input.value_type.clone(), call.any_requires_grad()).into())
}

/// An optional scale or shift: Shared, of exactly this shape and the input's dtype.
fn scale<'c>(
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
