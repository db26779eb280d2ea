//! Evidence of GPUs: what real ones signed, and what no honest one would.
#![allow(clippy::unwrap_used)]

use bastionai_attestation::nvidia::{self, Evidence, Firmware, Mode, Policy, Report, formats, nonce};
use bastionai_attestation::{Attester, Envelope, ReferenceValues, Rule, TrustAnchors, VerifyError, tdx};
use bastionai_test_platforms::nvidia::{
    DEVICE, Gpu, IDENTITY, LEAF, Measured, Model, PROVISIONER, ROOT, Vendor, WithGpus, tlv,
};
use bastionai_test_platforms::tdx::{TestIntel, TestTdx};
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CustomExtension, DistinguishedName, DnType, IsCa, KeyUsagePurpose, date_time_ymd,
};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

/// 2026-01-01.
const NOW_MS: u64 = 1_767_225_600_000;
/// 2045-01-01: past the certificates of the test vendor.
const LATER_MS: u64 = 2_366_841_600_000;
const NONCE: [u8; 32] = [7; 32];

static VENDOR: LazyLock<Vendor> = LazyLock::new(Vendor::new);
static GPU: LazyLock<Gpu> = LazyLock::new(|| VENDOR.gpu(&Model::default()));

fn anchors() -> TrustAnchors {
    TrustAnchors::none().with_nvidia(vec![VENDOR.root()])
}

fn evidence() -> Evidence {
    GPU.evidence(&NONCE, &Measured::by(&GPU))
}

fn verify(evidence: &Evidence) -> Result<Report, VerifyError> {
    evidence.verify(&anchors(), NOW_MS)
}

fn refused(evidence: &Evidence) -> String {
    verify(evidence).unwrap_err().to_string()
}

/// A file of `../shared/evidence/gpu`, or a word that it is not there.
fn real(name: &str) -> Option<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/evidence/gpu")
        .join(name);
    let bytes = std::fs::read(&path).ok();
    if bytes.is_none() {
        println!("skipped: {} is not there", path.display());
    }
    bytes
}

fn h100() -> Option<Evidence> {
    let mut gpus = formats::from_json(&real("h100.evidence.json")?).unwrap();
    assert_eq!(gpus.len(), 1);
    Some(gpus.remove(0).evidence)
}

#[test]
fn the_evidence_of_an_h100_verifies_up_to_the_root_that_nvidia_pins() {
    let Some(json) = real("h100.evidence.json") else {
        return;
    };
    let stated = formats::from_json(&json).unwrap().remove(0);
    let report = stated.evidence.verify(&TrustAnchors::bundled(), NOW_MS).unwrap();
    assert_eq!(Some(report.nonce), stated.nonce);
    assert_eq!(report.architecture, nvidia::Architecture::Hopper);
    assert_eq!(stated.architecture.as_deref(), Some("HOPPER"));
    assert_eq!(report.chip, "GH100");
    assert_eq!(report.hardware_model, "GH100 A01 GSP BROM");
    assert_eq!(report.device_serial, "412921CE551E4EEDA3");
    assert_eq!(
        report.certificate_serial,
        "72CA27239F0E96F6535F73AF84EB1542471A17B2"
    );
    assert_eq!(report.driver_version, "590.12");
    assert_eq!(report.vbios_version, "96.00.A5.00.01");
    assert_eq!(report.mode, Mode::ProtectedPcie);
    assert_eq!(hex::encode(&report.fwid[..6]), "956ecf09ee41");
    assert_eq!(report.measurements.len(), 64);
    assert_eq!(hex::encode(&report.measurements[&2][..6]), "f21c16b08086");
    assert!(!report.is_flagged);
}

#[test]
fn the_evidence_of_an_h100_with_a_broken_signature_is_refused() {
    let (Some(text), Some(mut evidence)) = (real("h100-invalid-signature.txt"), h100()) else {
        return;
    };
    // No chain came with it. It is another GPU's, so that the signature is also by another key.
    evidence.transcript = formats::from_hex(&text).unwrap();
    let error = evidence.verify(&TrustAnchors::bundled(), NOW_MS).unwrap_err();
    assert_eq!(error, VerifyError::Signature);
}

#[test]
fn every_seventh_byte_of_the_transcript_of_an_h100_counts() {
    let Some(evidence) = h100() else { return };
    // Blocks have 55 bytes: every field of a block is met in one or another.
    for place in (0..evidence.transcript.len()).step_by(7) {
        let mut changed = evidence.clone();
        changed.transcript[place] ^= 1 << (place % 8);
        assert!(
            changed.verify(&TrustAnchors::bundled(), NOW_MS).is_err(),
            "byte {place}"
        );
    }
}

