//! Parses a `RunSpec` from the wire into [`RunRequest`]: after this, every number is in range and every default
//! is filled in. Concerns the scientist's own words only; datasets and the model come later.

use crate::config::Limits;
use crate::errors::{Failure, Reason};
use crate::warm_start::WeightsSource;
use bastionai_ledger::{DatasetId, Delta, Digest32};
use bastionai_wire::{
    Adam, Average, Bands, Clipping, Compute, DEFAULT_LOSS_SHARE, Decay, NoiseMode, Optimizer, Schedule,
    Warmup, v1,
};
use std::collections::BTreeSet;

/// A run as asked for, checked.
#[derive(Clone, Debug)]
pub(crate) struct RunRequest {
    pub(crate) model: Digest32,
    /// Records of a unit that a step uses; `None`: as the contracts say.
    pub(crate) records_per_unit: Option<u32>,
    /// Distinct (rule D3), in the order given.
    pub(crate) datasets: Vec<DatasetId>,
    pub(crate) input_columns: Vec<String>,
    pub(crate) model_name: String,
    pub(crate) batch_size: u64,
    /// Largest physical batch; `None`: the server's choice.
    pub(crate) max_batch_size: Option<u32>,
    pub(crate) steps: u64,
    pub(crate) max_grad_norm: f64,
    pub(crate) clipping: Clipping,
    pub(crate) compute: Compute,
    pub(crate) noise_mode: NoiseMode,
    pub(crate) privacy: Privacy,
    /// `None`: a tenth of the smallest lifetime δ (rule D6).
    pub(crate) delta: Option<Delta>,
    pub(crate) loss: Option<LossRequest>,
    pub(crate) optimizer: Optimizer,
    /// Its warm-up in steps.
    pub(crate) schedule: Schedule,
    /// The average of the iterates that is kept, if one is.
    pub(crate) average: Option<Average>,
    /// Steps over which the gradient's noise is correlated.
    pub(crate) bands: Bands,
    /// Steps before the last whose weights are kept, rising.
    pub(crate) keep_steps: Vec<u64>,
    /// `None`: the archive's own weights.
    pub(crate) initial_weights: Option<WeightsSource>,
}

/// How noise is chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Privacy {
    /// The server calibrates the noise to this ε.
    TargetEpsilon(f64),
    /// This multiplier for the gradient release.
    NoiseMultiplier(f64),
}

/// The noisy loss that is released beside the gradient (docs/privacy.md, gradient and loss as one mechanism).
#[derive(Clone, Copy, Debug)]
pub(crate) struct LossRequest {
    /// Per-sample losses are clipped to `[0, max_loss]`.
    pub(crate) max_loss: f64,
    /// Share of the joint mechanism's precision: `1/σ_loss² = share/σ²`.
    pub(crate) share: f64,
}

impl RunRequest {
    /// Checks every field of the scientist's request.
    pub(crate) fn parse(spec: &v1::RunSpec, limits: &Limits) -> Result<Self, Failure> {
        Ok(Self {
            model: model(&spec.model_id)?,
            records_per_unit: (spec.records_per_unit > 0).then_some(spec.records_per_unit),
            datasets: datasets(&spec.dataset_ids)?,
            input_columns: input_columns(&spec.input_columns)?,
            model_name: name("model_name", &spec.model_name)?,
            batch_size: in_range("batch_size", spec.batch_size, 1, 1 << 31)?,
            max_batch_size: max_batch_size(spec.max_batch_size)?,
            steps: in_range("steps", spec.steps, 1, limits.steps)?,
            max_grad_norm: positive("max_grad_norm", spec.max_grad_norm)?,
            clipping: Clipping::try_from(spec.clipping).map_err(|error| invalid(error.to_string()))?,
            compute: Compute::try_from(spec.compute).map_err(|error| invalid(error.to_string()))?,
            noise_mode: NoiseMode::try_from(spec.noise_mode).map_err(|error| invalid(error.to_string()))?,
            privacy: privacy(spec.privacy.as_ref())?,
            delta: delta(spec.target_delta)?,
            loss: loss(spec.max_loss, spec.loss_share)?,
            optimizer: optimizer(spec.optimizer.as_ref())?,
            schedule: schedule(spec.schedule, spec.steps)?,
            average: average(spec.ema_decay, spec.tail_average)?,
            bands: Bands::from_wire(spec.bands, spec.plan_bands)
                .map_err(|error| invalid(error.to_string()))?,
            keep_steps: keep_steps(spec, limits.kept_iterates)?,
            initial_weights: spec
                .initial_weights
                .as_ref()
                .map(WeightsSource::parse)
                .transpose()?,
        })
    }
}

