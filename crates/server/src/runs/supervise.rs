//! One trainer process from spawn to its last checkpoint. The trainer gets a cleared environment, pipes and nothing
//! else; records (but for their number, which its job names) reach it only after [`Recorder::start`] made the run's
//! start durable, and nothing it reports is seen by anyone before [`Recorder::release`] made it durable (output commit,
//! rule D1).
//!
//! Blocking, on a thread of its own: it waits on a process, not on a peer.

use super::death::{Death, Phase};
use super::stop::{Stop, StopWhy};
use crate::config::DeviceKind;
use crate::program::arguments;
use bastionai_wire::trainer::{
    Control, Report, TRAINER_ENVIRONMENT, Task, read_frame, read_message, write_frame, write_message,
};
use rustix::process::{Pid, Resource, Rlimit};
use std::cell::Cell;
use std::error::Error;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// What to run and what to expect of it.
pub(crate) struct Order {
    /// The trainer's program.
    pub(crate) program: PathBuf,
    /// Where it computes.
    pub(crate) device: DeviceKind,
    /// Everything but the raw tensors.
    pub(crate) task: Task,
    /// Parameters, then constants, in graph order; then the state of a run that continues.
    pub(crate) tensors: Arc<Vec<Zeroizing<Vec<u8>>>>,
    /// Expected tensors of the state, in order; or histograms.
    pub(crate) state: Vec<StateShape>,
    /// Patience and cadence.
    pub(crate) timing: Timing,
    /// Most private memory the trainer may take.
    pub(crate) memory_bytes: u64,
}

impl Order {
    /// Most private host memory of the trainer.
    fn host_memory_bytes(&self) -> u64 {
        match self.device {
            DeviceKind::Cpu => self.memory_bytes,
            DeviceKind::Cuda => self.memory_bytes.saturating_add(CUDA_HOST_BYTES),
        }
    }
}

/// Private memory of the host that NVIDIA's libraries may take beside the run's own: their data, and what they keep for the
/// device. Generous, since nobody has measured it here (docs/limitations.md).
const CUDA_HOST_BYTES: u64 = 16 << 30;

/// Size and kind of one tensor of the state, or histogram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StateShape {
    /// Exact length.
    pub(crate) bytes: u64,
    /// Element size of an IEEE float, 4 or 8; none for integers.
    pub(crate) float_bytes: Option<usize>,
}

/// Patience with a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// From spawn to ready.
    pub(crate) start_timeout: Duration,
    /// Longest silence afterwards.
    pub(crate) step_timeout: Duration,
    /// From ready to the last checkpoint.
    pub(crate) run_timeout: Duration,
    /// From being asked to stop to having stopped; then the trainer is killed, and its run goes on from its last
    /// checkpoint.
    pub(crate) stop_timeout: Duration,
}

/// The state of a run after a step, as its trainer handed it over: exact sizes, every value finite.
pub(crate) struct Checkpoint {
    /// Steps completed.
    pub(crate) step: u64,
    /// What the steps since the last checkpoint release.
    pub(crate) losses: Vec<Option<f64>>,
    /// The trainable parameters first, in graph order.
    pub(crate) state: StateTensors,
}

/// The tensors of a state, in order; wiped on drop.
pub(crate) type StateTensors = Vec<Zeroizing<Vec<u8>>>;

/// The durable side of a run.
pub(crate) trait Recorder {
    /// Makes the start durable; then, and only then, opens the records: one frame per dataset and graph input.
    fn start(&mut self) -> Result<Frames, BoxError>;
    /// Makes a checkpoint and what its steps release durable in one step, then the latter visible.
    fn release(&mut self, checkpoint: &Checkpoint) -> Result<(), BoxError>;
}

/// Records as the trainer gets them; wiped on drop.
pub(crate) type Frames = Vec<Zeroizing<Vec<u8>>>;

