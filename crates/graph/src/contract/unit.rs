//! Privacy units above the record: a column of identifiers (patients, customers) whose records are protected together.
//!
//! The column is declared beside the others and is no input of any model. Its values are private: they are checked here,
//! counted against the declared caps, and appear in no message, error or log (rules G4, G5).
//!
//! # Encoding
//! In a batch and in storage it is one more column, behind the contract's: an i64 in 8 bytes, little-endian; a string in 65,
//! its length in bytes and then its UTF-8, padded with zeros.
//!
//! # Which identifiers are the same
//! Those of the same bytes. A string has 1 to 64 bytes, no control characters and no white space at its ends
//! ([`UnitType::encode`] cuts it off); upper and lower case, and letters composed differently, differ.

use super::rows::{RowError, RowReason};
use super::{ContractError, SIZE_LADDER, validate_name};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What the guarantee protects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrivacyUnit {
    /// One record.
    Record,
    /// All records of one identifier.
    Column(UnitColumn),
}

/// A declared column of identifiers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitColumn {
    /// Name, of no other column of the contract.
    pub name: String,
    /// What identifiers are.
    pub dtype: UnitType,
    /// Most records of one unit in this dataset, 1 to [`MAX_RECORDS_PER_UNIT`]: an upload with more is refused.
    pub max_records: u64,
    /// Declared number of units, a rung of [`SIZE_LADDER`] (rule D10): rates and divisors are computed from it.
    pub declared_units: u64,
}

/// What identifiers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitType {
    /// UTF-8 of at most [`MAX_IDENTIFIER_BYTES`].
    String,
    /// An integer.
    I64,
}

/// Most records of a unit: all of a unit that a step uses stand in one micro-batch.
pub const MAX_RECORDS_PER_UNIT: u64 = 1024;
/// Longest identifier, in bytes of UTF-8.
pub const MAX_IDENTIFIER_BYTES: usize = 64;

impl UnitColumn {
    /// Checks everything the type cannot say; `declared_size` and `columns` are the contract's.
    pub(super) fn validate<'c>(
        &self,
        declared_size: u64,
        mut columns: impl Iterator<Item = &'c str>,
    ) -> Result<(), ContractError> {
        let wrong = |reason: String| ContractError::Column {
            column: self.name.clone(),
            reason,
        };
        validate_name(&self.name).map_err(wrong)?;
        if columns.any(|name| name == self.name) {
            return Err(wrong(
                "the unit column is no input: declare it as privacy unit only, or under another name".into(),
            ));
        }
        if !(1..=MAX_RECORDS_PER_UNIT).contains(&self.max_records) {
            return Err(wrong(format!(
                "max_records {} must be from 1 to {MAX_RECORDS_PER_UNIT}",
                self.max_records
            )));
        }
        if !SIZE_LADDER.contains(&self.declared_units) || self.declared_units > declared_size {
            return Err(wrong(format!(
                "declared_units {} must be one of the published sizes 2^k or 3*2^(k-1) from 16 on, and at most the \
                 declared_size {declared_size}",
                self.declared_units
            )));
        }
        Ok(())
    }

    /// Whether the identifiers of two datasets name the same units: columns of one name and type (rule D9).
    pub fn joins(&self, other: &Self) -> bool {
        self.name == other.name && self.dtype == other.dtype
    }

    /// Checks the identifiers of `rows` records.
    ///
    /// # Errors
    /// The first [`RowError`].
    pub(super) fn check_rows(&self, rows: u64, bytes: &[u8]) -> Result<(), RowError> {
        let width = self.dtype.size_bytes();
        if rows.checked_mul(width) != Some(bytes.len() as u64) {
            let reason = RowReason::Length {
                found: bytes.len(),
                rows,
                record_bytes: width,
            };
            return Err(self.error(None, reason));
        }
        for (row, identifier) in bytes.chunks_exact(width as usize).enumerate() {
            if !self.dtype.is_identifier(identifier) {
                return Err(self.error(Some(row as u64), RowReason::NotAnIdentifier));
            }
        }
        Ok(())
    }

    fn error(&self, row: Option<u64>, reason: RowReason) -> RowError {
        RowError {
            row,
            column: self.name.clone(),
            reason,
        }
    }
}

