//! What a vault does when nothing fails, and whom it refuses.
#![allow(clippy::unwrap_used)]
mod common;

use bastionai_ledger::*;
use bastionai_vault::*;
use common::*;
use proptest::prelude::*;
use std::sync::Barrier;
use std::time::{Duration, Instant};

fn open_directory(path: &std::path::Path) -> Result<Vault, OpenError> {
    Vault::open(path, &root(), config(), T0)
}

fn succeed(vault: &Vault, dataset: DatasetId, seed: u64) -> RunId {
    let reservation = vault
        .reserve_run(run_on(vault, &[dataset], amount("1", "1e-6")), order(), T0)
        .unwrap();
    let started = vault.start_run(reservation, T0).unwrap();
    let values: Vec<ReleasedValue> = (1..=10).map(value).collect();
    vault
        .advance_run(&started, checkpoint(4), &values[..4], T0)
        .unwrap();
    vault
        .advance_run(&started, checkpoint(10), &values[4..], T0)
        .unwrap();
    vault
        .commit_run(started, RunEnd::Succeeded(weights(seed)), T0)
        .unwrap()
        .run()
}

fn release(vault: &Vault, run: &RunId, recipient: Principal) -> Result<Weights, ReleaseError> {
    let receipt = vault.read(|ledger| ledger.budget_receipt(run)).unwrap();
    vault.release_weights(receipt, recipient, T0)
}

#[test]
fn everything_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (head, dataset, run);
    {
        let vault = open_directory(directory.path()).unwrap();
        vault.start_boot(boot(1), |_| false, T0).unwrap();
        dataset = upload(&vault, "tumours", 21, 5).unwrap();
        run = succeed(&vault, dataset, 9);
        head = vault.head();
        assert!(matches!(open_directory(directory.path()), Err(OpenError::InUse)));
    }
    let vault = open_directory(directory.path()).unwrap();
    assert_eq!(vault.head(), head);
    assert_eq!(vault.start_boot(boot(2), |_| false, T0).unwrap(), []);
    let stored = vault.read_dataset(&dataset).unwrap();
    assert_eq!((stored.rows, stored.declared_size), (21, 32));
    for ((column, sent), width) in stored.columns.iter().zip(rows(21, 5)).zip([4, 10]) {
        assert_eq!(column.len(), 32 * width);
        assert_eq!(column[..21 * width], sent);
        assert!(
            column[21 * width..].iter().all(|&byte| byte == 0),
            "padding is zero"
        );
    }
    assert_eq!(
        vault.released_values(&run, 0).unwrap(),
        (1..=10).map(value).collect::<Vec<_>>()
    );
    assert_eq!(
        vault.released_values(&run, 7).unwrap(),
        (7..=10).map(value).collect::<Vec<_>>()
    );
    let released = release(&vault, &run, scientist()).unwrap();
    assert_eq!(
        (&released.data, &released.tensors),
        (&weights(9).data, &weights(9).tensors)
    );
    assert_eq!(
        vault.boot_evidence(&boot(1).evidence.boot).unwrap(),
        boot(1).evidence
    );
    assert!(vault.boot_evidence(&BootId::from_bytes([9; 16])).is_err());
    let runner = Some(vault.boot_evidence(&boot(1).evidence.boot).unwrap());
    let receipt = vault
        .read(|ledger| Receipt::issue(ledger, &run, boot(2).evidence, runner, Vec::new(), T0))
        .unwrap();
    assert_eq!(receipt.run.weights_digest, Some(released.digest()));
}

#[test]
fn a_database_that_was_half_made_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("vault.redb.new"), [1; 5000]).unwrap();
    let vault = open_directory(directory.path()).unwrap();
    vault.start_boot(boot(1), |_| false, T0).unwrap();
    let head = vault.head();
    drop(vault);
    assert!(!directory.path().join("vault.redb.new").exists());
    std::fs::write(directory.path().join("vault.redb.new"), [1; 5000]).unwrap();
    assert_eq!(
        open_directory(directory.path()).unwrap().head(),
        head,
        "a leftover never replaces a vault"
    );
}

