//! Datasets whose runs add up in Rényi divergences: what is admitted, charged, refunded and stated, and the bytes of it.
#![allow(clippy::unwrap_used)]
mod common;

use bastionai_ledger::*;
use bastionai_privacy::accountant;
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_privacy::filter::renyi::RenyiCost;
use bastionai_privacy::filter::terms::{RenyiTerms, TermsError};
use common::*;
use std::fmt::Write;
use std::path::Path;

const RHO: [&str; 3] = ["0.2", "0.3", "1.0"];

/// Dataset 1 composes by Rényi divergences, dataset 2 by sums.
fn ledger() -> Ledger {
    let mut ledger = new_ledger();
    add_dataset(&mut ledger, dataset(1, renyi_policy(amount("6", "1e-5"))));
    add_dataset(&mut ledger, dataset(2, policy(amount("6", "1e-5"))));
    ledger
}

fn account(ledger: &Ledger) -> &RenyiAccount {
    ledger.dataset(&dataset_id(1)).unwrap().renyi_account().unwrap()
}

fn small(n: u8) -> RunReserved {
    run(n, 1, vec![charge(1, amount("1", "1e-6"))])
}

fn shown(total: &bastionai_privacy::filter::renyi::RenyiTotal) -> Vec<String> {
    total.rho().iter().map(Rho::to_string).collect()
}

#[test]
fn the_filter_decides_and_the_sums_do_not() {
    let mut ledger = ledger();
    // By sums six runs of ε = 1 would do; order 10.5 has a budget of about 5.1.
    let budget = account(&ledger).filter().budgets()[1].unwrap();
    let admitted = (budget.to_f64() / 0.3) as u8;
    assert!(admitted > 12, "{admitted}");
    for n in 0..admitted {
        let _ = reserve_renyi(&mut ledger, small(n), vec![renyi_charge(1, RHO)]).unwrap();
    }
    let refusal = reserve_renyi(&mut ledger, small(99), vec![renyi_charge(1, RHO)]).unwrap_err();
    assert!(
        matches!(&refusal, Refusal::RenyiExceeded { name, with, lifetime, .. }
            if name == "dataset 1" && with > lifetime && lifetime.to_string() == "6.0"),
        "{refusal}"
    );
    let sums = ledger.dataset(&dataset_id(1)).unwrap().budget().unwrap();
    assert_eq!(
        sums.reserved.epsilon.to_string(),
        format!("{admitted}.0"),
        "shown all the same"
    );
    assert_eq!(sums.remaining, Amount::ZERO);
    assert!(!sums.admits(amount("1", "1e-6")));
    // What never started is free again, and admits another.
    let reservation = ledger.reservation(&run_id(0)).unwrap();
    let proposal = ledger.propose_refund(&reservation, RefundReason::Cancelled, T0);
    take(&mut ledger, proposal);
    let _ = reserve_renyi(&mut ledger, small(99), vec![renyi_charge(1, RHO)]).unwrap();
}

#[test]
fn a_run_is_charged_in_the_currency_of_each_of_its_datasets_or_on_none() {
    let mut ledger = ledger();
    let both = |n, epsilon| {
        run(
            n,
            1,
            vec![
                charge(2, amount(epsilon, "1e-6")),
                charge(1, amount(epsilon, "1e-6")),
            ],
        )
    };
    let _ = reserve_renyi(&mut ledger, both(1, "4"), vec![renyi_charge(1, RHO)]).unwrap();
    let refusal = reserve_renyi(&mut ledger, both(2, "4"), vec![renyi_charge(1, RHO)]).unwrap_err();
    assert!(
        matches!(&refusal, Refusal::BudgetExceeded { name, .. } if name == "dataset 2"),
        "{refusal}"
    );
    let too_much = ["7", "7", "7"];
    let refusal = reserve_renyi(&mut ledger, both(2, "1"), vec![renyi_charge(1, too_much)]).unwrap_err();
    assert!(matches!(refusal, Refusal::RenyiExceeded { .. }), "{refusal}");
    assert_eq!(shown(&account(&ledger).used()), ["0.2", "0.3", "1.0"]);
    assert_eq!(
        ledger.dataset(&dataset_id(2)).unwrap().budget().unwrap().reserved,
        amount("4", "1e-6")
    );
}

