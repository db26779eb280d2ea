//! The orders of a Rényi account, fixed when it is opened, and the budget that each of them gives.

use super::amount::{Amount, Epsilon, Rho};
use super::logarithm::{self, FRACTION_BITS, ln};
use super::renyi::RenyiCost;
use crate::accountant::AccountingError;
use crate::event::{DpEvent, NeighboringRelation};
use crate::renyi;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// An order α of Rényi divergence, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order(u32);

/// An order, and its share of δ in proportion to the other orders' weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedOrder {
    /// The order.
    pub order: Order,
    /// At least 1.
    pub weight: u32,
}

/// The orders of an account, rising. They never change: the guarantee is proven for orders fixed beforehand.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RenyiTerms {
    orders: Vec<WeightedOrder>,
}

/// Why orders make no account.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TermsError {
    /// Not a decimal, finer than thousandths, or out of range.
    #[error(
        "`{text}` is not an order: write a decimal from 1.1 to 1024 with at most three decimals, like 1.5 or 8"
    )]
    Order {
        /// What was given.
        text: String,
    },
    /// None, or more than a ledger entry should hold.
    #[error("an account has 1 to {MAX_ORDERS} orders, not {found}")]
    Count {
        /// Orders given.
        found: usize,
    },
    /// Repeated or not rising.
    #[error("orders must rise: {order} does not follow {before}")]
    NotRising {
        /// The order before.
        before: Order,
        /// The offender.
        order: Order,
    },
    /// A weight of zero gives an order no part of δ.
    #[error("the weight of order {order} must be at least 1")]
    ZeroWeight {
        /// Its order.
        order: Order,
    },
    /// Orders and weights do not pair up.
    #[error("{orders} orders have {weights} weights: give as many, or none for equal ones")]
    Weights {
        /// Orders given.
        orders: usize,
        /// Weights given.
        weights: usize,
    },
    /// No order turns into the lifetime, not even with nothing spent.
    #[error(
        "at a lifetime of {lifetime} none of these orders gives a budget: add higher orders, or weigh them more"
    )]
    NoBudget {
        /// The lifetime.
        lifetime: Amount,
    },
}

impl Order {
    /// From thousandths.
    ///
    /// # Errors
    /// [`TermsError::Order`] unless it is from 1.1 to 1024.
    pub fn from_thousandths(thousandths: u32) -> Result<Self, TermsError> {
        let order = Self(thousandths);
        if (LOWEST..=HIGHEST).contains(&thousandths) {
            Ok(order)
        } else {
            Err(TermsError::Order {
                text: order.to_string(),
            })
        }
    }

    /// Thousandths.
    pub const fn thousandths(self) -> u32 {
        self.0
    }

    /// The smallest float that is at least the order. Divergences rise with the order, so one of this order bounds it.
    pub fn to_f64_round_up(self) -> f64 {
        let nearest = f64::from(self.0) / 1000.0;
        // Multiples of an eighth are floats.
        if self.0.is_multiple_of(125) {
            nearest
        } else {
            nearest.next_up()
        }
    }

    /// The largest divergence of this order that implies (ε, δ), rounded down; `None` if not even none does.
    ///
    /// Canonne, Kamath and Steinke 2020, proposition 12, solved for the divergence:
    /// ε + (ln δ + α·ln α)/(α−1) − ln(α−1), with α = a/1000 and δ = d·1e-18.
    fn budget(self, epsilon: Epsilon, delta_units: u64) -> Option<Rho> {
        if delta_units == 0 {
            return None;
        }
        let (a, above_one) = (i128::from(self.0), i128::from(self.0 - 1000));
        let ln_thousand = ln(1000);
        let ln_delta = ln(delta_units) - ln(DELTA_UNIT);
        let ln_order = ln(u64::from(self.0)) - ln_thousand;
        let ln_above_one = ln(u64::from(self.0 - 1000)) - ln_thousand;
        let conversion = (1000 * ln_delta + a * ln_order).div_euclid(above_one) - ln_above_one;
        // Errors of the logarithms: two of weight 1000/(a−1000) and a/(a−1000) each, two of weight 1.
        let error = 2 * logarithm::ERROR * ((1000 + a) / above_one + 2) + 2;
        let conversion = ((conversion - error) * RHO_UNIT) >> FRACTION_BITS;
        let budget = i128::from(epsilon.units()) * RHO_PER_EPSILON + conversion;
        let largest = i128::from(Rho::MAX.units() - 1);
        let units = u64::try_from(budget.min(largest))
            .ok()
            .filter(|&units| units > 0)?;
        Some(Rho::from_units(units))
    }
}

