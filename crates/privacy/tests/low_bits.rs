//! The floating-point attack of Jin et al., "Are We There Yet? Timing and Floating-Point Attacks on Differential Privacy
//! Systems" (<https://arxiv.org/abs/2112.05307>), and Mironov's on trailing bits (CCS 2012), against what leaves here: noisy sums on the grid, and the
//! floats that are made of them. Each is run on textbook noise first, where it must find its mark.
//!
//! A sampler in floating point draws its uniforms from a lattice and rounds, so that most floats are no value of it. Whoever
//! sees `y = f + z` asks of each candidate f whether `y − f` is one: for Box–Muller by inverting the pair and trying the
//! uniforms around. True candidates pass always, false ones seldom, whatever σ is.
#![allow(clippy::unwrap_used, missing_docs)]

use bastionai_privacy::noise::NoiseStream;
use std::f64::consts::TAU;

/// Grid units of σ = 1.
const UNITS: f64 = 1_073_741_824.0; // 2^30

/// Pairs that an attacker sees.
const PAIRS: usize = 1500;

/// What is to be told from 0 under noise of σ = 1: the two distributions are 4e-4 apart for a pair.
const SHIFT: f64 = 0.001;

/// Neighbouring uniforms that are tried: the inverse is off by that many at most.
const AROUND: i64 = 8;

/// A floating-point format and its textbook Gaussian.
trait Format: Copy + PartialEq {
    /// Bits of a uniform.
    const BITS: u32;
    fn of(value: f64) -> Self;
    fn exact(self) -> f64;
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    /// From uniforms `k·2^-BITS`.
    fn box_muller(first: i64, second: i64) -> [Self; 2];
}

macro_rules! textbook_in {
    ($type:ty, $bits:literal) => {
        impl Format for $type {
            const BITS: u32 = $bits;
            fn of(value: f64) -> Self {
                value as $type
            }
            fn exact(self) -> f64 {
                f64::from(self)
            }
            fn plus(self, other: Self) -> Self {
                self + other
            }
            fn minus(self, other: Self) -> Self {
                self - other
            }
            fn box_muller(first: i64, second: i64) -> [Self; 2] {
                let unit = (1.0 as $type) / ((1_u64 << $bits) as $type);
                let radius = (-2.0 * (first as $type * unit).ln()).sqrt();
                let angle = TAU as $type * (second as $type * unit);
                [radius * angle.cos(), radius * angle.sin()]
            }
        }
    };
}
textbook_in!(f32, 24);
textbook_in!(f64, 53);

/// Whether a pair is one that Box–Muller gives in this format.
fn is_reachable<F: Format>(pair: [F; 2]) -> bool {
    let [x, y] = pair.map(F::exact);
    let lattice = (1_u64 << F::BITS) as f64;
    let first = ((-0.5 * (x * x + y * y)).exp() * lattice).round() as i64;
    let turn = y.atan2(x) / TAU;
    let second = ((if turn < 0.0 { turn + 1.0 } else { turn }) * lattice).round() as i64;
    (first - AROUND..=first + AROUND).any(|first| {
        first > 0 && (second - AROUND..=second + AROUND).any(|second| F::box_muller(first, second) == pair)
    })
}

/// How much more often a pair is a value plus 0 than one plus [`SHIFT`]: what the attacker decides by.
fn score<F: Format>(seen: &[[F; 2]]) -> f64 {
    let share = |candidate: f64| {
        let candidate = F::of(candidate);
        let passing = seen
            .iter()
            .filter(|pair| is_reachable(pair.map(|y| y.minus(candidate))));
        passing.count() as f64 / seen.len() as f64
    };
    share(0.0) - share(SHIFT)
}

/// Uniform integers in `1..2^bits`, of a generator that has nothing to do with ours.
fn uniforms(seed: u64, bits: u32) -> impl FnMut() -> i64 {
    let mut state = seed;
    move || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> (64 - bits)).max(1) as i64
    }
}

