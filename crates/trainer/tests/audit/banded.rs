//! Noise that is correlated over a band of steps, in both noise modes: what the weights show is undone to what is priced, which has
//! independent noise, and in which a record's turn reaches so many steps and no others.

use crate::canaries::{Audited, LONG, MAX_GRAD_NORM, NEXT_TO_NOTHING, diracs, drawn, job, linear};
use crate::distinguishing::{Verdicts, best_cut};
use crate::short_or_long;
use crate::statistics::{
    assert_chi_squared, assert_normal, assert_unrelated, correlation, joint_score, score,
};
use crate::step::HOSTILE;
use crate::support::*;
use bastionai_privacy::event::DpEvent;
use bastionai_privacy::sampling::threshold;
use bastionai_wire::trainer::{Band, ClassKey, Job};
use tch::{Kind, Tensor};

/// The square root of plain descent, `(2j choose j)/4^j`; `NUMERATORS` is it below the diagonal, in units of 2^−12.
const COLUMN: [f64; 4] = [1.0, 0.5, 0.375, 0.3125];
const NUMERATORS: [u32; 3] = [2048, 1536, 1280];
const BANDS: usize = COLUMN.len();
const NOISE_MODES: [NoiseMode; 2] = [NoiseMode::Standard, NoiseMode::Hardened];

fn band() -> Option<Band> {
    Some(Band {
        numerators: NUMERATORS.to_vec(),
        class_key: ClassKey([5; 32]),
    })
}

/// What is priced, of what was released: `w_t = x_t + Σ_j r_j·x_(t−j)`, which is the sums of `BANDS` steps together and
/// independent noise.
fn undone(released: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let row = |step: usize| {
        let of = |at: usize| {
            let earlier = released[..=step].iter().rev();
            COLUMN.iter().zip(earlier).map(|(r, x)| r * x[at]).sum()
        };
        (0..released[step].len()).map(of).collect()
    };
    (0..released.len()).map(row).collect()
}

fn steps_of(mut audited: Audited, steps: u64) -> Vec<Vec<f64>> {
    (0..steps).map(|_| audited.step().sums.concat()).collect()
}

#[test]
fn the_noise_of_a_band_is_independent_and_as_large_as_was_priced_once_the_band_is_undone() {
    let (steps, noise_multiplier, width) = (short_or_long(12, 200), 1.3, 10_000);
    for noise_mode in NOISE_MODES {
        let empty = Job {
            steps,
            noise_multiplier,
            noise_mode,
            band: band(),
            ..job(0, BANDS)
        };
        let nobody = Tensor::zeros([BANDS as i64, width as i64], (Kind::Float, tch::Device::Cpu));
        let audited = Audited::new(&linear(&[width], 0.0), &empty, &[nobody]);
        let deviation = noise_multiplier * audited.l2_sensitivity() * norm(&COLUMN);
        let released = steps_of(audited, steps);
        for pair in released.windows(2) {
            let found = correlation(&pair[0], &pair[1]);
            assert!(found < -0.2, "{noise_mode:?}: a step takes nothing back, {found}");
        }
        let priced: Vec<Vec<f64>> = undone(&released)
            .into_iter()
            .map(|row| row.into_iter().map(|value| value / deviation).collect())
            .collect();
        assert_normal(&format!("{noise_mode:?}"), &priced.concat());
        for (late, row) in priced.iter().enumerate() {
            for (early, earlier) in priced[..late].iter().enumerate().rev().take(2 * BANDS) {
                assert_unrelated(&format!("{noise_mode:?}, steps {early} and {late}"), earlier, row);
            }
        }
    }
}

const ROWS: usize = 24;
const CAPACITY: usize = 32;

/// Whether each of `ROWS` records was in each step's sample.
fn samples(steps: u64, rate: f64) -> Vec<Vec<bool>> {
    let all: Vec<usize> = (0..CAPACITY).collect();
    let sampled = Job {
        steps,
        sample_threshold: threshold(rate).unwrap(),
        noise_multiplier: NEXT_TO_NOTHING,
        band: band(),
        ..job(ROWS, CAPACITY)
    };
    let column = diracs(&all, CAPACITY, CAPACITY, LONG);
    let audited = Audited::new(&linear(&[CAPACITY as u64], 0.0), &sampled, &[column]);
    let is_in = |sum: Vec<f64>| sum.into_iter().map(|value| value > 0.5 * MAX_GRAD_NORM).collect();
    steps_of(audited, steps).into_iter().map(is_in).collect()
}