#[test]
fn charges_that_do_not_belong_to_the_accounts_are_refused() {
    let mut ledger = ledger();
    let two = vec![charge(1, amount("1", "1e-6")), charge(2, amount("1", "1e-6"))];
    let mut short = renyi_charge(1, RHO);
    short.cost = RenyiCost::new(short.cost.rho()[..2].to_vec());
    for renyi in [
        vec![],
        vec![renyi_charge(2, RHO)],
        vec![renyi_charge(1, RHO), renyi_charge(2, RHO)],
        vec![renyi_charge(1, RHO), renyi_charge(1, RHO)],
        vec![renyi_charge(1, ["0", "0", "0"])],
        vec![short],
    ] {
        let refusal = reserve_renyi(&mut ledger, run(1, 1, two.clone()), renyi).unwrap_err();
        assert_eq!(refusal, Refusal::RenyiCharges);
    }
    let sums_only = run(1, 1, vec![charge(2, amount("1", "1e-6"))]);
    let refusal = reserve_renyi(&mut ledger, sums_only, vec![renyi_charge(1, RHO)]).unwrap_err();
    assert_eq!(refusal, Refusal::RenyiCharges);
    let refusal = ledger.propose_reservation(small(1), T0).unwrap_err();
    assert_eq!(
        refusal,
        Refusal::RenyiCharges,
        "the form without is for other datasets"
    );
    let free = run(1, 1, vec![charge(1, Amount::ZERO)]);
    let refusal = reserve_renyi(&mut ledger, free, vec![renyi_charge(1, RHO)]).unwrap_err();
    assert!(matches!(refusal, Refusal::Charge { .. }), "{refusal}");
}

/// Divergences that are unbounded at an order spend it whole, and the others go on.
#[test]
fn an_order_without_a_bound_is_spent_for_as_long_as_the_run_counts() {
    let mut ledger = ledger();
    let wild = RenyiCharge {
        dataset: dataset_id(1),
        cost: RenyiCost::new(vec!["0.1".parse().unwrap(), "0.1".parse().unwrap(), Rho::MAX]),
    };
    let _ = reserve_renyi(&mut ledger, small(1), vec![wild.clone()]).unwrap();
    let _ = reserve_renyi(&mut ledger, small(2), vec![wild]).unwrap();
    let spent = renyi_charge(1, ["9", "9", "0.1"]);
    let refusal = reserve_renyi(&mut ledger, small(3), vec![spent.clone()]).unwrap_err();
    assert!(matches!(refusal, Refusal::RenyiExceeded { .. }));
    for n in [1, 2] {
        let reservation = ledger.reservation(&run_id(n)).unwrap();
        let proposal = ledger.propose_refund(&reservation, RefundReason::NotStartable, T0);
        take(&mut ledger, proposal);
    }
    let _ = reserve_renyi(&mut ledger, small(3), vec![spent]).unwrap();
}

