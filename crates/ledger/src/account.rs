//! A private dataset's account, in both currencies; its policy says which of them decides.

use crate::amount::{Amount, Epsilon};
use bastionai_privacy::event::DpEvent;
use bastionai_privacy::filter::basic::BasicFilter;
use bastionai_privacy::filter::renyi::{RenyiCost, RenyiFilter, RenyiTotal};

/// Sums of (ε, δ): `remaining = lifetime − committed − reserved`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Fixed at creation.
    pub lifetime: Amount,
    /// Spent by runs that ended after they started.
    pub committed: Amount,
    /// Held by runs in flight.
    pub reserved: Amount,
    /// What the next run can have, under basic composition. Nothing where the sums are above the lifetime, which another
    /// composition allows.
    pub remaining: Amount,
}

/// Sums of Rényi divergences at the orders of a dataset's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenyiAccount {
    pub(crate) filter: RenyiFilter,
    pub(crate) committed: RenyiTotal,
    pub(crate) reserved: RenyiTotal,
}

impl Budget {
    pub(crate) fn new(lifetime: Amount, committed: Amount, reserved: Amount) -> Self {
        let used = committed.checked_add(reserved);
        Self {
            lifetime,
            committed,
            reserved,
            // Every reservation was checked not to overflow; fail closed all the same.
            remaining: used.map_or(Amount::ZERO, |used| BasicFilter::new(lifetime).remaining(used)),
        }
    }

    /// Whether basic composition admits a run of this cost.
    pub fn admits(&self, cost: Amount) -> bool {
        let used = self.committed.checked_add(self.reserved);
        used.is_some_and(|used| BasicFilter::new(self.lifetime).admits(used, cost))
    }
}

impl RenyiAccount {
    pub(crate) fn new(filter: RenyiFilter) -> Self {
        let zero = RenyiTotal::zero(filter.orders().len());
        Self {
            filter,
            committed: zero.clone(),
            reserved: zero,
        }
    }

    /// What decides.
    pub fn filter(&self) -> &RenyiFilter {
        &self.filter
    }

    /// Spent by runs that ended after they started.
    pub fn committed(&self) -> &RenyiTotal {
        &self.committed
    }

    /// Held by runs in flight.
    pub fn reserved(&self) -> &RenyiTotal {
        &self.reserved
    }

    /// Committed and reserved.
    pub fn used(&self) -> RenyiTotal {
        self.committed.and(&self.reserved)
    }

    /// Whether the filter admits a run of this cost.
    pub fn admits(&self, cost: &RenyiCost) -> bool {
        self.filter.admits(&self.used(), cost)
    }

    /// ε of what is used, at the lifetime's δ ([`RenyiFilter::epsilon`]).
    pub fn used_epsilon(&self) -> Epsilon {
        self.filter.epsilon(&self.used())
    }

    /// ε of what would be used with a run more.
    pub fn epsilon_with(&self, cost: &RenyiCost) -> Epsilon {
        self.filter.epsilon(&self.used().plus(cost))
    }

    pub(crate) fn reserve(&mut self, cost: &RenyiCost) {
        self.reserved = self.reserved.plus(cost);
    }

    pub(crate) fn refund(&mut self, cost: &RenyiCost) {
        self.reserved = self.reserved.minus(cost);
    }

    /// The whole reserve of a run ends; `charged` of it stays.
    pub(crate) fn commit(&mut self, reserved: &RenyiCost, charged: &RenyiCost) {
        self.reserved = self.reserved.minus(reserved);
        self.committed = self.committed.plus(charged);
    }
}

/// What an event costs when only the first `started` of the run's `steps` were started: in proportion, if the mechanism
/// is that many equal releases, else all of it.
pub(crate) fn cost_of_event(event: &DpEvent, cost: &RenyiCost, started: u64, steps: u64) -> RenyiCost {
    match event {
        DpEvent::SelfComposed { event, count } if *count == steps && is_one_release(event) => {
            cost.of_steps(started, steps)
        }
        _ => cost.clone(),
    }
}

fn is_one_release(event: &DpEvent) -> bool {
    match event {
        DpEvent::Gaussian { .. } | DpEvent::TruncatedSubsampledGaussian { .. } => true,
        DpEvent::PoissonSampled { event, .. } => matches!(**event, DpEvent::Gaussian { .. }),
        _ => false,
    }
}
