//! Azure confidential VMs: SEV-SNP or TDX underneath, a paravisor in it, and a vTPM in the paravisor.
//!
//! The guest cannot ask the TEE for a report over data of its choice: only the paravisor can, at boot. What the guest
//! can ask for is a quote of the vTPM that the paravisor runs. From the vendor's root to this session:
//!
//! 1. The report of the TEE is the vendor's ([`crate::tdx`]), of the paravisor: VMPL 0 on SNP, the TD itself on TDX.
//! 2. Its report data are the SHA-256 of the [runtime data](VmConfiguration), which name the vTPM's attestation key.
//! 3. That key signs a [quote](crate::tpm) of the PCRs over 64 bytes: the report data of this session (rule A6).
//! 4. The PCR values hash to the digest in the quote.
//!
//! On SEV-SNP steps 2 to 4 and the VMPL are checked and the evidence is then refused: this version verifies no SNP report.
//!
//! **What the paravisor is trusted for.** It is Microsoft's code, measured at launch, inside the guest's boundary: that
//! the attestation key is a restricted key it keeps to itself; that PCRs are extended and never set back but at a
//! boot; that it boots what it measures; that `vm-configuration` is what it enforces; and everything it can do to the
//! guest's memory, which is all. A launch measurement pins it; what the guest booted is in the PCRs alone.

mod evidence_json;
mod hcl;
mod policy;
mod runtime;
mod td_report;

pub use evidence_json::evidence_json;
pub use policy::{DEMANDED_PCRS, Policy};
pub use runtime::VmConfiguration;

use crate::envelope::{CERTIFICATE, Envelope, Item, REVOCATION_LIST};
use crate::verify::{TrustAnchors, VerifyError};
use crate::{tdx, tpm};
use hcl::{Hcl, TeeReport};
use runtime::Runtime;
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

pub(crate) use policy::appraise;

/// Media type of an envelope of this kind.
pub const MEDIA_TYPE: &str = "application/vnd.bastionai.azure+cmw";

/// The paravisor's report, as it stands in NV index `0x01400001` of the vTPM.
pub const HCL_REPORT: &str = "application/vnd.bastionai.azure-hcl-report";

/// What authentic evidence of an Azure VM says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// What the TEE vouches for.
    pub paravisor: Paravisor,
    /// What the guest asked the vTPM to sign, as long as it was; 64 bytes, or it is refused.
    #[serde(serialize_with = "bytes_as_hex")]
    pub qualifying_data: Vec<u8>,
    /// Quoted PCR values of the SHA-256 bank, by index.
    #[serde(serialize_with = "pcrs_as_hex")]
    pub pcrs: BTreeMap<u8, [u8; 32]>,
    /// The vTPM's clock.
    pub clock: tpm::Clock,
    /// Version of the vTPM's firmware.
    pub tpm_firmware_version: u64,
}

/// What the TEE vouches for: itself, and the paravisor's runtime data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Paravisor {
    /// The report of the TEE underneath, made by the paravisor at boot.
    pub tee: Tee,
    /// Configuration of the VM.
    pub vm: VmConfiguration,
    /// What the guest left in an NV index for the paravisor's report: not appraised.
    #[serde(serialize_with = "bytes_as_hex")]
    pub user_data: Vec<u8>,
    /// SHA-256 of the modulus of the vTPM's attestation key.
    #[serde(serialize_with = "crate::claims::as_hex")]
    pub attestation_key_sha256: [u8; 32],
}

/// The TEE underneath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "tee", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Tee {
    /// Intel TDX.
    Tdx(Box<tdx::Report>),
}

/// The pieces of evidence and endorsements, as a guest or a file has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pieces {
    /// [`HCL_REPORT`].
    pub hcl_report: Vec<u8>,
    /// [`tpm::Quote::to_bytes`]; without it there is only [`verify_paravisor`].
    pub quote: Option<Vec<u8>>,
    /// On TDX: the quote that Azure's metadata service makes of the TD report in the paravisor's report.
    pub td_quote: Option<Vec<u8>>,
    /// On TDX: its collateral, as [`tdx::COLLATERAL`] says.
    pub collateral: Option<Vec<u8>>,
    /// On SNP: VCEK and chain, DER.
    pub certificates: Vec<Vec<u8>>,
    /// On SNP: lists of revoked certificates, DER.
    pub revocation_lists: Vec<Vec<u8>>,
}

impl Pieces {
    /// The envelope that holds them.
    pub fn into_envelope(self) -> Envelope {
        let item = |media_type| move |bytes: Vec<u8>| Item::new(media_type, bytes);
        let mut envelope = Envelope {
            evidence: vec![Item::new(HCL_REPORT, self.hcl_report)],
            endorsements: vec![],
        };
        envelope.evidence.extend(self.quote.map(item(tpm::MEDIA_TYPE)));
        envelope.evidence.extend(self.td_quote.map(item(tdx::QUOTE)));
        envelope
            .endorsements
            .extend(self.certificates.into_iter().map(item(CERTIFICATE)));
        envelope
            .endorsements
            .extend(self.revocation_lists.into_iter().map(item(REVOCATION_LIST)));
        envelope
            .endorsements
            .extend(self.collateral.map(item(tdx::COLLATERAL)));
        envelope
    }
}

