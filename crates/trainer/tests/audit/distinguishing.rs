//! Canary audits: the best test that exists (Neyman and Pearson's) tells two neighbouring datasets apart by what real
//! trainings release, and its success gives a lower bound on ε. It must stay below the priced ε, and come near it: an audit
//! that finds nothing in a sound engine must be one that finds much in an unsound one.

use crate::canaries::{Audited, LONG, diracs, job, linear};
use crate::statistics::{Binomials, normal_tail};
use crate::support::NoiseMode;
use crate::{FAILURE, short_or_long};
use bastionai_privacy::accountant;
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_privacy::joint::joint_noise_multiplier;
use bastionai_privacy::sampling::threshold;
use bastionai_wire::trainer::{Job, LossRelease};
use std::sync::LazyLock;
use tch::Tensor;

const LARGEST: usize = 1_000_000;
static BINOMIALS: LazyLock<Binomials> = LazyLock::new(|| Binomials::new(LARGEST));

/// δ as priced, in the direction and at the ε of an audit.
fn priced_delta(event: &DpEvent, epsilon: f64) -> f64 {
    accountant::delta(event, NeighboringRelation::AddOrRemoveOne, epsilon).unwrap()
}

fn sampled(sampling_probability: f64, noise_multiplier: f64) -> DpEvent {
    DpEvent::PoissonSampled {
        sampling_probability,
        event: Box::new(DpEvent::Gaussian { noise_multiplier }),
    }
}

/// How often the test said "with" of outputs with the record and of outputs without it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verdicts {
    pub(crate) with: usize,
    pub(crate) without: usize,
    pub(crate) trials: usize,
}

impl Verdicts {
    /// The ε that these outputs exceed at the δ that the price has at `epsilon`: of a tight price the answer is `epsilon`,
    /// less what the number of trials leaves open.
    pub(crate) fn epsilon(self, event: &DpEvent, epsilon: f64) -> f64 {
        let delta = priced_delta(event, epsilon);
        BINOMIALS.epsilon(self.with, self.without, self.trials, delta, FAILURE)
    }
}

/// Canaries at every coordinate, of which the first half is in the dataset: each step is a trial of all of them.
/// "With" is said of a coordinate that is above `cut` times the sensitivity.
fn trials_of_steps(
    noise_mode: NoiseMode,
    rate: f64,
    noise_multiplier: f64,
    steps: u64,
    cut: f64,
) -> Verdicts {
    let (rows, width) = (128, 256);
    let model = linear(&[width as u64], 0.0);
    let canaries: Vec<usize> = (0..rows).collect();
    let with_canaries = Job {
        steps,
        sample_threshold: threshold(rate).unwrap(),
        noise_multiplier,
        noise_mode,
        ..job(rows, rows)
    };
    let mut audited = Audited::new(&model, &with_canaries, &[diracs(&canaries, rows, width, -LONG)]);
    let cut = cut * audited.l2_sensitivity();
    let mut verdicts = Verdicts {
        with: 0,
        without: 0,
        trials: rows * steps as usize,
    };
    for _ in 0..steps {
        let sum = audited.step().sums.remove(0);
        let says_with = |coordinates: &[f64]| coordinates.iter().filter(|value| -**value > cut).count();
        verdicts.with += says_with(&sum[..rows]);
        verdicts.without += says_with(&sum[rows..]);
    }
    verdicts
}

/// Where the likelihood ratio (1−q) + q·exp((x − ½)/σ²) of one step is e^ε.
pub(crate) fn best_cut(rate: f64, noise_multiplier: f64, epsilon: f64) -> f64 {
    ((epsilon.exp() - 1.0 + rate) / rate).ln() * noise_multiplier.powi(2) + 0.5
}

/// Noise mode, rate, noise multiplier, and the ε of the price at which they are audited.
const STEPS: [(NoiseMode, f64, f64, f64); 5] = [
    (NoiseMode::Standard, 1.0, 1.0, 1.0),
    (NoiseMode::Standard, 0.5, 1.0, 1.0),
    (NoiseMode::Standard, 0.5, 0.6, 2.0),
    (NoiseMode::Hardened, 1.0, 1.0, 1.0),
    (NoiseMode::Hardened, 0.5, 0.6, 2.0),
];

