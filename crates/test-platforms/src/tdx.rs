//! A test Intel: root, PCK CA, TCB signer and one platform whose quoting enclave signs any TD's quote.
//!
//! All keys are P-256 and made anew for each [`TestIntel`]. What is signed has the formats of the real ones: quote
//! versions 4 and 5, PCK certificate with Intel's SGX extensions, collateral as PCCS clients write it.

mod collateral;
mod event_log;
mod pki;
mod quote;

pub use collateral::TestCollateral;
pub use event_log::{TestEvent, event_log};
pub use pki::TestIntel;
pub use quote::TestTd;

use bastionai_attestation::{AttestError, Attester, Envelope, Evidence, Item, tdx};
use std::sync::Arc;

/// An attester in a test TD: quote, event log if there is one, and stapled collateral.
#[derive(Clone)]
pub struct TestTdx {
    /// Who made the platform and vouches for it.
    pub intel: Arc<TestIntel>,
    /// What the quote says.
    pub td: TestTd,
    /// What is stapled; nothing if absent.
    pub collateral: Option<TestCollateral>,
    /// The firmware's log; its events should give the RTMRs of `td`.
    pub events: Option<Vec<TestEvent>>,
}

impl TestTdx {
    /// A TD in order, on a platform up to date, with collateral made an hour before the clock of this machine.
    pub fn new(intel: Arc<TestIntel>) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.expect("the clock is past 1970").as_secs();
        Self::at(intel, now)
    }

    /// The same, with collateral made an hour before `now_unix_seconds`.
    pub fn at(intel: Arc<TestIntel>, now_unix_seconds: u64) -> Self {
        Self {
            intel,
            td: TestTd::default(),
            collateral: Some(TestCollateral::issued(now_unix_seconds - 3600)),
            events: None,
        }
    }

    /// With a firmware's log, and the RTMRs that it gives.
    pub fn with_events(mut self, events: Vec<TestEvent>) -> Self {
        self.td.rtmrs = event_log::registers(&events);
        self.events = Some(events);
        self
    }

    /// The items of the evidence for `report_data`.
    pub fn envelope(&self, report_data: &[u8; 64]) -> Envelope {
        let mut evidence = vec![Item::new(tdx::QUOTE, self.intel.quote(&self.td, report_data))];
        if let Some(events) = &self.events {
            evidence.push(Item::new(tdx::EVENT_LOG, event_log(events)));
        }
        let stapled = self.collateral.iter();
        Envelope {
            evidence,
            endorsements: stapled
                .map(|collateral| Item::new(tdx::COLLATERAL, self.intel.collateral(collateral)))
                .collect(),
        }
    }
}

impl Attester for TestTdx {
    fn media_type(&self) -> &'static str {
        tdx::MEDIA_TYPE
    }

    fn attest(&self, report_data: &[u8; 64]) -> Result<Evidence, AttestError> {
        Ok(Evidence {
            media_type: tdx::MEDIA_TYPE.to_owned(),
            bytes: self.envelope(report_data).to_bytes(),
        })
    }
}
