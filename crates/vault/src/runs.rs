//! A run's steps, each durable before it takes effect:
//! reserve → start → advance … → commit → release, or reserve → refund; suspend and unsuspend in between.

use crate::database::{Id, RELEASED};
use crate::error::{AdvanceError, CommitError, ReleaseError, StorageError, TransactError};
use crate::kept::{KeptSet, WeightsAt};
use crate::open_runs::{Checkpoint, RunOrder, StoredState};
use crate::results::{Place, StoredResult, Weights};
use crate::vault::Vault;
use bastionai_ledger::{
    BudgetReceipt, BudgetReservation, Ledger, Outcome, Principal, Proposal, RefundReason, Refusal,
    RenyiCharge, RunId, RunKind, RunReserved, StartedRun,
};

/// One released value: a step that is complete, with its noisy loss, if the run releases any.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReleasedValue {
    /// Steps completed.
    pub step: u64,
    /// Noisy clipped loss sum over the expected batch; paid for.
    pub noisy_loss: Option<f64>,
}

/// How a started run ended.
#[derive(Debug)]
pub enum RunEnd {
    /// All steps taken, with its weights.
    Succeeded(Weights),
    /// Anything went wrong. Never says what (rule G4).
    Failed,
    /// Stopped on request; the caller has destroyed the weights (rule D5).
    Cancelled,
    /// As `Cancelled`, and no more than these steps were started; the caller has destroyed what came of any other.
    Stopped {
        /// Steps.
        started_steps: u64,
    },
}

impl Vault {
    /// Sets the full cost of a run aside on all its datasets, or on none; what it needs to go on in a later boot is
    /// durable with it.
    ///
    /// # Errors
    /// [`TransactError::Refused`] with the dataset and the reason.
    pub fn reserve_run(
        &self,
        reserved: RunReserved,
        order: RunOrder<'_>,
        now_unix_ms: u64,
    ) -> Result<BudgetReservation, TransactError> {
        self.reserve(&reserved, order, |ledger| {
            ledger.propose_reservation(reserved.clone(), now_unix_ms)
        })
    }

    fn reserve(
        &self,
        reserved: &RunReserved,
        order: RunOrder<'_>,
        propose: impl Fn(&Ledger) -> Result<Proposal, Refusal>,
    ) -> Result<BudgetReservation, TransactError> {
        let run = reserved.run;
        // Ask first: a reservation that would be refused should not write a model.
        self.read(|ledger| propose(ledger).map(drop))?;
        let mut stored = StoredState::order(self, reserved, &order)?;
        self.transact_with(propose, |write, _| stored.enter(write))?;
        self.read(|ledger| ledger.reservation(&run))
            .ok_or(TransactError::Refused(Refusal::NoRun { run }))
    }

    /// As [`Vault::reserve_run`], for an evaluation.
    ///
    /// # Errors
    /// As there.
    pub fn reserve_evaluation(
        &self,
        reserved: RunReserved,
        order: RunOrder<'_>,
        now_unix_ms: u64,
    ) -> Result<BudgetReservation, TransactError> {
        self.reserve(&reserved, order, |ledger| {
            ledger.propose_evaluation(reserved.clone(), now_unix_ms)
        })
    }

    /// As [`Vault::reserve_run`] or [`Vault::reserve_evaluation`]; `renyi` holds the charges of those of its datasets that
    /// compose by Rényi divergences, in the order of all charges.
    ///
    /// # Errors
    /// As there.
    pub fn reserve_priced(
        &self,
        kind: RunKind,
        reserved: RunReserved,
        renyi: Vec<RenyiCharge>,
        order: RunOrder<'_>,
        now_unix_ms: u64,
    ) -> Result<BudgetReservation, TransactError> {
        self.reserve(&reserved, order, |ledger| {
            ledger.propose_priced(kind, reserved.clone(), renyi.clone(), now_unix_ms)
        })
    }

    /// Starts a run: call it before any record reaches the trainer. From here on the reserve stays charged.
    ///
    /// # Errors
    /// [`TransactError`]; a refused start leaves the run reserved: [`Ledger::reservation`] finds it again.
    pub fn start_run(
        &self,
        reservation: BudgetReservation,
        now_unix_ms: u64,
    ) -> Result<StartedRun, TransactError> {
        let run = reservation.run();
        self.transact(|ledger| ledger.propose_start(&reservation, now_unix_ms))?;
        self.read(|ledger| ledger.started(&run))
            .ok_or(TransactError::Refused(Refusal::NoRun { run }))
    }

