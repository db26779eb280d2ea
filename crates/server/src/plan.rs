//! The numbers of a run: sample rate, cap, micro-batches, noise, price. Pure: public inputs only, no clock.

use crate::errors::{Failure, Reason};
use crate::spec::{LossRequest, MAX_NOISE, MIN_NOISE, Privacy, RunRequest};
use bastionai_graph::typed::TypedGraph;
use bastionai_ledger::{Amount, Delta, Epsilon};
use bastionai_privacy::banded::{BandedMatrix, BandedSteps, Planner, Workload};
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_privacy::noise::BandedNoise;
use bastionai_privacy::{accountant, calibrate, joint, planner, sampling};
use bastionai_wire::{Bands, Optimizer};

/// The relation every price is for.
pub(crate) const RELATION: NeighboringRelation = NeighboringRelation::AddOrRemoveOne;

/// How a run samples, batches and blurs, and what that costs each private dataset.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Noise of the gradient release over its charged l2_sensitivity.
    pub(crate) noise_multiplier: f64,
    /// Noise of the loss release over `max_loss`, if there is one.
    pub(crate) loss_noise_multiplier: Option<f64>,
    /// Of both releases seen as one Gaussian: `1/σ² = 1/σ_grad² + 1/σ_loss²`.
    pub(crate) joint_noise_multiplier: f64,
    /// A record enters the sample of its turn when a uniform u64 is below this; without bands every step is its turn.
    pub(crate) sample_threshold: u64,
    /// The probability with which a record enters a step's sample, its turns taken into account.
    pub(crate) sample_rate: f64,
    /// Declared units of all datasets, records where these are the unit: public, never a count of rows (rule D10).
    pub(crate) declared_size: u64,
    /// Rows of each unit in a batch.
    pub(crate) records_per_unit: u32,
    /// Rows of every micro-batch, whole units (rule T2).
    pub(crate) physical_batch_size: u32,
    /// Micro-batches per step, always all of them (rule D8).
    pub(crate) micro_batches: u32,
    /// How the gradient's noise is correlated over steps.
    pub(crate) band: BandedMatrix,
    /// The noise in the weights over that of independent noise at the same price, by the planner's measure.
    pub(crate) noise_ratio: f64,
    /// The mechanism as every owner is charged for it.
    pub(crate) event: DpEvent,
    /// Its price.
    pub(crate) amount: Amount,
}

