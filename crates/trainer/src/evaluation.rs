//! An evaluation: one forward pass over every record, its scores counted in histograms, noise on every count.
//!
//! # Guarantee
//! One record adds 1 to one cell of each histogram, or nothing (`bastionai_privacy::histogram`), so the counts
//! have the L2 sensitivity stated there; noise of `noise_multiplier` times it, rounded to integers, makes the
//! release a Gaussian mechanism (docs/privacy.md, evaluation). Its key is drawn here and kept nowhere (rule D1): an evaluation
//! asked for twice is two releases, and is charged twice.
//!
//! Every place of every dataset is computed, padding too, in the same number of equal batches whatever the
//! number of records (rules T2, D8). As in training, records stand at uniformly random places ([`crate::sample`]):
//! kernels may round differently from place to place, and removing a record must not shift the others.

use crate::device::{Device, to_host};
use crate::error::{EngineError, Result};
use crate::executor::{self, Forward, Randomness};
use crate::grid::MAX_PHYSICAL_BATCH_SIZE;
use crate::program::{Program, compare_schemas};
use crate::records::Records;
use crate::sample::PooledSampler;
use crate::selftest::{self, RowProof};
use crate::state::State;
use bastionai_graph::typed::TypedGraph;
use bastionai_privacy::histogram::Histograms;
use bastionai_privacy::noise::NoiseStream;
use bastionai_privacy::sampling;
use bastionai_wire::trainer::{DatasetShape, EvaluationJob};
use ring::rand::{SecureRandom, SystemRandom};
use tch::{Kind, Tensor};
use zeroize::Zeroizing;

/// The one release of an evaluation.
const STEP: u64 = 1;

/// A graph of scores at one batch size, with its weights.
pub struct Evaluator {
    graph: TypedGraph,
    program: Program,
    state: State,
    histograms: Histograms,
    noise_multiplier: f64,
    batch_size: usize,
    places: usize,
}

impl Evaluator {
    /// Builds the evaluator. `parameters` and `constants` are contiguous little-endian bytes in graph order.
    ///
    /// # Errors
    /// [`EngineError`] when a number, a size or a node is not one that can be evaluated soundly.
    pub fn new(
        graph: TypedGraph,
        parameters: Vec<Vec<u8>>,
        constants: Vec<Vec<u8>>,
        job: &EvaluationJob,
    ) -> Result<Self> {
        let refuse = |text: &str| Err(EngineError::Job(text.into()));
        let Some(width) = graph.score_width() else {
            return refuse("the graph returns a loss: it can be trained, not evaluated");
        };
        if width != u64::from(job.classes) && !(width == 1 && job.classes == 2) {
            return refuse("the graph's scores are not those of the histograms' classes");
        }
        if job.datasets.is_empty() || job.threads == 0 {
            return refuse("an evaluation needs at least one dataset and one thread");
        }
        if !(1..=MAX_PHYSICAL_BATCH_SIZE).contains(&job.physical_batch_size) {
            return refuse("physical_batch_size is out of range");
        }
        if !(job.noise_multiplier > 0.0 && job.noise_multiplier.is_finite()) {
            return refuse("noise_multiplier must be positive and finite: no count leaves without noise");
        }
        let histograms = Histograms::new(job.classes, job.has_confusion, job.score_bins)
            .map_err(|error| EngineError::Job(error.to_string()))?;
        let program = Program::new(&graph, job.physical_batch_size)?;
        let state = State::new(&graph, parameters.into_iter(), constants.into_iter())?;
        Ok(Self {
            graph,
            program,
            state,
            histograms,
            noise_multiplier: job.noise_multiplier,
            batch_size: job.physical_batch_size as usize,
            places: places(&job.datasets, job.physical_batch_size)?,
        })
    }

    /// Moves the evaluation to a device: before its self-test, and for good.
    ///
    /// # Errors
    /// [`EngineError::Torch`] when the device is not there or its memory is short.
    pub fn run_on(&mut self, device: Device) -> Result<()> {
        self.state.place(device)?;
        self.program.device = device;
        Ok(())
    }

    /// The graph.
    pub fn graph(&self) -> &TypedGraph {
        &self.graph
    }

    /// Proves on made-up rows that a row's scores do not depend on the other rows (rule T2), and that nothing is
    /// written (T8).
    ///
    /// # Errors
    /// [`EngineError::RowsInteract`], [`EngineError::Mutated`], or a node's own error.
    pub fn self_test(&self) -> Result<()> {
        compare_schemas()?;
        selftest::prove_rows(self)
    }

    /// The counts before noise. Private: they stay in the trainer (tests excepted).
    ///
    /// # Errors
    /// [`EngineError`]; none of its causes is a value of a record.
    pub fn counts(&self, records: &Records, datasets: &[DatasetShape]) -> Result<Vec<Vec<i64>>> {
        let counts = self.counts_unless(|| false, records, datasets)?;
        Ok(counts.expect("nobody stops it"))
    }

