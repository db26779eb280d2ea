//! The price of a fixed amount of work: Poisson samples larger than a cap are cut to it.
//!
//! Every step runs the same number of physical micro-batches (soundness.md D8), so a sample larger
//! than the cap M is cut to M units, those that come first in a uniformly random order. What that costs is bounded
//! twice, and the accountant takes the smaller bound.
//!
//! # By exchange
//! Let D' = D ∪ {x}, S the sample of D, f the sum, each unit's term at most 1 in norm, σ the noise. S has the same
//! law under D and D', and so has the order of its units.
//! - |S| < M: nothing is cut, with x or without. N(f(S), σ²) against (1−q)·N(f(S), σ²) + q·N(f(S) + g_x, σ²).
//! - |S| ≥ M: without x the first M units K of S are kept. With x they are too, unless x is drawn and comes before the
//!   last of them, y, in whose place it is then kept: N(f(K), σ²) against
//!   (1−q')·N(f(K), σ²) + q'·N(f(K) − g_y + g_x, σ²), where q' = q·M/(|S|+1) ≤ q and ‖g_x − g_y‖ ≤ 2.
//!
//! Both are pairs of a Poisson-sampled Gaussian, of l2_sensitivity 1 and 2, moved by what S and its order fix. Hockey-stick
//! divergences are jointly convex, so averaging over S and its order, which nobody sees, costs at most the mean:
//! (1−τ_S)·H(q, σ) + τ_S·H(q, σ/2) with τ_S = P[|S| ≥ M]. They rise with q (with less q the pair is a mixture with a
//! pair of equals) and with the shift (scaled down and blurred, the pair of a larger shift is that of a smaller), so
//! q' may be q, and τ_S may be τ = P[Binomial(n−1, q) ≥ M], n ≥ |D'| being the declared size. All that holds for
//! every order of divergence and either direction: **a step is dominated by the mixture, with the case revealed, of (q, σ)
//! with probability 1−τ and (q, σ/2) with probability τ**, and dominating pairs compose adaptively (Zhu, Dong and Wang
//! 2022, <https://arxiv.org/abs/2106.08567>).
//!
//! # By total variation
//! The cut mechanism differs from the uncut one only when the sample is too
//! large, so per step the two are within total variation τ₀ = P[Binomial(n, q) > M], whatever the
//! data and however the surplus is dropped. Over T adaptively chosen steps: T·τ₀. For neighbours D, D'
//! and any set S, with M the cut and M̃ the uncut mechanism,
//!
//! P[M(D)∈S] ≤ P[M̃(D)∈S] + Tτ₀ ≤ e^ε P[M̃(D')∈S] + δ + Tτ₀ ≤ e^ε P[M(D')∈S] + δ + Tτ₀(1 + e^ε).
//!
//! # The first is never larger
//! With the case revealed, uncut and exchanged pair differ in one element, by total variation at most τq a step; and
//! τq ≤ τ₀, since a unit that is drawn on top of a full sample makes it too large. So T steps by exchange cost at most
//! δ + Tτq·e^ε. What was charged by total variation before therefore still covers its mechanism.

use thiserror::Error;

use crate::tails::{ln_binomial_upper_tail, round_up};

/// Why a tail has no value.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum TruncationError {
    /// Not a probability.
    #[error("sampling probability {value} is not in [0, 1]")]
    SamplingProbability {
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

/// An upper bound on P[Binomial(dataset_size − 1, q) ≥ cap]: that the sample is full without a given unit, which must
/// then displace another.
///
/// # Errors
/// [`TruncationError::SamplingProbability`] unless 0 ≤ q ≤ 1.
pub fn exchange_probability(
    dataset_size: u64,
    sampling_probability: f64,
    cap: u64,
) -> Result<f64, TruncationError> {
    check_probability(sampling_probability)?;
    let ln_probability = ln_exchange_probability(dataset_size, sampling_probability, cap);
    Ok(round_up(libm::exp(ln_probability)).min(1.0))
}

/// ln of [`exchange_probability`]; −∞ where all others together do not fill the cap.
pub(crate) fn ln_exchange_probability(dataset_size: u64, sampling_probability: f64, cap: u64) -> f64 {
    match (dataset_size.checked_sub(1), cap.checked_sub(1)) {
        (None, _) => f64::NEG_INFINITY,
        (Some(_), None) => 0.0,
        (Some(others), Some(below)) => ln_binomial_upper_tail(others, sampling_probability, below),
    }
}

/// ln(T·(1+e^ε)), without overflow at large ε; −∞ for no steps.
pub(crate) fn ln_term_factor(steps: u64, epsilon: f64) -> f64 {
    libm::log(steps as f64) + epsilon + libm::log1p(libm::exp(-epsilon))
}

fn check_probability(value: f64) -> Result<(), TruncationError> {
    if (0.0..=1.0).contains(&value) {
        Ok(())
    } else {
        Err(TruncationError::SamplingProbability { value })
    }
}

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

    #[test]
    fn a_sample_is_full_without_a_unit_as_often_as_the_others_fill_it() {
        for (n, q) in [(16_u64, 0.25), (64, 0.1), (512, 0.01)] {
            for cap in 1..=n {
                let exact = exact_tail(n - 1, q, cap - 1);
                let bound = exchange_probability(n, q, cap).unwrap();
                assert!(
                    bound >= exact * (1.0 - 1e-11),
                    "n={n} q={q} cap={cap}: {bound} < {exact}"
                );
                // What is drawn on top of a full sample is cut: the exchange bound is never the larger.
                assert!(
                    bound.min(exact) * q <= tail(n, q, cap).unwrap() * (1.0 + 1e-9),
                    "n={n} q={q} cap={cap}"
                );
            }
        }
        assert_eq!(exchange_probability(10, 0.5, 0).unwrap(), 1.0);
        assert_eq!(exchange_probability(10, 0.5, 10).unwrap(), 0.0);
        assert_eq!(exchange_probability(0, 0.5, 0).unwrap(), 0.0);
        assert_eq!(exchange_probability(10, 1.0, 9).unwrap(), 1.0);
    }

    #[test]
    fn arguments_that_mean_nothing_are_refused() {
        for q in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            for refused in [tail(10, q, 1), exchange_probability(10, q, 1)] {
                assert!(matches!(
                    refused,
                    Err(TruncationError::SamplingProbability { .. })
                ));
            }
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
            let full = |n| exchange_probability(n, q, cap).unwrap();
            prop_assert!(full(n + 1000) >= full(n) * (1.0 - 1e-9));
        }
    }
}
