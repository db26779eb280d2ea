//! What a step releases is the mechanism that is priced: a Poisson sample, a sum, noise of the stated size and new for every
//! value, a public divisor. Each property has a test of its own, so that what breaks has a name.

use crate::canaries::{Audited, LONG, MAX_GRAD_NORM, NEXT_TO_NOTHING, diracs, job, linear};
use crate::short_or_long;
use crate::statistics::{
    assert_chi_squared, assert_normal, assert_unrelated, correlation, joint_score, score,
};
use crate::support::*;
use bastionai_wire::trainer::{Job, LossRelease};
use tch::{Device, Kind, Tensor};

const NOISE_MULTIPLIER: f64 = 1.3;
/// The second tensor is longer than a chunk of the engine's noise.
const WIDTHS: [u64; 2] = [700, 10_000];

fn zeros(width: u64, capacity: i64) -> Tensor {
    Tensor::zeros([capacity, width as i64], (Kind::Float, Device::Cpu))
}

/// Nothing but noise, in units of its stated deviation: `steps` steps of a dataset without a record.
fn noise(steps: u64) -> Vec<Vec<Vec<f64>>> {
    let model = linear(&WIDTHS, 0.0);
    let empty = Job {
        steps,
        noise_multiplier: NOISE_MULTIPLIER,
        ..job(0, 4)
    };
    let mut audited = Audited::new(&model, &empty, &WIDTHS.map(|width| zeros(width, 4)));
    let deviation = NOISE_MULTIPLIER * audited.l2_sensitivity();
    let scaled = |sum: Vec<f64>| sum.into_iter().map(|value| value / deviation).collect();
    (0..steps)
        .map(|_| audited.step().sums.into_iter().map(scaled).collect())
        .collect()
}

#[test]
fn the_noise_of_a_released_sum_has_the_deviation_that_was_priced() {
    let steps = short_or_long(10, 200);
    for tensor in 0..WIDTHS.len() {
        let values: Vec<f64> = noise(steps)
            .iter()
            .flat_map(|step| step[tensor].clone())
            .collect();
        assert_normal(&format!("tensor {tensor}"), &values);
    }
}

#[test]
fn the_noise_of_a_released_loss_has_the_deviation_that_was_priced() {
    let model = linear(&[4], 0.0);
    let (steps, max_loss) = (short_or_long(1000, 20_000), 3.0);
    let release = LossRelease {
        max_loss,
        noise_multiplier: NOISE_MULTIPLIER,
    };
    let with_loss = Job {
        steps,
        loss: Some(release),
        ..job(0, 4)
    };
    let mut audited = Audited::new(&model, &with_loss, &[zeros(4, 4)]);
    let scores: Vec<f64> = (0..steps)
        .map(|_| audited.step().loss / (NOISE_MULTIPLIER * max_loss))
        .collect();
    assert_chi_squared("losses", scores.iter().copied());
    let lagged = correlation(&scores[1..], &scores[..scores.len() - 1]);
    assert!(lagged.abs() < 5.0 / (steps as f64).sqrt(), "{lagged}");
}

#[test]
fn the_noise_of_two_steps_is_unrelated() {
    let steps = noise(4);
    for (late, step) in steps.iter().enumerate() {
        for earlier in &steps[..late] {
            for (left, right) in step.iter().zip(earlier) {
                assert_unrelated("steps", left, right);
            }
        }
    }
}

#[test]
fn the_noise_of_two_coordinates_is_unrelated() {
    for step in noise(4) {
        let (first, second) = (&step[0], &step[1]);
        assert_unrelated("tensors", first, &second[..first.len()]);
        // Neighbours are pairs of Box and Muller; the others, distances at which a stream or a chunk could begin anew.
        for lag in [1, 2, 8, 64, 512, 1024, 4096, 8192] {
            assert_unrelated(
                &format!("lag {lag}"),
                &second[lag..],
                &second[..second.len() - lag],
            );
        }
    }
}

#[test]
fn two_runs_of_one_job_share_no_noise() {
    let (first, second) = (noise(1).remove(0), noise(1).remove(0));
    for (left, right) in first.iter().zip(&second) {
        assert_unrelated("runs", left, right);
    }
}

/// Records that are all the same canary, `rows` of them, all drawn: the step's sum, and what is subtracted from the weight.
fn sum_of_equals(rows: usize, expected_batch_size: f64) -> [f64; 2] {
    let model = linear(&[8], 0.0);
    let equal = Job {
        expected_batch_size,
        ..job(rows, 12)
    };
    let mut audited = Audited::new(&model, &equal, &[diracs(&[3; 12], 12, 8, LONG)]);
    let sum = audited.step().sums[0][3];
    [sum, -audited.weights()[0][3]]
}

