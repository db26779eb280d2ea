//! The development attester. **Its signing key is printed below: anyone can forge its evidence.**
//!
//! It exists so that every other part of the path (binding, verification, appraisal, refusals) is the
//! real one on a laptop. A policy refuses it unless the relying party sets `allow_simulated` by name.
//!
//! Format, all fields length-prefixed (`u32 LE`): label, measurement (48 bytes), chip id (64), debug
//! (1 byte, 0 or 1), report data (64), Ed25519 signature (64) over all bytes before its field.

use crate::appraise::Check;
use crate::encoding::{DecodeError, Reader, Writer};
use crate::evidence::{AttestError, Attester, Evidence};
use crate::policy::AppraisalPolicy;
use crate::result::Rule;
use crate::verify::VerifyError;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::Serialize;

/// Media type of simulated evidence.
pub const MEDIA_TYPE: &str = "application/vnd.bastionai.insecure-simulated";

/// Measurement the simulated attester reports unless told otherwise.
pub const DEVELOPMENT_MEASUREMENT: [u8; 48] = *b"bastionai insecure development measurement.....!";

/// Chip id the simulated attester reports.
pub const DEVELOPMENT_CHIP_ID: [u8; 64] =
    *b"bastionai insecure development chip............................!";

/// What simulated evidence says, in the shape of what would be proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Launch measurement.
    #[serde(serialize_with = "crate::claims::as_hex")]
    pub measurement: [u8; 48],
    /// Identity of the chip.
    #[serde(serialize_with = "crate::claims::as_hex")]
    pub chip_id: [u8; 64],
    /// Whether the host can read the guest's memory.
    pub debug: bool,
}

/// Makes evidence that proves nothing, in the shape of evidence that would.
#[derive(Clone, Debug)]
pub struct InsecureSimulatedAttester {
    measurement: [u8; 48],
    chip_id: [u8; 64],
    debug: bool,
}

impl InsecureSimulatedAttester {
    /// Reports [`DEVELOPMENT_MEASUREMENT`] on [`DEVELOPMENT_CHIP_ID`], debug off.
    pub fn new() -> Self {
        Self {
            measurement: DEVELOPMENT_MEASUREMENT,
            chip_id: DEVELOPMENT_CHIP_ID,
            debug: false,
        }
    }

    /// Reports another measurement.
    pub fn with_measurement(self, measurement: [u8; 48]) -> Self {
        Self { measurement, ..self }
    }

    /// Reports another chip.
    pub fn with_chip_id(self, chip_id: [u8; 64]) -> Self {
        Self { chip_id, ..self }
    }

    /// Reports a debuggable guest.
    pub fn with_debug(self, debug: bool) -> Self {
        Self { debug, ..self }
    }
}

impl Default for InsecureSimulatedAttester {
    fn default() -> Self {
        Self::new()
    }
}

impl Attester for InsecureSimulatedAttester {
    fn media_type(&self) -> &'static str {
        MEDIA_TYPE
    }

    fn attest(&self, report_data: &[u8; 64]) -> Result<Evidence, AttestError> {
        let signed = Writer::new()
            .field(LABEL)
            .field(&self.measurement)
            .field(&self.chip_id)
            .field(&[u8::from(self.debug)])
            .field(report_data)
            .finish();
        let key = development_key().map_err(|error| AttestError::Unavailable(error.to_string()))?;
        let signature = Writer::new().field(key.sign(&signed).as_ref()).finish();
        Ok(Evidence {
            media_type: MEDIA_TYPE.to_owned(),
            bytes: [signed, signature].concat(),
        })
    }
}

/// The report data and the rest of what evidence says.
pub(crate) fn verify(bytes: &[u8], root: &[u8; 32]) -> Result<([u8; 64], Report), VerifyError> {
    let mut reader = Reader::new(bytes);
    let label = reader.field("label", 64)?;
    if label != LABEL {
        return Err(VerifyError::Malformed(
            "not simulated evidence of version 1".into(),
        ));
    }
    let measurement: [u8; 48] = reader.array("measurement")?;
    let chip_id: [u8; 64] = reader.array("chip id")?;
    let debug = match reader.array::<1>("debug")? {
        [0] => false,
        [1] => true,
        _ => return Err(VerifyError::Malformed("debug is neither 0 nor 1".into())),
    };
    let report_data: [u8; 64] = reader.array("report data")?;
    let signature: [u8; 64] = reader.array("signature")?;
    reader.finish()?;
    let signed = &bytes[..bytes.len() - 4 - signature.len()];
    UnparsedPublicKey::new(&ED25519, root)
        .verify(signed, &signature)
        .map_err(|_| VerifyError::Signature)?;
    let report = Report {
        measurement,
        chip_id,
        debug,
    };
    Ok((report_data, report))
}

