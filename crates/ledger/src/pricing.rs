//! Whether a charge covers its mechanism: the check an auditor repeats, offline, on every receipt.
//!
//! Not one of [`crate::rules`]: a chain must replay for ever, and a later accountant may be a little stricter
//! than the one that priced an old entry.

use crate::amount::{Amount, AmountError, Epsilon};
use crate::entry::Charge;
use crate::policy::DatasetKind;
use crate::receipt::Receipt;
use bastionai_privacy::accountant::{self, AccountingError};
use bastionai_privacy::event::{DpEvent, NeighboringRelation};

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
    /// Recomputes the price of every private dataset's charge from the mechanism in the receipt.
    ///
    /// # Errors
    /// The first dataset's name and [`PriceError`].
    pub fn check_prices(&self) -> Result<(), (String, PriceError)> {
        let private = self
            .datasets
            .iter()
            .filter(|dataset| dataset.kind == DatasetKind::Private);
        for dataset in private {
            let amount = Amount::new(dataset.epsilon, dataset.delta);
            check(&dataset.event, dataset.relation, amount).map_err(|error| (dataset.name.clone(), error))?;
        }
        Ok(())
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