#[test]
fn every_byte_of_the_certificates_of_an_h100_counts() {
    let Some(evidence) = h100() else { return };
    for (index, certificate) in evidence.chain.iter().enumerate() {
        for place in 0..certificate.len() {
            let mut changed = evidence.clone();
            changed.chain[index][place] ^= 1 << (place % 8);
            assert!(
                changed.verify(&TrustAnchors::bundled(), NOW_MS).is_err(),
                "certificate {index}, byte {place}"
            );
        }
    }
}

#[test]
fn an_h100_is_refused_before_its_certificates_are_valid_and_under_another_root() {
    let Some(evidence) = h100() else { return };
    let error = evidence
        .verify(&TrustAnchors::bundled(), 1_500_000_000_000)
        .unwrap_err();
    assert!(matches!(error, VerifyError::NotValidNow { .. }), "{error}");
    assert!(evidence.verify(&anchors(), NOW_MS).is_err());
    assert!(evidence.verify(&TrustAnchors::none(), NOW_MS).is_err());
}

#[test]
fn the_pinned_root_is_the_one_that_is_documented() {
    let digest = ring::digest::digest(&ring::digest::SHA256, nvidia::DEVICE_IDENTITY_CA);
    assert_eq!(
        hex::encode(digest),
        "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48"
    );
}

#[test]
fn hopper_and_blackwell_say_what_they_are() {
    for (chip, architecture) in [
        ("GH100", nvidia::Architecture::Hopper),
        ("GB100", nvidia::Architecture::Blackwell),
        ("GB202", nvidia::Architecture::Blackwell),
    ] {
        let gpu = VENDOR.gpu(&Model {
            chip: chip.to_owned(),
            ..Model::default()
        });
        let report = verify(&gpu.evidence(&NONCE, &Measured::by(&gpu))).unwrap();
        assert_eq!(report.architecture, architecture);
        assert_eq!(report.chip, chip);
        assert_eq!(report.fwid, gpu.fwid);
        assert_eq!(report.nonce, NONCE);
        assert_eq!(report.device_serial, "0123456789ABCDEF");
        assert_eq!(report.mode, Mode::Confidential);
    }
}

#[test]
fn other_devices_under_the_same_root_are_no_gpus() {
    for chip in ["LS10", "BF3", "GB1000", "GBx00", "gh100", "GH200", "AD102"] {
        let device = VENDOR.gpu(&Model {
            chip: chip.to_owned(),
            ..Model::default()
        });
        let error = refused(&device.evidence(&NONCE, &Measured::by(&device)));
        assert!(error.contains("is no GPU"), "{chip}: {error}");
    }
}

fn renamed(place: usize, name: &'static str) -> Evidence {
    let gpu = VENDOR.gpu_with(&Model::default(), |at, params| {
        if at == place {
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
        }
    });
    gpu.evidence(&NONCE, &Measured::by(&gpu))
}

#[test]
fn a_chip_that_the_authorities_do_not_agree_on_is_refused() {
    assert!(refused(&renamed(LEAF, "GB100 A01 GSP FMC LF")).contains("not of a GH100"));
    assert!(refused(&renamed(DEVICE, "LS10 A01 BROM")).contains("not of a GH100"));
    assert!(refused(&renamed(IDENTITY, "GH100")).contains("names no chip"));
    assert!(refused(&renamed(DEVICE, "GH100 A01 GSP BROM")).contains("2.5.4.5"));
    assert!(refused(&renamed(DEVICE, "GH100 \u{1b}[2J")).contains("2.5.4.3"));
}

#[test]
fn chains_that_are_not_five_certificates_in_order_are_refused() {
    let whole = evidence();
    let other = VENDOR.gpu(&Model::default());
    type Change = Box<dyn Fn(&mut Vec<Vec<u8>>)>;
    let changes: Vec<(&str, Change)> = vec![
        ("no certificate", Box::new(Vec::clear)),
        ("no root", Box::new(|chain| chain.truncate(ROOT))),
        ("no attestation key", Box::new(|chain| drop(chain.remove(LEAF)))),
        (
            "no provisioner",
            Box::new(|chain| drop(chain.remove(PROVISIONER))),
        ),
        ("one more", Box::new(|chain| chain.push(chain[ROOT].clone()))),
        (
            "a provisioner twice",
            Box::new(|chain| chain[DEVICE] = chain[PROVISIONER].clone()),
        ),
        (
            "the root as identity",
            Box::new(|chain| chain[IDENTITY] = chain[ROOT].clone()),
        ),
        ("two exchanged", Box::new(|chain| chain.swap(DEVICE, PROVISIONER))),
        ("reversed", Box::new(|chain| chain.reverse())),
        (
            "bytes after a certificate",
            Box::new(|chain| chain[DEVICE].push(0)),
        ),
        (
            "a certificate cut short",
            Box::new(|chain| chain[DEVICE].truncate(100)),
        ),
        (
            "a huge certificate",
            Box::new(|chain| chain[DEVICE] = tlv(0x30, &[0; 5000])),
        ),
    ];
    for (name, change) in changes {
        let mut changed = whole.clone();
        change(&mut changed.chain);
        let error = verify(&changed).unwrap_err();
        assert!(
            matches!(error, VerifyError::Endorsement { .. }),
            "{name}: {error}"
        );
    }
    for place in LEAF..ROOT {
        let mut swapped = whole.clone();
        swapped.chain[place] = other.chain[place].clone();
        assert!(verify(&swapped).is_err(), "certificate {place} of another GPU");
    }
}

