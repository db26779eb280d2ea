//! Reference values: what evidence must show, computed from the files that a machine boots (RFC 9334).
//!
//! Whoever has the firmware, the kernel, the initial RAM disk and the command line of a release can compute what honest
//! hardware will report, on any machine and without a TEE. In call order: `ovmf` (the table at the end of a firmware
//! image) → [`snp`] (AMD's launch digest) or [`tdvf`] (Intel's MRTD) and [`rtmr`] (RTMR1, RTMR2 and the part of RTMR0 that
//! is firmware) → [`values`] (all of a release's, as they are written down).
//!
//! Pure: bytes in, digests out. Images are untrusted: every length is checked and capped, nothing panics.

mod ovmf;
pub mod rtmr;
pub mod snp;
pub mod tdvf;
pub mod values;

pub use values::{Hex, PcrReference, ReferenceSet, SnpReference, TdxReference};

/// What a machine boots without a boot loader (QEMU's `-kernel`, `-initrd`, `-append`).
#[derive(Clone, Copy, Debug)]
pub struct DirectBoot<'a> {
    /// The kernel file, whole.
    pub kernel: &'a [u8],
    /// The initial RAM disk file, whole.
    pub initrd: Option<&'a [u8]>,
    /// The command line, without terminator, exactly as given to the hypervisor.
    pub cmdline: &'a str,
}

/// Why files have no reference value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// The firmware image is not what this kind of machine starts from.
    #[error("the firmware image: {0}")]
    Firmware(String),
    /// The kernel is no EFI image.
    #[error("the kernel: {0}")]
    Kernel(String),
    /// The machine described cannot be.
    #[error("{0}")]
    Machine(String),
}

fn firmware(why: impl Into<String>) -> MeasureError {
    MeasureError::Firmware(why.into())
}

fn kernel(why: impl Into<String>) -> MeasureError {
    MeasureError::Kernel(why.into())
}

/// Page size of both architectures, bytes.
const PAGE_BYTES: usize = 4096;

/// Fields of a little-endian structure, never beyond its end.
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(field.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(field.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
