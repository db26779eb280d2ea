//! Events → what is to be priced: a list of subsampled Gaussians with counts, and truncation terms.

use super::{AccountingError, MAX_COMPONENTS, MAX_DEPTH};
use crate::event::{DpEvent, NeighboringRelation};
use crate::tails::{ln_binomial_upper_tail, round_up};
use crate::truncation::{ln_exchange_probability, ln_term_factor};

/// How a sample that is cut to its cap is priced. Both are upper bounds (see [`crate::truncation`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// As what happens: a record that does not fit displaces another.
    Exchange,
    /// As if the cut mechanism could do anything: its probability is added to δ.
    TotalVariation,
}

/// One Gaussian release on a Poisson sample; probability 1 is the plain Gaussian.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) sampling_probability: f64,
    pub(super) noise_multiplier: f64,
}

/// A step and how often it is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Component {
    pub(super) step: Step,
    /// Probability that the sample is full without the unit, which then displaces another.
    pub(super) exchange_probability: f64,
    pub(super) count: u64,
}

/// One of the mechanisms that a step is a mixture of, where it is revealed which of them ran.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Case {
    pub(super) weight: f64,
    pub(super) step: Step,
}

impl Component {
    /// The unit comes or goes; or it is exchanged for another, which moves the sum by twice as much.
    pub(super) fn cases(&self) -> Vec<Case> {
        let exchanged = Step {
            noise_multiplier: self.step.noise_multiplier / 2.0,
            ..self.step
        };
        let case = |weight, step| Case { weight, step };
        let mut cases = vec![case(1.0 - self.exchange_probability, self.step)];
        if self.exchange_probability > 0.0 {
            cases.push(case(self.exchange_probability, exchanged));
        }
        cases
    }
}

/// `count` steps that each exceed their cap with probability e^`ln_tail`.
struct Truncation {
    ln_tail: f64,
    count: u64,
}

/// A mechanism of supported parts, equal steps counted together and all plain Gaussians made one.
pub(super) struct Mechanism {
    cut: Cut,
    components: Vec<Component>,
    truncations: Vec<Truncation>,
    non_private: bool,
}

impl Mechanism {
    pub(super) fn parse(
        event: &DpEvent,
        relation: NeighboringRelation,
        cut: Cut,
    ) -> Result<Self, AccountingError> {
        match relation {
            NeighboringRelation::AddOrRemoveOne => {}
        }
        let mut mechanism = Mechanism::new(cut);
        mechanism.include(event, 1, 0)?;
        Ok(mechanism)
    }

    fn new(cut: Cut) -> Self {
        Self {
            cut,
            components: Vec::new(),
            truncations: Vec::new(),
            non_private: false,
        }
    }

    /// True if something leaves without noise: no ε holds.
    pub(super) fn is_non_private(&self) -> bool {
        self.non_private
    }

    pub(super) fn components(&self) -> &[Component] {
        &self.components
    }

    /// True if some sample may have to be cut.
    pub(super) fn truncates(&self) -> bool {
        !self.truncations.is_empty()
    }

    /// Σ count·P[cut]·(1+e^ε) (see [`crate::truncation`]), what [`Cut::TotalVariation`] adds to δ; infinite where
    /// that overflows.
    pub(super) fn truncation_delta(&self, epsilon: f64) -> f64 {
        let term = |part: &Truncation| libm::exp(part.ln_tail + ln_term_factor(part.count, epsilon));
        let sum: f64 = self.truncations.iter().map(term).sum();
        round_up(sum)
    }

    fn include(&mut self, event: &DpEvent, count: u64, depth: usize) -> Result<(), AccountingError> {
        if depth > MAX_DEPTH {
            return Err(AccountingError::TooComplex);
        }
        match event {
            DpEvent::NoOp => Ok(()),
            DpEvent::NonPrivate => {
                self.non_private |= count > 0;
                Ok(())
            }
            DpEvent::Gaussian { noise_multiplier } => self.include_step(1.0, *noise_multiplier, count),
            DpEvent::PoissonSampled {
                sampling_probability,
                event,
            } => self.include_sampled(*sampling_probability, event, count, depth),
            DpEvent::TruncatedSubsampledGaussian {
                dataset_size,
                sampling_probability,
                truncated_batch_size,
                noise_multiplier,
            } => {
                check_probability(*sampling_probability)?;
                let (size, q, cap) = (*dataset_size, *sampling_probability, *truncated_batch_size);
                self.include_truncation(ln_binomial_upper_tail(size, q, cap), count);
                let exchange_probability = match self.cut {
                    Cut::Exchange => round_up(libm::exp(ln_exchange_probability(size, q, cap))).min(1.0),
                    Cut::TotalVariation => 0.0,
                };
                self.include_exchanging_step(q, *noise_multiplier, exchange_probability, count)
            }
            DpEvent::SelfComposed { event, count: times } => {
                let total = count.checked_mul(*times).ok_or(AccountingError::TooManySteps)?;
                self.include(event, total, depth + 1)
            }
            DpEvent::Composed { events } => events
                .iter()
                .try_for_each(|event| self.include(event, count, depth + 1)),
        }
    }

