//! Which band: the one whose noise hurts the run least at its price.
//!
//! A wider band cancels more noise, and samples less: with `b` bands a unit has `⌈T/b⌉` turns at rate `b·q`, which at a
//! fixed price takes more noise than `T` turns at rate `q`. Few epochs and much ε favour wide bands, many epochs and little
//! ε none at all.
//!
//! # Guarantee
//! By its own measure, noise multiplier times [`BandedMatrix::rms_error`], a plan is never worse than independent noise:
//! one band is always a candidate, and another is taken only where it is better by [`WORTHWHILE`]. None about privacy: the
//! price is the accountant's, over the plan's own event.

use super::{BandError, BandedMatrix, MAX_BANDS, Workload};
use crate::calibrate::{self, CalibrationError};
use crate::cap::SampledSteps;
use crate::event::{DpEvent, NeighboringRelation};
use crate::sampling::{self, SamplingError};
use thiserror::Error;

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// No band can be as wide.
    #[error(
        "{bands} bands: with an expected batch of {batch_size} of {dataset_size} records and {steps} steps there are at most {most}, \
         as every band draws from its own class of the records"
    )]
    TooManyBands {
        /// What was asked for.
        bands: u64,
        /// Declared records.
        dataset_size: u64,
        /// Expected records per step.
        batch_size: u64,
        /// Steps of the run.
        steps: u64,
        /// The widest band there is.
        most: u64,
    },
    /// A batch that is none.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// A matrix that is none.
    #[error(transparent)]
    Band(#[from] BandError),
    /// The target has no noise.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
}

/// The sampling of a run of `steps` steps in `bands` classes of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BandedSteps {
    /// Upper bound on the number of units: the declared size.
    pub dataset_size: u64,
    /// Expected units of a step.
    pub batch_size: u64,
    /// Steps of the run.
    pub steps: u64,
    /// Classes, and steps from one turn of a unit to its next; 1: all units have a turn in every step.
    pub bands: u64,
}

impl BandedSteps {
    /// The widest band: a class must be large enough for the expected batch, and have a turn.
    pub fn most_bands(dataset_size: u64, batch_size: u64, steps: u64) -> u64 {
        (dataset_size / batch_size.max(1)).min(steps).clamp(1, MAX_BANDS)
    }

    /// # Errors
    /// [`PlanError::TooManyBands`] for a class smaller than its expected batch, or one without a turn.
    pub fn check(&self) -> Result<(), PlanError> {
        let most = Self::most_bands(self.dataset_size, self.batch_size, self.steps);
        if (1..=most).contains(&self.bands) {
            return Ok(());
        }
        Err(PlanError::TooManyBands {
            bands: self.bands,
            dataset_size: self.dataset_size,
            batch_size: self.batch_size,
            steps: self.steps,
            most,
        })
    }

    /// Places of the largest class.
    pub fn class_size(&self) -> u64 {
        self.dataset_size.div_ceil(self.bands)
    }

    /// Most turns of a unit.
    pub fn turns(&self) -> u64 {
        self.steps.div_ceil(self.bands)
    }

    /// The probability with which a unit enters the sample when it has a turn, as a threshold of
    /// [`crate::sampling::PoissonSampler`].
    ///
    /// # Errors
    /// [`SamplingError`] for a batch larger than a class.
    pub fn threshold(&self) -> Result<u64, SamplingError> {
        sampling::threshold((self.bands * self.batch_size) as f64 / self.dataset_size as f64)
    }

    /// What a unit takes part in: [`Self::turns`] Poisson samples of a class.
    ///
    /// # Errors
    /// [`SamplingError`] for a batch larger than a class.
    pub fn turns_of_a_unit(&self) -> Result<SampledSteps, SamplingError> {
        Ok(SampledSteps {
            dataset_size: self.class_size(),
            sampling_probability: sampling::probability(self.threshold()?),
            steps: self.turns(),
        })
    }

    /// The run as a mechanism: [`DpEvent::Banded`], or without bands what [`SampledSteps::event`] is.
    ///
    /// # Errors
    /// [`SamplingError`] for a batch larger than a class.
    pub fn event(
        &self,
        truncated_batch_size: Option<u64>,
        noise_multiplier: f64,
    ) -> Result<DpEvent, SamplingError> {
        let turns = self.turns_of_a_unit()?;
        Ok(if self.bands == 1 {
            turns.event(truncated_batch_size, noise_multiplier)
        } else {
            DpEvent::Banded {
                bands: self.bands,
                steps: self.steps,
                event: Box::new(turns.step(truncated_batch_size, noise_multiplier)),
            }
        })
    }
}

/// What a band is chosen for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Planner {
    /// Upper bound on the number of units: the declared size.
    pub dataset_size: u64,
    /// Expected units of a step.
    pub batch_size: u64,
    /// Steps of the run.
    pub steps: u64,
    /// ε of the run.
    pub target_epsilon: f64,
    /// δ of the run.
    pub target_delta: f64,
    /// What the noise does.
    pub workload: Workload,
    /// No wider than this: the trainer keeps the noise of `bands − 1` steps.
    pub most_bands: u64,
}

