//! Receipts: what they say, and that nothing in them can be changed.
#![allow(clippy::unwrap_used)]
mod common;

use bastionai_ledger::dsse::EnvelopeError;
use bastionai_ledger::*;
use common::*;

fn receipt(ledger: &Ledger) -> Receipt {
    Receipt::issue(ledger, &run_id(1), evidence(1), None, Vec::new(), T0 + 20).unwrap()
}

#[test]
fn a_receipt_says_what_was_charged_and_what_is_spent_in_all() {
    let ledger = full_ledger();
    let envelope = receipt(&ledger).sign(&key());
    let read = Receipt::verify_offline(&envelope, &key().public_key()).unwrap();
    assert_eq!(read, receipt(&ledger));
    assert_eq!(read.ledger_head, ledger.head());
    assert_eq!(read.freshness, Freshness::None);
    assert_eq!(read.accounting.privacy_unit, "per record, per dataset");
    assert_eq!(read.run.weights_digest, Some(Digest32::of(&[1, 1])));
    assert_eq!(
        (read.run.steps, read.run.released_step, read.run.outcome),
        (100, 100, Outcome::Succeeded)
    );
    let [first, public, third] = &read.datasets[..] else {
        panic!("three datasets")
    };
    assert_eq!(
        (first.epsilon, first.delta),
        ("2".parse().unwrap(), "1e-6".parse().unwrap())
    );
    assert_eq!(first.event, event(), "the mechanism in full");
    let total = first.budget.as_ref().unwrap();
    assert_eq!(
        total.total_epsilon.to_string(),
        "3.0",
        "this run's 2 and the failed run's 1 (rule D12)"
    );
    assert_eq!(total.lifetime_epsilon.to_string(), "6.0");
    assert!(public.budget.is_none() && public.epsilon == Epsilon::ZERO);
    assert_eq!(third.budget.as_ref().unwrap().total_delta.to_string(), "1e-6");
    assert_eq!(read.issuer, evidence(1));
    assert!(read.runner.is_none());
}

#[test]
fn every_changed_byte_of_a_receipt_is_refused() {
    let envelope = receipt(&full_ledger()).sign(&key());
    let expected = key().public_key();
    assert!(Receipt::verify_offline(&envelope, &expected).is_ok());
    for position in 0..envelope.len() {
        let bit = position % 8;
        let mut flipped = envelope.clone();
        flipped[position] ^= 1 << bit;
        assert!(
            Receipt::verify_offline(&flipped, &expected).is_err(),
            "byte {position}, bit {bit}"
        );
    }
    for length in 0..envelope.len() {
        assert!(
            Receipt::verify_offline(&envelope[..length], &expected).is_err(),
            "cut at {length}"
        );
    }
}

#[test]
fn a_reformatted_receipt_and_another_key_are_refused() {
    let envelope = receipt(&full_ledger()).sign(&key());
    let spaced = [&envelope[..], b"\n"].concat();
    let error = Receipt::verify_offline(&spaced, &key().public_key()).unwrap_err();
    assert_eq!(error, ReceiptError::Envelope(EnvelopeError::Malformed));
    let other = LedgerKey::from_seed(&[8; 32]);
    assert!(Receipt::verify_offline(&envelope, &other.public_key()).is_err());
    let forged = receipt(&full_ledger()).sign(&other);
    assert!(Receipt::verify_offline(&forged, &key().public_key()).is_err());
    let error = Receipt::verify_offline(&forged, &other.public_key()).unwrap_err();
    assert!(
        matches!(error, ReceiptError::Inconsistent { .. }),
        "the issuer's evidence binds another key"
    );
}

#[test]
fn a_receipt_that_contradicts_itself_is_refused_although_signed() {
    let ledger = full_ledger();
    let expected = key().public_key();
    let mut wrong: Vec<Receipt> = vec![receipt(&ledger); 6];
    wrong[0].run.weights_digest = None;
    wrong[1].run.boot = BootId::from_bytes([9; 16]);
    wrong[2].datasets.clear();
    wrong[3].datasets[0].epsilon = "5".parse().unwrap();
    wrong[4].datasets[0].budget.as_mut().unwrap().reserved_epsilon = "4".parse().unwrap();
    wrong[5].datasets[0].budget = None;
    for (number, receipt) in wrong.iter().enumerate() {
        let error = Receipt::verify_offline(&receipt.sign(&key()), &expected).unwrap_err();
        assert!(
            matches!(error, ReceiptError::Inconsistent { .. }),
            "{number}: {error}"
        );
    }
    let newer = Receipt {
        version: 2,
        ..receipt(&ledger)
    };
    assert_eq!(
        Receipt::verify_offline(&newer.sign(&key()), &expected).unwrap_err(),
        ReceiptError::Version { found: 2 }
    );
}