/// Any error of the durable side.
pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// Why a run brought no weights.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Why {
    #[error("cancelled")]
    Cancelled {
        /// Steps that its trainer started at most, where that was seen.
        started_steps: Option<u64>,
    },
    #[error("the trainer refused the job: {0}")]
    Refused(String),
    #[error("the run could not be prepared")]
    Prepare(#[source] BoxError),
    #[error("cannot start the trainer {program}")]
    Spawn { program: PathBuf, source: io::Error },
    #[error("the trainer was not ready in time (trainer.start_timeout_ms)")]
    StartTimeout,
    #[error("the trainer said nothing for too long (trainer.step_timeout_ms)")]
    Hung,
    #[error("the run took too long (trainer.run_timeout_ms)")]
    Overtime,
    #[error("the trainer {how} while {phase}")]
    Died {
        how: Death,
        phase: Phase,
        source: io::Error,
    },
    #[error("the trainer broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("the run's progress could not be made durable")]
    NotDurable(#[source] BoxError),
}

impl Why {
    /// What this says of the run where another trainer had started on its records before: which steps that one started,
    /// nobody knows.
    pub(crate) fn of_a_later_trainer(self) -> Self {
        match self {
            Self::Cancelled { .. } => Self::Cancelled { started_steps: None },
            other => other,
        }
    }

    /// Whether a trainer was lost: it ran, and ended otherwise than by refusing or being stopped.
    pub(crate) const fn is_loss(&self) -> bool {
        matches!(
            self,
            Self::StartTimeout | Self::Hung | Self::Overtime | Self::Died { .. } | Self::Protocol(_)
        )
    }

    /// Word for the log.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Cancelled { .. } => "cancelled",
            Self::Refused(_) => "refused",
            Self::Prepare(_) => "prepare",
            Self::Spawn { .. } => "spawn",
            Self::StartTimeout => "start-timeout",
            Self::Hung => "hung",
            Self::Overtime => "overtime",
            Self::Died { .. } => "died",
            Self::Protocol(_) => "protocol",
            Self::NotDurable(_) => "not-durable",
        }
    }
}

/// How a trainer ended that did nothing wrong.
pub(crate) enum Ended {
    /// All steps are taken: the state after the last one.
    Finished(StateTensors),
    /// Stopped to go on later, from the last durable checkpoint.
    Paused,
}

/// Runs a trainer to its end.
pub(crate) fn supervise(order: &Order, recorder: &mut impl Recorder, stop: &Stop) -> Result<Ended, Why> {
    let mut trainer = Trainer::spawn(order)?;
    converse(&trainer, order, recorder, stop).map_err(|why| trainer.explain(why))
}

fn converse(
    trainer: &Trainer,
    order: &Order,
    recorder: &mut impl Recorder,
    stop: &Stop,
) -> Result<Ended, Why> {
    if !trainer.wait_until_ready(order.timing.start_timeout, stop)? {
        return Ok(Ended::Paused);
    }
    let records = recorder.start().map_err(Why::NotDurable)?;
    trainer.phase.set(Phase::Training);
    // A closed channel means a dead writer; the reader reports that in its own words.
    let _ = trainer.input.send(Input::Records(records));
    trainer.follow(order, recorder, stop)
}

/// Time to read what a killed trainer had said.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How often a wish to stop is looked for.
const STOP_POLL: Duration = Duration::from_millis(20);
/// A report is a few words; refusals name nodes.
const MAX_REPORT_BYTES: u64 = 1 << 22;

enum Signal {
    Report(Report),
    Checkpoint(Checkpoint),
    Gone(io::Error),
}

enum Input {
    Records(Frames),
    Control(Control),
}

/// A spawned trainer; killed and reaped when dropped.
struct Trainer {
    child: Child,
    signals: Receiver<Signal>,
    input: Sender<Input>,
    phase: Cell<Phase>,
}

impl Drop for Trainer {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

/// Kills a trainer with its group, and reaps it.
fn stop(child: &mut Child) {
    kill(child);
    let _ = child.wait();
}

/// Kills a trainer with its group.
fn kill(child: &mut Child) {
    // Not reaped yet, so the group is still this child's. Each fails only when all of it is already dead.
    let _ = rustix::process::kill_process_group(Pid::from_child(child), rustix::process::Signal::KILL);
    let _ = child.kill();
}

impl Trainer {
    fn spawn(order: &Order) -> Result<Self, Why> {
        let spawn_error = |source| Why::Spawn {
            program: order.program.clone(),
            source,
        };
        let mut child = Command::new(&order.program)
            .args(arguments(order.device))
            .env_clear()
            .envs(TRAINER_ENVIRONMENT)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null()) // libtorch's words may quote values (rule G4)
            .process_group(0)
            .spawn()
            .map_err(spawn_error)?;
        die_first(&child);
        if let Err(source) = limit_memory(&child, order.host_memory_bytes()) {
            stop(&mut child);
            return Err(spawn_error(source));
        }
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        let (to_writer, input) = channel();
        // No room: at most one checkpoint waits while another is made durable.
        let (to_supervisor, signals) = sync_channel(0);
        let trainer = Self {
            child,
            signals,
            input: to_writer,
            phase: Cell::new(Phase::Starting),
        };
        let (task, tensors) = (order.task.clone(), Arc::clone(&order.tensors));
        let broken = to_supervisor.clone();
        let shapes = order.state.clone();
        named_thread("trainer-in", move || {
            write_all(stdin, &task, &tensors, &input, &broken)
        })
        .map_err(spawn_error)?;
        named_thread("trainer-out", move || read_all(stdout, &shapes, &to_supervisor))
            .map_err(spawn_error)?;
        Ok(trainer)
    }