#[test]
fn another_vendors_gpu_is_refused() {
    let gpu = Vendor::new().gpu(&Model::default());
    let mut foreign = gpu.evidence(&NONCE, &Measured::by(&gpu));
    assert!(refused(&foreign).contains("pinned roots"));
    foreign.chain[ROOT] = VENDOR.root();
    assert!(refused(&foreign).contains("does not verify"));
}

#[test]
fn each_certificate_must_be_valid_now() {
    let error = evidence().verify(&anchors(), LATER_MS).unwrap_err();
    assert!(matches!(error, VerifyError::NotValidNow { .. }), "{error}");
    for place in LEAF..ROOT {
        let gpu = VENDOR.gpu_with(&Model::default(), |at, params| {
            if at == place {
                params.not_after = date_time_ymd(2025, 1, 1);
            }
        });
        let error = verify(&gpu.evidence(&NONCE, &Measured::by(&gpu))).unwrap_err();
        assert!(
            matches!(error, VerifyError::NotValidNow { .. }),
            "certificate {place}: {error}"
        );
    }
}

#[test]
fn keys_serve_only_for_what_they_were_certified_for() {
    let with = |place: usize, change: fn(&mut rcgen::CertificateParams)| {
        let gpu = VENDOR.gpu_with(&Model::default(), |at, params| {
            if at == place {
                change(params);
            }
        });
        refused(&gpu.evidence(&NONCE, &Measured::by(&gpu)))
    };
    for place in [DEVICE, PROVISIONER, IDENTITY] {
        assert!(
            with(place, |params| params.is_ca = IsCa::ExplicitNoCa)
                .contains("no certificate of an authority")
        );
        let signs = |params: &mut rcgen::CertificateParams| {
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature]
        };
        assert!(with(place, signs).contains("no certificate of an authority"));
        assert!(with(place, |params| params.key_usages.clear()).contains("no key usage"));
    }
    let short =
        |params: &mut rcgen::CertificateParams| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    assert!(with(PROVISIONER, short).contains("1 authorities are below it, it allows 0"));
    assert!(with(LEAF, |params| params.key_usages.clear()).contains("no key usage"));
    let authority = |params: &mut rcgen::CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages.push(KeyUsagePurpose::KeyCertSign);
    };
    assert!(with(LEAF, authority).contains("signs reports"));
    let critical = |params: &mut rcgen::CertificateParams| {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9999], vec![5, 0]);
        extension.set_criticality(true);
        params.custom_extensions.push(extension);
    };
    let error = with(PROVISIONER, critical);
    assert!(error.contains("critical extension 1.3.6.1.4.1.9999"), "{error}");
}

#[test]
fn a_key_of_exact_path_length_is_fine() {
    let gpu = VENDOR.gpu_with(&Model::default(), |at, params| {
        if at != LEAF {
            let below = u8::try_from(at - 1).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
        }
    });
    verify(&gpu.evidence(&NONCE, &Measured::by(&gpu))).unwrap();
}

#[test]
fn the_firmware_that_reports_is_the_one_that_the_boot_rom_certified() {
    let other = Measured::by(&GPU).with_field(20, &[9; 48]);
    let error = verify(&GPU.evidence(&NONCE, &other)).unwrap_err();
    assert!(matches!(error, VerifyError::Unbound { .. }), "{error}");

    let mut silent = Measured::by(&GPU);
    silent.opaque.retain(|(kind, _)| *kind != 20);
    assert_eq!(verify(&GPU.evidence(&NONCE, &silent)).unwrap().fwid, GPU.fwid);

    let without = VENDOR.gpu_with(&Model::default(), |_, params| params.custom_extensions.clear());
    assert!(refused(&without.evidence(&NONCE, &Measured::by(&without))).contains("FWID"));
    let twice = VENDOR.gpu_with(&Model::default(), |_, params| {
        params.custom_extensions.extend_from_within(..);
    });
    assert!(verify(&twice.evidence(&NONCE, &Measured::by(&twice))).is_err());
}