#[test]
fn a_receipt_issued_after_a_restart_carries_the_boot_that_ran_the_run() {
    let mut ledger = full_ledger();
    let proposal = ledger.propose_boot(boot(2), T0 + 30);
    take(&mut ledger, proposal);
    let issue = |issuer, runner| Receipt::issue(&ledger, &run_id(1), issuer, runner, Vec::new(), T0 + 31);
    assert_eq!(
        issue(evidence(2), None).unwrap_err(),
        IssueError::OtherBoot,
        "the runner's evidence is due"
    );
    assert_eq!(
        issue(evidence(1), None).unwrap_err(),
        IssueError::OtherBoot,
        "an old boot cannot issue"
    );
    assert_eq!(
        issue(evidence(2), Some(evidence(2))).unwrap_err(),
        IssueError::OtherBoot
    );
    let changed = RuntimeEvidence {
        claims: b"other".to_vec(),
        ..evidence(1)
    };
    assert_eq!(
        issue(evidence(2), Some(changed)).unwrap_err(),
        IssueError::OtherBoot,
        "the ledger names other claims"
    );
    let envelope = issue(evidence(2), Some(evidence(1))).unwrap().sign(&key());
    let read = Receipt::verify_offline(&envelope, &key().public_key()).unwrap();
    assert_eq!(
        (read.issuer.boot, read.runner.unwrap().boot),
        (boot(2).boot, boot(1).boot)
    );
}

#[test]
fn failed_runs_have_receipts_and_refunded_ones_none() {
    let ledger = full_ledger();
    let failed = Receipt::issue(&ledger, &run_id(3), evidence(1), None, Vec::new(), T0).unwrap();
    assert_eq!(
        (failed.run.outcome, failed.run.weights_digest),
        (Outcome::Failed, None)
    );
    assert_eq!(
        failed.issued_unix_ms,
        ledger.last_time_unix_ms(),
        "ledger time, not the clock that fell back"
    );
    assert!(Receipt::verify_offline(&failed.sign(&key()), &key().public_key()).is_ok());
    for run in [run_id(2), run_id(77)] {
        assert_eq!(
            Receipt::issue(&ledger, &run, evidence(1), None, Vec::new(), T0).unwrap_err(),
            IssueError::NotCommitted { run }
        );
    }
}

/// With a band a record has a turn in every fourth step only: the price is that of its turns, and every step is a release.
#[test]
fn an_auditor_can_recompute_the_price_of_correlated_noise() {
    use bastionai_privacy::accountant;
    use bastionai_privacy::event::{DpEvent, NeighboringRelation::AddOrRemoveOne};
    let delta: Delta = "1e-6".parse().unwrap();
    let DpEvent::SelfComposed { event: turn, .. } = event() else {
        panic!("{:?}", event())
    };
    let banded = |bands, steps| DpEvent::Banded {
        bands,
        steps,
        event: turn.clone(),
    };
    let turns = DpEvent::SelfComposed {
        event: turn.clone(),
        count: 25,
    };
    let epsilon = accountant::epsilon(&turns, AddOrRemoveOne, delta.to_f64().next_down()).unwrap();
    let price = Amount::new(Epsilon::from_f64_round_up(epsilon).unwrap(), delta);
    let checked = |event| {
        let mut ledger = new_ledger();
        add_dataset(&mut ledger, dataset(1, policy(amount("50", "1e-5"))));
        let priced = Charge {
            event,
            ..charge(1, price)
        };
        let _ = reserve(&mut ledger, run(1, 1, vec![priced]), T0).unwrap();
        let _ = start(&mut ledger, 1);
        let _ = commit(&mut ledger, 1, Outcome::Failed);
        receipt(&ledger).check_prices().map_err(|(_, error)| error)
    };
    checked(banded(4, 100)).unwrap();
    assert!(
        matches!(checked(banded(3, 100)), Err(PriceError::TooLow { .. })),
        "more turns"
    );
    for (bands, steps) in [(4, 97), (1, 25)] {
        let error = checked(banded(bands, steps)).unwrap_err();
        assert!(
            matches!(error, PriceError::Steps { charged: Some(found), steps: 100 } if found == steps),
            "{error}"
        );
    }
}

#[test]
fn an_auditor_can_recompute_the_prices() {
    use bastionai_privacy::accountant;
    use bastionai_privacy::event::NeighboringRelation::AddOrRemoveOne;
    let delta: Delta = "1e-6".parse().unwrap();
    let event = event();
    let epsilon = accountant::epsilon(&event, AddOrRemoveOne, delta.to_f64().next_down()).unwrap();
    let price = Amount::new(Epsilon::from_f64_round_up(epsilon).unwrap(), delta);
    let mut ledger = new_ledger();
    add_dataset(&mut ledger, dataset(1, policy(amount("50", "1e-5"))));
    add_dataset(&mut ledger, dataset(2, public_policy()));
    let priced = Charge {
        event,
        ..charge(1, price)
    };
    let _ = reserve(&mut ledger, run(1, 1, vec![priced, charge(2, Amount::ZERO)]), T0).unwrap();
    let _ = start(&mut ledger, 1);
    let _ = commit(&mut ledger, 1, Outcome::Failed);
    let mut receipt = receipt(&ledger);
    receipt.check_prices().unwrap();
    for steps in [99, 101] {
        receipt.run.steps = steps;
        let (_, error) = receipt.check_prices().unwrap_err();
        assert!(
            matches!(error, PriceError::Steps { charged: Some(100), steps: found } if found == steps),
            "{error}"
        );
    }
    receipt.run.steps = 100;
    receipt.datasets[0].epsilon = Epsilon::from_units(receipt.datasets[0].epsilon.units() - 1);
    let (dataset, error) = receipt.check_prices().unwrap_err();
    assert_eq!(dataset, "dataset 1");
    assert!(matches!(error, PriceError::TooLow { .. }), "{error}");
}
