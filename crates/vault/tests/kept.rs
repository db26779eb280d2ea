//! Weights kept on the way: durable with the progress they belong to, released with their run or destroyed with it.
#![allow(clippy::unwrap_used)]
mod common;

use bastionai_ledger::*;
use bastionai_vault::*;
use common::*;

fn kept(step: u64, ema: bool) -> KeptSet {
    KeptSet {
        step,
        ema,
        weights: weights(seed(step, ema)),
    }
}

fn seed(step: u64, ema: bool) -> u64 {
    100 + 2 * step + u64::from(ema)
}

fn at(step: u64, ema: bool) -> WeightsAt {
    WeightsAt { step, ema }
}

/// A run of 10 steps that kept 4 with its average, and the average of the last.
fn keeping(vault: &Vault) -> StartedRun {
    let dataset = upload(vault, "a", 21, 5).unwrap();
    let reserved = run_on(vault, &[dataset], amount("1", "1e-6"));
    let reservation = vault.reserve_run(reserved, order(), T0).unwrap();
    let run = vault.start_run(reservation, T0).unwrap();
    let early = [kept(4, false), kept(4, true)];
    vault
        .advance_run_keeping(&run, checkpoint(5), &[], &early, T0)
        .unwrap();
    vault
        .advance_run_keeping(&run, checkpoint(10), &[], &[kept(10, true)], T0)
        .unwrap();
    run
}

fn release(vault: &Vault, run: &RunId, at: WeightsAt, to: Principal) -> Result<Weights, ReleaseError> {
    let receipt = vault.read(|ledger| ledger.budget_receipt(run)).unwrap();
    vault.release_weights_at(receipt, at, to, T0)
}

#[test]
fn kept_weights_are_released_with_their_run_also_in_a_later_boot() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    let started = keeping(&vault);
    let run = started.run();
    vault
        .commit_run(started, RunEnd::Succeeded(weights(9)), T0)
        .unwrap();
    drop(vault);
    let vault = disk.boot(2);
    for (step, ema) in [(4, false), (4, true), (10, true)] {
        let found = release(&vault, &run, at(step, ema), scientist()).unwrap();
        assert_eq!(found.data, weights(seed(step, ema)).data);
    }
    let average = release(&vault, &run, at(0, true), scientist()).unwrap();
    assert_eq!(
        average.data,
        weights(seed(10, true)).data,
        "step 0 is the last one"
    );
    for last in [WeightsAt::LAST, at(10, false)] {
        assert_eq!(
            release(&vault, &run, last, scientist()).unwrap().data,
            weights(9).data
        );
    }
    let entries = vault.head().sequence;
    release(&vault, &run, at(4, true), scientist()).unwrap();
    assert_eq!(vault.head().sequence, entries, "a repeated release adds no entry");
    for (step, ema) in [(5, false), (5, true), (11, false)] {
        let missing = release(&vault, &run, at(step, ema), scientist()).unwrap_err();
        assert!(
            matches!(missing, ReleaseError::Read(ReadError::NotKept { .. })),
            "{missing}"
        );
    }
    let stranger = release(&vault, &run, at(4, false), principal(77)).unwrap_err();
    assert!(stranger.to_string().contains("do not allow"), "{stranger}");
}

#[test]
fn kept_weights_are_destroyed_with_a_run_that_does_not_succeed() {
    for end in [Some(RunEnd::Cancelled), Some(RunEnd::Failed), None] {
        let disk = Disk::default();
        let vault = disk.boot(1);
        let _other = upload(&vault, "other", 3, 1).unwrap();
        let started = keeping(&vault);
        let run = started.run();
        let before = disk.objects().len();
        let vault = match end {
            Some(end) => {
                vault.commit_run(started, end, T0).unwrap();
                vault
            }
            // The next boot does not go on with it.
            None => {
                drop(vault);
                disk.boot(2)
            }
        };
        // Two datasets stay; order, checkpoint and three kept sets are gone.
        assert_eq!((before, disk.objects().len()), (7, 2));
        let gone = release(&vault, &run, at(4, false), scientist()).unwrap_err();
        assert!(
            matches!(gone, ReleaseError::Read(ReadError::NotKept { .. })),
            "{gone}"
        );
    }
}

#[test]
fn kept_weights_that_are_refused_leave_nothing() {
    let disk = Disk::default();
    let vault = disk.boot(1);
    let started = keeping(&vault);
    let objects = disk.objects();
    let late = vault
        .advance_run_keeping(&started, checkpoint(11), &[], &[], T0)
        .unwrap_err();
    assert!(matches!(late, AdvanceError::Transact(_)), "{late}");
    let dataset = vault.read(|ledger| ledger.datasets().next().unwrap().id());
    let reserved = run_on(&vault, &[dataset], amount("1", "1e-6"));
    let reservation = vault.reserve_run(reserved, order(), T0).unwrap();
    let other = vault.start_run(reservation, T0).unwrap();
    let objects_of_two = disk.objects();
    assert_eq!(objects_of_two.len(), objects.len() + 1);
    let outside = vault
        .advance_run_keeping(&other, checkpoint(3), &[], &[kept(4, false)], T0)
        .unwrap_err();
    assert!(
        matches!(
            outside,
            AdvanceError::Transact(TransactError::Refused(Refusal::Kept { .. }))
        ),
        "{outside}"
    );
    let mut short = kept(3, false);
    short.weights.data.pop();
    let short = vault
        .advance_run_keeping(&other, checkpoint(3), &[], &[short], T0)
        .unwrap_err();
    assert!(matches!(short, AdvanceError::WeightBytes), "{short}");
    assert_eq!(disk.objects(), objects_of_two);
}
