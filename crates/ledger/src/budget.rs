//! Proofs that a budget step has been taken: each can be had only from a ledger where it has.

use crate::entry::{Charge, Outcome};
use crate::id::{Digest32, RunId};
use crate::state::{Ledger, Run, RunStatus};

/// The full cost of a run is set aside: it may start.
#[derive(Debug)]
#[must_use = "a reservation is started or refunded"]
pub struct BudgetReservation {
    run: RunId,
    charges: Vec<Charge>,
}

/// A run has started: it may advance and must be committed.
#[derive(Debug)]
#[must_use = "a started run is committed"]
pub struct StartedRun {
    run: RunId,
    steps: u64,
}

/// A run has been charged: what it yielded may be released to those entitled.
#[derive(Debug)]
pub struct BudgetReceipt {
    run: RunId,
    outcome: Outcome,
    weights_digest: Option<Digest32>,
}

impl Ledger {
    /// The proof that this run is reserved and not yet started.
    pub fn reservation(&self, run: &RunId) -> Option<BudgetReservation> {
        let run = self.run(run).filter(|run| run.status() == RunStatus::Reserved)?;
        Some(BudgetReservation {
            run: run.id(),
            charges: run.charges().to_vec(),
        })
    }

    /// The proof that this run has started and is not yet committed.
    pub fn started(&self, run: &RunId) -> Option<StartedRun> {
        let run = self.run(run).filter(|run| run.status() == RunStatus::Started)?;
        Some(StartedRun {
            run: run.id(),
            steps: run.steps(),
        })
    }

    /// The proof that this run is committed.
    pub fn budget_receipt(&self, run: &RunId) -> Option<BudgetReceipt> {
        let run = self.run(run)?;
        let outcome = committed_outcome(run)?;
        Some(BudgetReceipt {
            run: run.id(),
            outcome,
            weights_digest: run.weights_digest(),
        })
    }
}

impl BudgetReservation {
    /// The run.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// What is set aside.
    pub fn charges(&self) -> &[Charge] {
        &self.charges
    }
}

impl StartedRun {
    /// The run.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// Steps planned.
    pub fn steps(&self) -> u64 {
        self.steps
    }
}

impl BudgetReceipt {
    /// The run.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// How it ended.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Digest of its weights, if it succeeded.
    pub fn weights_digest(&self) -> Option<Digest32> {
        self.weights_digest
    }
}

fn committed_outcome(run: &Run) -> Option<Outcome> {
    match run.status() {
        RunStatus::Committed(outcome) => Some(outcome),
        RunStatus::Reserved | RunStatus::Started | RunStatus::Refunded(_) => None,
    }
}