fn with_dice(contents: &[u8]) -> Result<Report, VerifyError> {
    let extension = CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1, 1], contents.to_vec());
    let gpu = VENDOR.gpu_with(&Model::default(), |at, params| {
        if at == LEAF {
            params.custom_extensions = vec![extension.clone()];
        }
    });
    verify(&gpu.evidence(&NONCE, &Measured::by(&gpu)))
}

#[test]
fn firmware_that_the_boot_rom_flagged_is_reported_as_such() {
    let sha384 = [0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
    let sha256 = [0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
    let fwid = |algorithm: &[u8], digest: &[u8]| {
        let one = tlv(0x30, &[algorithm, &tlv(0x04, digest)].concat());
        tlv(0xA6, &one)
    };
    let good = fwid(&sha384, &[0x5A; 48]);
    assert!(!with_dice(&tlv(0x30, &good)).unwrap().is_flagged);
    let flagged = |flags: u8| {
        let fields = [&good[..], &tlv(0x87, &[4, flags])].concat();
        with_dice(&tlv(0x30, &fields)).unwrap().is_flagged
    };
    assert!(
        flagged(0x40) && flagged(0x20) && flagged(0x10),
        "not secure, recovery, debug"
    );
    assert!(!flagged(0x00) && !flagged(0x80), "not configured");
    for (name, contents) in [
        ("nothing", vec![]),
        ("no fields", tlv(0x30, &[])),
        ("another digest", tlv(0x30, &fwid(&sha256, &[0x5A; 32]))),
        ("a short digest", tlv(0x30, &fwid(&sha384, &[0x5A; 47]))),
        ("bytes after it", [tlv(0x30, &good), vec![0]].concat()),
        ("version 2 of a device id", tlv(0x30, &tlv(0x02, &[2]))),
        ("a field of no tag of its own", tlv(0x30, &tlv(0x04, &[]))),
    ] {
        assert!(with_dice(&contents).is_err(), "{name}");
    }
}

#[test]
fn transcripts_of_another_form_are_refused_even_if_signed() {
    let whole = evidence().transcript;
    let unsigned = &whole[..whole.len() - 96];
    let record = unsigned.len()
        - 2
        - Measured::by(&GPU)
            .opaque
            .iter()
            .map(|(_, v)| v.len() + 4)
            .sum::<usize>();
    let at = |place: usize, value: u8| {
        let mut changed = unsigned.to_vec();
        changed[place] = value;
        refused(&GPU.sign(changed))
    };
    assert!(at(0, 0x12).contains("GET_MEASUREMENTS"), "another version");
    assert!(at(2, 0).contains("GET_MEASUREMENTS"), "no signature asked for");
    assert!(at(3, 1).contains("GET_MEASUREMENTS"), "one measurement asked for");
    assert!(at(36, 1).contains("slot"));
    assert!(at(37, 0x12).contains("MEASUREMENTS"), "another version");
    assert!(at(38, 0x7F).contains("MEASUREMENTS"), "an error");
    assert!(at(40, 1).contains("MEASUREMENTS"), "another slot");
    assert!(at(41, 4).contains("truncated"), "blocks");
    assert!(at(41, 2).contains("follow the last field"), "blocks");
    assert!(at(42, 0).contains("truncated"), "length of the record");
    assert!(at(44, 1).contains("truncated"), "length of the record");
    assert!(at(45, 0).contains("index 0"), "index");
    assert!(at(45, 2).contains("twice"), "index");
    assert!(at(46, 2).contains("measurement 1"), "specification");
    assert!(at(47, 50).contains("measurement 1"), "size");
    assert!(at(49, 0x81).contains("measurement 1"), "a raw value");
    assert!(at(50, 47).contains("measurement 1"), "size of the value");
    assert!(at(record, 0).contains("malformed"), "length of the opaque data");
    assert!(
        at(record + 1, 0xFF).contains("opaque data"),
        "length of the opaque data"
    );

    let longer = [unsigned, &[0]].concat();
    assert!(refused(&GPU.sign(longer)).contains("follow the last field"));
    assert!(refused(&GPU.sign(unsigned[..100].to_vec())).contains("truncated"));
    let huge = Measured::by(&GPU).with_field(12, &[0; 1024]);
    assert!(refused(&GPU.evidence(&NONCE, &huge)).contains("at most 1024"));
    assert!(refused(&GPU.sign(vec![0; 20_000])).contains("more than 16384"));
}

fn report() -> Report {
    verify(&evidence()).unwrap()
}

/// A policy that the test vendor's GPU meets.
fn policy() -> Policy {
    let report = report();
    let measurements = report
        .measurements
        .iter()
        .filter(|(_, digest)| **digest != [0; 48]);
    let mut policy = Policy::default();
    policy.minimum_count = 1;
    policy.firmware = ReferenceValues::AnyOf(vec![Firmware {
        driver_version: "590.12".to_owned(),
        vbios_version: "96.00.a5.00.01".to_owned(),
        measurements: measurements
            .map(|(index, digest)| (*index, ReferenceValues::AnyOf(vec![[8; 48], *digest])))
            .collect(),
    }]);
    policy
}

fn change_firmware(change: impl FnOnce(&mut Firmware)) -> Policy {
    let mut policy = policy();
    let ReferenceValues::AnyOf(releases) = &mut policy.firmware else {
        unreachable!()
    };
    change(&mut releases[0]);
    policy
}

fn refusals(reports: &[Report], policy: &Policy) -> Vec<(Rule, String, String)> {
    let error = nvidia::appraise_alone(reports, policy).unwrap_err();
    let refusals = error.refusals.into_iter();
    refusals
        .map(|refusal| (refusal.rule, refusal.found, refusal.wanted))
        .collect()
}

fn rules(reports: &[Report], policy: &Policy) -> Vec<Rule> {
    refusals(reports, policy)
        .into_iter()
        .map(|(rule, _, _)| rule)
        .collect()
}

#[test]
fn a_gpu_whose_measurements_are_all_references_is_accepted() {
    assert_eq!(nvidia::appraise_alone(&[report()], &policy()).unwrap(), []);
}

#[test]
fn the_default_policy_refuses_every_gpu_and_no_machine_without_one() {
    assert_eq!(nvidia::appraise_alone(&[], &Policy::default()).unwrap(), []);
    let refused = refusals(&[report()], &Policy::default());
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].0, Rule::GpuFirmware);
    assert!(refused[0].2.contains("A5"));
}

