//! The PyO3 module `bastionai._internal`: Python's way to client, graph and privacy. No logic of its own.
//!
//! `contract` and `model` check locally what is about to be sent; `session` speaks to a server, under a
//! `policy`; `receipt` checks what came back; `privacy` and `filter` answer what-ifs; `errors` is the one place
//! where Rust errors become exceptions. Blocking calls release the GIL and look for signals, so that Ctrl-C works (`blocking`).
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod blocking;
mod contract;
mod errors;
mod evaluation;
mod filter;
mod model;
mod policy;
mod privacy;
mod receipt;
mod session;

use pyo3::prelude::*;

/// What `bastionai/_internal.pyi` describes.
#[pymodule]
mod _internal {
    #[pymodule_export]
    use super::contract::{
        UnitCount, canonical_contract, check_batch, contract_digest, declared_size_for, encode_identifiers,
    };
    /// Share of the privacy that the released loss takes when none is named.
    #[pymodule_export]
    const DEFAULT_LOSS_SHARE: f64 = bastionai_client::DEFAULT_LOSS_SHARE;
    #[pymodule_export]
    use super::errors::exceptions_by_reason;
    #[pymodule_export]
    use super::evaluation::{FetchedEvaluation, estimate_metrics, score_edges};
    #[pymodule_export]
    use super::filter::RenyiFilter;
    #[pymodule_export]
    use super::model::{check_archive, check_scores_archive};
    #[pymodule_export]
    use super::privacy::{
        PrivacyProfile, event_delta, event_epsilon, event_epsilon_lower_bound, noise_multiplier, plan,
        plan_bands, sample_rate, steps,
    };
    #[pymodule_export]
    use super::receipt::verify_receipt;
    #[pymodule_export]
    use super::session::{FetchedRun, Session, Upload, Watch, generate_identity};
}
