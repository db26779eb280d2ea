//! How much noise a price needs; or how often and how many a price allows to be sampled.

use thiserror::Error;

use crate::accountant::{Accountant, AccountingError};
use crate::event::{DpEvent, NeighboringRelation};

/// Why nothing was found that meets a target.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// ε not a positive finite number.
    #[error("target epsilon {value} is not positive and finite")]
    TargetEpsilon {
        /// What was passed.
        value: f64,
    },
    /// Even the cheapest value tried costs more than the target.
    #[error(
        "no {parameter} reaches epsilon {target_epsilon} at delta {target_delta}: at {cheapest}, the cheapest tried, epsilon is {reached}; ask for less privacy, {remedy}"
    )]
    Unreachable {
        /// What was sought.
        parameter: &'static str,
        /// The ε asked for.
        target_epsilon: f64,
        /// The δ asked for.
        target_delta: f64,
        /// The cheapest value tried.
        cheapest: f64,
        /// What it costs.
        reached: f64,
        /// What would help.
        remedy: &'static str,
    },
    /// No number of steps is too many.
    #[error(
        "{steps} steps still cost no more than epsilon {target_epsilon}, and more are not tried: the steps cost next to nothing"
    )]
    Boundless {
        /// The largest number tried.
        steps: u64,
        /// The ε asked for.
        target_epsilon: f64,
    },
    /// The event has no price.
    #[error(transparent)]
    Accounting(#[from] AccountingError),
}

/// A price that must not be exceeded.
///
/// Every value found has been priced, and its ε is at most the target: never within a tolerance above it.
///
/// ```
/// use bastionai_privacy::calibrate::Target;
/// use bastionai_privacy::event::DpEvent;
/// let target = Target::new(3.0, 1e-5);
/// let noise_multiplier = target.noise_multiplier(&|noise| DpEvent::dp_sgd(noise, 0.01, 1000))?;
/// let steps = target.steps(&|steps| DpEvent::dp_sgd(noise_multiplier, 0.01, steps))?;
/// assert!((1000..1010).contains(&steps));
/// # Ok::<(), bastionai_privacy::calibrate::CalibrationError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// ε.
    pub epsilon: f64,
    /// δ.
    pub delta: f64,
    /// What the price is for.
    pub relation: NeighboringRelation,
    /// How it is computed.
    pub accountant: Accountant,
}

impl Target {
    /// For adding or removing one unit, priced by privacy loss distributions.
    pub fn new(epsilon: f64, delta: f64) -> Self {
        Self {
            epsilon,
            delta,
            relation: NeighboringRelation::AddOrRemoveOne,
            accountant: Accountant::Pld,
        }
    }

    /// A noise multiplier at which `event` meets the target, and less than a thousandth of a percent more noise than is needed for that.
    ///
    /// `event` maps a noise multiplier to the mechanism; its cost must not rise with the noise.
    ///
    /// # Errors
    /// [`CalibrationError`]: a target out of its domain, an event without a price, or a target that no
    /// noise multiplier from 0.01 to 1e6 reaches. An event that meets the target with any noise gets 0.01.
    pub fn noise_multiplier(&self, event: &dyn Fn(f64) -> DpEvent) -> Result<f64, CalibrationError> {
        self.search(&Parameter::NOISE_MULTIPLIER, event)
    }

    /// A sampling probability at which `event` meets the target, less than a thousandth of a percent below the largest.
    ///
    /// `event` maps a probability to the mechanism; its cost must not fall with the probability.
    ///
    /// # Errors
    /// [`CalibrationError`], also where even a probability of 1e-12 costs too much.
    pub fn sampling_probability(&self, event: &dyn Fn(f64) -> DpEvent) -> Result<f64, CalibrationError> {
        self.search(&Parameter::SAMPLING_PROBABILITY, event)
    }

