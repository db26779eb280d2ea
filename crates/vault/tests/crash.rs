//! The vault on a disk that fails: at every write and sync in turn, and a few hundred times at random.
//!
//! The oracle keeps what callers were *told*. After each crash it opens the disk again and checks that nothing
//! acknowledged is lost, nothing half-done is visible, no budget is under-counted, and no step has two values.
#![allow(clippy::unwrap_used)]
mod common;

use bastionai_ledger::*;
use bastionai_vault::*;
use common::*;
use std::collections::{BTreeMap, BTreeSet};

/// What callers were told, and what they asked for.
#[derive(Default)]
struct Oracle {
    /// The last head that was handed out.
    head: Option<Head>,
    /// Acknowledged datasets: rows and seed of their content.
    datasets: BTreeMap<DatasetId, (u64, u64)>,
    /// Asked for, by name: an upload in doubt is there whole or not at all.
    asked: BTreeMap<String, (u64, u64)>,
    /// Uploads that were broken off on purpose.
    abandoned: BTreeSet<String>,
    removed: BTreeSet<DatasetId>,
    removals_asked: BTreeSet<DatasetId>,
    runs: BTreeMap<RunId, RunTold>,
    boots: u8,
    uploads: u64,
}

#[derive(Default)]
struct RunTold {
    charges: Vec<(DatasetId, Amount)>,
    start_told: bool,
    start_asked: bool,
    refund_asked: bool,
    released_told: u64,
    suspended_told: Option<bool>,
    values_asked: BTreeMap<u64, ReleasedValue>,
    /// Steps and averages.
    kept_asked: BTreeSet<(u64, bool)>,
    kept_told: BTreeSet<(u64, bool)>,
    commit_told: Option<Outcome>,
    stop_asked: Option<u64>,
    weights_seed: u64,
    release_told: BTreeSet<Principal>,
}

/// Of a run, at each order; the budgets hold as many runs as the test makes.
const RHO: Rho = Rho::from_units(1_000_003);

/// What a run keeps at a step: says in its bytes which run and step it is of.
fn kept(run: RunId, (step, ema): (u64, bool)) -> KeptSet {
    KeptSet {
        step,
        ema,
        weights: weights(seed(run) ^ (2 * step + u64::from(ema))),
    }
}

fn seed(run: RunId) -> u64 {
    u64::from_le_bytes(run.as_bytes()[..8].try_into().unwrap())
}

/// One step of a caller; `Err` means it was told of a failure.
type Told = Result<(), String>;
type Step = Box<dyn FnMut(&mut Oracle, &Vault) -> Told>;

