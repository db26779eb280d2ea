//! Noise that is correlated over a band of steps: part of what a step adds is taken away again by the steps after it, so
//! that the model, which feels the *sum* of all steps, ends with less of it at the same price (BandMF).
//!
//! Let `G_t` be the sum of clipped gradients of step `t` and `C` the lower triangular Toeplitz matrix with
//! `1, r_1, …, r_(b−1)` down its columns. What is released is `w_t = G_t + Σ_j r_j·G_(t−j) + z_t` with independent
//! Gaussian `z`; what the optimizer gets is `x = C⁻¹w = G + C⁻¹z`, which is a function of `w`. With `b = 1` this is DP-SGD.
//!
//! # Amplification
//! Units are put into `b` classes, and step `t` draws from class `t mod b` alone, with `b` times the probability. A
//! unit's turns are then `b` steps apart, so that the rows of `w` that one turn reaches (its own and the `b − 1` after
//! it) are reached by no other. Given all other units' draws, a turn changes these rows by `1, r_1, …` times one
//! gradient, whose norm is at most [`BandedMatrix::column_norm`]: **a turn is a Poisson-sampled Gaussian** at rate `b·q`, and a
//! unit has at most `⌈T/b⌉` turns. `docs/privacy.md` has the argument in full: caps, losses, adaptivity, restarts.
//!
//! # References
//! Choquette-Choo et al. 2023, "(Amplified) Banded Matrix Factorization", <https://arxiv.org/abs/2306.08153>, for the
//! mechanism and its amplification by cyclic Poisson sampling; Kalinin and Lampert 2024, "Banded Square Root Matrix
//! Factorization", <https://arxiv.org/abs/2405.13763>, for the coefficients, also under momentum and weight decay.

mod plan;

pub use plan::{BandPlan, BandedSteps, PlanError, Planner};

use thiserror::Error;

/// Fractional bits of a coefficient.
pub const COEFFICIENT_BITS: u32 = 12;

/// Why a matrix is refused.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum BandError {
    /// No band, or one too wide.
    #[error("{bands} bands: choose 1 (independent noise) to {MAX_BANDS}")]
    Bands {
        /// What was passed.
        bands: u64,
    },
    /// An optimizer that has no sum of gradients to speak of.
    #[error(
        "momentum {momentum} must be in [0, 1) and the part of the weights that a step keeps, {keep}, in [0, 1]"
    )]
    Workload {
        /// What was passed.
        momentum: f64,
        /// What was passed.
        keep: f64,
    },
    /// Coefficients that are no matrix of ours.
    #[error("a band of noise has coefficients of at most 1, and as many as steps that remember it")]
    Coefficients,
}

/// What becomes of the noise in an optimizer: `v ← momentum·v + x`, `θ ← keep·θ − lr·v`.
///
/// The learning rate is taken to be constant, and Adam's division to be none: the workload decides how good a matrix is,
/// never what it costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    momentum: f64,
    keep: f64,
}

impl Workload {
    /// Sums of all steps so far: plain gradient descent.
    pub const PREFIX_SUMS: Self = Self {
        momentum: 0.0,
        keep: 1.0,
    };

    /// Descent with momentum and weight decay: a step keeps the part `keep` (1 − lr·weight_decay) of the weights.
    ///
    /// # Errors
    /// [`BandError::Workload`] out of range.
    pub fn new(momentum: f64, keep: f64) -> Result<Self, BandError> {
        if (0.0..1.0).contains(&momentum) && (0.0..=1.0).contains(&keep) {
            Ok(Self { momentum, keep })
        } else {
            Err(BandError::Workload { momentum, keep })
        }
    }

    /// The weights after each step, fed with these gradients.
    fn respond(self, gradients: impl Iterator<Item = f64>) -> impl Iterator<Item = f64> {
        let (mut velocity, mut weight) = (0.0, 0.0);
        gradients.map(move |gradient| {
            velocity = self.momentum * velocity + gradient;
            weight = self.keep * weight + velocity;
            weight
        })
    }

