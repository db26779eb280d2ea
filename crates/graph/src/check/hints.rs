//! Comparing recorded types with inferred ones (rule T4): nothing is believed, contradictions are refused.

use super::premise::{Premise, require};
use super::refusal::Objection;
use crate::display;
use crate::program::{Hint, HintExtent};
use crate::schema::Schema;
use crate::typed::{Extent, ValueType};

/// Compares a node's result. `Ok(false)` when the record is known to be wrong and what follows from it
/// must not be compared either.
///
/// torch 2.11's `run_decompositions` records the per-sample results of `cross_entropy_loss` and
/// `nll_loss_nd` as scalars: the recorded rank 0 of these two is passed over.
pub(super) fn agree(hint: Option<&Hint>, inferred: &ValueType, schema: &Schema) -> Result<bool, Objection> {
    let Some(hint) = hint else { return Ok(true) };
    let scalar_loss =
        ["cross_entropy_loss", "nll_loss_nd"].contains(&schema.name.as_str()) && hint.shape.is_empty();
    if scalar_loss && !inferred.shape.is_empty() {
        return Ok(false);
    }
    require(Premise::RecordedTypesAgree, matches(hint, inferred), || {
        let reason = format!(
            "the archive records {}, but the operator gives {}",
            recorded(hint),
            display::ty(inferred)
        );
        (
            reason,
            "export again, with the batch as the only dynamic axis of every input".into(),
        )
    })?;
    Ok(true)
}

/// Compares a graph input.
pub(super) fn agree_input(
    hint: Option<&Hint>,
    inferred: &ValueType,
    is_column: bool,
) -> Result<(), Objection> {
    let Some(hint) = hint else { return Ok(()) };
    require(Premise::RecordedTypesAgree, matches(hint, inferred), || {
        let given = if is_column {
            "the data contract's column is"
        } else {
            "the stored tensor is"
        };
        let reason = format!(
            "the module was exported for {}, {given} {}",
            recorded(hint),
            display::ty(inferred)
        );
        let remedy =
            "export the module with example inputs shaped like the contract's columns, axis 0 dynamic";
        (reason, remedy.into())
    })
}

fn matches(hint: &Hint, inferred: &ValueType) -> bool {
    let extent = |(hint, extent): (&HintExtent, &Extent)| match (hint, extent) {
        (HintExtent::Fixed(recorded), Extent::Fixed(inferred)) => recorded == inferred,
        (HintExtent::Symbolic(_), Extent::Batch(_)) => true,
        _ => false,
    };
    hint.dtype == Some(inferred.dtype)
        && hint.shape.len() == inferred.shape.len()
        && hint.shape.iter().zip(&inferred.shape).all(extent)
}

fn recorded(hint: &Hint) -> String {
    let extents = hint.shape.iter().map(|extent| match extent {
        HintExtent::Fixed(size) => size.to_string(),
        HintExtent::Symbolic(_) => "symbolic".into(),
    });
    let dtype = hint.dtype.map_or("an unknown dtype", |dtype| dtype.torch_name());
    format!("{dtype}[{}]", extents.collect::<Vec<_>>().join(", "))
}