/// A name: 1 to 128 bytes without control characters, for terminals, logs and receipts.
pub(crate) fn name(field: &str, text: &str) -> Result<String, Failure> {
    if text.is_empty() || text.len() > MAX_NAME_BYTES || text.chars().any(char::is_control) {
        let message = format!("{field} must have 1 to {MAX_NAME_BYTES} bytes and no control characters");
        return Err(Failure::malformed(message));
    }
    Ok(text.to_owned())
}

pub(crate) fn model(id: &[u8]) -> Result<Digest32, Failure> {
    Digest32::try_from(id).map_err(|_| invalid("model_id must be the 32 bytes that UploadModel returned"))
}

pub(crate) fn max_batch_size(value: u32) -> Result<Option<u32>, Failure> {
    let size = in_range("max_batch_size", u64::from(value), 0, MAX_PHYSICAL_BATCH)?;
    Ok((size > 0).then_some(value))
}

pub(crate) fn datasets(ids: &[Vec<u8>]) -> Result<Vec<DatasetId>, Failure> {
    if ids.is_empty() || ids.len() > MAX_DATASETS {
        return Err(invalid(format!(
            "dataset_ids has {} entries; give 1 to {MAX_DATASETS}",
            ids.len()
        )));
    }
    let mut seen = BTreeSet::new();
    ids.iter()
        .map(|id| {
            let id = DatasetId::try_from(&id[..]).map_err(|_| invalid("a dataset id has 16 bytes"))?;
            if seen.insert(id) {
                return Ok(id);
            }
            // Twice the same record in one sample is twice the sensitivity (rule D3).
            let message =
                format!("dataset {id} is named twice: the datasets of a run are distinct; name it once");
            Err(Failure::new(Reason::SameDatasetTwice, message))
        })
        .collect()
}

pub(crate) fn input_columns(columns: &[String]) -> Result<Vec<String>, Failure> {
    if columns.is_empty() || columns.len() > MAX_INPUTS {
        return Err(invalid(format!(
            "input_columns has {} entries; give 1 to {MAX_INPUTS}",
            columns.len()
        )));
    }
    columns
        .iter()
        .map(|column| name("input_columns", column))
        .collect()
}

fn privacy(privacy: Option<&v1::run_spec::Privacy>) -> Result<Privacy, Failure> {
    match privacy {
        Some(v1::run_spec::Privacy::TargetEpsilon(epsilon)) => target_epsilon(*epsilon),
        Some(v1::run_spec::Privacy::NoiseMultiplier(multiplier)) => noise_multiplier(*multiplier),
        None => Err(no_privacy()),
    }
}

pub(crate) fn target_epsilon(epsilon: f64) -> Result<Privacy, Failure> {
    bounded("target_epsilon", epsilon, MIN_EPSILON, MAX_EPSILON).map(Privacy::TargetEpsilon)
}

pub(crate) fn noise_multiplier(multiplier: f64) -> Result<Privacy, Failure> {
    bounded("noise_multiplier", multiplier, MIN_NOISE, MAX_NOISE).map(Privacy::NoiseMultiplier)
}

pub(crate) fn no_privacy() -> Failure {
    invalid("set target_epsilon (the server calibrates the noise) or noise_multiplier")
}

pub(crate) fn delta(value: f64) -> Result<Option<Delta>, Failure> {
    if value == 0.0 {
        return Ok(None);
    }
    // The shortest decimal that reads back as this float is what the scientist wrote.
    let text = format!("{value:e}");
    let delta: Delta = text
        .parse()
        .map_err(|error| invalid(format!("target_delta: {error}")))?;
    if !(value > 0.0 && value < 1.0) || delta == Delta::ZERO {
        return Err(invalid(format!(
            "target_delta = {value} must be above 0 and below 1; 0 asks for the default"
        )));
    }
    Ok(Some(delta))
}

