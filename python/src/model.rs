//! The server's check of a model, run locally on what is about to be sent.

use crate::errors::{exception, model_refused};
use bastionai_graph::archive::{Archive, Limits};
use bastionai_graph::contract::DataContract;
use bastionai_graph::contract::InputColumn;
use bastionai_graph::typed::TypedGraph;
use bastionai_graph::{Refusals, check, check_scores};
use pyo3::prelude::*;

/// Proves that an archive keeps samples apart and gives the typed graph in words. Without a contract
/// the input shapes come from the archive itself.
#[pyfunction]
#[pyo3(signature = (archive, contract_json, input_columns))]
pub(crate) fn check_archive(
    py: Python<'_>,
    archive: &[u8],
    contract_json: Option<&str>,
    input_columns: Vec<String>,
) -> PyResult<String> {
    verdict(py, archive, contract_json, &input_columns, check)
}

/// Proves that an archive returns scores and label per sample, as an evaluation needs, and gives the typed graph
/// in words.
#[pyfunction]
#[pyo3(signature = (archive, contract_json, input_columns))]
pub(crate) fn check_scores_archive(
    py: Python<'_>,
    archive: &[u8],
    contract_json: Option<&str>,
    input_columns: Vec<String>,
) -> PyResult<String> {
    verdict(py, archive, contract_json, &input_columns, check_scores)
}

type Check = fn(&Archive, &[InputColumn]) -> Result<TypedGraph, Refusals>;

fn verdict(
    py: Python<'_>,
    archive: &[u8],
    contract_json: Option<&str>,
    input_columns: &[String],
    check: Check,
) -> PyResult<String> {
    let contract = contract_json
        .map(|json| DataContract::parse_json(json.as_bytes()))
        .transpose()
        .map_err(|error| exception(py, "ContractError", error))?;
    match py.detach(|| judge(archive, contract.as_ref(), input_columns, check)) {
        Ok(text) => Ok(text),
        Err(Verdict::Malformed(message)) => Err(exception(py, "ModelRefused", message)),
        Err(Verdict::Contract(message)) => Err(exception(py, "ContractError", message)),
        Err(Verdict::Refused(refusals)) => {
            let list = serde_json::to_value(&refusals).unwrap_or_default();
            Err(model_refused(py, &refusals.to_string(), &list))
        }
    }
}

enum Verdict {
    Malformed(String),
    Contract(String),
    Refused(Refusals),
}

fn judge(
    bytes: &[u8],
    contract: Option<&DataContract>,
    columns: &[String],
    check: Check,
) -> Result<String, Verdict> {
    let malformed = |error: bastionai_graph::archive::ArchiveError| Verdict::Malformed(error.to_string());
    let archive = Archive::read(bytes, &Limits::default()).map_err(malformed)?;
    let inputs = match contract {
        Some(contract) => contract
            .inputs(columns)
            .map_err(|error| Verdict::Contract(error.to_string()))?,
        None => archive.example_inputs().map_err(malformed)?,
    };
    check(&archive, &inputs)
        .map(|graph| graph.to_string())
        .map_err(Verdict::Refused)
}
