//! From values of records to values of units: rows of a unit's records joined, their gradients added up.
//!
//! What a batch holds of a record that does not count (padding behind a unit's records, or a value out of range) is selected
//! out first, of inputs and of gradients, never multiplied by zero (rule G3). A record that is not finite stays, and takes
//! its unit with it: the norms of the whole are then no numbers, and the unit counts as zero. Either is a function of the
//! unit alone, which is all that the sensitivity asks for.

use super::TapValues;
use super::normalised::Reduced;
use crate::device::{beside, to_host};
use crate::error::Result;
use crate::taps::{TapKind, TapPlan};
use tch::{Kind, Tensor};

/// The units of one batch: its records in blocks of `length`.
pub(crate) struct Units {
    /// Records of a unit, k.
    pub(crate) length: i64,
    /// `[B]`, bool: records that count.
    pub(crate) counted: Tensor,
}

impl Units {
    fn shallow_clone(&self) -> Self {
        Self {
            length: self.length,
            counted: self.counted.shallow_clone(),
        }
    }

    /// `[B]` as `[B/k]`: whether any record of a unit counts.
    pub(crate) fn any(&self) -> Result<Tensor> {
        let units = to_host(&self.counted)?.f_reshape([-1, self.length])?;
        Ok(units.f_any_dim(1, false)?)
    }

    /// `[B, ..]` with `other` in place of records that do not count: an integer, so that ids stay integers.
    fn selected(&self, values: &Tensor, other: i64) -> Result<Tensor> {
        let mut shape = vec![1; values.size().len()];
        shape[0] = -1;
        let mask = beside(&self.counted, values)?.f_reshape(&shape[..])?;
        Ok(values.f_where_scalarother(&mask, other)?)
    }

    /// `[B, T, ..]` as `[B/k, k·T, ..]`.
    fn joined(&self, values: &Tensor, other: i64) -> Result<Tensor> {
        let selected = self.selected(values, other)?;
        let mut shape = selected.size();
        shape[0] /= self.length;
        shape[1] *= self.length;
        Ok(selected.f_reshape(&shape[..])?)
    }

    /// Gradients of the records `[first·k, (first + count)·k)`, `[count·k, ..]`, as sums of units, `[count, ..]`.
    fn summed(&self, gradients: &Tensor, first: i64) -> Result<Tensor> {
        let mut shape = gradients.size();
        let own = Self {
            length: self.length,
            counted: self.counted.f_narrow(0, first * self.length, shape[0])?,
        };
        shape[0] /= self.length;
        shape.insert(1, self.length);
        let records = own.selected(gradients, 0)?.f_reshape(&shape[..])?;
        Ok(records.f_sum_dim_intlist(1, false, None::<Kind>)?)
    }
}

/// A tap's values of records as those of units: rows joined, gradients that were made already added up, and the others
/// left as they are, to be added up when they are made ([`of_block`]).
pub(super) fn of_units(plan: &TapPlan, values: TapValues, units: &Units) -> Result<TapValues> {
    if units.length == 1 {
        return Ok(values);
    }
    if let Some(Reduced { scale, sum }) = &values.reduced {
        let reduced = Reduced {
            scale: units.summed(scale, 0)?,
            sum: units.summed(sum, 0)?,
        };
        return Ok(super::of_reduced(reduced));
    }
    let has_rows = match &plan.kind {
        TapKind::Rows { .. } | TapKind::LayerNorm { .. } | TapKind::RmsNorm { .. } => true,
        TapKind::Embedding { .. } => true,
        TapKind::Convolution(_) => plan.as_rows && values.input.is_some(),
        TapKind::Broadcast | TapKind::Channels { .. } | TapKind::Pulled => false,
    };
    if !has_rows {
        return Ok(TapValues {
            units: Some(units.shallow_clone()),
            ..values
        });
    }
    // A token without a record has no id.
    let absent = if matches!(plan.kind, TapKind::Embedding { .. }) {
        -1
    } else {
        0
    };
    let joined = |values: &Tensor| units.joined(values, 0);
    let norms = |(inputs, gradients): &(Tensor, Tensor)| {
        Ok::<_, crate::error::EngineError>((joined(inputs)?, joined(gradients)?))
    };
    Ok(TapValues {
        gradient: joined(&values.gradient)?,
        input: values
            .input
            .as_ref()
            .map(|input| units.joined(input, absent))
            .transpose()?,
        row_norms: values.row_norms.as_ref().map(norms).transpose()?,
        // A convolution's bias: by channel, record by record.
        units: values.channels.is_some().then(|| units.shallow_clone()),
        channels: values.channels,
        reduced: None,
    })
}

/// Gradients of a block of units `(first, count)`, `[count, ..]`, where a tap has them of records: `of_records` makes those
/// of a block of records.
pub(super) fn of_block(
    units: Option<&Units>,
    (first, count): (i64, i64),
    of_records: impl FnOnce((i64, i64)) -> Result<Tensor>,
) -> Result<Tensor> {
    match units {
        None => of_records((first, count)),
        Some(units) => units.summed(&of_records((first * units.length, count * units.length))?, first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn units() -> Units {
        Units {
            length: 3,
            counted: Tensor::from_slice(&[true, true, false, true, false, false]),
        }
    }

    #[test]
    fn rows_of_a_units_records_are_joined_and_what_does_not_count_is_selected_out() {
        let rows = Tensor::arange(12, (Kind::Double, Device::Cpu)).reshape([6, 2, 1]);
        let _ = rows.get(2).fill_(f64::NAN);
        let _ = rows.get(5).fill_(f64::INFINITY);
        let joined = units().joined(&rows, 0).unwrap();
        assert_eq!(joined.size(), [2, 6, 1]);
        assert_eq!(
            Vec::<f64>::try_from(joined.flatten(0, -1)).unwrap(),
            [0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 6.0, 7.0, 0.0, 0.0, 0.0, 0.0]
        );
        let any: Vec<bool> = units().any().unwrap().try_into().unwrap();
        assert_eq!(any, [true, true]);
    }

    #[test]
    fn gradients_of_a_units_records_are_added_up_block_by_block() {
        let gradients = Tensor::from_slice(&[1.0f64, 2.0, f64::NAN, 8.0, 16.0, 32.0]).reshape([6, 1]);
        let of = |(first, count)| Ok(gradients.f_narrow(0, first, count)?);
        let all = of_block(Some(&units()), (0, 2), of).unwrap();
        assert_eq!(Vec::<f64>::try_from(all.flatten(0, -1)).unwrap(), [3.0, 8.0]);
        let second = of_block(Some(&units()), (1, 1), of).unwrap();
        assert_eq!(Vec::<f64>::try_from(second.flatten(0, -1)).unwrap(), [8.0]);
        assert_eq!(of_block(None, (1, 2), of).unwrap().size(), [2, 1]);
    }
}
