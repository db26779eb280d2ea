//! What was priced and can be started: a training run or an evaluation. Here is what the queue, the ledger and
//! the supervisor need of either.

use crate::charges;
use crate::evaluation::PricedEvaluation;
use crate::price::PricedRun;
use crate::warm_start::WeightsSource;
use bastionai_graph::typed::TypedGraph;
use bastionai_ledger::{
    BootId, BudgetReservation, DatasetId, Digest32, Principal, RunId, RunKind, RunReserved,
};
use bastionai_vault::{RunOrder, TransactError, Vault};

/// A quote that was given.
#[expect(
    clippy::large_enum_variant,
    reason = "there are a few, and each has a graph besides"
)]
pub(crate) enum Priced {
    Training(PricedRun),
    Evaluation(PricedEvaluation),
}

impl Priced {
    pub(crate) fn kind(&self) -> RunKind {
        match self {
            Self::Training(_) => RunKind::Training,
            Self::Evaluation(_) => RunKind::Evaluation,
        }
    }

    pub(crate) fn run_digest(&self) -> Digest32 {
        match self {
            Self::Training(run) => run.run_digest,
            Self::Evaluation(evaluation) => evaluation.run_digest,
        }
    }

    pub(crate) fn scientist(&self) -> Principal {
        match self {
            Self::Training(run) => run.scientist,
            Self::Evaluation(evaluation) => evaluation.scientist,
        }
    }

    pub(crate) fn expires_unix_ms(&self) -> u64 {
        match self {
            Self::Training(run) => run.expires_unix_ms,
            Self::Evaluation(evaluation) => evaluation.expires_unix_ms,
        }
    }

    /// Digest of the archive.
    pub(crate) fn model(&self) -> Digest32 {
        match self {
            Self::Training(run) => run.request.model,
            Self::Evaluation(evaluation) => evaluation.request.model,
        }
    }

    /// Where the weights come from, if not from the archive.
    pub(crate) fn weights(&self) -> Option<WeightsSource> {
        match self {
            Self::Training(run) => run.request.initial_weights,
            Self::Evaluation(evaluation) => evaluation.request.weights,
        }
    }

    pub(crate) fn datasets(&self) -> &[DatasetId] {
        match self {
            Self::Training(run) => &run.request.datasets,
            Self::Evaluation(evaluation) => &evaluation.request.datasets,
        }
    }

    /// Weights kept besides the last ones.
    pub(crate) fn kept_bytes(&self) -> u64 {
        match self {
            Self::Training(run) => run.kept_bytes,
            Self::Evaluation(_) => 0,
        }
    }

    pub(crate) fn graph(&self) -> &TypedGraph {
        match self {
            Self::Training(run) => &run.graph,
            Self::Evaluation(evaluation) => &evaluation.graph,
        }
    }

    fn reservation(&self, run: RunId, boot: BootId) -> RunReserved {
        match self {
            Self::Training(priced) => priced.reservation(run, boot),
            Self::Evaluation(evaluation) => evaluation.reservation(run, boot),
        }
    }

    /// Sets the full cost aside, durably, with all that the run needs.
    pub(crate) fn reserve(
        &self,
        vault: &Vault,
        run: RunId,
        boot: BootId,
        order: RunOrder<'_>,
        now_unix_ms: u64,
    ) -> Result<BudgetReservation, TransactError> {
        let reserved = self.reservation(run, boot);
        let renyi = charges::renyi_charges(match self {
            Self::Training(run) => &run.charges,
            Self::Evaluation(evaluation) => &evaluation.charges,
        });
        vault.reserve_priced(self.kind(), reserved, renyi, order, now_unix_ms)
    }
}
