//! Heads and extension proofs: how a client that remembers one head checks the next (rule A1).

use crate::entry::{Body, Genesis, entry_hash};
use crate::id::{Digest32, EntryHash, LedgerId};
use serde::{Deserialize, Serialize};

/// The end of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Which ledger.
    pub ledger: LedgerId,
    /// Number of entries.
    pub sequence: u64,
    /// Hash of the last entry.
    pub entry_hash: EntryHash,
}

/// What is needed of one entry to follow the chain over it, without seeing its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The entry's time.
    pub time_unix_ms: u64,
    /// SHA-256 of its body.
    pub body_digest: Digest32,
}

/// Why a chain does not extend another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtensionError {
    /// Two different ledgers.
    #[error("the head is of ledger {found}, not of {expected}: the server lost or replaced its ledger")]
    OtherLedger {
        /// The remembered ledger.
        expected: LedgerId,
        /// The ledger shown.
        found: LedgerId,
    },
    /// Fewer entries than already seen.
    #[error("the ledger has {found} entries, fewer than the {known} already seen: it was rolled back")]
    RolledBack {
        /// Entries seen before.
        known: u64,
        /// Entries now.
        found: u64,
    },
    /// The proof does not span the distance between the heads.
    #[error("the extension proof has {found} links, {expected} are needed")]
    Length {
        /// Links needed.
        expected: u64,
        /// Links given.
        found: u64,
    },
    /// The hashes differ: history was rewritten.
    #[error("the ledger does not extend the chain already seen: its history was rewritten")]
    Forked,
    /// A link is not 40 bytes.
    #[error("an extension proof link has the wrong length")]
    Link,
}

impl Link {
    /// Time (u64, little-endian), then body digest: 40 bytes.
    pub fn to_bytes(self) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes[..8].copy_from_slice(&self.time_unix_ms.to_le_bytes());
        bytes[8..].copy_from_slice(self.body_digest.as_bytes());
        bytes
    }

    /// Decodes [`Link::to_bytes`].
    ///
    /// # Errors
    /// [`ExtensionError::Link`] unless there are 40 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ExtensionError> {
        let (time, digest) = bytes.split_first_chunk::<8>().ok_or(ExtensionError::Link)?;
        let body_digest = Digest32::try_from(digest).map_err(|_| ExtensionError::Link)?;
        Ok(Self {
            time_unix_ms: u64::from_le_bytes(*time),
            body_digest,
        })
    }
}

/// Checks that the chain ending in `claimed` continues the one ending in `known` (`None`: nothing seen yet)
/// over `links`, the links of every entry in between.
///
/// # Guarantee
/// On success every entry covered by `known` is, unchanged, part of the chain of `claimed`; with `known`
/// absent, the chain starts with the genesis of `claimed.ledger`. (Under collision resistance of SHA-256.)
/// # Errors
/// [`ExtensionError`] says how the chains part.
pub fn verify_extension(known: Option<&Head>, claimed: &Head, links: &[Link]) -> Result<(), ExtensionError> {
    let (known_sequence, known_hash) = match known {
        None => (0, EntryHash::NONE),
        Some(known) if known.ledger != claimed.ledger => {
            return Err(ExtensionError::OtherLedger {
                expected: known.ledger,
                found: claimed.ledger,
            });
        }
        Some(known) => (known.sequence, known.entry_hash),
    };
    let expected = claimed
        .sequence
        .checked_sub(known_sequence)
        .ok_or(ExtensionError::RolledBack {
            known: known_sequence,
            found: claimed.sequence,
        })?;
    if expected != links.len() as u64 {
        return Err(ExtensionError::Length {
            expected,
            found: links.len() as u64,
        });
    }
    if known_sequence == 0
        && links
            .first()
            .is_none_or(|link| link.body_digest != genesis_digest(claimed.ledger))
    {
        return Err(ExtensionError::Forked);
    }
    if follow_links(known_sequence, known_hash, links) == claimed.entry_hash {
        Ok(())
    } else {
        Err(ExtensionError::Forked)
    }
}

/// Hash of the entry that `links` lead to, from a chain of `sequence` entries that ends in `hash`.
pub fn follow_links(sequence: u64, hash: EntryHash, links: &[Link]) -> EntryHash {
    (sequence..).zip(links).fold(hash, |previous, (sequence, link)| {
        entry_hash(sequence, previous, link.time_unix_ms, link.body_digest)
    })
}

/// SHA-256 of the genesis entry's body: a function of the ledger id alone, bound in boot evidence (rule A6).
pub fn genesis_digest(ledger: LedgerId) -> Digest32 {
    Digest32::of(&Body::Genesis(Genesis { ledger }).to_bytes())
}
