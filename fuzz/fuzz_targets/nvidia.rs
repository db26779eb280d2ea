//! Evidence of GPUs. The first byte picks what the others are: an item of an envelope; a file of NVIDIA's tools; opaque
//! data or measurements that a test vendor's GPU signs, so that what lies behind the signature is read too; the extension
//! with the FWID in that GPU's certificate. Nothing panics, and nothing that is not the vendor's own verifies.
#![no_main]

use bastionai_attestation::TrustAnchors;
use bastionai_attestation::nvidia::{Evidence, formats};
use bastionai_test_platforms::nvidia::{Gpu, LEAF, Measured, Model, Vendor};
use std::sync::LazyLock;

const NOW_MS: u64 = 1_767_225_600_000;
static VENDOR: LazyLock<Vendor> = LazyLock::new(Vendor::new);
static GPU: LazyLock<Gpu> = LazyLock::new(|| VENDOR.gpu(&Model::default()));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    match choice % 5 {
        0 => item(bytes),
        1 => files(bytes),
        2 => signed(bytes, true),
        3 => signed(bytes, false),
        _ => certified(bytes),
    }
});

fn item(bytes: &[u8]) {
    if let Ok(evidence) = Evidence::from_item(bytes) {
        assert_eq!(evidence.item().bytes, bytes);
        let _ = evidence.verify(&TrustAnchors::bundled(), NOW_MS);
    }
}

fn files(bytes: &[u8]) {
    let _ = formats::from_hex(bytes);
    let _ = formats::from_pem(bytes);
    for stated in formats::from_json(bytes).into_iter().flatten() {
        let _ = stated.evidence.verify(&TrustAnchors::bundled(), NOW_MS);
    }
}

/// As the opaque data, or as all that follows the request.
fn signed(bytes: &[u8], is_opaque: bool) {
    let mut measured = Measured::by(&GPU);
    measured.opaque.clear();
    let whole = GPU.evidence(&[7; 32], &measured).transcript;
    let transcript = if is_opaque {
        let Ok(length) = u16::try_from(bytes.len()) else { return };
        [&whole[..whole.len() - 98], &length.to_le_bytes(), bytes].concat()
    } else {
        [&whole[..37], bytes].concat()
    };
    let anchors = TrustAnchors::none().with_nvidia(vec![VENDOR.root()]);
    if let Ok(report) = GPU.sign(transcript).verify(&anchors, NOW_MS) {
        assert_eq!((report.nonce, report.fwid), ([7; 32], GPU.fwid));
        assert!(report.driver_version.is_ascii() && report.vbios_version.len() == 14);
    }
}

fn certified(bytes: &[u8]) {
    let gpu = VENDOR.gpu_with(&Model::default(), |place, params| {
        if place == LEAF {
            params.custom_extensions[0] = rcgen::CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1], bytes.to_vec());
        }
    });
    let anchors = TrustAnchors::none().with_nvidia(vec![VENDOR.root()]);
    let _ = gpu.evidence(&[7; 32], &Measured::by(&gpu)).verify(&anchors, NOW_MS);
}
