//! Server ↔ trainer messages: postcard bodies, each framed by its length (u32, little-endian).
//!
//! The server writes one [`Task`] frame, then raw frames: every parameter, then every constant of the typed
//! graph in order (one frame each); a job that continues after a step brings its state after these. It then waits
//! for [`Report::Ready`], makes the run's start durable, and only then sends records: for every dataset in run
//! order, one frame per *graph input* in `TypedGraph::inputs` order (the column that input names, all rows, padding
//! included; a column used by two inputs is sent twice), and where [`Units`] puts the dataset into a group, one frame with
//! each row's slot in it (u32; [`crate::units::NO_UNIT`] for padding). After the records it may send a [`Control`]. It keeps its
//! end open: end of file means that the server is gone.
//!
//! The trainer answers with [`Report`] frames; each [`Report::Checkpoint`] is followed by the run's state in raw
//! frames, and the one of the last step ends the run. An evaluation has one step, and instead of a state its
//! checkpoint brings its release: one frame per histogram, i64 counts, row-major. The trainer holds no key and gets no file (soundness A2).
//!
//! The **state** of a run is all that its next step depends on beside the job: [`Job::state_groups`] groups of
//! tensors, each group one tensor per trainable parameter, in graph order, of that parameter's shape and dtype.
//! First the parameters themselves, then the optimizer's groups in the order of [`Optimizer::moments`], last the average
//! of the iterates, if there is one. Randomness is not part of it: each start of a trainer draws its own (rule D1), and
//! correlated noise starts from none.

use crate::average::Average;
use crate::clipping::Clipping;
use crate::compute::Compute;
use crate::noise_mode::NoiseMode;
use crate::optimizer::Optimizer;
use crate::schedule::Schedule;
use crate::units::Units;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// Version of these messages; server and trainer must be of one build.
pub const TRAINER_PROTOCOL_VERSION: u32 = 3;

/// Environment a trainer is started with (and nothing else): its threads wait for work about 30 µs awake, then asleep.
/// libgomp's default of milliseconds multiplies a run's time by ten where other processes want the same cores.
pub const TRAINER_ENVIRONMENT: [(&str, &str); 1] = [("GOMP_SPINCOUNT", "10000")];

/// What a trainer is started for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "there is one for a whole run")]
pub enum Task {
    /// Train a model.
    Train(Job),
    /// Evaluate one.
    Evaluate(EvaluationJob),
}

impl Task {
    /// Whether the weights after this step are kept, so that it ends with a checkpoint.
    pub fn keeps(&self, step: u64) -> bool {
        match self {
            Self::Train(job) => job.keep_steps.binary_search(&step).is_ok(),
            Self::Evaluate(_) => false,
        }
    }

    /// Steps of the whole run; an evaluation is one.
    pub fn steps(&self) -> u64 {
        match self {
            Self::Train(job) => job.steps,
            Self::Evaluate(_) => 1,
        }
    }

    /// Steps already taken.
    pub fn start_step(&self) -> u64 {
        match self {
            Self::Train(job) => job.start_step,
            Self::Evaluate(_) => 0,
        }
    }

    /// Whether each step releases a loss.
    pub fn releases_loss(&self) -> bool {
        match self {
            Self::Train(job) => job.loss.is_some(),
            Self::Evaluate(_) => false,
        }
    }
}

/// One forward pass over whole datasets, and the noisy histograms of its scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationJob {
    /// [`TRAINER_PROTOCOL_VERSION`].
    pub version: u32,
    /// `TypedGraph::to_bytes` of crate `graph`: a graph of scores and label.
    pub graph: Vec<u8>,
    /// Datasets in run order.
    pub datasets: Vec<DatasetShape>,
    /// Physical batch size, the same for every micro-batch (rule T2).
    pub physical_batch_size: u32,
    /// Number of classes.
    pub classes: u32,
    /// Whether label × predicted class is released.
    pub has_confusion: bool,
    /// Bins of the score histograms (`bastionai_privacy::histogram`), if they are released.
    pub score_bins: Option<u32>,
    /// Noise standard deviation of each count over the histograms' l2_sensitivity.
    pub noise_multiplier: f64,
    /// Threads for libtorch.
    pub threads: u32,
}

