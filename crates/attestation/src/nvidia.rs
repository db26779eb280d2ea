//! NVIDIA GPUs in confidential-computing mode (Hopper, Blackwell): measurements that the GPU signs over a nonce.
//!
//! **What it proves.** At the time it signed, an authentic NVIDIA GPU ran the firmware that is measured, in the mode it
//! names, and whoever asked it knew the [`nonce`], which only evidence of the same session (or boot) has.
//!
//! **What it does not prove** ([`CLAIM`]). That the GPU sits in the machine whose CPU made the rest of the evidence: neither
//! Hopper nor Blackwell signs anything about its host, and an operator can relay the question to a GPU elsewhere. That it
//! stays the GPU in use for the lifetime of the confidential machine: the driver in the guest, which the CPU's
//! measurements cover, is what keeps the encrypted session with it. So it is said *verified at boot*, never *co-located*.
//! Revocation (OCSP) is not checked: it would need the network.
//!
//! An item of the envelope of a CPU ([`Evidence::item`]) → `spdm` (the transcript) and `opaque` (NVIDIA's fields in it) →
//! `chain` (up to a pinned root) and `dice` (which firmware has the key) → [`Report`] → `appraise` ([`Policy`]).
//! [`formats`] reads the files of NVIDIA's tools.

mod appraise;
mod chain;
mod dice;
pub mod formats;
mod opaque;
mod spdm;
mod written;

pub use appraise::{Firmware, Policy, appraise_alone};
pub use chain::{CHAIN_LENGTH, MAX_CERTIFICATE_BYTES};
pub use spdm::{Digest, MAX_TRANSCRIPT_BYTES};

use crate::encoding::{DecodeError, Reader, Writer};
use crate::envelope::{Envelope, Item};
use crate::verify::{TrustAnchors, VerifyError};
use chain::Chain;
use opaque::Opaque;
use ring::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use spdm::Transcript;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub(crate) use appraise::appraise;

/// Media type of an item: one GPU's report and chain.
pub const MEDIA_TYPE: &str = "application/vnd.bastionai.nvidia-gpu";

/// What evidence of a GPU is good for, in every report.
pub const CLAIM: &str = "verified at boot; not shown to sit in this machine";

/// NVIDIA's root: the certificate that NVIDIA's own verifiers pin (`DEVICE_ROOT_CERT` of github.com/NVIDIA/attestation-sdk,
/// `verifier_device_root.pem` of github.com/NVIDIA/nvtrust), and the last of every GPU's chain. SHA-256
/// `102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48`.
pub const DEVICE_IDENTITY_CA: &[u8] = include_bytes!("nvidia/device-identity-ca.der");

const LABEL: &[u8] = b"bastionai/v1/nvidia-gpu";
const NONCE_LABEL: &[u8] = b"bastionai/v1/gpu";

/// The nonce that ties a GPU's report to the CPU's evidence: SHA-256 over the length-prefixed label and report data.
pub fn nonce(report_data: &[u8; 64]) -> [u8; 32] {
    let fields = Writer::new().field(NONCE_LABEL).field(report_data).finish();
    Sha256::digest(fields).into()
}

/// The certificates, in DER, that a GPU's chain may end in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Roots(pub(crate) Vec<Vec<u8>>);

impl Roots {
    /// NVIDIA's.
    pub(crate) fn bundled() -> Self {
        Self(vec![DEVICE_IDENTITY_CA.to_vec()])
    }
}

/// What one GPU signed, and the certificates of the key it signed with. Nothing of it is verified.
#[derive(Clone, PartialEq, Eq)]
pub struct Evidence {
    /// GET_MEASUREMENTS request and MEASUREMENTS response, at most [`MAX_TRANSCRIPT_BYTES`].
    pub transcript: Vec<u8>,
    /// [`CHAIN_LENGTH`] certificates in DER, the attestation key's first, the root last.
    pub chain: Vec<Vec<u8>>,
}

impl fmt::Debug for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "nvidia::Evidence({} bytes, {} certificates)",
            self.transcript.len(),
            self.chain.len()
        )
    }
}