    /// The first coefficients of the square root of the workload's generating function: of `1/(1−x)` it is
    /// `(2j choose j)/4^j`.
    fn square_root(self, count: usize) -> Vec<f64> {
        let impulse = std::iter::once(1.0).chain(std::iter::repeat(0.0));
        let mut root: Vec<f64> = Vec::with_capacity(count);
        for (index, target) in self.respond(impulse).take(count).enumerate() {
            // (Σ c_j x^j)² has 2c_0c_i + Σ_{0<j<i} c_j c_{i−j} at x^i, and c_0 = 1.
            let known: f64 = (1..index).map(|j| root[j] * root[index - j]).sum();
            root.push(if index == 0 { 1.0 } else { 0.5 * (target - known) });
        }
        root
    }
}

/// The lower triangular banded Toeplitz matrix C, its diagonal 1. Coefficients are multiples of
/// 2^−[`COEFFICIENT_BITS`], so that products with integers are exact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BandedMatrix {
    /// `r_1 … r_(b−1)` in units of 2^−[`COEFFICIENT_BITS`].
    numerators: Vec<u32>,
}

impl BandedMatrix {
    /// The banded square root of a workload.
    ///
    /// # Errors
    /// [`BandError::Bands`] outside 1 … [`MAX_BANDS`].
    pub fn square_root(workload: Workload, bands: u64) -> Result<Self, BandError> {
        if !(1..=MAX_BANDS).contains(&bands) {
            return Err(BandError::Bands { bands });
        }
        let units = |value: f64| (value.clamp(0.0, 1.0) * ONE).round() as u32;
        let root = workload.square_root(bands as usize);
        Ok(Self {
            numerators: root.into_iter().skip(1).map(units).collect(),
        })
    }

    /// One band: the identity.
    pub fn independent() -> Self {
        Self {
            numerators: Vec::new(),
        }
    }

    /// From [`Self::numerators`].
    ///
    /// # Errors
    /// [`BandError`] if there are too many or one is above 1.
    pub fn from_numerators(numerators: Vec<u32>) -> Result<Self, BandError> {
        let bands = numerators.len() as u64 + 1;
        if bands > MAX_BANDS {
            return Err(BandError::Bands { bands });
        }
        if numerators.iter().any(|&each| each > 1 << COEFFICIENT_BITS) {
            return Err(BandError::Coefficients);
        }
        Ok(Self { numerators })
    }

    /// The band without its diagonal, in units of 2^−[`COEFFICIENT_BITS`].
    pub fn numerators(&self) -> &[u32] {
        &self.numerators
    }

    /// Steps whose noise a step's depends on, itself among them.
    pub fn bands(&self) -> u64 {
        self.numerators.len() as u64 + 1
    }

    /// ‖(1, r_1, …, r_(b−1))‖, rounded up: the l2_sensitivity of a turn over that of a single sum. 1 for one band.
    pub fn column_norm(&self) -> f64 {
        let squares: u64 = self
            .numerators
            .iter()
            .map(|&each| u64::from(each) * u64::from(each))
            .sum();
        if squares == 0 {
            return 1.0;
        }
        // The sum is below 2^53, exact; one rounding of the root, one of the product.
        ((ONE * ONE + squares as f64).sqrt() / ONE) * (1.0 + 4.0 * f64::EPSILON)
    }

    /// Σ r_j.
    pub(crate) fn sum(&self) -> f64 {
        self.numerators.iter().map(|&each| f64::from(each)).sum::<f64>() / ONE
    }

    /// The first column of C⁻¹ as long as it matters: what a step's own noise does to this step and the ones after it.
    /// At most `steps` long; ends where all that follows is below 1e-16.
    pub fn inverse_column(&self, steps: u64) -> Vec<f64> {
        let band: Vec<f64> = self
            .numerators
            .iter()
            .map(|&each| f64::from(each) / ONE)
            .collect();
        let mut column = vec![1.0];
        let mut silent = 0;
        while (column.len() as u64) < steps && silent < band.len() {
            let before = column.iter().rev();
            let next = -band.iter().zip(before).map(|(r, h)| r * h).sum::<f64>();
            silent = if next.abs() < NEGLIGIBLE { silent + 1 } else { 0 };
            column.push(next);
        }
        column
    }