fn loss(max_loss: f64, share: f64) -> Result<Option<LossRequest>, Failure> {
    if max_loss == 0.0 {
        return Ok(None);
    }
    let max_loss = positive("max_loss", max_loss)?;
    let share = if share == 0.0 {
        DEFAULT_LOSS_SHARE
    } else {
        bounded("loss_share", share, 1e-6, 1.0 - 1e-6)?
    };
    Ok(Some(LossRequest { max_loss, share }))
}

fn optimizer(wire: Option<&v1::Optimizer>) -> Result<Optimizer, Failure> {
    let optimizer = wire.copied().unwrap_or_default();
    let optimizer = Optimizer::try_from(optimizer).map_err(|error| invalid(error.to_string()))?;
    match optimizer {
        Optimizer::Sgd {
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
        } => {
            rate("lr", lr)?;
            rate("weight_decay", weight_decay)?;
            fraction("momentum", momentum)?;
            fraction("dampening", dampening)?;
            if nesterov && (momentum == 0.0 || dampening != 0.0) {
                return Err(invalid(
                    "nesterov needs momentum above 0 and dampening 0, as torch.optim.SGD does",
                ));
            }
        }
        Optimizer::AdamW(numbers)
        | Optimizer::Adam(numbers)
        | Optimizer::NoiseCorrected { adam: numbers, .. } => {
            let Adam {
                lr,
                beta1,
                beta2,
                eps,
                weight_decay,
            } = numbers;
            rate("lr", lr)?;
            fraction("beta1", beta1)?;
            fraction("beta2", beta2)?;
            positive("eps", eps)?;
            rate("weight_decay", weight_decay)?;
        }
    }
    if let Optimizer::NoiseCorrected { floor, .. } = optimizer {
        positive("noise_correction", floor)?;
    }
    Ok(optimizer)
}

/// The schedule with its warm-up in steps.
fn schedule(wire: Option<v1::Schedule>, steps: u64) -> Result<Schedule, Failure> {
    let schedule = wire.map_or(Ok(Schedule::default()), Schedule::try_from);
    let schedule = schedule.map_err(|error| invalid(error.to_string()))?;
    match schedule.decay {
        Decay::Constant => {}
        Decay::Linear { final_ratio } | Decay::Cosine { final_ratio } => {
            bounded("final_ratio", final_ratio, 0.0, 1.0)?;
        }
    }
    if let Warmup::Ratio(ratio) = schedule.warmup {
        bounded("warmup_ratio", ratio, 0.0, 1.0)?;
    }
    let warmup_steps = schedule.warmup.steps(steps);
    if warmup_steps > steps {
        return Err(invalid(format!(
            "warmup_steps = {warmup_steps} is longer than the run of {steps} steps: its rate would never be reached"
        )));
    }
    Ok(Schedule {
        decay: schedule.decay,
        warmup: Warmup::Steps(warmup_steps),
    })
}

fn average(ema_decay: f64, tail_average: f64) -> Result<Option<Average>, Failure> {
    if !(0.0..1.0).contains(&ema_decay) {
        return Err(invalid(format!(
            "ema_decay = {ema_decay} must be from 0 (no average) to below 1, e.g. 0.999"
        )));
    }
    if !(0.0..=1.0).contains(&tail_average) {
        return Err(invalid(format!(
            "tail_average = {tail_average} must be from 0 (no average) to 1 (of all steps), e.g. 0.25"
        )));
    }
    match (ema_decay > 0.0, tail_average > 0.0) {
        (true, true) => Err(invalid("set ema_decay or tail_average, not both")),
        (true, false) => Ok(Some(Average::Exponential { decay: ema_decay })),
        (false, true) => Ok(Some(Average::Tail { share: tail_average })),
        (false, false) => Ok(None),
    }
}

