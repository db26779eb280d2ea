//! A manifest counts under the key that is named, in the one form; and fills what a policy lacks.

use super::*;
use crate::binding::tests as bindings;
use crate::claims::tests as claims_tests;
use crate::evidence::Attester;
use crate::reference::{PcrReference, SnpReference, TdxReference};
use crate::{InsecureSimulatedAttester, TrustAnchors, verify};
use proptest::prelude::*;
use ring::signature::{Ed25519KeyPair, KeyPair};
use std::collections::BTreeMap;

fn key(seed: u8) -> (Ed25519KeyPair, [u8; 32]) {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
    let public = pair.public_key().as_ref().try_into().unwrap();
    (pair, public)
}

fn example() -> ReleaseManifest {
    let claims = claims_tests::example();
    ReleaseManifest {
        artifacts: vec![Artifact {
            name: "bastionai".to_owned(),
            sha256: [1; 32],
        }],
        version: "0.1.0".to_owned(),
        source_revision: "99a17ac".to_owned(),
        reference_values: ReferenceSet {
            snp: vec![SnpReference {
                vcpu_type: "EPYC-Milan".to_owned(),
                vcpus: 4,
                guest_features: 1,
                measurement: Hex(crate::insecure_simulated::DEVELOPMENT_MEASUREMENT),
            }],
            tdx: vec![TdxReference {
                mrtd: Hex([2; 48]),
                rtmr0: None,
                rtmr1: Some(Hex([3; 48])),
                rtmr2: Some(Hex([4; 48])),
                rtmr3: Some(Hex([0; 48])),
            }],
            vtpm: vec![PcrReference {
                pcrs: BTreeMap::from([(4, Hex([5; 32]))]),
            }],
            trainer_digests: vec![Hex(claims.trainer_digest)],
            libtorch_digests: vec![Hex(claims.libtorch_digest)],
            configuration_digests: vec![],
        },
    }
}

fn sealed(payload: &[u8], payload_type: &str, seed: u8) -> Vec<u8> {
    let (pair, public) = key(seed);
    dsse::seal(payload, payload_type, &public, |message| {
        pair.sign(message).as_ref().try_into().unwrap()
    })
}

fn signed(manifest: &ReleaseManifest) -> Vec<u8> {
    let (pair, public) = key(1);
    let sign = |message: &[u8]| pair.sign(message).as_ref().try_into().unwrap();
    manifest.sign(&public, sign).unwrap()
}

fn payload() -> String {
    serde_json::to_string(&Statement::from(example())).unwrap()
}

fn verified() -> VerifiedManifest {
    ReleaseManifest::verify(&signed(&example()), &key(1).1).unwrap()
}

#[test]
fn what_was_signed_is_what_is_read() {
    let verified = verified();
    assert_eq!(verified.manifest(), &example());
    assert_eq!(verified.key(), &key(1).1);
    assert_eq!(
        verified.sha256(),
        &<[u8; 32]>::from(Sha256::digest(signed(&example())))
    );
}

