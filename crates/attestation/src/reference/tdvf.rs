//! MRTD: the measurement of a trust domain as it is built, before its first instruction.
//!
//! The TDX module hashes one record for each page that is added (TDH.MEM.PAGE.ADD) and one with the content for each 256
//! bytes that are measured (TDH.MR.EXTEND); the TDVF metadata of the firmware says which pages those are, and in what order
//! (Intel TDX Module Base Architecture Specification, "Measurement and attestation"; TDX Virtual Firmware Design Guide,
//! chapter 11). Linux adds and measures page by page.

use super::ovmf::{Ovmf, guid};
use super::{MeasureError, PAGE_BYTES, firmware, u32_at, u64_at};
use sha2::{Digest, Sha384};

/// The measured layout of a TDVF image.
pub struct Tdvf<'a> {
    sections: Vec<Section<'a>>,
}

struct Section<'a> {
    content: &'a [u8],
    address: u64,
    pages: usize,
    kind: u32,
    is_measured: bool,
    is_added: bool,
}

impl<'a> Tdvf<'a> {
    /// Reads the metadata of an image.
    ///
    /// # Errors
    /// [`MeasureError::Firmware`] for an image without TDVF metadata of version 1, for a section outside the image, of no
    /// whole pages, measured but not wholly in the image, with an unknown attribute, or beyond what is measured at most.
    pub fn parse(image: &'a [u8]) -> Result<Self, MeasureError> {
        let remedy = "it cannot start a TDX guest; use an OVMF built for TDX";
        let metadata = Ovmf::parse(image)?.pointed_to(&TDVF_METADATA, "TDVF metadata", remedy)?;
        let header = |at| u32_at(metadata, at).ok_or_else(|| firmware("its TDVF metadata is cut short"));
        if !metadata.starts_with(b"TDVF") || header(8)? != 1 {
            return Err(firmware("its TDVF metadata is not of version 1"));
        }
        let count = header(12)?;
        if count > MAX_SECTIONS {
            return Err(firmware(format!(
                "its TDVF metadata has {count} sections, at most {MAX_SECTIONS} are read"
            )));
        }
        let sections: Result<Vec<_>, _> = (0..count as usize)
            .map(|index| {
                let entry = metadata.get(16 + 32 * index..).unwrap_or_default();
                Section::parse(image, entry)
                    .ok_or_else(|| firmware(format!("section {index} of its TDVF metadata cannot be: it is cut short, \
                        outside the image, of no whole pages, measured but not wholly in the image, or has an unknown attribute")))
            })
            .collect();
        let sections = sections?;
        let added = sections.iter().filter(|section| section.is_added);
        let pages = added.fold(0_usize, |sum, section| sum.saturating_add(section.pages));
        if pages > MAX_PAGES {
            return Err(firmware(format!(
                "its TDVF metadata adds {pages} pages, at most {MAX_PAGES} are measured"
            )));
        }
        Ok(Self { sections })
    }

    /// MRTD of a trust domain that starts from this image.
    pub fn mrtd(&self) -> [u8; 48] {
        let mut digest = Sha384::new();
        for section in self.sections.iter().filter(|section| section.is_added) {
            for page in 0..section.pages {
                let offset = page * PAGE_BYTES;
                digest.update(record(b"MEM.PAGE.ADD", section.address + offset as u64));
                if section.is_measured {
                    let content = &section.content[offset..offset + PAGE_BYTES];
                    for (chunk, at) in content
                        .chunks(EXTEND_BYTES)
                        .zip((offset as u64..).step_by(EXTEND_BYTES))
                    {
                        digest.update(record(b"MR.EXTEND", section.address + at));
                        digest.update(chunk);
                    }
                }
            }
        }
        digest.finalize().into()
    }

    /// The configuration firmware volume: the UEFI variables that the image starts with.
    pub(super) fn configuration_volume(&self) -> Option<&'a [u8]> {
        let volume = self
            .sections
            .iter()
            .find(|section| section.kind == CONFIGURATION_VOLUME);
        volume.map(|section| section.content)
    }
}

impl<'a> Section<'a> {
    /// DataOffset, RawDataSize (u32), MemoryAddress, MemoryDataSize (u64), Type, Attributes (u32).
    fn parse(image: &'a [u8], entry: &[u8]) -> Option<Self> {
        let start = usize::try_from(u32_at(entry, 0)?).ok()?;
        let length = usize::try_from(u32_at(entry, 4)?).ok()?;
        let (address, bytes) = (u64_at(entry, 8)?, u64_at(entry, 16)?);
        let (kind, attributes) = (u32_at(entry, 24)?, u32_at(entry, 28)?);
        let content = image.get(start..start.checked_add(length)?)?;
        let bytes = usize::try_from(bytes).ok()?;
        let is_measured = attributes & MEASURED != 0;
        let is_added = attributes & ADDED_BY_GUEST == 0;
        let fits = address.is_multiple_of(PAGE_BYTES as u64)
            && bytes.is_multiple_of(PAGE_BYTES)
            && address.checked_add(bytes as u64).is_some()
            && length <= bytes
            && attributes & !(MEASURED | ADDED_BY_GUEST) == 0
            && !(is_measured && (length != bytes || !is_added));
        fits.then_some(Self {
            content,
            address,
            pages: bytes / PAGE_BYTES,
            kind,
            is_measured,
            is_added,
        })
    }
}

/// What the TDX module hashes for one operation: its name, and the guest's physical address at byte 16.
fn record(operation: &[u8], address: u64) -> [u8; 128] {
    let mut record = [0; 128];
    record[..operation.len()].copy_from_slice(operation);
    record[16..24].copy_from_slice(&address.to_le_bytes());
    record
}

const MEASURED: u32 = 1;
/// Pages that the guest accepts later (TDH.MEM.PAGE.AUG): no part of the build.
const ADDED_BY_GUEST: u32 = 2;
const CONFIGURATION_VOLUME: u32 = 1;
const EXTEND_BYTES: usize = 256;
/// Real images have six.
const MAX_SECTIONS: u32 = 64;
/// 256 MiB.
const MAX_PAGES: usize = 1 << 16;

/// e47a6535-984a-4798-865e-4685a7bf8ec2
pub(super) const TDVF_METADATA: [u8; 16] = guid(
    0xe47a_6535,
    0x984a,
    0x4798,
    [0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2],
);
