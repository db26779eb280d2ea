//! A test Azure VM, from boot to appraisal: what a policy demands of it, rule by rule, on each TEE.

#![allow(clippy::unwrap_used)]

mod on_tdx;