impl RenyiTerms {
    /// From orders and their weights; no weights are equal ones.
    ///
    /// # Errors
    /// [`TermsError`] says what is wrong.
    pub fn new(orders: &[Order], weights: &[u32]) -> Result<Self, TermsError> {
        if !weights.is_empty() && weights.len() != orders.len() {
            return Err(TermsError::Weights {
                orders: orders.len(),
                weights: weights.len(),
            });
        }
        let weight = |at: usize| weights.get(at).copied().unwrap_or(1);
        let orders = orders.iter().enumerate();
        let orders = orders.map(|(at, &order)| WeightedOrder {
            order,
            weight: weight(at),
        });
        let terms = Self {
            orders: orders.collect(),
        };
        terms.check()?;
        Ok(terms)
    }

    /// Checks terms that were read.
    ///
    /// # Errors
    /// [`TermsError`] says what is wrong.
    pub fn check(&self) -> Result<(), TermsError> {
        let found = self.orders.len();
        if found == 0 || found > MAX_ORDERS {
            return Err(TermsError::Count { found });
        }
        for WeightedOrder { order, weight } in &self.orders {
            Order::from_thousandths(order.0)?;
            if *weight == 0 {
                return Err(TermsError::ZeroWeight { order: *order });
            }
        }
        match self.orders.windows(2).find(|pair| pair[0].order >= pair[1].order) {
            Some(pair) => Err(TermsError::NotRising {
                before: pair[0].order,
                order: pair[1].order,
            }),
            None => Ok(()),
        }
    }

    /// The orders and their weights.
    pub fn weighted(&self) -> &[WeightedOrder] {
        &self.orders
    }

    /// The orders.
    pub fn orders(&self) -> impl ExactSizeIterator<Item = Order> + '_ {
        self.orders.iter().map(|each| each.order)
    }

    /// Each order's budget for `epsilon` and its share of `delta`, rounded down.
    pub(super) fn budgets(&self, lifetime: Amount) -> Vec<Option<Rho>> {
        let total: u128 = self.orders.iter().map(|each| u128::from(each.weight)).sum();
        let delta = u128::from(lifetime.delta.units());
        let budget = |each: &WeightedOrder| {
            let share = delta * u128::from(each.weight) / total.max(1);
            // A share of a u64.
            let share = u64::try_from(share).unwrap_or(0);
            each.order.budget(lifetime.epsilon, share)
        };
        self.orders.iter().map(budget).collect()
    }

    /// What an event costs at each order, rounded up.
    ///
    /// # Errors
    /// Those of [`renyi::curve`]: an event without a proof, a parameter out of its domain.
    pub fn cost_of(
        &self,
        event: &DpEvent,
        relation: NeighboringRelation,
    ) -> Result<RenyiCost, AccountingError> {
        let orders: Vec<_> = self.orders().map(Order::to_f64_round_up).collect();
        let mut bounds = renyi::curve(event, relation, &orders)?.into_iter();
        self.cost(|_| bounds.next().ok_or(AccountingError::OutOfRange))
    }

    /// What a mechanism costs at each order, rounded up. `divergence` bounds its Rényi divergence of an order, in both
    /// directions; infinite where there is no bound.
    ///
    /// # Errors
    /// The first error of `divergence`; [`AccountingError::OutOfRange`] when it gives no number.
    pub fn cost(
        &self,
        mut divergence: impl FnMut(f64) -> Result<f64, AccountingError>,
    ) -> Result<RenyiCost, AccountingError> {
        let at = |order: Order| {
            Rho::bounding(divergence(order.to_f64_round_up())?).map_err(|_| AccountingError::OutOfRange)
        };
        let rho: Result<Vec<_>, _> = self.orders().map(at).collect();
        Ok(RenyiCost::new(rho?))
    }
}

/// Orders that serve lifetimes from ε = 0.1 to 60: the best for (ε, δ) is about 1 + 2·ln(1/δ)/ε.
impl Default for RenyiTerms {
    fn default() -> Self {
        let order = |&order: &u32| WeightedOrder {
            order: Order(order),
            weight: 1,
        };
        Self {
            orders: DEFAULT_ORDERS.iter().map(order).collect(),
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / 1000, format!("{:03}", self.0 % 1000));
        match fraction.trim_end_matches('0') {
            "" => write!(formatter, "{whole}"),
            fraction => write!(formatter, "{whole}.{fraction}"),
        }
    }
}

impl FromStr for Order {
    type Err = TermsError;

    fn from_str(text: &str) -> Result<Self, TermsError> {
        let refused = || TermsError::Order {
            text: text.chars().take(40).collect(),
        };
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let is_plain = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
        let fraction = fraction.trim_end_matches('0');
        if whole.is_empty() || !is_plain(whole) || !is_plain(fraction) || fraction.len() > 3 {
            return Err(refused());
        }
        let thousandths = format!("{whole}{fraction:0<3}").parse().map_err(|_| refused())?;
        Self::from_thousandths(thousandths).map_err(|_| refused())
    }
}

