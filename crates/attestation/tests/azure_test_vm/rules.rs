//! What is demanded of a test Azure VM, whatever the TEE underneath.

use super as tee;
use bastionai_attestation::azure::{self, DEMANDED_PCRS};
use bastionai_attestation::{
    AppraisalError, AppraisalPolicy, AttestationResult, Attester, Binding, Evidence, Freshness,
    ReferenceValues, Role, Rule, RuntimeClaims, Status, TrustAnchors, VerifiedEvidence, VerifyError, verify,
};
use bastionai_test_platforms::azure::{
    ATTESTATION_KEY, Configuration, OTHER_ATTESTATION_KEY, TestAzure, pcr,
};

fn boot(configuration: &Configuration) -> TestAzure {
    tee::boot(configuration)
}

fn machine() -> TestAzure {
    boot(&Configuration::default())
}

fn configured(vm_configuration: &str) -> TestAzure {
    boot(&Configuration {
        vm_configuration: vm_configuration.to_owned(),
        ..Configuration::default()
    })
}

fn evidence(machine: &TestAzure, qualifying_data: &[u8]) -> Evidence {
    Evidence {
        media_type: azure::MEDIA_TYPE.to_owned(),
        bytes: machine.pieces_over(qualifying_data).into_envelope().to_bytes(),
    }
}

pub(super) fn verified(machine: &TestAzure) -> Result<VerifiedEvidence, VerifyError> {
    verify(&evidence(machine, &[0; 64]), &tee::anchors(), tee::NOW)
}

fn appraise_over(
    machine: &TestAzure,
    policy: &AppraisalPolicy,
    qualifying_data: &[u8],
) -> Result<AttestationResult, AppraisalError> {
    let evidence = evidence(machine, qualifying_data);
    let verified = verify(&evidence, &tee::anchors(), tee::NOW).unwrap();
    verified.appraise(policy, &binding(), &claims())
}

fn appraise(machine: &TestAzure, policy: &AppraisalPolicy) -> Result<AttestationResult, AppraisalError> {
    appraise_over(machine, policy, &binding().report_data())
}

fn rules(outcome: Result<AttestationResult, AppraisalError>) -> Vec<Rule> {
    outcome
        .unwrap_err()
        .refusals
        .iter()
        .map(|refusal| refusal.rule)
        .collect()
}

/// Everything pinned: what a production relying party would have.
fn pinned() -> AppraisalPolicy {
    let claims = claims();
    let mut policy = tee::policy();
    policy.configuration_digests = ReferenceValues::AnyOf(vec![claims.configuration_digest]);
    policy.trainer_digests = ReferenceValues::AnyOf(vec![claims.trainer_digest]);
    policy.libtorch_digests = ReferenceValues::AnyOf(vec![claims.libtorch_digest]);
    policy.root_key_providers = ReferenceValues::AnyOf(vec![claims.root_key_provider]);
    let values = |index| (index, ReferenceValues::AnyOf(vec![[9; 32], pcr(index)]));
    policy.azure.pcrs = DEMANDED_PCRS.into_iter().map(values).collect();
    policy
}

#[test]
fn a_session_with_a_vm_whose_every_value_is_known_is_affirmed() {
    let result = appraise(&machine(), &pinned()).unwrap();
    assert_eq!(result.status(), Status::Affirming);
    assert_eq!(result.report().report_data, binding().report_data());
    let text = result.to_string();
    assert!(text.contains("secure boot        enabled"), "{text}");
    assert!(text.contains(&hex::encode(pcr(4))), "{text}");
    let json = serde_json::to_value(&result).unwrap();
    assert_eq!(json["report"]["kind"], "azure");
    assert_eq!(json["report"]["pcrs"]["4"], hex::encode(pcr(4)));
    assert_eq!(json["report"]["paravisor"]["vm"]["secure-boot"], true);
}

#[test]
fn the_attester_makes_what_is_appraised() {
    let evidence = machine().attest(&binding().report_data()).unwrap();
    let verified = verify(&evidence, &tee::anchors(), tee::NOW).unwrap();
    assert!(verified.appraise(&pinned(), &binding(), &claims()).is_ok());
}

