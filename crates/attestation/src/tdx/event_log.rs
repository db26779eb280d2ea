//! The firmware's log of what it extended RTMR0–3 with, and its replay.
//!
//! The ACPI table CCEL points to it; Linux shows it at `/sys/firmware/acpi/tables/data/CCEL`. TCG PC Client Platform
//! Firmware Profile 1.06, section 10.2: one event in the old format that names the digests (`Spec ID Event03`), then
//! events with a digest per algorithm. Guest-Host-Communication Interface for TDX 1.5, section 4.3.3: register 0 is
//! MRTD, 1 to 4 are RTMR0 to 3, all SHA-384.

use super::report::Event;
use crate::verify::VerifyError;
use sha2::{Digest, Sha384};

/// Longest log read: firmware gives it an area of 64 KiB.
pub(super) const MAX_LOG_BYTES: usize = 256 * 1024;
/// Most events read: a Linux boot makes less than two hundred.
pub(super) const MAX_EVENTS: usize = 1024;

/// The events, if extending zeros with them gives the registers quoted.
pub(super) fn replay(log: &[u8], quoted: &[[u8; 48]; 4]) -> Result<Vec<Event>, VerifyError> {
    let events = parse(log)?;
    let mut registers = [[0; 48]; 4];
    for event in &events {
        let register = &mut registers[usize::from(event.rtmr)];
        *register = Sha384::new()
            .chain_update(&register[..])
            .chain_update(event.digest)
            .finalize()
            .into();
    }
    match (0..4).find(|index| registers[*index] != quoted[*index]) {
        None => Ok(events),
        Some(index) => Err(malformed(format!(
            "its replay gives RTMR{index} {}, the quote says {}",
            hex::encode(registers[index]),
            hex::encode(quoted[index])
        ))),
    }
}

/// The events that were extended into RTMRs, in order.
fn parse(log: &[u8]) -> Result<Vec<Event>, VerifyError> {
    if log.len() > MAX_LOG_BYTES {
        return Err(VerifyError::TooLong {
            found: log.len(),
            most: MAX_LOG_BYTES,
        });
    }
    let mut reader = Reader(log);
    let algorithms = specification(&mut reader)?;
    let mut events = Vec::new();
    while !reader.is_over() {
        let (register, kind) = (reader.u32()?, reader.u32()?);
        let digest = digest(&mut reader, &algorithms)?;
        let length = reader.u32()? as usize;
        reader.take(length)?;
        if kind == EV_NO_ACTION {
            continue;
        }
        let rtmr = match register {
            1..=4 => (register - 1) as u8,
            other => {
                return Err(malformed(format!(
                    "an event in register {other}, which nothing can extend"
                )));
            }
        };
        if events.len() == MAX_EVENTS {
            return Err(malformed(format!("more than {MAX_EVENTS} events")));
        }
        let name = name(kind);
        events.push(Event { rtmr, name, digest });
    }
    Ok(events)
}

/// The digests that each event has: identifier and size.
fn specification(reader: &mut Reader<'_>) -> Result<Vec<(u16, usize)>, VerifyError> {
    let (_register, kind) = (reader.u32()?, reader.u32()?);
    reader.take(20)?;
    let length = reader.u32()? as usize;
    let mut event = Reader(reader.take(length)?);
    if kind != EV_NO_ACTION || event.take(16)? != b"Spec ID Event03\0" {
        return Err(malformed("no crypto-agile log of the TCG".into()));
    }
    event.take(8)?;
    let count = event.u32()? as usize;
    if count == 0 || count > MAX_ALGORITHMS {
        return Err(malformed(format!("{count} digest algorithms")));
    }
    let mut algorithms = Vec::with_capacity(count);
    for _ in 0..count {
        algorithms.push((event.u16()?, usize::from(event.u16()?)));
    }
    let vendor = usize::from(event.take(1)?[0]);
    event.take(vendor)?;
    match algorithms.iter().filter(|found| **found == (SHA384, 48)).count() {
        1 if event.0.is_empty() => Ok(algorithms),
        _ => Err(malformed(
            "its first event announces no SHA-384, or has bytes to spare".into(),
        )),
    }
}

