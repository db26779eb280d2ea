//! Whether a charge covers its mechanism: the check an auditor repeats, offline, on every receipt.
//!
//! Not one of [`crate::rules`]: a chain must replay for ever, and a later accountant may be a little stricter
//! than the one that priced an old entry.

use crate::account::cost_of_event;
use crate::amount::{Amount, AmountError, Epsilon};
use crate::entry::Charge;
use crate::policy::DatasetKind;
use crate::receipt::{DatasetStatement, Receipt};
use bastionai_privacy::accountant::{self, AccountingError};
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_privacy::filter::renyi::RenyiCost;

/// Why a charge is not a proven price.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PriceError {
    /// The mechanism costs more than was charged.
    #[error("the mechanism costs ε = {needed} at the charged δ, more than the charged ε = {charged}")]
    TooLow {
        /// What the accountant proves.
        needed: Epsilon,
        /// What was charged.
        charged: Epsilon,
    },
    /// The accountant has no proof for the mechanism.
    #[error("the mechanism cannot be priced: {0}")]
    Accounting(#[from] AccountingError),
    /// The mechanism gives no finite ε at the charged δ.
    #[error("the mechanism has no finite ε at the charged δ: {0}")]
    Unbounded(#[from] AmountError),
    /// The mechanism's Rényi divergence is above what was charged, at some order.
    #[error("the mechanism's Rényi divergences are above those charged")]
    RenyiTooLow,
    /// Another number of steps was priced than the run takes.
    #[error("the mechanism charged has {}, the run takes {steps}", charged.map_or("no number of steps".to_owned(), |n| format!("{n} steps")))]
    Steps {
        /// Steps in the mechanism, if it says how many.
        charged: Option<u64>,
        /// Steps of the run.
        steps: u64,
    },
}

impl Charge {
    /// Recomputes the price of a charge to a private dataset.
    ///
    /// # Guarantee
    /// On success the event is (ε, δ)-differentially private under its relation with the charged amount
    /// (under the accountant's assumptions).
    /// # Errors
    /// [`PriceError`].
    pub fn check_price(&self) -> Result<(), PriceError> {
        check(&self.event, self.relation, self.amount)
    }
}

impl Receipt {
    /// Recomputes the price of every private dataset's charge from the mechanism in the receipt, which must
    /// cover every step of the run.
    ///
    /// # Errors
    /// The first dataset's name and [`PriceError`].
    pub fn check_prices(&self) -> Result<(), (String, PriceError)> {
        let private = self
            .datasets
            .iter()
            .filter(|dataset| dataset.kind == DatasetKind::Private);
        for dataset in private {
            let (charged, steps) = (releases(&dataset.event), self.run.steps);
            if charged != Some(steps) {
                return Err((dataset.name.clone(), PriceError::Steps { charged, steps }));
            }
            let amount = Amount::new(dataset.epsilon, dataset.delta);
            let checked = check(&dataset.event, dataset.relation, amount);
            let checked = checked.and_then(|()| self.check_renyi_price(dataset));
            checked.map_err(|error| (dataset.name.clone(), error))?;
        }
        Ok(())
    }
}

impl Receipt {
    /// Whether what was charged in Rényi divergences covers the steps that were started.
    fn check_renyi_price(&self, dataset: &DatasetStatement) -> Result<(), PriceError> {
        let account = dataset.budget.as_ref().and_then(|budget| budget.renyi.as_ref());
        let (Some(charged), Some(account)) = (&dataset.renyi, account) else {
            return Ok(());
        };
        let needed: RenyiCost = account.orders.cost_of(&dataset.event, dataset.relation)?;
        let needed = match self.run.started_steps {
            Some(started) => cost_of_event(&dataset.event, &needed, started, self.run.steps),
            None => needed,
        };
        if needed.is_within(charged) {
            Ok(())
        } else {
            Err(PriceError::RenyiTooLow)
        }
    }
}

/// How often the mechanism looks at the data: one release a step.
fn releases(event: &DpEvent) -> Option<u64> {
    match event {
        DpEvent::NoOp => Some(0),
        DpEvent::NonPrivate => None,
        DpEvent::Gaussian { .. }
        | DpEvent::Laplace { .. }
        | DpEvent::Histograms { .. }
        | DpEvent::TruncatedSubsampledGaussian { .. } => Some(1),
        DpEvent::PoissonSampled { event, .. } => releases(event),
        DpEvent::SelfComposed { event, count } => releases(event)?.checked_mul(*count),
        // Every step is a release; what a unit's turns in them cost, the accountant counts from `bands`.
        DpEvent::Banded { steps, event, .. } => releases(event)?.checked_mul(*steps),
        DpEvent::Composed { events } => events
            .iter()
            .try_fold(0_u64, |sum, event| sum.checked_add(releases(event)?)),
    }
}

fn check(event: &DpEvent, relation: NeighboringRelation, charged: Amount) -> Result<(), PriceError> {
    // The float below the exact δ: the accountant must not be given more than was charged.
    let needed = accountant::epsilon(event, relation, charged.delta.to_f64().next_down())?;
    let needed = Epsilon::from_f64_round_up(needed)?;
    if needed > charged.epsilon {
        return Err(PriceError::TooLow {
            needed,
            charged: charged.epsilon,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::DatasetId;

    fn charge(epsilon: &str, delta: &str) -> Charge {
        Charge {
            dataset: DatasetId::from_bytes([1; 16]),
            event: DpEvent::Gaussian {
                noise_multiplier: 1.0,
            },
            relation: NeighboringRelation::AddOrRemoveOne,
            amount: Amount::new(epsilon.parse().unwrap(), delta.parse().unwrap()),
        }
    }

    /// The Gaussian mechanism at noise multiplier 1 and δ = 1e-5 has ε = 4.3772 (Balle and Wang 2018, theorem 8).
    #[test]
    fn a_charge_below_the_mechanisms_price_is_told() {
        charge("4.39", "1e-5").check_price().unwrap();
        assert!(matches!(
            charge("4.37", "1e-5").check_price(),
            Err(PriceError::TooLow { .. })
        ));
        assert!(matches!(
            charge("4.39", "9e-6").check_price(),
            Err(PriceError::TooLow { .. })
        ));
        assert!(matches!(
            charge("4.39", "0").check_price(),
            Err(PriceError::Accounting(_))
        ));
    }
}
