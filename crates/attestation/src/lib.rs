//! Evidence bytes → verified → appraised. No network, no async, no clock: time is passed in.
//!
//! What a relying party (the data owner's client) needs to decide whether a server may see data, and
//! what a server needs to ask its platform for evidence. In call order:
//! [`claims`] (what the measured software says about how it runs, rule A4) →
//! [`binding`] (ties evidence to one TLS session, or to one boot for offline receipts, rule A6) →
//! [`evidence`] (the [`Attester`] and the bytes it makes, in an [`envelope`]) →
//! [`mod@verify`] (cryptography up to a trust anchor; yields a [`report`]) → [`mod@appraise`] (against a [`policy`]) → [`result`].
//! [`mod@reference`] computes what honest hardware must report from the files that a machine boots,
//! [`release`] has them signed.
//! [`nvidia`] is the evidence of GPUs, beside that of the CPU.
//! [`insecure_simulated`] is the development attester; its evidence can be forged by anyone.
//!
//! Two steps on purpose: [`verify()`] says *who made these bytes*, [`VerifiedEvidence::appraise`] says
//! *whether that is good enough for me*. Only the second yields an [`AttestationResult`], and neither
//! type can be made in any other way. Words are those of RFC 9334 (RATS).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod appraise;
pub mod azure;
pub mod binding;
pub mod claims;
mod encoding;
pub mod envelope;
pub mod evidence;
pub mod insecure_simulated;
pub mod nvidia;
pub mod policy;
pub mod reference;
pub mod release;
pub mod report;
pub mod result;
pub mod tdx;
pub mod tpm;
pub mod verify;

pub use binding::{Binding, BootBinding, Role};
pub use claims::{ClaimsError, Freshness, RuntimeClaims};
pub use envelope::{Envelope, Item};
pub use evidence::{AttestError, Attester, Evidence};
pub use insecure_simulated::InsecureSimulatedAttester;
pub use policy::{AppraisalPolicy, ReferenceValues};
pub use release::{Artifact, ManifestError, Release, ReleaseManifest, VerifiedManifest};
pub use report::{Kind, Platform, Report};
pub use result::{AppraisalError, AttestationResult, Refusal, Rule, Status};
pub use verify::{TrustAnchors, VerifiedEvidence, VerifyError, verify};
