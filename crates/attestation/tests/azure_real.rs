//! Evidence of real Azure VMs (`../shared/evidence/azure`): each file gives what its README says, and no part of it can
//! be changed or exchanged.

#![allow(clippy::unwrap_used)]

use bastionai_attestation::azure::{self, Pieces, evidence_json};
use bastionai_attestation::{Envelope, Evidence, Item, Report, TrustAnchors, VerifyError, verify};
use std::path::PathBuf;

/// 2025-10-01: within the validity of the VCEKs and of Intel's certificates.
const THEN: u64 = 1_759_276_800_000;

/// A file of the evidence; nothing, and a line that says so, where it is not.
fn file(name: &str) -> Option<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/evidence/azure")
        .join(name);
    if !path.exists() {
        println!("skipped: no {}", path.display());
        return None;
    }
    Some(std::fs::read(path).unwrap())
}

fn snp() -> Option<Envelope> {
    Some(evidence_json(&file("snp-milan.evidence.json")?).unwrap())
}

fn tdx() -> Option<Envelope> {
    Some(evidence_json(&file("tdx.evidence.json")?).unwrap())
}

fn verified(envelope: &Envelope) -> Result<Report, VerifyError> {
    let evidence = Evidence {
        media_type: azure::MEDIA_TYPE.to_owned(),
        bytes: envelope.to_bytes(),
    };
    Ok(verify(&evidence, &TrustAnchors::bundled(), THEN)?
        .report()
        .clone())
}

fn item<'a>(envelope: &'a mut Envelope, media_type: &str) -> &'a mut Vec<u8> {
    let mut items = envelope.evidence.iter_mut();
    &mut items.find(|item| item.media_type == media_type).unwrap().bytes
}

#[test]
fn the_bindings_of_a_tdx_vm_hold_and_the_missing_collateral_is_named() {
    let Some(envelope) = tdx() else { return };
    let error = verified(&envelope).unwrap_err();
    assert!(matches!(error, VerifyError::MissingEndorsement { .. }), "{error}");
    let (Some(hcl_report), Some(td_quote)) = (file("tdx.hcl-report.bin"), file("tdx.td-quote.bin")) else {
        return;
    };
    let envelope = Pieces {
        hcl_report,
        td_quote: Some(td_quote),
        ..Pieces::default()
    }
    .into_envelope();
    let error = azure::verify_paravisor(&envelope, &TrustAnchors::bundled(), THEN).unwrap_err();
    assert!(matches!(error, VerifyError::MissingEndorsement { .. }), "{error}");
}

#[test]
fn every_flipped_byte_of_a_tdx_vm_is_refused_before_collateral_is_asked_for() {
    let Some(envelope) = tdx() else { return };
    // The TD report's CPUSVN and MAC say nothing to anybody but the processor that made them, and are not read.
    let unread = |at: usize| (32 + 16..32 + 32).contains(&at) || (32 + 224..32 + 256).contains(&at);
    let length = item(&mut envelope.clone(), azure::HCL_REPORT).len();
    for at in (0..length).filter(|at| !unread(*at)) {
        let mut flipped = envelope.clone();
        item(&mut flipped, azure::HCL_REPORT)[at] ^= 1 << (at % 8);
        let error = verified(&flipped).unwrap_err();
        assert!(
            !matches!(error, VerifyError::MissingEndorsement { .. }),
            "byte {at}: {error}"
        );
    }
}

#[test]
fn truncated_and_extended_reports_are_refused() {
    let Some(envelope) = snp() else { return };
    let whole = item(&mut envelope.clone(), azure::HCL_REPORT).clone();
    // Padding may be missing: the rest is 2346 bytes.
    for length in 0..2346 {
        let mut short = envelope.clone();
        item(&mut short, azure::HCL_REPORT).truncate(length);
        assert!(
            matches!(verified(&short), Err(VerifyError::Malformed(_))),
            "{length} bytes"
        );
    }
    for (more, byte) in [(1, 1), (100, 0xff), (1 << 16, 0)] {
        let mut long = envelope.clone();
        item(&mut long, azure::HCL_REPORT).resize(whole.len() + more, byte);
        assert!(
            matches!(verified(&long), Err(VerifyError::Malformed(_))),
            "{more} bytes more"
        );
    }
}

