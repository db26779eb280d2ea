//! Images of the tests: those that `tests/fixtures/reference/make.py` writes, and one that somebody else published values of.

use super::ovmf::{BYTES_AFTER_TABLE, FOOTER, HEADER_BYTES};
use super::tdvf::TDVF_METADATA;

pub(crate) const OVMF: &[u8] = include_bytes!("../../tests/fixtures/reference/ovmf.fd");
pub(crate) const KERNEL: &[u8] = include_bytes!("../../tests/fixtures/reference/kernel.efi");
pub(crate) const INITRD: &[u8] = b"initrd of the tests";
pub(crate) const CMDLINE: &str = "console=ttyS0 ro";

pub(crate) fn boot() -> super::DirectBoot<'static> {
    super::DirectBoot {
        kernel: KERNEL,
        initrd: Some(INITRD),
        cmdline: CMDLINE,
    }
}

/// An entry of the table of GUIDs.
fn entry(guid: &[u8; 16], data: &[u8]) -> Vec<u8> {
    let length = (data.len() + HEADER_BYTES) as u16;
    [data, &length.to_le_bytes(), guid].concat()
}

/// The image of aleph-vm's tests (`rust/crates/aleph-tee/src/tdx/measure.rs`, `build_tdvf`, at 6c84eb86): three pages, a
/// measured volume and configuration volume, a TD HOB of two pages and memory that the guest accepts.
pub(crate) fn published_tdvf() -> Vec<u8> {
    let mut image: Vec<u8> = (0..0x3000_u32).map(|at| (at * 13 + 5) as u8).collect();
    let mut metadata = b"TDVF".to_vec();
    for word in [16 + 4 * 32, 1, 4_u32] {
        metadata.extend(word.to_le_bytes());
    }
    for (offset, raw, address, bytes, kind, attributes) in [
        (0_u32, 0x1000_u32, 0xffff_f000_u64, 0x1000_u64, 0_u32, 1_u32),
        (0x1000, 0x1000, 0xffff_e000, 0x1000, 1, 1),
        (0, 0, 0x0080_9000, 0x2000, 2, 0),
        (0, 0, 0x0080_b000, 0x1000, 3, 2),
    ] {
        metadata.extend([offset.to_le_bytes(), raw.to_le_bytes()].concat());
        metadata.extend([address.to_le_bytes(), bytes.to_le_bytes()].concat());
        metadata.extend([kind.to_le_bytes(), attributes.to_le_bytes()].concat());
    }
    image[0x2000..0x2000 + metadata.len()].copy_from_slice(&metadata);
    let mut table = entry(&[0x11; 16], b"unrelated");
    table.extend(entry(&TDVF_METADATA, &0x1000_u32.to_le_bytes()));
    table.extend(entry(&[0x22; 16], &[0xab; 4]));
    table.extend(((table.len() + HEADER_BYTES) as u16).to_le_bytes());
    table.extend(FOOTER);
    table.extend([0; BYTES_AFTER_TABLE]);
    let at = image.len() - table.len();
    image[at..].copy_from_slice(&table);
    image
}
