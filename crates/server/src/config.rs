//! The one typed configuration of `bastionai serve`: TOML, unknown fields refused, every limit with a default.
//!
//! Nothing here can make a release less private than its price (rule D2): limits and paths only. What
//! weakens confidentiality carries `insecure` in its name and has no default, so somebody wrote it down.

pub mod explain;

use crate::log::Level;
use crate::machine;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Configuration of a server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address to listen on; port 0 takes a free one, which the `listening` log event names.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Directory of the vault. One server at a time.
    pub data_dir: PathBuf,
    /// Who vouches for this server. No default: simulated evidence must be asked for by name.
    pub attester: AttesterKind,
    /// Where the vault's root key comes from. No default, for the same reason.
    pub root_key: RootKeyKind,
    /// The root key's file, read and never made; absent: one in the data directory, made when there is no vault yet.
    #[serde(default)]
    pub root_key_file: Option<PathBuf>,
    /// Bounds on what peers can use.
    #[serde(default)]
    pub limits: Limits,
    /// How runs are executed.
    #[serde(default)]
    pub trainer: TrainerConfig,
    /// Probes and metrics.
    #[serde(default)]
    pub operations: OperationsConfig,
    /// The log.
    #[serde(default)]
    pub log: LogConfig,
}

/// Probes and metrics for the operator, in plain HTTP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OperationsConfig {
    /// A loopback address for `/livez`, `/readyz` and `/metrics`; absent: none.
    pub listen: Option<SocketAddr>,
}

/// The log on standard error.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// The least severe events that are written.
    pub level: Level,
}

/// Kinds of attesters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttesterKind {
    /// Proves nothing; for development. Clients refuse it unless they name it.
    InsecureSimulated,
}

/// Providers of the vault's root key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootKeyKind {
    /// A file in the data directory: whoever copies the disk copies the key. Freshness level `none`.
    InsecureFile,
}

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

/// Where runs are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// The processor.
    #[default]
    Cpu,
    /// The first GPU that the NVIDIA driver shows.
    Cuda,
}

/// How runs are executed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainerConfig {
    /// The trainer's program; without it `bastionai-trainer` beside the running program.
    pub path: Option<PathBuf>,
    /// Where runs are computed. A device that cannot be used is an error at the start, never replaced by another.
    pub device: DeviceKind,
    /// What `device = "cuda"` needs as well, as long as no evidence of a GPU is appraised: records and models reach it, and
    /// whoever can read its memory, in the clear. Becomes a claim that clients refuse by default.
    pub insecure_unattested_gpu: bool,
    /// Threads of one trainer; 0: all cores over `limits.concurrent_runs`.
    pub threads: u32,
    /// From spawn to ready.
    pub start_timeout_ms: u64,
    /// Longest silence between two steps; then the trainer is killed and the run failed.
    pub step_timeout_ms: u64,
    /// From ready to the last weight; then the trainer is killed and the run failed, charged in full.
    pub run_timeout_ms: u64,
    /// Largest memory estimate of a run that is accepted, and the most private memory a trainer gets; 0: three quarters
    /// of what the machine has at the start, over `limits.concurrent_runs`.
    pub memory_bytes: u64,
    /// Progress is made durable and released this often, and after the last step, each time with a checkpoint of the
    /// run: for models whose state (parameters and optimizer) has at most 16 MiB.
    pub commit_ms: u64,
    /// The same for larger models, whose checkpoints take seconds.
    pub checkpoint_ms: u64,
    /// Refuse to start on a kernel without Landlock, rather than say `insecure-trainer-sandbox` in the claims.
    pub require_landlock: bool,
    /// At shutdown, running trainers get this long to finish a step and hand over a checkpoint; then they are killed, and
    /// the next boot goes on from the checkpoint before.
    pub drain_timeout_ms: u64,
}

/// Everything wrong with a configuration, each with what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read configuration {path}: {source}; pass an existing file with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown field, a wrong type, or a required field missing.
    #[error("configuration {origin}: {source}")]
    Parse {
        /// The file.
        origin: String,
        /// Line, column and field.
        source: Box<toml::de::Error>,
    },
    /// Values that cannot work.
    #[error("{0}")]
    Values(Problems),
}

/// Problems of a configuration, one per line.
#[derive(Debug)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "configuration has {} problem(s):", self.0.len())?;
        self.0
            .iter()
            .try_for_each(|problem| write!(formatter, "\n  {problem}"))
    }
}

