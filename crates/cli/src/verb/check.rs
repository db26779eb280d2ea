//! `bastionai check MODEL.pt2`: the typed graph (exit 0), or every refusal (exit 2).

use crate::arguments::CheckArguments;
use crate::output;
use crate::verb::dataset::read_contract;
use anyhow::Context;
use bastionai_graph::archive::{Archive, Limits};
use bastionai_graph::contract::InputColumn;
use serde_json::json;
use std::process::ExitCode;

/// Reads, types, prints.
pub(crate) fn run(arguments: &CheckArguments, json: bool) -> anyhow::Result<ExitCode> {
    let path = arguments.model.display();
    let bytes = std::fs::read(&arguments.model).with_context(|| format!("cannot read {path}"))?;
    let archive = match Archive::read(&bytes, &Limits::default()) {
        Ok(archive) => archive,
        Err(error) => return refused(json, &error.to_string(), &json!({ "archive": error.to_string() })),
    };
    let inputs = inputs(arguments, &archive)?;
    match bastionai_graph::check(&archive, &inputs) {
        Ok(graph) if json => {
            output::json(
                &json!({ "accepted": true, "digest": hex::encode(graph.digest()), "graph": graph }),
            )?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(graph) => {
            println!("{graph}");
            eprintln!("accepted: the loss of each sample depends on that sample alone");
            eprintln!("graph digest {}", hex::encode(graph.digest()));
            Ok(ExitCode::SUCCESS)
        }
        Err(refusals) => refused(json, &refusals.to_string(), &json!({ "refusals": refusals })),
    }
}

/// Input types from the contract, or from the archive's own examples.
fn inputs(arguments: &CheckArguments, archive: &Archive) -> anyhow::Result<Vec<InputColumn>> {
    let Some(path) = &arguments.contract else {
        eprintln!(
            "no --contract: assuming the shapes of the archive's example inputs, axis 0 being the batch"
        );
        return Ok(archive.example_inputs()?);
    };
    let contract = read_contract(path)?;
    if arguments.columns.is_empty() {
        let names: Vec<&str> = contract
            .columns
            .iter()
            .map(|column| column.name.as_str())
            .collect();
        return Ok(contract.inputs(&names)?);
    }
    Ok(contract.inputs(&arguments.columns)?)
}

fn refused(json: bool, words: &str, value: &serde_json::Value) -> anyhow::Result<ExitCode> {
    if json {
        let mut object = json!({ "accepted": false });
        object
            .as_object_mut()
            .expect("an object literal")
            .extend(value.as_object().cloned().unwrap_or_default());
        output::json(&object)?;
    } else {
        eprintln!("{words}");
    }
    Ok(ExitCode::from(2))
}
