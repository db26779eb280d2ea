//! rand, randn, rand_like, randn_like: one draw for every element, and the batch axis is in their shape (rule T3), as
//! stochastic depth by rows (`rand([B, 1, 1]) < p`) and noise layers need.

use super::super::call::Call;
use super::super::premise::{Premise, require};
use super::super::refusal::Objection;
use super::{Outcome, factory};
use crate::dtype::DType;
use crate::typed::Dependence;

/// rand(size), randn(size): with B in the size.
pub(in super::super) fn sized(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let dtype = call.dtype("dtype")?.unwrap_or(DType::F32);
    per_sample_draw(factory::sized(call, dtype)?)
}

/// rand_like(self), randn_like(self): of per-sample data, whose values do not matter.
pub(in super::super) fn like(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    per_sample_draw(factory::like(call)?)
}

fn per_sample_draw(outcome: Outcome) -> Result<Outcome, Objection> {
    let drawn = &outcome.outputs[0].value_type;
    if !drawn.dtype.is_float() {
        let reason = format!("it draws {}, which is not floating", drawn.dtype.torch_name());
        return Err(Objection::plain(reason, "give it a floating dtype"));
    }
    let per_sample = matches!(drawn.dependence, Dependence::PerSample { .. });
    require(Premise::RandomnessPerSample, per_sample, || {
        let reason =
            "it draws one random value for all samples of a micro-batch: their gradients then vary together";
        (
            reason.into(),
            "draw for every sample, as in torch.rand(x.shape[0], 1), or use dropout".into(),
        )
    })?;
    Ok(outcome)
}
