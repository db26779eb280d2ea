//! The budget state machine, rule by rule.
#![allow(clippy::unwrap_used)]
mod common;

use bastionai_ledger::*;
use common::*;

fn budget(ledger: &Ledger, n: u8) -> Budget {
    ledger.dataset(&dataset_id(n)).unwrap().budget().unwrap()
}

fn two_datasets() -> Ledger {
    let mut ledger = new_ledger();
    add_dataset(&mut ledger, dataset(1, policy(amount("6.0", "1e-5"))));
    add_dataset(&mut ledger, dataset(2, policy(amount("1.0", "1e-5"))));
    ledger
}

#[test]
fn a_reservation_is_all_or_nothing() {
    let mut ledger = two_datasets();
    let charges = vec![
        charge(1, amount("2", "1e-6")),
        charge(2, amount("1.000000001", "1e-6")),
    ];
    let refusal = reserve(&mut ledger, run(1, 1, charges), T0).unwrap_err();
    assert!(
        matches!(&refusal, Refusal::BudgetExceeded { name, remaining, .. }
        if name == "dataset 2" && *remaining == amount("1", "1e-5")),
        "{refusal}"
    );
    assert_eq!(budget(&ledger, 1).remaining, amount("6", "1e-5"));
    assert!(ledger.run(&run_id(1)).is_none());
}

#[test]
fn a_budget_is_spent_to_the_last_unit_and_not_beyond() {
    let mut ledger = two_datasets();
    for n in 0..10 {
        let _ = reserve(&mut ledger, run(n, 1, vec![charge(2, amount("0.1", "1e-6"))]), T0).unwrap();
    }
    assert_eq!(budget(&ledger, 2).remaining, Amount::ZERO);
    for tiny in [amount("1e-9", "0"), amount("1e-9", "1e-18")] {
        assert!(matches!(
            reserve(&mut ledger, run(50, 1, vec![charge(2, tiny)]), T0),
            Err(Refusal::BudgetExceeded { .. })
        ));
    }
}

#[test]
fn delta_alone_can_exceed_a_budget() {
    let mut ledger = two_datasets();
    let refusal = reserve(
        &mut ledger,
        run(1, 1, vec![charge(1, amount("0.1", "1.0000000001e-5"))]),
        T0,
    )
    .unwrap_err();
    assert!(matches!(refusal, Refusal::BudgetExceeded { .. }));
}

#[test]
fn the_second_of_two_racing_runs_is_refused() {
    let mut ledger = two_datasets();
    let both = [
        run(1, 1, vec![charge(2, amount("0.6", "1e-6"))]),
        run(2, 1, vec![charge(2, amount("0.6", "1e-6"))]),
    ];
    let [first, second] = both.map(|reserved| ledger.propose_reservation(reserved, T0).unwrap());
    ledger.apply(first.into_entry()).unwrap();
    assert!(
        matches!(
            ledger.apply(second.into_entry()),
            Err(ChainError::Sequence { .. })
        ),
        "it no longer continues the chain"
    );
    assert_eq!(budget(&ledger, 2).reserved, amount("0.6", "1e-6"));
}

#[test]
fn a_dataset_named_twice_is_refused() {
    let mut ledger = two_datasets();
    let twice = vec![charge(1, amount("1", "1e-6")), charge(1, amount("1", "1e-6"))];
    assert!(matches!(
        reserve(&mut ledger, run(1, 1, twice), T0),
        Err(Refusal::DatasetTwice { .. })
    ));
}

#[test]
fn once_started_the_full_reserve_stays_charged() {
    for outcome in [Outcome::Succeeded, Outcome::Failed, Outcome::Cancelled] {
        let mut ledger = two_datasets();
        let reservation = reserve(&mut ledger, run(1, 1, vec![charge(1, amount("2", "1e-6"))]), T0).unwrap();
        assert_eq!(budget(&ledger, 1).reserved, amount("2", "1e-6"));
        let _ = start(&mut ledger, 1);
        let late = ledger
            .propose_refund(&reservation, RefundReason::Cancelled, T0)
            .unwrap_err();
        assert!(
            matches!(late, Refusal::RunStatus { .. }),
            "no refund after the start"
        );
        advance(
            &mut ledger,
            1,
            if outcome == Outcome::Succeeded { 100 } else { 1 },
        );
        let _ = commit(&mut ledger, 1, outcome);
        let account = budget(&ledger, 1);
        assert_eq!(
            (account.committed, account.reserved),
            (amount("2", "1e-6"), Amount::ZERO),
            "{outcome:?}"
        );
        assert_eq!(account.remaining, amount("4", "9e-6"));
        assert_eq!(ledger.run(&run_id(1)).unwrap().ended_unix_ms(), Some(T0));
    }
}

