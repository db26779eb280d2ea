//! zeros, ones, full, arange: constants; with B in their shape they are per-sample (rule T1).

use super::super::broadcast::per_sample;
use super::super::call::{Call, Given, Item};
use super::super::facts::Output;
use super::super::premise::{Premise, require};
use super::super::refusal::Objection;
use super::Outcome;
use crate::dtype::DType;
use crate::typed::{Argument, Dependence, Extent, Number, ValueType};

/// zeros, ones, full.
pub(in super::super) fn filled(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let dtype = match call.dtype("dtype")? {
        Some(dtype) => dtype,
        None if call.schema.name == "full" => number_dtype(fill_value(call)?, DType::F32),
        None => DType::F32,
    };
    sized(call, dtype)
}

/// new_zeros, new_ones, new_full.
pub(in super::super) fn new_filled(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let like = call.tensor("self")?.value_type.dtype;
    let dtype = call.dtype("dtype")?.unwrap_or(like);
    sized(call, dtype)
}

/// zeros_like, ones_like, full_like.
pub(in super::super) fn like(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let dtype = call.dtype("dtype")?.unwrap_or(value.value_type.dtype);
    if call.schema.name == "full_like" {
        fill_value(call)?;
    }
    call.placement();
    Ok(Output::constant(ValueType {
        dtype,
        ..value.value_type.clone()
    })
    .into())
}

pub(super) fn sized(call: &mut Call<'_>, dtype: DType) -> Result<Outcome, Objection> {
    if call.schema.name.ends_with("full") {
        fill_value(call)?;
    }
    call.placement();
    let extent = |item: Item| match item {
        Item::Batch(inner) => Ok(Extent::Batch(inner)),
        Item::Int(size) => u64::try_from(size)
            .map(Extent::Fixed)
            .map_err(|_| Objection::plain("a negative size", "use positive sizes")),
    };
    let shape = call
        .items("size")?
        .into_iter()
        .map(extent)
        .collect::<Result<Vec<_>, _>>()?;
    let batch_axes: Vec<usize> = (0..shape.len())
        .filter(|axis| matches!(shape[*axis], Extent::Batch(_)))
        .collect();
    require(Premise::OneBatchAxis, batch_axes.len() <= 1, || {
        let reason = "the batch size appears on two axes: the tensor has a row per pair of samples";
        (reason.into(), "use the batch size for one axis only".into())
    })?;
    let dependence = batch_axes
        .first()
        .map_or(Dependence::Shared, |axis| per_sample(*axis));
    call.replace("size", Argument::Sizes(shape.clone()));
    Ok(Output::constant(ValueType {
        dependence,
        shape,
        dtype,
    })
    .into())
}

fn fill_value(call: &Call<'_>) -> Result<Number, Objection> {
    call.number("fill_value")?
        .ok_or_else(|| Objection::plain("no fill value", "give a number"))
}

/// arange(end), arange(start, end): of constants Shared; arange(B) is the `BatchIota` that only indexes.
pub(in super::super) fn arange(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let dtype = call.dtype("dtype")?;
    call.placement();
    let from_start = call.schema.overload == "start";
    let start = if from_start { call.int("start")? } else { 0 };
    let (dependence, extent, default) = match call.read("end") {
        Given::BatchSize(1) if !from_start => (Dependence::BatchIota, Extent::Batch(1), DType::I64),
        Given::Number(Number::Int(end)) if *end > start => {
            (Dependence::Shared, Extent::Fixed(end.abs_diff(start)), DType::I64)
        }
        _ => {
            return Err(Objection::denied(
                "the end is not an integer above the start, or the batch size",
                "use arange(n), arange(start, end) or arange(B)",
            ));
        }
    };
    let dtype = dtype.unwrap_or(default);
    if dependence == Dependence::BatchIota && dtype != DType::I64 {
        return Err(Objection::denied(
            "arange of the batch size is not int64",
            "leave out its dtype",
        ));
    }
    let mut output = Output::constant(ValueType {
        dependence,
        shape: vec![extent],
        dtype,
    });
    if let (Dependence::Shared, Extent::Fixed(count), DType::I64) = (dependence, extent, dtype) {
        output.iota = Some(start);
        output.bounds = i64::try_from(count - 1)
            .ok()
            .and_then(|last| start.checked_add(last))
            .map(|last| (start, last));
    }
    Ok(output.into())
}

/// scalar_tensor(s).
pub(in super::super) fn scalar(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    if call.number("s")?.is_none() {
        return Err(Objection::plain("no value", "give a number"));
    }
    let dtype = call.dtype("dtype")?.unwrap_or(DType::F32);
    call.placement();
    Ok(Output::constant(ValueType {
        dependence: Dependence::Shared,
        shape: Vec::new(),
        dtype,
    })
    .into())
}

fn number_dtype(number: Number, float: DType) -> DType {
    match number {
        Number::Bool(_) => DType::Bool,
        Number::Int(_) => DType::I64,
        Number::Float(_) => float,
    }
}
