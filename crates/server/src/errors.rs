//! The one place where errors become gRPC answers: a status code, a short message for the caller, a machine
//! reason in the `bastionai-reason` metadata. The full chain of causes goes to the log only. Neither carries
//! records, gradients, keys or counts that depend on data (rule G4).

use bastionai_ledger::Refusal;
use bastionai_vault::{CommitError, ReadError, ReleaseError, StorageError, TransactError, UploadError};
use std::error::Error;
use std::fmt::Write as _;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// Metadata key of the machine-readable reason.
pub(crate) const REASON_METADATA: &str = "bastionai-reason";

/// Longest message that leaves.
const MAX_MESSAGE_CHARACTERS: usize = 8_000;

/// Why a call was not done, for machines. Together with the message this is all a caller learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Malformed,
    ProtocolVersion,
    NotAttested,
    ContractInvalid,
    PolicyInvalid,
    OutsideContract,
    UploadIncomplete,
    UploadTooLarge,
    UploadIdle,
    TooManyUploads,
    NameTaken,
    ModelTooLarge,
    ModelDigest,
    ArchiveInvalid,
    GraphRefused,
    RunSpecInvalid,
    SameDatasetTwice,
    IncompatibleDatasets,
    Unpriceable,
    TooManyPrices,
    BudgetExceeded,
    QuoteUnknown,
    QuoteExpired,
    QueueFull,
    TooManyStarts,
    TooManyFailures,
    DatasetInUse,
    NotPermitted,
    PolicyExpired,
    UnknownDataset,
    UnknownModel,
    UnknownRun,
    NotReleasable,
    WeightsMismatch,
    Draining,
    StorageFull,
    StorageQuota,
    Failed,
}

