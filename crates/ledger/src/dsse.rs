//! Receipts' envelopes: crate `dsse`'s, signed by ledger keys.

use crate::id::LedgerPublicKey;
use crate::key::{LedgerKey, SignatureError};
use bastionai_dsse as dsse;

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

/// Signs `payload` and returns the envelope's JSON.
pub(crate) fn seal(payload: &[u8], payload_type: &str, key: &LedgerKey) -> Vec<u8> {
    dsse::seal(payload, payload_type, key.public_key().as_bytes(), |message| {
        key.sign(message)
    })
}

/// Checks an envelope and returns its payload.
pub(crate) fn open(
    envelope: &[u8],
    payload_type: &'static str,
    expected: &LedgerPublicKey,
) -> Result<Vec<u8>, EnvelopeError> {
    dsse::open(envelope, payload_type, expected.as_bytes()).map_err(|error| match error {
        dsse::EnvelopeError::PayloadType { expected } => EnvelopeError::PayloadType { expected },
        dsse::EnvelopeError::Signature => SignatureError::Mismatch.into(),
        dsse::EnvelopeError::OtherKey { .. } => EnvelopeError::OtherKey { expected: *expected },
        _ => EnvelopeError::Malformed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
