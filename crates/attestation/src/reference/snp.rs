//! The launch digest of an SEV-SNP guest (report field MEASUREMENT), as QEMU and KVM launch it.
//!
//! The secure processor hashes each page that is put into the guest before it runs: SHA-384 over the digest so far and a
//! record of the page (SEV Secure Nested Paging Firmware ABI, 56860, "Page Info" of SNP_LAUNCH_UPDATE). The order is the
//! hypervisor's: firmware image, then the sections that the firmware's metadata names, then one register page (VMSA) for
//! each virtual processor.
//!
//! Register pages come from crate `sev`; the digest and the parsing are ours, so that images are bytes and nothing panics.

use super::ovmf::{Ovmf, guid};
use super::{DirectBoot, MeasureError, PAGE_BYTES, firmware, u32_at};
use sev::measurement::vcpu_types::CpuType;
use sev::measurement::vmsa::{GuestFeatures, VMMType, VMSA};
use sha2::{Digest, Sha256, Sha384};

/// What of the machine is measured beside its files.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// Virtual processors (QEMU's `-smp`).
    pub vcpus: u32,
    /// Processor model, one of [`VCPU_TYPES`] (QEMU's `-cpu`), in any case.
    pub vcpu_type: &'a str,
    /// SEV_FEATURES of the register page: 1 (SNP active) unless the host's kernel or the hypervisor sets more.
    pub guest_features: u64,
}

/// The launch digest.
///
/// # Errors
/// [`MeasureError`] for an image without SEV metadata, with a section that this version does not know, or without a place
/// for the hashes of kernel, initial RAM disk and command line where those are given; for no or too many virtual processors
/// and an unknown model.
///
/// # References
/// AMD 56860, chapter 8.17; QEMU `target/i386/sev.c` (`sev_snp_launch_finish`, `build_kernel_loader_hashes`).
pub fn launch_digest(
    image: &[u8],
    boot: Option<&DirectBoot<'_>>,
    machine: &Machine<'_>,
) -> Result<[u8; 48], MeasureError> {
    let ovmf = Ovmf::parse(image)?;
    let sections = sections(&ovmf)?;
    let pages = register_pages(&ovmf, machine)?;
    let has_place = sections.iter().any(|section| section.kind == KERNEL_HASHES);
    if boot.is_some() && !has_place {
        return Err(firmware(
            "it has no section for kernel hashes, so the kernel would not be measured: use an OVMF built from \
             OvmfPkg/AmdSev/AmdSevX64.dsc",
        ));
    }
    let mut launch = Launch([0; 48]);
    launch.pages(FOUR_GIB - image.len() as u64, image);
    for section in sections {
        match section.kind {
            SECRETS => launch.unhashed(PageKind::Secrets, &section),
            CPUID => launch.unhashed(PageKind::Cpuid, &section),
            KERNEL_HASHES => match boot {
                Some(boot) => launch.pages(section.address, &hashes_page(&ovmf, &section, boot)?),
                None => launch.unhashed(PageKind::Zero, &section),
            },
            _ => launch.unhashed(PageKind::Zero, &section),
        }
    }
    for page in pages {
        launch.page(PageKind::Vmsa, VMSA_ADDRESS, &Sha384::digest(page).into());
    }
    Ok(launch.0)
}

/// A section of the firmware's SEV metadata (edk2, `OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm`).
struct Section {
    address: u64,
    bytes: usize,
    kind: u32,
}

fn sections(ovmf: &Ovmf<'_>) -> Result<Vec<Section>, MeasureError> {
    let remedy = "it cannot start an SEV-SNP guest";
    let metadata = ovmf.pointed_to(&SEV_METADATA, "SEV metadata", remedy)?;
    let field =
        |index: usize| u32_at(metadata, index * 4).ok_or_else(|| firmware("its SEV metadata is cut short"));
    if !metadata.starts_with(b"ASEV") || field(2)? != 1 {
        return Err(firmware("its SEV metadata is not of version 1"));
    }
    let count = field(3)?;
    if count > MAX_SECTIONS {
        return Err(firmware(format!(
            "its SEV metadata has {count} sections, at most {MAX_SECTIONS} are read"
        )));
    }
    let mut sections = Vec::new();
    let mut total = 0_usize;
    for index in 0..count as usize {
        let at = 4 + 3 * index;
        let section = Section {
            address: u64::from(field(at)?),
            bytes: usize::try_from(field(at + 1)?).unwrap_or(usize::MAX),
            kind: field(at + 2)?,
        };
        section.check(index)?;
        total = total.saturating_add(section.bytes);
        sections.push(section);
    }
    if total > MAX_SECTION_BYTES {
        return Err(firmware(format!(
            "its SEV metadata names {total} bytes of memory, at most {MAX_SECTION_BYTES} are measured"
        )));
    }
    Ok(sections)
}

