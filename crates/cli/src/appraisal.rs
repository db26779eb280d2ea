//! What a relying party demands of a server, as flags and as a file.

use crate::manifest;
use anyhow::Context;
use bastionai_client::terms::OneOrMany;
use bastionai_client::{AppraisalPolicy, AppraisalTerms};
use clap::Args;
use std::path::PathBuf;

/// Your terms: whatever has no reference value refuses. A reference value may be the word `any`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "What the server must prove")]
pub(crate) struct AppraisalArguments {
    /// Accept evidence of the development attester, which proves nothing, and whatever it says.
    #[arg(long, conflicts_with_all = ["policy", "manifest", "measurement", "configuration_digest", "trainer_digest", "libtorch_digest",
        "root_key_provider", "minimum_freshness", "chip_id", "ledger_id"])]
    pub(crate) allow_simulated: bool,
    /// Terms in a JSON file, as `bastionai.AppraisalPolicy(…).to_json()` writes it; the flags below win over it.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The manifest of a release: its reference values fill in those that you do not give; the result names the release.
    #[arg(long, value_name = "FILE", requires = "manifest_key")]
    manifest: Option<PathBuf>,
    /// The public key of whoever makes the release, 64 hex digits or a file that holds them: only you can say whom you trust.
    #[arg(long, value_name = "HEX|FILE", requires = "manifest")]
    manifest_key: Option<String>,
    /// Launch measurement, 96 hex digits (repeatable).
    #[arg(long, value_name = "HEX")]
    measurement: Vec<String>,
    /// SHA-256 of an effective configuration (repeatable).
    #[arg(long, value_name = "HEX")]
    configuration_digest: Vec<String>,
    /// SHA-256 of a trainer program (repeatable).
    #[arg(long, value_name = "HEX")]
    trainer_digest: Vec<String>,
    /// SHA-256 over the libtorch libraries (repeatable).
    #[arg(long, value_name = "HEX")]
    libtorch_digest: Vec<String>,
    /// Where the root key may come from (repeatable).
    #[arg(long, value_name = "NAME")]
    root_key_provider: Vec<String>,
    /// An insecure choice of the server that you accept (repeatable).
    #[arg(long, value_name = "NAME")]
    allow_insecure_flag: Vec<String>,
    /// Lowest freshness level: none, unlock or witness; by default unlock, the lowest that prevents a rollback.
    #[arg(long, value_name = "LEVEL")]
    minimum_freshness: Option<String>,
    /// A chip that is accepted, 128 hex digits (repeatable); by default any genuine one.
    #[arg(long, value_name = "HEX")]
    chip_id: Vec<String>,
    /// The only ledger accepted, 32 hex digits.
    #[arg(long, value_name = "HEX")]
    ledger_id: Option<String>,
}

impl AppraisalArguments {
    /// The verifier's policy; says on stderr when it demands nothing.
    pub(crate) fn policy(&self) -> anyhow::Result<AppraisalPolicy> {
        if self.allow_simulated {
            eprintln!("warning: --allow-simulated: the server's evidence is simulated and proves nothing");
            let mut policy = AppraisalPolicy::insecure_development();
            policy
                .allowed_insecure_flags
                .extend(self.allow_insecure_flag.iter().cloned());
            return Ok(policy);
        }
        let mut terms = match &self.policy {
            None => AppraisalTerms::default(),
            Some(path) => {
                let json = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the appraisal policy {}", path.display()))?;
                AppraisalTerms::parse_json(&json).with_context(|| path.display().to_string())?
            }
        };
        given(&mut terms.measurements, &self.measurement);
        given(&mut terms.configuration_digests, &self.configuration_digest);
        given(&mut terms.trainer_digests, &self.trainer_digest);
        given(&mut terms.libtorch_digests, &self.libtorch_digest);
        given(&mut terms.root_key_providers, &self.root_key_provider);
        if !self.allow_insecure_flag.is_empty() {
            terms.allowed_insecure_flags.clone_from(&self.allow_insecure_flag);
        }
        if !self.chip_id.is_empty() {
            terms.chip_ids = Some(self.chip_id.clone());
        }
        terms.minimum_freshness = self.minimum_freshness.clone().or(terms.minimum_freshness);
        terms.ledger_id = self.ledger_id.clone().or(terms.ledger_id);
        let policy = terms.into_policy()?;
        match (&self.manifest, &self.manifest_key) {
            (Some(path), Some(key)) => Ok(policy.with_manifest(&manifest::verified(path, key)?)),
            _ => Ok(policy),
        }
    }
}

fn given(field: &mut OneOrMany, flags: &[String]) {
    if !flags.is_empty() {
        *field = OneOrMany::Many(flags.to_vec());
    }
}
