//! Server ↔ trainer messages: postcard bodies, each framed by its length (u32, little-endian).
//!
//! The server writes one [`Job`] frame, then raw frames: every parameter, then every constant of the typed
//! graph in order (one frame each). It then waits for [`Report::Ready`], makes the run's start durable, and
//! only then sends records: for every dataset in run order, one frame per *graph input* in
//! `TypedGraph::inputs` order (the column that input names, all rows, padding included; a column used by two
//! inputs is sent twice). It keeps its end open: end of file means that the server is gone.
//! The trainer answers with [`Report`] frames; after [`Report::Finished`] it writes one raw frame per
//! trainable parameter, in graph order, and exits. The trainer holds no key and gets no file (soundness A2).

use crate::optimizer::Optimizer;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// Version of these messages; server and trainer must be of one build.
pub const TRAINER_PROTOCOL_VERSION: u32 = 1;

/// Environment a trainer is started with (and nothing else): its threads wait for work about 30 µs awake, then asleep.
/// libgomp's default of milliseconds multiplies a run's time by ten where other processes want the same cores.
pub const TRAINER_ENVIRONMENT: [(&str, &str); 1] = [("GOMP_SPINCOUNT", "10000")];

/// Everything a trainer needs, but the raw tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// [`TRAINER_PROTOCOL_VERSION`].
    pub version: u32,
    /// `TypedGraph::to_bytes` of crate `graph`.
    pub graph: Vec<u8>,
    /// Datasets in run order.
    pub datasets: Vec<DatasetShape>,
    /// Steps to take.
    pub steps: u64,
    /// Probability with which each record enters a step's sample, as a threshold: a record enters when
    /// a uniform u64 is below it (`q·2^64`, rounded up; `u64::MAX` means every record).
    pub sample_threshold: u64,
    /// Public divisor of sums: expected batch size.
    pub expected_batch_size: f64,
    /// Physical batch size, the same for every micro-batch (rule T2).
    pub physical_batch_size: u32,
    /// Micro-batches per step, always all of them (rule D8); the sample is truncated at
    /// `physical_batch_size * micro_batches`.
    pub micro_batches: u32,
    /// Clipping norm C over all trainable parameters (flat clipping).
    pub max_grad_norm: f64,
    /// Noise standard deviation of the gradient sum over its charged sensitivity.
    pub noise_multiplier: f64,
    /// The loss release, if any.
    pub loss: Option<LossRelease>,
    /// Optimizer.
    pub optimizer: Optimizer,
    /// Threads for libtorch and for the noise.
    pub threads: u32,
}

/// Rows of a dataset as handed over: always the declared size, padded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetShape {
    /// Rows handed over, padding included: the declared size.
    pub capacity: u64,
    /// Rows that are records; the others are zero and never sampled. Private: stays in the TEE.
    pub rows: u64,
}

/// Noisy clipped loss sums of the very same sample (dp.md rule 6).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossRelease {
    /// Per-sample losses are clipped to `[0, max_loss]`.
    pub max_loss: f64,
    /// Noise standard deviation over `max_loss`.
    pub noise_multiplier: f64,
}

/// What a trainer says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// Job, parameters and constants read, graph decoded, self-tests passed; no record was received yet.
    Ready,
    /// Step `step` (from 1) is complete; its noisy loss mean, if released. Not public until the server
    /// has made its ledger entry durable (rule D1).
    Step {
        /// Steps completed.
        step: u64,
        /// Noisy clipped loss sum / expected batch size.
        noisy_loss: Option<f64>,
    },
    /// All steps done; the weights follow as raw frames.
    Finished,
    /// The job could not start: says which part of the *job* (never data) was wrong.
    Refused {
        /// For the log and the scientist: concerns graph and hyper-parameters only.
        reason: String,
    },
}

/// Longest frame either side accepts: 4 GiB − 1.
pub const MAX_FRAME_BYTES: u64 = u32::MAX as u64;

/// Writes one frame.
///
/// # Errors
/// The writer's; `InvalidInput` above [`MAX_FRAME_BYTES`].
pub fn write_frame(writer: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "frame above 4 GiB"))?;
    writer.write_all(&length.to_le_bytes())?;
    writer.write_all(bytes)
}

/// Reads one frame of at most `max_bytes`.
///
/// # Errors
/// The reader's; `UnexpectedEof` when the peer is gone; `InvalidData` above `max_bytes`.
pub fn read_frame(reader: &mut impl Read, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut length = [0u8; 4];
    reader.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if u64::from(length) > max_bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "frame longer than expected",
        ));
    }
    let mut bytes = Vec::new();
    reader.take(u64::from(length)).read_to_end(&mut bytes)?;
    if bytes.len() == length as usize {
        Ok(bytes)
    } else {
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "frame cut short"))
    }
}

/// Writes a message as one frame.
///
/// # Errors
/// The writer's.
pub fn write_message<T: Serialize>(writer: &mut impl Write, message: &T) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    write_frame(writer, &bytes)
}

/// Reads a message from one frame.
///
/// # Errors
/// As [`read_frame`]; `InvalidData` when the body does not decode.
pub fn read_message<T: for<'de> Deserialize<'de>>(reader: &mut impl Read, max_bytes: u64) -> io::Result<T> {
    let bytes = read_frame(reader, max_bytes)?;
    postcard::from_bytes(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
