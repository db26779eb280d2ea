//! What a run needs beside the data it works on, from its reservation to its end: kept sealed in the vault, so that
//! the run outlives this boot, and read from there whenever a trainer starts on it.
//!
//! ```text
//! order = frame(task, dataset ids, results, facts) ‖ tensors in graph order, as long as their shapes say
//! ```
//! Only a server that is wholly the same goes on with a run (rule A11), so this form never meets another version of itself.

use super::record::Keeping;
use super::supervise::{StateShape, StateTensors};
use crate::config::Limits;
use crate::errors::Failure;
use crate::memory::Needs;
use crate::models::Model;
use crate::plan;
use crate::priced::Priced;
use crate::terms;
use crate::units::UnitKey;
use crate::warm_start;
use bastionai_graph::dtype::DType;
use bastionai_graph::typed::{Parameter, TypedGraph};
use bastionai_ledger::{DatasetId, WeightTensor};
use bastionai_privacy::histogram::HistogramShape;
use bastionai_vault::Weights;
use bastionai_wire::trainer::{
    Band, ClassKey, DatasetShape, MAX_FRAME_BYTES, Task, read_message, write_message,
};
use bastionai_wire::units::Units;
use bastionai_wire::{Compute, NoiseMode};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use std::io;
use zeroize::Zeroizing;

/// An agreed run, ready for a trainer but for the records.
pub(crate) struct RunOrder {
    agreed: Agreed,
    pub(crate) graph: TypedGraph,
    /// Parameters, then constants, in graph order.
    pub(crate) tensors: Vec<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
struct Agreed {
    /// Without row counts, and before its first step.
    task: Task,
    /// In run order.
    datasets: Vec<DatasetId>,
    unit_key: UnitKey,
    results: Vec<ResultTensor>,
    facts: Option<Fact>,
}

/// One of the tensors that the run yields, and the first ones of its checkpoints: a trained parameter, or a histogram.
#[derive(Clone, Serialize, Deserialize)]
struct ResultTensor {
    tensor: WeightTensor,
    /// Element size, where it is an IEEE float.
    float_bytes: Option<u8>,
}

/// A public fact that is sealed and released with the results.
#[derive(Serialize, Deserialize)]
struct Fact {
    tensor: WeightTensor,
    bytes: Vec<u8>,
}

/// Bytes that are no order: a fault of ours, since the vault has authenticated them.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the stored order of a run does not decode")]
pub(crate) struct OrderError;

impl RunOrder {
    /// From a quote, its model and the weights it starts from, if not the model's own, as priced.
    pub(crate) fn new(
        priced: &Priced,
        model: &Model,
        initial: Option<&Weights>,
        limits: &Limits,
        threads: u32,
    ) -> Result<Self, Failure> {
        let archive = terms::read_archive(&model.archive, limits.model_bytes)?;
        let no_rows = vec![0; priced.datasets().len()];
        let task = match priced {
            Priced::Training(run) => Task::Train(run.job(&no_rows, threads, ClassKey(fresh_key()?))),
            Priced::Evaluation(evaluation) => Task::Evaluate(evaluation.job(&no_rows, threads)),
        };
        Ok(Self {
            agreed: Agreed {
                task,
                datasets: priced.datasets().to_vec(),
                unit_key: UnitKey(fresh_key()?),
                results: results(priced),
                facts: facts(priced),
            },
            graph: priced.graph().clone(),
            tensors: warm_start::initial_tensors(&archive, priced.graph(), initial)?,
        })
    }

    /// The first part of the stored form; the tensors are the others.
    pub(crate) fn head(&self) -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        write_message(&mut head, &self.agreed)?;
        Ok(head)
    }

