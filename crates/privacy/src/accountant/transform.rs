//! Composition of tilted steps by FFT, with a bound on the error of the result.

use realfft::RealFftPlanner;
use realfft::num_complex::Complex;

use super::AccountingError;
use super::moments::tilted;
use super::step::GridLosses;

/// The running product of characteristic functions, and its error at each frequency.
pub(super) struct Transforms {
    planner: RealFftPlanner<f64>,
    size: usize,
    product: Vec<Complex<f64>>,
    /// Bound on the modulus of the exact product.
    modulus: Vec<f64>,
    /// Σ over the factors of (n·‖error of its transform‖₂ / |X|)²: see `finish`.
    error_squares: Vec<f64>,
    /// Bound on the relative error of the powers; 1 where the product was set to 0.
    power_error: Vec<f64>,
    /// Bound on the 2-norm of the error of the product, over √N.
    error_norm: f64,
    factors: f64,
    steps: f64,
}

/// Tilted probabilities of the sums low, low+1, …, none negative, and bounds on their errors.
pub(super) struct Sums {
    pub(super) probabilities: Vec<f64>,
    /// No probability is off by more.
    pub(super) largest_error: f64,
    /// Nor is the 2-norm of all errors larger.
    pub(super) error_norm: f64,
}

impl Transforms {
    pub(super) fn new(size: usize) -> Self {
        let frequencies = size / 2 + 1;
        Self {
            planner: RealFftPlanner::new(),
            size,
            product: vec![Complex::new(1.0, 0.0); frequencies],
            modulus: vec![1.0; frequencies],
            error_squares: vec![0.0; frequencies],
            power_error: vec![0.0; frequencies],
            error_norm: 0.0,
            factors: 0.0,
            steps: 0.0,
        }
    }

    /// Multiplies by the transform of one tilted step to the power `count`.
    pub(super) fn include(
        &mut self,
        losses: &GridLosses,
        count: u64,
        order: f64,
        log_moment: f64,
    ) -> Result<(), AccountingError> {
        let mut step = vec![0.0; self.size];
        tilted(losses, order, log_moment, |index, mass| {
            step[index.rem_euclid(self.size as i64) as usize] += mass;
        });
        let norm = step.iter().map(|mass| mass * mass).sum::<f64>().sqrt();
        // Theorem 24.2: ‖error of the transform‖₂ ≤ η·log₂N·‖transform‖₂, and so is each entry's.
        let error = self.stage_error() * norm * (self.size as f64).sqrt();
        let times = count as f64;
        self.factors += 1.0;
        self.steps += times;
        self.error_norm += times * self.stage_error() * norm * libm::exp(times * error) + NEGLIGIBLE;
        let forward = self.planner.plan_fft_forward(self.size);
        let mut spectrum = forward.make_output_vec();
        forward
            .process(&mut step, &mut spectrum)
            .map_err(|_| AccountingError::OutOfRange)?;
        self.multiply(&spectrum, error, count);
        Ok(())
    }

    /// With |X| ≤ |X̂| + e: |X̂^n − X^n| ≤ n·|X̂ − X|·(|X̂| + e)^{n−1}. Frequencies whose power is below any
    /// use are set to 0, at an error of their bound.
    fn multiply(&mut self, spectrum: &[Complex<f64>], error: f64, count: u64) {
        let times = count as f64;
        let negligible = libm::exp(libm::log(NEGLIGIBLE) / times);
        for (frequency, &value) in spectrum.iter().enumerate() {
            let bound = value.norm_sqr().sqrt() + error;
            if bound < negligible {
                self.product[frequency] = Complex::new(0.0, 0.0);
                self.modulus[frequency] *= NEGLIGIBLE;
                self.power_error[frequency] = 1.0;
            } else {
                self.product[frequency] *= power(value, count);
                self.modulus[frequency] *= libm::exp(times * libm::log(bound));
                self.error_squares[frequency] += (times * error / bound).powi(2);
                self.power_error[frequency] += times * POWER_ERROR;
            }
        }
    }

