//! The reference values of a release, as they are written down: in JSON by `bastionai measure`, in a release manifest, and
//! as the lines of an appraisal policy.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// N bytes, written as 2 N lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hex<const N: usize>(pub [u8; N]);

/// A text that is not 2 N lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} does not have {digits} lower-case hexadecimal digits")]
pub struct HexError {
    text: String,
    digits: usize,
}

impl<const N: usize> FromStr for Hex<N> {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        let mut bytes = [0; N];
        // One spelling per value: manifests are compared byte by byte.
        let is_lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) if is_lower => Ok(Self(bytes)),
            _ => Err(HexError {
                text: text.chars().take(2 * N + 1).collect(),
                digits: 2 * N,
            }),
        }
    }
}

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The launch digest of one shape of SEV-SNP guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnpReference {
    /// Processor model, as QEMU names it: with it, the product.
    pub vcpu_type: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// SEV_FEATURES of the register pages.
    pub guest_features: u64,
    /// The launch digest.
    pub measurement: Hex<48>,
}

/// The registers of one shape of TDX guest; an absent one is not of the release, but of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdxReference {
    /// The measurement of the firmware.
    pub mrtd: Hex<48>,
    /// Firmware configuration and machine; from a reference boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtmr0: Option<Hex<48>>,
    /// The kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtmr1: Option<Hex<48>>,
    /// Command line and initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtmr2: Option<Hex<48>>,
    /// What programs extend; zero where none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtmr3: Option<Hex<48>>,
}

/// The PCRs of one shape of guest with a vTPM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PcrReference {
    /// SHA-256 values by the index of the register.
    pub pcrs: BTreeMap<u8, Hex<32>>,
}

/// Reference values by platform, and the digests of what runs on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReferenceSet {
    /// SEV-SNP guests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub snp: Vec<SnpReference>,
    /// TDX guests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tdx: Vec<TdxReference>,
    /// Guests with a vTPM.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vtpm: Vec<PcrReference>,
    /// SHA-256 of trainer programs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trainer_digests: Vec<Hex<32>>,
    /// SHA-256 over libtorch libraries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub libtorch_digests: Vec<Hex<32>>,
    /// SHA-256 of effective configurations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub configuration_digests: Vec<Hex<32>>,
}

impl ReferenceSet {
    /// Both sets; values that stand in both stand once.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        add(&mut self.snp, other.snp);
        add(&mut self.tdx, other.tdx);
        add(&mut self.vtpm, other.vtpm);
        add(&mut self.trainer_digests, other.trainer_digests);
        add(&mut self.libtorch_digests, other.libtorch_digests);
        add(&mut self.configuration_digests, other.configuration_digests);
        self
    }

    /// All launch digests and MRTDs, each once.
    pub fn measurements(&self) -> Vec<[u8; 48]> {
        let snp = self.snp.iter().map(|reference| reference.measurement.0);
        let tdx = self.tdx.iter().map(|reference| reference.mrtd.0);
        once(snp.chain(tdx))
    }

    /// All values of RTMR 0 to 3, each once; empty for another index.
    pub fn rtmr(&self, index: usize) -> Vec<[u8; 48]> {
        let register = |reference: &TdxReference| match index {
            0 => reference.rtmr0,
            1 => reference.rtmr1,
            2 => reference.rtmr2,
            3 => reference.rtmr3,
            _ => None,
        };
        once(self.tdx.iter().filter_map(register).map(|register| register.0))
    }

    /// All values of a PCR, each once.
    pub fn pcr(&self, index: u8) -> Vec<[u8; 32]> {
        let register = |reference: &PcrReference| reference.pcrs.get(&index).copied();
        once(self.vtpm.iter().filter_map(register).map(|register| register.0))
    }

    /// Whether there is no value at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn add<T: PartialEq>(all: &mut Vec<T>, more: Vec<T>) {
    for value in more {
        if !all.contains(&value) {
            all.push(value);
        }
    }
}

fn once<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut all = Vec::new();
    add(&mut all, values.collect());
    all
}