    /// Makes progress through the checkpoint's step durable: the state, then values and ledger entry in the transaction
    /// that names it. Only when this returns may any of it leave (rule D1). The checkpoint before is deleted.
    ///
    /// # Errors
    /// [`AdvanceError::Steps`] unless the values' steps rise and end at or below the checkpoint's;
    /// [`AdvanceError::Transact`], also when a step was released already.
    pub fn advance_run(
        &self,
        run: &StartedRun,
        checkpoint: Checkpoint<'_>,
        values: &[ReleasedValue],
        now_unix_ms: u64,
    ) -> Result<(), AdvanceError> {
        self.advance_run_keeping(run, checkpoint, values, &[], now_unix_ms)
    }

    /// As [`Vault::advance_run`], with the weights kept since the checkpoint before: durable in the same transaction, and
    /// released with the run ([`Vault::release_weights_at`]) or destroyed with it.
    ///
    /// # Errors
    /// As there; [`AdvanceError::WeightBytes`]; a refusal unless the kept sets rise within the steps advanced.
    pub fn advance_run_keeping(
        &self,
        run: &StartedRun,
        checkpoint: Checkpoint<'_>,
        values: &[ReleasedValue],
        kept: &[KeptSet],
        now_unix_ms: u64,
    ) -> Result<(), AdvanceError> {
        let released_step = checkpoint.step;
        let rising = values.windows(2).all(|pair| pair[0].step < pair[1].step);
        if !rising || values.last().is_some_and(|value| value.step > released_step) {
            return Err(AdvanceError::Steps);
        }
        // Ask first, as in a reservation; the answer that counts is the one under the writer's lock.
        self.read(|ledger| ledger.propose_advance(run, released_step, now_unix_ms).map(drop))?;
        let before = self.checkpoint_object(&run.run())?;
        let mut stored = StoredState::checkpoint(self, &run.run(), &checkpoint)?;
        let (named, mut stored_kept) = self.write_kept(run.run(), kept)?;
        let id = *run.run().as_bytes();
        let sealed = values
            .iter()
            .map(|value| self.seal_value(&id, value))
            .collect::<Result<Vec<_>, _>>()?;
        self.transact_with(
            |ledger| {
                // Under the writer's lock: no step ever has two released values (rule D1).
                check_unreleased(ledger, run, values)?;
                ledger.propose_advance_keeping(run, released_step, named, now_unix_ms)
            },
            |write, _| {
                let mut table = write.open_table(RELEASED).map_err(StorageError::database)?;
                for (step, value) in &sealed {
                    table
                        .insert((id, *step), value.as_slice())
                        .map_err(StorageError::database)?;
                }
                stored_kept.iter_mut().try_for_each(|kept| kept.enter(write))?;
                stored.enter(write)
            },
        )?;
        before.into_iter().for_each(|object| self.delete_object(object));
        Ok(())
    }

    /// An owner of one of its datasets stops a run for the time being: from here on nothing of it is released.
    ///
    /// # Errors
    /// [`TransactError::Refused`] to anyone else, when it is suspended by them already, or has ended.
    pub fn suspend_run(&self, run: RunId, by: Principal, now_unix_ms: u64) -> Result<(), TransactError> {
        self.transact(|ledger| ledger.propose_suspension(run, by, now_unix_ms))?;
        Ok(())
    }

    /// The owner who suspended a run lifts that.
    ///
    /// # Errors
    /// [`TransactError::Refused`] to anyone else, or when it has ended.
    pub fn unsuspend_run(&self, run: RunId, by: Principal, now_unix_ms: u64) -> Result<(), TransactError> {
        self.transact(|ledger| ledger.propose_unsuspension(run, by, now_unix_ms))?;
        Ok(())
    }

    /// Ends a started run: weights are stored and durable before the entry that names them.
    ///
    /// # Errors
    /// [`CommitError`]; the run is still started then: [`Ledger::started`] finds it again.
    pub fn commit_run(
        &self,
        run: StartedRun,
        end: RunEnd,
        now_unix_ms: u64,
    ) -> Result<BudgetReceipt, CommitError> {
        let id = run.run();
        match end {
            RunEnd::Succeeded(weights) => self.commit_success(&run, &weights, now_unix_ms)?,
            RunEnd::Failed => self.end_without_weights(&id, |ledger| {
                ledger.propose_commit(&run, Outcome::Failed, None, now_unix_ms)
            })?,
            RunEnd::Cancelled => self.end_without_weights(&id, |ledger| {
                ledger.propose_commit(&run, Outcome::Cancelled, None, now_unix_ms)
            })?,
            // The reserve stays until this is durable.
            RunEnd::Stopped { started_steps } => self.end_without_weights(&id, |ledger| {
                ledger.propose_stop(&run, started_steps, now_unix_ms)
            })?,
        }
        self.read(|ledger| ledger.budget_receipt(&id))
            .ok_or(Refusal::NoRun { run: id }.into())
    }

