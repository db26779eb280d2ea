//! Events → what is to be priced: a list of subsampled releases with counts, and truncation terms.

use super::likelihood::position_to_loss;
use super::{AccountingError, MAX_COMPONENTS, MAX_DEPTH};
use crate::event::{DpEvent, NeighboringRelation};
use crate::tails::{ln_binomial_upper_tail, round_up};
use crate::truncation::{ln_exchange_probability, ln_term_factor};

/// How a sample that is cut to its cap is priced. Both are upper bounds (see [`crate::truncation`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// As what happens: a record that does not fit displaces another.
    Exchange,
    /// As if the cut mechanism could do anything: its probability is added to δ.
    TotalVariation,
}

/// What is added to a number that one unit moves by at most 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noise {
    /// Of this standard deviation.
    Gaussian,
    /// Of this scale.
    Laplace,
}

/// One release on a Poisson sample; probability 1 is the plain release.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) sampling_probability: f64,
    pub(crate) noise: Noise,
    pub(crate) noise_multiplier: f64,
}

impl Step {
    /// A release of everybody, of Gaussian noise: any number of them are one.
    pub(crate) fn is_plain_gaussian(&self) -> bool {
        self.sampling_probability >= 1.0 && self.noise == Noise::Gaussian
    }
}

/// A step and how often it is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Component {
    pub(crate) step: Step,
    /// Probability that the sample is full without the unit, which then displaces another.
    pub(crate) exchange_probability: f64,
    pub(crate) count: u64,
}

/// One of the mechanisms that a step is a mixture of, where it is revealed which of them ran.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) weight: f64,
    pub(crate) step: Step,
}

impl Component {
    /// The unit comes or goes; or it is exchanged for another, which moves the sum by twice as much.
    pub(crate) fn cases(&self) -> Vec<Case> {
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
pub(crate) struct Mechanism {
    cut: Cut,
    components: Vec<Component>,
    truncations: Vec<Truncation>,
    non_private: bool,
}

impl Mechanism {
    pub(crate) fn parse(
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
    pub(crate) fn is_non_private(&self) -> bool {
        self.non_private
    }

    pub(crate) fn components(&self) -> &[Component] {
        &self.components
    }

    /// The ε that holds at δ = 0, where there is one: the largest losses of Laplace releases, added up.
    pub(crate) fn pure_epsilon(&self) -> Option<f64> {
        if !self
            .components
            .iter()
            .all(|part| part.step.noise == Noise::Laplace)
        {
            return None;
        }
        let largest = |part: &Component| {
            // Of removal: with q < 1 the largest loss of addition is smaller.
            part.count as f64 * position_to_loss(part.step, f64::INFINITY)
        };
        let sum: f64 = self.components.iter().map(largest).sum();
        Some(sum * (1.0 + 1e-12))
    }

    /// True if some sample may have to be cut.
    pub(crate) fn truncates(&self) -> bool {
        !self.truncations.is_empty()
    }

    /// Σ count·P[cut]·(1+e^ε) (see [`crate::truncation`]), what [`Cut::TotalVariation`] adds to δ; infinite where
    /// that overflows.
    pub(crate) fn truncation_delta(&self, epsilon: f64) -> f64 {
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
            DpEvent::Gaussian { noise_multiplier } => {
                self.include_step(1.0, Noise::Gaussian, *noise_multiplier, count)
            }
            DpEvent::Laplace { noise_multiplier } => {
                self.include_step(1.0, Noise::Laplace, *noise_multiplier, count)
            }
            DpEvent::Histograms {
                histograms,
                standard_deviation,
            } => {
                check_noise(*standard_deviation)?;
                match histograms {
                    0 => Ok(()),
                    histograms => {
                        let noise_multiplier = standard_deviation / round_up((*histograms as f64).sqrt());
                        self.include_step(1.0, Noise::Gaussian, noise_multiplier, count)
                    }
                }
            }
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
                let step = Step {
                    sampling_probability: q,
                    noise: Noise::Gaussian,
                    noise_multiplier: *noise_multiplier,
                };
                self.include_exchanging_step(step, exchange_probability, count)
            }
            DpEvent::SelfComposed { event, count: times } => {
                let total = count.checked_mul(*times).ok_or(AccountingError::TooManySteps)?;
                self.include(event, total, depth + 1)
            }
            DpEvent::Banded { bands, steps, event } => {
                let turns = steps
                    .checked_div(*bands)
                    .map(|whole| whole + u64::from(steps % bands != 0));
                let is_gaussian = match &**event {
                    DpEvent::Gaussian { .. } | DpEvent::TruncatedSubsampledGaussian { .. } => true,
                    DpEvent::PoissonSampled { event, .. } => matches!(**event, DpEvent::Gaussian { .. }),
                    _ => false,
                };
                match turns {
                    Some(turns) if is_gaussian => {
                        let total = count.checked_mul(turns).ok_or(AccountingError::TooManySteps)?;
                        self.include(event, total, depth + 1)
                    }
                    _ => Err(AccountingError::Unsupported {
                        event: "Banded of no bands, or of something else than a Gaussian on a sample",
                        reason: "the turns of a unit are one Gaussian release each, of the units that have their turn",
                    }),
                }
            }
            DpEvent::Composed { events } => events
                .iter()
                .try_for_each(|event| self.include(event, count, depth + 1)),
        }
    }

    /// Gaussians on one and the same sample are one Gaussian (see [`crate::joint`]), and a single Laplace release has a
    /// dominating pair (Zhu, Dong and Wang 2022, Theorem 11); nothing else is priced under sampling.
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
        let unsupported = |event, reason| Err(AccountingError::Unsupported { event, reason });
        match (inner.components.as_slice(), inner.truncations.as_slice()) {
            ([], []) => Ok(()),
            ([only], []) if only.step.sampling_probability >= 1.0 && only.count == 1 => {
                let Step {
                    noise,
                    noise_multiplier,
                    ..
                } = only.step;
                self.include_step(sampling_probability, noise, noise_multiplier, count)
            }
            (all, []) if all.iter().all(|part| part.step.sampling_probability >= 1.0) => unsupported(
                "PoissonSampled of several releases of which one is Laplace",
                "releases of one sample are priced together only if all are Gaussian; draw a sample for each",
            ),
            _ => unsupported(
                "PoissonSampled of a mechanism that samples itself",
                "only releases of the sample are priced; multiply the probabilities yourself if the draws are independent",
            ),
        }
    }

