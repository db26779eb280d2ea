//! One training audited at once (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846): many canaries, each in the dataset by
//! the toss of a coin; the auditor guesses the coins from the final weights, and the more guesses are right, the larger an ε
//! the training must have.

use crate::canaries::{Audited, LONG, diracs, job, linear};
use crate::short_or_long;
use crate::statistics::{Binomials, OneRun};
use bastionai_privacy::accountant;
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_privacy::sampling::threshold;
use bastionai_wire::trainer::Job;
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

const CANARIES: usize = 512;
/// The auditor answers where it is surest: as many times "in" as "out".
const GUESSES: usize = 40;
const STEPS: u64 = 10;
const RATE: f64 = 0.5;
const NOISE_MULTIPLIER: f64 = 2.5;
const DELTA: f64 = 1e-5;
/// Of a bound: 95% confidence.
const FAILURE: f64 = 0.05;
const PHYSICAL_BATCH_SIZE: u32 = 160;
const MICRO_BATCHES: u32 = 2;

fn claimed_epsilon() -> f64 {
    let step = DpEvent::TruncatedSubsampledGaussian {
        dataset_size: CANARIES as u64,
        sampling_probability: RATE,
        truncated_batch_size: u64::from(PHYSICAL_BATCH_SIZE * MICRO_BATCHES),
        noise_multiplier: NOISE_MULTIPLIER,
    };
    let run = DpEvent::SelfComposed {
        event: Box::new(step),
        count: STEPS,
    };
    accountant::epsilon(&run, NeighboringRelation::AddOrRemoveOne, DELTA).unwrap()
}

/// One training, its coins tossed by `seed`; the keys of the engine are its own.
fn audit(seed: u8, noise_multiplier: f64, guesses: usize) -> OneRun {
    let mut coins = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let tosses: Vec<bool> = (0..CANARIES).map(|_| coins.next_u32() & 1 == 1).collect();
    let included: Vec<usize> = (0..CANARIES).filter(|&canary| tosses[canary]).collect();
    let training = Job {
        steps: STEPS,
        sample_threshold: threshold(RATE).unwrap(),
        physical_batch_size: PHYSICAL_BATCH_SIZE,
        micro_batches: MICRO_BATCHES,
        noise_multiplier,
        expected_batch_size: RATE * CANARIES as f64,
        ..job(included.len(), CANARIES)
    };
    let model = linear(&[CANARIES as u64], 0.0);
    let mut audited = Audited::new(&model, &training, &[diracs(&included, CANARIES, CANARIES, LONG)]);
    (0..STEPS).for_each(|_| drop(audited.step()));
    let weights = audited.weights().remove(0);
    let mut order: Vec<usize> = (0..CANARIES).collect();
    order.sort_by(|&a, &b| weights[a].total_cmp(&weights[b]));
    // The gradient of one that is in was subtracted.
    let said_in = order[..guesses / 2]
        .iter()
        .filter(|&&canary| tosses[canary])
        .count();
    let said_out = order[CANARIES - guesses / 2..]
        .iter()
        .filter(|&&canary| !tosses[canary])
        .count();
    OneRun {
        canaries: CANARIES,
        guesses,
        correct: said_in + said_out,
    }
}

#[test]
fn a_whole_training_is_audited_below_its_price_over_many_seeds() {
    let binomials = Binomials::new(CANARIES);
    let claimed = claimed_epsilon();
    let seeds = short_or_long(10, 50);
    let mut bounds: Vec<f64> = (0..seeds)
        .map(|seed| binomials.one_run_epsilon(&audit(seed, NOISE_MULTIPLIER, GUESSES), DELTA, FAILURE))
        .collect();
    bounds.sort_by(f64::total_cmp);
    let false_alarms = bounds.iter().filter(|&&bound| bound > claimed).count();
    let (median, largest) = (bounds[bounds.len() / 2], bounds[bounds.len() - 1]);
    println!(
        "one run: claimed ε {claimed:.3}; over {seeds} seeds audited {median:.3} in the median, {largest:.3} at most; \
         {false_alarms} false alarms"
    );
    // More than these are as improbable as any other failure here, if each seed may fail with 5%.
    let mut permitted = 0;
    while binomials.at_least(bounds.len(), permitted + 1, FAILURE) > crate::FAILURE {
        permitted += 1;
    }
    assert!(
        false_alarms <= permitted,
        "{false_alarms} of {seeds} bounds are above {claimed}"
    );
    assert!(median > 0.05 * claimed, "the audit sees {median} of {claimed}");
}

#[test]
fn the_audit_of_one_run_finds_missing_noise() {
    let binomials = Binomials::new(CANARIES);
    let claimed = claimed_epsilon();
    let bound = binomials.one_run_epsilon(&audit(7, 0.05 * NOISE_MULTIPLIER, CANARIES / 2), DELTA, FAILURE);
    assert!(bound > claimed, "ε = {claimed} was claimed, {bound} found");
}
