//! Appraisal: is this authentic evidence good enough for *me*? Fail closed on everything unknown.
//!
//! A5: a reference value that is missing refuses. Doing without one is a choice made by name
//! ([`ReferenceValues::AcceptAny`]) and is shown in the result.

use crate::binding::{Binding, BootBinding};
use crate::claims::{self, Freshness, RuntimeClaims};
use crate::insecure_simulated::DEVELOPMENT_MEASUREMENT;
use crate::verify::{Report, VerifiedEvidence};
use serde::Serialize;
use std::fmt;

/// The values of one property that a relying party accepts.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ReferenceValues<T> {
    /// Nobody said: refused (rule A5).
    #[default]
    Missing,
    /// One of these.
    AnyOf(Vec<T>),
    /// Whatever is found, by explicit choice; shown in the result.
    AcceptAny,
}

/// What a relying party demands. [`Default`] demands reference values for everything and has none, so
/// it refuses every server.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct AppraisalPolicy {
    /// Accept evidence that anyone can forge. Development only.
    pub allow_simulated: bool,
    /// Launch measurements.
    pub measurements: ReferenceValues<[u8; 48]>,
    /// SHA-256 of effective configurations.
    pub configuration_digests: ReferenceValues<[u8; 32]>,
    /// SHA-256 of trainer programs.
    pub trainer_digests: ReferenceValues<[u8; 32]>,
    /// SHA-256 over libtorch libraries.
    pub libtorch_digests: ReferenceValues<[u8; 32]>,
    /// Root key providers, by name.
    pub root_key_providers: ReferenceValues<String>,
    /// Insecure flags a server may have set; any other refuses.
    pub allowed_insecure_flags: Vec<String>,
    /// Lowest freshness level; absent means `unlock`, the lowest that prevents a rollback.
    pub minimum_freshness: Option<Freshness>,
    /// If present, the only chips accepted: the answer to evidence relayed from an attacker's own machine.
    pub chip_ids: Option<Vec<[u8; 64]>>,
    /// If present, the only ledger accepted.
    pub ledger_id: Option<[u8; 16]>,
}

impl AppraisalPolicy {
    /// What `allow_simulated` means in full: simulated evidence of the development measurement, a root
    /// key in a file, freshness `none`, any configuration, trainer and libtorch. **Protects nothing
    /// against the operator**; for development, rehearsal and tests.
    pub fn insecure_development() -> Self {
        Self {
            allow_simulated: true,
            measurements: ReferenceValues::AnyOf(vec![DEVELOPMENT_MEASUREMENT]),
            configuration_digests: ReferenceValues::AcceptAny,
            trainer_digests: ReferenceValues::AcceptAny,
            libtorch_digests: ReferenceValues::AcceptAny,
            root_key_providers: ReferenceValues::AcceptAny,
            allowed_insecure_flags: vec![
                claims::INSECURE_SIMULATED_EVIDENCE.to_owned(),
                claims::INSECURE_FILE_ROOT_KEY.to_owned(),
                claims::INSECURE_TRAINER_SANDBOX.to_owned(),
            ],
            minimum_freshness: Some(Freshness::None),
            chip_ids: None,
            ledger_id: None,
        }
    }
}

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
            Self::Configuration => "configuration",
            Self::Trainer => "trainer",
            Self::Libtorch => "libtorch",
            Self::RootKeyProvider => "root-key-provider",
            Self::InsecureFlags => "insecure-flags",
            Self::Freshness => "freshness",
            Self::Ledger => "ledger",
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
    status: Status,
    media_type: String,
    report: Report,
    runtime_claims: RuntimeClaims,
    accepted_without_reference_value: Vec<Rule>,
    verified_unix_ms: u64,
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

    /// When the evidence was verified, by the verifier's clock.
    pub fn verified_unix_ms(&self) -> u64 {
        self.verified_unix_ms
    }
}

