//! Policies over synthetic evidence; what only the inside of the crate can see.

use super::*;
use crate::binding::tests as bindings;
use crate::claims::tests as claims;
use crate::policy::{AppraisalPolicy, ReferenceValues};
use crate::result::Rule;
use crate::verify::VerifiedEvidence;
use crate::{AppraisalError, AttestationResult, Evidence, Status, TrustAnchors, verify};
use bastionai_test_platforms::tdx::{TestCollateral, TestIntel, TestTdx};
use std::sync::{Arc, LazyLock};

const NOW: u64 = 1_790_000_000;
static INTEL: LazyLock<Arc<TestIntel>> = LazyLock::new(|| Arc::new(TestIntel::new()));

fn platform() -> TestTdx {
    TestTdx::at(Arc::clone(&INTEL), NOW)
}

fn verified(platform: &TestTdx) -> VerifiedEvidence {
    let envelope = platform.envelope(&bindings::example().report_data());
    let evidence = Evidence {
        media_type: MEDIA_TYPE.to_owned(),
        bytes: envelope.to_bytes(),
    };
    let anchors = TrustAnchors::none().with_intel(Roots::new(INTEL.root_ca()));
    verify(&evidence, &anchors, NOW * 1000).unwrap()
}

/// Accepts the software that runs and the test TD's registers, and has the defaults otherwise.
fn policy(platform: &TestTdx) -> AppraisalPolicy {
    let [rtmr0, rtmr1, rtmr2, rtmr3] = platform.td.rtmrs.map(|value| ReferenceValues::AnyOf(vec![value]));
    let claims = claims::example();
    AppraisalPolicy {
        measurements: ReferenceValues::AnyOf(vec![platform.td.mr_td]),
        configuration_digests: ReferenceValues::AnyOf(vec![claims.configuration_digest]),
        trainer_digests: ReferenceValues::AnyOf(vec![claims.trainer_digest]),
        libtorch_digests: ReferenceValues::AnyOf(vec![claims.libtorch_digest]),
        root_key_providers: ReferenceValues::AnyOf(vec![claims.root_key_provider]),
        allow_simulated: false,
        tdx: Policy {
            rtmr0,
            rtmr1,
            rtmr2,
            rtmr3,
            ..Policy::default()
        },
        ..AppraisalPolicy::insecure_development()
    }
}

fn appraise(platform: &TestTdx, policy: &AppraisalPolicy) -> Result<AttestationResult, AppraisalError> {
    verified(platform).appraise(policy, &bindings::example(), &claims::example())
}

/// The one rule that refuses.
fn refusal(platform: &TestTdx, change: impl FnOnce(&mut AppraisalPolicy)) -> (Rule, String) {
    let mut policy = policy(platform);
    change(&mut policy);
    let error = appraise(platform, &policy).unwrap_err();
    assert_eq!(error.refusals.len(), 1, "{error}");
    (error.refusals[0].rule, error.refusals[0].to_string())
}

fn accepted(platform: &TestTdx, change: impl FnOnce(&mut AppraisalPolicy)) -> AttestationResult {
    let mut policy = policy(platform);
    change(&mut policy);
    appraise(platform, &policy).unwrap()
}

#[test]
fn a_td_in_order_is_accepted_and_shown() {
    let result = accepted(&platform(), |_| {});
    let text = result.to_string();
    for shown in [
        "UpToDate",
        "RTMR2",
        &hex::encode([0xd0; 48]),
        "collateral age     0 days",
    ] {
        assert!(text.contains(shown), "{text}");
    }
    let json = serde_json::to_value(&result).unwrap();
    assert_eq!(json["report"]["kind"], "tdx");
    assert_eq!(json["report"]["rtmrs"][1], "02".repeat(48));
    assert_eq!(json["report"]["tcb_status"], "UpToDate");
    assert_eq!(json["report"]["ppid"], "99".repeat(16));
    assert_eq!(json["report"]["mr_service_td"], serde_json::Value::Null);
    assert!(result.accepted_without_reference_value().is_empty());
}

#[test]
fn a_register_without_a_reference_value_is_refused() {
    let error = appraise(
        &platform(),
        &AppraisalPolicy {
            tdx: Policy::default(),
            ..policy(&platform())
        },
    )
    .unwrap_err();
    let rules: Vec<_> = error.refusals.iter().map(|refusal| refusal.rule).collect();
    assert_eq!(
        rules,
        [Rule::TdxRtmr0, Rule::TdxRtmr1, Rule::TdxRtmr2, Rule::TdxRtmr3]
    );
    assert!(error.to_string().contains("A5"), "{error}");
}