impl Reason {
    /// Kebab-case name and status code.
    pub(crate) const fn table(self) -> (&'static str, Code) {
        match self {
            Self::Malformed => ("malformed", Code::InvalidArgument),
            Self::ProtocolVersion => ("protocol-version", Code::FailedPrecondition),
            Self::NotAttested => ("not-attested", Code::FailedPrecondition),
            Self::ContractInvalid => ("contract-invalid", Code::InvalidArgument),
            Self::PolicyInvalid => ("policy-invalid", Code::InvalidArgument),
            Self::OutsideContract => ("outside-contract", Code::InvalidArgument),
            Self::UploadIncomplete => ("upload-incomplete", Code::InvalidArgument),
            Self::UploadTooLarge => ("upload-too-large", Code::ResourceExhausted),
            Self::UploadIdle => ("upload-idle", Code::DeadlineExceeded),
            Self::TooManyUploads => ("too-many-uploads", Code::ResourceExhausted),
            Self::NameTaken => ("name-taken", Code::AlreadyExists),
            Self::ModelTooLarge => ("model-too-large", Code::ResourceExhausted),
            Self::ModelDigest => ("model-digest", Code::InvalidArgument),
            Self::ArchiveInvalid => ("archive-invalid", Code::InvalidArgument),
            Self::GraphRefused => ("graph-refused", Code::InvalidArgument),
            Self::RunSpecInvalid => ("run-spec-invalid", Code::InvalidArgument),
            Self::SameDatasetTwice => ("same-dataset-twice", Code::InvalidArgument),
            Self::IncompatibleDatasets => ("incompatible-datasets", Code::InvalidArgument),
            Self::Unpriceable => ("unpriceable", Code::InvalidArgument),
            Self::TooManyPrices => ("too-many-prices", Code::ResourceExhausted),
            Self::BudgetExceeded => ("budget-exceeded", Code::FailedPrecondition),
            Self::QuoteUnknown => ("quote-unknown", Code::FailedPrecondition),
            Self::QuoteExpired => ("quote-expired", Code::FailedPrecondition),
            Self::QueueFull => ("queue-full", Code::ResourceExhausted),
            Self::TooManyStarts => ("too-many-starts", Code::ResourceExhausted),
            Self::TooManyFailures => ("too-many-failures", Code::FailedPrecondition),
            Self::DatasetInUse => ("dataset-in-use", Code::FailedPrecondition),
            Self::NotPermitted => ("not-permitted", Code::PermissionDenied),
            Self::PolicyExpired => ("policy-expired", Code::PermissionDenied),
            Self::UnknownDataset => ("unknown-dataset", Code::NotFound),
            Self::UnknownModel => ("unknown-model", Code::NotFound),
            Self::UnknownRun => ("unknown-run", Code::NotFound),
            Self::NotReleasable => ("not-releasable", Code::FailedPrecondition),
            Self::WeightsMismatch => ("weights-mismatch", Code::InvalidArgument),
            Self::Draining => ("draining", Code::Unavailable),
            Self::StorageFull => ("storage-full", Code::ResourceExhausted),
            Self::StorageQuota => ("storage-quota", Code::ResourceExhausted),
            Self::Failed => ("failed", Code::Internal),
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        self.table().0
    }
}

/// A call that was not done.
#[derive(Debug)]
pub(crate) struct Failure {
    /// For machines.
    pub(crate) reason: Reason,
    message: String,
    details: Vec<u8>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    /// A refusal in words: what, where, what to do. `message` goes to the caller as it is.
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            details: Vec::new(),
            source: None,
        }
    }

    /// Bad input, described by an error type that speaks of the caller's own input only.
    pub(crate) fn of(reason: Reason, error: impl Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            let text = next.to_string();
            if !message.contains(&text) {
                let _ = write!(message, ": {text}");
            }
            cause = next.source();
        }
        Self::new(reason, message)
    }

    /// A fault of ours: the caller hears `failed`, the log the whole chain.
    pub(crate) fn internal(error: impl Error + Send + Sync + 'static) -> Self {
        let message = "failed; the server's log says why".to_owned();
        Self {
            reason: Reason::Failed,
            message,
            details: Vec::new(),
            source: Some(Box::new(error)),
        }
    }

    /// Adds a machine-readable body to the status.
    pub(crate) fn with_details(mut self, details: Vec<u8>) -> Self {
        self.details = details;
        self
    }

    /// Adds the cause, for the log.
    pub(crate) fn caused_by(mut self, error: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(error));
        self
    }

    /// The chain of causes, for the log only.
    pub(crate) fn chain(&self) -> Option<String> {
        let source = self.source.as_deref()?;
        Some(chain(source))
    }

    /// Bad request.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(Reason::Malformed, message)
    }
}

/// A task panicked. What tokio's error would add, the panic's message, may quote data (rule G4).
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("panicked")]
pub(crate) struct Panicked;

/// An error and its causes in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let _ = write!(text, ": {next}");
        cause = next.source();
    }
    text
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let (name, code) = failure.reason.table();
        // Status and details travel in headers, which peers bound.
        let message: String = failure.message.chars().take(MAX_MESSAGE_CHARACTERS).collect();
        let mut status = if failure.details.is_empty() {
            Status::new(code, message)
        } else {
            Status::with_details(code, message, failure.details.into())
        };
        status
            .metadata_mut()
            .insert(REASON_METADATA, MetadataValue::from_static(name));
        status
    }
}

impl Failure {
    /// An upload's stream broke: the client is gone, or a message was malformed or too long.
    pub(crate) fn broken_upload(status: &Status, message_bytes: u64) -> Self {
        if status.code() == Code::OutOfRange {
            let message = format!(
                "a message is longer than {message_bytes} bytes; send smaller batches. Nothing was kept"
            );
            return Self::new(Reason::UploadTooLarge, message);
        }
        Self::new(
            Reason::UploadIncomplete,
            "the upload broke off; nothing of it was kept",
        )
    }
}

