//! Runs that an earlier boot left open: which of them this one goes on with (rules D1, A11).

use crate::log::{Event, Hex};
use crate::state::Server;
use bastionai_attestation::claims::RuntimeClaims;
use bastionai_ledger::{Digest32, Ledger, MAX_IDLE_RESUMPTIONS, Orphan, Run};
use bastionai_vault::{NotResumable, Vault};
use std::sync::Arc;

/// Digest of what must be the same in the boot that goes on with a run: every runtime claim but those that are of
/// one boot alone.
pub(crate) fn conditions(claims: &RuntimeClaims) -> Digest32 {
    let lasting = RuntimeClaims {
        boot_id: [0; 16],
        ledger_public_key: [0; 32],
        ledger_sequence: 0,
        ledger_head: [0; 32],
        ..claims.clone()
    };
    Digest32::from_bytes(lasting.digest())
}

/// Why a run ends with the boot that had it in hand.
#[derive(Debug, thiserror::Error)]
enum EndsHere {
    #[error(transparent)]
    NotResumable(#[from] NotResumable),
    #[error("dataset `{0}` was withdrawn or its policy has expired")]
    NotLent(String),
    #[error("it went on {0} times and got no further: it may be what ends its boots")]
    GetsNowhere(u32),
}

/// Whether this boot goes on with a run; the log says why not.
pub(crate) fn is_resumable(vault: &Vault, orphan: &Orphan, conditions: Digest32, now_unix_ms: u64) -> bool {
    match check(vault, orphan, conditions, now_unix_ms) {
        Ok(()) => true,
        Err(why) => {
            let chain = crate::errors::chain(&why);
            Event::NotResumed {
                run: Hex(orphan.run.as_bytes()),
                chain: &chain,
            }
            .emit();
            false
        }
    }
}

fn check(vault: &Vault, orphan: &Orphan, conditions: Digest32, now_unix_ms: u64) -> Result<(), EndsHere> {
    vault.read(|ledger| {
        ledger
            .run(&orphan.run)
            .map_or(Ok(()), |run| check_run(ledger, run, now_unix_ms))
    })?;
    Ok(vault.check_resumable(&orphan.run, conditions)?)
}

fn check_run(ledger: &Ledger, run: &Run, now_unix_ms: u64) -> Result<(), EndsHere> {
    let now_unix_ms = now_unix_ms.max(ledger.last_time_unix_ms());
    let datasets = run
        .charges()
        .iter()
        .filter_map(|charge| ledger.dataset(&charge.dataset));
    let gone = |dataset: &&bastionai_ledger::Dataset| {
        dataset.is_withdrawn() || dataset.policy().is_expired(now_unix_ms)
    };
    if let Some(gone) = datasets.into_iter().find(gone) {
        return Err(EndsHere::NotLent(gone.name().to_owned()));
    }
    if run.idle_resumptions() >= MAX_IDLE_RESUMPTIONS {
        return Err(EndsHere::GetsNowhere(run.idle_resumptions()));
    }
    Ok(())
}

/// Takes up everything that is open: after the boot these are runs that it goes on with.
pub(crate) fn take_up_open_runs(server: &Arc<Server>) {
    let open: Vec<_> = server.vault.read(|ledger| {
        let open = ledger.runs().filter(|run| run.is_open());
        open.map(|run| (run.id(), run.scientist(), run.is_suspended()))
            .collect()
    });
    for (run, scientist, suspended) in open {
        server.runs.take_up(server, run, scientist, suspended);
    }
}
