//! The price of a fixed amount of work: Poisson samples larger than a cap are cut to it.
//!
//! Every step runs the same number of physical micro-batches (soundness.md D8), so a sample larger
//! than the cap is cut. The cut mechanism differs from the uncut one only when the sample is too
//! large, so per step the two are within total variation τ = P[Binomial(n, q) > cap], whatever the
//! data and however the surplus is dropped. Over T adaptively chosen steps: T·τ. For neighbours D, D'
//! and any set S, with M the cut and M̃ the uncut mechanism,
//!
//! P[M(D)∈S] ≤ P[M̃(D)∈S] + Tτ ≤ e^ε P[M̃(D')∈S] + δ + Tτ ≤ e^ε P[M(D')∈S] + δ + Tτ(1 + e^ε).

use thiserror::Error;

use crate::tails::{ln_binomial_upper_tail, round_up};

/// Why a cap could not be chosen or priced.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum TruncationError {
    /// Not a probability.
    #[error("sampling probability {value} is not in [0, 1]")]
    SamplingProbability {
        /// What was passed.
        value: f64,
    },
    /// δ outside (0, 1).
    #[error("delta {value} is not strictly between 0 and 1")]
    Delta {
        /// What was passed.
        value: f64,
    },
    /// ε negative or not finite.
    #[error("epsilon {value} is not a finite number of at least 0")]
    Epsilon {
        /// What was passed.
        value: f64,
    },
}

/// An upper bound on P[Binomial(dataset_size, q) > cap].
///
/// # Errors
/// [`TruncationError::SamplingProbability`] unless 0 ≤ q ≤ 1.
pub fn tail(dataset_size: u64, sampling_probability: f64, cap: u64) -> Result<f64, TruncationError> {
    check_probability(sampling_probability)?;
    let ln_tail = ln_binomial_upper_tail(dataset_size, sampling_probability, cap);
    Ok(round_up(libm::exp(ln_tail)).min(1.0))
}

/// The smallest cap whose term T·τ·(1+e^ε) is at most a hundredth of δ.
///
/// The sample never holds more than `dataset_size` units, so that is always enough.
///
/// # Errors
/// [`TruncationError`] if an argument is out of its domain.
pub fn truncated_batch_size(
    dataset_size: u64,
    sampling_probability: f64,
    steps: u64,
    epsilon: f64,
    delta: f64,
) -> Result<u64, TruncationError> {
    check_probability(sampling_probability)?;
    if !(delta > 0.0 && delta < 1.0) {
        return Err(TruncationError::Delta { value: delta });
    }
    if !(epsilon.is_finite() && epsilon >= 0.0) {
        return Err(TruncationError::Epsilon { value: epsilon });
    }
    let ln_allowed = libm::log(delta * DELTA_SHARE) - ln_term_factor(steps, epsilon);
    let fits = |cap| ln_binomial_upper_tail(dataset_size, sampling_probability, cap) <= ln_allowed;
    Ok(smallest(dataset_size, fits))
}

/// ln(T·(1+e^ε)), without overflow at large ε; −∞ for no steps.
pub(crate) fn ln_term_factor(steps: u64, epsilon: f64) -> f64 {
    libm::log(steps as f64) + epsilon + libm::log1p(libm::exp(-epsilon))
}

