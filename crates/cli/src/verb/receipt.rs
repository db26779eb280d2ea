//! `bastionai receipt check FILE`: what an auditor does, offline.

use crate::arguments::ReceiptVerb;
use crate::connect::appraisal_policy;
use crate::output;
use anyhow::Context;
use bastionai_client::blocking::now_unix_ms;
use bastionai_client::{AuditedReceipt, audit_receipt};

/// Verifies signature and evidence, appraises the server, and recomputes every price from its mechanism.
pub(crate) fn run(verb: &ReceiptVerb, json: bool) -> anyhow::Result<()> {
    let ReceiptVerb::Check {
        file,
        allow_simulated,
    } = verb;
    let envelope = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let audited = audit_receipt(&envelope, &appraisal_policy(*allow_simulated), now_unix_ms()?)?;
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
            .map_or("no budget needed".to_owned(), |budget| {
                budget.total_epsilon.to_string()
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
            ]
        })
        .collect();
    output::table(&["dataset", "ε charged", "δ charged", "ε spent in all"], &rows);
    eprintln!(
        "\nsignature, evidence and prices check out; what was attested of the server:\n{}",
        audited.issuer()
    );
}