#[test]
fn without_reference_values_each_demanded_pcr_refuses() {
    let mut policy = pinned();
    policy.azure.pcrs.clear();
    let error = appraise(&machine(), &policy).unwrap_err();
    for index in DEMANDED_PCRS {
        let missing = format!("a reference value of PCR {index}, and the policy has none");
        assert!(error.to_string().contains(&missing), "{error}");
    }
    assert_eq!(error.refusals.len(), DEMANDED_PCRS.len());
}

#[test]
fn another_value_of_any_pcr_of_the_policy_is_refused() {
    let mut policy = pinned();
    policy
        .azure
        .pcrs
        .insert(15, ReferenceValues::AnyOf(vec![pcr(15)]));
    for index in DEMANDED_PCRS.into_iter().chain([15]) {
        let mut machine = machine();
        machine.pcrs.insert(index, [8; 32]);
        let error = appraise(&machine, &policy).unwrap_err();
        assert!(
            error.to_string().contains(&format!("PCR {index} = 0808")),
            "{error}"
        );
        assert_eq!(rules(Err(error)), [Rule::Pcr]);
    }
}

#[test]
fn pcrs_that_the_policy_does_not_name_may_be_anything() {
    let mut machine = machine();
    for index in [1, 3, 5, 10, 15] {
        machine.pcrs.insert(index, [8; 32]);
    }
    assert!(appraise(&machine, &pinned()).is_ok());
}

#[test]
fn a_pcr_that_is_not_quoted_is_refused_even_if_any_value_would_do() {
    let mut policy = pinned();
    policy.azure.pcrs.insert(9, ReferenceValues::AcceptAny);
    let mut machine = machine();
    machine.pcrs.remove(&9);
    let error = appraise(&machine, &policy).unwrap_err();
    assert!(error.to_string().contains("PCR 9 is not quoted"), "{error}");
}

#[test]
fn pcrs_accepted_unseen_are_shown_and_lower_the_status() {
    let mut policy = pinned();
    policy.azure.pcrs.insert(9, ReferenceValues::AcceptAny);
    policy.azure.pcrs.insert(8, ReferenceValues::AcceptAny);
    let mut machine = machine();
    machine.pcrs.insert(9, [8; 32]);
    let result = appraise(&machine, &policy).unwrap();
    assert_eq!(result.accepted_without_reference_value(), [Rule::Pcr]);
    assert_eq!(result.status(), Status::Warning);
}

#[test]
fn qualifying_data_of_any_length_but_64_are_refused() {
    let mut padded = binding().report_data();
    for length in [0, 32, 63] {
        let outcome = appraise_over(&machine(), &pinned(), &padded[..length]);
        assert!(rules(outcome).contains(&Rule::Binding), "{length}");
    }
    for more in [1, 2] {
        let long = [&padded[..], &vec![0; more]].concat();
        assert_eq!(
            rules(appraise_over(&machine(), &pinned(), &long)),
            [Rule::Binding],
            "{more}"
        );
    }
    padded[63] ^= 1;
    assert_eq!(
        rules(appraise_over(&machine(), &pinned(), &padded)),
        [Rule::Binding]
    );
}

