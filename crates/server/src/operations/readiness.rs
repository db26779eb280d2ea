//! Whether the server can do its work now: one line a check, with what to do about it.

use crate::state::Server;
use crate::storage;
use std::fmt;

/// Outcome of every check.
pub(crate) struct Readiness(Vec<(&'static str, Option<&'static str>)>);

/// Checks a server; one that is still booting is not ready.
pub(crate) fn of(server: Option<&Server>) -> Readiness {
    let Some(server) = server else {
        return Readiness(vec![("boot", Some("the server is starting"))]);
    };
    let failed = |fails: bool, why: &'static str| fails.then_some(why);
    Readiness(vec![
        ("boot", None),
        (
            "vault",
            failed(
                server.vault.is_poisoned(),
                "a write failed: the vault takes no more until a restart; look at the disk",
            ),
        ),
        (
            "trainer",
            failed(
                !server.boot.trainer.looks_unchanged(),
                "the trainer or a library of it was replaced since it was attested: restart the server",
            ),
        ),
        (
            "disk",
            failed(
                storage::free_bytes(&server.config.data_dir)
                    .map_or(true, |free| free < server.config.limits.free_bytes_reserve),
                "less is free than limits.free_bytes_reserve: uploads are refused; make room",
            ),
        ),
        (
            "draining",
            failed(
                server.accepts_work().is_err(),
                "the server is stopping and takes no new work",
            ),
        ),
    ])
}

impl Readiness {
    /// Whether every check passed.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.iter().all(|(_, why)| why.is_none())
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(check, why)| match why {
            None => writeln!(formatter, "ok {check}"),
            Some(why) => writeln!(formatter, "failed {check}: {why}"),
        })
    }
}