    /// The next signal, or `None` at `deadline` or when somebody wants this run to stop for a reason that `until` names.
    fn next(&self, deadline: Instant, until: impl Fn() -> bool) -> Result<Option<Signal>, Why> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if until() {
                return Ok(None);
            }
            match self.signals.recv_timeout(left.min(STOP_POLL)) {
                Ok(Signal::Gone(error)) => return Err(self.died(error)),
                Ok(signal) => return Ok(Some(signal)),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.died(io::ErrorKind::BrokenPipe.into()));
                }
            }
        }
    }

    fn died(&self, source: io::Error) -> Why {
        Why::Died {
            how: Death::Unknown,
            phase: self.phase.get(),
            source,
        }
    }

    /// Adds how the process ended to why the conversation did.
    fn explain(&mut self, why: Why) -> Why {
        match why {
            Why::Died { phase, source, .. } => Why::Died {
                how: Death::of(&mut self.child),
                phase,
                source,
            },
            Why::Cancelled {
                started_steps: Some(reached),
            } => Why::Cancelled {
                started_steps: self.last_started(reached),
            },
            other => other,
        }
    }

    /// Kills the trainer and reads what it said until then: it reports each step when it ends and before the next begins, so
    /// at most one more was started. `None` if that cannot be read in order, soon.
    fn last_started(&mut self, mut reached: u64) -> Option<u64> {
        kill(&mut self.child);
        let end = Instant::now() + LAST_WORDS;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.signals.recv_timeout(left).ok()? {
                Signal::Report(Report::Step { step }) if step == reached + 1 => reached = step,
                Signal::Checkpoint(checkpoint) if checkpoint.step == reached => {}
                // Of the reader, which has come to the end; the writer fails otherwise.
                Signal::Gone(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Some(reached + 1);
                }
                _ => return None,
            }
        }
    }

    /// False when the run is to pause before it has started.
    fn wait_until_ready(&self, patience: Duration, stop: &Stop) -> Result<bool, Why> {
        match self.next(Instant::now() + patience, || stop.why().is_some())? {
            Some(Signal::Report(Report::Ready)) => Ok(true),
            Some(Signal::Report(Report::Refused { reason })) => Err(Why::Refused(reason)),
            Some(_) => Err(Why::Protocol("something before Ready")),
            None => match stop.why() {
                Some(StopWhy::Cancel) => Err(Why::Cancelled { started_steps: None }),
                Some(StopWhy::Suspend | StopWhy::Drain) => Ok(false),
                None => Err(Why::StartTimeout),
            },
        }
    }

    /// Follows the steps and makes each checkpoint durable, to the last, or to the one it stops at.
    fn follow(&self, order: &Order, recorder: &mut impl Recorder, stop: &Stop) -> Result<Ended, Why> {
        let mut progress = Progress::new(&order.task);
        let end = Instant::now() + order.timing.run_timeout;
        let mut deadline = Instant::now() + order.timing.step_timeout;
        let mut stopping = None;
        loop {
            let until = stopping.unwrap_or(deadline).min(deadline).min(end);
            let asked = stopping.is_some();
            let signal = self.next(until, || {
                stop.why().is_some_and(|why| !asked || why > StopWhy::Drain)
            })?;
            match stop.why() {
                Some(StopWhy::Cancel) => {
                    // What was received with the wish to stop counts as well.
                    let counted = match signal {
                        Some(Signal::Report(Report::Step { step })) => progress.step(step).is_ok(),
                        _ => true,
                    };
                    return Err(Why::Cancelled {
                        started_steps: counted.then_some(progress.reached),
                    });
                }
                // Nothing is released from now on, so nothing is worth waiting for.
                Some(StopWhy::Suspend) => return Ok(Ended::Paused),
                Some(StopWhy::Drain) if stopping.is_none() => {
                    stopping = Some(Instant::now() + order.timing.stop_timeout);
                    // As above: a dead writer is reported by the reader.
                    let _ = self.input.send(Input::Control(Control::Stop));
                }
                _ => {}
            }
            let now = Instant::now();
            if stopping.is_some_and(|until| now >= until) {
                return Ok(Ended::Paused);
            }
            if now >= end {
                return Err(Why::Overtime);
            }
            match signal {
                Some(Signal::Report(Report::Step { step })) => progress.step(step)?,
                Some(Signal::Checkpoint(checkpoint)) => {
                    progress.checkpoint(&checkpoint, &order.state)?;
                    recorder.release(&checkpoint).map_err(Why::NotDurable)?;
                    if checkpoint.step == order.task.steps() {
                        return Ok(Ended::Finished(checkpoint.state));
                    }
                }
                Some(Signal::Report(Report::Stopped)) if stopping.is_some() && progress.is_released() => {
                    return Ok(Ended::Paused);
                }
                Some(_) => return Err(Why::Protocol("report out of order")),
                None if now >= deadline => return Err(Why::Hung),
                None => continue,
            }
            deadline = Instant::now() + order.timing.step_timeout;
        }
    }
}

