//! Prometheus' text format 0.0.4 (<https://prometheus.io/docs/instrumenting/exposition_formats/>): what is counted,
//! and what the ledger and the disk say at this moment. [`SERIES`] is all there is, and documented in
//! docs/operation.md.

use super::metrics::{BUCKETS, CALL_OUTCOMES, CallMetrics, Metrics, RUN_OUTCOMES};
use crate::state::Server;
use crate::storage;
use bastionai_ledger::{Outcome, RunStatus};
use bastionai_wire::CALLS;
use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

/// Name, type and help of every series.
pub(crate) const SERIES: [(&str, &str, &str); 18] = [
    ("bastionai_build_info", "gauge", "1; the version is a label."),
    ("bastionai_ready", "gauge", "1 if /readyz would say so."),
    ("bastionai_sessions", "gauge", "Open TLS sessions."),
    (
        "bastionai_sessions_accepted_total",
        "counter",
        "TLS sessions accepted.",
    ),
    (
        "bastionai_sessions_refused_total",
        "counter",
        "Connections refused: limits, handshakes, certificates.",
    ),
    (
        "bastionai_calls_total",
        "counter",
        "Calls by name and outcome: ok, refused (the caller's to mend), failed (ours).",
    ),
    (
        "bastionai_call_seconds",
        "histogram",
        "Duration of calls that do not stream. Streaming calls are not timed: they take as long as data is.",
    ),
    ("bastionai_runs", "gauge", "Runs in the ledger, by state."),
    (
        "bastionai_runs_ended_total",
        "counter",
        "Runs that ended in this process, by outcome.",
    ),
    (
        "bastionai_trainers_started_total",
        "counter",
        "Trainer processes started.",
    ),
    (
        "bastionai_trainers_lost_total",
        "counter",
        "Trainers that died, hung, broke the protocol or took too long.",
    ),
    ("bastionai_datasets", "gauge", "Datasets that are not withdrawn."),
    (
        "bastionai_stored_bytes",
        "gauge",
        "Storage taken by datasets and uploads, padded to declared sizes: never what was uploaded.",
    ),
    ("bastionai_stored_bytes_limit", "gauge", "limits.stored_bytes."),
    (
        "bastionai_disk_free_bytes",
        "gauge",
        "Free disk space, rounded down to 64 MiB.",
    ),
    (
        "bastionai_disk_reserve_bytes",
        "gauge",
        "limits.free_bytes_reserve.",
    ),
    (
        "bastionai_ledger_entries",
        "gauge",
        "Entries of the ledger: its head's sequence number.",
    ),
    (
        "bastionai_panics_total",
        "counter",
        "Panics of server tasks; the log says where.",
    ),
];

/// A page of series.
pub(crate) struct Exposition(String);

impl Exposition {
    /// The page.
    pub(crate) fn into_text(self) -> String {
        self.0
    }