    /// Bounds on the largest error and on the 2-norm of the errors of the probabilities.
    ///
    /// A probability is off by at most 1/N Σ_k Σ_j n_j|ΔX_jk|·|Π_k|/|X_jk| over frequencies k and factors j.
    /// By Cauchy and Schwarz, twice, that is at most √J/N·√(Σ_k |Π_k|² Σ_j (n_j‖ΔX_j‖₂/|X_jk|)²): where many
    /// steps leave few frequencies alive, far less than a bound entry by entry.
    fn errors(&self) -> (f64, f64) {
        let size = self.size as f64;
        // Every frequency but 0 and N/2 stands for two.
        let (mut transform, mut power, mut energy) = (0.0, 0.0, 0.0);
        for frequency in 0..self.product.len() {
            let modulus = self.modulus[frequency];
            transform += 2.0 * modulus * modulus * self.error_squares[frequency];
            power += 2.0 * modulus * self.power_error[frequency];
            energy += 2.0 * self.product[frequency].norm_sqr();
        }
        let norm = (energy / size).sqrt();
        let inverse = self.stage_error() * norm;
        let error_norm = self.error_norm + self.steps * POWER_ERROR * norm + inverse;
        let largest = (self.factors * transform).sqrt() / size + power / size + inverse;
        (largest.min(error_norm), error_norm)
    }

    /// Back to probabilities of the sums low, low+1, …
    pub(super) fn finish(mut self, low: i64) -> Result<Sums, AccountingError> {
        let (largest_error, error_norm) = self.errors();
        let size = self.size as f64;
        // A real signal has real end frequencies; rounding may have left them a trace of imaginary part.
        self.product[0].im = 0.0;
        if let Some(last) = self.product.last_mut() {
            last.im = 0.0;
        }
        let inverse = self.planner.plan_fft_inverse(self.size);
        let mut probabilities = inverse.make_output_vec();
        inverse
            .process(&mut self.product, &mut probabilities)
            .map_err(|_| AccountingError::OutOfRange)?;
        probabilities.rotate_left(low.rem_euclid(self.size as i64) as usize);
        for probability in &mut probabilities {
            *probability = (*probability / size).max(0.0);
        }
        if !largest_error.is_finite() || probabilities.iter().any(|probability| !probability.is_finite()) {
            return Err(AccountingError::OutOfRange);
        }
        Ok(Sums {
            probabilities,
            largest_error,
            error_norm,
        })
    }

    fn stage_error(&self) -> f64 {
        stage_error(self.size)
    }
}

/// Relative error, in 2-norm, of a transform of this size.
pub(super) fn stage_error(size: usize) -> f64 {
    FFT_STAGE_ERROR * (size as f64).log2()
}

/// value^count by squaring: relative error about 2·count units.
fn power(value: Complex<f64>, mut count: u64) -> Complex<f64> {
    let (mut square, mut result) = (value, Complex::new(1.0, 0.0));
    loop {
        if count & 1 == 1 {
            result *= square;
        }
        count >>= 1;
        if count == 0 {
            return result;
        }
        square *= square;
    }
}

/// The next 2^k or 3·2^k: fast, and at most a third too large.
pub(super) fn transform_size(bins: usize) -> usize {
    let power = bins.next_power_of_two();
    let three = power / 4 * 3;
    if three >= bins { three } else { power }
}

/// η of Higham's Theorem 24.2 for radix 2 is 7 units (7.8e-16); 1.5 times that.
const FFT_STAGE_ERROR: f64 = 1.2e-15;
/// Relative error of one factor of a power.
const POWER_ERROR: f64 = 8.0 * f64::EPSILON;
/// Far below any probability that matters, far above underflow.
const NEGLIGIBLE: f64 = 1e-40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_by_squaring_is_the_power() {
        let value = Complex::from_polar(0.999, 0.1);
        let expected = Complex::from_polar(0.999_f64.powi(1000), 100.0);
        assert!((power(value, 1000) - expected).norm() < 1e-12);
        assert_eq!(power(value, 1), value);
    }

    #[test]
    fn transform_sizes_are_large_enough_and_not_much_larger() {
        for bins in [16, 17, 100, 1000, 98_304, 98_305, 2_000_000] {
            let size = transform_size(bins);
            assert!(
                size >= bins && size <= bins * 3 / 2 && size.is_multiple_of(2),
                "{bins}: {size}"
            );
        }
    }
}
