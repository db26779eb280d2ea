//! Runs that outlive a boot, and runs that an owner suspends.
#![allow(clippy::unwrap_used)]
mod common;

use bastionai_ledger::*;
use common::*;

/// A run on datasets 1 and 2, reserved and started by boot 1, advanced to step 40 of 100.
fn running() -> Ledger {
    let mut ledger = new_ledger();
    for n in [1, 2] {
        add_dataset(&mut ledger, dataset(n, policy(amount("6.0", "1e-5"))));
    }
    let charges = vec![charge(1, amount("2.0", "1e-6")), charge(2, amount("2.0", "1e-6"))];
    let _ = reserve(&mut ledger, run(1, 1, charges), T0).unwrap();
    let _ = start(&mut ledger, 1);
    advance(&mut ledger, 1, 40);
    ledger
}

fn restart(ledger: &mut Ledger, number: u8) {
    let proposal = ledger.propose_boot(boot(number), T0);
    take(ledger, proposal);
}

fn resume(ledger: &mut Ledger) {
    let [orphan] = ledger.orphans()[..] else {
        panic!("one orphan")
    };
    let proposal = ledger.propose_resumption(orphan, T0);
    take(ledger, proposal);
}

fn committed(ledger: &Ledger, n: u8) -> Amount {
    ledger
        .dataset(&dataset_id(n))
        .unwrap()
        .budget()
        .unwrap()
        .committed
}

#[test]
fn a_resumed_run_goes_on_where_it_was_and_is_charged_once() {
    let mut ledger = running();
    restart(&mut ledger, 2);
    let started = ledger.started(&run_id(1)).unwrap();
    assert_eq!(
        ledger.propose_advance(&started, 41, T0).unwrap_err(),
        Refusal::OtherBoot,
        "nobody goes on with it by accident"
    );
    resume(&mut ledger);
    assert_eq!(ledger.orphans(), []);
    assert!(matches!(
        ledger.propose_advance(&started, 40, T0).unwrap_err(),
        Refusal::ReleasedStep { released: 40, .. }
    ));
    advance(&mut ledger, 1, 100);
    let _ = commit(&mut ledger, 1, Outcome::Succeeded);
    assert_eq!(committed(&ledger, 1), amount("2.0", "1e-6"));
    let found = ledger.run(&run_id(1)).unwrap();
    assert_eq!(
        (found.reservation().boot, found.resumed_by()),
        (boot(1).boot, &[boot(2).boot][..])
    );
}

#[test]
fn a_queued_run_is_resumed_too_and_then_starts() {
    let mut ledger = new_ledger();
    add_dataset(&mut ledger, dataset(1, policy(amount("6.0", "1e-5"))));
    let reservation = reserve(&mut ledger, run(1, 1, vec![charge(1, amount("2.0", "1e-6"))]), T0).unwrap();
    restart(&mut ledger, 2);
    assert_eq!(
        ledger.propose_start(&reservation, T0).unwrap_err(),
        Refusal::OtherBoot
    );
    resume(&mut ledger);
    let _ = start(&mut ledger, 1);
    assert_eq!(
        ledger.run(&run_id(1)).unwrap().idle_resumptions(),
        1,
        "starting it may be what ended the boot before"
    );
}

#[test]
fn a_run_is_resumed_once_a_boot_by_the_current_one_while_it_is_open_and_its_data_are_lent() {
    let mut ledger = running();
    let stranger = Orphan {
        run: run_id(1),
        started: true,
    };
    assert!(
        ledger.propose_resumption(stranger, T0).is_err(),
        "this boot has it in hand"
    );
    restart(&mut ledger, 2);
    resume(&mut ledger);
    assert!(ledger.propose_resumption(stranger, T0).is_err(), "twice");
    restart(&mut ledger, 3);
    let withdrawal = ledger.propose_withdrawal(dataset_id(2), principal(2), T0);
    take(&mut ledger, withdrawal);
    assert!(matches!(
        ledger.propose_resumption(stranger, T0).unwrap_err(),
        Refusal::Withdrawn { .. }
    ));
    let [orphan] = ledger.orphans()[..] else {
        panic!("one orphan")
    };
    let settlement = ledger.propose_settlement(orphan, T0);
    take(&mut ledger, settlement);
    assert_eq!(
        ledger.run(&run_id(1)).unwrap().status(),
        RunStatus::Committed(Outcome::Failed)
    );
    assert_eq!(committed(&ledger, 1), amount("2.0", "1e-6"), "failed and charged");
    restart(&mut ledger, 4);
    assert!(ledger.propose_resumption(stranger, T0).is_err(), "it has ended");
}

