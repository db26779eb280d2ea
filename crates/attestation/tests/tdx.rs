//! TDX quotes of real machines (`../shared/evidence/tdx`) and of a test Intel.
#![allow(clippy::unwrap_used)]

use bastionai_attestation::{
    Envelope, Evidence, Item, Platform, TrustAnchors, VerifyError, envelope, tdx, verify,
};
use bastionai_test_platforms::tdx::{TestEvent, TestIntel, TestTdx};
use proptest::prelude::*;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

/// 2025-07-01 and 2026-03-01, Unix seconds.
const JULY_2025: u64 = 1_751_328_000;
const MARCH_2026: u64 = 1_772_323_200;
const DAY: u64 = 86_400;
const NOW: u64 = 1_790_000_000;
static INTEL: LazyLock<Arc<TestIntel>> = LazyLock::new(|| Arc::new(TestIntel::new()));

/// A file of the evidence; nothing, and a line that says so, where it is not.
fn real(name: &str) -> Option<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/evidence")
        .join(name);
    let bytes = std::fs::read(&path).ok();
    if bytes.is_none() {
        println!("skipped: no {}", path.display());
    }
    bytes
}

fn evidence(quote: &[u8], collateral: Option<&[u8]>) -> Evidence {
    let envelope = Envelope {
        evidence: vec![Item::new(tdx::QUOTE, quote)],
        endorsements: collateral
            .iter()
            .map(|json| Item::new(tdx::COLLATERAL, *json))
            .collect(),
    };
    sealed(&envelope)
}

fn sealed(envelope: &Envelope) -> Evidence {
    Evidence {
        media_type: tdx::MEDIA_TYPE.to_owned(),
        bytes: envelope.to_bytes(),
    }
}

fn checked(
    evidence: &Evidence,
    anchors: &TrustAnchors,
    seconds: u64,
) -> Result<(Vec<u8>, tdx::Report), VerifyError> {
    let verified = verify(evidence, anchors, seconds * 1000)?;
    match &verified.report().platform {
        Platform::Tdx(report) => Ok((verified.report().report_data.to_vec(), (**report).clone())),
        other => panic!("not TDX: {other:?}"),
    }
}

fn real_report(quote: &[u8], collateral: Option<&[u8]>, seconds: u64) -> Result<tdx::Report, VerifyError> {
    checked(&evidence(quote, collateral), &TrustAnchors::bundled(), seconds).map(|(_, report)| report)
}

fn test_anchors() -> TrustAnchors {
    TrustAnchors::none().with_intel(tdx::Roots::new(INTEL.root_ca()))
}

fn test_report(evidence: &Evidence) -> Result<(Vec<u8>, tdx::Report), VerifyError> {
    checked(evidence, &test_anchors(), NOW)
}

#[test]
fn the_real_quote_of_version_4_is_up_to_date_within_its_dates_and_refused_outside() {
    let (Some(quote), Some(json)) = (real("tdx/v4.quote.bin"), real("tdx/v4.collateral.json")) else {
        return;
    };
    let report = real_report(&quote, Some(&json), JULY_2025).unwrap();
    assert_eq!(report.tcb_status, tdx::TcbStatus::UpToDate);
    assert!(report.tcb_listed && report.advisories.is_empty());
    assert_eq!(hex::encode(report.fmspc), "b0c06f000000");
    assert_eq!(hex::encode(report.td_attributes), "0000001000000000");
    assert_eq!(hex::encode(&report.rtmrs[0][..4]), "44c0197b");
    assert_eq!((report.mr_service_td, report.rtmrs[3]), (None, [0; 48]));
    assert!(!report.debug);
    for outside in [JULY_2025 - 13 * DAY, JULY_2025 + 19 * DAY] {
        let error = real_report(&quote, Some(&json), outside).unwrap_err();
        assert!(matches!(error, VerifyError::NotValidNow { .. }), "{error}");
    }
}

