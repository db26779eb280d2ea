//! Dead Simple Signing Envelope, v1.0.2 (<https://github.com/secure-systems-lab/dsse>): one Ed25519 signature, one
//! spelling. An envelope that is not byte for byte what we would write is refused. Receipts and release manifests are such.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Why an envelope is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Not JSON of this shape, or not in its canonical spelling.
    #[error("not a DSSE envelope in canonical form: it was changed, re-formatted or cut short")]
    Malformed,
    /// About something else.
    #[error("the envelope holds another type of payload than {expected}")]
    PayloadType {
        /// Type expected.
        expected: &'static str,
    },
    /// The signature does not match.
    #[error("the signature does not match what it signs")]
    Signature,
    /// Signed with a key other than the expected one.
    #[error("the envelope is not signed by the expected key {expected}")]
    OtherKey {
        /// The expected key, in hexadecimal.
        expected: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: [Signature; 1],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    keyid: String,
    sig: String,
}

/// Signs `payload` and returns the envelope's JSON. `sign` is Ed25519 by the secret half of `public_key`.
pub fn seal(
    payload: &[u8],
    payload_type: &str,
    public_key: &[u8; 32],
    sign: impl FnOnce(&[u8]) -> [u8; 64],
) -> Vec<u8> {
    let signature = sign(&pre_authentication_encoding(payload_type, payload));
    let envelope = Envelope {
        payload: STANDARD.encode(payload),
        payload_type: payload_type.to_owned(),
        signatures: [Signature {
            keyid: key_id(public_key),
            sig: STANDARD.encode(signature),
        }],
    };
    serde_json::to_vec(&envelope).expect("an envelope of strings has a JSON form")
}

/// Checks an envelope and returns its payload.
///
/// # Errors
/// [`EnvelopeError`]: another spelling, another type, another key, a signature that does not match.
pub fn open(
    envelope: &[u8],
    payload_type: &'static str,
    expected: &[u8; 32],
) -> Result<Vec<u8>, EnvelopeError> {
    let parsed: Envelope = serde_json::from_slice(envelope).map_err(|_| EnvelopeError::Malformed)?;
    // Neither key id nor white space is signed: without this, two different files would be one envelope.
    if serde_json::to_vec(&parsed).ok().as_deref() != Some(envelope) {
        return Err(EnvelopeError::Malformed);
    }
    if parsed.payload_type != payload_type {
        return Err(EnvelopeError::PayloadType {
            expected: payload_type,
        });
    }
    let [signature] = &parsed.signatures;
    if signature.keyid != key_id(expected) {
        return Err(EnvelopeError::OtherKey {
            expected: hex::encode(expected),
        });
    }
    let decoded = |text: &str| STANDARD.decode(text).map_err(|_| EnvelopeError::Malformed);
    let payload = decoded(&parsed.payload)?;
    UnparsedPublicKey::new(&ED25519, expected)
        .verify(
            &pre_authentication_encoding(payload_type, &payload),
            &decoded(&signature.sig)?,
        )
        .map_err(|_| EnvelopeError::Signature)?;
    Ok(payload)
}

/// DSSE protocol, "Signature Definition": PAE(type, body) =
/// "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body, lengths in ASCII decimal.
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "DSSEv1 {} {} {} ",
        payload_type.len(),
        payload_type,
        payload.len()
    )
    .into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

fn key_id(public_key: &[u8; 32]) -> String {
    hex::encode(Sha256::digest(public_key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    fn key(seed: u8) -> (Ed25519KeyPair, [u8; 32]) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let public = pair.public_key().as_ref().try_into().unwrap();
        (pair, public)
    }

    fn sealed(payload: &[u8], seed: u8) -> Vec<u8> {
        let (pair, public) = key(seed);
        seal(payload, "a/b", &public, |message| {
            pair.sign(message).as_ref().try_into().unwrap()
        })
    }

    /// The example of the DSSE protocol document, section "Test Vectors".
    #[test]
    fn pre_authentication_encoding_is_dsse_v1() {
        let encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world");
        assert_eq!(encoded, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    #[test]
    fn another_type_and_another_key_are_refused() {
        let envelope = sealed(b"x", 1);
        assert_eq!(open(&envelope, "a/b", &key(1).1).unwrap(), b"x");
        assert!(matches!(
            open(&envelope, "a/c", &key(1).1),
            Err(EnvelopeError::PayloadType { .. })
        ));
        assert!(matches!(
            open(&envelope, "a/b", &key(2).1),
            Err(EnvelopeError::OtherKey { .. })
        ));
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let envelope = sealed(b"payload", 1);
        for at in 0..envelope.len() {
            for bit in 0..8 {
                let mut flipped = envelope.clone();
                flipped[at] ^= 1 << bit;
                assert!(open(&flipped, "a/b", &key(1).1).is_err(), "byte {at} bit {bit}");
            }
        }
    }

    proptest! {
        #[test]
        fn random_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(open(&bytes, "a/b", &key(1).1).is_err());
        }
    }
}
