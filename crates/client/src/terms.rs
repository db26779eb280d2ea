//! An appraisal policy as people write it: a JSON object, or flags. Whatever has no reference value refuses.

use bastionai_attestation::reference::Hex;
use bastionai_attestation::{AppraisalPolicy, Freshness, ReferenceValues, ReleaseManifest};
use serde::Deserialize;

/// A relying party's terms in text form. Reference values are lists, or the one word `any`; `any` accepts
/// whatever is found, by explicit choice, and the result says so.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AppraisalTerms {
    /// Launch measurements, 96 hex digits each.
    pub measurements: OneOrMany,
    /// SHA-256 of effective configurations, 64 hex digits each.
    pub configuration_digests: OneOrMany,
    /// SHA-256 of trainer programs.
    pub trainer_digests: OneOrMany,
    /// SHA-256 over the libtorch libraries.
    pub libtorch_digests: OneOrMany,
    /// Root key providers, by name.
    pub root_key_providers: OneOrMany,
    /// Insecure flags that are accepted; any other refuses.
    pub allowed_insecure_flags: Vec<String>,
    /// `none`, `unlock` or `witness`; absent: `unlock`.
    pub minimum_freshness: Option<String>,
    /// The only chips accepted, 128 hex digits each; absent: any genuine one.
    pub chip_ids: Option<Vec<String>>,
    /// The only ledger accepted, 32 hex digits.
    pub ledger_id: Option<String>,
    /// A release whose reference values fill in those that are absent.
    pub manifest: Option<ManifestTerms>,
}

/// The manifest of a release, and whom the relying party trusts to make one.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestTerms {
    /// The signed manifest, as `bastionai release-manifest` writes it.
    pub signed: String,
    /// The Ed25519 key that must have signed it, 64 lower-case hex digits.
    pub key: String,
}

/// One text, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Any number.
    Many(Vec<String>),
}

impl Default for OneOrMany {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

/// Terms that cannot be: the field, and what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the appraisal policy: {0}")]
pub struct TermsError(String);

impl AppraisalTerms {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// [`TermsError`] for an unknown field or a value of another form.
    pub fn parse_json(json: &str) -> Result<Self, TermsError> {
        serde_json::from_str(json).map_err(|error| TermsError(error.to_string()))
    }

