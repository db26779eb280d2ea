//! slice, select, split, unbind: along axes of the sample only (rule T7).

use super::super::broadcast::{normalise_dim, per_sample};
use super::super::call::{Call, batch_axis};
use super::super::facts::{Output, Typed};
use super::super::refusal::Objection;
use super::Outcome;
use super::reshape::{fixed_sizes, require_untouched};
use super::rows;
use crate::typed::{Dependence, Extent, ParameterView, ValueType};

const WHY: &str = "which sample is where depends on the draw";
const MAX_PARTS: u64 = 4096;

/// Start, end and step of `x[:]`.
pub(super) const WHOLE: (i64, i64, i64) = (0, i64::MAX, 1);

/// Start, end and step of a slice.
pub(super) fn bounds(call: &Call<'_>) -> Result<(i64, i64, i64), Objection> {
    let (start, end) = (call.optional_int("start")?, call.optional_int("end")?);
    Ok((
        start.unwrap_or(WHOLE.0),
        end.unwrap_or(WHOLE.1),
        call.int("step")?,
    ))
}

/// slice(dim, start, end, step). The whole batch axis, as in `x[:, 0]`, is left as it is.
pub(in super::super) fn slice(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    if let Some(numbers) = rows::sliced(call)? {
        return Ok(numbers);
    }
    let value = call.tensor("self")?;
    let axis = normalise_dim(call.int("dim")?, value.value_type.shape.len())?;
    let (start, end, step) = bounds(call)?;
    if (start, end, step) == WHOLE {
        return Ok(Output::rearranged(value, value.value_type.clone(), None).into());
    }
    require_untouched(value, &[axis], WHY)?;
    let size = mutant_size(value, axis);
    let clamp = |bound: i64| {
        if bound < 0 {
            bound.saturating_add(size).max(0)
        } else {
            bound.min(size)
        }
    };
    let (start, end) = (clamp(start), clamp(end));
    if step < 1 {
        return Err(Objection::plain(
            "the step is not positive",
            "use a step of 1 or more",
        ));
    }
    let taken = (end - start).max(0).unsigned_abs().div_ceil(step.unsigned_abs());
    let mut shape = value.value_type.shape.clone();
    shape[axis] = Extent::Fixed(taken);
    let view = (step == 1).then(|| narrow(axis, start.unsigned_abs(), taken));
    let mut output = typed_part(call, value, shape, axis, view);
    let consecutive = value.value_type.shape[..axis]
        .iter()
        .all(|extent| *extent == Extent::Fixed(1))
        && axis + 1 == value.value_type.shape.len();
    output.iota = value
        .facts
        .iota
        .filter(|_| step == 1 && consecutive)
        .map(|first| first + start);
    Ok(output.into())
}

/// select(dim, index).
pub(in super::super) fn select(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let axis = normalise_dim(call.int("dim")?, value.value_type.shape.len())?;
    let index = call.int("index")?;
    require_untouched(value, &[axis], WHY)?;
    let size = mutant_size(value, axis);
    if index < -size || index >= size {
        return Err(Objection::plain(
            format!("index {index} is outside of an axis of {size}"),
            "use an existing index",
        ));
    }
    let position = if index < 0 { index + size } else { index };
    Ok(without_axis(call, value, axis, position.unsigned_abs()).into())
}

/// split into equal parts, or into parts of given sizes.
pub(in super::super) fn split(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let axis = normalise_dim(call.int("dim")?, value.value_type.shape.len())?;
    require_untouched(value, &[axis], WHY)?;
    let size = mutant_size(value, axis).unsigned_abs();
    let sizes = if call.schema.name == "split" {
        equal_parts(call.int("split_size")?, size)?
    } else {
        given_parts(call, size)?
    };
    let mut start = 0;
    let outputs = sizes.into_iter().map(|taken| {
        let mut shape = value.value_type.shape.clone();
        shape[axis] = Extent::Fixed(taken);
        let view = narrow(axis, start, taken);
        start += taken;
        typed_part(call, value, shape, axis, Some(view))
    });
    Ok(Outcome {
        outputs: outputs.collect(),
        tap: None,
    })
}