/// A band, with what it brings.
#[derive(Clone, Debug, PartialEq)]
pub struct BandPlan {
    /// The matrix.
    pub matrix: BandedMatrix,
    /// The noise that meets the target, before what a cap adds.
    pub noise_multiplier: f64,
    /// Root mean square of the noise in the weights, in l2_sensitivities of a sum (and learning rates).
    pub rms_error: f64,
    /// The same for independent noise at the same price.
    pub plain_rms_error: f64,
}

impl BandPlan {
    /// Part of the noise that is left: at most 1.
    pub fn ratio(&self) -> f64 {
        self.rms_error / self.plain_rms_error
    }
}

impl Planner {
    /// The band of least noise.
    ///
    /// Candidates are ranked by the central limit of their price, which is within a few per cent; the best of
    /// them and one band are then calibrated by the accountant, and compared by that.
    ///
    /// # Errors
    /// [`PlanError`]: a batch larger than the dataset, or a target that no noise reaches.
    pub fn choose(&self) -> Result<BandPlan, PlanError> {
        let plain = self.with_bands(1)?;
        let mu = self.central_limit()?;
        let mut ranked = Vec::new();
        for bands in self.candidates() {
            let matrix = BandedMatrix::square_root(self.workload, bands)?;
            let guess = self.guess(bands, mu) * matrix.rms_error(self.workload, self.steps);
            ranked.push((guess, bands));
        }
        ranked.sort_by(|one, other| one.0.total_cmp(&other.0));
        let mut best = plain.clone();
        for (_, bands) in ranked.into_iter().take(CALIBRATED) {
            let plan = self.with_bands(bands)?;
            // An error that is no number is no reason.
            if plan.rms_error < best.rms_error && plan.rms_error <= plain.rms_error * WORTHWHILE {
                best = plan;
            }
        }
        best.plain_rms_error = plain.rms_error;
        Ok(best)
    }

    /// A given band at the target. Its `plain_rms_error` is its own unless it is compared by [`Self::choose`].
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn with_bands(&self, bands: u64) -> Result<BandPlan, PlanError> {
        let steps = self.banded(bands);
        steps.check()?;
        let matrix = BandedMatrix::square_root(self.workload, bands)?;
        let turns = steps.turns_of_a_unit()?;
        let event = |noise_multiplier| turns.event(None, noise_multiplier);
        let noise_multiplier =
            calibrate::noise_multiplier(self.target_epsilon, self.target_delta, RELATION, &event)?;
        let rms_error = noise_multiplier * matrix.rms_error(self.workload, self.steps);
        Ok(BandPlan {
            matrix,
            noise_multiplier,
            rms_error,
            plain_rms_error: rms_error,
        })
    }

    fn banded(&self, bands: u64) -> BandedSteps {
        BandedSteps {
            dataset_size: self.dataset_size,
            batch_size: self.batch_size,
            steps: self.steps,
            bands,
        }
    }

    /// Powers of two and the numbers halfway, and the widest.
    fn candidates(&self) -> Vec<u64> {
        let widest =
            BandedSteps::most_bands(self.dataset_size, self.batch_size, self.steps).min(self.most_bands);
        let powers = (1..=MAX_BANDS.ilog2()).map(|power| 1 << power);
        let mut bands: Vec<u64> = powers.flat_map(|power: u64| [power, power + power / 2]).collect();
        bands.push(widest);
        bands.retain(|&bands| bands > 1 && bands <= widest);
        bands.sort_unstable();
        bands.dedup();
        bands
    }

    /// μ of the Gaussian differential privacy that the target is.
    fn central_limit(&self) -> Result<f64, CalibrationError> {
        let once = |noise_multiplier| DpEvent::Gaussian { noise_multiplier };
        Ok(1.0 / calibrate::noise_multiplier(self.target_epsilon, self.target_delta, RELATION, &once)?)
    }

    /// The noise multiplier in the central limit: μ = p·√(turns·(e^{1/σ²} − 1)), and √turns/σ where all take their turns.
    fn guess(&self, bands: u64, mu: f64) -> f64 {
        let turns = (self.banded(bands).turns() as f64).sqrt();
        let rate = (bands * self.batch_size) as f64 / self.dataset_size as f64;
        let sampled = libm::log1p((mu / (rate * turns)).powi(2)).sqrt().recip();
        sampled.min(turns / mu)
    }
}

/// A band is wider than 1 only where it leaves at most this part of the noise: more than what the cap of its samples can
/// take back ([`crate::cap::EPSILON_SHARE`] of ε is at most a hundredth of the noise).
const WORTHWHILE: f64 = 0.98;
/// Candidates priced by the accountant, besides one band.
const CALIBRATED: usize = 3;
const RELATION: NeighboringRelation = NeighboringRelation::AddOrRemoveOne;

#[cfg(test)]
mod tests;
