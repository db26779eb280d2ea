//! What a mechanism costs: (ε, δ) of a [`DpEvent`] from its privacy loss distribution (PLD).
//!
//! Every result is an upper bound, but for that of [`epsilon_lower_bound`], which shows how tight they are. A plain Gaussian, and one step of a subsampled one, have a closed
//! form (Balle and Wang 2018, <https://arxiv.org/abs/1805.06530>). Everything else is composed
//! numerically: the loss of one step is put on a grid by connecting the dots of its hockey-stick curve
//! (Doroshenko et al. 2022, <https://arxiv.org/abs/2207.04380>), which can only raise δ; the grid is
//! tilted, composed by FFT and tilted back (`plan`), and the error of the transform and
//! everything cut off is added to δ. Adding and removing a unit are priced apart and the worse counts.
//!
//! A sample that is cut to a cap has two proven prices ([`crate::truncation`]): by what happens, an exchange of two
//! records, and by total variation. The first is the smaller but for rounding; the least of both is the price.
//!
//! The price is that of one run whose parameters were all fixed beforehand. Runs chosen in view of
//! earlier results compose in the ledger, not here (soundness.md D4, D6).

mod closed_form;
mod coarse;
mod composition;
pub(crate) mod likelihood;
pub(crate) mod mechanism;
mod moments;
mod plan;
mod profile;
mod step;
mod transform;

pub use profile::PrivacyProfile;

use thiserror::Error;

use crate::event::{DpEvent, NeighboringRelation};
use composition::Bound;
use mechanism::{Cut, Mechanism};

/// How a price is computed. Both are proven upper bounds of the same thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accountant {
    /// By privacy loss distributions: tight.
    #[default]
    Pld,
    /// By Rényi divergences at [`crate::renyi::default_orders`]: what most papers report.
    Rdp,
}

impl Accountant {
    /// [`epsilon`] or [`crate::renyi::epsilon`].
    ///
    /// # Errors
    /// [`AccountingError`].
    pub fn epsilon(
        self,
        event: &DpEvent,
        relation: NeighboringRelation,
        delta: f64,
    ) -> Result<f64, AccountingError> {
        match self {
            Self::Pld => epsilon(event, relation, delta),
            Self::Rdp => crate::renyi::epsilon(event, relation, delta),
        }
    }

    /// [`delta`] or [`crate::renyi::delta`].
    ///
    /// # Errors
    /// [`AccountingError`].
    pub fn delta(
        self,
        event: &DpEvent,
        relation: NeighboringRelation,
        epsilon: f64,
    ) -> Result<f64, AccountingError> {
        match self {
            Self::Pld => delta(event, relation, epsilon),
            Self::Rdp => crate::renyi::delta(event, relation, epsilon),
        }
    }

    /// As it is written: `pld` or `rdp`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pld => "pld",
            Self::Rdp => "rdp",
        }
    }
}

/// A name that no accountant has.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("accountant `{name}` is unknown; there are pld (tight) and rdp (Rényi)")]
pub struct UnknownAccountant {
    /// What was asked for.
    pub name: String,
}

impl std::str::FromStr for Accountant {
    type Err = UnknownAccountant;

    fn from_str(name: &str) -> Result<Self, UnknownAccountant> {
        [Self::Pld, Self::Rdp]
            .into_iter()
            .find(|accountant| accountant.name() == name)
            .ok_or_else(|| UnknownAccountant {
                name: name.to_owned(),
            })
    }
}

/// Why an event has no price. Nothing is ever priced on a guess.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum AccountingError {
    /// A mechanism no proof here covers.
    #[error("{event} is not supported: {reason}")]
    Unsupported {
        /// Which event.
        event: &'static str,
        /// Why, and what would be.
        reason: &'static str,
    },
    /// A noise multiplier that is not a positive finite number.
    #[error("noise multiplier {value} is not positive and finite; without noise, say NonPrivate")]
    NoiseMultiplier {
        /// What was passed.
        value: f64,
    },
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
    /// An order no Rényi divergence is bounded at.
    #[error(
        "order {value} of a Rényi divergence is not above 1 and at most {}",
        crate::renyi::LARGEST_ORDER
    )]
    Order {
        /// What was passed.
        value: f64,
    },
    /// A curve that does not fit its orders.
    #[error("{bounds} bounds for {orders} orders: a curve has one for each")]
    Curve {
        /// How many orders.
        orders: usize,
        /// How many bounds.
        bounds: usize,
    },
    /// Counts that multiply beyond 2^64.
    #[error("the counts of nested compositions multiply to more than 2^64 steps")]
    TooManySteps,
    /// More nesting or more different mechanisms than a query may take time for.
    #[error(
        "an event may nest {MAX_DEPTH} deep and hold {MAX_COMPONENTS} different mechanisms; compose runs in the ledger"
    )]
    TooComplex,
    /// Numbers so extreme that f64 cannot bound them.
    #[error(
        "the privacy loss of this event is beyond double precision; raise the noise multiplier or take fewer steps"
    )]
    OutOfRange,
}

