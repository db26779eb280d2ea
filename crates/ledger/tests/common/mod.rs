//! Builders shared by the ledger's tests.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use bastionai_ledger::*;
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_privacy::filter::renyi::RenyiCost;
use bastionai_privacy::filter::terms::{Order, RenyiTerms};

pub const T0: u64 = 1_700_000_000_000;

pub fn principal(n: u8) -> Principal {
    Principal::from_bytes([n; 32])
}

pub fn dataset_id(n: u8) -> DatasetId {
    DatasetId::from_bytes([n; 16])
}

pub fn run_id(n: u8) -> RunId {
    RunId::from_bytes([n; 16])
}

pub fn amount(epsilon: &str, delta: &str) -> Amount {
    Amount::new(epsilon.parse().unwrap(), delta.parse().unwrap())
}

pub fn key() -> LedgerKey {
    LedgerKey::from_seed(&[7; 32])
}

pub fn claims(boot: u8) -> Vec<u8> {
    format!("runtime claims of boot {boot}").into_bytes()
}

pub fn boot(n: u8) -> BootStarted {
    BootStarted {
        boot: BootId::from_bytes([n; 16]),
        ledger_key: key().public_key(),
        claims_digest: Digest32::of(&claims(n)),
        freshness: Freshness::None,
    }
}

pub fn evidence(n: u8) -> RuntimeEvidence {
    RuntimeEvidence {
        boot: BootId::from_bytes([n; 16]),
        ledger_key: key().public_key(),
        claims: claims(n),
        evidence_media_type: "application/vnd.bastionai.test".into(),
        evidence: vec![0, 1, 2, 255, n],
    }
}

pub fn policy(lifetime: Amount) -> Policy {
    Policy {
        lifetime: Some(lifetime),
        composition: Composition::Basic,
        may_train: MayTrain::Anyone,
        recipients: [principal(200)].into(),
        scientist_receives: true,
        require_hardened: false,
        expires_unix_ms: None,
        freshness: Freshness::None,
        limits: RunLimits::default(),
    }
}

/// Of three orders.
pub fn renyi_policy(lifetime: Amount) -> Policy {
    Policy {
        composition: Composition::Renyi(terms()),
        ..policy(lifetime)
    }
}

pub fn terms() -> RenyiTerms {
    let orders = [4_000, 10_500, 32_000].map(|order| Order::from_thousandths(order).unwrap());
    RenyiTerms::new(&orders, &[1, 2, 2]).unwrap()
}

/// A charge of one divergence at each of the three orders.
pub fn renyi_charge(n: u8, rho: [&str; 3]) -> RenyiCharge {
    RenyiCharge {
        dataset: dataset_id(n),
        cost: RenyiCost::new(rho.map(|rho| rho.parse().unwrap()).to_vec()),
    }
}

pub fn reserve_renyi(
    ledger: &mut Ledger,
    reserved: RunReserved,
    renyi: Vec<RenyiCharge>,
) -> Result<BudgetReservation, Refusal> {
    let id = reserved.run;
    let proposal = ledger.propose_priced(RunKind::Training, reserved, renyi, T0)?;
    take(ledger, Ok(proposal));
    Ok(ledger.reservation(&id).unwrap())
}

pub fn public_policy() -> Policy {
    Policy {
        lifetime: None,
        ..policy(Amount::ZERO)
    }
}

pub fn dataset(n: u8, policy: Policy) -> DatasetCreated {
    let kind = if policy.lifetime.is_some() {
        DatasetKind::Private
    } else {
        DatasetKind::Public
    };
    DatasetCreated {
        dataset: dataset_id(n),
        name: format!("dataset {n}"),
        kind,
        owner: principal(n),
        contract_json: "{\"version\":1}".into(),
        declared_size: 512,
        policy,
        blocks: 3,
        root: Digest32::of(b"blocks"),
    }
}

pub fn event() -> DpEvent {
    let step = DpEvent::TruncatedSubsampledGaussian {
        dataset_size: 512,
        sampling_probability: 0.125,
        truncated_batch_size: 96,
        noise_multiplier: 1.25,
    };
    DpEvent::SelfComposed {
        event: Box::new(step),
        count: 100,
    }
}

pub fn charge(n: u8, amount: Amount) -> Charge {
    Charge {
        dataset: dataset_id(n),
        event: event(),
        relation: NeighboringRelation::AddOrRemoveOne,
        amount,
    }
}

