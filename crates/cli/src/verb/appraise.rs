//! `bastionai appraise HOST`: what a live server proves, and whether that is enough (exit 0) or not (exit 2).

use crate::arguments::AppraiseArguments;
use crate::connect::heads;
use crate::output;
use anyhow::Context;
use bastionai_client::blocking::{Client, Settings};
use bastionai_client::{ClientError, ConnectOptions, HeadMemory, Identity};
use serde_json::json;
use std::process::ExitCode;

/// Connects, verifies, appraises, prints; nothing else crosses.
pub(crate) fn run(arguments: &AppraiseArguments, json: bool) -> anyhow::Result<ExitCode> {
    // Looking needs no name: without --identity a key is made for this one session.
    let identity = match &arguments.identity {
        Some(path) => Identity::load(path).context("no usable identity; make one with `bastionai keygen`")?,
        None => Identity::generate()?,
    };
    let settings = Settings {
        policy: arguments.appraisal.policy()?,
        heads: HeadMemory::open(heads(arguments.heads.as_ref())),
        options: ConnectOptions::default(),
        interrupt: None,
    };
    let client = match Client::connect(&arguments.host, &identity, &settings) {
        Ok(client) => client,
        Err(error) if is_a_verdict(&error) => return refused(json, &error),
        Err(error) => return Err(error.into()),
    };
    if json {
        output::json(&json!({
            "accepted": true,
            "attestation": client.attestation(),
            "server": client.server(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let server = client.server();
    println!("{}", client.attestation());
    println!(
        "server's clock     {} UTC, its own word",
        output::time(server.time_unix_ms)
    );
    let seen = if server.first_contact {
        "for the first time: its past is taken on trust"
    } else {
        "before, and it continues what was seen"
    };
    println!("ledger seen        {seen}");
    eprintln!("accepted: the evidence is authentic, of this session, and meets the policy");
    Ok(ExitCode::SUCCESS)
}

/// Whether the server was heard and judged, rather than not reached.
fn is_a_verdict(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::EvidenceRefused(_)
            | ClientError::ClaimsRefused(_)
            | ClientError::AppraisalRefused(_)
            | ClientError::Rollback(_)
    )
}

fn refused(json: bool, error: &ClientError) -> anyhow::Result<ExitCode> {
    if json {
        let refusals = match error {
            ClientError::AppraisalRefused(error) => json!(error.refusals),
            _ => json!([]),
        };
        output::json(&json!({
            "accepted": false,
            "kind": error.kind(),
            "error": error.to_string(),
            "refusals": refusals,
        }))?;
    } else if let ClientError::AppraisalRefused(error) = error {
        let row = |refusal: &bastionai_attestation::Refusal| {
            vec![
                refusal.rule.to_string(),
                refusal.found.clone(),
                refusal.wanted.clone(),
            ]
        };
        let rows: Vec<Vec<String>> = error.refusals.iter().map(row).collect();
        output::table(&["rule not met", "found", "wanted"], &rows);
        eprintln!(
            "refused: give reference values that you trust (`bastionai appraise --help`), or trust another server"
        );
    } else {
        eprintln!("refused: {error}");
    }
    Ok(ExitCode::from(2))
}