#[test]
fn each_register_has_its_own_values_and_any_is_shown_as_unchecked() {
    let other = || ReferenceValues::AnyOf(vec![[9; 48]]);
    assert_eq!(
        refusal(&platform(), |policy| policy.measurements = other()).0,
        Rule::Measurement
    );
    assert_eq!(
        refusal(&platform(), |policy| policy.tdx.rtmr0 = other()).0,
        Rule::TdxRtmr0
    );
    assert_eq!(
        refusal(&platform(), |policy| policy.tdx.rtmr1 = other()).0,
        Rule::TdxRtmr1
    );
    assert_eq!(
        refusal(&platform(), |policy| policy.tdx.rtmr2 = other()).0,
        Rule::TdxRtmr2
    );
    assert_eq!(
        refusal(&platform(), |policy| policy.tdx.rtmr3 = other()).0,
        Rule::TdxRtmr3
    );
    let result = accepted(&platform(), |policy| {
        policy.tdx.rtmr3 = ReferenceValues::AcceptAny
    });
    assert_eq!(result.accepted_without_reference_value(), [Rule::TdxRtmr3]);
    assert_eq!(result.status(), Status::Warning);
}

#[test]
fn attributes_are_refused_bit_by_bit_unless_named() {
    let with = |bits: u64| {
        let mut platform = platform();
        platform.td.attributes |= bits;
        platform
    };
    assert_eq!(refusal(&with(1), |_| {}).0, Rule::Debug);
    for (bit, name) in [(31, "KL"), (63, "PERFMON"), (62, "TPA"), (18, "bit 18")] {
        let (rule, text) = refusal(&with(1 << bit), |_| {});
        assert_eq!(rule, Rule::TdxAttributes);
        assert!(text.contains(name), "{text}");
    }
    accepted(&with(1 << 63), |policy| policy.tdx.allow_perfmon = true);
    accepted(&with(1 << 31), |policy| policy.tdx.allow_key_locker = true);
    for bit in [16, 27, 30] {
        accepted(&with(1 << bit), |_| {});
    }
}

/// What `verify` refuses already, should `dcap-qvl` one day let it pass.
#[test]
fn policy_refuses_migration_and_missing_sept_ve_disable_by_itself() {
    for attributes in [0u64, 1 << 28 | 1 << 29] {
        let mut evidence = verified(&platform());
        let crate::Platform::Tdx(report) = &mut evidence.report.platform else {
            panic!("evidence of TDX");
        };
        report.td_attributes = attributes.to_le_bytes();
        let error = evidence
            .appraise(&policy(&platform()), &bindings::example(), &claims::example())
            .unwrap_err();
        assert_eq!(error.refusals[0].rule, Rule::TdxAttributes);
    }
}

#[test]
fn a_service_td_is_refused_unless_named() {
    let mut platform = platform();
    platform.td.version = 5;
    platform.td.mr_service_td = Some([0; 48]);
    accepted(&platform, |_| {});
    platform.td.mr_service_td = Some([7; 48]);
    assert_eq!(refusal(&platform, |_| {}).0, Rule::TdxServiceTd);
    accepted(&platform, |policy| policy.tdx.mr_service_td = vec![[7; 48]]);
}

#[test]
fn tcb_statuses_other_than_up_to_date_need_a_choice_by_name() {
    let with = |tcb_status, advisories: &[&'static str]| {
        let mut platform = platform();
        let collateral = platform.collateral.as_mut().unwrap();
        collateral.tcb_status = tcb_status;
        collateral.advisories = advisories.to_vec();
        platform
    };
    let answered = |policy: &mut AppraisalPolicy| policy.tdx.accepted_advisories = vec!["INTEL-SA-1".into()];
    for status in [
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
    ] {
        let one = with(status, &["INTEL-SA-1"]);
        let (rule, text) = refusal(&one, |_| {});
        assert_eq!(rule, Rule::TdxTcbStatus);
        assert!(text.contains(status) && text.contains("INTEL-SA-1"), "{text}");
        accepted(&one, answered);
        assert_eq!(
            refusal(&with(status, &["INTEL-SA-1", "INTEL-SA-2"]), answered).0,
            Rule::TdxTcbStatus
        );
        assert_eq!(refusal(&with(status, &[]), answered).0, Rule::TdxTcbStatus);
        assert_eq!(
            refusal(&one, |policy| policy.tdx.allow_out_of_date = true).0,
            Rule::TdxTcbStatus
        );
    }
    for status in ["OutOfDate", "OutOfDateConfigurationNeeded"] {
        let outdated = with(status, &["INTEL-SA-1"]);
        assert_eq!(refusal(&outdated, answered).0, Rule::TdxTcbStatus);
        let result = accepted(&outdated, |policy| policy.tdx.allow_out_of_date = true);
        assert_eq!(result.accepted_without_reference_value(), [Rule::TdxTcbStatus]);
    }
    let mut outdated_enclave = platform();
    outdated_enclave.collateral.as_mut().unwrap().qe_status = "OutOfDate";
    assert_eq!(refusal(&outdated_enclave, |_| {}).0, Rule::TdxTcbStatus);
}