    /// Starts the series of this name.
    fn series(&mut self, name: &str) {
        let (name, kind, help) = SERIES
            .iter()
            .find(|(known, _, _)| *known == name)
            .expect("every series is listed in SERIES");
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// A series with one sample.
    fn single(&mut self, name: &str, value: impl Display) {
        self.series(name);
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// A sample with one label, both from fixed lists.
    fn labelled(&mut self, name: &str, label: &str, of: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name}{{{label}=\"{of}\"}} {value}");
    }
}

/// The page of a server; one that is still booting shows its counters.
pub(crate) fn of(server: Option<&Server>) -> Exposition {
    let mut page = Exposition(String::with_capacity(8 << 10));
    page.series("bastionai_build_info");
    page.labelled("bastionai_build_info", "version", env!("CARGO_PKG_VERSION"), 1);
    page.single(
        "bastionai_ready",
        u8::from(super::readiness::of(server).is_ready()),
    );
    counters(&mut page, Metrics::of_process());
    if let Some(server) = server {
        ledger(&mut page, server);
        room(&mut page, server);
    }
    page
}

fn counters(page: &mut Exposition, metrics: &Metrics) {
    page.single(
        "bastionai_sessions",
        metrics.sessions_open.load(Ordering::Relaxed),
    );
    page.single(
        "bastionai_sessions_accepted_total",
        load(&metrics.sessions_accepted),
    );
    page.single(
        "bastionai_sessions_refused_total",
        load(&metrics.sessions_refused),
    );
    page.series("bastionai_calls_total");
    let names = CALLS.iter().map(|call| call.name).chain(["unknown"]);
    for (call, counts) in names.zip(&metrics.calls) {
        for (outcome, count) in CALL_OUTCOMES.iter().zip(&counts.outcomes) {
            let _ = writeln!(
                page.0,
                "bastionai_calls_total{{call=\"{call}\",outcome=\"{outcome}\"}} {}",
                load(count)
            );
        }
    }
    page.series("bastionai_call_seconds");
    for (call, counts) in CALLS.iter().zip(&metrics.calls).filter(|(call, _)| !call.streams) {
        histogram(page, call.name, counts);
    }
    page.series("bastionai_runs_ended_total");
    for (outcome, count) in RUN_OUTCOMES.iter().zip(&metrics.runs_ended) {
        page.labelled("bastionai_runs_ended_total", "outcome", outcome, load(count));
    }
    page.single(
        "bastionai_trainers_started_total",
        load(&metrics.trainers_started),
    );
    page.single("bastionai_trainers_lost_total", load(&metrics.trainers_lost));
    page.single("bastionai_panics_total", load(&metrics.panics));
}

fn histogram(page: &mut Exposition, call: &str, counts: &CallMetrics) {
    let mut so_far = 0;
    let bounds = BUCKETS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
    for (bound, count) in bounds.zip(&counts.durations) {
        so_far += load(count);
        let _ = writeln!(
            page.0,
            "bastionai_call_seconds_bucket{{call=\"{call}\",le=\"{bound}\"}} {so_far}"
        );
    }
    let seconds = load(&counts.duration_micros) as f64 / 1e6;
    page.labelled("bastionai_call_seconds_sum", "call", call, seconds);
    page.labelled("bastionai_call_seconds_count", "call", call, so_far);
}

fn ledger(page: &mut Exposition, server: &Server) {
    let states = [
        "queued",
        "running",
        "succeeded",
        "failed",
        "cancelled",
        "refunded",
    ];
    let (runs, datasets, entries) = server.vault.read(|ledger| {
        let mut runs = [0u64; 6];
        ledger.runs().for_each(|run| runs[state(run.status())] += 1);
        let datasets = ledger
            .datasets()
            .filter(|dataset| !dataset.is_withdrawn())
            .count();
        (runs, datasets, ledger.head().sequence)
    });
    page.series("bastionai_runs");
    for (state, count) in states.iter().zip(runs) {
        page.labelled("bastionai_runs", "state", state, count);
    }
    page.single("bastionai_datasets", datasets);
    page.single("bastionai_ledger_entries", entries);
}

fn state(status: RunStatus) -> usize {
    match status {
        RunStatus::Reserved => 0,
        RunStatus::Started => 1,
        RunStatus::Committed(Outcome::Succeeded) => 2,
        RunStatus::Committed(Outcome::Failed) => 3,
        RunStatus::Committed(Outcome::Cancelled) => 4,
        RunStatus::Refunded(_) => 5,
    }
}

fn room(page: &mut Exposition, server: &Server) {
    let limits = &server.config.limits;
    page.single("bastionai_stored_bytes", server.storage.used_bytes());
    page.single("bastionai_stored_bytes_limit", limits.stored_bytes);
    if let Ok(free) = storage::free_bytes(&server.config.data_dir) {
        page.single("bastionai_disk_free_bytes", free / ROUNDING * ROUNDING);
    }
    page.single("bastionai_disk_reserve_bytes", limits.free_bytes_reserve);
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// The disk is shared with checkpoints, results and logs; nobody needs to see them grow one by one.
const ROUNDING: u64 = 64 << 20;