#[test]
fn a_run_that_never_started_is_refunded() {
    let mut ledger = two_datasets();
    let reservation = reserve(&mut ledger, run(1, 1, vec![charge(1, amount("2", "1e-6"))]), T0).unwrap();
    assert_eq!((reservation.run(), reservation.charges().len()), (run_id(1), 1));
    let proposal = ledger.propose_refund(&reservation, RefundReason::NotStartable, T0);
    take(&mut ledger, proposal);
    assert_eq!(budget(&ledger, 1).remaining, amount("6", "1e-5"));
    assert!(ledger.reservation(&run_id(1)).is_none() && ledger.started(&run_id(1)).is_none());
    assert!(ledger.budget_receipt(&run_id(1)).is_none());
    assert!(matches!(
        ledger.propose_start(&reservation, T0),
        Err(Refusal::RunStatus { .. })
    ));
}

#[test]
fn public_and_synthetic_data_have_no_budget_and_cannot_be_charged() {
    let mut ledger = two_datasets();
    add_dataset(&mut ledger, dataset(3, public_policy()));
    add_dataset(
        &mut ledger,
        DatasetCreated {
            kind: DatasetKind::Synthetic,
            ..dataset(4, public_policy())
        },
    );
    assert!(ledger.dataset(&dataset_id(3)).unwrap().budget().is_none());
    let free = vec![charge(3, Amount::ZERO), charge(4, Amount::ZERO)];
    let _ = reserve(&mut ledger, run(1, 1, free), T0).unwrap();
    for wrong in [
        charge(3, amount("1", "0")),
        charge(1, Amount::ZERO),
        charge(1, amount("0", "1e-6")),
    ] {
        assert!(matches!(
            reserve(&mut ledger, run(2, 1, vec![wrong]), T0),
            Err(Refusal::Charge { .. })
        ));
    }
}

#[test]
fn steps_are_released_once_in_order_and_within_the_plan() {
    let mut ledger = two_datasets();
    let _ = reserve(&mut ledger, run(1, 1, vec![charge(1, amount("1", "1e-6"))]), T0).unwrap();
    assert!(
        ledger.started(&run_id(1)).is_none(),
        "nothing can advance before the start"
    );
    let started = start(&mut ledger, 1);
    assert_eq!((started.run(), started.steps()), (run_id(1), 100));
    advance(&mut ledger, 1, 7);
    for step in [0, 6, 7, 101] {
        assert!(
            matches!(
                ledger.propose_advance(&started, step, T0),
                Err(Refusal::ReleasedStep { .. })
            ),
            "{step}"
        );
    }
    advance(&mut ledger, 1, 8);
    assert_eq!(ledger.run(&run_id(1)).unwrap().released_step(), 8);
}

#[test]
fn success_needs_all_steps_and_weights_and_nothing_else_has_weights() {
    let mut ledger = two_datasets();
    let _ = reserve(&mut ledger, run(1, 1, vec![charge(1, amount("1", "1e-6"))]), T0).unwrap();
    let started = start(&mut ledger, 1);
    advance(&mut ledger, 1, 99);
    let weights = Some(Digest32::of(b"weights"));
    let refused =
        |ledger: &Ledger, outcome, weights| ledger.propose_commit(&started, outcome, weights, T0).is_err();
    assert!(refused(&ledger, Outcome::Succeeded, weights), "a step is missing");
    advance(&mut ledger, 1, 100);
    assert!(refused(&ledger, Outcome::Succeeded, None));
    assert!(refused(&ledger, Outcome::Failed, weights));
    assert!(refused(&ledger, Outcome::Cancelled, weights));
    assert!(!refused(&ledger, Outcome::Succeeded, weights));
}

