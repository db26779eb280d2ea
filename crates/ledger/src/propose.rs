//! Proposals: an event is checked against the state and becomes an entry, which its caller makes durable
//! and then applies. Proposing changes nothing, so a crash in between loses nothing that took effect.

use crate::budget::{BudgetReceipt, BudgetReservation, StartedRun};
use crate::entry::{
    Body, BootStarted, DatasetCreated, DatasetRemoved, DatasetWithdrawn, Entry, Outcome, RefundReason,
    Released, RenyiCharge, RunAdvanced, RunCommitted, RunRefunded, RunReserved, RunReservedRenyi, RunResumed,
    RunStarted, RunStopped, RunSuspended, RunUnsuspended,
};
use crate::id::{DatasetId, Digest32, Principal, RunId};
use crate::policy::RunKind;
use crate::refusal::Refusal;
use crate::state::{Ledger, Orphan};

/// An entry that the ledger it was proposed to would accept now.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "a proposal takes effect only once it is durable and applied"]
pub struct Proposal(Entry);

impl Proposal {
    /// The entry to make durable.
    pub fn entry(&self) -> &Entry {
        &self.0
    }

    /// The entry, to be applied.
    pub fn into_entry(self) -> Entry {
        self.0
    }
}

impl Ledger {
    /// Proposes any event. The methods below are the ways that carry proofs with them.
    pub(crate) fn propose(&self, body: Body, now_unix_ms: u64) -> Result<Proposal, Refusal> {
        let time_unix_ms = now_unix_ms.max(self.last_time_unix_ms());
        self.check(&body, time_unix_ms)?;
        let head = self.head();
        Ok(Proposal(Entry::new(
            head.sequence,
            head.entry_hash,
            time_unix_ms,
            body,
        )))
    }

    /// A server start.
    ///
    /// # Errors
    /// [`Refusal::IdTaken`] when the boot id is used.
    pub fn propose_boot(&self, boot: BootStarted, now_unix_ms: u64) -> Result<Proposal, Refusal> {
        self.propose(Body::BootStarted(boot), now_unix_ms)
    }

    /// Settles a run that an earlier boot left open: refund if it never started, else commit as failed.
    ///
    /// # Errors
    /// [`Refusal`] when the run is not such a run.
    pub fn propose_settlement(&self, orphan: Orphan, now_unix_ms: u64) -> Result<Proposal, Refusal> {
        if !self.orphans().contains(&orphan) {
            return Err(Refusal::NoRun { run: orphan.run });
        }
        let run = orphan.run;
        let body = if orphan.started {
            Body::RunCommitted(RunCommitted {
                run,
                outcome: Outcome::Failed,
                weights_digest: None,
            })
        } else {
            Body::RunRefunded(RunRefunded {
                run,
                reason: RefundReason::ServerStopped,
            })
        };
        self.propose(body, now_unix_ms)
    }

    /// Takes over a run that an earlier boot left open: the current boot goes on with it.
    ///
    /// # Errors
    /// [`Refusal`] when the run is not such a run, or a dataset of it is withdrawn or expired: settle it then.
    pub fn propose_resumption(&self, orphan: Orphan, now_unix_ms: u64) -> Result<Proposal, Refusal> {
        let boot = self.current_boot().ok_or(Refusal::OtherBoot)?.boot;
        let run = orphan.run;
        self.propose(Body::RunResumed(RunResumed { run, boot }), now_unix_ms)
    }

    /// An owner of one of its datasets stops a run for the time being.
    ///
    /// # Errors
    /// [`Refusal::NotLender`], [`Refusal::Suspension`], [`Refusal::RunStatus`] once it has ended.
    pub fn propose_suspension(
        &self,
        run: RunId,
        by: Principal,
        now_unix_ms: u64,
    ) -> Result<Proposal, Refusal> {
        self.propose(Body::RunSuspended(RunSuspended { run, by }), now_unix_ms)
    }

