//! Checkpoints and orders at rest: of this run, this agreement, this step and this version, or none.
#![allow(clippy::unwrap_used)]
mod common;

use bastionai_ledger::*;
use bastionai_vault::*;
use common::*;
use redb::{Database, ReadableTable, TableDefinition};
use std::path::Path;

const CHECKPOINTS: TableDefinition<[u8; 16], &[u8]> = TableDefinition::new("checkpoints");
const ORDERS: TableDefinition<[u8; 16], &[u8]> = TableDefinition::new("orders");

fn open(directory: &Path) -> Vault {
    Vault::open(directory, &root(), config(), T0).unwrap()
}

/// Two runs, at steps 3 and 4 of 10.
fn two_runs(directory: &Path) -> [RunId; 2] {
    let vault = open(directory);
    vault.start_boot(boot(1), |_| false, T0).unwrap();
    let dataset = upload(&vault, "a", 21, 5).unwrap();
    [3, 4].map(|step| {
        let reserved = run_on(&vault, &[dataset], amount("1", "1e-6"));
        let run = reserved.run;
        let reservation = vault.reserve_run(reserved, order(), T0).unwrap();
        let started = vault.start_run(reservation, T0).unwrap();
        vault
            .advance_run(&started, checkpoint(step), &[value(step)], T0)
            .unwrap();
        run
    })
}

fn row(directory: &Path, table: TableDefinition<'static, [u8; 16], &'static [u8]>, run: RunId) -> Vec<u8> {
    let database = Database::open(directory.join("vault.redb")).unwrap();
    let write = database.begin_write().unwrap();
    write
        .open_table(table)
        .unwrap()
        .get(*run.as_bytes())
        .unwrap()
        .unwrap()
        .value()
        .to_vec()
}

fn replace(
    directory: &Path,
    table: TableDefinition<'static, [u8; 16], &'static [u8]>,
    run: RunId,
    row: Option<&[u8]>,
) {
    let database = Database::open(directory.join("vault.redb")).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut table = write.open_table(table).unwrap();
        match row {
            Some(row) => drop(table.insert(*run.as_bytes(), row).unwrap()),
            None => drop(table.remove(*run.as_bytes()).unwrap()),
        }
    }
    write.commit().unwrap();
}

/// Restarts; what `check_resumable` says decides: (why the first run cannot go on, how each ended up).
fn restart(directory: &Path, runs: &[RunId; 2]) -> (Option<String>, [RunStatus; 2]) {
    let vault = open(directory);
    let why = vault
        .check_resumable(&runs[0], conditions())
        .err()
        .map(|why| why.to_string());
    let resumable = |orphan: &Orphan| vault.check_resumable(&orphan.run, conditions()).is_ok();
    vault.start_boot(boot(2), resumable, T0).unwrap();
    let status = |run| vault.read(|ledger| ledger.run(run).unwrap().status());
    (why, [status(&runs[0]), status(&runs[1])])
}

const FAILED: RunStatus = RunStatus::Committed(Outcome::Failed);

#[test]
fn a_run_goes_on_from_its_last_checkpoint_in_the_next_boot() {
    let directory = tempfile::tempdir().unwrap();
    let runs = two_runs(directory.path());
    assert_eq!(restart(directory.path(), &runs), (None, [RunStatus::Started; 2]));
    let vault = open(directory.path());
    for (run, step) in runs.iter().zip([3, 4]) {
        let stored = vault.read_checkpoint(run).unwrap().unwrap();
        assert_eq!(
            (stored.step, &stored.data[..]),
            (step, &checkpoint(step).parts.concat()[..])
        );
        assert_eq!(*vault.read_order(run).unwrap(), order_bytes());
    }
}

