//! The table of entries, each with a GUID, at the end of an OVMF image
//! (edk2, `OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm`: "GUIDed structure").
//!
//! It is read backwards: 32 bytes before the end lies the footer (length of the whole table, footer GUID); before it each
//! entry's data, length and GUID.

use super::{MeasureError, PAGE_BYTES, firmware, u16_at, u32_at};

/// A firmware image with its table.
pub(super) struct Ovmf<'a> {
    /// The image, whole; its last byte is mapped at 4 GiB − 1.
    pub(super) image: &'a [u8],
    entries: Vec<([u8; 16], &'a [u8])>,
}

impl<'a> Ovmf<'a> {
    pub(super) fn parse(image: &'a [u8]) -> Result<Self, MeasureError> {
        if image.is_empty() || image.len() > MAX_IMAGE_BYTES || !image.len().is_multiple_of(PAGE_BYTES) {
            return Err(firmware(format!(
                "{} bytes; an OVMF image has a multiple of {PAGE_BYTES}, at most {MAX_IMAGE_BYTES}",
                image.len()
            )));
        }
        let end = image.len() - BYTES_AFTER_TABLE;
        let (mut table, footer) = image[..end].split_at(end - HEADER_BYTES);
        if footer[2..] != FOOTER {
            return Err(firmware(
                "no table of GUIDs at its end: this is not an OVMF image (OVMF.fd, or OVMF_CODE.fd for SEV-SNP)",
            ));
        }
        let length = usize::from(u16_at(footer, 0).unwrap_or_default());
        let length = length
            .checked_sub(HEADER_BYTES)
            .filter(|length| *length <= table.len())
            .ok_or_else(|| firmware("its table of GUIDs has an impossible length"))?;
        table = &table[table.len() - length..];
        let mut entries: Vec<([u8; 16], &[u8])> = Vec::new();
        while !table.is_empty() {
            let (data, guid, rest) = last_entry(table)
                .ok_or_else(|| firmware("an entry of its table of GUIDs has an impossible length"))?;
            if entries.iter().any(|(known, _)| *known == guid) {
                return Err(firmware(format!(
                    "its table of GUIDs has {} twice",
                    hex::encode(guid)
                )));
            }
            entries.push((guid, data));
            table = rest;
        }
        Ok(Self { image, entries })
    }

    /// The data of an entry.
    pub(super) fn entry(&self, guid: &[u8; 16]) -> Option<&'a [u8]> {
        let found = self.entries.iter().find(|(known, _)| known == guid);
        found.map(|(_, data)| *data)
    }

    /// What lies at the distance from the image's end that an entry holds.
    pub(super) fn pointed_to(
        &self,
        guid: &[u8; 16],
        what: &str,
        remedy: &str,
    ) -> Result<&'a [u8], MeasureError> {
        let entry = self
            .entry(guid)
            .ok_or_else(|| firmware(format!("it has no {what}: {remedy}")))?;
        let from_end = u32_at(entry, 0)
            .filter(|_| entry.len() == 4)
            .and_then(|from_end| usize::try_from(from_end).ok())
            .and_then(|from_end| self.image.len().checked_sub(from_end));
        from_end
            .map(|start| &self.image[start..])
            .ok_or_else(|| firmware(format!("its {what} is said to lie outside of it")))
    }
}

/// Data and GUID of the last entry, and what precedes it.
fn last_entry(table: &[u8]) -> Option<(&[u8], [u8; 16], &[u8])> {
    let header = table.len().checked_sub(HEADER_BYTES)?;
    let length = usize::from(u16_at(table, header)?);
    let start = table
        .len()
        .checked_sub(length)
        .filter(|_| length >= HEADER_BYTES)?;
    let guid = table[header + 2..].try_into().ok()?;
    Some((&table[start..header], guid, &table[..start]))
}

/// The sixteen bytes of a GUID as firmware stores it: the first three groups little-endian.
pub(super) const fn guid(first: u32, second: u16, third: u16, rest: [u8; 8]) -> [u8; 16] {
    let (a, b, c) = (first.to_le_bytes(), second.to_le_bytes(), third.to_le_bytes());
    [
        a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], rest[0], rest[1], rest[2], rest[3], rest[4], rest[5],
        rest[6], rest[7],
    ]
}

/// 96b582de-1fb2-45f7-baea-a366c55a082d
pub(super) const FOOTER: [u8; 16] = guid(
    0x96b5_82de,
    0x1fb2,
    0x45f7,
    [0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d],
);
/// Length (u16) and GUID.
pub(super) const HEADER_BYTES: usize = 18;
/// The reset vector.
pub(super) const BYTES_AFTER_TABLE: usize = 32;
/// Firmware lies below 4 GiB and above the flash window's start; real images have 2 to 16 MiB.
const MAX_IMAGE_BYTES: usize = 64 << 20;
