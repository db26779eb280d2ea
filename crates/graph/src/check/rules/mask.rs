//! tril, triu: causal masks. Which elements stay depends on their place in the last two axes.

use super::super::call::{Call, batch_axis};
use super::super::facts::Output;
use super::super::premise::{Premise, require};
use super::super::refusal::Objection;
use super::Outcome;

/// tril(self, diagonal), triu(self, diagonal) on matrices of the sample or of constants.
pub(in super::super) fn triangle(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    call.int("diagonal")?;
    let rank = value.value_type.shape.len();
    if rank < 2 {
        return Err(Objection::plain(
            "the value is not a matrix",
            "give at least two axes",
        ));
    }
    let within = batch_axis(&value.value_type).is_none_or(|(axis, _)| axis + 2 < rank);
    require(Premise::DimsExcludeBatch, within, || {
        let reason = "the triangle is cut along the batch axis: what stays of a sample depends on its place in the batch";
        (
            reason.into(),
            "keep the batch left of the last two axes, as in [B, rows, columns]".into(),
        )
    })?;
    Ok(Output::new(value.value_type.clone(), call.any_requires_grad()).into())
}
