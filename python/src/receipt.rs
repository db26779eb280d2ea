//! Receipts, checked offline.

use crate::errors::{client_error, exception};
use crate::policy::appraisal_policy;
use bastionai_client::audit_receipt;
use bastionai_client::blocking::now_unix_ms;
use bastionai_ledger::id::LedgerPublicKey;
use pyo3::prelude::*;

/// Checks a receipt's signature, evidence and prices, under a policy (`None`: the development attester,
/// accepted by name; the flags are accepted besides) and, if given, against a ledger key (hex).
#[pyfunction]
#[pyo3(signature = (envelope, policy_json, ledger_key, allowed_insecure_flags))]
pub(crate) fn verify_receipt(
    py: Python<'_>,
    envelope: &[u8],
    policy_json: Option<&str>,
    ledger_key: Option<&str>,
    allowed_insecure_flags: Vec<String>,
) -> PyResult<()> {
    let policy = appraisal_policy(policy_json, allowed_insecure_flags)
        .map_err(|what| exception(py, "InvalidRequest", what))?;
    let expected = ledger_key.map(|text| key(py, text)).transpose()?;
    // Prices take the accountant seconds.
    let audited = py.detach(|| audit_receipt(envelope, &policy, now_unix_ms()?));
    let audited = audited.map_err(|error| client_error(py, &error))?;
    let signer = audited.receipt().issuer.ledger_key;
    if expected.is_some_and(|expected| expected != signer) {
        let what = format!("the receipt is signed by ledger key {signer}, not by the one expected");
        return Err(exception(py, "ReceiptError", what));
    }
    Ok(())
}

fn key(py: Python<'_>, text: &str) -> PyResult<LedgerPublicKey> {
    let bytes: Option<[u8; 32]> = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.map(LedgerPublicKey::from_bytes).ok_or_else(|| {
        let what = format!("{text:?} is no ledger key: expected 64 hex digits");
        exception(py, "ReceiptError", what)
    })
}
