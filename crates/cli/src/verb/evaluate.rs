//! `bastionai run evaluate`: price, start, wait, and the metrics with their errors.

use super::priced::{
    datasets_named, input_columns, print_charges, refuse_unaffordable, show, weights_source,
};
use crate::arguments::RunEvaluateArguments;
use crate::connect::connect;
use crate::output;
use anyhow::{Context, bail};
use bastionai_client::blocking::{Client, Watched};
use bastionai_client::evaluation::Estimate;
use bastionai_client::{Evaluation, EvaluationQuote, EvaluationSpec, Privacy, Run, RunState};
use std::time::Duration;

/// Price first, always shown; an evaluation that no budget covers is not started.
pub(crate) fn evaluate(arguments: &RunEvaluateArguments, json: bool) -> anyhow::Result<()> {
    let archive = std::fs::read(&arguments.model)
        .with_context(|| format!("cannot read {}", arguments.model.display()))?;
    let client = connect(&arguments.connection)?;
    let quote = client.price_evaluation(&spec(arguments, &client, &archive)?)?;
    show(&quote, print_quote, arguments.price_only, json)?;
    if arguments.price_only {
        return Ok(());
    }
    refuse_unaffordable(&quote.charges, "evaluation")?;
    let run = client.start_run(quote.run_digest)?;
    wait(&client, &run)?;
    let evaluation = client.fetch_evaluation(run.id, Some(&run), &arguments.metrics, &mut |_| {})?;
    if let Some(path) = &arguments.receipt {
        std::fs::write(path, &evaluation.receipt_dsse_json)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    output::either(json, &evaluation, || print_evaluation(&evaluation))
}

fn spec(arguments: &RunEvaluateArguments, client: &Client, archive: &[u8]) -> anyhow::Result<EvaluationSpec> {
    let datasets = datasets_named(client, &arguments.datasets)?;
    let name = arguments.model.file_stem().unwrap_or_default().to_string_lossy();
    let spec = EvaluationSpec {
        model_id: client.upload_model(&name, archive, &mut |_| {})?,
        dataset_ids: datasets.iter().map(|dataset| dataset.id).collect(),
        input_columns: input_columns(&arguments.columns, &datasets),
        model_name: name.into_owned(),
        confusion: false,
        score_bins: None,
        privacy: Privacy::TargetEpsilon(arguments.eps),
        target_delta: arguments.delta,
        max_batch_size: arguments.max_batch_size,
        weights: weights_source(arguments.weights.as_deref(), client)?,
    };
    Ok(spec.for_metrics(&arguments.metrics, arguments.score_bins))
}

fn wait(client: &Client, run: &Run) -> anyhow::Result<()> {
    let mut watch = client.watch_run(run.id, 0)?;
    let mut state = run.state;
    loop {
        match watch.next_progress(Duration::from_secs(1))? {
            Watched::Progress(progress) => state = progress.run.state,
            Watched::Waiting => {}
            Watched::Ended => break,
        }
    }
    if state == RunState::Succeeded {
        return Ok(());
    }
    bail!(
        "evaluation {} ended without a result; it is charged as `bastionai run list` shows",
        run.id
    )
}

fn print_quote(quote: &EvaluationQuote) {
    eprintln!(
        "σ {:.4}: each count gets noise of {:.2}; {} classes, {} declared records, about {} MiB",
        quote.noise_multiplier,
        quote.noise_standard_deviation,
        quote.classes,
        quote.declared_size,
        quote.memory_bytes >> 20,
    );
    print_charges(&quote.charges);
    for warning in &quote.warnings {
        eprintln!("warning: {warning}");
    }
}

fn print_evaluation(evaluation: &Evaluation) {
    let row = |name: &str, estimate: &Estimate, digits: usize| {
        let number =
            |value: Option<f64>| value.map_or("drowned".to_owned(), |value| format!("{value:.digits$}"));
        let (low, high) = estimate.interval;
        vec![
            name.to_owned(),
            number(estimate.value),
            number(estimate.std_error),
            format!("{low:.digits$} to {high:.digits$}"),
            number(estimate.sampling_error),
        ]
    };
    let mut rows: Vec<Vec<String>> = evaluation
        .metrics
        .iter()
        .map(|(name, estimate)| row(name, estimate, 3))
        .collect();
    rows.push(row("records", &evaluation.records, 0));
    output::table(
        &[
            "metric",
            "value",
            "error (noise)",
            "95% interval (noise)",
            "error (sample)",
        ],
        &rows,
    );
    if let Some(confusion) = &evaluation.confusion {
        println!();
        let heads: Vec<String> = (0..evaluation.classes)
            .map(|class| format!("predicted {class}"))
            .collect();
        let heads: Vec<&str> = std::iter::once("label")
            .chain(heads.iter().map(String::as_str))
            .chain(std::iter::once("no finite score"))
            .collect();
        let rows = confusion.counts.iter().enumerate().map(|(label, counts)| {
            let counts = counts.iter().map(i64::to_string);
            std::iter::once(label.to_string()).chain(counts).collect()
        });
        output::table(&heads, &rows.collect::<Vec<_>>());
        println!("each count ± {:.1}", confusion.std_error);
    }
}
