//! repeat, repeat_interleave, flip, roll: elements of a sample at new places of the same sample (rules T4, T6, T7).

use super::super::broadcast::normalise_dim;
use super::super::call::{Call, Item};
use super::super::facts::{Output, Typed};
use super::super::premise::{Premise, is_dropped, require};
use super::super::refusal::Objection;
use super::Outcome;
use super::reshape::{require_untouched, widened};
use crate::display;
use crate::typed::{Argument, Extent, ValueType};

/// `repeat(repeats)`: copies side by side. The batch axis is never repeated: its copies would follow one another as
/// whole batches. A Shared value may be repeated along the batch where it has extent 1; a trainable one is then tapped.
pub(in super::super) fn repeat(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let repeats = call.items("repeats")?;
    let shape = &value.value_type.shape;
    let added = repeats.len().checked_sub(shape.len());
    let added =
        added.ok_or_else(|| Objection::plain("fewer repeats than axes", "give one number per axis"))?;
    let mut new = Vec::with_capacity(repeats.len());
    for (position, times) in repeats.iter().enumerate() {
        let old = position
            .checked_sub(added)
            .map_or(Extent::Fixed(1), |axis| shape[axis]);
        new.push(repeated(value, old, *times)?);
    }
    let (value_type, tap) = widened(value, new, added, "repeat")?;
    if tap.is_some() {
        let broadcast = shape.iter().zip(&value_type.shape[added..]);
        if broadcast
            .into_iter()
            .any(|(old, new)| *old != Extent::Fixed(1) && old != new)
        {
            return Err(Objection::plain(
                "a trainable parameter is repeated along an axis of its own and along the batch at once",
                "repeat it along its own axes first, then expand it to the batch",
            ));
        }
    }
    let sizes = repeats.iter().map(|times| match times {
        Item::Int(times) => Extent::Fixed(times.unsigned_abs()),
        Item::Batch(inner) => Extent::Batch(*inner),
    });
    call.replace("repeats", Argument::Sizes(sizes.collect()));
    Ok(Outcome {
        outputs: vec![Output::new(value_type, call.any_requires_grad()).bounded(value.facts.bounds)],
        tap,
    })
}

fn repeated(value: &Typed, old: Extent, times: Item) -> Result<Extent, Objection> {
    let whole = |times: i64| {
        u64::try_from(times)
            .map_err(|_| Objection::plain("a negative number of repeats", "use 1 to keep an axis"))
    };
    let product = |size: u64, times: i64| {
        size.checked_mul(whole(times)?)
            .ok_or_else(|| Objection::plain("an extent beyond 2^64", "repeat less often"))
    };
    match (old, times) {
        (old, Item::Int(1)) => Ok(old),
        (Extent::Fixed(size), Item::Int(times)) => Ok(Extent::Fixed(product(size, times)?)),
        (Extent::Fixed(1), Item::Batch(inner)) => Ok(Extent::Batch(inner)),
        (Extent::Fixed(_), Item::Batch(_)) => Err(Objection::plain(
            "an axis with elements of its own is repeated by the batch size",
            "unsqueeze(0) first, so that the batch gets an axis of its own",
        )),
        (Extent::Batch(inner), times) => {
            require(Premise::BatchAxisUntouched, false, || {
                let reason = format!(
                    "it repeats the batch axis of {}: copies of the whole batch follow one another, and which sample a \
                     row belongs to depends on how many there are",
                    display::ty(&value.value_type)
                );
                (
                    reason,
                    "repeat 1 time along the batch; repeat_interleave keeps a sample's rows together".into(),
                )
            })?;
            match times {
                Item::Int(times) => product(inner, times).map(Extent::Batch),
                Item::Batch(_) => Ok(Extent::Batch(inner)),
            }
        }
    }
}

/// `repeat_interleave(repeats, dim)`: every element some times in a row, so that along the batch a sample's rows stay
/// together.
pub(in super::super) fn repeat_interleave(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let times = call.int("repeats")?;
    let mut shape = value.value_type.shape.clone();
    let Some(dim) = call.optional_int("dim")? else {
        return Err(Objection::denied(
            "without a dim it flattens the batch into one axis",
            "name the axis: x.repeat_interleave(2, dim=1)",
        ));
    };
    let axis = normalise_dim(dim, shape.len())?;
    let longer = |size: u64| {
        u64::try_from(times)
            .ok()
            .and_then(|times| size.checked_mul(times))
    };
    let extent = match shape[axis] {
        Extent::Fixed(size) => longer(size).map(Extent::Fixed),
        Extent::Batch(inner) => longer(inner).map(Extent::Batch),
    };
    shape[axis] = extent.ok_or_else(|| {
        Objection::plain(
            "a negative or enormous number of repeats",
            "use a small positive one",
        )
    })?;
    let value_type = ValueType {
        shape,
        ..value.value_type.clone()
    };
    Ok(Output::new(value_type, call.any_requires_grad())
        .bounded(value.facts.bounds)
        .into())
}

/// flip, roll: along axes of the sample.
pub(in super::super) fn turned(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let rank = value.value_type.shape.len();
    let dims = call.ints("dims")?.unwrap_or_default();
    let mut axes = dims
        .iter()
        .map(|dim| normalise_dim(*dim, rank))
        .collect::<Result<Vec<_>, _>>()?;
    let rolls = call.schema.name == "roll";
    if rolls {
        let shifts = call.ints("shifts")?.unwrap_or_default();
        if shifts.len() != dims.len().max(1) {
            return Err(Objection::plain(
                "shifts and dims have different lengths",
                "give one shift per axis",
            ));
        }
    }
    if rolls && axes.is_empty() && !is_dropped(Premise::EmptyDimsMeanAll) {
        axes = (0..rank).collect();
    }
    require_untouched(value, &axes, "elements would move from sample to sample")?;
    axes.sort_unstable();
    if !rolls && axes.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Objection::plain(
            "an axis is flipped twice",
            "name every axis once",
        ));
    }
    Ok(Output::new(value.value_type.clone(), call.any_requires_grad())
        .bounded(value.facts.bounds)
        .into())
}