#[test]
fn a_gpu_that_is_required_and_absent_is_refused() {
    let refused = refusals(&[], &policy());
    let (found, wanted) = ("evidence of 0 GPUs", "evidence of 1 GPUs or more");
    assert_eq!(refused, [(Rule::Gpu, found.to_owned(), wanted.to_owned())]);
}

#[test]
fn firmware_of_another_version_is_refused() {
    for changed in [
        change_firmware(|firmware| firmware.driver_version = "590.13".to_owned()),
        change_firmware(|firmware| firmware.vbios_version = "96.00.A5.00.02".to_owned()),
    ] {
        let refused = refusals(&[report()], &changed);
        assert_eq!(refused[0].0, Rule::GpuFirmware);
        assert_eq!(refused[0].1, "driver 590.12, VBIOS 96.00.A5.00.01");
    }
}

#[test]
fn a_measurement_that_is_another_or_has_no_reference_or_is_not_there_is_refused() {
    let other = change_firmware(|firmware| {
        firmware
            .measurements
            .insert(3, ReferenceValues::AnyOf(vec![[4; 48]]));
    });
    let refused = refusals(&[report()], &other);
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].0, Rule::GpuMeasurement);
    assert_eq!(refused[0].1, format!("measurement 3 {}", "03".repeat(48)));
    assert_eq!(refused[0].2, format!("one of [{}]", "04".repeat(48)));

    let forgotten = change_firmware(|firmware| drop(firmware.measurements.remove(&3)));
    assert_eq!(rules(&[report()], &forgotten), [Rule::GpuMeasurement]);
    let missing = change_firmware(|firmware| drop(firmware.measurements.insert(3, ReferenceValues::Missing)));
    assert_eq!(rules(&[report()], &missing), [Rule::GpuMeasurement]);
    for wanted in [ReferenceValues::AcceptAny, ReferenceValues::AnyOf(vec![[0; 48]])] {
        let absent = change_firmware(|firmware| drop(firmware.measurements.insert(9, wanted)));
        assert_eq!(refusals(&[report()], &absent)[0].1, "no measurement 9");
    }
    // In use, though the reference says that it is not: zeros are no wildcard.
    let mut in_use = report();
    in_use.measurements.insert(2, [2; 48]);
    assert_eq!(rules(&[in_use], &policy()), [Rule::GpuMeasurement]);
}

#[test]
fn what_nobody_compared_is_said() {
    let any = change_firmware(|firmware| drop(firmware.measurements.insert(3, ReferenceValues::AcceptAny)));
    assert_eq!(
        nvidia::appraise_alone(&[report(), report()], &any).unwrap(),
        [Rule::GpuMeasurement]
    );
    let mut any = policy();
    any.firmware = ReferenceValues::AcceptAny;
    assert_eq!(
        nvidia::appraise_alone(&[report()], &any).unwrap(),
        [Rule::GpuFirmware]
    );
}

