//! What-ifs about DP-SGD: ε of given noise, noise for a given ε. The server prices runs itself.

use crate::errors::exception;
use bastionai_privacy::accountant;
use bastionai_privacy::calibrate;
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_privacy::planner::{self, NoiseWish, Wish};
use pyo3::prelude::*;

/// ε of Poisson-sampled Gaussian steps; an upper bound by privacy loss distributions.
#[pyfunction]
pub(crate) fn epsilon(
    py: Python<'_>,
    noise_multiplier: f64,
    sample_rate: f64,
    steps: u64,
    delta: f64,
) -> PyResult<f64> {
    let event = dp_sgd(noise_multiplier, sample_rate, steps);
    py.detach(|| accountant::epsilon(&event, NeighboringRelation::AddOrRemoveOne, delta))
        .map_err(|error| exception(py, "InvalidRequest", error))
}

/// The noise multiplier that meets a target (ε, δ); never overshoots.
#[pyfunction]
pub(crate) fn noise_multiplier(
    py: Python<'_>,
    target_epsilon: f64,
    target_delta: f64,
    sample_rate: f64,
    steps: u64,
) -> PyResult<f64> {
    let event = |noise_multiplier| dp_sgd(noise_multiplier, sample_rate, steps);
    let relation = NeighboringRelation::AddOrRemoveOne;
    py.detach(|| calibrate::noise_multiplier(target_epsilon, target_delta, relation, &event))
        .map_err(|error| exception(py, "InvalidRequest", error))
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
        _ => {
            return Err(exception(
                py,
                "InvalidRequest",
                "give either eps= or noise_multiplier=",
            ));
        }
    };
    let wish = Wish {
        dataset_size,
        noise,
        batch_size,
        steps,
        passes,
    };
    let chosen = py.detach(|| planner::choose(&wish));
    chosen
        .map(|chosen| (chosen.batch_size, chosen.steps))
        .map_err(|error| exception(py, "InvalidRequest", error))
}

fn dp_sgd(noise_multiplier: f64, sample_rate: f64, steps: u64) -> DpEvent {
    let step = DpEvent::PoissonSampled {
        sampling_probability: sample_rate,
        event: Box::new(DpEvent::Gaussian { noise_multiplier }),
    };
    DpEvent::SelfComposed {
        event: Box::new(step),
        count: steps,
    }
}
