//! TDX evidence: quote, collateral and event log of any bytes are refused without panic.
//!
//! The input is two lengths (u16, little-endian), a quote and collateral of those lengths, and an event log.
#![no_main]

use bastionai_attestation::{Envelope, Evidence, Item, TrustAnchors, tdx, verify};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((lengths, rest)) = bytes.split_first_chunk::<4>() else {
        return;
    };
    let length = |at: usize| usize::from(u16::from_le_bytes([lengths[at], lengths[at + 1]]));
    let (quote, rest) = rest.split_at(length(0).min(rest.len()));
    let (collateral, log) = rest.split_at(length(2).min(rest.len()));
    let _ = tdx::replay_event_log(log, &[[0; 48]; 4]);
    for endorsements in [vec![], vec![Item::new(tdx::COLLATERAL, collateral)]] {
        let envelope = Envelope {
            evidence: vec![Item::new(tdx::QUOTE, quote), Item::new(tdx::EVENT_LOG, log)],
            endorsements,
        };
        let evidence = Evidence {
            media_type: tdx::MEDIA_TYPE.to_owned(),
            bytes: envelope.to_bytes(),
        };
        // 2025-07-01, when the collateral of the shared evidence was good.
        let _ = verify(&evidence, &TrustAnchors::bundled(), 1_751_328_000_000);
    }
});
