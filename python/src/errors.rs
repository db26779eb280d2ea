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
        ClientError::Address { .. } | ClientError::Invalid(_) | ClientError::QuoteExpired(_) => {
            "InvalidRequest"
        }
        ClientError::Identity(_) | ClientError::File { .. } | ClientError::Setup(_) => "InvalidRequest",
        ClientError::Unreachable { .. } | ClientError::Tls { .. } | ClientError::SessionEnded => {
            "ConnectionFailed"
        }
        ClientError::TimedOut { .. } | ClientError::Interrupted => "ConnectionFailed",
        ClientError::EvidenceRefused(_) | ClientError::ClaimsRefused(_) => "AttestationError",
        ClientError::AppraisalRefused(_) => "AttestationError",
        ClientError::ProtocolVersion { .. } | ClientError::Protocol { .. } => "ServerFailure",
        ClientError::Rollback(_) | ClientError::HeadMemory(_) => "LedgerError",
        ClientError::BudgetExceeded(_) => "BudgetExceeded",
        ClientError::NameTaken(_) => "AlreadyExists",
        ClientError::NotAllowed(_) => "PermissionRefused",
        ClientError::NotFound(_) => "NotFound",
        ClientError::LimitExceeded(_) | ClientError::Draining(_) => "ServerBusy",
        ClientError::ReceiptRefused { .. } => "ReceiptError",
        ClientError::ServerRefused { code, .. } if code == "Internal" || code == "Unknown" => "ServerFailure",
        ClientError::ServerRefused { .. } => "InvalidRequest",
        _ => "BastionError",
    };
    exception(py, class, error)
}

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