    /// `None` as soon as `stopped`, which is asked before each batch: what was counted so far is dropped.
    fn counts_unless(
        &self,
        stopped: impl Fn() -> bool,
        records: &Records,
        datasets: &[DatasetShape],
    ) -> Result<Option<Vec<Vec<i64>>>> {
        let before = self.state.digest()?;
        let (key, order) = (fresh()?, fresh()?);
        // Everybody is in the sample; what is drawn is where each stands.
        let everyone = sampling::threshold(1.0).map_err(|error| EngineError::Job(error.to_string()))?;
        let sampler = PooledSampler::new(*key, &order, everyone, datasets.to_vec(), self.places);
        let mut counts = self.histograms.zeros();
        for places in sampler.places(STEP)?.chunks_exact(self.batch_size) {
            if stopped() {
                return Ok(None);
            }
            let (inputs, present) = records.gather(places)?;
            self.count(&self.forward(&inputs, &present)?, places, &mut counts)?;
        }
        if self.state.digest()? == before {
            Ok(Some(counts))
        } else {
            Err(EngineError::Mutated)
        }
    }

    /// The release: counts with noise, as little-endian i64, one vector for each histogram. `None` when it was `stopped`,
    /// asked before each batch: then nothing is released, and whoever asks again gets fresh places and fresh noise.
    ///
    /// # Errors
    /// As [`Self::counts`]; [`EngineError::NoRandomness`].
    pub fn release_unless(
        &self,
        stopped: impl Fn() -> bool,
        records: &Records,
        datasets: &[DatasetShape],
    ) -> Result<Option<Vec<Vec<u8>>>> {
        let noise = NoiseStream::new(*fresh()?);
        let Some(mut counts) = self.counts_unless(stopped, records, datasets)? else {
            return Ok(None);
        };
        let standard_deviation = self.noise_multiplier * self.histograms.l2_sensitivity();
        for (histogram, counts) in counts.iter_mut().enumerate() {
            noise
                .add_rounded_gaussian(STEP, histogram as u32, 0, counts, standard_deviation)
                .map_err(|error| EngineError::Job(error.to_string()))?;
        }
        let bytes = |counts: &Vec<i64>| counts.iter().flat_map(|count| count.to_le_bytes()).collect();
        Ok(Some(counts.iter().map(bytes).collect()))
    }

    fn forward(&self, inputs: &[Tensor], present: &Tensor) -> Result<Forward> {
        let _no_graph = tch::no_grad_guard();
        let device = self.program.device;
        let inputs: Vec<Tensor> = inputs
            .iter()
            .map(|input| device.place(input))
            .collect::<Result<_>>()?;
        executor::forward(
            &self.graph,
            &self.program,
            &self.state.parameters,
            &self.state.constants,
            &inputs,
            &device.place(present)?,
            Randomness::Frozen,
        )
    }

    fn count(&self, forward: &Forward, places: &[Option<u64>], counts: &mut [Vec<i64>]) -> Result<()> {
        let [scores, labels] = &forward.results[..] else {
            return Err(EngineError::Job("typed graph: two results are expected".into()));
        };
        let scores = Vec::<f64>::try_from(&scores.f_to_kind(Kind::Double)?.f_flatten(0, -1)?)?;
        let labels = Vec::<i64>::try_from(&labels.f_to_kind(Kind::Int64)?)?;
        // Records with an index out of its range were given another one in its place: their scores mean nothing.
        let counted = Vec::<bool>::try_from(&forward.counted)?;
        let width = scores.len() / self.batch_size;
        for (row, place) in places.iter().enumerate() {
            if place.is_some() {
                let scores = &scores[row * width..(row + 1) * width];
                self.histograms.add(labels[row], scores, counted[row], counts);
            }
        }
        Ok(())
    }
}

impl RowProof for Evaluator {
    fn graph(&self) -> &TypedGraph {
        &self.graph
    }

    fn batch_size(&self) -> u32 {
        self.batch_size as u32
    }

    fn records_per_unit(&self) -> u32 {
        1
    }

    fn state_digest(&self) -> Result<[u8; 32]> {
        self.state.digest()
    }

    fn per_record_values(&self, inputs: Vec<Tensor>, present: Tensor) -> Result<Vec<Tensor>> {
        let Forward { results, .. } = self.forward(&inputs, &present)?;
        results.iter().map(to_host).collect()
    }
}

/// Places for every slot of every dataset, in whole batches.
fn places(datasets: &[DatasetShape], batch_size: u32) -> Result<usize> {
    let too_large = || EngineError::Job("the datasets are too large to address".into());
    let slots = datasets
        .iter()
        .try_fold(0u64, |sum, dataset| sum.checked_add(dataset.capacity));
    let slots = slots.ok_or_else(too_large)?.max(1);
    let places = slots
        .checked_next_multiple_of(u64::from(batch_size))
        .ok_or_else(too_large)?;
    usize::try_from(places).map_err(|_| too_large())
}

fn fresh() -> Result<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    SystemRandom::new()
        .fill(&mut key[..])
        .map_err(|_| EngineError::NoRandomness)?;
    Ok(key)
}
