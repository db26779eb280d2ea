//! From connection arguments to an appraised peer, and what its datasets and runs are called there.

use crate::arguments::ConnectionArguments;
use anyhow::Context;
use bastionai_client::blocking::{Client, Settings};
use bastionai_client::{ConnectOptions, Dataset, HeadMemory, Identity, RunId};
use std::path::PathBuf;
use std::str::FromStr;

/// Connects, verifies and appraises.
pub(crate) fn connect(arguments: &ConnectionArguments) -> anyhow::Result<Client> {
    let identity = Identity::load(&arguments.identity)
        .context("no usable identity; make one with `bastionai keygen` and name it with --identity")?;
    let settings = Settings {
        policy: arguments.appraisal.policy()?,
        heads: HeadMemory::open(heads(arguments.heads.as_ref())),
        options: ConnectOptions::default(),
        interrupt: None,
    };
    Ok(Client::connect(&arguments.host, &identity, &settings)?)
}

/// The dataset of this name.
pub(crate) fn dataset_named(client: &Client, name: &str) -> anyhow::Result<Dataset> {
    let datasets = client.list_datasets()?;
    let names: Vec<String> = datasets.iter().map(|dataset| dataset.name.clone()).collect();
    datasets
        .into_iter()
        .find(|dataset| dataset.name == name)
        .with_context(|| {
            let known = if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            };
            format!("there is no dataset `{name}`; known: {known}")
        })
}

/// A run, by its id.
pub(crate) fn run_id(text: &str) -> anyhow::Result<RunId> {
    RunId::from_str(text)
        .with_context(|| format!("`{text}` is no run id: 32 hex digits, as `bastionai run list` prints"))
}

/// Where ledger heads are remembered: as named, or under `$XDG_STATE_HOME`.
pub(crate) fn heads(named: Option<&PathBuf>) -> PathBuf {
    named.cloned().unwrap_or_else(default_heads)
}

fn default_heads() -> PathBuf {
    let home = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    home("XDG_STATE_HOME")
        .or_else(|| home("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_default()
        .join("bastionai/heads.json")
}