/// Everything a trainer needs to train, but the raw tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// [`TRAINER_PROTOCOL_VERSION`].
    pub version: u32,
    /// `TypedGraph::to_bytes` of crate `graph`.
    pub graph: Vec<u8>,
    /// Datasets in run order.
    pub datasets: Vec<DatasetShape>,
    /// Which of their records are protected together.
    pub units: Units,
    /// Steps of the whole run.
    pub steps: u64,
    /// Steps already taken: their state follows the constants. 0: none, and no state follows.
    pub start_step: u64,
    /// A checkpoint is handed over after the first step that ends this long after the one before, after
    /// [`MAX_STEPS_PER_CHECKPOINT`] steps, and after the last step. Public, and a matter of time only (rule G6).
    pub checkpoint_ms: u64,
    /// Probability with which each unit enters a step's sample, as a threshold: a unit enters when
    /// a uniform u64 is below it (`q·2^64`, rounded up; `u64::MAX` means every unit).
    pub sample_threshold: u64,
    /// Public divisor of sums: expected batch size.
    pub expected_batch_size: f64,
    /// Rows of every micro-batch (rule T2), whole units: a multiple of `units.records_per_unit`.
    pub physical_batch_size: u32,
    /// Micro-batches per step, always all of them (rule D8); the sample is truncated at
    /// `physical_batch_size / records_per_unit * micro_batches` units.
    pub micro_batches: u32,
    /// Clipping norm C over all trainable parameters.
    pub max_grad_norm: f64,
    /// How gradients are held to it.
    pub clipping: Clipping,
    /// Precision of the graph's products.
    pub compute: Compute,
    /// How clipped gradients become an integer sum.
    pub noise_mode: NoiseMode,
    /// Noise standard deviation of the gradient sum over its charged sensitivity.
    pub noise_multiplier: f64,
    /// The loss release, if any.
    pub loss: Option<LossRelease>,
    /// Optimizer.
    pub optimizer: Optimizer,
    /// Factor of its learning rate at each step.
    pub schedule: Schedule,
    /// The average of the iterates, if one is kept.
    pub average: Option<Average>,
    /// Correlation of the gradient's noise over steps; none: independent.
    pub band: Option<Band>,
    /// Steps whose weights are kept, rising: each ends with a checkpoint, besides those that are due.
    pub keep_steps: Vec<u64>,
    /// Threads for libtorch and for the noise.
    pub threads: u32,
}

/// Noise that is correlated over a band of steps, and the classes of records that have their turn one after the other
/// (`bastionai_privacy::banded`). The noise multiplier is relative to what a turn can change in all steps it reaches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Band {
    /// The matrix' coefficients below its diagonal, in units of 2^−12; one for each earlier step that is remembered.
    pub numerators: Vec<u32>,
    /// Puts records into classes. The same for every start of a run's trainer.
    pub class_key: ClassKey,
}

impl Band {
    /// Bands, and classes.
    pub fn bands(&self) -> u64 {
        self.numerators.len() as u64 + 1
    }
}

/// Secret: who knew it could tell which steps of a run may have used a record. Not randomness of a step (rule D1): drawn once
/// for a run, and sealed with its order, as records must not change classes when a trainer starts again.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassKey(pub [u8; 32]);

impl std::fmt::Debug for ClassKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("ClassKey")
    }
}

/// Rows of a dataset as handed over: always the declared size, padded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetShape {
    /// Rows handed over, padding included: the declared size.
    pub capacity: u64,
    /// Rows that are records; the others are zero and never sampled. Private: stays in the TEE, and always takes the
    /// same bytes of a message (rule D8).
    #[serde(with = "fixed_length")]
    pub rows: u64,
}

/// Noisy clipped loss sums of the very same sample (docs/privacy.md, gradient and loss as one mechanism).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossRelease {
    /// Per-sample losses are clipped to `[0, max_loss]`.
    pub max_loss: f64,
    /// Noise standard deviation over `max_loss`.
    pub noise_multiplier: f64,
}

impl Job {
    /// Groups of tensors in the state (module documentation).
    pub fn state_groups(&self) -> usize {
        1 + self.optimizer.moments() + usize::from(self.average.is_some())
    }
}

/// What the server says once the records are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// Finish the step under way, hand over a checkpoint of it, say [`Report::Stopped`] and exit.
    Stop,
}

/// What a trainer says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// Job, parameters and constants read, graph decoded, self-tests passed; no record was received yet.
    Ready,
    /// Step `step` (from 1) is complete. A sign of life only: what it released comes with its checkpoint.
    Step {
        /// Steps completed.
        step: u64,
    },
    /// The state after `step` follows as raw frames (module documentation), and the losses of the steps since the
    /// checkpoint before. Neither is public until the server has made both durable (rule D1).
    Checkpoint {
        /// Steps completed.
        step: u64,
        /// Of each step since the last checkpoint: noisy clipped loss sum / expected batch size, if it is released.
        losses: Vec<Option<f64>>,
    },
    /// The answer to [`Control::Stop`], after the checkpoint. Without it a trainer that ended early has died.
    Stopped,
    /// The job could not start: says which part of the *job* (never data) was wrong.
    Refused {
        /// For the log and the scientist: concerns graph and hyper-parameters only.
        reason: String,
    },
}

/// Bounds the losses of one checkpoint.
pub const MAX_STEPS_PER_CHECKPOINT: u64 = 1 << 16;

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

/// Integers in eight bytes, whatever their value.
mod fixed_length {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        value.to_le_bytes().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        <[u8; 8]>::deserialize(deserializer).map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_key_is_not_shown() {
        assert_eq!(format!("{:?}", ClassKey([7; 32])), "ClassKey");
    }

    #[test]
    fn the_size_of_a_message_does_not_depend_on_the_row_count() {
        let size = |rows| {
            postcard::to_stdvec(&DatasetShape {
                capacity: 1 << 20,
                rows,
            })
            .map(|bytes| bytes.len())
        };
        assert_eq!(size(0), size(127));
        assert_eq!(size(127), size(1 << 20));
    }
}
