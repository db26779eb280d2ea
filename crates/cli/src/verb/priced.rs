//! What trainings and evaluations share on the way to a price, and how it is shown.

use crate::connect::{dataset_named, run_id};
use crate::output;
use anyhow::{Context, bail};
use bastionai_client::blocking::Client;
use bastionai_client::{Charge, Dataset, Epsilon, RunWeights, WeightsSource};
use serde::Serialize;
use std::path::Path;

/// The datasets of these names, at least one.
pub(super) fn datasets_named(client: &Client, names: &[String]) -> anyhow::Result<Vec<Dataset>> {
    if names.is_empty() {
        bail!("at least one --dataset is needed");
    }
    names.iter().map(|name| dataset_named(client, name)).collect()
}

/// The columns named, or all of the first dataset's contract in its order.
pub(super) fn input_columns(named: &[String], datasets: &[Dataset]) -> Vec<String> {
    if !named.is_empty() {
        return named.to_vec();
    }
    let columns = datasets.iter().take(1).flat_map(|first| &first.contract.columns);
    columns.map(|column| column.name.clone()).collect()
}

/// `RUN`, `RUN@STEP`, `RUN@ema`, `RUN@STEP@ema`, or a file: another archive, uploaded unless the server has it.
pub(super) fn weights_source(text: Option<&str>, client: &Client) -> anyhow::Result<Option<WeightsSource>> {
    let Some(text) = text else {
        return Ok(None);
    };
    let path = Path::new(text);
    if path.is_file() {
        let archive = std::fs::read(path).with_context(|| format!("cannot read {text}"))?;
        let model = client.upload_model("weights", &archive, &mut |_| {})?;
        return Ok(Some(WeightsSource::Model(model)));
    }
    run_weights(text).map(|weights| Some(WeightsSource::Run(weights)))
}

fn run_weights(text: &str) -> anyhow::Result<RunWeights> {
    let mut parts = text.split('@');
    let run = run_id(parts.next().unwrap_or_default())
        .with_context(|| format!("weights `{text}`: neither a file nor RUN[@STEP][@ema]"))?;
    let mut weights = RunWeights {
        run,
        step: None,
        ema: false,
    };
    for part in parts {
        match part.parse() {
            Ok(step) if step > 0 && weights.step.is_none() && !weights.ema => weights.step = Some(step),
            _ if part == "ema" && !weights.ema => weights.ema = true,
            _ => bail!("weights `{text}`: after a run come @STEP (from 1), @ema, or both in this order"),
        }
    }
    Ok(weights)
}

/// A quote, for people; for machines where it is all that was asked for.
pub(super) fn show<Q: Serialize>(
    quote: &Q,
    print: impl FnOnce(&Q),
    price_only: bool,
    json: bool,
) -> anyhow::Result<()> {
    if !json {
        print(quote);
    } else if price_only {
        output::json(quote)?;
    }
    Ok(())
}

/// What no budget covers is not started.
pub(super) fn refuse_unaffordable(charges: &[Charge], what: &str) -> anyhow::Result<()> {
    let short: Vec<&str> = charges
        .iter()
        .filter(|charge| !charge.affordable)
        .map(|charge| charge.dataset_name.as_str())
        .collect();
    if short.is_empty() {
        return Ok(());
    }
    bail!(
        "budget exceeded: {} cannot pay for this {what}; lower its ε, or leave a dataset out",
        short.join(", ")
    )
}

/// By the rule that decides; then both, where there is a budget.
pub(super) fn print_charges(charges: &[Charge]) {
    let rows: Vec<Vec<String>> = charges
        .iter()
        .map(|charge| {
            let (before, after) = match charge.epsilon_left() {
                (None, _) => ("no budget needed".to_owned(), String::new()),
                (Some(before), after) => (before.to_string(), left(after)),
            };
            vec![
                charge.dataset_name.clone(),
                charge.cost.epsilon.to_string(),
                charge.cost.delta.to_string(),
                before,
                after,
                charge.privacy_unit.clone(),
            ]
        })
        .collect();
    let titles = ["dataset", "ε", "δ", "ε left before", "ε left after", "protected"];
    output::table(&titles, &rows);
    let both: Vec<Vec<String>> = charges.iter().filter_map(in_both_currencies).collect();
    if !both.is_empty() {
        println!();
        let header = [
            "dataset",
            "rule that decides",
            "ε left after, by sums",
            "ε left after, by Rényi divergences",
            "divergence at order",
        ];
        output::table(&header, &both);
    }
}

fn in_both_currencies(charge: &Charge) -> Option<Vec<String>> {
    let (budget, price) = (charge.budget_before?, charge.renyi.as_ref()?);
    let by_sums = budget.remaining.checked_sub(charge.cost);
    let by_renyi = budget.lifetime.epsilon.checked_sub(price.epsilon_after);
    let divergences = price.orders.iter().zip(&price.divergences);
    let divergences =
        divergences.filter_map(|(order, rho)| Some(format!("{order}: {:.3e}", rho.as_ref()?.to_f64())));
    Some(vec![
        charge.dataset_name.clone(),
        if charge.by_renyi {
            "Rényi divergences"
        } else {
            "sums"
        }
        .to_owned(),
        left(by_sums.map(|left| left.epsilon)),
        left(by_renyi),
        divergences.collect::<Vec<_>>().join(", "),
    ])
}

fn left(epsilon: Option<Epsilon>) -> String {
    epsilon.map_or_else(|| "does not suffice".to_owned(), |left| left.to_string())
}
