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
        "no noise multiplier up to {largest} reaches epsilon {target_epsilon} at delta {target_delta}: at the largest, epsilon is {reached}; ask for less privacy, fewer steps or a smaller sampling probability, and check that truncation alone does not use up delta"
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

    /// Narrows by the secant of ln ε over ln σ, nearly a straight line, aimed at either side of the
    /// root in turn; by bisection where that fails to halve the bracket.
    fn narrow(&self, (too_little, mut enough): (Option<Point>, Point)) -> Result<f64, CalibrationError> {
        let Some(mut too_little) = too_little else {
            return Ok(enough.multiplier);
        };
        for round in 0..MAX_ROUNDS {
            let width = (enough.multiplier / too_little.multiplier).ln();
            if width <= TOLERANCE {
                break;
            }
            let offset = if round % 3 == 2 {
                0.5
            } else {
                self.secant(too_little, enough, width, round)
            };
            let next = self.at(too_little.multiplier * (width * offset).exp())?;
            if next.epsilon <= self.target_epsilon {
                enough = next;
            } else {
                too_little = next;
            }
        }
        Ok(enough.multiplier)
    }

    /// Where the secant meets the target, as a part of the bracket, moved a little past it so that the
    /// far end of the bracket is pulled in too.
    fn secant(&self, too_little: Point, enough: Point, width: f64, round: usize) -> f64 {
        let (high, low) = (too_little.epsilon.ln(), enough.epsilon.ln());
        let part = (high - self.target_epsilon.ln()) / (high - low);
        if !part.is_finite() {
            return 0.5;
        }
        let nudge = (0.3 * TOLERANCE / width).max(0.02 * part.min(1.0 - part));
        let nudged = if round.is_multiple_of(3) {
            part + nudge
        } else {
            part - nudge
        };
        nudged.clamp(0.001, 0.999)
    }
}

const SMALLEST: f64 = 0.01;
const LARGEST: f64 = 1e6;
/// Relative precision of the noise multiplier.
const TOLERANCE: f64 = 5e-6;
const MAX_ROUNDS: usize = 60;