/// The smallest ε this accountant can prove for `event` at `delta`; infinite if there is none.
///
/// Never below the true value; above it by less than a thousandth over the range users ask for
/// (noise multiplier 0.3 to 100, sampling probability from 1e-6, steps up to 1e6, δ 1e-12 to 1e-2).
///
/// # Errors
/// [`AccountingError`] for events without a proof and parameters out of their domain.
pub fn epsilon(event: &DpEvent, relation: NeighboringRelation, delta: f64) -> Result<f64, AccountingError> {
    if !(delta > 0.0 && delta < 1.0) {
        return Err(AccountingError::Delta { value: delta });
    }
    let by_total_variation = Mechanism::parse(event, relation, Cut::TotalVariation)?;
    if by_total_variation.is_non_private() {
        return Ok(f64::INFINITY);
    }
    let total_variation = || {
        let curve = Curve::for_delta(&by_total_variation, delta)?;
        epsilon_with_truncation(&by_total_variation, &curve, delta)
    };
    // Where the cut is next to impossible, total variation is as good and cheaper.
    if by_total_variation.truncation_delta(0.0) <= NEGLIGIBLE * delta {
        let epsilon = total_variation()?;
        if by_total_variation.truncation_delta(epsilon) <= NEGLIGIBLE * delta {
            return Ok(epsilon);
        }
    }
    match epsilon_by_exchange(event, relation, delta) {
        // Total variation is no better but for rounding, and says nothing where its term alone exceeds δ.
        Ok(epsilon)
            if epsilon.is_finite() && by_total_variation.truncation_delta(epsilon * 0.99) >= delta =>
        {
            Ok(epsilon)
        }
        exchange => least(exchange, total_variation()),
    }
}

/// An ε that does not suffice at `delta`: some test tells neighbours apart better than (ε, δ) allows. 0 where none was found.
///
/// Holds for the pair of outputs that the price is made of. Neighbours whose gradients are all parallel have that pair for every
/// event but a cut sample, whose pair only bounds what neighbours can do ([`crate::truncation`]).
///
/// # Errors
/// Those of [`epsilon`].
pub fn epsilon_lower_bound(
    event: &DpEvent,
    relation: NeighboringRelation,
    delta: f64,
) -> Result<f64, AccountingError> {
    let near = epsilon_by_exchange_or_free(event, relation, delta)?;
    if near == 0.0 || near.is_infinite() {
        return Ok(near);
    }
    let mechanism = Mechanism::parse(event, relation, Cut::Exchange)?;
    match Curve::closed(&mechanism) {
        Some(curve) => curve.epsilon_from_below(delta),
        None => plan::epsilon_from_below(&mechanism, delta, near).map(|epsilon| epsilon.min(near)),
    }
}

fn epsilon_by_exchange_or_free(
    event: &DpEvent,
    relation: NeighboringRelation,
    delta: f64,
) -> Result<f64, AccountingError> {
    if !(delta > 0.0 && delta < 1.0) {
        return Err(AccountingError::Delta { value: delta });
    }
    if Mechanism::parse(event, relation, Cut::Exchange)?.is_non_private() {
        return Ok(f64::INFINITY);
    }
    epsilon_by_exchange(event, relation, delta)
}

fn epsilon_by_exchange(
    event: &DpEvent,
    relation: NeighboringRelation,
    delta: f64,
) -> Result<f64, AccountingError> {
    let mechanism = Mechanism::parse(event, relation, Cut::Exchange)?;
    number(Curve::for_delta(&mechanism, delta)?.epsilon(delta)?)
}

/// The smallest δ this accountant can prove for `event` at `epsilon`; at most 1.
///
/// # Errors
/// [`AccountingError`] for events without a proof and parameters out of their domain.
pub fn delta(event: &DpEvent, relation: NeighboringRelation, epsilon: f64) -> Result<f64, AccountingError> {
    if !(epsilon.is_finite() && epsilon >= 0.0) {
        return Err(AccountingError::Epsilon { value: epsilon });
    }
    let by_total_variation = Mechanism::parse(event, relation, Cut::TotalVariation)?;
    if by_total_variation.is_non_private() {
        return Ok(1.0);
    }
    let bound = |mechanism: &Mechanism, term: f64| {
        let curve = Curve::for_epsilon(mechanism, epsilon)?;
        number(curve.delta(epsilon) + term).map(|total| total.min(1.0))
    };
    let term = by_total_variation.truncation_delta(epsilon);
    let total_variation = bound(&by_total_variation, term);
    if !by_total_variation.truncates() {
        return total_variation;
    }
    let exchange = Mechanism::parse(event, relation, Cut::Exchange).and_then(|cut| bound(&cut, 0.0));
    least(exchange, total_variation)
}

/// The smaller of two bounds; where one is beyond this accountant, the other.
fn least(a: Result<f64, AccountingError>, b: Result<f64, AccountingError>) -> Result<f64, AccountingError> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok(a.min(b)),
        (Err(_), only) | (only, Err(_)) => only,
    }
}

