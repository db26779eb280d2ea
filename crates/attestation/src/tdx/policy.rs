//! What a relying party demands of a TD and its platform.

use super::report::{Report, TcbStatus};
use crate::appraise::Check;
use crate::policy::{AppraisalPolicy, ReferenceValues};
use crate::result::Rule;
use serde::Deserialize;
use serde::de::{Deserializer, Error};

/// What a relying party demands of a TD and its platform, besides MRTD (`AppraisalPolicy::measurements`) and PPID
/// (`AppraisalPolicy::chip_ids`). Each default says why it is what it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Policy {
    /// RTMR0: firmware configuration (TD HOB, ACPI tables, Secure Boot variables). Missing: it decides what the
    /// firmware that MRTD measures does, so not comparing it is a choice to make by name.
    #[serde(deserialize_with = "digests")]
    pub rtmr0: ReferenceValues<[u8; 48]>,
    /// RTMR1: boot loader and kernel. Missing: without it any kernel may run on the firmware measured.
    #[serde(deserialize_with = "digests")]
    pub rtmr1: ReferenceValues<[u8; 48]>,
    /// RTMR2: kernel command line and initrd. Missing: they hold the server's image.
    #[serde(deserialize_with = "digests")]
    pub rtmr2: ReferenceValues<[u8; 48]>,
    /// RTMR3: what applications extend; 48 zeros if none does. Missing, for a release says which it is.
    #[serde(deserialize_with = "digests")]
    pub rtmr3: ReferenceValues<[u8; 48]>,
    /// Advisories (`INTEL-SA-…`) answered by this relying party: `SWHardeningNeeded`, `ConfigurationNeeded` and
    /// `ConfigurationAndSWHardeningNeeded` pass if each advisory named is here and at least one is. None: only
    /// somebody who has read an advisory can say that the software in the TD answers it.
    pub accepted_advisories: Vec<String>,
    /// Accept `OutOfDate`, `OutOfDateConfigurationNeeded` and the statuses that advise a relaunch. False: published
    /// vulnerabilities of the platform are open. The result then says that the status went unchecked. A platform
    /// below every level that Intel lists is refused all the same.
    pub allow_out_of_date: bool,
    /// Lowest TEE_TCB_SVN, each byte for itself. None: Intel's verdict covers it; for those who want more.
    #[serde(deserialize_with = "optional_svn")]
    pub minimum_tee_tcb_svn: Option<[u8; 16]>,
    /// Lowest number of Intel's TCB recovery that the collateral must know of. None: the age below bounds it.
    pub minimum_tcb_evaluation_data_number: Option<u32>,
    /// Oldest collateral, in days. 30: Intel makes it new each day, and says itself that it is good for 30; whoever
    /// holds back a newer one hides a revocation for that long.
    pub maximum_collateral_age_days: u32,
    /// Accept TDATTRIBUTES.PERFMON. False: the server has no use for performance counters, which measure the
    /// training with a cycle's precision.
    pub allow_perfmon: bool,
    /// Accept TDATTRIBUTES.KL. False: Key Locker's wrapping key is not the TD's alone, and nothing here uses it.
    pub allow_key_locker: bool,
    /// Demand that the platform runs one thread a core. False: the TDX module never runs two TDs on the threads of
    /// one core at a time only where the host so schedules, yet nearly all clouds leave SMT on.
    pub smt_off: bool,
    /// If present, the TDX modules accepted (MRSEAM). None: Intel's signature and verdict cover the module.
    #[serde(deserialize_with = "optional_digests")]
    pub mr_seam: Option<Vec<[u8; 48]>>,
    /// Signers of TDX modules (MRSIGNERSEAM). Zero alone, which is Intel.
    #[serde(deserialize_with = "digest_list")]
    pub mr_signer_seam: Vec<[u8; 48]>,
    /// If present, the MRCONFIGIDs accepted. None: the host chooses it and the server does not read it.
    #[serde(deserialize_with = "optional_digests")]
    pub mr_config_id: Option<Vec<[u8; 48]>>,
    /// If present, the MROWNERs accepted. None: as above.
    #[serde(deserialize_with = "optional_digests")]
    pub mr_owner: Option<Vec<[u8; 48]>>,
    /// If present, the MROWNERCONFIGs accepted. None: as above.
    #[serde(deserialize_with = "optional_digests")]
    pub mr_owner_config: Option<Vec<[u8; 48]>>,
    /// Service TDs accepted (MRSERVICETD), besides none bound. Empty: a service TD may move the TD's memory.
    #[serde(deserialize_with = "digest_list")]
    pub mr_service_td: Vec<[u8; 48]>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            rtmr0: ReferenceValues::Missing,
            rtmr1: ReferenceValues::Missing,
            rtmr2: ReferenceValues::Missing,
            rtmr3: ReferenceValues::Missing,
            accepted_advisories: Vec::new(),
            allow_out_of_date: false,
            minimum_tee_tcb_svn: None,
            minimum_tcb_evaluation_data_number: None,
            maximum_collateral_age_days: 30,
            allow_perfmon: false,
            allow_key_locker: false,
            smt_off: false,
            mr_seam: None,
            mr_signer_seam: vec![[0; 48]],
            mr_config_id: None,
            mr_owner: None,
            mr_owner_config: None,
            mr_service_td: Vec::new(),
        }
    }
}

