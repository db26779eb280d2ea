//! TPM 2.0 quotes: what a TPM signs about its PCRs, under a key that the caller trusts for reasons of its own.
//!
//! Kind-neutral: whose TPM it is, and why its attestation key is believed, is the business of the platform (for Azure,
//! `azure`). Structures are those of the *Trusted Platform Module Library, Part 2: Structures* (family 2.0,
//! revision 01.59), big-endian on the wire. Every length is exact: nothing is skipped, nothing may follow.
//!
//! `quote` (the item of an envelope, and the way from its bytes to [`Quoted`]) → `attest` (what was signed) →
//! `signature` (by which key).

mod attest;
pub(crate) mod cursor;
mod quote;
mod signature;

pub use attest::Clock;
pub use quote::{MEDIA_TYPE, Quote, Quoted};
pub use signature::PublicKey;

pub(crate) use signature::{MAX_RSA, rsassa_sha256};