impl Evidence {
    /// The item of an envelope: length-prefixed (`u32 LE`) label, transcript, number of certificates (1 byte), and each
    /// certificate.
    ///
    /// # Panics
    /// With 256 certificates or more: whoever attests has [`CHAIN_LENGTH`].
    pub fn item(&self) -> Item {
        let count = u8::try_from(self.chain.len()).expect("a chain has five certificates");
        let head = Writer::new().field(LABEL).field(&self.transcript).field(&[count]);
        let fields = self
            .chain
            .iter()
            .fold(head, |fields, certificate| fields.field(certificate));
        Item::new(MEDIA_TYPE, fields.finish())
    }

    /// Reads the bytes of an item.
    ///
    /// # Errors
    /// [`VerifyError::Malformed`] for anything else, also for another number of certificates.
    pub fn from_item(bytes: &[u8]) -> Result<Self, VerifyError> {
        let malformed =
            |error: DecodeError| VerifyError::Malformed(format!("the evidence of a GPU: {error}"));
        let mut reader = Reader::new(bytes);
        if reader.field("label", LABEL.len()).map_err(malformed)? != LABEL {
            return Err(VerifyError::Malformed(
                "not the evidence of an NVIDIA GPU, version 1".to_owned(),
            ));
        }
        let transcript = reader
            .field("transcript", MAX_TRANSCRIPT_BYTES)
            .map_err(malformed)?
            .to_vec();
        let [count] = reader.array("number of certificates").map_err(malformed)?;
        if usize::from(count) != CHAIN_LENGTH {
            return Err(VerifyError::Malformed(format!(
                "the evidence of a GPU: {count} certificates, not {CHAIN_LENGTH}"
            )));
        }
        let chain = (0..count)
            .map(|_| {
                reader
                    .field("certificate", MAX_CERTIFICATE_BYTES)
                    .map(<[u8]>::to_vec)
            })
            .collect::<Result<_, _>>()
            .map_err(malformed)?;
        reader.finish().map_err(malformed)?;
        Ok(Self { transcript, chain })
    }

    /// Checks that an authentic GPU signed this. The nonce is the caller's to compare.
    ///
    /// # Errors
    /// [`VerifyError`]; anything unknown is refused.
    pub fn verify(&self, anchors: &TrustAnchors, now_unix_ms: u64) -> Result<Report, VerifyError> {
        self.verify_up_to(&anchors.nvidia, now_unix_ms)
    }

    fn verify_up_to(&self, roots: &Roots, now_unix_ms: u64) -> Result<Report, VerifyError> {
        let transcript = Transcript::read(&self.transcript)?;
        let chain = Chain::verify(&self.chain, roots, now_unix_ms)?;
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, &chain.attestation_key)
            .verify(transcript.signed, &transcript.signature)
            .map_err(|_| VerifyError::Signature)?;
        let opaque = Opaque::read(transcript.opaque)?;
        // Older firmware does not repeat what its certificate says.
        if opaque.fwid.is_some_and(|fwid| fwid != chain.dice.fwid) {
            return Err(VerifyError::Unbound {
                what: "the FWID in the report of a GPU".to_owned(),
                why: "it is not that of the attestation key's certificate".to_owned(),
            });
        }
        Ok(Report {
            architecture: chain.architecture,
            chip: chain.chip,
            hardware_model: chain.hardware_model,
            device_serial: chain.device_serial,
            certificate_serial: chain.certificate_serial,
            nonce: transcript.nonce,
            driver_version: opaque.driver_version,
            vbios_version: opaque.vbios_version,
            chip_sku: opaque.chip_sku,
            project: opaque.project,
            project_sku: opaque.project_sku,
            mode: opaque.mode,
            fwid: chain.dice.fwid,
            is_flagged: chain.dice.is_flagged,
            measurements: transcript.measurements,
            claim: CLAIM,
        })
    }
}

