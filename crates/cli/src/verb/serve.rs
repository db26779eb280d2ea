//! `bastionai serve`: configuration from a file and flags, then the server until SIGTERM or Ctrl-C.

use crate::arguments::{LogFormat, ServeArguments};
use anyhow::{Context, bail};
use bastionai_server::config::{AttesterKind, Config};
use bastionai_server::log;

/// Runs the server; returns when it has drained.
pub(crate) fn run(arguments: &ServeArguments, json: bool) -> anyhow::Result<()> {
    let config = configuration(arguments)?;
    config.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let format = match arguments.log_format {
        LogFormat::Text => log::Format::Text,
        LogFormat::Json => log::Format::Json,
    };
    log::init(format, config.log.level);
    runtime.block_on(async {
        bastionai_server::harden_process();
        let server = bastionai_server::Server::start(config).await?;
        let address = server.address();
        eprintln!("bastionai: ready on {address}");
        if json {
            println!("{}", serde_json::json!({ "address": address.to_string() }));
        }
        if let Some(path) = &arguments.ready_file {
            write_ready(path, &address.to_string())?;
        }
        server.run_until(stop_requested()).await?;
        Ok(())
    })
}

/// A file if one is named, else the development defaults; flags win over both.
fn configuration(arguments: &ServeArguments) -> anyhow::Result<Config> {
    let attester = arguments.attester.as_deref().map(str::parse).transpose();
    let attester: Option<AttesterKind> = attester.context("--attester")?;
    let mut config = match (&arguments.config, &arguments.data_dir, attester) {
        (Some(path), _, _) => Config::load(path)?,
        // The flags name all that has no default but the root key, of which there is one kind: its claim says what it is.
        (None, Some(data_dir), Some(attester)) => Config {
            attester,
            ..Config::insecure_development(data_dir)
        },
        (None, None, _) => bail!("where should the vault live? Name --data-dir, or --config FILE"),
        (None, Some(_), None) => bail!(
            "no attester is named: --attester auto for the TEE of this machine, or --attester insecure-simulated, which proves \
             nothing, for development"
        ),
    };
    if let Some(attester) = attester {
        config.attester = attester;
    }
    if let Some(data_dir) = &arguments.data_dir {
        config.data_dir.clone_from(data_dir);
    }
    if let Some(listen) = &arguments.listen {
        config.listen = listen
            .parse()
            .with_context(|| format!("--listen {listen}: expected ADDRESS:PORT, e.g. 0.0.0.0:7443"))?;
    }
    if let Some(trainer) = &arguments.trainer {
        config.trainer.path = Some(trainer.clone());
    }
    Ok(config)
}

/// Written beside and renamed, so that a reader never sees half an address.
fn write_ready(path: &std::path::Path, address: &str) -> anyhow::Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, address)
        .and_then(|()| std::fs::rename(&partial, path))
        .with_context(|| format!("cannot write the ready file {}", path.display()))
}

async fn stop_requested() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the default action ends the process, which the ledger survives.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