/// Refusals of the ledger name datasets, principals and budgets: all of them public to the caller.
impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let reason = match &refusal {
            Refusal::BudgetExceeded { .. } | Refusal::RenyiExceeded { .. } => {
                return Self::new(
                    Reason::BudgetExceeded,
                    format!("budget exceeded: {refusal}; nothing was charged"),
                );
            }
            Refusal::NameTaken { .. } => Reason::NameTaken,
            Refusal::BadName => Reason::Malformed,
            Refusal::Policy(_) => Reason::PolicyInvalid,
            Refusal::ContractLength | Refusal::ZeroSize => Reason::ContractInvalid,
            Refusal::NoDataset { .. } => Reason::UnknownDataset,
            Refusal::NoRun { .. } => Reason::UnknownRun,
            Refusal::NotOwner { .. }
            | Refusal::Withdrawn { .. }
            | Refusal::Removed { .. }
            | Refusal::MayNotTrain { .. }
            | Refusal::EvaluationOnly { .. }
            | Refusal::NoiseMode { .. }
            | Refusal::MayNotEvaluate { .. }
            | Refusal::MayNotReceive { .. } => Reason::NotPermitted,
            Refusal::InUse { .. } => Reason::DatasetInUse,
            Refusal::Expired { .. } => Reason::PolicyExpired,
            Refusal::TooManyStarts { .. } => Reason::TooManyStarts,
            Refusal::TooManyFailures { .. } => Reason::TooManyFailures,
            Refusal::DatasetCount { .. } | Refusal::EvaluationSteps { .. } => Reason::RunSpecInvalid,
            Refusal::DatasetTwice { .. } => Reason::SameDatasetTwice,
            Refusal::NotLender { .. } | Refusal::Suspension { .. } => Reason::NotPermitted,
            Refusal::RunStatus { .. } => Reason::NotReleasable,
            // The others speak of entries that only this server makes: a fault of ours.
            _ => return Self::internal(refusal),
        };
        Self::of(reason, refusal)
    }
}

/// A full disk is worth telling apart: it is nobody's fault and passes.
impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        if is_storage_full(&error) {
            let message =
                "the server's storage is full or failed; nothing of this call was kept; tell its operator";
            return Self::new(Reason::StorageFull, message).caused_by(error);
        }
        Self::internal(error)
    }
}

fn is_storage_full(error: &StorageError) -> bool {
    match error {
        // After a failed write the vault refuses further ones until it is opened again.
        StorageError::Database(_) | StorageError::Poisoned => true,
        StorageError::Blocks { source, .. } => matches!(
            source.kind(),
            std::io::ErrorKind::StorageFull
                | std::io::ErrorKind::QuotaExceeded
                | std::io::ErrorKind::FileTooLarge
        ),
        _ => false,
    }
}

impl From<TransactError> for Failure {
    fn from(error: TransactError) -> Self {
        match error {
            TransactError::Refused(refusal) => refusal.into(),
            TransactError::Storage(error) => error.into(),
            other => Self::internal(other),
        }
    }
}

impl From<UploadError> for Failure {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Refused(refusal) => refusal.into(),
            UploadError::Storage(error) => error.into(),
            UploadError::RowCount { .. } => Self::of(Reason::UploadIncomplete, error),
            UploadError::TooManyRows { .. } => Self::of(Reason::UploadTooLarge, error),
            other => Self::of(Reason::ContractInvalid, other),
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Storage(error) => error.into(),
            ReadError::NoDataset { .. } => Self::of(Reason::UnknownDataset, error),
            ReadError::NoWeights { .. } | ReadError::NotKept { .. } => Self::of(Reason::NotReleasable, error),
            other => Self::internal(other),
        }
    }
}

impl From<ReleaseError> for Failure {
    fn from(error: ReleaseError) -> Self {
        match error {
            ReleaseError::Read(error) => error.into(),
            ReleaseError::Transact(error) => error.into(),
            other => Self::internal(other),
        }
    }
}

impl From<CommitError> for Failure {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Transact(error) => error.into(),
            other => Self::internal(other),
        }
    }
}
