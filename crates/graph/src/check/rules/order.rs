//! cumsum, cumprod, sort, argsort, topk: along one axis of the sample (rules T1, T7).

use super::super::broadcast::normalise_dim;
use super::super::call::Call;
use super::super::facts::{Output, Typed};
use super::super::refusal::Objection;
use super::Outcome;
use super::reduce::require_within_sample;
use crate::dtype::DType;
use crate::typed::{Dependence, Extent, ValueType};

/// cumsum(self, dim, dtype) and cumprod.
pub(in super::super) fn cumulative(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    axis_within_sample(call, value)?;
    let own = value.value_type.dtype;
    let dtype = call
        .dtype("dtype")?
        .unwrap_or(if own.is_float() { own } else { DType::I64 });
    let value_type = ValueType {
        dtype,
        ..value.value_type.clone()
    };
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// sort(self, dim, descending), stable or not: values and their positions.
pub(in super::super) fn sort(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    if call.schema.overload == "stable" {
        call.bool("stable")?;
    }
    call.bool("descending")?;
    let axis = axis_within_sample(call, value)?;
    ordered(call, value, axis, value.value_type.shape.clone())
}

/// argsort(self, dim, descending): positions only.
pub(in super::super) fn argsort(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    call.bool("descending")?;
    let axis = axis_within_sample(call, value)?;
    Ok(positions(value, axis, value.value_type.shape.clone()).into())
}

/// topk(self, k, dim, largest, sorted): values and their positions.
pub(in super::super) fn topk(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let k = call.int("k")?;
    call.bool("largest")?;
    call.bool("sorted")?;
    let axis = axis_within_sample(call, value)?;
    let mut shape = value.value_type.shape.clone();
    let fits = match shape[axis] {
        Extent::Fixed(size) => u64::try_from(k).ok().filter(|k| (1..=size).contains(k)),
        // Only in a rule mutant.
        Extent::Batch(_) => Some(1),
    };
    shape[axis] = fits.map(Extent::Fixed).ok_or_else(|| {
        Objection::plain(
            format!("k = {k} elements of an axis that does not have as many"),
            "take at least 1 and at most the axis's extent",
        )
    })?;
    ordered(call, value, axis, shape)
}

fn axis_within_sample(call: &Call<'_>, value: &Typed) -> Result<usize, Objection> {
    let axis = normalise_dim(call.int("dim")?, value.value_type.shape.len())?;
    require_within_sample(value, &[axis])?;
    Ok(axis)
}

fn ordered(call: &Call<'_>, value: &Typed, axis: usize, shape: Vec<Extent>) -> Result<Outcome, Objection> {
    let positions = positions(value, axis, shape);
    let values = ValueType {
        dtype: value.value_type.dtype,
        ..positions.value_type.clone()
    };
    let values = Output::new(values, call.any_requires_grad()).bounded(value.facts.bounds);
    Ok(Outcome {
        outputs: vec![values, positions],
        tap: None,
    })
}

fn positions(value: &Typed, axis: usize, shape: Vec<Extent>) -> Output {
    let last = match value.value_type.shape[axis] {
        Extent::Fixed(size) => i64::try_from(size).ok().map(|size| size - 1),
        Extent::Batch(_) => None,
    };
    // Only in a rule mutant is the batch axis the one that is cut.
    let lost = shape.iter().all(|extent| matches!(extent, Extent::Fixed(_)));
    let value_type = ValueType {
        dtype: DType::I64,
        dependence: if lost {
            Dependence::Shared
        } else {
            value.value_type.dependence
        },
        shape,
    };
    Output::constant(value_type).bounded(last.map(|last| (0, last)))
}
