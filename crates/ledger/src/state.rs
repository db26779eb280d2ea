//! The state a chain of entries adds up to: datasets with budgets, runs, the current boot.

use crate::account::{Budget, RenyiAccount, cost_of_event};
use crate::amount::Amount;
use crate::chain::{Head, Link};
use crate::entry::{
    BootStarted, Charge, DatasetCreated, Entry, KeptWeights, Outcome, RefundReason, RenyiCharge, RunReserved,
};
use crate::id::{BootId, DatasetId, Digest32, EntryHash, LedgerId, Principal, RunId};
use crate::policy::{DatasetKind, Policy, RunKind};
use bastionai_privacy::filter::renyi::RenyiCost;
use std::collections::{BTreeMap, BTreeSet};

/// A ledger in memory: every entry, and what they add up to.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub(crate) id: LedgerId,
    pub(crate) entries: Vec<Entry>,
    pub(crate) boots: Vec<BootStarted>,
    pub(crate) datasets: BTreeMap<DatasetId, Dataset>,
    pub(crate) names: BTreeMap<String, DatasetId>,
    pub(crate) runs: BTreeMap<RunId, Run>,
    pub(crate) run_order: Vec<RunId>,
}

/// A dataset as the ledger knows it.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub(crate) created: DatasetCreated,
    pub(crate) contract_digest: Digest32,
    pub(crate) policy_digest: Digest32,
    pub(crate) created_unix_ms: u64,
    pub(crate) withdrawn: bool,
    pub(crate) removed: bool,
    pub(crate) committed: Amount,
    pub(crate) reserved: Amount,
    /// Where the policy composes by Rényi divergences; the sums above are then shown, and decide nothing.
    pub(crate) renyi: Option<RenyiAccount>,
    pub(crate) failed_runs: u32,
    /// Times of reservations not refunded, by run: rule A13 counts the last day's.
    pub(crate) starts: BTreeMap<RunId, u64>,
}

/// A run as the ledger knows it.
#[derive(Clone, Debug)]
pub struct Run {
    pub(crate) kind: RunKind,
    pub(crate) reserved: RunReserved,
    pub(crate) renyi: Vec<RenyiCharge>,
    pub(crate) reserved_unix_ms: u64,
    pub(crate) status: RunStatus,
    pub(crate) released_step: u64,
    /// Of a run that was stopped, where it is known.
    pub(crate) started_steps: Option<u64>,
    pub(crate) ended_unix_ms: Option<u64>,
    pub(crate) weights_digest: Option<Digest32>,
    pub(crate) released_to: Vec<Principal>,
    /// The boot that has it in hand: the one that reserved it, or the last that resumed it.
    pub(crate) boot: BootId,
    pub(crate) resumed_by: Vec<BootId>,
    /// Times a boot or an owner let it go on since it last advanced.
    pub(crate) idle_resumptions: u32,
    /// Owners whose suspension stands.
    pub(crate) suspended_by: BTreeSet<Principal>,
    pub(crate) releases: Vec<(Principal, Digest32)>,
    pub(crate) kept: Vec<KeptWeights>,
}

/// Most times a run goes on without advancing in between; then it ends.
pub const MAX_IDLE_RESUMPTIONS: u32 = 32;

/// Where a run is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunStatus {
    /// Paid for, nothing touched yet.
    Reserved,
    /// Records may have reached the trainer.
    Started,
    /// Ended after it started: charged, in full or for what was started ([`Run::started_steps`]).
    Committed(Outcome),
    /// Ended before it started: nothing charged.
    Refunded(RefundReason),
}

/// A run that an earlier boot left open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The run.
    pub run: RunId,
    /// Whether it had started: then settling it is committing it as failed, else refunding it.
    pub started: bool,
}

impl Ledger {
    /// The ledger's id.
    pub fn id(&self) -> LedgerId {
        self.id
    }

    /// The chain's end.
    pub fn head(&self) -> Head {
        let entry_hash = self.entries.last().map_or(EntryHash::NONE, Entry::hash);
        Head {
            ledger: self.id,
            sequence: self.entries.len() as u64,
            entry_hash,
        }
    }

    /// Every entry in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Time of the last entry: the ledger's clock never falls behind it (rule A8).
    pub fn last_time_unix_ms(&self) -> u64 {
        self.entries.last().map_or(0, Entry::time_unix_ms)
    }

    /// The links after the first `known_sequence` entries: the proof for
    /// [`verify_extension`](crate::chain::verify_extension). `None` when there are not that many entries.
    pub fn extension(&self, known_sequence: u64) -> Option<Vec<Link>> {
        let entries = self.entries.get(usize::try_from(known_sequence).ok()?..)?;
        Some(
            entries
                .iter()
                .map(|entry| Link {
                    time_unix_ms: entry.time_unix_ms(),
                    body_digest: entry.body_digest(),
                })
                .collect(),
        )
    }

