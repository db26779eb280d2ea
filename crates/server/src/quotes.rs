//! Live quotes: in memory, per boot, bounded, expiring. Starting a run names a quote by its digest (rule A11),
//! so nothing that was priced can change between price and start.

use crate::priced::Priced;
use bastionai_ledger::Principal;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Why no quote can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuoteGone {
    /// Never given to this principal, forgotten, or of another boot.
    Unknown,
    /// Too old.
    Expired,
}

/// The quotes held, oldest first.
pub(crate) struct Quotes {
    held: Mutex<VecDeque<Arc<Priced>>>,
    total: usize,
    per_principal: usize,
}

impl Quotes {
    pub(crate) fn new(total: u32, per_principal: u32) -> Self {
        Self {
            held: Mutex::default(),
            total: total as usize,
            per_principal: per_principal as usize,
        }
    }

    /// Keeps a quote; the principal's oldest, then the oldest of all, makes room.
    pub(crate) fn insert(&self, quote: Priced) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|other| other.run_digest() != quote.run_digest());
        let of_principal = |other: &Arc<Priced>| other.scientist() == quote.scientist();
        if held.iter().filter(|other| of_principal(other)).count() >= self.per_principal
            && let Some(place) = held.iter().position(of_principal)
        {
            held.remove(place);
        }
        if held.len() >= self.total {
            held.pop_front();
        }
        held.push_back(Arc::new(quote));
    }

    /// The live quote with this digest that was given to this principal.
    pub(crate) fn find(
        &self,
        scientist: Principal,
        digest: &[u8],
        now_unix_ms: u64,
    ) -> Result<Arc<Priced>, QuoteGone> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let quote = held
            .iter()
            .find(|quote| quote.scientist() == scientist && quote.run_digest().as_bytes() == digest);
        let quote = quote.ok_or(QuoteGone::Unknown)?;
        if now_unix_ms >= quote.expires_unix_ms() {
            Err(QuoteGone::Expired)
        } else {
            Ok(Arc::clone(quote))
        }
    }
}
