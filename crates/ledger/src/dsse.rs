//! Dead Simple Signing Envelope, v1.0.2 (<https://github.com/secure-systems-lab/dsse>): one signature,
//! one spelling. An envelope that is not byte for byte what we would write is refused.

use crate::id::{Digest32, LedgerPublicKey};
use crate::key::{LedgerKey, SignatureError, verify};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

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
    /// Not one signature of the expected key.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Signed with a key other than the expected one.
    #[error("the envelope is not signed by the expected ledger key {expected}")]
    OtherKey {
        /// The expected key.
        expected: LedgerPublicKey,
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

/// Signs `payload` and returns the envelope's JSON.
pub(crate) fn seal(payload: &[u8], payload_type: &str, key: &LedgerKey) -> Vec<u8> {
    let signature = key.sign(&pre_authentication_encoding(payload_type, payload));
    let envelope = Envelope {
        payload: STANDARD.encode(payload),
        payload_type: payload_type.to_owned(),
        signatures: [Signature {
            keyid: key_id(&key.public_key()),
            sig: STANDARD.encode(signature),
        }],
    };
    serde_json::to_vec(&envelope).expect("an envelope of strings has a JSON form")
}

/// Checks an envelope and returns its payload.
pub(crate) fn open(
    envelope: &[u8],
    payload_type: &'static str,
    expected: &LedgerPublicKey,
) -> Result<Vec<u8>, EnvelopeError> {
    let parsed: Envelope = serde_json::from_slice(envelope).map_err(|_| EnvelopeError::Malformed)?;
    // Neither key id nor white space is signed: without this, two different files would be one receipt.
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
        return Err(EnvelopeError::OtherKey { expected: *expected });
    }
    let payload = STANDARD
        .decode(&parsed.payload)
        .map_err(|_| EnvelopeError::Malformed)?;
    let bytes = STANDARD
        .decode(&signature.sig)
        .map_err(|_| EnvelopeError::Malformed)?;
    verify(
        expected,
        &pre_authentication_encoding(payload_type, &payload),
        &bytes,
    )?;
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

fn key_id(key: &LedgerPublicKey) -> String {
    Digest32::of(key.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the DSSE protocol document, section "Test Vectors".
    #[test]
    fn pre_authentication_encoding_is_dsse_v1() {
        let encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world");
        assert_eq!(encoded, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    #[test]
    fn another_type_and_another_key_are_refused() {
        let key = LedgerKey::from_seed(&[1; 32]);
        let other = LedgerKey::from_seed(&[2; 32]).public_key();
        let envelope = seal(b"x", "a/b", &key);
        assert_eq!(open(&envelope, "a/b", &key.public_key()).unwrap(), b"x");
        assert!(matches!(
            open(&envelope, "a/c", &key.public_key()),
            Err(EnvelopeError::PayloadType { .. })
        ));
        assert!(matches!(
            open(&envelope, "a/b", &other),
            Err(EnvelopeError::OtherKey { .. })
        ));
    }
}