/// Where the trainer says it is.
struct Progress<'a> {
    task: &'a Task,
    reached: u64,
    released: u64,
}

impl<'a> Progress<'a> {
    fn new(task: &'a Task) -> Self {
        Self {
            task,
            reached: task.start_step(),
            released: task.start_step(),
        }
    }

    fn step(&mut self, step: u64) -> Result<(), Why> {
        if step != self.reached + 1 || step > self.task.steps() {
            return Err(Why::Protocol("steps out of order"));
        }
        if self.reached > self.released && self.task.keeps(self.reached) {
            return Err(Why::Protocol("a step to keep without its checkpoint"));
        }
        self.reached = step;
        Ok(())
    }

    /// A checkpoint comes from the process that runs a stranger's graph: exact sizes and finite values, or nothing.
    fn checkpoint(&mut self, checkpoint: &Checkpoint, shapes: &[StateShape]) -> Result<(), Why> {
        let taken = self.reached - self.released;
        if checkpoint.step != self.reached || taken == 0 || checkpoint.losses.len() as u64 != taken {
            return Err(Why::Protocol("a checkpoint of other steps than were taken"));
        }
        let fits = |loss: &Option<f64>| {
            loss.is_some() == self.task.releases_loss() && loss.is_none_or(f64::is_finite)
        };
        if !checkpoint.losses.iter().all(fits) {
            return Err(Why::Protocol(
                "a loss that was not asked for, is missing or is not finite",
            ));
        }
        check_state(&checkpoint.state, shapes)?;
        self.released = self.reached;
        Ok(())
    }

    fn is_released(&self) -> bool {
        self.released == self.reached
    }
}

/// When memory runs out the system shall kill the trainer, not the server. Best effort: Linux only, and nothing
/// is lost where it doesn't work.
fn die_first(child: &Child) {
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), "1000");
}

/// Caps the trainer's private writable memory: what it asks for beyond fails there, and so does its run.
fn limit_memory(child: &Child, bytes: u64) -> io::Result<()> {
    let limit = Rlimit {
        current: Some(bytes),
        maximum: Some(bytes),
    };
    rustix::process::prlimit(Some(Pid::from_child(child)), Resource::Data, limit)?;
    Ok(())
}

fn named_thread(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map(drop)
}

fn write_all(
    stdin: ChildStdin,
    task: &Task,
    tensors: &[Zeroizing<Vec<u8>>],
    input: &Receiver<Input>,
    broken: &SyncSender<Signal>,
) {
    let mut stdin = BufWriter::with_capacity(1 << 16, stdin);
    let outcome = write_message(&mut stdin, task)
        .and_then(|()| {
            tensors
                .iter()
                .try_for_each(|bytes| write_frame(&mut stdin, bytes))
        })
        .and_then(|()| stdin.flush())
        // The trainer takes end of file for the server's death, so the pipe stays open until the supervisor hangs up.
        .and_then(|()| input.iter().try_for_each(|next| write_input(&mut stdin, &next)));
    match outcome {
        // A trainer that refuses a job or dies stops reading: the reader thread has the better words for it.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => drop(broken.send(Signal::Gone(error))),
        _ => input.iter().for_each(drop),
    }
}

