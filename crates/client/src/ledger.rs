//! The ledger as a client sees it: signed heads, proofs that one continues the other, and the entries
//! that concern it.

use crate::convert::{all, array, required};
use crate::errors::ClientError;
use crate::heads::{Followed, RememberError, RollbackError};
use crate::session::AppraisedPeer;
use bastionai_attestation::RuntimeClaims;
use bastionai_ledger::chain::{Head, Link};
use bastionai_ledger::id::{EntryHash, LedgerId, LedgerPublicKey};
use bastionai_ledger::key::SignedHead;
use bastionai_wire::v1;
use serde::Serialize;

/// The ledger, up to a head that was checked to continue every head seen before.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LedgerView {
    /// Its end, signed by the attested ledger key.
    pub head: Head,
    /// Entries that concern this client, in order.
    pub entries: Vec<LedgerEntry>,
}

/// One entry, for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LedgerEntry {
    /// Position in the chain, from 0.
    pub sequence: u64,
    /// Ledger time.
    pub time_unix_ms: u64,
    /// What happened, e.g. `run_committed`.
    pub kind: String,
    /// The entry's content.
    pub content: serde_json::Value,
    /// Hash of the entry; covers everything before it.
    pub hash: EntryHash,
}

impl AppraisedPeer {
    /// The entries this client may see; those of one dataset or run if `subject` is its id.
    ///
    /// # Errors
    /// [`ClientError::Rollback`] if the chain does not continue what was seen before.
    pub async fn show_ledger(&self, subject: Option<[u8; 16]>) -> Result<LedgerView, ClientError> {
        let mut request = v1::ShowLedgerRequest {
            subject_id: subject.map(|id| id.to_vec()).unwrap_or_default(),
            ..v1::ShowLedgerRequest::default()
        };
        let mut entries: Vec<LedgerEntry> = Vec::new();
        loop {
            let page = self.followed(&request).await?;
            for entry in all(CALL, page.entries, parse_entry)? {
                check_order(&entry, request.from_sequence, &page.head)?;
                request.from_sequence = entry.sequence + 1;
                entries.push(entry);
            }
            if !page.more {
                let head = page.head;
                return Ok(LedgerView { head, entries });
            }
        }
    }

    /// Checks that the ledger continues the one seen before; the last step of an appraisal. `known` was read
    /// before the server was asked for `claimed`.
    pub(crate) async fn follow_ledger(
        &self,
        known: Option<Head>,
        claimed: SignedHead,
    ) -> Result<(), ClientError> {
        let head = claimed.head;
        // First contact, equal or rolled back: no proof can change that, so none is asked for.
        if known.is_none_or(|known| known.sequence >= head.sequence)
            && self.remember(known.as_ref(), &head, &[])? == Followed::Proven
        {
            return Ok(());
        }
        let request = v1::ShowLedgerRequest {
            links_only: true,
            ..v1::ShowLedgerRequest::default()
        };
        self.followed(&request).await.map(drop)
    }

    /// Asks until the head shown is proven to continue the memory as it is by then; other sessions may have
    /// moved it on while the server answered, which a server must not be able to use.
    async fn followed(&self, request: &v1::ShowLedgerRequest) -> Result<Page, ClientError> {
        let ledger = LedgerId::from_bytes(self.attestation().runtime_claims().ledger_id);
        let mut attempt = 1;
        loop {
            let known = self.heads().known(ledger)?;
            let request = v1::ShowLedgerRequest {
                known_sequence: known.map_or(0, |head| head.sequence),
                ..request.clone()
            };
            let reply = self.answer(CALL, self.client().show_ledger(request)).await?;
            let head = self.checked_head(reply.head)?.head;
            match self.remember(known.as_ref(), &head, &reply.extension)? {
                Followed::Proven if reply.more && reply.entries.is_empty() => {
                    return Err(ClientError::protocol(
                        CALL,
                        "a page without entries says that more follow",
                    ));
                }
                Followed::Proven => {
                    return Ok(Page {
                        head,
                        entries: reply.entries,
                        more: reply.more,
                    });
                }
                Followed::Unproven(seen) if attempt == MAX_ATTEMPTS => {
                    return Err(RollbackError::unproven(&seen, &head).into());
                }
                Followed::Unproven(_) => attempt += 1,
            }
        }
    }

