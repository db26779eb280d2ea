//! Stops a run from outside: cancelled for good, suspended by an owner, or paused because the server drains.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Why a run shall stop. A later one in this order overrules an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StopWhy {
    /// The server stops: a checkpoint, then pause; the next boot goes on.
    Drain,
    /// An owner suspended it: pause at once, nothing more is released.
    Suspend,
    /// Its scientist or an owner cancelled it: the end, charged if it had started (rule D5).
    Cancel,
}

/// A switch; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicU8>);

impl Stop {
    /// Throws the switch, or throws it further.
    pub(crate) fn stop(&self, why: StopWhy) {
        let code = match why {
            StopWhy::Drain => DRAIN,
            StopWhy::Suspend => SUSPEND,
            StopWhy::Cancel => CANCEL,
        };
        self.0.fetch_max(code, Ordering::AcqRel);
    }

    /// Ready for another start.
    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::Release);
    }

    pub(crate) fn why(&self) -> Option<StopWhy> {
        match self.0.load(Ordering::Acquire) {
            DRAIN => Some(StopWhy::Drain),
            SUSPEND => Some(StopWhy::Suspend),
            CANCEL => Some(StopWhy::Cancel),
            _ => None,
        }
    }
}

const DRAIN: u8 = 1;
const SUSPEND: u8 = 2;
const CANCEL: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stronger_reason_stays_whichever_came_first() {
        let stop = Stop::default();
        assert_eq!(stop.why(), None);
        for (why, expected) in [
            (StopWhy::Suspend, StopWhy::Suspend),
            (StopWhy::Drain, StopWhy::Suspend),
            (StopWhy::Cancel, StopWhy::Cancel),
            (StopWhy::Suspend, StopWhy::Cancel),
        ] {
            stop.stop(why);
            assert_eq!(stop.why(), Some(expected));
        }
        stop.reset();
        assert_eq!(stop.why(), None);
    }
}
