//! What-ifs about privacy: ε and δ of mechanisms, noise for a given ε. The server prices runs itself.

use crate::errors::exception;
use bastionai_privacy::accountant::{self, Accountant};
use bastionai_privacy::banded::{BandedSteps, PlanError, Planner, Workload};
use bastionai_privacy::calibrate::Target;
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_privacy::planner::{self, NoiseWish, Wish};
use pyo3::prelude::*;
use std::fmt::Display;

/// A mechanism, and how it is to be priced.
struct Query {
    event: DpEvent,
    relation: NeighboringRelation,
    accountant: Accountant,
}

impl Query {
    fn parse(py: Python<'_>, event_json: &str, relation: &str, accountant: &str) -> PyResult<Self> {
        Ok(Self {
            event: serde_json::from_str(event_json).map_err(|error| invalid(py, error))?,
            relation: relation.parse().map_err(|error| invalid(py, error))?,
            accountant: accountant.parse().map_err(|error| invalid(py, error))?,
        })
    }
}

fn invalid(py: Python<'_>, error: impl Display) -> PyErr {
    exception(py, "InvalidRequest", error)
}

/// ε of a mechanism at δ; an upper bound.
#[pyfunction]
pub(crate) fn event_epsilon(
    py: Python<'_>,
    event_json: &str,
    delta: f64,
    relation: &str,
    accountant: &str,
) -> PyResult<f64> {
    let query = Query::parse(py, event_json, relation, accountant)?;
    py.detach(|| query.accountant.epsilon(&query.event, query.relation, delta))
        .map_err(|error| invalid(py, error))
}

/// An ε that does not suffice at δ.
#[pyfunction]
pub(crate) fn event_epsilon_lower_bound(
    py: Python<'_>,
    event_json: &str,
    delta: f64,
    relation: &str,
) -> PyResult<f64> {
    let query = Query::parse(py, event_json, relation, Accountant::Pld.name())?;
    py.detach(|| accountant::epsilon_lower_bound(&query.event, query.relation, delta))
        .map_err(|error| invalid(py, error))
}

/// δ of a mechanism at ε; an upper bound.
#[pyfunction]
pub(crate) fn event_delta(
    py: Python<'_>,
    event_json: &str,
    epsilon: f64,
    relation: &str,
    accountant: &str,
) -> PyResult<f64> {
    let query = Query::parse(py, event_json, relation, accountant)?;
    py.detach(|| query.accountant.delta(&query.event, query.relation, epsilon))
        .map_err(|error| invalid(py, error))
}

/// A mechanism's whole curve, composed once.
#[pyclass(frozen, module = "bastionai._internal")]
pub(crate) struct PrivacyProfile {
    profile: accountant::PrivacyProfile,
}

#[pymethods]
impl PrivacyProfile {
    #[new]
    fn new(py: Python<'_>, event_json: &str, smallest_delta: f64, relation: &str) -> PyResult<Self> {
        let query = Query::parse(py, event_json, relation, Accountant::Pld.name())?;
        py.detach(|| accountant::PrivacyProfile::new(&query.event, query.relation, smallest_delta))
            .map(|profile| Self { profile })
            .map_err(|error| invalid(py, error))
    }

    fn epsilon(&self, py: Python<'_>, delta: f64) -> PyResult<f64> {
        self.profile.epsilon(delta).map_err(|error| invalid(py, error))
    }

    fn delta(&self, py: Python<'_>, epsilon: f64) -> PyResult<f64> {
        self.profile.delta(epsilon).map_err(|error| invalid(py, error))
    }

    fn points(&self, py: Python<'_>, count: usize) -> PyResult<Vec<(f64, f64)>> {
        self.profile.points(count).map_err(|error| invalid(py, error))
    }
}

fn target(py: Python<'_>, epsilon: f64, delta: f64, accountant: &str) -> PyResult<Target> {
    Ok(Target {
        accountant: accountant.parse().map_err(|error| invalid(py, error))?,
        ..Target::new(epsilon, delta)
    })
}

