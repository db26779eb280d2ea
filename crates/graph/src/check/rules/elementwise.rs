//! Operators that work element by element, with broadcasting (rule T4).

use super::super::broadcast::{broadcast, promote, result_type};
use super::super::call::{Call, Operand, as_float};
use super::super::facts::{Output, Typed};
use super::super::refusal::Objection;
use super::{Outcome, tap};
use crate::dtype::DType;
use crate::typed::{Dependence, Number, Tap, ValueType};

/// A function of one floating tensor and constant numbers.
pub(in super::super) fn float_unary(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    read_numbers(call)?;
    if call.schema.name == "gelu" && !["none", "tanh"].contains(&call.string("approximate")?) {
        return Err(Objection::denied(
            "unknown `approximate`",
            "use \"none\" or \"tanh\"",
        ));
    }
    require_float("self", value)?;
    Ok(Output::new(value.value_type.clone(), call.any_requires_grad()).into())
}

/// A function that keeps integers integers.
pub(in super::super) fn number_unary(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let numbers = read_numbers(call)?;
    if value.value_type.dtype == DType::Bool {
        return Err(Objection::plain(
            "it is not defined on bools",
            "convert with .to(torch.float32)",
        ));
    }
    let operands: Vec<_> = std::iter::once(Operand::Tensor(value))
        .chain(numbers.into_iter().map(Operand::Number))
        .collect();
    let value_type = ValueType {
        dtype: result_type(&operands),
        ..value.value_type.clone()
    };
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// Constant number arguments, all of them.
fn read_numbers(call: &Call<'_>) -> Result<Vec<Number>, Objection> {
    use crate::schema::Kind;
    let scalars = call
        .schema
        .arguments
        .iter()
        .filter(|argument| argument.kind == Kind::Scalar);
    let numbers = scalars
        .map(|argument| call.number(&argument.name))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(numbers.into_iter().flatten().collect())
}

/// `x ** c` and `c ** x` on floats. Integer powers can fail on a value (rule G4).
pub(in super::super) fn power(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let name = if call.schema.overload == "Scalar" {
        "exponent"
    } else {
        "self"
    };
    let value = call.tensor(name)?;
    read_numbers(call)?;
    require_float(name, value)?;
    Ok(Output::new(value.value_type.clone(), call.any_requires_grad()).into())
}

/// add, sub, mul, div, rsub, maximum, minimum; a trainable parameter in add, sub and mul is tapped.
pub(in super::super) fn arithmetic(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let left = call.tensor("self")?;
    let right = if call.schema.overload == "Scalar" {
        Operand::Number(required_number(call, "other")?)
    } else {
        call.operand("other")?
    };
    let alpha = match call.schema.name.as_str() {
        "add" | "sub" | "rsub" => Some(required_number(call, "alpha")?),
        _ => None,
    };
    let tensors: Vec<&Typed> = std::iter::once(left).chain(right.tensor()).collect();
    let (dependence, shape) = broadcast(&tensors)?;
    let dtype = arithmetic_dtype(call, &[Operand::Tensor(left), right], alpha)?;
    let value_type = ValueType {
        dependence,
        shape,
        dtype,
    };
    let tap = right.tensor().map_or(Ok(None), |right| {
        arithmetic_tap(call, left, right, alpha, &value_type)
    })?;
    let mut output = Output::new(value_type, call.any_requires_grad());
    (output.iota, output.bounds) = shifted(call, left, right, alpha);
    Ok(Outcome {
        outputs: vec![output],
        tap,
    })
}

/// `positions + constant`: consecutive integers stay consecutive, bounds move along (BART's positions start at 2).
fn shifted(
    call: &Call<'_>,
    left: &Typed,
    right: Operand<'_>,
    alpha: Option<Number>,
) -> (Option<i64>, Option<(i64, i64)>) {
    let (Operand::Number(Number::Int(by)), Some(Number::Int(1))) = (right, alpha) else {
        return (None, None);
    };
    let by = match call.schema.name.as_str() {
        "add" => Some(by),
        "sub" => by.checked_neg(),
        _ => None,
    };
    let Some(by) = by.filter(|_| left.value_type.dtype == DType::I64) else {
        return (None, None);
    };
    let moved = |value: i64| value.checked_add(by);
    let bounds = left
        .facts
        .bounds
        .and_then(|(least, greatest)| moved(least).zip(moved(greatest)));
    (left.facts.iota.and_then(moved), bounds)
}

fn required_number(call: &Call<'_>, name: &str) -> Result<Number, Objection> {
    call.number(name)?
        .ok_or_else(|| Objection::plain(format!("argument {name:?} is None"), "give a number"))
}

fn arithmetic_dtype(
    call: &Call<'_>,
    operands: &[Operand<'_>],
    alpha: Option<Number>,
) -> Result<DType, Objection> {
    let dtype = result_type(operands);
    let divides = call.schema.name == "div";
    if divides && !dtype.is_float() {
        return Ok(DType::F32);
    }
    let subtracts = ["sub", "rsub"].contains(&call.schema.name.as_str());
    if subtracts && dtype == DType::Bool {
        return Err(Objection::plain(
            "bools cannot be subtracted",
            "use logical_xor, or convert first",
        ));
    }
    let float_alpha = matches!(alpha, Some(Number::Float(_)));
    if float_alpha && !dtype.is_float() {
        return Err(Objection::plain(
            "alpha is a float and the tensors are not",
            "convert with .to(torch.float32)",
        ));
    }
    Ok(dtype)
}

/// Taps the parameter when exactly one operand is a trainable parameter and the other per-sample data.
fn arithmetic_tap(
    call: &Call<'_>,
    left: &Typed,
    right: &Typed,
    alpha: Option<Number>,
    result: &ValueType,
) -> Result<Option<Tap>, Objection> {
    let per_sample = |typed: &Typed| matches!(typed.value_type.dependence, Dependence::PerSample { .. });
    let (parameter, data, is_right) = match (per_sample(left), per_sample(right)) {
        (true, false) => (right, left, true),
        (false, true) => (left, right, false),
        _ => return Ok(None),
    };
    let Some(tapped) = tap::parameter(Some(parameter)) else {
        return Ok(None);
    };
    let alpha = alpha.map_or(1.0, as_float);
    let tap = match (call.schema.name.as_str(), is_right) {
        ("add", true) => tap::add(tapped.clone(), alpha),
        ("sub", true) => tap::add(tapped.clone(), -alpha),
        ("add" | "sub", false) => tap::add(tapped.clone(), 1.0),
        ("mul", _) => Tap::BroadcastMul {
            parameter: tapped.clone(),
            other: data.id,
        },
        _ => return Ok(None),
    };
    tap::require_tappable(result, &[&Some(tapped)], &[parameter, data])?;
    Ok(Some(tap))
}

/// eq, ne, lt, …: bools, without gradient.
pub(in super::super) fn comparison(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let left = call.tensor("self")?;
    let right = if call.schema.overload == "Scalar" {
        call.number("other")?.map(Operand::Number)
    } else {
        Some(call.operand("other")?)
    };
    let tensors: Vec<&Typed> = std::iter::once(left)
        .chain(right.as_ref().and_then(Operand::tensor))
        .collect();
    bools(&tensors)
}

/// logical_and, logical_or, logical_xor.
pub(in super::super) fn logical(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    bools(&[call.tensor("self")?, call.tensor("other")?])
}

/// logical_not of anything; bitwise_not of bools.
pub(in super::super) fn logical_not(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    if call.schema.name == "bitwise_not" {
        require_bool("self", value)?;
    }
    bools(&[value])
}

/// `&`, `|` and `^` on bools.
pub(in super::super) fn bitwise(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (left, right) = (call.tensor("self")?, call.tensor("other")?);
    require_bool("self", left)?;
    require_bool("other", right)?;
    bools(&[left, right])
}

fn bools(operands: &[&Typed]) -> Result<Outcome, Objection> {
    let (dependence, shape) = broadcast(operands)?;
    Ok(Output::constant(ValueType {
        dependence,
        shape,
        dtype: DType::Bool,
    })
    .bounded(Some((0, 1)))
    .into())
}

/// `where(condition, self, other)`.
pub(in super::super) fn choose(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let condition = call.tensor("condition")?;
    require_bool("condition", condition)?;
    let side = |name: &str, is_scalar: bool| {
        if is_scalar {
            required_number(call, name).map(Operand::Number)
        } else {
            call.tensor(name).map(Operand::Tensor)
        }
    };
    let overload = call.schema.overload.as_str();
    let sides = [
        side("self", overload == "ScalarSelf")?,
        side("other", overload == "ScalarOther")?,
    ];
    let tensors: Vec<&Typed> = std::iter::once(condition)
        .chain(sides.iter().filter_map(Operand::tensor))
        .collect();
    let (dependence, shape) = broadcast(&tensors)?;
    let value_type = ValueType {
        dependence,
        shape,
        dtype: result_type(&sides),
    };
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// `masked_fill(self, mask, value)`; a value that is a tensor is one Shared number.
pub(in super::super) fn masked_fill(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (value, mask) = (call.tensor("self")?, call.tensor("mask")?);
    require_bool("mask", mask)?;
    let fill = if call.schema.overload == "Tensor" {
        let fill = call.tensor("value")?;
        if !fill.value_type.shape.is_empty() {
            return Err(Objection::plain(
                "the filled value has axes",
                "use torch.where(mask, value, x)",
            ));
        }
        Operand::Tensor(fill)
    } else {
        Operand::Number(required_number(call, "value")?)
    };
    let dtype = value.value_type.dtype;
    if promote(result_type(&[fill]), dtype) != dtype && !dtype.is_float() {
        return Err(Objection::plain(
            "the filled value does not fit the dtype",
            "convert first",
        ));
    }
    let (dependence, shape) = broadcast(&[value, mask])?;
    Ok(Output::new(
        ValueType {
            dependence,
            shape,
            dtype,
        },
        call.any_requires_grad(),
    )
    .into())
}

/// alias, clone, contiguous, detach.
pub(in super::super) fn copy(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    call.placement();
    if call.schema.name == "detach" {
        return Ok(Output::constant(value.value_type.clone())
            .bounded(value.facts.bounds)
            .into());
    }
    Ok(Output::rearranged(value, value.value_type.clone(), None).into())
}

/// Conversion to an allowed dtype on the same device.
pub(in super::super) fn convert(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let dtype = call.dtype("dtype")?.unwrap_or(value.value_type.dtype);
    call.placement();
    if call.schema.overload == "dtype" {
        call.bool("copy")?;
    }
    let value_type = ValueType {
        dtype,
        ..value.value_type.clone()
    };
    if dtype == value.value_type.dtype {
        return Ok(Output::rearranged(value, value_type, None).into());
    }
    let bounds = value.facts.bounds.filter(|bounds| fits(*bounds, dtype));
    Ok(Output::new(value_type, call.any_requires_grad())
        .bounded(bounds)
        .into())
}

/// Whether integers in these bounds keep their value in this dtype.
fn fits((least, greatest): (i64, i64), dtype: DType) -> bool {
    match dtype {
        DType::U8 => least >= 0 && greatest <= 255,
        DType::I32 => least >= i64::from(i32::MIN) && greatest <= i64::from(i32::MAX),
        DType::I64 => true,
        // A float's bounds are not tracked: what is later truncated to an integer is guarded.
        DType::F32 | DType::F64 => false,
        DType::Bool => least >= 0 && greatest <= 1,
    }
}

/// Objects to a tensor that is not floating.
pub(super) fn require_float(name: &str, value: &Typed) -> Result<(), Objection> {
    if value.value_type.dtype.is_float() {
        return Ok(());
    }
    let reason = format!(
        "argument {name:?} is {}, not floating",
        value.value_type.dtype.torch_name()
    );
    Err(Objection::plain(reason, "convert with .to(torch.float32)"))
}

fn require_bool(name: &str, value: &Typed) -> Result<(), Objection> {
    if value.value_type.dtype == DType::Bool {
        return Ok(());
    }
    let reason = format!(
        "argument {name:?} is {}, not bool",
        value.value_type.dtype.torch_name()
    );
    Err(Objection::plain(reason, "compare first, as in x != 0"))
}