/// In which step of a band each record has its turn, by what a run with everybody shows.
fn turns() -> Vec<usize> {
    let first = samples(BANDS as u64, 1.0);
    let turn = |record: usize| {
        let taken: Vec<usize> = (0..BANDS).filter(|&step| first[step][record]).collect();
        assert_eq!(taken.len(), 1, "record {record} has its turns at {taken:?}");
        taken[0]
    };
    (0..ROWS).map(turn).collect()
}

#[test]
fn a_record_has_one_turn_in_a_band_of_steps_at_every_start_and_is_then_drawn_independently() {
    let (rate, turn) = (0.5, turns());
    for class in 0..BANDS {
        let size = turn.iter().filter(|&&own| own == class).count();
        assert!(
            size <= CAPACITY / BANDS,
            "{size} records in a class of {CAPACITY} slots"
        );
    }
    let rounds = short_or_long(500, 5000);
    // Keys of the start are new, the run's is the same.
    let samples = samples((rounds * BANDS) as u64, rate);
    for (step, sample) in samples.iter().enumerate() {
        for record in (0..ROWS).filter(|&record| turn[record] != step % BANDS) {
            assert!(!sample[record], "record {record} is in step {step} out of turn");
        }
        assert!(!sample[ROWS..].contains(&true), "padding was drawn");
    }
    let at_turn = |record: usize, round: usize| samples[round * BANDS + turn[record]][record];
    let count =
        |holds: &dyn Fn(usize) -> bool, rounds: usize| (0..rounds).filter(|&each| holds(each)).count();
    let single = |record| count(&|round| at_turn(record, round), rounds);
    assert_chi_squared(
        "marginals",
        (0..ROWS).map(|record| score(single(record), rounds, rate)),
    );
    // Two turns in a row; no turn is in two pairs.
    let in_a_row = |record| {
        let pairs = (0..rounds / 2).map(|pair| (at_turn(record, 2 * pair), at_turn(record, 2 * pair + 1)));
        joint_score(pairs, rate)
    };
    assert_chi_squared("turns in a row", (0..ROWS).map(in_a_row));
    let pairs = (0..ROWS).flat_map(|i| (0..i).map(move |j| (i, j)));
    let pairs = pairs.map(|(i, j)| {
        let together = (0..rounds).map(|round| (at_turn(i, round), at_turn(j, round)));
        joint_score(together, rate)
    });
    assert_chi_squared("pairs", pairs);
}

/// Canaries at every coordinate, of which the first half is in the dataset; each turn is a trial of those whose it is.
/// The adversary is told whose turn it is, and says "with" of a coordinate where what is priced, read along the column that
/// a turn moves it by, is above `cut`.
fn trials_of_turns(
    noise_mode: NoiseMode,
    rate: f64,
    noise_multiplier: f64,
    steps: u64,
    cut: f64,
) -> Verdicts {
    let rows = 128;
    let canaries: Vec<usize> = (0..rows).collect();
    let run = |steps, rate, noise_multiplier| {
        let job = Job {
            steps,
            sample_threshold: threshold(rate).unwrap(),
            noise_multiplier,
            noise_mode,
            band: band(),
            ..job(rows, rows)
        };
        let column = diracs(&canaries, rows, 2 * rows, LONG);
        let audited = Audited::new(&linear(&[2 * rows as u64], 0.0), &job, &[column]);
        let sensitivity = audited.l2_sensitivity();
        (undone(&steps_of(audited, steps)), sensitivity)
    };
    let (everybody, _) = run(BANDS as u64, 1.0, NEXT_TO_NOTHING);
    let turn = |canary: usize| (0..BANDS).find(|&step| everybody[step][canary] > 0.5 * MAX_GRAD_NORM);
    let (seen, sensitivity) = run(steps, rate, noise_multiplier);
    let says_with = |first: usize, coordinate: usize| {
        let along = COLUMN
            .iter()
            .zip(&seen[first..])
            .map(|(r, row)| r * row[coordinate]);
        along.sum::<f64>() > cut * sensitivity * norm(&COLUMN).powi(2)
    };
    let mut verdicts = Verdicts {
        with: 0,
        without: 0,
        trials: 0,
    };
    for canary in canaries.iter().copied() {
        let first = turn(canary).expect("a canary has a turn in every band");
        for first in (first..=seen.len() - BANDS).step_by(BANDS) {
            verdicts.with += usize::from(says_with(first, canary));
            verdicts.without += usize::from(says_with(first, rows + canary));
            verdicts.trials += 1;
        }
    }
    verdicts
}