/// Rule D5.
#[test]
fn a_cancelled_run_pays_for_the_steps_it_started_where_divergences_are_added() {
    let mut ledger = ledger();
    let charges = vec![charge(1, amount("1", "1e-6")), charge(2, amount("1", "1e-6"))];
    let _ = reserve_renyi(&mut ledger, run(1, 1, charges), vec![renyi_charge(1, RHO)]).unwrap();
    let started = start(&mut ledger, 1);
    advance(&mut ledger, 1, 30);
    let refusal = ledger.propose_stop(&started, 29, T0).unwrap_err();
    assert!(
        matches!(refusal, Refusal::Outcome { .. }),
        "30 steps were released"
    );
    let proposal = ledger.propose_stop(&started, 33, T0);
    let entry = take(&mut ledger, proposal);
    assert_eq!(entry.body().kind(), "run_stopped");
    let run = ledger.run(&run_id(1)).unwrap();
    assert_eq!(run.status(), RunStatus::Committed(Outcome::Cancelled));
    assert_eq!(run.started_steps(), Some(33));
    let account = account(&ledger);
    assert_eq!(shown(account.committed()), ["0.066", "0.099", "0.33"]);
    assert_eq!(shown(account.reserved()), ["0.0", "0.0", "0.0"]);
    let sums = ledger.dataset(&dataset_id(2)).unwrap().budget().unwrap();
    assert_eq!(
        (sums.committed, sums.reserved),
        (amount("1", "1e-6"), Amount::ZERO),
        "all of it"
    );
}

#[test]
fn a_run_without_such_datasets_or_with_all_steps_started_is_cancelled_as_ever() {
    let mut ledger = ledger();
    let _ = reserve(&mut ledger, run(1, 1, vec![charge(2, amount("1", "1e-6"))]), T0).unwrap();
    let _ = reserve_renyi(&mut ledger, small(2), vec![renyi_charge(1, RHO)]).unwrap();
    for (n, steps) in [(1, 33), (2, 100)] {
        let started = start(&mut ledger, n);
        let proposal = ledger.propose_stop(&started, steps, T0);
        assert_eq!(take(&mut ledger, proposal).body().kind(), "run_committed");
        assert_eq!(ledger.run(&run_id(n)).unwrap().started_steps(), None);
    }
    assert_eq!(shown(account(&ledger).committed()), ["0.2", "0.3", "1.0"]);
}

/// What fails, or was left open by a boot that is gone, is charged whole: nobody knows what it had started.
#[test]
fn failed_and_settled_runs_stay_charged_in_full() {
    let mut ledger = ledger();
    for n in [1, 2] {
        let _ = reserve_renyi(&mut ledger, small(n), vec![renyi_charge(1, RHO)]).unwrap();
        let _ = start(&mut ledger, n);
    }
    let _ = commit(&mut ledger, 1, Outcome::Failed);
    let proposal = ledger.propose_boot(boot(2), T0);
    take(&mut ledger, proposal);
    let started = ledger.started(&run_id(2)).unwrap();
    let refusal = ledger.propose_stop(&started, 5, T0).unwrap_err();
    assert_eq!(refusal, Refusal::OtherBoot);
    let proposal = ledger.propose_settlement(ledger.orphans()[0], T0);
    take(&mut ledger, proposal);
    assert_eq!(shown(account(&ledger).committed()), ["0.4", "0.6", "2.0"]);
}

/// In proportion only where the steps are equal.
#[test]
fn steps_of_a_mechanism_that_is_not_equal_steps_are_not_refunded() {
    let mut ledger = ledger();
    let unequal = Charge {
        event: DpEvent::Composed {
            events: vec![event()],
        },
        ..charge(1, amount("1", "1e-6"))
    };
    let _ = reserve_renyi(&mut ledger, run(1, 1, vec![unequal]), vec![renyi_charge(1, RHO)]).unwrap();
    let started = start(&mut ledger, 1);
    let proposal = ledger.propose_stop(&started, 1, T0);
    take(&mut ledger, proposal);
    assert_eq!(shown(account(&ledger).committed()), ["0.2", "0.3", "1.0"]);
}

