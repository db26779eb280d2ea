//! Runtime claims: what the measured software says about how it runs (rule A4).
//!
//! A launch measurement covers the image, not the configuration it was started with. The claims fill
//! that gap: their SHA-256 is bound in the evidence, so an operator cannot change them afterwards, and
//! every one of them is appraised.

use crate::encoding::{DecodeError, Reader, Writer};
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use std::fmt;

/// How well rollback and forks of the ledger are kept out (soundness rule A1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Freshness {
    /// Development: clients remember heads, which detects a rollback and prevents nothing.
    None,
    /// Dataset keys are released per boot by the owner, who allows one live boot.
    Unlock,
    /// An independent witness counter-signs each head before a release.
    Witness,
}

impl Freshness {
    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Unlock => "unlock",
            Self::Witness => "witness",
        }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        [Self::None, Self::Unlock, Self::Witness]
            .into_iter()
            .find(|level| level.name().as_bytes() == bytes)
    }
}

impl fmt::Display for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Flag of a server whose evidence is simulated.
pub const INSECURE_SIMULATED_EVIDENCE: &str = "insecure-simulated-evidence";
/// Flag of a server whose root key lies in a file that the operator can read.
pub const INSECURE_FILE_ROOT_KEY: &str = "insecure-file-root-key";
/// Flag of a server whose trainers run without the full sandbox.
pub const INSECURE_TRAINER_SANDBOX: &str = "insecure-trainer-sandbox";

/// Flag of a server whose trainers hand records and models to a GPU that no evidence covers: in the clear, as far as a client
/// can know, for whoever owns the host. No policy allows it unless it is named.
pub const INSECURE_UNATTESTED_GPU: &str = "insecure-unattested-gpu";

/// Everything about a running server that its launch measurement does not cover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuntimeClaims {
    /// Version of the server program, e.g. `0.1.0`.
    pub server_version: String,
    /// What the vault's root key comes from, e.g. `InsecureFileRootKey`.
    pub root_key_provider: String,
    /// Every insecure choice in force; order and repetition do not matter, the encoding sorts.
    pub insecure_flags: Vec<String>,
    /// SHA-256 of the effective configuration.
    #[serde(serialize_with = "as_hex")]
    pub configuration_digest: [u8; 32],
    /// SHA-256 of the trainer program.
    #[serde(serialize_with = "as_hex")]
    pub trainer_digest: [u8; 32],
    /// SHA-256 over the libtorch libraries the trainer loads.
    #[serde(serialize_with = "as_hex")]
    pub libtorch_digest: [u8; 32],
    /// Random, fresh at each start of the server.
    #[serde(serialize_with = "as_hex")]
    pub boot_id: [u8; 16],
    /// Identity of the ledger, fixed at its genesis.
    #[serde(serialize_with = "as_hex")]
    pub ledger_id: [u8; 16],
    /// Ed25519 key that signs heads and receipts.
    #[serde(serialize_with = "as_hex")]
    pub ledger_public_key: [u8; 32],
    /// Number of ledger entries when the claims were made.
    pub ledger_sequence: u64,
    /// Hash of the last of them.
    #[serde(serialize_with = "as_hex")]
    pub ledger_head: [u8; 32],
    /// Freshness level in force.
    pub freshness: Freshness,
}

/// Why bytes are not canonical runtime claims.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimsError {
    /// Another format, or not claims at all.
    #[error("runtime claims start with {found}, this version reads {wanted}")]
    Version {
        /// The label found, printable part.
        found: String,
        /// The label this version reads.
        wanted: &'static str,
    },
    /// Fields missing, too long, or left over.
    #[error("runtime claims are malformed: {0}")]
    Malformed(String),
    /// Readable, but not in the one canonical form whose digest is bound.
    #[error("runtime claims are not canonical: {0}")]
    NotCanonical(&'static str),
}

impl RuntimeClaims {
    /// Canonical encoding: label, then every field length-prefixed, in the order of the struct.
    ///
    /// # Panics
    /// If a text is longer than 128 bytes or not printable ASCII, or there are more than 32 flags:
    /// the server makes them from constants.
    pub fn to_bytes(&self) -> Vec<u8> {
        let flags = self.sorted_flags();
        assert!(flags.len() <= MAX_FLAGS, "at most {MAX_FLAGS} insecure flags");
        let flag_list = flags
            .iter()
            .fold(Writer::new(), |list, flag| list.field(text(flag)))
            .finish();
        Writer::new()
            .field(CLAIMS_LABEL.as_bytes())
            .field(text(&self.server_version))
            .field(text(&self.root_key_provider))
            .field(&flag_list)
            .field(&self.configuration_digest)
            .field(&self.trainer_digest)
            .field(&self.libtorch_digest)
            .field(&self.boot_id)
            .field(&self.ledger_id)
            .field(&self.ledger_public_key)
            .field(&self.ledger_sequence.to_le_bytes())
            .field(&self.ledger_head)
            .field(self.freshness.name().as_bytes())
            .finish()
    }

