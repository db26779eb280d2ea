//! Appraisal: is this authentic evidence good enough for *me*? Fail closed on everything unknown.

use crate::azure;
use crate::binding::{Binding, BootBinding};
use crate::claims::{Freshness, RuntimeClaims};
use crate::policy::{AppraisalPolicy, ReferenceValues};
use crate::report::{Kind, Platform, Report};
use crate::result::{AppraisalError, AttestationResult, Refusal, Rule, Status};
use crate::tdx;
use crate::verify::VerifiedEvidence;
use crate::{insecure_simulated, nvidia};

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
        nvidia::appraise(&self.report.gpus, &policy.nvidia, &mut check);
        check.software(claims, policy);
        let accepted_without_reference_value = check.finish()?;
        let all_good = self.report.kind() != Kind::InsecureSimulated
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
            release: policy.release.clone(),
            verified_unix_ms: self.verified_unix_ms,
        })
    }
}

/// Collects refusals, so that a policy can be mended in one go.
#[derive(Default)]
pub(crate) struct Check {
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
        match &report.platform {
            Platform::Azure(report) => azure::appraise(report, policy, self),
            Platform::InsecureSimulated(report) => insecure_simulated::appraise(report, policy, self),
            Platform::Tdx(report) => tdx::appraise(report, policy, self),
        }
    }

    /// The rules that every launch measurement and chip meet.
    pub(crate) fn launch(&mut self, policy: &AppraisalPolicy, measurement: &[u8; 48], chip_id: &[u8]) {
        self.reference(Rule::Measurement, measurement, &policy.measurements, hex::encode);
        if let Some(chips) = &policy.chip_ids {
            self.demand(
                Rule::ChipId,
                chips.iter().any(|chip| chip == chip_id),
                || hex::encode(chip_id),
                || format!("one of {} pinned chips", chips.len()),
            );
        }
    }

    pub(crate) fn debug_off(&mut self, debug: bool) {
        self.demand(
            Rule::Debug,
            !debug,
            || "a debuggable guest".to_owned(),
            || "debug off".to_owned(),
        );
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

    pub(crate) fn reference<T>(
        &mut self,
        rule: Rule,
        found: &T,
        values: &ReferenceValues<T>,
        show: fn(T) -> String,
    ) where
        T: Clone + PartialEq,
    {
        let show = |value: &T| show(value.clone());
        match values {
            ReferenceValues::AcceptAny => self.accept_unchecked(rule),
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

    pub(crate) fn demand(
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

    /// The policy accepts any value for this rule; said once, however many values it was.
    pub(crate) fn accept_unchecked(&mut self, rule: Rule) {
        if !self.unchecked.contains(&rule) {
            self.unchecked.push(rule);
        }
    }

    pub(crate) fn finish(self) -> Result<Vec<Rule>, AppraisalError> {
        if self.refusals.is_empty() {
            Ok(self.unchecked)
        } else {
            Err(AppraisalError {
                refusals: self.refusals,
            })
        }
    }
}

#[cfg(test)]
mod tests;
