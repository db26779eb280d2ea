//! What a Rényi account has spent so far, said so that it holds at any moment, also one chosen because of it.
//!
//! The ε that a running total converts to ([`RenyiFilter::epsilon`]) is a guarantee only of totals fixed beforehand.
//! An odometer in the sense of Rogers et al. 2016 has to hold at all times at once. Ours is
//! Lécuyer's (2021): a ladder of filters for ε·2, ε, ε/2, …, each with an equal share of δ; the reading is the
//! lowest rung that is not spent.
//!
//! *Guarantee.* Let the analyst stop whenever they like, W be the transcript and ε(W) the reading at its end. Then for all S
//! P\[W ∈ S\] ≤ E′\[e^{ε(W)}·1{W ∈ S}\] + δ, P being the law under D and E′ the mean under D′. *Proof*: that of several
//! orders in [`crate::filter`], with pairs (rung, order) for orders: on the transcripts whose lowest unspent rung is r the
//! filter of r was never spent, so its share of δ and its ε hold on exactly these. ∎

use super::amount::{Amount, Delta, Epsilon};
use super::renyi::{RenyiFilter, RenyiTotal};
use super::terms::{RenyiTerms, TermsError};

/// A ladder of filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Odometer {
    /// Rising in ε.
    rungs: Vec<(Epsilon, RenyiFilter)>,
    delta: Delta,
}

impl Odometer {
    /// Around a lifetime, whose δ is that of the readings. Fix it before the first run.
    ///
    /// # Errors
    /// [`TermsError`] when no rung has a budget.
    pub fn new(lifetime: Amount, terms: &RenyiTerms) -> Result<Self, TermsError> {
        let share = Delta::from_units(lifetime.delta.units() / RUNGS);
        let highest = lifetime.epsilon.units().saturating_mul(2);
        let rung = |halvings: u64| {
            let epsilon = Epsilon::from_units(highest >> halvings);
            Some((
                epsilon,
                RenyiFilter::new(Amount::new(epsilon, share), terms).ok()?,
            ))
        };
        let rungs: Vec<_> = (0..RUNGS).rev().filter_map(rung).collect();
        terms.check()?;
        if rungs.is_empty() {
            return Err(TermsError::NoBudget { lifetime });
        }
        Ok(Self {
            rungs,
            delta: lifetime.delta,
        })
    }

    /// The reading: (ε, δ) of all that was spent; `None` beyond the highest rung.
    pub fn read(&self, spent: &RenyiTotal) -> Option<Amount> {
        let (epsilon, _) = self.rungs.iter().find(|(_, filter)| filter.holds(spent))?;
        Some(Amount::new(*epsilon, self.delta))
    }
}

/// Rungs: from twice the lifetime's ε down to an eighth.
const RUNGS: u64 = 5;
