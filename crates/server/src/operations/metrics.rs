//! What is counted while the server works. Counters are this process's, as Prometheus' are; each is fed by the one
//! place where all events pass, [`crate::log::Event::emit`], or by the layer around all calls.
//!
//! Nothing here depends on a record: no rows, no bytes of an upload, no loss, no duration of an upload, a step or a
//! run, nothing per principal, dataset or run (rules G4, G6, T5).

use crate::log::Event;
use bastionai_wire::CALLS;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// All counters.
pub(crate) struct Metrics {
    pub(crate) sessions_open: AtomicI64,
    pub(crate) sessions_accepted: AtomicU64,
    pub(crate) sessions_refused: AtomicU64,
    pub(crate) trainers_started: AtomicU64,
    pub(crate) trainers_lost: AtomicU64,
    pub(crate) runs_ended: [AtomicU64; 3],
    pub(crate) panics: AtomicU64,
    /// In the order of [`CALLS`], and one more for paths that are no call.
    pub(crate) calls: [CallMetrics; CALLS.len() + 1],
}

/// Labels of [`Metrics::runs_ended`].
pub(crate) const RUN_OUTCOMES: [&str; 3] = ["succeeded", "failed", "cancelled"];
/// Labels of [`CallMetrics::outcomes`].
pub(crate) const CALL_OUTCOMES: [&str; 3] = ["ok", "refused", "failed"];
/// Upper bounds of the duration buckets, in seconds; one more has no bound.
pub(crate) const BUCKETS: [f64; 8] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0];

/// Of one call.
pub(crate) struct CallMetrics {
    pub(crate) outcomes: [AtomicU64; 3],
    /// How many took at most each of [`BUCKETS`] and more than the one before.
    pub(crate) durations: [AtomicU64; BUCKETS.len() + 1],
    pub(crate) duration_micros: AtomicU64,
}

impl CallMetrics {
    const fn new() -> Self {
        Self {
            outcomes: [const { AtomicU64::new(0) }; 3],
            durations: [const { AtomicU64::new(0) }; BUCKETS.len() + 1],
            duration_micros: AtomicU64::new(0),
        }
    }

    /// Counts one call; `took` only where the time says nothing about data.
    pub(crate) fn count(&self, outcome: usize, took: Option<Duration>) {
        add_one(&self.outcomes[outcome]);
        let Some(took) = took else { return };
        let bucket = BUCKETS.iter().position(|&most| took.as_secs_f64() <= most);
        add_one(&self.durations[bucket.unwrap_or(BUCKETS.len())]);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.duration_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

static METRICS: Metrics = Metrics {
    sessions_open: AtomicI64::new(0),
    sessions_accepted: AtomicU64::new(0),
    sessions_refused: AtomicU64::new(0),
    trainers_started: AtomicU64::new(0),
    trainers_lost: AtomicU64::new(0),
    runs_ended: [const { AtomicU64::new(0) }; 3],
    panics: AtomicU64::new(0),
    calls: [const { CallMetrics::new() }; CALLS.len() + 1],
};

impl Metrics {
    /// This process's.
    pub(crate) fn of_process() -> &'static Self {
        &METRICS
    }

    /// Counts what an event tells.
    pub(crate) fn note(&self, event: &Event<'_>) {
        match event {
            Event::ConnectionAccepted { .. } => add_one(&self.sessions_accepted),
            Event::ConnectionRefused { .. } => add_one(&self.sessions_refused),
            Event::TrainerStarted { .. } => add_one(&self.trainers_started),
            Event::TrainerLost { .. } => add_one(&self.trainers_lost),
            Event::RunEnded { outcome, .. } => {
                if let Some(index) = RUN_OUTCOMES.iter().position(|label| label == outcome) {
                    add_one(&self.runs_ended[index]);
                }
            }
            Event::Panicked { .. } => add_one(&self.panics),
            _ => {}
        }
    }
}

/// An open session; counted while it lives.
pub(crate) struct OpenSession(());

impl OpenSession {
    pub(crate) fn new() -> Self {
        METRICS.sessions_open.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        METRICS.sessions_open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn add_one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_in_the_first_bucket_that_holds_it() {
        let metrics = CallMetrics::new();
        for millis in [0, 1, 5, 6, 30_000, 40_000] {
            metrics.count(0, Some(Duration::from_millis(millis)));
        }
        metrics.count(2, None);
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let durations: Vec<u64> = metrics.durations.iter().map(load).collect();
        assert_eq!(durations, [2, 1, 1, 0, 0, 0, 0, 1, 1]);
        assert_eq!(metrics.outcomes.each_ref().map(load), [6, 0, 1]);
        assert_eq!(load(&metrics.duration_micros), 70_012_000);
    }
}