#[test]
fn a_platform_below_every_level_listed_is_refused_whatever_the_policy_allows() {
    let mut platform = platform();
    platform.td.tee_tcb_svn[2] = 0;
    let (rule, text) = refusal(&platform, |policy| policy.tdx.allow_out_of_date = true);
    assert_eq!(rule, Rule::TdxTcbStatus);
    assert!(text.contains("below every level"), "{text}");
}

#[test]
fn floors_ages_and_lists_refuse_by_name() {
    let mut old = platform();
    old.collateral = Some(TestCollateral::issued(NOW - 8 * 86_400));
    accepted(&old, |policy| policy.tdx.maximum_collateral_age_days = 8);
    let rule =
        |platform: &TestTdx, change: fn(&mut Policy)| refusal(platform, |policy| change(&mut policy.tdx)).0;
    assert_eq!(
        rule(&old, |tdx| tdx.maximum_collateral_age_days = 7),
        Rule::TdxCollateralAge
    );
    assert_eq!(
        rule(&platform(), |tdx| tdx.minimum_tcb_evaluation_data_number =
            Some(19)),
        Rule::TdxCollateralAge
    );
    // Higher in one byte is not enough for another.
    let mut floor = platform().td.tee_tcb_svn;
    floor[0] -= 1;
    accepted(&platform(), |policy| policy.tdx.minimum_tee_tcb_svn = Some(floor));
    floor[2] += 1;
    assert_eq!(
        refusal(&platform(), |policy| policy.tdx.minimum_tee_tcb_svn = Some(floor)).0,
        Rule::TdxTcbFloor
    );
    assert_eq!(rule(&platform(), |tdx| tdx.smt_off = true), Rule::TdxSmt);
    assert_eq!(
        rule(&platform(), |tdx| tdx.mr_seam = Some(vec![[1; 48]])),
        Rule::TdxModule
    );
    assert_eq!(
        rule(&platform(), |tdx| tdx.mr_signer_seam = vec![[1; 48]]),
        Rule::TdxModule
    );
    assert_eq!(
        rule(&platform(), |tdx| tdx.mr_config_id = Some(vec![[1; 48]])),
        Rule::TdxOwner
    );
    assert_eq!(
        rule(&platform(), |tdx| tdx.mr_owner = Some(vec![[1; 48]])),
        Rule::TdxOwner
    );
    assert_eq!(
        rule(&platform(), |tdx| tdx.mr_owner_config = Some(vec![])),
        Rule::TdxOwner
    );
    let pinned = refusal(&platform(), |policy| policy.chip_ids = Some(vec![vec![0; 16]]));
    assert_eq!(pinned.0, Rule::ChipId);
    accepted(&platform(), |policy| {
        policy.chip_ids = Some(vec![INTEL.ppid().to_vec()])
    });
}

#[test]
fn a_policy_is_written_in_toml_and_an_unknown_word_is_an_error() {
    let read = |text: &str| toml::from_str::<Policy>(text);
    assert_eq!(read("").unwrap(), Policy::default());
    let hex48 = "ab".repeat(48);
    let policy = read(&format!(
        "rtmr0 = ['{hex48}']\nrtmr3 = 'any'\nminimum_tee_tcb_svn = '{}'\nmr_seam = ['{hex48}']\n\
         accepted_advisories = ['INTEL-SA-1']\nallow_perfmon = true",
        "05".repeat(16)
    ))
    .unwrap();
    assert_eq!(policy.rtmr0, ReferenceValues::AnyOf(vec![[0xab; 48]]));
    assert_eq!(policy.rtmr1, ReferenceValues::Missing);
    assert_eq!(policy.rtmr3, ReferenceValues::AcceptAny);
    assert_eq!(policy.minimum_tee_tcb_svn, Some([5; 16]));
    assert_eq!(policy.mr_seam, Some(vec![[0xab; 48]]));
    assert!(policy.allow_perfmon);
    for wrong in [
        "rtmr0 = 'all'",
        "rtmr0 = ['ab']",
        "allow_debug = true",
        "mr_owner = ['zz']",
    ] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

/// The real quote of a debuggable TD comes without collateral: its policy is judged with a verdict made up here.
#[test]
fn the_real_debug_td_is_refused_by_policy() {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../shared/evidence/tdx/v4-debug.quote.bin"
    );
    let Ok(bytes) = std::fs::read(folder) else {
        println!("skipped: no {folder}");
        return;
    };
    let quote = quote::Quote::parse(&bytes).unwrap();
    chain::verify(&quote, quote.pck_chain, &Roots::bundled(), NOW).unwrap();
    let mut evidence = verified(&platform());
    let crate::Platform::Tdx(report) = &mut evidence.report.platform else {
        panic!("evidence of TDX");
    };
    report.debug = quote.body.is_debug();
    report.td_attributes = quote.body.td_attributes;
    let error = evidence
        .appraise(&policy(&platform()), &bindings::example(), &claims::example())
        .unwrap_err();
    assert_eq!(error.refusals[0].rule, Rule::Debug);
}