#[test]
fn a_run_that_never_gets_on_shows() {
    let mut ledger = running();
    for (count, number) in (1..).zip(2..6) {
        restart(&mut ledger, number);
        resume(&mut ledger);
        assert_eq!(ledger.run(&run_id(1)).unwrap().idle_resumptions(), count);
    }
    advance(&mut ledger, 1, 41);
    assert_eq!(ledger.run(&run_id(1)).unwrap().idle_resumptions(), 0);
}

fn suspend(ledger: &mut Ledger, by: u8) {
    let proposal = ledger.propose_suspension(run_id(1), principal(by), T0);
    take(ledger, proposal);
}

/// Each suspension that is lifted starts a trainer on the same records, as a restart does.
#[test]
fn a_run_that_owners_let_go_on_again_and_again_goes_on_no_more_and_is_charged() {
    let mut ledger = running();
    let lift = |ledger: &Ledger, by: u8| ledger.propose_unsuspension(run_id(1), principal(by), T0);
    let idle = |ledger: &Ledger| ledger.run(&run_id(1)).unwrap().idle_resumptions();
    restart(&mut ledger, 2);
    resume(&mut ledger);
    for count in 2..=MAX_IDLE_RESUMPTIONS {
        suspend(&mut ledger, 1);
        let proposal = lift(&ledger, 1);
        take(&mut ledger, proposal);
        assert_eq!(idle(&ledger), count);
    }
    suspend(&mut ledger, 1);
    suspend(&mut ledger, 2);
    let proposal = lift(&ledger, 1);
    take(&mut ledger, proposal);
    assert_eq!(
        idle(&ledger),
        MAX_IDLE_RESUMPTIONS,
        "the other one's stands: nothing started"
    );
    assert_eq!(
        lift(&ledger, 2).unwrap_err(),
        Refusal::GetsNowhere {
            run: run_id(1),
            times: MAX_IDLE_RESUMPTIONS
        }
    );
    let _ = commit(&mut ledger, 1, Outcome::Cancelled);
    assert_eq!(committed(&ledger, 1), amount("2.0", "1e-6"), "in full");
}

#[test]
fn a_run_that_advances_or_never_started_may_be_suspended_as_often_as_its_owners_like() {
    let again = |ledger: &mut Ledger| {
        suspend(ledger, 1);
        let proposal = ledger.propose_unsuspension(run_id(1), principal(1), T0);
        take(ledger, proposal);
    };
    let mut ledger = running();
    for step in 41..=100 {
        again(&mut ledger);
        advance(&mut ledger, 1, step);
    }
    let mut ledger = new_ledger();
    add_dataset(&mut ledger, dataset(1, policy(amount("6.0", "1e-5"))));
    let _ = reserve(&mut ledger, run(1, 1, vec![charge(1, amount("2.0", "1e-6"))]), T0).unwrap();
    for _ in 0..=MAX_IDLE_RESUMPTIONS {
        again(&mut ledger);
    }
    assert_eq!(ledger.run(&run_id(1)).unwrap().idle_resumptions(), 0);
}

