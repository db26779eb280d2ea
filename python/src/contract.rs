//! Data contracts: canonical form, digest, and the local check of rows (rule G4).

use crate::errors::{exception, row_error};
use bastionai_graph::contract::{self, DataContract, RowError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

/// The canonical JSON of a contract.
#[pyfunction]
pub(crate) fn canonical_contract(py: Python<'_>, json: &str) -> PyResult<String> {
    let contract = parse(py, json)?;
    String::from_utf8(contract.to_canonical_json()).map_err(|error| exception(py, "ContractError", error))
}

/// SHA-256 of the canonical JSON, in hex.
#[pyfunction]
pub(crate) fn contract_digest(py: Python<'_>, json: &str) -> PyResult<String> {
    Ok(hex::encode(parse(py, json)?.digest()))
}

/// The smallest rung of the size ladder that holds `rows` records.
#[pyfunction]
pub(crate) fn declared_size_for(py: Python<'_>, rows: u64) -> PyResult<u64> {
    contract::declared_size_for(rows).ok_or_else(|| {
        exception(
            py,
            "ContractError",
            "a dataset holds at most 2^31 records; split it",
        )
    })
}

/// Checks a batch of records; `first_row` is its place in the dataset, for the message.
#[pyfunction]
pub(crate) fn check_batch(
    py: Python<'_>,
    json: &str,
    first_row: u64,
    rows: u64,
    columns: Vec<PyBackedBytes>,
) -> PyResult<()> {
    let contract = parse(py, json)?;
    let result = py.detach(|| {
        let columns: Vec<&[u8]> = columns.iter().map(AsRef::as_ref).collect();
        contract.check_batch(rows, &columns)
    });
    result.map_err(|error| refused(py, &error, first_row))
}

fn refused(py: Python<'_>, error: &RowError, first_row: u64) -> PyErr {
    let row = error.row.map(|row| first_row + row);
    let place = row.map(|row| format!("row {row}, ")).unwrap_or_default();
    let message = format!("{place}column {:?}: {}", error.column, error.reason);
    row_error(py, message, row, &error.column)
}

/// Identifiers of units, given as text, as a batch has them: in the encoding of the contract's unit column.
#[pyfunction]
pub(crate) fn encode_identifiers<'py>(
    py: Python<'py>,
    json: &str,
    first_row: u64,
    texts: Vec<String>,
) -> PyResult<Bound<'py, PyBytes>> {
    let contract = parse(py, json)?;
    let unit = unit_column(py, &contract)?;
    let mut encoded = Vec::with_capacity(texts.len() * unit.dtype.size_bytes() as usize);
    for (row, text) in (0..).zip(&texts) {
        let identifier = unit.dtype.encode(text).map_err(|reason| {
            let column = unit.name.clone();
            refused(
                py,
                &RowError {
                    row: Some(row),
                    column,
                    reason,
                },
                first_row,
            )
        })?;
        encoded.extend(identifier);
    }
    Ok(PyBytes::new(py, &encoded))
}

/// Counts the records of each unit of a dataset against its contract, batch by batch.
#[pyclass(module = "bastionai._internal")]
pub(crate) struct UnitCount {
    count: contract::UnitCount,
}

#[pymethods]
impl UnitCount {
    #[new]
    fn new(py: Python<'_>, json: &str) -> PyResult<Self> {
        let contract = parse(py, json)?;
        Ok(Self {
            count: contract::UnitCount::new(unit_column(py, &contract)?),
        })
    }

    /// Counts the identifiers of one batch; `first_row` is its place in the dataset, for the message.
    fn add(&mut self, py: Python<'_>, first_row: u64, identifiers: PyBackedBytes) -> PyResult<()> {
        let count = &mut self.count;
        let added = py.detach(|| count.add(&identifiers));
        added.map_err(|error| refused(py, &error, first_row))
    }

    /// Units seen.
    #[getter]
    fn units(&self) -> u64 {
        self.count.units()
    }
}

fn unit_column<'c>(py: Python<'_>, contract: &'c DataContract) -> PyResult<&'c contract::UnitColumn> {
    let none = || exception(py, "ContractError", "the contract has no column of units");
    contract.unit_column().ok_or_else(none)
}

fn parse(py: Python<'_>, json: &str) -> PyResult<DataContract> {
    DataContract::parse_json(json.as_bytes()).map_err(|error| exception(py, "ContractError", error))
}