impl Plan {
    /// Plans a run over `declared_size` units for `delta`, for a trainer that has room for the noise of `most_bands`
    /// steps: what is planned keeps to that, and what was asked for is the caller's to check.
    ///
    /// # Guarantee
    /// `amount` is an upper bound of the (ε, δ) of `event` under add-or-remove-one, truncation included; a
    /// calibrated plan never costs more than the target.
    pub(crate) fn new(
        request: &RunRequest,
        declared_size: u64,
        delta: Delta,
        most_bands: u64,
    ) -> Result<Self, Failure> {
        if request.batch_size > declared_size {
            let message = format!(
                "batch_size {} is above the datasets' declared size {declared_size}: choose at most that",
                request.batch_size
            );
            return Err(Failure::new(Reason::RunSpecInvalid, message));
        }
        // δ is exact in the ledger; the accountant gets the next float below, so that the price never rounds down.
        let accounted_delta = delta.to_f64().next_down();
        let band = band(request, declared_size, accounted_delta, most_bands)?;
        let steps = BandedSteps {
            dataset_size: declared_size,
            batch_size: request.batch_size,
            steps: request.steps,
            bands: band.bands(),
        };
        steps
            .check()
            .map_err(|error| Failure::of(Reason::RunSpecInvalid, error))?;
        let sample_threshold = steps.threshold().map_err(unpriceable)?;
        let sample_rate = sampling::probability(sample_threshold) / steps.bands as f64;
        let sampled = steps.turns_of_a_unit().map_err(unpriceable)?;
        let event = |cap: u64, noise| steps.event(Some(cap.min(sampled.dataset_size)), noise);
        let cap = match request.privacy {
            Privacy::TargetEpsilon(epsilon) => sampled
                .truncated_batch_size_for(epsilon, accounted_delta)
                .map_err(unpriceable)?,
            Privacy::NoiseMultiplier(multiplier) => {
                let joint = not_void(joint_of(multiplier, request.loss))?;
                sampled
                    .truncated_batch_size(joint, accounted_delta)
                    .map_err(unpriceable)?
            }
        };
        let records_per_unit = request.records_per_unit.unwrap_or(1);
        let most_units = most_units(records_per_unit, request.max_batch_size)?;
        let (micro_batches, units) = micro_batches(cap.max(1), most_units)?;
        let cap = u64::from(micro_batches) * u64::from(units);
        let physical_batch_size = units.checked_mul(records_per_unit).ok_or_else(too_large_batch)?;
        let joint_noise_multiplier = match request.privacy {
            Privacy::NoiseMultiplier(multiplier) => joint_of(multiplier, request.loss),
            Privacy::TargetEpsilon(epsilon) => {
                let turns = |noise| sampled.event(Some(cap.min(sampled.dataset_size)), noise);
                let joint = calibrate::noise_multiplier(epsilon, accounted_delta, RELATION, &turns)
                    .map_err(unpriceable)?;
                not_void(joint)?
            }
        };
        let (noise_multiplier, loss_noise_multiplier) = match request.loss {
            None => (joint_noise_multiplier, None),
            Some(loss) => {
                let (gradient, loss) =
                    joint::split_noise_multiplier(joint_noise_multiplier, loss.share).map_err(unpriceable)?;
                (gradient, Some(loss))
            }
        };
        within_the_trainers_grid("noise_multiplier", noise_multiplier * band.column_norm())?;
        if band.bands() > 1 {
            BandedNoise::new(&band, noise_multiplier * band.column_norm() * LARGEST_SENSITIVITY)
                .map_err(unpriceable)?;
        }
        within_the_trainers_grid("loss noise_multiplier", loss_noise_multiplier.unwrap_or(0.0))?;
        let event = event(cap, joint_noise_multiplier).map_err(unpriceable)?;
        let epsilon = accountant::epsilon(&event, RELATION, accounted_delta).map_err(unpriceable)?;
        let noise_ratio = noise_ratio(
            request,
            &band,
            declared_size,
            joint_noise_multiplier,
            epsilon,
            accounted_delta,
        )?;
        let epsilon = Epsilon::from_f64_round_up(epsilon).map_err(unpriceable)?;
        Ok(Self {
            noise_multiplier,
            loss_noise_multiplier,
            joint_noise_multiplier,
            sample_threshold,
            sample_rate,
            declared_size,
            records_per_unit,
            physical_batch_size,
            micro_batches,
            band,
            noise_ratio,
            event,
            amount: Amount::new(epsilon, delta),
        })
    }

    /// Largest sample a step processes, in units; what is above is cut, and paid for in ε.
    pub(crate) fn truncated_batch_size(&self) -> u64 {
        u64::from(self.micro_batches) * u64::from(self.physical_batch_size / self.records_per_unit)
    }

    /// What a scientist should know before paying, with the numbers.
    pub(crate) fn warnings(&self, request: &RunRequest, trainable_parameters: u64) -> Vec<String> {
        let mut warnings = Vec::new();
        let steps = request.steps as f64;
        let felt = self.felt_noise_multiplier(request);
        let noise_to_signal = planner::noise_to_signal(felt, trainable_parameters, request.batch_size);
        if noise_to_signal > DROWNED {
            warnings.push(format!(
                "noise drowns the signal: the noise of a step's averaged gradient is {noise_to_signal:.1} times its \
                 clipped norm (noise_multiplier {:.3} x sqrt({trainable_parameters} trainable parameters) / batch_size {}); {}",
                felt,
                request.batch_size,
                self.what_would_help(request, trainable_parameters),
            ));
        }
        let passes = steps * self.sample_rate;
        if passes < 1.0 {
            warnings.push(format!(
                "the run sees each record {passes:.2} times on average: steps {} x sample rate {:.5}",
                request.steps, self.sample_rate
            ));
        }
        if self.amount.epsilon.to_f64() > WEAK_EPSILON {
            warnings.push(format!(
                "epsilon {} is a weak guarantee; above {WEAK_EPSILON} it promises little",
                self.amount.epsilon
            ));
        }
        warnings
    }
}

