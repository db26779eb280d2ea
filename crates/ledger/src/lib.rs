//! Ledger entries, hash chain, receipts and the budget state machine. No I/O, no clock, no randomness of its
//! own: time and random generators are passed in; persistence is crate `vault`'s.
//!
//! In call order: [`amount`] (crate `privacy`'s), [`id`], [`policy`], [`event`] (what entries are made of) → [`entry`] (what can
//! happen, and its bytes) → [`account`], [`state`] (what entries add up to) → [`propose`] (event → [`Proposal`]) →
//! [`rules`] (what may follow) or [`refusal`] (why not) → [`apply`] (durable entry → new state) → [`budget`] (proofs of steps taken) →
//! [`chain`], [`key`] (heads and extension proofs) → [`weights`], [`kept`], [`receipt`], [`dsse`] (what leaves) → [`pricing`] (an auditor's check).
//!
//! Every change takes three steps, and a crash between any two of them loses nothing that took effect:
//!
//! ```
//! use bastionai_ledger::{Body, BootId, BootStarted, Digest32, Freshness, Ledger, LedgerId, LedgerKey};
//!
//! let key = LedgerKey::from_seed(&[7; 32]); // LedgerKey::generate(&SystemRandom::new()) in a server
//! let mut ledger = Ledger::replay([Ledger::genesis(LedgerId::from_bytes([1; 16]), 1_000)])?;
//! let boot = BootStarted {
//!     boot: BootId::from_bytes([2; 16]),
//!     ledger_key: key.public_key(),
//!     claims_digest: Digest32::of(b"canonical runtime claims"),
//!     freshness: Freshness::None,
//! };
//! let proposal = ledger.propose_boot(boot, 2_000)?; // 1. checked against every rule; nothing changed
//! let stored = proposal.entry().to_bytes();         // 2. made durable by the caller (crate vault)
//! ledger.apply(proposal.into_entry())?;             // 3. takes effect
//! assert_eq!(key.sign_head(ledger.head()).verify(&key.public_key())?.sequence, 2);
//! # assert!(!stored.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A run: [`Ledger::propose_reservation`] → [`Ledger::reservation`] gives a [`BudgetReservation`] →
//! [`Ledger::propose_start`] → [`Ledger::started`] gives a [`StartedRun`] → [`Ledger::propose_advance`] … →
//! [`Ledger::propose_commit`] → [`Ledger::budget_receipt`] gives a [`BudgetReceipt`] →
//! [`Ledger::propose_release`] takes it. A run that outlives its boot is taken over by [`Ledger::propose_resumption`];
//! owners stop one for a while by [`Ledger::propose_suspension`]. Crate `vault` does all three steps of each in one call.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod account;
pub mod apply;
pub mod budget;
pub mod chain;
pub mod dsse;
pub mod entry;
pub mod event;
pub mod id;
pub mod kept;
pub mod key;
pub mod name;
pub mod policy;
mod policy_form;
pub mod pricing;
pub mod propose;
pub mod receipt;
pub mod refusal;
pub mod rules;
pub mod state;
pub mod unit;
pub mod weights;

pub use bastionai_privacy::filter::amount;

pub use account::{Budget, RenyiAccount};
pub use amount::{Amount, AmountError, Delta, Epsilon, Rho};
pub use apply::ChainError;
pub use budget::{BudgetReceipt, BudgetReservation, StartedRun};
pub use chain::{ExtensionError, Head, Link, genesis_digest, verify_extension};
pub use entry::{
    Body, BootStarted, Charge, DatasetCreated, DatasetRemoved, DatasetWithdrawn, Entry, EntryError, Genesis,
    KeptWeights, Outcome, RefundReason, Released, RenyiCharge, RunAdvanced, RunAdvancedKeeping, RunCommitted,
    RunRefunded, RunReserved, RunReservedRenyi, RunResumed, RunStarted, RunStopped, RunSuspended,
    RunUnsuspended,
};
pub use id::{BootId, DatasetId, Digest32, EntryHash, IdError, LedgerId, LedgerPublicKey, Principal, RunId};
pub use key::{LedgerKey, SignatureError, SignedHead};
pub use policy::{
    Composition, DatasetKind, Freshness, MayEvaluate, MayTrain, NoiseMode, Policy, PolicyError, RunKind,
    RunLimits,
};
pub use pricing::PriceError;
pub use propose::Proposal;
pub use receipt::{IssueError, Receipt, ReceiptError, RuntimeEvidence};
pub use refusal::Refusal;
pub use state::{Dataset, Ledger, MAX_IDLE_RESUMPTIONS, Orphan, Run, RunStatus};
pub use unit::privacy_units;
pub use weights::{WeightTensor, weights_digest};
