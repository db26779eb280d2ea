//! What a scientist may leave open, planned: batch size and steps for a target, from public numbers alone.

use crate::datasets::Dataset;
use crate::errors::ClientError;
use crate::runs::Privacy;
use bastionai_privacy::planner::{self, Chosen, NoiseWish, Wish};

/// What is fixed of a plan; see [`planner`] for how the rest is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fixed {
    /// δ of the run; absent: as the server will choose it.
    pub target_delta: Option<f64>,
    /// Expected units per step over all datasets: records where these are the unit.
    pub batch_size: Option<u64>,
    /// Steps.
    pub steps: Option<u64>,
    /// Expected uses of each unit.
    pub epochs: Option<f64>,
}

/// A plan for a run on these datasets.
///
/// # Errors
/// [`ClientError::Invalid`] with the number that is wrong.
pub fn plan(datasets: &[Dataset], privacy: Privacy, fixed: &Fixed) -> Result<Chosen, ClientError> {
    let noise = match privacy {
        Privacy::TargetEpsilon(epsilon) => NoiseWish::Target {
            epsilon,
            delta: fixed.target_delta.unwrap_or_else(|| default_delta(datasets)),
        },
        Privacy::NoiseMultiplier(multiplier) => NoiseWish::Multiplier(multiplier),
    };
    let sizes = datasets.iter().map(|dataset| dataset.contract.declared_units());
    let wish = Wish {
        dataset_size: sizes.fold(0, u64::saturating_add),
        noise,
        batch_size: fixed.batch_size,
        steps: fixed.steps,
        passes: fixed.epochs,
    };
    planner::choose(&wish).map_err(|error| ClientError::Invalid(error.to_string()))
}

/// A tenth of the smallest lifetime δ (rule D6), as the server's price.
fn default_delta(datasets: &[Dataset]) -> f64 {
    let lifetimes = datasets
        .iter()
        .filter_map(|dataset| dataset.policy.lifetime.map(|lifetime| lifetime.delta));
    lifetimes
        .min()
        .map_or(REHEARSAL_DELTA, |delta| delta.tenth().to_f64())
}

/// δ of runs that touch no private dataset.
const REHEARSAL_DELTA: f64 = 1e-6;
