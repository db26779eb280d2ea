//! Release manifests: the reference values of a release, signed by whoever made it.
//!
//! An in-toto statement (v1) in a DSSE envelope: its subjects are the release's files by their SHA-256, its predicate says
//! from which source they were made and what honest hardware reports when it runs them. A relying party names the key of
//! the maker it trusts; [`VerifiedManifest`] is the only form in which a policy takes the values
//! ([`AppraisalPolicy::with_manifest`]), and the result of the appraisal then names the release.
//!
//! ```json
//! {"_type": "https://in-toto.io/Statement/v1",
//!  "subject": [{"name": "bastionai", "digest": {"sha256": "…"}}],
//!  "predicateType": "tag:bastionai,2026:release/v1",
//!  "predicate": {"version": "0.1.0", "source_revision": "…", "reference_values": {"snp": […], "tdx": […], …}}}
//! ```

use crate::policy::{AppraisalPolicy, ReferenceValues};
use crate::reference::{Hex, ReferenceSet};
use crate::result::Rule;
use bastionai_dsse::{self as dsse, EnvelopeError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt;

/// DSSE payload type of in-toto statements.
pub const MANIFEST_PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Version 1 of statements (<https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>).
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// What our predicate is.
pub const RELEASE_PREDICATE_TYPE: &str = "tag:bastionai,2026:release/v1";

/// Longest manifest read: a thousand shapes of guests are some hundreds of KiB (rule 8).
pub const MAX_MANIFEST_BYTES: usize = 1 << 20;

/// What a release is, and what hardware that runs it reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseManifest {
    /// The release's files.
    pub artifacts: Vec<Artifact>,
    /// Its version, e.g. `0.1.0`.
    pub version: String,
    /// The revision of the source that it was made from, e.g. a Git commit.
    pub source_revision: String,
    /// What honest hardware reports.
    pub reference_values: ReferenceSet,
}

/// A file of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// Its name.
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: [u8; 32],
}

/// A manifest that the named key signed. Only [`ReleaseManifest::verify`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedManifest {
    manifest: ReleaseManifest,
    key: [u8; 32],
    sha256: [u8; 32],
}

/// The release that reference values of a policy came from; stands in the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Release {
    /// Its version.
    pub version: String,
    /// The revision of its source.
    pub source_revision: String,
    /// SHA-256 of the signed manifest, envelope included.
    pub manifest_sha256: Hex<32>,
    /// The key that signed it.
    pub manifest_key: Hex<32>,
    /// The rules whose reference values came from it; the others are the relying party's own.
    pub rules: Vec<Rule>,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules: Vec<String> = self.rules.iter().map(Rule::to_string).collect();
        let rules = if rules.is_empty() {
            "nothing".to_owned()
        } else {
            rules.join(", ")
        };
        write!(
            f,
            "{} of source {} for {rules} (manifest {}, key {})",
            self.version, self.source_revision, self.manifest_sha256, self.manifest_key
        )
    }
}

/// Why a manifest is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Longer than any manifest is.
    #[error("the manifest has {found} bytes, at most {MAX_MANIFEST_BYTES} are read")]
    TooLong {
        /// Bytes found.
        found: usize,
    },
    /// Not signed by the key named, or changed.
    #[error("the manifest: {0}")]
    Envelope(#[from] EnvelopeError),
    /// Signed, but no statement about a release in a form that this version reads.
    #[error("the manifest is signed, but is no statement about a release: {0}")]
    Malformed(String),
    /// A manifest that says nothing, or contradicts itself.
    #[error("the manifest: {0}")]
    Content(String),
}

impl ReleaseManifest {
    /// Signs the manifest: the bytes to publish. `sign` is Ed25519 by the secret half of `public_key`.
    ///
    /// # Errors
    /// [`ManifestError::Content`] for what [`ReleaseManifest::verify`] would refuse.
    pub fn sign(
        &self,
        public_key: &[u8; 32],
        sign: impl FnOnce(&[u8]) -> [u8; 64],
    ) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let statement = Statement::from(self.clone());
        let payload = serde_json::to_vec(&statement).expect("texts and numbers are JSON");
        let signed = dsse::seal(&payload, MANIFEST_PAYLOAD_TYPE, public_key, sign);
        if signed.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLong { found: signed.len() });
        }
        Ok(signed)
    }

    /// Checks that `key` signed the manifest, and reads it.
    ///
    /// # Errors
    /// [`ManifestError`]: unsigned, another key, another type of payload or predicate, an unknown member, nothing in it.
    pub fn verify(signed: &[u8], key: &[u8; 32]) -> Result<VerifiedManifest, ManifestError> {
        if signed.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLong { found: signed.len() });
        }
        let payload = dsse::open(signed, MANIFEST_PAYLOAD_TYPE, key)?;
        let manifest = Self::from_statement(&payload)?;
        Ok(VerifiedManifest {
            manifest,
            key: *key,
            sha256: Sha256::digest(signed).into(),
        })
    }

    /// Reads a statement that nobody vouches for: to look at one, never to appraise with.
    ///
    /// # Errors
    /// [`ManifestError::Malformed`] and [`ManifestError::Content`].
    pub fn from_statement(payload: &[u8]) -> Result<Self, ManifestError> {
        let malformed = |why: String| ManifestError::Malformed(why);
        let statement: Statement =
            serde_json::from_slice(payload).map_err(|error| malformed(error.to_string()))?;
        for (member, found, expected) in [
            ("_type", &statement.statement_type, STATEMENT_TYPE),
            ("predicateType", &statement.predicate_type, RELEASE_PREDICATE_TYPE),
        ] {
            if found != expected {
                let found: String = found.chars().take(128).collect();
                return Err(malformed(format!("{member} is {found:?}, not {expected}")));
            }
        }
        let manifest = Self::from(statement);
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let content = |why: String| Err(ManifestError::Content(why));
        let names = self.artifacts.iter().map(|artifact| &artifact.name);
        let models = self.reference_values.snp.iter().map(|snp| &snp.vcpu_type);
        let texts = [&self.version, &self.source_revision];
        for text in texts.into_iter().chain(names.clone()).chain(models) {
            // They are shown to people, in terminals too.
            if text.is_empty()
                || text.len() > MAX_TEXT_BYTES
                || !text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
            {
                let text: String = text.chars().take(MAX_TEXT_BYTES).collect();
                return content(format!(
                    "{text:?} is not 1 to {MAX_TEXT_BYTES} printable ASCII characters"
                ));
            }
        }
        if self.artifacts.is_empty() {
            return content("it names no file of the release".to_owned());
        }
        if names.collect::<BTreeSet<_>>().len() < self.artifacts.len() {
            return content("it names a file twice".to_owned());
        }
        if self.reference_values.is_empty() {
            return content("it holds no reference value".to_owned());
        }
        let indices = self
            .reference_values
            .vtpm
            .iter()
            .flat_map(|vtpm| vtpm.pcrs.keys());
        if let Some(index) = indices.copied().find(|index| *index > LAST_PCR) {
            return content(format!("there is no PCR {index}"));
        }
        Ok(())
    }
}

