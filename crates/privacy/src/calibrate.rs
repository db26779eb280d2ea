//! How much noise a price needs.

use thiserror::Error;

use crate::accountant::{self, AccountingError};
use crate::event::{DpEvent, NeighboringRelation};

/// Why no noise multiplier was found.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// ε not a positive finite number.
    #[error("target epsilon {value} is not positive and finite")]
    TargetEpsilon {
        /// What was passed.
        value: f64,
    },
    /// Even the largest noise tried costs more than the target.
    #[error(
        "no noise multiplier up to {largest} reaches epsilon {target_epsilon} at delta {target_delta}: at the largest, epsilon is {reached}; ask for less privacy, fewer steps or a smaller sampling probability"
    )]
    Unreachable {
        /// The ε asked for.
        target_epsilon: f64,
        /// The δ asked for.
        target_delta: f64,
        /// The largest noise multiplier tried.
        largest: f64,
        /// What it costs.
        reached: f64,
    },
    /// The event has no price.
    #[error(transparent)]
    Accounting(#[from] AccountingError),
}

/// A noise multiplier at which `event` costs at most (`target_epsilon`, `target_delta`), and less than a
/// thousandth of a percent more noise than is needed for that.
///
/// Never overshoots: ε of the returned value has been computed and is at most the target. `event` maps
/// a noise multiplier to the mechanism; its cost must not rise with the noise.
///
/// # Errors
/// [`CalibrationError`]: a target out of its domain, an event without a price, or a target that no
/// noise multiplier from 0.01 to 1e6 reaches. An event that meets the target with any noise gets 0.01.
pub fn noise_multiplier(
    target_epsilon: f64,
    target_delta: f64,
    relation: NeighboringRelation,
    event: &dyn Fn(f64) -> DpEvent,
) -> Result<f64, CalibrationError> {
    if !(target_epsilon.is_finite() && target_epsilon > 0.0) {
        return Err(CalibrationError::TargetEpsilon {
            value: target_epsilon,
        });
    }
    let cost = |multiplier: f64| accountant::epsilon(&event(multiplier), relation, target_delta);
    let search = Search {
        target_epsilon,
        target_delta,
        cost: &cost,
    };
    search.narrow(search.bracket()?)
}

struct Search<'a> {
    target_epsilon: f64,
    target_delta: f64,
    cost: &'a dyn Fn(f64) -> Result<f64, AccountingError>,
}

/// A noise multiplier and its ε.
#[derive(Clone, Copy)]
struct Point {
    multiplier: f64,
    epsilon: f64,
}

impl Search<'_> {
    fn at(&self, multiplier: f64) -> Result<Point, CalibrationError> {
        match (self.cost)(multiplier) {
            Ok(epsilon) => Ok(Point { multiplier, epsilon }),
            // Noise so small that doubles cannot hold its loss: certainly too little.
            Err(AccountingError::OutOfRange) if multiplier < 0.1 => Ok(Point {
                multiplier,
                epsilon: f64::INFINITY,
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// (too little noise, enough noise): doubles or halves from 1.
    fn bracket(&self) -> Result<(Option<Point>, Point), CalibrationError> {
        let start = self.at(1.0)?;
        if start.epsilon <= self.target_epsilon {
            let mut enough = start;
            while enough.multiplier > SMALLEST {
                let next = self.at((enough.multiplier / 2.0).max(SMALLEST))?;
                if next.epsilon > self.target_epsilon {
                    return Ok((Some(next), enough));
                }
                enough = next;
            }
            return Ok((None, enough));
        }
        let mut too_little = start;
        while too_little.multiplier < LARGEST {
            let next = self.at((too_little.multiplier * 2.0).min(LARGEST))?;
            if next.epsilon <= self.target_epsilon {
                return Ok((Some(too_little), next));
            }
            too_little = next;
        }
        Err(CalibrationError::Unreachable {
            target_epsilon: self.target_epsilon,
            target_delta: self.target_delta,
            largest: LARGEST,
            reached: too_little.epsilon,
        })
    }

    /// Narrows by interpolation of ln ε over ln σ, a curve of little bend; by bisection where that fails to close in.
    fn narrow(&self, (too_little, mut enough): (Option<Point>, Point)) -> Result<f64, CalibrationError> {
        let Some(mut too_little) = too_little else {
            return Ok(enough.multiplier);
        };
        let (mut discarded, mut width_before) = (None, f64::INFINITY);
        for round in 0..MAX_ROUNDS {
            let width = (enough.multiplier / too_little.multiplier).ln();
            if width <= TOLERANCE {
                break;
            }
            let mut offset = self.aim(too_little, enough, discarded);
            if round % 4 == 3 {
                if width > width_before / 8.0 {
                    offset = 0.5 * width;
                }
                width_before = width;
            }
            let next = self.at(too_little.multiplier * offset.exp())?;
            let end = if next.epsilon <= self.target_epsilon {
                &mut enough
            } else {
                &mut too_little
            };
            discarded = Some(std::mem::replace(end, next));
        }
        Ok(enough.multiplier)
    }

    /// Where the curve meets the target, over `too_little` in ln σ, moved beyond by what may be wrong with that, so that the
    /// farther end of the bracket is pulled in.
    fn aim(&self, too_little: Point, enough: Point, discarded: Option<Point>) -> f64 {
        let at = |point: Point| {
            let position = (point.multiplier / too_little.multiplier).ln();
            (position, (point.epsilon / self.target_epsilon).ln())
        };
        let (low, high) = (at(too_little), at(enough));
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

const SMALLEST: f64 = 0.01;
const LARGEST: f64 = 1e6;
/// Relative precision of the noise multiplier.
const TOLERANCE: f64 = 5e-6;
const MAX_ROUNDS: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cap::SampledSteps;
    use crate::event::NeighboringRelation::AddOrRemoveOne;
    use proptest::prelude::*;

    fn steps(noise_multiplier: f64, sampling_probability: f64, count: u64) -> DpEvent {
        let gaussian = Box::new(DpEvent::Gaussian { noise_multiplier });
        let event = Box::new(DpEvent::PoissonSampled {
            sampling_probability,
            event: gaussian,
        });
        DpEvent::SelfComposed { event, count }
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