    /// The owner who suspended a run lets it go on.
    ///
    /// # Errors
    /// [`Refusal::Suspension`] to anyone else; [`Refusal::RunStatus`] once it has ended; [`Refusal::GetsNowhere`] when it
    /// would start on its records once too often: it is to be ended then.
    pub fn propose_unsuspension(
        &self,
        run: RunId,
        by: Principal,
        now_unix_ms: u64,
    ) -> Result<Proposal, Refusal> {
        let proposal = self.propose(Body::RunUnsuspended(RunUnsuspended { run, by }), now_unix_ms)?;
        // Asked of new entries only: chains of earlier releases may hold more of them.
        self.check_idle_resumptions_of(run)?;
        Ok(proposal)
    }

    /// A complete upload.
    ///
    /// # Errors
    /// [`Refusal`]: name taken, policy without sense, and so on.
    pub fn propose_dataset(&self, created: DatasetCreated, now_unix_ms: u64) -> Result<Proposal, Refusal> {
        self.propose(Body::DatasetCreated(created), now_unix_ms)
    }

    /// A withdrawal by the owner.
    ///
    /// # Errors
    /// [`Refusal::NotOwner`], [`Refusal::Withdrawn`], [`Refusal::NoDataset`].
    pub fn propose_withdrawal(
        &self,
        dataset: DatasetId,
        by: Principal,
        now_unix_ms: u64,
    ) -> Result<Proposal, Refusal> {
        self.propose(
            Body::DatasetWithdrawn(DatasetWithdrawn { dataset, by }),
            now_unix_ms,
        )
    }

    /// A removal by the owner: a withdrawal, if there was none, and the end of the dataset's records. Its
    /// account stays.
    ///
    /// # Errors
    /// [`Refusal::NotOwner`], [`Refusal::NoDataset`], [`Refusal::Removed`]; [`Refusal::InUse`] while a run that
    /// is not over uses it, for that run has a right to its records (rule D7).
    pub fn propose_removal(
        &self,
        dataset: DatasetId,
        by: Principal,
        now_unix_ms: u64,
    ) -> Result<Proposal, Refusal> {
        self.propose(Body::DatasetRemoved(DatasetRemoved { dataset, by }), now_unix_ms)
    }

    /// Reserves the full cost of a run on all its datasets, or on none.
    ///
    /// # Errors
    /// [`Refusal`]: policy, distinctness, budget.
    pub fn propose_reservation(&self, reserved: RunReserved, now_unix_ms: u64) -> Result<Proposal, Refusal> {
        self.propose(Body::RunReserved(reserved), now_unix_ms)
    }

    /// Reserves the full cost of an evaluation on all its datasets, or on none.
    ///
    /// # Errors
    /// [`Refusal`]: policy, distinctness, budget; [`Refusal::EvaluationSteps`] unless it has one step.
    pub fn propose_evaluation(&self, reserved: RunReserved, now_unix_ms: u64) -> Result<Proposal, Refusal> {
        self.propose(Body::EvaluationReserved(reserved), now_unix_ms)
    }

    /// Reserves the full cost of a run of either kind, in the currency of each of its datasets: `renyi` has a charge for
    /// each that composes by Rényi divergences, in the order of the charges.
    ///
    /// # Errors
    /// As [`Ledger::propose_reservation`] and [`Ledger::propose_evaluation`]; [`Refusal::RenyiCharges`],
    /// [`Refusal::RenyiExceeded`].
    pub fn propose_priced(
        &self,
        kind: RunKind,
        reserved: RunReserved,
        renyi: Vec<RenyiCharge>,
        now_unix_ms: u64,
    ) -> Result<Proposal, Refusal> {
        match kind {
            _ if !renyi.is_empty() => {
                let body = RunReservedRenyi {
                    kind,
                    reserved,
                    renyi,
                };
                self.propose(Body::RunReservedRenyi(body), now_unix_ms)
            }
            RunKind::Training => self.propose_reservation(reserved, now_unix_ms),
            RunKind::Evaluation => self.propose_evaluation(reserved, now_unix_ms),
        }
    }