    fn checked_head(&self, wire: Option<v1::LedgerHead>) -> Result<SignedHead, ClientError> {
        let head = signed_head(CALL, wire)?;
        check_head(&head, &self.ledger_key(), self.attestation().runtime_claims())?;
        Ok(head)
    }

    fn remember(
        &self,
        known: Option<&Head>,
        head: &Head,
        extension: &[Vec<u8>],
    ) -> Result<Followed, ClientError> {
        let links = all(CALL, extension, |call, bytes| {
            Link::from_bytes(bytes).map_err(|error| ClientError::protocol(call, error.to_string()))
        })?;
        self.heads()
            .follow(known, head, &links)
            .map_err(|error| match error {
                RememberError::Rollback(error) => error.into(),
                RememberError::Memory(error) => error.into(),
            })
    }
}

/// What one reply shows, up to a head that was proven.
struct Page {
    head: Head,
    entries: Vec<v1::LedgerEntry>,
    more: bool,
}

pub(crate) fn signed_head(
    call: &'static str,
    wire: Option<v1::LedgerHead>,
) -> Result<SignedHead, ClientError> {
    let wire = required(call, "the ledger head", wire)?;
    Ok(SignedHead {
        head: Head {
            ledger: LedgerId::from_bytes(array(call, "ledger_id", &wire.ledger_id)?),
            sequence: wire.sequence,
            entry_hash: EntryHash::from_bytes(array(call, "entry_hash", &wire.entry_hash)?),
        },
        public_key: LedgerPublicKey::from_bytes(array(call, "public_key", &wire.public_key)?),
        signature: array(call, "signature", &wire.signature)?,
    })
}

/// Signed by the key in the appraised claims, of the ledger in the claims, not behind the head in them.
pub(crate) fn check_head(
    head: &SignedHead,
    bound: &LedgerPublicKey,
    claims: &RuntimeClaims,
) -> Result<(), ClientError> {
    let broken = |what: String| ClientError::protocol("LedgerHead", what);
    head.verify(bound).map_err(|error| broken(error.to_string()))?;
    let attested = LedgerId::from_bytes(claims.ledger_id);
    if head.head.ledger != attested {
        return Err(broken(format!(
            "the head is of ledger {}, the evidence binds {attested}",
            head.head.ledger
        )));
    }
    let behind = head.head.sequence < claims.ledger_sequence;
    let differs = head.head.sequence == claims.ledger_sequence
        && head.head.entry_hash.as_bytes() != &claims.ledger_head;
    if behind || differs {
        return Err(broken(
            "the head is not a continuation of the head bound in the evidence".into(),
        ));
    }
    Ok(())
}

/// Entries rise and end below the head, so that paging ends.
fn check_order(entry: &LedgerEntry, from: u64, head: &Head) -> Result<(), ClientError> {
    if (from..head.sequence).contains(&entry.sequence) {
        return Ok(());
    }
    let (found, end) = (entry.sequence, head.sequence);
    let what = format!("entry {found} is out of order: one from {from} to before {end} is due");
    Err(ClientError::protocol(CALL, what))
}

fn parse_entry(call: &'static str, wire: v1::LedgerEntry) -> Result<LedgerEntry, ClientError> {
    let content = serde_json::from_str(&wire.json)
        .map_err(|error| ClientError::protocol(call, format!("entry {}: {error}", wire.sequence)))?;
    Ok(LedgerEntry {
        sequence: wire.sequence,
        time_unix_ms: wire.time_unix_ms,
        kind: wire.kind,
        content,
        hash: EntryHash::from_bytes(array(call, "an entry's hash", &wire.hash)?),
    })
}

const CALL: &str = "ShowLedger";
/// Each costs a session that overtook this one; an honest server gets through.
const MAX_ATTEMPTS: u32 = 4;
