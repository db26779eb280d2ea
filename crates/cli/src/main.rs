//! The `bastionai` command. Data goes to stdout, words for people to stderr.
//!
//! Here: arguments in, exit code out. [`verb`] has one file per verb; [`connect`] is how all of them reach
//! a server. Exit codes: 0 done, 1 an error (told on stderr, with `--json` also as `{"error": …}` on stdout), 2 refused (`check`, `appraise`) or wrong usage.
#![forbid(unsafe_code)]

mod appraisal;
mod arguments;
mod connect;
mod manifest;
mod output;
mod rows;
mod verb;

use arguments::{Arguments, Verb};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let message = in_words(&error);
            if arguments.json {
                println!("{}", as_json(&error, &message));
            }
            eprintln!("bastionai: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let json = arguments.json;
    match &arguments.verb {
        Verb::Check(check) => return verb::check::run(check, json),
        Verb::Appraise(appraise) => return verb::appraise::run(appraise, json),
        Verb::Measure(measure) => verb::measure::run(measure, json)?,
        Verb::ReleaseManifest(release) => verb::release_manifest::run(release, json)?,
        Verb::Keygen(keygen) => verb::keygen::run(keygen, json)?,
        Verb::Serve(serve) => verb::serve::run(serve, json)?,
        Verb::Config(config) => verb::config::run(config, json)?,
        Verb::Epsilon(query) => verb::privacy::epsilon(query, json)?,
        Verb::Calibrate(query) => verb::privacy::calibrate(query, json)?,
        Verb::Dataset(dataset) => verb::dataset::run(dataset, json)?,
        Verb::Run(run) => verb::run::run(run, json)?,
        Verb::Ledger(ledger) => verb::ledger::run(ledger, json)?,
        Verb::Receipt(receipt) => verb::receipt::run(receipt, json)?,
        Verb::Completions(completions) => verb::pages::completions(completions)?,
        Verb::Man(man) => verb::pages::man(man, json)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// An error for machines: its words, and what kind it is where the client says so.
fn as_json(error: &anyhow::Error, message: &str) -> serde_json::Value {
    let of_client = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<bastionai_client::ClientError>());
    serde_json::json!({
        "error": message,
        "kind": of_client.map(bastionai_client::ClientError::kind),
        "reason": of_client.and_then(bastionai_client::ClientError::server_reason),
    })
}

/// The chain of causes in one line, without those that their effect has already told.
fn in_words(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .fold(String::new(), |told, cause| match told.as_str() {
            "" => cause,
            told if told.contains(&cause) => told.to_owned(),
            told => format!("{told}: {cause}"),
        })
}

/// `bastionai … | head` closes our stdout: that is the reader's choice, not an error.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
