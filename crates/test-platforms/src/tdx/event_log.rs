//! A firmware's log, in the TCG's crypto-agile format, and the registers it gives.

use ring::digest::{SHA384, digest};

/// One event: the firmware extends a register with the SHA-384 of the event's bytes.
#[derive(Clone, Debug)]
pub struct TestEvent {
    /// RTMR, 0 to 3.
    pub rtmr: u8,
    /// Type of event.
    pub kind: u32,
    /// The event.
    pub bytes: Vec<u8>,
}

/// The log, in an area of 4 KiB filled with ones as firmware leaves it.
pub fn event_log(events: &[TestEvent]) -> Vec<u8> {
    let mut log = Vec::new();
    let specification = [
        &b"Spec ID Event03\0"[..],
        &[0, 0, 0, 0, 0, 2, 0, 2],
        &1u32.to_le_bytes(),
        &SHA384_ID.to_le_bytes(),
        &48u16.to_le_bytes(),
        &[0],
    ]
    .concat();
    log.extend([0; 4]);
    log.extend(3u32.to_le_bytes());
    log.extend([0; 20]);
    log.extend((specification.len() as u32).to_le_bytes());
    log.extend(specification);
    for event in events {
        log.extend((u32::from(event.rtmr) + 1).to_le_bytes());
        log.extend(event.kind.to_le_bytes());
        log.extend(1u32.to_le_bytes());
        log.extend(SHA384_ID.to_le_bytes());
        log.extend(digest(&SHA384, &event.bytes).as_ref());
        log.extend((event.bytes.len() as u32).to_le_bytes());
        log.extend(&event.bytes);
    }
    log.resize(log.len().max(4096), 0xff);
    log
}

/// RTMR0–3 after the events.
pub(super) fn registers(events: &[TestEvent]) -> [[u8; 48]; 4] {
    let mut registers = [[0; 48]; 4];
    for event in events {
        let register = &mut registers[usize::from(event.rtmr)];
        let extended = digest(
            &SHA384,
            &[&register[..], digest(&SHA384, &event.bytes).as_ref()].concat(),
        );
        register.copy_from_slice(extended.as_ref());
    }
    registers
}

const SHA384_ID: u16 = 0x000c;