    /// The current boot, once one has started.
    pub fn current_boot(&self) -> Option<&BootStarted> {
        self.boots.last()
    }

    /// Every boot in order.
    pub fn boots(&self) -> &[BootStarted] {
        &self.boots
    }

    /// A dataset by id.
    pub fn dataset(&self, id: &DatasetId) -> Option<&Dataset> {
        self.datasets.get(id)
    }

    /// A dataset by name.
    pub fn dataset_named(&self, name: &str) -> Option<&Dataset> {
        self.datasets.get(self.names.get(name)?)
    }

    /// Every dataset, by id.
    pub fn datasets(&self) -> impl Iterator<Item = &Dataset> {
        self.datasets.values()
    }

    /// A run by id.
    pub fn run(&self, id: &RunId) -> Option<&Run> {
        self.runs.get(id)
    }

    /// Every run, oldest first.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.run_order.iter().filter_map(|id| self.runs.get(id))
    }

    /// The oldest run that is not over and uses this dataset.
    pub fn open_run_on(&self, dataset: &DatasetId) -> Option<&Run> {
        self.runs()
            .filter(|run| run.is_open())
            .find(|run| run.charges().iter().any(|charge| charge.dataset == *dataset))
    }

    /// Whether every owner's policy lets `principal` have the weights of this run.
    pub fn may_receive(&self, run: &RunId, principal: &Principal) -> bool {
        let Some(run) = self.runs.get(run) else {
            return false;
        };
        run.reserved.charges.iter().all(|charge| {
            self.datasets.get(&charge.dataset).is_some_and(|dataset| {
                dataset
                    .policy()
                    .allows_release_to(principal, &run.reserved.scientist)
            })
        })
    }

    /// Whether a run concerns a principal: its scientist, and the owners of its datasets.
    pub fn concerns(&self, run: &RunId, principal: &Principal) -> bool {
        self.runs
            .get(run)
            .is_some_and(|run| run.scientist() == *principal || self.lends(run, principal))
    }

    /// Whether a principal owns one of a run's datasets.
    pub fn lends(&self, run: &Run, principal: &Principal) -> bool {
        run.charges().iter().any(|charge| {
            self.datasets
                .get(&charge.dataset)
                .is_some_and(|dataset| dataset.owner() == *principal)
        })
    }

    /// Runs still open that the current boot has not in hand, oldest first. Before [`Body::BootStarted`]
    /// of a new boot these are the runs of the boots before that one.
    ///
    /// [`Body::BootStarted`]: crate::entry::Body::BootStarted
    pub fn orphans(&self) -> Vec<Orphan> {
        let current = self.current_boot().map(|boot| boot.boot);
        self.runs()
            .filter(|run| run.is_open() && Some(run.boot) != current)
            .map(|run| Orphan {
                run: run.id(),
                started: run.status == RunStatus::Started,
            })
            .collect()
    }
}

impl Dataset {
    /// Its id.
    pub fn id(&self) -> DatasetId {
        self.created.dataset
    }
    /// Its name.
    pub fn name(&self) -> &str {
        &self.created.name
    }
    /// Private, public or synthetic.
    pub fn kind(&self) -> DatasetKind {
        self.created.kind
    }
    /// Who uploaded it.
    pub fn owner(&self) -> Principal {
        self.created.owner
    }
    /// The data contract, canonical JSON.
    pub fn contract_json(&self) -> &str {
        &self.created.contract_json
    }
    /// SHA-256 of the contract.
    pub fn contract_digest(&self) -> Digest32 {
        self.contract_digest
    }
    /// Declared number of records.
    pub fn declared_size(&self) -> u64 {
        self.created.declared_size
    }
    /// The owner's terms.
    pub fn policy(&self) -> &Policy {
        &self.created.policy
    }
    /// Hash of the terms, bound into every stored block (rule A10).
    pub fn policy_digest(&self) -> Digest32 {
        self.policy_digest
    }
    /// Number of stored blocks.
    pub fn blocks(&self) -> u64 {
        self.created.blocks
    }
    /// Version root: digest over the stored blocks (rule A11).
    pub fn root(&self) -> Digest32 {
        self.created.root
    }
    /// When it entered the ledger.
    pub fn created_unix_ms(&self) -> u64 {
        self.created_unix_ms
    }
    /// Whether its owner withdrew it: no run starts on it any more.
    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn
    }
    /// Whether its owner had it erased; it is withdrawn then, too.
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// The sums of (ε, δ); `None` for public and synthetic datasets. They decide unless there is a
    /// [`Dataset::renyi_account`].
    pub fn budget(&self) -> Option<Budget> {
        let lifetime = self.created.policy.lifetime?;
        Some(Budget::new(lifetime, self.committed, self.reserved))
    }

    /// The account of Rényi divergences, of a dataset whose policy composes by them.
    pub fn renyi_account(&self) -> Option<&RenyiAccount> {
        self.renyi.as_ref()
    }

    /// Whether `principal` could train on it at this time, budget aside.
    pub fn is_trainable_by(&self, principal: &Principal, now_unix_ms: u64) -> bool {
        !self.withdrawn
            && !self.policy().is_expired(now_unix_ms)
            && self.policy().allows_training_by(principal)
    }

    /// Whether `principal` could evaluate on it at this time, budget aside.
    pub fn is_evaluable_by(&self, principal: &Principal, now_unix_ms: u64) -> bool {
        !self.withdrawn
            && !self.policy().is_expired(now_unix_ms)
            && self.policy().allows_evaluation_by(principal)
    }
}

