//! The data contract: what one record looks like. Owners declare it, clients check rows against it
//! before anything is sent, the server checks again, and the checker types a model's inputs from it.
//!
//! Everything here is *public*: it is declared, never computed from private rows (rules T5, G4, D10).

mod rows;
mod unit;

pub use rows::{RowError, RowReason};
pub use unit::{MAX_IDENTIFIER_BYTES, MAX_RECORDS_PER_UNIT, PrivacyUnit, UnitColumn, UnitCount, UnitType};

use crate::dtype::DType;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashSet;

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

/// A column as a model takes it: what [`crate::check()`] types an input from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputColumn {
    /// Column of the data contract.
    pub column: String,
    /// Element type.
    pub dtype: DType,
    /// Extents of one record.
    pub shape: Vec<u64>,
    /// Public range of every element; `None` when no contract is at hand (`bastionai check MODEL.pt2`).
    pub domain: Option<Domain>,
}

/// Why a contract is not acceptable. Everything in a contract is public, so messages may quote it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContractError {
    /// Longer than [`MAX_CONTRACT_BYTES`].
    #[error("the contract has {found} bytes of JSON, more than {MAX_CONTRACT_BYTES}")]
    TooLong {
        /// Bytes given.
        found: usize,
    },
    /// Not the JSON of a contract: syntax, an unknown, missing or repeated field, a wrong type.
    #[error("the contract is not valid JSON of a data contract: {0}")]
    Json(#[from] serde_json::Error),
    /// Written for another version.
    #[error("contract version {found} is not {CONTRACT_VERSION}; update this side")]
    Version {
        /// Version found.
        found: u32,
    },
    /// `declared_size` is not on the published ladder (rule D10).
    #[error("declared_size {found} is not one of the published sizes 2^k or 3*2^(k-1) from 16 to 2^31{}",
        declared_size_for(*found).map(|size| format!("; the next one is {size}")).unwrap_or_default())]
    DeclaredSize {
        /// Size found.
        found: u64,
    },
    /// No columns, too many, or too many bytes a record.
    #[error("{0}")]
    Extent(String),
    /// One column is wrong.
    #[error("column {column:?}: {reason}")]
    Column {
        /// Its name.
        column: String,
        /// What is wrong.
        reason: String,
    },
}

/// Longest accepted contract JSON.
pub const MAX_CONTRACT_BYTES: usize = 1 << 16;
/// Most columns of a contract.
pub const MAX_COLUMNS: usize = 1024;
/// Most axes of one record's tensor.
pub const MAX_COLUMN_RANK: usize = 7;
/// Most bytes of one record over all columns.
pub const MAX_RECORD_BYTES: u64 = 1 << 26;
/// Longest column or class name, in bytes.
pub const MAX_NAME_BYTES: usize = 128;
/// Integer bounds must be exact in the contract's f64: at most 2^53.
const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_992.0;

/// The published sizes (rule D10): 2^k and 3·2^(k−1), from 16 to 2^31, ascending.
pub const SIZE_LADDER: [u64; 55] = size_ladder();

const fn size_ladder() -> [u64; 55] {
    let mut ladder = [0; 55];
    let mut rung = 0;
    while rung < 55 {
        let power = 1u64 << (4 + rung / 2);
        ladder[rung] = if rung % 2 == 0 { power } else { power / 2 * 3 };
        rung += 1;
    }
    ladder
}

/// The smallest published size that holds `rows` records; `None` above 2^31.
pub fn declared_size_for(rows: u64) -> Option<u64> {
    SIZE_LADDER.into_iter().find(|&size| size >= rows)
}

impl DataContract {
    /// Reads and validates a contract. Unknown and repeated fields are refused.
    ///
    /// # Errors
    /// [`ContractError`], naming the column.
    pub fn parse_json(json: &[u8]) -> Result<Self, ContractError> {
        if json.len() > MAX_CONTRACT_BYTES {
            return Err(ContractError::TooLong { found: json.len() });
        }
        let contract: Self = serde_json::from_slice(json)?;
        contract.validate()?;
        Ok(contract)
    }

