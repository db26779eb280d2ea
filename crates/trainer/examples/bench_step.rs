//! Private training steps of an MLP, timed one at a time: the engine's side of `make bench` (benches/mlp_step.py).
//!
//! Arguments: sizes of the layers, e.g. `784,512,512,10`; expected batch size; threads; optimizer (`sgd` or `adamw`).
//! It prints what it chose, then takes one step for every line on standard input and answers with its seconds.
//! The sample is drawn, padded to the cap a planner would choose, and masked, as in any run.
#![allow(clippy::print_stdout)]

use bastionai_graph::dtype::DType;
use bastionai_graph::schema::{self, DefaultValue};
use bastionai_graph::typed::*;
use bastionai_privacy::truncation::truncated_batch_size;
use bastionai_trainer::records::Records;
use bastionai_trainer::training::Training;
use bastionai_trainer::{Engine, Settings, selftest};
use bastionai_wire::trainer::{DatasetShape, Job, TRAINER_PROTOCOL_VERSION};
use bastionai_wire::{Optimizer, Schedule};
use std::io::{BufRead, Write};
use std::time::Instant;

/// Rows of the made-up dataset.
const ROWS: u64 = 4096;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [layers, batch, threads, optimizer] = &arguments[..] else {
        anyhow::bail!("usage: bench_step 784,512,512,10 256 2 sgd|adamw");
    };
    let layers = layers
        .split(',')
        .map(str::parse)
        .collect::<Result<Vec<u64>, _>>()?;
    let (mut training, choice) = training(&layers, batch.parse()?, threads.parse()?, optimizer)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{choice}")?;
    out.flush()?;
    for (step, line) in (1..).zip(std::io::stdin().lock().lines()) {
        line?;
        let start = Instant::now();
        training.step(step)?;
        writeln!(out, "{}", start.elapsed().as_secs_f64())?;
        out.flush()?;
    }
    Ok(())
}

fn training(layers: &[u64], batch: u32, threads: u32, optimizer: &str) -> anyhow::Result<(Training, String)> {
    selftest::prepare_process(threads)?;
    let graph = mlp(layers);
    let parameters = graph
        .parameters()
        .iter()
        .enumerate()
        .map(|(seed, each)| initial(&each.shape, seed))
        .collect::<Vec<_>>();
    let cap = physical_batch_size(batch)?;
    let settings = Settings {
        physical_batch_size: cap,
        micro_batches: 1,
        max_grad_norm: 1.0,
        threads,
    };
    let mut engine = Engine::new(graph, &parameters, &[], settings)?;
    let choice = selftest::self_test(&mut engine)?;
    let job = job(&engine, batch, cap, threads, optimizer);
    let mut records = Records::new(engine.graph().inputs(), &job.datasets)?;
    let features = (0..ROWS * layers[0])
        .flat_map(|i| (unit(i) as f32).to_le_bytes())
        .collect::<Vec<u8>>();
    let classes = *layers.last().unwrap_or(&1);
    let labels = (0..ROWS)
        .flat_map(|i| ((i * 31 % classes) as i64).to_le_bytes())
        .collect::<Vec<u8>>();
    records.fill(0, 0, ROWS, &features)?;
    records.fill(1, 0, ROWS, &labels)?;
    let slack = engine.l2_sensitivity() - 1.0;
    Ok((
        Training::new(engine, records, &job)?,
        format!("kernels={choice:?} cap={cap} slack={slack:.6}"),
    ))
}

fn job(engine: &Engine, batch: u32, cap: u32, threads: u32, optimizer: &str) -> Job {
    let optimizer = match optimizer {
        "adamw" => Optimizer::AdamW {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
        },
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
        steps: u64::MAX,
        start_step: 0,
        checkpoint_ms: 500,
        sample_threshold: (f64::from(batch) / ROWS as f64 * 2f64.powi(64)) as u64,
        expected_batch_size: f64::from(batch),
        physical_batch_size: cap,
        micro_batches: 1,
        max_grad_norm: 1.0,
        noise_multiplier: 1.0,
        loss: None,
        optimizer,
        schedule: Schedule::default(),
        threads,
    }
}

/// The cap of a run of 1000 steps at (3, 1e-5), up to a multiple of 16.
fn physical_batch_size(batch: u32) -> anyhow::Result<u32> {
    let rate = f64::from(batch) / ROWS as f64;
    Ok(u32::try_from(
        truncated_batch_size(ROWS, rate, 1000, 3.0, 1e-5)?.next_multiple_of(16),
    )?)
}