#[test]
fn a_missing_database_beside_blocks_is_refused_and_no_block_is_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let vault = open_directory(directory.path()).unwrap();
    vault.start_boot(boot(1), |_| false, T0).unwrap();
    let dataset = upload(&vault, "kept", 20, 1).unwrap();
    drop(vault);
    let (database, away) = (directory.path().join("vault.redb"), directory.path().join("away"));
    std::fs::rename(&database, &away).unwrap();
    for _ in 0..2 {
        let error = open_directory(directory.path()).unwrap_err();
        assert!(matches!(error, OpenError::DatabaseMissing), "{error}");
    }
    std::fs::rename(&away, &database).unwrap();
    let vault = open_directory(directory.path()).unwrap();
    assert_eq!(vault.read_dataset(&dataset).unwrap().rows, 20);
}

#[test]
fn weights_go_to_those_entitled_and_each_release_is_entered_once() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    let dataset = upload(&vault, "a", 5, 1).unwrap();
    let run = succeed(&vault, dataset, 2);
    let before = vault.head();
    let stranger = release(&vault, &run, principal(55)).unwrap_err();
    assert!(
        stranger.to_string().contains("do not allow its weights"),
        "{stranger}"
    );
    assert_eq!(vault.head(), before, "a refused release leaves no entry");
    for recipient in [scientist(), scientist(), principal(200)] {
        assert_eq!(
            release(&vault, &run, recipient).unwrap().digest(),
            weights(2).digest()
        );
    }
    assert_eq!(vault.head().sequence, before.sequence + 2);
}

#[test]
fn a_failed_run_is_charged_and_has_no_weights() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    let dataset = upload(&vault, "a", 5, 1).unwrap();
    for end in [RunEnd::Failed, RunEnd::Cancelled] {
        let reservation = vault
            .reserve_run(run_on(&vault, &[dataset], amount("1", "1e-6")), order(), T0)
            .unwrap();
        let started = vault.start_run(reservation, T0).unwrap();
        let receipt = vault.commit_run(started, end, T0).unwrap();
        let nothing = vault.release_weights(receipt, scientist(), T0).unwrap_err();
        assert!(
            matches!(nothing, ReleaseError::Read(ReadError::NoWeights { .. })),
            "{nothing}"
        );
    }
    assert_eq!(budget(&vault, &dataset).committed, amount("2", "2e-6"));
}

#[test]
fn an_abandoned_or_refused_upload_leaves_nothing() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    upload(&vault, "taken", 5, 1).unwrap();
    let (head, objects) = (vault.head(), disk.objects());
    let mut abandoned = vault.begin_upload(header("b")).unwrap();
    abandoned.push(9, &rows(9, 1)).unwrap();
    // A thread of its own writes them, behind the one that receives.
    let patience = Instant::now() + Duration::from_secs(30);
    while disk.objects().len() == objects.len() {
        assert!(Instant::now() < patience, "blocks are written on the way");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(abandoned);
    assert_eq!((disk.objects(), vault.head()), (objects.clone(), head));

    let mut short = vault.begin_upload(header("b")).unwrap();
    short.push(9, &rows(9, 1)).unwrap();
    assert!(matches!(
        short.finish(10, T0),
        Err(UploadError::RowCount {
            received: 9,
            sent: 10
        })
    ));
    assert_eq!((disk.objects(), vault.head()), (objects.clone(), head));

    let [first, second] = ["b", "b"].map(|name| vault.begin_upload(header(name)).unwrap());
    let kept = first.finish(0, T0).unwrap();
    let refused = second.finish(0, T0).unwrap_err();
    assert!(
        matches!(refused, UploadError::Refused(Refusal::NameTaken { .. })),
        "{refused}"
    );
    assert_eq!(disk.objects().len(), objects.len() + 1);
    assert_eq!(vault.read_dataset(&kept).unwrap().rows, 0);
    assert!(matches!(
        vault.begin_upload(header("taken")),
        Err(UploadError::Refused(Refusal::NameTaken { .. }))
    ));
}

#[test]
fn malformed_batches_are_refused_with_the_column() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    let mut upload = vault.begin_upload(header("a")).unwrap();
    assert!(matches!(
        upload.push(1, &[[0u8; 4]]),
        Err(UploadError::ColumnCount {
            expected: 2,
            found: 1
        })
    ));
    let wrong = upload.push(2, &[vec![0; 8], vec![0; 19]]).unwrap_err();
    assert!(
        matches!(
            wrong,
            UploadError::ColumnLength {
                column: 1,
                expected: 20,
                found: 19
            }
        ),
        "{wrong}"
    );
    assert!(matches!(
        upload.push(33, &rows(33, 1)),
        Err(UploadError::TooManyRows { declared_size: 32 })
    ));
    assert!(matches!(
        upload.push(u64::MAX, &rows(1, 1)),
        Err(UploadError::TooManyRows { .. })
    ));
    upload.push(32, &rows(32, 1)).unwrap();
    assert!(matches!(
        upload.push(1, &rows(1, 1)),
        Err(UploadError::TooManyRows { .. })
    ));
    let dataset = upload.finish(32, T0).unwrap();
    assert_eq!(vault.read_dataset(&dataset).unwrap().rows, 32);
}

