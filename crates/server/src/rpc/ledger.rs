//! ShowLedger: the signed head, the proof that it extends what the caller knows, and the entries that concern
//! the caller.

use crate::acceptor::Peer;
use crate::convert;
use crate::errors::Failure;
use crate::state::Server;
use bastionai_ledger::{Body, Entry, Ledger, Principal};
use bastionai_wire::v1;

pub(crate) fn show(
    server: &Server,
    peer: &Peer,
    request: &v1::ShowLedgerRequest,
) -> Result<v1::ShowLedgerReply, Failure> {
    if !request.subject_id.is_empty() && request.subject_id.len() != 16 {
        return Err(Failure::malformed(
            "subject_id is the 16 bytes of a dataset or run, or empty",
        ));
    }
    let (head, entries, extension) = server.vault.read(|ledger| {
        let shown = ledger.entries().iter().filter(|entry| {
            is_about(ledger, entry.body(), &request.subject_id)
                && concerns(ledger, entry.body(), &peer.principal)
        });
        // A caller who knows more entries than there are gets the head and no links: it sees the rollback itself.
        let links = ledger.extension(request.known_sequence).unwrap_or_default();
        let extension = links.into_iter().map(|link| link.to_bytes().to_vec()).collect();
        (ledger.head(), shown.map(to_wire).collect(), extension)
    });
    let head = Some(convert::head(&server.boot.key.sign_head(head)));
    Ok(v1::ShowLedgerReply {
        head,
        entries,
        extension,
        more: false,
    })
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