/// The report data and the rest of what evidence says.
pub(crate) fn verify(
    envelope: &Envelope,
    anchors: &TrustAnchors,
    now_unix_ms: u64,
) -> Result<([u8; 64], Report), VerifyError> {
    let quote = tpm::Quote::from_bytes(envelope.one(tpm::MEDIA_TYPE)?)?;
    let hcl = Hcl::parse(envelope.one(HCL_REPORT)?)?;
    let runtime = Runtime::parse(hcl.runtime)?;
    let quoted = quote.verify(&runtime.attestation_key)?;
    let paravisor = paravisor(hcl, runtime, envelope, anchors, now_unix_ms)?;
    let mut report_data = [0; 64];
    let length = quoted.extra_data.len().min(64);
    report_data[..length].copy_from_slice(&quoted.extra_data[..length]);
    let report = Report {
        paravisor,
        qualifying_data: quoted.extra_data,
        pcrs: quoted.pcrs,
        clock: quoted.clock,
        tpm_firmware_version: quoted.firmware_version,
    };
    Ok((report_data, report))
}

/// What the TEE vouches for, by the paravisor's report and endorsements alone: no quote, so no session and no PCRs.
///
/// For looking at reports; [`crate::verify()`] is what appraisal needs.
///
/// # Errors
/// [`VerifyError`], as [`crate::verify()`].
pub fn verify_paravisor(
    envelope: &Envelope,
    anchors: &TrustAnchors,
    now_unix_ms: u64,
) -> Result<Paravisor, VerifyError> {
    let hcl = Hcl::parse(envelope.one(HCL_REPORT)?)?;
    let runtime = Runtime::parse(hcl.runtime)?;
    paravisor(hcl, runtime, envelope, anchors, now_unix_ms)
}

fn paravisor(
    hcl: Hcl<'_>,
    runtime: Runtime,
    envelope: &Envelope,
    anchors: &TrustAnchors,
    now_unix_ms: u64,
) -> Result<Paravisor, VerifyError> {
    let tee = match hcl.tee {
        TeeReport::Snp(report) => {
            made_at_vmpl_0(report)?;
            return Err(no_root("application/vnd.bastionai.snp-report"));
        }
        TeeReport::Tdx(report) => {
            let quote = envelope.one(tdx::QUOTE)?;
            td_report::check(report, quote)?;
            let roots = anchors.tdx.as_ref().ok_or_else(|| no_root(tdx::QUOTE))?;
            let of_quote = part(envelope, Item::new(tdx::QUOTE, quote), &[tdx::COLLATERAL]);
            Tee::Tdx(Box::new(tdx::verify(&of_quote, roots, now_unix_ms)?.1))
        }
    };
    Ok(Paravisor {
        tee,
        vm: runtime.vm,
        user_data: runtime.user_data,
        attestation_key_sha256: Sha256::digest(runtime.modulus).into(),
    })
}

fn no_root(media_type: &str) -> VerifyError {
    VerifyError::UnknownMediaType(media_type.to_owned())
}

/// Refuses a report that the guest's own kernel could have asked for, over runtime data of its making: it runs at
/// VMPL 2, the paravisor at VMPL 0 (SNP ABI, table 23: VMPL at 0x30).
fn made_at_vmpl_0(report: &[u8]) -> Result<(), VerifyError> {
    match report[0x30..0x34] {
        [0, 0, 0, 0] => Ok(()),
        [vmpl, ..] => Err(VerifyError::Unbound {
            what: "the SEV-SNP report".to_owned(),
            why: format!("made at VMPL {vmpl}, not by the paravisor, which runs at VMPL 0"),
        }),
        [] => unreachable!("a range of four bytes"),
    }
}

/// The envelope of one TEE's evidence and the endorsements of these types.
fn part(envelope: &Envelope, evidence: Item, endorsements: &[&str]) -> Envelope {
    let of_type = |item: &&Item| endorsements.contains(&item.media_type.as_str());
    Envelope {
        evidence: vec![evidence],
        endorsements: envelope.endorsements.iter().filter(of_type).cloned().collect(),
    }
}

/// What people are shown, by name.
pub(crate) fn rows(report: &Report) -> Vec<(&'static str, String)> {
    let vm = &report.paravisor.vm;
    let mut rows = match &report.paravisor.tee {
        Tee::Tdx(tee) => tee.rows(),
    };
    rows.extend([
        ("Azure VM", vm.vm_unique_id.clone()),
        ("secure boot", said(vm.secure_boot).to_owned()),
        ("serial console", said(vm.console_enabled).to_owned()),
        ("vTPM firmware", format!("{:#018x}", report.tpm_firmware_version)),
        ("vTPM resets", report.clock.reset_count.to_string()),
    ]);
    // Those that hold nothing are not shown: zeros, or the ones of an unused dynamic launch.
    let is_used = |value: &[u8; 32]| *value != [0; 32] && *value != [0xff; 32];
    let used = report.pcrs.iter().filter(|(_, value)| is_used(value));
    rows.extend(used.map(|(index, value)| ("PCR", format!("{index:>2} {}", hex::encode(value)))));
    rows
}

fn said(value: Option<bool>) -> &'static str {
    match value {
        Some(true) => "enabled",
        Some(false) => "disabled",
        None => "not said by the paravisor",
    }
}

fn bytes_as_hex<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

fn pcrs_as_hex<S: Serializer>(pcrs: &BTreeMap<u8, [u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pcrs.iter().map(|(index, value)| (index, hex::encode(value))))
}
