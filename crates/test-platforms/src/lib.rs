//! Test vendors: each has a root of its own and signs synthetic evidence with any report data, in the formats of the
//! real platforms. For tests and fuzzing alone: nothing that users run links it, and no bundled trust anchor knows it.
#![forbid(unsafe_code)]

pub mod azure;
pub mod nvidia;
pub mod tdx;