impl Run {
    /// Its id.
    pub fn id(&self) -> RunId {
        self.reserved.run
    }
    /// What it does with the data.
    pub fn kind(&self) -> RunKind {
        self.kind
    }
    /// Everything that was agreed at reservation.
    pub fn reservation(&self) -> &RunReserved {
        &self.reserved
    }
    /// Digest of everything that was agreed (rule A11).
    pub fn run_digest(&self) -> Digest32 {
        self.reserved.run_digest
    }
    /// Who started it.
    pub fn scientist(&self) -> Principal {
        self.reserved.scientist
    }
    /// Name given by the scientist.
    pub fn model_name(&self) -> &str {
        &self.reserved.model_name
    }
    /// Steps planned.
    pub fn steps(&self) -> u64 {
        self.reserved.steps
    }
    /// What it costs each dataset.
    pub fn charges(&self) -> &[Charge] {
        &self.reserved.charges
    }
    /// What it costs datasets that compose by Rényi divergences, of all its planned steps.
    pub fn renyi_charges(&self) -> &[RenyiCharge] {
        &self.renyi
    }
    /// What a committed run was charged, of one of its charges, in Rényi divergences.
    pub fn renyi_charged(&self, charge: &Charge) -> Option<RenyiCost> {
        let renyi = self.renyi.iter().find(|renyi| renyi.dataset == charge.dataset)?;
        Some(match self.started_steps {
            Some(started) => cost_of_event(&charge.event, &renyi.cost, started, self.steps()),
            None => renyi.cost.clone(),
        })
    }
    /// Steps started, of a stopped run whose other steps were not charged to accounts of Rényi divergences.
    pub fn started_steps(&self) -> Option<u64> {
        self.started_steps
    }
    /// Where it is in its life.
    pub fn status(&self) -> RunStatus {
        self.status
    }
    /// Whether it still holds its reserve.
    pub fn is_open(&self) -> bool {
        matches!(self.status, RunStatus::Reserved | RunStatus::Started)
    }
    /// Whether an owner suspended it.
    pub fn is_suspended(&self) -> bool {
        !self.suspended_by.is_empty()
    }
    /// Owners whose suspension stands.
    pub fn suspended_by(&self) -> &BTreeSet<Principal> {
        &self.suspended_by
    }
    /// Boots that took it over after the one that reserved it, in order.
    pub fn resumed_by(&self) -> &[BootId] {
        &self.resumed_by
    }
    /// Times a boot went on with it, or owners let it go on after it had started, since it last advanced: a run that ends its
    /// server each time shows here, and one whose trainer starts on the records again and again. See
    /// [`MAX_IDLE_RESUMPTIONS`].
    pub fn idle_resumptions(&self) -> u32 {
        self.idle_resumptions
    }
    /// Last step whose progress may leave; 0 before the first.
    pub fn released_step(&self) -> u64 {
        self.released_step
    }
    /// When its budget was reserved.
    pub fn created_unix_ms(&self) -> u64 {
        self.reserved_unix_ms
    }
    /// When it was committed or refunded.
    pub fn ended_unix_ms(&self) -> Option<u64> {
        self.ended_unix_ms
    }
    /// Digest of its result (weights, or histograms), once it succeeded.
    pub fn weights_digest(&self) -> Option<Digest32> {
        self.weights_digest
    }
    /// Who was handed the weights, in order.
    pub fn released_to(&self) -> &[Principal] {
        &self.released_to
    }
}
