//! Rust errors → the exceptions of `bastionai.exceptions`, which is where they are defined.

use bastionai_client::ClientError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyType};

/// An exception of `bastionai.exceptions` with this message.
pub(crate) fn exception(py: Python<'_>, class: &str, message: impl std::fmt::Display) -> PyErr {
    raise(py, class, |class| class.call1((message.to_string(),)))
}

/// A `RowError` with its row and column.
pub(crate) fn row_error(py: Python<'_>, message: String, row: Option<u64>, column: &str) -> PyErr {
    raise(py, "RowError", |class| class.call1((message, row, column)))
}

/// A `ModelRefused` with its refusals, as `graph::Refusals` serialises them.
pub(crate) fn model_refused(py: Python<'_>, message: &str, refusals: &serde_json::Value) -> PyErr {
    raise(py, "ModelRefused", |class| {
        class.call1((message, refusal_list(py, refusals)?))
    })
}

/// The one place where a client's error becomes an exception.
pub(crate) fn client_error(py: Python<'_>, error: &ClientError) -> PyErr {
    let class = match error {
        ClientError::RowRefused { row, column, .. } => return row_error(py, error.to_string(), *row, column),
        ClientError::GraphRefused { message, refusals } => return model_refused(py, message, refusals),
        ClientError::Address { .. } | ClientError::Invalid(_) => "InvalidRequest",
        ClientError::QuoteExpired(_) => "QuoteExpired",
        ClientError::Identity(_) | ClientError::File { .. } | ClientError::Setup(_) => "InvalidRequest",
        ClientError::Unreachable { .. } | ClientError::Tls { .. } | ClientError::SessionEnded => {
            "ConnectionFailed"
        }
        ClientError::TimedOut { .. } => "CallTimedOut",
        ClientError::Interrupted => "ConnectionFailed",
        ClientError::EvidenceRefused(_) | ClientError::ClaimsRefused(_) => "AttestationError",
        ClientError::AppraisalRefused(_) => "AttestationError",
        ClientError::ProtocolVersion { .. } => "ProtocolMismatch",
        ClientError::Protocol { .. } => "ServerFailure",
        ClientError::Rollback(_) | ClientError::HeadMemory(_) => "LedgerError",
        ClientError::BudgetExceeded(_) => "BudgetExceeded",
        ClientError::NameTaken(_) => "AlreadyExists",
        ClientError::NotAllowed(_) => "PermissionRefused",
        ClientError::NotFound(_) => "NotFound",
        ClientError::QueueFull(_) => "QueueFull",
        ClientError::LimitExceeded(_) => "ServerBusy",
        ClientError::Draining(_) => "ServerDraining",
        ClientError::ReceiptRefused { .. } => "ReceiptError",
        ClientError::ServerRefused {
            reason: Some(reason), ..
        } => class_of_reason(reason),
        ClientError::ServerRefused { code, .. } if code == "Internal" || code == "Unknown" => "ServerFailure",
        ClientError::ServerRefused { .. } => "InvalidRequest",
        _ => "BastionError",
    };
    exception(py, class, error)
}

/// The exception of each reason a server gives (docs/protocol.md). Those that have a variant of `ClientError`
/// get the same class there; a reason of a later server is an `InvalidRequest` that says what it is.
fn class_of_reason(reason: &str) -> &'static str {
    REASONS
        .iter()
        .find(|(known, _)| *known == reason)
        .map_or("InvalidRequest", |(_, class)| class)
}

/// For the test that no reason is forgotten.
#[pyfunction]
pub(crate) fn exceptions_by_reason() -> Vec<(&'static str, &'static str)> {
    REASONS.to_vec()
}

const REASONS: &[(&str, &str)] = &[
    ("malformed", "InvalidRequest"),
    ("protocol-version", "ProtocolMismatch"),
    ("not-attested", "AttestationError"),
    ("contract-invalid", "ContractError"),
    ("policy-invalid", "PolicyError"),
    ("outside-contract", "RowError"),
    ("upload-incomplete", "UploadBroken"),
    ("upload-too-large", "ServerBusy"),
    ("upload-idle", "UploadBroken"),
    ("too-many-uploads", "ServerBusy"),
    ("name-taken", "AlreadyExists"),
    ("model-too-large", "ServerBusy"),
    ("model-digest", "UploadBroken"),
    ("archive-invalid", "ModelRefused"),
    ("graph-refused", "ModelRefused"),
    ("run-spec-invalid", "InvalidRequest"),
    ("weights-mismatch", "InvalidRequest"),
    ("same-dataset-twice", "InvalidRequest"),
    ("incompatible-datasets", "ContractError"),
    ("unpriceable", "InvalidRequest"),
    ("too-many-prices", "ServerBusy"),
    ("budget-exceeded", "BudgetExceeded"),
    ("quote-unknown", "QuoteExpired"),
    ("quote-expired", "QuoteExpired"),
    ("queue-full", "QueueFull"),
    ("too-many-starts", "ServerBusy"),
    ("too-many-failures", "TooManyFailures"),
    ("dataset-in-use", "DatasetInUse"),
    ("not-permitted", "PermissionRefused"),
    ("policy-expired", "PermissionRefused"),
    ("unknown-dataset", "NotFound"),
    ("unknown-model", "NotFound"),
    ("unknown-run", "NotFound"),
    ("not-releasable", "NotReleasable"),
    ("draining", "ServerDraining"),
    ("storage-full", "ServerBusy"),
    ("storage-quota", "ServerBusy"),
    ("failed", "ServerFailure"),
];

fn refusal_list<'py>(py: Python<'py>, refusals: &serde_json::Value) -> PyResult<Bound<'py, PyList>> {
    let class = class_of(py, "Refusal")?;
    let list = PyList::empty(py);
    let items = refusals.get("refusals").unwrap_or(refusals);
    for refusal in items.as_array().into_iter().flatten() {
        let text = |key: &str| refusal.get(key).and_then(serde_json::Value::as_str);
        let required = |key: &str| text(key).unwrap_or_default();
        list.append(class.call1((
            required("node"),
            required("operator"),
            text("source"),
            text("rule"),
            required("reason"),
            required("remedy"),
        ))?)?;
    }
    Ok(list)
}

fn raise<'py>(
    py: Python<'py>,
    class: &str,
    make: impl FnOnce(Bound<'py, PyType>) -> PyResult<Bound<'py, PyAny>>,
) -> PyErr {
    match class_of(py, class).and_then(make) {
        Ok(value) => PyErr::from_value(value),
        Err(error) => error,
    }
}

fn class_of<'py>(py: Python<'py>, class: &str) -> PyResult<Bound<'py, PyType>> {
    Ok(py
        .import("bastionai.exceptions")?
        .getattr(class)?
        .cast_into::<PyType>()?)
}