impl Serialize for Order {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_u32(self.0)
        }
    }
}

/// Out of range too is read, and refused by [`RenyiTerms::check`].
impl<'de> Deserialize<'de> for Order {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            u32::deserialize(deserializer).map(Self)
        }
    }
}

/// Most orders of an account.
pub const MAX_ORDERS: usize = 32;

const DEFAULT_ORDERS: [u32; 12] = [
    1_500, 2_000, 3_000, 4_000, 6_000, 8_000, 12_000, 16_000, 24_000, 32_000, 64_000, 128_000,
];
const LOWEST: u32 = 1_100;
const HIGHEST: u32 = 1_024_000;
const DELTA_UNIT: u64 = 10_u64.pow(18);
const RHO_UNIT: i128 = 10_i128.pow(12);
const RHO_PER_EPSILON: i128 = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The conversion in floats: ε of a divergence (Canonne, Kamath and Steinke 2020, proposition 12).
    fn epsilon_of(alpha: f64, rho: f64, delta: f64) -> f64 {
        rho + ((alpha - 1.0) / alpha).ln() - (delta.ln() + alpha.ln()) / (alpha - 1.0)
    }

    proptest! {
        #[test]
        fn a_budget_implies_its_epsilon_and_nothing_larger_does(
            thousandths in LOWEST..=HIGHEST, epsilon in 1_u64..100_000_000_000, delta in 1_u64..=DELTA_UNIT,
        ) {
            let order = Order(thousandths);
            let (epsilon, d) = (Epsilon::from_units(epsilon), delta as f64 / 1e18);
            let alpha = f64::from(thousandths) / 1000.0;
            match order.budget(epsilon, delta) {
                Some(budget) => {
                    let implied = epsilon_of(alpha, budget.to_f64(), d);
                    prop_assert!((implied - epsilon.to_f64()).abs() < 1e-10, "{} for {}", implied, epsilon);
                }
                None => prop_assert!(epsilon_of(alpha, 0.0, d) >= epsilon.to_f64() - 1e-10),
            }
        }

        #[test]
        fn orders_print_and_parse(thousandths in LOWEST..=HIGHEST) {
            let order = Order(thousandths);
            prop_assert_eq!(order.to_string().parse::<Order>().unwrap(), order);
            prop_assert!(order.to_f64_round_up() >= f64::from(thousandths) / 1000.0);
        }
    }

    /// They decide in ledgers: no release may compute another one.
    #[test]
    fn budgets_are_pinned() {
        let lifetime = Amount::new("6".parse().unwrap(), "1e-5".parse().unwrap());
        let budgets = RenyiTerms::default().budgets(lifetime);
        let shown: Vec<_> = budgets
            .iter()
            .map(|each| each.map_or("-".to_owned(), |rho| rho.to_string()))
            .collect();
        assert_eq!(shown, PINNED);
        let coarse = RenyiTerms::new(&[Order(2_000), Order(10_500)], &[1, 3]).unwrap();
        let shown: Vec<_> = coarse
            .budgets(lifetime)
            .into_iter()
            .map(|each| each.map(|rho| rho.to_string()))
            .collect();
        assert_eq!(shown, [None, Some(PINNED_10_5.to_owned())]);
    }

    #[test]
    fn orders_that_make_no_account_are_refused() {
        let orders = |list: &[u32]| list.iter().map(|&each| Order(each)).collect::<Vec<_>>();
        let refused = |list: &[u32], weights: &[u32]| RenyiTerms::new(&orders(list), weights).unwrap_err();
        assert!(matches!(refused(&[], &[]), TermsError::Count { found: 0 }));
        assert!(matches!(
            refused(&[2000; 33], &[]),
            TermsError::Count { found: 33 }
        ));
        assert!(matches!(
            refused(&[2000, 2000], &[]),
            TermsError::NotRising { .. }
        ));
        assert!(matches!(refused(&[2000], &[0]), TermsError::ZeroWeight { .. }));
        assert!(matches!(refused(&[2000], &[1, 1]), TermsError::Weights { .. }));
        assert!(matches!(refused(&[1099], &[]), TermsError::Order { .. }));
        for text in [
            "",
            "1",
            "1.0999",
            "1.2345",
            "-2",
            "1e1",
            "1025",
            "2,5",
            "99999999999",
            "2.",
            "٣",
        ] {
            assert_eq!(text.parse::<Order>().is_ok(), text == "2.", "{text}");
        }
    }

    const PINNED: [&str; 12] = [
        "-",
        "-",
        "-",
        "2.083836154572",
        "3.741107027687",
        "4.430904167898",
        "5.040381789265",
        "5.316188961636",
        "5.572134471618",
        "5.692003659219",
        "5.859574562818",
        "5.935828989659",
    ];
    const PINNED_10_5: &str = "5.105427429056";
}
