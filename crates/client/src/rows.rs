//! Record batches: rows column by column, checked against the contract before anything leaves.

use crate::errors::ClientError;
use bastionai_graph::contract::{DataContract, RowError, UnitCount};
use serde::Serialize;

/// Some rows of a dataset: one byte string per contract column, `rows × elements`, row-major,
/// little-endian, a bool as one byte.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct RecordBatch {
    /// Number of rows.
    pub rows: u64,
    /// One per contract column, in its order; then the units' identifiers, where the contract has such a column
    /// (`bastionai_graph::contract::UnitType`).
    pub columns: Vec<Vec<u8>>,
}

/// Shows sizes only: rows are private.
impl std::fmt::Debug for RecordBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "RecordBatch({} rows, {} columns)",
            self.rows,
            self.columns.len()
        )
    }
}

/// How far a transfer got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Transfer {
    /// Bytes handed to the connection, or received.
    pub done_bytes: u64,
    /// Bytes in all; absent while the end of a streamed upload is unknown.
    pub total_bytes: Option<u64>,
}

/// A whole dataset's rows, each checked once against a contract. Only [`CheckedRecords::check`] makes one.
#[derive(Clone, Debug)]
pub struct CheckedRecords {
    pub(crate) contract: DataContract,
    pub(crate) batches: Vec<RecordBatch>,
    rows: u64,
}

impl CheckedRecords {
    /// Checks every row.
    ///
    /// # Errors
    /// [`ClientError::RowRefused`] with row and column, never with a value.
    pub fn check(contract: &DataContract, batches: Vec<RecordBatch>) -> Result<Self, ClientError> {
        let mut rows = 0;
        let mut units = contract.unit_column().map(UnitCount::new);
        for batch in &batches {
            batch.check(contract, rows)?;
            batch.count(units.as_mut(), rows)?;
            rows += batch.rows;
        }
        Ok(Self {
            contract: contract.clone(),
            batches,
            rows,
        })
    }

    /// Rows in all.
    pub fn rows(&self) -> u64 {
        self.rows
    }
}

impl RecordBatch {
    /// Bytes of all columns.
    pub fn size_bytes(&self) -> u64 {
        self.columns.iter().map(|column| column.len() as u64).sum()
    }

    /// Checks every value against the contract. `first_row` is the number of rows before this batch.
    ///
    /// # Errors
    /// [`ClientError::RowRefused`] with the row's number in the whole dataset; never with a value.
    pub fn check(&self, contract: &DataContract, first_row: u64) -> Result<(), ClientError> {
        let columns: Vec<&[u8]> = self.columns.iter().map(Vec::as_slice).collect();
        contract
            .check_batch(self.rows, &columns)
            .map_err(|error| refused(error, first_row))
    }

    /// Counts the records of each unit of a checked batch, where the contract has a column of units.
    pub(crate) fn count(&self, units: Option<&mut UnitCount>, first_row: u64) -> Result<(), ClientError> {
        match (units, self.columns.last()) {
            (Some(units), Some(identifiers)) => {
                units.add(identifiers).map_err(|error| refused(error, first_row))
            }
            _ => Ok(()),
        }
    }

    /// Cuts a checked batch into batches of at most `most_bytes`, at least one row each.
    pub(crate) fn split(self, most_bytes: usize) -> Vec<Self> {
        let record_bytes = self.size_bytes().checked_div(self.rows).unwrap_or(0).max(1);
        let rows_each = (most_bytes as u64 / record_bytes).max(1);
        if self.rows <= rows_each {
            return vec![self];
        }
        let pieces = self.rows.div_ceil(rows_each);
        (0..pieces)
            .map(|piece| self.slice(piece * rows_each, rows_each))
            .collect()
    }

    fn slice(&self, first: u64, most: u64) -> Self {
        let last = self.rows.min(first + most);
        let cut = |column: &Vec<u8>| {
            let width = column.len() as u64 / self.rows;
            column[(first * width) as usize..(last * width) as usize].to_vec()
        };
        Self {
            rows: last - first,
            columns: self.columns.iter().map(cut).collect(),
        }
    }
}