    /// Root of the mean square, over `steps` steps, of the noise in the weights, when the sums have unit l2_sensitivity
    /// and the noise multiplier is 1. Multiplied by the noise multiplier this is what a plan is judged by.
    ///
    /// It is `column_norm·‖A·C⁻¹‖_F/√T` for the workload's matrix A; for prefix sums with one band `√((T+1)/2)`.
    pub fn rms_error(&self, workload: Workload, steps: u64) -> f64 {
        let inverse = self.inverse_column(steps);
        let noise = inverse
            .into_iter()
            .chain(std::iter::repeat(0.0))
            .take(steps as usize);
        let squares = workload.respond(noise).zip(0..steps);
        let sum: f64 = squares
            .map(|(weight, index)| weight * weight * (steps - index) as f64)
            .sum();
        self.column_norm() * (sum / steps.max(1) as f64).sqrt()
    }

    /// Variance of the noise in a step's gradient over that of one draw, at the first step since the noise started, the
    /// second and so on: `Σ_(i ≤ t) h_i²`. From the last one on it stays. `[1]` for one band.
    pub fn variances(&self) -> Vec<f64> {
        let mut sum = 0.0;
        let mut add = |h: f64| {
            sum += h * h;
            sum
        };
        self.inverse_column(LONGEST_RESPONSE)
            .into_iter()
            .map(&mut add)
            .collect()
    }
}

