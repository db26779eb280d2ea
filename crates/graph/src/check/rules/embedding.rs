//! embedding: every id reads its row of a Shared table. A trainable table is tapped where the ids are per-sample;
//! where they are consecutive constants (position embeddings) the result is a slice of the table (rule G2).

use super::super::call::Call;
use super::super::facts::{Output, Typed};
use super::super::premise::{Premise, require};
use super::super::refusal::Objection;
use super::index::{require_index, require_range};
use super::reshape::fixed_sizes;
use super::{Outcome, tap};
use crate::typed::{Dependence, Extent, ParameterView, Tap, ValueType};

/// embedding(weight, indices, padding_idx). `scale_grad_by_freq` (the gradient would depend on how often an id occurs
/// in the batch) and `sparse` have no rule.
pub(in super::super) fn embedding(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (weight, indices) = (call.tensor("weight")?, call.tensor("indices")?);
    let padding_idx = u64::try_from(call.int("padding_idx")?).ok();
    require(
        Premise::WeightIsShared,
        weight.value_type.dependence == Dependence::Shared,
        || {
            (
                "the table depends on the samples".into(),
                "use a parameter or a constant as the table".into(),
            )
        },
    )?;
    let [rows, width] = *weight.value_type.shape.as_slice() else {
        return Err(Objection::plain(
            "the table is not a matrix",
            "give a table of shape [rows, width]",
        ));
    };
    require_index(indices)?;
    require_range(indices, rows, "row")?;
    let mut value_type = ValueType {
        dtype: weight.value_type.dtype,
        ..indices.value_type.clone()
    };
    value_type.shape.push(width);
    let output = Output::new(value_type.clone(), call.any_requires_grad());
    let Some(table) = tap::parameter(Some(weight)) else {
        return Ok(output.into());
    };
    if indices.value_type.dependence == Dependence::Shared {
        let rows = rows_read(weight, indices, padding_idx, &value_type);
        let slice = rows.map(|steps| Output::part(weight, value_type, steps));
        return Ok(slice.unwrap_or(output).into());
    }
    tap::require_batch_first(&indices.value_type)?;
    Ok(Outcome {
        outputs: vec![output],
        tap: Some(Tap::Embedding {
            indices: indices.id,
            weight: table,
            padding_idx,
        }),
    })
}

/// Consecutive constant ids within the table, none of them the padding row, read a slice of it. `None` for others:
/// constants whose values the checker does not know may repeat a row, and what repeats is no isometry.
fn rows_read(
    weight: &Typed,
    indices: &Typed,
    padding_idx: Option<u64>,
    result: &ValueType,
) -> Option<Vec<ParameterView>> {
    let start = u64::try_from(indices.facts.iota?).ok()?;
    let shape = fixed_sizes(&result.shape)?;
    let (width, ids) = shape.split_last()?;
    let length = ids
        .iter()
        .try_fold(1u64, |count, extent| count.checked_mul(*extent))?;
    let [Extent::Fixed(rows), Extent::Fixed(columns)] = *weight.value_type.shape.as_slice() else {
        return None;
    };
    let end = start
        .checked_add(length)
        .filter(|end| *end <= rows && *width == columns)?;
    if padding_idx.is_some_and(|padding| (start..end).contains(&padding)) {
        return None;
    }
    let narrow = ParameterView::Narrow {
        axis: 0,
        start,
        length,
    };
    Some(vec![narrow, ParameterView::Reshape(shape)])
}
