//! Weights kept on the way: named with the progress they belong to, released with the run, listed by its receipt.
#![allow(clippy::unwrap_used)]
mod common;

use bastionai_ledger::*;
use common::*;

fn kept(step: u64, ema: bool) -> KeptWeights {
    KeptWeights {
        step,
        ema,
        weights_digest: Digest32::of(&[step as u8, u8::from(ema)]),
    }
}

/// A started run of 100 steps on a dataset of `principal(1)`.
fn started() -> (Ledger, StartedRun) {
    let mut ledger = new_ledger();
    let budget = amount("6", "1e-5");
    add_dataset(&mut ledger, dataset(1, policy(budget)));
    drop(reserve(&mut ledger, run(1, 1, vec![charge(1, amount("1", "1e-6"))]), T0).unwrap());
    let started = start(&mut ledger, 1);
    (ledger, started)
}

#[test]
fn kept_weights_are_named_by_step_and_listed_in_the_receipt_of_a_run_that_succeeded() {
    let (mut ledger, run) = started();
    let first = ledger.propose_advance_keeping(
        &run,
        40,
        vec![kept(20, false), kept(20, true), kept(40, false)],
        T0,
    );
    let entry = take(&mut ledger, first);
    assert_eq!(Entry::from_bytes(&entry.to_bytes()).unwrap(), entry);
    assert_eq!(
        (entry.body().kind(), entry.body().run()),
        ("run_advanced_keeping", Some(run_id(1)))
    );
    let last = ledger.propose_advance_keeping(&run, 100, vec![kept(100, true)], T0);
    take(&mut ledger, last);
    let found = ledger.run(&run_id(1)).unwrap();
    assert_eq!(
        found.kept(),
        [kept(20, false), kept(20, true), kept(40, false), kept(100, true)]
    );
    assert_eq!(found.kept_digest(20, true), Some(kept(20, true).weights_digest));
    assert_eq!(
        (found.kept_digest(40, true), found.kept_digest(21, false)),
        (None, None)
    );
    commit(&mut ledger, 1, Outcome::Succeeded);
    let receipt = Receipt::issue(&ledger, &run_id(1), evidence(1), None, vec![], T0).unwrap();
    let read = Receipt::verify_offline(&receipt.sign(&key()), &key().public_key()).unwrap();
    assert_eq!(read.run.kept, ledger.run(&run_id(1)).unwrap().kept());
    let replayed = Ledger::replay(ledger.entries().to_vec()).unwrap();
    assert_eq!(replayed.run(&run_id(1)).unwrap().kept().len(), 4);
}

#[test]
fn kept_weights_outside_the_steps_advanced_or_out_of_order_are_refused() {
    let (mut ledger, run) = started();
    advance(&mut ledger, 1, 10);
    for (what, kept) in [
        ("released before", vec![kept(10, false)]),
        ("not advanced yet", vec![kept(21, false)]),
        ("falling", vec![kept(15, false), kept(14, false)]),
        ("twice", vec![kept(15, false), kept(15, false)]),
        ("average first", vec![kept(15, true), kept(15, false)]),
    ] {
        let refusal = ledger.propose_advance_keeping(&run, 20, kept, T0).unwrap_err();
        assert_eq!(refusal, Refusal::Kept { run: run_id(1) }, "{what}");
    }
    let many = (11..=100).flat_map(|step| [kept(step, false), kept(step, true)]);
    assert!(
        ledger
            .propose_advance_keeping(&run, 100, many.collect(), T0)
            .is_ok()
    );
    let behind = ledger
        .propose_advance_keeping(&run, 10, vec![kept(10, false)], T0)
        .unwrap_err();
    assert!(matches!(behind, Refusal::ReleasedStep { .. }), "{behind}");
    let none = ledger.propose_advance_keeping(&run, 20, vec![], T0).unwrap();
    assert_eq!(
        none.entry().body().kind(),
        "run_advanced",
        "one event has one form"
    );
}

#[test]
fn kept_weights_are_released_with_the_run_and_only_what_was_kept() {
    let (mut ledger, run) = started();
    let advanced = ledger.propose_advance_keeping(&run, 100, vec![kept(50, false)], T0);
    take(&mut ledger, advanced);
    commit(&mut ledger, 1, Outcome::Succeeded);
    let receipt = ledger.budget_receipt(&run_id(1)).unwrap();
    let recipient = ledger.run(&run_id(1)).unwrap().scientist();
    let digest = kept(50, false).weights_digest;
    let other = ledger
        .propose_release_of(&receipt, Digest32::of(b"other"), recipient, T0)
        .unwrap_err();
    assert_eq!(other, Refusal::OtherWeights { run: run_id(1) });
    assert!(!ledger.run(&run_id(1)).unwrap().was_released(&recipient, &digest));
    let released = ledger.propose_release_of(&receipt, digest, recipient, T0);
    take(&mut ledger, released);
    let found = ledger.run(&run_id(1)).unwrap();
    assert!(found.was_released(&recipient, &digest));
    assert!(
        !found.was_released(&recipient, &found.weights_digest().unwrap()),
        "each set is released by itself"
    );
}

#[test]
fn the_receipt_of_a_cancelled_run_lists_none() {
    let (mut ledger, run) = started();
    let advanced = ledger.propose_advance_keeping(&run, 50, vec![kept(50, false)], T0);
    take(&mut ledger, advanced);
    let receipt = commit(&mut ledger, 1, Outcome::Cancelled);
    let recipient = ledger.run(&run_id(1)).unwrap().scientist();
    let refusal = ledger
        .propose_release_of(&receipt, kept(50, false).weights_digest, recipient, T0)
        .unwrap_err();
    assert!(matches!(refusal, Refusal::RunStatus { .. }), "{refusal}");
    let receipt = Receipt::issue(&ledger, &run_id(1), evidence(1), None, vec![], T0).unwrap();
    assert!(receipt.run.kept.is_empty());
}