    /// Gaussians on one and the same sample are one Gaussian (see [`crate::joint`]); nothing else is
    /// priced under sampling.
    fn include_sampled(
        &mut self,
        sampling_probability: f64,
        event: &DpEvent,
        count: u64,
        depth: usize,
    ) -> Result<(), AccountingError> {
        check_probability(sampling_probability)?;
        let mut inner = Mechanism::new(self.cut);
        inner.include(event, 1, depth + 1)?;
        if inner.non_private {
            self.non_private |= count > 0 && sampling_probability > 0.0;
            return Ok(());
        }
        match (inner.components.as_slice(), inner.truncations.as_slice()) {
            ([], []) => Ok(()),
            ([only], []) if only.step.sampling_probability >= 1.0 => {
                self.include_step(sampling_probability, only.step.noise_multiplier, count)
            }
            _ => Err(AccountingError::Unsupported {
                event: "PoissonSampled of a mechanism that samples itself",
                reason: "only Gaussian releases of the sample are priced; multiply the probabilities yourself if the draws are independent",
            }),
        }
    }

    fn include_step(
        &mut self,
        sampling_probability: f64,
        noise_multiplier: f64,
        count: u64,
    ) -> Result<(), AccountingError> {
        self.include_exchanging_step(sampling_probability, noise_multiplier, 0.0, count)
    }

    fn include_exchanging_step(
        &mut self,
        sampling_probability: f64,
        noise_multiplier: f64,
        exchange_probability: f64,
        count: u64,
    ) -> Result<(), AccountingError> {
        check_probability(sampling_probability)?;
        if !(noise_multiplier.is_finite() && noise_multiplier > 0.0) {
            return Err(AccountingError::NoiseMultiplier {
                value: noise_multiplier,
            });
        }
        if count == 0 || sampling_probability == 0.0 {
            return Ok(());
        }
        // n plain Gaussians are one with 1/σ² = n/σ₁².
        let plain = sampling_probability == 1.0;
        // Whoever draws everybody knows whether the sample is full.
        let always_exchanged = exchange_probability >= 1.0 || plain && exchange_probability > 0.0;
        let (noise_multiplier, exchange_probability) = if always_exchanged {
            (noise_multiplier / 2.0, 0.0)
        } else {
            (noise_multiplier, exchange_probability)
        };
        let step = Step {
            sampling_probability,
            noise_multiplier: if plain {
                noise_multiplier / (count as f64).sqrt()
            } else {
                noise_multiplier
            },
        };
        self.merge(Component {
            step,
            exchange_probability,
            count: if plain { 1 } else { count },
        })
    }

    fn merge(&mut self, new: Component) -> Result<(), AccountingError> {
        let plain = new.step.sampling_probability == 1.0;
        let same = |old: &Component| {
            if plain {
                old.step.sampling_probability == 1.0
            } else {
                old.step == new.step && old.exchange_probability == new.exchange_probability
            }
        };
        let Some(position) = self.components.iter().position(same) else {
            if self.components.len() >= MAX_COMPONENTS {
                return Err(AccountingError::TooComplex);
            }
            self.components.push(new);
            return Ok(());
        };
        let old = &mut self.components[position];
        if plain {
            let (a, b) = (old.step.noise_multiplier, new.step.noise_multiplier);
            let ratio = a.min(b) / a.max(b);
            old.step.noise_multiplier = a.min(b) / (1.0 + ratio * ratio).sqrt();
        } else {
            old.count = old
                .count
                .checked_add(new.count)
                .ok_or(AccountingError::TooManySteps)?;
        }
        Ok(())
    }

    fn include_truncation(&mut self, ln_tail: f64, count: u64) {
        if count > 0 && ln_tail > f64::NEG_INFINITY {
            self.truncations.push(Truncation { ln_tail, count });
        }
    }
}

fn check_probability(value: f64) -> Result<(), AccountingError> {
    if (0.0..=1.0).contains(&value) {
        Ok(())
    } else {
        Err(AccountingError::SamplingProbability { value })
    }
}
