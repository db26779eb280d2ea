//! Quotes of real vTPMs (`../shared/evidence/azure`), under the attestation keys that their paravisors name.
#![allow(clippy::unwrap_used)]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bastionai_attestation::VerifyError;
use bastionai_attestation::tpm::{PublicKey, Quote};
use serde_json::Value;
use std::path::PathBuf;

struct Real {
    quote: Quote,
    key: PublicKey,
}

/// Quote and attestation key of each file; nothing, and a line that says so, where the evidence is not.
fn real() -> Vec<Real> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/evidence/azure");
    if !folder.exists() {
        println!("skipped: no {}", folder.display());
        return vec![];
    }
    let read = |name| {
        let json: Value = serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap();
        read_real(&json)
    };
    ["snp-milan.evidence.json", "tdx.evidence.json"].map(read).into()
}

fn read_real(json: &Value) -> Real {
    let quote = &json["tpm_quote"];
    let hex = |value: &Value| hex::decode(value.as_str().unwrap()).unwrap();
    // TPMT_SIGNATURE: RSASSA, SHA-256, 256 bytes.
    let mut signature = vec![0, 0x14, 0, 0x0b, 1, 0];
    signature.extend(hex(&quote["signature"]));
    let pcrs = quote["pcrs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|value| hex(value).try_into().unwrap());
    let report = json["hcl_report"]
        .as_str()
        .unwrap()
        .replace('+', "-")
        .replace('/', "_");
    let report = URL_SAFE_NO_PAD.decode(report.trim_end_matches('=')).unwrap();
    let length = u32::from_le_bytes(report[1232..1236].try_into().unwrap()) as usize;
    let runtime: Value = serde_json::from_slice(&report[1236..1236 + length]).unwrap();
    let n = runtime["keys"][0]["n"].as_str().unwrap();
    Real {
        quote: Quote {
            attest: hex(&quote["message"]),
            signature,
            pcrs: pcrs.collect(),
        },
        key: PublicKey::Rsa {
            n: URL_SAFE_NO_PAD.decode(n).unwrap(),
            e: vec![1, 0, 1],
        },
    }
}

#[test]
fn quotes_of_real_vtpms_verify_under_the_keys_their_paravisors_name() {
    for real in real() {
        let quoted = real.quote.verify(&real.key).unwrap();
        assert_eq!(quoted.extra_data, b"challenge");
        assert_eq!(quoted.pcrs.len(), 24);
        assert_eq!(quoted.pcrs[&17], [0xff; 32]);
        assert!(quoted.clock.is_safe);
    }
}

#[test]
fn what_is_written_is_read() {
    for real in real() {
        assert_eq!(Quote::from_bytes(&real.quote.to_bytes()).unwrap(), real.quote);
    }
}

#[test]
fn another_vms_key_or_pcr_values_are_refused() {
    if let [one, other] = &real()[..] {
        assert_eq!(one.quote.verify(&other.key), Err(VerifyError::Signature));
        let quote = Quote {
            pcrs: other.quote.pcrs.clone(),
            ..one.quote.clone()
        };
        assert!(matches!(quote.verify(&one.key), Err(VerifyError::Unbound { .. })));
        let quote = Quote {
            pcrs: one.quote.pcrs[..23].to_vec(),
            ..one.quote.clone()
        };
        assert!(matches!(quote.verify(&one.key), Err(VerifyError::Unbound { .. })));
    }
}

#[test]
fn every_flipped_bit_is_refused_in_signed_bytes_signature_and_values() {
    for real in real() {
        let bytes = real.quote.to_bytes();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            let outcome = Quote::from_bytes(&flipped).and_then(|quote| quote.verify(&real.key));
            assert!(outcome.is_err(), "byte {at}");
        }
    }
}

#[test]
fn truncated_and_extended_quotes_are_refused() {
    for real in real() {
        let bytes = real.quote.to_bytes();
        for length in 0..bytes.len() {
            let outcome = Quote::from_bytes(&bytes[..length]).and_then(|quote| quote.verify(&real.key));
            assert!(outcome.is_err(), "{length} bytes");
        }
        for more in [1, 32, 32 * 9, 1 << 20] {
            let long = [&bytes[..], &vec![0; more]].concat();
            let outcome = Quote::from_bytes(&long).and_then(|quote| quote.verify(&real.key));
            assert!(outcome.is_err(), "{more} bytes more");
        }
    }
}

mod random {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn random_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let key = PublicKey::EcdsaP256([4; 65]);
            prop_assert!(Quote::from_bytes(&bytes).and_then(|quote| quote.verify(&key)).is_err());
        }
    }
}
