//! Identifiers and digests: fixed-length byte strings that print as hexadecimal.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// Why bytes or text are not an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind}: expected {bytes} bytes, or {} lower-case hexadecimal digits", bytes * 2)]
pub struct IdError {
    kind: &'static str,
    bytes: usize,
}

macro_rules! byte_string {
    ($(#[$doc:meta])* $name:ident, $length:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $length]);

        impl $name {
            /// Length in bytes.
            pub const LENGTH: usize = $length;

            /// From its bytes.
            pub const fn from_bytes(bytes: [u8; $length]) -> Self {
                Self(bytes)
            }

            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }
        }

        impl From<[u8; $length]> for $name {
            fn from(bytes: [u8; $length]) -> Self {
                Self(bytes)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = IdError;

            fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
                bytes.try_into().map(Self).map_err(|_| IdError { kind: $kind, bytes: $length })
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let error = IdError { kind: $kind, bytes: $length };
                // One spelling per value: receipts are compared byte by byte.
                if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    return Err(error);
                }
                let mut bytes = [0; $length];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| error)?;
                Ok(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!(stringify!($name), "({})"), self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; $length]>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

byte_string!(
    /// A ledger, from its genesis on. Random.
    LedgerId, 16, "ledger id"
);
byte_string!(
    /// One start of a server. Random.
    BootId, 16, "boot id"
);
byte_string!(
    /// A dataset. Random, set by the vault.
    DatasetId, 16, "dataset id"
);
byte_string!(
    /// A run. Random, set by the server.
    RunId, 16, "run id"
);
byte_string!(
    /// Who calls: SHA-256 of a client certificate's SubjectPublicKeyInfo.
    Principal, 32, "principal"
);
byte_string!(
    /// A SHA-256 digest.
    Digest32, 32, "SHA-256 digest"
);
byte_string!(
    /// The hash of an entry; through the chain it covers every entry before.
    EntryHash, 32, "entry hash"
);
byte_string!(
    /// An Ed25519 public key that signs heads and receipts.
    LedgerPublicKey, 32, "ledger public key"
);

impl Digest32 {
    /// SHA-256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl EntryHash {
    /// What the genesis entry names as its predecessor.
    pub const NONE: Self = Self([0; 32]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        let id = RunId::from_bytes([0xab; 16]);
        assert_eq!(id.to_string(), "ab".repeat(16));
        assert_eq!(id.to_string().parse::<RunId>().unwrap(), id);
        for bad in [
            String::new(),
            "AB".repeat(16),
            "ab".repeat(15),
            "ab".repeat(17),
            "zz".repeat(16),
        ] {
            assert!(bad.parse::<RunId>().is_err(), "{bad}");
        }
        assert!(RunId::try_from(&[0u8; 15][..]).is_err());
    }
}
