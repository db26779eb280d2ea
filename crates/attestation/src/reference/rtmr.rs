//! The run-time measurement registers of a trust domain that boots a kernel directly: what the firmware and the kernel's
//! EFI stub extend them with.
//!
//! RTMR1 and RTMR2 follow from the files alone with QEMU from version 10.1 (which hands the kernel over as it is in its file,
//! where earlier versions wrote the address of the initial RAM disk into it) and OVMF from edk2-stable202505 (which puts
//! `initrd=initrd ` before the command line, where earlier versions put it after). RTMR0 also covers memory map, ACPI tables
//! and boot variables that QEMU makes of the machine's devices: [`firmware_events`] are the part of it that is firmware;
//! the register itself is taken from a reference boot.

use super::ovmf::guid;
use super::tdvf::Tdvf;
use super::{DirectBoot, MeasureError, kernel, u16_at, u32_at};
use serde::Serialize;
use sha2::{Digest, Sha384};

/// What a register is extended with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// What is measured.
    pub name: String,
    /// Its SHA-384, the value that stands in an event log.
    #[serde(serialize_with = "crate::claims::as_hex")]
    pub digest: [u8; 48],
}

impl Event {
    fn of(name: &str, measured: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            digest: Sha384::digest(measured).into(),
        }
    }
}

/// A register after these events: zero, then SHA-384 over the register and the digest for each.
pub fn replay(events: &[Event]) -> [u8; 48] {
    events.iter().fold([0; 48], |register, event| {
        let extended = Sha384::new().chain_update(register).chain_update(event.digest);
        extended.finalize().into()
    })
}

/// The events of RTMR1: the kernel, and the firmware's way to it.
///
/// # Errors
/// [`MeasureError::Kernel`] when the kernel is no EFI image.
pub fn rtmr1_events(boot: &DirectBoot<'_>) -> Result<Vec<Event>, MeasureError> {
    let image = Event {
        name: "kernel image (Authenticode)".to_owned(),
        digest: authenticode(boot.kernel)?,
    };
    let steps = BOOT_STEPS.map(|step| Event::of(step, step.as_bytes()));
    let [calling, leaving, left] = steps;
    Ok(vec![image, calling, separator(), leaving, left])
}

/// The events of RTMR2: command line and initial RAM disk, measured by the kernel's EFI stub (Linux 6.9 and later).
///
/// # Errors
/// [`MeasureError::Machine`] for a command line that is not ASCII, which firmware converts in no defined way, and for no
/// initial RAM disk and no command line.
pub fn rtmr2_events(boot: &DirectBoot<'_>) -> Result<Vec<Event>, MeasureError> {
    if !boot.cmdline.is_ascii() || boot.cmdline.contains('\0') {
        return Err(MeasureError::Machine(
            "the command line: characters beyond ASCII have no defined measurement in a TDX guest".to_owned(),
        ));
    }
    let initrd = boot.initrd.filter(|initrd| !initrd.is_empty());
    if initrd.is_none() && boot.cmdline.is_empty() {
        return Err(MeasureError::Machine(
            "neither initial RAM disk nor command line: RTMR2 measures those two".to_owned(),
        ));
    }
    let prefix = if initrd.is_some() { INITRD_OPTION } else { "" };
    let text = [prefix, boot.cmdline, "\0"].concat();
    let load_options: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut events = vec![Event::of("command line (load options)", &load_options)];
    events.extend(initrd.map(|initrd| Event::of("initial RAM disk", initrd)));
    Ok(events)
}

/// The events of RTMR0 that do not depend on the machine: the configuration volume, the secure boot variables of firmware
/// without enrolled keys, and the separator.
pub fn firmware_events(tdvf: &Tdvf<'_>) -> Vec<Event> {
    let volume = tdvf.configuration_volume();
    let mut events: Vec<Event> = volume
        .map(|volume| Event::of("configuration firmware volume", volume))
        .into_iter()
        .collect();
    for (vendor, name) in SECURE_BOOT_VARIABLES {
        events.push(Event::of(
            &format!("variable {name}, empty"),
            &empty_variable(vendor, name),
        ));
    }
    events.push(separator());
    events
}

fn separator() -> Event {
    Event::of("separator", &[0; 4])
}

/// UEFI_VARIABLE_DATA (TCG PC Client Platform Firmware Profile, 10.2.6): GUID, lengths in characters and bytes, name in UTF-16.
fn empty_variable(vendor: &[u8; 16], name: &str) -> Vec<u8> {
    let mut data = vendor.to_vec();
    data.extend((name.len() as u64).to_le_bytes());
    data.extend(0_u64.to_le_bytes());
    data.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
    data
}

