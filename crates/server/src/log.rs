//! The log's whole vocabulary. An `Event` holds ids, counts and public values only: there is no way to put
//! a record, a gradient, a key or a model's tensor into one (rules G4, G5, D7). Only this module's target is
//! ever written, so a dependency cannot log what passes through it.

use crate::operations::Metrics;
use bastionai_ledger::Principal;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use tracing::{error, info, warn};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// How severe an event must be to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Everything.
    #[default]
    Info,
    /// Connections refused, protections missing, and errors.
    Warn,
    /// Faults of the server.
    Error,
}

/// Writes the server's events to stderr; does nothing when the program already has a subscriber.
pub fn init(format: Format, level: Level) {
    let level = match level {
        Level::Info => LevelFilter::INFO,
        Level::Warn => LevelFilter::WARN,
        Level::Error => LevelFilter::ERROR,
    };
    let only_ours = Targets::new().with_target(TARGET, level);
    let registry = tracing_subscriber::registry().with(only_ours);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    let outcome = match format {
        Format::Text => registry.with(layer.with_ansi(false)).try_init(),
        Format::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    // An embedding program that set its own subscriber keeps it.
    drop(outcome);
}

const TARGET: &str = "bastionai_server::event";

/// An id or digest, shown in hexadecimal.
#[derive(Clone, Copy)]
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// Everything the server ever says in its log.
pub(crate) enum Event<'a> {
    Listening {
        address: SocketAddr,
        boot: Hex<'a>,
        ledger: Hex<'a>,
        entries: u64,
    },
    /// Where probes and metrics are served.
    OperationsListening {
        address: SocketAddr,
    },
    Orphans {
        resumed: u64,
        refunded: u64,
        failed: u64,
    },
    /// Which platform vouches for this boot.
    Attester {
        media_type: &'static str,
    },
    /// What confines trainers beside seccomp; ABI 0: this kernel has no Landlock.
    Sandbox {
        landlock_abi: u32,
    },
    /// What one trainer gets, as stated or as the machine has it.
    TrainerMemory {
        bytes: u64,
    },
    AcceptFailed,
    ConnectionRefused {
        address: SocketAddr,
        why: &'static str,
    },
    ConnectionAccepted {
        address: SocketAddr,
        principal: Principal,
    },
    Attested {
        principal: Principal,
    },
    CallRefused {
        flow: &'static str,
        principal: Principal,
        reason: &'static str,
    },
    /// `chain` is built by `errors.rs` from our own error types, which carry no data by convention.
    CallFailed {
        flow: &'static str,
        principal: Principal,
        reason: &'static str,
        chain: &'a str,
    },
    DatasetCreated {
        dataset: Hex<'a>,
        owner: Principal,
    },
    DatasetWithdrawn {
        dataset: Hex<'a>,
        owner: Principal,
    },
    DatasetRemoved {
        dataset: Hex<'a>,
        owner: Principal,
    },
    UploadDropped {
        owner: Principal,
    },
    ModelHeld {
        model: Hex<'a>,
        principal: Principal,
        bytes: u64,
    },
    Quoted {
        digest: Hex<'a>,
        principal: Principal,
    },
    RunQueued {
        run: Hex<'a>,
        scientist: Principal,
    },
    RunStarted {
        run: Hex<'a>,
    },
    /// After a restart or a suspension, from the checkpoint of this step.
    RunResumed {
        run: Hex<'a>,
        step: u64,
    },
    RunAdvanced {
        run: Hex<'a>,
        step: u64,
    },
    TrainerStarted {
        run: Hex<'a>,
    },
    /// A trainer that ended before its time: died, hung, overtime, against the protocol.
    TrainerLost {
        run: Hex<'a>,
        why: &'static str,
    },
    RunSuspended {
        run: Hex<'a>,
        by: Principal,
    },
    RunUnsuspended {
        run: Hex<'a>,
        by: Principal,
    },
    /// It goes on later, from its last checkpoint.
    RunPaused {
        run: Hex<'a>,
    },
    /// A run of an earlier boot that cannot go on, and why: it ends failed or refunded.
    NotResumed {
        run: Hex<'a>,
        chain: &'a str,
    },
    RunEnded {
        run: Hex<'a>,
        outcome: &'static str,
        why: &'static str,
    },
    RunFault {
        run: Hex<'a>,
        chain: &'a str,
    },
    Released {
        run: Hex<'a>,
        recipient: Principal,
    },
    /// Where a panic happened; never its message.
    Panicked {
        file: &'a str,
        line: u32,
    },
    /// A protection of this process that the system refused.
    NotHardened {
        what: &'static str,
    },
    Draining,
    Stopped,
}

