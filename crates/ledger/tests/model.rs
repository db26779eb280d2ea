//! The ledger against an independent model, and its chain against tampering.
#![allow(clippy::unwrap_used)]
mod common;

use bastionai_ledger::*;
use bastionai_privacy::filter::renyi::RenyiCost;
use bastionai_privacy::filter::terms::{Order, RenyiTerms};
use common::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
enum Op {
    Reserve {
        run: u8,
        charges: Charges,
    },
    Start(u8),
    Advance(u8, u64),
    Commit(u8, Outcome),
    /// Cancelled with so many steps started.
    Stop(u8, u64),
    Refund(u8),
    Release(u8),
    Withdraw(u8),
    /// A dataset, and who asks.
    Remove(u8, u8),
    Suspend(u8, u8),
    Unsuspend(u8, u8),
    /// Resumes the runs whose bit is set, as far as the ledger lets it; settles the others.
    Boot(u16),
}

/// Dataset, ε and δ in units; of the last dataset, which composes by Rényi divergences, thousandths of its two budgets.
type Charges = Vec<(u8, u64, u64)>;

const LIFETIME: [(u64, u64); 3] = [(1000, 1000), (500, 2000), (2000, 300)];

/// The dataset that composes by Rényi divergences, at orders 4 and 32.
const RENYI: usize = 3;

fn renyi_dataset() -> DatasetCreated {
    let orders = [4_000, 32_000].map(|order| Order::from_thousandths(order).unwrap());
    let composition = Composition::Renyi(RenyiTerms::new(&orders, &[]).unwrap());
    let policy = Policy {
        composition,
        ..policy(amount("6", "1e-5"))
    };
    dataset(RENYI as u8, policy)
}

/// (6 − 3.9…, 6 − 0.3…), as `privacy` computes them from the lifetime.
fn renyi_budgets() -> (u64, u64) {
    let mut ledger = new_ledger();
    add_dataset(&mut ledger, renyi_dataset());
    let account = ledger
        .dataset(&dataset_id(RENYI as u8))
        .unwrap()
        .renyi_account()
        .unwrap();
    let [Some(low), Some(high)] = account.filter().budgets() else {
        panic!("both orders have a budget")
    };
    (low.units(), high.units())
}

/// Divergences of a charge.
fn rho(budgets: (u64, u64), low: u64, high: u64) -> (u64, u64) {
    (budgets.0 / 1000 * low, budgets.1 / 1000 * high)
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (0u8..12, prop::collection::vec((0u8..4, 1u64..400, 0u64..400), 1..4)).prop_map(|(run, charges)| Op::Reserve { run, charges }),
        4 => (0u8..12).prop_map(Op::Start),
        3 => (0u8..12, 0u64..102).prop_map(|(run, step)| Op::Advance(run, step)),
        3 => (0u8..12, prop_oneof![Just(Outcome::Succeeded), Just(Outcome::Failed), Just(Outcome::Cancelled)])
            .prop_map(|(run, outcome)| Op::Commit(run, outcome)),
        2 => (0u8..12, 0u64..102).prop_map(|(run, step)| Op::Stop(run, step)),
        2 => (0u8..12).prop_map(Op::Refund),
        1 => (0u8..12).prop_map(Op::Release),
        1 => (0u8..30).prop_map(Op::Withdraw),
        1 => (0u8..4, 0u8..4).prop_map(|(dataset, by)| Op::Remove(dataset, by)),
        2 => (0u8..12, 0u8..4).prop_map(|(run, owner)| Op::Suspend(run, owner)),
        2 => (0u8..12, 0u8..4).prop_map(|(run, owner)| Op::Unsuspend(run, owner)),
        2 => any::<u16>().prop_map(Op::Boot),
    ];
    prop::collection::vec(op, 1..60)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Reserved,
    Started,
    Ended,
}

/// Nothing but maps and sums: what the budget rules say, written a second time.
struct Model {
    budgets: (u64, u64),
    /// State, boot, released step, charges.
    runs: BTreeMap<u8, (State, u32, u64, Charges)>,
    suspended: BTreeSet<(u8, u8)>,
    spent: [(u64, u64); 4],
    withdrawn: [bool; 4],
    removed: [bool; 4],
    boot: u32,
}