#[test]
fn a_checkpoint_of_another_run_step_or_version_is_refused_and_its_run_ends_failed_and_charged() {
    type Tamper = fn(&Path, &[RunId; 2]);
    let tampers: [(&str, Tamper, &str); 7] = [
        (
            "another run's",
            |path, runs| {
                let other = row(path, CHECKPOINTS, runs[1]);
                replace(path, CHECKPOINTS, runs[0], Some(&other));
            },
            "does not open",
        ),
        (
            "an earlier step's",
            |path, runs| {
                // As an operator might who kept a copy of the row, to see step 4 twice with two noises.
                let earlier = row(path, CHECKPOINTS, runs[0]);
                let vault = open(path);
                let started = vault.read(|ledger| ledger.started(&runs[0])).unwrap();
                vault
                    .advance_run(&started, checkpoint(5), &[value(5)], T0)
                    .unwrap();
                drop(vault);
                replace(path, CHECKPOINTS, runs[0], Some(&earlier));
            },
            "does not open",
        ),
        (
            "another version's",
            |path, runs| {
                let mut newer = row(path, CHECKPOINTS, runs[0]);
                newer[0] = 2;
                replace(path, CHECKPOINTS, runs[0], Some(&newer));
            },
            "version 2",
        ),
        (
            "cut short",
            |path, runs| {
                let whole = row(path, CHECKPOINTS, runs[0]);
                replace(path, CHECKPOINTS, runs[0], Some(&whole[..whole.len() - 1]));
            },
            "does not open",
        ),
        (
            "shorter than a version",
            |path, runs| replace(path, CHECKPOINTS, runs[0], Some(&[1, 0])),
            "does not open",
        ),
        (
            "gone",
            |path, runs| replace(path, CHECKPOINTS, runs[0], None),
            "missing",
        ),
        (
            "with another run's order",
            |path, runs| {
                let other = row(path, ORDERS, runs[1]);
                replace(path, ORDERS, runs[0], Some(&other));
            },
            "does not open",
        ),
    ];
    for (what, tamper, expected) in tampers {
        let directory = tempfile::tempdir().unwrap();
        let runs = two_runs(directory.path());
        tamper(directory.path(), &runs);
        let (why, ended) = restart(directory.path(), &runs);
        assert_eq!(ended, [FAILED, RunStatus::Started], "{what}");
        assert!(
            why.as_ref().is_some_and(|why| why.contains(expected)),
            "{what}: {why:?}"
        );
        let vault = open(directory.path());
        let dataset = vault.read(|ledger| ledger.dataset_named("a").unwrap().id());
        let account = budget(&vault, &dataset);
        assert_eq!(
            (account.committed, account.reserved),
            (amount("1", "1e-6"), amount("1", "1e-6")),
            "{what}"
        );
    }
}

#[test]
fn every_flipped_bit_of_a_checkpoints_record_or_blocks_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let runs = two_runs(directory.path());
    let whole = row(directory.path(), CHECKPOINTS, runs[0]);
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        replace(directory.path(), CHECKPOINTS, runs[0], Some(&flipped));
        let database = open(directory.path());
        assert!(
            database.check_resumable(&runs[0], conditions()).is_err(),
            "byte {at}"
        );
    }

    let disk = Disk::default();
    let vault = disk.boot(1);
    let dataset = upload(&vault, "a", 3, 7).unwrap();
    let before = disk.objects();
    let reservation = vault
        .reserve_run(run_on(&vault, &[dataset], amount("1", "1e-6")), order(), T0)
        .unwrap();
    let run = reservation.run();
    let started = vault.start_run(reservation, T0).unwrap();
    vault.advance_run(&started, checkpoint(2), &[], T0).unwrap();
    let intact = disk.blocks();
    for (key, block) in intact.iter().filter(|((object, _), _)| !before.contains(object)) {
        let mut damaged = vec![block[..block.len() - 1].to_vec()];
        damaged.extend((0..block.len()).map(|at| {
            let mut flipped = block.clone();
            flipped[at] ^= 0x10;
            flipped
        }));
        for block in damaged {
            let mut blocks = intact.clone();
            blocks.insert(*key, block);
            disk.set_blocks(blocks);
            assert!(
                vault.read_order(&run).is_err() || vault.read_checkpoint(&run).is_err(),
                "{key:?}"
            );
        }
    }
    // Two blocks of one object exchanged.
    let checkpoint_blocks: Vec<_> = intact
        .keys()
        .filter(|(object, _)| !before.contains(object))
        .collect();
    let mut swapped = intact.clone();
    let [one, other] = [checkpoint_blocks[0], checkpoint_blocks[1]];
    assert_eq!(one.0, other.0);
    swapped.insert(*one, intact[other].clone());
    swapped.insert(*other, intact[one].clone());
    disk.set_blocks(swapped);
    assert!(vault.read_order(&run).is_err() || vault.read_checkpoint(&run).is_err());
}

