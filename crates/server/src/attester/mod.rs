//! Who vouches for this server: the platform it runs on, asked over the interface that the kernel has for it.
//!
//! [`open`] finds the platform that the configuration names, or with `auto` the one that is there, and never takes
//! another in its place. `configfs_tsm` speaks to SEV-SNP and TDX by one interface, `vtpm` to the paravisor of Azure
//! over `tpm`; `certificate_table` and `endorsements` are where the certificates come from that are stapled to evidence.
//! The crate `attestation` knows what the bytes mean; everything that touches the machine is here.

mod certificate_table;
mod configfs_tsm;
mod endorsements;
mod kinds;
mod tpm;
mod vtpm;

use crate::config::{AttestationConfig, AttesterKind};
use bastionai_attestation::envelope::MAX_ITEMS;
use bastionai_attestation::verify::MAX_EVIDENCE_BYTES;
use bastionai_attestation::{
    AttestError, Attester, Envelope, Evidence, InsecureSimulatedAttester, insecure_simulated,
};
use configfs_tsm::{ConfigfsTsm, Kernel, Provider};
use endorsements::{EndorsementError, Endorsements};
use std::io;
use std::path::{Path, PathBuf};
use tpm::TpmError;
use vtpm::Vtpm;

/// Why there is nobody to vouch for this server, or why they did not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttesterError {
    /// Neither interface is there.
    #[error(
        "attester = \"{asked}\" found no TEE on this machine.\n  looked for SEV-SNP and TDX: {tsm}\n  looked for an Azure \
         vTPM: {vtpm}\nIn a confidential VM: mount configfs (`mount -t configfs none /sys/kernel/config`), load the module \
         `sev-guest` or `tdx-guest` (Linux 6.7 or newer), let this user write there and to the TPM, or name the places in \
         [attestation]. On a machine for development only: attester = \"insecure-simulated\", which proves nothing"
    )]
    NoPlatform {
        /// As configured.
        asked: &'static str,
        /// What was seen at the place of configfs-tsm.
        tsm: String,
        /// What was seen at the place of the TPM.
        vtpm: String,
    },
    /// Another platform than the one named.
    #[error("attester = \"{asked}\", and {found}: name what is there, or \"auto\"")]
    OtherPlatform {
        /// As configured.
        asked: &'static str,
        /// What there is.
        found: String,
    },
    /// A file of the kernel's interface.
    #[error("{path}: {source}")]
    Interface {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else writes to our entry.
    #[error(
        "{path}: {found} writes to it where {wanted} were made, {attempts} times over: another process interferes"
    )]
    Race {
        /// The entry.
        path: PathBuf,
        /// By the kernel's count.
        found: u64,
        /// By ours.
        wanted: u64,
        /// How often it was tried.
        attempts: u32,
    },
    /// A provider of reports that this version does not know.
    #[error("{path} is {found:?}: this version knows `sev_guest` and `tdx_guest`")]
    Provider {
        /// The attribute.
        path: PathBuf,
        /// Its value.
        found: String,
    },
    /// Not in the format that the interface documents.
    #[error("{what}: {why}")]
    Format {
        /// What was read.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The directory of endorsements.
    #[error(transparent)]
    Endorsements(#[from] EndorsementError),
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] TpmError),
}

impl From<AttesterError> for AttestError {
    fn from(error: AttesterError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// Whether this attester's evidence can be forged by anyone.
pub(crate) fn is_simulated(attester: &dyn Attester) -> bool {
    attester.media_type() == insecure_simulated::MEDIA_TYPE
}

/// The platform that the configuration names; with `auto`, the one that is there.
pub(crate) fn open(
    kind: AttesterKind,
    places: &AttestationConfig,
) -> Result<Box<dyn Attester>, AttesterError> {
    open_with(kind, places, configfs_tsm::Configfs, &|path| tpm::open(path))
}

fn open_with<K: Kernel + 'static>(
    kind: AttesterKind,
    places: &AttestationConfig,
    kernel: K,
    tpm: &dyn Fn(&Path) -> Result<tpm::Tpm, TpmError>,
) -> Result<Box<dyn Attester>, AttesterError> {
    let endorsements = Endorsements::at(places.endorsements.as_deref())?;
    let tsm = |endorsements| ConfigfsTsm::open(kernel, &places.tsm, &places.event_log, endorsements);
    let vtpm = |endorsements| Vtpm::open(tpm(&places.tpm)?, endorsements);
    match kind {
        AttesterKind::InsecureSimulated => Ok(Box::new(InsecureSimulatedAttester::new())),
        AttesterKind::Snp => Ok(Box::new(tsm(endorsements)?.demand(Provider::SevGuest, "snp")?)),
        AttesterKind::Tdx => Ok(Box::new(tsm(endorsements)?.demand(Provider::TdxGuest, "tdx")?)),
        AttesterKind::Azure => Ok(Box::new(vtpm(endorsements)?)),
        AttesterKind::Auto => match tsm(endorsements.clone()) {
            Ok(found) => Ok(Box::new(found)),
            Err(no_tsm) => match vtpm(endorsements) {
                Ok(found) => Ok(Box::new(found)),
                Err(no_vtpm) => Err(AttesterError::NoPlatform {
                    asked: "auto",
                    tsm: no_tsm.to_string(),
                    vtpm: no_vtpm.to_string(),
                }),
            },
        },
    }
}

/// An envelope as evidence, if a relying party would read it.
fn evidence(media_type: &str, envelope: &Envelope) -> Result<Evidence, AttesterError> {
    let too_much = |why: String| AttesterError::Format {
        what: "evidence with its endorsements".into(),
        why: format!("{why}; leave out of attestation.endorsements what this machine does not need"),
    };
    let items = envelope.evidence.len() + envelope.endorsements.len();
    if items > MAX_ITEMS {
        return Err(too_much(format!(
            "{items} items, relying parties read {MAX_ITEMS}"
        )));
    }
    let bytes = envelope.to_bytes();
    if bytes.len() > MAX_EVIDENCE_BYTES {
        let found = bytes.len();
        return Err(too_much(format!(
            "{found} bytes, relying parties read {MAX_EVIDENCE_BYTES}"
        )));
    }
    Ok(Evidence {
        media_type: media_type.to_owned(),
        bytes,
    })
}

#[cfg(test)]
mod tests;
