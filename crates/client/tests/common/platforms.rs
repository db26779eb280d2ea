//! Every kind of platform that evidence comes from, each by a vendor whose root the tests hold.

use bastionai_attestation::{Attester, InsecureSimulatedAttester, ReferenceValues, TrustAnchors};
use bastionai_client::AppraisalPolicy;
use std::sync::Arc;

/// A platform, and what it takes to accept it.
#[derive(Clone)]
pub struct TestPlatform {
    pub name: &'static str,
    pub attester: Arc<dyn Attester>,
    /// The roots that its evidence chains to.
    pub anchors: TrustAnchors,
    /// Accepts it.
    pub policy: AppraisalPolicy,
    /// Accepts it but for the launch measurement.
    pub policy_for_another_guest: AppraisalPolicy,
    /// A time at which its certificates and collateral are valid.
    pub now_unix_ms: u64,
}

/// Every kind.
pub fn all() -> Vec<TestPlatform> {
    vec![simulated()]
}

fn simulated() -> TestPlatform {
    platform(
        "insecure-simulated",
        InsecureSimulatedAttester::new(),
        TrustAnchors::bundled(),
        AppraisalPolicy::insecure_development(),
    )
}

fn platform(
    name: &'static str,
    attester: impl Attester + 'static,
    anchors: TrustAnchors,
    policy: AppraisalPolicy,
) -> TestPlatform {
    let mut policy_for_another_guest = policy.clone();
    policy_for_another_guest.measurements = ReferenceValues::AnyOf(vec![[0x5a; 48]]);
    TestPlatform {
        name,
        attester: Arc::new(attester),
        anchors,
        policy,
        policy_for_another_guest,
        now_unix_ms: NOW_UNIX_MS,
    }
}

/// 2026-11-24.
const NOW_UNIX_MS: u64 = 1_795_500_000_000;
