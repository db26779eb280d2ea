//! Shapes and dtypes of combined operands: right-aligned broadcasting (rule T4) and type promotion.

use super::call::{Operand, batch_axis};
use super::facts::Typed;
use super::premise::{Premise, require};
use super::refusal::Objection;
use crate::display;
use crate::dtype::DType;
use crate::typed::{Dependence, Extent, Number, ValueType};

/// A dimension counted from the front.
pub(super) fn normalise_dim(dim: i64, rank: usize) -> Result<usize, Objection> {
    let signed = i64::try_from(rank).unwrap_or(i64::MAX);
    let counted = if dim < 0 { dim.saturating_add(signed) } else { dim };
    usize::try_from(counted)
        .ok()
        .filter(|dim| *dim < rank)
        .ok_or_else(|| {
            Objection::plain(
                format!("dimension {dim} does not exist in a tensor of rank {rank}"),
                "use an existing axis",
            )
        })
}

/// Product of constant extents; `None` past u64.
pub(super) fn product(extents: &[Extent]) -> Option<u64> {
    extents.iter().try_fold(1u64, |product, extent| match extent {
        Extent::Fixed(size) | Extent::Batch(size) => product.checked_mul(*size),
    })
}

/// The dependence and shape of an element-wise combination.
///
/// Operands are right-aligned. All batch axes must coincide, with the same number of elements a sample,
/// and there every Shared operand has extent 1 or no axis at all.
pub(super) fn broadcast(operands: &[&Typed]) -> Result<(Dependence, Vec<Extent>), Objection> {
    let rank = operands
        .iter()
        .map(|operand| operand.value_type.shape.len())
        .max()
        .unwrap_or(0);
    let from_right = |value_type: &ValueType| {
        batch_axis(value_type).map(|(axis, inner)| (value_type.shape.len() - axis, inner))
    };
    let batch = operands
        .iter()
        .find_map(|operand| from_right(&operand.value_type));
    for operand in operands {
        let own = from_right(&operand.value_type);
        require(Premise::BatchAxesAligned, own.is_none() || own == batch, || {
            let types: Vec<_> = operands
                .iter()
                .map(|operand| display::ty(&operand.value_type))
                .collect();
            let reason = format!(
                "broadcasting {} would combine different samples",
                types.join(" with ")
            );
            (
                reason,
                "give the operands the same batch axis, e.g. by .squeeze(-1), .unsqueeze(-1) or .view".into(),
            )
        })?;
        let spans_batch = batch.is_some_and(|(position, _)| {
            let extent = aligned(&operand.value_type, position);
            own.is_none() && extent.is_some_and(|extent| extent != Extent::Fixed(1))
        });
        require(Premise::SharedSpansNoBatch, !spans_batch, || {
            let reason = format!(
                "{} has a row per position of the batch: which sample meets which row depends on the other samples",
                display::ty(&operand.value_type)
            );
            (
                reason,
                "use a constant or parameter without that axis, or of extent 1 there".into(),
            )
        })?;
    }
    let mut shape = Vec::with_capacity(rank);
    for position in (1..=rank).rev() {
        let extents = operands
            .iter()
            .filter_map(|operand| aligned(&operand.value_type, position));
        shape.push(common_extent(extents, operands)?);
    }
    let dependence = batch.map_or(Dependence::Shared, |(position, _)| per_sample(rank - position));
    Ok((dependence, shape))
}

/// `PerSample` along this axis.
pub(super) fn per_sample(axis: usize) -> Dependence {
    Dependence::PerSample {
        axis: u8::try_from(axis).unwrap_or(u8::MAX),
    }
}

fn aligned(value_type: &ValueType, position: usize) -> Option<Extent> {
    value_type
        .shape
        .len()
        .checked_sub(position)
        .map(|axis| value_type.shape[axis])
}

fn common_extent(extents: impl Iterator<Item = Extent>, operands: &[&Typed]) -> Result<Extent, Objection> {
    let mut common = Extent::Fixed(1);
    for extent in extents {
        common = match (common, extent) {
            (Extent::Fixed(1), other) | (other, Extent::Fixed(1)) => other,
            // Different samples' axes or a Shared operand along the batch were judged above.
            (Extent::Batch(inner), _) | (_, Extent::Batch(inner)) => Extent::Batch(inner),
            (one, other) if one == other => one,
            _ => {
                let types: Vec<_> = operands
                    .iter()
                    .map(|operand| display::ty(&operand.value_type))
                    .collect();
                let reason = format!("the shapes of {} do not broadcast", types.join(" and "));
                return Err(Objection::plain(reason, "make the sizes equal or 1"));
            }
        };
    }
    Ok(common)
}

/// `torch.result_type`: tensors with axes decide before scalars, scalars before Python numbers, unless a
/// later one is of a higher category (bool < integer < float).
pub(super) fn result_type(operands: &[Operand<'_>]) -> DType {
    let mut groups: [Option<DType>; 3] = [None; 3];
    for operand in operands {
        let (group, dtype) = match operand {
            Operand::Tensor(typed) => (
                usize::from(typed.value_type.shape.is_empty()),
                typed.value_type.dtype,
            ),
            Operand::Number(Number::Bool(_)) => (2, DType::Bool),
            Operand::Number(Number::Int(_)) => (2, DType::I64),
            Operand::Number(Number::Float(_)) => (2, DType::F32),
        };
        groups[group] = Some(groups[group].map_or(dtype, |other| promote(other, dtype)));
    }
    let combined = groups.into_iter().flatten().reduce(|higher, lower| {
        let decides = higher.is_float() || (higher != DType::Bool && !lower.is_float());
        if decides { higher } else { promote(higher, lower) }
    });
    combined.unwrap_or(DType::F32)
}

/// Promotion of two tensor dtypes.
pub(super) fn promote(one: DType, other: DType) -> DType {
    one.max_by_rank(other)
}

impl DType {
    /// bool < uint8 < int32 < int64 < float32 < float64 is exactly torch's promotion among these.
    fn max_by_rank(self, other: Self) -> Self {
        const ORDER: [DType; 6] = [
            DType::Bool,
            DType::U8,
            DType::I32,
            DType::I64,
            DType::F32,
            DType::F64,
        ];
        let rank = |dtype: Self| ORDER.iter().position(|candidate| *candidate == dtype);
        if rank(self) >= rank(other) { self } else { other }
    }
}
