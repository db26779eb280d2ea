//! The DP training engine over libtorch. Here: everything from a typed graph to trained weights. Not here: keys of
//! datasets, files, the network, budgets; those are the server's.
//!
//! In call order: [`sandbox`] (what the process gives up, `landlock` among it) → [`process`] (the conversation with the server) →
//! [`selftest`] (what is proven before a record arrives, on the [`kernels`] it chose) →
//! [`confinement`] (no files, network or processes from here on) → [`training`] (steps) → [`sample`] and [`records`]
//! (micro-batches) → [`engine`] (clipped sums) → [`optimizer`] (noise and update, at the rate of [`schedule`]) →
//! [`average`] (of the iterates); or [`evaluation`] (one forward pass, noisy histograms). Inside the engine: `program`
//! (the graph laid out) → `executor`, `lowering`, `attention` and `guards` (forward) → `taps` and `gradients` (per-sample norms) →
//! `clipping` (factors) → `precision` and [`grid`] (the sum). [`probe`] stands apart: how fast the machine is; so does [`phases`]: where a bench sees time go.
//! [`device`] says where all that computes; `accelerated` has the engine's own kernels for devices that are not the CPU.
//! Loops over plain numbers run on `vectors`, the cipher of the noise on `keystream`. All unsafe code is in `ffi`, `vectors`, `keystream`,
//! `sandbox` and `landlock`.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

// Graphs that the tests under `tests/` build are built by tests in here as well.
#[cfg(test)]
extern crate self as bastionai_trainer;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;

mod accelerated;
mod attention;
pub mod average;
mod clipping;
pub mod confinement;
pub mod device;
pub mod engine;
pub mod error;
pub mod evaluation;
mod executor;
mod ffi;
mod gradients;
pub mod grid;
mod guards;
pub mod kernels;
#[cfg(target_arch = "x86_64")]
mod keystream;
mod landlock;
pub mod libraries;
mod lowering;
mod operators;
pub mod optimizer;
pub mod phases;
mod pooling;
mod precision;
pub mod probe;
pub mod process;
mod program;
pub mod records;
mod recurrent;
pub mod sample;
pub mod sandbox;
pub mod schedule;
pub mod selftest;
mod state;
mod table;
mod taps;
pub mod training;
pub mod units;
pub mod vectors;

pub use device::Device;
pub use engine::{Batch, Engine, RecordResults, Settings, Sums};
pub use error::EngineError;
