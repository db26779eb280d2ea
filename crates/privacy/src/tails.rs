//! Tails of the binomial and the normal distribution with known error, the arithmetic under
//! truncation and accounting.

/// ln of an upper bound on P[Binomial(n, q) > cap]; −∞ when that cannot happen.
///
/// Sums the terms from cap+1 on, each from the one before, and closes with a geometric series: the
/// ratio of neighbouring terms falls, so the series is never below the rest of the sum. At or below
/// the mean the bound is 1: nobody needs a cap there.
pub(crate) fn ln_binomial_upper_tail(n: u64, q: f64, cap: u64) -> f64 {
    if cap >= n || q <= 0.0 {
        return f64::NEG_INFINITY;
    }
    let first = cap + 1;
    if q >= 1.0 || first as f64 <= n as f64 * q {
        return 0.0;
    }
    let odds = q / (1.0 - q);
    let ratio_after = |k: u64| (n - k) as f64 / (k + 1) as f64 * odds;
    let (mut k, mut term, mut sum) = (first, 1.0, 1.0);
    while k < n && k - first < SUMMED_TERMS && term > sum * f64::EPSILON {
        term *= ratio_after(k);
        sum += term;
        k += 1;
    }
    let ratio = if k < n { ratio_after(k) } else { 0.0 };
    // Below 1 because k is above the mean: first > n·q. Rounding can bring it to 1 at the mean itself.
    if ratio >= 1.0 {
        return 0.0;
    }
    let total = sum + term * ratio / (1.0 - ratio);
    (ln_binomial_mass(n, q, first) + libm::log(total) + 1e-12).min(0.0)
}

/// ln of an upper bound on P[Binomial(n, q) = k] for 0 < q < 1, 1 ≤ k ≤ n.
///
/// Loader's saddle-point form (2000): no lgamma of large arguments, whose cancellation would cost
/// ten digits at n = 2^31. Stirling's series is cut where it bounds from the side that is needed.
fn ln_binomial_mass(n: u64, q: f64, k: u64) -> f64 {
    let (size, hits) = (n as f64, k as f64);
    if k == n {
        return size * libm::log(q) * (1.0 - 4.0 * f64::EPSILON);
    }
    let misses = (n - k) as f64;
    let mean = size * q;
    let excess = hits - mean;
    let up = hits * libm::log1p(excess / mean);
    // Not size − mean, which cancels where q is next to 1.
    let down = misses * libm::log1p(-excess / (size * (1.0 - q)));
    let stirling = stirling_above(size) - stirling_below(hits) - stirling_below(misses);
    let scale = 0.5 * libm::log(size / (2.0 * std::f64::consts::PI * hits * misses));
    let rounding = 64.0 * f64::EPSILON * (1.0 + up.abs() + down.abs());
    stirling + scale - (up + down) + rounding
}

/// Upper bound on ln n! − ln(√(2πn)(n/e)^n), n ≥ 1 (alternating series, stopped after a positive term).
fn stirling_above(n: f64) -> f64 {
    stirling_below(n) + 1.0 / (1260.0 * n.powi(5))
}

/// Lower bound on the same (stopped after a negative term).
fn stirling_below(n: f64) -> f64 {
    1.0 / (12.0 * n) - 1.0 / (360.0 * n.powi(3))
}

/// The next larger f64 of a number ≥ 0, so that an exp rounded down is still an upper bound.
pub(crate) fn round_up(value: f64) -> f64 {
    value * (1.0 + 4.0 * f64::EPSILON)
}

/// P[N(0,1) > z], relative error a few ulps however far the tail.
pub(crate) fn normal_upper_tail(z: f64) -> f64 {
    0.5 * libm::erfc(z * std::f64::consts::FRAC_1_SQRT_2)
}

/// e^{z²/2}·P[N(0,1) > z] for any z ≥ −30: by its definition while the tail is far from underflow, by
/// Mills' asymptotic series beyond.
pub(crate) fn scaled_normal_upper_tail(z: f64) -> f64 {
    if z < 25.0 {
        // z² in two parts, so that the exponential sees all of it.
        let high = (z * 16.0).trunc() / 16.0;
        let rest = (z - high) * (z + high);
        return libm::exp(0.5 * high * high) * libm::exp(0.5 * rest) * normal_upper_tail(z);
    }
    let inverse_square = 1.0 / (z * z);
    let (mut term, mut sum) = (1.0, 1.0);
    for odd in (1..16).step_by(2) {
        term *= -f64::from(odd) * inverse_square;
        sum += term;
    }
    sum / (z * (2.0 * std::f64::consts::PI).sqrt())
}

