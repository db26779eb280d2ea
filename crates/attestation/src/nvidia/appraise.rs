//! What a relying party demands of GPUs.

use super::{Digest, Mode, Report, written};
use crate::appraise::Check;
use crate::policy::ReferenceValues;
use crate::result::{AppraisalError, Rule};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// What every GPU of a server must be. [`Default`] demands reference values and has none: it refuses every GPU, and no
/// server without one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Policy {
    /// Fewest GPUs with evidence. None by default: a server that computes on a GPU without evidence says so in its
    /// runtime claims (`insecure-unattested-gpu`), which is refused by default; one without GPUs is none the worse.
    pub minimum_count: usize,
    /// Driver, VBIOS and measurements that go together. Missing by default (rule A5): a GPU of unknown firmware may be
    /// debuggable, and nothing but its measurements says so.
    #[serde(deserialize_with = "written::releases")]
    pub firmware: ReferenceValues<Firmware>,
    /// Modes accepted. [`Mode::Confidential`] by default: under protected PCIe data crosses NVLink in the clear, and who
    /// does not state it may be in that mode.
    pub modes: Vec<Mode>,
    /// If present, the only GPUs accepted, by the serial number of their device certificate: the answer to a GPU that
    /// was relayed from an attacker's own machine, and to one whose revocation nobody looked up. Absent by default: it
    /// is the operator's to say which GPUs there are.
    pub device_serials: Option<Vec<String>>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            minimum_count: 0,
            firmware: ReferenceValues::Missing,
            modes: vec![Mode::Confidential],
            device_serials: None,
        }
    }
}

/// Reference values of one release of a GPU's firmware, from NVIDIA's reference integrity manifests (RIM) of that driver
/// and that VBIOS.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Firmware {
    /// As reported: `590.12`.
    pub driver_version: String,
    /// As the driver shows it, in any case of letters: `96.00.A5.00.01`.
    pub vbios_version: String,
    /// Digests by index. A GPU must report every index that is here; an index that is not must be reported as zeros
    /// (not in use) or not at all: what nobody has a value for is refused.
    #[serde(deserialize_with = "written::measurements")]
    pub measurements: BTreeMap<u8, ReferenceValues<Digest>>,
}

/// One index that does not meet its reference: found and wanted.
type Mismatch = (String, String);

impl Firmware {
    fn is_of(&self, report: &Report) -> bool {
        self.driver_version == report.driver_version
            && self.vbios_version.eq_ignore_ascii_case(&report.vbios_version)
    }

    fn mismatches(&self, found: &BTreeMap<u8, Digest>) -> Vec<Mismatch> {
        let indices: BTreeSet<&u8> = self.measurements.keys().chain(found.keys()).collect();
        let differing = indices.into_iter().filter_map(|index| {
            let wanted = self.measurements.get(index);
            let shown = |found: Option<&Digest>| match found {
                Some(digest) => format!("measurement {index} {}", hex::encode(digest)),
                None => format!("no measurement {index}"),
            };
            let found = found.get(index);
            match (found, wanted) {
                (Some(_), Some(ReferenceValues::AcceptAny)) => None,
                (Some(digest), Some(ReferenceValues::AnyOf(accepted))) if accepted.contains(digest) => None,
                (Some(digest), None) if digest == &[0; 48] => None,
                (_, Some(ReferenceValues::AnyOf(accepted))) => {
                    let accepted: Vec<_> = accepted.iter().map(hex::encode).collect();
                    Some((shown(found), format!("one of [{}]", accepted.join(", "))))
                }
                (None, Some(ReferenceValues::AcceptAny)) => Some((shown(found), "any value".to_owned())),
                (_, None | Some(ReferenceValues::Missing)) => {
                    let wanted = "a reference value, and the policy has none (rule A5)".to_owned();
                    Some((shown(found), wanted))
                }
            }
        });
        differing.collect()
    }

    fn leaves_unchecked(&self) -> bool {
        self.measurements
            .values()
            .any(|values| *values == ReferenceValues::AcceptAny)
    }
}

/// GPUs that were verified, against a policy, by themselves: for evidence without a CPU's, from a file. Rules for which
/// any value was accepted.
///
/// # Errors
/// [`AppraisalError`] with every rule that was not met, the value found and the value wanted.
pub fn appraise_alone(gpus: &[Report], policy: &Policy) -> Result<Vec<Rule>, AppraisalError> {
    let mut check = Check::default();
    appraise(gpus, policy, &mut check);
    check.finish()
}

pub(crate) fn appraise(gpus: &[Report], policy: &Policy, check: &mut Check) {
    check.demand(
        Rule::Gpu,
        gpus.len() >= policy.minimum_count,
        || format!("evidence of {} GPUs", gpus.len()),
        || format!("evidence of {} GPUs or more", policy.minimum_count),
    );
    for gpu in gpus {
        check.demand(
            Rule::Debug,
            !gpu.is_flagged,
            || format!("GPU {} flagged by its boot ROM", gpu.device_serial),
            || "firmware that is secure and in no recovery or debug mode".to_owned(),
        );
        check.demand(
            Rule::GpuMode,
            policy.modes.contains(&gpu.mode),
            || gpu.mode.to_string(),
            || {
                let modes: Vec<_> = policy.modes.iter().map(Mode::to_string).collect();
                format!("one of [{}]", modes.join(", "))
            },
        );
        if let Some(devices) = &policy.device_serials {
            check.demand(
                Rule::GpuDevice,
                devices.contains(&gpu.device_serial),
                || gpu.device_serial.clone(),
                || format!("one of {} pinned GPUs", devices.len()),
            );
        }
        firmware(gpu, &policy.firmware, check);
    }
}

fn firmware(gpu: &Report, values: &ReferenceValues<Firmware>, check: &mut Check) {
    let found = || format!("driver {}, VBIOS {}", gpu.driver_version, gpu.vbios_version);
    let accepted = match values {
        ReferenceValues::AcceptAny => {
            check.accept_unchecked(Rule::GpuFirmware);
            return;
        }
        ReferenceValues::Missing => {
            let wanted = || "a reference value, and the policy has none (rule A5)".to_owned();
            check.demand(Rule::GpuFirmware, false, found, wanted);
            return;
        }
        ReferenceValues::AnyOf(accepted) => accepted,
    };
    let releases: Vec<&Firmware> = accepted.iter().filter(|firmware| firmware.is_of(gpu)).collect();
    let mismatches = |firmware: &&&Firmware| firmware.mismatches(&gpu.measurements);
    // The first that fits counts; if none does, the first that is of these versions says why.
    match releases.iter().find(|firmware| mismatches(firmware).is_empty()) {
        Some(firmware) if firmware.leaves_unchecked() => check.accept_unchecked(Rule::GpuMeasurement),
        Some(_) => {}
        None => match releases.first() {
            Some(firmware) => {
                for (found, wanted) in firmware.mismatches(&gpu.measurements) {
                    check.demand(Rule::GpuMeasurement, false, || found, || wanted);
                }
            }
            None => {
                let releases: Vec<_> = accepted
                    .iter()
                    .map(|release| {
                        format!(
                            "driver {}, VBIOS {}",
                            release.driver_version, release.vbios_version
                        )
                    })
                    .collect();
                let wanted = || format!("one of [{}]", releases.join("; "));
                check.demand(Rule::GpuFirmware, false, found, wanted);
            }
        },
    }
}