#[test]
fn the_real_quote_of_version_5_is_out_of_date() {
    let names = ["tdx/v5-outdated.quote.bin", "tdx/v5-outdated.collateral.json"];
    let (Some(quote), Some(json)) = (real(names[0]), real(names[1])) else {
        return;
    };
    let report = real_report(&quote, Some(&json), MARCH_2026).unwrap();
    assert_eq!(report.tcb_status, tdx::TcbStatus::OutOfDate);
    // The SEAM loader of that platform (CPUSVN[7] = 3) is below every level listed, which ask for 5.
    assert!(!report.tcb_listed && report.advisories.is_empty());
    assert_eq!(report.mr_service_td, Some([0; 48]));
    assert!(report.tee_tcb_svn2.is_some() && report.current_tcb_status.is_some());
    for outside in [MARCH_2026 - 12 * DAY, MARCH_2026 + 20 * DAY] {
        let error = real_report(&quote, Some(&json), outside).unwrap_err();
        assert!(matches!(error, VerifyError::NotValidNow { .. }), "{error}");
    }
}

#[test]
fn real_quotes_without_collateral_lead_to_intel_and_say_what_is_missing() {
    for name in [
        "tdx/v4.quote.bin",
        "tdx/v4-spr.quote.bin",
        "tdx/v4-debug.quote.bin",
        "azure/tdx.td-quote.bin",
    ] {
        let Some(quote) = real(name) else { continue };
        let error = real_report(&quote, None, JULY_2025).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, VerifyError::MissingEndorsement { .. }),
            "{name}: {text}"
        );
        assert!(
            text.contains("FMSPC") && text.contains("api.trustedservices.intel.com"),
            "{text}"
        );
        // Its chain was verified: under another root, or with a byte of the body changed, the error is of that.
        let error = checked(&evidence(&quote, None), &test_anchors(), JULY_2025).unwrap_err();
        assert!(error.to_string().contains("another root"), "{name}: {error}");
        let mut forged = quote;
        forged[400] ^= 1;
        assert_eq!(
            real_report(&forged, None, JULY_2025).unwrap_err(),
            VerifyError::Signature,
            "{name}"
        );
    }
}

/// The source of the second file appended a text on purpose.
#[test]
fn what_follows_a_quote_is_refused_unless_it_is_zeros() {
    if let (Some(quote), Some(json)) = (real("tdx/v4.quote.bin"), real("tdx/v4.collateral.json")) {
        let longer = [&quote[..], &[0; 100]].concat();
        real_report(&longer, Some(&json), JULY_2025).unwrap();
        let extended = [&quote[..], b"extra"].concat();
        let error = real_report(&extended, Some(&json), JULY_2025).unwrap_err();
        assert!(error.to_string().contains("bytes follow the quote"), "{error}");
    }
    if let (Some(quote), Some(json)) = (real("tdx/v4-spr.quote.bin"), real("tdx/v4.collateral.json")) {
        let error = real_report(&quote, Some(&json), JULY_2025).unwrap_err();
        assert!(error.to_string().contains("39 bytes follow the quote"), "{error}");
    }
}

#[test]
fn collateral_of_another_platform_or_time_is_refused() {
    let names = [
        "v4.quote.bin",
        "v4.collateral.json",
        "v5-outdated.quote.bin",
        "v5-outdated.collateral.json",
    ];
    let [Some(v4), Some(v4_json), Some(v5), Some(v5_json)] = names.map(|name| real(&format!("tdx/{name}")))
    else {
        return;
    };
    let error = real_report(&v4, Some(&v5_json), MARCH_2026).unwrap_err();
    assert!(error.to_string().contains("Fmspc"), "{error}");
    // The PCK certificate of the second is younger than the collateral of the first.
    assert!(real_report(&v5, Some(&v4_json), JULY_2025).is_err());
    assert!(real_report(&v5, Some(&v4_json), MARCH_2026).is_err());
    let read = |json: &[u8]| serde_json::from_slice::<Value>(json).unwrap();
    let (of_v4, of_v5) = (read(&v4_json), read(&v5_json));
    for (member, theirs) in of_v5.as_object().unwrap() {
        if of_v4[member] == *theirs {
            continue;
        }
        let mut mixed = of_v4.clone();
        mixed[member] = theirs.clone();
        let mixed = serde_json::to_vec(&mixed).unwrap();
        for at in [JULY_2025, MARCH_2026] {
            assert!(real_report(&v4, Some(&mixed), at).is_err(), "{member}");
        }
    }
}

