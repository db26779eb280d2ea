//! Tensor programs as data: the `.pt2` reader, the batch-axis type checker, and the canonical typed graph.
//!
//! Pure: no I/O, no libtorch. In call order:
//! [`contract`] (what one record looks like) → [`archive`] (`.pt2` bytes → untyped program) →
//! [`check()`], or [`check_scores()`] for evaluations (program × contract → [`typed::TypedGraph`], or every refusal at once) →
//! [`typed`] (the only form the trainer ever sees; its SHA-256 is the graph's digest).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod archive;
mod check;
pub mod contract;
mod display;
pub mod dtype;
pub mod program;
pub mod schema;
pub mod typed;

pub use check::{
    Refusal, Refusals, ValueGuard, check, check_program, check_scores, check_scores_program, value_guards,
};
