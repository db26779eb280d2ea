//! Exact hockey-stick curves: the plain Gaussian, and one Poisson-sampled release of Gaussian or Laplace noise.
//!
//! Each δ is rounded up by a bound on its own arithmetic.

use super::AccountingError;
use super::likelihood::{loss_to_position, upper_tail};
use super::mechanism::{Case, Step};
use crate::tails::{normal_upper_tail, scaled_normal_upper_tail};

/// N(0, σ²) against N(1, σ²) (Balle and Wang 2018, Theorem 8); any count of them is one of these.
pub(super) struct Gaussian {
    noise_multiplier: f64,
}

impl Gaussian {
    pub(super) fn new(noise_multiplier: f64) -> Self {
        Self { noise_multiplier }
    }

    pub(super) fn delta(&self, epsilon: f64) -> f64 {
        let (value, error) = self.curve(epsilon);
        value + error
    }

    pub(super) fn delta_from_below(&self, epsilon: f64) -> f64 {
        let (value, error) = self.curve(epsilon);
        value - error
    }

    /// δ and a bound on its arithmetic: Q(a) − e^ε·Q(b) with a = εσ − 1/(2σ), b = εσ + 1/(2σ), and e^ε·φ(b) = φ(a), so that nothing
    /// overflows however large ε.
    fn curve(&self, epsilon: f64) -> (f64, f64) {
        let sigma = self.noise_multiplier;
        let (a, b) = (epsilon * sigma - 0.5 / sigma, epsilon * sigma + 0.5 / sigma);
        let density = libm::exp(-0.5 * a * a);
        let gain = if a > 0.0 {
            density * scaled_normal_upper_tail(a)
        } else {
            normal_upper_tail(a)
        };
        let loss = density * scaled_normal_upper_tail(b);
        // The tails are good to 1e-14 beside the rounding of their arguments, which x² amplifies.
        let relative = 1e-14 + 4.0 * f64::EPSILON * (a * a + b * b).min(1e6);
        ((gain - loss).max(0.0), relative * gain)
    }
}

/// One step: a Poisson-sampled release, or a mixture of such whose case is revealed.
pub(super) struct SingleStep {
    cases: Vec<Case>,
}

impl SingleStep {
    pub(super) fn new(cases: Vec<Case>) -> Self {
        Self { cases }
    }

    pub(super) fn delta(&self, epsilon: f64) -> f64 {
        self.worse(epsilon, |(value, error)| value + error) * self.mixed_up()
    }

    pub(super) fn delta_from_below(&self, epsilon: f64) -> f64 {
        self.worse(epsilon, |(value, error)| value - error) / self.mixed_up()
    }

    /// The worse of removing and adding a unit. With the case revealed, curves mix as their cases do.
    fn worse(&self, epsilon: f64, bound: impl Fn((f64, f64)) -> f64) -> f64 {
        let mixed = |curve: fn(&SampledRelease, f64) -> (f64, f64)| -> f64 {
            self.cases
                .iter()
                .map(|case| case.weight * bound(curve(&SampledRelease { step: case.step }, epsilon)))
                .sum()
        };
        mixed(SampledRelease::remove).max(mixed(SampledRelease::add))
    }

    fn mixed_up(&self) -> f64 {
        if self.cases.len() > 1 { MIXED_UP } else { 1.0 }
    }
}

/// One Poisson-sampled release: the mixture of noise around 0 and, with probability q, around 1, against noise around 0.
struct SampledRelease {
    step: Step,
}

impl SampledRelease {
    /// δ and a bound on its arithmetic. Mixture against plain: mass of the mixture above the x where the loss is ε.
    fn remove(&self, epsilon: f64) -> (f64, f64) {
        let q = self.step.sampling_probability;
        let x = loss_to_position(self.step, epsilon);
        let (plain, shifted) = (upper_tail(self.step, x), upper_tail(self.step, x - 1.0));
        // (1−q)·plain + q·shifted − e^ε·plain, arranged so that small q and ε cancel nothing.
        let gain = q * (shifted - plain);
        if epsilon > LARGEST_EXPONENT {
            // e^ε·plain is between nothing and all of it, and beyond doubles.
            let half = 0.5 * gain.max(0.0);
            return (half, half + self.rounding(x) * q * shifted);
        }
        let cost = libm::expm1(epsilon) * plain;
        let error = self.rounding(x) * (q * shifted + cost.min(q * shifted));
        ((gain - cost).max(0.0), error)
    }

