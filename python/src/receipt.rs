//! Receipts, checked offline.

use crate::errors::exception;
use bastionai_ledger::id::LedgerPublicKey;
use bastionai_ledger::receipt::Receipt;
use pyo3::prelude::*;

/// Checks a receipt's signature and content against a ledger key (hex).
#[pyfunction]
pub(crate) fn verify_receipt(py: Python<'_>, envelope: &[u8], ledger_key: &str) -> PyResult<()> {
    let malformed = || {
        exception(
            py,
            "ReceiptError",
            format!("{ledger_key:?} is no ledger key: expected 64 hex digits"),
        )
    };
    let key: [u8; 32] = hex::decode(ledger_key)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(malformed)?;
    Receipt::verify_offline(envelope, &LedgerPublicKey::from_bytes(key))
        .map(drop)
        .map_err(|error| exception(py, "ReceiptError", error))
}
