//! `bastionai run start|evaluate|watch|list|show|cancel|suspend|resume|fetch`.

use super::evaluate::evaluate;
use crate::arguments::{
    ClippingArgument, ComputeArgument, OptimizerArgument, RunStartArguments, RunVerb, ScheduleArgument,
};
use crate::connect::{connect, dataset_named};
use crate::output;
use anyhow::{Context, bail};
use bastionai_client::blocking::{Client, Watched};
use bastionai_client::planning::{Fixed, plan};
use bastionai_client::{
    Adam, Budget, Charge, Clipping, Compute, DEFAULT_LOSS_SHARE, Dataset, Decay, FetchedRun, LossRelease,
    Optimizer, Privacy, Quote, Run, RunId, RunKind, RunSpec, RunState, RunWeights, Schedule, Transfer,
    Warmup, WeightsAt, WeightsSource,
};
use bastionai_graph::dtype::DType;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use std::str::FromStr;
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

pub(crate) fn run_id(text: &str) -> anyhow::Result<RunId> {
    RunId::from_str(text)
        .with_context(|| format!("`{text}` is no run id: 32 hex digits, as `bastionai run list` prints"))
}

/// Price first, always shown; a run that no budget covers is not started.
fn start(arguments: &RunStartArguments, json: bool) -> anyhow::Result<()> {
    let archive = std::fs::read(&arguments.model)
        .with_context(|| format!("cannot read {}", arguments.model.display()))?;
    let client = connect(&arguments.connection)?;
    let name = arguments
        .model
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let model_id = client.upload_model(&name, &archive, &mut |_| {})?;
    let spec = spec(arguments, &client, model_id, name)?;
    let quote = client.price(&spec)?;
    if !json {
        print_quote(&quote);
    } else if arguments.price_only {
        output::json(&quote)?;
    }
    if arguments.price_only {
        return Ok(());
    }
    refuse_unaffordable(&quote.charges, "run")?;
    let run = client.start_run(quote.run_digest)?;
    eprintln!("started; follow it with `bastionai run watch {}`", run.id);
    output::either(json, &run, || println!("{}", run.id))
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

/// The columns named, or all of the contract's in its order.
pub(super) fn input_columns(named: &[String], dataset: &Dataset) -> Vec<String> {
    if !named.is_empty() {
        return named.to_vec();
    }
    let columns = dataset.contract.columns.iter();
    columns.map(|column| column.name.clone()).collect()
}

fn spec(
    arguments: &RunStartArguments,
    client: &Client,
    model_id: bastionai_client::Digest32,
    model_name: String,
) -> anyhow::Result<RunSpec> {
    let datasets = arguments
        .datasets
        .iter()
        .map(|name| dataset_named(client, name))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let first = datasets.first().context("at least one --dataset is needed")?;
    let input_columns = input_columns(&arguments.columns, first);
    let optimizer = match arguments.optimizer {
        OptimizerArgument::Sgd => Optimizer::Sgd {
            lr: arguments.lr,
            momentum: arguments.momentum,
            dampening: 0.0,
            weight_decay: arguments.weight_decay,
            nesterov: false,
        },
        OptimizerArgument::Adamw => Optimizer::AdamW(Adam {
            lr: arguments.lr,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: arguments.weight_decay,
        }),
        OptimizerArgument::Adam => Optimizer::Adam(Adam {
            lr: arguments.lr,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: arguments.weight_decay,
        }),
    };
    let privacy = Privacy::TargetEpsilon(arguments.epsilon);
    let fixed = Fixed {
        target_delta: arguments.delta,
        batch_size: arguments.batch_size,
        steps: arguments.steps,
        epochs: arguments.epochs,
    };
    let planned = plan(&datasets, privacy, &fixed)?;
    Ok(RunSpec {
        model_id,
        dataset_ids: datasets.iter().map(|dataset| dataset.id).collect(),
        input_columns,
        model_name,
        batch_size: planned.batch_size,
        max_batch_size: arguments.max_batch_size,
        steps: planned.steps,
        max_grad_norm: arguments.max_grad_norm,
        clipping: match arguments.clipping {
            ClippingArgument::Flat => Clipping::Flat,
            ClippingArgument::PerLayer => Clipping::PerLayer,
            ClippingArgument::Automatic => Clipping::Automatic,
        },
        compute: match arguments.compute {
            ComputeArgument::Float32 => Compute::Float32,
            ComputeArgument::Bfloat16 => Compute::Bfloat16,
        },
        privacy,
        target_delta: arguments.delta,
        loss_release: (arguments.max_loss > 0.0).then_some(LossRelease {
            max_loss: arguments.max_loss,
            share: DEFAULT_LOSS_SHARE,
        }),
        optimizer,
        schedule: schedule(arguments)?,
        initial_weights: weights_source(arguments.initial_weights.as_deref(), client)?,
        ema_decay: arguments.ema_decay,
        keep_steps: arguments.keep_steps.clone(),
        keep_every: arguments.keep_every,
    })
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

fn schedule(arguments: &RunStartArguments) -> anyhow::Result<Schedule> {
    let final_ratio = arguments.final_ratio.unwrap_or(0.0);
    let decay = match arguments.schedule {
        ScheduleArgument::Constant if arguments.final_ratio.is_some() => {
            bail!("a constant schedule has no --final-ratio: choose --schedule linear or cosine")
        }
        ScheduleArgument::Constant => Decay::Constant,
        ScheduleArgument::Linear => Decay::Linear { final_ratio },
        ScheduleArgument::Cosine => Decay::Cosine { final_ratio },
    };
    let warmup = arguments
        .warmup_ratio
        .map_or(Warmup::Steps(arguments.warmup_steps), Warmup::Ratio);
    Ok(Schedule { decay, warmup })
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

fn print_quote(quote: &Quote) {
    let fact = |key: &str, value: String| vec![key.to_owned(), value];
    let mut facts = vec![
        fact("steps", quote.spec.steps.to_string()),
        fact(
            "expected batch",
            format!("{} (cap {})", quote.spec.batch_size, quote.truncated_batch_size),
        ),
        fact("sample rate q", format!("{:.5}", quote.sample_rate)),
        fact("noise multiplier σ", format!("{:.4}", quote.noise_multiplier)),
        fact("trainable parameters", quote.trainable_parameters.to_string()),
        fact("memory", format!("about {} MiB", quote.memory_bytes >> 20)),
        fact("expected time", expected_time(quote.expected_seconds)),
    ];
    if quote.kept_bytes > 0 {
        facts.push(fact(
            "weights kept on the way",
            format!("{:.1} MiB", quote.kept_bytes as f64 / f64::from(1 << 20)),
        ));
    }
    output::table(&["price", ""], &facts);
    println!();
    print_charges(&quote.charges);
    for warning in &quote.warnings {
        eprintln!("warning: {warning}");
    }
}

pub(super) fn print_charges(charges: &[Charge]) {
    let rows: Vec<Vec<String>> = charges
        .iter()
        .map(|charge| {
            let (before, after) = match charge.budget_before {
                None => ("no budget needed".to_owned(), "".to_owned()),
                Some(budget) => (budget.remaining.epsilon.to_string(), left_after(charge, &budget)),
            };
            vec![
                charge.dataset_name.clone(),
                charge.cost.epsilon.to_string(),
                charge.cost.delta.to_string(),
                before,
                after,
            ]
        })
        .collect();
    output::table(&["dataset", "ε", "δ", "ε left before", "ε left after"], &rows);
}

fn left_after(charge: &Charge, before: &Budget) -> String {
    let left = before.remaining.checked_sub(charge.cost);
    match left.filter(|_| charge.affordable) {
        Some(left) => left.epsilon.to_string(),
        None => "does not suffice".to_owned(),
    }
}

/// In words: an estimate deserves no decimals.
fn expected_time(seconds: Option<f64>) -> String {
    match seconds {
        None => "not known: the server could not measure its machine".to_owned(),
        Some(seconds) if seconds < 90.0 => format!("about {seconds:.0} s, once it has its slot"),
        Some(seconds) => format!("about {:.0} min, once it has its slot", seconds / 60.0),
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