#[test]
fn policies_with_orders_that_make_no_account_are_refused() {
    let limit = amount("6", "1e-5");
    let refused = |policy: &Policy, kind| policy.check(kind).unwrap_err();
    let none = Policy {
        lifetime: None,
        ..renyi_policy(limit)
    };
    assert_eq!(
        refused(&none, DatasetKind::Public),
        PolicyError::UnneededComposition
    );
    let hopeless = renyi_policy(amount("0.01", "1e-15"));
    let error = refused(&hopeless, DatasetKind::Private);
    assert!(
        matches!(error, PolicyError::Composition(TermsError::NoBudget { .. })),
        "{error}"
    );
    renyi_policy(limit).check(DatasetKind::Private).unwrap();
    let default = Policy {
        composition: Composition::Renyi(RenyiTerms::default()),
        ..policy(limit)
    };
    default.check(DatasetKind::Private).unwrap();
    assert_ne!(default.digest(), policy(limit).digest());
    assert_ne!(default.digest(), renyi_policy(limit).digest());
    for policy in [default, renyi_policy(limit), policy(limit), public_policy()] {
        let json = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), policy, "{json}");
    }
}

/// A run of 100 steps on dataset 1, as a server would price it.
fn priced() -> (Charge, RenyiCharge) {
    let (event, relation) = (event(), NeighboringRelation::AddOrRemoveOne);
    let delta: Delta = "1e-6".parse().unwrap();
    let epsilon = accountant::epsilon(&event, relation, delta.to_f64().next_down()).unwrap();
    let cost = terms().cost_of(&event, relation).unwrap();
    let amount = Amount::new(Epsilon::from_f64_round_up(epsilon).unwrap(), delta);
    let dataset = dataset_id(1);
    (charge(1, amount), RenyiCharge { dataset, cost })
}

fn stopped_run() -> Ledger {
    let mut ledger = new_ledger();
    add_dataset(&mut ledger, dataset(1, renyi_policy(amount("60", "1e-5"))));
    let (charge, renyi) = priced();
    let _ = reserve_renyi(&mut ledger, run(1, 1, vec![charge.clone()]), vec![renyi.clone()]).unwrap();
    let started = start(&mut ledger, 1);
    let proposal = ledger.propose_stop(&started, 40, T0);
    take(&mut ledger, proposal);
    let _ = reserve_renyi(&mut ledger, run(2, 1, vec![charge]), vec![renyi]).unwrap();
    ledger
}

fn receipt(ledger: &Ledger) -> Receipt {
    Receipt::issue(ledger, &run_id(1), evidence(1), None, Vec::new(), T0).unwrap()
}

#[test]
fn a_receipt_states_the_account_in_its_currency_and_an_auditor_recomputes_it() {
    let ledger = stopped_run();
    let read = Receipt::verify_offline(&receipt(&ledger).sign(&key()), &key().public_key()).unwrap();
    assert_eq!(read.run.started_steps, Some(40));
    let statement = &read.datasets[0];
    let renyi = statement.budget.as_ref().unwrap().renyi.as_ref().unwrap();
    let (_, planned) = priced();
    assert_eq!(statement.renyi, Some(planned.cost.of_steps(40, 100)));
    assert_eq!(
        (&renyi.total, &renyi.reserved),
        (statement.renyi.as_ref().unwrap(), &planned.cost)
    );
    assert_eq!(renyi.epsilon, account(&ledger).used_epsilon());
    assert_eq!(renyi.orders, terms());
    assert!(read.accounting.composition.contains("Renyi"));
    read.check_prices().unwrap();

    let less = |cost: &RenyiCost| {
        let mut rho = cost.rho().to_vec();
        rho[2] = Rho::from_units(rho[2].units() - 1);
        RenyiCost::new(rho)
    };
    let mut cheap = read.clone();
    cheap.datasets[0].renyi = Some(less(&planned.cost.of_steps(40, 100)));
    assert!(matches!(cheap.check_prices(), Err((_, PriceError::RenyiTooLow))));
    let mut longer = read.clone();
    longer.run.started_steps = Some(41);
    assert!(matches!(longer.check_prices(), Err((_, PriceError::RenyiTooLow))));
}

