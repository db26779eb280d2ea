//! The one typed configuration of `bastionai serve`: TOML, unknown fields refused, every limit with a default.
//!
//! Nothing here can make a release less private than its price (rule D2): limits and paths only. What
//! weakens confidentiality carries `insecure` in its name and has no default, so somebody wrote it down.

mod attestation;
pub mod explain;
mod limits;
mod trainer;

pub use attestation::{AttestationConfig, AttesterKind};
pub use limits::Limits;
pub use trainer::{DeviceKind, TrainerConfig};

use crate::log::Level;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Configuration of a server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address to listen on; port 0 takes a free one, which the `listening` log event names.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Directory of the vault. One server at a time.
    pub data_dir: PathBuf,
    /// Who vouches for this server. No default: simulated evidence must be asked for by name, and is never a fall-back.
    pub attester: AttesterKind,
    /// Where the vault's root key comes from. No default, for the same reason.
    pub root_key: RootKeyKind,
    /// The root key's file, read and never made; absent: one in the data directory, made when there is no vault yet.
    #[serde(default)]
    pub root_key_file: Option<PathBuf>,
    /// Where the platform's evidence and endorsements come from.
    #[serde(default)]
    pub attestation: AttestationConfig,
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

/// Providers of the vault's root key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootKeyKind {
    /// A file in the data directory: whoever copies the disk copies the key. Freshness level `none`.
    InsecureFile,
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
            attestation: AttestationConfig::default(),
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
    fn attesters_are_known_by_name_and_an_unknown_one_is_told_which_there_are() {
        for name in ["auto", "snp", "tdx", "azure", "insecure-simulated"] {
            let text = MINIMAL.replace("insecure-simulated", name);
            let config = Config::from_toml(&text, "test").unwrap();
            assert_eq!(config.attester, name.parse().unwrap());
            assert!(
                config.to_toml().contains(&format!("attester = \"{name}\"")),
                "{name}"
            );
        }
        let error = "sgx".parse::<AttesterKind>().unwrap_err().to_string();
        assert!(
            error.contains("sgx") && error.contains("auto, snp, tdx, azure"),
            "{error}"
        );
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
    fn digest_covers_every_limit() {
        let config = Config::insecure_development("/tmp/x");
        let mut other = config.clone();
        other.limits.steps += 1;
        assert_ne!(config.digest(), other.digest());
    }
}