/// The steps to keep, rising. The last step's weights are the run's own, so that keeping them means nothing more.
fn keep_steps(spec: &v1::RunSpec, most: u32) -> Result<Vec<u64>, Failure> {
    let most = u64::from(most);
    let too_many = |count: u64| {
        Err(invalid(format!(
            "{count} steps to keep: this server keeps the weights of at most {most} steps of a run besides the last"
        )))
    };
    if spec.keep_every > 0 && !spec.keep_steps.is_empty() {
        return Err(invalid("set keep_steps or keep_every, not both"));
    }
    if let Some(count) = spec.steps.saturating_sub(1).checked_div(spec.keep_every) {
        if count > most {
            return too_many(count);
        }
        return Ok((1..=count).map(|index| index * spec.keep_every).collect());
    }
    if let Some(step) = spec
        .keep_steps
        .iter()
        .find(|step| !(1..=spec.steps).contains(*step))
    {
        return Err(invalid(format!(
            "keep_steps names step {step}: steps count from 1 to the run's {}",
            spec.steps
        )));
    }
    let kept: BTreeSet<u64> = spec
        .keep_steps
        .iter()
        .copied()
        .filter(|&step| step < spec.steps)
        .collect();
    if kept.len() as u64 > most {
        return too_many(kept.len() as u64);
    }
    Ok(kept.into_iter().collect())
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Reason::RunSpecInvalid, message)
}

fn positive(field: &str, value: f64) -> Result<f64, Failure> {
    bounded(field, value, f64::MIN_POSITIVE, MAX_NUMBER)
}

fn rate(field: &str, value: f64) -> Result<f64, Failure> {
    bounded(field, value, 0.0, MAX_NUMBER)
}

fn fraction(field: &str, value: f64) -> Result<f64, Failure> {
    bounded(field, value, 0.0, 1.0 - f64::EPSILON)
}

fn bounded(field: &str, value: f64, minimum: f64, maximum: f64) -> Result<f64, Failure> {
    if (minimum..=maximum).contains(&value) {
        return Ok(value);
    }
    Err(invalid(format!(
        "{field} = {value} must be a number from {minimum:e} to {maximum:e}"
    )))
}

fn in_range(field: &str, value: u64, minimum: u64, maximum: u64) -> Result<u64, Failure> {
    if (minimum..=maximum).contains(&value) {
        return Ok(value);
    }
    Err(invalid(format!(
        "{field} = {value} must be from {minimum} to {maximum}"
    )))
}