impl Model {
    fn new() -> Self {
        Self {
            budgets: renyi_budgets(),
            runs: BTreeMap::new(),
            suspended: BTreeSet::new(),
            spent: [(0, 0); 4],
            withdrawn: [false; 4],
            removed: [false; 4],
            boot: 0,
        }
    }

    /// In the dataset's currency.
    fn cost(&self, &(dataset, one, other): &(u8, u64, u64)) -> (u64, u64) {
        if dataset as usize == RENYI {
            rho(self.budgets, one, other)
        } else {
            (one, other)
        }
    }

    fn reserve(&mut self, run: u8, charges: &[(u8, u64, u64)]) -> bool {
        let distinct = charges
            .iter()
            .enumerate()
            .all(|(i, a)| charges[..i].iter().all(|b| a.0 != b.0));
        let fits = charges.iter().all(|charge| {
            let (index, cost) = (charge.0 as usize, self.cost(charge));
            let total = (self.spent[index].0 + cost.0, self.spent[index].1 + cost.1);
            let fits = if index == RENYI {
                total.0 <= self.budgets.0 || total.1 <= self.budgets.1
            } else {
                total.0 <= LIFETIME[index].0 && total.1 <= LIFETIME[index].1
            };
            !self.withdrawn[index] && fits
        });
        if self.runs.contains_key(&run) || !distinct || !fits {
            return false;
        }
        for charge in charges {
            let cost = self.cost(charge);
            self.spent[charge.0 as usize].0 += cost.0;
            self.spent[charge.0 as usize].1 += cost.1;
        }
        self.runs
            .insert(run, (State::Reserved, self.boot, 0, charges.to_vec()));
        true
    }

    fn refund(&mut self, charges: &[(u8, u64, u64)]) {
        for charge in charges {
            let cost = self.cost(charge);
            self.spent[charge.0 as usize].0 -= cost.0;
            self.spent[charge.0 as usize].1 -= cost.1;
        }
    }

    /// Of a run of 100 steps.
    fn refund_unstarted(&mut self, charges: &[(u8, u64, u64)], started: u64) {
        for charge in charges.iter().filter(|charge| charge.0 as usize == RENYI) {
            let (low, high) = self.cost(charge);
            let unstarted = |rho: u64| rho - (rho * started).div_ceil(100);
            self.spent[RENYI].0 -= unstarted(low);
            self.spent[RENYI].1 -= unstarted(high);
        }
    }

    /// Open, and whether this owner lends to it.
    fn may_suspend(&self, run: u8, owner: u8) -> bool {
        self.runs
            .get(&run)
            .is_some_and(|run| run.0 != State::Ended && run.3.iter().any(|charge| charge.0 == owner))
    }