#[test]
fn several_releases_of_one_version_are_alternatives_and_never_mixed() {
    let mut policy = change_firmware(|firmware| {
        firmware
            .measurements
            .insert(3, ReferenceValues::AnyOf(vec![[4; 48]]));
    });
    let ReferenceValues::AnyOf(releases) = &mut policy.firmware else {
        unreachable!()
    };
    let mut second = releases[0].clone();
    second
        .measurements
        .insert(1, ReferenceValues::AnyOf(vec![[4; 48]]));
    second
        .measurements
        .insert(3, ReferenceValues::AnyOf(vec![[3; 48]]));
    releases.push(second.clone());
    assert_eq!(rules(&[report()], &policy), [Rule::GpuMeasurement]);
    second
        .measurements
        .insert(1, ReferenceValues::AnyOf(vec![[1; 48]]));
    let ReferenceValues::AnyOf(releases) = &mut policy.firmware else {
        unreachable!()
    };
    releases.push(second);
    assert_eq!(nvidia::appraise_alone(&[report()], &policy).unwrap(), []);
}

#[test]
fn modes_in_which_data_may_cross_in_the_clear_are_refused_unless_named() {
    for (flag, mode) in [(Some([2, 0]), Mode::ProtectedPcie), (None, Mode::NotStated)] {
        let mut measured = Measured::by(&GPU);
        measured.opaque.retain(|(kind, _)| *kind != 36);
        if let Some(flag) = flag {
            measured.opaque.push((36, flag.to_vec()));
        }
        let report = verify(&GPU.evidence(&NONCE, &measured)).unwrap();
        assert_eq!(rules(std::slice::from_ref(&report), &policy()), [Rule::GpuMode]);
        let mut named = policy();
        named.modes.push(mode);
        assert_eq!(nvidia::appraise_alone(&[report], &named).unwrap(), []);
    }
}

#[test]
fn gpus_that_are_not_on_the_list_and_flagged_firmware_are_refused() {
    let mut policy = policy();
    policy.device_serials = Some(vec!["0123456789ABCDEE".to_owned()]);
    assert_eq!(rules(&[report()], &policy), [Rule::GpuDevice]);
    policy.device_serials = Some(vec!["0123456789ABCDEF".to_owned()]);
    assert_eq!(nvidia::appraise_alone(&[report()], &policy).unwrap(), []);
    let mut flagged = report();
    flagged.is_flagged = true;
    assert_eq!(rules(&[flagged], &policy), [Rule::Debug]);
}

#[test]
fn an_h100_meets_reference_values_of_its_own_and_no_other() {
    let Some(evidence) = h100() else { return };
    let report = evidence.verify(&TrustAnchors::bundled(), NOW_MS).unwrap();
    let in_use = report
        .measurements
        .iter()
        .filter(|(_, digest)| **digest != [0; 48]);
    let mut policy = Policy::default();
    policy.modes = vec![Mode::ProtectedPcie];
    policy.firmware = ReferenceValues::AnyOf(vec![Firmware {
        driver_version: report.driver_version.clone(),
        vbios_version: report.vbios_version.clone(),
        measurements: in_use
            .map(|(index, digest)| (*index, ReferenceValues::AnyOf(vec![*digest])))
            .collect(),
    }]);
    assert_eq!(
        nvidia::appraise_alone(std::slice::from_ref(&report), &policy).unwrap(),
        []
    );
    for index in report.measurements.keys() {
        let mut changed = report.clone();
        changed.measurements.insert(*index, [0xEE; 48]);
        assert_eq!(
            rules(&[changed], &policy),
            [Rule::GpuMeasurement],
            "measurement {index}"
        );
    }
    assert_eq!(
        rules(&[report], &Policy::default()),
        [Rule::GpuMode, Rule::GpuFirmware]
    );
}

#[test]
fn a_report_in_json_says_what_was_appraised_and_what_it_does_not_prove() {
    let json = serde_json::to_value(report()).unwrap();
    assert_eq!(json["architecture"], "hopper");
    assert_eq!(json["nonce"], "07".repeat(32));
    assert_eq!(json["measurements"]["3"], "03".repeat(48));
    assert_eq!(
        json["claim"],
        "verified at boot; not shown to sit in this machine"
    );
}

#[test]
fn an_item_is_the_bytes_written_in_the_protocol() {
    let evidence = Evidence {
        transcript: vec![1, 2, 3],
        chain: vec![vec![4], vec![5], vec![6], vec![7], vec![]],
    };
    let mut expected = b"\x17\0\0\0bastionai/v1/nvidia-gpu\x03\0\0\0\x01\x02\x03\x01\0\0\0\x05".to_vec();
    expected.extend_from_slice(b"\x01\0\0\0\x04\x01\0\0\0\x05\x01\0\0\0\x06\x01\0\0\0\x07\0\0\0\0");
    assert_eq!(evidence.item().media_type, "application/vnd.bastionai.nvidia-gpu");
    assert_eq!(evidence.item().bytes, expected);
    assert_eq!(Evidence::from_item(&expected).unwrap(), evidence);
    for length in 0..expected.len() {
        assert!(
            Evidence::from_item(&expected[..length]).is_err(),
            "{length} bytes"
        );
    }
    let four = Evidence {
        chain: evidence.chain[..4].to_vec(),
        ..evidence.clone()
    };
    assert!(
        Evidence::from_item(&four.item().bytes)
            .unwrap_err()
            .to_string()
            .contains("4 certificates")
    );
    expected.push(0);
    assert!(Evidence::from_item(&expected).is_err());
}