const MAX_NAME_BYTES: usize = 128;
const MAX_DATASETS: usize = 1024;
const MAX_INPUTS: usize = 256;
const MAX_NUMBER: f64 = 1e12;
const MIN_EPSILON: f64 = 1e-3;
const MAX_EPSILON: f64 = 1e3;
/// Below this the guarantee is void and the accountant's grid too coarse; above, nothing is learned.
pub(crate) const MIN_NOISE: f64 = 0.05;
/// The trainer takes no larger multiplier: its integer grid holds the noise of this many sensitivities.
pub(crate) const MAX_NOISE: f64 = 8192.0;
/// Sums of a physical batch are exact on the trainer's integer grid up to this.
const MAX_PHYSICAL_BATCH: u64 = 1 << 19;

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> v1::RunSpec {
        v1::RunSpec {
            model_id: vec![1; 32],
            dataset_ids: vec![vec![1; 16], vec![2; 16]],
            input_columns: vec!["x".into(), "y".into()],
            model_name: "mlp".into(),
            batch_size: 64,
            max_batch_size: 0,
            steps: 10,
            max_grad_norm: 1.0,
            clipping: 0,
            compute: 0,
            noise_mode: 0,
            privacy: Some(v1::run_spec::Privacy::TargetEpsilon(2.0)),
            target_delta: 1e-6,
            max_loss: 4.0,
            loss_share: 0.0,
            optimizer: Some(v1::Optimizer {
                kind: Some(v1::optimizer::Kind::Sgd(v1::Sgd {
                    lr: 0.1,
                    ..Default::default()
                })),
            }),
            schedule: None,
            initial_weights: None,
            ema_decay: 0.0,
            tail_average: 0.0,
            bands: 0,
            plan_bands: false,
            keep_steps: vec![],
            keep_every: 0,
            records_per_unit: 0,
        }
    }

    fn limits() -> Limits {
        Limits {
            steps: 100,
            kept_iterates: 4,
            ..Limits::default()
        }
    }

    #[test]
    fn defaults_are_filled_in() {
        let request = RunRequest::parse(&spec(), &limits()).unwrap();
        assert_eq!(request.delta.unwrap().to_string().parse::<f64>().unwrap(), 1e-6);
        assert_eq!(request.loss.unwrap().share, DEFAULT_LOSS_SHARE);
        assert_eq!(request.max_batch_size, None);
        assert_eq!(request.clipping, Clipping::Flat);
        assert_eq!(request.noise_mode, NoiseMode::Standard);
        assert_eq!(request.schedule, Schedule::default());
    }

    #[test]
    fn there_is_one_average_or_none_and_bands_are_given_or_planned() {
        let parse = |ema_decay, tail_average, bands, plan_bands| {
            let spec = v1::RunSpec {
                ema_decay,
                tail_average,
                bands,
                plan_bands,
                ..spec()
            };
            RunRequest::parse(&spec, &limits()).map(|request| (request.average, request.bands))
        };
        assert_eq!(parse(0.0, 0.0, 0, false).unwrap(), (None, Bands::Fixed(1)));
        let decay = Average::Exponential { decay: 0.9 };
        assert_eq!(parse(0.9, 0.0, 4, false).unwrap(), (Some(decay), Bands::Fixed(4)));
        let tail = Average::Tail { share: 1.0 };
        assert_eq!(parse(0.0, 1.0, 0, true).unwrap(), (Some(tail), Bands::Planned));
        for (ema, tail, bands, plan) in [
            (0.9, 0.5, 0, false),
            (1.0, 0.0, 0, false),
            (0.0, 1.1, 0, false),
            (0.0, -0.1, 0, false),
            (0.0, f64::NAN, 0, false),
            (0.0, 0.0, 2, true),
        ] {
            assert!(
                parse(ema, tail, bands, plan).is_err(),
                "{ema} {tail} {bands} {plan}"
            );
        }
    }

    #[test]
    fn a_noise_correction_has_a_floor_above_zero() {
        let parse = |noise_correction| {
            let adam = v1::Adam {
                lr: 0.1,
                beta1: 0.9,
                beta2: 0.99,
                eps: 1e-8,
                weight_decay: 0.0,
                noise_correction,
            };
            let kind = Some(v1::optimizer::Kind::Adam(adam));
            let spec = v1::RunSpec {
                optimizer: Some(v1::Optimizer { kind }),
                ..spec()
            };
            RunRequest::parse(&spec, &limits()).map(|request| request.optimizer)
        };
        assert!(matches!(parse(0.0).unwrap(), Optimizer::Adam(_)));
        assert!(matches!(
            parse(1e-9).unwrap(),
            Optimizer::NoiseCorrected { floor: 1e-9, .. }
        ));
        for bad in [-1e-9, f64::NAN, f64::INFINITY] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_warm_up_is_counted_in_steps() {
        let mut spec = spec();
        let decay = Decay::Linear { final_ratio: 0.1 };
        for (asked, counted) in [
            (Warmup::Ratio(0.25), 3),
            (Warmup::Steps(10), 10),
            (Warmup::Ratio(0.0), 0),
        ] {
            spec.schedule = Some(Schedule { decay, warmup: asked }.into());
            let found = RunRequest::parse(&spec, &limits()).unwrap().schedule;
            let warmup = Warmup::Steps(counted);
            assert_eq!(found, Schedule { decay, warmup });
        }
    }

    #[test]
    fn an_unknown_schedule_and_a_warm_up_longer_than_the_run_are_refused_in_words() {
        let refusal = |schedule: v1::Schedule| {
            let spec = v1::RunSpec {
                schedule: Some(schedule),
                ..spec()
            };
            let failure = RunRequest::parse(&spec, &limits()).unwrap_err();
            assert_eq!(failure.reason, Reason::RunSpecInvalid);
            tonic::Status::from(failure).message().to_owned()
        };
        let unknown = refusal(v1::Schedule::default());
        assert!(unknown.contains("constant, linear or cosine"), "{unknown}");
        let schedule = |decay, warmup| v1::Schedule::from(Schedule { decay, warmup });
        let long = refusal(schedule(Decay::Constant, Warmup::Steps(11)));
        assert!(long.contains("longer than the run of 10 steps"), "{long}");
        for (decay, warmup) in [
            (Decay::Constant, Warmup::Ratio(1.01)),
            (Decay::Constant, Warmup::Ratio(f64::NAN)),
            (Decay::Linear { final_ratio: -0.1 }, Warmup::Steps(0)),
            (Decay::Cosine { final_ratio: 1.1 }, Warmup::Steps(0)),
            (
                Decay::Cosine {
                    final_ratio: f64::NAN,
                },
                Warmup::Steps(0),
            ),
        ] {
            refusal(schedule(decay, warmup));
        }
    }

    #[test]
    fn steps_to_keep_are_listed_once_in_order_and_without_the_last() {
        for (every, steps, kept) in [
            (0, vec![7, 3, 7, 10], vec![3, 7]),
            (3, vec![], vec![3, 6, 9]),
            (5, vec![], vec![5]),
            (10, vec![], vec![]),
            (11, vec![], vec![]),
            (0, vec![], vec![]),
        ] {
            let spec = v1::RunSpec {
                keep_every: every,
                keep_steps: steps,
                ..spec()
            };
            assert_eq!(RunRequest::parse(&spec, &limits()).unwrap().keep_steps, kept);
        }
    }

    #[test]
    fn the_same_dataset_twice_is_refused() {
        let mut spec = spec();
        spec.dataset_ids = vec![vec![7; 16], vec![7; 16]];
        assert_eq!(
            RunRequest::parse(&spec, &limits()).unwrap_err().reason,
            Reason::SameDatasetTwice
        );
    }

    #[test]
    fn every_field_out_of_range_is_refused() {
        type Edit = fn(&mut v1::RunSpec);
        let edits: Vec<(&str, Edit)> = vec![
            ("model_id", |s| s.model_id = vec![0; 31]),
            ("no datasets", |s| s.dataset_ids.clear()),
            ("short dataset id", |s| s.dataset_ids[0].truncate(15)),
            ("no inputs", |s| s.input_columns.clear()),
            ("control character", |s| s.model_name = "a\u{1b}[2J".into()),
            ("batch 0", |s| s.batch_size = 0),
            ("no steps", |s| s.steps = 0),
            ("too many steps", |s| s.steps = 101),
            ("C = NaN", |s| s.max_grad_norm = f64::NAN),
            ("C = 0", |s| s.max_grad_norm = 0.0),
            ("unknown clipping", |s| s.clipping = 4),
            ("unknown noise mode", |s| s.noise_mode = 3),
            ("unknown precision", |s| s.compute = 3),
            ("no privacy", |s| s.privacy = None),
            ("ε < 0", |s| {
                s.privacy = Some(v1::run_spec::Privacy::TargetEpsilon(-1.0))
            }),
            ("ε = inf", |s| {
                s.privacy = Some(v1::run_spec::Privacy::TargetEpsilon(f64::INFINITY))
            }),
            ("σ = 0", |s| {
                s.privacy = Some(v1::run_spec::Privacy::NoiseMultiplier(0.0))
            }),
            ("σ above the trainer's", |s| {
                s.privacy = Some(v1::run_spec::Privacy::NoiseMultiplier(8192.5))
            }),
            ("physical batch above the grid's", |s| {
                s.max_batch_size = (1 << 19) + 1
            }),
            ("δ = 1", |s| s.target_delta = 1.0),
            ("δ < 0", |s| s.target_delta = -1e-6),
            ("δ = NaN", |s| s.target_delta = f64::NAN),
            ("max_loss < 0", |s| s.max_loss = -1.0),
            ("loss_share = 1", |s| s.loss_share = 1.0),
            ("no optimizer", |s| s.optimizer = None),
            ("decay 1", |s| s.ema_decay = 1.0),
            ("decay < 0", |s| s.ema_decay = -0.1),
            ("decay NaN", |s| s.ema_decay = f64::NAN),
            ("step 0 kept", |s| s.keep_steps = vec![0]),
            ("a step beyond the run kept", |s| s.keep_steps = vec![11]),
            ("too many steps kept", |s| s.keep_steps = vec![1, 2, 3, 4, 5]),
            ("kept too often", |s| s.keep_every = 1),
            ("kept in two ways", |s| {
                s.keep_every = 5;
                s.keep_steps = vec![1]
            }),
            ("initial weights of nothing", |s| {
                s.initial_weights = Some(v1::WeightsSource { source: None })
            }),
            ("short run id", |s| {
                let run = v1::RunWeights {
                    run_id: vec![1; 15],
                    ..Default::default()
                };
                let source = Some(v1::weights_source::Source::Run(run));
                s.initial_weights = Some(v1::WeightsSource { source })
            }),
        ];
        for (what, edit) in edits {
            let mut spec = spec();
            edit(&mut spec);
            assert!(
                RunRequest::parse(&spec, &limits()).is_err(),
                "{what} was accepted"
            );
        }
    }
}
