//! The one error of the client: every variant is something the caller can act on.
//!
//! What a server says is shown as it is, but without control characters and cut to a sane length:
//! before appraisal the other end may be anybody, and messages end up in terminals.

use bastionai_attestation::{AppraisalError, ClaimsError, VerifyError};
use std::path::PathBuf;
use tonic::{Code, Status};

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Not `host:port`.
    #[error("`{address}` is not an address: write it as host:port, e.g. 127.0.0.1:7443")]
    Address {
        /// What was given.
        address: String,
    },
    /// Nobody answers there.
    #[error(
        "cannot reach the server at {address}: {source}; check the address and that `bastionai serve` runs there"
    )]
    Unreachable {
        /// Where.
        address: String,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// Somebody answers, who is no BastionAI server, or the link was cut in the handshake.
    #[error("no TLS session with the server at {address}: {source}; is it a BastionAI server?")]
    Tls {
        /// Where.
        address: String,
        /// What TLS says.
        source: std::io::Error,
    },
    /// The identity file cannot be used.
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
    /// The evidence is not authentic.
    #[error("the server's evidence is refused: {0}")]
    EvidenceRefused(#[from] VerifyError),
    /// The claims bound in the evidence cannot be read.
    #[error("the server's runtime claims are refused: {0}")]
    ClaimsRefused(#[from] ClaimsError),
    /// The evidence is authentic and not good enough, or not for this session.
    #[error("{0}")]
    AppraisalRefused(#[from] AppraisalError),
    /// Server and client have no protocol version in common.
    #[error("the server speaks protocol version {theirs}, this client {ours}; update the older one")]
    ProtocolVersion {
        /// This client's.
        ours: u32,
        /// The server's.
        theirs: u32,
    },
    /// The ledger went back or was replaced: rollback or fork (rule A1).
    #[error(transparent)]
    Rollback(#[from] crate::heads::RollbackError),
    /// The memory of ledger heads cannot be read or written.
    #[error(transparent)]
    HeadMemory(#[from] crate::heads::HeadMemoryError),
    /// The session is gone, and with it the appraisal (rule A3).
    #[error("session ended; connect and appraise again")]
    SessionEnded,
    /// No answer in time. The call may or may not have been done.
    #[error(
        "no answer from the server within {seconds} s to {call}; it may still have been done: look before asking again"
    )]
    TimedOut {
        /// The call.
        call: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// The caller interrupted.
    #[error("interrupted")]
    Interrupted,

    /// A row breaks the data contract. Nothing of its batch was sent. Holds no private value.
    #[error("column {column:?}{}: {reason}; mend or drop the row, or declare another contract", row.map(|row| format!(", row {row}")).unwrap_or_default())]
    RowRefused {
        /// Row of the dataset, from 0; `None` if a batch as a whole does not fit.
        row: Option<u64>,
        /// Column name.
        column: String,
        /// Which declared bound was crossed; never the value.
        reason: String,
    },
    /// What the caller asked for makes no sense, found before anything was sent.
    #[error("{0}")]
    Invalid(String),

    /// A budget does not cover the run.
    #[error("{0}")]
    BudgetExceeded(String),
    /// The price is no longer valid.
    #[error("{0}")]
    QuoteExpired(String),
    /// The name is in use.
    #[error("{0}")]
    NameTaken(String),
    /// A policy does not allow it.
    #[error("{0}")]
    NotAllowed(String),
    /// There is no such dataset, model or run, or not for this caller.
    #[error("{0}")]
    NotFound(String),
    /// The model's graph cannot be proven safe.
    #[error("{message}")]
    GraphRefused {
        /// In words.
        message: String,
        /// Every refusal, as `graph::Refusals` serialises; null if the server gave none.
        refusals: serde_json::Value,
    },
    /// A limit of the server or of a policy was met.
    #[error("{0}")]
    LimitExceeded(String),
    /// The server's queue of runs is full, or holds as many of this principal as it may. Nothing was charged.
    #[error("{0}")]
    QueueFull(String),
    /// The server is about to stop.
    #[error("the server is draining: {0}; connect again when it is back")]
    Draining(String),
    /// Any other refusal.
    #[error("the server refused {call} ({code}{}): {message}", reason.as_deref().map(|reason| format!(", {reason}")).unwrap_or_default())]
    ServerRefused {
        /// The call.
        call: &'static str,
        /// gRPC status code, e.g. `InvalidArgument`.
        code: String,
        /// Machine-readable reason, if given.
        reason: Option<String>,
        /// In words.
        message: String,
    },
    /// The server answered against the protocol.
    #[error("the server broke the protocol in {call}: {what}")]
    Protocol {
        /// The call.
        call: &'static str,
        /// What was wrong.
        what: String,
    },
    /// A receipt or the weights that came with it do not check out. Nothing was kept.
    #[error("the receipt of run {run} is refused: {what}")]
    ReceiptRefused {
        /// The run.
        run: String,
        /// What was wrong.
        what: String,
    },
    /// A local file could not be used.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The local TLS or HTTP machinery could not be set up.
    #[error("cannot set up the client: {0}")]
    Setup(String),
}

/// Metadata key of the server's machine-readable reason.
pub const REASON_METADATA: &str = "bastionai-reason";

impl ClientError {
    /// A short machine-readable name of the variant, for `--json` and exception types.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Address { .. } => "address",
            Self::Unreachable { .. } => "unreachable",
            Self::Tls { .. } => "tls",
            Self::Identity(_) => "identity",
            Self::EvidenceRefused(_) => "evidence-refused",
            Self::ClaimsRefused(_) => "claims-refused",
            Self::AppraisalRefused(_) => "appraisal-refused",
            Self::ProtocolVersion { .. } => "protocol-version",
            Self::Rollback(_) => "rollback",
            Self::HeadMemory(_) => "head-memory",
            Self::SessionEnded => "session-ended",
            Self::TimedOut { .. } => "timed-out",
            Self::Interrupted => "interrupted",
            Self::RowRefused { .. } => "row-refused",
            Self::Invalid(_) => "invalid",
            Self::BudgetExceeded(_) => "budget-exceeded",
            Self::QuoteExpired(_) => "quote-expired",
            Self::NameTaken(_) => "name-taken",
            Self::NotAllowed(_) => "not-allowed",
            Self::NotFound(_) => "not-found",
            Self::GraphRefused { .. } => "graph-refused",
            Self::LimitExceeded(_) => "limit-exceeded",
            Self::QueueFull(_) => "queue-full",
            Self::Draining(_) => "draining",
            Self::ServerRefused { .. } => "server-refused",
            Self::Protocol { .. } => "protocol",
            Self::ReceiptRefused { .. } => "receipt-refused",
            Self::File { .. } => "file",
            Self::Setup(_) => "setup",
        }
    }

    /// The server's machine-readable reason, where it gave one that has no variant of its own.
    pub fn server_reason(&self) -> Option<&str> {
        match self {
            Self::ServerRefused { reason, .. } => reason.as_deref(),
            _ => None,
        }
    }

    pub(crate) fn protocol(call: &'static str, what: impl Into<String>) -> Self {
        Self::Protocol {
            call,
            what: printable(&what.into()),
        }
    }

    /// An answer with a status other than OK. Transport failures are [`ClientError::SessionEnded`].
    pub(crate) fn from_status(call: &'static str, status: &Status) -> Self {
        if is_transport_failure(status) {
            return Self::SessionEnded;
        }
        let message = printable(status.message());
        let reason = status
            .metadata()
            .get(REASON_METADATA)
            .and_then(|value| value.to_str().ok())
            .map(printable);
        match (reason.as_deref(), status.code()) {
            (Some("budget-exceeded"), _) => Self::BudgetExceeded(message),
            (Some("quote-expired" | "quote-unknown"), _) => Self::QuoteExpired(message),
            (Some("name-taken"), _) | (None, Code::AlreadyExists) => Self::NameTaken(message),
            (Some("graph-refused"), _) => Self::GraphRefused {
                message,
                refusals: serde_json::from_slice(status.details()).unwrap_or_default(),
            },
            (Some("draining"), _) | (None, Code::Unavailable) => Self::Draining(message),
            (Some("queue-full"), _) => Self::QueueFull(message),
            (_, Code::PermissionDenied | Code::Unauthenticated) => Self::NotAllowed(message),
            (_, Code::NotFound) => Self::NotFound(message),
            (_, Code::ResourceExhausted) => Self::LimitExceeded(message),
            (None, Code::FailedPrecondition) if message.starts_with("budget exceeded:") => {
                Self::BudgetExceeded(message)
            }
            (None, Code::FailedPrecondition) if message.starts_with("quote expired:") => {
                Self::QuoteExpired(message)
            }
            _ => Self::ServerRefused {
                call,
                code: format!("{:?}", status.code()),
                reason,
                message,
            },
        }
    }
}

/// Statuses that came over the wire have no source; those made here from a broken link have.
pub(crate) fn is_transport_failure(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// Text of the other side, safe to print.
fn printable(text: &str) -> String {
    let keep = |c: &char| !c.is_control() || *c == '\n';
    let mut shown: String = text.chars().filter(keep).take(MAX_MESSAGE_CHARS).collect();
    if text.chars().filter(keep).nth(MAX_MESSAGE_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

const MAX_MESSAGE_CHARS: usize = 8_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: Code, message: &str, reason: Option<&'static str>) -> Status {
        let mut status = Status::new(code, message);
        if let Some(reason) = reason {
            status
                .metadata_mut()
                .insert(REASON_METADATA, reason.parse().unwrap());
        }
        status
    }

    #[test]
    fn reasons_decide_before_codes() {
        let cases = [
            (
                Code::FailedPrecondition,
                Some("budget-exceeded"),
                "budget-exceeded",
            ),
            (Code::FailedPrecondition, Some("quote-expired"), "quote-expired"),
            (Code::FailedPrecondition, Some("quote-unknown"), "quote-expired"),
            (
                Code::FailedPrecondition,
                Some("too-many-failures"),
                "server-refused",
            ),
            (Code::AlreadyExists, Some("name-taken"), "name-taken"),
            (Code::AlreadyExists, None, "name-taken"),
            (Code::PermissionDenied, Some("not-permitted"), "not-allowed"),
            (Code::NotFound, Some("unknown-run"), "not-found"),
            (
                Code::ResourceExhausted,
                Some("upload-too-large"),
                "limit-exceeded",
            ),
            (Code::Unavailable, Some("draining"), "draining"),
            (
                Code::InvalidArgument,
                Some("same-dataset-twice"),
                "server-refused",
            ),
            (Code::Internal, Some("failed"), "server-refused"),
        ];
        for (code, reason, kind) in cases {
            let error = ClientError::from_status("StartRun", &status(code, "because", reason));
            assert_eq!(error.kind(), kind, "{code:?} {reason:?}");
            assert!(error.to_string().contains("because"));
        }
    }

    #[test]
    fn messages_without_a_reason_follow_the_written_convention() {
        let error = ClientError::from_status(
            "StartRun",
            &status(Code::FailedPrecondition, "budget exceeded: by 1", None),
        );
        assert_eq!(error.kind(), "budget-exceeded");
    }

    #[test]
    fn refusals_of_a_graph_are_kept_as_json() {
        let mut refused = Status::with_details(
            Code::InvalidArgument,
            "2 refusals",
            br#"[{"node":"n"}]"#.to_vec().into(),
        );
        refused
            .metadata_mut()
            .insert(REASON_METADATA, "graph-refused".parse().unwrap());
        let ClientError::GraphRefused { refusals, .. } = ClientError::from_status("PriceRun", &refused)
        else {
            panic!()
        };
        assert_eq!(refusals[0]["node"], "n");
    }

    #[test]
    fn terminal_escapes_and_floods_from_the_server_are_not_printed() {
        let text = printable(&format!("\x1b[2J\u{9b}red{}", "x".repeat(1 << 20)));
        assert!(!text.contains('\x1b') && !text.contains('\u{9b}'));
        assert_eq!(text.chars().count(), MAX_MESSAGE_CHARS + 1);
    }
}
