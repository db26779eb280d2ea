//! The whole curve of a mechanism, composed once and read as often as one likes.

use super::mechanism::{Cut, Mechanism};
use super::step::Direction;
use super::{AccountingError, Curve, number, plan};
use crate::event::{DpEvent, NeighboringRelation};

/// ε ↦ δ of a mechanism: the trade-off that a single (ε, δ) is one point of.
///
/// ```
/// use bastionai_privacy::accountant::PrivacyProfile;
/// use bastionai_privacy::event::{DpEvent, NeighboringRelation::AddOrRemoveOne};
/// let profile = PrivacyProfile::new(&DpEvent::dp_sgd(1.0, 0.01, 10_000), AddOrRemoveOne, 1e-9)?;
/// assert!(profile.epsilon(1e-5)? < profile.epsilon(1e-6)?);
/// assert!(profile.delta(6.2)? < 1e-5);
/// # Ok::<(), bastionai_privacy::accountant::AccountingError>(())
/// ```
pub struct PrivacyProfile {
    smallest_delta: f64,
    shape: Shape,
}

enum Shape {
    NonPrivate,
    Closed(Curve),
    /// For each direction, tables that each bound δ from above; ε at δ = 0 where there is one.
    Tables(Vec<Vec<Table>>, Option<f64>),
}

impl PrivacyProfile {
    /// Composes `event` for all δ from `smallest_delta` up, for which [`super::epsilon`] says the same within a thousandth. A
    /// sample that is cut is priced as an exchange of records.
    ///
    /// # Errors
    /// [`AccountingError`] as of [`super::epsilon`].
    pub fn new(
        event: &DpEvent,
        relation: NeighboringRelation,
        smallest_delta: f64,
    ) -> Result<Self, AccountingError> {
        check_delta(smallest_delta)?;
        let mechanism = Mechanism::parse(event, relation, Cut::Exchange)?;
        let shape = if mechanism.is_non_private() {
            Shape::NonPrivate
        } else if let Some(curve) = Curve::closed(&mechanism) {
            Shape::Closed(curve)
        } else {
            let tabulate = |direction| -> Result<Vec<Table>, AccountingError> {
                let tables = plan::tabulate(&mechanism, direction, smallest_delta)?;
                Ok(tables.into_iter().map(|points| Table { points }).collect())
            };
            let directions = vec![tabulate(Direction::Remove)?, tabulate(Direction::Add)?];
            Shape::Tables(directions, mechanism.pure_epsilon())
        };
        Ok(Self {
            smallest_delta,
            shape,
        })
    }

    /// The smallest ε proven at `delta`; below `smallest_delta` it may be infinite.
    ///
    /// # Errors
    /// [`AccountingError::Delta`] outside (0, 1).
    pub fn epsilon(&self, delta: f64) -> Result<f64, AccountingError> {
        check_delta(delta)?;
        match &self.shape {
            Shape::NonPrivate => Ok(f64::INFINITY),
            Shape::Closed(curve) => number(curve.epsilon(delta)?),
            Shape::Tables(directions, pure) => {
                let epsilon = worst_of(directions, |table| table.epsilon(delta));
                Ok(epsilon.min(pure.unwrap_or(f64::INFINITY)))
            }
        }
    }

    /// The smallest δ proven at `epsilon`; at most 1, and not much less than `smallest_delta`.
    ///
    /// # Errors
    /// [`AccountingError::Epsilon`] where it is negative or not finite.
    pub fn delta(&self, epsilon: f64) -> Result<f64, AccountingError> {
        if !(epsilon.is_finite() && epsilon >= 0.0) {
            return Err(AccountingError::Epsilon { value: epsilon });
        }
        match &self.shape {
            Shape::NonPrivate => Ok(1.0),
            Shape::Closed(curve) => number(curve.delta(epsilon).min(1.0)),
            Shape::Tables(_, Some(pure)) if epsilon >= *pure => Ok(0.0),
            Shape::Tables(directions, _) => Ok(worst_of(directions, |table| table.delta(epsilon))),
        }
    }

    /// `count` points (ε, δ) with δ falling from ½ to `smallest_delta` by equal factors: what a plot shows.
    ///
    /// # Errors
    /// Those of [`PrivacyProfile::epsilon`].
    pub fn points(&self, count: usize) -> Result<Vec<(f64, f64)>, AccountingError> {
        let ln_range = libm::log(self.smallest_delta.min(LARGEST_DELTA) / LARGEST_DELTA);
        let last = count.saturating_sub(1).max(1) as f64;
        (0..count)
            .map(|point| {
                let delta = LARGEST_DELTA * libm::exp(ln_range * point as f64 / last);
                Ok((self.epsilon(delta)?, delta))
            })
            .collect()
    }
}

/// The larger of both directions, each the least of its tables.
fn worst_of(directions: &[Vec<Table>], value: impl Fn(&Table) -> f64) -> f64 {
    let least = |tables: &Vec<Table>| tables.iter().map(&value).fold(f64::INFINITY, f64::min);
    directions.iter().map(least).fold(0.0, f64::max)
}

/// Points of an upper bound, ε rising from about 0. Between them lines in e^ε, which lie above a convex curve.
struct Table {
    points: Vec<(f64, f64)>,
}

impl Table {
    fn delta(&self, epsilon: f64) -> f64 {
        let after = self.points.partition_point(|point| point.0 <= epsilon);
        match (
            after.checked_sub(1).map(|at| self.points[at]),
            self.points.get(after),
        ) {
            (None, _) => 1.0,
            (Some((_, delta)), None) => delta,
            (Some((left, above)), Some((right, below))) => {
                let part = libm::expm1(epsilon - left) / libm::expm1(right - left);
                above + (below - above) * part.clamp(0.0, 1.0)
            }
        }
    }

    fn epsilon(&self, delta: f64) -> f64 {
        // From the top: where rounding has the upper hand, δ need not fall.
        let Some(enough) = self.points.iter().rposition(|point| point.1 > delta) else {
            return self.points.first().map_or(f64::INFINITY, |point| point.0);
        };
        let (left, above) = self.points[enough];
        match self.points.get(enough + 1) {
            None => f64::INFINITY,
            Some((right, below)) => {
                let part = ((above - delta) / (above - below)).clamp(0.0, 1.0);
                (left + libm::log1p(part * libm::expm1(right - left))).min(*right)
                    * (1.0 + 8.0 * f64::EPSILON)
            }
        }
    }
}

fn check_delta(value: f64) -> Result<(), AccountingError> {
    if value > 0.0 && value < 1.0 {
        Ok(())
    } else {
        Err(AccountingError::Delta { value })
    }
}

const LARGEST_DELTA: f64 = 0.5;