/// A number in [-1, 1) that looks random.
fn unit(i: u64) -> f64 {
    (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

fn initial(shape: &[u64], seed: usize) -> Vec<u8> {
    let fan_in = *shape.last().unwrap_or(&1) as f64;
    let count: u64 = shape.iter().product();
    (0..count)
        .flat_map(|i| ((unit(i + (seed as u64) * 7_919) / fan_in.sqrt()) as f32).to_le_bytes())
        .collect()
}

/// linear → relu → … → linear → cross-entropy per sample, as the checker types it.
fn mlp(layers: &[u64]) -> TypedGraph {
    let (mut values, mut nodes, mut parameters) = (Vec::new(), Vec::new(), Vec::new());
    let inputs = vec![
        Input {
            column: "x".into(),
            dtype: DType::F32,
            shape: vec![layers[0]],
        },
        Input {
            column: "y".into(),
            dtype: DType::I64,
            shape: vec![],
        },
    ];
    let mut value = |name: &str, origin, dtype, shape: Vec<Extent>, requires_grad| {
        let dependence = match shape.first() {
            Some(Extent::Batch(_)) => Dependence::PerSample { axis: 0 },
            _ => Dependence::Shared,
        };
        values.push(Value {
            name: name.into(),
            origin,
            value_type: ValueType {
                dependence,
                shape,
                dtype,
            },
            requires_grad,
        });
        ValueId(values.len() as u32 - 1)
    };
    let rows = |width: u64| vec![Extent::Batch(1), Extent::Fixed(width)];
    let mut h = value("x", Origin::Input(0), DType::F32, rows(layers[0]), false);
    let y = value("y", Origin::Input(1), DType::I64, vec![Extent::Batch(1)], false);
    let mut node = |operator: &str, given: &[(&str, ValueId)], output: ValueId, tap: Option<Tap>| {
        nodes.push(TypedNode {
            name: format!("{operator}_{}", nodes.len()),
            operator: operator.into(),
            overload: "default".into(),
            arguments: arguments(operator, given),
            outputs: vec![output],
            tap,
            source: None,
        });
        Origin::Node {
            node: nodes.len() as u32,
            output: 0,
        }
    };
    let mut next = Origin::Node { node: 0, output: 0 };
    for (layer, pair) in layers.windows(2).enumerate() {
        let (input, output) = (pair[0], pair[1]);
        let mut parameter = |shape: Vec<u64>| {
            parameters.push(Parameter {
                names: vec![format!("p{}", parameters.len())],
                dtype: DType::F32,
                shape: shape.clone(),
                trainable: true,
            });
            let id = ParameterId(parameters.len() as u32 - 1);
            let extents = shape.into_iter().map(Extent::Fixed).collect();
            let value = value("p", Origin::Parameter(id), DType::F32, extents, true);
            TappedParameter {
                parameter: id,
                value,
                views: vec![],
            }
        };
        let (weight, bias) = (parameter(vec![output, input]), parameter(vec![output]));
        let z = value("z", next.clone(), DType::F32, rows(output), true);
        let given = [("input", h), ("weight", weight.value), ("bias", bias.value)];
        let tap = Tap::Linear {
            input: h,
            weight: Some(weight),
            bias: Some(bias),
        };
        next = node("linear", &given, z, Some(tap));
        h = z;
        if layer + 2 < layers.len() {
            h = value("h", next.clone(), DType::F32, rows(output), true);
            next = node("relu", &[("self", z)], h, None);
        }
    }
    let loss = value("loss", next, DType::F32, vec![Extent::Batch(1)], true);
    node("cross_entropy_loss", &[("self", h), ("target", y)], loss, None);
    let fields = (inputs, parameters, Vec::<Constant>::new(), values, nodes, loss);
    let mut bytes = vec![TYPED_GRAPH_VERSION];
    bytes.extend(postcard::to_stdvec(&fields).expect("the fields encode"));
    TypedGraph::from_bytes(&bytes).expect("the fields of a typed graph")
}

fn arguments(operator: &str, given: &[(&str, ValueId)]) -> Vec<NamedArgument> {
    let known = schema::find(operator, "default").expect("an allowed operator");
    let argument = |argument: &schema::SchemaArgument| {
        let given = given
            .iter()
            .find(|(name, _)| *name == argument.name)
            .map(|(_, value)| Argument::Value(*value));
        let default = || match argument.default.as_ref() {
            // Per-sample losses: reduction is none.
            Some(DefaultValue::Int(_)) if argument.name == "reduction" => Argument::Int(0),
            Some(DefaultValue::Int(value)) => Argument::Int(*value),
            Some(DefaultValue::Float(value)) => Argument::Float(FloatBits::new(*value)),
            Some(DefaultValue::Bool(value)) => Argument::Bool(*value),
            _ => Argument::None,
        };
        NamedArgument {
            name: argument.name.clone(),
            value: given.unwrap_or_else(default),
        }
    };
    known.arguments.iter().map(argument).collect()
}