#[test]
fn a_configuration_that_lets_the_host_in_is_refused_by_name() {
    let with = |members: &str| configured(&format!(r#"{{"vmUniqueId":"x",{members}}}"#));
    let good = r#""secure-boot":true,"tpm-enabled":true,"console-enabled":false"#;
    assert!(appraise(&with(good), &pinned()).is_ok());
    for (members, rule) in [
        (
            r#""secure-boot":false,"tpm-enabled":true,"console-enabled":false"#,
            Rule::SecureBoot,
        ),
        (r#""tpm-enabled":true,"console-enabled":false"#, Rule::SecureBoot),
        (
            r#""secure-boot":true,"tpm-enabled":true,"console-enabled":true"#,
            Rule::Console,
        ),
        (r#""secure-boot":true,"tpm-enabled":true"#, Rule::Console),
        (&format!(r#"{good},"ipmi-enabled":true"#), Rule::Console),
        (
            r#""secure-boot":true,"tpm-enabled":false,"console-enabled":false"#,
            Rule::VmConfiguration,
        ),
        (&format!(r#"{good},"debug-enabled":true"#), Rule::VmConfiguration),
    ] {
        assert_eq!(rules(appraise(&with(members), &pinned())), [rule], "{members}");
    }
}

#[test]
fn what_a_policy_allows_by_name_is_accepted() {
    let machine = configured(
        r#"{"vmUniqueId":"x","secure-boot":false,"tpm-enabled":true,"console-enabled":true,"novel":1}"#,
    );
    let mut policy = pinned();
    policy.azure.require_secure_boot = false;
    policy.azure.allow_console = true;
    policy.azure.accepted_vm_configuration.insert("novel".to_owned());
    assert!(appraise(&machine, &policy).is_ok());
}

#[test]
fn other_vms_and_other_firmware_than_those_pinned_are_refused() {
    let mut policy = pinned();
    policy.azure.vm_ids = Some(vec!["11111111-2222-3333-4444-555555555555".to_owned()]);
    policy.azure.tpm_firmware_versions = Some(vec![0x2020_0312_0012_0003]);
    assert!(appraise(&machine(), &policy).is_ok());
    policy.azure.vm_ids = Some(vec![]);
    policy.azure.tpm_firmware_versions = Some(vec![1]);
    assert_eq!(
        rules(appraise(&machine(), &policy)),
        [Rule::VmId, Rule::TpmFirmware]
    );
}

#[test]
fn a_quote_by_another_key_than_the_paravisor_names_is_refused() {
    let mut machine = machine();
    machine.signing_key = OTHER_ATTESTATION_KEY;
    let outcome = verified(&machine);
    assert_eq!(outcome.unwrap_err(), VerifyError::Signature);
    let mut other = boot(&Configuration {
        attestation_key: OTHER_ATTESTATION_KEY,
        ..Configuration::default()
    });
    assert!(verified(&other).is_ok());
    other.signing_key = ATTESTATION_KEY;
    let outcome = verified(&other);
    assert_eq!(outcome.unwrap_err(), VerifyError::Signature);
}

#[test]
fn the_report_of_one_vm_with_the_runtime_data_of_another_is_refused() {
    let other = boot(&Configuration {
        attestation_key: OTHER_ATTESTATION_KEY,
        ..Configuration::default()
    });
    let mut machine = machine();
    machine.pieces.hcl_report[1236..].copy_from_slice(&other.pieces.hcl_report[1236..]);
    machine.signing_key = OTHER_ATTESTATION_KEY;
    let error = verified(&machine).unwrap_err();
    assert!(matches!(error, VerifyError::Unbound { .. }), "{error}");
}

#[test]
fn the_vendors_roots_know_no_test_vm_and_without_a_root_none_is_known() {
    let evidence = evidence(&machine(), &[0; 64]);
    assert!(verify(&evidence, &TrustAnchors::bundled(), tee::NOW).is_err());
    let error = verify(&evidence, &TrustAnchors::none(), tee::NOW).unwrap_err();
    assert!(matches!(error, VerifyError::UnknownMediaType(_)), "{error}");
}

#[test]
fn a_policy_is_read_from_text() {
    let value = "08".repeat(32);
    let text = format!(
        r#"{{"pcrs":{{"4":["{value}"],"10":"any"}},"allow_console":true,"vm_ids":["a"],"tpm_firmware_versions":[3]}}"#
    );
    let policy: azure::Policy = serde_json::from_str(&text).unwrap();
    assert_eq!(policy.pcrs[&4], ReferenceValues::AnyOf(vec![[8; 32]]));
    assert_eq!(policy.pcrs[&10], ReferenceValues::AcceptAny);
    assert!(policy.allow_console && policy.require_secure_boot);
    for wrong in [
        r#"{"pcrs":{"256":"any"}}"#,
        r#"{"pcrs":{"4":"all"}}"#,
        r#"{"pcrs":{"4":["08"]}}"#,
        r#"{"pcr":{}}"#,
    ] {
        assert!(serde_json::from_str::<azure::Policy>(wrong).is_err(), "{wrong}");
    }
}

fn claims() -> RuntimeClaims {
    RuntimeClaims {
        server_version: "0.1.0".into(),
        root_key_provider: "owner".into(),
        insecure_flags: vec![],
        configuration_digest: [1; 32],
        trainer_digest: [2; 32],
        libtorch_digest: [3; 32],
        boot_id: [4; 16],
        ledger_id: [5; 16],
        ledger_public_key: [6; 32],
        ledger_sequence: 1,
        ledger_head: [7; 32],
        freshness: Freshness::Unlock,
    }
}

fn binding() -> Binding {
    Binding {
        nonce: [1; 32],
        exporter: [2; 32],
        spki_sha256: [3; 32],
        role: Role::Server,
        claims_sha256: claims().digest(),
    }
}
