//! scaled_dot_product_attention: queries, keys and values of one sample only (rules T3, T4, T7).
//!
//! libtorch's flash kernel on the CPU reads out of bounds when keys and values differ in length, so the shapes are
//! judged here in full, and again by the trainer before it calls.

use super::super::broadcast::{broadcast, normalise_dim, per_sample};
use super::super::call::{Call, batch_axis};
use super::super::facts::{Output, Typed};
use super::super::premise::{Premise, require};
use super::super::refusal::Objection;
use super::Outcome;
use super::contraction::require_same_dtype;
use crate::display;
use crate::dtype::DType;
use crate::typed::{Dependence, Extent, ValueType};

/// `softmax(query·keyᵀ·scale + mask)·value` over the last two axes, `[.., length, width]`.
pub(in super::super) fn scaled_dot_product(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let operands = [call.tensor("query")?, call.tensor("key")?, call.tensor("value")?];
    let mask = call.optional_tensor("attn_mask")?;
    let (dropout, causal) = (call.float("dropout_p")?, call.bool("is_causal")?);
    call.number("scale")?;
    if call.bool("enable_gqa")? {
        return Err(Objection::denied(
            "grouped queries (enable_gqa) have no rule",
            "repeat keys and values to the number of query heads, and leave enable_gqa out",
        ));
    }
    for operand in operands {
        require_within_sample(operand)?;
    }
    require_same_dtype(&operands.map(Some))?;
    let (dependence, leading) = leading(&operands)?;
    // Only in a rule mutant is the batch the queries' length, and then the result's.
    let length = operands[0].value_type.shape.len() - 2;
    let dependence = match batch_axis(&operands[0].value_type) {
        Some((axis, _)) if axis == length => per_sample(axis),
        _ => dependence,
    };
    let [query, key, value] = operands.map(matrix);
    if query.1 != key.1 || key.0 != value.0 {
        let reason = format!(
            "query {}, key {} and value {} do not fit: query and key need one width, key and value one length",
            display::ty(&operands[0].value_type),
            display::ty(&operands[1].value_type),
            display::ty(&operands[2].value_type)
        );
        return Err(Objection::plain(
            reason,
            "give [.., length, width] tensors that do",
        ));
    }
    if mask.is_some() && causal {
        return Err(Objection::plain(
            "attn_mask and is_causal are both given",
            "add the causal mask to attn_mask, or leave attn_mask out",
        ));
    }
    require_dropout(dependence, dropout)?;
    let weights = ValueType {
        dependence,
        shape: [&leading[..], &[query.0, key.0]].concat(),
        dtype: operands[0].value_type.dtype,
    };
    mask.map_or(Ok(()), |mask| require_mask(mask, operands[0], &weights))?;
    let value_type = ValueType {
        shape: [&leading[..], &[query.0, value.1]].concat(),
        ..weights
    };
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// `(length, width)`.
fn matrix(operand: &Typed) -> (Extent, Extent) {
    let shape = &operand.value_type.shape;
    (shape[shape.len() - 2], shape[shape.len() - 1])
}

/// At least two axes, and the batch is neither the length nor the width.
fn require_within_sample(operand: &Typed) -> Result<(), Objection> {
    let rank = operand.value_type.shape.len();
    normalise_dim(-2, rank)?;
    let attends = batch_axis(&operand.value_type).is_some_and(|(axis, _)| axis + 2 >= rank);
    require(Premise::ContractionWithinSample, !attends, || {
        let reason = format!(
            "the samples would attend to one another: in {} the batch axis is the sequence or its width",
            display::ty(&operand.value_type)
        );
        (
            reason,
            "give [batch, heads, length, width]; nn.MultiheadAttention needs batch_first=True".into(),
        )
    })
}

/// Axes before length and width: the same in all three.
fn leading(operands: &[&Typed; 3]) -> Result<(Dependence, Vec<Extent>), Objection> {
    let only_leading = operands.map(|operand| {
        let mut one = operand.clone();
        let rank = one.value_type.shape.len();
        for axis in [rank - 2, rank - 1] {
            one.value_type.shape[axis] = Extent::Fixed(1);
        }
        if batch_axis(&one.value_type).is_none() {
            one.value_type.dependence = Dependence::Shared;
        }
        one
    });
    let (dependence, mut shape) = broadcast(&only_leading.each_ref())?;
    if only_leading
        .iter()
        .any(|operand| operand.value_type.shape != shape)
    {
        return Err(Objection::plain(
            "query, key and value differ in the axes before length and width",
            "expand them to one shape first",
        ));
    }
    shape.truncate(shape.len() - 2);
    Ok((dependence, shape))
}

/// Dropped weights are drawn for every element of every sample, never shared (rule T3).
fn require_dropout(dependence: Dependence, dropout: f64) -> Result<(), Objection> {
    if !(0.0..1.0).contains(&dropout) {
        return Err(Objection::plain(
            "the dropout probability is not in [0, 1)",
            "use one that is",
        ));
    }
    require(
        Premise::RandomnessPerSample,
        dropout == 0.0 || dependence != Dependence::Shared,
        || {
            let reason = "it draws one random value for all samples of a micro-batch: their gradients then vary together";
            (
                reason.into(),
                "apply dropout to per-sample activations, not to parameters or constants".into(),
            )
        },
    )
}

/// Bool, or of the query's dtype; at least a matrix; broadcasts to the attention weights and no further.
fn require_mask(mask: &Typed, query: &Typed, weights: &ValueType) -> Result<(), Objection> {
    let scores = Typed {
        value_type: weights.clone(),
        ..query.clone()
    };
    let (_, shape) = broadcast(&[mask, &scores])?;
    let dtype = mask.value_type.dtype;
    if shape == weights.shape
        && mask.value_type.shape.len() >= 2
        && (dtype == DType::Bool || dtype == weights.dtype)
    {
        return Ok(());
    }
    let reason = format!(
        "the mask {} does not broadcast to the attention weights {}",
        display::ty(&mask.value_type),
        display::ty(weights)
    );
    Err(Objection::plain(
        reason,
        "give a bool mask, or one of the query's dtype, of shape [.., length, key length]",
    ))
}