    /// The number of steps with which `event` meets the target while one more does not.
    ///
    /// `event` maps a number of steps to the mechanism; its cost must not fall with the steps.
    ///
    /// # Errors
    /// [`CalibrationError`], also where a single step costs too much, or even [`MOST_STEPS`] do not.
    pub fn steps(&self, event: &dyn Fn(u64) -> DpEvent) -> Result<u64, CalibrationError> {
        self.check()?;
        let cost = |steps: u64| match self.accountant.epsilon(&event(steps), self.relation, self.delta) {
            Err(AccountingError::OutOfRange) => Ok(f64::INFINITY),
            other => other,
        };
        let mut enough = (1, cost(1)?);
        if enough.1 > self.epsilon {
            return Err(self.unreachable(
                "number of steps",
                1.0,
                enough.1,
                "more noise or a smaller sampling probability",
            ));
        }
        let mut too_many = enough;
        while too_many.1 <= self.epsilon {
            if too_many.0 >= MOST_STEPS {
                return Err(CalibrationError::Boundless {
                    steps: MOST_STEPS,
                    target_epsilon: self.epsilon,
                });
            }
            enough = too_many;
            let next = (enough.0 * 4).min(MOST_STEPS);
            too_many = (next, cost(next)?);
        }
        for round in 0.. {
            if too_many.0 - enough.0 <= 1 {
                break;
            }
            let middle = self.steps_between(enough, too_many, round);
            let found = (middle, cost(middle)?);
            if found.1 <= self.epsilon {
                enough = found;
            } else {
                too_many = found;
            }
        }
        Ok(enough.0)
    }

    /// Where the line through both, in logarithms, meets the target; by turns a little to either side of that, and the middle.
    fn steps_between(&self, enough: (u64, f64), too_many: (u64, f64), round: u32) -> u64 {
        let (low, high) = (enough.0 as f64, too_many.0 as f64);
        let slope = libm::log(too_many.1 / enough.1) / libm::log(high / low);
        let aimed = low * libm::exp(libm::log(self.epsilon / enough.1) / slope);
        let aside = 1.0 + 0.02 * (high / low - 1.0).min(1.0) * [1.0, -1.0][round as usize % 2];
        let steps = if round % 4 == 3 || !aimed.is_finite() {
            0.5 * (low + high)
        } else {
            aimed * aside
        };
        (steps.clamp(low, high) as u64).clamp(enough.0 + 1, too_many.0 - 1)
    }

    fn search(&self, parameter: &Parameter, event: &dyn Fn(f64) -> DpEvent) -> Result<f64, CalibrationError> {
        self.check()?;
        let cost = |value: f64| self.accountant.epsilon(&event(value), self.relation, self.delta);
        let search = Search {
            target: *self,
            parameter,
            cost: &cost,
        };
        search.narrow(search.bracket()?)
    }

    fn check(&self) -> Result<(), CalibrationError> {
        if self.epsilon.is_finite() && self.epsilon > 0.0 {
            Ok(())
        } else {
            Err(CalibrationError::TargetEpsilon { value: self.epsilon })
        }
    }

    fn unreachable(
        &self,
        parameter: &'static str,
        cheapest: f64,
        reached: f64,
        remedy: &'static str,
    ) -> CalibrationError {
        CalibrationError::Unreachable {
            parameter,
            target_epsilon: self.epsilon,
            target_delta: self.delta,
            cheapest,
            reached,
            remedy,
        }
    }
}

/// [`Target::noise_multiplier`] by privacy loss distributions.
///
/// # Errors
/// [`CalibrationError`].
pub fn noise_multiplier(
    target_epsilon: f64,
    target_delta: f64,
    relation: NeighboringRelation,
    event: &dyn Fn(f64) -> DpEvent,
) -> Result<f64, CalibrationError> {
    let target = Target {
        relation,
        ..Target::new(target_epsilon, target_delta)
    };
    target.noise_multiplier(event)
}

/// What is sought, from 1 on: its cost falls from `dearest` to `cheapest`.
struct Parameter {
    name: &'static str,
    dearest: f64,
    cheapest: f64,
    remedy: &'static str,
}

impl Parameter {
    const NOISE_MULTIPLIER: Self = Self {
        name: "noise multiplier",
        dearest: SMALLEST,
        cheapest: LARGEST,
        remedy: "fewer steps or a smaller sampling probability",
    };
    const SAMPLING_PROBABILITY: Self = Self {
        name: "sampling probability",
        dearest: 1.0,
        cheapest: 1e-12,
        remedy: "fewer steps or more noise",
    };

    /// 1 where the cost falls as the parameter rises, −1 where it rises.
    fn direction(&self) -> f64 {
        if self.cheapest > self.dearest { 1.0 } else { -1.0 }
    }

    /// So many logarithmic units cheaper, within bounds.
    fn cheaper(&self, value: f64, logarithm: f64) -> f64 {
        let (least, most) = (self.dearest.min(self.cheapest), self.dearest.max(self.cheapest));
        (value * libm::exp(self.direction() * logarithm)).clamp(least, most)
    }
}

