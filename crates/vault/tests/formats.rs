//! The format on disk: vaults of all formats so far open, newer ones and tampered ones do not.
#![allow(clippy::unwrap_used)]
mod common;

use bastionai_ledger::*;
use bastionai_vault::error::FORMAT_VERSION;
use bastionai_vault::*;
use common::*;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const LEDGER: TableDefinition<u64, &[u8]> = TableDefinition::new("ledger");
const KEYS: TableDefinition<[u8; 16], &[u8]> = TableDefinition::new("keys");
const DATASETS: TableDefinition<[u8; 16], &[u8]> = TableDefinition::new("datasets");

/// One dataset of 21 rows (seed 5), one successful run (weights seed 9), one run left at step 3 (format 1: left started).
fn write_vault(path: &Path) -> Vault {
    let vault = Vault::open(path, &root(), config(), T0).unwrap();
    vault.start_boot(boot(1), |_| false, T0).unwrap();
    let dataset = upload(&vault, "tumours", 21, 5).unwrap();
    let reservation = vault
        .reserve_run(run_on(&vault, &[dataset], amount("1", "1e-6")), order(), T0)
        .unwrap();
    let started = vault.start_run(reservation, T0).unwrap();
    vault
        .advance_run(&started, checkpoint(10), &[value(5), value(10)], T0)
        .unwrap();
    vault
        .commit_run(started, RunEnd::Succeeded(weights(9)), T0)
        .unwrap();
    let reservation = vault
        .reserve_run(run_on(&vault, &[dataset], amount("2", "1e-6")), order(), T0)
        .unwrap();
    let started = vault.start_run(reservation, T0).unwrap();
    vault
        .advance_run(&started, checkpoint(3), &[value(3)], T0)
        .unwrap();
    vault
}

fn fixture(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/vault-v{version}"))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target)
        } else {
            assert!(std::fs::copy(entry.path(), target).is_ok())
        }
    }
}

/// With `BASTIONAI_WRITE_FIXTURES=1` (scripts/make_vault_fixture.sh) it is written, if it is not there.
#[test]
fn the_current_format_has_a_fixture() {
    let fixture = fixture(FORMAT_VERSION);
    if std::env::var_os("BASTIONAI_WRITE_FIXTURES").is_some() {
        std::fs::create_dir(&fixture).expect("a released fixture is never overwritten");
        let head = write_vault(&fixture).head();
        std::fs::write(fixture.join("head.txt"), head.entry_hash.to_string()).unwrap();
    }
    assert!(
        fixture.join("vault.redb").is_file(),
        "run scripts/make_vault_fixture.sh"
    );
}

#[test]
fn a_vault_of_every_format_ever_released_opens_with_all_it_holds() {
    for version in 1..=FORMAT_VERSION {
        let directory = tempfile::tempdir().unwrap();
        copy(&fixture(version), directory.path());
        let expected = std::fs::read_to_string(fixture(version).join("head.txt")).unwrap();
        // No run of format 1 outlived its boot; since format 2 one does.
        opens_with_all_it_holds(directory.path(), &expected, version > 1);
    }
}

fn opens_with_all_it_holds(path: &Path, expected: &str, resumed: bool) {
    // Twice: what the first opening migrates, the second finds.
    drop(Vault::open(path, &root(), VaultConfig::default(), T0).unwrap());
    let vault = Vault::open(path, &root(), VaultConfig::default(), T0).unwrap();
    assert_eq!(vault.head().entry_hash.to_string(), expected);
    let resumable = |orphan: &Orphan| vault.check_resumable(&orphan.run, conditions()).is_ok();
    let left_open = vault.start_boot(boot(2), resumable, T0).unwrap();
    assert_eq!(
        left_open.iter().map(|(_, resumed)| *resumed).collect::<Vec<_>>(),
        [resumed]
    );
    if resumed {
        let run = left_open[0].0.run;
        assert_eq!(*vault.read_order(&run).unwrap(), order_bytes());
        assert_eq!(
            *vault.read_checkpoint(&run).unwrap().unwrap().data,
            checkpoint(3).parts.concat()
        );
        let started = vault.read(|ledger| ledger.started(&run)).unwrap();
        vault.commit_run(started, RunEnd::Failed, T0).unwrap();
    }
    let dataset = vault.read(|ledger| ledger.dataset_named("tumours").unwrap().id());
    assert_eq!(budget(&vault, &dataset).committed, amount("3", "2e-6"));
    let stored = vault.read_dataset(&dataset).unwrap();
    assert_eq!(
        (stored.rows, &stored.columns[1][..210]),
        (21, &rows(21, 5)[1][..])
    );
    let run = vault.read(|ledger| ledger.runs().next().unwrap().id());
    assert_eq!(vault.released_values(&run, 0).unwrap(), [value(5), value(10)]);
    let receipt = vault.read(|ledger| ledger.budget_receipt(&run)).unwrap();
    assert_eq!(
        vault.release_weights(receipt, scientist(), T0).unwrap().data,
        weights(9).data
    );
    assert_eq!(
        vault.boot_evidence(&boot(1).evidence.boot).unwrap(),
        boot(1).evidence
    );
    // What was opened can be gone on with, and opens again.
    upload(&vault, "later", 4, 6).unwrap();
    let head = vault.head();
    drop(vault);
    let again = Vault::open(path, &root(), VaultConfig::default(), T0).unwrap();
    assert_eq!(again.head(), head);
}

