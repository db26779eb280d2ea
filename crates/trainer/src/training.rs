//! The steps of a run: sample, micro-batches, noise and update, loss release.

use crate::average::{IterateAverage, NOT_AN_AVERAGE};
use crate::engine::{Engine, RecordResults};
use crate::error::{EngineError, Result};
use crate::optimizer::{NoisyMean, OptimizerState};
use crate::phases;
use crate::records::Records;
use crate::sample::PooledSampler;
use crate::schedule::LearningRates;
use crate::state::with_bytes;
use crate::units::UnitRows;
use bastionai_privacy::banded::BandedMatrix;
use bastionai_privacy::noise::NoiseStream;
use bastionai_wire::trainer::{Band, Job, LossRelease};
use ring::rand::{SecureRandom, SystemRandom};
use tch::Tensor;
use zeroize::Zeroizing;

/// Loss sums are collected in units of `max_loss·2^-30`.
const LOSS_UNITS: f64 = 1_073_741_824.0;

/// Keeps the noise within what its sampler has an error bound for (2^44 grid units), with room for the slack of Δ.
const LARGEST_NOISE_MULTIPLIER: f64 = 8192.0;

/// The noise stream's tensor number of the loss; parameters count from 0.
const LOSS_TENSOR: u32 = u32::MAX;

/// A run in progress. Everything random in it comes from keys drawn at its start, kept nowhere else (rules D1, 9).
pub struct Training {
    engine: Engine,
    records: Records,
    sampler: PooledSampler,
    noise: NoiseStream,
    optimizer: OptimizerState,
    average: Option<IterateAverage>,
    mean: NoisyMean,
    loss: Option<LossRelease>,
    expected_batch_size: f64,
    first_step: u64,
    steps: u64,
    frozen: [u8; 32],
}

/// The job's own numbers, checked before anything is built.
///
/// # Errors
/// [`EngineError::Job`] names the number.
pub fn check_job(job: &Job) -> Result<()> {
    LearningRates::new(job.schedule, job.steps)?;
    let refuse = |text: &str| Err(EngineError::Job(text.into()));
    let positive = |value: f64| value > 0.0 && value.is_finite();
    let units = UnitRows::new(&job.units, job.datasets.len())?;
    if !(job.physical_batch_size as usize).is_multiple_of(units.records_per_unit()) {
        return refuse("a physical batch holds whole units");
    }
    if job.steps == 0 || job.datasets.is_empty() {
        return refuse("a run needs at least one step and one dataset");
    }
    if job.start_step >= job.steps {
        return refuse("the run has taken all its steps already");
    }
    if job.average.is_some_and(|average| !average.is_valid()) {
        return refuse(NOT_AN_AVERAGE);
    }
    if let Some(band) = &job.band {
        matrix(band)?;
        if band.bands() > units.declared(&job.datasets) {
            return refuse("there are fewer units than bands of noise");
        }
    }
    let rising = job.keep_steps.windows(2).all(|pair| pair[0] < pair[1]);
    if !rising || job.keep_steps.iter().any(|step| !(1..=job.steps).contains(step)) {
        return refuse("keep_steps must rise and lie within the run's steps");
    }
    if !positive(job.expected_batch_size) || !positive(job.max_grad_norm) {
        return refuse("expected_batch_size and max_grad_norm must be positive and finite");
    }
    let noise = |value: f64| positive(value) && value <= LARGEST_NOISE_MULTIPLIER;
    if !noise(job.noise_multiplier) {
        return refuse(
            "noise_multiplier must be positive and at most 8192: no gradient leaves without noise",
        );
    }
    if job
        .loss
        .is_some_and(|loss| !positive(loss.max_loss) || !noise(loss.noise_multiplier))
    {
        return refuse(
            "max_loss must be positive, and the loss's noise_multiplier positive and at most 8192",
        );
    }
    Ok(())
}

