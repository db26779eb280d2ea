//! Reductions and softmax: within a sample only (rule T7).

use super::super::broadcast::{normalise_dim, per_sample};
use super::super::call::{Call, as_float, batch_axis};
use super::super::facts::{Output, Typed};
use super::super::premise::{Premise, is_dropped, require};
use super::super::refusal::Objection;
use super::Outcome;
use super::elementwise::require_float;
use crate::display;
use crate::dtype::DType;
use crate::typed::{Dependence, Extent, ValueType};

/// sum and mean, over dims or over everything.
pub(in super::super) fn sum_or_mean(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let (dims, keep) = match call.schema.overload.as_str() {
        "default" => (None, false),
        _ => (call.ints("dim")?, call.bool("keepdim")?),
    };
    let dtype = match (call.dtype("dtype")?, call.schema.name.as_str()) {
        (Some(dtype), "sum") => dtype,
        (Some(dtype), _) if dtype.is_float() => dtype,
        (None, "sum") if !value.value_type.dtype.is_float() => DType::I64,
        _ => {
            require_float("self", value)?;
            value.value_type.dtype
        }
    };
    let value_type = reduced(value, dims.as_deref(), keep, dtype)?;
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// amax, amin, logsumexp.
pub(in super::super) fn extremum(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let (dims, keep) = (call.ints("dim")?, call.bool("keepdim")?);
    if call.schema.name == "logsumexp" {
        require_float("self", value)?;
    }
    let value_type = reduced(value, dims.as_deref(), keep, value.value_type.dtype)?;
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// argmax and argmin.
pub(in super::super) fn arg_extremum(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let dim = call.optional_int("dim")?;
    let keep = call.bool("keepdim")?;
    let dims = dim.map(|dim| vec![dim]);
    let bounds = index_bounds(value, dim);
    let value_type = reduced(value, dims.as_deref(), keep, DType::I64)?;
    Ok(Output::constant(value_type).bounded(bounds).into())
}

/// max and min along a dim: values and indices.
pub(in super::super) fn extremum_with_index(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let (dim, keep) = (call.int("dim")?, call.bool("keepdim")?);
    let values = reduced(value, Some(&[dim]), keep, value.value_type.dtype)?;
    let indices = ValueType {
        dtype: DType::I64,
        ..values.clone()
    };
    let indices = Output::constant(indices).bounded(index_bounds(value, Some(dim)));
    Ok(Outcome {
        outputs: vec![Output::new(values, call.any_requires_grad()), indices],
        tap: None,
    })
}

fn index_bounds(value: &Typed, dim: Option<i64>) -> Option<(i64, i64)> {
    let shape = &value.value_type.shape;
    let axis = normalise_dim(dim?, shape.len()).ok()?;
    match shape[axis] {
        Extent::Fixed(size) => i64::try_from(size).ok().map(|size| (0, size - 1)),
        Extent::Batch(_) => None,
    }
}

/// var and std.
pub(in super::super) fn variance(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let (dims, keep) = (call.ints("dim")?, call.bool("keepdim")?);
    if call.schema.overload == "dim" {
        call.bool("unbiased")?;
    } else {
        call.number("correction")?;
    }
    require_float("self", value)?;
    let value_type = reduced(value, dims.as_deref(), keep, value.value_type.dtype)?;
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// linalg_vector_norm.
pub(in super::super) fn vector_norm(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let order = call.number("ord")?.map_or(2.0, as_float);
    if order.is_nan() || order < 0.0 {
        return Err(Objection::denied(
            "a norm of this order has no rule",
            "use order 1, 2 or infinity",
        ));
    }
    let (dims, keep) = (call.ints("dim")?, call.bool("keepdim")?);
    require_float("self", value)?;
    let value_type = reduced(value, dims.as_deref(), keep, value.value_type.dtype)?;
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// any and all along a dim.
pub(in super::super) fn any_or_all(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let (dim, keep) = (call.int("dim")?, call.bool("keepdim")?);
    if value.value_type.dtype == DType::U8 {
        return Err(Objection::plain(
            "any and all of uint8 give uint8",
            "compare first, as in x != 0",
        ));
    }
    Ok(Output::constant(reduced(value, Some(&[dim]), keep, DType::Bool)?)
        .bounded(Some((0, 1)))
        .into())
}

/// softmax and log_softmax: normalised along one axis of the sample.
pub(in super::super) fn softmax(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let dim = call.int("dim")?;
    let dtype = if call.schema.overload == "int" {
        call.dtype("dtype")?
    } else if call.bool("half_to_float")? {
        return Err(Objection::denied(
            "half_to_float is for 16-bit floats",
            "use softmax(x, dim)",
        ));
    } else {
        None
    };
    let dtype = dtype.unwrap_or(value.value_type.dtype);
    if !dtype.is_float() {
        require_float("self", value)?;
    }
    let axis = normalise_dim(dim, value.value_type.shape.len())?;
    require_within_sample(value, &[axis])?;
    let value_type = ValueType {
        dtype,
        ..value.value_type.clone()
    };
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// The axes meant: none given means all.
fn axes(value: &Typed, dims: Option<&[i64]>) -> Result<Vec<usize>, Objection> {
    let rank = value.value_type.shape.len();
    let dims = match dims {
        None | Some([]) if is_dropped(Premise::EmptyDimsMeanAll) => return Ok(Vec::new()),
        None | Some([]) => return Ok((0..rank).collect()),
        Some(dims) => dims,
    };
    let mut axes = dims
        .iter()
        .map(|dim| normalise_dim(*dim, rank))
        .collect::<Result<Vec<_>, _>>()?;
    axes.sort_unstable();
    if axes.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Objection::plain("a dimension is named twice", "name each once"));
    }
    Ok(axes)
}

/// Objects when the batch axis is among `axes`.
pub(super) fn require_within_sample(value: &Typed, axes: &[usize]) -> Result<(), Objection> {
    let over_batch = batch_axis(&value.value_type).is_some_and(|(axis, _)| axes.contains(&axis));
    require(Premise::DimsExcludeBatch, !over_batch, || {
        let reason = format!(
            "it combines the samples: it runs over the batch axis of {}",
            display::ty(&value.value_type)
        );
        (
            reason,
            "name the axes of the sample only, e.g. dim=1, and leave the batch axis".into(),
        )
    })
}

fn reduced(value: &Typed, dims: Option<&[i64]>, keep: bool, dtype: DType) -> Result<ValueType, Objection> {
    let axes = axes(value, dims)?;
    require_within_sample(value, &axes)?;
    let ValueType { shape, .. } = &value.value_type;
    let kept = shape
        .iter()
        .enumerate()
        .filter_map(|(axis, extent)| match (axes.contains(&axis), keep) {
            (false, _) => Some(*extent),
            (true, true) => Some(Extent::Fixed(1)),
            (true, false) => None,
        });
    let shape: Vec<Extent> = kept.collect();
    let batch = batch_axis(&value.value_type).filter(|(axis, _)| !axes.contains(axis));
    let before = |axis: usize| {
        if keep {
            0
        } else {
            axes.iter().filter(|reduced| **reduced < axis).count()
        }
    };
    let dependence = batch.map_or(Dependence::Shared, |(axis, _)| per_sample(axis - before(axis)));
    Ok(ValueType {
        dependence,
        shape,
        dtype,
    })
}