impl UnitType {
    /// Bytes of one identifier, encoded.
    pub fn size_bytes(self) -> u64 {
        match self {
            Self::String => 1 + MAX_IDENTIFIER_BYTES as u64,
            Self::I64 => 8,
        }
    }

    /// Encodes an identifier that is written as text, white space at its ends cut off.
    ///
    /// # Errors
    /// [`RowReason::NotAnIdentifier`] when it is empty, too long, has control characters, or is no integer.
    pub fn encode(self, text: &str) -> Result<Vec<u8>, RowReason> {
        let text = text.trim();
        let encoded = match self {
            Self::I64 => {
                let number: i64 = text.parse().map_err(|_| RowReason::NotAnIdentifier)?;
                number.to_le_bytes().to_vec()
            }
            Self::String => {
                let length = u8::try_from(text.len()).map_err(|_| RowReason::NotAnIdentifier)?;
                let mut encoded = vec![length];
                encoded.extend(text.bytes());
                encoded.resize(encoded.len().max(self.size_bytes() as usize), 0);
                encoded
            }
        };
        if self.is_identifier(&encoded) {
            Ok(encoded)
        } else {
            Err(RowReason::NotAnIdentifier)
        }
    }

    fn is_identifier(self, encoded: &[u8]) -> bool {
        if encoded.len() as u64 != self.size_bytes() {
            return false;
        }
        if self == Self::I64 {
            return true;
        }
        let length = usize::from(encoded[0]);
        let Some((text, padding)) = encoded[1..].split_at_checked(length) else {
            return false;
        };
        let text = std::str::from_utf8(text).unwrap_or_default();
        !text.is_empty()
            && text.trim() == text
            && !text.chars().any(char::is_control)
            && padding.iter().all(|&byte| byte == 0)
    }
}

/// Counts the records of each unit while a dataset is read, against what its contract declares. Private: it says nothing
/// but the first record that is too many, to the owner.
pub struct UnitCount {
    column: UnitColumn,
    records: HashMap<Vec<u8>, u64>,
}

impl UnitCount {
    /// Nothing counted yet.
    pub fn new(column: &UnitColumn) -> Self {
        Self {
            column: column.clone(),
            records: HashMap::new(),
        }
    }

    /// Counts the identifiers of one batch, which were checked.
    ///
    /// # Errors
    /// [`RowError`] with the row of the batch at which a unit has a record more than `max_records`, or the dataset a unit
    /// more than `declared_units`.
    pub fn add(&mut self, identifiers: &[u8]) -> Result<(), RowError> {
        let column = &self.column;
        let width = column.dtype.size_bytes() as usize;
        for (row, identifier) in identifiers.chunks_exact(width).enumerate() {
            let units = self.records.len() as u64;
            let reason = match self.records.get_mut(identifier) {
                Some(records) if *records >= column.max_records => Some(RowReason::UnitTooLarge {
                    max_records: column.max_records,
                }),
                Some(records) => {
                    *records += 1;
                    None
                }
                None if units >= column.declared_units => Some(RowReason::TooManyUnits {
                    declared_units: column.declared_units,
                }),
                None => {
                    self.records.insert(identifier.to_vec(), 1);
                    None
                }
            };
            if let Some(reason) = reason {
                return Err(column.error(Some(row as u64), reason));
            }
        }
        Ok(())
    }

    /// Units seen. Private.
    pub fn units(&self) -> u64 {
        self.records.len() as u64
    }

    /// Records of the largest unit. Private.
    pub fn largest(&self) -> u64 {
        self.records.values().copied().max().unwrap_or(0)
    }
}

/// Says nothing about the units.
impl std::fmt::Debug for UnitCount {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "UnitCount({:?})", self.column.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(dtype: UnitType) -> UnitColumn {
        UnitColumn {
            name: "patient_id".into(),
            dtype,
            max_records: 2,
            declared_units: 16,
        }
    }