    /// Starts a reserved run: durable before any record reaches the trainer.
    ///
    /// # Errors
    /// [`Refusal::RunStatus`] when it is no longer only reserved; [`Refusal::Withdrawn`] or [`Refusal::Expired`]
    /// when a dataset is no longer offered, [`Refusal::TooManyFailures`] when others have failed on it since: the
    /// reservation is to be refunded then.
    pub fn propose_start(
        &self,
        reservation: &BudgetReservation,
        now_unix_ms: u64,
    ) -> Result<Proposal, Refusal> {
        self.check_failures_of(reservation.run())?;
        self.propose(
            Body::RunStarted(RunStarted {
                run: reservation.run(),
            }),
            now_unix_ms,
        )
    }

    /// Allows progress through `released_step` to leave (rule D1).
    ///
    /// # Errors
    /// [`Refusal::ReleasedStep`] unless the step is above the last one and within the plan.
    pub fn propose_advance(
        &self,
        run: &StartedRun,
        released_step: u64,
        now_unix_ms: u64,
    ) -> Result<Proposal, Refusal> {
        self.propose(
            Body::RunAdvanced(RunAdvanced {
                run: run.run(),
                released_step,
            }),
            now_unix_ms,
        )
    }

    /// Ends a started run. `weights_digest` goes with [`Outcome::Succeeded`] and with nothing else.
    ///
    /// # Errors
    /// [`Refusal::Outcome`], [`Refusal::RunStatus`].
    pub fn propose_commit(
        &self,
        run: &StartedRun,
        outcome: Outcome,
        weights_digest: Option<Digest32>,
        now_unix_ms: u64,
    ) -> Result<Proposal, Refusal> {
        self.propose(
            Body::RunCommitted(RunCommitted {
                run: run.run(),
                outcome,
                weights_digest,
            }),
            now_unix_ms,
        )
    }

    /// Ends a run that was cancelled after it had started, at most `started_steps` of its steps being started, none of whose
    /// results exists any more beyond these. Accounts of Rényi divergences are charged these steps, others all (rule D5).
    ///
    /// # Errors
    /// As [`Ledger::propose_commit`]; [`Refusal::Outcome`] for fewer steps than were released.
    pub fn propose_stop(
        &self,
        run: &StartedRun,
        started_steps: u64,
        now_unix_ms: u64,
    ) -> Result<Proposal, Refusal> {
        let known = self.existing_run(run.run())?;
        if known.renyi_charges().is_empty() || started_steps >= run.steps() {
            return self.propose_commit(run, Outcome::Cancelled, None, now_unix_ms);
        }
        let stopped = RunStopped {
            run: run.run(),
            started_steps: started_steps.max(1),
        };
        self.propose(Body::RunStopped(stopped), now_unix_ms)
    }

    /// Frees the reserve of a run that never started.
    ///
    /// # Errors
    /// [`Refusal::RunStatus`] once it has started.
    pub fn propose_refund(
        &self,
        reservation: &BudgetReservation,
        reason: RefundReason,
        now_unix_ms: u64,
    ) -> Result<Proposal, Refusal> {
        self.propose(
            Body::RunRefunded(RunRefunded {
                run: reservation.run(),
                reason,
            }),
            now_unix_ms,
        )
    }

    /// Hands the weights of a committed run to `recipient`: the receipt is used up.
    ///
    /// # Errors
    /// [`Refusal::MayNotReceive`], [`Refusal::RunStatus`] unless the run succeeded.
    pub fn propose_release(
        &self,
        receipt: BudgetReceipt,
        recipient: Principal,
        now_unix_ms: u64,
    ) -> Result<Proposal, Refusal> {
        let run = receipt.run();
        let weights_digest = receipt.weights_digest().ok_or(Refusal::OtherWeights { run })?;
        self.propose(
            Body::Released(Released {
                run,
                recipient,
                weights_digest,
            }),
            now_unix_ms,
        )
    }
}