/// The first cap that fits, by bisection: the tail falls as the cap grows, and `upper` itself always fits.
fn smallest(upper: u64, fits: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, upper);
    while low < high {
        let middle = low + (high - low) / 2;
        if fits(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    high
}

fn check_probability(value: f64) -> Result<(), TruncationError> {
    if (0.0..=1.0).contains(&value) {
        Ok(())
    } else {
        Err(TruncationError::SamplingProbability { value })
    }
}

/// Part of δ that truncation may take: enough to keep the cap small, since every step works through all of it, and too
/// little to be seen in ε, which moves by a few ten-thousandths.
const DELTA_SHARE: f64 = 1e-2;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// P[Binomial(n, q) > cap] by summing the whole distribution.
    fn exact_tail(n: u64, q: f64, cap: u64) -> f64 {
        let mut mass = (1.0 - q).powi(n as i32);
        let mut above = 0.0;
        for k in 0..=n {
            if k > cap {
                above += mass;
            }
            mass *= (n - k) as f64 / (k + 1) as f64 * q / (1.0 - q);
        }
        above
    }

    #[test]
    fn the_bound_holds_and_is_tight_on_small_cases() {
        for (n, q) in [(16, 0.25), (64, 0.1), (100, 0.5), (512, 0.01), (300, 0.9)] {
            for cap in 0..n {
                let (bound, exact) = (tail(n, q, cap).unwrap(), exact_tail(n, q, cap));
                assert!(
                    bound >= exact * (1.0 - 1e-11),
                    "n={n} q={q} cap={cap}: {bound} < {exact}"
                );
                if cap as f64 >= n as f64 * q {
                    assert!(
                        bound <= exact * 1.001 + 1e-300,
                        "n={n} q={q} cap={cap}: {bound} >> {exact}"
                    );
                }
            }
        }
    }

    #[test]
    fn nothing_is_cut_when_the_cap_is_the_dataset_or_nobody_is_sampled() {
        assert_eq!(tail(100, 1.0, 100).unwrap(), 0.0);
        assert_eq!(tail(100, 1.0, 99).unwrap(), 1.0);
        assert_eq!(tail(100, 0.5, 100).unwrap(), 0.0);
        assert_eq!(tail(100, 0.0, 0).unwrap(), 0.0);
        assert_eq!(tail(0, 0.5, 0).unwrap(), 0.0);
    }

    /// dp.md rule 2: at an expected 512 the cap is about 4–7 sd above, far below double.
    #[test]
    fn a_planned_cap_keeps_the_term_below_a_hundredth_of_delta() {
        let (n, q, steps, epsilon, delta) = (65_536, 512.0 / 65_536.0, 10_000, 3.0, 1e-5);
        let cap = truncated_batch_size(n, q, steps, epsilon, delta).unwrap();
        let term = |cap| steps as f64 * tail(n, q, cap).unwrap() * (1.0 + f64::exp(epsilon));
        assert!(term(cap) <= 1e-2 * delta);
        assert!(term(cap - 1) > 1e-2 * delta, "a smaller cap would have done");
        assert!((512 + 4 * 22..512 + 9 * 23).contains(&cap), "{cap}");
    }

    #[test]
    fn the_largest_dataset_class_is_planned_at_once() {
        let n = 1_u64 << 31;
        let cap = truncated_batch_size(n, 4096.0 / n as f64, 1_000_000, 8.0, 1e-12).unwrap();
        assert!((4096 + 4 * 64..4096 + 12 * 64).contains(&cap), "{cap}");
    }

    #[test]
    fn arguments_that_mean_nothing_are_refused() {
        for q in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(matches!(
                tail(10, q, 1),
                Err(TruncationError::SamplingProbability { .. })
            ));
        }
        for delta in [0.0, -1.0, 1.0, f64::NAN] {
            assert!(matches!(
                truncated_batch_size(10, 0.5, 1, 1.0, delta),
                Err(TruncationError::Delta { .. })
            ));
        }
        for epsilon in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(
                truncated_batch_size(10, 0.5, 1, epsilon, 0.1),
                Err(TruncationError::Epsilon { .. })
            ));
        }
    }

    proptest! {
        #[test]
        fn the_tail_falls_with_the_cap_and_rises_with_size_and_probability(
            n in 1_u64..100_000, q in 0.0_f64..0.5, cap in 0_u64..2000,
        ) {
            let here = tail(n, q, cap).unwrap();
            prop_assert!((0.0..=1.0).contains(&here));
            prop_assert!(tail(n, q, cap + 1).unwrap() <= here * (1.0 + 1e-9));
            prop_assert!(tail(n + 1000, q, cap).unwrap() >= here * (1.0 - 1e-9));
            prop_assert!(tail(n, q + 0.01, cap).unwrap() >= here * (1.0 - 1e-9));
        }
    }
}
