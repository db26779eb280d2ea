//! Which event may follow which state. The same rules refuse a proposal and a replayed chain.

use crate::account::RenyiAccount;
use crate::entry::{
    Body, BootStarted, Charge, DatasetCreated, DatasetRemoved, DatasetWithdrawn, Outcome, Released,
    RenyiCharge, RunAdvanced, RunCommitted, RunRefunded, RunReserved, RunReservedRenyi, RunResumed,
    RunStarted, RunStopped, RunSuspended, RunUnsuspended,
};
use crate::event;
use crate::id::{BootId, DatasetId, Digest32, Principal, RunId};
use crate::name::is_showable;
use crate::policy::{DatasetKind, RunKind};
use crate::refusal::{MAX_CONTRACT_BYTES, MAX_DATASETS_PER_RUN, Refusal};
use crate::state::{Dataset, Ledger, MAX_IDLE_RESUMPTIONS, Run, RunStatus};
use std::collections::BTreeSet;

impl Ledger {
    /// Checks that `body` may happen now. `time_unix_ms` is ledger time, not the clock's.
    pub(crate) fn check(&self, body: &Body, time_unix_ms: u64) -> Result<(), Refusal> {
        match body {
            Body::Genesis(_) => Err(Refusal::Genesis),
            Body::BootStarted(boot) => self.check_boot(boot),
            Body::DatasetCreated(created) => self.check_created(created),
            Body::DatasetWithdrawn(withdrawn) => self.check_withdrawn(withdrawn),
            Body::DatasetRemoved(removed) => self.check_removed(removed),
            Body::RunReserved(reserved) => {
                self.check_reserved(reserved, &[], RunKind::Training, time_unix_ms)
            }
            Body::RunStarted(started) => self.check_started(started, time_unix_ms),
            Body::RunAdvanced(advanced) => self.check_advanced(advanced),
            Body::RunCommitted(committed) => self.check_committed(committed),
            Body::RunRefunded(refunded) => self.check_refunded(refunded),
            Body::Released(released) => self.check_released(released),
            Body::EvaluationReserved(reserved) => {
                self.check_reserved(reserved, &[], RunKind::Evaluation, time_unix_ms)
            }
            Body::RunReservedRenyi(RunReservedRenyi { renyi, .. }) if renyi.is_empty() => {
                // It has a form without.
                Err(Refusal::RenyiCharges)
            }
            Body::RunReservedRenyi(both) => {
                self.check_reserved(&both.reserved, &both.renyi, both.kind, time_unix_ms)
            }
            Body::RunStopped(stopped) => self.check_stopped(stopped),
            Body::RunResumed(resumed) => self.check_resumed(resumed, time_unix_ms),
            Body::RunSuspended(suspended) => self.check_suspended(suspended),
            Body::RunUnsuspended(unsuspended) => self.check_unsuspended(unsuspended),
            Body::RunAdvancedKeeping(advanced) => {
                self.check_advanced(&RunAdvanced {
                    run: advanced.run,
                    released_step: advanced.released_step,
                })?;
                self.check_kept(self.existing_run(advanced.run)?, advanced)
            }
        }
    }

    fn check_boot(&self, boot: &BootStarted) -> Result<(), Refusal> {
        if self.boots.iter().any(|earlier| earlier.boot == boot.boot) {
            Err(Refusal::IdTaken)
        } else {
            Ok(())
        }
    }

    /// Whether a dataset of this name, kind and policy could be created; an upload asks before it stores anything.
    ///
    /// # Errors
    /// [`Refusal`] says what is wrong.
    pub fn check_new_dataset(&self, created: &DatasetCreated) -> Result<(), Refusal> {
        self.check_created(created)
    }

    fn check_created(&self, created: &DatasetCreated) -> Result<(), Refusal> {
        check_name(&created.name)?;
        if created.contract_json.is_empty() || created.contract_json.len() > MAX_CONTRACT_BYTES {
            return Err(Refusal::ContractLength);
        }
        if created.declared_size == 0 {
            return Err(Refusal::ZeroSize);
        }
        created.policy.check(created.kind)?;
        if self.names.contains_key(&created.name) {
            return Err(Refusal::NameTaken {
                name: created.name.clone(),
            });
        }
        if self.datasets.contains_key(&created.dataset) {
            Err(Refusal::IdTaken)
        } else {
            Ok(())
        }
    }

    fn check_withdrawn(&self, withdrawn: &DatasetWithdrawn) -> Result<(), Refusal> {
        let dataset = self.existing_dataset(withdrawn.dataset)?;
        let name = dataset.name().to_owned();
        if dataset.owner() != withdrawn.by {
            return Err(Refusal::NotOwner { name });
        }
        if dataset.withdrawn {
            Err(Refusal::Withdrawn { name })
        } else {
            Ok(())
        }
    }