#[test]
fn weights_go_only_to_those_whom_every_owner_allows() {
    let mut ledger = new_ledger();
    let mut first = policy(amount("6", "1e-5"));
    first.recipients = [principal(50), principal(51)].into();
    let mut second = policy(amount("6", "1e-5"));
    second.recipients = [principal(51)].into();
    second.scientist_receives = false;
    add_dataset(&mut ledger, dataset(1, first));
    add_dataset(&mut ledger, dataset(2, second));
    let charges = vec![charge(1, amount("1", "1e-6")), charge(2, amount("1", "1e-6"))];
    let _ = reserve(&mut ledger, run(1, 1, charges), T0).unwrap();
    let _ = start(&mut ledger, 1);
    advance(&mut ledger, 1, 100);
    let _ = commit(&mut ledger, 1, Outcome::Succeeded);
    for (who, allowed) in [(50, false), (51, true), (100, false), (1, false)] {
        let receipt = ledger.budget_receipt(&run_id(1)).unwrap();
        assert_eq!(receipt.weights_digest(), Some(Digest32::of(&[1, 1])));
        let proposal = ledger.propose_release(receipt, principal(who), T0);
        assert_eq!(proposal.is_ok(), allowed, "{who}");
        assert_eq!(ledger.may_receive(&run_id(1), &principal(who)), allowed, "{who}");
    }
    assert!(!ledger.may_receive(&run_id(9), &principal(51)), "no such run");
}

#[test]
fn a_failed_run_has_nothing_to_release() {
    let mut ledger = two_datasets();
    let _ = reserve(&mut ledger, run(1, 1, vec![charge(1, amount("1", "1e-6"))]), T0).unwrap();
    let _ = start(&mut ledger, 1);
    let receipt = commit(&mut ledger, 1, Outcome::Failed);
    assert_eq!((receipt.run(), receipt.outcome()), (run_id(1), Outcome::Failed));
    assert!(ledger.propose_release(receipt, principal(100), T0).is_err());
}

#[test]
fn policies_decide_who_trains_and_until_when() {
    let mut ledger = new_ledger();
    let mut strict = policy(amount("6", "1e-5"));
    strict.may_train = MayTrain::Only([principal(77)].into());
    add_dataset(&mut ledger, dataset(1, strict));
    let mut expiring = policy(amount("6", "1e-5"));
    expiring.expires_unix_ms = Some(T0 + 100);
    add_dataset(&mut ledger, dataset(2, expiring));

    let stranger = reserve(&mut ledger, run(1, 1, vec![charge(1, amount("1", "1e-6"))]), T0).unwrap_err();
    assert!(matches!(stranger, Refusal::MayNotTrain { .. }));
    let invited = RunReserved {
        scientist: principal(77),
        ..run(1, 1, vec![charge(1, amount("1", "1e-6"))])
    };
    let _ = reserve(&mut ledger, invited, T0).unwrap();
    assert!(
        ledger
            .dataset(&dataset_id(2))
            .unwrap()
            .is_trainable_by(&principal(5), T0 + 99)
    );
    assert!(
        !ledger
            .dataset(&dataset_id(2))
            .unwrap()
            .is_trainable_by(&principal(5), T0 + 100)
    );
    let late = reserve(
        &mut ledger,
        run(2, 1, vec![charge(2, amount("1", "1e-6"))]),
        T0 + 100,
    )
    .unwrap_err();
    assert!(matches!(late, Refusal::Expired { .. }));
}

#[test]
fn turning_the_clock_back_revives_no_policy() {
    let mut ledger = new_ledger();
    let mut expiring = policy(amount("6", "1e-5"));
    expiring.expires_unix_ms = Some(T0 + 100);
    add_dataset(&mut ledger, dataset(1, expiring));
    let proposal = ledger.propose_boot(boot(2), T0 + 200);
    assert_eq!(take(&mut ledger, proposal).time_unix_ms(), T0 + 200);
    let back = reserve(
        &mut ledger,
        run(1, 2, vec![charge(1, amount("1", "1e-6"))]),
        T0 + 1,
    )
    .unwrap_err();
    assert!(matches!(back, Refusal::Expired { .. }));
    let proposal = ledger.propose_boot(boot(3), 0).unwrap();
    assert_eq!(
        proposal.entry().time_unix_ms(),
        T0 + 200,
        "ledger time never falls"
    );
}

#[test]
fn withdrawal_is_the_owners_and_holds_for_every_later_run() {
    let mut ledger = two_datasets();
    let _ = reserve(&mut ledger, run(1, 1, vec![charge(1, amount("1", "1e-6"))]), T0).unwrap();
    assert!(matches!(
        ledger.propose_withdrawal(dataset_id(1), principal(2), T0),
        Err(Refusal::NotOwner { .. })
    ));
    let proposal = ledger.propose_withdrawal(dataset_id(1), principal(1), T0);
    take(&mut ledger, proposal);
    let next = reserve(&mut ledger, run(2, 1, vec![charge(1, amount("1", "1e-6"))]), T0).unwrap_err();
    assert!(matches!(next, Refusal::Withdrawn { .. }));
    assert!(matches!(
        ledger.propose_withdrawal(dataset_id(1), principal(1), T0),
        Err(Refusal::Withdrawn { .. })
    ));
    let again = DatasetCreated {
        dataset: dataset_id(9),
        ..dataset(1, policy(amount("6", "1e-5")))
    };
    assert!(
        matches!(ledger.propose_dataset(again, T0), Err(Refusal::NameTaken { .. })),
        "a new budget under the old name"
    );
}