impl Training {
    /// Draws fresh keys and sets up the first step. `units`: of the records, complete.
    ///
    /// # Errors
    /// [`EngineError::NoRandomness`]; [`EngineError::Job`] for the optimizer's numbers.
    pub fn new(engine: Engine, records: Records, units: UnitRows, job: &Job) -> Result<Self> {
        check_job(job)?;
        let per_unit = units.records_per_unit();
        let cap = job.physical_batch_size as usize / per_unit * job.micro_batches as usize;
        let datasets = job.datasets.clone();
        let (key, order, seed) = (fresh()?, fresh()?, fresh()?);
        tch::manual_seed(i64::from_le_bytes(
            seed[..8].try_into().expect("a key has 32 bytes"),
        ));
        let rates = LearningRates::new(job.schedule, job.steps)?;
        let mut optimizer = OptimizerState::new(job.optimizer, rates, &engine.trainable())?;
        let average = job
            .average
            .map(|average| IterateAverage::new(average, job.steps, &engine.trainable()));
        let average = average.transpose()?;
        let matrix = job.band.as_ref().map(matrix).transpose()?;
        // A turn of a record reaches the sums of several steps: it moves them together by its sensitivity times this.
        let column_norm = matrix.as_ref().map_or(1.0, BandedMatrix::column_norm);
        let mean = NoisyMean {
            standard_deviation: job.noise_multiplier * column_norm * engine.l2_sensitivity()
                / engine.grid().width(),
            scale: engine.grid().width() / job.expected_batch_size,
        };
        let mut sampler = PooledSampler::of_units(*key, &order, job.sample_threshold, datasets, units, cap);
        if let (Some(matrix), Some(band)) = (matrix, &job.band) {
            sampler = sampler.in_classes(band.bands(), band.class_key.0)?;
            optimizer.correlate(&matrix, mean.standard_deviation, &engine.trainable())?;
        }
        let frozen = engine.frozen_digest()?;
        Ok(Self {
            sampler,
            noise: NoiseStream::new(*key),
            loss: job.loss,
            expected_batch_size: job.expected_batch_size,
            first_step: job.start_step + 1,
            steps: job.steps,
            engine,
            records,
            optimizer,
            average,
            mean,
            frozen,
        })
    }

    /// Takes step `step` (from 1); returns the noisy mean loss, if it is released.
    ///
    /// Always the same number of micro-batches, padded and masked; an empty sample gets its noise like any other.
    ///
    /// # Errors
    /// [`EngineError`]; after one, the run is over.
    pub fn step(&mut self, step: u64) -> Result<Option<f64>> {
        let places = self.sampler.places(step)?;
        let settings = *self.engine.settings();
        let batch_size = settings.physical_batch_size as usize;
        let digest = self.digest_at(step)?;
        // The step's own: what was summed without noise meets no second attempt if it fails, and between steps there is none.
        let mut sums = self.engine.zero_sums();
        let mut losses = 0i64;
        for places in places.chunks_exact(batch_size) {
            let (inputs, present) = self.records.gather(places)?;
            phases::end("sample and gather");
            let results = self
                .engine
                .add_clipped(&self.engine.batch(inputs, present)?, &mut sums)?;
            losses += self
                .loss
                .map_or(0, |release| clipped_losses(&results, release.max_loss));
        }
        if self.digest_at(step)? != digest {
            return Err(EngineError::Mutated);
        }
        if step == self.steps && self.engine.frozen_digest()? != self.frozen {
            return Err(EngineError::Mutated);
        }
        let (noise, mean, threads) = (&self.noise, self.mean, settings.threads as usize);
        self.optimizer
            .step(&mut self.engine.trainable_mut(), sums, noise, step, mean, threads)?;
        self.engine.renew()?;
        if let Some(average) = &mut self.average {
            average.update(&self.engine.trainable())?;
        }
        phases::end("noise and optimizer");
        self.loss
            .map(|release| self.release(step, losses, release))
            .transpose()
    }

    /// Continues a run: the engine has the parameters after `job.start_step` steps, `tensors` are the optimizer's groups
    /// of tensors, then the average. Sample and noise of the steps to come are drawn afresh (rule D1).
    ///
    /// # Errors
    /// [`EngineError::Job`] when they are not this run's.
    pub fn restore(&mut self, tensors: &[Vec<u8>]) -> Result<()> {
        let steps = self.first_step - 1;
        let averages = match &self.average {
            Some(average) => average.tensors().len(),
            None => 0,
        };
        let (moments, averages) = tensors.split_at(tensors.len().saturating_sub(averages));
        self.optimizer.restore(steps, moments, self.mean)?;
        match &mut self.average {
            Some(average) => average.restore(steps, averages),
            None => Ok(()),
        }
    }