/// Most bands.
pub const MAX_BANDS: u64 = 1024;
const ONE: f64 = (1_u64 << COEFFICIENT_BITS) as f64;
/// Steps by which the response of every band with a plan has died away.
pub(crate) const LONGEST_RESPONSE: u64 = 1 << 20;
const NEGLIGIBLE: f64 = 1e-16;

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(bands: u64) -> BandedMatrix {
        BandedMatrix::square_root(Workload::PREFIX_SUMS, bands).unwrap()
    }

    /// Entry (i, j) of a dense T×T product of lower triangular Toeplitz matrices would be these; here they are made the
    /// slow way, by forward substitution on a dense matrix.
    fn dense_rms_error(matrix: &BandedMatrix, workload: Workload, steps: usize) -> f64 {
        let entry = |i: usize, j: usize| match i.checked_sub(j) {
            None => 0.0,
            Some(0) => 1.0,
            Some(k) => matrix
                .numerators
                .get(k - 1)
                .map_or(0.0, |&each| f64::from(each) / ONE),
        };
        let mut inverse = vec![vec![0.0; steps]; steps];
        #[allow(clippy::needless_range_loop, reason = "columns of a matrix")]
        for column in 0..steps {
            for row in 0..steps {
                let rest: f64 = (0..row).map(|k| entry(row, k) * inverse[k][column]).sum();
                inverse[row][column] = f64::from(u8::from(row == column)) - rest;
            }
        }
        let mut total = 0.0;
        #[allow(clippy::needless_range_loop, reason = "columns of a matrix")]
        for column in 0..steps {
            let noise = (0..steps).map(|row| inverse[row][column]);
            total += workload.respond(noise).map(|weight| weight * weight).sum::<f64>();
        }
        let norm: f64 = (0..steps).map(|row| entry(row, 0) * entry(row, 0)).sum();
        (norm * total / steps as f64).sqrt()
    }

    #[test]
    fn the_coefficients_are_those_of_one_over_the_root_of_one_minus_x() {
        let expected = [1.0, 0.5, 0.375, 0.3125, 0.2734375, 0.24609375];
        assert_eq!(Workload::PREFIX_SUMS.square_root(6), expected);
        let numerators: Vec<u32> = expected[1..].iter().map(|each| (each * ONE) as u32).collect();
        assert_eq!(matrix(6).numerators(), numerators);
    }

    #[test]
    fn the_root_of_a_workload_squared_is_the_workload() {
        for (momentum, keep) in [(0.9, 1.0), (0.5, 0.99), (0.0, 0.9)] {
            let workload = Workload::new(momentum, keep).unwrap();
            let root = workload.square_root(40);
            let impulse = std::iter::once(1.0).chain(std::iter::repeat(0.0));
            for (index, expected) in workload.respond(impulse).take(40).enumerate() {
                let squared: f64 = (0..=index).map(|j| root[j] * root[index - j]).sum();
                assert!(
                    (squared - expected).abs() < 1e-12 * expected,
                    "{momentum} {keep} {index}"
                );
            }
        }
    }

    #[test]
    fn errors_equal_those_of_dense_matrices() {
        let heavy = Workload::new(0.9, 0.999).unwrap();
        for workload in [Workload::PREFIX_SUMS, heavy] {
            for (bands, steps) in [(1, 1), (1, 50), (2, 50), (7, 50), (16, 40), (40, 40)] {
                let matrix = BandedMatrix::square_root(workload, bands).unwrap();
                let (fast, dense) = (
                    matrix.rms_error(workload, steps),
                    dense_rms_error(&matrix, workload, steps as usize),
                );
                assert!(
                    (fast / dense - 1.0).abs() < 1e-12,
                    "{bands} {steps}: {fast} {dense}"
                );
            }
        }
        assert!((matrix(1).rms_error(Workload::PREFIX_SUMS, 99) - 50.0_f64.sqrt()).abs() < 1e-12);
    }

    /// Where the tail of C⁻¹ is left out it must not be missed.
    #[test]
    fn a_long_run_is_judged_as_if_no_tail_were_left_out() {
        let matrix = matrix(4);
        let column = matrix.inverse_column(5_000);
        assert!(column.len() < 2_000, "{}", column.len());
        let mut whole = column.clone();
        while whole.len() < 5_000 {
            let next = -matrix
                .numerators
                .iter()
                .zip(whole.iter().rev())
                .map(|(&r, h)| f64::from(r) / ONE * h)
                .sum::<f64>();
            whole.push(next);
        }
        let (short, long): (f64, f64) = (column.iter().sum(), whole.iter().sum());
        assert!((short - long).abs() < 1e-12);
    }

    #[test]
    fn the_norm_of_a_column_is_never_below_the_exact_one() {
        assert_eq!(matrix(1).column_norm(), 1.0);
        for bands in [2, 3, 10, 200, MAX_BANDS] {
            let matrix = matrix(bands);
            let squares: u128 = matrix
                .numerators
                .iter()
                .map(|&each| u128::from(each).pow(2))
                .sum::<u128>()
                + (1 << 24);
            let norm = matrix.column_norm();
            assert!(
                norm * norm >= squares as f64 / (ONE * ONE)
                    && norm * norm < squares as f64 / (ONE * ONE) * (1.0 + 1e-14)
            );
        }
    }

    #[test]
    fn numerators_make_the_same_matrix_again_and_others_are_refused() {
        let of = matrix(9);
        assert_eq!(
            BandedMatrix::from_numerators(of.numerators().to_vec()).unwrap(),
            of
        );
        assert!(matches!(
            BandedMatrix::from_numerators(vec![4097]),
            Err(BandError::Coefficients)
        ));
        let many = vec![1; MAX_BANDS as usize];
        assert!(matches!(
            BandedMatrix::from_numerators(many),
            Err(BandError::Bands { .. })
        ));
        for bands in [0, MAX_BANDS + 1] {
            let refused = BandedMatrix::square_root(Workload::PREFIX_SUMS, bands);
            assert!(matches!(refused, Err(BandError::Bands { .. })));
        }
        for (momentum, keep) in [(1.0, 1.0), (-0.1, 1.0), (0.5, 1.1), (f64::NAN, 1.0)] {
            assert!(matches!(
                Workload::new(momentum, keep),
                Err(BandError::Workload { .. })
            ));
        }
    }

    /// Of the square root itself it is 4/π (Σ (½ choose i)²); a band makes it a little different.
    #[test]
    fn the_variance_of_a_gradient_rises_from_one_to_that_of_the_whole_column() {
        let matrix = matrix(64);
        let variances = matrix.variances();
        assert_eq!(variances[..2], [1.0, 1.25]);
        assert!(variances.is_sorted());
        assert!((variances.last().unwrap() - 4.0 / std::f64::consts::PI).abs() < 0.01);
        assert_eq!(BandedMatrix::independent().variances(), [1.0]);
    }
}
