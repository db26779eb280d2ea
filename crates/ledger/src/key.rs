//! The key that signs heads and receipts, and signed heads.

use crate::chain::Head;
use crate::id::LedgerPublicKey;
use ring::rand::SecureRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use std::fmt;

/// An Ed25519 key pair of one boot; made in the TEE, never stored (rule A4).
pub struct LedgerKey(Ed25519KeyPair);

/// A head with the ledger key's signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedHead {
    /// The head.
    pub head: Head,
    /// The key that signed; bound in the runtime claims.
    pub public_key: LedgerPublicKey,
    /// Ed25519 over the label, ledger id, sequence (u64, little-endian) and entry hash.
    pub signature: [u8; 64],
}

/// Why a key or signature is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// The random generator failed.
    #[error("the system's random generator failed")]
    Random,
    /// Signed by another key than expected.
    #[error("signed by ledger key {found}, expected {expected}")]
    OtherKey {
        /// The expected key.
        expected: LedgerPublicKey,
        /// The key found.
        found: LedgerPublicKey,
    },
    /// The signature does not match.
    #[error("the signature does not match what it signs")]
    Mismatch,
}

impl LedgerKey {
    /// Makes a fresh key.
    ///
    /// # Errors
    /// [`SignatureError::Random`] when `random` fails.
    pub fn generate(random: &dyn SecureRandom) -> Result<Self, SignatureError> {
        let mut seed = [0; 32];
        random.fill(&mut seed).map_err(|_| SignatureError::Random)?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of a 32-byte secret seed (RFC 8032, section 5.1.5): for tests and fixtures.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(seed).expect("an Ed25519 seed is any 32 bytes"))
    }

    /// The public half.
    pub fn public_key(&self) -> LedgerPublicKey {
        LedgerPublicKey::try_from(self.0.public_key().as_ref()).expect("an Ed25519 public key has 32 bytes")
    }

    /// Signs a head.
    pub fn sign_head(&self, head: Head) -> SignedHead {
        SignedHead {
            head,
            public_key: self.public_key(),
            signature: self.sign(&head_message(&head)),
        }
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0
            .sign(message)
            .as_ref()
            .try_into()
            .expect("an Ed25519 signature has 64 bytes")
    }
}

impl fmt::Debug for LedgerKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "LedgerKey(public {})", self.public_key())
    }
}

impl SignedHead {
    /// Checks that `expected` signed this head.
    ///
    /// # Errors
    /// [`SignatureError::OtherKey`] or [`SignatureError::Mismatch`].
    pub fn verify(&self, expected: &LedgerPublicKey) -> Result<&Head, SignatureError> {
        if self.public_key != *expected {
            return Err(SignatureError::OtherKey {
                expected: *expected,
                found: self.public_key,
            });
        }
        verify(expected, &head_message(&self.head), &self.signature)?;
        Ok(&self.head)
    }
}

pub(crate) fn verify(key: &LedgerPublicKey, message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
    UnparsedPublicKey::new(&ED25519, key.as_bytes())
        .verify(message, signature)
        .map_err(|_| SignatureError::Mismatch)
}

/// Fixed-length fields under a label: no two heads, and no head and receipt, share a message.
fn head_message(head: &Head) -> Vec<u8> {
    let mut message = HEAD_LABEL.to_vec();
    message.extend(head.ledger.as_bytes());
    message.extend(head.sequence.to_le_bytes());
    message.extend(head.entry_hash.as_bytes());
    message
}

const HEAD_LABEL: &[u8] = b"bastionai/v1/ledger-head\0";
