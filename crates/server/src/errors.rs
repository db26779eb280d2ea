//! The one place where errors become gRPC answers: a status code, a short message for the caller, a machine
//! reason in the `bastionai-reason` metadata. The full chain of causes goes to the log only. Neither carries
//! records, gradients, keys or counts that depend on data (rule G4).

use std::error::Error;
use std::fmt::Write as _;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// Metadata key of the machine-readable reason.
pub(crate) const REASON_METADATA: &str = "bastionai-reason";

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
    NotPermitted,
    PolicyExpired,
    UnknownDataset,
    UnknownModel,
    UnknownRun,
    NotReleasable,
    KnownHead,
    Draining,
    StorageFull,
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
            Self::NotPermitted => ("not-permitted", Code::PermissionDenied),
            Self::PolicyExpired => ("policy-expired", Code::PermissionDenied),
            Self::UnknownDataset => ("unknown-dataset", Code::NotFound),
            Self::UnknownModel => ("unknown-model", Code::NotFound),
            Self::UnknownRun => ("unknown-run", Code::NotFound),
            Self::NotReleasable => ("not-releasable", Code::FailedPrecondition),
            Self::KnownHead => ("known-head", Code::FailedPrecondition),
            Self::Draining => ("draining", Code::Unavailable),
            Self::StorageFull => ("storage-full", Code::ResourceExhausted),
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
        Self { reason, message: message.into(), details: Vec::new(), source: None }
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
        Self { reason: Reason::Failed, message, details: Vec::new(), source: Some(Box::new(error)) }
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
        let mut status = if failure.details.is_empty() {
            Status::new(code, failure.message)
        } else {
            Status::with_details(code, failure.message, failure.details.into())
        };
        status.metadata_mut().insert(REASON_METADATA, MetadataValue::from_static(name));
        status
    }
}