fn failed(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Oracle {
    fn boot(&mut self, disk: &Disk) -> Result<Vault, String> {
        let vault = disk.open().map_err(failed)?;
        self.boots += 1;
        let resumable = |orphan: &Orphan| vault.check_resumable(&orphan.run, conditions()).is_ok();
        vault
            .start_boot(boot(self.boots), resumable, T0)
            .map_err(failed)?;
        self.head = Some(vault.head());
        Ok(vault)
    }

    fn upload(&mut self, vault: &Vault, count: u64) -> Told {
        self.uploads += 1;
        let (name, seed) = (format!("dataset {}", self.uploads), self.uploads);
        self.asked.insert(name.clone(), (count, seed));
        // Every other one adds its runs up in Rényi divergences.
        let header = UploadHeader {
            policy: if seed.is_multiple_of(2) {
                renyi_policy()
            } else {
                policy()
            },
            ..header(&name)
        };
        let id = upload_under(vault, header, count, seed).map_err(failed)?;
        self.datasets.insert(id, (count, seed));
        Ok(())
    }

    fn abandon(&mut self, vault: &Vault, count: u64) -> Told {
        self.uploads += 1;
        let name = format!("abandoned {}", self.uploads);
        self.abandoned.insert(name.clone());
        let mut upload = vault.begin_upload(header(&name)).map_err(failed)?;
        upload.push(count, &rows(count, 1)).map_err(failed)
    }

    fn remove(&mut self, vault: &Vault, dataset: DatasetId) -> Told {
        self.removals_asked.insert(dataset);
        vault.remove_dataset(&dataset, principal(1), T0).map_err(failed)?;
        self.removed.insert(dataset);
        Ok(())
    }

    fn reserve(&mut self, vault: &Vault, datasets: &[DatasetId], amount: Amount) -> Result<RunId, String> {
        let reserved = run_on(vault, datasets, amount);
        let run = reserved.run;
        let charges = datasets.iter().map(|dataset| (*dataset, amount)).collect();
        self.runs.insert(
            run,
            RunTold {
                charges,
                ..RunTold::default()
            },
        );
        let renyi = renyi_charges(vault, datasets, RHO);
        vault
            .reserve_priced(RunKind::Training, reserved, renyi, order(), T0)
            .map_err(failed)
            .map(|_| run)
    }

    fn start(&mut self, vault: &Vault, run: RunId) -> Told {
        let Some(reservation) = vault.read(|ledger| ledger.reservation(&run)) else {
            return Ok(());
        };
        self.told(run).start_asked = true;
        let _ = vault.start_run(reservation, T0).map_err(failed)?;
        self.told(run).start_told = true;
        Ok(())
    }

    fn refund(&mut self, vault: &Vault, run: RunId) -> Told {
        let Some(reservation) = vault.read(|ledger| ledger.reservation(&run)) else {
            return Ok(());
        };
        self.told(run).refund_asked = true;
        vault
            .refund_run(reservation, RefundReason::Cancelled, T0)
            .map_err(failed)
    }

    fn advance(&mut self, vault: &Vault, run: RunId, to: u64) -> Told {
        let Some(started) = vault.read(|ledger| ledger.started(&run)) else {
            return Ok(());
        };
        let from = vault.read(|ledger| ledger.run(&run).unwrap().released_step()) + 1;
        let values: Vec<ReleasedValue> = (from..=to).map(value).collect();
        self.told(run)
            .values_asked
            .extend(values.iter().map(|value| (value.step, *value)));
        let keeps = [(from, false), (to, true)];
        self.told(run).kept_asked.extend(keeps);
        let sets = keeps.map(|at| kept(run, at));
        vault
            .advance_run_keeping(&started, checkpoint(to), &values, &sets, T0)
            .map_err(failed)?;
        self.told(run).kept_told.extend(keeps);
        self.told(run).released_told = to;
        Ok(())
    }

    fn suspend(&mut self, vault: &Vault, run: RunId) -> Told {
        vault.suspend_run(run, principal(1), T0).map_err(failed)?;
        self.told(run).suspended_told = Some(true);
        Ok(())
    }

    fn unsuspend(&mut self, vault: &Vault, run: RunId) -> Told {
        // In doubt from here on.
        self.told(run).suspended_told = None;
        vault.unsuspend_run(run, principal(1), T0).map_err(failed)
    }

    fn commit(&mut self, vault: &Vault, run: RunId, outcome: Outcome) -> Told {
        let Some(started) = vault.read(|ledger| ledger.started(&run)) else {
            return Ok(());
        };
        let seed = seed(run);
        self.told(run).weights_seed = seed;
        let end = match outcome {
            Outcome::Succeeded => RunEnd::Succeeded(weights(seed)),
            Outcome::Failed => RunEnd::Failed,
            Outcome::Cancelled => RunEnd::Cancelled,
        };
        vault.commit_run(started, end, T0).map_err(failed)?;
        self.told(run).commit_told = Some(outcome);
        Ok(())
    }

    /// Cancelled, one step beyond those released having been started.
    fn stop(&mut self, vault: &Vault, run: RunId) -> Told {
        let Some(started) = vault.read(|ledger| ledger.started(&run)) else {
            return Ok(());
        };
        let started_steps = vault.read(|ledger| ledger.run(&run).unwrap().released_step()) + 1;
        self.told(run).stop_asked = Some(started_steps);
        vault
            .commit_run(started, RunEnd::Stopped { started_steps }, T0)
            .map_err(failed)?;
        self.told(run).commit_told = Some(Outcome::Cancelled);
        Ok(())
    }

    fn release(&mut self, vault: &Vault, run: RunId, to: Principal) -> Told {
        let Some(receipt) = vault.read(|ledger| ledger.budget_receipt(&run)) else {
            return Ok(());
        };
        if receipt.outcome() != Outcome::Succeeded {
            return Ok(());
        }
        let released = vault.release_weights(receipt, to, T0).map_err(failed)?;
        assert_eq!(released.data, weights(self.told(run).weights_seed).data);
        self.told(run).release_told.insert(to);
        Ok(())
    }

    fn told(&mut self, run: RunId) -> &mut RunTold {
        self.runs.get_mut(&run).unwrap()
    }

    fn remember_head(&mut self, vault: &Vault) {
        self.head = Some(vault.head());
    }

    // ---- checks after a crash ----

    fn check(&self, disk: &Disk, vault: &Vault) {
        self.check_head(vault);
        self.check_datasets(vault);
        self.check_objects(disk, vault);
        for run in self.runs.keys() {
            self.check_run(vault, run);
        }
        self.check_budgets(vault);
    }

    /// Every acknowledged entry is where it was: a client that remembers the head sees no fork.
    fn check_head(&self, vault: &Vault) {
        let Some(known) = &self.head else { return };
        vault.read(|ledger| {
            let links = ledger
                .extension(known.sequence)
                .expect("acknowledged entries are missing");
            verify_extension(Some(known), &ledger.head(), &links).unwrap();
        });
    }

    fn check_datasets(&self, vault: &Vault) {
        let found: BTreeMap<DatasetId, (String, bool)> = vault.read(|ledger| {
            ledger
                .datasets()
                .map(|dataset| (dataset.id(), (dataset.name().to_owned(), dataset.is_removed())))
                .collect()
        });
        for acknowledged in self.datasets.keys() {
            assert!(
                found.contains_key(acknowledged),
                "an acknowledged dataset is lost"
            );
        }
        for (id, (name, removed)) in &found {
            assert!(!self.abandoned.contains(name), "an abandoned upload is visible");
            assert!(*removed || !self.removed.contains(id), "a removal is lost");
            assert!(!*removed || self.removals_asked.contains(id));
            if *removed {
                continue;
            }
            let (count, seed) = self.asked[name];
            let stored = vault.read_dataset(id).unwrap();
            assert_eq!(stored.rows, count);
            for ((column, sent), width) in stored.columns.iter().zip(rows(count, seed)).zip([4, 10]) {
                assert_eq!(
                    column[..(count * width) as usize],
                    sent,
                    "a visible dataset is whole"
                );
            }
        }
    }

    /// The block store holds the objects of live datasets, of results, of open runs and of what open and succeeded runs
    /// keep, and nothing else.
    fn check_objects(&self, disk: &Disk, vault: &Vault) {
        let named = vault.read(|ledger| {
            let live = ledger.datasets().filter(|dataset| !dataset.is_removed()).count();
            let open = ledger.runs().filter(|run| run.is_open());
            let states: usize = open.map(|run| 1 + usize::from(run.released_step() > 0)).sum();
            let succeeded = |run: &&Run| run.weights_digest().is_some();
            let keeping = ledger.runs().filter(|run| run.is_open() || succeeded(run));
            let kept: usize = keeping.map(|run| run.kept().len()).sum();
            live + states + kept + ledger.runs().filter(succeeded).count()
        });
        assert_eq!(
            disk.objects().len(),
            named,
            "half-done objects were swept and no others"
        );
    }

    fn check_run(&self, vault: &Vault, id: &RunId) {
        let told = &self.runs[id];
        let run = vault.read(|ledger| ledger.run(id).cloned());
        let Some(run) = run else {
            assert!(
                !told.start_told && told.commit_told.is_none(),
                "an acknowledged run is lost"
            );
            return;
        };
        assert!(
            vault.read(|ledger| ledger.orphans().is_empty()),
            "orphans are resumed or settled"
        );
        if told.suspended_told == Some(true) && run.is_open() {
            assert!(run.is_suspended(), "a suspension is lost");
        }
        self.check_state(vault, id, &run);
        if told.start_told {
            assert!(
                matches!(run.status(), RunStatus::Started | RunStatus::Committed(_)),
                "a started run was refunded"
            );
        }
        if let RunStatus::Committed(outcome) = run.status() {
            assert!(told.start_asked);
            assert!(
                told.commit_told.is_none_or(|told| told == outcome),
                "a commit changed"
            );
        }
        if let RunStatus::Refunded(reason) = run.status() {
            assert!(told.refund_asked || reason == RefundReason::ServerStopped);
        }
        self.check_values(vault, id, &run, told);
        self.check_weights(vault, id, &run, told);
        self.check_kept(vault, id, &run, told);
    }

    /// An open run has what it needs to go on, of the very step that was released last; an ended one has nothing.
    fn check_state(&self, vault: &Vault, id: &RunId, run: &Run) {
        if !run.is_open() {
            assert!(matches!(vault.read_order(id), Err(NotResumable::NoOrder)));
            return;
        }
        assert_eq!(*vault.read_order(id).unwrap(), order_bytes());
        let stored = vault.read_checkpoint(id).unwrap();
        assert_eq!(
            stored.as_ref().map_or(0, |stored| stored.step),
            run.released_step()
        );
        if let Some(stored) = stored {
            assert_eq!(*stored.data, checkpoint(stored.step).parts.concat());
        }
    }

    /// Rule D1: what was told stays, and no step has two values.
    fn check_values(&self, vault: &Vault, id: &RunId, run: &Run, told: &RunTold) {
        assert!(
            run.released_step() >= told.released_told,
            "released progress is lost"
        );
        let stored = vault.released_values(id, 0).unwrap();
        assert_eq!(
            stored.len() as u64,
            run.released_step(),
            "a value per released step, and none beyond"
        );
        for value in stored {
            assert_eq!(Some(&value), told.values_asked.get(&value.step));
        }
    }

    fn check_weights(&self, vault: &Vault, id: &RunId, run: &Run, told: &RunTold) {
        assert_eq!(
            run.weights_digest().is_some(),
            run.status() == RunStatus::Committed(Outcome::Succeeded)
        );
        for recipient in &told.release_told {
            assert!(
                run.released_to().contains(recipient),
                "a release is not in the ledger"
            );
        }
        if run.weights_digest().is_some() {
            let receipt = vault.read(|ledger| ledger.budget_receipt(id)).unwrap();
            // To a recipient who has them already: this check leaves no entry; else reading is checked by a fork.
            if let Some(recipient) = run.released_to().first() {
                let released = vault.release_weights(receipt, *recipient, T0).unwrap();
                assert_eq!(released.data, weights(told.weights_seed).data);
            }
        }
    }

    /// As released values: what was told stays, and what is there was asked for. Read back it is what was sent, if its
    /// run succeeded; and nobody gets any of it before.
    fn check_kept(&self, vault: &Vault, id: &RunId, run: &Run, told: &RunTold) {
        let found: BTreeSet<(u64, bool)> = run.kept().iter().map(|kept| (kept.step, kept.ema)).collect();
        assert!(told.kept_told.is_subset(&found), "kept weights are lost");
        assert!(found.is_subset(&told.kept_asked));
        assert!(found.iter().all(|(step, _)| *step <= run.released_step()));
        let Some(receipt) = vault.read(|ledger| ledger.budget_receipt(id)) else {
            return;
        };
        for (step, ema) in found {
            let at = WeightsAt { step, ema };
            let read = vault.entitled_weights_at(&receipt, at, scientist());
            if run.weights_digest().is_none() {
                assert!(read.is_err(), "kept weights of a run that did not succeed");
            } else if step < run.steps() || ema {
                assert_eq!(read.unwrap().data, kept(*id, (step, ema)).weights.data);
            }
        }
    }

    /// Recounted from what was told: started runs are charged in full, and nothing exceeds the lifetime.
    /// What an account of Rényi divergences holds, from what was told: a started run is charged, whole or for at least the
    /// steps that it had started when it was stopped.
    fn check_divergences(&self, vault: &Vault) {
        for dataset in self.datasets.keys() {
            let account = vault.read(|ledger| ledger.dataset(dataset).unwrap().renyi_account().cloned());
            let Some(account) = account else { continue };
            let used = account.used();
            assert!(account.filter().holds(&used), "overdrawn");
            let mut expected = 0;
            for (id, told) in &self.runs {
                if told.charges.iter().all(|(charged, _)| charged != dataset) {
                    continue;
                }
                let run = vault.read(|ledger| ledger.run(id).cloned());
                let steps = match run.as_ref().map(|run| (run.status(), run.started_steps())) {
                    None | Some((RunStatus::Refunded(_), _)) => 0,
                    Some((_, Some(started))) => {
                        assert_eq!(Some(started), told.stop_asked);
                        started
                    }
                    Some((_, None)) => 10,
                };
                assert!(
                    !told.start_told || steps > told.released_told.min(9),
                    "under-counted"
                );
                expected += (RHO.units() * steps).div_ceil(10);
            }
            assert!(used.rho().iter().all(|rho| rho.units() == expected));
        }
    }

    fn check_budgets(&self, vault: &Vault) {
        self.check_divergences(vault);
        for dataset in self.datasets.keys() {
            let account = budget(vault, dataset);
            let used = account.committed.checked_add(account.reserved).unwrap();
            let by_sums = vault.read(|ledger| ledger.dataset(dataset).unwrap().renyi_account().is_none());
            assert!(!by_sums || used.fits_within(account.lifetime), "overdrawn");
            let sum = |counts: &dyn Fn(&RunId, &RunTold) -> bool| {
                let charges = self
                    .runs
                    .iter()
                    .filter(|(id, told)| counts(id, told))
                    .flat_map(|(_, told)| &told.charges);
                let charges = charges
                    .filter(|(charged, _)| charged == dataset)
                    .map(|(_, amount)| *amount);
                charges.fold(Amount::ZERO, |sum, amount| sum.checked_add(amount).unwrap())
            };
            let told = sum(&|_, told| told.start_told);
            assert!(
                told.fits_within(used),
                "under-counted: {told} was started, {used} is charged"
            );
            let refunded = |id: &RunId| {
                vault.read(|ledger| {
                    ledger
                        .run(id)
                        .is_none_or(|run| matches!(run.status(), RunStatus::Refunded(_)))
                })
            };
            assert_eq!(
                used,
                sum(&|id, _| !refunded(id)),
                "exactly the runs that are not refunded are charged"
            );
        }
    }
}

/// Every kind of step once; stops at the first failure a caller is told of unless `carry_on`.
fn script(disk: &Disk, oracle: &mut Oracle, carry_on: bool) {
    let Ok(vault) = oracle.boot(disk) else { return };
    let mut steps: Vec<Step> = Vec::new();
    steps.push(Box::new(|oracle, vault| oracle.upload(vault, 30)));
    steps.push(Box::new(|oracle, vault| oracle.upload(vault, 3)));
    steps.push(Box::new(|oracle, vault| oracle.abandon(vault, 9)));
    steps.push(Box::new(|oracle, vault| {
        let datasets: Vec<DatasetId> = oracle.datasets.keys().copied().collect();
        oracle.reserve(vault, &datasets, amount("1", "1e-6")).map(drop)
    }));
    steps.push(on_last_run(Oracle::start));
    steps.push(on_last_run(|oracle, vault, run| oracle.advance(vault, run, 4)));
    steps.push(on_last_run(|oracle, vault, run| oracle.advance(vault, run, 10)));
    steps.push(on_last_run(|oracle, vault, run| {
        oracle.commit(vault, run, Outcome::Succeeded)
    }));
    steps.push(on_last_run(|oracle, vault, run| {
        oracle.release(vault, run, scientist())
    }));
    steps.push(Box::new(reserve_on_first));
    steps.push(on_last_run(Oracle::refund));
    steps.push(Box::new(reserve_on_first));
    steps.push(on_last_run(Oracle::start));
    steps.push(on_last_run(|oracle, vault, run| oracle.advance(vault, run, 3)));
    steps.push(on_last_run(Oracle::suspend));
    steps.push(on_last_run(Oracle::unsuspend));
    steps.push(on_last_run(|oracle, vault, run| oracle.advance(vault, run, 5)));
    steps.push(on_last_run(Oracle::suspend));
    steps.push(Box::new(reserve_on_first));
    steps.push(Box::new(|oracle, vault| {
        let last = oracle.datasets.keys().next_back().copied();
        last.map_or(Ok(()), |dataset| oracle.remove(vault, dataset))
    }));
    for step in &mut steps {
        let told = step(oracle, &vault);
        oracle.remember_head(&vault);
        if told.is_err() && !carry_on {
            return;
        }
    }
}

fn on_last_run(step: impl Fn(&mut Oracle, &Vault, RunId) -> Told + 'static) -> Step {
    Box::new(move |oracle, vault| {
        let last = vault.read(|ledger| ledger.runs().last().map(Run::id));
        last.map_or(Ok(()), |run| step(oracle, vault, run))
    })
}

fn reserve_on_first(oracle: &mut Oracle, vault: &Vault) -> Told {
    let first = oracle
        .datasets
        .keys()
        .find(|id| !oracle.removals_asked.contains(id))
        .copied();
    first.map_or(Ok(()), |dataset| {
        oracle.reserve(vault, &[dataset], amount("0.5", "1e-7")).map(drop)
    })
}

/// Opens the disk again, checks everything, and shows that the vault still works.
fn reopen_and_check(disk: &Disk, oracle: &mut Oracle) {
    disk.plan(None);
    let acknowledged = oracle.head.map_or(0, |head| head.sequence);
    {
        let vault = disk.open().expect("a vault opens after any crash");
        let found = vault.head().sequence;
        let boot_and_settlements = 4;
        assert!(
            found <= acknowledged + 1 + boot_and_settlements,
            "more than the step in doubt appeared"
        );
    }
    let vault = oracle.boot(disk).expect("a vault boots after any crash");
    oracle.check(disk, &vault);
    oracle.upload(&vault, 5).unwrap();
    reserve_on_first(oracle, &vault).unwrap();
    oracle.remember_head(&vault);
    oracle.check(disk, &vault);
}

fn operations_of_the_script() -> u64 {
    let (disk, mut oracle) = (Disk::formatted(), Oracle::default());
    script(&disk, &mut oracle, false);
    assert_eq!(
        (oracle.datasets.len(), oracle.runs.len(), oracle.removed.len()),
        (2, 4, 1),
        "without a fault all of it works"
    );
    let operations = disk.operations();
    assert!(operations > 100, "{operations} writes and syncs");
    operations
}

#[test]
fn power_loss_at_every_write_and_sync_loses_nothing_acknowledged() {
    for at in 0..operations_of_the_script() {
        for survival in [Survival::Nothing, Survival::Everything, Survival::Random(at)] {
            let (disk, mut oracle) = (Disk::formatted(), Oracle::default());
            disk.plan(Some(Fault::PowerLoss { at }));
            script(&disk, &mut oracle, false);
            disk.power_cycle(survival);
            reopen_and_check(&disk, &mut oracle);
        }
    }
}

#[test]
fn an_error_at_every_write_and_sync_is_told_and_leaves_nothing_half_done() {
    let mut told = 0;
    for at in 0..operations_of_the_script() {
        let (disk, mut oracle) = (Disk::formatted(), Oracle::default());
        disk.plan(Some(Fault::Error { at }));
        script(&disk, &mut oracle, true);
        told += u64::from(oracle.datasets.len() < 2 || oracle.runs.len() < 4 || oracle.removed.is_empty());
        disk.kill_process();
        reopen_and_check(&disk, &mut oracle);
    }
    assert!(told > 100, "{told}: most errors are seen by a caller");
}

/// Many lives of one vault: random steps, random faults, random survival of what was not synced.
#[test]
fn a_few_hundred_random_crashes_lose_nothing_acknowledged() {
    let mut crashes = 0;
    for seed in 0..60 {
        let mut random = Random(seed);
        let (disk, mut oracle) = (Disk::formatted(), Oracle::default());
        for _life in 0..6 {
            let at = random.below(200);
            disk.plan(Some(if random.below(3) == 0 {
                Fault::Error { at }
            } else {
                Fault::PowerLoss { at }
            }));
            live(&disk, &mut oracle, &mut random);
            crashes += u64::from(disk.is_dead());
            disk.power_cycle(Survival::Random(random.next()));
            disk.plan(None);
            let vault = oracle
                .boot(&disk)
                .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            oracle.check(&disk, &vault);
        }
    }
    assert!(crashes > 150, "{crashes} of 360 lives ended by a loss of power");
}

fn live(disk: &Disk, oracle: &mut Oracle, random: &mut Random) {
    let Ok(vault) = oracle.boot(disk) else { return };
    for _ in 0..30 {
        let told = random_step(oracle, &vault, random);
        oracle.remember_head(&vault);
        if told.is_err() && disk.is_dead() {
            return;
        }
    }
}

fn random_step(oracle: &mut Oracle, vault: &Vault, random: &mut Random) -> Told {
    let datasets: Vec<DatasetId> = oracle
        .datasets
        .keys()
        .filter(|id| !oracle.removals_asked.contains(id))
        .copied()
        .collect();
    let runs: Vec<RunId> =
        vault.read(|ledger| ledger.runs().filter(|run| run.is_open()).map(Run::id).collect());
    let ended: Vec<RunId> =
        vault.read(|ledger| ledger.runs().filter(|run| !run.is_open()).map(Run::id).collect());
    let mut pick =
        |from: &[RunId]| (!from.is_empty()).then(|| from[random.below(from.len() as u64) as usize]);
    let (open, closed) = (pick(&runs), pick(&ended));
    match (random.below(16), open) {
        (15, Some(run)) => oracle.stop(vault, run),
        (0, _) => oracle.upload(vault, random.below(33)),
        (1, _) => oracle.abandon(vault, random.below(33)),
        (2, _) if datasets.len() > 3 => {
            oracle.remove(vault, datasets[random.below(datasets.len() as u64) as usize])
        }
        (2 | 3, _) if !datasets.is_empty() => {
            let count = 1 + random.below(datasets.len() as u64) as usize;
            oracle
                .reserve(vault, &datasets[..count], amount("0.3", "1e-7"))
                .map(drop)
        }
        (4 | 5, Some(run)) => oracle.start(vault, run),
        (6 | 7, Some(run)) => {
            let from = vault.read(|ledger| ledger.run(&run).unwrap().released_step());
            if from < 10 {
                oracle.advance(vault, run, from + 1 + random.below(10 - from))
            } else {
                Ok(())
            }
        }
        (8, Some(run)) => {
            let done = vault.read(|ledger| ledger.run(&run).unwrap().released_step()) == 10;
            oracle.commit(
                vault,
                run,
                if done {
                    Outcome::Succeeded
                } else {
                    Outcome::Cancelled
                },
            )
        }
        (9, Some(run)) => oracle.refund(vault, run),
        (12, Some(run)) => oracle.suspend(vault, run),
        (13 | 14, Some(run)) => oracle.unsuspend(vault, run),
        (10 | 11, _) if closed.is_some() => oracle.release(vault, closed.unwrap(), scientist()),
        _ => Ok(()),
    }
}

#[test]
fn a_failed_database_write_poisons_the_vault_until_it_is_opened_again() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    let dataset = upload(&vault, "a", 3, 1).unwrap();
    let head = vault.head();
    // After the four writes and syncs of its order's blocks.
    disk.plan(Some(Fault::Error { at: 4 }));
    let first = vault
        .reserve_run(run_on(&vault, &[dataset], amount("1", "1e-6")), order(), T0)
        .unwrap_err();
    assert!(
        matches!(first, TransactError::Storage(StorageError::Database(_))),
        "{first}"
    );
    assert!(first.to_string().contains("restart the server"), "{first}");
    assert!(vault.is_poisoned());
    for _ in 0..3 {
        let next = vault
            .reserve_run(run_on(&vault, &[dataset], amount("1", "1e-6")), order(), T0)
            .unwrap_err();
        assert!(
            matches!(next, TransactError::Storage(StorageError::Poisoned)),
            "{next}"
        );
    }
    let upload_error = vault.begin_upload(header("b")).unwrap_err();
    assert!(
        matches!(upload_error, UploadError::Storage(StorageError::Poisoned)),
        "{upload_error}"
    );
    assert_eq!(vault.head(), head, "what was durable can still be shown");
    assert_eq!(budget(&vault, &dataset).remaining, lifetime());
    drop(vault);
    disk.kill_process();
    let vault = disk.boot(2);
    assert!(vault.head().sequence > head.sequence);
    let _ = vault
        .reserve_run(run_on(&vault, &[dataset], amount("1", "1e-6")), order(), T0)
        .unwrap();
}