    /// Checks everything the type cannot say.
    ///
    /// # Errors
    /// The first [`ContractError`], in the order of the fields.
    pub fn validate(&self) -> Result<(), ContractError> {
        if self.version != CONTRACT_VERSION {
            return Err(ContractError::Version { found: self.version });
        }
        if self.columns.is_empty() || self.columns.len() > MAX_COLUMNS {
            let found = self.columns.len();
            return Err(ContractError::Extent(format!(
                "a contract has 1 to {MAX_COLUMNS} columns, not {found}"
            )));
        }
        let mut names = HashSet::new();
        for column in &self.columns {
            let wrong = |reason: String| ContractError::Column {
                column: column.name.clone(),
                reason,
            };
            column.validate().map_err(wrong)?;
            if !names.insert(&column.name) {
                return Err(wrong("the name appears twice".into()));
            }
        }
        let bytes = self
            .stored_column_bytes()
            .into_iter()
            .fold(0u64, u64::saturating_add);
        if bytes > MAX_RECORD_BYTES {
            return Err(ContractError::Extent(format!(
                "a record has {bytes} bytes, more than {MAX_RECORD_BYTES}"
            )));
        }
        if !SIZE_LADDER.contains(&self.declared_size) {
            return Err(ContractError::DeclaredSize {
                found: self.declared_size,
            });
        }
        match self.unit_column() {
            Some(unit) => unit.validate(self.declared_size, names.into_iter().map(String::as_str)),
            None => Ok(()),
        }
    }

    /// The canonical JSON: fields in declaration order, no white space, shortest round-trip numbers.
    pub fn to_canonical_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a contract has no maps and only finite numbers")
    }

    /// SHA-256 of [`Self::to_canonical_json`].
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.to_canonical_json()).into()
    }

    /// Bytes of one record over all columns, its identifier included.
    pub fn record_bytes(&self) -> u64 {
        self.stored_column_bytes().into_iter().sum()
    }

    /// Bytes of one record in each column as sent and stored: the contract's in order, then the unit's identifier if
    /// there is one.
    pub fn stored_column_bytes(&self) -> Vec<u64> {
        let unit = self.unit_column().map(|unit| unit.dtype.size_bytes());
        self.columns
            .iter()
            .map(Column::record_bytes)
            .chain(unit)
            .collect()
    }

    /// The column of identifiers; `None` where a record is the unit.
    pub fn unit_column(&self) -> Option<&UnitColumn> {
        match &self.privacy_unit {
            PrivacyUnit::Record => None,
            PrivacyUnit::Column(unit) => Some(unit),
        }
    }

    /// Declared number of units (rule D10): that of records where a record is the unit.
    pub fn declared_units(&self) -> u64 {
        self.unit_column()
            .map_or(self.declared_size, |unit| unit.declared_units)
    }

    /// Most records of one unit.
    pub fn max_records_per_unit(&self) -> u64 {
        self.unit_column().map_or(1, |unit| unit.max_records)
    }

    /// The column of this name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The inputs of a model that takes these columns in this order.
    ///
    /// # Errors
    /// [`ContractError::Column`] for a name the contract lacks.
    pub fn inputs<S: AsRef<str>>(&self, names: &[S]) -> Result<Vec<InputColumn>, ContractError> {
        let find = |name: &S| {
            let name = name.as_ref();
            self.column(name)
                .map(Column::to_input)
                .ok_or_else(|| ContractError::Column {
                    column: name.to_owned(),
                    reason: "the contract has no such column".into(),
                })
        };
        names.iter().map(find).collect()
    }
}

impl Column {
    /// Elements of one record; saturates, and [`DataContract::validate`] refuses what saturates.
    pub fn elements(&self) -> u64 {
        self.shape
            .iter()
            .fold(1, |product, &extent| product.saturating_mul(extent))
    }

    /// Bytes of one record.
    pub fn record_bytes(&self) -> u64 {
        self.elements().saturating_mul(self.dtype.size_bytes() as u64)
    }

