//! Loops over plain numbers that a caller may run compiled for wider vectors than every machine has.
//!
//! This crate is safe code for any machine; a crate that may ask the processor what it has hands in a [`Vectors`]. The
//! bits are the same either way: every operation is IEEE 754's, and none are fused.

/// A loop. `run` and all it calls are `#[inline(always)]`: only what is inlined is compiled for wider vectors.
pub trait Pass {
    /// What it returns.
    type Output;

    /// Runs it.
    fn run(self) -> Self::Output;
}

/// Runs loops.
pub trait Vectors {
    /// Runs this one.
    fn run<P: Pass>(&self, pass: P) -> P::Output;
}

/// As every machine can.
#[derive(Clone, Copy, Debug, Default)]
pub struct Baseline;

impl Vectors for Baseline {
    fn run<P: Pass>(&self, pass: P) -> P::Output {
        pass.run()
    }
}