/// Rule D10: what the operator sees on disk is a function of the size class.
#[test]
fn what_is_stored_does_not_depend_on_the_row_count() {
    let sizes = |count: u64| {
        let disk = Disk::default();
        let vault = disk.boot(1);
        upload(&vault, "a", count, count).unwrap();
        let blocks: Vec<usize> = disk.blocks().values().map(Vec::len).collect();
        let entry = vault.read(|ledger| ledger.entries().last().unwrap().to_bytes().len());
        drop(vault);
        (blocks, entry, disk.file().len())
    };
    let empty = sizes(0);
    assert_eq!(empty.0.len(), 8);
    for count in [1, 3, 4, 5, 17, 31, 32] {
        assert_eq!(sizes(count), empty, "{count} rows");
    }
}

/// Rule D8: neighbouring datasets are read by the very same accesses.
#[test]
fn reading_touches_every_block_in_order_whatever_the_rows() {
    let trace = |count: u64| {
        let disk = Disk::default();
        let vault = disk.boot(1);
        let dataset = upload(&vault, "a", count, 3).unwrap();
        vault.read_dataset(&dataset).unwrap();
        disk.take_reads()
    };
    let full = trace(32);
    assert_eq!(
        full.iter().map(|(index, _)| *index).collect::<Vec<_>>(),
        (0..8).collect::<Vec<_>>()
    );
    for count in [0, 1, 16, 17, 31] {
        assert_eq!(trace(count), full, "{count} rows");
    }
}

/// Rule A10: blocks are bound to dataset, policy, segment and index; rule A9: every segment has its own key.
#[test]
fn changed_swapped_missing_and_foreign_blocks_are_refused() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    let [first, second] = ["a", "b"].map(|name| upload(&vault, name, 30, 7).unwrap());
    let intact = disk.blocks();
    let distinct: std::collections::BTreeSet<&Vec<u8>> = intact.values().collect();
    assert_eq!(distinct.len(), 16, "equal rows are stored as different bytes");
    let keys: Vec<_> = intact.keys().copied().collect();
    let refused = |blocks| {
        disk.set_blocks(blocks);
        [first, second]
            .iter()
            .any(|dataset| matches!(vault.read_dataset(dataset), Err(ReadError::Storage(_))))
    };
    for (at, key) in keys.iter().enumerate() {
        for position in [0, 1, 40, intact[key].len() - 1] {
            let mut changed = intact.clone();
            changed.get_mut(key).unwrap()[position] ^= 0x10;
            assert!(refused(changed), "block {at}, byte {position}");
        }
        let mut cut = intact.clone();
        cut.get_mut(key).unwrap().pop();
        assert!(refused(cut), "block {at} cut short");
        let mut longer = intact.clone();
        longer.get_mut(key).unwrap().push(0);
        assert!(refused(longer), "block {at} longer");
        let mut missing = intact.clone();
        missing.remove(key);
        assert!(refused(missing), "block {at} missing");
        for other in &keys[at + 1..] {
            let mut swapped = intact.clone();
            swapped.insert(*key, intact[other].clone());
            swapped.insert(*other, intact[key].clone());
            assert!(refused(swapped), "{key:?} and {other:?} swapped");
        }
    }
    assert!(!refused(intact));
}

#[test]
fn changed_result_blocks_are_refused() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    let dataset = upload(&vault, "a", 3, 7).unwrap();
    let before = disk.objects();
    let run = succeed(&vault, dataset, 2);
    let intact = disk.blocks();
    let keys: Vec<_> = intact
        .keys()
        .filter(|(object, _)| !before.contains(object))
        .copied()
        .collect();
    assert_eq!(keys.len(), 3);
    for key in &keys {
        let mut changed = intact.clone();
        changed.get_mut(key).unwrap()[5] ^= 1;
        disk.set_blocks(changed);
        let head = vault.head();
        assert!(matches!(
            release(&vault, &run, scientist()),
            Err(ReleaseError::Read(ReadError::Storage(_)))
        ));
        assert_eq!(vault.head(), head, "nothing was released");
    }
    disk.set_blocks(intact);
    release(&vault, &run, scientist()).unwrap();
}