/// P[X > z] of the standard Laplace distribution.
pub(crate) fn laplace_upper_tail(z: f64) -> f64 {
    let tail = 0.5 * libm::exp(-z.abs());
    if z < 0.0 { 1.0 - tail } else { tail }
}

/// A point of a distribution symmetric about 0 with the smaller of its two tails, so that probabilities of
/// intervals far out keep their relative precision.
#[derive(Clone, Copy)]
pub(crate) struct TailPoint {
    negative: bool,
    tail: f64,
}

impl TailPoint {
    /// Of the standard normal.
    pub(crate) fn normal(z: f64) -> Self {
        Self {
            negative: z < 0.0,
            tail: normal_upper_tail(z.abs()),
        }
    }

    /// Of the standard Laplace distribution.
    pub(crate) fn laplace(z: f64) -> Self {
        Self {
            negative: z < 0.0,
            tail: laplace_upper_tail(z.abs()),
        }
    }

    /// P[X ≤ z].
    pub(crate) fn lower(&self) -> f64 {
        if self.negative { self.tail } else { 1.0 - self.tail }
    }

    /// P[X > z].
    pub(crate) fn upper(&self) -> f64 {
        if self.negative { 1.0 - self.tail } else { self.tail }
    }

    /// P[self < X ≤ right], at least 0.
    pub(crate) fn until(&self, right: &Self) -> f64 {
        let probability = match (self.negative, right.negative) {
            (true, true) => right.tail - self.tail,
            (false, false) => self.tail - right.tail,
            _ => 1.0 - self.tail - right.tail,
        };
        probability.max(0.0)
    }
}

/// Terms summed one by one before the geometric series takes over.
const SUMMED_TERMS: u64 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stirling_brackets_the_factorial() {
        let mut ln_factorial = 0.0;
        for n in 1..200_u32 {
            let n = f64::from(n);
            ln_factorial += n.ln();
            let error = ln_factorial - (0.5 * (2.0 * std::f64::consts::PI * n).ln() + n * n.ln() - n);
            assert!(stirling_below(n) <= error + 1e-12 && error <= stirling_above(n) + 1e-12);
        }
    }

    #[test]
    fn the_scaled_tail_is_continuous_where_its_formula_changes() {
        for z in [24.999_999_999, 25.0] {
            let direct = libm::exp(0.5 * z * z) * normal_upper_tail(z);
            assert!((scaled_normal_upper_tail(z) / direct - 1.0).abs() < 1e-12, "{z}");
        }
    }

    /// mpmath: exp(z²/2)·erfc(z/√2)/2 at 50 digits.
    #[test]
    fn the_scaled_tail_agrees_with_mpmath() {
        for (z, expected) in SCALED_TAILS {
            let error = (scaled_normal_upper_tail(z) / expected - 1.0).abs();
            // z² amplifies the rounding of z/√2.
            assert!(error < f64::EPSILON * (8.0 + z * z), "{z}: {error:e}");
        }
    }

    #[test]
    fn intervals_far_out_keep_their_precision() {
        let (a, b) = (TailPoint::normal(20.0), TailPoint::normal(20.001));
        let density = libm::exp(-0.5 * 20.0005 * 20.0005) / (2.0 * std::f64::consts::PI).sqrt();
        assert!((a.until(&b) / (density * 0.001) - 1.0).abs() < 1e-4);
        let mirrored = TailPoint::normal(-20.001).until(&TailPoint::normal(-20.0));
        assert!((mirrored / a.until(&b) - 1.0).abs() < 1e-12);
        assert_eq!(b.until(&a), 0.0);
    }

    #[test]
    fn a_mass_at_n_is_a_power() {
        assert!((ln_binomial_mass(10, 0.5, 10) - 10.0 * 0.5_f64.ln()).abs() < 1e-12);
    }

    const SCALED_TAILS: [(f64, f64); 10] = [
        (-3.0, 89.89561735216625),
        (0.0, 0.5),
        (0.1, 0.4624787852875356),
        (1.0, 0.2615782918651234),
        (5.5, 0.07034269402512788),
        (12.3, 0.03222406336088891),
        (24.0, 0.016593885361282236),
        (25.5, 0.01562084580514726),
        (40.0, 0.00996733518830131),
        (1000.0, 0.0003989418814603491),
    ];
}