impl Config {
    /// A development configuration: simulated evidence, root key in a file, everything else by default.
    pub fn insecure_development(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            listen: default_listen(),
            data_dir: data_dir.into(),
            attester: AttesterKind::InsecureSimulated,
            root_key: RootKeyKind::InsecureFile,
            root_key_file: None,
            limits: Limits::default(),
            trainer: TrainerConfig::default(),
            operations: OperationsConfig::default(),
            log: LogConfig::default(),
        }
    }

    /// Reads and parses a file; [`Config::check`] is the caller's, after its flags were applied.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Parse`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_path_buf(),
            source,
        })?;
        Self::from_toml(&text, &path.display().to_string())
    }

    /// Parses TOML; `origin` names it in errors.
    ///
    /// # Errors
    /// [`ConfigError::Parse`].
    pub fn from_toml(text: &str, origin: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|source| ConfigError::Parse {
            origin: origin.to_owned(),
            source: Box::new(source),
        })
    }

    /// This configuration as TOML, defaults filled in.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("every field of Config is representable in TOML")
    }

    /// Checks values that parse but cannot work; all problems at once.
    ///
    /// # Errors
    /// [`ConfigError::Values`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        self.limits.check(&mut problems);
        self.trainer.check(&mut problems);
        if self.data_dir.as_os_str().is_empty() {
            problems.push("data_dir is empty: name the directory of the vault".to_owned());
        } else if self.data_dir.exists() && !self.data_dir.is_dir() {
            let path = self.data_dir.display();
            problems.push(format!(
                "data_dir = {path} is not a directory: name one (it is created when absent)"
            ));
        }
        if let Some(address) = self
            .operations
            .listen
            .filter(|address| !address.ip().is_loopback())
        {
            problems.push(format!(
                "operations.listen = {address} is not a loopback address: it answers anyone, in clear; use 127.0.0.1 and \
                 let a local agent carry the metrics on"
            ));
        }
        match self.trainer.program() {
            Ok(path) if path.is_file() => {}
            Ok(path) => problems.push(format!(
                "trainer.path: there is no file {}: build it with `cargo build --release` or set trainer.path",
                path.display()
            )),
            Err(error) => problems.push(format!("trainer.path is not set and this program's own path is unknown: {error}")),
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Values(Problems(problems)))
        }
    }

    /// SHA-256 over every field in declaration order: part of the runtime claims (rule A4).
    pub fn digest(&self) -> [u8; 32] {
        let json = serde_json::to_vec(self).expect("every field of Config is representable in JSON");
        let mut hasher = Sha256::new();
        hasher.update(b"bastionai/v1/configuration\0");
        hasher.update(json);
        hasher.finalize().into()
    }
}

impl TrainerConfig {
    /// The trainer's program.
    ///
    /// # Errors
    /// When it isn't configured and this program's own path is unknown.
    pub fn program(&self) -> std::io::Result<PathBuf> {
        if let Some(path) = &self.path {
            return Ok(path.clone());
        }
        Ok(std::env::current_exe()?.with_file_name("bastionai-trainer"))
    }

    /// Threads of one trainer when `concurrent` may run at once.
    pub fn threads_for(&self, concurrent: u32) -> u32 {
        if self.threads > 0 {
            return self.threads;
        }
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        (cores / concurrent.max(1)).max(1)
    }

    /// Memory of one trainer when `concurrent` may run at once: what is stated, or what this machine has now.
    pub(crate) fn memory_for(&self, concurrent: u32) -> u64 {
        if self.memory_bytes > 0 {
            return self.memory_bytes;
        }
        machine::memory_for_one_of(concurrent)
    }

    fn check(&self, problems: &mut Vec<String>) {
        for (name, value, minimum) in [
            ("start_timeout_ms", self.start_timeout_ms, 100),
            ("step_timeout_ms", self.step_timeout_ms, 100),
            ("run_timeout_ms", self.run_timeout_ms, 100),
            ("commit_ms", self.commit_ms, 1),
            ("checkpoint_ms", self.checkpoint_ms, 1),
        ] {
            at_least(problems, "trainer", name, value, minimum);
        }
        if self.device == DeviceKind::Cuda && !self.insecure_unattested_gpu {
            problems.push(
                "trainer.device = \"cuda\" hands records and models to a GPU that this version cannot attest: set \
                 trainer.insecure_unattested_gpu = true to accept that (clients see `insecure-unattested-gpu` and refuse it \
                 unless they name it), or trainer.device = \"cpu\""
                    .to_owned(),
            );
        }
        if self.memory_bytes != 0 {
            at_least(problems, "trainer", "memory_bytes", self.memory_bytes, 1 << 20);
        }
        if self.threads > 4096 {
            problems.push(format!(
                "trainer.threads = {} is beyond any machine: use 0 for all cores",
                self.threads
            ));
        }
    }
}