impl Event<'_> {
    /// Counts the event and writes it.
    pub(crate) fn emit(self) {
        Metrics::of_process().note(&self);
        match self {
            Self::Listening {
                address,
                boot,
                ledger,
                entries,
            } => {
                info!(target: TARGET, event = "listening", %address, %boot, %ledger, entries);
            }
            Self::OperationsListening { address } => {
                info!(target: TARGET, event = "operations_listening", %address)
            }
            Self::Orphans {
                resumed,
                refunded,
                failed,
            } => info!(target: TARGET, event = "orphans", resumed, refunded, failed),
            Self::Attester { media_type } => info!(target: TARGET, event = "attester", media_type),
            Self::Sandbox { landlock_abi } => info!(target: TARGET, event = "sandbox", landlock_abi),
            Self::TrainerMemory { bytes } => info!(target: TARGET, event = "trainer_memory", bytes),
            Self::AcceptFailed => warn!(target: TARGET, event = "accept_failed"),
            Self::ConnectionRefused { address, why } => {
                warn!(target: TARGET, event = "connection_refused", %address, why)
            }
            Self::ConnectionAccepted { address, principal } => {
                info!(target: TARGET, event = "connection_accepted", %address, %principal);
            }
            Self::Attested { principal } => info!(target: TARGET, event = "attested", %principal),
            Self::CallRefused {
                flow,
                principal,
                reason,
            } => {
                info!(target: TARGET, event = "call_refused", flow, %principal, reason);
            }
            Self::CallFailed {
                flow,
                principal,
                reason,
                chain,
            } => {
                let chain = tidy(chain);
                error!(target: TARGET, event = "call_failed", flow, %principal, reason, chain);
            }
            Self::DatasetCreated { dataset, owner } => {
                info!(target: TARGET, event = "dataset_created", %dataset, %owner);
            }
            Self::DatasetWithdrawn { dataset, owner } => {
                info!(target: TARGET, event = "dataset_withdrawn", %dataset, %owner);
            }
            Self::DatasetRemoved { dataset, owner } => {
                info!(target: TARGET, event = "dataset_removed", %dataset, %owner);
            }
            Self::UploadDropped { owner } => info!(target: TARGET, event = "upload_dropped", %owner),
            Self::ModelHeld {
                model,
                principal,
                bytes,
            } => {
                info!(target: TARGET, event = "model_held", %model, %principal, bytes);
            }
            Self::Quoted { digest, principal } => {
                info!(target: TARGET, event = "quoted", %digest, %principal);
            }
            other => other.emit_run(),
        }
    }

    fn emit_run(self) {
        match self {
            Self::RunQueued { run, scientist } => {
                info!(target: TARGET, event = "run_queued", %run, %scientist);
            }
            Self::RunStarted { run } => info!(target: TARGET, event = "run_started", %run),
            Self::RunResumed { run, step } => info!(target: TARGET, event = "run_resumed", %run, step),
            Self::RunSuspended { run, by } => info!(target: TARGET, event = "run_suspended", %run, %by),
            Self::RunUnsuspended { run, by } => info!(target: TARGET, event = "run_unsuspended", %run, %by),
            Self::RunPaused { run } => info!(target: TARGET, event = "run_paused", %run),
            Self::NotResumed { run, chain } => warn!(target: TARGET, event = "run_not_resumed", %run, chain),
            Self::RunAdvanced { run, step } => info!(target: TARGET, event = "run_advanced", %run, step),
            Self::RunEnded { run, outcome, why } => {
                info!(target: TARGET, event = "run_ended", %run, outcome, why)
            }
            Self::TrainerStarted { run } => info!(target: TARGET, event = "trainer_started", %run),
            Self::TrainerLost { run, why } => warn!(target: TARGET, event = "trainer_lost", %run, why),
            Self::RunFault { run, chain } => {
                let chain = tidy(chain);
                error!(target: TARGET, event = "run_fault", %run, chain)
            }
            Self::Released { run, recipient } => {
                info!(target: TARGET, event = "released", %run, %recipient);
            }
            Self::Panicked { file, line } => error!(target: TARGET, event = "panicked", file, line),
            Self::NotHardened { what } => warn!(target: TARGET, event = "not_hardened", what),
            Self::Draining => info!(target: TARGET, event = "draining"),
            _ => info!(target: TARGET, event = "stopped"),
        }
    }
}

/// A chain of causes for one line. It is made of our own error types, which may name a node or a column, and those
/// names are a peer's: printable, and only so long.
fn tidy(chain: &str) -> String {
    let printable = |letter: char| letter == ' ' || letter.is_ascii_graphic();
    let cut = chain.chars().take(MAX_CHAIN_CHARACTERS);
    cut.map(|letter| if printable(letter) { letter } else { '?' })
        .collect()
}

const MAX_CHAIN_CHARACTERS: usize = 600;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const SOURCE: &str = include_str!("log.rs");

    fn vocabulary() -> &'static str {
        let start = SOURCE.find("pub(crate) enum Event<'a> {").unwrap();
        &SOURCE[start..start + SOURCE[start..].find("\n}\n").unwrap()]
    }

    /// A peer's words have no field to be in: ids, addresses, numbers and our own constants only. The two texts are
    /// the place of a panic and a chain of our own errors, which is tidied.
    #[test]
    fn no_event_has_a_field_for_free_text() {
        let allowed = ["SocketAddr", "Hex<'a>", "Principal", "u64", "u32", "&'static str"];
        let mut fields = 0;
        for line in vocabulary()
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with("///"))
        {
            let Some((name, kind)) = line.trim_end_matches(',').split_once(": ") else {
                continue;
            };
            fields += 1;
            let text = kind == "&'a str" && ["chain", "file"].contains(&name);
            assert!(text || allowed.contains(&kind), "{line}");
        }
        assert!(fields > 30, "{fields} fields were found");
    }

    #[test]
    fn a_chain_is_one_printable_line_of_bounded_length() {
        assert_eq!(
            tidy("node a\nb\u{1b}[2J\u{202e}: failed"),
            "node a?b?[2J?: failed"
        );
        assert_eq!(tidy(&"x".repeat(10_000)).len(), MAX_CHAIN_CHARACTERS);
    }

    /// docs/operation.md has a table of all events, by the names that are written.
    #[test]
    fn the_documented_list_of_events_is_complete() {
        let body = SOURCE.split("#[cfg(test)]").next().unwrap();
        let written: BTreeSet<&str> = body
            .split("event = \"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        let manual = include_str!("../../../docs/operation.md");
        let section = manual
            .split("## The log")
            .nth(1)
            .unwrap()
            .split("\n## ")
            .next()
            .unwrap();
        let documented: BTreeSet<&str> = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .collect();
        assert_eq!(written, documented);
    }
}
