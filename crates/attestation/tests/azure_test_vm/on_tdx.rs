//! The paravisor in a TD of a test Intel.

use bastionai_attestation::{AppraisalPolicy, Envelope, ReferenceValues, TrustAnchors, tdx};
use bastionai_test_platforms::azure::{Configuration, TestAzure};
use bastionai_test_platforms::tdx::{TestIntel, TestTdx};
use std::sync::{Arc, LazyLock};

#[path = "rules.rs"]
mod rules;

const NOW_SECONDS: u64 = 1_795_500_000;
pub(crate) const NOW: u64 = NOW_SECONDS * 1000;

static INTEL: LazyLock<Arc<TestIntel>> = LazyLock::new(|| Arc::new(TestIntel::new()));

fn td() -> TestTdx {
    TestTdx::at(INTEL.clone(), NOW_SECONDS)
}

pub(crate) fn boot(configuration: &Configuration) -> TestAzure {
    TestAzure::boot(configuration, |report_data| td().envelope(report_data))
}

pub(crate) fn anchors() -> TrustAnchors {
    TrustAnchors::bundled().with_intel(tdx::Roots::new(INTEL.root_ca()))
}

pub(crate) fn policy() -> AppraisalPolicy {
    let td = td().td;
    let mut policy = AppraisalPolicy::default();
    policy.measurements = ReferenceValues::AnyOf(vec![td.mr_td]);
    let [rtmr0, rtmr1, rtmr2, rtmr3] = td.rtmrs.map(|value| ReferenceValues::AnyOf(vec![value]));
    (policy.tdx.rtmr0, policy.tdx.rtmr1) = (rtmr0, rtmr1);
    (policy.tdx.rtmr2, policy.tdx.rtmr3) = (rtmr2, rtmr3);
    policy
}

#[test]
fn a_quote_of_another_td_over_the_same_runtime_data_is_refused() {
    let mut machine = boot(&Configuration::default());
    let mut other = td();
    other.td.mr_td = [7; 48];
    let data = machine.pieces.hcl_report[32 + 128..32 + 192].try_into().unwrap();
    let Envelope { mut evidence, .. } = other.envelope(&data);
    machine.pieces.td_quote = Some(evidence.remove(0).bytes);
    let error = rules::verified(&machine).unwrap_err().to_string();
    assert!(error.contains("MRTD"), "{error}");
}

#[test]
fn collateral_that_is_not_there_is_named() {
    let mut machine = boot(&Configuration::default());
    machine.pieces.collateral = None;
    let error = rules::verified(&machine).unwrap_err().to_string();
    assert!(error.contains("collateral"), "{error}");
}