pub fn run(n: u8, boot_id: u8, charges: Vec<Charge>) -> RunReserved {
    RunReserved {
        run: run_id(n),
        boot: BootId::from_bytes([boot_id; 16]),
        run_digest: Digest32::of(&[n]),
        graph_digest: Digest32::of(b"graph"),
        scientist: principal(100),
        model_name: format!("model {n}"),
        steps: 100,
        noise_mode: NoiseMode::Standard,
        charges,
    }
}

/// Proposes, goes through the bytes as a store would, applies.
pub fn take(ledger: &mut Ledger, proposal: Result<Proposal, Refusal>) -> Entry {
    let entry = Entry::from_bytes(&proposal.unwrap().entry().to_bytes()).unwrap();
    ledger.apply(entry.clone()).unwrap();
    entry
}

pub fn new_ledger() -> Ledger {
    let mut ledger = Ledger::replay([Ledger::genesis(LedgerId::from_bytes([0xee; 16]), T0)]).unwrap();
    let proposal = ledger.propose_boot(boot(1), T0);
    take(&mut ledger, proposal);
    ledger
}

pub fn add_dataset(ledger: &mut Ledger, created: DatasetCreated) {
    let proposal = ledger.propose_dataset(created, T0);
    take(ledger, proposal);
}

pub fn reserve(ledger: &mut Ledger, reserved: RunReserved, now: u64) -> Result<BudgetReservation, Refusal> {
    let id = reserved.run;
    let proposal = ledger.propose_reservation(reserved, now)?;
    take(ledger, Ok(proposal));
    Ok(ledger.reservation(&id).unwrap())
}

pub fn start(ledger: &mut Ledger, n: u8) -> StartedRun {
    let reservation = ledger.reservation(&run_id(n)).unwrap();
    let proposal = ledger.propose_start(&reservation, T0);
    take(ledger, proposal);
    ledger.started(&run_id(n)).unwrap()
}

pub fn advance(ledger: &mut Ledger, n: u8, step: u64) {
    let started = ledger.started(&run_id(n)).unwrap();
    let proposal = ledger.propose_advance(&started, step, T0);
    take(ledger, proposal);
}

pub fn commit(ledger: &mut Ledger, n: u8, outcome: Outcome) -> BudgetReceipt {
    let started = ledger.started(&run_id(n)).unwrap();
    let weights = (outcome == Outcome::Succeeded).then(|| Digest32::of(&[n, n]));
    let proposal = ledger.propose_commit(&started, outcome, weights, T0);
    take(ledger, proposal);
    ledger.budget_receipt(&run_id(n)).unwrap()
}

/// A ledger in which every kind of entry occurs.
pub fn full_ledger() -> Ledger {
    let mut ledger = new_ledger();
    add_dataset(&mut ledger, dataset(1, policy(amount("6.0", "1e-5"))));
    add_dataset(&mut ledger, dataset(2, public_policy()));
    let mut only = policy(amount("3", "2e-6"));
    only.may_train = MayTrain::Only([principal(100), principal(101)].into());
    only.expires_unix_ms = Some(T0 + 1_000_000_000);
    add_dataset(&mut ledger, dataset(3, only));

    let charges = vec![
        charge(1, amount("2.0", "1e-6")),
        charge(2, Amount::ZERO),
        charge(3, amount("1.5", "1e-6")),
    ];
    let _ = reserve(&mut ledger, run(1, 1, charges), T0 + 5).unwrap();
    let _ = start(&mut ledger, 1);
    advance(&mut ledger, 1, 50);
    advance(&mut ledger, 1, 100);
    let receipt = commit(&mut ledger, 1, Outcome::Succeeded);
    let proposal = ledger.propose_release(receipt, principal(100), T0 + 10);
    take(&mut ledger, proposal);

    let reservation = reserve(
        &mut ledger,
        run(2, 1, vec![charge(1, amount("1", "1e-7"))]),
        T0 + 11,
    )
    .unwrap();
    let proposal = ledger.propose_refund(&reservation, RefundReason::Cancelled, T0 + 12);
    take(&mut ledger, proposal);
    let _ = reserve(
        &mut ledger,
        run(3, 1, vec![charge(1, amount("1", "1e-7"))]),
        T0 + 13,
    )
    .unwrap();
    let _ = start(&mut ledger, 3);
    let _ = commit(&mut ledger, 3, Outcome::Failed);
    let proposal = ledger.propose_withdrawal(dataset_id(2), principal(2), T0 + 14);
    take(&mut ledger, proposal);
    ledger
}
