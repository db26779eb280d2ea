//! What holds for every result, whatever its operator: extents, parameters (G2), and the loss itself.

use super::broadcast::product;
use super::call::{self, Call};
use super::facts::{Output, Typed};
use super::premise::{self, Premise, require};
use super::refusal::Objection;
use crate::typed::{Dependence, Extent, Tap, ValueId, ValueType};

/// Most axes of a value; far below what [`Dependence::PerSample`] can number.
const MAX_RANK: usize = 16;

/// Most elements of a value: of a record's share where it is per sample. Far more than any machine holds, and so few that
/// the trainer's products with any physical batch size stay below 2^63.
const MAX_ELEMENTS: u64 = 1 << 40;

/// The result is one floating loss per sample, and something trains it.
pub(super) fn judge_loss(loss: &Typed) -> Result<(), Objection> {
    let ValueType {
        dependence,
        shape,
        dtype,
    } = &loss.value_type;
    let per_sample =
        *dependence == Dependence::PerSample { axis: 0 } && shape.as_slice() == [Extent::Batch(1)];
    require(Premise::LossPerSample, per_sample && dtype.is_float(), || {
        let reason = format!(
            "the result has type {}; it must be one floating loss per sample, f32[B]",
            crate::display::ty(&loss.value_type)
        );
        (
            reason,
            "reduce within each sample only (reduction=\"none\", then .mean(dim=1) over what is left)".into(),
        )
    })?;
    if loss.requires_grad {
        return Ok(());
    }
    Err(Objection::plain(
        "no trainable parameter reaches the loss",
        "set requires_grad on what is to be trained",
    ))
}

/// The scores of a sample are its own, floating: one number, or one per class.
pub(super) fn judge_scores(scores: &Typed) -> Result<(), Objection> {
    let ValueType {
        dependence,
        shape,
        dtype,
    } = &scores.value_type;
    let per_sample = *dependence == Dependence::PerSample { axis: 0 }
        && matches!(
            shape.as_slice(),
            [Extent::Batch(1)] | [Extent::Batch(1), Extent::Fixed(_)]
        );
    require(Premise::LossPerSample, per_sample && dtype.is_float(), || {
        let reason = format!(
            "the scores have type {}; they must be floating, per sample: f32[B, classes], or f32[B] for two classes",
            crate::display::ty(&scores.value_type)
        );
        (
            reason,
            "return the model's logits as its first result, one row per sample".into(),
        )
    })
}

/// The label of a sample is its own: an integer or bool.
pub(super) fn judge_label(label: &Typed) -> Result<(), Objection> {
    let ValueType {
        dependence,
        shape,
        dtype,
    } = &label.value_type;
    let per_sample =
        *dependence == Dependence::PerSample { axis: 0 } && shape.as_slice() == [Extent::Batch(1)];
    require(Premise::LossPerSample, per_sample && !dtype.is_float(), || {
        let reason = format!(
            "the label has type {}; it must be one integer or bool per sample, i64[B]",
            crate::display::ty(&label.value_type)
        );
        (
            reason,
            "return the label column (or a class index computed from it) as the second result".into(),
        )
    })
}

/// Rule G2: where a trainable parameter, or a function of some, meets per-sample data, there is a tap. Functions of
/// parameters among themselves are Shared; the trainer pulls gradients back through them.
pub(super) fn check_parameters(
    call: &Call<'_>,
    outputs: &[Output],
    tap: Option<&Tap>,
) -> Result<(), Objection> {
    let tapped: Vec<ValueId> = tap
        .map(Tap::parameters)
        .unwrap_or_default()
        .iter()
        .map(|tapped| tapped.value)
        .collect();
    let untapped = call
        .tensor_ids()
        .into_iter()
        .any(|id| call::is_trainable(call.value(id)) && !tapped.contains(&id));
    let shared = |output: &Output| output.value_type.dependence == Dependence::Shared;
    if untapped
        && outputs
            .iter()
            .any(|output| output.requires_grad && !shared(output))
    {
        require(Premise::ParametersAreTapped, false, || {
            let reason =
                "a trainable parameter meets per-sample data where no per-sample gradient rule exists";
            let remedy = "use linear, matmul with the parameter on the right, layer_norm, or broadcast add, sub or mul \
                          with it; or freeze it with requires_grad_(False)";
            (reason.into(), remedy.into())
        })?;
    }
    Ok(())
}

/// No extent may be zero, no rank above [`MAX_RANK`], no more elements than [`MAX_ELEMENTS`], and B appears on the batch axis only (rule T1).
pub(super) fn check_extents(value_type: &ValueType) -> Result<(), Objection> {
    if value_type
        .shape
        .iter()
        .any(|extent| matches!(extent, Extent::Fixed(0) | Extent::Batch(0)))
    {
        return Err(Objection::plain(
            "the result is empty",
            "remove it; tensors without elements have no rule",
        ));
    }
    if value_type.shape.len() > MAX_RANK {
        let reason = format!(
            "the result has {} axes, more than {MAX_RANK}",
            value_type.shape.len()
        );
        return Err(Objection::plain(reason, "merge axes"));
    }
    if product(&value_type.shape).is_none_or(|elements| elements > MAX_ELEMENTS) {
        let reason = format!(
            "the result {} has more than 2^40 elements{}",
            crate::display::ty(value_type),
            if value_type.dependence == Dependence::Shared {
                ""
            } else {
                " a record"
            }
        );
        return Err(Objection::plain(reason, "use smaller sizes: no machine holds it"));
    }
    let batch_axes = value_type
        .shape
        .iter()
        .filter(|extent| matches!(extent, Extent::Batch(_)))
        .count();
    let expected = usize::from(value_type.dependence != Dependence::Shared);
    require(
        Premise::OneBatchAxis,
        batch_axes == expected || premise::is_dropped(Premise::BatchAxesAligned),
        || {
            let reason = format!(
                "the result {} would carry the batch size on {batch_axes} axes",
                crate::display::ty(value_type)
            );
            (
                reason,
                "keep one batch axis; samples must not be combined with one another".into(),
            )
        },
    )
}
