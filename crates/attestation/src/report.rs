//! What authentic evidence says: the words common to all platforms, and each platform's own.

use crate::{azure, insecure_simulated, nvidia, tdx};
use serde::Serialize;
use std::fmt;

/// What authentic evidence says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// What the guest asked the platform to sign.
    #[serde(serialize_with = "crate::claims::as_hex")]
    pub report_data: [u8; 64],
    /// The platform's own words.
    #[serde(flatten)]
    pub platform: Platform,
    /// GPUs that signed for the same report data. See [`nvidia`] for what that does not prove.
    pub gpus: Vec<nvidia::Report>,
}

/// A platform's own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Platform {
    /// An Azure confidential VM.
    Azure(Box<azure::Report>),
    /// The development attester: forgeable by anyone.
    InsecureSimulated(insecure_simulated::Report),
    /// Intel TDX.
    Tdx(Box<tdx::Report>),
}

impl Report {
    /// Which kind of platform speaks.
    pub fn kind(&self) -> Kind {
        match self.platform {
            Platform::Azure(_) => Kind::Azure,
            Platform::InsecureSimulated(_) => Kind::InsecureSimulated,
            Platform::Tdx(_) => Kind::Tdx,
        }
    }
}

impl Platform {
    /// What people are shown, by name.
    pub(crate) fn rows(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Azure(report) => azure::rows(report),
            Self::InsecureSimulated(report) => vec![("measurement", hex::encode(report.measurement))],
            Self::Tdx(report) => report.rows(),
        }
    }
}

/// Kinds of platforms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// An Azure confidential VM: SEV-SNP or TDX underneath, quotes of a vTPM.
    Azure,
    /// The development attester: forgeable by anyone.
    InsecureSimulated,
    /// Intel TDX.
    Tdx,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Azure => "azure",
            Self::InsecureSimulated => "insecure-simulated",
            Self::Tdx => "tdx",
        })
    }
}