pub(crate) fn appraise(report: &Report, policy: &AppraisalPolicy, check: &mut Check) {
    let tdx = &policy.tdx;
    check.debug_off(report.debug);
    check.launch(policy, &report.mr_td, &report.ppid);
    let registers = [
        (Rule::TdxRtmr0, &tdx.rtmr0),
        (Rule::TdxRtmr1, &tdx.rtmr1),
        (Rule::TdxRtmr2, &tdx.rtmr2),
        (Rule::TdxRtmr3, &tdx.rtmr3),
    ];
    for ((rule, accepted), found) in registers.into_iter().zip(&report.rtmrs) {
        check.reference(rule, found, accepted, hex::encode);
    }
    tcb(report, tdx, check);
    attributes(report, tdx, check);
    let chosen = [
        (Rule::TdxModule, "MRSEAM", &report.mr_seam, tdx.mr_seam.as_ref()),
        (
            Rule::TdxModule,
            "MRSIGNERSEAM",
            &report.mr_signer_seam,
            Some(&tdx.mr_signer_seam),
        ),
        (
            Rule::TdxOwner,
            "MRCONFIGID",
            &report.mr_config_id,
            tdx.mr_config_id.as_ref(),
        ),
        (Rule::TdxOwner, "MROWNER", &report.mr_owner, tdx.mr_owner.as_ref()),
        (
            Rule::TdxOwner,
            "MROWNERCONFIG",
            &report.mr_owner_config,
            tdx.mr_owner_config.as_ref(),
        ),
    ];
    for (rule, name, found, accepted) in chosen {
        check.demand(
            rule,
            accepted.is_none_or(|accepted| accepted.contains(found)),
            || format!("{name} {}", hex::encode(found)),
            || format!("one of [{}]", list(accepted.into_iter().flatten())),
        );
    }
    let service = report.mr_service_td.unwrap_or([0; 48]);
    check.demand(
        Rule::TdxServiceTd,
        service == [0; 48] || tdx.mr_service_td.contains(&service),
        || format!("a TD bound to service TDs with hash {}", hex::encode(service)),
        || format!("none bound, or one of [{}]", list(&tdx.mr_service_td)),
    );
}

fn tcb(report: &Report, tdx: &Policy, check: &mut Check) {
    use TcbStatus as Status;
    let found = || match report.advisories.is_empty() {
        _ if !report.tcb_listed => format!("{}, below every level that Intel lists", report.tcb_status),
        true => report.tcb_status.to_string(),
        false => format!("{} with {}", report.tcb_status, report.advisories.join(", ")),
    };
    match report.tcb_status {
        Status::UpToDate => {}
        Status::SWHardeningNeeded
        | Status::ConfigurationNeeded
        | Status::ConfigurationAndSWHardeningNeeded => {
            let answered = |advisory| tdx.accepted_advisories.contains(advisory);
            check.demand(
                Rule::TdxTcbStatus,
                !report.advisories.is_empty() && report.advisories.iter().all(answered),
                found,
                || match tdx.accepted_advisories.is_empty() {
                    true => "UpToDate (no advisory is in accepted_advisories)".to_owned(),
                    false => format!(
                        "UpToDate, or no advisory but {}",
                        tdx.accepted_advisories.join(", ")
                    ),
                },
            );
        }
        Status::OutOfDate
        | Status::OutOfDateConfigurationNeeded
        | Status::TDRelaunchAdvised
        | Status::TDRelaunchAdvisedConfigurationNeeded
            if tdx.allow_out_of_date && report.tcb_listed =>
        {
            check.reference(Rule::TdxTcbStatus, &(), &ReferenceValues::AcceptAny, |()| {
                String::new()
            });
        }
        _ => check.demand(Rule::TdxTcbStatus, false, found, || {
            "UpToDate (an outdated platform needs allow_out_of_date)".to_owned()
        }),
    }
    if let Some(minimum) = tdx.minimum_tee_tcb_svn {
        let meets = |svn: [u8; 16]| svn.iter().zip(&minimum).all(|(found, least)| found >= least);
        check.demand(
            Rule::TdxTcbFloor,
            meets(report.tee_tcb_svn) && report.tee_tcb_svn2.is_none_or(meets),
            || {
                let now = report
                    .tee_tcb_svn2
                    .map(|svn| format!(", now {}", hex::encode(svn)));
                format!(
                    "TEE_TCB_SVN {}{}",
                    hex::encode(report.tee_tcb_svn),
                    now.unwrap_or_default()
                )
            },
            || format!("at least {} in each byte", hex::encode(minimum)),
        );
    }
    let (collateral, days) = (&report.collateral, tdx.maximum_collateral_age_days);
    check.demand(
        Rule::TdxCollateralAge,
        collateral.age_seconds() <= u64::from(days) * 86_400,
        || format!("collateral made {} seconds before", collateral.age_seconds()),
        || format!("at most {days} days"),
    );
    if let Some(minimum) = tdx.minimum_tcb_evaluation_data_number {
        let number = collateral.tcb_evaluation_data_number;
        check.demand(
            Rule::TdxCollateralAge,
            number >= minimum,
            || format!("TCB evaluation data number {number}"),
            || format!("{minimum} or higher"),
        );
    }
    check.demand(
        Rule::TdxSmt,
        !tdx.smt_off || report.smt_enabled == Some(false),
        || match report.smt_enabled {
            Some(_) => "SMT is on".to_owned(),
            None => "Intel does not say whether SMT is on".to_owned(),
        },
        || "SMT off".to_owned(),
    );
}