#[test]
fn a_full_disk_fails_the_upload_alone() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    for at in 0..3 {
        let mut attempt = vault.begin_upload(header("a")).unwrap();
        disk.plan(Some(Fault::Error { at }));
        // Blocks are written behind the sender's back: a later push may hear of it, at the latest the finish.
        let pushed = attempt.push(16, &rows(16, 1));
        let error = pushed.and_then(|()| attempt.finish(16, T0)).unwrap_err();
        assert!(
            error.to_string().contains("write a block") && error.to_string().contains("no space left"),
            "{error}"
        );
        assert!(disk.objects().is_empty(), "what was written is deleted");
    }
    disk.plan(None);
    assert!(!vault.is_poisoned());
    assert_eq!(
        vault
            .read_dataset(&upload(&vault, "a", 16, 1).unwrap())
            .unwrap()
            .rows,
        16
    );
}

#[test]
fn a_disk_that_fails_while_opening_gives_an_error_and_opens_later() {
    let disk = Disk::default();
    let dataset = upload(&disk.boot(1), "a", 3, 1).unwrap();
    let mut errors = 0;
    for at in 0..40 {
        disk.plan(Some(Fault::PowerLoss { at }));
        errors += u64::from(disk.open().is_err());
        disk.power_cycle(Survival::Random(at));
        disk.plan(None);
        assert_eq!(disk.open().unwrap().read_dataset(&dataset).unwrap().rows, 3);
    }
    assert!(errors > 0);
}