#[test]
fn a_withdrawn_dataset_keeps_its_records_for_the_runs_that_started_and_a_removed_one_has_none() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    let dataset = upload(&vault, "a", 3, 7).unwrap();
    let blocks = disk.blocks();
    assert!(
        vault.withdraw_dataset(&dataset, principal(9), T0).is_err(),
        "only the owner"
    );
    let reservation = vault
        .reserve_run(run_on(&vault, &[dataset], amount("1", "1e-6")), order(), T0)
        .unwrap();
    let started = vault.start_run(reservation, T0).unwrap();
    vault.withdraw_dataset(&dataset, principal(1), T0).unwrap();
    drop(vault);
    let vault = disk.open().unwrap();
    assert_eq!(
        vault.read_dataset(&dataset).unwrap().rows,
        3,
        "a run that started may go on, and an open vault sweeps nothing of it"
    );
    assert!(
        vault.remove_dataset(&dataset, principal(1), T0).is_err(),
        "a run still uses it"
    );
    let _receipt = vault.commit_run(started, RunEnd::Failed, T0).unwrap();
    assert!(
        vault.remove_dataset(&dataset, principal(9), T0).is_err(),
        "only the owner"
    );
    vault.remove_dataset(&dataset, principal(1), T0).unwrap();
    assert_eq!(
        budget(&vault, &dataset).committed,
        amount("1", "1e-6"),
        "the account stays"
    );
    assert!(disk.objects().is_empty());
    disk.set_blocks(blocks);
    assert!(matches!(
        vault.read_dataset(&dataset),
        Err(ReadError::Removed { .. })
    ));
    drop(vault);
    disk.boot(2);
    assert!(disk.objects().is_empty(), "what came back is swept");
}

#[test]
fn two_threads_racing_for_the_last_of_a_budget_cannot_overdraw_it() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    let dataset = upload(&vault, "a", 3, 7).unwrap();
    let barrier = Barrier::new(8);
    let granted: usize = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let reserved = run_on(&vault, &[dataset], amount("0.8", "1e-7"));
                    barrier.wait();
                    usize::from(vault.reserve_run(reserved, order(), T0).is_ok())
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).sum()
    });
    assert_eq!(granted, 7, "6.0 holds 0.8 seven times");
    assert_eq!(budget(&vault, &dataset).reserved, amount("5.6", "7e-7"));
}

#[test]
fn released_steps_keep_their_first_value() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    let dataset = upload(&vault, "a", 3, 7).unwrap();
    let reservation = vault
        .reserve_run(run_on(&vault, &[dataset], amount("1", "1e-6")), order(), T0)
        .unwrap();
    let started = vault.start_run(reservation, T0).unwrap();
    vault
        .advance_run(&started, checkpoint(4), &[value(2), value(4)], T0)
        .unwrap();
    let other = ReleasedValue {
        step: 4,
        noisy_loss: Some(99.0),
    };
    assert!(
        vault
            .advance_run(&started, checkpoint(6), &[other, value(6)], T0)
            .is_err(),
        "step 4 was released"
    );
    assert!(vault.advance_run(&started, checkpoint(4), &[], T0).is_err());
    for wrong in [vec![value(6), value(5)], vec![value(5), value(5)], vec![value(7)]] {
        assert!(matches!(
            vault.advance_run(&started, checkpoint(6), &wrong, T0),
            Err(AdvanceError::Steps)
        ));
    }
    assert_eq!(
        vault.released_values(&started.run(), 0).unwrap(),
        [value(2), value(4)]
    );
    let early = vault
        .commit_run(started, RunEnd::Succeeded(weights(1)), T0)
        .unwrap_err();
    assert!(early.to_string().contains("success needs all steps"), "{early}");
}