impl Limits {
    fn check(&self, problems: &mut Vec<String>) {
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

fn at_least(problems: &mut Vec<String>, table: &str, name: &str, value: u64, minimum: u64) {
    if value < minimum {
        problems.push(format!(
            "{table}.{name} = {value} is too small: set it to at least {minimum}, or leave it out"
        ));
    }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7443))
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

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            path: None,
            device: DeviceKind::Cpu,
            insecure_unattested_gpu: false,
            threads: 0,
            start_timeout_ms: 120_000,
            step_timeout_ms: 300_000,
            run_timeout_ms: 24 * 3_600_000,
            memory_bytes: 0,
            commit_ms: 500,
            checkpoint_ms: 60_000,
            require_landlock: false,
            drain_timeout_ms: 20_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str =
        "data_dir = '/tmp/x'\nattester = 'insecure-simulated'\nroot_key = 'insecure-file'\n";

    #[test]
    fn minimal_configuration_takes_every_default() {
        let config = Config::from_toml(MINIMAL, "test").unwrap();
        assert_eq!(config, Config::insecure_development("/tmp/x"));
        assert_eq!(Config::from_toml(&config.to_toml(), "again").unwrap(), config);
    }

    #[test]
    fn unknown_field_is_refused_by_name() {
        let error =
            Config::from_toml(&format!("{MINIMAL}[limits]\nuplod_bytes = 1\n"), "server.toml").unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("uplod_bytes") && text.contains("server.toml"),
            "{text}"
        );
    }

    #[test]
    fn attester_must_be_named() {
        let error = Config::from_toml("data_dir = '/tmp/x'\nroot_key = 'insecure-file'\n", "server.toml")
            .unwrap_err();
        assert!(error.to_string().contains("attester"), "{error}");
    }

    #[test]
    fn every_bad_value_is_reported_at_once_with_a_remedy() {
        let mut config = Config::insecure_development("");
        config.limits.message_bytes = 1;
        config.limits.models_total_bytes = 0;
        config.trainer.commit_ms = 0;
        config.trainer.path = Some("/nonexistent/trainer".into());
        let text = config.check().unwrap_err().to_string();
        for part in [
            "data_dir",
            "message_bytes",
            "models_total_bytes",
            "commit_ms",
            "/nonexistent/trainer",
            "cargo build",
        ] {
            assert!(text.contains(part), "{part} missing in: {text}");
        }
    }

    #[test]
    fn a_gpu_that_nothing_attests_must_be_asked_for_by_that_name() {
        let text = format!("{MINIMAL}[trainer]\ndevice = 'cuda'\n");
        let mut config = Config::from_toml(&text, "server.toml").unwrap();
        let refused = config.check().unwrap_err().to_string();
        assert!(
            refused.contains("trainer.insecure_unattested_gpu = true"),
            "{refused}"
        );
        config.trainer.insecure_unattested_gpu = true;
        let refused = config.check().err().map(|error| error.to_string());
        assert!(!refused.unwrap_or_default().contains("insecure_unattested_gpu"));
        let unknown = format!("{MINIMAL}[trainer]\ndevice = 'gpu'\n");
        let error = Config::from_toml(&unknown, "server.toml")
            .unwrap_err()
            .to_string();
        assert!(error.contains("cpu") && error.contains("cuda"), "{error}");
    }

    #[test]
    fn probes_and_metrics_stay_on_the_machine() {
        let mut config = Config::insecure_development("/tmp/x");
        config.operations.listen = Some("0.0.0.0:9443".parse().unwrap());
        let text = config.check().unwrap_err().to_string();
        assert!(
            text.contains("operations.listen = 0.0.0.0:9443 is not a loopback address"),
            "{text}"
        );
        config.operations.listen = Some("[::1]:9443".parse().unwrap());
        let text = config
            .check()
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        assert!(!text.contains("operations.listen"), "{text}");
    }

    #[test]
    fn the_memory_of_a_trainer_is_what_is_stated_or_a_share_of_the_machines() {
        let mut trainer = TrainerConfig::default();
        let derived = trainer.memory_for(1);
        assert!(derived > 1 << 20, "{derived} bytes of this machine");
        assert!(trainer.memory_for(8) < derived / 4, "eight at once share it");
        trainer.memory_bytes = 5 << 30;
        assert_eq!((trainer.memory_for(1), trainer.memory_for(8)), (5 << 30, 5 << 30));
    }

    #[test]
    fn digest_covers_every_limit() {
        let config = Config::insecure_development("/tmp/x");
        let mut other = config.clone();
        other.limits.steps += 1;
        assert_ne!(config.digest(), other.digest());
    }
}