impl Plan {
    /// The multiplier of independent noise that would leave as much in the weights; the plan's own without bands.
    fn felt_noise_multiplier(&self, request: &RunRequest) -> f64 {
        let workload = workload(&request.optimizer);
        let felt = |band: &BandedMatrix| band.rms_error(workload, request.steps);
        match self.band.bands() {
            1 => self.noise_multiplier,
            _ => self.noise_multiplier * felt(&self.band) / felt(&BandedMatrix::independent()),
        }
    }

    /// Bytes of the noise of earlier steps that the trainer keeps.
    pub(crate) fn noise_bytes(&self, trainable_parameters: u64) -> u64 {
        noise_bytes(self.band.bands(), trainable_parameters)
    }

    /// The larger batch that would do, at the same price and number of steps, with what it would bring.
    fn what_would_help(&self, request: &RunRequest, trainable_parameters: u64) -> String {
        let plan = planner::Chosen {
            batch_size: request.batch_size,
            steps: request.steps,
        };
        let (epsilon, delta) = (self.amount.epsilon.to_f64(), self.amount.delta.to_f64());
        let larger = planner::batch_that_helps(
            self.declared_size,
            epsilon,
            delta,
            plan,
            trainable_parameters,
            DROWNED,
        );
        // What a released loss takes of the privacy, the gradient pays in noise.
        let split = self.noise_multiplier / self.joint_noise_multiplier;
        match larger {
            Ok(Some((batch, ratio))) if ratio * split < DROWNED => format!(
                "batch_size {batch} would make it {:.1} times at the same price",
                ratio * split
            ),
            Ok(Some((batch, ratio))) => format!(
                "even batch_size {batch} would leave {:.1} times: train fewer parameters, or on more records",
                ratio * split
            ),
            // An unpriceable alternative is no advice.
            Ok(None) | Err(_) => "train fewer parameters, or on more records".to_owned(),
        }
    }
}

/// Elements of all trainable parameters.
pub(crate) fn trainable_parameters(graph: &TypedGraph) -> u64 {
    let trainable = graph.parameters().iter().filter(|parameter| parameter.trainable);
    trainable
        .map(|parameter| elements(&parameter.shape))
        .fold(0, u64::saturating_add)
}

/// Bytes of all trainable parameters: of one set of weights.
pub(crate) fn weight_bytes(graph: &TypedGraph) -> u64 {
    let trainable = graph.parameters().iter().filter(|parameter| parameter.trainable);
    trainable
        .map(|parameter| elements(&parameter.shape).saturating_mul(parameter.dtype.size_bytes() as u64))
        .fold(0, u64::saturating_add)
}

/// Number of elements of a shape.
pub(crate) fn elements(shape: &[u64]) -> u64 {
    shape
        .iter()
        .fold(1, |product, &extent| product.saturating_mul(extent))
}

/// Bytes of the noise of so many steps but one.
pub(crate) fn noise_bytes(bands: u64, trainable_parameters: u64) -> u64 {
    let each = trainable_parameters.saturating_mul(size_of::<i64>() as u64);
    bands.saturating_sub(1).saturating_mul(each)
}

/// The band asked for, or the best for the target. Given noise has no price to compare bands at: independent noise.
fn band(
    request: &RunRequest,
    declared_size: u64,
    delta: f64,
    most_bands: u64,
) -> Result<BandedMatrix, Failure> {
    let workload = workload(&request.optimizer);
    match (request.bands, request.privacy) {
        (Bands::Planned, Privacy::TargetEpsilon(target_epsilon)) => {
            let planner = Planner {
                dataset_size: declared_size,
                batch_size: request.batch_size,
                steps: request.steps,
                target_epsilon,
                target_delta: delta,
                workload,
                most_bands,
            };
            planner.choose().map(|plan| plan.matrix).map_err(unpriceable)
        }
        (Bands::Planned, Privacy::NoiseMultiplier(_)) => Ok(BandedMatrix::independent()),
        (Bands::Fixed(bands), _) => BandedMatrix::square_root(workload, u64::from(bands))
            .map_err(|error| Failure::of(Reason::RunSpecInvalid, error)),
    }
}