    fn check_removed(&self, removed: &DatasetRemoved) -> Result<(), Refusal> {
        let dataset = self.existing_dataset(removed.dataset)?;
        let name = dataset.name().to_owned();
        if dataset.owner() != removed.by {
            return Err(Refusal::NotOwner { name });
        }
        if dataset.removed {
            return Err(Refusal::Removed { name });
        }
        match self.open_run_on(&removed.dataset) {
            Some(run) => Err(Refusal::InUse { name, run: run.id() }),
            None => Ok(()),
        }
    }

    fn check_reserved(
        &self,
        reserved: &RunReserved,
        renyi: &[RenyiCharge],
        kind: RunKind,
        time_unix_ms: u64,
    ) -> Result<(), Refusal> {
        check_name(&reserved.model_name)?;
        self.check_current_boot(reserved.boot)?;
        if self.runs.contains_key(&reserved.run) {
            return Err(Refusal::IdTaken);
        }
        if reserved.steps == 0 {
            return Err(Refusal::ZeroSteps);
        }
        if kind == RunKind::Evaluation && reserved.steps != 1 {
            let steps = reserved.steps;
            return Err(Refusal::EvaluationSteps { steps });
        }
        let found = reserved.charges.len();
        if found == 0 || found > MAX_DATASETS_PER_RUN {
            return Err(Refusal::DatasetCount { found });
        }
        let mut seen = BTreeSet::new();
        let mut renyi = renyi.iter();
        for charge in &reserved.charges {
            if !seen.insert(charge.dataset) {
                return Err(Refusal::DatasetTwice {
                    dataset: charge.dataset,
                });
            }
            let dataset = self.existing_dataset(charge.dataset)?;
            dataset.check_usable(&reserved.scientist, kind, time_unix_ms)?;
            if kind == RunKind::Training && !dataset.policy().allows_noise_mode(reserved.noise_mode) {
                let name = dataset.name().to_owned();
                return Err(Refusal::NoiseMode { name });
            }
            dataset.check_charge(charge)?;
            if let Some(account) = dataset.renyi_account() {
                let charge = renyi.next().filter(|renyi| renyi.dataset == charge.dataset);
                dataset.check_renyi_charge(account, charge.ok_or(Refusal::RenyiCharges)?)?;
            }
        }
        match renyi.next() {
            Some(_) => Err(Refusal::RenyiCharges),
            None => Ok(()),
        }
    }

    /// A run may have queued for long: owners who have gone since lend it nothing (rule D7).
    fn check_started(&self, started: &RunStarted, time_unix_ms: u64) -> Result<(), Refusal> {
        let run = self.existing_run(started.run)?;
        self.check_current_boot(run.boot)?;
        run.expect_status(RunStatus::Reserved, "started")?;
        run.expect_not_suspended()?;
        self.check_all_offered(run, time_unix_ms)
    }

    fn check_all_offered(&self, run: &Run, time_unix_ms: u64) -> Result<(), Refusal> {
        run.charges()
            .iter()
            .try_for_each(|charge| self.existing_dataset(charge.dataset)?.check_offered(time_unix_ms))
    }

    /// Runs that were reserved before others failed do not start beyond the limit. Asked of new starts only: chains of
    /// earlier releases may hold such a start.
    pub(crate) fn check_failures_of(&self, run: RunId) -> Result<(), Refusal> {
        let run = self.existing_run(run)?;
        run.charges()
            .iter()
            .try_for_each(|charge| self.existing_dataset(charge.dataset)?.check_failures())
    }

    /// A suspension that is lifted starts a trainer on the same records again. Not asked where another owner's stands.
    pub(crate) fn check_idle_resumptions_of(&self, run: RunId) -> Result<(), Refusal> {
        let found = self.existing_run(run)?;
        let times = found.idle_resumptions;
        let starts = found.status == RunStatus::Started && found.suspended_by.len() == 1;
        if starts && times >= MAX_IDLE_RESUMPTIONS {
            return Err(Refusal::GetsNowhere { run, times });
        }
        Ok(())
    }

    /// Its data are read again: owners who have gone since lend it nothing more.
    fn check_resumed(&self, resumed: &RunResumed, time_unix_ms: u64) -> Result<(), Refusal> {
        let run = self.existing_run(resumed.run)?;
        self.check_current_boot(resumed.boot)?;
        if !run.is_open() || run.boot == resumed.boot {
            return Err(run.refuse("resumed"));
        }
        self.check_all_offered(run, time_unix_ms)
    }

