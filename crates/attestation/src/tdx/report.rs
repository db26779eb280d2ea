//! What an authentic TD quote says, together with what Intel says of its platform.

use super::collateral::{Verdict, is_listed};
use super::quote::Body;
use crate::claims::as_hex;
use dcap_qvl::PckCertFlag;
use serde::{Serialize, Serializer};
use std::fmt;

/// What an authentic TD quote says, together with what Intel says of its platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// MRTD: what the TD was built from, the firmware.
    #[serde(serialize_with = "as_hex")]
    pub mr_td: [u8; 48],
    /// RTMR0 (firmware configuration), 1 (boot loader, kernel), 2 (initrd, command line), 3 (the application's).
    #[serde(serialize_with = "list_as_hex")]
    pub rtmrs: [[u8; 48]; 4],
    /// MRCONFIGID: chosen by the host at the TD's creation.
    #[serde(serialize_with = "as_hex")]
    pub mr_config_id: [u8; 48],
    /// MROWNER: chosen by the host.
    #[serde(serialize_with = "as_hex")]
    pub mr_owner: [u8; 48],
    /// MROWNERCONFIG: chosen by the host.
    #[serde(serialize_with = "as_hex")]
    pub mr_owner_config: [u8; 48],
    /// TDATTRIBUTES, 64 bits.
    #[serde(serialize_with = "as_hex")]
    pub td_attributes: [u8; 8],
    /// XFAM: the processor state that the TD may use.
    #[serde(serialize_with = "as_hex")]
    pub xfam: [u8; 8],
    /// Whether the host can read the TD's memory (TDATTRIBUTES.DEBUG).
    pub debug: bool,
    /// MRSEAM: the TDX module.
    #[serde(serialize_with = "as_hex")]
    pub mr_seam: [u8; 48],
    /// MRSIGNERSEAM: who signed the TDX module; zero is Intel.
    #[serde(serialize_with = "as_hex")]
    pub mr_signer_seam: [u8; 48],
    /// Attributes of the TDX module.
    #[serde(serialize_with = "as_hex")]
    pub seam_attributes: [u8; 8],
    /// TEE_TCB_SVN when the TD was launched: `[0]` and `[1]` are the TDX module's, `[2]` is the late microcode's.
    #[serde(serialize_with = "as_hex")]
    pub tee_tcb_svn: [u8; 16],
    /// TDX 1.5: TEE_TCB_SVN2, the same now, after updates that kept the TD alive.
    #[serde(serialize_with = "option_as_hex")]
    pub tee_tcb_svn2: Option<[u8; 16]>,
    /// TDX 1.5: MRSERVICETD, the hash over service TDs bound to this one, e.g. to migrate it; zero is none.
    #[serde(serialize_with = "option_as_hex")]
    pub mr_service_td: Option<[u8; 48]>,
    /// Intel's verdict over platform, TDX module and quoting enclave.
    pub tcb_status: TcbStatus,
    /// Whether the platform meets any level that Intel lists, at the TD's launch and now. If not, its status is
    /// `OutOfDate` for want of a word, and no policy accepts it.
    pub tcb_listed: bool,
    /// Advisories that the verdict names.
    pub advisories: Vec<String>,
    /// The verdict on processor, microcode and TDX module at the TD's launch.
    pub platform_tcb_status: TcbStatus,
    /// TDX 1.5: the same for the TDX module that runs now.
    pub current_tcb_status: Option<TcbStatus>,
    /// The verdict on the quoting enclave.
    pub qe_tcb_status: TcbStatus,
    /// Date of the TCB level that the platform meets, Unix seconds.
    pub tcb_date_unix_seconds: u64,
    /// Provisioning id of the platform: names this one machine.
    #[serde(serialize_with = "vec_as_hex")]
    pub ppid: Vec<u8>,
    /// Model and configuration of the platform.
    #[serde(serialize_with = "as_hex")]
    pub fmspc: [u8; 6],
    /// Security versions of processor and microcode.
    #[serde(serialize_with = "as_hex")]
    pub cpu_svn: [u8; 16],
    /// Security version of the provisioning enclave.
    pub pce_svn: u16,
    /// Whether the platform runs two threads a core, if Intel knows.
    pub smt_enabled: Option<bool>,
    /// When the collateral was made, and until when it is good.
    pub collateral: Collateral,
    /// The firmware's log, whose replay gave RTMR0–3; empty if none came with the quote.
    pub events: Vec<Event>,
}

/// Dates of collateral, Unix seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Collateral {
    /// The oldest of TCB info, QE identity and PCK revocation list.
    pub issued_unix_seconds: u64,
    /// The first date at which something of it has to be replaced.
    pub next_update_unix_seconds: u64,
    /// When it was verified.
    pub verified_unix_seconds: u64,
    /// Intel's number of the TCB recovery that it knows of.
    pub tcb_evaluation_data_number: u32,
}

/// One entry of the firmware's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Event {
    /// Which RTMR it was extended into, 0 to 3.
    pub rtmr: u8,
    /// Its type, by the name of the TCG's specification, or its number. A label: only the digest is measured.
    pub name: String,
    /// What the RTMR was extended with.
    #[serde(serialize_with = "as_hex")]
    pub digest: [u8; 48],
}