    /// Reads the canonical encoding and nothing else: `from_bytes(b)?.to_bytes() == b`.
    ///
    /// # Errors
    /// [`ClaimsError`] for another version, malformed fields, or a form that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ClaimsError> {
        if bytes.len() > MAX_CLAIMS_BYTES {
            return Err(ClaimsError::Malformed(format!(
                "{} bytes, at most {MAX_CLAIMS_BYTES}",
                bytes.len()
            )));
        }
        let mut reader = Reader::new(bytes);
        let label = reader.field("label", MAX_TEXT)?;
        if label != CLAIMS_LABEL.as_bytes() {
            let found = label.escape_ascii().to_string();
            return Err(ClaimsError::Version {
                found,
                wanted: CLAIMS_LABEL,
            });
        }
        let claims = Self {
            server_version: read_text(reader.field("server version", MAX_TEXT)?)?,
            root_key_provider: read_text(reader.field("root key provider", MAX_TEXT)?)?,
            insecure_flags: read_flags(reader.field("insecure flags", MAX_CLAIMS_BYTES)?)?,
            configuration_digest: reader.array("configuration digest")?,
            trainer_digest: reader.array("trainer digest")?,
            libtorch_digest: reader.array("libtorch digest")?,
            boot_id: reader.array("boot id")?,
            ledger_id: reader.array("ledger id")?,
            ledger_public_key: reader.array("ledger public key")?,
            ledger_sequence: u64::from_le_bytes(reader.array("ledger sequence")?),
            ledger_head: reader.array("ledger head")?,
            freshness: Freshness::parse(reader.field("freshness", MAX_TEXT)?)
                .ok_or(ClaimsError::NotCanonical("unknown freshness level"))?,
        };
        reader.finish()?;
        Ok(claims)
    }

    /// SHA-256 of the canonical encoding: what the evidence binds.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.to_bytes()).into()
    }

    fn sorted_flags(&self) -> Vec<&String> {
        let mut flags: Vec<&String> = self.insecure_flags.iter().collect();
        flags.sort_unstable();
        flags.dedup();
        flags
    }
}

impl From<DecodeError> for ClaimsError {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error.to_string())
    }
}

fn text(value: &str) -> &[u8] {
    assert!(is_text(value.as_bytes()), "claims hold short printable ASCII");
    value.as_bytes()
}

/// Printable ASCII only: claims end up in terminals and logs of people who do not trust the server.
fn is_text(bytes: &[u8]) -> bool {
    bytes.len() <= MAX_TEXT && bytes.iter().all(|byte| (0x20..0x7f).contains(byte))
}