fn attributes(report: &Report, tdx: &Policy, check: &mut Check) {
    let found = u64::from_le_bytes(report.td_attributes);
    let mut allowed = DEBUG | SEPT_VE_DISABLE | ICSSD | LASS | PKS;
    if tdx.allow_perfmon {
        allowed |= PERFMON;
    }
    if tdx.allow_key_locker {
        allowed |= KL;
    }
    // DEBUG has a rule of its own, which says it better.
    check.demand(
        Rule::TdxAttributes,
        found & !allowed == 0 && found & SEPT_VE_DISABLE != 0,
        || format!("TDATTRIBUTES {found:#018x}: {}", names(found)),
        || format!("SEPT_VE_DISABLE, and nothing but {}", names(allowed & !DEBUG)),
    );
}

/// Bits of TDATTRIBUTES by name; those that nobody has named by number.
fn names(attributes: u64) -> String {
    let known = |bit: u64| {
        NAMES
            .iter()
            .find(|(named, _)| *named == bit)
            .map(|(_, name)| *name)
    };
    let bits = (0..64).filter(|index| attributes >> index & 1 == 1);
    let names: Vec<_> = bits
        .map(|index| known(1 << index).map_or_else(|| format!("bit {index}"), str::to_owned))
        .collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

fn list<'a>(values: impl IntoIterator<Item = &'a [u8; 48]>) -> String {
    values.into_iter().map(hex::encode).collect::<Vec<_>>().join(", ")
}

/// A list of hexadecimal values, or `"any"`.
fn digests<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ReferenceValues<[u8; 48]>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Any(String),
        List(Vec<String>),
    }
    match Written::deserialize(deserializer)? {
        Written::Any(word) if word == "any" => Ok(ReferenceValues::AcceptAny),
        Written::Any(word) => Err(D::Error::custom(format!(
            "{word:?} is neither \"any\" nor a list"
        ))),
        Written::List(texts) => Ok(ReferenceValues::AnyOf(decoded(&texts)?)),
    }
}

fn digest_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<[u8; 48]>, D::Error> {
    decoded(&Vec::<String>::deserialize(deserializer)?)
}

fn optional_digests<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<[u8; 48]>>, D::Error> {
    digest_list(deserializer).map(Some)
}

fn optional_svn<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<[u8; 16]>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(decoded(&[text])?.pop())
}

fn decoded<E: Error, const N: usize>(texts: &[String]) -> Result<Vec<[u8; N]>, E> {
    let decode = |text: &String| {
        let mut bytes = [0; N];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|error| E::custom(format!("{text:?} is not {N} bytes in hexadecimal: {error}")))?;
        Ok(bytes)
    };
    texts.iter().map(decode).collect()
}

// Intel TDX Module ABI Specification 348551-008US, table 3.23.
const DEBUG: u64 = 1;
const ICSSD: u64 = 1 << 16;
const LASS: u64 = 1 << 27;
const SEPT_VE_DISABLE: u64 = 1 << 28;
const PKS: u64 = 1 << 30;
const KL: u64 = 1 << 31;
const PERFMON: u64 = 1 << 63;
const NAMES: &[(u64, &str)] = &[
    (DEBUG, "DEBUG"),
    (ICSSD, "ICSSD"),
    (1 << 17, "SERVTD_EXT"),
    (LASS, "LASS"),
    (SEPT_VE_DISABLE, "SEPT_VE_DISABLE"),
    (1 << 29, "MIGRATABLE"),
    (PKS, "PKS"),
    (KL, "KL"),
    (1 << 62, "TPA"),
    (PERFMON, "PERFMON"),
];
