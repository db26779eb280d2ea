//! linear, addmm, mm, matmul, bmm, baddbmm: data on the left or on both sides, never contracted over the batch.

use super::super::broadcast::{broadcast, per_sample};
use super::super::call::{Call, as_float, batch_axis};
use super::super::facts::{Output, Typed};
use super::super::premise::{Premise, require};
use super::super::refusal::Objection;
use super::{Outcome, tap};
use crate::display;
use crate::typed::{Dependence, Extent, Tap, ValueType};

/// `linear(input, weight[out, in], bias[out]?)`.
pub(in super::super) fn linear(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (input, weight, bias) = (
        call.tensor("input")?,
        call.tensor("weight")?,
        call.optional_tensor("bias")?,
    );
    require_shared("weight", weight)?;
    bias.map_or(Ok(()), |bias| require_shared("bias", bias))?;
    let [out, inner] = matrix("weight", weight)?;
    require_contracted(input, inner)?;
    if bias.is_some_and(|bias| bias.value_type.shape != [out]) {
        return Err(Objection::plain(
            "the bias does not have one element per output",
            "give a bias of shape [out]",
        ));
    }
    let value_type = with_last(input, out);
    require_same_dtype(&[Some(input), Some(weight), bias])?;
    let (weight_tap, bias_tap) = (tap::parameter(Some(weight)), tap::parameter(bias));
    let tap = data_tap(input, &value_type, weight_tap, bias_tap, |input, weight, bias| {
        Tap::Linear { input, weight, bias }
    })?;
    Ok(Outcome {
        outputs: vec![Output::new(value_type, call.any_requires_grad())],
        tap,
    })
}

/// `beta·self + alpha·(mat1 @ mat2)`.
pub(in super::super) fn addmm(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (added, left, right) = (call.tensor("self")?, call.tensor("mat1")?, call.tensor("mat2")?);
    let scales = [call.number("beta")?, call.number("alpha")?];
    let product = product(left, right)?;
    if [left, right]
        .iter()
        .any(|operand| operand.value_type.shape.len() != 2)
    {
        return Err(Objection::denied(
            "mat1 or mat2 is not a matrix",
            "use linear or matmul",
        ));
    }
    let operand = Typed {
        value_type: product.clone(),
        ..left.clone()
    };
    let (dependence, shape) = broadcast(&[added, &operand])?;
    if shape != product.shape {
        return Err(Objection::plain(
            "the added tensor is larger than the product",
            "give a row of shape [out]",
        ));
    }
    require_same_dtype(&[Some(added), Some(left), Some(right)])?;
    let value_type = ValueType {
        dependence,
        ..product
    };
    let (weight, bias) = (tap::parameter(Some(right)), tap::parameter(Some(added)));
    let unscaled = scales.iter().flatten().all(|scale| as_float(*scale) == 1.0);
    if !unscaled && (weight.is_some() || bias.is_some()) {
        return Err(Objection::denied(
            "alpha or beta scales a trainable parameter",
            "scale the result instead",
        ));
    }
    if bias.as_ref().is_some_and(|_| added.value_type.shape.len() != 1) {
        return Err(Objection::denied(
            "a trainable added tensor is not a row",
            "use a parameter of shape [out]",
        ));
    }
    let tap = data_tap(left, &value_type, weight, bias, |input, weight, bias| {
        Tap::MatMul { input, weight, bias }
    })?;
    Ok(Outcome {
        outputs: vec![Output::new(value_type, call.any_requires_grad())],
        tap,
    })
}

/// `self @ other`: a Shared matrix or vector on the right is tapped when it is trainable; data on both sides,
/// or a constant on the left, as [`product`] types it.
pub(in super::super) fn matmul(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let is_mm = call.schema.name == "mm";
    let (left, right) = (
        call.tensor("self")?,
        call.tensor(if is_mm { "mat2" } else { "other" })?,
    );
    let ranks = [left, right].map(|operand| operand.value_type.shape.len());
    if is_mm && ranks != [2, 2] {
        return Err(Objection::plain("mm takes matrices", "use matmul"));
    }
    require_same_dtype(&[Some(left), Some(right)])?;
    let value_type = product(left, right)?;
    let weight = tap::parameter(Some(right)).filter(|_| ranks[1] <= 2 && ranks[0] >= 2);
    let tap = data_tap(left, &value_type, weight, None, |input, weight, bias| {
        Tap::MatMul { input, weight, bias }
    })?;
    Ok(Outcome {
        outputs: vec![Output::new(value_type, call.any_requires_grad())],
        tap,
    })
}

