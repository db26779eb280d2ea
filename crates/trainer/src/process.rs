//! The trainer's conversation with the server (`bastionai_wire::trainer`), from the job to the last checkpoint.

use crate::confinement::confine;
use crate::device::Device;
use crate::engine::{Engine, Settings};
use crate::error::EngineError;
use crate::evaluation::Evaluator;
use crate::records::Records;
use crate::selftest;
use crate::training::{Training, check_job};
use crate::units::UnitRows;
use bastionai_graph::dtype::DType;
use bastionai_graph::typed::TypedGraph;
use bastionai_wire::trainer::{
    Control, DatasetShape, EvaluationJob, Job, MAX_FRAME_BYTES, MAX_STEPS_PER_CHECKPOINT, Report,
    TRAINER_PROTOCOL_VERSION, Task, read_frame, read_message, write_frame, write_message,
};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// Largest job message: the graph is the bulk of it.
const MAX_JOB_BYTES: u64 = 256 << 20;

/// How a conversation ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// The job cannot be run; the server was told why.
    #[error("the job was refused")]
    Refused,
    /// The server is gone, or sent something else than the protocol says.
    #[error("the connection to the server ended: {}", .0.kind())]
    Server(#[from] io::Error),
    /// The run failed after records had come in. No text: it could depend on them (rule G4).
    #[error("the run failed: {}", .0.kind())]
    Run(EngineError),
}

impl From<EngineError> for ProcessError {
    fn from(error: EngineError) -> Self {
        Self::Run(error)
    }
}

/// Runs one job. Records are read only after [`Report::Ready`] was sent.
///
/// # Errors
/// [`ProcessError`]; its text has a fixed vocabulary.
pub fn serve(
    input: impl Read + Send + 'static,
    output: impl Write,
    device: Device,
) -> Result<(), ProcessError> {
    let (mut input, mut output) = (BufReader::with_capacity(1 << 20, input), BufWriter::new(output));
    match read_message(&mut input, MAX_JOB_BYTES)? {
        Task::Train(job) => train(&job, input, &mut output, device),
        Task::Evaluate(job) => evaluate(&job, input, &mut output, device),
    }
}

fn train(
    job: &Job,
    mut input: impl Read + Send + 'static,
    output: &mut impl Write,
    device: Device,
) -> Result<(), ProcessError> {
    let (engine, moments) = ready(prepare(job, &mut input, device), output)?;
    let mut units = UnitRows::new(&job.units, job.datasets.len())?;
    let records = read_records(&mut input, engine.graph(), &job.datasets, &mut units)?;
    let mut training = Training::new(engine, records, units, job).map_err(ProcessError::Run)?;
    if job.start_step > 0 {
        training.restore(&moments).map_err(ProcessError::Run)?;
    }
    let orders = Orders::listen(input)?;
    let mut due = Due::new(job);
    for step in job.start_step + 1..=job.steps {
        let noisy_loss = training.step(step).map_err(ProcessError::Run)?;
        report(output, &Report::Step { step })?;
        let stop = orders.stop()?;
        if let Some(losses) = due.after(step, noisy_loss, stop) {
            write_message(output, &Report::Checkpoint { step, losses })?;
            training.state(|tensor| write_frame(output, tensor).map_err(ProcessError::Server))?;
            output.flush()?;
        }
        if stop {
            return Ok(report(output, &Report::Stopped)?);
        }
    }
    Ok(())
}

/// One step, whose release stands where a training run's state does. Asked to stop it ends at the next batch: there is
/// nothing to hand over before the whole.
fn evaluate(
    job: &EvaluationJob,
    mut input: impl Read + Send + 'static,
    output: &mut impl Write,
    device: Device,
) -> Result<(), ProcessError> {
    let evaluator = ready(prepare_evaluation(job, &mut input, device), output)?;
    let mut units = UnitRows::of_records(job.datasets.len());
    let records = read_records(&mut input, evaluator.graph(), &job.datasets, &mut units)?;
    let orders = Orders::listen(input)?;
    // A server that is gone stops it as well; which of the two it was is asked again below.
    let stopped = || orders.stop().unwrap_or(true);
    let Some(histograms) = evaluator.release_unless(stopped, &records, &job.datasets)? else {
        orders.stop()?;
        return Ok(report(output, &Report::Stopped)?);
    };
    report(output, &Report::Step { step: 1 })?;
    let losses = vec![None];
    write_message(output, &Report::Checkpoint { step: 1, losses })?;
    for histogram in &histograms {
        write_frame(output, histogram)?;
    }
    output.flush()?;
    Ok(())
}