    /// Hashes at the first and the last step; every step checks write counters besides (rule T8).
    fn digest_at(&self, step: u64) -> Result<Option<[u8; 32]>> {
        if step == self.first_step || step == self.steps {
            self.engine.state_digest().map(Some)
        } else {
            Ok(None)
        }
    }

    /// Noisy clipped loss sum over the public divisor.
    fn release(&self, step: u64, sum: i64, release: LossRelease) -> Result<f64> {
        let mut sums = [sum];
        self.noise
            .add_rounded_gaussian(
                step,
                LOSS_TENSOR,
                0,
                &mut sums,
                release.noise_multiplier * LOSS_UNITS,
            )
            .map_err(|_| EngineError::SumOutOfBound)?;
        Ok(sums[0] as f64 / LOSS_UNITS * release.max_loss / self.expected_batch_size)
    }

    /// Hands `sink` the state after the last step taken, tensor by tensor (`bastionai_wire::trainer`).
    ///
    /// # Errors
    /// The sink's, or libtorch's.
    pub fn state<E: From<EngineError>>(
        &self,
        mut sink: impl FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        for parameter in self.engine.trainable() {
            with_bytes(parameter, &mut sink)??;
        }
        for group in 0..self.optimizer.groups() {
            for tensor in self.optimizer.group(group) {
                sink(tensor)?;
            }
        }
        for average in self.average.iter().flat_map(IterateAverage::tensors) {
            with_bytes(average, &mut sink)??;
        }
        Ok(())
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The trainable parameters as they are now.
    pub fn parameters(&self) -> Vec<Tensor> {
        self.engine
            .trainable()
            .into_iter()
            .map(Tensor::shallow_clone)
            .collect()
    }
}

/// Sum over units of the mean of a unit's losses, each clipped to `[0, max_loss]`, rounded to the integer grid: adding or
/// removing one unit moves it by at most `2^30` units of the grid. A loss that is NaN is zero, and so is that of a unit
/// that does not count; the mean is over the records that were there.
fn clipped_losses(results: &RecordResults, max_loss: f64) -> i64 {
    let share = |loss: f64| {
        if loss.is_nan() {
            0.0
        } else {
            loss.clamp(0.0, max_loss) / max_loss
        }
    };
    let length = results.losses.len() / results.counted.len().max(1);
    let units = results.losses.chunks_exact(length.max(1));
    let units = units.zip(results.present.chunks_exact(length.max(1)));
    units
        .zip(&results.counted)
        .filter(|(_, counted)| **counted)
        .map(|((losses, present), _)| {
            let there = losses.iter().zip(present).filter(|(_, present)| **present);
            let (sum, records) = there.fold((0.0, 0.0), |(sum, records), (&loss, _)| {
                (sum + share(loss), records + 1.0)
            });
            // At most 1 exactly: no sum of so many shares is above their number.
            (sum / f64::max(records, 1.0) * LOSS_UNITS).round() as i64
        })
        .sum()
}

fn matrix(band: &Band) -> Result<BandedMatrix> {
    BandedMatrix::from_numerators(band.numerators.clone())
        .map_err(|error| EngineError::Job(error.to_string()))
}

fn fresh() -> Result<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    SystemRandom::new()
        .fill(&mut key[..])
        .map_err(|_| EngineError::NoRandomness)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_clipped_and_only_counted_records_add() {
        let results = RecordResults {
            losses: vec![0.5, 9.0, -3.0, f64::NAN, f64::INFINITY, 1.0],
            present: vec![true; 6],
            counted: vec![true, true, true, true, true, false],
            norm_bounds: vec![0.0; 6],
        };
        let unit = LOSS_UNITS as i64;
        assert_eq!(clipped_losses(&results, 2.0), unit / 4 + unit + unit);
    }

    #[test]
    fn a_units_loss_is_the_mean_of_its_records_losses_each_clipped() {
        let results = RecordResults {
            losses: vec![0.5, 9.0, 1.0, 77.0, f64::NAN, 2.0, 9.0, 9.0],
            present: vec![true, true, true, false, true, true, true, true],
            counted: vec![true, true, true, false],
            norm_bounds: vec![0.0; 4],
        };
        let unit = LOSS_UNITS as i64;
        // (0.25 + 1)/2, 0.5 alone, (0 + 1)/2.
        assert_eq!(clipped_losses(&results, 2.0), unit * 5 / 8 + unit / 2 + unit / 2);
    }
}