fn number(value: f64) -> Result<f64, AccountingError> {
    if value.is_nan() {
        Err(AccountingError::OutOfRange)
    } else {
        Ok(value)
    }
}

/// ε ↦ δ of a mechanism, truncation aside.
enum Curve {
    Free,
    Gaussian(closed_form::Gaussian),
    SingleStep(closed_form::SingleStep),
    Composed {
        directions: Vec<Bound>,
        /// The ε that holds at δ = 0, where there is one.
        pure_epsilon: Option<f64>,
    },
}

impl Curve {
    fn for_delta(mechanism: &Mechanism, delta: f64) -> Result<Self, AccountingError> {
        match Self::closed(mechanism) {
            Some(curve) => Ok(curve),
            None => Ok(Curve::Composed {
                directions: plan::compose_for_delta(mechanism, delta)?,
                pure_epsilon: mechanism.pure_epsilon(),
            }),
        }
    }

    fn for_epsilon(mechanism: &Mechanism, epsilon: f64) -> Result<Self, AccountingError> {
        match Self::closed(mechanism) {
            Some(curve) => Ok(curve),
            None => Ok(Curve::Composed {
                directions: plan::compose_for_epsilon(mechanism, epsilon)?,
                pure_epsilon: mechanism.pure_epsilon(),
            }),
        }
    }

    fn closed(mechanism: &Mechanism) -> Option<Self> {
        match mechanism.components() {
            [] => Some(Curve::Free),
            [only] if only.step.is_plain_gaussian() => Some(Curve::Gaussian(closed_form::Gaussian::new(
                only.step.noise_multiplier,
            ))),
            [only] if only.count == 1 => Some(Curve::SingleStep(closed_form::SingleStep::new(only.cases()))),
            _ => None,
        }
    }

    fn epsilon(&self, delta: f64) -> Result<f64, AccountingError> {
        match self {
            Curve::Free => Ok(0.0),
            Curve::Gaussian(gaussian) => closed_form::solve(|epsilon| gaussian.delta(epsilon), delta),
            Curve::SingleStep(step) => closed_form::solve(|epsilon| step.delta(epsilon), delta),
            Curve::Composed {
                directions,
                pure_epsilon,
            } => {
                let worst = |worst: f64, direction: &Bound| direction.epsilon(delta).max(worst);
                let epsilon = directions.iter().fold(0.0, worst);
                Ok(pure_epsilon.map_or(epsilon, |pure| pure.min(epsilon)))
            }
        }
    }

    /// Of a curve in closed form: an ε whose δ is above `delta`, or 0.
    fn epsilon_from_below(&self, delta: f64) -> Result<f64, AccountingError> {
        match self {
            Curve::Gaussian(gaussian) => {
                closed_form::solve_from_below(|epsilon| gaussian.delta_from_below(epsilon), delta)
            }
            Curve::SingleStep(step) => {
                closed_form::solve_from_below(|epsilon| step.delta_from_below(epsilon), delta)
            }
            Curve::Free | Curve::Composed { .. } => Ok(0.0),
        }
    }

    fn delta(&self, epsilon: f64) -> f64 {
        match self {
            Curve::Free => 0.0,
            Curve::Gaussian(gaussian) => gaussian.delta(epsilon),
            Curve::SingleStep(step) => step.delta(epsilon),
            Curve::Composed {
                pure_epsilon: Some(pure),
                ..
            } if epsilon >= *pure => 0.0,
            Curve::Composed { directions, .. } => directions
                .iter()
                .fold(0.0, |worst, direction| worst.max(direction.delta(epsilon))),
        }
    }
}

/// Part `reserved` of δ goes to truncation, the rest to the curve, and `reserved` is raised until it covers
/// the truncation term at the ε found. What is returned has been checked, whatever the path to it.
fn epsilon_with_truncation(mechanism: &Mechanism, curve: &Curve, delta: f64) -> Result<f64, AccountingError> {
    let mut reserved = 0.0;
    for _ in 0..MAX_TRUNCATION_ROUNDS {
        let epsilon = curve.epsilon(delta - reserved)?;
        let needed = mechanism.truncation_delta(epsilon);
        if needed.is_nan() || epsilon.is_nan() {
            return Err(AccountingError::OutOfRange);
        }
        if needed <= reserved {
            return Ok(epsilon);
        }
        reserved = needed * (1.0 + 1e-9);
        if reserved >= delta {
            break;
        }
    }
    Ok(f64::INFINITY)
}

/// Deeper nesting than any run needs, so that a hostile event cannot exhaust the stack.
const MAX_DEPTH: usize = 32;
/// Bound on the work of one query: each different mechanism costs a transform.
const MAX_COMPONENTS: usize = 64;
const MAX_TRUNCATION_ROUNDS: usize = 100;
/// Part of δ that is not worth a second price: it moves ε by a hundred-thousandth.
const NEGLIGIBLE: f64 = 1e-4;

#[cfg(test)]
mod tests;
