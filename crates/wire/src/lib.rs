//! Messages only, no logic: [`v1`] is the gRPC contract between clients and server, generated from
//! `proto/`; [`trainer`] is what server and trainer say to each other over pipes; [`average`], [`bands`], [`clipping`], [`compute`],
//! [`noise_mode`], [`optimizer`] and [`schedule`] are in both.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

/// The gRPC contract `bastionai.v1`; `proto/bastionai/v1/bastionai.proto` documents every field.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("bastionai.v1");
}

pub mod average;
pub mod bands;
pub mod clipping;
pub mod compute;
pub mod noise_mode;
pub mod optimizer;
pub mod schedule;

/// One call of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its HTTP/2 path, e.g. `/bastionai.v1.Bastion/PriceRun`.
    pub path: &'static str,
    /// Its name in logs and metrics, e.g. `price_run`.
    pub name: &'static str,
    /// Whether either side streams.
    pub streams: bool,
}

/// Every call of the contract, generated from `proto/`.
pub const CALLS: &[Call] = include!(concat!(env!("OUT_DIR"), "/calls.rs"));

pub mod trainer;
pub mod units;

pub use average::Average;
pub use bands::Bands;
pub use clipping::Clipping;
pub use compute::Compute;
pub use noise_mode::{MOST_SENSITIVITY_SLACK, NoiseMode};
pub use optimizer::{Adam, Optimizer};
pub use schedule::{Decay, Schedule, Warmup};

/// Share of the privacy that the released loss takes when a scientist names none: a twentieth widens the
/// gradient's noise by 2.6 %, and gives the mean loss of a batch of 100 a noise of 0.045 σ of its clip.
pub const DEFAULT_LOSS_SHARE: f64 = 0.05;
