use super::*;
use crate::binding::tests as bindings;
use crate::claims::tests as claims_tests;
use crate::evidence::{Attester, Evidence};
use crate::{InsecureSimulatedAttester, TrustAnchors, verify};

fn evidence_for(binding: &Binding) -> Evidence {
    InsecureSimulatedAttester::new()
        .attest(&binding.report_data())
        .unwrap()
}

fn verified(evidence: &Evidence) -> VerifiedEvidence {
    verify(evidence, &TrustAnchors::bundled(), 1_000).unwrap()
}

fn appraise(evidence: &Evidence, policy: &AppraisalPolicy) -> Result<AttestationResult, AppraisalError> {
    verified(evidence).appraise(policy, &bindings::example(), &claims_tests::example())
}

fn rules(error: &AppraisalError) -> Vec<Rule> {
    error.refusals.iter().map(|refusal| refusal.rule).collect()
}

fn pinned() -> AppraisalPolicy {
    let claims = claims_tests::example();
    AppraisalPolicy {
        configuration_digests: ReferenceValues::AnyOf(vec![claims.configuration_digest]),
        trainer_digests: ReferenceValues::AnyOf(vec![claims.trainer_digest]),
        libtorch_digests: ReferenceValues::AnyOf(vec![claims.libtorch_digest]),
        root_key_providers: ReferenceValues::AnyOf(vec![claims.root_key_provider]),
        ledger_id: Some(claims.ledger_id),
        ..AppraisalPolicy::insecure_development()
    }
}

#[test]
fn a_matching_session_is_accepted_with_a_warning_that_it_is_simulated() {
    let result = appraise(
        &evidence_for(&bindings::example()),
        &AppraisalPolicy::insecure_development(),
    )
    .unwrap();
    assert_eq!(result.status(), Status::Warning);
    assert!(result.to_string().contains("SIMULATED"));
    let json: serde_json::Value = serde_json::to_value(&result).unwrap();
    assert_eq!(json["status"], "warning");
    assert_eq!(json["runtime_claims"]["boot_id"], "04".repeat(16));
    assert_eq!(json["accepted_without_reference_value"][0], "configuration");
    assert_eq!(json["verified_unix_ms"], 1_000);
}

#[test]
fn the_default_policy_refuses_everything_and_names_every_rule() {
    let error = appraise(&evidence_for(&bindings::example()), &AppraisalPolicy::default()).unwrap_err();
    for rule in [
        Rule::Simulated,
        Rule::Measurement,
        Rule::Configuration,
        Rule::Trainer,
        Rule::Libtorch,
        Rule::RootKeyProvider,
        Rule::InsecureFlags,
        Rule::Freshness,
    ] {
        assert!(rules(&error).contains(&rule), "{rule}");
    }
    let text = error.to_string();
    assert!(
        text.contains("allow_simulated") && text.contains("found") && text.contains("wanted"),
        "{text}"
    );
}

#[test]
fn simulated_evidence_needs_to_be_allowed_by_name() {
    let policy = AppraisalPolicy {
        allow_simulated: false,
        ..AppraisalPolicy::insecure_development()
    };
    let error = appraise(&evidence_for(&bindings::example()), &policy).unwrap_err();
    assert_eq!(rules(&error), [Rule::Simulated]);
}

#[test]
fn evidence_for_another_nonce_session_key_role_or_claims_is_refused() {
    for (name, other) in bindings::one_field_changed() {
        let error = appraise(&evidence_for(&other), &AppraisalPolicy::insecure_development()).unwrap_err();
        assert_eq!(rules(&error), [Rule::Binding], "{name}");
    }
}

#[test]
fn a_client_that_expects_another_session_refuses_true_evidence() {
    let evidence = evidence_for(&bindings::example());
    for (name, expected) in bindings::one_field_changed() {
        let outcome = verified(&evidence).appraise(
            &AppraisalPolicy::insecure_development(),
            &expected,
            &claims_tests::example(),
        );
        assert!(rules(&outcome.unwrap_err()).contains(&Rule::Binding), "{name}");
    }
}

