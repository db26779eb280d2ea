//! The trainer's conversation with the server (`bastionai_wire::trainer`), from the job to the weights.

use crate::confinement::confine;
use crate::engine::{Engine, Settings};
use crate::error::EngineError;
use crate::records::Records;
use crate::selftest;
use crate::training::{Training, check_job};
use bastionai_graph::dtype::DType;
use bastionai_graph::typed::TypedGraph;
use bastionai_wire::trainer::{
    Job, MAX_FRAME_BYTES, Report, TRAINER_PROTOCOL_VERSION, read_frame, read_message, write_frame,
    write_message,
};
use std::io::{self, BufReader, BufWriter, Read, Write};

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

/// Runs one job. Records are read only after [`Report::Ready`] was sent.
///
/// # Errors
/// [`ProcessError`]; its text has a fixed vocabulary.
pub fn serve(input: impl Read, output: impl Write) -> Result<(), ProcessError> {
    let (mut input, mut output) = (BufReader::with_capacity(1 << 20, input), BufWriter::new(output));
    let job: Job = read_message(&mut input, MAX_JOB_BYTES)?;
    let engine = match prepare(&job, &mut input) {
        Ok(engine) => engine,
        Err(Preparation::Server(error)) => return Err(error.into()),
        Err(Preparation::Job(error)) => {
            report(
                &mut output,
                &Report::Refused {
                    reason: explain(&error),
                },
            )?;
            return Err(ProcessError::Refused);
        }
    };
    report(&mut output, &Report::Ready)?;
    let records = read_records(&mut input, &engine, &job)?;
    let mut training = Training::new(engine, records, &job).map_err(ProcessError::Run)?;
    for step in 1..=job.steps {
        let noisy_loss = training.step(step).map_err(ProcessError::Run)?;
        report(&mut output, &Report::Step { step, noisy_loss })?;
    }
    let weights = training.finish().map_err(ProcessError::Run)?;
    report(&mut output, &Report::Finished)?;
    for weight in &weights {
        write_frame(&mut output, weight)?;
    }
    output.flush()?;
    Ok(())
}

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

fn prepare(job: &Job, input: &mut impl Read) -> Result<Engine, Preparation> {
    if job.version != TRAINER_PROTOCOL_VERSION {
        return Err(EngineError::Job(
            "server and trainer are of different builds: install both from one release".into(),
        )
        .into());
    }
    let graph = TypedGraph::from_bytes(&job.graph).map_err(|error| EngineError::Job(error.to_string()))?;
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
    // Only now: a refusal before the server has written everything would reach it as a broken pipe.
    check_job(job)?;
    selftest::prepare_process(job.threads)?;
    let settings = Settings {
        physical_batch_size: job.physical_batch_size,
        micro_batches: job.micro_batches,
        max_grad_norm: job.max_grad_norm,
        threads: job.threads,
    };
    let mut engine = Engine::new(graph, &parameters, &constants, settings)?;
    selftest::self_test(&mut engine)?;
    // libtorch has opened and started all it needs. Records come after this.
    confine().map_err(|error| EngineError::Job(error.to_string()))?;
    Ok(engine)
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

fn read_records(input: &mut impl Read, engine: &Engine, job: &Job) -> Result<Records, ProcessError> {
    let mut records = Records::new(engine.graph().inputs(), &job.datasets).map_err(ProcessError::Run)?;
    let mut offset = 0;
    for dataset in &job.datasets {
        for column in 0..engine.graph().inputs().len() {
            let frame = exact_frame(input, records.bytes_of(column, dataset.capacity))?;
            records
                .fill(column, offset, dataset.capacity, &frame)
                .map_err(ProcessError::Run)?;
        }
        offset += dataset.capacity;
    }
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