/// The Authenticode digest of a PE image, as firmware computes it: without checksum, certificates and the directory entry
/// that names them; sections in the order of the file, and what follows them.
///
/// # Errors
/// [`MeasureError::Kernel`] when the headers or a section do not lie in the image.
///
/// # References
/// edk2 `SecurityPkg/Library/BaseTdxTcg2…/MeasureBootPeCoff.c`; Microsoft, "Windows Authenticode Portable Executable
/// Signature Format".
pub fn authenticode(image: &[u8]) -> Result<[u8; 48], MeasureError> {
    let layout = Layout::parse(image).ok_or_else(|| {
        kernel("it is no EFI image (PE/COFF): give the bzImage or vmlinuz that is booted, built with CONFIG_EFI_STUB")
    })?;
    let mut digest = Sha384::new();
    for range in layout.headers {
        digest.update(&image[range]);
    }
    let mut hashed = layout.headers_bytes;
    for section in layout.sections {
        hashed = hashed.saturating_add(section.len());
        digest.update(section);
    }
    let end = image.len().checked_sub(layout.certificate_bytes);
    match end {
        // Sections that overlap would be hashed twice; nothing is left then.
        _ if hashed >= image.len() => {}
        Some(end) if hashed <= end => digest.update(&image[hashed..end]),
        _ => {
            return Err(kernel(
                "its table of certificates is larger than what follows its sections",
            ));
        }
    }
    Ok(digest.finalize().into())
}

/// Where the parts of a PE image lie, each checked to be in it.
struct Layout<'a> {
    headers: [std::ops::Range<usize>; 3],
    headers_bytes: usize,
    sections: Vec<&'a [u8]>,
    certificate_bytes: usize,
}

impl<'a> Layout<'a> {
    fn parse(image: &'a [u8]) -> Option<Self> {
        let size = |at| usize::try_from(u32_at(image, at)?).ok();
        let signature = size(0x3c)?;
        if !image.starts_with(b"MZ") || image.get(signature..signature.checked_add(4)?)? != b"PE\0\0" {
            return None;
        }
        let coff = signature + 4;
        let optional = coff.checked_add(20)?;
        let directories = match u16_at(image, optional)? {
            PE32 => optional + 96,
            PE32_PLUS => optional + 112,
            _ => return None,
        };
        let checksum = optional + 64;
        let headers_bytes = size(optional + 60)?;
        // The fifth directory names the certificates; an image may have fewer.
        let has_certificates = size(directories - 4)? > 4;
        let entry = directories + 4 * 8;
        let (entry, certificate_bytes) = if has_certificates {
            (entry..entry + 8, size(entry + 4)?)
        } else {
            (checksum + 4..checksum + 4, 0)
        };
        if headers_bytes < entry.end || headers_bytes > image.len() {
            return None;
        }
        let table = optional.checked_add(usize::from(u16_at(image, coff + 16)?))?;
        let count = usize::from(u16_at(image, coff + 2)?);
        let mut sections = Vec::new();
        let mut total = headers_bytes;
        for index in 0..count {
            let header = table.checked_add(40 * index)?;
            let (length, start) = (size(header + 16)?, size(header + 20)?);
            let content = image.get(start..start.checked_add(length)?)?;
            // Overlapping sections would make hashing quadratic.
            total = total.checked_add(length).filter(|total| *total <= image.len())?;
            sections.push((start, content));
        }
        sections.sort_by_key(|(start, _)| *start);
        Some(Self {
            headers: [0..checksum, checksum + 4..entry.start, entry.end..headers_bytes],
            headers_bytes,
            sections: sections.into_iter().map(|(_, content)| content).collect(),
            certificate_bytes,
        })
    }
}

const PE32: u16 = 0x10b;
const PE32_PLUS: u16 = 0x20b;

/// edk2 `OvmfPkg/Library/GenericQemuLoadImageLib` from edk2-stable202505.
const INITRD_OPTION: &str = "initrd=initrd ";

/// edk2 `OvmfPkg/Tcg/TdTcg2Dxe`, events of `EV_EFI_ACTION`; the separator stands after the first.
const BOOT_STEPS: [&str; 3] = [
    "Calling EFI Application from Boot Option",
    "Exit Boot Services Invocation",
    "Exit Boot Services Returned with Success",
];

/// 8be4df61-93ca-11d2-aa0d-00e098032b8c
const GLOBAL_VARIABLE: [u8; 16] = guid(
    0x8be4_df61,
    0x93ca,
    0x11d2,
    [0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c],
);
/// d719b2cb-3d3a-4596-a3bc-dad00e67656f
const IMAGE_SECURITY_DATABASE: [u8; 16] = guid(
    0xd719_b2cb,
    0x3d3a,
    0x4596,
    [0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f],
);
const SECURE_BOOT_VARIABLES: [(&[u8; 16], &str); 5] = [
    (&GLOBAL_VARIABLE, "SecureBoot"),
    (&GLOBAL_VARIABLE, "PK"),
    (&GLOBAL_VARIABLE, "KEK"),
    (&IMAGE_SECURITY_DATABASE, "db"),
    (&IMAGE_SECURITY_DATABASE, "dbx"),
];
