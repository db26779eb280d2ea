//! gRPC over attested TLS, governance, and supervision of trainers.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]
pub mod config;
mod errors;
mod tls;
mod runs { pub(crate) mod supervise; }