#[test]
fn the_nonce_is_the_hash_written_in_the_protocol() {
    let mut fields = b"\x10\0\0\0bastionai/v1/gpu\x40\0\0\0".to_vec();
    fields.extend_from_slice(&[9; 64]);
    let expected = ring::digest::digest(&ring::digest::SHA256, &fields);
    assert_eq!(nonce(&[9; 64])[..], *expected.as_ref());
}

#[test]
fn a_policy_is_written_as_lists_or_the_word_any() {
    let written = format!(
        r#"
        minimum_count = 1
        modes = ["confidential", "protected-pcie"]
        device_serials = ["0123456789ABCDEF"]
        [[firmware]]
        driver_version = "590.12"
        vbios_version = "96.00.a5.00.01"
        measurements = {{ 1 = ["{}"], 3 = "any" }}
        "#,
        "01".repeat(48)
    );
    let read: Policy = toml::from_str(&written).unwrap();
    let mut expected = change_firmware(|firmware| {
        firmware
            .measurements
            .insert(1, ReferenceValues::AnyOf(vec![[1; 48]]));
        firmware.measurements.insert(3, ReferenceValues::AcceptAny);
    });
    expected.modes.push(Mode::ProtectedPcie);
    expected.device_serials = Some(vec!["0123456789ABCDEF".to_owned()]);
    assert_eq!(read, expected);
    assert_eq!(toml::from_str::<Policy>("").unwrap(), Policy::default());
    let any: Policy = toml::from_str("firmware = \"any\"").unwrap();
    assert_eq!(any.firmware, ReferenceValues::AcceptAny);

    for (from, to) in [
        ("minimum_count", "minimum"),
        ("\"any\"", "\"all\""),
        ("3 =", "03 ="),
        ("3 =", "0 ="),
        ("3 =", "256 ="),
        ("0101", "01"),
        ("protected-pcie", "off"),
        ("vbios_version", "version"),
    ] {
        assert!(
            toml::from_str::<Policy>(&written.replacen(from, to, 1)).is_err(),
            "{to}"
        );
    }
}

static INTEL: LazyLock<Arc<TestIntel>> = LazyLock::new(|| Arc::new(TestIntel::new()));

fn machine() -> WithGpus<TestTdx> {
    let gpus = ["A", "B"].map(|serial| {
        let gpu = VENDOR.gpu(&Model {
            serial: serial.to_owned(),
            ..Model::default()
        });
        let measured = Measured::by(&gpu);
        (gpu, measured)
    });
    WithGpus {
        cpu: TestTdx::at(Arc::clone(&INTEL), NOW_MS / 1000),
        gpus: gpus.into(),
    }
}

fn verified(
    evidence: &bastionai_attestation::Evidence,
    anchors: TrustAnchors,
) -> Result<Vec<Report>, VerifyError> {
    let anchors = anchors.with_intel(tdx::Roots::new(INTEL.root_ca()));
    let verified = bastionai_attestation::verify(evidence, &anchors, NOW_MS)?;
    Ok(verified.report().gpus.clone())
}

#[test]
fn the_gpus_of_a_confidential_machine_stand_beside_its_cpu() {
    let evidence = machine().attest(&[1; 64]).unwrap();
    let gpus = verified(&evidence, anchors()).unwrap();
    let serials: Vec<_> = gpus.iter().map(|gpu| gpu.device_serial.as_str()).collect();
    assert_eq!(serials, ["A", "B"]);
    assert!(gpus.iter().all(|gpu| gpu.nonce == nonce(&[1; 64])));
    assert_eq!(
        verified(&machine().cpu.attest(&[1; 64]).unwrap(), anchors()).unwrap(),
        []
    );
    assert!(
        verified(&evidence, TrustAnchors::none()).is_err(),
        "no root for its GPUs"
    );
}

#[test]
fn gpus_of_another_session_do_not_pass_beside_a_cpu() {
    let machine = machine();
    let earlier = machine.attest(&[1; 64]).unwrap();
    let now = machine.cpu.attest(&[2; 64]).unwrap();
    let mut mixed = Envelope::from_bytes(&now.bytes).unwrap();
    let items = Envelope::from_bytes(&earlier.bytes).unwrap().evidence;
    mixed.evidence.extend(
        items
            .into_iter()
            .filter(|item| item.media_type == nvidia::MEDIA_TYPE),
    );
    let mixed = bastionai_attestation::Evidence {
        bytes: mixed.to_bytes(),
        ..now
    };
    let error = verified(&mixed, anchors()).unwrap_err();
    assert!(matches!(error, VerifyError::Unbound { .. }), "{error}");
}

