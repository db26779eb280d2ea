//! Sealing: AES-256-GCM-SIV for keys and small records (RFC 8452: a repeated nonce shows equality, no more),
//! AES-256-GCM for blocks, under keys that are never used for anything else (rule A9).

use crate::error::StorageError;
use aes_gcm_siv::aead::{Aead, KeyInit, Payload};
use aes_gcm_siv::{Aes256GcmSiv, Nonce};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce as BlockNonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use std::fmt;
use zeroize::Zeroizing;

/// The key under which every other key of a vault lies; given by the caller, wiped on drop.
pub struct RootKey(Zeroizing<[u8; 32]>);

/// A 256-bit secret, wiped on drop.
pub(crate) type Secret = Zeroizing<[u8; 32]>;

/// Seals small values under one key.
pub(crate) struct Sealer(Aes256GcmSiv);

/// Seals the blocks of one segment: a fresh random key, nonce = block index (rule A9).
pub(crate) struct BlockSealer(LessSafeKey);

impl RootKey {
    /// From 32 uniformly random bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Makes a fresh key.
    ///
    /// # Errors
    /// [`StorageError::Random`].
    pub fn generate() -> Result<Self, StorageError> {
        Ok(Self(random_secret()?))
    }

    /// The bytes, for whoever keeps the key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A key for one purpose of one vault: HKDF-SHA256, salt = vault id, info = purpose.
    pub(crate) fn derive(&self, vault: &[u8; 16], purpose: &'static str) -> Sealer {
        let extracted = Salt::new(HKDF_SHA256, vault).extract(self.as_bytes());
        let info = [purpose.as_bytes()];
        let output = extracted
            .expand(&info, ThirtyTwo)
            .expect("32 bytes are within HKDF's limit");
        let mut key = Zeroizing::new([0; 32]);
        output
            .fill(key.as_mut())
            .expect("the output has the length asked for");
        Sealer::new(&key)
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("RootKey(..)")
    }
}

impl Sealer {
    pub(crate) fn new(key: &Secret) -> Self {
        Self(Aes256GcmSiv::new_from_slice(key.as_slice()).expect("the key has 32 bytes"))
    }

    /// Nonce (12 bytes, random) ‖ ciphertext ‖ tag (16 bytes).
    pub(crate) fn seal(&self, aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, StorageError> {
        let nonce: [u8; NONCE_BYTES] = random_bytes()?;
        let ciphertext = self
            .0
            .encrypt(&Nonce::from(nonce), Payload { msg: plaintext, aad })
            .expect("records are far below AES-GCM-SIV's 64 GiB");
        Ok([&nonce[..], &ciphertext].concat())
    }

    /// Opens [`Sealer::seal`]; `what` names the value in the error.
    pub(crate) fn open(
        &self,
        aad: &[u8],
        sealed: &[u8],
        what: &'static str,
    ) -> Result<Zeroizing<Vec<u8>>, StorageError> {
        let error = StorageError::Sealed { what };
        let Some((nonce, ciphertext)) = sealed.split_first_chunk::<NONCE_BYTES>() else {
            return Err(error);
        };
        let opened = self
            .0
            .decrypt(&Nonce::from(*nonce), Payload { msg: ciphertext, aad });
        opened.map(Zeroizing::new).map_err(|_| error)
    }
}

impl BlockSealer {
    pub(crate) fn new(key: &Secret) -> Self {
        Self(LessSafeKey::new(
            UnboundKey::new(&AES_256_GCM, key.as_slice()).expect("the key has 32 bytes"),
        ))
    }

    /// Seals in place and appends the tag. Each index is sealed once per key: the caller makes a key per segment.
    pub(crate) fn seal(&self, index: u32, aad: &[u8], block: &mut Vec<u8>) {
        self.0
            .seal_in_place_append_tag(block_nonce(index), Aad::from(aad), block)
            .expect("blocks are far below AES-GCM's 64 GiB");
    }

    /// Opens in place; returns the plaintext's length.
    pub(crate) fn open(&self, index: u32, aad: &[u8], block: &mut [u8]) -> Option<usize> {
        self.0
            .open_in_place(block_nonce(index), Aad::from(aad), block)
            .ok()
            .map(|plaintext| plaintext.len())
    }
}

/// Uniformly random bytes from the operating system.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], StorageError> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| StorageError::Random)?;
    Ok(bytes)
}

pub(crate) fn random_secret() -> Result<Secret, StorageError> {
    let mut secret = Zeroizing::new([0; 32]);
    SystemRandom::new()
        .fill(secret.as_mut())
        .map_err(|_| StorageError::Random)?;
    Ok(secret)
}

fn block_nonce(index: u32) -> BlockNonce {
    let mut nonce = [0; NONCE_BYTES];
    nonce[..4].copy_from_slice(&index.to_le_bytes());
    BlockNonce::assume_unique_for_key(nonce)
}

struct ThirtyTwo;

impl KeyType for ThirtyTwo {
    fn len(&self) -> usize {
        32
    }
}

/// Bytes that sealing adds to a block.
pub(crate) const TAG_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_opens_only_as_it_was_and_where_it_was() {
        let root = RootKey::from_bytes([3; 32]);
        let sealer = root.derive(&[1; 16], "purpose");
        let sealed = sealer.seal(b"place", b"value").unwrap();
        assert_eq!(*sealer.open(b"place", &sealed, "it").unwrap(), b"value");
        assert!(sealer.open(b"elsewhere", &sealed, "it").is_err());
        for position in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[position] ^= 1;
            assert!(sealer.open(b"place", &flipped, "it").is_err(), "byte {position}");
            assert!(
                sealer.open(b"place", &sealed[..position], "it").is_err(),
                "length {position}"
            );
        }
        assert!(
            root.derive(&[2; 16], "purpose")
                .open(b"place", &sealed, "it")
                .is_err(),
            "other vault"
        );
        assert!(
            root.derive(&[1; 16], "other")
                .open(b"place", &sealed, "it")
                .is_err(),
            "other purpose"
        );
        assert_ne!(
            sealer.seal(b"place", b"value").unwrap(),
            sealed,
            "nonces are fresh"
        );
    }

    #[test]
    fn keys_do_not_print() {
        assert_eq!(format!("{:?}", RootKey::from_bytes([0x41; 32])), "RootKey(..)");
    }
}