/// One turn, of 128 records in classes: no sample is cut.
fn priced_turn(rate: f64, noise_multiplier: f64) -> DpEvent {
    DpEvent::Banded {
        bands: BANDS as u64,
        steps: BANDS as u64,
        event: Box::new(DpEvent::TruncatedSubsampledGaussian {
            dataset_size: (128 / BANDS) as u64,
            sampling_probability: rate,
            truncated_batch_size: 128,
            noise_multiplier,
        }),
    }
}

#[test]
fn turns_are_told_apart_no_better_than_priced_and_nearly_as_well() {
    let steps = short_or_long(800, 20_000);
    let [standard, hardened] = NOISE_MODES;
    for (mode, rate, noise_multiplier, epsilon) in [(standard, 1.0, 1.0, 1.0), (hardened, 0.5, 0.6, 2.0)] {
        let cut = best_cut(rate, noise_multiplier, epsilon);
        let verdicts = trials_of_turns(mode, rate, noise_multiplier, steps, cut);
        let audited = verdicts.epsilon(&priced_turn(rate, noise_multiplier), epsilon);
        println!(
            "{mode:?}, q = {rate}, σ = {noise_multiplier}: audited ε {audited:.3} of {epsilon}; {verdicts:?}"
        );
        assert!(audited <= epsilon, "{mode:?}: {audited}");
        let share = audited / epsilon;
        assert!(
            share > short_or_long(0.4, 0.85),
            "{mode:?}: the audit sees {share} of ε"
        );
    }
}

/// A record's gradient reaches as many steps as there are bands: noise for one of them is too little.
#[test]
fn the_audit_of_turns_finds_noise_that_is_meant_for_one_step() {
    let (steps, epsilon) = (short_or_long(1200, 20_000), 1.0);
    let cut = best_cut(1.0, 1.0, epsilon);
    let too_little = 1.0 / norm(&COLUMN);
    let verdicts = trials_of_turns(NoiseMode::Standard, 1.0, too_little, steps, cut);
    let audited = verdicts.epsilon(&priced_turn(1.0, 1.0), epsilon);
    assert!(audited > epsilon, "ε = {epsilon} was claimed, {audited} found");
}

/// With and without a hostile record, everybody drawn at their turns and noise that hides nothing, of a model whose gradients
/// depend on no weights: what is priced differs over the victim's turns, there by no more than is charged, and nowhere else.
#[test]
fn a_hostile_record_moves_the_steps_of_its_turns_alone_and_by_no_more_than_is_charged() {
    let (width, rows, victim, steps) = (8, 16, 11, 2 * BANDS as u64);
    let ordinary = drawn(6, || rand(Kind::Float, &[rows, width]));
    let mut most = 0.0f64;
    for noise_mode in NOISE_MODES {
        for clipping in CLIPPINGS {
            for value in HOSTILE {
                let column = with_row(&ordinary, victim, value);
                let seen = |present: i64| {
                    let job = Job {
                        steps,
                        clipping,
                        noise_mode,
                        band: band(),
                        ..job(present as usize, rows as usize)
                    };
                    let model = linear(&[width as u64], 0.0);
                    let audited = Audited::new(&model, &job, std::slice::from_ref(&column));
                    let charged = audited.l2_sensitivity() * norm(&COLUMN);
                    (steps_of(audited, steps), charged)
                };
                let ((with, charged), (without, _)) = (seen(victim + 1), seen(victim));
                let sums = with
                    .iter()
                    .zip(&without)
                    .map(|(with, without)| distance(with, without));
                let moved: Vec<usize> = sums
                    .enumerate()
                    .filter(|(_, far)| *far > 1e-3)
                    .map(|(at, _)| at)
                    .collect();
                let case = format!("{noise_mode:?} {clipping:?} {value}: {moved:?}");
                assert!(
                    moved.is_empty()
                        || (moved.len() == 2 && moved[1] == moved[0] + BANDS && moved[0] < BANDS),
                    "{case}"
                );
                let (with, without) = (undone(&with), undone(&without));
                for &first in &moved {
                    let reached = first..(first + BANDS).min(steps as usize);
                    let by = distance(&with[reached.clone()].concat(), &without[reached].concat());
                    assert!(
                        by <= charged + 1e-3,
                        "{case}: a turn moved it by {by} of {charged}"
                    );
                    most = most.max(by / charged);
                }
            }
        }
    }
    assert!(most > 0.99, "{most} of what is charged: nothing was tested");
}