    fn check_suspended(&self, suspended: &RunSuspended) -> Result<(), Refusal> {
        let run = self.existing_run(suspended.run)?;
        if !run.is_open() {
            return Err(run.refuse("suspended"));
        }
        if !self.lends(run, &suspended.by) {
            return Err(Refusal::NotLender { run: run.id() });
        }
        run.expect_suspension(&suspended.by, false)
    }

    fn check_unsuspended(&self, unsuspended: &RunUnsuspended) -> Result<(), Refusal> {
        let run = self.existing_run(unsuspended.run)?;
        if !run.is_open() {
            return Err(run.refuse("taken up again"));
        }
        run.expect_suspension(&unsuspended.by, true)
    }

    fn check_advanced(&self, advanced: &RunAdvanced) -> Result<(), Refusal> {
        let run = self.existing_run(advanced.run)?;
        self.check_current_boot(run.boot)?;
        run.expect_status(RunStatus::Started, "advanced")?;
        run.expect_not_suspended()?;
        if advanced.released_step <= run.released_step || advanced.released_step > run.steps() {
            return Err(Refusal::ReleasedStep {
                run: advanced.run,
                to: advanced.released_step,
                released: run.released_step,
                steps: run.steps(),
            });
        }
        Ok(())
    }

    fn check_committed(&self, committed: &RunCommitted) -> Result<(), Refusal> {
        let run = self.existing_run(committed.run)?;
        run.expect_status(RunStatus::Started, "committed")?;
        let succeeded = committed.outcome == Outcome::Succeeded;
        let complete = run.released_step == run.steps();
        if succeeded != committed.weights_digest.is_some() || (succeeded && !complete) {
            return Err(Refusal::Outcome { run: committed.run });
        }
        if succeeded {
            run.expect_not_suspended()?;
        }
        // A run that this boot has not taken over can only have failed.
        if committed.outcome != Outcome::Failed {
            self.check_current_boot(run.boot)
        } else {
            Ok(())
        }
    }

    /// A run that ends early by someone's wish: what it did not start, it does not pay for where that is the rule (D5).
    fn check_stopped(&self, stopped: &RunStopped) -> Result<(), Refusal> {
        let run = self.existing_run(stopped.run)?;
        run.expect_status(RunStatus::Started, "stopped")?;
        self.check_current_boot(run.boot)?;
        let started = stopped.started_steps;
        let fewer = (run.released_step.max(1)..run.steps()).contains(&started);
        if fewer && !run.renyi.is_empty() {
            Ok(())
        } else {
            Err(Refusal::Outcome { run: stopped.run })
        }
    }

    fn check_refunded(&self, refunded: &RunRefunded) -> Result<(), Refusal> {
        self.existing_run(refunded.run)?
            .expect_status(RunStatus::Reserved, "refunded")
    }

    fn check_released(&self, released: &Released) -> Result<(), Refusal> {
        let run = self.existing_run(released.run)?;
        run.expect_status(RunStatus::Committed(Outcome::Succeeded), "released")?;
        let kept = run
            .kept
            .iter()
            .any(|kept| kept.weights_digest == released.weights_digest);
        if !kept && run.weights_digest != Some(released.weights_digest) {
            return Err(Refusal::OtherWeights { run: released.run });
        }
        if self.may_receive(&released.run, &released.recipient) {
            Ok(())
        } else {
            Err(Refusal::MayNotReceive {
                run: released.run,
                principal: released.recipient,
            })
        }
    }

    fn check_current_boot(&self, boot: BootId) -> Result<(), Refusal> {
        let current = self.current_boot().is_some_and(|current| current.boot == boot);
        if current { Ok(()) } else { Err(Refusal::OtherBoot) }
    }

    fn existing_dataset(&self, dataset: DatasetId) -> Result<&Dataset, Refusal> {
        self.datasets.get(&dataset).ok_or(Refusal::NoDataset { dataset })
    }

    pub(crate) fn existing_run(&self, run: RunId) -> Result<&Run, Refusal> {
        self.runs.get(&run).ok_or(Refusal::NoRun { run })
    }
}

impl Dataset {
    /// Neither withdrawn nor expired.
    fn check_offered(&self, time_unix_ms: u64) -> Result<(), Refusal> {
        let name = || self.name().to_owned();
        if self.withdrawn {
            return Err(Refusal::Withdrawn { name: name() });
        }
        if self.policy().is_expired(time_unix_ms) {
            return Err(Refusal::Expired { name: name() });
        }
        Ok(())
    }

    /// Each failure may tell something of a record (rule G4).
    fn check_failures(&self) -> Result<(), Refusal> {
        let limit = self.policy().limits.max_failed_runs;
        if self.kind() == DatasetKind::Private && self.failed_runs >= limit {
            let name = self.name().to_owned();
            return Err(Refusal::TooManyFailures { name, limit });
        }
        Ok(())
    }