    /// The verifier's policy. Simulated evidence is never accepted by it.
    ///
    /// # Errors
    /// [`TermsError`] for a value that is no such digest, id or level.
    pub fn into_policy(self) -> Result<AppraisalPolicy, TermsError> {
        let mut policy = AppraisalPolicy::default();
        policy.measurements = values("measurements", self.measurements, fixed)?;
        policy.configuration_digests = values("configuration_digests", self.configuration_digests, fixed)?;
        policy.trainer_digests = values("trainer_digests", self.trainer_digests, fixed)?;
        policy.libtorch_digests = values("libtorch_digests", self.libtorch_digests, fixed)?;
        policy.root_key_providers = values("root_key_providers", self.root_key_providers, |_, text| {
            Ok(text.to_owned())
        })?;
        policy.allowed_insecure_flags = self.allowed_insecure_flags;
        policy.minimum_freshness = self.minimum_freshness.as_deref().map(freshness).transpose()?;
        let chips = self.chip_ids.map(|ids| {
            ids.iter()
                .map(|id| fixed::<64>("chip_ids", id).map(Vec::from))
                .collect::<Result<Vec<_>, _>>()
        });
        policy.chip_ids = chips.transpose()?;
        policy.ledger_id = self.ledger_id.map(|id| fixed("ledger_id", &id)).transpose()?;
        match self.manifest {
            None => Ok(policy),
            Some(ManifestTerms { signed, key }) => {
                let Hex(key) = key
                    .parse()
                    .map_err(|error| TermsError(format!("manifest.key: {error}")))?;
                let verified = ReleaseManifest::verify(signed.as_bytes(), &key)
                    .map_err(|error| TermsError(format!("manifest.signed: {error}")))?;
                Ok(policy.with_manifest(&verified))
            }
        }
    }
}

fn values<T>(
    field: &str,
    written: OneOrMany,
    read: impl Fn(&str, &str) -> Result<T, TermsError>,
) -> Result<ReferenceValues<T>, TermsError> {
    let texts = match written {
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(texts) => texts,
    };
    match texts.as_slice() {
        [] => Ok(ReferenceValues::Missing),
        [any] if any == "any" => Ok(ReferenceValues::AcceptAny),
        texts => {
            let read: Result<Vec<_>, _> = texts.iter().map(|text| read(field, text)).collect();
            Ok(ReferenceValues::AnyOf(read?))
        }
    }
}

fn fixed<const N: usize>(field: &str, text: &str) -> Result<[u8; N], TermsError> {
    let bytes = hex::decode(text).map_err(|_| TermsError(format!("{field}: {text:?} is not hexadecimal")))?;
    bytes
        .try_into()
        .map_err(|_| TermsError(format!("{field}: {text:?} does not have {} hex digits", 2 * N)))
}

fn freshness(name: &str) -> Result<Freshness, TermsError> {
    match name {
        "none" => Ok(Freshness::None),
        "unlock" => Ok(Freshness::Unlock),
        "witness" => Ok(Freshness::Witness),
        _ => Err(TermsError(format!(
            "minimum_freshness: {name:?} is not none, unlock or witness"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: &str) -> Result<AppraisalPolicy, String> {
        let terms = AppraisalTerms::parse_json(json).map_err(|error| error.to_string())?;
        terms.into_policy().map_err(|error| error.to_string())
    }

    #[test]
    fn terms_that_name_nothing_are_the_policy_that_refuses_every_server() {
        assert_eq!(
            format!("{:?}", policy("{}").unwrap()),
            format!("{:?}", AppraisalPolicy::default())
        );
    }

    #[test]
    fn reference_values_are_lists_or_the_word_any() {
        let digest = "ab".repeat(32);
        let json = format!(
            r#"{{"trainer_digests":["{digest}"],"libtorch_digests":"any","root_key_providers":["any"]}}"#
        );
        let policy = policy(&json).unwrap();
        assert!(matches!(policy.trainer_digests, ReferenceValues::AnyOf(values) if values == [[0xab; 32]]));
        assert!(matches!(policy.libtorch_digests, ReferenceValues::AcceptAny));
        assert!(matches!(policy.root_key_providers, ReferenceValues::AcceptAny));
        assert!(matches!(policy.measurements, ReferenceValues::Missing));
        assert!(!policy.allow_simulated);
    }

    #[test]
    fn a_release_fills_in_what_is_absent_under_the_key_that_is_named() {
        use bastionai_attestation::Artifact;
        use bastionai_attestation::reference::ReferenceSet;
        let maker = crate::Identity::generate().unwrap();
        let manifest = ReleaseManifest {
            artifacts: vec![Artifact {
                name: "bastionai".to_owned(),
                sha256: [1; 32],
            }],
            version: "0.1.0".to_owned(),
            source_revision: "abc".to_owned(),
            reference_values: ReferenceSet {
                trainer_digests: vec![Hex([2; 32])],
                libtorch_digests: vec![Hex([3; 32])],
                ..ReferenceSet::default()
            },
        };
        let signed = manifest
            .sign(&maker.public_key(), |message| maker.sign(message))
            .unwrap();
        let json = |key: [u8; 32]| {
            serde_json::json!({
                "libtorch_digests": ["04".repeat(32)],
                "manifest": {"signed": String::from_utf8(signed.clone()).unwrap(), "key": hex::encode(key)},
            })
            .to_string()
        };
        let filled = policy(&json(maker.public_key())).unwrap();
        assert_eq!(filled.trainer_digests, ReferenceValues::AnyOf(vec![[2; 32]]));
        assert_eq!(filled.libtorch_digests, ReferenceValues::AnyOf(vec![[4; 32]]));
        assert_eq!(filled.measurements, ReferenceValues::Missing);
        let error = policy(&json([7; 32])).unwrap_err();
        assert!(error.contains("manifest.signed"), "{error}");
    }

    #[test]
    fn a_field_that_is_wrong_is_named() {
        for (json, named) in [
            (r#"{"trainer_digests":["zz"]}"#, "trainer_digests"),
            (r#"{"measurements":"abab"}"#, "96 hex digits"),
            (r#"{"minimum_freshness":"some"}"#, "witness"),
            (r#"{"trainer_digest":[]}"#, "trainer_digest"),
            (r#"{"manifest":{"signed":"{}"}}"#, "key"),
            (r#"{"manifest":{"signed":"{}","key":"AB"}}"#, "manifest.key"),
        ] {
            let error = policy(json).unwrap_err();
            assert!(error.contains(named), "{json}: {error}");
        }
    }
}