#[test]
fn removal_is_the_owners_waits_for_open_runs_and_leaves_the_account() {
    let mut ledger = two_datasets();
    let reservation = reserve(&mut ledger, run(1, 1, vec![charge(1, amount("1", "1e-6"))]), T0).unwrap();
    let remove = |ledger: &Ledger, by: u8| ledger.propose_removal(dataset_id(1), principal(by), T0);
    assert!(matches!(remove(&ledger, 2), Err(Refusal::NotOwner { .. })));
    assert_eq!(
        remove(&ledger, 1).unwrap_err(),
        Refusal::InUse {
            name: ledger.dataset(&dataset_id(1)).unwrap().name().to_owned(),
            run: run_id(1)
        }
    );
    let proposal = ledger.propose_refund(&reservation, RefundReason::Cancelled, T0);
    take(&mut ledger, proposal);
    let _ = reserve(&mut ledger, run(2, 1, vec![charge(1, amount("1", "1e-6"))]), T0).unwrap();
    let _ = start(&mut ledger, 2);
    assert!(matches!(remove(&ledger, 1), Err(Refusal::InUse { .. })));
    let _ = commit(&mut ledger, 2, Outcome::Failed);
    let proposal = remove(&ledger, 1);
    take(&mut ledger, proposal);
    let removed = ledger.dataset(&dataset_id(1)).unwrap();
    assert!(removed.is_withdrawn() && removed.is_removed());
    assert_eq!(
        budget(&ledger, 1).committed.epsilon,
        amount("1", "1e-6").epsilon,
        "what was spent stays spent"
    );
    assert!(matches!(remove(&ledger, 1), Err(Refusal::Removed { .. })));
    let next = reserve(&mut ledger, run(3, 1, vec![charge(1, amount("1", "1e-6"))]), T0).unwrap_err();
    assert!(matches!(next, Refusal::Withdrawn { .. }));
}

#[test]
fn a_removal_has_the_bytes_that_version_1_gives_it() {
    let body = Body::DatasetRemoved(DatasetRemoved {
        dataset: dataset_id(1),
        by: principal(2),
    });
    assert_eq!(
        hex::encode(body.to_bytes()),
        format!("0a{}{}", "01".repeat(16), "02".repeat(32))
    );
}

#[test]
fn a_queued_run_does_not_start_on_a_dataset_that_is_no_longer_offered_and_is_refunded() {
    let mut expiring = policy(amount("6", "1e-5"));
    expiring.expires_unix_ms = Some(T0 + 100);
    let mut ledger = new_ledger();
    add_dataset(&mut ledger, dataset(1, policy(amount("6", "1e-5"))));
    add_dataset(&mut ledger, dataset(2, expiring));
    let of = |n: u8, dataset: u8| run(n, 1, vec![charge(dataset, amount("1", "1e-6"))]);
    let queued = reserve(&mut ledger, of(1, 1), T0).unwrap();
    let late = reserve(&mut ledger, of(2, 2), T0).unwrap();
    let _ = reserve(&mut ledger, of(3, 1), T0).unwrap();
    let _ = start(&mut ledger, 3);
    assert!(ledger.propose_start(&late, T0 + 99).is_ok());
    assert!(matches!(
        ledger.propose_start(&late, T0 + 100),
        Err(Refusal::Expired { .. })
    ));
    let proposal = ledger.propose_withdrawal(dataset_id(1), principal(1), T0);
    take(&mut ledger, proposal);
    assert!(matches!(
        ledger.propose_start(&queued, T0),
        Err(Refusal::Withdrawn { .. })
    ));
    advance(&mut ledger, 3, 5); // a started run goes on
    let proposal = ledger.propose_refund(&queued, RefundReason::NotStartable, T0);
    take(&mut ledger, proposal);
    let left = budget(&ledger, 1);
    assert_eq!(
        left.reserved.epsilon,
        amount("1", "1e-6").epsilon,
        "the started run's"
    );
    assert_eq!(left.remaining.epsilon, amount("5", "1e-6").epsilon);
}

