//! `bastionai run start|evaluate|watch|list|show|cancel|suspend|resume|fetch`.

use super::evaluate::evaluate;
use super::start::start;
use crate::arguments::RunVerb;
use crate::connect::{connect, run_id};
use crate::output;
use anyhow::{Context, bail};
use bastionai_client::blocking::{Client, Watched};
use bastionai_client::{Charge, FetchedRun, Run, RunId, RunKind, RunState, Transfer, WeightsAt};
use bastionai_graph::dtype::DType;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use std::time::Duration;

/// Dispatches the sub-verb.
pub(crate) fn run(verb: &RunVerb, json: bool) -> anyhow::Result<()> {
    match verb {
        RunVerb::Start(arguments) => start(arguments, json),
        RunVerb::Evaluate(arguments) => evaluate(arguments, json),
        RunVerb::Watch { connection, run } => watch(&connect(connection)?, run_id(run)?, json),
        RunVerb::List { connection } => {
            let runs = connect(connection)?.list_runs()?;
            output::either(json, &runs, || print_runs(&runs))
        }
        RunVerb::Show { connection, run } => {
            let run = run_named(&connect(connection)?, run)?;
            output::either(json, &run, || print_one(&run))
        }
        RunVerb::Cancel { connection, run } => {
            let run = connect(connection)?.cancel_run(run_id(run)?)?;
            output::either(json, &run, || print_runs(std::slice::from_ref(&run)))
        }
        RunVerb::Suspend { connection, run } => {
            let run = connect(connection)?.suspend_run(run_id(run)?)?;
            output::either(json, &run, || print_runs(std::slice::from_ref(&run)))
        }
        RunVerb::Resume { connection, run } => {
            let run = connect(connection)?.resume_run(run_id(run)?)?;
            output::either(json, &run, || print_runs(std::slice::from_ref(&run)))
        }
        RunVerb::Fetch {
            connection,
            run,
            out,
            step,
            ema,
        } => {
            let at = WeightsAt {
                step: *step,
                ema: *ema,
            };
            fetch(&connect(connection)?, run_id(run)?, at, out, json)
        }
    }
}

/// A run of the list that this client may see.
fn run_named(client: &Client, text: &str) -> anyhow::Result<Run> {
    let id = run_id(text)?;
    let found = client.list_runs()?.into_iter().find(|run| run.id == id);
    found.with_context(|| {
        format!("there is no run {id}, or it does not concern you: `bastionai run list` shows those that do")
    })
}

/// Released progress, one line a message (`--json`: one JSON value a line), until the run ends.
fn watch(client: &Client, run: RunId, json: bool) -> anyhow::Result<()> {
    let mut watch = client.watch_run(run, 0)?;
    let mut last: Option<Run> = None;
    loop {
        match watch.next_progress(Duration::from_secs(1))? {
            Watched::Progress(progress) => {
                if json {
                    println!("{}", serde_json::to_string(&progress)?);
                } else {
                    let loss = progress
                        .noisy_loss
                        .map_or(String::new(), |loss| format!("  noisy loss {loss:.4}"));
                    eprintln!("step {}/{}{loss}", progress.step, progress.run.steps);
                }
                last = Some(progress.run);
            }
            Watched::Waiting => {}
            Watched::Ended => break,
        }
    }
    match last.map(|run| run.state) {
        Some(RunState::Failed) => bail!("run {run} failed; it is charged as `bastionai run list` shows"),
        Some(state) if !json => {
            println!("{}", state_name(state));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Weights and receipt land in a fresh folder, or not at all.
fn fetch(client: &Client, run: RunId, at: WeightsAt, out: &Path, json: bool) -> anyhow::Result<()> {
    if out.exists() {
        bail!("{} exists already: name a new folder", out.display());
    }
    let expected = client.list_runs()?.into_iter().find(|known| known.id == run);
    let fetched = client.fetch_weights(run, at, expected.as_ref(), &mut |_: Transfer| {})?;
    let weights = safetensors(&fetched)?;
    let partial = out.with_extension("partial");
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(&partial)?;
        std::fs::write(partial.join("model.safetensors"), &weights)?;
        std::fs::write(partial.join("receipt.dsse.json"), &fetched.receipt_dsse_json)?;
        std::fs::rename(&partial, out)
    };
    write().with_context(|| format!("cannot write {}", out.display()))?;
    if json {
        return output::json(&fetched.receipt);
    }
    eprintln!("receipt and weights checked; wrote {}", out.display());
    Ok(())
}

fn safetensors(fetched: &FetchedRun) -> anyhow::Result<Vec<u8>> {
    let mut views = Vec::new();
    for tensor in &fetched.weights {
        let shape: Vec<usize> = tensor
            .shape
            .iter()
            .map(|&extent| usize::try_from(extent))
            .collect::<Result<_, _>>()?;
        for name in &tensor.names {
            views.push((
                name.clone(),
                TensorView::new(dtype(tensor.dtype), shape.clone(), &tensor.bytes)?,
            ));
        }
    }
    Ok(safetensors::serialize(views, None)?)
}

fn dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::U8 => Dtype::U8,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::Bool => Dtype::BOOL,
    }
}

fn print_runs(runs: &[Run]) {
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            vec![
                run.id.to_string(),
                run.queue_position.map_or_else(
                    || state_name(run.state).to_owned(),
                    |place| format!("queued ({place})"),
                ),
                run.model_name.clone(),
                kind_name(run.kind).to_owned(),
                format!("{}/{}", run.released_step, run.steps),
                run.dataset_names.join(", "),
                output::time(run.created_unix_ms),
            ]
        })
        .collect();
    output::table(
        &[
            "run",
            "state",
            "model",
            "kind",
            "step",
            "datasets",
            "created (UTC)",
        ],
        &rows,
    );
}

fn print_one(run: &Run) {
    print_runs(std::slice::from_ref(run));
    println!();
    let fact = |key: &str, value: String| vec![key.to_owned(), value];
    let ended = run.ended_unix_ms.map_or("not yet".to_owned(), output::time);
    let facts = [
        fact("scientist", run.scientist.to_string()),
        fact("run digest", run.run_digest.to_string()),
        fact("ended (UTC)", ended),
    ];
    output::table(&["what", "value"], &facts);
    println!();
    let charge = |charge: &Charge| {
        vec![
            charge.dataset_name.clone(),
            charge.cost.epsilon.to_string(),
            charge.cost.delta.to_string(),
        ]
    };
    let charges: Vec<Vec<String>> = run.charges.iter().map(charge).collect();
    output::table(&["dataset", "ε charged", "δ charged"], &charges);
}

fn kind_name(kind: RunKind) -> &'static str {
    match kind {
        RunKind::Training => "training",
        RunKind::Evaluation => "evaluation",
    }
}

fn state_name(state: RunState) -> &'static str {
    match state {
        RunState::Queued => "queued",
        RunState::Running => "running",
        RunState::Succeeded => "succeeded",
        RunState::Failed => "failed",
        RunState::Cancelled => "cancelled",
        RunState::Suspended => "suspended",
    }
}