#[test]
fn owners_suspend_and_lift_each_for_themselves() {
    let mut ledger = running();
    let propose = |ledger: &Ledger, by: u8| ledger.propose_suspension(run_id(1), principal(by), T0);
    let lift = |ledger: &Ledger, by: u8| ledger.propose_unsuspension(run_id(1), principal(by), T0);
    for other in [3, 100] {
        assert_eq!(
            propose(&ledger, other).unwrap_err(),
            Refusal::NotLender { run: run_id(1) }
        );
    }
    for owner in [1, 2] {
        let proposal = propose(&ledger, owner);
        take(&mut ledger, proposal);
    }
    assert!(matches!(
        propose(&ledger, 1).unwrap_err(),
        Refusal::Suspension { suspended: true, .. }
    ));
    assert!(matches!(
        lift(&ledger, 100).unwrap_err(),
        Refusal::Suspension { suspended: false, .. }
    ));
    let proposal = lift(&ledger, 1);
    take(&mut ledger, proposal);
    let started = ledger.started(&run_id(1)).unwrap();
    let suspended = Refusal::Suspended { run: run_id(1) };
    assert_eq!(
        ledger.propose_advance(&started, 41, T0).unwrap_err(),
        suspended,
        "the other one's stands"
    );
    let proposal = lift(&ledger, 2);
    take(&mut ledger, proposal);
    advance(&mut ledger, 1, 100);
    let proposal = propose(&ledger, 2);
    take(&mut ledger, proposal);
    let weights = Some(Digest32::of(b"w"));
    let success = ledger.propose_commit(&started, Outcome::Succeeded, weights, T0);
    assert_eq!(
        success.unwrap_err(),
        suspended,
        "a suspended run does not succeed"
    );
    restart(&mut ledger, 2);
    resume(&mut ledger);
    let found = ledger.run(&run_id(1)).unwrap();
    assert!(
        found.is_suspended() && found.idle_resumptions() == 0,
        "it stays suspended"
    );
    let _ = commit(&mut ledger, 1, Outcome::Cancelled);
    assert!(
        matches!(propose(&ledger, 1).unwrap_err(), Refusal::RunStatus { .. }),
        "it has ended"
    );
    assert!(matches!(lift(&ledger, 2).unwrap_err(), Refusal::RunStatus { .. }));
}

#[test]
fn a_suspended_run_does_not_start() {
    let mut ledger = new_ledger();
    add_dataset(&mut ledger, dataset(1, policy(amount("6.0", "1e-5"))));
    let reservation = reserve(&mut ledger, run(1, 1, vec![charge(1, amount("2.0", "1e-6"))]), T0).unwrap();
    let proposal = ledger.propose_suspension(run_id(1), principal(1), T0);
    take(&mut ledger, proposal);
    assert_eq!(
        ledger.propose_start(&reservation, T0).unwrap_err(),
        Refusal::Suspended { run: run_id(1) }
    );
}

#[test]
fn a_receipt_carries_every_boot_that_had_the_run_in_hand() {
    let mut ledger = running();
    for number in [2, 3] {
        restart(&mut ledger, number);
        resume(&mut ledger);
    }
    advance(&mut ledger, 1, 100);
    let _ = commit(&mut ledger, 1, Outcome::Succeeded);
    let issue = |ledger: &Ledger, issuer: u8, resumers: &[u8]| {
        let resumers = resumers.iter().map(|&number| evidence(number)).collect();
        Receipt::issue(
            ledger,
            &run_id(1),
            evidence(issuer),
            Some(evidence(1)),
            resumers,
            T0,
        )
    };
    let receipt = issue(&ledger, 3, &[2]).unwrap();
    assert_eq!(receipt.run.resumed_by, [boot(2).boot, boot(3).boot]);
    assert_eq!(issue(&ledger, 3, &[]).unwrap_err(), IssueError::OtherBoot);
    assert_eq!(issue(&ledger, 3, &[2, 3]).unwrap_err(), IssueError::OtherBoot);
    let expected = key().public_key();
    assert_eq!(
        Receipt::verify_offline(&receipt.sign(&key()), &expected).unwrap(),
        receipt
    );
    let silent = Receipt {
        resumers: Vec::new(),
        ..receipt.clone()
    };
    let error = Receipt::verify_offline(&silent.sign(&key()), &expected).unwrap_err();
    assert!(matches!(error, ReceiptError::Inconsistent { .. }), "{error}");
    restart(&mut ledger, 4);
    let later = issue(&ledger, 4, &[2, 3]).unwrap();
    assert!(Receipt::verify_offline(&later.sign(&key()), &expected).is_ok());
}

/// Ledgers are read for ever.
#[test]
fn the_bytes_of_the_new_entries_are_pinned() {
    let (run, by) = (run_id(7), principal(9));
    for (body, tag, rest) in [
        (
            Body::RunResumed(RunResumed {
                run,
                boot: boot(5).boot,
            }),
            12,
            vec![5; 16],
        ),
        (Body::RunSuspended(RunSuspended { run, by }), 13, vec![9; 32]),
        (Body::RunUnsuspended(RunUnsuspended { run, by }), 14, vec![9; 32]),
    ] {
        assert_eq!(
            body.to_bytes(),
            [&[tag][..], &[7; 16], &rest].concat(),
            "{}",
            body.kind()
        );
        assert_eq!(body.run(), Some(run));
    }
}