impl fmt::Display for AttestationResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let claims = &self.runtime_claims;
        let status = match (self.status, self.report.simulated) {
            (Status::Affirming, _) => "affirming",
            (Status::Warning, false) => "warning",
            (Status::Warning, true) => "warning: SIMULATED evidence, anyone can forge it",
        };
        writeln!(f, "status             {status}")?;
        writeln!(f, "evidence           {}", self.media_type)?;
        writeln!(f, "measurement        {}", hex::encode(self.report.measurement))?;
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
        let unchecked: Vec<String> = self
            .accepted_without_reference_value
            .iter()
            .map(Rule::to_string)
            .collect();
        write!(f, "accepted unchecked {}", or_none(&unchecked.join(", ")))
    }
}

impl VerifiedEvidence {
    /// Appraises evidence given over a live session: `binding` is what *this* client knows of it.
    ///
    /// # Errors
    /// [`AppraisalError`] with every rule that was not met, the value found and the value wanted.
    pub fn appraise(
        self,
        policy: &AppraisalPolicy,
        binding: &Binding,
        claims: &RuntimeClaims,
    ) -> Result<AttestationResult, AppraisalError> {
        self.appraise_bound(policy, (&binding.report_data(), &binding.claims_sha256), claims)
    }

    /// Appraises the evidence of a boot that an offline receipt carries (rule A6).
    ///
    /// # Errors
    /// [`AppraisalError`] with every rule that was not met, the value found and the value wanted.
    pub fn appraise_boot(
        self,
        policy: &AppraisalPolicy,
        binding: &BootBinding,
        claims: &RuntimeClaims,
    ) -> Result<AttestationResult, AppraisalError> {
        let mut check = Check::default();
        check.demand(
            Rule::RuntimeClaims,
            binding.boot_id == claims.boot_id && binding.ledger_public_key == claims.ledger_public_key,
            || hex::encode(claims.boot_id),
            || {
                format!(
                    "claims of boot {} and its ledger key",
                    hex::encode(binding.boot_id)
                )
            },
        );
        check.finish()?;
        self.appraise_bound(policy, (&binding.report_data(), &binding.claims_sha256), claims)
    }

    fn appraise_bound(
        self,
        policy: &AppraisalPolicy,
        (report_data, claims_sha256): (&[u8; 64], &[u8; 32]),
        claims: &RuntimeClaims,
    ) -> Result<AttestationResult, AppraisalError> {
        let mut check = Check::default();
        check.bound(&self.report, report_data, claims_sha256, claims);
        check.platform(&self.report, policy);
        check.software(claims, policy);
        let accepted_without_reference_value = check.finish()?;
        let all_good = !self.report.simulated
            && claims.insecure_flags.is_empty()
            && accepted_without_reference_value.is_empty();
        Ok(AttestationResult {
            status: if all_good {
                Status::Affirming
            } else {
                Status::Warning
            },
            media_type: self.media_type,
            report: self.report,
            runtime_claims: claims.clone(),
            accepted_without_reference_value,
            verified_unix_ms: self.verified_unix_ms,
        })
    }
}

/// Collects refusals, so that a policy can be mended in one go.
#[derive(Default)]
struct Check {
    refusals: Vec<Refusal>,
    unchecked: Vec<Rule>,
}

impl Check {
    fn bound(
        &mut self,
        report: &Report,
        report_data: &[u8; 64],
        claims_sha256: &[u8; 32],
        claims: &RuntimeClaims,
    ) {
        self.demand(
            Rule::Binding,
            report.report_data == *report_data,
            || format!("report data {}", hex::encode(report.report_data)),
            || {
                format!(
                    "{} (this nonce, this TLS session, this server key, this role, these claims); \
                     the evidence was made for another session: somebody may be in between",
                    hex::encode(report_data)
                )
            },
        );
        let digest = claims.digest();
        self.demand(
            Rule::RuntimeClaims,
            digest == *claims_sha256,
            || hex::encode(digest),
            || format!("claims with the bound SHA-256 {}", hex::encode(claims_sha256)),
        );
    }

