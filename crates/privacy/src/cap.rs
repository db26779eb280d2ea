//! How many units a step makes room for.
//!
//! Every step works through the whole cap, full or not (soundness.md D8), so a large cap costs time in every step; a small one
//! lets records displace one another ([`crate::truncation`]), which costs ε. The excess over an uncut sample falls with
//! the cap about as a normal tail: from 3% to 0.3% of ε in two thirds of a standard deviation of the sample's size.
//!
//! # Guarantee
//! None about privacy: any cap may be used, and the accountant prices it.

use crate::accountant::{self, AccountingError};
use crate::calibrate::{self, CalibrationError};
use crate::event::{DpEvent, NeighboringRelation};
use crate::truncation::ln_exchange_probability;

/// Poisson-sampled steps whose cap is sought.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampledSteps {
    /// Upper bound on the number of units: the declared size.
    pub dataset_size: u64,
    /// Probability of each unit, in [0, 1].
    pub sampling_probability: f64,
    /// How many.
    pub steps: u64,
}

impl SampledSteps {
    /// The steps as a mechanism; `None` for a sample that is never cut.
    pub fn event(&self, truncated_batch_size: Option<u64>, noise_multiplier: f64) -> DpEvent {
        DpEvent::SelfComposed {
            event: Box::new(self.step(truncated_batch_size, noise_multiplier)),
            count: self.steps,
        }
    }

    /// One of them.
    pub(crate) fn step(&self, truncated_batch_size: Option<u64>, noise_multiplier: f64) -> DpEvent {
        DpEvent::TruncatedSubsampledGaussian {
            dataset_size: self.dataset_size,
            sampling_probability: self.sampling_probability,
            truncated_batch_size: truncated_batch_size.unwrap_or(self.dataset_size),
            noise_multiplier,
        }
    }

    /// The smallest cap that raises ε at `delta` by at most [`EPSILON_SHARE`], up to a thousandth; above the expected
    /// sample, and never above the dataset.
    ///
    /// # Errors
    /// [`AccountingError`] if an argument is out of its domain or the uncut steps have no price.
    pub fn truncated_batch_size(&self, noise_multiplier: f64, delta: f64) -> Result<u64, AccountingError> {
        let uncut = accountant::epsilon(&self.event(None, noise_multiplier), RELATION, delta)?;
        self.smallest_cap(noise_multiplier, delta, uncut)
    }

    /// `uncut`: ε without a cap.
    fn smallest_cap(&self, noise_multiplier: f64, delta: f64, uncut: f64) -> Result<u64, AccountingError> {
        let mut bracket = Bracket {
            sampled: self,
            too_small: (self.dataset_size as f64 * self.sampling_probability) as u64,
            enough: self.dataset_size,
            excess_below: None,
            excess_above: None,
            allowed: uncut * EPSILON_SHARE,
        };
        for round in 0.. {
            let Some(cap) = bracket.next(round, noise_multiplier, delta) else {
                break;
            };
            let event = self.event(Some(cap), noise_multiplier);
            let excess = match accountant::epsilon(&event, RELATION, delta) {
                Ok(cost) => cost - uncut,
                // Priced without a cap, but not at half the noise.
                Err(AccountingError::OutOfRange) => f64::INFINITY,
                Err(error) => return Err(error),
            };
            bracket.learn(cap, excess);
        }
        Ok(bracket.enough)
    }

    /// [`Self::truncated_batch_size`] at the noise that meets a target without a cap. With the cap, the target takes up
    /// to a hundredth more noise.
    ///
    /// # Errors
    /// [`CalibrationError`]: a target out of its domain, or that no noise reaches.
    pub fn truncated_batch_size_for(&self, target_epsilon: f64, delta: f64) -> Result<u64, CalibrationError> {
        let uncut = |noise_multiplier| self.event(None, noise_multiplier);
        let noise_multiplier = calibrate::noise_multiplier(target_epsilon, delta, RELATION, &uncut)?;
        // What is calibrated meets its target to a hundred-thousandth, and is never above it.
        Ok(self.smallest_cap(noise_multiplier, delta, target_epsilon * (1.0 - 2e-5))?)
    }