#[test]
fn starts_per_day_and_failures_are_limited() {
    let day = 24 * 60 * 60 * 1000;
    let mut ledger = new_ledger();
    let mut limited = policy(amount("6", "1e-5"));
    limited.limits = RunLimits {
        max_starts_per_day: 2,
        max_failed_runs: 1,
    };
    add_dataset(&mut ledger, dataset(1, limited));
    let cheap = || vec![charge(1, amount("0.1", "1e-7"))];
    let _ = reserve(&mut ledger, run(1, 1, cheap()), T0).unwrap();
    let second = reserve(&mut ledger, run(2, 1, cheap()), T0 + 1).unwrap();
    assert!(matches!(
        reserve(&mut ledger, run(3, 1, cheap()), T0 + 2),
        Err(Refusal::TooManyStarts { limit: 2, .. })
    ));
    let proposal = ledger.propose_refund(&second, RefundReason::Cancelled, T0 + 3);
    take(&mut ledger, proposal);
    let _ = reserve(&mut ledger, run(3, 1, cheap()), T0 + 4).unwrap();
    assert!(reserve(&mut ledger, run(4, 1, cheap()), T0 + 5).is_err());
    let queued = reserve(&mut ledger, run(4, 1, cheap()), T0 + 4 + day).unwrap();
    let _ = start(&mut ledger, 1);
    let _ = commit(&mut ledger, 1, Outcome::Failed);
    assert!(matches!(
        ledger.propose_start(&queued, T0 + 2 * day),
        Err(Refusal::TooManyFailures { limit: 1, .. })
    ));
    let failed = reserve(&mut ledger, run(5, 1, cheap()), T0 + 3 * day).unwrap_err();
    assert!(matches!(failed, Refusal::TooManyFailures { limit: 1, .. }));
}

#[test]
fn a_new_boot_settles_what_the_old_one_left_open() {
    let mut ledger = two_datasets();
    for n in 1..=3 {
        let _ = reserve(&mut ledger, run(n, 1, vec![charge(1, amount("1", "1e-6"))]), T0).unwrap();
    }
    let started = start(&mut ledger, 1);
    let _ = start(&mut ledger, 3);
    let _ = commit(&mut ledger, 3, Outcome::Failed);
    assert!(
        ledger.orphans().is_empty(),
        "the current boot's runs are no orphans"
    );
    let mine = Orphan {
        run: run_id(1),
        started: true,
    };
    assert!(
        ledger.propose_settlement(mine, T0).is_err(),
        "nor can they be settled as such"
    );

    let proposal = ledger.propose_boot(boot(2), T0);
    take(&mut ledger, proposal);
    let orphans = ledger.orphans();
    assert_eq!(
        orphans,
        [
            mine,
            Orphan {
                run: run_id(2),
                started: false
            }
        ]
    );
    assert!(matches!(
        ledger.propose_advance(&started, 1, T0),
        Err(Refusal::OtherBoot)
    ));
    let weights = Some(Digest32::of(b"w"));
    assert!(
        ledger
            .propose_commit(&started, Outcome::Succeeded, weights, T0)
            .is_err()
    );
    assert!(matches!(
        ledger.propose_commit(&started, Outcome::Cancelled, None, T0),
        Err(Refusal::OtherBoot)
    ));
    let reservation = ledger.reservation(&run_id(2)).unwrap();
    assert!(matches!(
        ledger.propose_start(&reservation, T0),
        Err(Refusal::OtherBoot)
    ));
    for orphan in orphans {
        let proposal = ledger.propose_settlement(orphan, T0);
        take(&mut ledger, proposal);
    }
    assert!(ledger.orphans().is_empty());
    assert_eq!(
        ledger.run(&run_id(1)).unwrap().status(),
        RunStatus::Committed(Outcome::Failed)
    );
    assert_eq!(
        ledger.run(&run_id(2)).unwrap().status(),
        RunStatus::Refunded(RefundReason::ServerStopped)
    );
    assert_eq!(budget(&ledger, 1).committed, amount("2", "2e-6"));
    assert_eq!(budget(&ledger, 1).reserved, Amount::ZERO);
}