/// The noise multiplier with which DP-SGD meets a target (ε, δ); never overshoots.
#[pyfunction]
pub(crate) fn noise_multiplier(
    py: Python<'_>,
    target_epsilon: f64,
    target_delta: f64,
    sample_rate: f64,
    steps: u64,
    accountant: &str,
) -> PyResult<f64> {
    let target = target(py, target_epsilon, target_delta, accountant)?;
    py.detach(|| target.noise_multiplier(&|noise| DpEvent::dp_sgd(noise, sample_rate, steps)))
        .map_err(|error| invalid(py, error))
}

/// The largest sample rate with which DP-SGD meets a target.
#[pyfunction]
pub(crate) fn sample_rate(
    py: Python<'_>,
    target_epsilon: f64,
    target_delta: f64,
    noise_multiplier: f64,
    steps: u64,
    accountant: &str,
) -> PyResult<f64> {
    let target = target(py, target_epsilon, target_delta, accountant)?;
    py.detach(|| target.sampling_probability(&|rate| DpEvent::dp_sgd(noise_multiplier, rate, steps)))
        .map_err(|error| invalid(py, error))
}

/// The most steps with which DP-SGD meets a target.
#[pyfunction]
pub(crate) fn steps(
    py: Python<'_>,
    target_epsilon: f64,
    target_delta: f64,
    noise_multiplier: f64,
    sample_rate: f64,
    accountant: &str,
) -> PyResult<u64> {
    let target = target(py, target_epsilon, target_delta, accountant)?;
    py.detach(|| target.steps(&|steps| DpEvent::dp_sgd(noise_multiplier, sample_rate, steps)))
        .map_err(|error| invalid(py, error))
}

/// Batch size and steps where they are open; see `bastionai_privacy::planner`.
#[pyfunction]
#[pyo3(signature = (dataset_size, epsilon, noise_multiplier, delta, batch_size, steps, passes))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn plan(
    py: Python<'_>,
    dataset_size: u64,
    epsilon: Option<f64>,
    noise_multiplier: Option<f64>,
    delta: f64,
    batch_size: Option<u64>,
    steps: Option<u64>,
    passes: Option<f64>,
) -> PyResult<(u64, u64)> {
    let noise = match (epsilon, noise_multiplier) {
        (Some(epsilon), None) => NoiseWish::Target { epsilon, delta },
        (None, Some(multiplier)) => NoiseWish::Multiplier(multiplier),
        _ => return Err(invalid(py, "give either eps= or noise_multiplier=")),
    };
    let wish = Wish {
        dataset_size,
        noise,
        batch_size,
        steps,
        passes,
    };
    py.detach(|| planner::choose(&wish))
        .map(|chosen| (chosen.batch_size, chosen.steps))
        .map_err(|error| invalid(py, error))
}

/// The band of least noise, or a given one: (bands, noise multiplier, its multiplier without bands, share of the noise that is
/// left, sampling probability of a turn); see `bastionai_privacy::banded`.
#[pyfunction]
#[pyo3(signature = (target_epsilon, target_delta, dataset_size, batch_size, steps, momentum, keep, bands, most_bands))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn plan_bands(
    py: Python<'_>,
    target_epsilon: f64,
    target_delta: f64,
    dataset_size: u64,
    batch_size: u64,
    steps: u64,
    momentum: f64,
    keep: f64,
    bands: Option<u64>,
    most_bands: u64,
) -> PyResult<(u64, f64, f64, f64, f64)> {
    let planner = Planner {
        dataset_size,
        batch_size,
        steps,
        target_epsilon,
        target_delta,
        workload: Workload::new(momentum, keep).map_err(|error| invalid(py, error))?,
        most_bands,
    };
    let planned = py.detach(|| {
        let plain = planner.with_bands(1)?;
        let plan = match bands {
            None => planner.choose()?,
            Some(bands) => planner.with_bands(bands)?,
        };
        Ok((plain, plan))
    });
    let (plain, plan) = planned.map_err(|error: PlanError| invalid(py, error))?;
    let turns = BandedSteps {
        dataset_size,
        batch_size,
        steps,
        bands: plan.matrix.bands(),
    }
    .turns_of_a_unit()
    .map_err(|error| invalid(py, error))?;
    Ok((
        plan.matrix.bands(),
        plan.noise_multiplier,
        plain.noise_multiplier,
        plan.rms_error / plain.rms_error,
        turns.sampling_probability,
    ))
}