impl Section {
    fn check(&self, index: usize) -> Result<(), MeasureError> {
        let aligned = self.address.is_multiple_of(PAGE_BYTES as u64) && self.bytes.is_multiple_of(PAGE_BYTES);
        let is_page = self.bytes == PAGE_BYTES;
        match self.kind {
            SECURE_MEMORY | CALLING_AREA if aligned => Ok(()),
            SECRETS | CPUID | KERNEL_HASHES if aligned && is_page => Ok(()),
            SECURE_MEMORY | CALLING_AREA | SECRETS | CPUID | KERNEL_HASHES => Err(firmware(format!(
                "section {index} of its SEV metadata ({} bytes at {:#x}) is not of whole pages, or of more than the one \
                 it may have",
                self.bytes, self.address
            ))),
            kind => Err(firmware(format!(
                "section {index} of its SEV metadata is of kind {kind:#x}, which this version does not know"
            ))),
        }
    }
}

/// The register pages: of the processor that boots, then of the others.
fn register_pages(ovmf: &Ovmf<'_>, machine: &Machine<'_>) -> Result<Vec<Vec<u8>>, MeasureError> {
    if !(1..=MAX_VCPUS).contains(&machine.vcpus) {
        return Err(MeasureError::Machine(format!(
            "{} virtual processors: give from 1 to {MAX_VCPUS}",
            machine.vcpus
        )));
    }
    if machine.guest_features & 1 == 0 {
        return Err(MeasureError::Machine(format!(
            "guest features {:#x}: bit 0 (SNP active) is set in every SEV-SNP guest",
            machine.guest_features
        )));
    }
    let model = CpuType::try_from(machine.vcpu_type).map_err(|_| {
        let known = VCPU_TYPES.join(", ");
        MeasureError::Machine(format!(
            "{:?} is no known processor model: give one of {known}",
            machine.vcpu_type
        ))
    })?;
    let reset = ovmf
        .entry(&SEV_ES_RESET)
        .and_then(|entry| u32_at(entry, 0))
        .filter(|address| *address != 0)
        .ok_or_else(|| firmware("it has no reset address for further processors (SEV-ES reset block)"))?;
    let features = GuestFeatures(machine.guest_features);
    let registers = VMSA::new(
        u64::from(reset),
        model,
        VMMType::QEMU,
        Some(u64::from(machine.vcpus)),
        features,
    );
    let pages = registers.pages(machine.vcpus as usize);
    pages.map_err(|error| MeasureError::Machine(format!("register page: {error}")))
}

/// The page with the hashes of kernel, initial RAM disk and command line, where the firmware looks for them.
fn hashes_page(ovmf: &Ovmf<'_>, section: &Section, boot: &DirectBoot<'_>) -> Result<Vec<u8>, MeasureError> {
    let table = hashes_table(boot);
    let address = ovmf.entry(&HASH_TABLE_AREA).and_then(|entry| u32_at(entry, 0));
    let offset = address
        .and_then(|address| u64::from(address).checked_sub(section.address))
        .and_then(|offset| usize::try_from(offset).ok())
        .filter(|offset| offset.saturating_add(table.len()) <= section.bytes)
        .ok_or_else(|| firmware("its place for the table of kernel hashes is not in the section for it"))?;
    let mut page = vec![0; section.bytes];
    page[offset..offset + table.len()].copy_from_slice(&table);
    Ok(page)
}

/// QEMU's `PaddedSevHashTable`: three entries of GUID, length and SHA-256, padded to 16 bytes.
fn hashes_table(boot: &DirectBoot<'_>) -> Vec<u8> {
    let cmdline = Sha256::new()
        .chain_update(boot.cmdline)
        .chain_update([0])
        .finalize();
    let entries = [
        (HASH_OF_CMDLINE, cmdline),
        (HASH_OF_INITRD, Sha256::digest(boot.initrd.unwrap_or_default())),
        (HASH_OF_KERNEL, Sha256::digest(boot.kernel)),
    ];
    let mut table = HASH_TABLE.to_vec();
    table.extend(168_u16.to_le_bytes());
    for (guid, digest) in entries {
        table.extend(guid);
        table.extend(50_u16.to_le_bytes());
        table.extend(digest);
    }
    table.resize(table.len().next_multiple_of(16), 0);
    table
}

/// The digest so far.
struct Launch([u8; 48]);

impl Launch {
    /// Pages whose content is hashed.
    fn pages(&mut self, address: u64, content: &[u8]) {
        for (page, address) in content.chunks(PAGE_BYTES).zip((address..).step_by(PAGE_BYTES)) {
            self.page(PageKind::Normal, address, &Sha384::digest(page).into());
        }
    }

