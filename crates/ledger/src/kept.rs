//! Weights that a run keeps on its way: iterates at steps agreed beforehand, and the average of the iterates. They
//! are named with the progress that they belong to, and released with the run: never before it is committed.

use crate::entry::{Body, KeptWeights, RunAdvancedKeeping};
use crate::id::{Digest32, Principal};
use crate::propose::Proposal;
use crate::refusal::Refusal;
use crate::state::{Ledger, Run};
use crate::{BudgetReceipt, StartedRun};

/// Sets of weights that one run may keep.
pub const MAX_KEPT_SETS: usize = 4096;

impl Ledger {
    /// As [`Ledger::propose_advance`], with the weights kept since the last advance.
    ///
    /// # Errors
    /// [`Refusal::ReleasedStep`]; [`Refusal::Kept`] unless they rise within the steps advanced.
    pub fn propose_advance_keeping(
        &self,
        run: &StartedRun,
        released_step: u64,
        kept: Vec<KeptWeights>,
        now_unix_ms: u64,
    ) -> Result<Proposal, Refusal> {
        if kept.is_empty() {
            return self.propose_advance(run, released_step, now_unix_ms);
        }
        let advanced = RunAdvancedKeeping {
            run: run.run(),
            released_step,
            kept,
        };
        self.propose(Body::RunAdvancedKeeping(advanced), now_unix_ms)
    }

    /// Hands one set of weights of a committed run, its last or a kept one, to `recipient`.
    ///
    /// # Errors
    /// As [`Ledger::propose_release`]; [`Refusal::OtherWeights`] when the run has no such set.
    pub fn propose_release_of(
        &self,
        receipt: &BudgetReceipt,
        weights_digest: Digest32,
        recipient: Principal,
        now_unix_ms: u64,
    ) -> Result<Proposal, Refusal> {
        let released = crate::entry::Released {
            run: receipt.run(),
            recipient,
            weights_digest,
        };
        self.propose(Body::Released(released), now_unix_ms)
    }

    /// The step part is checked by the caller. Steps rise, the iterate before its average, within what is advanced now.
    pub(crate) fn check_kept(&self, run: &Run, advanced: &RunAdvancedKeeping) -> Result<(), Refusal> {
        let order = |kept: &KeptWeights| (kept.step, kept.ema);
        let rising = advanced
            .kept
            .windows(2)
            .all(|pair| order(&pair[0]) < order(&pair[1]));
        let steps = run.released_step() + 1..=advanced.released_step;
        let within = advanced.kept.iter().all(|kept| steps.contains(&kept.step));
        let total = run.kept().len() + advanced.kept.len();
        if rising && within && !advanced.kept.is_empty() && total <= MAX_KEPT_SETS {
            Ok(())
        } else {
            Err(Refusal::Kept { run: run.id() })
        }
    }
}

impl Run {
    /// The weights kept on the way, in order of their steps. They can be had only once the run has succeeded.
    pub fn kept(&self) -> &[KeptWeights] {
        &self.kept
    }

    /// The digest of a kept set.
    pub fn kept_digest(&self, step: u64, ema: bool) -> Option<Digest32> {
        let found = self.kept.iter().find(|kept| (kept.step, kept.ema) == (step, ema));
        found.map(|kept| kept.weights_digest)
    }

    /// Whether a set of weights was handed to a principal before.
    pub fn was_released(&self, recipient: &Principal, weights_digest: &Digest32) -> bool {
        self.releases.contains(&(*recipient, *weights_digest))
    }
}
