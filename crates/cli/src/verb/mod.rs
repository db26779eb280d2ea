//! One file per verb; each takes its arguments and says what it prints.

pub(crate) mod appraise;
pub(crate) mod check;
pub(crate) mod config;
pub(crate) mod dataset;
mod evaluate;
pub(crate) mod keygen;
pub(crate) mod ledger;
pub(crate) mod measure;
pub(crate) mod pages;
mod priced;
pub(crate) mod privacy;
pub(crate) mod receipt;
pub(crate) mod release_manifest;
pub(crate) mod run;
pub(crate) mod serve;
mod start;