/// Intel's verdict on a TCB, in Intel's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum TcbStatus {
    /// Nothing known against it.
    UpToDate,
    /// Advisories that the software in the TD must answer.
    SWHardeningNeeded,
    /// The platform's configuration must change.
    ConfigurationNeeded,
    /// Both.
    ConfigurationAndSWHardeningNeeded,
    /// Updates that fix vulnerabilities are not installed.
    OutOfDate,
    /// That, and the configuration must change.
    OutOfDateConfigurationNeeded,
    /// The TD was launched on an outdated TDX module that has been updated since.
    TDRelaunchAdvised,
    /// That, and the configuration must change.
    TDRelaunchAdvisedConfigurationNeeded,
    /// Not to be trusted at all.
    Revoked,
}

impl Report {
    pub(super) fn new(body: &Body, verdict: Verdict) -> Self {
        let claims = verdict.claims;
        let pck = claims.platform.pck;
        Self {
            mr_td: body.mr_td,
            rtmrs: body.rtmrs,
            mr_config_id: body.mr_config_id,
            mr_owner: body.mr_owner,
            mr_owner_config: body.mr_owner_config,
            td_attributes: body.td_attributes,
            xfam: body.xfam,
            debug: body.is_debug(),
            mr_seam: body.mr_seam,
            mr_signer_seam: body.mr_signer_seam,
            seam_attributes: body.seam_attributes,
            tee_tcb_svn: body.tee_tcb_svn,
            tee_tcb_svn2: body.v1_5.map(|(svn, _)| svn),
            mr_service_td: body.v1_5.map(|(_, hash)| hash),
            tcb_status: claims.tcb.status.into(),
            tcb_listed: is_listed(&claims.platform.tcb_level)
                && claims.platform.current_tcb_level.as_ref().is_none_or(is_listed),
            advisories: claims.tcb.advisory_ids,
            platform_tcb_status: claims.platform.tcb_level.tcb_status.into(),
            current_tcb_status: claims
                .platform
                .current_tcb_level
                .map(|level| level.tcb_status.into()),
            qe_tcb_status: claims.qe.tcb_level.tcb_status.into(),
            tcb_date_unix_seconds: claims.platform.tcb_date_tag,
            ppid: pck.ppid,
            fmspc: pck.fmspc,
            cpu_svn: pck.cpu_svn,
            pce_svn: pck.pce_svn,
            smt_enabled: match pck.smt_enabled {
                PckCertFlag::True => Some(true),
                PckCertFlag::False => Some(false),
                PckCertFlag::Undefined => None,
            },
            collateral: verdict.collateral,
            events: Vec::new(),
        }
    }

    /// What people are shown.
    pub(crate) fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = vec![("measurement", hex::encode(self.mr_td))];
        let names = ["RTMR0", "RTMR1", "RTMR2", "RTMR3"];
        rows.extend(names.into_iter().zip(self.rtmrs.iter().map(hex::encode)));
        let advisories = match (self.tcb_listed, self.advisories.is_empty()) {
            (false, _) => " (below every level that Intel lists)".to_owned(),
            (true, true) => String::new(),
            (true, false) => format!(" ({})", self.advisories.join(", ")),
        };
        rows.extend([
            ("TCB status", format!("{}{advisories}", self.tcb_status)),
            ("TEE_TCB_SVN", hex::encode(self.tee_tcb_svn)),
            ("TD attributes", hex::encode(self.td_attributes)),
            ("TDX module", hex::encode(self.mr_seam)),
            ("platform (PPID)", hex::encode(&self.ppid)),
            ("FMSPC", hex::encode(self.fmspc)),
            (
                "collateral age",
                format!("{} days", self.collateral.age_seconds() / 86_400),
            ),
        ]);
        if !self.events.is_empty() {
            rows.push(("event log", format!("{} events, replayed", self.events.len())));
        }
        rows
    }
}

impl Collateral {
    /// How old it was when it was verified.
    pub fn age_seconds(&self) -> u64 {
        self.verified_unix_seconds
            .saturating_sub(self.issued_unix_seconds)
    }
}

impl From<dcap_qvl::TcbStatus> for TcbStatus {
    fn from(status: dcap_qvl::TcbStatus) -> Self {
        use dcap_qvl::TcbStatus as Theirs;
        match status {
            Theirs::UpToDate => Self::UpToDate,
            Theirs::SWHardeningNeeded => Self::SWHardeningNeeded,
            Theirs::ConfigurationNeeded => Self::ConfigurationNeeded,
            Theirs::ConfigurationAndSWHardeningNeeded => Self::ConfigurationAndSWHardeningNeeded,
            Theirs::OutOfDate => Self::OutOfDate,
            Theirs::OutOfDateConfigurationNeeded => Self::OutOfDateConfigurationNeeded,
            Theirs::TDRelaunchAdvised => Self::TDRelaunchAdvised,
            Theirs::TDRelaunchAdvisedConfigurationNeeded => Self::TDRelaunchAdvisedConfigurationNeeded,
            Theirs::Revoked => Self::Revoked,
        }
    }
}

impl fmt::Display for TcbStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

fn list_as_hex<S: Serializer>(list: &[[u8; 48]; 4], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(list.iter().map(hex::encode))
}

fn vec_as_hex<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

fn option_as_hex<const N: usize, S: Serializer>(
    bytes: &Option<[u8; N]>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match bytes {
        Some(bytes) => as_hex(bytes, serializer),
        None => serializer.serialize_none(),
    }
}
