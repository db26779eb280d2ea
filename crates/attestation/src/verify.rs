//! Verification: cryptography up to a trust anchor, offline, with the time passed in. No policy here.

use crate::envelope::Envelope;
use crate::evidence::Evidence;
use crate::report::{Platform, Report};
use crate::{azure, insecure_simulated, nvidia, tdx};

/// The roots evidence may chain to, per kind of evidence.
#[derive(Clone, Debug)]
pub struct TrustAnchors {
    simulated_root: Option<[u8; 32]>,
    pub(crate) nvidia: nvidia::Roots,
    pub(crate) tdx: Option<tdx::Roots>,
}

impl TrustAnchors {
    /// The roots that come with this version: the well-known development key.
    ///
    /// That it is here only says that simulated evidence can be *read*; whether it is good enough is
    /// `AppraisalPolicy::allow_simulated`.
    pub fn bundled() -> Self {
        Self {
            simulated_root: Some(insecure_simulated::development_public_key()),
            nvidia: nvidia::Roots::bundled(),
            tdx: Some(tdx::Roots::bundled()),
        }
    }

    /// No root at all: every evidence is refused.
    pub fn none() -> Self {
        Self {
            simulated_root: None,
            nvidia: nvidia::Roots::default(),
            tdx: None,
        }
    }

    /// Trusts GPUs whose chains end in one of these certificates (DER), instead of those trusted before.
    pub fn with_nvidia(mut self, roots: Vec<Vec<u8>>) -> Self {
        self.nvidia = nvidia::Roots(roots);
        self
    }

    /// With another root for Intel TDX, e.g. of a test CA, in place of Intel's.
    pub fn with_intel(self, root: tdx::Roots) -> Self {
        Self {
            tdx: Some(root),
            ..self
        }
    }
}

/// Why evidence is not authentic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// This version cannot read that kind of evidence, or has no root for it.
    #[error("no trust anchor for evidence of type {0:?}")]
    UnknownMediaType(String),
    /// Longer than any evidence is.
    #[error("evidence has {found} bytes, at most {most} are read")]
    TooLong {
        /// Bytes received.
        found: usize,
        /// Bytes read at most.
        most: usize,
    },
    /// Not in the format its media type names.
    #[error("evidence is malformed: {0}")]
    Malformed(String),
    /// Signed by another key, or changed on the way.
    #[error("the signature on the evidence does not verify against its trust anchor")]
    Signature,
    /// A piece of evidence that is not about what the rest is about.
    #[error("{what} does not belong to the rest of the evidence: {why}")]
    Unbound {
        /// Which piece, e.g. `the list of PCR values`.
        what: String,
        /// What does not match.
        why: String,
    },
    /// A certificate, CRL or collateral that evidence of this kind needs is not there.
    #[error("{what} is missing: {remedy}")]
    MissingEndorsement {
        /// What is missing.
        what: String,
        /// Where it can be had.
        remedy: String,
    },
    /// An endorsement that does not lead from the evidence to a trust anchor.
    #[error("{what}: {why}")]
    Endorsement {
        /// Which one, e.g. `VCEK certificate`.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate, CRL or collateral outside its validity.
    #[error("{what} is valid from {not_before} to {not_after} (Unix seconds), not at {now}")]
    NotValidNow {
        /// Which one.
        what: String,
        /// Start of its validity, Unix seconds.
        not_before: u64,
        /// End of its validity, Unix seconds.
        not_after: u64,
        /// The time given, Unix seconds.
        now: u64,
    },
    /// Revoked by its issuer.
    #[error("{what} is revoked by its issuer")]
    Revoked {
        /// Which certificate.
        what: String,
    },
}

/// Authentic evidence, not yet appraised. Only [`verify`] makes one.
#[derive(Clone, Debug)]
pub struct VerifiedEvidence {
    pub(crate) media_type: String,
    pub(crate) report: Report,
    pub(crate) verified_unix_ms: u64,
}

impl VerifiedEvidence {
    /// What the evidence says. Not a decision: see [`VerifiedEvidence::appraise`].
    pub fn report(&self) -> &Report {
        &self.report
    }
}