#[test]
fn single_steps_are_told_apart_no_better_than_priced_and_nearly_as_well() {
    let steps = short_or_long(200, 5000);
    for (mode, rate, noise_multiplier, epsilon) in STEPS {
        let cut = best_cut(rate, noise_multiplier, epsilon);
        let verdicts = trials_of_steps(mode, rate, noise_multiplier, steps, cut);
        let audited = verdicts.epsilon(&sampled(rate, noise_multiplier), epsilon);
        println!(
            "{mode:?}, q = {rate}, σ = {noise_multiplier}: audited ε {audited:.3} of {epsilon}; {verdicts:?}"
        );
        assert!(
            audited <= epsilon,
            "{mode:?}, q = {rate}, σ = {noise_multiplier}: {audited}"
        );
        let share = audited / epsilon;
        assert!(
            share > short_or_long(0.4, 0.85),
            "{mode:?}, q = {rate}, σ = {noise_multiplier}: the audit sees {share} of ε"
        );
    }
}

#[test]
fn the_audit_of_steps_finds_nine_tenths_of_the_noise() {
    let steps = short_or_long(1000, 5000);
    let (mode, rate, noise_multiplier, epsilon) = STEPS[0];
    let cut = best_cut(rate, noise_multiplier, epsilon);
    let verdicts = trials_of_steps(mode, rate, 0.9 * noise_multiplier, steps, cut);
    let audited = verdicts.epsilon(&sampled(rate, noise_multiplier), epsilon);
    assert!(audited > epsilon, "ε = {epsilon} was claimed, {audited} found");
}

/// Trainings on a handful of records: by coordinate and sign, the last one the victim's.
struct Small<'a> {
    records: &'a [(usize, f32)],
    /// Its steps are those of one trial.
    job: Job,
    /// Independent trials that one process of steps holds: more than one only where no step depends on those before.
    trials_per_training: usize,
}

impl Small<'_> {
    /// Runs the trainings with and without the victim; "with" is said where the log-likelihood ratio of everything
    /// released, `of_step` summed, exceeds `epsilon`. It is given the sum at coordinate 0 over Δ, and the loss sum.
    fn trials(&self, trainings: usize, epsilon: f64, of_step: impl Fn(f64, f64) -> f64) -> Verdicts {
        let model = linear(&[4], 64.0);
        let capacity = self.records.len();
        let mut values = vec![0.0f32; 4 * capacity];
        for (row, (coordinate, sign)) in self.records.iter().enumerate() {
            values[4 * row + coordinate] = sign * LONG;
        }
        let column = Tensor::from_slice(&values).reshape([capacity as i64, 4]);
        let steps = self.job.steps;
        let says_with = |rows: usize| -> usize {
            let mut job = self.job.clone();
            job.datasets[0].rows = rows as u64;
            job.steps = steps * self.trials_per_training as u64;
            let mut audited = Audited::new(&model, &job, std::slice::from_ref(&column));
            let sensitivity = audited.l2_sensitivity();
            let mut ratio = || {
                let released = audited.step();
                of_step(released.sums[0][0] / sensitivity, released.loss)
            };
            let trials = (0..self.trials_per_training).map(|_| (0..steps).map(|_| ratio()).sum::<f64>());
            trials.filter(|&ratio| ratio > epsilon).count()
        };
        let count = |rows| (0..trainings).map(|_| says_with(rows)).sum();
        Verdicts {
            with: count(capacity),
            without: count(capacity - 1),
            trials: trainings * self.trials_per_training,
        }
    }
}

