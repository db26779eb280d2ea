//! `x[arange(B), i, ...]`: every sample reads its own block, by numbers of the samples (rule T1).
//!
//! Such numbers stay numbers under what Hugging Face's masks do with them, `arange(B)[:, None, None]`: element `[b, ...]`
//! is `b`. Everything else that reads them is refused, since they tell how many samples there are.

use super::super::broadcast::{broadcast, normalise_dim, per_sample};
use super::super::call::{Call, batch_axis};
use super::super::facts::{Output, Typed};
use super::super::premise::{Premise, require};
use super::super::refusal::Objection;
use super::Outcome;
use super::index::{require_index, require_range};
use super::reshape::{resolve_sizes, sizes_name};
use super::select::{WHOLE, bounds};
use crate::typed::{Argument, Dependence, Extent, ValueId, ValueType};

/// `numbers[:]`.
pub(super) fn sliced(call: &Call<'_>) -> Result<Option<Outcome>, Objection> {
    let Some(numbers) = call.sample_numbers("self") else {
        return Ok(None);
    };
    normalise_dim(call.int("dim")?, numbers.value_type.shape.len())?;
    let whole = bounds(call)? == WHOLE;
    Ok(whole.then(|| numbering(numbers.value_type.shape.clone())))
}

/// `numbers[:, None]`.
pub(super) fn unsqueezed(call: &Call<'_>) -> Result<Option<Outcome>, Objection> {
    let Some(numbers) = call.sample_numbers("self") else {
        return Ok(None);
    };
    let mut shape = numbers.value_type.shape.clone();
    let axis = normalise_dim(call.int("dim")?, shape.len() + 1)?;
    shape.insert(axis, Extent::Fixed(1));
    Ok((axis > 0).then(|| numbering(shape)))
}

/// `numbers.view(B, 1)`: axis 0 stays the batch's, in whole rows.
pub(super) fn viewed(call: &mut Call<'_>) -> Result<Option<Outcome>, Objection> {
    let Some(numbers) = call.sample_numbers("self") else {
        return Ok(None);
    };
    let name = sizes_name(call);
    let shape = resolve_sizes(&numbers.value_type, &call.items(name)?)?;
    let elements = |shape: &[Extent]| {
        shape[1..]
            .iter()
            .map(fixed)
            .try_fold(1u64, |all, each| all.checked_mul(each?))
    };
    let whole =
        shape.first() == Some(&Extent::Batch(1)) && elements(&shape) == elements(&numbers.value_type.shape);
    if !whole {
        return Ok(None);
    }
    call.replace(name, Argument::Sizes(shape.clone()));
    Ok(Some(numbering(shape)))
}

fn fixed(extent: &Extent) -> Option<u64> {
    match extent {
        Extent::Fixed(size) => Some(*size),
        Extent::Batch(_) => None,
    }
}

fn numbering(shape: Vec<Extent>) -> Outcome {
    let value_type = ValueType {
        dependence: Dependence::BatchIota,
        shape,
        dtype: crate::dtype::DType::I64,
    };
    Output::constant(value_type).into()
}

/// `x[numbers, i, ...]` with an index for each axis that follows: `i` is the same for every sample, or the sample's own.
///
/// Indices are broadcast as operands are. The result's axis 0 is that of `numbers`, so its element `[b, ...]` comes
/// from block `b` of `x`, at a place that sample `b` alone decides.
pub(super) fn read(
    call: &Call<'_>,
    data: &Typed,
    numbers: &Typed,
    rest: &[(usize, ValueId)],
) -> Result<Outcome, Objection> {
    let is_batch = batch_axis(&data.value_type) == Some((0, 1));
    require(Premise::IndexWithinSample, is_batch, || {
        let reason = "`arange` of the batch size indexes an axis that is not the batch axis";
        (
            reason.into(),
            "index x[arange(B), labels] where x is [B, ...]".into(),
        )
    })?;
    let mut indices = vec![numbers];
    for (position, (axis, id)) in rest.iter().enumerate() {
        let index = call.plain_value(*id)?;
        require_index(index)?;
        if *axis != position + 1 {
            let reason = "beside `arange(B)` an axis is left out";
            return Err(Objection::denied(
                reason,
                "index the axes after the batch in their order",
            ));
        }
        require_range(index, data.value_type.shape[*axis], "index")?;
        indices.push(index);
    }
    let (dependence, mut shape) = broadcast(&indices)?;
    if dependence != per_sample(0) {
        let reason = "an index has more axes than `arange(B)`, which are then before the batch axis";
        return Err(Objection::denied(
            reason,
            "give arange(B) as many axes: arange(B)[:, None]",
        ));
    }
    shape.extend(&data.value_type.shape[rest.len() + 1..]);
    let value_type = ValueType {
        dependence,
        shape,
        dtype: data.value_type.dtype,
    };
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}
