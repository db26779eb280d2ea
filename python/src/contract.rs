//! Data contracts: canonical form, digest, and the local check of rows (rule G4).

use crate::errors::{exception, row_error};
use bastionai_graph::contract::{self, DataContract};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

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
    result.map_err(|error| {
        let row = error.row.map(|row| first_row + row);
        let place = row.map(|row| format!("row {row}, ")).unwrap_or_default();
        row_error(
            py,
            format!("{place}column {:?}: {}", error.column, error.reason),
            row,
            &error.column,
        )
    })
}

fn parse(py: Python<'_>, json: &str) -> PyResult<DataContract> {
    DataContract::parse_json(json.as_bytes()).map_err(|error| exception(py, "ContractError", error))
}