/// The SHA-384 digest of an event; each announced algorithm stands there once.
fn digest(reader: &mut Reader<'_>, algorithms: &[(u16, usize)]) -> Result<[u8; 48], VerifyError> {
    let count = reader.u32()? as usize;
    if count != algorithms.len() {
        return Err(malformed(format!(
            "{count} digests, {} were announced",
            algorithms.len()
        )));
    }
    let mut found = None;
    for _ in 0..count {
        let id = reader.u16()?;
        let size = algorithms
            .iter()
            .find_map(|(known, size)| (*known == id).then_some(*size));
        let bytes = reader.take(size.ok_or_else(|| malformed(format!("a digest of algorithm {id:#x}")))?)?;
        if id == SHA384 {
            let bytes: [u8; 48] = bytes.try_into().expect("announced with 48 bytes");
            if found.replace(bytes).is_some() {
                return Err(malformed("two SHA-384 digests of one event".into()));
            }
        }
    }
    found.ok_or_else(|| malformed("an event without a SHA-384 digest".into()))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], VerifyError> {
        let (found, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| malformed("it ends within an event".into()))?;
        self.0 = rest;
        Ok(found)
    }

    fn u16(&mut self) -> Result<u16, VerifyError> {
        Ok(u16::from_le_bytes(self.take(2)?.try_into().expect("two bytes")))
    }

    fn u32(&mut self) -> Result<u32, VerifyError> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    /// At the end of the bytes, or where the area's filling begins: all ones or all zeros to its end.
    fn is_over(&self) -> bool {
        let filled = |with: u8| self.0.iter().all(|byte| *byte == with);
        self.0.is_empty() || filled(0xff) || filled(0)
    }
}

fn name(kind: u32) -> String {
    let known = EVENT_TYPES.iter().find(|(number, _)| *number == kind);
    known.map_or_else(|| format!("{kind:#x}"), |(_, name)| (*name).to_owned())
}

fn malformed(why: String) -> VerifyError {
    VerifyError::Malformed(format!("the event log: {why}"))
}

const SHA384: u16 = 0x000c;
const MAX_ALGORITHMS: usize = 8;
const EV_NO_ACTION: u32 = 3;
/// TCG PC Client Platform Firmware Profile 1.06, section 10.4.1.
const EVENT_TYPES: &[(u32, &str)] = &[
    (0x0000_0001, "EV_POST_CODE"),
    (0x0000_0004, "EV_SEPARATOR"),
    (0x0000_0005, "EV_ACTION"),
    (0x0000_0006, "EV_EVENT_TAG"),
    (0x0000_0007, "EV_S_CRTM_CONTENTS"),
    (0x0000_0008, "EV_S_CRTM_VERSION"),
    (0x0000_0009, "EV_CPU_MICROCODE"),
    (0x0000_000a, "EV_PLATFORM_CONFIG_FLAGS"),
    (0x0000_000b, "EV_TABLE_OF_DEVICES"),
    (0x0000_000c, "EV_COMPACT_HASH"),
    (0x0000_000d, "EV_IPL"),
    (0x0000_000e, "EV_IPL_PARTITION_DATA"),
    (0x8000_0001, "EV_EFI_VARIABLE_DRIVER_CONFIG"),
    (0x8000_0002, "EV_EFI_VARIABLE_BOOT"),
    (0x8000_0003, "EV_EFI_BOOT_SERVICES_APPLICATION"),
    (0x8000_0004, "EV_EFI_BOOT_SERVICES_DRIVER"),
    (0x8000_0005, "EV_EFI_RUNTIME_SERVICES_DRIVER"),
    (0x8000_0006, "EV_EFI_GPT_EVENT"),
    (0x8000_0007, "EV_EFI_ACTION"),
    (0x8000_0008, "EV_EFI_PLATFORM_FIRMWARE_BLOB"),
    (0x8000_0009, "EV_EFI_HANDOFF_TABLES"),
    (0x8000_000a, "EV_EFI_PLATFORM_FIRMWARE_BLOB2"),
    (0x8000_000b, "EV_EFI_HANDOFF_TABLES2"),
    (0x8000_000c, "EV_EFI_VARIABLE_BOOT2"),
    (0x8000_00e0, "EV_EFI_VARIABLE_AUTHORITY"),
];
