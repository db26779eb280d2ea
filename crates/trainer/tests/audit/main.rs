//! The privacy audit: what a whole training step releases, held against what it was priced at. Nothing here knows a key:
//! everything is read off the weights, as an adversary would who sees every iterate (docs/privacy.md, "How the claims
//! are tested", says what each of these can show and what not).
//!
//! In order of strength: [`released`] (sum, divisor, noise and sample are those of the mechanism that is priced; each of
//! `scripts/mutants.py`'s mutants dies by one of these or of [`step`]), [`step`] (no hostile record moves a step's sum by more
//! than is charged), [`distinguishing`] (the best test there is tells datasets apart no better than priced, and nearly as
//! well), [`banded`] (the same of noise that is correlated over steps), [`one_run`] (a whole training, audited from its final weights).
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod banded;
mod canaries;
mod distinguishing;
mod one_run;
mod released;
mod statistics;
mod step;

/// `BASTIONAI_SLOW` asks for the long form (`make test-all`).
fn short_or_long<T>(short: T, long: T) -> T {
    if std::env::var_os("BASTIONAI_SLOW").is_some() {
        long
    } else {
        short
    }
}

/// How improbable a failure of a sound engine may be, for each number that is compared. Keys are fresh in every run.
const FAILURE: f64 = 1e-6;