fn refused(error: RowError, first_row: u64) -> ClientError {
    ClientError::RowRefused {
        row: error.row.map(|row| row + first_row),
        column: error.column,
        reason: error.reason.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn contract() -> DataContract {
        let json = br#"{"version":1,"columns":[
            {"name":"x","dtype":"f32","shape":[2],"domain":{"range":{"minimum":[0.0],"maximum":[1.0]}}},
            {"name":"y","dtype":"i64","shape":[],"domain":{"classes":{"names":["no","yes"]}}}],
            "privacy_unit":"record","declared_size":16}"#;
        DataContract::parse_json(json).unwrap()
    }

    pub(crate) fn batch(values: &[([f32; 2], i64)]) -> RecordBatch {
        let x = values
            .iter()
            .flat_map(|(x, _)| x.iter().flat_map(|v| v.to_le_bytes()))
            .collect();
        let y = values.iter().flat_map(|(_, y)| y.to_le_bytes()).collect();
        RecordBatch {
            rows: values.len() as u64,
            columns: vec![x, y],
        }
    }

    #[test]
    fn a_bad_value_is_refused_with_its_row_in_the_dataset_and_without_the_value() {
        let batch = batch(&[([0.0, 1.0], 0), ([0.5, 777.0], 1)]);
        let error = batch.check(&contract(), 100).unwrap_err();
        let ClientError::RowRefused { row, column, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!((*row, column.as_str()), (Some(101), "x"));
        assert!(!error.to_string().contains("777"), "{error}");
    }

    #[test]
    fn records_are_checked_as_one_dataset_with_rows_counted_over_its_batches() {
        let good = batch(&[([0.0, 1.0], 0), ([0.5, 0.5], 1)]);
        let bad = batch(&[([0.0, 1.0], 0), ([0.5, 2.0], 1)]);
        let records = CheckedRecords::check(&contract(), vec![good.clone(), good.clone()]).unwrap();
        assert_eq!(records.rows(), 4);
        let error = CheckedRecords::check(&contract(), vec![good, bad]).unwrap_err();
        assert!(
            matches!(error, ClientError::RowRefused { row: Some(3), .. }),
            "{error}"
        );
    }

    #[test]
    fn a_unit_of_too_many_records_is_refused_over_all_batches_before_anything_is_sent() {
        let unit = r#"{"column":{"name":"who","dtype":"i64","max_records":2,"declared_units":16}}"#;
        let json = String::from_utf8(contract().to_canonical_json()).unwrap();
        let json = json.replace(r#""privacy_unit":"record""#, &format!(r#""privacy_unit":{unit}"#));
        let contract = DataContract::parse_json(json.as_bytes()).unwrap();
        let of = |who: [i64; 2]| {
            let mut batch = batch(&[([0.0, 1.0], 0), ([0.5, 0.5], 1)]);
            batch
                .columns
                .push(who.iter().flat_map(|who| who.to_le_bytes()).collect());
            batch
        };
        let fitting = vec![of([977, 3]), of([3, 977])];
        assert_eq!(
            CheckedRecords::check(&contract, fitting.clone()).unwrap().rows(),
            4
        );
        let error = CheckedRecords::check(&contract, [fitting, vec![of([5, 977])]].concat()).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(&error, ClientError::RowRefused { row: Some(5), column, .. } if column == "who"),
            "{text}"
        );
        assert!(text.contains("max_records") && !text.contains("977"), "{text}");
    }

    #[test]
    fn a_batch_of_another_shape_is_refused() {
        let mut short = batch(&[([0.0, 1.0], 0)]);
        short.columns[0].pop();
        assert!(matches!(
            short.check(&contract(), 0),
            Err(ClientError::RowRefused { row: None, .. })
        ));
        let missing = RecordBatch {
            columns: vec![vec![0; 8]],
            rows: 1,
        };
        assert!(matches!(
            missing.check(&contract(), 0),
            Err(ClientError::RowRefused { .. })
        ));
    }

    #[test]
    fn splitting_keeps_every_row_in_order() {
        let whole = batch(&[
            ([0.0, 0.1], 0),
            ([0.2, 0.3], 1),
            ([0.4, 0.5], 0),
            ([0.6, 0.7], 1),
            ([0.8, 0.9], 0),
        ]);
        for most in [1, 16, 32, 33, 79, 80, 1000] {
            let pieces = whole.clone().split(most);
            assert!(
                pieces
                    .iter()
                    .all(|piece| piece.size_bytes() <= (most as u64).max(16))
            );
            let joined = |column: usize| {
                pieces
                    .iter()
                    .flat_map(|p| p.columns[column].clone())
                    .collect::<Vec<u8>>()
            };
            assert_eq!(
                (joined(0), joined(1)),
                (whole.columns[0].clone(), whole.columns[1].clone()),
                "{most}"
            );
            assert_eq!(pieces.iter().map(|piece| piece.rows).sum::<u64>(), whole.rows);
        }
    }

    #[test]
    fn debug_shows_no_values() {
        assert_eq!(
            format!("{:?}", batch(&[([0.25, 0.75], 1)])),
            "RecordBatch(1 rows, 2 columns)"
        );
    }
}