/// Gradients and losses of three steps over three records and over two. The victim's loss is above the bound on losses,
/// the others' below zero, so that both releases are about it.
#[test]
fn trainings_on_three_records_and_on_two_are_told_apart_no_better_than_priced() {
    let (rate, steps, epsilon, max_loss) = (0.5, 3, 2.0, 1.0);
    let (gradient_noise, loss_noise) = (0.8, 1.0);
    let noise = joint_noise_multiplier(gradient_noise, loss_noise).unwrap();
    let small = Small {
        records: &[(1, -1.0), (2, -1.0), (0, 1.0)],
        job: Job {
            steps,
            sample_threshold: threshold(rate).unwrap(),
            noise_multiplier: gradient_noise,
            loss: Some(LossRelease {
                max_loss,
                noise_multiplier: loss_noise,
            }),
            ..job(3, 3)
        },
        trials_per_training: 1,
    };
    let verdicts = small.trials(short_or_long(5000, 60_000), epsilon, |gradient, loss| {
        let shift = gradient / gradient_noise.powi(2) + loss / max_loss / loss_noise.powi(2);
        (1.0 - rate + rate * (shift - 0.5 / noise.powi(2)).exp()).ln()
    });
    let event = DpEvent::SelfComposed {
        event: Box::new(sampled(rate, noise)),
        count: steps,
    };
    let audited = verdicts.epsilon(&event, epsilon);
    println!("three records: audited ε {audited:.3} of {epsilon}; {verdicts:?}");
    assert!(audited <= epsilon, "{audited}");
    assert!(
        audited > short_or_long(0.2, 0.7) * epsilon,
        "the audit sees only {audited}"
    );
}

/// The same where a step takes one record of those drawn: the victim then stands in another's place, which moves the sum by
/// twice as much as if it came on top.
#[test]
fn a_record_that_displaces_another_is_told_no_better_than_priced() {
    let (rate, noise, epsilon) = (0.9, 0.7, 2.0);
    let small = Small {
        records: &[(0, -1.0), (0, -1.0), (0, 1.0)],
        job: Job {
            sample_threshold: threshold(rate).unwrap(),
            noise_multiplier: noise,
            physical_batch_size: 1,
            ..job(3, 3)
        },
        trials_per_training: 1000,
    };
    // Laws of the sum, −1, 0 or 1 by which record, if any, is taken. The victim shares the only place with those of the two
    // others who are drawn as well.
    let none = (1.0 - rate) * (1.0 - rate);
    let one = 2.0 * rate * (1.0 - rate);
    let victim = rate * (none + one / 2.0 + rate * rate / 3.0);
    let nobody = none * (1.0 - rate);
    let with = [1.0 - nobody - victim, nobody, victim];
    let without = [1.0 - none, none, 0.0];
    let density = |law: [f64; 3], x: f64| -> f64 {
        let at = |place: f64| (-(x - place).powi(2) / (2.0 * noise.powi(2))).exp();
        law[0] * at(-1.0) + law[1] * at(0.0) + law[2] * at(1.0)
    };
    let ratio = |x, _| (density(with, x) / density(without, x)).ln();
    let verdicts = small.trials(short_or_long(40, 200), epsilon, ratio);
    let event = DpEvent::TruncatedSubsampledGaussian {
        dataset_size: 3,
        sampling_probability: rate,
        truncated_batch_size: 1,
        noise_multiplier: noise,
    };
    let audited = verdicts.epsilon(&event, epsilon);
    // Were the cut not priced, the same outputs would be beyond what is charged.
    let uncut = verdicts.epsilon(&sampled(rate, noise), epsilon);
    println!("cut to one: audited ε {audited:.3} of {epsilon}, {uncut:.3} were there no cut; {verdicts:?}");
    assert!(audited <= epsilon, "{audited}");
    assert!(uncut > epsilon, "the audit sees no cut: {uncut}");
}

#[test]
fn the_best_cut_is_where_the_likelihood_ratio_says_so() {
    // Of a plain Gaussian: δ(ε) = P[N(1, σ²) > cut] − e^ε·P[N(0, σ²) > cut] is the closed form of Balle and Wang.
    for (noise, epsilon) in [(1.0, 1.0), (0.6, 2.0), (2.0, 0.3)] {
        let cut = best_cut(1.0, noise, epsilon);
        let delta = normal_tail((cut - 1.0) / noise) - f64::exp(epsilon) * normal_tail(cut / noise);
        let priced = priced_delta(&sampled(1.0, noise), epsilon);
        assert!((delta - priced).abs() < 1e-9, "{delta} and {priced}");
    }
}
