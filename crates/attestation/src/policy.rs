//! What a relying party demands of a server.
//!
//! A5: a reference value that is missing refuses. Doing without one is a choice made by name
//! ([`ReferenceValues::AcceptAny`]) and is shown in the result.

use crate::azure;
use crate::claims::{self, Freshness};
use crate::insecure_simulated::DEVELOPMENT_MEASUREMENT;
use crate::nvidia;
use crate::release::Release;
use crate::tdx;

/// The values of one property that a relying party accepts.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ReferenceValues<T> {
    /// Nobody said: refused (rule A5).
    #[default]
    Missing,
    /// One of these.
    AnyOf(Vec<T>),
    /// Whatever is found, by explicit choice; shown in the result.
    AcceptAny,
}

/// What a relying party demands. [`Default`] demands reference values for everything and has none, so
/// it refuses every server.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct AppraisalPolicy {
    /// Accept evidence that anyone can forge. Development only.
    pub allow_simulated: bool,
    /// Launch measurements.
    pub measurements: ReferenceValues<[u8; 48]>,
    /// SHA-256 of effective configurations.
    pub configuration_digests: ReferenceValues<[u8; 32]>,
    /// SHA-256 of trainer programs.
    pub trainer_digests: ReferenceValues<[u8; 32]>,
    /// SHA-256 over libtorch libraries.
    pub libtorch_digests: ReferenceValues<[u8; 32]>,
    /// Root key providers, by name.
    pub root_key_providers: ReferenceValues<String>,
    /// Insecure flags a server may have set; any other refuses.
    pub allowed_insecure_flags: Vec<String>,
    /// Lowest freshness level; absent means `unlock`, the lowest that prevents a rollback.
    pub minimum_freshness: Option<Freshness>,
    /// If present, the only chips accepted, by the platform's own id (CHIP_ID, PPID): the answer to evidence relayed from an attacker's own machine.
    pub chip_ids: Option<Vec<Vec<u8>>>,
    /// GPUs.
    pub nvidia: nvidia::Policy,
    /// What an Intel TDX platform must meet besides.
    pub tdx: tdx::Policy,
    /// What is demanded of Azure VMs, beyond what is demanded of the TEE underneath.
    pub azure: azure::Policy,
    /// If present, the only ledger accepted.
    pub ledger_id: Option<[u8; 16]>,
    /// The release whose manifest filled reference values in.
    pub(crate) release: Option<Release>,
}

impl AppraisalPolicy {
    /// What `allow_simulated` means in full: simulated evidence of the development measurement, a root
    /// key in a file, freshness `none`, any configuration, trainer and libtorch. **Protects nothing
    /// against the operator**; for development, rehearsal and tests.
    pub fn insecure_development() -> Self {
        Self {
            allow_simulated: true,
            measurements: ReferenceValues::AnyOf(vec![DEVELOPMENT_MEASUREMENT]),
            configuration_digests: ReferenceValues::AcceptAny,
            trainer_digests: ReferenceValues::AcceptAny,
            libtorch_digests: ReferenceValues::AcceptAny,
            root_key_providers: ReferenceValues::AcceptAny,
            allowed_insecure_flags: vec![
                claims::INSECURE_SIMULATED_EVIDENCE.to_owned(),
                claims::INSECURE_FILE_ROOT_KEY.to_owned(),
                claims::INSECURE_TRAINER_SANDBOX.to_owned(),
            ],
            minimum_freshness: Some(Freshness::None),
            chip_ids: None,
            nvidia: nvidia::Policy::default(),
            tdx: tdx::Policy::default(),
            azure: azure::Policy::default(),
            ledger_id: None,
            release: None,
        }
    }
}
