//! Stops a run from outside, whether it waits in the queue (async) or runs (a blocking supervisor).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::sync::Notify;

/// Who stopped a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CancelledBy {
    /// Its scientist or an owner.
    Request,
    /// The server, to stop.
    Shutdown,
}

/// A switch that is thrown at most once; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancel(Arc<Switch>);

#[derive(Debug, Default)]
struct Switch {
    state: AtomicU8,
    thrown: Notify,
}

impl Cancel {
    /// Throws the switch; the first one to do so says why.
    pub(crate) fn cancel(&self, by: CancelledBy) {
        let code = match by {
            CancelledBy::Request => REQUEST,
            CancelledBy::Shutdown => SHUTDOWN,
        };
        // Losing the race means that it is cancelled already.
        let _ = self
            .0
            .state
            .compare_exchange(RUNNING, code, Ordering::AcqRel, Ordering::Acquire);
        self.0.thrown.notify_one();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.by().is_some()
    }

    pub(crate) fn by(&self) -> Option<CancelledBy> {
        match self.0.state.load(Ordering::Acquire) {
            REQUEST => Some(CancelledBy::Request),
            SHUTDOWN => Some(CancelledBy::Shutdown),
            _ => None,
        }
    }

    /// Waits until the switch is thrown. One waiter at a time.
    pub(crate) async fn cancelled(&self) {
        while !self.is_cancelled() {
            self.0.thrown.notified().await;
        }
    }
}

const RUNNING: u8 = 0;
const REQUEST: u8 = 1;
const SHUTDOWN: u8 = 2;