struct Search<'a> {
    target: Target,
    parameter: &'a Parameter,
    cost: &'a dyn Fn(f64) -> Result<f64, AccountingError>,
}

/// A value and its ε.
#[derive(Clone, Copy)]
struct Point {
    value: f64,
    epsilon: f64,
}

impl Search<'_> {
    fn at(&self, value: f64) -> Result<Point, CalibrationError> {
        match (self.cost)(value) {
            Ok(epsilon) => Ok(Point { value, epsilon }),
            // Losses that doubles cannot hold: certainly too much.
            Err(AccountingError::OutOfRange) if value < 0.1 || self.parameter.direction() < 0.0 => {
                Ok(Point {
                    value,
                    epsilon: f64::INFINITY,
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// (too dear, cheap enough): from 1 by factors of two, which for a falling parameter grow.
    fn bracket(&self) -> Result<(Option<Point>, Point), CalibrationError> {
        let start = self.at(1.0)?;
        let parameter = self.parameter;
        if start.epsilon <= self.target.epsilon {
            let mut enough = start;
            while enough.value != parameter.dearest {
                let next = self.at(parameter.cheaper(enough.value, -std::f64::consts::LN_2))?;
                if next.epsilon > self.target.epsilon {
                    return Ok((Some(next), enough));
                }
                enough = next;
            }
            return Ok((None, enough));
        }
        let (mut too_dear, mut stride) = (start, std::f64::consts::LN_2);
        while too_dear.value != parameter.cheapest {
            let next = self.at(parameter.cheaper(too_dear.value, stride))?;
            if next.epsilon <= self.target.epsilon {
                return Ok((Some(too_dear), next));
            }
            too_dear = next;
            if parameter.direction() < 0.0 {
                stride *= 1.5;
            }
        }
        Err(self.target.unreachable(
            parameter.name,
            parameter.cheapest,
            too_dear.epsilon,
            parameter.remedy,
        ))
    }

    /// Narrows by interpolation of ln ε over the parameter's logarithm, a curve of little bend; by bisection where that fails to close in.
    fn narrow(&self, (too_dear, mut enough): (Option<Point>, Point)) -> Result<f64, CalibrationError> {
        let Some(mut too_dear) = too_dear else {
            return Ok(enough.value);
        };
        let (mut discarded, mut width_before) = (None, f64::INFINITY);
        for round in 0..MAX_ROUNDS {
            let width = self.offset(too_dear, enough);
            if width <= TOLERANCE {
                break;
            }
            let mut offset = self.aim(too_dear, enough, discarded);
            if round % 4 == 3 {
                if width > width_before / 8.0 {
                    offset = 0.5 * width;
                }
                width_before = width;
            }
            let next = self.at(self.parameter.cheaper(too_dear.value, offset))?;
            let end = if next.epsilon <= self.target.epsilon {
                &mut enough
            } else {
                &mut too_dear
            };
            discarded = Some(std::mem::replace(end, next));
        }
        Ok(enough.value)
    }

    /// How much cheaper, in logarithmic units, the parameter of `b` is.
    fn offset(&self, a: Point, b: Point) -> f64 {
        self.parameter.direction() * libm::log(b.value / a.value)
    }

    /// Where the curve meets the target, over `too_dear`, moved beyond by what may be wrong with that, so that the
    /// farther end of the bracket is pulled in.
    fn aim(&self, too_dear: Point, enough: Point, discarded: Option<Point>) -> f64 {
        let at = |point: Point| {
            (
                self.offset(too_dear, point),
                libm::log(point.epsilon / self.target.epsilon),
            )
        };
        let (low, high) = (at(too_dear), at(enough));
        let width = high.0;
        let straight = width * low.1 / (low.1 - high.1);
        if !straight.is_finite() {
            return 0.5 * width;
        }
        let bent = discarded
            .map(|point| parabola([low, high, at(point)]))
            .filter(|root| (0.0..=width).contains(root));
        let (root, doubt) = match bent {
            Some(root) => (root, 0.1 * (root - straight).abs()),
            None => (straight, 0.02 * straight.min(width - straight)),
        };
        let beyond = doubt.max(0.3 * TOLERANCE);
        let aimed = if root > width - root {
            root - beyond
        } else {
            root + beyond
        };
        aimed.clamp(0.001 * width, 0.999 * width)
    }
}

/// Where the parabola x(y) through three points (x, y) meets y = 0.
fn parabola([a, b, c]: [(f64, f64); 3]) -> f64 {
    let term = |(x, y): (f64, f64), p: f64, q: f64| x * p * q / ((y - p) * (y - q));
    term(a, b.1, c.1) + term(b, a.1, c.1) + term(c, a.1, b.1)
}

/// Most steps tried.
pub const MOST_STEPS: u64 = 1_000_000_000;
const SMALLEST: f64 = 0.01;
const LARGEST: f64 = 1e6;
/// Relative precision of what is found.
const TOLERANCE: f64 = 5e-6;
const MAX_ROUNDS: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accountant;
    use crate::cap::SampledSteps;
    use crate::event::NeighboringRelation::AddOrRemoveOne;
    use proptest::prelude::*;

    fn steps(noise_multiplier: f64, sampling_probability: f64, count: u64) -> DpEvent {
        DpEvent::dp_sgd(noise_multiplier, sampling_probability, count)
    }

    fn cost(event: &DpEvent, delta: f64) -> f64 {
        accountant::epsilon(event, AddOrRemoveOne, delta).unwrap()
    }

    /// The complaint of every predecessor: a calibrated σ whose ε is above what was asked.
    #[test]
    fn the_target_is_met_closely_and_never_overshot() {
        for (q, count, epsilon, delta) in [
            (0.01, 10_000, 3.0, 1e-5),
            (1.0, 1, 0.1, 1e-6),
            (0.3, 50, 8.0, 1e-7),
            (1e-4, 100_000, 0.5, 1e-9),
        ] {
            let event = |sigma| steps(sigma, q, count);
            let sigma = noise_multiplier(epsilon, delta, AddOrRemoveOne, &event).unwrap();
            assert!(
                cost(&event(sigma), delta) <= epsilon,
                "overshoot at q {q}, {count} steps"
            );
            assert!(
                cost(&event(sigma * (1.0 - 2e-5)), delta) > epsilon,
                "too much noise at q {q}, {count} steps"
            );
        }
    }

    #[test]
    fn a_truncated_run_is_calibrated_with_its_tail() {
        let run = SampledSteps {
            dataset_size: 1024,
            sampling_probability: 0.0625,
            steps: 300,
        };
        let event = |noise_multiplier| run.event(Some(90), noise_multiplier);
        let sigma = noise_multiplier(4.0, 1e-5, AddOrRemoveOne, &event).unwrap();
        let untruncated = noise_multiplier(4.0, 1e-5, AddOrRemoveOne, &|s| steps(s, 0.0625, 300)).unwrap();
        assert!(cost(&event(sigma), 1e-5) <= 4.0);
        assert!(
            sigma > untruncated * 1.001 && sigma < untruncated * 1.1,
            "{sigma} for {untruncated}"
        );
    }

    #[test]
    fn the_impossible_is_said_to_be_so() {
        let bare = |_| DpEvent::NonPrivate;
        let refused = noise_multiplier(1.0, 1e-5, AddOrRemoveOne, &bare);
        assert!(matches!(
            refused,
            Err(CalibrationError::Unreachable {
                reached: f64::INFINITY,
                ..
            })
        ));
    }

    #[test]
    fn the_smallest_of_caps_needs_twice_the_noise_at_most() {
        let run = SampledSteps {
            dataset_size: 1000,
            sampling_probability: 0.05,
            steps: 100,
        };
        let capped = |noise_multiplier| run.event(Some(20), noise_multiplier);
        let sigma = noise_multiplier(1.0, 1e-5, AddOrRemoveOne, &capped).unwrap();
        let uncut = noise_multiplier(1.0, 1e-5, AddOrRemoveOne, &|sigma| steps(sigma, 0.05, 100)).unwrap();
        assert!((sigma / (2.0 * uncut) - 1.0).abs() < 1e-4, "{sigma} for {uncut}");
    }

    #[test]
    fn a_target_met_by_any_noise_gets_the_least() {
        assert_eq!(
            noise_multiplier(1.0, 1e-5, AddOrRemoveOne, &|_| DpEvent::NoOp).unwrap(),
            SMALLEST
        );
    }

    #[test]
    fn a_target_beyond_doubles_gets_noise_that_is_priced_and_no_step_that_is_not() {
        let target = Target::new(800.0, 1e-5);
        if let Ok(noise) = target.noise_multiplier(&|noise| steps(noise, 0.5, 1)) {
            // One release above 0.9 tells so much: `accountant::tests`.
            let z = 0.9 / noise;
            assert!(0.5 * z * z + 0.24_f64.ln() <= 800.0, "{noise}");
        }
        assert!(target.steps(&|count| steps(0.01, 0.5, count)).is_err());
    }

    #[test]
    fn targets_that_mean_nothing_are_refused() {
        let event = |sigma| steps(sigma, 0.1, 10);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let refused = noise_multiplier(bad, 1e-5, AddOrRemoveOne, &event);
            assert!(matches!(refused, Err(CalibrationError::TargetEpsilon { .. })));
        }
        for bad in [0.0, 1.0, f64::NAN] {
            let refused = noise_multiplier(1.0, bad, AddOrRemoveOne, &event);
            assert!(matches!(
                refused,
                Err(CalibrationError::Accounting(AccountingError::Delta { .. }))
            ));
        }
        let refused = noise_multiplier(1.0, 1e-5, AddOrRemoveOne, &|sigma| steps(sigma, 2.0, 10));
        assert!(matches!(refused, Err(CalibrationError::Accounting(_))));
    }

    #[test]
    fn the_largest_sampling_probability_and_number_of_steps_are_found_by_either_accountant() {
        for accountant in [Accountant::Pld, Accountant::Rdp] {
            let target = Target {
                accountant,
                ..Target::new(3.0, 1e-5)
            };
            let cost = |event: &DpEvent| accountant.epsilon(event, AddOrRemoveOne, 1e-5).unwrap();
            let found = target.steps(&|count| steps(1.5, 0.01, count)).unwrap();
            assert!(cost(&steps(1.5, 0.01, found)) <= 3.0, "{accountant:?} {found}");
            assert!(cost(&steps(1.5, 0.01, found + 1)) > 3.0, "{accountant:?} {found}");
            let q = target.sampling_probability(&|q| steps(1.5, q, 5000)).unwrap();
            assert!(cost(&steps(1.5, q, 5000)) <= 3.0, "{accountant:?} {q}");
            assert!(
                cost(&steps(1.5, q * (1.0 + 2e-5), 5000)) > 3.0,
                "{accountant:?} {q}"
            );
            let sigma = target
                .noise_multiplier(&|sigma| steps(sigma, 0.01, 5000))
                .unwrap();
            assert!(cost(&steps(sigma, 0.01, 5000)) <= 3.0, "{accountant:?} {sigma}");
            assert!(
                cost(&steps(sigma * (1.0 - 2e-5), 0.01, 5000)) > 3.0,
                "{accountant:?} {sigma}"
            );
        }
    }

    #[test]
    fn what_any_value_meets_gets_the_dearest() {
        let target = Target::new(1.0, 1e-5);
        assert_eq!(
            target.sampling_probability(&|q| steps(100.0, q, 10)).unwrap(),
            1.0
        );
        let endless = target.steps(&|count| DpEvent::NoOp.repeated(count));
        assert!(matches!(endless, Err(CalibrationError::Boundless { .. })));
    }

    #[test]
    fn a_single_step_may_be_too_many_and_any_sampling_too_much() {
        let target = Target::new(0.1, 1e-5);
        let refused = target.steps(&|count| steps(0.5, 0.5, count)).unwrap_err();
        assert!(
            refused
                .to_string()
                .starts_with("no number of steps reaches epsilon 0.1"),
            "{refused}"
        );
        let twice = |q: f64| DpEvent::Composed {
            events: vec![
                DpEvent::Gaussian {
                    noise_multiplier: 1.0,
                },
                steps(1.0, q, 1),
            ],
        };
        let refused = target.sampling_probability(&twice).unwrap_err();
        assert!(
            refused.to_string().starts_with("no sampling probability reaches"),
            "{refused}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn calibration_inverts_pricing(
            ln_epsilon in -1.5_f64..2.5, ln_q in -7.0_f64..0.0, ln_steps in 0.0_f64..8.0,
        ) {
            let (epsilon, q, count) = (ln_epsilon.exp(), ln_q.exp(), ln_steps.exp() as u64);
            let event = |sigma| steps(sigma, q, count);
            let sigma = noise_multiplier(epsilon, 1e-6, AddOrRemoveOne, &event).unwrap();
            prop_assert!(cost(&event(sigma), 1e-6) <= epsilon);
            prop_assert!(sigma <= 2.0 * SMALLEST || cost(&event(sigma * 0.999), 1e-6) > epsilon);
        }
    }
}
