//! Waiting for asynchronous work from Python: without the GIL, and with an ear for Ctrl-C.

use crate::errors::client_error;
use bastionai_client::ClientError;
use pyo3::prelude::*;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Waits for `work`; every 50 ms Python's signal handlers get their turn.
///
/// # Errors
/// The work's error as an exception, or what a signal handler raised: the work is then dropped.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    runtime: &Runtime,
    work: impl Future<Output = Result<T, ClientError>> + Send,
) -> PyResult<T> {
    let mut work = pin!(work);
    loop {
        let outcome = py.detach(|| {
            let turn = async { tokio::time::timeout(SIGNAL_INTERVAL, work.as_mut()).await };
            runtime.block_on(turn)
        });
        match outcome {
            Ok(result) => return result.map_err(|error| client_error(py, &error)),
            Err(_) => py.check_signals()?,
        }
    }
}

/// How long Ctrl-C may go unnoticed.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);