    fn identifiers(texts: &[&str]) -> Vec<u8> {
        texts
            .iter()
            .flat_map(|text| UnitType::String.encode(text).unwrap())
            .collect()
    }

    #[test]
    fn identifiers_are_the_same_when_their_bytes_are_but_for_white_space_at_the_ends() {
        let encode = |text: &str| UnitType::String.encode(text);
        assert_eq!(encode(" p-17\t").unwrap(), encode("p-17").unwrap());
        assert_ne!(encode("P-17").unwrap(), encode("p-17").unwrap());
        assert_ne!(encode("é").unwrap(), encode("e\u{301}").unwrap());
        assert_eq!(encode("p").unwrap().len(), 65);
        assert_eq!(encode(&"x".repeat(64)).unwrap()[0], 64);
        for bad in [
            "",
            "  ",
            "a\nb",
            &"x".repeat(65),
            &"é".repeat(33),
            &"x".repeat(300),
        ] {
            assert_eq!(encode(bad), Err(RowReason::NotAnIdentifier), "{bad:?}");
        }
        assert_eq!(UnitType::I64.encode(" -7 ").unwrap(), (-7i64).to_le_bytes());
        assert!(UnitType::I64.encode("7.0").is_err() && UnitType::I64.encode("").is_err());
    }

    #[test]
    fn encodings_that_are_not_canonical_are_refused() {
        let good = identifiers(&["abc"]);
        let column = column(UnitType::String);
        column.check_rows(1, &good).unwrap();
        let broken = |change: fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            column.check_rows(1, &bytes).unwrap_err()
        };
        let changes: [fn(&mut Vec<u8>); 7] = [
            |bytes| bytes[64] = 1,
            |bytes| bytes[0] = 0,
            |bytes| bytes[0] = 4,
            |bytes| bytes[0] = 65,
            |bytes| bytes[1] = b' ',
            |bytes| bytes[2] = 0xff,
            |bytes| bytes[3] = 7,
        ];
        for change in changes {
            let error = broken(change);
            assert_eq!((error.row, &error.reason), (Some(0), &RowReason::NotAnIdentifier));
        }
        assert_eq!(broken(|bytes| bytes.truncate(64)).row, None);
    }

    #[test]
    fn a_unit_with_a_record_too_many_is_named_by_its_row_and_never_by_its_identifier() {
        let mut count = UnitCount::new(&column(UnitType::String));
        count.add(&identifiers(&["anna", "bert", "anna"])).unwrap();
        let error = count.add(&identifiers(&["bert", "anna"])).unwrap_err();
        assert_eq!(error.row, Some(1));
        let text = error.to_string();
        assert!(
            text.contains("more than 2 records") && text.contains("max_records"),
            "{text}"
        );
        assert!(!text.contains("anna") && !format!("{count:?}").contains("anna"));
    }

    #[test]
    fn more_units_than_declared_are_refused() {
        let mut count = UnitCount::new(&column(UnitType::I64));
        let of = |from: i64, to: i64| (from..to).flat_map(i64::to_le_bytes).collect::<Vec<u8>>();
        count.add(&of(0, 16)).unwrap();
        count.add(&of(0, 16)).unwrap();
        assert_eq!((count.units(), count.largest()), (16, 2));
        let error = count.add(&of(16, 17)).unwrap_err();
        assert_eq!(error.reason, RowReason::TooManyUnits { declared_units: 16 });
    }

    #[test]
    fn units_are_shared_by_columns_of_one_name_and_type() {
        let own = column(UnitType::String);
        let larger = UnitColumn {
            max_records: 9,
            declared_units: 64,
            ..own.clone()
        };
        assert!(own.joins(&larger));
        assert!(!own.joins(&column(UnitType::I64)));
        assert!(!own.joins(&UnitColumn {
            name: "patient".into(),
            ..own.clone()
        }));
    }
}
