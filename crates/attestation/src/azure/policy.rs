//! What a relying party demands of an Azure VM, beyond what it demands of the TEE underneath.

use super::{Report, Tee, VmConfiguration, said};
use crate::appraise::Check;
use crate::policy::{AppraisalPolicy, ReferenceValues};
use crate::result::Rule;
use crate::tdx;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use std::collections::{BTreeMap, BTreeSet};

/// PCRs that must have a reference value, or be accepted unseen by name: with these, and with secure boot, all code
/// that ran before the server is known.
///
/// 0 firmware; 2 drivers and option ROMs; 4 boot loaders, or the unified kernel image; 7 secure boot (state, keys, and
/// which of them let a binary pass); 8 and 9 what GRUB read and ran, or initrds and command line the kernel's EFI stub
/// was given; 11 the sections of a unified kernel image; 12 and 13 command line and extension images given from
/// outside of it; 14 the shim's own keys. PCRs that a boot leaves alone are zero, which is a reference value as any.
/// Not among them: 1, 3, 5, 10 and 15 hold settings, disks and measurements of the running system, which differ from
/// VM to VM; 6, and 16 to 23, are nobody's or the system's own.
pub const DEMANDED_PCRS: [u8; 10] = [0, 2, 4, 7, 8, 9, 11, 12, 13, 14];

/// The part of an [`AppraisalPolicy`] that speaks of Azure VMs. The launch measurement, TCB floors and all else that
/// holds of the TEE are in its other parts; they are about the paravisor, the PCRs about what it booted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Policy {
    /// Reference values of PCRs (SHA-256 bank), by index. [`DEMANDED_PCRS`] that are not here are refused (rule A5).
    #[serde(deserialize_with = "pcrs_in_text")]
    pub pcrs: BTreeMap<u8, ReferenceValues<[u8; 32]>>,
    /// Whether UEFI secure boot must be on. Default: yes. PCRs 4 and 7 say what was booted; secure boot also keeps
    /// unsigned code out that a boot loader of these values would load and measure elsewhere.
    pub require_secure_boot: bool,
    /// Whether a serial console (or IPMI) is accepted. Default: no. It is the host's: whoever runs the host reads it and
    /// types at it. Azure gives one to most VMs: allow it if the image, which the PCRs pin, has neither a login nor a
    /// boot menu there and writes nothing of data to it.
    pub allow_console: bool,
    /// Accepted versions of the vTPM's firmware. Default: any; the vTPM is the paravisor, which the launch measurement
    /// covers.
    pub tpm_firmware_versions: Option<Vec<u64>>,
    /// Accepted ids of VMs (`vmUniqueId`). Default: any; the host chooses them.
    pub vm_ids: Option<Vec<String>>,
    /// Members of `vm-configuration` that are accepted although this version does not know them. Default: none; a
    /// later paravisor may say in a new one what an older one would not do.
    pub accepted_vm_configuration: BTreeSet<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            pcrs: BTreeMap::new(),
            require_secure_boot: true,
            allow_console: false,
            tpm_firmware_versions: None,
            vm_ids: None,
            accepted_vm_configuration: BTreeSet::new(),
        }
    }
}

pub(crate) fn appraise(report: &Report, policy: &AppraisalPolicy, check: &mut Check) {
    match &report.paravisor.tee {
        Tee::Tdx(tee) => tdx::appraise(tee, policy, check),
    }
    let policy = &policy.azure;
    // Shorter data are padded with zeros where they are compared: they are not the data, whatever they are.
    check.demand(
        Rule::Binding,
        report.qualifying_data.len() == 64,
        || {
            format!(
                "a quote of {} bytes of qualifying data",
                report.qualifying_data.len()
            )
        },
        || "64 bytes, the report data of this session".to_owned(),
    );
    vm_configuration(&report.paravisor.vm, policy, check);
    pcrs(report, policy, check);
    if let Some(versions) = &policy.tpm_firmware_versions {
        check.demand(
            Rule::TpmFirmware,
            versions.contains(&report.tpm_firmware_version),
            || format!("{:#018x}", report.tpm_firmware_version),
            || format!("one of {versions:#018x?}"),
        );
    }
}

