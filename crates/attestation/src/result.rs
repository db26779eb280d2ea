//! What an appraisal yields: an [`AttestationResult`], or every rule that was not met.

use crate::claims::RuntimeClaims;
use crate::release::Release;
use crate::report::{Kind, Report};
use serde::Serialize;
use std::fmt;

/// The rules of an appraisal, by the name shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Rule {
    /// The evidence covers this session (or boot): nonce, exporter, server key, role.
    Binding,
    /// The claims shown are the claims bound.
    RuntimeClaims,
    /// Simulated evidence needs `allow_simulated`.
    Simulated,
    /// The guest must not be debuggable.
    Debug,
    /// Launch measurement.
    Measurement,
    /// Chip allow-list.
    ChipId,
    /// Evidence of GPUs.
    Gpu,
    /// A GPU's driver and VBIOS.
    GpuFirmware,
    /// A GPU's measurements.
    GpuMeasurement,
    /// A GPU's confidential-computing mode.
    GpuMode,
    /// GPU allow-list.
    GpuDevice,
    /// RTMR0 of a TD.
    TdxRtmr0,
    /// RTMR1 of a TD.
    TdxRtmr1,
    /// RTMR2 of a TD.
    TdxRtmr2,
    /// RTMR3 of a TD.
    TdxRtmr3,
    /// Intel's verdict on a TDX platform.
    TdxTcbStatus,
    /// Lowest TEE_TCB_SVN of a TDX platform.
    TdxTcbFloor,
    /// Age of Intel's collateral.
    TdxCollateralAge,
    /// Two threads a core on a TDX platform.
    TdxSmt,
    /// Attributes of a TD.
    TdxAttributes,
    /// The TDX module and its signer.
    TdxModule,
    /// What a TD's host chose: MRCONFIGID, MROWNER, MROWNERCONFIG.
    TdxOwner,
    /// Service TDs bound to a TD.
    TdxServiceTd,
    /// Configuration digest.
    Configuration,
    /// Trainer digest.
    Trainer,
    /// libtorch digest.
    Libtorch,
    /// Root key provider.
    RootKeyProvider,
    /// Insecure flags.
    InsecureFlags,
    /// Freshness level.
    Freshness,
    /// Pinned ledger.
    Ledger,
    /// PCR values of a vTPM.
    Pcr,
    /// UEFI secure boot.
    SecureBoot,
    /// Consoles of the host.
    Console,
    /// Configuration of an Azure VM.
    VmConfiguration,
    /// Pinned Azure VMs.
    VmId,
    /// Version of a vTPM's firmware.
    TpmFirmware,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Binding => "binding",
            Self::RuntimeClaims => "runtime-claims",
            Self::Simulated => "simulated",
            Self::Debug => "debug",
            Self::Measurement => "measurement",
            Self::ChipId => "chip-id",
            Self::Gpu => "gpu",
            Self::GpuFirmware => "gpu-firmware",
            Self::GpuMeasurement => "gpu-measurement",
            Self::GpuMode => "gpu-mode",
            Self::GpuDevice => "gpu-device",
            Self::TdxRtmr0 => "tdx-rtmr0",
            Self::TdxRtmr1 => "tdx-rtmr1",
            Self::TdxRtmr2 => "tdx-rtmr2",
            Self::TdxRtmr3 => "tdx-rtmr3",
            Self::TdxTcbStatus => "tdx-tcb-status",
            Self::TdxTcbFloor => "tdx-tcb-floor",
            Self::TdxCollateralAge => "tdx-collateral-age",
            Self::TdxSmt => "tdx-smt",
            Self::TdxAttributes => "tdx-attributes",
            Self::TdxModule => "tdx-module",
            Self::TdxOwner => "tdx-owner",
            Self::TdxServiceTd => "tdx-service-td",
            Self::Configuration => "configuration",
            Self::Trainer => "trainer",
            Self::Libtorch => "libtorch",
            Self::RootKeyProvider => "root-key-provider",
            Self::InsecureFlags => "insecure-flags",
            Self::Freshness => "freshness",
            Self::Ledger => "ledger",
            Self::Pcr => "pcr",
            Self::SecureBoot => "secure-boot",
            Self::Console => "console",
            Self::VmConfiguration => "vm-configuration",
            Self::VmId => "vm-id",
            Self::TpmFirmware => "tpm-firmware",
        })
    }
}

