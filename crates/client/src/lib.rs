//! The verifying client: attested session, data contract, uploads, runs, receipts. Everything a front end
//! (command line, Python) needs, and the only place where a server is trusted with anything.
//!
//! In call order:
//! [`identity`] (who I am) → [`connect`] → [`UnappraisedSession`] (TLS, nothing sent) →
//! [`UnappraisedSession::appraise`] with an [`AppraisalPolicy`] and a [`HeadMemory`] → [`AppraisedPeer`],
//! which has one method per verb: [`datasets`], [`withdrawal`], [`models`], [`runs`], [`evaluation`], [`fetch`],
//! [`ledger`].
//! [`blocking`] is the same without async; [`synth`] draws rows from a contract for rehearsals.
//!
//! # Guarantee
//! Nothing but a request for evidence crosses before the evidence was verified and appraised, and
//! everything after crosses on that same TLS session. When it ends, so does the [`AppraisedPeer`]:
//! every call then fails with [`ClientError::SessionEnded`]; nothing here ever reconnects (rule A3).
//!
//! ```no_run
//! # async fn tour() -> Result<(), Box<dyn std::error::Error>> {
//! use bastionai_client::{AppraisalPolicy, ConnectOptions, HeadMemory, Identity, connect};
//! let me = Identity::load("me.pem")?;
//! let heads = HeadMemory::open("heads.json");
//! let session = connect("127.0.0.1:7443", &me, &ConnectOptions::default()).await?;
//! let peer = session.appraise(&AppraisalPolicy::insecure_development(), 0, &heads).await?;
//! for dataset in peer.list_datasets().await? {
//!     println!("{} {:?}", dataset.name, dataset.budget);
//! }
//! # Ok(()) }
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod convert;
mod link;
mod outgoing;
mod tls;

pub mod blocking;
pub mod datasets;
pub mod errors;
pub mod evaluation;
pub mod fetch;
pub mod heads;
pub mod identity;
pub mod ledger;
pub mod models;
pub mod planning;
pub mod receipts;
pub mod rows;
pub mod runs;
pub mod session;
pub mod synth;
pub mod terms;
pub mod withdrawal;

pub use bastionai_attestation::{
    AppraisalPolicy, AttestationResult, Freshness, ReferenceValues, RuntimeClaims, TrustAnchors,
};
pub use bastionai_graph::contract::DataContract;
pub use bastionai_ledger::amount::{Amount, Delta, Epsilon, Rho};
pub use bastionai_ledger::id::{DatasetId, Digest32, LedgerId, Principal, RunId};
pub use bastionai_privacy::filter::terms::{Order, RenyiTerms};
pub use bastionai_wire::DEFAULT_LOSS_SHARE;
pub use datasets::{
    Budget, Composition, Dataset, DatasetKind, DatasetState, DatasetUpload, MayTrain, NewDataset,
    OrderBudget, Policy, RenyiBudget,
};
pub use errors::ClientError;
pub use evaluation::{Evaluation, EvaluationQuote, EvaluationSpec, Metric};
pub use fetch::{FetchedReceipt, FetchedRun, WeightTensor, WeightsAt};
pub use heads::HeadMemory;
pub use identity::Identity;
pub use ledger::{LedgerEntry, LedgerView};
pub use receipts::{AuditedReceipt, audit_receipt, audit_receipt_under};
pub use rows::{CheckedRecords, RecordBatch, Transfer};
pub use runs::{
    Adam, Bands, Charge, Clipping, Compute, Decay, LossRelease, NoiseMode, Optimizer, Privacy, Progress,
    Quote, RenyiPrice, Run, RunKind, RunSpec, RunState, RunWatch, RunWeights, Schedule, Warmup,
    WeightsSource,
};
pub use session::{AppraisedPeer, ConnectOptions, ServerInfo, UnappraisedSession, connect};
pub use terms::AppraisalTerms;
