//! view, flatten, squeeze, expand, permute: the batch axis stays B consecutive blocks (rule T6).

use super::super::broadcast::{normalise_dim, per_sample, product};
use super::super::call::{Call, Item, batch_axis};
use super::super::facts::{Output, Typed};
use super::super::premise::{Premise, is_dropped, require};
use super::super::refusal::Objection;
use super::{Outcome, rows, tap};
use crate::display;
use crate::typed::{Argument, Dependence, Extent, ParameterView, Tap, ValueType};

/// view, reshape, _unsafe_view.
pub(in super::super) fn view(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    if let Some(numbers) = rows::viewed(call)? {
        return Ok(numbers);
    }
    let value = call.tensor("self")?;
    let name = sizes_name(call);
    let shape = resolve_sizes(&value.value_type, &call.items(name)?)?;
    call.replace(name, Argument::Sizes(shape.clone()));
    reshaped(value, shape)
}

/// How the overload at hand calls its new sizes.
pub(super) fn sizes_name(call: &Call<'_>) -> &'static str {
    if call.schema.name == "reshape" {
        "shape"
    } else {
        "size"
    }
}

/// flatten(start, end).
pub(in super::super) fn flatten(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let shape = &value.value_type.shape;
    let rank = shape.len();
    let (start, end) = (call.int("start_dim")?, call.int("end_dim")?);
    if rank == 0 {
        return reshaped(value, vec![Extent::Fixed(1)]);
    }
    let (start, end) = (normalise_dim(start, rank)?, normalise_dim(end, rank)?);
    if start > end {
        return Err(Objection::plain("start_dim is after end_dim", "swap them"));
    }
    let merged = &shape[start..=end];
    let size = product(merged).ok_or_else(too_large)?;
    let is_batch = merged.iter().any(|extent| matches!(extent, Extent::Batch(_)));
    let merged = if is_batch {
        Extent::Batch(size)
    } else {
        Extent::Fixed(size)
    };
    let new = shape[..start]
        .iter()
        .copied()
        .chain([merged])
        .chain(shape[end + 1..].iter().copied());
    reshaped(value, new.collect())
}

/// unsqueeze(dim).
pub(in super::super) fn unsqueeze(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    if let Some(numbers) = rows::unsqueezed(call)? {
        return Ok(numbers);
    }
    let value = call.tensor("self")?;
    let axis = normalise_dim(call.int("dim")?, value.value_type.shape.len() + 1)?;
    let mut shape = value.value_type.shape.clone();
    shape.insert(axis, Extent::Fixed(1));
    let batch = batch_axis(&value.value_type).map(|(batch, _)| if axis <= batch { batch + 1 } else { batch });
    Ok(rearranged(value, shape, batch).into())
}

/// squeeze: never of the batch axis, whose extent may happen to be 1.
pub(in super::super) fn squeeze(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let shape = &value.value_type.shape;
    let dims = match call.schema.overload.as_str() {
        "dim" => vec![call.int("dim")?],
        "dims" => call.ints("dim")?.unwrap_or_default(),
        _ => (0..i64::try_from(shape.len()).unwrap_or(0)).collect(),
    };
    let axes = dims
        .iter()
        .map(|dim| normalise_dim(*dim, shape.len()))
        .collect::<Result<Vec<_>, _>>()?;
    if axes.is_empty() && !shape.is_empty() {
        return Err(Objection::denied("no dims are named", "name the axes to squeeze"));
    }
    require_untouched(
        value,
        &axes,
        "at a batch of one sample the batch axis would disappear",
    )?;
    let gone = |axis: usize| axes.contains(&axis) && shape[axis] == Extent::Fixed(1);
    let kept = (0..shape.len())
        .filter(|axis| !gone(*axis))
        .map(|axis| shape[axis])
        .collect();
    let batch =
        batch_axis(&value.value_type).map(|(batch, _)| batch - (0..batch).filter(|axis| gone(*axis)).count());
    Ok(rearranged(value, kept, batch).into())
}

/// expand(size): a Shared value may be repeated along the batch; per-sample data only along other axes. A trainable
/// parameter repeated for every sample is tapped.
pub(in super::super) fn expand(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let items = call.items("size")?;
    let shape = &value.value_type.shape;
    let added = items.len().checked_sub(shape.len());
    let added = added.ok_or_else(|| Objection::plain("fewer sizes than axes", "give one size per axis"))?;
    let mut new = Vec::with_capacity(items.len());
    for (position, item) in items.iter().enumerate() {
        let old = position.checked_sub(added).map(|axis| shape[axis]);
        new.push(expanded(old, *item)?);
    }
    let (value_type, tap) = widened(value, new.clone(), added, "expand")?;
    call.replace("size", Argument::Sizes(new));
    if value_type == value.value_type {
        return Ok(Output::rearranged(value, value_type, None).into());
    }
    Ok(Outcome {
        outputs: vec![Output::new(value_type, call.any_requires_grad()).bounded(value.facts.bounds)],
        tap,
    })
}

/// The type of a value whose axes became `shape`, `added` of them new and in front, and the tap of a trainable parameter that
/// got a batch axis that way. Per-sample data keep their one batch axis; `verb` is what the operator does.
pub(super) fn widened(
    value: &Typed,
    shape: Vec<Extent>,
    added: usize,
    verb: &str,
) -> Result<(ValueType, Option<Tap>), Objection> {
    let batch_axes: Vec<usize> = (0..shape.len())
        .filter(|axis| matches!(shape[*axis], Extent::Batch(_)))
        .collect();
    let own = batch_axis(&value.value_type).map(|(axis, _)| axis + added);
    require(
        Premise::OneBatchAxis,
        batch_axes.len() <= 1 && own.is_none_or(|own| batch_axes == [own]),
        || {
            let reason = format!(
                "{} would get the batch size on a second axis",
                display::ty(&value.value_type)
            );
            (reason, format!("{verb} along axes of the sample only"))
        },
    )?;
    let dependence = own
        .or(batch_axes.first().copied())
        .map_or(Dependence::Shared, per_sample);
    let value_type = ValueType {
        dependence,
        shape,
        dtype: value.value_type.dtype,
    };
    let over_the_batch = own.is_none() && dependence != Dependence::Shared;
    let parameter = over_the_batch.then(|| tap::parameter(Some(value))).flatten();
    let tap = parameter.map(|parameter| Tap::Expand { parameter });
    if tap.is_some() {
        tap::require_batch_first(&value_type)?;
    }
    Ok((value_type, tap))
}

fn expanded(old: Option<Extent>, item: Item) -> Result<Extent, Objection> {
    let wanted = match item {
        Item::Int(-1) => return old.ok_or_else(|| Objection::plain("-1 for a new axis", "give its size")),
        Item::Int(size) => Extent::Fixed(
            u64::try_from(size).map_err(|_| Objection::plain("a negative size", "use -1 to keep"))?,
        ),
        Item::Batch(inner) => Extent::Batch(inner),
    };
    match old {
        None | Some(Extent::Fixed(1)) => Ok(wanted),
        Some(old) if old == wanted => Ok(wanted),
        Some(_) => Err(Objection::plain(
            "an axis that is not 1 cannot be expanded",
            "keep it with -1",
        )),
    }
}

/// t, transpose, permute.
pub(in super::super) fn permute(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let value = call.tensor("self")?;
    let shape = &value.value_type.shape;
    let rank = shape.len();
    let permutation = match call.schema.name.as_str() {
        "t" if rank <= 2 => (0..rank).rev().collect(),
        "t" => {
            return Err(Objection::plain(
                "t takes at most two axes",
                "use transpose(dim0, dim1)",
            ));
        }
        "transpose" => {
            let mut permutation: Vec<usize> = (0..rank).collect();
            permutation.swap(
                normalise_dim(call.int("dim0")?, rank)?,
                normalise_dim(call.int("dim1")?, rank)?,
            );
            permutation
        }
        _ => {
            let dims = call.ints("dims")?.unwrap_or_default();
            dims.iter()
                .map(|dim| normalise_dim(*dim, rank))
                .collect::<Result<Vec<_>, _>>()?
        }
    };
    let mut seen = permutation.clone();
    seen.sort_unstable();
    if seen != (0..rank).collect::<Vec<_>>() {
        return Err(Objection::plain(
            "the dims are no permutation",
            "name every axis once",
        ));
    }
    let new = permutation.iter().map(|axis| shape[*axis]).collect();
    let batch = batch_axis(&value.value_type)
        .and_then(|(batch, _)| permutation.iter().position(|axis| *axis == batch));
    let dependence = batch.map_or(Dependence::Shared, per_sample);
    let value_type = ValueType {
        dependence,
        shape: new,
        dtype: value.value_type.dtype,
    };
    let step = permutation
        .iter()
        .map(|axis| u8::try_from(*axis).unwrap_or(u8::MAX))
        .collect();
    Ok(Output::rearranged(value, value_type, Some(ParameterView::Permute(step))).into())
}

/// Objects when one of `axes` is the batch axis.
pub(super) fn require_untouched(value: &Typed, axes: &[usize], why: &str) -> Result<(), Objection> {
    let touched = batch_axis(&value.value_type).is_some_and(|(axis, _)| axes.contains(&axis));
    require(Premise::BatchAxisUntouched, !touched, || {
        let reason = format!(
            "it works on the batch axis of {}: {why}",
            display::ty(&value.value_type)
        );
        (reason, "name an axis of the sample".into())
    })
}

fn rearranged(value: &Typed, shape: Vec<Extent>, batch: Option<usize>) -> Output {
    let dependence = batch.map_or(Dependence::Shared, per_sample);
    let step = fixed_sizes(&shape).map(ParameterView::Reshape);
    Output::rearranged(
        value,
        ValueType {
            dependence,
            shape,
            dtype: value.value_type.dtype,
        },
        step,
    )
}

pub(super) fn fixed_sizes(shape: &[Extent]) -> Option<Vec<u64>> {
    let fixed = |extent: &Extent| match extent {
        Extent::Fixed(size) => Some(*size),
        Extent::Batch(_) => None,
    };
    shape.iter().map(fixed).collect()
}

/// Sizes with `-1` resolved: B times a constant where B is not named elsewhere, else a constant.
pub(super) fn resolve_sizes(source: &ValueType, items: &[Item]) -> Result<Vec<Extent>, Objection> {
    let total = product(&source.shape).ok_or_else(too_large)?;
    let unnamed = items.iter().filter(|item| **item == Item::Int(-1)).count();
    if unnamed > 1 {
        return Err(Objection::plain("more than one size is -1", "give all but one"));
    }
    let mut shape = Vec::with_capacity(items.len());
    for item in items.iter().filter(|item| **item != Item::Int(-1)) {
        shape.push(match item {
            Item::Batch(inner) => Extent::Batch(*inner),
            Item::Int(size) => Extent::Fixed(
                u64::try_from(*size).map_err(|_| Objection::plain("a negative size", "use -1 once"))?,
            ),
        });
    }
    let named = product(&shape).filter(|named| *named > 0).ok_or_else(too_large)?;
    if unnamed == 1 {
        let names_batch = shape.iter().any(|extent| matches!(extent, Extent::Batch(_)));
        let has_batch = source
            .shape
            .iter()
            .any(|extent| matches!(extent, Extent::Batch(_)));
        if total % named != 0 {
            return Err(whole_blocks(source));
        }
        let size = total / named;
        let rest = if has_batch && !names_batch {
            Extent::Batch(size)
        } else {
            Extent::Fixed(size)
        };
        let position = items.iter().position(|item| *item == Item::Int(-1)).unwrap_or(0);
        shape.insert(position, rest);
    }
    Ok(shape)
}

/// Rule T6. Left of the batch axis: the same list, or product 1 on both sides. From the batch axis on:
/// the same number of elements for every sample.
fn reshaped(value: &Typed, shape: Vec<Extent>) -> Result<Outcome, Objection> {
    let old = &value.value_type;
    let batch_axes: Vec<usize> = (0..shape.len())
        .filter(|axis| matches!(shape[*axis], Extent::Batch(_)))
        .collect();
    let Some((axis, _)) = batch_axis(old) else {
        if !batch_axes.is_empty() || product(&shape) != product(&old.shape) {
            return Err(Objection::plain(
                "the sizes do not fit the number of elements",
                "give sizes with the same product",
            ));
        }
        return Ok(rearranged(value, shape, None).into());
    };
    let [new_axis] = *batch_axes.as_slice() else {
        // Constants that happen to multiply to the batch's elements would hide the batch axis.
        require(Premise::BlocksStayWhole, false, || {
            let objection = whole_blocks(old);
            (objection.reason, objection.remedy)
        })?;
        return Ok(rearranged(value, shape, None).into());
    };
    let (left, new_left) = (&old.shape[..axis], &shape[..new_axis]);
    let passes = left == new_left || (product(left) == Some(1) && product(new_left) == Some(1));
    require(Premise::LeftAxesPassThrough, passes, || {
        let reason = format!(
            "reshaping {} to {} moves elements between the batch axis and the axes left of it, which mixes samples",
            display::ty(old),
            shape_text(&shape)
        );
        (
            reason,
            "move the batch to axis 0 (transpose) before reshaping".into(),
        )
    })?;
    let whole = product(&old.shape[axis..]) == product(&shape[new_axis..]);
    if !whole && !is_dropped(Premise::LeftAxesPassThrough) {
        return Err(whole_blocks(old));
    }
    Ok(rearranged(value, shape, Some(new_axis)).into())
}

fn shape_text(shape: &[Extent]) -> String {
    let value_type = ValueType {
        dependence: per_sample(0),
        shape: shape.to_vec(),
        dtype: crate::dtype::DType::F32,
    };
    let text = display::ty(&value_type);
    text.trim_start_matches("f32").to_owned()
}

fn whole_blocks(old: &ValueType) -> Objection {
    Objection {
        rule: Some(Premise::BlocksStayWhole.rule()),
        reason: format!(
            "the sizes do not keep the samples of {} whole: the batch axis must become B or B*k",
            display::ty(old)
        ),
        remedy:
            "name the batch size itself, x.view(x.size(0), ...), with constants whose product is one sample"
                .into(),
    }
}

fn too_large() -> Objection {
    Objection::plain(
        "the number of elements is zero or too large",
        "use smaller, positive sizes",
    )
}
