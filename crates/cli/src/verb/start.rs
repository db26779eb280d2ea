//! `bastionai run start`: from flags to a run, by way of its price.

use super::priced::{
    datasets_named, input_columns, print_charges, refuse_unaffordable, show, weights_source,
};
use crate::arguments::{
    ClippingArgument, ComputeArgument, NoiseModeArgument, OptimizerArgument, RunStartArguments,
    ScheduleArgument,
};
use crate::connect::connect;
use crate::output;
use anyhow::{Context, bail};
use bastionai_client::blocking::Client;
use bastionai_client::planning::{Fixed, plan};
use bastionai_client::{
    Adam, Bands, Clipping, Compute, DEFAULT_LOSS_SHARE, Decay, Digest32, LossRelease, NoiseMode, Optimizer,
    Privacy, Quote, RunSpec, Schedule, Warmup,
};

/// Price first, always shown; a run that no budget covers is not started.
pub(super) fn start(arguments: &RunStartArguments, json: bool) -> anyhow::Result<()> {
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
    show(&quote, print_quote, arguments.price_only, json)?;
    if arguments.price_only {
        return Ok(());
    }
    refuse_unaffordable(&quote.charges, "run")?;
    let run = client.start_run(quote.run_digest)?;
    eprintln!("started; follow it with `bastionai run watch {}`", run.id);
    output::either(json, &run, || println!("{}", run.id))
}

fn spec(
    arguments: &RunStartArguments,
    client: &Client,
    model_id: Digest32,
    model_name: String,
) -> anyhow::Result<RunSpec> {
    let datasets = datasets_named(client, &arguments.datasets)?;
    let optimizer = optimizer(arguments)?;
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
        input_columns: input_columns(&arguments.columns, &datasets),
        model_name,
        batch_size: planned.batch_size,
        records_per_unit: arguments.records_per_unit,
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
        noise_mode: match arguments.noise_mode {
            NoiseModeArgument::Standard => NoiseMode::Standard,
            NoiseModeArgument::Hardened => NoiseMode::Hardened,
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
        tail_average: arguments.tail_average,
        bands: arguments.bands,
        keep_steps: arguments.keep_steps.clone(),
        keep_every: arguments.keep_every,
    })
}

fn optimizer(arguments: &RunStartArguments) -> anyhow::Result<Optimizer> {
    let adam = Adam {
        lr: arguments.lr,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: arguments.weight_decay,
    };
    let decoupled = match arguments.optimizer {
        OptimizerArgument::Sgd if arguments.noise_correction.is_some() => {
            bail!("--noise-correction is of Adam's second moment: choose --optimizer adam or adamw")
        }
        OptimizerArgument::Sgd => {
            return Ok(Optimizer::Sgd {
                lr: arguments.lr,
                momentum: arguments.momentum,
                dampening: 0.0,
                weight_decay: arguments.weight_decay,
                nesterov: false,
            });
        }
        OptimizerArgument::Adam => false,
        OptimizerArgument::Adamw => true,
    };
    Ok(match arguments.noise_correction {
        Some(floor) => Optimizer::NoiseCorrected {
            adam,
            decoupled,
            floor,
        },
        None if decoupled => Optimizer::AdamW(adam),
        None => Optimizer::Adam(adam),
    })
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
        fact("noise mode", noise_mode(quote)),
        fact("trainable parameters", quote.trainable_parameters.to_string()),
        fact("memory", format!("about {} MiB", quote.memory_bytes >> 20)),
        fact("expected time", expected_time(quote.expected_seconds)),
    ];
    if let Bands::Fixed(bands) = quote.spec.bands
        && bands > 1
    {
        facts.push(fact(
            "noise correlated over",
            format!(
                "{bands} steps: {:.0}% of independent noise",
                100.0 * quote.noise_ratio
            ),
        ));
    }
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

/// With what rounding may cost.
fn noise_mode(quote: &Quote) -> String {
    let name = quote.spec.noise_mode.name();
    if quote.noise_slack == 0.0 {
        format!("{name}: sensitivity is the clipping norm exactly")
    } else {
        let percent = 100.0 * quote.noise_slack;
        format!("{name}: rounding adds at most {percent:.0}% of noise")
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
