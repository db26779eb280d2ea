//! A model whose gradients are known without computing them, and trainings read off their weights.
//!
//! The loss of a record is Σⱼ wⱼ·xⱼ: its gradient is the record itself, whatever the weights are. A record that is long
//! and zero but for one coordinate is a canary in Dirac's sense: clipped, it adds C to that coordinate and nothing elsewhere.

use crate::support::models::{Model, v};
use crate::support::*;
use bastionai_graph::dtype::DType;
use bastionai_graph::typed::{Argument, ValueId};
use bastionai_trainer::Settings;
use bastionai_trainer::records::Records;
use bastionai_trainer::training::Training;
use bastionai_trainer::units::UnitRows;
use bastionai_wire::trainer::{DatasetShape, Job, TRAINER_PROTOCOL_VERSION};
use bastionai_wire::units::Units;
use bastionai_wire::{Optimizer, Schedule};
use std::sync::Mutex;
use tch::{Device, Kind, Tensor};

/// Length of a canary before clipping.
pub(crate) const LONG: f32 = 16.0;
/// The clipping norm of all jobs here.
pub(crate) const MAX_GRAD_NORM: f64 = 1.0;
/// Noise that hides nothing: the job must have some.
pub(crate) const NEXT_TO_NOTHING: f64 = 1e-6;

/// One input and one weight vector of each width; all weights are `start`.
pub(crate) fn linear(widths: &[u64], start: f64) -> Model {
    let mut g = Builder::default();
    let inputs: Vec<ValueId> = (0..)
        .zip(widths)
        .map(|(j, &width)| g.input(&format!("x{j}"), DType::F32, &[width]))
        .collect();
    let weights: Vec<ValueId> = (0..)
        .zip(widths)
        .map(|(j, &width)| g.parameter(&format!("w{j}"), DType::F32, &[1, width], true))
        .collect();
    let mut total = None;
    for (&x, &w) in inputs.iter().zip(&weights) {
        let product = g.linear(x, w, None, &[b(1), n(1)]);
        let dim = ("dim", Argument::Ints(vec![1]));
        let one = g.node(
            "sum.dim_IntList",
            &[("self", v(product)), dim],
            DType::F32,
            &[b(1)],
        );
        total = Some(match total {
            None => one,
            Some(sum) => g.node(
                "add.Tensor",
                &[("self", v(sum)), ("other", v(one))],
                DType::F32,
                &[b(1)],
            ),
        });
    }
    let filled = |&width: &u64| Tensor::full([1, width as i64], start, (Kind::Float, Device::Cpu));
    Model {
        name: "canaries",
        graph: g.finish(total.expect("a width")),
        parameters: widths.iter().map(filled).collect(),
        constants: vec![],
        inputs: vec![],
        reference: Box::new(|_, _| unreachable!("the gradient is the record")),
    }
}

/// Rows that are zero but for `value` at the coordinate that each names.
pub(crate) fn diracs(coordinates: &[usize], capacity: usize, width: usize, value: f32) -> Tensor {
    let mut values = vec![0.0f32; capacity * width];
    for (row, &coordinate) in coordinates.iter().enumerate() {
        values[row * width + coordinate] = value;
    }
    Tensor::from_slice(&values).reshape([capacity as i64, width as i64])
}

/// One dataset, everything in the sample of every step, SGD with a learning rate of 1, divisor 1: a step subtracts the
/// noisy sum from the weights.
pub(crate) fn job(rows: usize, capacity: usize) -> Job {
    Job {
        version: TRAINER_PROTOCOL_VERSION,
        graph: vec![],
        datasets: vec![DatasetShape {
            capacity: capacity as u64,
            rows: rows as u64,
        }],
        units: Units::records(1),
        steps: 1,
        start_step: 0,
        checkpoint_ms: 1000,
        sample_threshold: u64::MAX,
        expected_batch_size: 1.0,
        physical_batch_size: capacity as u32,
        micro_batches: 1,
        max_grad_norm: MAX_GRAD_NORM,
        clipping: Clipping::Flat,
        compute: Compute::Float32,
        noise_mode: NoiseMode::Standard,
        noise_multiplier: NEXT_TO_NOTHING,
        loss: None,
        optimizer: Optimizer::Sgd {
            lr: 1.0,
            momentum: 0.0,
            dampening: 0.0,
            weight_decay: 0.0,
            nesterov: false,
        },
        schedule: Schedule::default(),
        average: None,
        band: None,
        keep_steps: vec![],
        threads: 1,
    }
}

/// libtorch has one generator for the process: whoever draws from it reproducibly holds this, and so does whoever seeds it.
static GENERATOR: Mutex<()> = Mutex::new(());

/// What `draw` makes with the generator seeded.
pub(crate) fn drawn<T>(seed: i64, draw: impl FnOnce() -> T) -> T {
    let _alone = GENERATOR.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    tch::manual_seed(seed);
    draw()
}

/// A training whose steps are read off its weights.
pub(crate) struct Audited {
    training: Training,
    divisor: f64,
    step: u64,
}

/// What a step released, undivided.
pub(crate) struct Released {
    /// The noisy sum of each parameter.
    pub(crate) sums: Vec<Vec<f64>>,
    /// The noisy loss sum; NaN where none is released.
    pub(crate) loss: f64,
}

impl Audited {
    /// `columns`: the records of all datasets, one tensor for each input.
    pub(crate) fn new(model: &Model, job: &Job, columns: &[Tensor]) -> Self {
        let engine = model.engine(Settings {
            physical_batch_size: job.physical_batch_size,
            records_per_unit: job.units.records_per_unit,
            micro_batches: job.micro_batches,
            max_grad_norm: job.max_grad_norm,
            clipping: job.clipping,
            compute: job.compute,
            noise_mode: job.noise_mode,
            threads: job.threads,
        });
        let mut records = Records::new(engine.graph().inputs(), &job.datasets).unwrap();
        let capacity = job.datasets.iter().map(|each| each.capacity).sum();
        for (input, column) in columns.iter().enumerate() {
            records.fill(input, 0, capacity, &bytes_of(column)).unwrap();
        }
        let _alone = GENERATOR.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let units = UnitRows::of_records(job.datasets.len());
        Self {
            training: Training::new(engine, records, units, job).unwrap(),
            divisor: job.expected_batch_size,
            step: job.start_step,
        }
    }

    /// The L2 sensitivity that the run's noise is a multiple of.
    pub(crate) fn l2_sensitivity(&self) -> f64 {
        self.training.engine().l2_sensitivity()
    }

    /// The weights, one vector a parameter.
    pub(crate) fn weights(&self) -> Vec<Vec<f64>> {
        let flat =
            |tensor: Tensor| Vec::<f64>::try_from(tensor.flatten(0, -1).to_kind(Kind::Double)).unwrap();
        self.training.parameters().into_iter().map(flat).collect()
    }

    /// Takes the next step.
    pub(crate) fn step(&mut self) -> Released {
        let before = self.weights();
        self.step += 1;
        let loss = self.training.step(self.step).unwrap();
        let moved = |(before, after): (Vec<f64>, Vec<f64>)| {
            let each = before.iter().zip(&after);
            each.map(|(before, after)| (before - after) * self.divisor)
                .collect()
        };
        Released {
            sums: before.into_iter().zip(self.weights()).map(moved).collect(),
            loss: loss.map_or(f64::NAN, |mean| mean * self.divisor),
        }
    }
}