fn write_input(stdin: &mut impl Write, next: &Input) -> io::Result<()> {
    match next {
        Input::Records(records) => records.iter().try_for_each(|bytes| write_frame(stdin, bytes))?,
        Input::Control(control) => write_message(stdin, control)?,
    }
    stdin.flush()
}

fn read_all(stdout: ChildStdout, shapes: &[StateShape], supervisor: &SyncSender<Signal>) {
    let mut stdout = io::BufReader::with_capacity(1 << 16, stdout);
    loop {
        let signal = read_signal(&mut stdout, shapes).unwrap_or_else(Signal::Gone);
        let gone = matches!(signal, Signal::Gone(_));
        // The supervisor may have stopped listening (cancelled, timed out): then nobody needs this.
        if supervisor.send(signal).is_err() || gone {
            return;
        }
    }
}

fn read_signal(stdout: &mut impl Read, shapes: &[StateShape]) -> io::Result<Signal> {
    Ok(match read_message::<Report>(stdout, MAX_REPORT_BYTES)? {
        Report::Checkpoint { step, losses } => {
            let state = shapes
                .iter()
                .map(|shape| read_frame(stdout, shape.bytes).map(Zeroizing::new));
            let state = state.collect::<io::Result<_>>()?;
            Signal::Checkpoint(Checkpoint { step, losses, state })
        }
        report => Signal::Report(report),
    })
}

fn check_state(state: &[Zeroizing<Vec<u8>>], shapes: &[StateShape]) -> Result<(), Why> {
    if state.len() != shapes.len() {
        return Err(Why::Protocol("wrong number of tensors in a checkpoint"));
    }
    for (bytes, shape) in state.iter().zip(shapes) {
        if bytes.len() as u64 != shape.bytes {
            return Err(Why::Protocol("a tensor of the wrong size in a checkpoint"));
        }
        if !shape
            .float_bytes
            .is_none_or(|float_bytes| all_finite(bytes, float_bytes))
        {
            return Err(Why::Protocol("a checkpoint that is not finite"));
        }
    }
    Ok(())
}

/// Whether little-endian IEEE floats of 4 or 8 bytes are all finite. Without a branch per element: a state has up to
/// gigabytes.
fn all_finite(bytes: &[u8], float_bytes: usize) -> bool {
    let special = |bytes: &[u8]| match float_bytes {
        4 => bytes.as_chunks().0.iter().fold(false, |found, &bytes| {
            found | (u32::from_le_bytes(bytes) & EXPONENT_32 == EXPONENT_32)
        }),
        _ => bytes.as_chunks().0.iter().fold(false, |found, &bytes| {
            found | (u64::from_le_bytes(bytes) & EXPONENT_64 == EXPONENT_64)
        }),
    };
    bytes.len().is_multiple_of(float_bytes) && !bytes.chunks(1 << 16).any(special)
}

/// All bits of the exponent set: infinite or not a number (IEEE 754-2019, 3.4).
const EXPONENT_32: u32 = 0x7f80_0000;
const EXPONENT_64: u64 = 0x7ff0_0000_0000_0000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_that_is_not_finite_is_found_wherever_it_is() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 1, 20_000, 40_000] {
                let mut floats = vec![f32::MAX; 40_001];
                floats[place] = value;
                let bytes: Vec<u8> = floats.iter().flat_map(|float| float.to_le_bytes()).collect();
                assert!(!all_finite(&bytes, 4));
                let bytes: Vec<u8> = floats
                    .iter()
                    .flat_map(|&float| f64::from(float).to_le_bytes())
                    .collect();
                assert!(!all_finite(&bytes, 8));
            }
        }
        let extremes = [f32::MIN, f32::MAX, 0.0, -0.0, f32::MIN_POSITIVE / 2.0];
        let bytes: Vec<u8> = extremes.iter().flat_map(|float| float.to_le_bytes()).collect();
        assert!(all_finite(&bytes, 4));
        assert!(!all_finite(&bytes[..3], 4), "not a whole number of values");
    }
}
