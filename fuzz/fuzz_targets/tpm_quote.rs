//! A quote of a TPM, alone or in Trustee's JSON: reading and verifying never panic; what is read is written as it was.
//! Seeds: `../shared/evidence/azure`.
#![no_main]

use bastionai_attestation::azure::evidence_json;
use bastionai_attestation::tpm::{MEDIA_TYPE, PublicKey, Quote};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    let Ok(envelope) = evidence_json(bytes) else { return };
    for item in envelope.evidence.iter().filter(|item| item.media_type == MEDIA_TYPE) {
        read(&item.bytes);
    }
});

fn read(bytes: &[u8]) {
    let Ok(quote) = Quote::from_bytes(bytes) else { return };
    assert_eq!(quote.to_bytes(), bytes);
    let rsa = PublicKey::Rsa { n: vec![0xff; 256], e: vec![1, 0, 1] };
    for key in [rsa, PublicKey::EcdsaP256([4; 65]), PublicKey::EcdsaP384([4; 97])] {
        assert!(quote.verify(&key).is_err());
    }
}
