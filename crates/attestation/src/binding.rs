//! What evidence is bound to: one TLS session ([`Binding`], rule 1) or one boot ([`BootBinding`], rule A6).
//!
//! A report embedded in a certificate can be relayed by whoever terminates TLS in between. The exporter
//! (RFC 9266) differs on the two sides of such a relay, so evidence that names it cannot be passed on.

use crate::encoding::Writer;
use serde::Serialize;
use sha2::{Digest, Sha512};
use std::fmt;

/// TLS exporter label of RFC 9266; the context is empty, the output 32 bytes.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// What the attesting program is in the protocol, so that evidence for one part cannot serve as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// The training server that clients talk to.
    Server,
    /// The independent witness of freshness level `witness`.
    Witness,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Witness => "witness",
        })
    }
}

/// Binds evidence to one nonce, one TLS session, one server key, one role and one set of claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// 32 random bytes, drawn by the client for this one request.
    pub nonce: [u8; 32],
    /// `tls-exporter` of this connection (RFC 9266, [`EXPORTER_LABEL`]).
    pub exporter: [u8; 32],
    /// SHA-256 of the server certificate's SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
    /// What the attesting program is.
    pub role: Role,
    /// SHA-256 of the canonical runtime claims (`RuntimeClaims::digest`).
    pub claims_sha256: [u8; 32],
}

impl Binding {
    /// The 64 bytes the platform signs: SHA-512 over the length-prefixed fields.
    pub fn report_data(&self) -> [u8; 64] {
        let fields = Writer::new()
            .field(b"bastionai/v1/evidence")
            .field(&self.nonce)
            .field(&self.exporter)
            .field(&self.spki_sha256)
            .field(self.role.to_string().as_bytes())
            .field(&self.claims_sha256)
            .finish();
        Sha512::digest(fields).into()
    }
}

/// Binds the second evidence, made once per boot, that lets receipts be checked offline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootBinding {
    /// Ed25519 key that signs heads and receipts.
    pub ledger_public_key: [u8; 32],
    /// Random, fresh at each start of the server.
    pub boot_id: [u8; 16],
    /// SHA-256 of the body of the ledger's genesis entry, a function of the ledger id alone
    /// (`bastionai_ledger::genesis_digest`): whoever has the claims can compute it, offline.
    pub genesis_digest: [u8; 32],
    /// SHA-256 of the canonical runtime claims made at boot.
    pub claims_sha256: [u8; 32],
}

impl BootBinding {
    /// The 64 bytes the platform signs: SHA-512 over the length-prefixed fields.
    pub fn report_data(&self) -> [u8; 64] {
        let fields = Writer::new()
            .field(b"bastionai/v1/boot")
            .field(&self.ledger_public_key)
            .field(&self.boot_id)
            .field(&self.genesis_digest)
            .field(&self.claims_sha256)
            .finish();
        Sha512::digest(fields).into()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> Binding {
        Binding {
            nonce: [1; 32],
            exporter: [2; 32],
            spki_sha256: [3; 32],
            role: Role::Server,
            claims_sha256: crate::claims::tests::example().digest(),
        }
    }

    /// Every field changed, one at a time.
    pub(crate) fn one_field_changed() -> Vec<(&'static str, Binding)> {
        let example = example();
        vec![
            (
                "stale nonce",
                Binding {
                    nonce: [9; 32],
                    ..example.clone()
                },
            ),
            (
                "wrong exporter",
                Binding {
                    exporter: [9; 32],
                    ..example.clone()
                },
            ),
            (
                "wrong SPKI",
                Binding {
                    spki_sha256: [9; 32],
                    ..example.clone()
                },
            ),
            (
                "wrong role",
                Binding {
                    role: Role::Witness,
                    ..example.clone()
                },
            ),
            (
                "wrong claims",
                Binding {
                    claims_sha256: [9; 32],
                    ..example
                },
            ),
        ]
    }

    #[test]
    fn every_field_changes_the_report_data() {
        for (name, binding) in one_field_changed() {
            assert_ne!(binding.report_data(), example().report_data(), "{name}");
        }
    }

    #[test]
    fn swapping_two_fields_of_equal_length_changes_the_report_data() {
        let swapped = Binding {
            nonce: [2; 32],
            exporter: [1; 32],
            ..example()
        };
        assert_ne!(swapped.report_data(), example().report_data());
    }

    #[test]
    fn report_data_is_the_hash_written_in_the_protocol() {
        // Spelled out by hand, so that the encoder is not checked against itself.
        let mut fields = Vec::new();
        let claims = crate::claims::tests::example().digest();
        let parts: [&[u8]; 6] = [
            b"bastionai/v1/evidence",
            &[1; 32],
            &[2; 32],
            &[3; 32],
            b"server",
            &claims,
        ];
        for part in parts {
            fields.extend_from_slice(&[part.len() as u8, 0, 0, 0]);
            fields.extend_from_slice(part);
        }
        assert_eq!(example().report_data()[..], Sha512::digest(&fields)[..]);
    }

    #[test]
    fn boot_evidence_binds_every_field() {
        let boot = BootBinding {
            ledger_public_key: [1; 32],
            boot_id: [2; 16],
            genesis_digest: [3; 32],
            claims_sha256: [4; 32],
        };
        let changed = [
            BootBinding {
                ledger_public_key: [9; 32],
                ..boot.clone()
            },
            BootBinding {
                boot_id: [9; 16],
                ..boot.clone()
            },
            BootBinding {
                genesis_digest: [9; 32],
                ..boot.clone()
            },
            BootBinding {
                claims_sha256: [9; 32],
                ..boot.clone()
            },
        ];
        for other in changed {
            assert_ne!(other.report_data(), boot.report_data());
        }
    }
}
