//! gRPC over attested TLS, governance, and supervision of trainers. Holds the keys; knows no libtorch, and
//! nothing of what clients do with answers.
//!
//! In call order: [`config`] → `attester` (the platform) → `boot` (keys, claims, evidence) with `root_key` and `program` → `tls`,
//! `acceptor` (sessions) → `rpc` (one file per flow) over `state` → `governance` (who may), `spec`, `plan`,
//! `memory` of a run and of the `machine`, `terms`, `price`, `digest` (what a run is and costs), `evaluation` (the same for an evaluation), `priced`, `quotes`,
//! `models` and `partial_archive` → `runs` (queue, trainers, watchers).
//! `convert` speaks the wire's language, `errors` maps every failure to a status, `log` is all that is logged,
//! `operations` what the operator's probes and metrics see.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use bastionai_server::{Config, log, serve};
//!
//! let config = Config::load("server.toml".as_ref())?;
//! log::init(log::Format::Text, config.log.level);
//! config.check()?;
//! serve(config, async { std::future::pending().await }).await?;
//! # Ok(()) }
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod acceptor;
mod attester;
mod boot;
mod charges;
pub mod config;
mod convert;
mod digest;
mod errors;
mod evaluation;
#[cfg(test)]
mod fixture;
mod governance;
pub mod log;
mod machine;
mod memory;
mod models;
mod operations;
mod partial_archive;
mod places;
mod plan;
mod price;
mod priced;
mod process;
mod program;
mod quotes;
mod root_key;
mod rpc;
mod runs;
mod serve;
mod spec;
mod state;
mod storage;
mod terms;
mod throughput;
mod tls;
mod units;
mod warm_start;

pub use attester::AttesterError;
pub use boot::BootError;
pub use config::{Config, ConfigError};
pub use process::harden_process;
pub use program::TrainerError;
pub use root_key::RootKeyError;
pub use serve::{ServeError, Server, serve};
pub use tls::IdentityError;
