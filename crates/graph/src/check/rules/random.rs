//! Dropout: random values are drawn for every element of every sample, never shared (rule T3).

use super::super::call::{Call, Given, batch_axis};
use super::super::facts::{Output, Typed};
use super::super::premise::{Premise, require};
use super::super::refusal::Objection;
use super::Outcome;
use super::elementwise::require_float;
use crate::dtype::DType;
use crate::typed::{Dependence, ValueType};

/// dropout(input, p, train).
pub(in super::super) fn dropout(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let input = call.tensor("input")?;
    let (p, train) = (call.float("p")?, call.bool("train")?);
    judge(input, p, train)?;
    Ok(Output::new(input.value_type.clone(), call.any_requires_grad()).into())
}

/// native_dropout(input, p, train): result and mask.
pub(in super::super) fn native_dropout(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let input = call.tensor("input")?;
    // ATen takes a `train` of None as true.
    let (p, train) = (
        call.float("p")?,
        *call.read("train") == Given::None || call.bool("train")?,
    );
    judge(input, p, train)?;
    let mask = ValueType {
        dtype: DType::Bool,
        ..input.value_type.clone()
    };
    let outputs = vec![
        Output::new(input.value_type.clone(), call.any_requires_grad()),
        Output::constant(mask),
    ];
    Ok(Outcome { outputs, tap: None })
}

/// feature_dropout(input[B, channels, ..], p, train): one draw for every channel of every sample.
pub(in super::super) fn feature_dropout(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let input = call.tensor("input")?;
    let (p, train) = (call.float("p")?, call.bool("train")?);
    judge(input, p, train)?;
    if input.value_type.shape.len() < 2 {
        return Err(Objection::plain(
            "feature dropout needs a channel axis",
            "use dropout",
        ));
    }
    let in_front = batch_axis(&input.value_type).is_none_or(|(axis, _)| axis < 2);
    require(Premise::RandomnessPerSample, in_front || !train, || {
        let reason =
            "it draws one value for all of the batch: axes 0 and 1 are drawn apart, and the batch is neither";
        (reason.into(), "move the batch to axis 0".into())
    })?;
    Ok(Output::new(input.value_type.clone(), call.any_requires_grad()).into())
}

fn judge(input: &Typed, p: f64, train: bool) -> Result<(), Objection> {
    require_float("input", input)?;
    if !(0.0..=1.0).contains(&p) {
        return Err(Objection::plain(
            "the dropout probability is not in [0, 1]",
            "use one that is",
        ));
    }
    let per_sample = matches!(input.value_type.dependence, Dependence::PerSample { .. });
    require(Premise::RandomnessPerSample, per_sample || !train, || {
        let reason =
            "it draws one random value for all samples of a micro-batch: their gradients then vary together";
        (
            reason.into(),
            "apply dropout to per-sample activations, not to parameters or constants".into(),
        )
    })
}