/// What an authentic GPU says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// From the chip.
    pub architecture: Architecture,
    /// Which chip, as NVIDIA's root certified it (`GH100`). What vendors' JSON says of it is unsigned and not used.
    pub chip: String,
    /// The device certificate's common name: NVIDIA's `hwmodel`.
    pub hardware_model: String,
    /// Which GPU: the serial number that NVIDIA's provisioner gave it. For life.
    pub device_serial: String,
    /// Serial number of the attestation key's certificate: NVIDIA's `ueid`. Changes with the firmware.
    pub certificate_serial: String,
    /// Of the request, see [`nonce`].
    #[serde(serialize_with = "crate::claims::as_hex")]
    pub nonce: [u8; 32],
    /// As the GPU's firmware reports it.
    pub driver_version: String,
    /// As the driver shows it: `96.00.A5.00.01`.
    pub vbios_version: String,
    /// SKU of the chip, which is in the name of its reference values with the two that follow.
    pub chip_sku: Option<String>,
    /// Project (board).
    pub project: Option<String>,
    /// SKU of the project.
    pub project_sku: Option<String>,
    /// Which protection is on.
    pub mode: Mode,
    /// SHA-384 of the firmware that holds the attestation key, certified by the GPU's boot ROM.
    #[serde(serialize_with = "crate::claims::as_hex")]
    pub fwid: Digest,
    /// Whether the boot ROM flagged that firmware as not secure, in recovery or in debug mode. Hopper's
    /// certificates have no such flags: there debug firmware shows in the measurements only.
    pub is_flagged: bool,
    /// SHA-384 digests by index, from 1; an index that is not in use is all zeros.
    #[serde(serialize_with = "as_hex_by_index")]
    pub measurements: BTreeMap<u8, Digest>,
    /// [`CLAIM`].
    pub claim: &'static str,
}

impl Report {
    /// What people are shown, in one line.
    pub(crate) fn row(&self) -> String {
        let Self {
            hardware_model,
            device_serial,
            driver_version,
            vbios_version,
            mode,
            ..
        } = self;
        format!(
            "{hardware_model} {device_serial}, driver {driver_version}, VBIOS {vbios_version}, {mode} ({CLAIM})"
        )
    }
}

fn as_hex_by_index<S: Serializer>(
    measurements: &BTreeMap<u8, Digest>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(
        measurements
            .iter()
            .map(|(index, digest)| (index, hex::encode(digest))),
    )
}

/// Generations of GPUs whose evidence is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Architecture {
    /// H100, H200, GH200.
    Hopper,
    /// B200, B300, RTX PRO 6000.
    Blackwell,
}

/// Which protection a GPU says is on (its feature flag). A GPU with confidential computing off signs no report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Mode {
    /// Confidential computing for one GPU or for several with encrypted NVLink: flags 0 and 1, of which public sources
    /// disagree which is which (NVIDIA's SDK has *multi* = 0, others *single* = 0).
    Confidential,
    /// Protected PCIe: flag 2. NVLink between GPUs is in the clear, and switches, of which no evidence is read, are trusted.
    ProtectedPcie,
    /// Firmware older than the flag: either of the others.
    NotStated,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Confidential => "confidential",
            Self::ProtectedPcie => "protected-pcie",
            Self::NotStated => "not-stated",
        })
    }
}

/// All GPUs of an envelope, each tied to the CPU's report data, no GPU twice.
pub(crate) fn verify(
    envelope: &Envelope,
    report_data: &[u8; 64],
    roots: &Roots,
    now_unix_ms: u64,
) -> Result<Vec<Report>, VerifyError> {
    let wanted = nonce(report_data);
    let mut devices = BTreeSet::new();
    let items = envelope
        .evidence
        .iter()
        .filter(|item| item.media_type == MEDIA_TYPE);
    items
        .map(|item| {
            let report = Evidence::from_item(&item.bytes)?.verify_up_to(roots, now_unix_ms)?;
            let unbound = |why: String| VerifyError::Unbound {
                what: format!("the report of GPU {}", report.device_serial),
                why,
            };
            if report.nonce != wanted {
                return Err(unbound(format!(
                    "its nonce is {}, this evidence's report data gives {}: it was made for another session or machine",
                    hex::encode(report.nonce),
                    hex::encode(wanted)
                )));
            }
            if !devices.insert(report.device_serial.clone()) {
                return Err(unbound("the same GPU is there twice".to_owned()));
            }
            Ok(report)
        })
        .collect()
}

#[cfg(test)]
mod tests;