fn vm_configuration(vm: &VmConfiguration, policy: &Policy, check: &mut Check) {
    check.demand(
        Rule::SecureBoot,
        vm.secure_boot == Some(true) || !policy.require_secure_boot,
        || said(vm.secure_boot).to_owned(),
        || "enabled".to_owned(),
    );
    let is_closed = vm.console_enabled == Some(false) && vm.ipmi_enabled != Some(true);
    check.demand(
        Rule::Console,
        is_closed || policy.allow_console,
        || {
            format!(
                "serial console {}, IPMI {}",
                said(vm.console_enabled),
                said(vm.ipmi_enabled)
            )
        },
        || "disabled (or allow_console, if the image has no login on it)".to_owned(),
    );
    check.demand(
        Rule::VmConfiguration,
        vm.tpm_enabled == Some(true),
        || format!("vTPM {}", said(vm.tpm_enabled)),
        || "enabled".to_owned(),
    );
    for name in vm.other.keys() {
        let is_known = KNOWN.contains(&name.as_str()) || policy.accepted_vm_configuration.contains(name);
        check.demand(
            Rule::VmConfiguration,
            is_known,
            || format!("{name:?}, which this version does not know"),
            || "nothing unknown (or its name in accepted_vm_configuration)".to_owned(),
        );
    }
    if let Some(ids) = &policy.vm_ids {
        check.demand(
            Rule::VmId,
            ids.iter().any(|id| id.eq_ignore_ascii_case(&vm.vm_unique_id)),
            || vm.vm_unique_id.clone(),
            || format!("one of [{}]", ids.join(", ")),
        );
    }
}

fn pcrs(report: &Report, policy: &Policy, check: &mut Check) {
    let indices: BTreeSet<u8> = DEMANDED_PCRS
        .into_iter()
        .chain(policy.pcrs.keys().copied())
        .collect();
    for index in indices {
        let values = policy.pcrs.get(&index).unwrap_or(&ReferenceValues::Missing);
        match report.pcrs.get(&index) {
            Some(value) => check.pcr(index, value, values),
            // Not a value to accept unseen: nobody knows it.
            None => check.demand(
                Rule::Pcr,
                false,
                || format!("PCR {index} is not quoted"),
                || "a quote of it".to_owned(),
            ),
        }
    }
}

impl Check {
    fn pcr(&mut self, index: u8, found: &[u8; 32], values: &ReferenceValues<[u8; 32]>) {
        let show = |value: &[u8; 32]| format!("PCR {index} = {}", hex::encode(value));
        match values {
            ReferenceValues::AcceptAny => self.accept_unchecked(Rule::Pcr),
            ReferenceValues::Missing => {
                let wanted =
                    || format!("a reference value of PCR {index}, and the policy has none (rule A5)");
                self.demand(Rule::Pcr, false, || show(found), wanted);
            }
            ReferenceValues::AnyOf(accepted) => {
                let wanted = || {
                    format!(
                        "one of [{}]",
                        accepted.iter().map(hex::encode).collect::<Vec<_>>().join(", ")
                    )
                };
                self.demand(Rule::Pcr, accepted.contains(found), || show(found), wanted);
            }
        }
    }
}

/// By index, in decimal: a list of values in hexadecimal, or `"any"`.
fn pcrs_in_text<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<u8, ReferenceValues<[u8; 32]>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Any(String),
        List(Vec<String>),
    }
    let value = |text: String| {
        let mut value = [0; 32];
        hex::decode_to_slice(&text, &mut value)
            .map_err(|error| D::Error::custom(format!("{text:?} is not 32 bytes in hexadecimal: {error}")))?;
        Ok(value)
    };
    let read = |(index, written): (String, Written)| {
        let number: u8 = index
            .parse()
            .map_err(|_| D::Error::custom(format!("{index:?} is no index of a PCR")))?;
        let values = match written {
            Written::Any(word) if word == "any" => ReferenceValues::AcceptAny,
            Written::Any(word) => {
                return Err(D::Error::custom(format!(
                    "{word:?} is neither \"any\" nor a list"
                )));
            }
            Written::List(texts) => {
                ReferenceValues::AnyOf(texts.into_iter().map(value).collect::<Result<_, _>>()?)
            }
        };
        Ok((number, values))
    };
    BTreeMap::<String, Written>::deserialize(deserializer)?
        .into_iter()
        .map(read)
        .collect()
}

/// Members of `vm-configuration` that open nothing to the host: shown, not appraised.
///
/// `filtered-vpci-devices-allowed` lets the host attach devices; to the guest a device is the host's word in any case,
/// a GPU shows evidence of its own.
const KNOWN: [&str; 8] = [
    "current-time",
    "filtered-vpci-devices-allowed",
    "hardware-sealing-policy",
    "key-release-context-hash",
    "root-cert-thumbprint",
    "tpm-persisted",
    "tpm-version",
    "vmgs-provisioner",
];
