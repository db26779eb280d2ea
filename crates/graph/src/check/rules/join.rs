//! cat, stack, broadcast_tensors: joins within a sample.

use super::super::broadcast::{broadcast, normalise_dim, per_sample};
use super::super::call::{Call, batch_axis, is_trainable};
use super::super::facts::{Output, Typed};
use super::super::premise::{Premise, require};
use super::super::refusal::Objection;
use super::Outcome;
use crate::display;
use crate::typed::{Dependence, Extent, ValueType};

/// cat(tensors, dim) along an axis of the sample.
pub(in super::super) fn cat(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let tensors = call.tensors("tensors")?;
    let first = tensors[0];
    let axis = normalise_dim(call.int("dim")?, first.value_type.shape.len())?;
    let along_batch = tensors
        .iter()
        .any(|tensor| batch_axis(&tensor.value_type).is_some_and(|(batch, _)| batch == axis));
    require(Premise::JoinsWithinSample, !along_batch, || {
        let reason = "it joins along the batch axis: a result row's position no longer tells its sample";
        (
            reason.into(),
            "join along an axis of the sample, e.g. dim=1".into(),
        )
    })?;
    let others = |value_type: &ValueType| {
        let mut shape = value_type.shape.clone();
        if axis < shape.len() {
            shape.remove(axis);
        }
        shape
    };
    let same = |tensor: &&Typed| {
        tensor.value_type.dtype == first.value_type.dtype
            && tensor.value_type.shape.len() == first.value_type.shape.len()
            && (along_batch || tensor.value_type.dependence == first.value_type.dependence)
            && others(&tensor.value_type) == others(&first.value_type)
    };
    if !tensors.iter().all(same) {
        return Err(unequal(&tensors));
    }
    let mut value_type = first.value_type.clone();
    let mut sizes = tensors.iter().map(|tensor| tensor.value_type.shape[axis]);
    let total = sizes.try_fold(0u64, |total, extent| match extent {
        Extent::Fixed(size) | Extent::Batch(size) => total.checked_add(size),
    });
    let total = total.ok_or_else(|| Objection::plain("the joined axis is too long", "join less"))?;
    value_type.shape[axis] = if along_batch {
        Extent::Batch(total)
    } else {
        Extent::Fixed(total)
    };
    if along_batch {
        value_type.dependence = per_sample(axis);
    }
    Ok(Output::new(value_type, call.any_requires_grad())
        .bounded(union(&tensors))
        .into())
}

/// stack(tensors, dim): a new axis of the sample.
pub(in super::super) fn stack(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let tensors = call.tensors("tensors")?;
    let first = tensors[0];
    let axis = normalise_dim(call.int("dim")?, first.value_type.shape.len() + 1)?;
    if !tensors.iter().all(|tensor| tensor.value_type == first.value_type) {
        return Err(unequal(&tensors));
    }
    let mut shape = first.value_type.shape.clone();
    shape.insert(axis, Extent::Fixed(tensors.len() as u64));
    let batch = batch_axis(&first.value_type).map(|(batch, _)| if axis <= batch { batch + 1 } else { batch });
    let dependence = batch.map_or(Dependence::Shared, per_sample);
    let value_type = ValueType {
        dependence,
        shape,
        dtype: first.value_type.dtype,
    };
    Ok(Output::new(value_type, call.any_requires_grad())
        .bounded(union(&tensors))
        .into())
}

/// broadcast_tensors: each operand in the common shape.
pub(in super::super) fn broadcast_tensors(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let tensors = call.tensors("tensors")?;
    let (dependence, shape) = broadcast(&tensors)?;
    let outputs = tensors.iter().map(|tensor| {
        let value_type = ValueType {
            dependence,
            shape: shape.clone(),
            dtype: tensor.value_type.dtype,
        };
        if value_type == tensor.value_type && !is_trainable(tensor) {
            return Output::rearranged(tensor, value_type, None);
        }
        // Each output depends on its own operand.
        let requires_grad = tensor.requires_grad || (is_trainable(tensor) && value_type.dtype.is_float());
        Output::new(value_type, requires_grad).bounded(tensor.facts.bounds)
    });
    Ok(Outcome {
        outputs: outputs.collect(),
        tap: None,
    })
}

fn union(tensors: &[&Typed]) -> Option<(i64, i64)> {
    tensors
        .iter()
        .map(|tensor| tensor.facts.bounds)
        .reduce(|all, next| {
            let ((low, high), (least, greatest)) = all.zip(next)?;
            Some((low.min(least), high.max(greatest)))
        })?
}

fn unequal(tensors: &[&Typed]) -> Objection {
    let types: Vec<_> = tensors
        .iter()
        .map(|tensor| display::ty(&tensor.value_type))
        .collect();
    Objection::plain(
        format!("{} cannot be joined", types.join(", ")),
        "give equal shapes, dtypes and batch axes",
    )
}