#[test]
fn nothing_runs_before_a_boot_or_for_another_one() {
    let genesis = Ledger::genesis(LedgerId::from_bytes([1; 16]), T0);
    let mut ledger = Ledger::replay([genesis]).unwrap();
    add_dataset(&mut ledger, dataset(1, policy(amount("6", "1e-5"))));
    let early = reserve(&mut ledger, run(1, 1, vec![charge(1, amount("1", "1e-6"))]), T0).unwrap_err();
    assert_eq!(early, Refusal::OtherBoot);
    let proposal = ledger.propose_boot(boot(1), T0);
    take(&mut ledger, proposal);
    assert!(matches!(ledger.propose_boot(boot(1), T0), Err(Refusal::IdTaken)));
    let other = reserve(&mut ledger, run(1, 2, vec![charge(1, amount("1", "1e-6"))]), T0).unwrap_err();
    assert_eq!(other, Refusal::OtherBoot);
}

#[test]
fn datasets_without_sense_are_refused() {
    let mut ledger = two_datasets();
    let good = || dataset(9, policy(amount("1", "1e-5")));
    let refused = |created: DatasetCreated| ledger.check_new_dataset(&created).unwrap_err();
    for name in ["", " x", "x ", "a\nb", "a\u{0}", "a\u{202e}b", &"x".repeat(129)] {
        assert_eq!(
            refused(DatasetCreated {
                name: name.into(),
                ..good()
            }),
            Refusal::BadName,
            "{name:?}"
        );
    }
    for contract_json in [String::new(), "x".repeat((64 << 10) + 1)] {
        assert_eq!(
            refused(DatasetCreated {
                contract_json,
                ..good()
            }),
            Refusal::ContractLength
        );
    }
    assert_eq!(
        refused(DatasetCreated {
            declared_size: 0,
            ..good()
        }),
        Refusal::ZeroSize
    );
    assert_eq!(
        refused(DatasetCreated {
            dataset: dataset_id(1),
            ..good()
        }),
        Refusal::IdTaken
    );
    for lifetime in [
        amount("0", "1e-5"),
        amount("1", "0"),
        amount("1", "1"),
        amount("1", "2.5"),
    ] {
        let refusal = refused(dataset(9, policy(lifetime)));
        assert!(
            matches!(refusal, Refusal::Policy(PolicyError::Lifetime { .. })),
            "{lifetime}"
        );
    }
    let private = DatasetCreated {
        kind: DatasetKind::Private,
        ..dataset(9, public_policy())
    };
    assert_eq!(refused(private), Refusal::Policy(PolicyError::NoLifetime));
    let public = DatasetCreated {
        kind: DatasetKind::Public,
        ..good()
    };
    assert_eq!(refused(public), Refusal::Policy(PolicyError::UnneededLifetime));
    let mut zero = policy(amount("1", "1e-5"));
    zero.limits.max_starts_per_day = 0;
    assert_eq!(
        refused(dataset(9, zero)),
        Refusal::Policy(PolicyError::ZeroLimits)
    );
    add_dataset(&mut ledger, good());
    assert_eq!(ledger.dataset_named("dataset 9").unwrap().id(), dataset_id(9));
}

#[test]
fn runs_without_sense_are_refused() {
    let mut ledger = two_datasets();
    let good = || run(1, 1, vec![charge(1, amount("1", "1e-6"))]);
    let refused = |reserved: RunReserved| ledger.propose_reservation(reserved, T0).unwrap_err();
    assert_eq!(refused(RunReserved { steps: 0, ..good() }), Refusal::ZeroSteps);
    assert_eq!(
        refused(RunReserved {
            charges: vec![],
            ..good()
        }),
        Refusal::DatasetCount { found: 0 }
    );
    assert_eq!(
        refused(RunReserved {
            model_name: String::new(),
            ..good()
        }),
        Refusal::BadName
    );
    assert!(matches!(
        refused(run(1, 1, vec![charge(42, amount("1", "1e-6"))])),
        Refusal::NoDataset { .. }
    ));
    let mut unprotected = good();
    unprotected.charges[0].event = bastionai_privacy::event::DpEvent::NonPrivate;
    assert!(matches!(refused(unprotected), Refusal::Event { .. }));
    let _ = reserve(&mut ledger, good(), T0).unwrap();
    assert_eq!(
        ledger.propose_reservation(good(), T0).unwrap_err(),
        Refusal::IdTaken
    );
}

#[test]
fn a_run_concerns_its_scientist_and_its_owners() {
    let ledger = full_ledger();
    for (who, concerned) in [(100, true), (1, true), (2, true), (4, false)] {
        assert_eq!(ledger.concerns(&run_id(1), &principal(who)), concerned, "{who}");
    }
}
