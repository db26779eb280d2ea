//! Weights that a run keeps on its way (iterates, averages): sealed like its last weights, named in the transaction of
//! the progress they belong to, and destroyed with a run that does not succeed (rule D5).

use crate::blocks::ObjectId;
use crate::database::{Id, KEPT};
use crate::error::{AdvanceError, ReadError, ReleaseError, StorageError};
use crate::results::{Place, StoredResult, Weights};
use crate::vault::Vault;
use bastionai_ledger::{BudgetReceipt, KeptWeights, Principal, Refusal, RunId};
use redb::WriteTransaction;

/// A set of weights after a step.
#[derive(Debug)]
pub struct KeptSet {
    /// Steps completed.
    pub step: u64,
    /// The average of the iterates up to that step instead of the iterate.
    pub ema: bool,
    /// The weights.
    pub weights: Weights,
}

/// Which of a run's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightsAt {
    /// A kept step; 0: the last.
    pub step: u64,
    /// The average of the iterates up to that step instead of the iterate.
    pub ema: bool,
}

impl WeightsAt {
    /// The trained weights themselves.
    pub const LAST: Self = Self { step: 0, ema: false };
}

impl Vault {
    /// Writes kept sets; each is durable before the transaction that names it.
    pub(crate) fn write_kept(
        &self,
        run: RunId,
        kept: &[KeptSet],
    ) -> Result<(Vec<KeptWeights>, Vec<StoredResult<'_>>), AdvanceError> {
        let mut named = Vec::with_capacity(kept.len());
        let mut stored = Vec::with_capacity(kept.len());
        for set in kept {
            let weights_digest = set
                .weights
                .checked_digest()
                .map_err(|_| AdvanceError::WeightBytes)?;
            named.push(KeptWeights {
                step: set.step,
                ema: set.ema,
                weights_digest,
            });
            let place = Place::Kept {
                run,
                step: set.step,
                ema: set.ema,
            };
            stored.push(StoredResult::write(self, place, &set.weights)?);
        }
        Ok((named, stored))
    }

    /// Hands out a set of a committed run's weights. The release is in the ledger, durably, before they are returned; a
    /// repeated release of the same set to the same recipient adds no entry.
    ///
    /// # Errors
    /// [`ReleaseError`]: not entitled, not kept, or stored bytes that do not open.
    pub fn release_weights_at(
        &self,
        receipt: BudgetReceipt,
        at: WeightsAt,
        recipient: Principal,
        now_unix_ms: u64,
    ) -> Result<Weights, ReleaseError> {
        let run = receipt.run();
        let weights = self.entitled_weights_at(&receipt, at, recipient)?;
        let digest = weights.digest();
        let repeated = self.read(|ledger| {
            ledger
                .run(&run)
                .is_some_and(|run| run.was_released(&recipient, &digest))
        });
        if !repeated {
            self.transact(|ledger| ledger.propose_release_of(&receipt, digest, recipient, now_unix_ms))?;
        }
        Ok(weights)
    }

    /// A set of a committed run's weights for use in the server by one who may receive them (a warm start). They do not
    /// leave, so that no release is entered; what leaves later is another run's.
    ///
    /// # Errors
    /// As [`Vault::release_weights_at`].
    pub fn entitled_weights_at(
        &self,
        receipt: &BudgetReceipt,
        at: WeightsAt,
        recipient: Principal,
    ) -> Result<Weights, ReleaseError> {
        let run = receipt.run();
        if !self.read(|ledger| ledger.may_receive(&run, &recipient)) {
            return Err(Refusal::MayNotReceive {
                run,
                principal: recipient,
            }
            .into());
        }
        let steps = self.read(|ledger| ledger.run(&run).map_or(0, bastionai_ledger::Run::steps));
        let step = if at.step == 0 { steps } else { at.step };
        if step == steps && !at.ema {
            return Ok(self.read_weights(&run)?);
        }
        Ok(self.read_kept(run, step, at.ema)?)
    }

    fn read_kept(&self, run: RunId, step: u64, ema: bool) -> Result<Weights, ReadError> {
        let expected = self.read(|ledger| {
            let succeeded = ledger.run(&run).filter(|run| run.weights_digest().is_some());
            succeeded.and_then(|run| run.kept_digest(step, ema))
        });
        let expected = expected.ok_or(ReadError::NotKept { run, step, ema })?;
        self.read_place(&Place::Kept { run, step, ema }, expected)
    }

    /// Removes all kept sets of a run in a transaction.
    pub(crate) fn remove_kept(write: &WriteTransaction, run: &RunId) -> Result<(), StorageError> {
        let run: Id = *run.as_bytes();
        let mut table = write.open_table(KEPT).map_err(StorageError::database)?;
        table
            .retain_in((run, 0)..=(run, u64::MAX), |_, _| false)
            .map_err(StorageError::database)
    }

    /// The objects of a run's kept sets. One whose record does not open is lost with its key: swept.
    pub(crate) fn kept_objects(&self, run: &RunId) -> Result<Vec<ObjectId>, StorageError> {
        let places = self.inner.store.kept(run.as_bytes())?;
        let places = places.into_iter().map(|key| Place::from_key(*run, key));
        Ok(places.filter_map(|place| self.place_object(&place)).collect())
    }
}
