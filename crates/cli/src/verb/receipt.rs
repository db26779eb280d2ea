//! `bastionai receipt check FILE`: what an auditor does, offline. `bastionai receipt fetch RUN`: where they get it.

use crate::appraisal::AppraisalArguments;
use crate::arguments::ReceiptVerb;
use crate::connect::{connect, run_id};
use crate::output;
use anyhow::{Context, bail};
use bastionai_client::blocking::{Client, now_unix_ms};
use bastionai_client::{AuditedReceipt, audit_receipt};
use std::path::Path;

/// Dispatches the sub-verb.
pub(crate) fn run(verb: &ReceiptVerb, json: bool) -> anyhow::Result<()> {
    match verb {
        ReceiptVerb::Check { file, appraisal } => check(file, appraisal, json),
        ReceiptVerb::Fetch { connection, run, out } => fetch(&connect(connection)?, run, out, json),
    }
}

/// A checked receipt in a file of its own, for an auditor.
fn fetch(client: &Client, run: &str, out: &Path, json: bool) -> anyhow::Result<()> {
    let run = run_id(run)?;
    if out.exists() {
        bail!("{} exists already: name a new file with --out", out.display());
    }
    let expected = client.list_runs()?.into_iter().find(|known| known.id == run);
    let fetched = client.fetch_receipt(run, expected.as_ref())?;
    std::fs::write(out, &fetched.receipt_dsse_json)
        .with_context(|| format!("cannot write {}", out.display()))?;
    eprintln!("receipt checked; wrote {}", out.display());
    if json {
        return output::json(&fetched.receipt);
    }
    Ok(())
}

/// Verifies signature and evidence, appraises the server, and recomputes every price from its mechanism.
fn check(file: &Path, appraisal: &AppraisalArguments, json: bool) -> anyhow::Result<()> {
    let envelope = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let audited = audit_receipt(&envelope, &appraisal.policy()?, now_unix_ms()?)?;
    if json {
        return output::json(&audited);
    }
    print(&audited);
    Ok(())
}

fn print(audited: &AuditedReceipt) {
    let receipt = audited.receipt();
    println!("run             {}", receipt.run.id);
    println!("outcome         {:?}", receipt.run.outcome);
    println!("steps           {}", receipt.run.steps);
    if let Some(started) = receipt.run.started_steps {
        println!("steps started   {started}");
    }
    println!("graph digest    {}", receipt.run.graph_digest);
    if let Some(digest) = receipt.run.weights_digest {
        println!("weights digest  {digest}");
    }
    println!(
        "issued          {} UTC, freshness {:?}\n",
        output::time(receipt.issued_unix_ms),
        receipt.freshness
    );
    let spent = |dataset: &bastionai_ledger::receipt::DatasetStatement| {
        dataset
            .budget
            .as_ref()
            .map_or("no budget needed".to_owned(), |budget| match &budget.renyi {
                Some(account) => format!(
                    "{} by Rényi divergences, runs in flight included",
                    account.epsilon
                ),
                None => budget.total_epsilon.to_string(),
            })
    };
    let rows: Vec<Vec<String>> = receipt
        .datasets
        .iter()
        .map(|dataset| {
            vec![
                dataset.name.clone(),
                dataset.epsilon.to_string(),
                dataset.delta.to_string(),
                spent(dataset),
                dataset
                    .privacy_unit
                    .clone()
                    .unwrap_or_else(|| receipt.accounting.privacy_unit.clone()),
            ]
        })
        .collect();
    let titles = ["dataset", "ε charged", "δ charged", "ε spent in all", "protected"];
    output::table(&titles, &rows);
    eprintln!(
        "\nsignature, evidence and prices check out; what was attested of the server:\n{}",
        audited.issuer()
    );
}