    fn end_without_weights(
        &self,
        run: &RunId,
        propose: impl FnOnce(&Ledger) -> Result<Proposal, Refusal>,
    ) -> Result<(), CommitError> {
        self.end_run(run, propose)?;
        Ok(())
    }

    fn commit_success(
        &self,
        run: &StartedRun,
        weights: &Weights,
        now_unix_ms: u64,
    ) -> Result<(), CommitError> {
        let digest = weights.checked_digest()?;
        let propose =
            |ledger: &Ledger| ledger.propose_commit(run, Outcome::Succeeded, Some(digest), now_unix_ms);
        // Ask first: a commit that would be refused should not write gigabytes.
        self.read(|ledger| propose(ledger).map(drop))?;
        let mut stored = StoredResult::write(self, Place::Last(run.run()), weights)?;
        self.end_run_with(&run.run(), propose, |write| stored.enter(write))?;
        Ok(())
    }

    /// Frees the reserve of a run that never started.
    ///
    /// # Errors
    /// [`TransactError`].
    pub fn refund_run(
        &self,
        reservation: BudgetReservation,
        reason: RefundReason,
        now_unix_ms: u64,
    ) -> Result<(), TransactError> {
        self.end_run(&reservation.run(), |ledger| {
            ledger.propose_refund(&reservation, reason, now_unix_ms)
        })?;
        Ok(())
    }

    /// Hands out the weights of a committed run. The release is in the ledger, durably, before they are
    /// returned; a repeated release to the same recipient adds no entry.
    ///
    /// # Errors
    /// [`ReleaseError`]: not entitled, no weights, or stored bytes that do not open.
    pub fn release_weights(
        &self,
        receipt: BudgetReceipt,
        recipient: Principal,
        now_unix_ms: u64,
    ) -> Result<Weights, ReleaseError> {
        self.release_weights_at(receipt, WeightsAt::LAST, recipient, now_unix_ms)
    }

    /// Values released so far, from a step on, for watchers that join late: they are stored, never recomputed.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn released_values(&self, run: &RunId, from_step: u64) -> Result<Vec<ReleasedValue>, StorageError> {
        // Only what memory calls released: a durable entry whose transaction we saw fail has not taken effect.
        let released = self.read(|ledger| ledger.run(run).map_or(0, |run| run.released_step()));
        let stored = self.inner.store.released(run.as_bytes(), from_step)?;
        stored
            .into_iter()
            .filter(|(step, _)| *step <= released)
            .map(|(step, sealed)| self.open_value(run, step, &sealed))
            .collect()
    }

    fn seal_value(&self, run: &Id, value: &ReleasedValue) -> Result<(u64, Vec<u8>), StorageError> {
        let mut plain = [0; 9];
        plain[0] = u8::from(value.noisy_loss.is_some());
        plain[1..].copy_from_slice(&value.noisy_loss.unwrap_or(0.0).to_le_bytes());
        Ok((
            value.step,
            self.inner
                .store
                .records
                .seal(&value_aad(run, value.step), &plain)?,
        ))
    }

    fn open_value(&self, run: &RunId, step: u64, sealed: &[u8]) -> Result<ReleasedValue, StorageError> {
        let what = "a released value";
        let plain = self
            .inner
            .store
            .records
            .open(&value_aad(run.as_bytes(), step), sealed, what)?;
        let (&[flag], loss) = plain
            .split_first_chunk::<1>()
            .ok_or(StorageError::Sealed { what })?;
        let loss = f64::from_le_bytes(loss.try_into().map_err(|_| StorageError::Sealed { what })?);
        Ok(ReleasedValue {
            step,
            noisy_loss: (flag == 1).then_some(loss),
        })
    }
}

fn check_unreleased(ledger: &Ledger, run: &StartedRun, values: &[ReleasedValue]) -> Result<(), Refusal> {
    let (run, steps) = (run.run(), run.steps());
    let released = ledger.run(&run).map_or(0, |run| run.released_step());
    match values.first() {
        Some(value) if value.step <= released => Err(Refusal::ReleasedStep {
            run,
            to: value.step,
            released,
            steps,
        }),
        _ => Ok(()),
    }
}

fn value_aad(run: &Id, step: u64) -> Vec<u8> {
    [VALUE_LABEL, run, &step.to_le_bytes()].concat()
}

const VALUE_LABEL: &[u8] = b"released-value\0";
