//! Private training steps of an exported model, timed one at a time: the engine's side of `make bench`
//! (benches/private_step.py).
//!
//! Arguments: perhaps `--device cpu` or `--device cuda`; a `.pt2` archive; expected batch size, or `expected:physical` for another physical batch size than the cap
//! of a run; threads; optimizer (`sgd` or `adamw`); the range of each input of integers, e.g. `0:1000,0:2`. It prints
//! what it chose, then takes one step for every line on standard input and answers with its seconds; behind them, if
//! the line is `profile`, with those of its phases; if it is `memory`, with MiB of each: what the process
//! held at most, what at the end, and how much of that was in use. The sample is drawn, padded and masked, as in any run.
#![allow(clippy::print_stdout)]

use bastionai_graph::archive::{Archive, Limits};
use bastionai_graph::dtype::DType;
use bastionai_graph::typed::{Input, TypedGraph};
use bastionai_privacy::cap::SampledSteps;
use bastionai_trainer::records::Records;
use bastionai_trainer::training::Training;
use bastionai_trainer::units::UnitRows;
use bastionai_trainer::{Device, Engine, Settings, phases, selftest};
use bastionai_wire::trainer::{DatasetShape, Job, TRAINER_PROTOCOL_VERSION};
use bastionai_wire::units::Units;
use bastionai_wire::{Adam, Clipping, Compute, NoiseMode, Optimizer, Schedule};
use std::io::{BufRead, Write};
use std::ops::Range;
use std::time::Instant;

/// Rows of the made-up dataset.
const ROWS: u64 = 4096;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (device, arguments) = match &arguments[..] {
        [flag, name, arguments @ ..] if flag == "--device" => (Device::named(name), arguments),
        arguments => (Some(Device::Cpu), arguments),
    };
    let (Some(device), [archive, batch, threads, optimizer, values @ ..]) = (device, arguments) else {
        anyhow::bail!("usage: bench_step [--device cpu|cuda] MODEL.pt2 256 2 sgd|adamw [0:1000,0:2]");
    };
    device.load()?;
    let own_mib = resident_mib()?;
    let values = values
        .iter()
        .flat_map(|list| list.split(','))
        .map(range)
        .collect::<anyhow::Result<Vec<_>>>()?;
    let threads = threads.parse()?;
    let model = model(archive)?;
    // In the trainer's order: what was received is there before libtorch's threads and the allocator's settings are.
    let received_mib = resident_mib()?;
    device.start()?;
    selftest::prepare_process(threads)?;
    let libraries_mib = own_mib + resident_mib()?.saturating_sub(received_mib);
    let (mut training, choice) = training(model, batch, threads, optimizer, &values, device)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{choice} libraries_mib={libraries_mib}")?;
    out.flush()?;
    for (step, line) in (1..).zip(std::io::stdin().lock().lines()) {
        let line = line?;
        match &line[..] {
            "profile" => phases::start(),
            "memory" => phases::start_memory(),
            _ => {}
        }
        let start = Instant::now();
        training.step(step)?;
        write!(out, "{}", start.elapsed().as_secs_f64())?;
        for (phase, taken) in phases::stop() {
            write!(out, "\t{phase}={}", taken.as_secs_f64())?;
        }
        for (phase, held) in phases::stop_memory() {
            let mib = [held.peak_kib, held.end_kib, held.used_kib].map(|kib| kib / 1024);
            write!(out, "\t{phase}={}:{}:{}", mib[0], mib[1], mib[2])?;
        }
        writeln!(out)?;
        out.flush()?;
    }
    Ok(())
}

/// A graph with the bytes of its parameters and constants.
type Model = (TypedGraph, Vec<Vec<u8>>, Vec<Vec<u8>>);

