//! ShowLedger: the signed head, the proof that it extends what the caller knows, and the entries that concern
//! the caller.

use super::blocking;
use crate::acceptor::Peer;
use crate::convert;
use crate::errors::Failure;
use crate::state::Server;
use bastionai_ledger::chain::Link;
use bastionai_ledger::{Body, Entry, Ledger, Principal, RunId};
use bastionai_wire::v1;
use std::collections::HashMap;
use std::sync::Arc;

pub(crate) async fn show(
    server: Arc<Server>,
    peer: &Peer,
    request: v1::ShowLedgerRequest,
) -> Result<v1::ShowLedgerReply, Failure> {
    if !request.subject_id.is_empty() && request.subject_id.len() != 16 {
        return Err(Failure::malformed(
            "subject_id is the 16 bytes of a dataset or run, or empty",
        ));
    }
    let caller = peer.principal;
    blocking(move || {
        let (head, links) = server
            .vault
            .read(|ledger| (ledger.head(), links(ledger, request.known_sequence)));
        let page = if request.links_only {
            Page::default()
        } else {
            Page::read(&server, &request, &caller, head.sequence)
        };
        Ok(v1::ShowLedgerReply {
            head: Some(convert::head(&server.boot.key.sign_head(head))),
            entries: page.entries,
            extension: links.into_iter().map(|link| link.to_bytes().to_vec()).collect(),
            more: page.more,
        })
    })
    .await
}

/// From what the caller knows to the head. One who knows nothing has nothing to continue; one who knows more
/// entries than there are sees the rollback itself.
fn links(ledger: &Ledger, known_sequence: u64) -> Vec<Link> {
    if known_sequence == 0 {
        return Vec::new();
    }
    ledger.extension(known_sequence).unwrap_or_default()
}

/// The entries of one reply.
#[derive(Default)]
struct Page {
    entries: Vec<v1::LedgerEntry>,
    bytes: usize,
    more: bool,
}

impl Page {
    /// Collects entries below `end`. The lock is held for a few entries at a time and never while they are
    /// serialised: steps that become durable wait for it.
    fn read(server: &Server, request: &v1::ShowLedgerRequest, caller: &Principal, end: u64) -> Self {
        let mut page = Self::default();
        let mut view = View {
            caller,
            subject: &request.subject_id,
            runs: HashMap::new(),
        };
        let mut next = request.from_sequence;
        while next < end {
            let last = end.min(next.saturating_add(SCANNED_AT_ONCE));
            let shown = server.vault.read(|ledger| view.shown(ledger, next, last));
            for entry in shown {
                if page.entries.len() == PAGE_ENTRIES || page.bytes >= PAGE_BYTES {
                    page.more = true;
                    return page;
                }
                let entry = to_wire(&entry);
                page.bytes += entry.json.len();
                page.entries.push(entry);
            }
            next = last;
        }
        page
    }
}

/// What one caller asked to see. A run is decided once: all its entries are as visible as the first.
struct View<'a> {
    caller: &'a Principal,
    subject: &'a [u8],
    runs: HashMap<RunId, bool>,
}

impl View<'_> {
    fn shown(&mut self, ledger: &Ledger, from: u64, end: u64) -> Vec<Entry> {
        let [from, end] = [from, end].map(|sequence| usize::try_from(sequence).unwrap_or(usize::MAX));
        let entries = ledger.entries().get(from..end).unwrap_or_default();
        let shown = entries.iter().filter(|entry| self.shows(ledger, entry.body()));
        shown.cloned().collect()
    }

    fn shows(&mut self, ledger: &Ledger, body: &Body) -> bool {
        let look = || is_about(ledger, body, self.subject) && concerns(ledger, body, self.caller);
        match body.run() {
            None => look(),
            Some(run) => *self.runs.entry(run).or_insert_with(look),
        }
    }
}

fn to_wire(entry: &Entry) -> v1::LedgerEntry {
    v1::LedgerEntry {
        sequence: entry.sequence(),
        time_unix_ms: entry.time_unix_ms(),
        kind: entry.body().kind().to_owned(),
        json: entry.to_json(),
        hash: entry.hash().as_bytes().to_vec(),
    }
}

/// Boots and datasets are everyone's to see; runs are their scientists', owners' and recipients'.
fn concerns(ledger: &Ledger, body: &Body, caller: &Principal) -> bool {
    body.run()
        .is_none_or(|run| ledger.concerns(&run, caller) || ledger.may_receive(&run, caller))
}

/// Whether the entry is about this dataset or run; a dataset's runs are about it.
fn is_about(ledger: &Ledger, body: &Body, subject: &[u8]) -> bool {
    if subject.is_empty() {
        return true;
    }
    let uses = |run| {
        let charges = ledger.run(&run).map(|run| run.charges()).unwrap_or_default();
        charges.iter().any(|charge| charge.dataset.as_bytes() == subject)
    };
    body.dataset()
        .is_some_and(|dataset| dataset.as_bytes() == subject)
        || body
            .run()
            .is_some_and(|run| run.as_bytes() == subject || uses(run))
}

/// Entries of one reply.
const PAGE_ENTRIES: usize = 1000;
/// A reply ends after the entry that takes it beyond this; one entry has at most a contract.
const PAGE_BYTES: usize = 1 << 20;
/// Entries looked at under one lock.
const SCANNED_AT_ONCE: u64 = 64;