#[test]
fn another_program_or_configuration_does_not_go_on_with_a_run() {
    let directory = tempfile::tempdir().unwrap();
    let runs = two_runs(directory.path());
    let vault = open(directory.path());
    let other = Digest32::of(b"another program");
    let why = vault.check_resumable(&runs[0], other).unwrap_err();
    assert!(matches!(why, NotResumable::OtherConditions), "{why}");
    vault
        .start_boot(
            boot(2),
            |orphan| vault.check_resumable(&orphan.run, other).is_ok(),
            T0,
        )
        .unwrap();
    assert_eq!(
        vault.read(|ledger| ledger.run(&runs[0]).unwrap().status()),
        FAILED
    );
    assert!(
        matches!(vault.read_order(&runs[0]), Err(NotResumable::NoOrder)),
        "nothing of it is kept"
    );
}

#[test]
fn a_withdrawn_dataset_ends_what_a_restart_finds_open_on_it() {
    let directory = tempfile::tempdir().unwrap();
    let runs = two_runs(directory.path());
    let vault = open(directory.path());
    let dataset = vault.read(|ledger| ledger.dataset_named("a").unwrap().id());
    vault.withdraw_dataset(&dataset, principal(1), T0).unwrap();
    drop(vault);
    assert_eq!(restart(directory.path(), &runs), (None, [FAILED, FAILED]));
}

#[test]
fn only_the_last_checkpoint_is_kept_and_nothing_once_the_run_has_ended() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    let dataset = upload(&vault, "a", 3, 7).unwrap();
    let (alone, reserved) = (
        disk.objects().len(),
        run_on(&vault, &[dataset], amount("1", "1e-6")),
    );
    let run = reserved.run;
    let reservation = vault.reserve_run(reserved, order(), T0).unwrap();
    let started = vault.start_run(reservation, T0).unwrap();
    for step in 1..=10 {
        vault
            .advance_run(&started, checkpoint(step), &[value(step)], T0)
            .unwrap();
        assert_eq!(disk.objects().len(), alone + 2, "order and checkpoint");
    }
    vault
        .commit_run(started, RunEnd::Succeeded(weights(1)), T0)
        .unwrap();
    assert_eq!(disk.objects().len(), alone + 1, "weights");
    assert!(matches!(vault.read_order(&run), Err(NotResumable::NoOrder)));
}

#[test]
fn a_suspended_run_releases_nothing_and_stores_nothing() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    let dataset = upload(&vault, "a", 3, 7).unwrap();
    let reservation = vault
        .reserve_run(run_on(&vault, &[dataset], amount("1", "1e-6")), order(), T0)
        .unwrap();
    let run = reservation.run();
    let started = vault.start_run(reservation, T0).unwrap();
    vault
        .advance_run(&started, checkpoint(2), &[value(2)], T0)
        .unwrap();
    vault.suspend_run(run, principal(1), T0).unwrap();
    let before = (disk.objects(), vault.head());
    let refused = vault
        .advance_run(&started, checkpoint(3), &[value(3)], T0)
        .unwrap_err();
    assert!(refused.to_string().contains("suspended"), "{refused}");
    assert_eq!((disk.objects(), vault.head()), before);
    assert_eq!(vault.released_values(&run, 0).unwrap(), [value(2)]);
    assert!(vault.unsuspend_run(run, scientist(), T0).is_err());
    vault.unsuspend_run(run, principal(1), T0).unwrap();
    vault
        .advance_run(&started, checkpoint(3), &[value(3)], T0)
        .unwrap();
}
