//! Wire messages are parsed once, here and in the verbs' files, into types that cannot be malformed.

use crate::errors::ClientError;
use bastionai_ledger::amount::{Amount, Delta, Epsilon};
use bastionai_ledger::id::{DatasetId, Digest32, Principal, RunId};
use std::fmt::Display;
use std::str::FromStr;

/// A field of exactly `N` bytes.
pub(crate) fn array<const N: usize>(
    call: &'static str,
    field: &str,
    bytes: &[u8],
) -> Result<[u8; N], ClientError> {
    bytes.try_into().map_err(|_| {
        ClientError::protocol(call, format!("{field} has {} bytes, {N} are needed", bytes.len()))
    })
}

pub(crate) fn digest(call: &'static str, field: &str, bytes: &[u8]) -> Result<Digest32, ClientError> {
    array(call, field, bytes).map(Digest32::from_bytes)
}

pub(crate) fn principal(call: &'static str, bytes: &[u8]) -> Result<Principal, ClientError> {
    array(call, "a principal", bytes).map(Principal::from_bytes)
}

pub(crate) fn dataset_id(call: &'static str, bytes: &[u8]) -> Result<DatasetId, ClientError> {
    array(call, "a dataset id", bytes).map(DatasetId::from_bytes)
}

pub(crate) fn run_id(call: &'static str, bytes: &[u8]) -> Result<RunId, ClientError> {
    array(call, "a run id", bytes).map(RunId::from_bytes)
}

/// Exact decimals of ε and δ.
pub(crate) fn amount(call: &'static str, epsilon: &str, delta: &str) -> Result<Amount, ClientError> {
    let epsilon: Epsilon = epsilon
        .parse()
        .map_err(|e| ClientError::protocol(call, format!("epsilon: {e}")))?;
    let delta: Delta = delta
        .parse()
        .map_err(|e| ClientError::protocol(call, format!("delta: {e}")))?;
    Ok(Amount::new(epsilon, delta))
}

/// An exact decimal: an ε, an order, a divergence.
pub(crate) fn number<T: FromStr<Err: Display>>(call: &'static str, text: &str) -> Result<T, ClientError> {
    text.parse()
        .map_err(|error| ClientError::protocol(call, format!("{error}")))
}

/// A message that must be there.
pub(crate) fn required<T>(call: &'static str, field: &str, value: Option<T>) -> Result<T, ClientError> {
    value.ok_or_else(|| ClientError::protocol(call, format!("{field} is missing")))
}

/// A message that says of itself what it means, or why it means nothing.
pub(crate) fn meant<W, T>(call: &'static str, wire: W) -> Result<T, ClientError>
where
    T: TryFrom<W, Error: std::fmt::Display>,
{
    T::try_from(wire).map_err(|error| ClientError::protocol(call, error.to_string()))
}

/// Every element parsed, or the first error.
pub(crate) fn all<T, U>(
    call: &'static str,
    items: impl IntoIterator<Item = T>,
    parse: impl Fn(&'static str, T) -> Result<U, ClientError>,
) -> Result<Vec<U>, ClientError> {
    items.into_iter().map(|item| parse(call, item)).collect()
}