/// What a trainer receives of an archive, which is a server's to hold.
fn model(path: &str) -> anyhow::Result<Model> {
    let archive = Archive::read(&std::fs::read(path)?, &Limits::default())?;
    let columns = archive
        .example_inputs()
        .map_err(|error| anyhow::anyhow!("the archive records no input shapes: {error:?}"))?;
    let graph = bastionai_graph::check(&archive, &columns)?;
    let bytes = |index, of: Option<&[u8]>| {
        of.map(<[u8]>::to_vec)
            .ok_or_else(|| anyhow::anyhow!("tensor {index} is not in the archive"))
    };
    let parameters = (0..graph.parameters().len())
        .map(|index| bytes(index, archive.parameter_bytes(index)))
        .collect::<Result<Vec<_>, _>>()?;
    let constants = (0..graph.constants().len())
        .map(|index| bytes(index, archive.constant_bytes(index)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok((graph, parameters, constants))
}

fn training(
    (graph, parameters, constants): Model,
    batch: &str,
    threads: u32,
    optimizer: &str,
    values: &[Range<u64>],
    device: Device,
) -> anyhow::Result<(Training, String)> {
    let (batch, cap) = match batch.split_once(':') {
        Some((expected, physical)) => (expected.parse()?, physical.parse()?),
        None => (batch.parse()?, physical_batch_size(batch.parse()?)?),
    };
    let settings = Settings {
        physical_batch_size: cap,
        records_per_unit: 1,
        micro_batches: 1,
        max_grad_norm: 1.0,
        clipping: Clipping::Flat,
        compute: Compute::Float32,
        noise_mode: NoiseMode::Standard,
        threads,
    };
    let mut engine = Engine::consuming(graph, parameters, constants, settings)?;
    engine.run_on(device)?;
    let choice = selftest::self_test(&mut engine)?;
    let job = job(&engine, batch, cap, threads, optimizer);
    let mut records = Records::new(engine.graph().inputs(), &job.datasets)?;
    let mut values = values.iter();
    for (position, input) in (0..).zip(engine.graph().inputs()) {
        let bound = match input.dtype {
            DType::F32 | DType::F64 => None,
            _ => Some(
                values
                    .next()
                    .ok_or_else(|| anyhow::anyhow!("which values has {}?", input.column))?
                    .clone(),
            ),
        };
        records.fill(position, 0, ROWS, &made_up(input, bound)?)?;
    }
    let slack = engine.l2_sensitivity() - 1.0;
    Ok((
        Training::new(engine, records, UnitRows::of_records(1), &job)?,
        format!("kernels={choice:?} cap={cap} slack={slack:.6}"),
    ))
}

fn job(engine: &Engine, batch: u32, cap: u32, threads: u32, optimizer: &str) -> Job {
    let optimizer = match optimizer {
        "adamw" => Optimizer::AdamW(Adam {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
        }),
        _ => Optimizer::Sgd {
            lr: 0.1,
            momentum: 0.9,
            dampening: 0.0,
            weight_decay: 0.0,
            nesterov: false,
        },
    };
    Job {
        version: TRAINER_PROTOCOL_VERSION,
        graph: engine.graph().to_bytes(),
        datasets: vec![DatasetShape {
            capacity: ROWS,
            rows: ROWS,
        }],
        // Never reached: hashing at the last step is not part of an ordinary one.
        units: Units::records(1),
        steps: u64::MAX,
        start_step: 0,
        checkpoint_ms: 500,
        sample_threshold: (f64::from(batch) / ROWS as f64 * 2f64.powi(64)) as u64,
        expected_batch_size: f64::from(batch),
        physical_batch_size: cap,
        micro_batches: 1,
        max_grad_norm: 1.0,
        clipping: Clipping::Flat,
        compute: Compute::Float32,
        noise_mode: NoiseMode::Standard,
        noise_multiplier: 1.0,
        loss: None,
        optimizer,
        schedule: Schedule::default(),
        average: None,
        band: None,
        keep_steps: vec![],
        threads,
    }
}

/// The cap of a run of 1000 steps at (3, 1e-5).
fn physical_batch_size(batch: u32) -> anyhow::Result<u32> {
    let run = SampledSteps {
        dataset_size: ROWS,
        sampling_probability: f64::from(batch) / ROWS as f64,
        steps: 1000,
    };
    Ok(u32::try_from(run.truncated_batch_size_for(3.0, 1e-5)?)?)
}

/// What this process holds, in MiB.
fn resident_mib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next());
    let kib = kib.ok_or_else(|| anyhow::anyhow!("/proc/self/status has no VmRSS"))?;
    Ok(kib.parse::<u64>()? / 1024)
}

/// A number in [-1, 1) that looks random.
fn unit(i: u64) -> f64 {
    (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// `low:high`, the high end excluded.
fn range(text: &str) -> anyhow::Result<Range<u64>> {
    let ends = text
        .split_once(':')
        .map(|(low, high)| (low.parse(), high.parse()));
    match ends {
        Some((Ok(low), Ok(high))) if low < high => Ok(low..high),
        _ => anyhow::bail!("'{text}' is no range such as 0:1000"),
    }
}

/// A column of the made-up dataset: numbers in [-1, 1), or integers within the range.
fn made_up(input: &Input, range: Option<Range<u64>>) -> anyhow::Result<Vec<u8>> {
    let count = ROWS * input.shape.iter().product::<u64>();
    let scattered = |i: u64, range: &Range<u64>| {
        let values = range.end - range.start;
        range.start + (((unit(i * 3) + 1.0) / 2.0 * values as f64) as u64).min(values - 1)
    };
    Ok(match (input.dtype, range) {
        (DType::F32, _) => (0..count).flat_map(|i| (unit(i) as f32).to_le_bytes()).collect(),
        (DType::I64, Some(range)) => (0..count)
            .flat_map(|i| scattered(i, &range).to_le_bytes())
            .collect(),
        (dtype, _) => anyhow::bail!("no made-up values of {dtype:?}"),
    })
}