/// Tells the server that the job is prepared, or why it is refused.
fn ready<T>(prepared: Result<T, Preparation>, output: &mut impl Write) -> Result<T, ProcessError> {
    match prepared {
        Ok(prepared) => {
            report(output, &Report::Ready)?;
            Ok(prepared)
        }
        Err(Preparation::Server(error)) => Err(error.into()),
        Err(Preparation::Job(error)) => {
            let reason = explain(&error);
            report(output, &Report::Refused { reason })?;
            Err(ProcessError::Refused)
        }
    }
}

/// When the next checkpoint is due: by the clock, by count, at steps to keep, and at the end; never by anything a record could
/// change but the time a step takes.
struct Due {
    every: Duration,
    last_step: u64,
    keep_steps: Vec<u64>,
    since: Instant,
    losses: Vec<Option<f64>>,
}

impl Due {
    fn new(job: &Job) -> Self {
        Self {
            every: Duration::from_millis(job.checkpoint_ms),
            last_step: job.steps,
            keep_steps: job.keep_steps.clone(),
            since: Instant::now(),
            losses: Vec::new(),
        }
    }

    /// The losses of a checkpoint after `step`, when one is due.
    fn after(&mut self, step: u64, noisy_loss: Option<f64>, stop: bool) -> Option<Vec<Option<f64>>> {
        self.losses.push(noisy_loss);
        let full = self.losses.len() as u64 >= MAX_STEPS_PER_CHECKPOINT;
        let kept = self.keep_steps.binary_search(&step).is_ok();
        if !(stop || full || kept || step == self.last_step || self.since.elapsed() >= self.every) {
            return None;
        }
        self.since = Instant::now();
        Some(std::mem::take(&mut self.losses))
    }
}

/// What the server says while the run goes on, read on a thread of its own.
struct Orders(Arc<AtomicU8>);

impl Orders {
    fn listen(mut input: impl Read + Send + 'static) -> io::Result<Self> {
        let said = Arc::new(AtomicU8::new(NOTHING));
        let heard = Arc::clone(&said);
        std::thread::Builder::new().name("orders".into()).spawn(move || {
            let word = match read_message(&mut input, MAX_COMMAND_BYTES) {
                Ok(Control::Stop) => STOP,
                // End of file or nonsense: there is no server to work for.
                Err(_) => GONE,
            };
            heard.store(word, Ordering::Release);
        })?;
        Ok(Self(said))
    }