    /// ln of a probability of exchange whose excess is about [`EPSILON_SHARE`].
    ///
    /// In the central limit (see [`crate::planner`]) ε is nearly proportional to μ, and μ² is the mean of
    /// e^{1/σ²} − 1 and, where exchanged, e^{4/σ²} − 1. Where a few large losses decide instead, exchanges of the unit
    /// that over all steps are a part of δ can hardly be felt.
    fn ln_guess(&self, noise_multiplier: f64, delta: f64) -> f64 {
        let cost = |shift: f64| libm::expm1((shift / noise_multiplier).powi(2));
        let central = 2.0 * EPSILON_SHARE * cost(1.0) / cost(2.0);
        let rare = delta / (self.steps as f64 * self.sampling_probability);
        libm::log(central.max(rare))
    }

    /// ln of the probability that a unit displaces another.
    fn ln_exchange(&self, cap: u64) -> f64 {
        ln_exchange_probability(self.dataset_size, self.sampling_probability, cap)
    }
}

/// A cap that costs too much and one that does not, and what they cost where that is known.
struct Bracket<'a> {
    sampled: &'a SampledSteps,
    too_small: u64,
    enough: u64,
    excess_below: Option<f64>,
    excess_above: Option<f64>,
    allowed: f64,
}

impl Bracket<'_> {
    /// The next cap to price; `None` when it is close enough.
    ///
    /// The excess is about a power of the probability of an exchange, near the first: the next cap is where the line
    /// through what is known of the two, as logarithms, meets what is allowed. The middle where lines do not close in.
    fn next(&self, round: usize, noise_multiplier: f64, delta: f64) -> Option<u64> {
        let (low, high) = (self.too_small, self.enough);
        if high.saturating_sub(low) <= 1 + high / PRECISION {
            return None;
        }
        let towards = |from: u64, excess: f64, slope: f64| {
            self.sampled.ln_exchange(from) + libm::log(self.allowed / excess) / slope
        };
        let ln_wanted = match (self.excess_below, self.excess_above) {
            (None, None) => self.sampled.ln_guess(noise_multiplier, delta),
            (Some(below), None) => towards(low, below, 0.7),
            (None, Some(above)) => towards(high, above, 1.0),
            (Some(below), Some(above)) => {
                let run = self.sampled.ln_exchange(low) - self.sampled.ln_exchange(high);
                towards(low, below, libm::log(below / above) / run)
            }
        };
        let middle = low + (high - low) / 2;
        let closing_in = round % 3 != 2 || self.excess_above.is_none();
        let cap = if !closing_in || !ln_wanted.is_finite() {
            middle
        } else {
            self.smallest_with(ln_wanted)
        };
        Some(cap.clamp(low + 1, high - 1))
    }

    fn learn(&mut self, cap: u64, excess: f64) {
        // Less is rounding.
        let known = Some(excess.max(self.allowed * 1e-4));
        if excess <= self.allowed {
            (self.enough, self.excess_above) = (cap, known);
        } else {
            (self.too_small, self.excess_below) = (cap, known);
        }
    }

    /// The smallest cap of the bracket at which an exchange is so improbable: its probability falls as the cap grows.
    fn smallest_with(&self, ln_probability: f64) -> u64 {
        let (mut low, mut high) = (self.too_small, self.enough);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.sampled.ln_exchange(middle) <= ln_probability {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        high
    }
}