#[test]
fn the_statement_is_in_totos_with_the_members_written_in_the_docs() {
    let json: serde_json::Value = serde_json::from_str(&payload()).unwrap();
    assert_eq!(json["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(json["predicateType"], "tag:bastionai,2026:release/v1");
    assert_eq!(json["subject"][0]["digest"]["sha256"], "01".repeat(32));
    let values = &json["predicate"]["reference_values"];
    assert_eq!(values["tdx"][0]["rtmr1"], "03".repeat(48));
    assert_eq!(values["vtpm"][0]["pcrs"]["4"], "05".repeat(32));
}

#[test]
fn unsigned_otherwise_signed_and_otherwise_typed_manifests_are_refused() {
    let statement = payload();
    let (_, public) = key(1);
    let refused = |bytes: &[u8]| ReleaseManifest::verify(bytes, &public).unwrap_err();
    assert_eq!(refused(statement.as_bytes()), EnvelopeError::Malformed.into());
    assert!(matches!(
        refused(&sealed(statement.as_bytes(), MANIFEST_PAYLOAD_TYPE, 2)),
        ManifestError::Envelope(EnvelopeError::OtherKey { .. })
    ));
    assert!(matches!(
        refused(&sealed(
            statement.as_bytes(),
            "application/vnd.bastionai.receipt+json",
            1
        )),
        ManifestError::Envelope(EnvelopeError::PayloadType { .. })
    ));
    // Signed by another key that claims to be ours: key ids are not signed.
    let text = String::from_utf8(sealed(statement.as_bytes(), MANIFEST_PAYLOAD_TYPE, 2)).unwrap();
    let id = |seed| hex::encode(Sha256::digest(key(seed).1));
    assert_eq!(
        refused(text.replace(&id(2), &id(1)).as_bytes()),
        EnvelopeError::Signature.into()
    );
    assert!(matches!(
        refused(&vec![b' '; MAX_MANIFEST_BYTES + 1]),
        ManifestError::TooLong { .. }
    ));
}

#[test]
fn signed_statements_of_another_form_are_refused() {
    let statement = payload();
    for (from, to, named) in [
        ("Statement/v1", "Statement/v0.1", "_type"),
        ("release/v1", "release/v2", "predicateType"),
        ("\"version\"", "\"expires\":1,\"version\"", "expires"),
        ("\"name\"", "\"uri\":\"x\",\"name\"", "uri"),
        ("\"sha256\"", "\"sha512\"", "sha512"),
        ("\"vcpus\"", "\"cpus\"", "cpus"),
        ("\"snp\"", "\"sgx\"", "sgx"),
        ("0.1.0", "", "printable"),
        ("0.1.0", "\\u001b[31m", "printable"),
        ("{\"4\":", "{\"24\":", "PCR 24"),
        (
            "\"version\":\"0.1.0\"",
            "\"version\":\"0.1.0\",\"version\":\"0.2.0\"",
            "duplicate",
        ),
    ] {
        assert!(statement.contains(from), "{from}");
        let changed = statement.replacen(from, to, 1);
        let envelope = sealed(changed.as_bytes(), MANIFEST_PAYLOAD_TYPE, 1);
        let error = ReleaseManifest::verify(&envelope, &key(1).1)
            .unwrap_err()
            .to_string();
        assert!(error.contains(named), "{from} → {to}: {error}");
    }
}

#[test]
fn a_manifest_that_says_nothing_is_not_signed() {
    let (pair, public) = key(1);
    let artifact = example().artifacts[0].clone();
    for manifest in [
        ReleaseManifest {
            artifacts: vec![],
            ..example()
        },
        ReleaseManifest {
            artifacts: vec![artifact.clone(), artifact],
            ..example()
        },
        ReleaseManifest {
            reference_values: ReferenceSet::default(),
            ..example()
        },
        ReleaseManifest {
            source_revision: "x".repeat(256),
            ..example()
        },
    ] {
        let sign = |message: &[u8]| pair.sign(message).as_ref().try_into().unwrap();
        assert!(matches!(
            manifest.sign(&public, sign),
            Err(ManifestError::Content(_))
        ));
    }
}

#[test]
fn every_flipped_byte_of_a_manifest_is_refused() {
    let signed = signed(&example());
    for at in 0..signed.len() {
        let mut flipped = signed.clone();
        flipped[at] ^= 1;
        assert!(ReleaseManifest::verify(&flipped, &key(1).1).is_err(), "byte {at}");
    }
}

#[test]
fn a_manifest_fills_what_is_missing_and_never_what_was_written() {
    let mut own = AppraisalPolicy {
        trainer_digests: ReferenceValues::AnyOf(vec![[9; 32]]),
        libtorch_digests: ReferenceValues::AcceptAny,
        ..AppraisalPolicy::default()
    };
    own.tdx.rtmr2 = ReferenceValues::AcceptAny;
    let policy = own.with_manifest(&verified());
    assert_eq!(policy.trainer_digests, ReferenceValues::AnyOf(vec![[9; 32]]));
    assert_eq!(policy.libtorch_digests, ReferenceValues::AcceptAny);
    assert_eq!(
        policy.configuration_digests,
        ReferenceValues::Missing,
        "the release does not say"
    );
    assert_eq!(
        policy.measurements,
        ReferenceValues::AnyOf(vec![crate::insecure_simulated::DEVELOPMENT_MEASUREMENT, [2; 48]])
    );
    assert_eq!(
        policy.tdx.rtmr0,
        ReferenceValues::Missing,
        "the release does not say"
    );
    assert_eq!(policy.tdx.rtmr1, ReferenceValues::AnyOf(vec![[3; 48]]));
    assert_eq!(policy.tdx.rtmr2, ReferenceValues::AcceptAny);
    assert_eq!(policy.tdx.rtmr3, ReferenceValues::AnyOf(vec![[0; 48]]));
    let rules = policy.release.unwrap().rules;
    assert!(rules.contains(&Rule::TdxRtmr1) && !rules.contains(&Rule::TdxRtmr2));
    assert!(rules.contains(&Rule::Measurement) && !rules.contains(&Rule::Trainer));
    assert!(!rules.contains(&Rule::Libtorch) && !rules.contains(&Rule::Configuration));
}

#[test]
fn the_result_names_the_release_that_reference_values_came_from() {
    let evidence = InsecureSimulatedAttester::new()
        .attest(&bindings::example().report_data())
        .unwrap();
    let appraise = |policy: &AppraisalPolicy| {
        let verified = verify(&evidence, &TrustAnchors::bundled(), 1_000).unwrap();
        verified.appraise(policy, &bindings::example(), &claims_tests::example())
    };
    let own = AppraisalPolicy {
        measurements: ReferenceValues::Missing,
        trainer_digests: ReferenceValues::Missing,
        ..AppraisalPolicy::insecure_development()
    };
    assert!(appraise(&own).is_err());
    assert!(
        appraise(&AppraisalPolicy::insecure_development())
            .unwrap()
            .release()
            .is_none()
    );
    let result = appraise(&own.with_manifest(&verified())).unwrap();
    let release = result.release().unwrap();
    assert_eq!(
        (release.version.as_str(), release.manifest_key.0),
        ("0.1.0", key(1).1)
    );
    assert!(release.rules.starts_with(&[Rule::Measurement, Rule::Trainer]));
    let json = serde_json::to_value(&result).unwrap();
    assert_eq!(json["release"]["source_revision"], "99a17ac");
    assert_eq!(json["release"]["rules"][0], "measurement");
    assert!(result.to_string().contains("0.1.0 of source 99a17ac"), "{result}");
}

proptest! {
    #[test]
    fn random_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(ReleaseManifest::verify(&bytes, &key(1).1).is_err());
        prop_assert!(ReleaseManifest::from_statement(&bytes).is_err());
    }
}
