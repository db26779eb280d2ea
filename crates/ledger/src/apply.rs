//! Entries change the state here and nowhere else: check everything, then mutate.

use crate::account::RenyiAccount;
use crate::amount::Amount;
use crate::chain::Head;
use crate::entry::{Body, Entry, Genesis, Outcome, RenyiCharge, RunReserved};
use crate::id::{DatasetId, EntryHash, LedgerId, RunId};
use crate::policy::{Composition, Policy, RunKind};
use crate::refusal::Refusal;
use crate::rules::dataset_digests;
use crate::state::{Dataset, Ledger, Run, RunStatus};
use bastionai_privacy::filter::renyi::RenyiFilter;
use std::collections::{BTreeMap, BTreeSet};

/// Why an entry does not continue a chain.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// No entries.
    #[error("the ledger is empty: its genesis is missing")]
    Empty,
    /// The first entry is of another kind.
    #[error("the ledger does not begin with its genesis")]
    NoGenesis,
    /// An entry is missing, repeated or out of place.
    #[error("ledger entry {found} stands where entry {expected} belongs")]
    Sequence {
        /// Sequence expected.
        expected: u64,
        /// Sequence found.
        found: u64,
    },
    /// The previous hash differs.
    #[error("ledger entry {sequence} does not continue the entry before it: the chain is broken")]
    Broken {
        /// Where.
        sequence: u64,
    },
    /// Ledger time ran backwards (rule A8).
    #[error("ledger entry {sequence} is older than the entry before it")]
    Time {
        /// Where.
        sequence: u64,
    },
    /// The event may not happen in this state.
    #[error("ledger entry {sequence} is not allowed: {source}")]
    Refused {
        /// Where.
        sequence: u64,
        /// Why.
        source: Refusal,
    },
}

impl Ledger {
    /// The first entry of a new ledger.
    pub fn genesis(ledger: LedgerId, now_unix_ms: u64) -> Entry {
        Entry::new(0, EntryHash::NONE, now_unix_ms, Body::Genesis(Genesis { ledger }))
    }

    /// The state that `entries`, from the genesis on, add up to.
    ///
    /// # Errors
    /// [`ChainError`] at the first entry that is out of place or not allowed.
    pub fn replay(entries: impl IntoIterator<Item = Entry>) -> Result<Self, ChainError> {
        let mut entries = entries.into_iter();
        let first = entries.next().ok_or(ChainError::Empty)?;
        let Body::Genesis(Genesis { ledger }) = first.body() else {
            return Err(ChainError::NoGenesis);
        };
        check_place(
            &Head {
                ledger: *ledger,
                sequence: 0,
                entry_hash: EntryHash::NONE,
            },
            0,
            &first,
        )?;
        let mut ledger = Self {
            id: *ledger,
            entries: vec![first],
            boots: Vec::new(),
            datasets: BTreeMap::new(),
            names: BTreeMap::new(),
            runs: BTreeMap::new(),
            run_order: Vec::new(),
        };
        entries.try_for_each(|entry| ledger.apply(entry))?;
        Ok(ledger)
    }

    /// Appends an entry: one proposed by this ledger and durable by now, or the next of a stored chain.
    ///
    /// # Errors
    /// [`ChainError`]; nothing has changed then.
    pub fn apply(&mut self, entry: Entry) -> Result<(), ChainError> {
        check_place(&self.head(), self.last_time_unix_ms(), &entry)?;
        self.check(entry.body(), entry.time_unix_ms())
            .map_err(|source| ChainError::Refused {
                sequence: entry.sequence(),
                source,
            })?;
        self.mutate(entry.body(), entry.time_unix_ms());
        self.entries.push(entry);
        Ok(())
    }