#[test]
fn a_step_divides_by_the_public_batch_size_whatever_the_number_of_records_is() {
    for rows in [0, 1, 10, 11, 12] {
        let [_, moved] = sum_of_equals(rows, 8.0);
        let expected = rows as f64 * MAX_GRAD_NORM / 8.0;
        assert!(
            (moved - expected).abs() < 1e-3,
            "{rows} records: moved by {moved}"
        );
    }
}

#[test]
fn a_step_releases_a_sum_each_record_adds_its_clipped_gradient() {
    let [mut before, _] = sum_of_equals(0, 1.0);
    for rows in 1..=12 {
        let [sum, _] = sum_of_equals(rows, 1.0);
        assert!(
            (sum - before - MAX_GRAD_NORM).abs() < 1e-3,
            "record {rows}: {before} to {sum}"
        );
        before = sum;
    }
}

/// A record's gradient over all layers is held to C together, wherever it is long.
#[test]
fn the_norm_that_is_clipped_is_that_of_all_layers() {
    for long in 0..3 {
        for clipping in CLIPPINGS {
            let model = linear(&[4, 4, 4], 0.0);
            let clipped = Job {
                clipping,
                ..job(1, 1)
            };
            let of = |layer| diracs(&[1], 1, 4, if layer == long { 1e3 } else { 0.1 });
            let mut audited = Audited::new(&model, &clipped, &[of(0), of(1), of(2)]);
            let moved = norm(&audited.step().sums.concat());
            assert!(
                moved <= audited.l2_sensitivity() + 1e-4,
                "{clipping:?}, layer {long}: {moved}"
            );
        }
    }
}

/// Which of `ROWS` records each step's sample holds: every record is a canary of its own, so the sum shows it.
fn samples(steps: u64) -> Vec<Vec<bool>> {
    let model = linear(&[CAPACITY as u64], 0.0);
    let sampled = Job {
        steps,
        sample_threshold: 1 << 62,
        physical_batch_size: 16,
        micro_batches: 2,
        noise_multiplier: NEXT_TO_NOTHING,
        ..job(ROWS, CAPACITY)
    };
    let all: Vec<usize> = (0..CAPACITY).collect();
    let mut audited = Audited::new(&model, &sampled, &[diracs(&all, CAPACITY, CAPACITY, LONG)]);
    let drawn = |_| {
        let sum = audited.step().sums.remove(0);
        sum.into_iter().map(|value| value > 0.5 * MAX_GRAD_NORM).collect()
    };
    (0..steps).map(drawn).collect()
}

const ROWS: usize = 24;
const CAPACITY: usize = 32;
/// The rate of [`samples`].
const RATE: f64 = 0.25;

#[test]
fn the_sample_of_a_step_is_a_poisson_sample() {
    let steps = short_or_long(2000, 20_000);
    let samples = samples(steps as u64);
    let count = |holds: &dyn Fn(&[bool]) -> bool| samples.iter().filter(|sample| holds(sample)).count();
    assert_eq!(
        count(&|sample| sample[ROWS..].contains(&true)),
        0,
        "padding was drawn"
    );
    let single = (0..ROWS).map(|i| score(count(&|sample| sample[i]), steps, RATE));
    assert_chi_squared("marginals", single);
    let pairs = (0..ROWS).flat_map(|i| (0..i).map(move |j| (i, j)));
    let pair =
        |(i, j): (usize, usize)| joint_score(samples.iter().map(|sample| (sample[i], sample[j])), RATE);
    assert_chi_squared("pairs", pairs.map(pair));
    // A sample of fixed size has none of this variance, and with replacement or by epochs another.
    let sizes = samples
        .iter()
        .map(|sample| sample.iter().filter(|&&drawn| drawn).count());
    let squares: f64 = sizes.map(|size| (size as f64 - RATE * ROWS as f64).powi(2)).sum();
    let relative = squares / steps as f64 / (ROWS as f64 * RATE * (1.0 - RATE)) - 1.0;
    assert!(
        relative.abs() < 5.0 * (2.1 / steps as f64).sqrt(),
        "variance of sizes off by {relative}"
    );
}

#[test]
fn the_samples_of_two_steps_are_independent() {
    let steps = short_or_long(2000, 20_000);
    let samples = samples(steps as u64);
    for lag in [1, 2, 4] {
        let again = |i: usize| {
            let both = samples[lag..].iter().zip(&samples);
            joint_score(both.map(|(now, then)| (now[i], then[i])), RATE)
        };
        let scores = (0..ROWS).map(again);
        assert_chi_squared(&format!("steps {lag} apart"), scores);
    }
}

#[test]
fn two_runs_of_one_job_share_no_sample() {
    let (first, second) = (samples(200), samples(200));
    let both = first.concat().into_iter().zip(second.concat());
    let common = both.filter(|(left, right)| *left && *right).count();
    let found = score(common, 200 * ROWS, RATE * RATE);
    assert!(found.abs() < 6.0, "{common} in common");
}