fn read_text(bytes: &[u8]) -> Result<String, ClaimsError> {
    if !is_text(bytes) {
        return Err(ClaimsError::NotCanonical("text is not printable ASCII"));
    }
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

fn read_flags(mut bytes: &[u8]) -> Result<Vec<String>, ClaimsError> {
    let mut flags: Vec<String> = Vec::new();
    while !bytes.is_empty() {
        if flags.len() == MAX_FLAGS {
            return Err(ClaimsError::Malformed(format!(
                "more than {MAX_FLAGS} insecure flags"
            )));
        }
        let mut reader = Reader::new(bytes);
        let flag = read_text(reader.field("insecure flag", MAX_TEXT)?)?;
        bytes = &bytes[4 + flag.len()..];
        if flags.last().is_some_and(|last| *last >= flag) {
            return Err(ClaimsError::NotCanonical(
                "insecure flags are not sorted and unique",
            ));
        }
        flags.push(flag);
    }
    Ok(flags)
}

pub(crate) fn as_hex<const N: usize, S: Serializer>(
    bytes: &[u8; N],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

const CLAIMS_LABEL: &str = "bastionai/v1/runtime-claims";
const MAX_TEXT: usize = 128;
const MAX_FLAGS: usize = 32;
/// Longest encoding accepted: far above what 32 flags of 128 bytes need.
pub const MAX_CLAIMS_BYTES: usize = 8192;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn example() -> RuntimeClaims {
        RuntimeClaims {
            server_version: "0.1.0".into(),
            root_key_provider: "InsecureFileRootKey".into(),
            insecure_flags: vec![INSECURE_FILE_ROOT_KEY.into(), INSECURE_SIMULATED_EVIDENCE.into()],
            configuration_digest: [1; 32],
            trainer_digest: [2; 32],
            libtorch_digest: [3; 32],
            boot_id: [4; 16],
            ledger_id: [5; 16],
            ledger_public_key: [6; 32],
            ledger_sequence: 7,
            ledger_head: [8; 32],
            freshness: Freshness::None,
        }
    }

    /// Every field changed, one at a time.
    pub(crate) fn one_field_changed() -> Vec<(&'static str, RuntimeClaims)> {
        let change = |name, edit: fn(&mut RuntimeClaims)| {
            let mut claims = example();
            edit(&mut claims);
            (name, claims)
        };
        vec![
            change("server_version", |c| c.server_version.push('1')),
            change("root_key_provider", |c| c.root_key_provider = "Other".into()),
            change("insecure_flags less", |c| drop(c.insecure_flags.pop())),
            change("insecure_flags more", |c| {
                c.insecure_flags.push("insecure-more".into())
            }),
            change("configuration_digest", |c| c.configuration_digest[31] ^= 1),
            change("trainer_digest", |c| c.trainer_digest[0] ^= 1),
            change("libtorch_digest", |c| c.libtorch_digest[0] ^= 1),
            change("boot_id", |c| c.boot_id[0] ^= 1),
            change("ledger_id", |c| c.ledger_id[0] ^= 1),
            change("ledger_public_key", |c| c.ledger_public_key[0] ^= 1),
            change("ledger_sequence", |c| c.ledger_sequence += 1),
            change("ledger_head", |c| c.ledger_head[0] ^= 1),
            change("freshness", |c| c.freshness = Freshness::Witness),
        ]
    }

    #[test]
    fn claims_survive_the_canonical_encoding() {
        let claims = example();
        assert_eq!(RuntimeClaims::from_bytes(&claims.to_bytes()), Ok(claims));
    }

    #[test]
    fn the_encoding_of_version_1_is_pinned() {
        // Computed independently from the format's description (Python, hashlib and struct).
        // Changing this digest means a new label and a migration, never an edit of this line.
        assert_eq!(
            hex::encode(example().digest()),
            "83f3acd997d9397a7b0f4722c606585fa1e7e16e12b29b8820812109f735f223"
        );
    }

    #[test]
    fn every_field_changes_the_digest() {
        for (name, claims) in one_field_changed() {
            assert_ne!(claims.digest(), example().digest(), "{name}");
        }
    }

    #[test]
    fn flag_order_and_repetition_do_not_change_the_digest() {
        let mut claims = example();
        claims.insecure_flags.reverse();
        claims.insecure_flags.push(INSECURE_FILE_ROOT_KEY.into());
        assert_eq!(claims.digest(), example().digest());
    }

    #[test]
    fn truncated_extended_and_unsorted_encodings_are_refused() {
        let bytes = example().to_bytes();
        for length in 0..bytes.len() {
            assert!(
                RuntimeClaims::from_bytes(&bytes[..length]).is_err(),
                "{length} bytes"
            );
        }
        let extended = [&bytes[..], &[0]].concat();
        assert!(matches!(
            RuntimeClaims::from_bytes(&extended),
            Err(ClaimsError::Malformed(_))
        ));

        let unsorted = Writer::new().field(b"b").field(b"a").finish();
        assert!(matches!(read_flags(&unsorted), Err(ClaimsError::NotCanonical(_))));
        let twice = Writer::new().field(b"a").field(b"a").finish();
        assert!(matches!(read_flags(&twice), Err(ClaimsError::NotCanonical(_))));
    }

    #[test]
    fn terminal_escapes_in_claims_are_refused() {
        assert_eq!(
            read_text(b"\x1b[2J"),
            Err(ClaimsError::NotCanonical("text is not printable ASCII"))
        );
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let newer = Writer::new().field(b"bastionai/v2/runtime-claims").finish();
        assert!(matches!(
            RuntimeClaims::from_bytes(&newer),
            Err(ClaimsError::Version { .. })
        ));
    }

    proptest! {
        #[test]
        fn whatever_decodes_is_canonical(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
            let mut bytes = example().to_bytes();
            for (index, value) in flips {
                let at = index.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(claims) = RuntimeClaims::from_bytes(&bytes) {
                prop_assert_eq!(claims.to_bytes(), bytes);
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = RuntimeClaims::from_bytes(&bytes);
        }
    }
}