/// `bmm(self, mat2)`: one product for each row of axis 0, which both operands have alike.
pub(in super::super) fn bmm(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (left, right) = (call.tensor("self")?, call.tensor("mat2")?);
    let value_type = batched(left, right)?;
    require_same_dtype(&[Some(left), Some(right)])?;
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// `beta·self + alpha·(batch1 @ batch2)`; a trainable `self` is added by broadcasting.
pub(in super::super) fn baddbmm(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (added, left, right) = (
        call.tensor("self")?,
        call.tensor("batch1")?,
        call.tensor("batch2")?,
    );
    let beta = call.number("beta")?.map_or(1.0, as_float);
    call.number("alpha")?;
    let product = batched(left, right)?;
    require_same_dtype(&[Some(added), Some(left), Some(right)])?;
    let operand = Typed {
        value_type: product.clone(),
        ..left.clone()
    };
    let (dependence, shape) = broadcast(&[added, &operand])?;
    if shape != product.shape {
        return Err(Objection::plain(
            "the added tensor is larger than the product",
            "give one that broadcasts to the product's shape",
        ));
    }
    let value_type = ValueType {
        dependence,
        ..product
    };
    let per_sample = matches!(value_type.dependence, Dependence::PerSample { .. });
    let parameter = tap::parameter(Some(added)).filter(|_| per_sample);
    tap::require_tappable(&value_type, &[&parameter], &[added])?;
    Ok(Outcome {
        outputs: vec![Output::new(value_type, call.any_requires_grad())],
        tap: parameter.map(|parameter| tap::add(parameter, beta)),
    })
}

fn batched(left: &Typed, right: &Typed) -> Result<ValueType, Objection> {
    let product = product(left, right)?;
    let axis_0 = |operand: &Typed| operand.value_type.shape.first().copied();
    let ranks = [left, right].map(|operand| operand.value_type.shape.len());
    if ranks != [3, 3] || axis_0(left) != axis_0(right) {
        return Err(Objection::plain(
            "bmm takes two tensors [n, rows, inner] and [n, inner, columns] with the same n",
            "use matmul, which broadcasts",
        ));
    }
    Ok(product)
}

/// The type of `left @ right` by `torch.matmul`'s rules, data on either side or on both.
///
/// The contracted axis is never the batch. What remains, `[.., rows, 1]` of the left and `[.., 1, columns]` of the
/// right, combines by broadcasting (rule T4): so two batch axes coincide among the leading axes, and the batch may
/// be an operand's rows or columns only where the other operand is Shared.
fn product(left: &Typed, right: &Typed) -> Result<ValueType, Objection> {
    let (left_shape, right_shape) = (&left.value_type.shape, &right.value_type.shape);
    let (Some(left_inner), Some(right_inner)) = (
        left_shape.len().checked_sub(1),
        right_shape
            .len()
            .checked_sub(if right_shape.len() == 1 { 1 } else { 2 }),
    ) else {
        return Err(Objection::plain(
            "an operand has no axis to contract",
            "multiply by a number with `*`",
        ));
    };
    require_uncontracted(left, left_inner)?;
    require_uncontracted(right, right_inner)?;
    let lost = [(left, left_inner), (right, right_inner)]
        .iter()
        .any(|(operand, inner)| batch_axis(&operand.value_type).is_some_and(|(axis, _)| axis == *inner));
    if left_shape[left_inner] != right_shape[right_inner] && !lost {
        let reason = format!(
            "the last axis of {} does not match {}",
            display::ty(&left.value_type),
            display::ty(&right.value_type)
        );
        return Err(Objection::plain(reason, "make the inner sizes equal"));
    }
    let rows = without(left, left_inner, right_shape.len() >= 2);
    // The contracted axis of a matrix becomes the rows' place; of a vector nothing remains but that place.
    let columns = if right_shape.len() == 1 {
        without(right, right_inner, left_shape.len() >= 2)
    } else if left_shape.len() == 1 {
        without(right, right_inner, false)
    } else {
        without(right, right_inner, true)
    };
    let (dependence, shape) = broadcast(&[&rows, &columns])?;
    Ok(ValueType {
        dependence,
        shape,
        dtype: left.value_type.dtype,
    })
}

/// The operand with the contracted axis replaced by an extent of 1, or removed.
fn without(operand: &Typed, inner: usize, keeps_place: bool) -> Typed {
    let batch = batch_axis(&operand.value_type).filter(|(axis, _)| *axis != inner);
    let mut shape = operand.value_type.shape.clone();
    if keeps_place {
        shape[inner] = Extent::Fixed(1);
    } else {
        shape.remove(inner);
    }
    let moved = |axis: usize| {
        if !keeps_place && axis > inner {
            axis - 1
        } else {
            axis
        }
    };
    let dependence = batch.map_or(Dependence::Shared, |(axis, _)| per_sample(moved(axis)));
    Typed {
        value_type: ValueType {
            dependence,
            shape,
            dtype: operand.value_type.dtype,
        },
        ..operand.clone()
    }
}

pub(super) fn require_shared(name: &str, operand: &Typed) -> Result<(), Objection> {
    require(
        Premise::WeightIsShared,
        operand.value_type.dependence == Dependence::Shared,
        || {
            let reason = format!("the {name} depends on the samples: the contraction would combine them");
            (
                reason,
                "put the per-sample data on the left and a parameter or constant on the right".into(),
            )
        },
    )
}

fn matrix(name: &str, operand: &Typed) -> Result<[Extent; 2], Objection> {
    <[Extent; 2]>::try_from(operand.value_type.shape.as_slice()).map_err(|_| {
        Objection::denied(
            format!("the {name} is not a matrix"),
            "use a weight of shape [out, in]",
        )
    })
}

/// Objects when `inner` is the batch axis.
fn require_uncontracted(data: &Typed, inner: usize) -> Result<(), Objection> {
    let is_batch = batch_axis(&data.value_type).is_some_and(|(axis, _)| axis == inner);
    require(Premise::ContractionWithinSample, !is_batch, || {
        let reason = format!(
            "the contraction sums over the batch axis of {}",
            display::ty(&data.value_type)
        );
        (
            reason,
            "contract an axis of the sample; the batch stays axis 0".into(),
        )
    })
}

/// The contracted (last) axis of the data is a constant axis of the right length.
fn require_contracted(data: &Typed, inner: Extent) -> Result<(), Objection> {
    let ValueType { shape, .. } = &data.value_type;
    let rank = shape.len();
    let last_is_batch = batch_axis(&data.value_type).is_some_and(|(axis, _)| axis + 1 == rank);
    require_uncontracted(data, rank.saturating_sub(1))?;
    if rank < 1 || (shape[rank - 1] != inner && !last_is_batch) {
        let reason = format!(
            "the last axis of {} does not match the weight",
            display::ty(&data.value_type)
        );
        return Err(Objection::plain(reason, "make the inner sizes equal"));
    }
    Ok(())
}

fn with_last(data: &Typed, out: Extent) -> ValueType {
    let mut value_type = data.value_type.clone();
    value_type.shape.pop();
    value_type.shape.push(out);
    without_lost_batch(value_type)
}

/// Only in a rule mutant is the contracted axis the batch; the result then has none.
fn without_lost_batch(value_type: ValueType) -> ValueType {
    let dependence = if batch_axis(&value_type).is_none() {
        Dependence::Shared
    } else {
        value_type.dependence
    };
    ValueType {
        dependence,
        ..value_type
    }
}

/// Contractions compute in one floating dtype.
pub(super) fn require_same_dtype(operands: &[Option<&Typed>]) -> Result<(), Objection> {
    let mut dtypes = operands.iter().flatten().map(|operand| operand.value_type.dtype);
    let first = dtypes.next();
    if first.is_some_and(|first| first.is_float() && dtypes.all(|dtype| dtype == first)) {
        return Ok(());
    }
    Err(Objection::plain(
        "the operands are not of one floating dtype",
        "convert inputs with .to(torch.float32)",
    ))
}

fn data_tap(
    data: &Typed,
    value_type: &ValueType,
    weight: Option<crate::typed::TappedParameter>,
    bias: Option<crate::typed::TappedParameter>,
    make: impl FnOnce(
        crate::typed::ValueId,
        Option<crate::typed::TappedParameter>,
        Option<crate::typed::TappedParameter>,
    ) -> Tap,
) -> Result<Option<Tap>, Objection> {
    if value_type.dependence == Dependence::Shared || (weight.is_none() && bias.is_none()) {
        return Ok(None);
    }
    tap::require_tappable(&data.value_type, &[&weight, &bias], &[])?;
    Ok(Some(make(data.id, weight, bias)))
}