    fn platform(&mut self, report: &Report, policy: &AppraisalPolicy) {
        self.demand(
            Rule::Simulated,
            !report.simulated || policy.allow_simulated,
            || "simulated evidence, which anyone can forge".to_owned(),
            || "evidence of a TEE (for development only, set allow_simulated)".to_owned(),
        );
        self.demand(
            Rule::Debug,
            !report.debug,
            || "a debuggable guest".to_owned(),
            || "debug off".to_owned(),
        );
        self.reference(
            Rule::Measurement,
            &report.measurement,
            &policy.measurements,
            hex::encode,
        );
        if let Some(chips) = &policy.chip_ids {
            self.demand(
                Rule::ChipId,
                chips.contains(&report.chip_id),
                || hex::encode(report.chip_id),
                || format!("one of {} pinned chips", chips.len()),
            );
        }
    }

    fn software(&mut self, claims: &RuntimeClaims, policy: &AppraisalPolicy) {
        self.reference(
            Rule::Configuration,
            &claims.configuration_digest,
            &policy.configuration_digests,
            hex::encode,
        );
        self.reference(
            Rule::Trainer,
            &claims.trainer_digest,
            &policy.trainer_digests,
            hex::encode,
        );
        self.reference(
            Rule::Libtorch,
            &claims.libtorch_digest,
            &policy.libtorch_digests,
            hex::encode,
        );
        self.reference(
            Rule::RootKeyProvider,
            &claims.root_key_provider,
            &policy.root_key_providers,
            std::convert::identity,
        );
        for flag in claims
            .insecure_flags
            .iter()
            .filter(|flag| !policy.allowed_insecure_flags.contains(flag))
        {
            let allowed = || format!("none but [{}]", policy.allowed_insecure_flags.join(", "));
            self.demand(Rule::InsecureFlags, false, || flag.clone(), allowed);
        }
        let minimum = policy.minimum_freshness.unwrap_or(Freshness::Unlock);
        self.demand(
            Rule::Freshness,
            claims.freshness >= minimum,
            || format!("level {}", claims.freshness),
            || format!("level {minimum} or higher"),
        );
        if let Some(ledger) = policy.ledger_id {
            self.demand(
                Rule::Ledger,
                claims.ledger_id == ledger,
                || hex::encode(claims.ledger_id),
                || format!("the pinned ledger {}", hex::encode(ledger)),
            );
        }
    }

    fn reference<T>(&mut self, rule: Rule, found: &T, values: &ReferenceValues<T>, show: fn(T) -> String)
    where
        T: Clone + PartialEq,
    {
        let show = |value: &T| show(value.clone());
        match values {
            ReferenceValues::AcceptAny => self.unchecked.push(rule),
            ReferenceValues::Missing => {
                let wanted = || "a reference value, and the policy has none (rule A5)".to_owned();
                self.demand(rule, false, || show(found), wanted);
            }
            ReferenceValues::AnyOf(accepted) => {
                let wanted = || {
                    format!(
                        "one of [{}]",
                        accepted.iter().map(show).collect::<Vec<_>>().join(", ")
                    )
                };
                self.demand(rule, accepted.contains(found), || show(found), wanted);
            }
        }
    }

    fn demand(
        &mut self,
        rule: Rule,
        met: bool,
        found: impl FnOnce() -> String,
        wanted: impl FnOnce() -> String,
    ) {
        if !met {
            self.refusals.push(Refusal {
                rule,
                found: found(),
                wanted: wanted(),
            });
        }
    }

    fn finish(self) -> Result<Vec<Rule>, AppraisalError> {
        if self.refusals.is_empty() {
            Ok(self.unchecked)
        } else {
            Err(AppraisalError {
                refusals: self.refusals,
            })
        }
    }
}

fn or_none(list: &str) -> &str {
    if list.is_empty() { "none" } else { list }
}

#[cfg(test)]
mod tests;