#[test]
fn the_pieces_of_two_vms_do_not_mix() {
    let (Some(snp), Some(tdx), Some(other)) = (snp(), tdx(), file("snp-milan-v2.hcl-report.bin")) else {
        return;
    };
    // Another VM's quote, and another VM's report: the key in the one did not sign the other.
    let mut mixed = snp.clone();
    *item(&mut mixed, bastionai_attestation::tpm::MEDIA_TYPE) =
        item(&mut tdx.clone(), bastionai_attestation::tpm::MEDIA_TYPE).clone();
    assert_eq!(verified(&mixed), Err(VerifyError::Signature));
    let mut mixed = snp.clone();
    *item(&mut mixed, azure::HCL_REPORT) = other.clone();
    assert_eq!(verified(&mixed), Err(VerifyError::Signature));
    // Another VM's runtime data under this VM's SNP report, of the same length.
    let mut mixed = snp.clone();
    item(&mut mixed, azure::HCL_REPORT)[1216..].copy_from_slice(&other[1216..]);
    let error = verified(&mixed).unwrap_err();
    assert!(
        matches!(&error, VerifyError::Unbound { what, .. } if what.contains("runtime data")),
        "{error}"
    );
    // A report of SNP that says it is one of TDX.
    let mut mixed = snp.clone();
    item(&mut mixed, azure::HCL_REPORT)[1224] = 4;
    assert!(verified(&mixed).is_err());
}

#[test]
fn another_attestation_key_in_the_runtime_data_is_refused() {
    let Some(envelope) = snp() else { return };
    let mut swapped = envelope.clone();
    let report = item(&mut swapped, azure::HCL_REPORT);
    let text = report
        .windows(5)
        .position(|window| window == b"\"n\":\"")
        .unwrap()
        + 5;
    report[text + 10] = if report[text + 10] == b'A' { b'B' } else { b'A' };
    let error = verified(&swapped).unwrap_err();
    assert!(matches!(error, VerifyError::Unbound { .. }), "{error}");
}

#[test]
fn a_td_quote_of_another_td_is_refused() {
    let Some(mut envelope) = tdx() else { return };
    // MRTD of the body: the quote's signature is not even looked at.
    item(&mut envelope, bastionai_attestation::tdx::QUOTE)[48 + 136] ^= 1;
    let error = verified(&envelope).unwrap_err();
    assert!(
        matches!(&error, VerifyError::Unbound { why, .. } if why.contains("MRTD")),
        "{error}"
    );
    item(&mut envelope, bastionai_attestation::tdx::QUOTE).truncate(600);
    assert!(matches!(verified(&envelope), Err(VerifyError::Malformed(_))));
    envelope
        .evidence
        .retain(|item| item.media_type != bastionai_attestation::tdx::QUOTE);
    assert!(matches!(verified(&envelope), Err(VerifyError::Malformed(_))));
}

#[test]
fn pieces_twice_are_refused() {
    let Some(mut envelope) = snp() else { return };
    let report = item(&mut envelope, azure::HCL_REPORT).clone();
    envelope.evidence.push(Item::new(azure::HCL_REPORT, report));
    assert!(matches!(verified(&envelope), Err(VerifyError::Malformed(_))));
}

#[test]
fn json_that_is_no_evidence_of_version_1_is_refused() {
    let Some(json) = file("snp-milan.evidence.json") else {
        return;
    };
    let json = String::from_utf8(json).unwrap();
    for (from, to) in [
        ("\"version\": 1", "\"version\": 2"),
        ("\"hcl_report\"", "\"other\""),
        ("\"signature\"", "\"unknown\": 1, \"signature\""),
        ("\"message\": \"ff54", "\"message\": \"f54"),
    ] {
        let loose = json.replacen(from, to, 1);
        let dense = json.replacen(&from.replace(": ", ":"), &to.replace(": ", ":"), 1);
        let changed = if loose == json { dense } else { loose };
        assert_ne!(changed, json, "{from}");
        assert!(
            matches!(evidence_json(changed.as_bytes()), Err(VerifyError::Malformed(_))),
            "{to}"
        );
    }
}

mod random {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn random_bytes_are_refused_without_panic(
            report in prop::collection::vec(any::<u8>(), 0..3000),
            quote in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            prop_assert!(evidence_json(&report).is_err());
            let envelope = Pieces { hcl_report: report, quote: Some(quote), ..Pieces::default() }.into_envelope();
            prop_assert!(verified(&envelope).is_err());
            prop_assert!(azure::verify_paravisor(&envelope, &TrustAnchors::bundled(), THEN).is_err());
        }
    }
}
