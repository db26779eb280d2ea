//! Runtime data: what the paravisor has to say of the VM, in JSON, under the report of the TEE.
//!
//! `keys` are the keys of the vTPM that the paravisor runs, as JWKs; `vm-configuration` is how the host asked for the
//! VM to be run, as the paravisor enforces it; `user-data` are 64 bytes that the guest left in an NV index.

use crate::tpm::{MAX_RSA, PublicKey};
use crate::verify::VerifyError;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Configuration of the VM, in the paravisor's words (OpenHCL, `AttestationVmConfig`). What it leaves out is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct VmConfiguration {
    /// Azure's id of the VM.
    #[serde(rename = "vmUniqueId")]
    pub vm_unique_id: String,
    /// Whether UEFI secure boot is enabled.
    pub secure_boot: Option<bool>,
    /// Whether the vTPM is enabled.
    pub tpm_enabled: Option<bool>,
    /// Whether the VM has a serial console, which is the host's.
    pub console_enabled: Option<bool>,
    /// Whether the host can type at it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interactive_console_enabled: Option<bool>,
    /// Whether the host has an IPMI device in the VM: another console.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipmi_enabled: Option<bool>,
    /// All else, as it stands there.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// What is read of runtime data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Runtime {
    /// The key whose quotes are the vTPM's.
    pub(super) attestation_key: PublicKey,
    /// SHA-256 of its modulus.
    pub(super) modulus: Vec<u8>,
    pub(super) vm: VmConfiguration,
    pub(super) user_data: Vec<u8>,
}

impl Runtime {
    pub(super) fn parse(json: &[u8]) -> Result<Self, VerifyError> {
        let members: Members = serde_json::from_slice(json).map_err(|error| malformed(error.to_string()))?;
        let mut keys = members.keys.iter().filter(|key| key.kid == ATTESTATION_KEY);
        let (Some(key), None) = (keys.next(), keys.next()) else {
            return Err(malformed(format!("not one key named {ATTESTATION_KEY}")));
        };
        let modulus = key.modulus()?;
        let user_data =
            hex::decode(&members.user_data).map_err(|error| malformed(format!("user-data: {error}")))?;
        Ok(Self {
            attestation_key: PublicKey::Rsa {
                n: modulus.clone(),
                e: EXPONENT.to_vec(),
            },
            modulus,
            vm: members.vm_configuration,
            user_data,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Members {
    keys: Vec<Jwk>,
    vm_configuration: VmConfiguration,
    #[serde(default)]
    user_data: String,
}

/// RFC 7517, an RSA key.
#[derive(Deserialize)]
struct Jwk {
    kid: String,
    kty: String,
    key_ops: Vec<String>,
    e: String,
    n: String,
}

impl Jwk {
    fn modulus(&self) -> Result<Vec<u8>, VerifyError> {
        let decode = |name: &str, text: &str| {
            URL_SAFE_NO_PAD
                .decode(text)
                .map_err(|error| malformed(format!("`{name}` of {ATTESTATION_KEY}: {error}")))
        };
        if self.kty != "RSA" || self.key_ops != ["sign"] || decode("e", &self.e)? != EXPONENT {
            return Err(malformed(format!(
                "{ATTESTATION_KEY} is no RSA key for signing with exponent 65537"
            )));
        }
        let modulus = decode("n", &self.n)?;
        if modulus.len() > MAX_RSA {
            return Err(malformed(format!(
                "{ATTESTATION_KEY} has {} bytes",
                modulus.len()
            )));
        }
        Ok(modulus)
    }
}

fn malformed(why: impl AsRef<str>) -> VerifyError {
    VerifyError::Malformed(format!("the runtime data of the paravisor: {}", why.as_ref()))
}

/// The vTPM's restricted signing key.
const ATTESTATION_KEY: &str = "HCLAkPub";
/// 65537.
const EXPONENT: [u8; 3] = [1, 0, 1];