#[test]
fn every_flipped_byte_of_a_real_quote_is_refused() {
    let (Some(quote), Some(json)) = (real("tdx/v4.quote.bin"), real("tdx/v4.collateral.json")) else {
        return;
    };
    // By its own lengths; zeros follow.
    let length = 4936;
    for at in 0..length {
        let mut flipped = quote.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(
            real_report(&flipped, Some(&json), JULY_2025).is_err(),
            "byte {at}"
        );
    }
    for cut in (0..length).step_by(37).chain([length - 1]) {
        assert!(
            real_report(&quote[..cut], Some(&json), JULY_2025).is_err(),
            "{cut} bytes"
        );
    }
}

#[test]
fn every_flipped_byte_of_real_collateral_is_refused() {
    let (Some(quote), Some(json)) = (real("tdx/v4.quote.bin"), real("tdx/v4.collateral.json")) else {
        return;
    };
    let read: Value = serde_json::from_slice(&json).unwrap();
    let refused = |collateral: &Value, what: &str| {
        let collateral = serde_json::to_vec(collateral).unwrap();
        assert!(
            real_report(&quote, Some(&collateral), JULY_2025).is_err(),
            "{what}"
        );
    };
    for (member, value) in read.as_object().unwrap() {
        let text = value.as_str().unwrap();
        let is_hexadecimal = member.ends_with("_crl") || member.ends_with("_signature");
        // Lists and chains are long: every seventh byte, and the last that says anything.
        for at in (0..text.len()).step_by(7).chain([text.trim_end().len() - 1]) {
            let mut changed = text.as_bytes().to_vec();
            changed[at] = match (is_hexadecimal, changed[at]) {
                (true, b'0') => b'1',
                (true, _) => b'0',
                (false, byte) => byte ^ 1,
            };
            let mut mutated = read.clone();
            mutated[member] = String::from_utf8(changed).unwrap().into();
            refused(&mutated, &format!("{member} byte {at}"));
        }
        let mut missing = read.clone();
        missing.as_object_mut().unwrap().remove(member);
        refused(&missing, member);
    }
    let mut more = read.clone();
    more["unknown"] = "".into();
    refused(&more, "an unknown member");
}

#[test]
fn test_platforms_verify_in_each_version_with_their_report_data() {
    for (version, service_td) in [(4, None), (5, None), (5, Some([0; 48]))] {
        let mut platform = TestTdx::at(Arc::clone(&INTEL), NOW);
        platform.td.version = version;
        platform.td.mr_service_td = service_td;
        let (report_data, report) = test_report(&sealed(&platform.envelope(&[7; 64]))).unwrap();
        assert_eq!((report_data, report.mr_td), (vec![7; 64], platform.td.mr_td));
        assert_eq!(
            (report.mr_service_td, report.tcb_status),
            (service_td, tdx::TcbStatus::UpToDate)
        );
        let error = checked(
            &sealed(&platform.envelope(&[7; 64])),
            &TrustAnchors::bundled(),
            NOW,
        )
        .unwrap_err();
        assert!(error.to_string().contains("another root"), "{error}");
    }
    let platform = TestTdx::at(Arc::clone(&INTEL), NOW);
    let without = verify(&sealed(&platform.envelope(&[7; 64])), &TrustAnchors::none(), NOW);
    assert!(matches!(without, Err(VerifyError::UnknownMediaType(_))));
}

