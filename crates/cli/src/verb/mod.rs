//! One file per verb; each takes its arguments and `--json`, and returns the exit code.

pub(crate) mod check;
pub(crate) mod config;
pub(crate) mod keygen;
pub(crate) mod privacy;
pub(crate) mod serve;
