//! Normalisations and slopes with one number a channel: group_norm, instance_norm, batch_norm by fixed statistics, prelu.

use super::super::broadcast::product;
use super::super::call::{Call, batch_axis};
use super::super::facts::{Output, Typed};
use super::super::premise::{Premise, is_dropped, require};
use super::super::refusal::Objection;
use super::contraction::require_shared;
use super::elementwise::require_float;
use super::normalise::scale;
use super::spatial::require_leading_batch;
use super::{Outcome, tap};
use crate::typed::{Argument, Dependence, Extent, FloatBits, Tap, TappedParameter, ValueId};

/// `group_norm(input[B, C, ..], num_groups, weight[C]?, bias[C]?)`.
pub(in super::super) fn group_norm(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let input = call.tensor("input")?;
    let eps = call.float("eps")?;
    without_cudnn(call)?;
    let groups = call.int("num_groups")?;
    let channels = channels(input, "group_norm")?;
    let groups = u64::try_from(groups)
        .ok()
        .filter(|groups| *groups > 0 && channels.is_multiple_of(*groups))
        .ok_or_else(|| {
            Objection::plain(
                format!("{channels} channels do not divide into {groups} groups"),
                "choose a divisor of the channels",
            )
        })?;
    affine(call, input, channels, |input, weight, bias| Tap::GroupNorm {
        input,
        groups,
        weight,
        bias,
        eps: FloatBits::new(eps),
    })
}

/// `instance_norm(input[B, C, ..])` by each sample's own statistics: one group a channel.
pub(in super::super) fn instance_norm(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let input = call.tensor("input")?;
    let eps = call.float("eps")?;
    call.float("momentum")?;
    without_cudnn(call)?;
    let own = call.bool("use_input_stats")?
        && call.optional_tensor("running_mean")?.is_none()
        && call.optional_tensor("running_var")?.is_none();
    require(Premise::NoState, own, || {
        let reason = "instance_norm keeps running statistics: what one batch leaves there reaches the next";
        (
            reason.into(),
            "use InstanceNorm(track_running_stats=False); bastionai.fix(model) does it".into(),
        )
    })?;
    let channels = channels(input, "instance_norm")?;
    if input.value_type.shape.len() < 3 {
        return Err(Objection::plain(
            "instance_norm has nothing to average within one channel",
            "give an input of [B, channels, ..]",
        ));
    }
    affine(call, input, channels, |input, weight, bias| Tap::GroupNorm {
        input,
        groups: channels,
        weight,
        bias,
        eps: FloatBits::new(eps),
    })
}

/// `batch_norm(input[B, C, ..], running_mean[C], running_var[C], training=False)`: an affine map a channel.
pub(in super::super) fn batch_norm(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let input = call.tensor("input")?;
    let eps = call.float("eps")?;
    call.float("momentum")?;
    without_cudnn(call)?;
    let training = call.bool("training")?;
    require(Premise::DimsExcludeBatch, !training, || {
        let reason = "BatchNorm normalises with statistics of the whole batch: every sample's loss depends on the others";
        (
            reason.into(),
            "use GroupNorm or LayerNorm; bastionai.fix(model) replaces or freezes BatchNorm".into(),
        )
    })?;
    let channels = channels(input, "batch_norm")?;
    let (mean, variance) = (
        statistic(call, "running_mean", channels)?,
        statistic(call, "running_var", channels)?,
    );
    let ids = mean.zip(variance);
    if ids.is_none() && !training {
        return Err(Objection::plain(
            "batch_norm by fixed statistics has none",
            "give a running mean and variance",
        ));
    }
    let Some((mean, variance)) = ids else {
        // Only in a rule mutant: statistics of the batch.
        call.optional_tensor("weight")?;
        call.optional_tensor("bias")?;
        return Ok(Output::new(input.value_type.clone(), call.any_requires_grad()).into());
    };
    affine(call, input, channels, |input, weight, bias| {
        Tap::FrozenBatchNorm {
            input,
            mean,
            variance,
            weight,
            bias,
            eps: FloatBits::new(eps),
        }
    })
}