    fn apply(&mut self, op: &Op) -> bool {
        let boot = self.boot;
        let halted = |run: &u8| self.suspended.iter().any(|(suspended, _)| suspended == run);
        match op {
            Op::Start(run) | Op::Advance(run, _) | Op::Commit(run, Outcome::Succeeded) if halted(run) => {
                return false;
            }
            _ => {}
        }
        match op {
            Op::Reserve { run, charges } => self.reserve(*run, charges),
            Op::Start(run) => match self.runs.get_mut(run) {
                Some(run)
                    if run.0 == State::Reserved
                        && run.1 == boot
                        && run.3.iter().all(|charge| !self.withdrawn[charge.0 as usize]) =>
                {
                    run.0 = State::Started;
                    true
                }
                _ => false,
            },
            Op::Advance(run, step) => match self.runs.get_mut(run) {
                Some(run) if run.0 == State::Started && run.1 == boot && *step > run.2 && *step <= 100 => {
                    run.2 = *step;
                    true
                }
                _ => false,
            },
            Op::Commit(run, outcome) => match self.runs.get_mut(run) {
                Some(run)
                    if run.0 == State::Started
                        && run.1 == boot
                        && (*outcome != Outcome::Succeeded || run.2 == 100) =>
                {
                    run.0 = State::Ended;
                    run.2 = if *outcome == Outcome::Succeeded {
                        1000
                    } else {
                        run.2
                    };
                    true
                }
                _ => false,
            },
            Op::Stop(run, started) => match self.runs.get_mut(run) {
                Some(entry) if entry.0 == State::Started && entry.1 == boot => {
                    let has_renyi = entry.3.iter().any(|charge| charge.0 as usize == RENYI);
                    if has_renyi && *started < 100 && (*started).max(1) < entry.2 {
                        return false;
                    }
                    entry.0 = State::Ended;
                    if *started < 100 {
                        let charges = entry.3.clone();
                        self.refund_unstarted(&charges, (*started).max(1));
                    }
                    true
                }
                _ => false,
            },
            Op::Refund(run) => match self.runs.get_mut(run) {
                Some(entry) if entry.0 == State::Reserved => {
                    entry.0 = State::Ended;
                    let charges = entry.3.clone();
                    self.refund(&charges);
                    true
                }
                _ => false,
            },
            Op::Release(run) => self.runs.get(run).is_some_and(|run| run.2 == 1000),
            Op::Withdraw(dataset) => {
                let known = (*dataset as usize) < 4 && !self.withdrawn[*dataset as usize];
                if known {
                    self.withdrawn[*dataset as usize] = true;
                }
                known
            }
            Op::Remove(dataset, by) => {
                let index = *dataset as usize;
                let in_use = |run: &(State, u32, u64, Charges)| {
                    run.0 != State::Ended && run.3.iter().any(|charge| charge.0 == *dataset)
                };
                if index >= 4 || by != dataset || self.removed[index] || self.runs.values().any(in_use) {
                    return false;
                }
                // An account outlives its records.
                (self.withdrawn[index], self.removed[index]) = (true, true);
                true
            }
            Op::Suspend(run, owner) => {
                self.may_suspend(*run, *owner) && self.suspended.insert((*run, *owner))
            }
            Op::Unsuspend(run, owner) => {
                self.may_suspend(*run, *owner) && self.suspended.remove(&(*run, *owner))
            }
            Op::Boot(resume) => {
                self.boot += 1;
                let open: Vec<u8> = self
                    .runs
                    .iter()
                    .filter(|(_, run)| run.0 != State::Ended)
                    .map(|(id, _)| *id)
                    .collect();
                for id in open {
                    let run = self.runs.get_mut(&id).unwrap();
                    let offered = run.3.iter().all(|charge| !self.withdrawn[charge.0 as usize]);
                    if resume & (1 << id) != 0 && offered {
                        run.1 = self.boot;
                        continue;
                    }
                    let (state, charges) = (run.0, run.3.clone());
                    run.0 = State::Ended;
                    if state == State::Reserved {
                        self.refund(&charges);
                    }
                }
                true
            }
        }
    }
}

fn units(epsilon: u64, delta: u64) -> Amount {
    Amount::new(Epsilon::from_units(epsilon), Delta::from_units(delta))
}