#[test]
fn weights_that_contradict_their_description_are_refused() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    let dataset = upload(&vault, "a", 3, 7).unwrap();
    let reservation = vault
        .reserve_run(run_on(&vault, &[dataset], amount("1", "1e-6")), order(), T0)
        .unwrap();
    let run = reservation.run();
    let started = vault.start_run(reservation, T0).unwrap();
    vault.advance_run(&started, checkpoint(10), &[], T0).unwrap();
    let objects = disk.objects();
    let mut wrong = weights(1);
    wrong.data.pop();
    let error = vault
        .commit_run(started, RunEnd::Succeeded(wrong), T0)
        .unwrap_err();
    assert!(
        matches!(
            error,
            CommitError::WeightBytes {
                expected: 150,
                found: 149
            }
        ),
        "{error}"
    );
    assert_eq!(disk.objects(), objects);
    let started = vault.read(|ledger| ledger.started(&run)).unwrap();
    let empty = Weights {
        tensors: vec![],
        data: Vec::new().into(),
    };
    vault.commit_run(started, RunEnd::Succeeded(empty), T0).unwrap();
    assert!(release(&vault, &run, scientist()).unwrap().data.is_empty());
}

#[test]
fn another_root_key_opens_nothing() {
    let disk = Disk::default();
    upload(&disk.boot(1), "a", 3, 7).unwrap();
    let other = disk.open_with_key(&RootKey::from_bytes([0x43; 32])).unwrap_err();
    assert!(matches!(other, OpenError::WrongRootKey), "{other}");
    let fresh = RootKey::generate().unwrap();
    assert_ne!(fresh.as_bytes(), root().as_bytes());
}

/// Without the root key nothing on disk tells who uploads what for whom.
#[test]
fn nothing_lies_in_clear_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let vault = open_directory(directory.path()).unwrap();
    vault.start_boot(boot(1), |_| false, T0).unwrap();
    let mut upload = vault.begin_upload(header("canary-name")).unwrap();
    upload
        .push(3, &[b"cana".repeat(3), b"ry-in-rows".repeat(3)])
        .unwrap();
    let dataset = upload.finish(3, T0).unwrap();
    succeed(&vault, dataset, 9);
    drop(vault);
    let (weight, owner) = (weights(9).data[..16].to_vec(), principal(1));
    let needles = [
        &b"canary-name"[..],
        b"canacana",
        b"ry-in-rows",
        b"claims 1",
        b"version",
        &owner.as_bytes()[..],
        &weight,
    ];
    let mut files = vec![directory.path().to_path_buf()];
    let mut seen = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(
                std::fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        seen += 1;
        for needle in needles {
            assert!(
                !bytes.windows(needle.len()).any(|window| window == needle),
                "{path:?}"
            );
        }
    }
    assert!(seen > 8, "the database, eight blocks of rows, and the weights");
}

#[test]
fn errors_and_debug_output_hold_no_rows() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    let dataset = upload(&vault, "a", 3, 7).unwrap();
    let stored = vault.read_dataset(&dataset).unwrap();
    assert_eq!(format!("{stored:?}"), "DatasetRows(2 columns, declared size 32)");
    assert_eq!(format!("{:?}", weights(1)), "Weights(2 tensors, 150 bytes)");
    assert!(matches!(
        vault.read_dataset(&DatasetId::from_bytes([0; 16])),
        Err(ReadError::NoDataset { .. })
    ));
}

#[test]
fn a_vault_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + Clone>(_: &T) {}
    fn sent<T: Send>(_: &T) {}
    let vault = Disk::default().boot(1);
    shared(&vault);
    sent(&vault.begin_upload(header("a")).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_dataset_reads_back_as_it_was_sent(
        widths in prop::collection::vec(1u64..40, 1..4),
        declared in 1u64..70,
        batches in prop::collection::vec(0u64..20, 0..6),
        seed in any::<u64>(),
    ) {
        let disk = Disk::default();
        let vault = disk.boot(1);
        let header = UploadHeader { declared_size: declared, column_bytes: widths.clone(), ..header("a") };
        let mut upload = vault.begin_upload(header).unwrap();
        let mut random = Random(seed);
        let (mut sent, mut total) = (vec![Vec::new(); widths.len()], 0);
        for batch in batches {
            let batch = batch.min(declared - total);
            let columns: Vec<Vec<u8>> = widths.iter().map(|width| (0..batch * width).map(|_| random.next() as u8).collect()).collect();
            upload.push(batch, &columns).unwrap();
            sent.iter_mut().zip(&columns).for_each(|(all, column)| all.extend(column));
            total += batch;
        }
        let dataset = upload.finish(total, T0).unwrap();
        let stored = vault.read_dataset(&dataset).unwrap();
        prop_assert_eq!((stored.rows, stored.declared_size), (total, declared));
        for ((column, mut sent), width) in stored.columns.iter().zip(sent).zip(widths) {
            sent.resize((declared * width) as usize, 0);
            prop_assert_eq!(&**column, &sent);
        }
    }
}