    /// Pages whose content the digest does not cover: zero, or the secure processor's own.
    fn unhashed(&mut self, kind: PageKind, section: &Section) {
        for offset in (0..section.bytes as u64).step_by(PAGE_BYTES) {
            self.page(kind, section.address + offset, &[0; 48]);
        }
    }

    /// PAGE_INFO: digest so far, contents, length, page type, flags and permissions (none), address.
    fn page(&mut self, kind: PageKind, address: u64, contents: &[u8; 48]) {
        let digest = Sha384::new()
            .chain_update(self.0)
            .chain_update(contents)
            .chain_update(0x70_u16.to_le_bytes())
            .chain_update([kind as u8, 0, 0, 0, 0, 0])
            .chain_update(address.to_le_bytes());
        self.0 = digest.finalize().into();
    }
}

/// PAGE_TYPE of SNP_LAUNCH_UPDATE.
#[derive(Clone, Copy)]
enum PageKind {
    Normal = 1,
    Vmsa = 2,
    Zero = 3,
    Secrets = 5,
    Cpuid = 6,
}

/// Processor models whose signature is known, as QEMU names them.
pub const VCPU_TYPES: [&str; 18] = [
    "EPYC",
    "EPYC-v1",
    "EPYC-v2",
    "EPYC-IBPB",
    "EPYC-v3",
    "EPYC-v4",
    "EPYC-Rome",
    "EPYC-Rome-v1",
    "EPYC-Rome-v2",
    "EPYC-Rome-v3",
    "EPYC-Milan",
    "EPYC-Milan-v1",
    "EPYC-Milan-v2",
    "EPYC-Genoa",
    "EPYC-Genoa-v1",
    "EPYC-Turin",
    "EPYC-Turin-v1",
    "EPYC-Turin-v2",
];

/// What QEMU allows a machine of type q35.
const MAX_VCPUS: u32 = 4096;
const FOUR_GIB: u64 = 1 << 32;
/// Register pages are measured at the last page of the 48-bit address space.
const VMSA_ADDRESS: u64 = 0xffff_ffff_f000;
/// Real images have six to eight.
const MAX_SECTIONS: u32 = 64;
const MAX_SECTION_BYTES: usize = 64 << 20;

const SECURE_MEMORY: u32 = 1;
const SECRETS: u32 = 2;
const CPUID: u32 = 3;
const CALLING_AREA: u32 = 4;
const KERNEL_HASHES: u32 = 0x10;

/// dc886566-984a-4798-a75e-5585a7bf67cc
pub(super) const SEV_METADATA: [u8; 16] = guid(
    0xdc88_6566,
    0x984a,
    0x4798,
    [0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc],
);
/// 00f771de-1a7e-4fcb-890e-68c77e2fb44e
pub(super) const SEV_ES_RESET: [u8; 16] = guid(
    0x00f7_71de,
    0x1a7e,
    0x4fcb,
    [0x89, 0x0e, 0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e],
);
/// 7255371f-3a3b-4b04-927b-1da6efa8d454
pub(super) const HASH_TABLE_AREA: [u8; 16] = guid(
    0x7255_371f,
    0x3a3b,
    0x4b04,
    [0x92, 0x7b, 0x1d, 0xa6, 0xef, 0xa8, 0xd4, 0x54],
);
/// 9438d606-4f22-4cc9-b479-a793d411fd21
const HASH_TABLE: [u8; 16] = guid(
    0x9438_d606,
    0x4f22,
    0x4cc9,
    [0xb4, 0x79, 0xa7, 0x93, 0xd4, 0x11, 0xfd, 0x21],
);
/// 4de79437-abd2-427f-b835-d5b172d2045b
const HASH_OF_KERNEL: [u8; 16] = guid(
    0x4de7_9437,
    0xabd2,
    0x427f,
    [0xb8, 0x35, 0xd5, 0xb1, 0x72, 0xd2, 0x04, 0x5b],
);
/// 44baf731-3a2f-4bd7-9af1-41e29169781d
const HASH_OF_INITRD: [u8; 16] = guid(
    0x44ba_f731,
    0x3a2f,
    0x4bd7,
    [0x9a, 0xf1, 0x41, 0xe2, 0x91, 0x69, 0x78, 0x1d],
);
/// 97d02dd8-bd20-4c94-aa78-e7714d36ab2a
const HASH_OF_CMDLINE: [u8; 16] = guid(
    0x97d0_2dd8,
    0xbd20,
    0x4c94,
    [0xaa, 0x78, 0xe7, 0x71, 0x4d, 0x36, 0xab, 0x2a],
);