    /// Plain against mixture: mass of the plain noise below the x where the loss is −ε.
    fn add(&self, epsilon: f64) -> (f64, f64) {
        let q = self.step.sampling_probability;
        let x = loss_to_position(self.step, -epsilon);
        if x == f64::NEG_INFINITY {
            return (0.0, 0.0);
        }
        let (plain, shifted) = (upper_tail(self.step, -x), upper_tail(self.step, 1.0 - x));
        let gain = q * (plain - shifted);
        if epsilon > LARGEST_EXPONENT {
            let half = 0.5 * gain.max(0.0);
            return (half, half + self.rounding(x) * q * plain);
        }
        let cost = libm::expm1(epsilon) * ((1.0 - q) * plain + q * shifted);
        let error = self.rounding(x) * (q * plain + cost.min(q * plain));
        ((gain - cost).max(0.0), error)
    }

    /// Relative error of a tail at x: the tail's own and that of its argument, amplified by the square of it. (A Laplace
    /// tail amplifies less.)
    fn rounding(&self, x: f64) -> f64 {
        let z = x / self.step.noise_multiplier;
        f64::EPSILON * (16.0 + 4.0 * (z * z).min(1e6))
    }
}

/// The smallest ε ≥ 0 with curve(ε) ≤ δ, rounded up; `curve` falls.
pub(super) fn solve(curve: impl Fn(f64) -> f64, delta: f64) -> Result<f64, AccountingError> {
    if curve(0.0) <= delta {
        return Ok(0.0);
    }
    let mut high = 1.0;
    while curve(high) > delta {
        high *= 2.0;
        if high > MAX_EPSILON {
            return Err(AccountingError::OutOfRange);
        }
    }
    let mut low = if high > 1.0 { high / 2.0 } else { 0.0 };
    while high - low > 1e-13 * high + 1e-300 {
        let middle = low + (high - low) / 2.0;
        if curve(middle) <= delta {
            high = middle;
        } else {
            low = middle;
        }
    }
    // NaN ends the doubling as well as a δ that is small enough: only the latter is an answer.
    if curve(high) <= delta {
        Ok(high * ROUND_UP + 1e-12)
    } else {
        Err(AccountingError::OutOfRange)
    }
}

/// An ε ≥ 0 with curve(ε) > δ, next to the largest, rounded down; 0 where there is none. `curve` falls.
pub(super) fn solve_from_below(curve: impl Fn(f64) -> f64, delta: f64) -> Result<f64, AccountingError> {
    let is_above = |epsilon: f64| curve(epsilon) > delta;
    if !is_above(0.0) {
        return Ok(0.0);
    }
    let mut high = 1.0;
    while is_above(high) {
        high *= 2.0;
        if high > MAX_EPSILON {
            return Err(AccountingError::OutOfRange);
        }
    }
    let mut low = if high > 1.0 { high / 2.0 } else { 0.0 };
    while high - low > 1e-13 * high + 1e-300 {
        let middle = low + (high - low) / 2.0;
        if is_above(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok((low / ROUND_UP - 1e-12).max(0.0))
}

/// Covers weights, products and sums of a mixture.
const MIXED_UP: f64 = 1.0 + 8.0 * f64::EPSILON;
/// e to this, times a tail of that size, is exact in doubles.
const LARGEST_EXPONENT: f64 = 600.0;
const MAX_EPSILON: f64 = 1e15;
/// With the 1e-12 added: ten digits beyond any use, and above other people's rounding.
const ROUND_UP: f64 = 1.0 + 1e-12;
