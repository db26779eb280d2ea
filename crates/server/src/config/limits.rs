//! `[limits]`: bounds on what peers can use.

use super::at_least;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Bounds on what peers can use. Every refusal at one of them is `RESOURCE_EXHAUSTED`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest single message, in bytes.
    pub message_bytes: u64,
    /// Largest dataset upload, in bytes of columns.
    pub upload_bytes: u64,
    /// Largest model archive, in bytes.
    pub model_bytes: u64,
    /// Bytes of all model archives held in memory; the oldest make room.
    pub models_total_bytes: u64,
    /// Bytes of all datasets stored and being uploaded, padded to their declared sizes.
    pub stored_bytes: u64,
    /// As `stored_bytes`, of one owner.
    pub stored_bytes_per_principal: u64,
    /// Free disk space that uploads leave for the ledger.
    pub free_bytes_reserve: u64,
    /// Uploads at once.
    pub concurrent_uploads: u32,
    /// Uploads at once of one principal.
    pub uploads_per_principal: u32,
    /// An upload that sends nothing for this long is dropped.
    pub upload_idle_ms: u64,
    /// An upload must be done in this time.
    pub upload_timeout_ms: u64,
    /// Trainers at once.
    pub concurrent_runs: u32,
    /// Runs waiting for a trainer.
    pub queued_runs: u32,
    /// Runs of one principal, queued and running.
    pub runs_per_principal: u32,
    /// Open connections.
    pub connections: u32,
    /// TLS handshake must be done in this time.
    pub handshake_timeout_ms: u64,
    /// A connection that has not called Attest after this time is closed.
    pub attest_timeout_ms: u64,
    /// Concurrent calls on one connection.
    pub calls_per_connection: u32,
    /// How long a quote can be started.
    pub quote_lifetime_ms: u64,
    /// Quotes held for one principal; the oldest makes room.
    pub quotes_per_principal: u32,
    /// Quotes held in all.
    pub quotes: u32,
    /// Prices computed at once (each is CPU-bound).
    pub concurrent_prices: u32,
    /// Prices computed at once for one principal.
    pub prices_per_principal: u32,
    /// Failed runs after which a private dataset takes no more (rule G4); enters each new dataset's policy.
    pub failed_runs_per_dataset: u32,
    /// Runs started on one private dataset in 24 hours (rule A13); enters each new dataset's policy.
    pub starts_per_day: u32,
    /// Steps of one run.
    pub steps: u64,
    /// Steps before the last whose weights one run may keep.
    pub kept_iterates: u32,
    /// Bytes of all weights that one run may keep besides its last: iterates and averages.
    pub kept_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 8 << 20,
            upload_bytes: 4 << 30,
            model_bytes: 512 << 20,
            models_total_bytes: 1 << 30,
            stored_bytes: 64 << 30,
            stored_bytes_per_principal: 16 << 30,
            free_bytes_reserve: 1 << 30,
            concurrent_uploads: 8,
            uploads_per_principal: 2,
            upload_idle_ms: 60_000,
            upload_timeout_ms: 6 * 3_600_000,
            concurrent_runs: 1,
            queued_runs: 64,
            runs_per_principal: 8,
            connections: 256,
            handshake_timeout_ms: 10_000,
            attest_timeout_ms: 30_000,
            calls_per_connection: 16,
            quote_lifetime_ms: 600_000,
            quotes_per_principal: 64,
            quotes: 1024,
            concurrent_prices: 4,
            prices_per_principal: 2,
            failed_runs_per_dataset: 50,
            starts_per_day: 500,
            steps: 10_000_000,
            kept_iterates: 64,
            kept_bytes: 4 << 30,
        }
    }
}

impl Limits {
    pub(super) fn check(&self, problems: &mut Vec<String>) {
        for (name, value, minimum) in [
            ("message_bytes", self.message_bytes, 64 << 10),
            ("upload_bytes", self.upload_bytes, 1 << 10),
            ("model_bytes", self.model_bytes, 1 << 10),
            ("concurrent_uploads", u64::from(self.concurrent_uploads), 1),
            ("uploads_per_principal", u64::from(self.uploads_per_principal), 1),
            ("upload_idle_ms", self.upload_idle_ms, 100),
            ("upload_timeout_ms", self.upload_timeout_ms, 100),
            ("concurrent_runs", u64::from(self.concurrent_runs), 1),
            ("queued_runs", u64::from(self.queued_runs), 1),
            ("runs_per_principal", u64::from(self.runs_per_principal), 1),
            ("connections", u64::from(self.connections), 1),
            ("handshake_timeout_ms", self.handshake_timeout_ms, 100),
            ("attest_timeout_ms", self.attest_timeout_ms, 100),
            ("calls_per_connection", u64::from(self.calls_per_connection), 1),
            ("quote_lifetime_ms", self.quote_lifetime_ms, 1000),
            ("quotes_per_principal", u64::from(self.quotes_per_principal), 1),
            ("quotes", u64::from(self.quotes), 1),
            ("concurrent_prices", u64::from(self.concurrent_prices), 1),
            ("prices_per_principal", u64::from(self.prices_per_principal), 1),
            (
                "failed_runs_per_dataset",
                u64::from(self.failed_runs_per_dataset),
                1,
            ),
            ("starts_per_day", u64::from(self.starts_per_day), 1),
            ("steps", self.steps, 1),
        ] {
            at_least(problems, "limits", name, value, minimum);
        }
        if self.message_bytes > 1 << 30 {
            problems.push(format!(
                "limits.message_bytes = {}: above 1 GiB a message cannot be framed; lower it",
                self.message_bytes
            ));
        }
        if self.kept_iterates > MOST_KEPT {
            problems.push(format!(
                "limits.kept_iterates = {} is more than a ledger entry names: set it to at most {MOST_KEPT}",
                self.kept_iterates
            ));
        }
        if self.models_total_bytes < self.model_bytes {
            problems.push(format!(
                "limits.models_total_bytes = {} is below limits.model_bytes = {}: the largest model would never fit; raise it",
                self.models_total_bytes, self.model_bytes
            ));
        }
    }

    pub(crate) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms)
    }
}

/// With their averages these stay within the sets that the ledger lets one run keep.
const MOST_KEPT: u32 = (bastionai_ledger::kept::MAX_KEPT_SETS as u32 - 1) / 2;