#[test]
fn files_of_nvidias_tools_that_are_none_are_refused() {
    let certificate = |pem: &str| {
        use base64::Engine as _;
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        let object = format!(
            r#"{{"evidence":"{}","certificate":"{}"}}"#,
            encode(b"e"),
            encode(pem.as_bytes())
        );
        (object.clone(), formats::from_json(object.as_bytes()))
    };
    let one = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let (object, read) = certificate(&one.repeat(5));
    let read = read.unwrap();
    assert_eq!(read[0].evidence.transcript, b"e");
    assert_eq!(read[0].evidence.chain, vec![vec![0x30, 0]; 5]);
    let list = format!(
        r#"{{"nonce":"{}","arch":"HOPPER","evidence_list":[{object},{object}]}}"#,
        "07".repeat(32)
    );
    let read = formats::from_json(list.as_bytes()).unwrap();
    assert_eq!(read.len(), 2);
    assert_eq!(read[1].nonce, Some(NONCE));
    assert_eq!(read[1].architecture.as_deref(), Some("HOPPER"));

    assert!(certificate(&one.repeat(4)).1.is_err());
    assert!(certificate(&one.repeat(6)).1.is_err());
    assert!(certificate(&format!("{}rest", one.repeat(5))).1.is_err());
    assert!(
        certificate(&one.replace("CERTIFICATE", "PRIVATE KEY").repeat(5))
            .1
            .is_err()
    );
    for json in [
        "",
        "[]",
        "{}",
        "[{}]",
        r#"{"evidence":"*","certificate":""}"#,
        r#"{"evidence_list":[]}"#,
    ] {
        assert!(formats::from_json(json.as_bytes()).is_err(), "{json}");
    }
    assert!(
        formats::from_json(list.replacen("07", "0", 1).as_bytes()).is_err(),
        "a short nonce"
    );
    assert!(matches!(
        formats::from_json(&vec![b' '; 600_000]),
        Err(VerifyError::TooLong { .. })
    ));
    assert_eq!(formats::from_hex(b" 11e0\n").unwrap(), [0x11, 0xE0]);
    assert!(formats::from_hex(b"11e").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_changed_transcript_is_refused(place in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut changed = evidence();
        let place = place.index(changed.transcript.len());
        changed.transcript[place] ^= 1_u8 << bit;
        prop_assert!(verify(&changed).is_err());
    }

    #[test]
    fn a_changed_certificate_is_refused(index in 0..5_usize, place in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut changed = evidence();
        let place = place.index(changed.chain[index].len());
        changed.chain[index][place] ^= 1_u8 << bit;
        prop_assert!(verify(&changed).is_err());
    }

    #[test]
    fn a_transcript_cut_short_or_extended_is_refused(cut in any::<prop::sample::Index>(), more in prop::collection::vec(any::<u8>(), 1..64)) {
        let mut changed = evidence();
        changed.transcript.truncate(cut.index(changed.transcript.len()));
        prop_assert!(verify(&changed).is_err());
        let mut changed = evidence();
        changed.transcript.extend(more);
        prop_assert!(verify(&changed).is_err());
    }

    #[test]
    fn signed_opaque_data_of_any_bytes_never_panics(opaque in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut measured = Measured::by(&GPU);
        measured.opaque.clear();
        let head = GPU.evidence(&NONCE, &measured).transcript;
        let head = &head[..head.len() - 98];
        let length = u16::try_from(opaque.len()).unwrap().to_le_bytes();
        prop_assert!(verify(&GPU.sign([head, &length, &opaque].concat())).is_err());
    }

    #[test]
    fn random_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Evidence::from_item(&bytes).is_err());
        prop_assert!(formats::from_json(&bytes).is_err());
        prop_assert!(formats::from_pem(&bytes).is_err());
        let random = Evidence { transcript: bytes.clone(), chain: vec![bytes; 5] };
        prop_assert!(verify(&random).is_err());
    }

    #[test]
    fn any_measurements_come_out_as_they_went_in(
        measurements in prop::collection::btree_map(1..=255_u8, prop::array::uniform32(any::<u8>()), 0..80),
    ) {
        let digest = |half: [u8; 32]| <[u8; 48]>::try_from([&half[..], &half[..16]].concat()).unwrap();
        let measured = Measured {
            measurements: measurements.into_iter().map(|(index, half)| (index, digest(half))).collect(),
            ..Measured::by(&GPU)
        };
        let report = verify(&GPU.evidence(&NONCE, &measured)).unwrap();
        prop_assert_eq!(report.measurements, measured.measurements);
    }
}
