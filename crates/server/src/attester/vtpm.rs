//! A confidential VM of Azure: a paravisor stands between the guest and the TEE, keeps the TEE's report of itself in the
//! vTPM it runs, and vouches there for an attestation key. What the guest can have signed is a quote by that key.

use super::endorsements::Endorsements;
use super::kinds::azure;
use super::tpm::Tpm;
use super::{AttesterError, evidence};
use bastionai_attestation::tpm::Quote;
use bastionai_attestation::{AttestError, Attester, Envelope, Evidence, Item};

/// A guest of Azure.
pub(super) struct Vtpm {
    tpm: Tpm,
    endorsements: Endorsements,
}

impl Vtpm {
    /// Looks whether the vTPM holds a paravisor's report.
    pub(super) fn open(tpm: Tpm, endorsements: Endorsements) -> Result<Self, AttesterError> {
        tpm.session()?.nv_size(HCL_REPORT_INDEX)?;
        Ok(Self { tpm, endorsements })
    }

    fn envelope(&self, report_data: &[u8; 64]) -> Result<Envelope, AttesterError> {
        let mut session = self.tpm.session()?;
        let report = session.nv_read(HCL_REPORT_INDEX)?;
        let quoted = session.quote(ATTESTATION_KEY, report_data, &QUOTED_PCRS)?;
        let quote = Quote {
            attest: quoted.attest,
            signature: quoted.signature,
            pcrs: quoted.pcrs,
        };
        let stapled = self.endorsements.read()?;
        let mut evidence = vec![
            Item::new(azure::HCL_REPORT, report),
            Item::new(bastionai_attestation::tpm::MEDIA_TYPE, quote.to_bytes()),
        ];
        evidence.extend(stapled.td_quote);
        let mut endorsements = stapled.chain;
        endorsements.extend(stapled.collateral);
        Ok(Envelope {
            evidence,
            endorsements,
        })
    }
}

impl Attester for Vtpm {
    fn media_type(&self) -> &'static str {
        azure::MEDIA_TYPE
    }

    fn attest(&self, report_data: &[u8; 64]) -> Result<Evidence, AttestError> {
        Ok(evidence(azure::MEDIA_TYPE, &self.envelope(report_data)?)?)
    }
}

/// Where the paravisor keeps the TEE's report (Azure's documentation of guest attestation).
pub(super) const HCL_REPORT_INDEX: u32 = 0x0140_0001;
/// The key that the report's runtime data name.
pub(super) const ATTESTATION_KEY: u32 = 0x8100_0003;
/// What firmware, boot loader and kernel measure; the rest is for debugging and for programs.
pub(super) const QUOTED_PCRS: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
