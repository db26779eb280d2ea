//! gather, index, one_hot: a sample reads its own block or a Shared table (rule T7).
//! What can be out of range is either excluded by the contract or guarded by the trainer (rule G4).

use super::super::broadcast::{normalise_dim, per_sample};
use super::super::call::{Call, Given, batch_axis};
use super::super::facts::{Output, Typed};
use super::super::premise::{Premise, require};
use super::super::refusal::Objection;
use super::{Outcome, rows};
use crate::dtype::DType;
use crate::typed::{Dependence, Extent, ValueId, ValueType};

/// gather(self, dim, index): index and data share the batch axis, or both are Shared.
pub(in super::super) fn gather(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (data, index) = (call.tensor("self")?, call.tensor("index")?);
    let rank = data.value_type.shape.len();
    let axis = normalise_dim(call.int("dim")?, rank)?;
    require_index(index)?;
    let (data_batch, index_batch) = (batch_axis(&data.value_type), batch_axis(&index.value_type));
    let own_block = data_batch == index_batch && data_batch.is_none_or(|(batch, _)| batch != axis);
    require(Premise::GatherWithinSample, own_block, || {
        let reason = "gather pairs index rows with data rows by their position in the batch";
        (
            reason.into(),
            "gather along an axis of the sample, with an index that has the same batch axis".into(),
        )
    })?;
    if index.value_type.shape.len() != rank {
        return Err(Objection::plain(
            "index and data have different ranks",
            "unsqueeze the index",
        ));
    }
    let fits = (0..rank).filter(|other| *other != axis).all(|other| {
        match (index.value_type.shape[other], data.value_type.shape[other]) {
            (Extent::Fixed(one), Extent::Fixed(all)) => one <= all,
            _ => true,
        }
    });
    if !fits {
        return Err(Objection::plain(
            "the index is larger than the data beside the gathered axis",
            "shrink it",
        ));
    }
    require_range(index, data.value_type.shape[axis], "index")?;
    let value_type = ValueType {
        dtype: data.value_type.dtype,
        ..index.value_type.clone()
    };
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// index(self, indices): `table[labels]` of a Shared table, `x[arange(B), labels]`, or `x[:, constant]`.
pub(in super::super) fn index(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let data = call.tensor("self")?;
    let Given::Optionals(indices) = call.read("indices").clone() else {
        return Err(Objection::denied(
            "the indices are not a list of tensors",
            "index with tensors",
        ));
    };
    if indices.len() > data.value_type.shape.len() {
        return Err(Objection::plain("more indices than axes", "index existing axes"));
    }
    let iota = |id: &ValueId| call.value(*id).value_type.dependence == Dependence::BatchIota;
    let given: Vec<(usize, ValueId)> = indices
        .iter()
        .enumerate()
        .filter_map(|(axis, id)| id.map(|id| (axis, id)))
        .collect();
    let outcome = match given.as_slice() {
        [(0, numbers), rest @ ..] if iota(numbers) => rows::read(call, data, call.value(*numbers), rest)?,
        [(axis, id)] => index_axis(call, data, *axis, call.value(*id))?,
        _ => {
            let reason = "several index tensors have a rule only as x[arange(B), index, ...]";
            return Err(Objection::denied(reason, "use gather along one axis"));
        }
    };
    Ok(outcome)
}

/// One index tensor in place of one axis.
fn index_axis(call: &Call<'_>, data: &Typed, axis: usize, index: &Typed) -> Result<Outcome, Objection> {
    require_index(index)?;
    let (data_batch, index_batch) = (batch_axis(&data.value_type), batch_axis(&index.value_type));
    let iota = index.value_type.dependence == Dependence::BatchIota;
    let own_block = !iota
        && match (data_batch, index_batch) {
            (None, _) => true,
            (Some((batch, _)), None) => batch != axis,
            (Some(_), Some(_)) => false,
        };
    require(Premise::IndexWithinSample, own_block, || {
        let reason =
            "the index reads other samples' rows, or is the same list of rows for every sample of the batch";
        (
            reason.into(),
            "use gather along an axis of the sample, or x[arange(B), labels]".into(),
        )
    })?;
    require_range(index, data.value_type.shape[axis], "index")?;
    let (before, after) = (&data.value_type.shape[..axis], &data.value_type.shape[axis + 1..]);
    let inserted = &index.value_type.shape;
    let shape = [before, inserted, after].concat();
    let batch = match (data_batch, index_batch) {
        (_, Some((batch, _))) => Some(axis + batch),
        (Some((batch, _)), None) if batch < axis => Some(batch),
        (Some((batch, _)), None) if batch > axis => Some(batch - 1 + inserted.len()),
        _ => None,
    };
    let dependence = batch.map_or(Dependence::Shared, per_sample);
    let value_type = ValueType {
        dependence,
        shape,
        dtype: data.value_type.dtype,
    };
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// one_hot(self, num_classes) with a declared number of classes (rule T5).
pub(in super::super) fn one_hot(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let index = call.tensor("self")?;
    let classes = call.int("num_classes")?;
    require(Premise::ShapesDoNotDependOnValues, classes >= 1, || {
        let reason = "without num_classes the shape depends on the largest label of the batch";
        (
            reason.into(),
            "give the number of classes, as in one_hot(y, 3)".into(),
        )
    })?;
    let classes = Extent::Fixed(u64::try_from(classes.max(1)).unwrap_or(1));
    require_dtype(index, &[DType::I64])?;
    require_range(index, classes, "label")?;
    let mut value_type = index.value_type.clone();
    value_type.shape.push(classes);
    Ok(Output::constant(value_type).bounded(Some((0, 1))).into())
}

pub(super) fn require_index(index: &Typed) -> Result<(), Objection> {
    require_dtype(index, &[DType::I64, DType::I32])
}

fn require_dtype(index: &Typed, allowed: &[DType]) -> Result<(), Objection> {
    if allowed.contains(&index.value_type.dtype) {
        return Ok(());
    }
    let reason = format!(
        "an index of dtype {} has no rule",
        index.value_type.dtype.torch_name()
    );
    Err(Objection::denied(reason, "convert it with .to(torch.int64)"))
}

/// Rule G4: where the contract declares the index's range, it must fit. Elsewhere the trainer guards
/// (see [`super::super::value_guards`]).
pub(super) fn require_range(index: &Typed, size: Extent, what: &str) -> Result<(), Objection> {
    let (Some((least, greatest)), Extent::Fixed(size)) = (index.facts.bounds, size) else {
        return Ok(());
    };
    let fits = least >= 0 && u64::try_from(greatest).is_ok_and(|greatest| greatest < size);
    require(Premise::IndicesWithinContract, fits, || {
        let reason = format!(
            "by the data contract the {what} lies in [{least}, {greatest}], and only {size} exist here"
        );
        (
            reason,
            "give the model as many outputs as the contract has classes".into(),
        )
    })
}