    fn check_usable(&self, scientist: &Principal, kind: RunKind, time_unix_ms: u64) -> Result<(), Refusal> {
        self.check_offered(time_unix_ms)?;
        self.check_right(scientist, kind)?;
        let name = || self.name().to_owned();
        let limits = self.policy().limits;
        if self.kind() != DatasetKind::Private {
            return Ok(());
        }
        self.check_failures()?;
        let day_ago = time_unix_ms.saturating_sub(DAY_MS);
        let today = self
            .starts
            .values()
            .filter(|&&start| start > day_ago || start == time_unix_ms)
            .count();
        if today >= limits.max_starts_per_day as usize {
            return Err(Refusal::TooManyStarts {
                name: name(),
                limit: limits.max_starts_per_day,
            });
        }
        Ok(())
    }

    /// Whether the policy lets `scientist` run this kind of run.
    fn check_right(&self, scientist: &Principal, kind: RunKind) -> Result<(), Refusal> {
        let (policy, principal, name) = (self.policy(), *scientist, || self.name().to_owned());
        match kind {
            RunKind::Training if policy.is_evaluation_only() => Err(Refusal::EvaluationOnly { name: name() }),
            RunKind::Training if !policy.allows_training_by(scientist) => Err(Refusal::MayNotTrain {
                name: name(),
                principal,
            }),
            RunKind::Evaluation if !policy.allows_evaluation_by(scientist) => Err(Refusal::MayNotEvaluate {
                name: name(),
                principal,
            }),
            RunKind::Training | RunKind::Evaluation => Ok(()),
        }
    }

    fn check_charge(&self, charge: &Charge) -> Result<(), Refusal> {
        let name = || self.name().to_owned();
        event::check(&charge.event).map_err(|source| Refusal::Event { name: name(), source })?;
        let Some(budget) = self.budget() else {
            let free = charge.amount.is_zero();
            return if free {
                Ok(())
            } else {
                Err(Refusal::Charge {
                    name: name(),
                    amount: charge.amount,
                })
            };
        };
        if charge.amount.epsilon.units() == 0 {
            return Err(Refusal::Charge {
                name: name(),
                amount: charge.amount,
            });
        }
        if self.renyi_account().is_some() {
            // The sums are shown beside the account that decides: they must stay numbers.
            let sums = self.committed.checked_add(self.reserved);
            let sums = sums.and_then(|sums| sums.checked_add(charge.amount));
            return sums.map(drop).ok_or(Refusal::Overflow);
        }
        if !budget.admits(charge.amount) {
            return Err(Refusal::BudgetExceeded {
                name: name(),
                dataset: self.id(),
                requested: charge.amount,
                remaining: budget.remaining,
            });
        }
        Ok(())
    }

    fn check_renyi_charge(&self, account: &RenyiAccount, charge: &RenyiCharge) -> Result<(), Refusal> {
        let cost = &charge.cost;
        if cost.rho().len() != account.filter().orders().len() || cost.is_zero() {
            return Err(Refusal::RenyiCharges);
        }
        if account.admits(cost) {
            return Ok(());
        }
        Err(Refusal::RenyiExceeded {
            name: self.name().to_owned(),
            dataset: self.id(),
            with: account.epsilon_with(cost),
            lifetime: self.policy().lifetime.unwrap_or_default().epsilon,
        })
    }
}

impl Run {
    fn expect_status(&self, status: RunStatus, action: &'static str) -> Result<(), Refusal> {
        if self.status == status {
            Ok(())
        } else {
            Err(self.refuse(action))
        }
    }

    fn refuse(&self, action: &'static str) -> Refusal {
        Refusal::RunStatus {
            run: self.id(),
            status: self.status,
            action,
        }
    }

    fn expect_not_suspended(&self) -> Result<(), Refusal> {
        if self.is_suspended() {
            Err(Refusal::Suspended { run: self.id() })
        } else {
            Ok(())
        }
    }

    /// Whether this owner's suspension is there or not, as expected.
    fn expect_suspension(&self, by: &Principal, expected: bool) -> Result<(), Refusal> {
        if self.suspended_by.contains(by) == expected {
            return Ok(());
        }
        Err(Refusal::Suspension {
            run: self.id(),
            suspended: !expected,
        })
    }
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if is_showable(name) {
        Ok(())
    } else {
        Err(Refusal::BadName)
    }
}

/// The digest of a policy and of a contract, as kept beside a dataset.
pub(crate) fn dataset_digests(created: &DatasetCreated) -> (Digest32, Digest32) {
    (
        Digest32::of(created.contract_json.as_bytes()),
        created.policy.digest(),
    )
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
