//! Basic composition: ε and δ are added up (theorem in [`crate::filter`]).

use super::amount::Amount;

/// Admits runs while the sums of their ε and of their δ stay within a lifetime's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BasicFilter {
    lifetime: Amount,
}

impl BasicFilter {
    /// For a lifetime (ε, δ).
    pub const fn new(lifetime: Amount) -> Self {
        Self { lifetime }
    }

    /// What is left after `spent`; nothing when more than all is.
    pub fn remaining(&self, spent: Amount) -> Amount {
        self.lifetime.checked_sub(spent).unwrap_or(Amount::ZERO)
    }

    /// Whether a run of this cost may still be made.
    ///
    /// # Guarantee
    /// If every run was admitted, and `spent` is the sum of their costs, the transcript of all is lifetime-private.
    pub fn admits(&self, spent: Amount, cost: Amount) -> bool {
        spent
            .checked_add(cost)
            .is_some_and(|total| total.fits_within(self.lifetime))
    }
}
