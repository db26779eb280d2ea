//! Taps: where a trainable parameter meets per-sample data (rules G1, G2).

use super::super::call::{batch_axis, is_trainable, tapped};
use super::super::facts::Typed;
use super::super::premise::{Premise, require};
use super::super::refusal::Objection;
use crate::typed::{FloatBits, Tap, TappedParameter, ValueType};

/// What to tap when trainable parameters reach the Shared `operand`; None for anything else.
pub(super) fn parameter(operand: Option<&Typed>) -> Option<TappedParameter> {
    operand.filter(|operand| is_trainable(operand)).and_then(tapped)
}

/// A tapped node's data has the batch first and the parameter's dtype.
pub(super) fn require_tappable(
    data: &ValueType,
    parameters: &[&Option<TappedParameter>],
    operands: &[&Typed],
) -> Result<(), Objection> {
    if parameters.iter().all(|parameter| parameter.is_none()) {
        return Ok(());
    }
    require_batch_first(data)?;
    if operands
        .iter()
        .all(|operand| operand.value_type.dtype == data.dtype)
    {
        return Ok(());
    }
    Err(Objection::plain(
        "a trainable parameter meets data of another dtype",
        "convert the data with .to(dtype) first",
    ))
}

/// Taps see the batch on axis 0.
pub(super) fn require_batch_first(data: &ValueType) -> Result<(), Objection> {
    require(
        Premise::TapsAreBatchFirst,
        batch_axis(data).is_some_and(|(axis, _)| axis == 0),
        || {
            let reason = "a trainable parameter meets data whose batch axis is not the first";
            (
                reason.into(),
                "move the batch to axis 0 (transpose or permute) before using the parameter".into(),
            )
        },
    )
}

/// `data ± alpha·parameter`.
pub(super) fn add(parameter: TappedParameter, scale: f64) -> Tap {
    Tap::BroadcastAdd {
        parameter,
        scale: FloatBits::new(scale),
    }
}