    fn include_step(
        &mut self,
        sampling_probability: f64,
        noise: Noise,
        noise_multiplier: f64,
        count: u64,
    ) -> Result<(), AccountingError> {
        let step = Step {
            sampling_probability,
            noise,
            noise_multiplier,
        };
        self.include_exchanging_step(step, 0.0, count)
    }

    fn include_exchanging_step(
        &mut self,
        mut step: Step,
        mut exchange_probability: f64,
        mut count: u64,
    ) -> Result<(), AccountingError> {
        check_probability(step.sampling_probability)?;
        check_noise(step.noise_multiplier)?;
        if count == 0 || step.sampling_probability == 0.0 {
            return Ok(());
        }
        // Whoever draws everybody knows whether the sample is full.
        let plain = step.is_plain_gaussian();
        if exchange_probability >= 1.0 || plain && exchange_probability > 0.0 {
            step.noise_multiplier /= 2.0;
            exchange_probability = 0.0;
        }
        // n plain Gaussians are one with 1/σ² = n/σ₁².
        if plain {
            step.noise_multiplier /= (count as f64).sqrt();
            count = 1;
        }
        // Division may have left nothing of a tiny one.
        check_noise(step.noise_multiplier).map_err(|_| AccountingError::OutOfRange)?;
        self.merge(Component {
            step,
            exchange_probability,
            count,
        })
    }

    fn merge(&mut self, new: Component) -> Result<(), AccountingError> {
        let plain = new.step.is_plain_gaussian();
        let same = |old: &Component| {
            if plain {
                old.step.is_plain_gaussian()
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

fn check_noise(value: f64) -> Result<(), AccountingError> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err(AccountingError::NoiseMultiplier { value })
    }
}

fn check_probability(value: f64) -> Result<(), AccountingError> {
    if (0.0..=1.0).contains(&value) {
        Ok(())
    } else {
        Err(AccountingError::SamplingProbability { value })
    }
}
