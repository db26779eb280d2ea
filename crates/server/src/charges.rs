//! What a run costs each dataset in both currencies: (ε, δ) and Rényi divergences. The dataset's policy says which of them
//! decides; the other is shown, and never asked (rules D4, D6).

use crate::convert;
use crate::errors::{Failure, Reason};
use bastionai_ledger::{Charge, Composition, Dataset, Epsilon, Ledger, RenyiCharge, RunStatus};
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_privacy::filter::renyi::{RenyiCost, RenyiFilter, RenyiTotal};
use bastionai_privacy::filter::terms::RenyiTerms;
use bastionai_wire::v1;

/// What is known of a private dataset's Rényi divergences before a run, read from the ledger at one moment.
pub(crate) struct RenyiGrounds {
    terms: RenyiTerms,
    filter: RenyiFilter,
    past: Past,
}

enum Past {
    /// The account that decides.
    Account(RenyiTotal),
    /// Sums decide: each mechanism that counts, and how often.
    Runs(Vec<(DpEvent, NeighboringRelation, u64)>),
}

/// A charge, and what the run means in Rényi divergences.
#[derive(Clone)]
pub(crate) struct PricedCharge {
    pub(crate) charge: Charge,
    renyi: Option<RenyiPrice>,
}

#[derive(Clone)]
struct RenyiPrice {
    terms: RenyiTerms,
    cost: RenyiCost,
    before: Epsilon,
    after: Epsilon,
    decides: bool,
}

impl RenyiGrounds {
    /// `None` unless the dataset has a budget, or where more mechanisms ran under a rule of sums than a price waits for.
    pub(crate) fn of(ledger: &Ledger, dataset: &Dataset) -> Option<Self> {
        let lifetime = dataset.policy().lifetime?;
        if let (Composition::Renyi(terms), Some(account)) =
            (&dataset.policy().composition, dataset.renyi_account())
        {
            return Some(Self {
                terms: terms.clone(),
                filter: account.filter().clone(),
                past: Past::Account(account.used()),
            });
        }
        let mut runs: Vec<(DpEvent, NeighboringRelation, u64)> = Vec::new();
        let counted = ledger
            .runs()
            .filter(|run| !matches!(run.status(), RunStatus::Refunded(_)))
            .flat_map(|run| run.charges())
            .filter(|charge| charge.dataset == dataset.id());
        for charge in counted {
            let same = |known: &&mut (DpEvent, NeighboringRelation, u64)| {
                known.0 == charge.event && known.1 == charge.relation
            };
            if let Some(known) = runs.iter_mut().find(same) {
                known.2 += 1;
            } else if runs.len() < MAX_MECHANISMS {
                runs.push((charge.event.clone(), charge.relation, 1));
            } else {
                return None;
            }
        }
        let terms = RenyiTerms::default();
        Some(Self {
            filter: RenyiFilter::new(lifetime, &terms).ok()?,
            terms,
            past: Past::Runs(runs),
        })
    }

    /// What a run costs. Where sums decide, a mechanism without a proven divergence is shown without one.
    ///
    /// # Errors
    /// [`Reason::Unpriceable`] where these divergences decide.
    fn price(&self, charge: &Charge) -> Result<Option<RenyiPrice>, Failure> {
        let decides = matches!(self.past, Past::Account(_));
        match self.try_price(charge, decides) {
            Ok(price) => Ok(Some(price)),
            Err(error) if decides => Err(Failure::of(Reason::Unpriceable, error)),
            Err(_) => Ok(None),
        }
    }

    fn try_price(
        &self,
        charge: &Charge,
        decides: bool,
    ) -> Result<RenyiPrice, bastionai_privacy::accountant::AccountingError> {
        let cost = self.terms.cost_of(&charge.event, charge.relation)?;
        let before = match &self.past {
            Past::Account(used) => used.clone(),
            Past::Runs(runs) => {
                let mut used = RenyiTotal::zero(self.filter.orders().len());
                for (event, relation, count) in runs {
                    let cost = self.terms.cost_of(event, *relation)?;
                    used = (0..*count).fold(used, |used, _| used.plus(&cost));
                }
                used
            }
        };
        Ok(RenyiPrice {
            terms: self.terms.clone(),
            before: self.filter.epsilon(&before),
            after: self.filter.epsilon(&before.plus(&cost)),
            cost,
            decides,
        })
    }
}

/// All charges of a run, as the scientist sees them.
pub(crate) fn to_wire(ledger: &Ledger, charges: &[PricedCharge]) -> Vec<v1::Charge> {
    let charged: Vec<&Charge> = charges.iter().map(|priced| &priced.charge).collect();
    let made = charges.iter().map(|priced| priced.to_wire(ledger));
    convert::with_units(ledger, &charged, made)
}

impl PricedCharge {
    pub(crate) fn new(charge: Charge, grounds: Option<&RenyiGrounds>) -> Result<Self, Failure> {
        let renyi = match grounds {
            Some(grounds) => grounds.price(&charge)?,
            None => None,
        };
        Ok(Self { charge, renyi })
    }

    /// As the scientist sees it; affordable by the rule that decides, as of now.
    fn to_wire(&self, ledger: &Ledger) -> v1::Charge {
        let mut wire = convert::charge(ledger, &self.charge);
        let Some(price) = &self.renyi else {
            return wire;
        };
        if price.decides {
            let account = ledger
                .dataset(&self.charge.dataset)
                .and_then(Dataset::renyi_account);
            wire.affordable = account.is_some_and(|account| account.admits(&price.cost));
        }
        let divergence = |rho: &bastionai_ledger::Rho| {
            if rho.is_unbounded() {
                String::new()
            } else {
                rho.to_string()
            }
        };
        wire.renyi = Some(v1::RenyiPrice {
            orders: price.terms.orders().map(|order| order.to_string()).collect(),
            divergences: price.cost.rho().iter().map(divergence).collect(),
            epsilon_before: price.before.to_string(),
            epsilon_after: price.after.to_string(),
        });
        wire
    }
}

/// What the ledger is asked to set aside, of charges in run order.
pub(crate) fn charges(priced: &[PricedCharge]) -> Vec<Charge> {
    priced.iter().map(|priced| priced.charge.clone()).collect()
}

/// The same of the accounts of Rényi divergences.
pub(crate) fn renyi_charges(priced: &[PricedCharge]) -> Vec<RenyiCharge> {
    let charge = |priced: &PricedCharge| {
        let price = priced.renyi.as_ref().filter(|price| price.decides)?;
        Some(RenyiCharge {
            dataset: priced.charge.dataset,
            cost: price.cost.clone(),
        })
    };
    priced.iter().filter_map(charge).collect()
}

/// Different mechanisms on one dataset that a price repeats the accounting of, milliseconds each.
const MAX_MECHANISMS: usize = 256;
