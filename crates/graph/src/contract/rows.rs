//! Checking rows against a contract: at the owner before anything is sent, at the server again (rule G4).
//!
//! An error names row, column, element and the *public* bound that was crossed, never the value.

use super::{Column, DataContract, Domain, bound_at};
use crate::dtype::DType;
use std::ops::Range;

/// A batch breaks its contract. Holds no private value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column:?}{}: {reason}", row.map(|row| format!(", row {row}")).unwrap_or_default())]
pub struct RowError {
    /// Row within the batch, from 0; `None` when the batch as a whole does not fit.
    pub row: Option<u64>,
    /// Column name.
    pub column: String,
    /// What is wrong with it.
    pub reason: RowReason,
}

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowReason {
    /// Not as many columns as the contract has.
    #[error("the batch has {found} columns, the contract {expected}")]
    Columns {
        /// Columns in the batch.
        found: usize,
        /// Columns of the contract.
        expected: usize,
    },
    /// The column's bytes are not rows × bytes a record.
    #[error("{found} bytes for {rows} rows of {record_bytes} bytes")]
    Length {
        /// Bytes in the batch.
        found: usize,
        /// Rows said to be there.
        rows: u64,
        /// Bytes one record takes.
        record_bytes: u64,
    },
    /// A NaN.
    #[error("element {element} is not a number (NaN)")]
    NotANumber {
        /// Element within the record, row-major.
        element: usize,
    },
    /// Below or above the declared range.
    #[error("element {element} is {side} {bound}, the declared bound")]
    OutOfRange {
        /// Element within the record, row-major.
        element: usize,
        /// `below the minimum` or `above the maximum`.
        side: &'static str,
        /// The public bound, as text.
        bound: String,
    },
    /// Not a class index.
    #[error("element {element} is not a class index below {classes}")]
    NotAClass {
        /// Element within the record, row-major.
        element: usize,
        /// Number of declared classes.
        classes: usize,
    },
    /// A bool byte other than 0 and 1.
    #[error("element {element} is a bool byte other than 0 and 1")]
    NotABool {
        /// Element within the record, row-major.
        element: usize,
    },
    /// No identifier of a unit.
    #[error(
        "not an identifier: every record needs one, an int64 or a text of 1 to {} bytes of UTF-8 without control characters",
        super::MAX_IDENTIFIER_BYTES
    )]
    NotAnIdentifier,
    /// A unit has more records than the contract allows.
    #[error(
        "its unit has more than {max_records} records, the declared max_records: declare more, or leave records of such units out"
    )]
    UnitTooLarge {
        /// Declared.
        max_records: u64,
    },
    /// The dataset has more units than the contract declares.
    #[error(
        "the dataset has more than {declared_units} units, the declared_units: declare the next published size"
    )]
    TooManyUnits {
        /// Declared.
        declared_units: u64,
    },
}

impl DataContract {
    /// Checks `rows` records given column by column: rows × elements, row-major, little-endian; identifiers of units,
    /// if there are any, last.
    ///
    /// # Errors
    /// The first [`RowError`], column by column.
    pub fn check_batch(&self, rows: u64, columns: &[&[u8]]) -> Result<(), RowError> {
        let unit = self.unit_column();
        let expected = self.columns.len() + usize::from(unit.is_some());
        if columns.len() != expected {
            let reason = RowReason::Columns {
                found: columns.len(),
                expected,
            };
            let names = self.columns.iter().map(|column| &column.name);
            let column = names.chain(unit.map(|unit| &unit.name)).nth(columns.len());
            let column = column.cloned().unwrap_or_default();
            return Err(RowError {
                row: None,
                column,
                reason,
            });
        }
        self.columns
            .iter()
            .zip(columns)
            .try_for_each(|(column, bytes)| column.check_rows(rows, bytes))?;
        match (unit, columns.last()) {
            (Some(unit), Some(identifiers)) => unit.check_rows(rows, identifiers),
            _ => Ok(()),
        }
    }
}