/// Noise in the weights over that of independent noise at the price of the run.
fn noise_ratio(
    request: &RunRequest,
    band: &BandedMatrix,
    declared_size: u64,
    noise_multiplier: f64,
    target_epsilon: f64,
    target_delta: f64,
) -> Result<f64, Failure> {
    if band.bands() == 1 || target_epsilon <= 0.0 {
        return Ok(1.0);
    }
    let workload = workload(&request.optimizer);
    let planner = Planner {
        dataset_size: declared_size,
        batch_size: request.batch_size,
        steps: request.steps,
        target_epsilon,
        target_delta,
        workload,
        most_bands: 1,
    };
    let plain = planner.with_bands(1).map_err(unpriceable)?;
    Ok(noise_multiplier * band.rms_error(workload, request.steps) / plain.rms_error)
}

/// What the noise does in an optimizer, at its full rate. Adam's division is left out, as are schedules.
fn workload(optimizer: &Optimizer) -> Workload {
    let keep = |lr: f64, decay: f64| (1.0 - lr * decay).clamp(0.0, 1.0);
    let (momentum, keep) = match *optimizer {
        Optimizer::Sgd {
            lr,
            momentum,
            weight_decay,
            ..
        } => (momentum, keep(lr, weight_decay)),
        Optimizer::AdamW(adam)
        | Optimizer::NoiseCorrected {
            adam,
            decoupled: true,
            ..
        } => (adam.beta1, keep(adam.lr, adam.weight_decay)),
        Optimizer::Adam(adam) | Optimizer::NoiseCorrected { adam, .. } => (adam.beta1, 1.0),
    };
    // The request's numbers were checked; anything else would be plain descent.
    Workload::new(momentum, keep).unwrap_or(Workload::PREFIX_SUMS)
}

/// Joint multiplier of a gradient release with this multiplier and the loss release that goes with it.
fn joint_of(gradient: f64, loss: Option<LossRequest>) -> f64 {
    loss.map_or(gradient, |loss| gradient * (1.0 - loss.share).sqrt())
}

/// Units of a physical batch of at most so many rows.
fn most_units(records_per_unit: u32, max_batch_size: Option<u32>) -> Result<u32, Failure> {
    match max_batch_size {
        None => Ok((DEFAULT_PHYSICAL_BATCH / records_per_unit).max(1)),
        Some(rows) if rows >= records_per_unit => Ok(rows / records_per_unit),
        Some(rows) => {
            let message = format!(
                "max_batch_size {rows} is below records_per_unit {records_per_unit}: the records of a unit stand in one \
                 physical batch; raise it, or use fewer records of each unit"
            );
            Err(Failure::new(Reason::RunSpecInvalid, message))
        }
    }
}

/// Equal micro-batches that hold `cap` units, each of at most `most` (T2, D8): (how many, how large).
fn micro_batches(cap: u64, most: u32) -> Result<(u32, u32), Failure> {
    let count = cap.div_ceil(u64::from(most));
    let size = cap.div_ceil(count);
    match (u32::try_from(count), u32::try_from(size)) {
        (Ok(count), Ok(size)) => Ok((count, size)),
        _ => Err(too_large_batch()),
    }
}

fn too_large_batch() -> Failure {
    Failure::new(
        Reason::RunSpecInvalid,
        "the batch is too large for its max_batch_size; raise that",
    )
}

/// Refuses noise that the trainer would refuse after the run was reserved.
fn within_the_trainers_grid(what: &str, multiplier: f64) -> Result<(), Failure> {
    if multiplier <= MAX_NOISE {
        return Ok(());
    }
    let message = format!(
        "the {what} would be {multiplier:.1}, the trainer takes at most {MAX_NOISE}: raise the target epsilon, \
         or the loss_share if it is the loss's"
    );
    Err(Failure::new(Reason::Unpriceable, message))
}

/// A loss share near 1 leaves the released losses next to no noise, however much the gradients have.
fn not_void(joint: f64) -> Result<f64, Failure> {
    if joint >= MIN_NOISE {
        return Ok(joint);
    }
    let message = format!(
        "gradients and losses together would have a noise multiplier of {joint:.2e}, below {MIN_NOISE}: that protects nobody; lower the \
         target epsilon or the loss_share, or raise the noise_multiplier"
    );
    Err(Failure::new(Reason::RunSpecInvalid, message))
}

