//! Evidence of an Azure VM, as an envelope, as Trustee's JSON, or as a bare report of the paravisor: reading and
//! verifying never panic. Seeds: `../shared/evidence/azure`.
#![no_main]

use bastionai_attestation::azure::{MEDIA_TYPE, Pieces, evidence_json, verify_paravisor};
use bastionai_attestation::{Envelope, Evidence, TrustAnchors, verify};

const NOW: u64 = 1_759_276_800_000;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let anchors = TrustAnchors::bundled();
    let report = Pieces { hcl_report: bytes.to_vec(), ..Pieces::default() };
    let _ = verify_paravisor(&report.into_envelope(), &anchors, NOW);
    for envelope in [evidence_json(bytes), Envelope::from_bytes(bytes)].into_iter().flatten() {
        let evidence = Evidence { media_type: MEDIA_TYPE.to_owned(), bytes: envelope.to_bytes() };
        let _ = verify(&evidence, &anchors, NOW);
        let _ = verify_paravisor(&envelope, &anchors, NOW);
    }
});
