//! Release manifests: reading a statement never panics; what is read is signed, verified and read again as the same.
#![no_main]

use bastionai_attestation::ReleaseManifest;
use ring::signature::{Ed25519KeyPair, KeyPair};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).expect("32 bytes");
    let public: [u8; 32] = key.public_key().as_ref().try_into().expect("32 bytes");
    let _ = ReleaseManifest::verify(bytes, &public);
    let Ok(manifest) = ReleaseManifest::from_statement(bytes) else { return };
    let sign = |message: &[u8]| key.sign(message).as_ref().try_into().expect("64 bytes");
    if let Ok(signed) = manifest.sign(&public, sign) {
        let verified = ReleaseManifest::verify(&signed, &public).expect("own signature");
        assert_eq!(verified.manifest(), &manifest);
    }
});
