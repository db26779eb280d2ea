//! The data contract: what one record looks like. Owners declare it, clients check rows against it
//! before anything is sent, the server checks again, and the checker types a model's inputs from it.
//!
//! Everything here is *public*: it is declared, never computed from private rows (rules T5, G4, D10).

use crate::dtype::DType;
use serde::{Deserialize, Serialize};

/// Version of the contract's canonical encoding.
pub const CONTRACT_VERSION: u32 = 1;

/// Columns, sizes and unit of a dataset's records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataContract {
    /// [`CONTRACT_VERSION`].
    pub version: u32,
    /// Columns in the order records are stored.
    pub columns: Vec<Column>,
    /// What one unit of privacy is.
    pub privacy_unit: PrivacyUnit,
    /// Declared number of records, a rung of [`SIZE_LADDER`] (rule D10).
    pub declared_size: u64,
}

/// What the guarantee protects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrivacyUnit {
    /// One record.
    Record,
}

/// One column: a tensor of fixed shape per record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// Name, unique in the contract.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents of one record; empty for a scalar.
    pub shape: Vec<u64>,
    /// Public range of every element.
    pub domain: Domain,
}

/// The declared public domain of a column's elements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Domain {
    /// Floats or integers in `[minimum, maximum]`, per element of the record (row-major), or one pair for all.
    /// NaN is never in range.
    Range {
        /// One bound, or one per element.
        minimum: Vec<f64>,
        /// One bound, or one per element.
        maximum: Vec<f64>,
    },
    /// Class indices `0..names.len()` of an integer column.
    Classes {
        /// Public class names.
        names: Vec<String>,
    },
    /// 0 or 1 of a bool column.
    Bool,
}