/// Checks that evidence was made by the platform it names, at `now_unix_ms`.
///
/// The time matters to platforms whose certificates and collateral expire; it is also recorded in the
/// result. Nothing is fetched and nothing but the arguments is read.
///
/// # Errors
/// [`VerifyError`]; anything unknown is refused.
pub fn verify(
    evidence: &Evidence,
    anchors: &TrustAnchors,
    now_unix_ms: u64,
) -> Result<VerifiedEvidence, VerifyError> {
    if evidence.bytes.len() > MAX_EVIDENCE_BYTES {
        return Err(VerifyError::TooLong {
            found: evidence.bytes.len(),
            most: MAX_EVIDENCE_BYTES,
        });
    }
    let unknown = || VerifyError::UnknownMediaType(evidence.media_type.chars().take(128).collect());
    let (report_data, platform) = match evidence.media_type.as_str() {
        azure::MEDIA_TYPE => {
            let envelope = Envelope::from_bytes(&evidence.bytes)?;
            let (report_data, report) = azure::verify(&envelope, anchors, now_unix_ms)?;
            (report_data, Platform::Azure(Box::new(report)))
        }
        insecure_simulated::MEDIA_TYPE => {
            let root = anchors.simulated_root.as_ref().ok_or_else(unknown)?;
            let (report_data, report) = insecure_simulated::verify(&evidence.bytes, root)?;
            (report_data, Platform::InsecureSimulated(report))
        }
        tdx::MEDIA_TYPE => {
            let roots = anchors.tdx.as_ref().ok_or_else(unknown)?;
            let envelope = Envelope::from_bytes(&evidence.bytes)?;
            let (report_data, report) = tdx::verify(&envelope, roots, now_unix_ms)?;
            (report_data, Platform::Tdx(Box::new(report)))
        }
        _ => return Err(unknown()),
    };
    // Simulated evidence is no envelope, so that no authentic GPU adorns it.
    let gpus = match &platform {
        Platform::InsecureSimulated(_) => vec![],
        _ => nvidia::verify(
            &Envelope::from_bytes(&evidence.bytes)?,
            &report_data,
            &anchors.nvidia,
            now_unix_ms,
        )?,
    };
    Ok(VerifiedEvidence {
        media_type: evidence.media_type.clone(),
        report: Report {
            report_data,
            platform,
            gpus,
        },
        verified_unix_ms: now_unix_ms,
    })
}

/// Longest evidence read: reports with their chains, lists and collateral are some tens of KiB (rule 8).
pub const MAX_EVIDENCE_BYTES: usize = 512 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unknown_kinds_of_evidence_are_refused() {
        let evidence = Evidence {
            media_type: "application/unknown".into(),
            bytes: vec![],
        };
        let error = verify(&evidence, &TrustAnchors::bundled(), 0).unwrap_err();
        assert_eq!(error, VerifyError::UnknownMediaType("application/unknown".into()));
    }

    #[test]
    fn without_a_root_nothing_verifies() {
        use crate::evidence::Attester;
        let evidence = crate::InsecureSimulatedAttester::new().attest(&[0; 64]).unwrap();
        assert!(matches!(
            verify(&evidence, &TrustAnchors::none(), 0),
            Err(VerifyError::UnknownMediaType(_))
        ));
    }

    #[test]
    fn huge_evidence_is_refused_before_it_is_read() {
        let bytes = vec![0; MAX_EVIDENCE_BYTES + 1];
        let evidence = Evidence {
            media_type: insecure_simulated::MEDIA_TYPE.into(),
            bytes,
        };
        assert!(matches!(
            verify(&evidence, &TrustAnchors::bundled(), 0),
            Err(VerifyError::TooLong { .. })
        ));
    }

    proptest! {
        #[test]
        fn random_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let evidence = Evidence { media_type: insecure_simulated::MEDIA_TYPE.into(), bytes };
            prop_assert!(verify(&evidence, &TrustAnchors::bundled(), 0).is_err());
        }
    }
}