impl VerifiedManifest {
    /// What it says.
    pub fn manifest(&self) -> &ReleaseManifest {
        &self.manifest
    }

    /// The key that signed it.
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// SHA-256 of the signed bytes.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }
}

impl AppraisalPolicy {
    /// Takes the reference values that this policy lacks from a release. What the relying party wrote, lists as well as
    /// [`ReferenceValues::AcceptAny`], stays; what the release does not say stays missing, and refuses (rule A5).
    #[must_use]
    pub fn with_manifest(mut self, verified: &VerifiedManifest) -> Self {
        let values = &verified.manifest.reference_values;
        let bytes = |digests: &[Hex<32>]| digests.iter().map(|digest| digest.0).collect();
        let mut rules = Vec::new();
        let mut fill = |rule, was_missing: bool| {
            if was_missing && !rules.contains(&rule) {
                rules.push(rule);
            }
        };
        fill(Rule::Measurement, self.measurements.fill(values.measurements()));
        fill(
            Rule::Configuration,
            self.configuration_digests
                .fill(bytes(&values.configuration_digests)),
        );
        fill(
            Rule::Trainer,
            self.trainer_digests.fill(bytes(&values.trainer_digests)),
        );
        fill(
            Rule::Libtorch,
            self.libtorch_digests.fill(bytes(&values.libtorch_digests)),
        );
        let tdx = &mut self.tdx;
        let registers = [
            (Rule::TdxRtmr0, &mut tdx.rtmr0),
            (Rule::TdxRtmr1, &mut tdx.rtmr1),
            (Rule::TdxRtmr2, &mut tdx.rtmr2),
            (Rule::TdxRtmr3, &mut tdx.rtmr3),
        ];
        for (index, (rule, register)) in registers.into_iter().enumerate() {
            fill(rule, register.fill(values.rtmr(index)));
        }
        self.release = Some(Release {
            version: verified.manifest.version.clone(),
            source_revision: verified.manifest.source_revision.clone(),
            manifest_sha256: Hex(verified.sha256),
            manifest_key: Hex(verified.key),
            rules,
        });
        self
    }
}

impl<T> ReferenceValues<T> {
    /// Fills what is missing, if there is anything to fill it with; says whether it did.
    fn fill(&mut self, values: Vec<T>) -> bool {
        let fills = matches!(self, Self::Missing) && !values.is_empty();
        if fills {
            *self = Self::AnyOf(values);
        }
        fills
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    #[serde(rename = "_type")]
    statement_type: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    name: String,
    digest: SubjectDigest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectDigest {
    sha256: Hex<32>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Predicate {
    version: String,
    source_revision: String,
    reference_values: ReferenceSet,
}

impl From<ReleaseManifest> for Statement {
    fn from(manifest: ReleaseManifest) -> Self {
        let subject = |artifact: Artifact| Subject {
            name: artifact.name,
            digest: SubjectDigest {
                sha256: Hex(artifact.sha256),
            },
        };
        Self {
            statement_type: STATEMENT_TYPE.to_owned(),
            subject: manifest.artifacts.into_iter().map(subject).collect(),
            predicate_type: RELEASE_PREDICATE_TYPE.to_owned(),
            predicate: Predicate {
                version: manifest.version,
                source_revision: manifest.source_revision,
                reference_values: manifest.reference_values,
            },
        }
    }
}

impl From<Statement> for ReleaseManifest {
    fn from(statement: Statement) -> Self {
        let artifact = |subject: Subject| Artifact {
            name: subject.name,
            sha256: subject.digest.sha256.0,
        };
        Self {
            artifacts: statement.subject.into_iter().map(artifact).collect(),
            version: statement.predicate.version,
            source_revision: statement.predicate.source_revision,
            reference_values: statement.predicate.reference_values,
        }
    }
}

const MAX_TEXT_BYTES: usize = 255;
/// PC Client platforms have 24 registers.
const LAST_PCR: u8 = 23;

#[cfg(test)]
mod tests;