fn equal_parts(part: i64, size: u64) -> Result<Vec<u64>, Objection> {
    let part = u64::try_from(part)
        .ok()
        .filter(|part| *part > 0 && size.div_ceil(*part) <= MAX_PARTS);
    let part = part.ok_or_else(|| {
        Objection::plain(
            "the part size is zero or gives too many parts",
            "use a larger one",
        )
    })?;
    Ok((0..size.div_ceil(part))
        .map(|index| part.min(size - index * part))
        .collect())
}

fn given_parts(call: &Call<'_>, size: u64) -> Result<Vec<u64>, Objection> {
    let sizes = call.ints("split_sizes")?.unwrap_or_default();
    let sizes: Option<Vec<u64>> = sizes.into_iter().map(|size| u64::try_from(size).ok()).collect();
    let total = |sizes: &Vec<u64>| sizes.iter().try_fold(0u64, |sum, size| sum.checked_add(*size));
    sizes
        .filter(|sizes| total(sizes) == Some(size) && sizes.len() as u64 <= MAX_PARTS)
        .ok_or_else(|| {
            Objection::plain(
                format!("the parts do not sum to the axis's {size}"),
                "give sizes that do",
            )
        })
}

/// unbind(dim).
pub(in super::super) fn unbind(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let axis = normalise_dim(call.int("dim")?, value.value_type.shape.len())?;
    require_untouched(value, &[axis], WHY)?;
    let size = mutant_size(value, axis).unsigned_abs();
    if size > MAX_PARTS {
        return Err(Objection::plain(
            format!("more than {MAX_PARTS} parts"),
            "reduce the axis instead",
        ));
    }
    let outputs = (0..size).map(|position| without_axis(call, value, axis, position));
    Ok(Outcome {
        outputs: outputs.collect(),
        tap: None,
    })
}

/// Extent of an axis; on the batch axis (a rule mutant only) the oracle's batch of 3.
fn mutant_size(value: &Typed, axis: usize) -> i64 {
    match value.value_type.shape[axis] {
        Extent::Fixed(size) => i64::try_from(size).unwrap_or(i64::MAX),
        Extent::Batch(inner) => i64::try_from(inner.saturating_mul(3)).unwrap_or(i64::MAX),
    }
}

fn without_axis(call: &Call<'_>, value: &Typed, axis: usize, position: u64) -> Output {
    let mut shape = value.value_type.shape.clone();
    shape.remove(axis);
    let batch = batch_axis(&value.value_type).filter(|(batch, _)| *batch != axis);
    let dependence = batch.map_or(Dependence::Shared, |(batch, _)| {
        per_sample(if axis < batch { batch - 1 } else { batch })
    });
    let steps =
        fixed_sizes(&shape).map(|sizes| vec![narrow(axis, position, 1), ParameterView::Reshape(sizes)]);
    of_part(call, value, dependence, shape, steps)
}

fn typed_part(
    call: &Call<'_>,
    value: &Typed,
    shape: Vec<Extent>,
    axis: usize,
    view: Option<ParameterView>,
) -> Output {
    let batch = batch_axis(&value.value_type).filter(|(batch, _)| *batch != axis);
    let dependence = batch.map_or(Dependence::Shared, |(batch, _)| per_sample(batch));
    of_part(call, value, dependence, shape, view.map(|view| vec![view]))
}

/// A part is a view of a parameter where `steps` say which (rule G2: a slice is isometric and injective).
fn of_part(
    call: &Call<'_>,
    value: &Typed,
    dependence: Dependence,
    shape: Vec<Extent>,
    steps: Option<Vec<ParameterView>>,
) -> Output {
    let value_type = ValueType {
        dependence,
        shape,
        dtype: value.value_type.dtype,
    };
    match steps {
        Some(steps) => Output::part(value, value_type, steps),
        None => Output::new(value_type, call.any_requires_grad()).bounded(value.facts.bounds),
    }
}

fn narrow(axis: usize, start: u64, length: u64) -> ParameterView {
    ParameterView::Narrow {
        axis: u8::try_from(axis).unwrap_or(u8::MAX),
        start,
        length,
    }
}