    /// This column as a model's input.
    pub fn to_input(&self) -> InputColumn {
        InputColumn {
            column: self.name.clone(),
            dtype: self.dtype,
            shape: self.shape.clone(),
            domain: Some(self.domain.clone()),
        }
    }

    fn validate(&self) -> Result<(), String> {
        validate_name(&self.name)?;
        if self.shape.len() > MAX_COLUMN_RANK {
            return Err(format!("{} axes, more than {MAX_COLUMN_RANK}", self.shape.len()));
        }
        if self.shape.contains(&0) {
            return Err("an axis of extent 0 holds nothing".into());
        }
        if self.record_bytes() > MAX_RECORD_BYTES {
            return Err(format!("more than {MAX_RECORD_BYTES} bytes a record"));
        }
        match (&self.domain, self.dtype) {
            (Domain::Bool, DType::Bool) => Ok(()),
            (Domain::Bool, other) => Err(format!(
                "the domain `bool` needs dtype bool, not {}",
                other.torch_name()
            )),
            (_, DType::Bool) => Err("a bool column has the domain \"bool\"".into()),
            (Domain::Classes { names }, DType::U8 | DType::I32 | DType::I64) => {
                validate_classes(names, self.dtype)
            }
            (Domain::Classes { .. }, other) => Err(format!(
                "classes need an integer dtype, not {}",
                other.torch_name()
            )),
            (Domain::Range { minimum, maximum }, dtype) => {
                validate_bounds(minimum, maximum, self.elements())?;
                minimum
                    .iter()
                    .chain(maximum)
                    .try_for_each(|&bound| validate_bound(bound, dtype))
            }
        }
    }
}

fn validate_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(format!("a name has 1 to {MAX_NAME_BYTES} bytes"));
    }
    if name.chars().any(char::is_control) {
        return Err("a name has no control characters".into());
    }
    Ok(())
}

fn validate_classes(names: &[String], dtype: DType) -> Result<(), String> {
    if names.is_empty() {
        return Err("no class names".into());
    }
    if dtype == DType::U8 && names.len() > 256 {
        return Err(format!("{} classes do not fit uint8", names.len()));
    }
    let mut seen = HashSet::new();
    for name in names {
        validate_name(name).map_err(|reason| format!("class {name:?}: {reason}"))?;
        if !seen.insert(name) {
            return Err(format!("class {name:?} appears twice"));
        }
    }
    Ok(())
}

fn validate_bounds(minimum: &[f64], maximum: &[f64], elements: u64) -> Result<(), String> {
    for (name, bounds) in [("minimum", minimum), ("maximum", maximum)] {
        let found = bounds.len();
        if found != 1 && found as u64 != elements {
            return Err(format!(
                "{name} has {found} values; give one, or one per element ({elements})"
            ));
        }
    }
    let longest = minimum.len().max(maximum.len());
    let ordered = (0..longest).all(|i| bound_at(minimum, i) <= bound_at(maximum, i));
    if ordered {
        Ok(())
    } else {
        Err("a minimum is above its maximum".into())
    }
}

/// The bound of element `i`: its own, or the one for all.
fn bound_at(bounds: &[f64], element: usize) -> f64 {
    if bounds.len() == 1 {
        bounds[0]
    } else {
        bounds[element]
    }
}

fn validate_bound(bound: f64, dtype: DType) -> Result<(), String> {
    if !bound.is_finite() {
        return Err("bounds are finite numbers".into());
    }
    let (lowest, highest) = match dtype {
        DType::F32 => (f64::from(f32::MIN), f64::from(f32::MAX)),
        DType::F64 => return Ok(()),
        DType::U8 | DType::Bool => (0.0, 255.0),
        DType::I32 => (f64::from(i32::MIN), f64::from(i32::MAX)),
        DType::I64 => (-MAX_EXACT_INTEGER, MAX_EXACT_INTEGER),
    };
    if bound < lowest || bound > highest {
        return Err(format!(
            "bound {bound} is outside of what {} holds exactly",
            dtype.torch_name()
        ));
    }
    if !dtype.is_float() && bound.fract() != 0.0 {
        return Err(format!("bound {bound} of an integer column is not an integer"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