/// Everything below a directory, by path.
fn contents(path: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(path).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            contents(&entry.path(), found);
        } else {
            found.insert(entry.path(), std::fs::read(entry.path()).unwrap());
        }
    }
}

#[test]
fn a_vault_of_a_newer_format_is_refused_by_number_and_keeps_everything() {
    let directory = tempfile::tempdir().unwrap();
    drop(write_vault(directory.path()));
    set_format(directory.path(), FORMAT_VERSION + 1);
    let entries = |path: &Path| {
        let database = Database::open(path.join("vault.redb")).unwrap();
        let write = database.begin_write().unwrap();
        let rows = ledger_rows(&write);
        write.abort().unwrap();
        rows
    };
    let ledger = entries(directory.path());
    let mut blocks = BTreeMap::new();
    contents(&directory.path().join("blocks"), &mut blocks);
    let error = Vault::open(directory.path(), &root(), config(), T0).unwrap_err();
    let text = error.to_string();
    let (found, known) = (FORMAT_VERSION + 1, FORMAT_VERSION);
    assert!(
        text.contains(&format!("format version {found}"))
            && text.contains(&format!("up to {known}"))
            && text.contains("update"),
        "{text}"
    );
    let mut after = BTreeMap::new();
    contents(&directory.path().join("blocks"), &mut after);
    assert_eq!(blocks, after, "no block is swept away");
    assert_eq!(entries(directory.path()), ledger);
    // The program that wrote it still opens it.
    set_format(directory.path(), FORMAT_VERSION);
    assert!(Vault::open(directory.path(), &root(), config(), T0).is_ok());
}

fn set_format(path: &Path, version: u32) {
    let database = Database::open(path.join("vault.redb")).unwrap();
    let write = database.begin_write().unwrap();
    write
        .open_table(META)
        .unwrap()
        .insert("format", &version.to_le_bytes()[..])
        .unwrap();
    write.commit().unwrap();
}

/// Writes a vault, lets `tamper` loose on its database, opens it.
fn tampered(tamper: impl FnOnce(&redb::WriteTransaction)) -> Result<Vault, OpenError> {
    let directory = tempfile::tempdir().unwrap();
    drop(write_vault(directory.path()));
    {
        let database = Database::open(directory.path().join("vault.redb")).unwrap();
        let write = database.begin_write().unwrap();
        tamper(&write);
        write.commit().unwrap();
    }
    Vault::open(directory.path(), &root(), config(), T0)
}

fn ledger_rows(write: &redb::WriteTransaction) -> Vec<(u64, Vec<u8>)> {
    let table = write.open_table(LEDGER).unwrap();
    table
        .iter()
        .unwrap()
        .map(|row| {
            row.map(|(at, bytes)| (at.value(), bytes.value().to_vec()))
                .unwrap()
        })
        .collect()
}

#[test]
fn a_newer_format_is_refused_and_says_so() {
    let error = tampered(|write| {
        write
            .open_table(META)
            .unwrap()
            .insert("format", &(FORMAT_VERSION + 1).to_le_bytes()[..])
            .unwrap();
    });
    let error = error.unwrap_err();
    assert!(
        matches!(error, OpenError::NewerFormat { found } if found == FORMAT_VERSION + 1),
        "{error}"
    );
    let older = tampered(|write| {
        write
            .open_table(META)
            .unwrap()
            .insert("format", &0u32.to_le_bytes()[..])
            .unwrap();
    });
    assert!(matches!(older.unwrap_err(), OpenError::NotAVault { .. }));
}