impl Column {
    /// Checks this column of a batch.
    ///
    /// # Errors
    /// The first [`RowError`].
    pub fn check_rows(&self, rows: u64, bytes: &[u8]) -> Result<(), RowError> {
        let error = |row, reason| RowError {
            row,
            column: self.name.clone(),
            reason,
        };
        if rows.checked_mul(self.record_bytes()) != Some(bytes.len() as u64) {
            let reason = RowReason::Length {
                found: bytes.len(),
                rows,
                record_bytes: self.record_bytes(),
            };
            return Err(error(None, reason));
        }
        let record = usize::try_from(self.record_bytes()).unwrap_or(usize::MAX).max(1);
        for (row, record) in bytes.chunks_exact(record).enumerate() {
            self.check_record(record)
                .map_err(|reason| error(Some(row as u64), reason))?;
        }
        Ok(())
    }

    fn check_record(&self, record: &[u8]) -> Result<(), RowReason> {
        let values = record.chunks_exact(self.dtype.size_bytes()).enumerate();
        match &self.domain {
            Domain::Bool => record
                .iter()
                .position(|&byte| byte > 1)
                .map_or(Ok(()), |element| Err(RowReason::NotABool { element })),
            Domain::Classes { names } => {
                let range = 0..names.len() as i64;
                values
                    .into_iter()
                    .try_for_each(|(element, bytes)| check_class(integer(bytes, self.dtype), element, &range))
            }
            Domain::Range { minimum, maximum } if all_within(record, self.dtype, minimum, maximum) => Ok(()),
            Domain::Range { minimum, maximum } => values.into_iter().try_for_each(|(element, bytes)| {
                let bounds = (bound_at(minimum, element), bound_at(maximum, element));
                check_range(bytes, self.dtype, element, bounds)
            }),
        }
    }
}

/// Whether every element certainly lies within one pair of bounds: the usual case, without a branch for each element,
/// so that a large column costs little more than reading it. `false` says nothing.
fn all_within(record: &[u8], dtype: DType, minimum: &[f64], maximum: &[f64]) -> bool {
    let (DType::F32, &[low], &[high]) = (dtype, minimum, maximum) else {
        return false;
    };
    // As `bound_in` rounds them. A NaN is not within.
    let (low, high) = (low as f32, high as f32);
    let within = |value: f32| (low <= value) & (value <= high);
    record
        .chunks_exact(size_of::<f32>())
        .fold(true, |all, bytes| all & within(f32::from_le_bytes(array(bytes))))
}

fn check_class(value: i64, element: usize, range: &Range<i64>) -> Result<(), RowReason> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(RowReason::NotAClass {
        element,
        classes: range.end as usize,
    })
}

fn check_range(bytes: &[u8], dtype: DType, element: usize, (low, high): (f64, f64)) -> Result<(), RowReason> {
    let outside = |side, bound: f64| RowReason::OutOfRange {
        element,
        side,
        bound: bound.to_string(),
    };
    let (below, above) = match dtype {
        DType::F32 | DType::F64 => {
            let value = float(bytes, dtype);
            let (low, high) = (bound_in(low, dtype), bound_in(high, dtype));
            if value.is_nan() {
                return Err(RowReason::NotANumber { element });
            }
            (value < low, value > high)
        }
        // Bounds of integer columns are integers of at most 2^53, so the casts are exact.
        _ => (
            integer(bytes, dtype) < low as i64,
            integer(bytes, dtype) > high as i64,
        ),
    };
    if below {
        return Err(outside("below the minimum", low));
    }
    if above {
        Err(outside("above the maximum", high))
    } else {
        Ok(())
    }
}

/// A bound as the column's own dtype writes it: 28.11 stored as f32 is above 28.11, and still meets
/// a declared maximum of 28.11. Rounding is monotone, so no value within the bounds is lost by it.
fn bound_in(bound: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(bound as f32),
        _ => bound,
    }
}

fn float(bytes: &[u8], dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(f32::from_le_bytes(array(bytes))),
        _ => f64::from_le_bytes(array(bytes)),
    }
}

fn integer(bytes: &[u8], dtype: DType) -> i64 {
    match dtype {
        DType::I64 => i64::from_le_bytes(array(bytes)),
        DType::I32 => i64::from(i32::from_le_bytes(array(bytes))),
        _ => i64::from(bytes[0]),
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes
        .try_into()
        .expect("chunks_exact(dtype.size_bytes()) yields exactly that many bytes")
}
