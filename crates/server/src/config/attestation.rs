//! `attester` and `[attestation]`: who vouches for this server, and where they are asked.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// Kinds of attesters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttesterKind {
    /// The platform that is there: SEV-SNP or TDX by configfs-tsm, else the vTPM of Azure, else an error.
    Auto,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// A confidential VM of Azure, SEV-SNP or TDX underneath.
    Azure,
    /// Proves nothing; for development. Clients refuse it unless they name it.
    InsecureSimulated,
}

/// No attester of this name.
#[derive(Debug, thiserror::Error)]
#[error("there is no attester `{0}`: it is one of auto, snp, tdx, azure, insecure-simulated")]
pub struct UnknownAttester(String);

impl FromStr for AttesterKind {
    type Err = UnknownAttester;

    fn from_str(name: &str) -> Result<Self, UnknownAttester> {
        match name {
            "auto" => Ok(Self::Auto),
            "snp" => Ok(Self::Snp),
            "tdx" => Ok(Self::Tdx),
            "azure" => Ok(Self::Azure),
            "insecure-simulated" => Ok(Self::InsecureSimulated),
            other => Err(UnknownAttester(other.to_owned())),
        }
    }
}

/// Where the platform is asked. None of it is trusted: evidence and endorsements authenticate themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttestationConfig {
    /// A directory whose certificates, revocation lists and collateral are stapled to evidence; read anew each time.
    pub endorsements: Option<PathBuf>,
    /// Where configfs-tsm makes reports.
    pub tsm: PathBuf,
    /// The TPM: a device, or a Unix socket that speaks the same.
    pub tpm: PathBuf,
    /// The firmware's log of a TD, stapled where it is.
    pub event_log: PathBuf,
}

impl Default for AttestationConfig {
    fn default() -> Self {
        Self {
            endorsements: None,
            tsm: "/sys/kernel/config/tsm/report".into(),
            tpm: "/dev/tpmrm0".into(),
            event_log: "/sys/firmware/acpi/tables/data/CCEL".into(),
        }
    }
}