#[test]
fn a_revoked_platform_is_refused_as_such() {
    let mut platform = TestTdx::at(Arc::clone(&INTEL), NOW);
    platform.collateral.as_mut().unwrap().pck_revoked = true;
    let error = test_report(&sealed(&platform.envelope(&[7; 64]))).unwrap_err();
    assert!(matches!(error, VerifyError::Revoked { .. }), "{error}");
    platform.collateral.as_mut().unwrap().pck_revoked = false;
    platform.collateral.as_mut().unwrap().tcb_status = "Revoked";
    let error = test_report(&sealed(&platform.envelope(&[7; 64]))).unwrap_err();
    assert!(error.to_string().contains("Revoked"), "{error}");
}

#[test]
fn migratable_tds_and_those_without_sept_ve_disable_are_refused() {
    for (attributes, why) in [
        (0, "SEPT_VE_DISABLE"),
        (3 << 28, "migratable"),
        (1 << 28 | 1 << 40, "reserved"),
    ] {
        let mut platform = TestTdx::at(Arc::clone(&INTEL), NOW);
        platform.td.attributes = attributes;
        let error = test_report(&sealed(&platform.envelope(&[7; 64]))).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn sgx_quotes_other_versions_and_other_keys_are_refused_by_name() {
    let platform = TestTdx::at(Arc::clone(&INTEL), NOW);
    let quote = INTEL.quote(&platform.td, &[7; 64]);
    for (at, value, why) in [
        (0, 3, "version 3"),
        (2, 3, "P-256"),
        (4, 0, "of TDX"),
        (12, 0, "Intel's"),
    ] {
        let mut changed = quote.clone();
        changed[at] = value;
        let error = test_report(&evidence(&changed, None)).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn collateral_twice_is_refused() {
    let platform = TestTdx::at(Arc::clone(&INTEL), NOW);
    let mut envelope = platform.envelope(&[7; 64]);
    envelope.endorsements.push(envelope.endorsements[0].clone());
    assert!(matches!(
        test_report(&sealed(&envelope)),
        Err(VerifyError::Malformed(_))
    ));
    envelope.endorsements = vec![Item::new(envelope::CERTIFICATE, [1])];
    assert!(matches!(
        test_report(&sealed(&envelope)),
        Err(VerifyError::MissingEndorsement { .. })
    ));
}

fn booted() -> TestTdx {
    let event = |rtmr, kind, bytes: &[u8]| TestEvent {
        rtmr,
        kind,
        bytes: bytes.to_vec(),
    };
    TestTdx::at(Arc::clone(&INTEL), NOW).with_events(vec![
        event(0, 0x8000_0001, b"SecureBoot"),
        event(0, 4, &[0; 4]),
        event(1, 0x8000_0003, b"kernel"),
        event(2, 0xd, b"initrd"),
        event(2, 0x1234, b"own"),
    ])
}

#[test]
fn an_event_log_is_replayed_and_listed() {
    let platform = booted();
    let (_, report) = test_report(&sealed(&platform.envelope(&[7; 64]))).unwrap();
    let names: Vec<_> = report
        .events
        .iter()
        .map(|event| (event.rtmr, event.name.as_str()))
        .collect();
    assert_eq!(
        names,
        [
            (0, "EV_EFI_VARIABLE_DRIVER_CONFIG"),
            (0, "EV_SEPARATOR"),
            (1, "EV_EFI_BOOT_SERVICES_APPLICATION"),
            (2, "EV_IPL"),
            (2, "0x1234")
        ]
    );
}

#[test]
fn an_event_log_that_does_not_give_the_registers_is_refused() {
    let platform = booted();
    let mut omitted = platform.clone();
    omitted.events.as_mut().unwrap().remove(2);
    let mut swapped = platform.clone();
    swapped.events.as_mut().unwrap().swap(3, 4);
    let mut changed = platform;
    changed.events.as_mut().unwrap()[1].bytes[0] = 1;
    for (platform, register) in [(omitted, "RTMR1"), (swapped, "RTMR2"), (changed, "RTMR0")] {
        let error = test_report(&sealed(&platform.envelope(&[7; 64]))).unwrap_err();
        assert!(
            matches!(&error, VerifyError::Malformed(text) if text.contains(register)),
            "{error}"
        );
    }
}

fn with_log(envelope: &Envelope, log: &[u8]) -> Evidence {
    let mut envelope = envelope.clone();
    envelope.evidence[1] = Item::new(tdx::EVENT_LOG, log);
    sealed(&envelope)
}

#[test]
fn a_log_changed_in_what_is_measured_or_cut_is_refused() {
    let envelope = booted().envelope(&[7; 64]);
    let log = envelope.evidence[1].bytes.clone();
    let end = log.iter().rposition(|byte| *byte != 0xff).unwrap() + 1;
    for cut in 1..end {
        // Cut between events the log is shorter, yet well-formed: the registers tell.
        assert!(
            test_report(&with_log(&envelope, &log[..cut])).is_err(),
            "{cut} bytes"
        );
    }
    test_report(&with_log(&envelope, &log[..end])).unwrap();
    let mut filled = log.clone();
    *filled.last_mut().unwrap() = 0;
    assert!(test_report(&with_log(&envelope, &filled)).is_err());
    for event in [&b"SecureBoot"[..], b"kernel", b"initrd"] {
        let digest = sha384(event);
        let at = log.windows(48).position(|window| window == digest).unwrap();
        for offset in 0..48 {
            let mut flipped = log.clone();
            flipped[at + offset] ^= 0x10;
            assert!(test_report(&with_log(&envelope, &flipped)).is_err());
        }
    }
}

fn sha384(bytes: &[u8]) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA384, bytes)
        .as_ref()
        .to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_are_refused_without_panic(
        quote in prop::collection::vec(any::<u8>(), 0..800),
        collateral in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        prop_assert!(test_report(&evidence(&quote, None)).is_err());
        prop_assert!(test_report(&evidence(&quote, Some(&collateral))).is_err());
    }

    #[test]
    fn test_quotes_with_some_bytes_overwritten_are_refused_without_panic(
        at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 1..9),
        version in 4u16..6,
    ) {
        let mut platform = TestTdx::at(Arc::clone(&INTEL), NOW);
        platform.td.version = version;
        platform.td.mr_service_td = (version == 5).then_some([0; 48]);
        let mut envelope = platform.envelope(&[7; 64]);
        let quote = envelope.evidence[0].bytes.clone();
        let start = at.index(quote.len() - bytes.len());
        envelope.evidence[0].bytes[start..start + bytes.len()].copy_from_slice(&bytes);
        prop_assume!(envelope.evidence[0].bytes != quote);
        prop_assert!(test_report(&sealed(&envelope)).is_err());
    }

    #[test]
    fn logs_with_some_bytes_overwritten_never_panic(
        at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 1..9),
    ) {
        let envelope = booted().envelope(&[7; 64]);
        let mut log = envelope.evidence[1].bytes.clone();
        let start = at.index(500);
        log[start..start + bytes.len()].copy_from_slice(&bytes);
        // Types and the events' own bytes are not measured: those may differ, the digests not.
        if let Ok((_, report)) = test_report(&with_log(&envelope, &log)) {
            let measured = [&b"SecureBoot"[..], &[0; 4], b"kernel", b"initrd", b"own"].map(sha384);
            let digests: Vec<_> = report.events.iter().map(|event| event.digest.to_vec()).collect();
            prop_assert_eq!(&digests[..], &measured[..]);
        }
    }
}