/// Most that a cap may add to ε, as a part of it.
///
/// About where either costs as much as it saves: 1% of ε is 0.3 to 0.8% of the noise, and at an expected 256 of 4096, 1000
/// steps and ε = 3 the cap is 299; twice the share would make it 295, a tenth 311.
pub const EPSILON_SHARE: f64 = 1e-2;
/// A cap is sought to one part in this.
const PRECISION: u64 = 1000;
const RELATION: NeighboringRelation = NeighboringRelation::AddOrRemoveOne;

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(dataset_size: u64, batch: f64, steps: u64) -> SampledSteps {
        SampledSteps {
            dataset_size,
            sampling_probability: batch / dataset_size as f64,
            steps,
        }
    }

    fn excess(sampled: SampledSteps, noise_multiplier: f64, delta: f64, cap: u64) -> f64 {
        let price =
            |cap| accountant::epsilon(&sampled.event(cap, noise_multiplier), RELATION, delta).unwrap();
        price(Some(cap)) / price(None) - 1.0
    }

    #[test]
    fn a_cap_is_the_smallest_that_is_hardly_felt_in_epsilon() {
        for (sampled, noise_multiplier, delta, times) in [
            (sampled(60_000, 256.0, 1000), 1.0, 1e-5, 1.26..1.29),
            (sampled(60_000, 32.0, 1000), 2.0, 1e-5, 1.5..1.65),
            (sampled(60_000, 256.0, 1000), 4.0, 1e-5, 1.15..1.19),
            (sampled(65_536, 4096.0, 1000), 1.0, 1e-6, 1.04..1.06),
            (sampled(192, 64.0, 100), 3.0, 1e-6, 1.2..1.5),
            (sampled(1024, 16.0, 1), 0.7, 1e-6, 1.5..3.0),
        ] {
            let cap = sampled.truncated_batch_size(noise_multiplier, delta).unwrap();
            let mean = sampled.dataset_size as f64 * sampled.sampling_probability;
            assert!(times.contains(&(cap as f64 / mean)), "{sampled:?}: {cap}");
            let at = |cap| excess(sampled, noise_multiplier, delta, cap);
            assert!(at(cap) <= EPSILON_SHARE, "{sampled:?} {cap}: {}", at(cap));
            let smaller = cap - 1 - cap / PRECISION;
            assert!(
                at(smaller) > EPSILON_SHARE,
                "{sampled:?} {smaller}: {}",
                at(smaller)
            );
        }
    }

    #[test]
    fn a_target_takes_hardly_more_noise_with_its_cap() {
        let sampled = sampled(16_384, 128.0, 500);
        let cap = sampled.truncated_batch_size_for(2.0, 1e-6).unwrap();
        let noise = |cap| {
            let event = |noise_multiplier| sampled.event(cap, noise_multiplier);
            calibrate::noise_multiplier(2.0, 1e-6, RELATION, &event).unwrap()
        };
        let (with, without) = (noise(Some(cap)), noise(None));
        assert!(with > without && with < without * 1.01, "{with} for {without}");
        assert!((cap as f64) < 128.0 * 1.5, "{cap}");
    }

    #[test]
    fn whoever_draws_everybody_has_room_for_everybody() {
        assert_eq!(
            sampled(100, 100.0, 10).truncated_batch_size(2.0, 1e-5).unwrap(),
            100
        );
        assert_eq!(sampled(1, 1.0, 10).truncated_batch_size(2.0, 1e-5).unwrap(), 1);
        let nobody = SampledSteps {
            sampling_probability: 0.5,
            ..sampled(0, 0.0, 10)
        };
        assert_eq!(nobody.truncated_batch_size(2.0, 1e-5).unwrap(), 0);
    }

    #[test]
    fn what_costs_nothing_needs_little_room() {
        assert_eq!(sampled(100, 50.0, 0).truncated_batch_size(2.0, 1e-5).unwrap(), 51);
        let hidden = sampled(1000, 1.0, 2).truncated_batch_size(1000.0, 1e-2).unwrap();
        assert_eq!(hidden, 2);
    }

    #[test]
    fn noise_that_has_a_price_only_without_a_cap_gets_a_cap() {
        let sampled = sampled(1000, 10.0, 1000);
        let least = (1..60)
            .map(|i| 0.01 * 1.1_f64.powi(i))
            .find(|&noise| accountant::epsilon(&sampled.event(None, noise), RELATION, 1e-5).is_ok())
            .unwrap();
        let cap = sampled.truncated_batch_size(least, 1e-5).unwrap();
        assert!((11..=1000).contains(&cap), "{cap} at {least}");
    }

    #[test]
    fn arguments_that_mean_nothing_are_refused() {
        let bad = SampledSteps {
            sampling_probability: 1.5,
            ..sampled(100, 10.0, 10)
        };
        assert!(matches!(
            bad.truncated_batch_size(1.0, 1e-5),
            Err(AccountingError::SamplingProbability { .. })
        ));
        for delta in [0.0, 1.0, f64::NAN] {
            let refused = sampled(100, 10.0, 10).truncated_batch_size(1.0, delta);
            assert!(matches!(refused, Err(AccountingError::Delta { .. })));
        }
        let refused = sampled(100, 10.0, 10).truncated_batch_size_for(0.0, 1e-5);
        assert!(matches!(refused, Err(CalibrationError::TargetEpsilon { .. })));
    }
}
