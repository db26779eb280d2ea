//! Losses: per sample, never reduced over the batch (rule T7: an omitted reduction means the mean).

use super::super::broadcast::{broadcast, per_sample, result_type};
use super::super::call::{Call, Operand, batch_axis};
use super::super::facts::{Output, Typed};
use super::super::premise::{Premise, require};
use super::super::refusal::Objection;
use super::Outcome;
use super::elementwise::require_float;
use super::index::require_range;
use crate::dtype::DType;
use crate::typed::{Dependence, Extent, ValueType};

/// mse, l1, smooth l1, huber, soft margin, kl, poisson: element-wise with broadcasting.
pub(in super::super) fn pointwise(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (first, target) = if call.schema.name == "poisson_nll_loss" {
        ("input", "target")
    } else {
        ("self", "target")
    };
    let (input, target) = (call.tensor(first)?, call.tensor(target)?);
    require_unreduced(call)?;
    match call.schema.name.as_str() {
        "smooth_l1_loss" => drop(call.float("beta")?),
        "huber_loss" => drop(call.float("delta")?),
        "kl_div" => drop(call.bool("log_target")?),
        "poisson_nll_loss" => drop((call.bool("log_input")?, call.bool("full")?, call.float("eps")?)),
        _ => {}
    }
    require_float(first, input)?;
    require_float("target", target)?;
    let (dependence, shape) = broadcast(&[input, target])?;
    let dtype = result_type(&[Operand::Tensor(input), Operand::Tensor(target)]);
    Ok(Output::new(
        ValueType {
            dependence,
            shape,
            dtype,
        },
        call.any_requires_grad(),
    )
    .into())
}

/// binary_cross_entropy_with_logits: target of the logits' shape; weights broadcast.
pub(in super::super) fn binary_cross_entropy(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (input, target) = (call.tensor("self")?, call.tensor("target")?);
    let weights = [
        call.optional_tensor("weight")?,
        call.optional_tensor("pos_weight")?,
    ];
    require_unreduced(call)?;
    let mut operands = vec![input, target];
    operands.extend(weights.into_iter().flatten());
    operands
        .iter()
        .try_for_each(|operand| require_float("every operand", operand))?;
    let (dependence, shape) = broadcast(&operands)?;
    if input.value_type.shape != target.value_type.shape || input.value_type.shape != shape {
        return Err(Objection::plain(
            "target and logits have different shapes",
            "make them equal, e.g. by .squeeze(-1)",
        ));
    }
    let operands: Vec<_> = operands.into_iter().map(Operand::Tensor).collect();
    let value_type = ValueType {
        dependence,
        shape,
        dtype: result_type(&operands),
    };
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// cross_entropy_loss with class indices, or with probabilities of the logits' shape.
pub(in super::super) fn cross_entropy(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (input, target) = (call.tensor("self")?, call.tensor("target")?);
    call.int("ignore_index")?;
    call.float("label_smoothing")?;
    if target.value_type.dtype.is_float() && target.value_type.shape == input.value_type.shape {
        return class_loss(call, input, target, false);
    }
    class_loss(call, input, target, true)
}

/// nll_loss with class indices.
pub(in super::super) fn nll(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (input, target) = (call.tensor("self")?, call.tensor("target")?);
    call.int("ignore_index")?;
    class_loss(call, input, target, true)
}

/// `input` is [B, C, ...]; the target [B, ...] of indices, or of the input's own shape.
fn class_loss(call: &Call<'_>, input: &Typed, target: &Typed, by_index: bool) -> Result<Outcome, Objection> {
    require_unreduced(call)?;
    require_float("self", input)?;
    require_class_weight(call, input)?;
    let ValueType {
        shape,
        dtype,
        dependence,
    } = &input.value_type;
    let batch = batch_axis(&input.value_type);
    require(
        Premise::DimsExcludeBatch,
        batch.is_none_or(|(axis, _)| axis == 0) && shape.len() >= 2,
        || {
            let reason = "the classes are axis 1 of logits [B, classes, ...]; here the loss would run over the batch axis";
            (reason.into(), "give logits of shape [B, classes]".into())
        },
    )?;
    let classes = shape.get(1).copied().unwrap_or(Extent::Fixed(1));
    let mut expected = shape.clone();
    if expected.len() >= 2 {
        expected.remove(1);
    } else {
        expected.clear();
    }
    require(
        Premise::BatchAxesAligned,
        target.value_type.dependence == *dependence,
        || {
            (
                "logits and target do not share the batch axis".into(),
                "give both with the batch as axis 0".into(),
            )
        },
    )?;
    if by_index {
        if target.value_type.dtype != DType::I64 || target.value_type.shape != expected {
            return Err(Objection::plain(
                "the target is not one int64 class per sample",
                "give labels of shape [B], int64",
            ));
        }
        require_range(target, classes, "label")?;
    }
    let kept = expected
        .iter()
        .position(|extent| matches!(extent, Extent::Batch(_)));
    let dependence = kept.map_or(Dependence::Shared, per_sample);
    let value_type = ValueType {
        dependence,
        shape: expected,
        dtype: *dtype,
    };
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// Class weights are a Shared row of the logits' dtype. Without reduction nothing is divided by their sum.
fn require_class_weight(call: &Call<'_>, input: &Typed) -> Result<(), Objection> {
    let Some(weight) = call.optional_tensor("weight")? else {
        return Ok(());
    };
    require(
        Premise::WeightIsShared,
        weight.value_type.dependence == Dependence::Shared,
        || {
            (
                "the class weights depend on the samples".into(),
                "use a constant row of class weights".into(),
            )
        },
    )?;
    let classes = input.value_type.shape.get(1).copied();
    let shared_row =
        weight.value_type.shape.first().copied() == classes && weight.value_type.shape.len() == 1;
    let fits = shared_row || weight.value_type.dependence != Dependence::Shared;
    if fits && weight.value_type.dtype == input.value_type.dtype {
        return Ok(());
    }
    Err(Objection::plain(
        "the class weights are not one number per class",
        "give a tensor of shape [classes]",
    ))
}

fn require_unreduced(call: &Call<'_>) -> Result<(), Objection> {
    let reduction = call.int("reduction")?;
    require(Premise::ReductionNone, reduction == 0, || {
        let how = if reduction == 1 { "mean" } else { "sum" };
        let reason = format!("reduction=\"{how}\" combines the losses of the whole batch");
        (
            reason,
            "give reduction=\"none\" (omitting it means the mean)".into(),
        )
    })
}
