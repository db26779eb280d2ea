//! Datasets whose owner lends to runs in noise mode `hardened` alone (rule D2): what is admitted, and the bytes of it.
#![allow(clippy::unwrap_used)]
mod common;

use bastionai_ledger::*;
use common::*;

fn hardened(policy: Policy) -> Policy {
    Policy {
        require_hardened: true,
        ..policy
    }
}

/// Dataset 1 requires the mode, dataset 2 does not.
fn ledger() -> Ledger {
    let mut ledger = new_ledger();
    add_dataset(&mut ledger, dataset(1, hardened(policy(amount("6", "1e-5")))));
    add_dataset(&mut ledger, dataset(2, policy(amount("6", "1e-5"))));
    ledger
}

fn on(n: u8, datasets: &[u8], noise_mode: NoiseMode) -> RunReserved {
    let charges = datasets.iter().map(|&each| charge(each, amount("1", "1e-6")));
    RunReserved {
        noise_mode,
        ..run(n, 1, charges.collect())
    }
}

#[test]
fn a_training_run_in_another_mode_is_refused_with_the_datasets_name_also_in_a_pool() {
    let mut ledger = ledger();
    for datasets in [&[1][..], &[2, 1]] {
        let refusal = reserve(&mut ledger, on(1, datasets, NoiseMode::Standard), T0).unwrap_err();
        assert!(
            matches!(&refusal, Refusal::NoiseMode { name } if name == "dataset 1"),
            "{refusal}"
        );
        assert!(refusal.to_string().contains("hardened"));
    }
    let _ = reserve(&mut ledger, on(1, &[2], NoiseMode::Standard), T0).unwrap();
    let _ = reserve(&mut ledger, on(2, &[2, 1], NoiseMode::Hardened), T0).unwrap();
    // Replayed it is refused by the same rule: nothing hangs on who made the entry.
    let again = Ledger::replay(ledger.entries().iter().cloned()).unwrap();
    assert_eq!(again.head(), ledger.head());
}

/// Its counts are integers whatever the entry calls the mode.
#[test]
fn an_evaluation_is_admitted() {
    let ledger = ledger();
    let one_release = RunReserved {
        steps: 1,
        ..on(1, &[1], NoiseMode::Standard)
    };
    let _ = ledger.propose_evaluation(one_release, T0).unwrap();
}

#[test]
fn the_requirement_changes_digests_and_bytes_only_where_it_is() {
    let limit = amount("6", "1e-5");
    let bytes = |policy: &Policy| postcard::to_stdvec(policy).unwrap();
    let sums = policy(limit);
    let length = postcard::to_stdvec(&limit).unwrap().len();
    let (old, new) = (bytes(&sums), bytes(&hardened(sums.clone())));
    assert_eq!(old[0], 1, "as version 1 wrote an optional lifetime");
    assert_eq!(
        new,
        [&[3], &old[1..=length], &[0], &old[1 + length..]].concat(),
        "another case, the lifetime, no orders, the rest"
    );
    let divergences = bytes(&renyi_policy(limit));
    assert_eq!(divergences[0], 2);
    assert_eq!(
        bytes(&hardened(renyi_policy(limit))),
        [&[3], &divergences[1..=length], &[1], &divergences[1 + length..]].concat()
    );
    for policy in [
        sums.clone(),
        hardened(sums.clone()),
        renyi_policy(limit),
        hardened(renyi_policy(limit)),
    ] {
        policy.check(DatasetKind::Private).unwrap();
        assert_eq!(postcard::from_bytes::<Policy>(&bytes(&policy)).unwrap(), policy);
        let json = serde_json::to_string(&policy).unwrap();
        assert_eq!(
            json.contains("require_hardened"),
            policy.require_hardened,
            "{json}"
        );
        assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), policy);
    }
    assert_ne!(hardened(sums.clone()).digest(), sums.digest());
}

#[test]
fn without_a_budget_there_is_nothing_to_require() {
    for kind in [DatasetKind::Public, DatasetKind::Synthetic] {
        assert_eq!(
            hardened(public_policy()).check(kind).unwrap_err(),
            PolicyError::UnneededNoiseMode
        );
    }
}