/// `prelu(self[B, C, ..], weight[1] or weight[C])`.
pub(in super::super) fn prelu(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (input, weight) = (call.tensor("self")?, call.tensor("weight")?);
    require_float("self", input)?;
    require_shared("slope", weight)?;
    let slopes = product(&weight.value_type.shape).unwrap_or(u64::MAX);
    let channel = input.value_type.shape.get(1);
    let one_each = channel.is_some_and(|channel| *channel == Extent::Fixed(slopes));
    let fits = weight.value_type.shape.len() <= 1 && (slopes == 1 || one_each);
    if !fits || weight.value_type.dtype != input.value_type.dtype {
        return Err(Objection::plain(
            "the slope has neither one element nor one per channel (axis 1), in the input's dtype",
            "use PReLU() or PReLU(channels)",
        ));
    }
    let weight = tap::parameter(Some(weight));
    let per_sample = input.value_type.dependence != Dependence::Shared;
    let tap = weight.filter(|_| per_sample);
    if tap.is_some() {
        require_leading_batch(
            input,
            input.value_type.shape.len().saturating_sub(2),
            "a trainable slope",
        )?;
        tap::require_tappable(&input.value_type, &[&tap], &[])?;
    }
    Ok(Outcome {
        outputs: vec![Output::new(input.value_type.clone(), call.any_requires_grad())],
        tap: tap.map(|weight| Tap::Prelu {
            input: input.id,
            weight,
        }),
    })
}

/// The channels of a floating `[B, C, ..]`; elsewhere statistics would span samples.
fn channels(input: &Typed, what: &str) -> Result<u64, Objection> {
    require_float("input", input)?;
    let leading = batch_axis(&input.value_type).is_none_or(|batch| batch == (0, 1));
    require(Premise::DimsExcludeBatch, leading, || {
        let reason =
            format!("{what} takes axis 0 as the batch, and here it is not: statistics would span samples");
        (reason, "move the batch to axis 0".into())
    })?;
    match input.value_type.shape.get(1) {
        Some(Extent::Fixed(channels)) => Ok(*channels),
        Some(Extent::Batch(inner)) if is_dropped(Premise::DimsExcludeBatch) => Ok(*inner),
        _ => Err(Objection::plain(
            "the input has no channel axis",
            "give an input of shape [B, channels, ...]",
        )),
    }
}

/// Whether cuDNN may be used says nothing about values; the engine decides.
fn without_cudnn(call: &mut Call<'_>) -> Result<(), Objection> {
    let name = "cudnn_enabled";
    call.bool(name)?;
    call.replace(name, Argument::Bool(false));
    Ok(())
}

/// A fixed statistic: Shared, `[C]`; None when it is not given.
fn statistic(call: &Call<'_>, name: &str, channels: u64) -> Result<Option<ValueId>, Objection> {
    let Some(value) = call.optional_tensor(name)? else {
        return Ok(None);
    };
    require_shared(name, value)?;
    let input = call.tensor("input")?;
    if value.value_type.shape == [Extent::Fixed(channels)] && value.value_type.dtype == input.value_type.dtype
    {
        return Ok(Some(value.id));
    }
    Err(Objection::plain(
        format!("{name} does not have one element per channel, of the input's dtype"),
        "give statistics of shape [channels]",
    ))
}

fn affine(
    call: &Call<'_>,
    input: &Typed,
    channels: u64,
    make: impl FnOnce(ValueId, Option<TappedParameter>, Option<TappedParameter>) -> Tap,
) -> Result<Outcome, Objection> {
    let per_channel = [Extent::Fixed(channels)];
    let (weight, bias) = (
        tap::parameter(scale(call, "weight", input, &per_channel)?),
        tap::parameter(scale(call, "bias", input, &per_channel)?),
    );
    let per_sample = input.value_type.dependence != Dependence::Shared;
    let tapped = per_sample && (weight.is_some() || bias.is_some());
    if tapped {
        tap::require_tappable(&input.value_type, &[&weight, &bias], &[])?;
    }
    Ok(Outcome {
        outputs: vec![Output::new(input.value_type.clone(), call.any_requires_grad())],
        tap: tapped.then(|| make(input.id, weight, bias)),
    })
}
