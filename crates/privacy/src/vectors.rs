//! Loops over plain numbers that a caller may run compiled for wider vectors than every machine has.
//!
//! This crate is safe code for any machine; a crate that may ask the processor what it has hands in a [`Vectors`]. The
//! bits are the same either way: every operation is IEEE 754's, and none are fused. Key stream is asked of it as well.

use crate::stream;

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

    /// Fills `out`, which starts with a block of the stream, with ChaCha20's key stream (RFC 8439). Buffers that
    /// hold the key are wiped; what a compiler spills to the stack is not.
    fn keystream(&self, of: &KeystreamBlocks<'_>, out: &mut [u8]) {
        stream::fill(of, out);
    }
}

/// Where a step's key stream of one lane (a dataset or a tensor) is read.
#[derive(Clone, Copy)]
pub struct KeystreamBlocks<'k> {
    /// Secret.
    pub key: &'k [u8; 32],
    /// The first eight bytes of the nonce, little-endian.
    pub step: u64,
    /// The last four.
    pub lane: u32,
    /// The first block of 64 bytes; the last one read is below 2^32.
    pub first: u32,
}

/// As every machine can.
#[derive(Clone, Copy, Debug, Default)]
pub struct Baseline;

impl Vectors for Baseline {
    fn run<P: Pass>(&self, pass: P) -> P::Output {
        pass.run()
    }
}