#[test]
fn a_receipt_whose_account_contradicts_itself_is_refused_although_signed() {
    let good = receipt(&stopped_run());
    let account = |receipt: &mut Receipt, change: fn(&mut bastionai_ledger::receipt::RenyiStatement)| {
        change(
            receipt.datasets[0]
                .budget
                .as_mut()
                .unwrap()
                .renyi
                .as_mut()
                .unwrap(),
        );
    };
    let mut wrong = vec![good.clone(); 8];
    wrong[0].datasets[0].renyi = None;
    wrong[1].datasets[0].budget.as_mut().unwrap().renyi = None;
    account(&mut wrong[2], |account| {
        account.total = RenyiCost::new(vec![Rho::ZERO; 3])
    });
    account(&mut wrong[3], |account| {
        account.reserved = RenyiCost::new(vec![Rho::MAX; 3])
    });
    account(&mut wrong[4], |account| account.epsilon = Epsilon::ZERO);
    account(&mut wrong[5], |account| account.orders = RenyiTerms::default());
    wrong[6].run.started_steps = Some(100);
    wrong[7].run.outcome = Outcome::Failed;
    for (number, receipt) in wrong.iter().enumerate() {
        let error = Receipt::verify_offline(&receipt.sign(&key()), &key().public_key()).unwrap_err();
        assert!(
            matches!(error, ReceiptError::Inconsistent { .. }),
            "{number}: {error}"
        );
    }
    Receipt::verify_offline(&good.sign(&key()), &key().public_key()).unwrap();
}

fn current() -> String {
    let mut text = String::new();
    let mut ledger = ledger();
    let both = vec![charge(2, amount("2", "1e-6")), charge(1, amount("2", "1e-6"))];
    let _ = reserve_renyi(&mut ledger, run(1, 1, both), vec![renyi_charge(1, RHO)]).unwrap();
    let started = start(&mut ledger, 1);
    let proposal = ledger.propose_stop(&started, 33, T0);
    take(&mut ledger, proposal);
    let evaluation = RunReserved { steps: 1, ..small(2) };
    let wild = RenyiCharge {
        dataset: dataset_id(1),
        cost: RenyiCost::new(vec![Rho::from_units(1), "0.1".parse().unwrap(), Rho::MAX]),
    };
    let proposal = ledger.propose_priced(RunKind::Evaluation, evaluation, vec![wild], T0);
    take(&mut ledger, proposal);
    for entry in ledger.entries() {
        let (kind, bytes) = (entry.body().kind(), hex::encode(entry.to_bytes()));
        writeln!(
            text,
            "entry {kind} {bytes} {}\njson {}",
            entry.hash(),
            entry.to_json()
        )
        .unwrap();
    }
    let policy = ledger.dataset(&dataset_id(1)).unwrap().policy_digest();
    writeln!(text, "policy {policy}").unwrap();
    for budget in account(&ledger).filter().budgets() {
        writeln!(
            text,
            "budget {}",
            budget.map_or("none".to_owned(), |rho| rho.to_string())
        )
        .unwrap();
    }
    let receipt = String::from_utf8(receipt(&ledger).sign(&key())).unwrap();
    writeln!(text, "receipt {receipt}").unwrap();
    text
}

/// As `fixtures.rs`: to write a new file, run with `BASTIONAI_WRITE_FIXTURES=1`.
#[test]
fn formats_are_what_version_1_wrote() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1_renyi.txt");
    if std::env::var_os("BASTIONAI_WRITE_FIXTURES").is_some() {
        std::fs::write(&path, current()).unwrap();
    }
    let pinned = std::fs::read_to_string(&path).unwrap();
    for (number, (pinned, current)) in pinned.lines().zip(current().lines()).enumerate() {
        assert_eq!(pinned, current, "line {}", number + 1);
    }
    assert_eq!(pinned, current());
    let entries = pinned.lines().filter_map(|line| line.strip_prefix("entry "));
    let read =
        |line: &str| Entry::from_bytes(&hex::decode(line.split(' ').nth(1).unwrap()).unwrap()).unwrap();
    let ledger = Ledger::replay(entries.map(read)).unwrap();
    assert_eq!(shown(&account(&ledger).used())[0], "0.066000000001");
}