#[test]
fn changed_claims_are_refused_field_by_field() {
    let evidence = evidence_for(&bindings::example());
    for (name, changed) in claims_tests::one_field_changed() {
        let mut policy = AppraisalPolicy::insecure_development();
        policy.allowed_insecure_flags.push("insecure-more".into());
        let outcome = verified(&evidence).appraise(&policy, &bindings::example(), &changed);
        assert_eq!(rules(&outcome.unwrap_err()), [Rule::RuntimeClaims], "{name}");

        // The server swaps the claims and the client hashes what it received: the report data betrays it.
        let rebound = Binding {
            claims_sha256: changed.digest(),
            ..bindings::example()
        };
        let outcome = verified(&evidence).appraise(&policy, &rebound, &changed);
        assert_eq!(rules(&outcome.unwrap_err()), [Rule::Binding], "{name}");
    }
}

#[test]
fn debuggable_guests_are_refused_by_every_policy() {
    let attester = InsecureSimulatedAttester::new().with_debug(true);
    let evidence = attester.attest(&bindings::example().report_data()).unwrap();
    let error = appraise(&evidence, &AppraisalPolicy::insecure_development()).unwrap_err();
    assert_eq!(rules(&error), [Rule::Debug]);
}

#[test]
fn another_measurement_or_chip_is_refused() {
    let data = bindings::example().report_data();
    let evidence = InsecureSimulatedAttester::new()
        .with_measurement([9; 48])
        .attest(&data)
        .unwrap();
    let error = appraise(&evidence, &AppraisalPolicy::insecure_development()).unwrap_err();
    assert_eq!(rules(&error), [Rule::Measurement]);
    assert!(error.to_string().contains(&"09".repeat(48)));

    let evidence = InsecureSimulatedAttester::new()
        .with_chip_id([9; 64])
        .attest(&data)
        .unwrap();
    let policy = AppraisalPolicy {
        chip_ids: Some(vec![crate::insecure_simulated::DEVELOPMENT_CHIP_ID.to_vec()]),
        ..AppraisalPolicy::insecure_development()
    };
    assert_eq!(rules(&appraise(&evidence, &policy).unwrap_err()), [Rule::ChipId]);
}

#[test]
fn pinned_values_are_compared_one_by_one() {
    assert!(appraise(&evidence_for(&bindings::example()), &pinned()).is_ok());
    let expected = [
        ("root_key_provider", Rule::RootKeyProvider),
        ("insecure_flags more", Rule::InsecureFlags),
        ("configuration_digest", Rule::Configuration),
        ("trainer_digest", Rule::Trainer),
        ("libtorch_digest", Rule::Libtorch),
        ("ledger_id", Rule::Ledger),
    ];
    for (name, claims) in claims_tests::one_field_changed() {
        let binding = Binding {
            claims_sha256: claims.digest(),
            ..bindings::example()
        };
        let outcome = verified(&evidence_for(&binding)).appraise(&pinned(), &binding, &claims);
        match expected.iter().find(|(field, _)| *field == name) {
            Some((_, rule)) => assert_eq!(rules(&outcome.unwrap_err()), [*rule], "{name}"),
            None => assert!(outcome.is_ok(), "{name} has no pin"),
        }
    }
}

#[test]
fn freshness_none_is_refused_unless_the_policy_names_it() {
    let policy = AppraisalPolicy {
        minimum_freshness: None,
        ..AppraisalPolicy::insecure_development()
    };
    let error = appraise(&evidence_for(&bindings::example()), &policy).unwrap_err();
    assert_eq!(rules(&error), [Rule::Freshness]);
}

#[test]
fn boot_evidence_cannot_serve_a_session_nor_the_other_way_round() {
    let claims = claims_tests::example();
    let boot = BootBinding {
        ledger_public_key: claims.ledger_public_key,
        boot_id: claims.boot_id,
        genesis_digest: [7; 32],
        claims_sha256: claims.digest(),
    };
    let policy = AppraisalPolicy::insecure_development();
    let boot_evidence = InsecureSimulatedAttester::new()
        .attest(&boot.report_data())
        .unwrap();
    assert!(
        verified(&boot_evidence)
            .appraise_boot(&policy, &boot, &claims)
            .is_ok()
    );
    assert!(appraise(&boot_evidence, &policy).is_err());
    let session_evidence = evidence_for(&bindings::example());
    assert!(
        verified(&session_evidence)
            .appraise_boot(&policy, &boot, &claims)
            .is_err()
    );

    let other_boot = BootBinding {
        boot_id: [9; 16],
        ..boot
    };
    let evidence = InsecureSimulatedAttester::new()
        .attest(&other_boot.report_data())
        .unwrap();
    let error = verified(&evidence)
        .appraise_boot(&policy, &other_boot, &claims)
        .unwrap_err();
    assert_eq!(rules(&error), [Rule::RuntimeClaims]);
}
