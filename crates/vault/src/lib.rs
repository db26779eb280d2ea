//! Sealed blocks, keys and the ledger's persistence. Synchronous: callers on an async runtime use a blocking
//! thread. No network, no policy of its own: what may happen is crate `ledger`'s decision.
//!
//! In call order: [`vault`] (open, transact) → [`boots`] (start, settle orphans) → [`upload`] (begin, push,
//! finish) → [`dataset`] (read whole, withdraw) → [`runs`] (reserve, start, advance, suspend, commit, release) with
//! [`open_runs`] (what a run needs to go on in a later boot) → [`results`] (weights at rest). Below: `block_writer`
//! (an upload's blocks, on a thread of their own), `objects` (large values), [`blocks`] (where blocks lie), `block`
//! (their bytes), `crypto`, `database`, `files`; [`error`] lists what can go wrong.
//!
//! ```
//! use bastionai_ledger::*;
//! use bastionai_vault::*;
//! use bastionai_privacy::event::{DpEvent, NeighboringRelation};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let (now, owner, scientist) = (1_700_000_000_000, Principal::from_bytes([1; 32]), Principal::from_bytes([2; 32]));
//! // 1. Open, then start the boot: runs that an earlier boot left open are resumed or settled.
//! let vault = Vault::open(directory.path(), &RootKey::from_bytes([9; 32]), VaultConfig::default(), now)?;
//! let key = LedgerKey::from_seed(&[7; 32]); // LedgerKey::generate in a server
//! let evidence = RuntimeEvidence {
//!     boot: vault.new_boot_id()?,
//!     ledger_key: key.public_key(),
//!     claims: b"canonical runtime claims".to_vec(),
//!     evidence_media_type: "application/example".into(),
//!     evidence: vec![1, 2, 3],
//! };
//! let boot = Boot { evidence: evidence.clone(), freshness: Freshness::None };
//! let conditions = Digest32::of(b"what must be the same where a run goes on");
//! let left_open = vault.start_boot(boot, |orphan| vault.check_resumable(&orphan.run, conditions).is_ok(), now)?;
//! assert!(left_open.is_empty());
//!
//! // 2. Upload: nothing is visible before `finish` returns.
//! let amount = |epsilon: &str, delta: &str| Ok::<_, AmountError>(Amount::new(epsilon.parse()?, delta.parse()?));
//! let mut upload = vault.begin_upload(UploadHeader {
//!     name: "tumours".into(),
//!     kind: DatasetKind::Private,
//!     owner,
//!     contract_json: "{}".into(),
//!     declared_size: 16,
//!     column_bytes: vec![4, 8], // bytes of one record in each contract column
//!     policy: Policy {
//!         lifetime: Some(amount("6.0", "1e-5")?),
//!         composition: Composition::Basic,
//!         may_train: MayTrain::Anyone,
//!         recipients: Default::default(),
//!         scientist_receives: true,
//!         require_hardened: false,
//!         expires_unix_ms: None,
//!         freshness: Freshness::None,
//!         limits: RunLimits::default(),
//!     },
//! })?;
//! upload.push(2, &[vec![1; 8], vec![2; 16]])?;
//! let dataset = upload.finish(2, now)?;
//! assert_eq!(vault.read_dataset(&dataset)?.rows, 2);
//!
//! // 3. Run: reserve → start → advance … → commit. Every step is durable when its call returns.
//! let run = vault.new_run_id()?;
//! let reservation = vault.reserve_run(
//!     RunReserved {
//!         run,
//!         boot: evidence.boot,
//!         run_digest: Digest32::of(b"what was agreed"),
//!         graph_digest: Digest32::of(b"typed graph"),
//!         scientist,
//!         model_name: "mlp".into(),
//!         steps: 2,
//!         noise_mode: NoiseMode::Standard,
//!         charges: vec![Charge {
//!             dataset,
//!             event: DpEvent::Gaussian { noise_multiplier: 1.0 },
//!             relation: NeighboringRelation::AddOrRemoveOne,
//!             amount: amount("2.0", "1e-6")?,
//!         }],
//!     },
//!     RunOrder { conditions, parts: &[b"all that the run needs"] },
//!     now,
//! )?; // or refund_run(reservation, RefundReason::Cancelled, now)
//! let started = vault.start_run(reservation, now)?; // before any record reaches the trainer
//! let checkpoint = Checkpoint { step: 2, parts: &[b"all that the next step depends on"] };
//! vault.advance_run(&started, checkpoint, &[ReleasedValue { step: 2, noisy_loss: Some(0.7) }], now)?; // before it is shown
//! let tensor = WeightTensor { names: vec!["w".into()], dtype: "float32".into(), shape: vec![1], size_bytes: 4 };
//! let weights = Weights { tensors: vec![tensor], data: vec![0; 4].into() };
//! vault.commit_run(started, RunEnd::Succeeded(weights), now)?;
//!
//! // 4. Release, to those whom every owner's policy entitles; then the receipt.
//! let receipt = vault.read(|ledger| ledger.budget_receipt(&run)).ok_or("not committed")?;
//! let weights = vault.release_weights(receipt, scientist, now)?;
//! // `runner`: None when the run is of this boot, else Some(vault.boot_evidence(&run_boot)?).
//! let envelope = vault.read(|ledger| Receipt::issue(ledger, &run, evidence, None, Vec::new(), now))?.sign(&key);
//! let checked = Receipt::verify_offline(&envelope, &key.public_key())?;
//! assert_eq!(checked.run.weights_digest, Some(weights.digest()));
//! # Ok(()) }
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod block;
mod block_writer;
pub mod blocks;
pub mod boots;
mod crypto;
mod database;
pub mod dataset;
pub mod error;
mod files;
pub mod kept;
mod objects;
pub mod open_runs;
pub mod results;
pub mod runs;
pub mod upload;
pub mod vault;

pub use blocks::{BlockStore, FileBlockStore, ObjectId};
pub use boots::Boot;
pub use crypto::RootKey;
pub use dataset::DatasetRows;
pub use error::{
    AdvanceError, CommitError, NotResumable, OpenError, ReadError, ReleaseError, StorageError, TransactError,
    UploadError,
};
pub use kept::{KeptSet, WeightsAt};
pub use open_runs::{Checkpoint, RunOrder, StoredCheckpoint};
pub use results::Weights;
pub use runs::{ReleasedValue, RunEnd};
pub use upload::{Upload, UploadHeader};
pub use vault::{Vault, VaultConfig};