fn apply(ledger: &mut Ledger, budgets: (u64, u64), op: &Op, boot_number: u8) -> bool {
    let proposal = match op {
        Op::Reserve { run: id, charges } => {
            let renyi = charges.iter().filter(|charge| charge.0 as usize == RENYI);
            let renyi = renyi.map(|&(dataset, low, high)| {
                let (low, high) = rho(budgets, low, high);
                let cost = RenyiCost::new(vec![Rho::from_units(low), Rho::from_units(high)]);
                RenyiCharge {
                    dataset: dataset_id(dataset),
                    cost,
                }
            });
            let renyi = renyi.collect();
            let charges = charges
                .iter()
                .map(|&(dataset, epsilon, delta)| charge(dataset, units(epsilon, delta)))
                .collect();
            ledger.propose_priced(RunKind::Training, run(*id, boot_number, charges), renyi, T0)
        }
        Op::Start(id) => {
            let Some(reservation) = ledger.reservation(&run_id(*id)) else {
                return false;
            };
            ledger.propose_start(&reservation, T0)
        }
        Op::Advance(id, step) => {
            let Some(started) = ledger.started(&run_id(*id)) else {
                return false;
            };
            ledger.propose_advance(&started, *step, T0)
        }
        Op::Commit(id, outcome) => {
            let Some(started) = ledger.started(&run_id(*id)) else {
                return false;
            };
            let weights = (*outcome == Outcome::Succeeded).then(|| Digest32::of(b"w"));
            ledger.propose_commit(&started, *outcome, weights, T0)
        }
        Op::Stop(id, step) => {
            let Some(started) = ledger.started(&run_id(*id)) else {
                return false;
            };
            ledger.propose_stop(&started, *step, T0)
        }
        Op::Refund(id) => {
            let Some(reservation) = ledger.reservation(&run_id(*id)) else {
                return false;
            };
            ledger.propose_refund(&reservation, RefundReason::Cancelled, T0)
        }
        Op::Release(id) => {
            let Some(receipt) = ledger.budget_receipt(&run_id(*id)) else {
                return false;
            };
            ledger.propose_release(receipt, principal(100), T0)
        }
        Op::Withdraw(dataset) => ledger.propose_withdrawal(dataset_id(*dataset), principal(*dataset), T0),
        Op::Remove(dataset, by) => ledger.propose_removal(dataset_id(*dataset), principal(*by), T0),
        Op::Suspend(id, owner) => ledger.propose_suspension(run_id(*id), principal(*owner), T0),
        Op::Unsuspend(id, owner) => ledger.propose_unsuspension(run_id(*id), principal(*owner), T0),
        Op::Boot(resume) => {
            let proposal = ledger.propose_boot(boot(boot_number + 1), T0);
            take(ledger, proposal);
            for orphan in ledger.orphans() {
                let resumed = (0..12).any(|id| run_id(id) == orphan.run && resume & (1 << id) != 0);
                match ledger.propose_resumption(orphan, T0).ok().filter(|_| resumed) {
                    Some(proposal) => drop(take(ledger, Ok(proposal))),
                    None => {
                        let proposal = ledger.propose_settlement(orphan, T0);
                        drop(take(ledger, proposal));
                    }
                }
            }
            return true;
        }
    };
    proposal.map(|proposal| take(ledger, Ok(proposal))).is_ok()
}

fn spent(ledger: &Ledger, n: u8) -> (u64, u64) {
    if n as usize == RENYI {
        let dataset = ledger.dataset(&dataset_id(n)).unwrap();
        let used = dataset.renyi_account().unwrap().used().rho();
        return (used[0].units(), used[1].units());
    }
    let budget = ledger.dataset(&dataset_id(n)).unwrap().budget().unwrap();
    let used = budget.committed.checked_add(budget.reserved).unwrap();
    assert_eq!(used.checked_add(budget.remaining).unwrap(), budget.lifetime);
    (used.epsilon.units(), used.delta.units())
}

proptest! {
    #[test]
    fn the_ledger_is_the_model_and_never_exceeds_a_lifetime(ops in ops()) {
        let mut ledger = new_ledger();
        for (n, (epsilon, delta)) in (0u8..).zip(LIFETIME) {
            add_dataset(&mut ledger, dataset(n, policy(units(epsilon, delta))));
        }
        add_dataset(&mut ledger, renyi_dataset());
        let mut model = Model::new();
        let mut boot_number = 1;
        for op in &ops {
            prop_assert_eq!(apply(&mut ledger, model.budgets, op, boot_number), model.apply(op), "{:?}", op);
            boot_number += u8::from(matches!(op, Op::Boot(_)));
            for n in 0..4u8 {
                let spent = spent(&ledger, n);
                prop_assert_eq!(spent, model.spent[n as usize], "{:?}", op);
                let known = ledger.dataset(&dataset_id(n)).unwrap();
                let gone = (known.is_withdrawn(), known.is_removed());
                prop_assert_eq!(gone, (model.withdrawn[n as usize], model.removed[n as usize]), "{:?}", op);
                if n as usize == RENYI {
                    prop_assert!(spent.0 <= model.budgets.0 || spent.1 <= model.budgets.1);
                } else {
                    prop_assert!(spent.0 <= LIFETIME[n as usize].0 && spent.1 <= LIFETIME[n as usize].1);
                }
            }
        }
        let replayed = Ledger::replay(ledger.entries().iter().cloned()).unwrap();
        prop_assert_eq!(replayed.head(), ledger.head());
        for n in 0..4u8 {
            prop_assert_eq!(spent(&replayed, n), spent(&ledger, n));
        }
        prop_assert_eq!(format!("{replayed:?}"), format!("{ledger:?}"), "replay gives the very same state");
    }
}

