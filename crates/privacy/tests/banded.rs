//! The price of correlated noise against the densities of the real mechanism, integrated: nobody tells two datasets apart
//! better than priced, whatever the gradients and restarts depend on, and hardly worse where nothing does.
#![allow(clippy::unwrap_used)]

use bastionai_privacy::accountant;
use bastionai_privacy::banded::{BandedMatrix, Workload};
use bastionai_privacy::event::{DpEvent, NeighboringRelation};

/// Two bands and three steps: the record has its turns at steps 1 and 3, with this probability.
const RATE: f64 = 0.4;
const NOISE_MULTIPLIER: f64 = 0.9;
/// Points of the grid over one output, and how far they reach in standard deviations.
const POINTS: usize = 140;
const REACH: f64 = 7.0;

/// What the record would add to steps 2 and 3, given the outputs before: the rest of its first turn, and its second one.
type Strategy = fn(f64, f64, f64) -> (f64, f64);

/// δ(ε) of three outputs, the record there or not, in both directions; the noise is of standard deviation 1.
fn hockey_sticks(epsilon: f64, first: f64, strategy: Strategy) -> [f64; 2] {
    let width = 2.0 * REACH / POINTS as f64;
    let at = |index: usize| (index as f64 + 0.5) * width - REACH;
    let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt() * width;
    let factor = f64::exp(epsilon);
    let mut found = [0.0; 2];
    for one in (0..POINTS).map(at) {
        for two in (0..POINTS).map(at) {
            let (rest, second) = strategy(first, one, two);
            let without = density(one) * density(two);
            let drawn = density(one - first) * density(two - rest);
            let with = (1.0 - RATE) * without + RATE * drawn;
            for three in (0..POINTS).map(at) {
                let without = without * density(three);
                let with = with * ((1.0 - RATE) * density(three) + RATE * density(three - second));
                found[0] += (with - factor * without).max(0.0);
                found[1] += (without - factor * with).max(0.0);
            }
        }
    }
    found
}

fn banded(noise_multiplier: f64) -> DpEvent {
    let gaussian = DpEvent::Gaussian { noise_multiplier };
    let turn = DpEvent::PoissonSampled {
        sampling_probability: RATE,
        event: Box::new(gaussian),
    };
    DpEvent::Banded {
        bands: 2,
        steps: 3,
        event: Box::new(turn),
    }
}

fn priced(event: &DpEvent, epsilon: f64) -> f64 {
    accountant::delta(event, NeighboringRelation::AddOrRemoveOne, epsilon).unwrap()
}

/// What a turn moves its first output by, in standard deviations of the noise; the second it moves by half of that.
fn first_shift() -> f64 {
    let matrix = BandedMatrix::square_root(Workload::PREFIX_SUMS, 2).unwrap();
    assert_eq!(matrix.numerators(), [2048]);
    1.0 / (NOISE_MULTIPLIER * matrix.column_norm())
}

#[test]
fn nobody_tells_datasets_apart_better_than_priced() {
    let first = first_shift();
    let strategies: [(&str, Strategy); 4] = [
        ("always the same", |first, _, _| (0.5 * first, first)),
        ("signs by what came out", |first, one, two| {
            (0.5 * first, if one + two > 0.3 { first } else { -first })
        }),
        ("a restart when the first output is large", |first, one, _| {
            (if one > 0.2 { 0.0 } else { 0.5 * first }, first)
        }),
        ("silent after a small output", |first, one, two| {
            (0.5 * first, if one * two < 0.0 { 0.0 } else { first })
        }),
    ];
    for (name, strategy) in strategies {
        for epsilon in [0.0, 0.5, 1.5] {
            let bound = priced(&banded(NOISE_MULTIPLIER), epsilon);
            for found in hockey_sticks(epsilon, first, strategy) {
                assert!(
                    found <= bound * 1.0005,
                    "{name}, ε = {epsilon}: {found} above {bound}"
                );
            }
        }
    }
}

/// A last turn that reaches beyond the run moves one step less, so that a run of four steps is what the price is of.
#[test]
fn the_price_is_hardly_more_than_what_two_whole_turns_reveal() {
    let first = first_shift();
    // The fourth output, in one direction with the third: a shift of the whole turn's length.
    let strategy: Strategy = |first, _, _| (0.5 * first, first * 1.25_f64.sqrt());
    for epsilon in [0.0, 0.5, 1.5] {
        let bound = priced(&banded(NOISE_MULTIPLIER), epsilon);
        let found = hockey_sticks(epsilon, first, strategy);
        let worse = found[0].max(found[1]);
        assert!(
            worse <= bound * 1.0005 && worse > bound * 0.98,
            "ε = {epsilon}: {worse} of {bound}"
        );
    }
}

/// What would be too cheap: noise in proportion to a single sum, and as many turns as there are pairs of steps.
#[test]
fn a_price_that_forgot_the_column_or_a_turn_would_be_exceeded() {
    let matrix = BandedMatrix::square_root(Workload::PREFIX_SUMS, 2).unwrap();
    let first = first_shift();
    let strategy: Strategy = |first, _, _| (0.5 * first, first);
    for epsilon in [0.5, 1.5] {
        let found = hockey_sticks(epsilon, first, strategy);
        let worse = found[0].max(found[1]);
        let per_step = priced(&banded(NOISE_MULTIPLIER * matrix.column_norm()), epsilon);
        let DpEvent::Banded { event: turn, .. } = banded(NOISE_MULTIPLIER) else {
            panic!("{:?}", banded(NOISE_MULTIPLIER))
        };
        let once = priced(&turn, epsilon);
        assert!(
            worse > 1.05 * per_step && worse > 1.05 * once,
            "{worse} {per_step} {once}"
        );
    }
}