    pub(crate) fn parse(stored: &[u8]) -> Result<Self, OrderError> {
        let mut rest = stored;
        let agreed: Agreed = read_message(&mut rest, MAX_FRAME_BYTES).map_err(|_| OrderError)?;
        let graph = match &agreed.task {
            Task::Train(job) => &job.graph,
            Task::Evaluate(job) => &job.graph,
        };
        let graph = TypedGraph::from_bytes(graph).map_err(|_| OrderError)?;
        let parameters = graph.parameters().iter().map(|each| (each.dtype, &each.shape));
        let constants = graph.constants().iter().map(|each| (each.dtype, &each.shape));
        let mut tensors = Vec::new();
        for (dtype, shape) in parameters.chain(constants) {
            let length = usize::try_from(bytes(dtype, shape)).map_err(|_| OrderError)?;
            let (tensor, after) = rest.split_at_checked(length).ok_or(OrderError)?;
            tensors.push(tensor.to_vec());
            rest = after;
        }
        if !rest.is_empty() {
            return Err(OrderError);
        }
        Ok(Self {
            agreed,
            graph,
            tensors,
        })
    }

    pub(crate) fn datasets(&self) -> &[DatasetId] {
        &self.agreed.datasets
    }

    /// What its trainer was estimated to need when it was priced.
    pub(crate) fn memory_bytes(&self, declared_sizes: &[u64]) -> u64 {
        let (compute, noise_mode, physical_batch_size, records_per_unit, beside) = match &self.agreed.task {
            Task::Train(job) => {
                let average = job.average.map_or(0, |_| plan::weight_bytes(&self.graph));
                let bands = job.band.as_ref().map_or(1, Band::bands);
                let noise = plan::noise_bytes(bands, plan::trainable_parameters(&self.graph));
                (
                    job.compute,
                    job.noise_mode,
                    job.physical_batch_size,
                    job.units.records_per_unit,
                    average.saturating_add(noise),
                )
            }
            Task::Evaluate(job) => (
                Compute::Float32,
                NoiseMode::Standard,
                job.physical_batch_size,
                1,
                0,
            ),
        };
        let needs = Needs {
            graph: &self.graph,
            declared_sizes,
            records_per_unit,
            compute,
            noise_mode,
        };
        needs.memory(physical_batch_size).total().saturating_add(beside)
    }

    /// Numbers the units of its datasets.
    pub(crate) fn unit_key(&self) -> &UnitKey {
        &self.agreed.unit_key
    }

    /// Which records are protected together.
    pub(crate) fn units(&self) -> Units {
        match &self.agreed.task {
            Task::Train(job) => job.units.clone(),
            Task::Evaluate(_) => Units::records(self.agreed.datasets.len()),
        }
    }

    pub(crate) fn steps(&self) -> u64 {
        self.agreed.task.steps()
    }

    /// What the trainer is sent, from a step on.
    pub(crate) fn task(&self, datasets: Vec<DatasetShape>, start_step: u64, checkpoint_ms: u64) -> Task {
        let mut task = self.agreed.task.clone();
        match &mut task {
            Task::Train(job) => {
                job.datasets = datasets;
                job.start_step = start_step;
                job.checkpoint_ms = checkpoint_ms;
            }
            // Its one step is released or redone whole.
            Task::Evaluate(job) => job.datasets = datasets,
        }
        task
    }

    /// The tensors of a checkpoint, in order (`bastionai_wire::trainer`).
    pub(crate) fn state(&self) -> Vec<StateShape> {
        let shape = |result: &ResultTensor| StateShape {
            bytes: result.tensor.size_bytes,
            float_bytes: result.float_bytes.map(usize::from),
        };
        let group: Vec<_> = self.agreed.results.iter().map(shape).collect();
        match &self.agreed.task {
            Task::Train(job) => group.repeat(job.state_groups()),
            Task::Evaluate(_) => group,
        }
    }

    /// Cuts a stored checkpoint into its tensors; `None` when it is not one of this run.
    pub(crate) fn cut(&self, mut stored: &[u8]) -> Option<StateTensors> {
        let mut tensors = Vec::new();
        for shape in self.state() {
            let (tensor, rest) = stored.split_at_checked(usize::try_from(shape.bytes).ok()?)?;
            tensors.push(Zeroizing::new(tensor.to_vec()));
            stored = rest;
        }
        stored.is_empty().then_some(tensors)
    }