    /// Whether to stop after this step, or batch of an evaluation.
    fn stop(&self) -> io::Result<bool> {
        match self.0.load(Ordering::Acquire) {
            NOTHING => Ok(false),
            STOP => Ok(true),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

const NOTHING: u8 = 0;
const STOP: u8 = 1;
const GONE: u8 = 2;
const MAX_COMMAND_BYTES: u64 = 64;

/// Why there is no engine: the job's fault, or the server's.
enum Preparation {
    Job(EngineError),
    Server(io::Error),
}

impl From<EngineError> for Preparation {
    fn from(error: EngineError) -> Self {
        Self::Job(error)
    }
}

impl From<io::Error> for Preparation {
    fn from(error: io::Error) -> Self {
        Self::Server(error)
    }
}

/// The engine, and the tensors of a run that continues which are not parameters.
fn prepare(job: &Job, input: &mut impl Read, device: Device) -> Result<(Engine, Vec<Vec<u8>>), Preparation> {
    let (graph, mut parameters, constants) = read_model(job.version, &job.graph, input)?;
    let moments = read_state(input, job, &graph, &mut parameters)?;
    // Only now: a refusal before the server has written everything would reach it as a broken pipe.
    check_job(job)?;
    start(device)?;
    selftest::prepare_process(job.threads)?;
    let settings = Settings {
        physical_batch_size: job.physical_batch_size,
        records_per_unit: job.units.records_per_unit,
        micro_batches: job.micro_batches,
        max_grad_norm: job.max_grad_norm,
        clipping: job.clipping,
        compute: job.compute,
        noise_mode: job.noise_mode,
        threads: job.threads,
    };
    let mut engine = Engine::consuming(graph, parameters, constants, settings)?;
    engine.run_on(device)?;
    check_slack(&engine)?;
    selftest::self_test(&mut engine)?;
    // libtorch has opened and started all it needs. Records come after this.
    confine(device).map_err(|error| EngineError::Job(error.to_string()))?;
    Ok((engine, moments))
}

/// The noise is what the price showed, and at most its slack more.
fn check_slack(engine: &Engine) -> Result<(), EngineError> {
    let settings = engine.settings();
    let slack = engine.l2_sensitivity() / settings.max_grad_norm - 1.0;
    if slack <= settings.noise_mode.most_slack() {
        return Ok(());
    }
    Err(EngineError::Job(format!(
        "rounding inside a step's sums would cost {:.1}% of noise, at most {:.0}% are priced: use noise_mode hardened, a \
         larger max_grad_norm or a smaller batch",
        100.0 * slack,
        100.0 * settings.noise_mode.most_slack()
    )))
}

/// Before libtorch has threads: it sets the environment that NVIDIA's libraries read.
fn start(device: Device) -> Result<(), EngineError> {
    let started = device.start().map(drop);
    started.map_err(|error| EngineError::Job(error.to_string()))
}

fn prepare_evaluation(
    job: &EvaluationJob,
    input: &mut impl Read,
    device: Device,
) -> Result<Evaluator, Preparation> {
    let (graph, parameters, constants) = read_model(job.version, &job.graph, input)?;
    start(device)?;
    selftest::prepare_process(job.threads.max(1))?;
    let mut evaluator = Evaluator::new(graph, parameters, constants, job)?;
    evaluator.run_on(device)?;
    evaluator.self_test()?;
    confine(device).map_err(|error| EngineError::Job(error.to_string()))?;
    Ok(evaluator)
}

/// A graph with the bytes of its parameters and constants.
type Model = (TypedGraph, Vec<Vec<u8>>, Vec<Vec<u8>>);

fn read_model(version: u32, graph: &[u8], input: &mut impl Read) -> Result<Model, Preparation> {
    if version != TRAINER_PROTOCOL_VERSION {
        return Err(EngineError::Job(
            "server and trainer are of different builds: install both from one release".into(),
        )
        .into());
    }
    let graph = TypedGraph::from_bytes(graph).map_err(|error| EngineError::Job(error.to_string()))?;
    let parameters = graph
        .parameters()
        .iter()
        .map(|each| size(each.dtype, &each.shape))
        .collect::<Vec<_>>();
    let constants = graph
        .constants()
        .iter()
        .map(|each| size(each.dtype, &each.shape))
        .collect::<Vec<_>>();
    let parameters = read_frames(input, &parameters)?;
    let constants = read_frames(input, &constants)?;
    Ok((graph, parameters, constants))
}

/// Reads the state of a run that continues: its first group replaces the initial values of the trained parameters,
/// the others are returned.
fn read_state(
    input: &mut impl Read,
    job: &Job,
    graph: &TypedGraph,
    parameters: &mut [Vec<u8>],
) -> io::Result<Vec<Vec<u8>>> {
    if job.start_step == 0 {
        return Ok(Vec::new());
    }
    let trained = graph
        .parameters()
        .iter()
        .zip(parameters)
        .filter(|(each, _)| each.trainable);
    let mut sizes = Vec::new();
    for (each, value) in trained {
        sizes.push(size(each.dtype, &each.shape));
        *value = exact_frame(input, size(each.dtype, &each.shape))?;
    }
    let moments = sizes.repeat(job.state_groups() - 1);
    read_frames(input, &moments)
}

/// Bytes of a tensor; a shape too large to address gives a size no frame has.
fn size(dtype: DType, shape: &[u64]) -> u64 {
    let elements = shape
        .iter()
        .try_fold(1u64, |product, &extent| product.checked_mul(extent));
    elements
        .and_then(|count| count.checked_mul(dtype.size_bytes() as u64))
        .unwrap_or(u64::MAX)
}

fn read_frames(input: &mut impl Read, sizes: &[u64]) -> io::Result<Vec<Vec<u8>>> {
    sizes.iter().map(|&bytes| exact_frame(input, bytes)).collect()
}

fn exact_frame(input: &mut impl Read, bytes: u64) -> io::Result<Vec<u8>> {
    let frame = read_frame(input, bytes.min(MAX_FRAME_BYTES))?;
    if frame.len() as u64 == bytes {
        Ok(frame)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a frame does not have its tensor's size",
        ))
    }
}

fn read_records(
    input: &mut impl Read,
    graph: &TypedGraph,
    datasets: &[DatasetShape],
    units: &mut UnitRows,
) -> Result<Records, ProcessError> {
    let mut records = Records::new(graph.inputs(), datasets).map_err(ProcessError::Run)?;
    let mut offset = 0;
    for (index, dataset) in datasets.iter().enumerate() {
        for column in 0..graph.inputs().len() {
            let frame = exact_frame(input, records.bytes_of(column, dataset.capacity))?;
            records
                .fill(column, offset, dataset.capacity, &frame)
                .map_err(ProcessError::Run)?;
        }
        if units.are_numbered(index) {
            let frame = exact_frame(input, dataset.capacity.saturating_mul(4))?;
            units.fill(index, dataset, offset, &frame)?;
        }
        offset += dataset.capacity;
    }
    units.complete();
    Ok(records)
}

fn report(output: &mut impl Write, report: &Report) -> io::Result<()> {
    write_message(output, report)?;
    output.flush()
}

/// Libtorch's own text is safe here: so far only made-up rows were computed with.
fn explain(error: &EngineError) -> String {
    match error.detail() {
        Some(detail) => format!("{error}: {}", detail.lines().next().unwrap_or_default()),
        None => error.to_string(),
    }
}