#[test]
fn every_flipped_bit_of_a_chain_is_refused() {
    let ledger = full_ledger();
    for (at, entry) in ledger.entries().iter().enumerate() {
        let stored = entry.to_bytes();
        assert_eq!(Entry::from_bytes(&stored).as_ref(), Ok(entry));
        for (position, bit) in (0..stored.len()).flat_map(|position| (0..8).map(move |bit| (position, bit))) {
            let mut flipped = stored.clone();
            flipped[position] ^= 1 << bit;
            let Ok(read) = Entry::from_bytes(&flipped) else {
                continue;
            };
            let mut entries = ledger.entries().to_vec();
            entries[at] = read;
            let same = Ledger::replay(entries).is_ok_and(|read| read.head() == ledger.head());
            assert!(!same, "entry {at}, byte {position}, bit {bit}");
        }
    }
}

#[test]
fn entries_removed_repeated_swapped_or_foreign_break_the_chain() {
    let ledger = full_ledger();
    let entries = ledger.entries();
    for at in 0..entries.len() {
        let mut removed = entries.to_vec();
        removed.remove(at);
        let read = Ledger::replay(removed);
        if at + 1 == entries.len() {
            assert_ne!(
                read.unwrap().head(),
                ledger.head(),
                "only a known head shows a missing end"
            );
        } else {
            assert!(read.is_err(), "without {at}");
        }
        let mut repeated = entries.to_vec();
        repeated.insert(at, entries[at].clone());
        assert!(Ledger::replay(repeated).is_err(), "twice {at}");
        if at > 0 {
            let mut swapped = entries.to_vec();
            swapped.swap(at, at - 1);
            assert!(Ledger::replay(swapped).is_err(), "swapped {at}");
        }
    }
    assert_eq!(Ledger::replay([]).unwrap_err(), ChainError::Empty);
    let other = Ledger::genesis(LedgerId::from_bytes([9; 16]), T0);
    let foreign = std::iter::once(other).chain(entries[1..].iter().cloned());
    assert!(matches!(
        Ledger::replay(foreign),
        Err(ChainError::Broken { sequence: 1 })
    ));
}

#[test]
fn entries_of_newer_versions_and_other_lengths_are_refused() {
    let bytes = full_ledger().entries()[1].to_bytes();
    let mut newer = bytes.clone();
    newer[0] = 2;
    assert_eq!(Entry::from_bytes(&newer), Err(EntryError::Version { found: 2 }));
    for length in 0..bytes.len() {
        assert!(Entry::from_bytes(&bytes[..length]).is_err(), "{length}");
    }
    assert_eq!(
        Entry::from_bytes(&[&bytes[..], &[0]].concat()),
        Err(EntryError::Length)
    );
}

/// Postcard reads a padded integer as the same number: two files would be one chain.
#[test]
fn a_padded_integer_in_a_body_is_refused() {
    let bytes = full_ledger().entries()[0].to_bytes();
    let (header, body) = bytes.split_at(53);
    assert_eq!(body[0], 0, "the tag of a genesis");
    let padded_length = (body.len() as u32 + 1).to_le_bytes();
    let padded = [&header[..49], &padded_length, &[0x80, 0x00], &body[1..]].concat();
    assert_eq!(Entry::from_bytes(&padded), Err(EntryError::Body));
}