    /// What of its checkpoints is kept: of an evaluation nothing.
    pub(crate) fn keeping(&self) -> Keeping {
        let results = self.agreed.results.iter();
        let weights = results.map(|result| result.tensor.clone()).collect();
        match &self.agreed.task {
            Task::Train(job) => Keeping {
                steps: job.keep_steps.clone(),
                average: job.average.is_some(),
                last_step: job.steps,
                weights,
            },
            Task::Evaluate(_) => Keeping {
                steps: Vec::new(),
                average: false,
                last_step: 1,
                weights,
            },
        }
    }

    /// What a finished run yields: the first tensors of its last checkpoint, and what is known beside.
    pub(crate) fn results(&self, state: &StateTensors) -> Weights {
        let results = self.agreed.results.iter();
        let mut tensors: Vec<_> = results.map(|result| result.tensor.clone()).collect();
        let yielded = state.iter().take(tensors.len()).map(|bytes| &bytes[..]);
        let mut data = Zeroizing::new(yielded.collect::<Vec<_>>().concat());
        if let Some(fact) = &self.agreed.facts {
            tensors.push(fact.tensor.clone());
            data.extend_from_slice(&fact.bytes);
        }
        Weights { tensors, data }
    }
}

/// A key of a run: which slots its units have, or which classes the slots are in, stays the same however often its trainer
/// starts. Sealed with the order, and known to nobody.
fn fresh_key() -> Result<[u8; 32], Failure> {
    let mut key = [0; 32];
    match SystemRandom::new().fill(&mut key) {
        Ok(()) => Ok(key),
        Err(_) => Err(Failure::internal(NoRandomness)),
    }
}

/// The operating system gave none.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the system gave no randomness")]
struct NoRandomness;

/// What the trainer hands over at the end, in order: trained parameters, or histograms.
fn results(priced: &Priced) -> Vec<ResultTensor> {
    match priced {
        Priced::Training(run) => {
            let trained = run.graph.parameters().iter().filter(|each| each.trainable);
            trained.map(trained_tensor).collect()
        }
        Priced::Evaluation(evaluation) => evaluation
            .histograms
            .shapes()
            .into_iter()
            .map(histogram)
            .collect(),
    }
}

/// How much noise the counts of a histogram have.
fn facts(priced: &Priced) -> Option<Fact> {
    let Priced::Evaluation(evaluation) = priced else {
        return None;
    };
    let bytes = evaluation.noise_standard_deviation().to_le_bytes().to_vec();
    let tensor = WeightTensor {
        names: vec!["noise_standard_deviation".into()],
        dtype: DType::F64.torch_name().to_owned(),
        shape: Vec::new(),
        size_bytes: bytes.len() as u64,
    };
    Some(Fact { tensor, bytes })
}

fn histogram(shape: HistogramShape) -> ResultTensor {
    let dtype = DType::I64;
    let size_bytes = shape.counts() * dtype.size_bytes() as u64;
    ResultTensor {
        tensor: WeightTensor {
            names: vec![shape.name],
            dtype: dtype.torch_name().to_owned(),
            shape: vec![shape.rows, shape.columns],
            size_bytes,
        },
        float_bytes: None,
    }
}

fn trained_tensor(parameter: &Parameter) -> ResultTensor {
    ResultTensor {
        tensor: WeightTensor {
            names: parameter.names.clone(),
            dtype: parameter.dtype.torch_name().to_owned(),
            shape: parameter.shape.clone(),
            size_bytes: bytes(parameter.dtype, &parameter.shape),
        },
        float_bytes: Some(parameter.dtype.size_bytes() as u8),
    }
}

fn bytes(dtype: DType, shape: &[u64]) -> u64 {
    plan::elements(shape).saturating_mul(dtype.size_bytes() as u64)
}