#[test]
fn a_truncated_ledger_is_refused() {
    let cut = tampered(|write| {
        let last = ledger_rows(write).len() as u64 - 1;
        write.open_table(LEDGER).unwrap().remove(last).unwrap();
    });
    let error = cut.unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Truncated {
                expected: 10,
                found: 9
            }
        ),
        "{error}"
    );
    let headless = tampered(|write| drop(write.open_table(META).unwrap().remove("head").unwrap()));
    assert!(matches!(headless.unwrap_err(), OpenError::NotAVault { .. }));
}

#[test]
fn removed_swapped_and_rewritten_entries_are_refused() {
    let missing = tampered(|write| drop(write.open_table(LEDGER).unwrap().remove(3).unwrap()));
    assert!(missing.is_err());
    let swapped = tampered(|write| {
        let rows = ledger_rows(write);
        let mut table = write.open_table(LEDGER).unwrap();
        table.insert(3, rows[4].1.as_slice()).unwrap();
        table.insert(4, rows[3].1.as_slice()).unwrap();
    });
    assert!(matches!(
        swapped.unwrap_err(),
        OpenError::Storage(StorageError::Sealed {
            what: "a ledger entry"
        })
    ));
    let flipped = tampered(|write| {
        let mut bytes = ledger_rows(write)[3].1.clone();
        bytes[40] ^= 1;
        write
            .open_table(LEDGER)
            .unwrap()
            .insert(3, bytes.as_slice())
            .unwrap();
    });
    assert!(matches!(
        flipped.unwrap_err(),
        OpenError::Storage(StorageError::Sealed { .. })
    ));
}

/// Rule A10: an operator who moves the key and record of one dataset under the id of another gets nothing.
#[test]
fn keys_and_records_of_one_dataset_do_not_open_another() {
    for tables in [&[KEYS][..], &[DATASETS], &[KEYS, DATASETS]] {
        let directory = tempfile::tempdir().unwrap();
        let ids = {
            let vault = write_vault(directory.path());
            upload(&vault, "second", 4, 6).unwrap();
            vault.read(|ledger| {
                ledger
                    .datasets()
                    .map(|dataset| *dataset.id().as_bytes())
                    .collect::<Vec<_>>()
            })
        };
        {
            let database = Database::open(directory.path().join("vault.redb")).unwrap();
            let write = database.begin_write().unwrap();
            for table in tables {
                let mut table = write.open_table(*table).unwrap();
                let moved = table.get(ids[0]).unwrap().unwrap().value().to_vec();
                table.insert(ids[1], moved.as_slice()).unwrap();
            }
            write.commit().unwrap();
        }
        let error = Vault::open(directory.path(), &root(), config(), T0).unwrap_err();
        assert!(
            matches!(error, OpenError::Storage(StorageError::Sealed { .. })),
            "{error}"
        );
    }
}

#[test]
fn something_else_in_its_place_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    {
        let database = Database::create(directory.path().join("vault.redb")).unwrap();
        let write = database.begin_write().unwrap();
        write
            .open_table(TableDefinition::<u64, u64>::new("other"))
            .unwrap();
        write.commit().unwrap();
        assert!(database.begin_read().is_ok());
    }
    let error = Vault::open(directory.path(), &root(), config(), T0).unwrap_err();
    assert!(matches!(error, OpenError::NotAVault { .. }), "{error}");
    std::fs::write(directory.path().join("vault.redb"), b"not a database").unwrap();
    assert!(matches!(
        Vault::open(directory.path(), &root(), config(), T0),
        Err(OpenError::Storage(_))
    ));
}

/// A changed database file gives an error, or a vault that holds a true prefix of the chain (as after a
/// rollback, which remembered heads detect): never a panic, never another history.
#[test]
fn flipped_bytes_of_the_database_never_change_history() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    upload(&vault, "a", 9, 1).unwrap();
    let links = vault.read(|ledger| ledger.extension(0).unwrap());
    let head = vault.head();
    drop(vault);
    let intact = disk.file();
    let used: Vec<usize> = (0..intact.len()).filter(|&at| intact[at] != 0).collect();
    let (mut random, mut refused) = (Random(1), 0);
    for round in 0..300 {
        let mut file = intact.clone();
        let at = used[random.below(used.len() as u64) as usize];
        file[at] ^= 1 << random.below(8);
        let copy = disk.fork();
        copy.set_file(file);
        match copy.open() {
            Err(_) => refused += 1,
            Ok(vault) => {
                let found = vault.head();
                let rest = &links[found.sequence as usize..];
                verify_extension(Some(&found), &head, rest)
                    .unwrap_or_else(|error| panic!("{round}: {error}"));
            }
        }
    }
    assert!(refused > 100, "{refused} of 300");
}
