//! `bastionai ledger show`.

use crate::arguments::LedgerVerb;
use crate::connect::{connect, dataset_named};
use crate::output;

/// Prints the entries that concern the caller, after checking that the chain extends what was seen before.
pub(crate) fn run(verb: &LedgerVerb, json: bool) -> anyhow::Result<()> {
    let LedgerVerb::Show { connection, dataset } = verb;
    let client = connect(connection)?;
    let subject = dataset
        .as_deref()
        .map(|name| dataset_named(&client, name).map(|dataset| *dataset.id.as_bytes()))
        .transpose()?;
    let view = client.show_ledger(subject)?;
    if json {
        return output::json(&view);
    }
    let rows: Vec<Vec<String>> = view
        .entries
        .iter()
        .map(|entry| {
            vec![
                entry.sequence.to_string(),
                output::time(entry.time_unix_ms),
                entry.kind.clone(),
                entry.content.to_string(),
            ]
        })
        .collect();
    output::table(&["entry", "time (UTC)", "kind", "content"], &rows);
    eprintln!(
        "head {} of {} entries, signed by the attested ledger key",
        view.head.entry_hash, view.head.sequence
    );
    Ok(())
}