    /// Every lookup here succeeds: [`Ledger::check`] has passed.
    fn mutate(&mut self, body: &Body, time_unix_ms: u64) {
        match body {
            Body::Genesis(_) => {}
            Body::BootStarted(boot) => self.boots.push(boot.clone()),
            Body::DatasetCreated(created) => {
                let (contract_digest, policy_digest) = dataset_digests(created);
                self.names.insert(created.name.clone(), created.dataset);
                let dataset = Dataset {
                    created: created.clone(),
                    contract_digest,
                    policy_digest,
                    created_unix_ms: time_unix_ms,
                    withdrawn: false,
                    removed: false,
                    committed: Amount::ZERO,
                    reserved: Amount::ZERO,
                    renyi: renyi_account(&created.policy),
                    failed_runs: 0,
                    starts: BTreeMap::new(),
                };
                self.datasets.insert(created.dataset, dataset);
            }
            Body::DatasetWithdrawn(withdrawn) => self.dataset_mut(withdrawn.dataset).withdrawn = true,
            Body::DatasetRemoved(removed) => {
                let dataset = self.dataset_mut(removed.dataset);
                (dataset.withdrawn, dataset.removed) = (true, true);
            }
            Body::RunReserved(reserved) => self.reserve(reserved, &[], RunKind::Training, time_unix_ms),
            Body::EvaluationReserved(reserved) => {
                self.reserve(reserved, &[], RunKind::Evaluation, time_unix_ms);
            }
            Body::RunReservedRenyi(both) => {
                self.reserve(&both.reserved, &both.renyi, both.kind, time_unix_ms);
            }
            Body::RunStarted(started) => self.run_mut(started.run).status = RunStatus::Started,
            Body::RunAdvanced(advanced) => {
                let run = self.run_mut(advanced.run);
                run.released_step = advanced.released_step;
                run.idle_resumptions = 0;
            }
            Body::RunCommitted(committed) => {
                let run = self.run_mut(committed.run);
                run.status = RunStatus::Committed(committed.outcome);
                run.weights_digest = committed.weights_digest;
                run.ended_unix_ms = Some(time_unix_ms);
                self.charge(committed.run, committed.outcome);
            }
            Body::RunStopped(stopped) => {
                let run = self.run_mut(stopped.run);
                run.status = RunStatus::Committed(Outcome::Cancelled);
                run.started_steps = Some(stopped.started_steps);
                run.ended_unix_ms = Some(time_unix_ms);
                self.charge(stopped.run, Outcome::Cancelled);
            }
            Body::RunRefunded(refunded) => {
                let run = self.run_mut(refunded.run);
                run.status = RunStatus::Refunded(refunded.reason);
                run.ended_unix_ms = Some(time_unix_ms);
                self.refund(refunded.run);
            }
            Body::Released(released) => {
                let run = self.run_mut(released.run);
                if !run.released_to.contains(&released.recipient) {
                    run.released_to.push(released.recipient);
                }
                let release = (released.recipient, released.weights_digest);
                if !run.releases.contains(&release) {
                    run.releases.push(release);
                }
            }
            Body::RunAdvancedKeeping(advanced) => {
                let run = self.run_mut(advanced.run);
                run.released_step = advanced.released_step;
                run.idle_resumptions = 0;
                run.kept.extend(&advanced.kept);
            }
            Body::RunResumed(resumed) => {
                let run = self.run_mut(resumed.run);
                run.boot = resumed.boot;
                run.resumed_by.push(resumed.boot);
                // Also one that never started: preparing it may be what ends each boot.
                let idle = !run.is_suspended();
                run.idle_resumptions = run.idle_resumptions.saturating_add(u32::from(idle));
            }
            Body::RunSuspended(suspended) => {
                self.run_mut(suspended.run).suspended_by.insert(suspended.by);
            }
            Body::RunUnsuspended(unsuspended) => {
                let run = self.run_mut(unsuspended.run);
                run.suspended_by.remove(&unsuspended.by);
                // Its trainer starts again, as after a restart.
                let again = run.status == RunStatus::Started && !run.is_suspended();
                run.idle_resumptions = run.idle_resumptions.saturating_add(u32::from(again));
            }
        }
    }

