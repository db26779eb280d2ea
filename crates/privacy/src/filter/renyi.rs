//! The Rényi filter of several fixed orders (theorem and proof in [`crate::filter`]).

use super::amount::{Amount, Epsilon, Rho};
use super::terms::{Order, RenyiTerms, TermsError};
use serde::{Deserialize, Serialize};

/// What one run costs an account: a bound of its Rényi divergence at each of the account's orders.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RenyiCost {
    rho: Vec<Rho>,
}

/// The sum of any number of costs. Exact: it cannot overflow in 2^64 additions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RenyiTotal {
    units: Vec<u128>,
}

/// Admits a run while, with it, the total at *some* order is within that order's budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenyiFilter {
    lifetime: Amount,
    orders: Vec<Order>,
    budgets: Vec<Option<Rho>>,
}

impl RenyiCost {
    /// One divergence for each order, in their order.
    pub fn new(rho: Vec<Rho>) -> Self {
        Self { rho }
    }

    /// The divergences.
    pub fn rho(&self) -> &[Rho] {
        &self.rho
    }

    /// Whether nothing is spent at any order.
    pub fn is_zero(&self) -> bool {
        self.rho.iter().all(|&rho| rho == Rho::ZERO)
    }

    /// Whether it is at most `other` at every order.
    pub fn is_within(&self, other: &Self) -> bool {
        self.rho.len() == other.rho.len() && self.rho.iter().zip(&other.rho).all(|(one, other)| one <= other)
    }

    /// The cost of the first `started` of `steps` equal steps of which this is the cost, rounded up.
    ///
    /// # Guarantee
    /// Divergences of equal steps add up: a bound of `steps` of them, taken in proportion, bounds `started` of them if
    /// it was made as `steps` times a bound of one.
    pub fn of_steps(&self, started: u64, steps: u64) -> Self {
        let part = |rho: &Rho| {
            if started >= steps || (rho.is_unbounded() && started > 0) {
                return *rho;
            }
            let part = (u128::from(rho.units()) * u128::from(started)).div_ceil(u128::from(steps));
            // Less than the whole, a u64.
            Rho::from_units(u64::try_from(part).unwrap_or(u64::MAX))
        };
        Self::new(self.rho.iter().map(part).collect())
    }
}

impl RenyiTotal {
    /// Nothing, of an account with so many orders.
    pub fn zero(orders: usize) -> Self {
        Self {
            units: vec![0; orders],
        }
    }

    /// With a run's cost more.
    ///
    /// # Panics
    /// If the cost is of another number of orders.
    #[must_use]
    pub fn plus(&self, cost: &RenyiCost) -> Self {
        self.each(cost, |total, rho| total.saturating_add(rho))
    }

    /// Without a run's cost that was added before.
    ///
    /// # Panics
    /// If the cost is of another number of orders, or was never added.
    #[must_use]
    pub fn minus(&self, cost: &RenyiCost) -> Self {
        self.each(cost, |total, rho| {
            total.checked_sub(rho).expect("only what was added is taken away")
        })
    }

    /// The sum with another total.
    ///
    /// # Panics
    /// If the other is of another number of orders.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        assert_eq!(self.units.len(), other.units.len(), "totals of one account");
        let both = self.units.iter().zip(&other.units);
        Self {
            units: both.map(|(one, other)| one.saturating_add(*other)).collect(),
        }
    }

    fn each(&self, cost: &RenyiCost, change: impl Fn(u128, u128) -> u128) -> Self {
        assert_eq!(
            self.units.len(),
            cost.rho.len(),
            "a cost has the account's orders"
        );
        let both = self.units.iter().zip(&cost.rho);
        Self {
            units: both
                .map(|(total, rho)| change(*total, u128::from(rho.units())))
                .collect(),
        }
    }

    /// The total at each order; what is too large for a [`Rho`] as [`Rho::MAX`].
    pub fn rho(&self) -> Vec<Rho> {
        let shown = |&units: &u128| Rho::from_units(u64::try_from(units).unwrap_or(u64::MAX));
        self.units.iter().map(shown).collect()
    }

    fn is_zero(&self) -> bool {
        self.units.iter().all(|&units| units == 0)
    }
}

impl RenyiFilter {
    /// For a lifetime (ε, δ), δ split over the orders by their weights.
    ///
    /// # Errors
    /// [`TermsError::NoBudget`] when no order gives any; others for terms that are none.
    pub fn new(lifetime: Amount, terms: &RenyiTerms) -> Result<Self, TermsError> {
        terms.check()?;
        let budgets = terms.budgets(lifetime);
        if budgets.iter().all(Option::is_none) {
            return Err(TermsError::NoBudget { lifetime });
        }
        Ok(Self {
            lifetime,
            orders: terms.orders().collect(),
            budgets,
        })
    }

    /// The orders.
    pub fn orders(&self) -> &[Order] {
        &self.orders
    }

    /// What each order may spend; `None` where its share of δ does not give ε even with nothing spent.
    pub fn budgets(&self) -> &[Option<Rho>] {
        &self.budgets
    }

    /// Whether a run of this cost may still be made. A cost of another number of orders never.
    ///
    /// # Guarantee
    /// If every run was admitted, and `spent` is the total of their costs, the transcript of all is lifetime-private.
    pub fn admits(&self, spent: &RenyiTotal, cost: &RenyiCost) -> bool {
        cost.rho.len() == self.budgets.len() && self.holds(&spent.plus(cost))
    }

    /// Whether some order's total is within its budget.
    pub fn holds(&self, total: &RenyiTotal) -> bool {
        self.margins(total).any(|margin| margin >= 0)
    }

    /// What `total` means as ε at the lifetime's δ, by the order that is best for it and with the same split; rounded up,
    /// and the lifetime's ε or more exactly when the filter is spent. 0 when nothing is.
    ///
    /// The guarantee of a transcript that ends here *by a plan made beforehand*. It is no statement about whoever stops
    /// because of this very number: that is the lifetime's, or an [`super::odometer::Odometer`]'s.
    pub fn epsilon(&self, total: &RenyiTotal) -> Epsilon {
        if total.is_zero() {
            return Epsilon::ZERO;
        }
        let lifetime = i128::from(self.lifetime.epsilon.units()) * RHO_PER_EPSILON;
        let best = self.margins(total).max().unwrap_or(i128::MIN);
        let spent = lifetime.saturating_sub(best).max(0);
        let units = u64::try_from(spent.unsigned_abs().div_ceil(RHO_PER_EPSILON.unsigned_abs()));
        units.map_or(Epsilon::MAX, Epsilon::from_units)
    }

    /// Budget less total, of the orders that have one.
    fn margins<'a>(&'a self, total: &'a RenyiTotal) -> impl Iterator<Item = i128> + 'a {
        self.budgets
            .iter()
            .zip(&total.units)
            .filter_map(|(budget, &spent)| {
                let spent = i128::try_from(spent).unwrap_or(i128::MAX);
                Some(i128::from(budget.as_ref()?.units()).saturating_sub(spent))
            })
    }
}

const RHO_PER_EPSILON: i128 = 1000;