/// One rule that was not met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The rule.
    pub rule: Rule,
    /// What the server showed.
    pub found: String,
    /// What the policy demands.
    pub wanted: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rule {}: found {}, wanted {}",
            self.rule, self.found, self.wanted
        )
    }
}

/// Every rule that was not met; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AppraisalError {
    /// In the order of [`Rule`].
    pub refusals: Vec<Refusal>,
}

impl fmt::Display for AppraisalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server's evidence does not meet the appraisal policy: ")?;
        for (index, refusal) in self.refusals.iter().enumerate() {
            write!(f, "{}{refusal}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for AppraisalError {}

/// RFC 9334 Attestation Result: evidence that met a policy. Only an appraisal makes one.
#[derive(Clone, Debug, Serialize)]
pub struct AttestationResult {
    pub(crate) status: Status,
    pub(crate) media_type: String,
    pub(crate) report: Report,
    pub(crate) runtime_claims: RuntimeClaims,
    pub(crate) accepted_without_reference_value: Vec<Rule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) release: Option<Release>,
    pub(crate) verified_unix_ms: u64,
}

/// Trust tier, in the words of EAR (AR4SI).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Status {
    /// Hardware vouches for it and every reference value matched.
    Affirming,
    /// Accepted with something missing: simulated, an insecure flag, or a value nobody compared.
    Warning,
}

impl AttestationResult {
    /// Trust tier.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Kind of evidence appraised.
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// What the platform reported.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The claims the evidence binds.
    pub fn runtime_claims(&self) -> &RuntimeClaims {
        &self.runtime_claims
    }

    /// Rules for which the policy accepted any value.
    pub fn accepted_without_reference_value(&self) -> &[Rule] {
        &self.accepted_without_reference_value
    }

    /// The release whose manifest gave reference values, and for which rules.
    pub fn release(&self) -> Option<&Release> {
        self.release.as_ref()
    }

    /// When the evidence was verified, by the verifier's clock.
    pub fn verified_unix_ms(&self) -> u64 {
        self.verified_unix_ms
    }
}

impl fmt::Display for AttestationResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let claims = &self.runtime_claims;
        let status = match (self.status, self.report.kind()) {
            (Status::Affirming, _) => "affirming",
            (Status::Warning, Kind::InsecureSimulated) => "warning: SIMULATED evidence, anyone can forge it",
            (Status::Warning, _) => "warning: accepted with something missing",
        };
        writeln!(f, "status             {status}")?;
        writeln!(f, "evidence           {}", self.media_type)?;
        for (name, value) in self.report.platform.rows() {
            writeln!(f, "{name:<18} {value}")?;
        }
        for gpu in &self.report.gpus {
            writeln!(f, "gpu                {}", gpu.row())?;
        }
        writeln!(f, "server version     {}", claims.server_version)?;
        writeln!(f, "root key           {}", claims.root_key_provider)?;
        writeln!(
            f,
            "insecure flags     {}",
            or_none(&claims.insecure_flags.join(", "))
        )?;
        writeln!(f, "freshness          {}", claims.freshness)?;
        writeln!(
            f,
            "configuration      {}",
            hex::encode(claims.configuration_digest)
        )?;
        writeln!(f, "trainer            {}", hex::encode(claims.trainer_digest))?;
        writeln!(f, "libtorch           {}", hex::encode(claims.libtorch_digest))?;
        writeln!(f, "boot               {}", hex::encode(claims.boot_id))?;
        writeln!(f, "ledger             {}", hex::encode(claims.ledger_id))?;
        writeln!(
            f,
            "ledger head        {} {}",
            claims.ledger_sequence,
            hex::encode(claims.ledger_head)
        )?;
        if let Some(release) = &self.release {
            writeln!(f, "release            {release}")?;
        }
        let unchecked: Vec<String> = self
            .accepted_without_reference_value
            .iter()
            .map(Rule::to_string)
            .collect();
        write!(f, "accepted unchecked {}", or_none(&unchecked.join(", ")))
    }
}

fn or_none(list: &str) -> &str {
    if list.is_empty() { "none" } else { list }
}
