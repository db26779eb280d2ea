//! The log's whole vocabulary. An `Event` holds ids, counts and public values only: there is no way to put
//! a record, a gradient, a key or a model's tensor into one (rules G4, G5, D7). Only this module's target is
//! ever written, so a dependency cannot log what passes through it.

use bastionai_ledger::Principal;
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

/// Writes the server's events to stderr; does nothing when the program already has a subscriber.
pub fn init(format: Format) {
    let only_ours = Targets::new().with_target(TARGET, LevelFilter::INFO);
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
    Orphans {
        refunded: u64,
        failed: u64,
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
    RunAdvanced {
        run: Hex<'a>,
        step: u64,
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
    /// Writes the event.
    pub(crate) fn emit(self) {
        match self {
            Self::Listening {
                address,
                boot,
                ledger,
                entries,
            } => {
                info!(target: TARGET, event = "listening", %address, %boot, %ledger, entries);
            }
            Self::Orphans { refunded, failed } => info!(target: TARGET, event = "orphans", refunded, failed),
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
                error!(target: TARGET, event = "call_failed", flow, %principal, reason, chain);
            }
            Self::DatasetCreated { dataset, owner } => {
                info!(target: TARGET, event = "dataset_created", %dataset, %owner);
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
            Self::RunAdvanced { run, step } => info!(target: TARGET, event = "run_advanced", %run, step),
            Self::RunEnded { run, outcome, why } => {
                info!(target: TARGET, event = "run_ended", %run, outcome, why)
            }
            Self::RunFault { run, chain } => error!(target: TARGET, event = "run_fault", %run, chain),
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