fn unpriceable(error: impl std::error::Error) -> Failure {
    Failure::of(Reason::Unpriceable, error)
}

/// Above the l2_sensitivity charged in grid units, which is 2^30 and a hundredth at most.
const LARGEST_SENSITIVITY: f64 = 1.05 * 1_073_741_824.0;
/// Physical batch when the scientist names none.
pub(crate) const DEFAULT_PHYSICAL_BATCH: u32 = 256;
/// Noise norm over the largest norm of a step's mean gradient, beyond which a warning is due.
const DROWNED: f64 = 10.0;
const WEAK_EPSILON: f64 = 10.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::request;
    use bastionai_privacy::banded::MAX_BANDS;

    fn planned(request: &RunRequest, declared_size: u64, delta: Delta) -> Result<Plan, Failure> {
        Plan::new(request, declared_size, delta, MAX_BANDS)
    }

    const LOSS: Option<LossRequest> = Some(LossRequest {
        max_loss: 4.0,
        share: 0.05,
    });

    fn delta() -> Delta {
        "1e-6".parse().unwrap()
    }

    #[test]
    fn a_calibrated_run_costs_at_most_its_target_and_close_to_it() {
        for (batch, steps, target) in [(16, 30, 0.5), (64, 100, 2.0), (192, 10, 8.0)] {
            let plan = planned(
                &request(batch, steps, Privacy::TargetEpsilon(target), LOSS),
                192,
                delta(),
            )
            .unwrap();
            let cost = plan.amount.epsilon.to_f64();
            assert!(
                cost <= target && cost > 0.98 * target,
                "B={batch} T={steps}: {cost} for {target}"
            );
            assert_eq!(plan.amount.delta, delta());
        }
    }

    #[test]
    fn a_share_of_the_losses_cannot_take_all_noise_away() {
        for share in [0.75, 0.9, 1.0 - 1e-6] {
            let loss = Some(LossRequest { max_loss: 4.0, share });
            let void = planned(
                &request(64, 1000, Privacy::NoiseMultiplier(0.05), loss),
                4096,
                delta(),
            );
            let refusal = format!("{:?}", void.err().unwrap());
            assert!(refusal.contains("protects nobody"), "{refusal}");
        }
    }

    fn with_bands(
        bands: Bands,
        batch: u64,
        steps: u64,
        privacy: Privacy,
        loss: Option<LossRequest>,
    ) -> RunRequest {
        RunRequest {
            bands,
            ..request(batch, steps, privacy, loss)
        }
    }

    /// 64 steps of 1/64 of the records: each of them once.
    #[test]
    fn planned_bands_leave_less_noise_at_the_same_price() {
        let target = Privacy::TargetEpsilon(8.0);
        let wish = with_bands(Bands::Planned, 96, 64, target, LOSS);
        let plan = planned(&wish, 6144, delta()).unwrap();
        assert!(plan.band.bands() > 4, "{}", plan.band.bands());
        assert!((0.3..0.8).contains(&plan.noise_ratio), "{}", plan.noise_ratio);
        let cost = plan.amount.epsilon.to_f64();
        assert!(cost <= 8.0 && cost > 0.98 * 8.0, "{cost}");
        let plain = planned(&request(96, 64, target, LOSS), 6144, delta()).unwrap();
        assert_eq!((plain.band.bands(), plain.noise_ratio), (1, 1.0));
        assert!(plan.felt_noise_multiplier(&wish) < plain.noise_multiplier * 0.8);
        let DpEvent::Banded { bands, steps, event } = &plan.event else {
            panic!("{:?}", plan.event)
        };
        assert_eq!((*bands, *steps), (plan.band.bands(), 64));
        let DpEvent::TruncatedSubsampledGaussian {
            dataset_size,
            sampling_probability,
            truncated_batch_size,
            noise_multiplier,
        } = **event
        else {
            panic!("{event:?}")
        };
        assert_eq!(dataset_size, 6144_u64.div_ceil(*bands));
        assert_eq!(noise_multiplier, plan.joint_noise_multiplier);
        assert!((sampling_probability / plan.sample_rate - *bands as f64).abs() < 1e-9);
        assert!(
            (plan.sample_rate - 96.0 / 6144.0).abs() < 1e-12,
            "as large batches as without"
        );
        assert!(truncated_batch_size <= plan.truncated_batch_size());
    }

    #[test]
    fn bands_keep_to_the_memory_and_given_ones_to_what_there_can_be() {
        let target = Privacy::TargetEpsilon(8.0);
        let wish = with_bands(Bands::Planned, 96, 64, target, None);
        let tight = Plan::new(&wish, 6144, delta(), 3).unwrap();
        assert!((2..=3).contains(&tight.band.bands()));
        let none = Plan::new(&wish, 6144, delta(), 1).unwrap();
        assert_eq!(none.band.bands(), 1);
        let given = with_bands(Bands::Planned, 96, 64, Privacy::NoiseMultiplier(1.0), None);
        assert_eq!(planned(&given, 6144, delta()).unwrap().band.bands(), 1);
        for (bands, says) in [(65, "at most 64"), (2000, "1024")] {
            let request = with_bands(Bands::Fixed(bands), 96, 64, target, None);
            let refused = planned(&request, 6144, delta()).unwrap_err();
            let said = tonic::Status::from(refused).message().to_owned();
            assert!(said.contains(says), "{said}");
        }
        let fixed = with_bands(Bands::Fixed(5), 96, 64, Privacy::NoiseMultiplier(1.0), None);
        let fixed = planned(&fixed, 6144, delta()).unwrap();
        assert_eq!((fixed.band.bands(), fixed.noise_multiplier), (5, 1.0));
        assert_eq!(fixed.noise_bytes(10), 4 * 8 * 10);
    }

    #[test]
    fn the_trainers_two_releases_are_no_sharper_than_what_was_charged() {
        let plan = planned(&request(64, 100, Privacy::TargetEpsilon(2.0), LOSS), 192, delta()).unwrap();
        let loss = plan.loss_noise_multiplier.unwrap();
        let rejoined = joint::joint_noise_multiplier(plan.noise_multiplier, loss).unwrap();
        assert!(rejoined >= plan.joint_noise_multiplier);
        let DpEvent::SelfComposed { event, count } = &plan.event else {
            panic!("{:?}", plan.event)
        };
        let DpEvent::TruncatedSubsampledGaussian {
            dataset_size,
            sampling_probability,
            truncated_batch_size,
            noise_multiplier,
        } = **event
        else {
            panic!("{event:?}")
        };
        assert_eq!(
            (*count, dataset_size, noise_multiplier),
            (100, 192, plan.joint_noise_multiplier)
        );
        assert_eq!(sampling_probability, plan.sample_rate);
        assert!(
            truncated_batch_size <= plan.truncated_batch_size(),
            "the trainer cuts no earlier than was charged"
        );
    }

    #[test]
    fn given_noise_is_priced_the_same_as_when_it_was_calibrated() {
        let calibrated = planned(&request(16, 30, Privacy::TargetEpsilon(1.0), LOSS), 192, delta()).unwrap();
        let given = Privacy::NoiseMultiplier(calibrated.noise_multiplier);
        let priced = planned(&request(16, 30, given, LOSS), 192, delta()).unwrap();
        let (one, other) = (calibrated.amount.epsilon.to_f64(), priced.amount.epsilon.to_f64());
        assert!((one - other).abs() < 1e-3, "{one} and {other}");
        assert!(
            (calibrated.loss_noise_multiplier.unwrap() / priced.loss_noise_multiplier.unwrap() - 1.0).abs()
                < 1e-9
        );
    }

    #[test]
    fn micro_batches_are_equal_hold_the_cap_and_respect_the_largest_size() {
        for cap in 1..600 {
            let (count, size) = micro_batches(cap, 64).unwrap();
            assert!(
                size <= 64 && u64::from(count) * u64::from(size) >= cap,
                "{cap}: {count} x {size}"
            );
            assert!(
                u64::from(count) * u64::from(size) < cap + u64::from(count),
                "{cap}: {count} x {size} wastes rows"
            );
        }
    }

    #[test]
    fn units_of_several_records_cost_what_records_do_and_stand_whole_in_a_batch() {
        let request = request(64, 100, Privacy::NoiseMultiplier(2.0), None);
        let records = Plan::new(&request, 1024, delta(), MAX_BANDS).unwrap();
        for (records_per_unit, asked) in [(5, None), (5, Some(23)), (300, None), (7, Some(7))] {
            let request = RunRequest {
                records_per_unit: Some(records_per_unit),
                max_batch_size: asked,
                ..request.clone()
            };
            let units = Plan::new(&request, 1024, delta(), MAX_BANDS).unwrap();
            let most = asked.unwrap_or(DEFAULT_PHYSICAL_BATCH.max(records_per_unit));
            assert!(
                units.physical_batch_size <= most
                    && units.physical_batch_size.is_multiple_of(records_per_unit)
            );
            assert!(units.truncated_batch_size() >= 64 && units.truncated_batch_size() < 300);
            assert_eq!(units.sample_threshold, records.sample_threshold);
            let ratio = units.amount.epsilon.to_f64() / records.amount.epsilon.to_f64();
            assert!((0.98..1.02).contains(&ratio), "{ratio}");
        }
        let small = RunRequest {
            records_per_unit: Some(9),
            max_batch_size: Some(8),
            ..request
        };
        let refused = tonic::Status::from(Plan::new(&small, 1024, delta(), MAX_BANDS).unwrap_err());
        assert!(refused.message().contains("records_per_unit 9"), "{refused}");
    }

    #[test]
    fn more_noise_or_fewer_steps_never_cost_more() {
        let cost = |steps, noise| {
            let request = request(32, steps, Privacy::NoiseMultiplier(noise), None);
            planned(&request, 192, delta()).unwrap().amount.epsilon
        };
        assert!(cost(50, 2.0) <= cost(50, 1.0));
        assert!(cost(25, 1.0) <= cost(50, 1.0));
    }

    #[test]
    fn a_choice_that_drowns_the_signal_is_told_with_numbers_and_a_batch_that_would_not() {
        let drowned = request(16, 200, Privacy::TargetEpsilon(2.0), LOSS);
        let plan = planned(&drowned, 6144, delta()).unwrap();
        let warning = plan.warnings(&drowned, 400_000).remove(0);
        let before = plan.noise_multiplier * 400_000f64.sqrt() / 16.0;
        assert!(warning.contains(&format!("{before:.1} times")), "{warning}");
        let words: Vec<&str> = warning.split_whitespace().collect();
        let suggested = words.iter().position(|word| *word == "would").unwrap();
        let batch: u64 = words[suggested - 1].parse().unwrap();
        let promised: f64 = words[suggested + 3].parse().unwrap();
        let larger = request(batch, 200, Privacy::TargetEpsilon(2.0), LOSS);
        let plan = planned(&larger, 6144, delta()).unwrap();
        let found = plan.noise_multiplier * 400_000f64.sqrt() / batch as f64;
        assert!((found / promised - 1.0).abs() < 0.05, "{warning}: {found}");
        let fine = request(batch, 200, Privacy::TargetEpsilon(2.0), LOSS);
        assert!(
            plan.warnings(&fine, 400_000)
                .iter()
                .all(|other| !other.contains("drowns"))
        );
        let hopeless = plan.warnings(&larger, 10_000_000_000).remove(0);
        assert!(hopeless.contains("fewer parameters"), "{hopeless}");
    }

    #[test]
    fn noise_that_the_trainer_refuses_is_refused_at_the_price() {
        let loss = Some(LossRequest {
            max_loss: 4.0,
            share: 1e-6,
        });
        let refused = planned(
            &request(16, 30, Privacy::NoiseMultiplier(100.0), loss),
            192,
            delta(),
        );
        let failure = refused.unwrap_err();
        assert_eq!(failure.reason, Reason::Unpriceable, "{failure:?}");
    }

    #[test]
    fn a_batch_above_the_declared_size_is_refused() {
        let refused = planned(&request(193, 10, Privacy::TargetEpsilon(1.0), None), 192, delta());
        assert_eq!(refused.unwrap_err().reason, Reason::RunSpecInvalid);
    }
}
