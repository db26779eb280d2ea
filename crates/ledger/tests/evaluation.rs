//! Held-out datasets and evaluations: who may, what it costs, and the bytes of what was added for them.
#![allow(clippy::unwrap_used)]
mod common;

use bastionai_ledger::*;
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use common::*;
use std::fmt::Write;
use std::path::Path;

fn held_out(may_evaluate: MayEvaluate) -> Policy {
    Policy {
        may_train: MayTrain::Nobody(may_evaluate),
        ..policy(amount("2", "1e-6"))
    }
}

/// Dataset 1 to train on, dataset 2 held out for principals 100 and 101.
fn ledger() -> Ledger {
    let mut ledger = new_ledger();
    add_dataset(&mut ledger, dataset(1, policy(amount("6", "1e-5"))));
    let only = MayEvaluate::Only([principal(100), principal(101)].into());
    add_dataset(&mut ledger, dataset(2, held_out(only)));
    ledger
}

fn evaluation(n: u8, on: u8, amount: Amount) -> RunReserved {
    let charge = Charge {
        dataset: dataset_id(on),
        event: DpEvent::Gaussian {
            noise_multiplier: 16.0,
        },
        relation: NeighboringRelation::AddOrRemoveOne,
        amount,
    };
    RunReserved {
        steps: 1,
        ..run(n, 1, vec![charge])
    }
}

fn reserve_evaluation(ledger: &mut Ledger, reserved: RunReserved) -> Result<(), Refusal> {
    let proposal = ledger.propose_evaluation(reserved, T0)?;
    take(ledger, Ok(proposal));
    Ok(())
}

#[test]
fn nobody_trains_on_a_held_out_dataset_not_even_its_owner() {
    let mut ledger = ledger();
    for scientist in [principal(2), principal(100)] {
        let training = RunReserved {
            scientist,
            ..run(1, 1, vec![charge(2, amount("1", "1e-7"))])
        };
        let refusal = reserve(&mut ledger, training, T0).unwrap_err();
        assert!(matches!(refusal, Refusal::EvaluationOnly { .. }), "{refusal}");
    }
    let dataset = ledger.dataset(&dataset_id(2)).unwrap();
    assert!(!dataset.is_trainable_by(&principal(100), T0));
    assert!(dataset.is_evaluable_by(&principal(100), T0));
}

#[test]
fn only_those_the_policy_names_evaluate() {
    let mut ledger = ledger();
    let stranger = RunReserved {
        scientist: principal(5),
        ..evaluation(1, 2, amount("0.5", "1e-7"))
    };
    let refusal = reserve_evaluation(&mut ledger, stranger).unwrap_err();
    assert!(matches!(refusal, Refusal::MayNotEvaluate { .. }), "{refusal}");
    reserve_evaluation(&mut ledger, evaluation(1, 2, amount("0.5", "1e-7"))).unwrap();
    assert_eq!(ledger.run(&run_id(1)).unwrap().kind(), RunKind::Evaluation);
}

#[test]
fn who_may_train_may_evaluate_on_the_same_account() {
    let mut ledger = ledger();
    reserve_evaluation(&mut ledger, evaluation(1, 1, amount("0.5", "1e-7"))).unwrap();
    let budget = ledger.dataset(&dataset_id(1)).unwrap().budget().unwrap();
    assert_eq!(budget.reserved, amount("0.5", "1e-7"));
}

#[test]
fn each_evaluation_is_charged_until_the_budget_is_gone() {
    let mut ledger = ledger();
    for n in 1..=2 {
        reserve_evaluation(&mut ledger, evaluation(n, 2, amount("0.9", "1e-7"))).unwrap();
        let _ = start(&mut ledger, n);
        advance(&mut ledger, n, 1);
        let _ = commit(&mut ledger, n, Outcome::Succeeded);
    }
    let budget = ledger.dataset(&dataset_id(2)).unwrap().budget().unwrap();
    assert_eq!(budget.committed, amount("1.8", "2e-7"));
    let refusal = reserve_evaluation(&mut ledger, evaluation(3, 2, amount("0.9", "1e-7"))).unwrap_err();
    assert!(matches!(refusal, Refusal::BudgetExceeded { .. }), "{refusal}");
}

#[test]
fn an_evaluation_releases_once() {
    let mut ledger = ledger();
    let twice = RunReserved {
        steps: 2,
        ..evaluation(1, 2, amount("0.5", "1e-7"))
    };
    let refusal = reserve_evaluation(&mut ledger, twice).unwrap_err();
    assert_eq!(refusal, Refusal::EvaluationSteps { steps: 2 });
}

/// `tests/fixtures/v1_evaluation.txt`: what was added to version 1, byte for byte; see `fixtures.rs`.
#[test]
fn the_bytes_of_held_out_datasets_and_evaluations_are_pinned() {
    let mut ledger = ledger();
    add_dataset(&mut ledger, dataset(3, held_out(MayEvaluate::Anyone)));
    reserve_evaluation(&mut ledger, evaluation(1, 2, amount("0.5", "1e-7"))).unwrap();
    let _ = start(&mut ledger, 1);
    advance(&mut ledger, 1, 1);
    let _ = commit(&mut ledger, 1, Outcome::Succeeded);
    let mut text = String::new();
    for entry in ledger.entries() {
        let (kind, bytes) = (entry.body().kind(), hex::encode(entry.to_bytes()));
        writeln!(text, "entry {kind} {bytes}\njson {}", entry.to_json()).unwrap();
    }
    for n in [2, 3] {
        let digest = ledger.dataset(&dataset_id(n)).unwrap().policy_digest();
        writeln!(text, "policy {digest}").unwrap();
    }
    let receipt = Receipt::issue(&ledger, &run_id(1), evidence(1), None, Vec::new(), T0).unwrap();
    receipt.check_prices().unwrap();
    let envelope = receipt.sign(&key());
    assert_eq!(
        Receipt::verify_offline(&envelope, &key().public_key()).unwrap(),
        receipt
    );
    writeln!(text, "receipt {}", String::from_utf8(envelope).unwrap()).unwrap();

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1_evaluation.txt");
    if std::env::var_os("BASTIONAI_WRITE_FIXTURES").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    let replayed = Ledger::replay(ledger.entries().iter().cloned()).unwrap();
    assert_eq!(replayed.head(), ledger.head());
}