/// The public half of the well-known key, the "vendor root" of simulated evidence.
pub fn development_public_key() -> [u8; 32] {
    let key = development_key().expect("a 32-byte seed is an Ed25519 key");
    key.public_key()
        .as_ref()
        .try_into()
        .expect("Ed25519 public keys have 32 bytes")
}

pub(crate) fn appraise(report: &Report, policy: &AppraisalPolicy, check: &mut Check) {
    check.demand(
        Rule::Simulated,
        policy.allow_simulated,
        || "simulated evidence, which anyone can forge".to_owned(),
        || "evidence of a TEE (for development only, set allow_simulated)".to_owned(),
    );
    check.debug_off(report.debug);
    check.launch(policy, &report.measurement, &report.chip_id);
}

impl From<DecodeError> for VerifyError {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error.to_string())
    }
}

fn development_key() -> Result<Ed25519KeyPair, ring::error::KeyRejected> {
    Ed25519KeyPair::from_seed_unchecked(DEVELOPMENT_SEED)
}

const LABEL: &[u8] = b"bastionai/v1/insecure-simulated";
/// Public on purpose.
const DEVELOPMENT_SEED: &[u8; 32] = b"bastionai: INSECURE, well known.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::{TrustAnchors, verify};

    #[test]
    fn simulated_evidence_verifies_and_carries_the_report_data() {
        let evidence = InsecureSimulatedAttester::new().attest(&[7; 64]).unwrap();
        let verified = verify(&evidence, &TrustAnchors::bundled(), 1_000).unwrap();
        assert_eq!(verified.report().report_data, [7; 64]);
        assert_eq!(verified.report().kind(), crate::Kind::InsecureSimulated);
    }

    #[test]
    fn the_encoding_of_evidence_is_pinned() {
        use sha2::{Digest, Sha256};
        let evidence = InsecureSimulatedAttester::new().attest(&[7; 64]).unwrap();
        assert_eq!(
            hex::encode(Sha256::digest(&evidence.bytes)),
            "62eaaf52ff4af9e72c00c71d78df694c715a7eb40161bd2830a996c49f5162bb"
        );
    }

    #[test]
    fn every_flipped_bit_of_evidence_is_refused() {
        let evidence = InsecureSimulatedAttester::new().attest(&[7; 64]).unwrap();
        for at in 0..evidence.bytes.len() {
            for bit in 0..8 {
                let mut flipped = evidence.clone();
                flipped.bytes[at] ^= 1 << bit;
                assert!(
                    verify(&flipped, &TrustAnchors::bundled(), 0).is_err(),
                    "byte {at} bit {bit}"
                );
            }
        }
    }

    #[test]
    fn truncated_and_extended_evidence_is_refused() {
        let evidence = InsecureSimulatedAttester::new().attest(&[7; 64]).unwrap();
        for length in 0..evidence.bytes.len() {
            let short = Evidence {
                bytes: evidence.bytes[..length].to_vec(),
                ..evidence.clone()
            };
            assert!(
                verify(&short, &TrustAnchors::bundled(), 0).is_err(),
                "{length} bytes"
            );
        }
        let long = Evidence {
            bytes: [&evidence.bytes[..], &[0]].concat(),
            ..evidence
        };
        assert!(matches!(
            verify(&long, &TrustAnchors::bundled(), 0),
            Err(VerifyError::Malformed(_))
        ));
    }

    #[test]
    fn a_length_prefix_of_four_gigabytes_allocates_nothing() {
        let evidence = Evidence {
            media_type: MEDIA_TYPE.into(),
            bytes: vec![0xff; 64],
        };
        assert!(matches!(
            verify(&evidence, &TrustAnchors::bundled(), 0),
            Err(VerifyError::Malformed(_))
        ));
    }

    #[test]
    fn evidence_signed_by_another_key_is_refused() {
        let evidence = InsecureSimulatedAttester::new().attest(&[7; 64]).unwrap();
        assert_eq!(
            super::verify(&evidence.bytes, &[9; 32]).err(),
            Some(VerifyError::Signature)
        );
    }
}