#[test]
fn an_extension_proof_holds_from_every_known_head() {
    let ledger = full_ledger();
    for known in 0..=ledger.entries().len() {
        let prefix = Ledger::replay(ledger.entries()[..known.max(1)].iter().cloned()).unwrap();
        let known_head = (known > 0).then(|| prefix.head());
        let links = ledger.extension(known as u64).unwrap();
        let links: Vec<Link> = links
            .iter()
            .map(|link| Link::from_bytes(&link.to_bytes()).unwrap())
            .collect();
        verify_extension(known_head.as_ref(), &ledger.head(), &links).unwrap();
        for at in 0..links.len() {
            let mut changed = links.clone();
            changed[at].time_unix_ms ^= 1;
            assert_eq!(
                verify_extension(known_head.as_ref(), &ledger.head(), &changed),
                Err(ExtensionError::Forked)
            );
            changed = links.clone();
            changed[at].body_digest = Digest32::of(b"other");
            assert_eq!(
                verify_extension(known_head.as_ref(), &ledger.head(), &changed),
                Err(ExtensionError::Forked)
            );
        }
    }
    assert!(ledger.extension(ledger.entries().len() as u64 + 1).is_none());
}

#[test]
fn rollback_fork_and_replacement_of_a_ledger_are_told_apart() {
    let ledger = full_ledger();
    let earlier = Ledger::replay(ledger.entries()[..5].iter().cloned()).unwrap();
    let rolled_back = verify_extension(Some(&ledger.head()), &earlier.head(), &[]).unwrap_err();
    assert!(matches!(rolled_back, ExtensionError::RolledBack { .. }));
    let mut fork = earlier.clone();
    let proposal = fork.propose_boot(boot(9), T0);
    take(&mut fork, proposal);
    let known = Ledger::replay(ledger.entries()[..6].iter().cloned())
        .unwrap()
        .head();
    assert_eq!(
        verify_extension(Some(&known), &fork.head(), &[]),
        Err(ExtensionError::Forked)
    );
    let other = Ledger::replay([Ledger::genesis(LedgerId::from_bytes([3; 16]), T0)]).unwrap();
    let replaced = verify_extension(Some(&ledger.head()), &other.head(), &[]).unwrap_err();
    assert!(matches!(replaced, ExtensionError::OtherLedger { .. }));
    let short = verify_extension(Some(&earlier.head()), &ledger.head(), &[]).unwrap_err();
    assert!(matches!(short, ExtensionError::Length { .. }));
    let links = ledger.extension(0).unwrap();
    let renamed = Head {
        ledger: LedgerId::from_bytes([3; 16]),
        ..ledger.head()
    };
    assert_eq!(
        verify_extension(None, &renamed, &links),
        Err(ExtensionError::Forked),
        "the genesis names the ledger"
    );
    assert_eq!(Link::from_bytes(&[0; 39]), Err(ExtensionError::Link));
}

#[test]
fn a_signed_head_is_refused_when_anything_in_it_changed() {
    let signed = key().sign_head(full_ledger().head());
    let expected = key().public_key();
    assert_eq!(*signed.verify(&expected).unwrap(), signed.head);
    let mut changed = vec![signed.clone(); 4];
    changed[0].head.sequence += 1;
    changed[1].head.entry_hash = EntryHash::from_bytes([0; 32]);
    changed[2].head.ledger = LedgerId::from_bytes([0; 16]);
    changed[3].signature[10] ^= 1;
    for signed in changed {
        assert_eq!(signed.verify(&expected), Err(SignatureError::Mismatch));
    }
    let other = LedgerKey::from_seed(&[8; 32]).public_key();
    assert!(matches!(
        signed.verify(&other),
        Err(SignatureError::OtherKey { .. })
    ));
    assert!(matches!(
        SignedHead {
            public_key: other,
            ..signed
        }
        .verify(&other),
        Err(SignatureError::Mismatch)
    ));
    let fresh = LedgerKey::generate(&ring::rand::SystemRandom::new()).unwrap();
    assert_ne!(fresh.public_key(), key().public_key());
    assert!(
        !format!("{:?}", key()).contains("07070707"),
        "the seed does not print"
    );
}