fn textbook<F: Format>(value: f64) -> Vec<[F; 2]> {
    let mut draw = uniforms(value.to_bits() ^ 7, F::BITS);
    let noisy = |z: F| F::of(value).plus(z);
    (0..PAIRS)
        .map(|_| F::box_muller(draw(), draw()).map(noisy))
        .collect()
}

/// Noisy sums of `value`, on a grid of 2^-30.
fn sums(value: f64, step: u64) -> Vec<i64> {
    let mut sums = vec![(value * UNITS).round() as i64; 2 * PAIRS];
    let noise = NoiseStream::new([3; 32]);
    noise.add_rounded_gaussian(step, 0, 0, &mut sums, UNITS).unwrap();
    sums
}

/// As the optimizer makes floats of them.
fn released<F: Format>(value: f64, step: u64) -> Vec<[F; 2]> {
    let sums = sums(value, step);
    let pairs = sums.as_chunks::<2>().0;
    pairs
        .iter()
        .map(|pair| pair.map(|units| F::of(units as f64 / UNITS)))
        .collect()
}

/// Five standard errors of a difference of two scores, each of which has a variance of at most 1/(2n).
fn chance() -> f64 {
    5.0 / (PAIRS as f64).sqrt()
}

fn attack<F: Format>(what: &str) {
    let told = score::<F>(&textbook(0.0)) - score::<F>(&textbook(SHIFT));
    assert!(
        told > 0.5,
        "{what}: the attack finds nothing on textbook noise ({told})"
    );
    let told = score::<F>(&released(0.0, 1)) - score::<F>(&released(SHIFT, 2));
    assert!(
        told.abs() < chance(),
        "{what}: the attack tells {told} of what is released"
    );
}

#[test]
fn inverting_the_sampler_tells_sums_apart_under_textbook_noise_and_not_under_ours() {
    attack::<f64>("f64");
}

#[test]
fn inverting_the_sampler_tells_weights_apart_under_textbook_noise_and_not_under_ours() {
    attack::<f32>("f32");
}

/// Share of the small values among `seen` whose bits end at 2^-53, as those of `1 + z` do.
fn ending_early(seen: impl IntoIterator<Item = f64>) -> f64 {
    let small: Vec<f64> = seen.into_iter().filter(|y| y.abs() < 0.125).collect();
    assert!(small.len() > 50, "{} small values", small.len());
    let early = small.iter().filter(|y| (*y * 2.0_f64.powi(53)).fract() == 0.0);
    early.count() as f64 / small.len() as f64
}

#[test]
fn trailing_bits_tell_values_apart_under_textbook_noise_and_not_under_ours() {
    let naive = |value: f64| ending_early(textbook::<f64>(value).into_iter().flatten());
    assert!(
        naive(1.0) > 0.99 && naive(0.0) < 0.2,
        "{} and {}",
        naive(1.0),
        naive(0.0)
    );
    let ours = |value: f64, step| ending_early(released::<f64>(value, step).into_iter().flatten());
    assert_eq!((ours(1.0, 3), ours(0.0, 4)), (1.0, 1.0));
}

/// On the grid every integer can be reached from every sum, and its low bits say nothing: the last byte is uniform, and as it
/// moves with the sum so do the frequencies.
#[test]
fn the_low_byte_of_a_released_sum_is_uniform_whatever_the_sum() {
    for (step, value) in [(5, 0.0), (6, SHIFT), (7, 1.0 / 3.0), (8, 1e6)] {
        let mut sums = vec![(value * UNITS) as i64; 1 << 18];
        let noise = NoiseStream::new([4; 32]);
        noise.add_rounded_gaussian(step, 0, 0, &mut sums, UNITS).unwrap();
        let mut cells = [0_u64; 256];
        sums.iter().for_each(|sum| cells[(sum & 255) as usize] += 1);
        let expected = sums.len() as f64 / 256.0;
        let chi_squared: f64 = cells
            .iter()
            .map(|&count| (count as f64 - expected).powi(2) / expected)
            .sum();
        assert!(
            (chi_squared - 255.0).abs() < 5.0 * 510.0_f64.sqrt(),
            "{value}: {chi_squared}"
        );
    }
}