    fn reserve(&mut self, reserved: &RunReserved, renyi: &[RenyiCharge], kind: RunKind, time_unix_ms: u64) {
        for charge in &reserved.charges {
            let dataset = self.dataset_mut(charge.dataset);
            dataset.reserved = dataset.reserved.checked_add(charge.amount).expect(FITS);
            dataset.starts.insert(reserved.run, time_unix_ms);
        }
        for charge in renyi {
            self.renyi_mut(charge.dataset).reserve(&charge.cost);
        }
        let run = Run {
            kind,
            reserved: reserved.clone(),
            renyi: renyi.to_vec(),
            reserved_unix_ms: time_unix_ms,
            status: RunStatus::Reserved,
            released_step: 0,
            started_steps: None,
            ended_unix_ms: None,
            weights_digest: None,
            released_to: Vec::new(),
            boot: reserved.boot,
            resumed_by: Vec::new(),
            idle_resumptions: 0,
            suspended_by: BTreeSet::new(),
            releases: Vec::new(),
            kept: Vec::new(),
        };
        self.run_order.push(reserved.run);
        self.runs.insert(reserved.run, run);
    }

    /// Of all it reserved, or of the steps that it started where that is known and the account's rule allows (D5).
    fn charge(&mut self, run: RunId, outcome: Outcome) {
        let run = self.run_mut(run).clone();
        for charge in run.charges() {
            let dataset = self.dataset_mut(charge.dataset);
            dataset.reserved = dataset.reserved.checked_sub(charge.amount).expect(FITS);
            dataset.committed = dataset.committed.checked_add(charge.amount).expect(FITS);
            dataset.failed_runs = dataset
                .failed_runs
                .saturating_add(u32::from(outcome == Outcome::Failed));
        }
        for renyi in run.renyi_charges() {
            let charge = run
                .charges()
                .iter()
                .find(|charge| charge.dataset == renyi.dataset);
            let charged = charge
                .and_then(|charge| run.renyi_charged(charge))
                .expect(CHARGED);
            self.renyi_mut(renyi.dataset).commit(&renyi.cost, &charged);
        }
    }

    fn refund(&mut self, run: RunId) {
        let run = self.run_mut(run).clone();
        for charge in run.charges() {
            let dataset = self.dataset_mut(charge.dataset);
            dataset.reserved = dataset.reserved.checked_sub(charge.amount).expect(FITS);
            dataset.starts.remove(&run.id());
        }
        for charge in run.renyi_charges() {
            self.renyi_mut(charge.dataset).refund(&charge.cost);
        }
    }

    fn renyi_mut(&mut self, id: DatasetId) -> &mut RenyiAccount {
        let account = self.dataset_mut(id).renyi.as_mut();
        account.expect("check() found an account of Rényi divergences")
    }

    fn dataset_mut(&mut self, id: DatasetId) -> &mut Dataset {
        self.datasets.get_mut(&id).expect("check() found the dataset")
    }

    fn run_mut(&mut self, id: RunId) -> &mut Run {
        self.runs.get_mut(&id).expect("check() found the run")
    }
}

fn renyi_account(policy: &Policy) -> Option<RenyiAccount> {
    let Composition::Renyi(terms) = &policy.composition else {
        return None;
    };
    let filter = RenyiFilter::new(policy.lifetime?, terms).expect("check() has made this filter");
    Some(RenyiAccount::new(filter))
}

fn check_place(head: &Head, last_time_unix_ms: u64, entry: &Entry) -> Result<(), ChainError> {
    let sequence = entry.sequence();
    if sequence != head.sequence {
        return Err(ChainError::Sequence {
            expected: head.sequence,
            found: sequence,
        });
    }
    if entry.previous() != head.entry_hash {
        return Err(ChainError::Broken { sequence });
    }
    if entry.time_unix_ms() < last_time_unix_ms {
        Err(ChainError::Time { sequence })
    } else {
        Ok(())
    }
}

const FITS: &str = "every reservation was checked against the lifetime";
const CHARGED: &str = "check() found a charge for every Rényi charge";
