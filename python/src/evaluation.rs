//! Evaluations: metrics with their errors from released histograms. The mathematics is the client's.

use crate::errors::exception;
use bastionai_client::evaluation::{Metric, NoisyHistograms};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::collections::BTreeMap;

/// What `Session.fetch_evaluation` gives.
#[pyclass(frozen, module = "bastionai._internal")]
pub(crate) struct FetchedEvaluation {
    #[pyo3(get)]
    pub(crate) receipt: Py<PyBytes>,
    /// The evaluation as JSON.
    #[pyo3(get)]
    pub(crate) evaluation: String,
}

/// Reads metric names.
pub(crate) fn metrics(py: Python<'_>, names: &[String]) -> PyResult<Vec<Metric>> {
    let parse = |name: &String| {
        name.parse()
            .map_err(|error| exception(py, "InvalidRequest", error))
    };
    names.iter().map(parse).collect()
}

/// Metrics of histograms given as JSON (`classes`, `noise_standard_deviation`, `histograms`), as JSON by name.
/// Noise 0 means exact counts.
#[pyfunction]
pub(crate) fn estimate_metrics(
    py: Python<'_>,
    histograms_json: &str,
    names: Vec<String>,
) -> PyResult<String> {
    let invalid = |what: String| exception(py, "InvalidRequest", what);
    let given: NoisyHistograms =
        serde_json::from_str(histograms_json).map_err(|error| invalid(error.to_string()))?;
    let mut estimates = BTreeMap::new();
    for metric in metrics(py, &names)? {
        let estimate = given
            .estimate(metric)
            .ok_or_else(|| invalid(format!("the histograms do not allow `{metric}`")))?;
        estimates.insert(metric.to_string(), estimate);
    }
    serde_json::to_string(&estimates).map_err(|error| invalid(error.to_string()))
}

/// Inner edges of the score bins, in log-odds.
#[pyfunction]
pub(crate) fn score_edges(py: Python<'_>, bins: u32) -> PyResult<Vec<f64>> {
    bastionai_privacy::histogram::Histograms::new(2, false, Some(bins))
        .map_err(|error| exception(py, "InvalidRequest", error))?;
    Ok(bastionai_privacy::histogram::score_edges(bins))
}
