//! One trainer process from spawn to weights. The trainer gets a cleared environment, pipes and nothing else;
//! records reach it only after [`Recorder::start`] made the run's start durable, and nothing it reports is
//! seen by anyone before [`Recorder::release`] made it durable (output commit, rule D1).
//!
//! Blocking, on a thread of its own: it waits on a process, not on a peer.

use super::cancel::Cancel;
use bastionai_wire::trainer::{
    Job, Report, TRAINER_ENVIRONMENT, read_frame, read_message, write_frame, write_message,
};
use rustix::process::{Pid, Resource, Rlimit};
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
    /// Everything but the raw tensors.
    pub(crate) job: Job,
    /// Parameters, then constants, in graph order.
    pub(crate) tensors: Arc<Vec<Vec<u8>>>,
    /// Expected weights, in graph order.
    pub(crate) weights: Vec<WeightShape>,
    /// Patience and cadence.
    pub(crate) timing: Timing,
    /// Most private memory the trainer may take.
    pub(crate) memory_bytes: u64,
}

/// Size and kind of one trainable parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WeightShape {
    /// Exact length.
    pub(crate) bytes: u64,
    /// Element size of an IEEE float: 4 or 8.
    pub(crate) float_bytes: usize,
}

/// Patience and cadence of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// From spawn to ready.
    pub(crate) start_timeout: Duration,
    /// Longest silence afterwards.
    pub(crate) step_timeout: Duration,
    /// From ready to the last weight.
    pub(crate) run_timeout: Duration,
    /// Time between two commits; the last step is committed at once.
    pub(crate) commit_every: Duration,
}

/// The durable side of a run.
pub(crate) trait Recorder {
    /// Makes the start durable; then, and only then, opens the records: one frame per dataset and graph input.
    fn start(&mut self) -> Result<Frames, BoxError>;
    /// Makes `losses`, the releases of the steps up to `step`, durable, then visible.
    fn release(&mut self, step: u64, losses: &[Option<f64>]) -> Result<(), BoxError>;
}

/// Records as the trainer gets them; wiped on drop.
pub(crate) type Frames = Vec<Zeroizing<Vec<u8>>>;

/// Any error of the durable side.
pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// Why a run brought no weights.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Why {
    #[error("cancelled")]
    Cancelled,
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
    #[error("the trainer died")]
    Died(#[source] io::Error),
    #[error("the trainer broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("the run's progress could not be made durable")]
    NotDurable(#[source] BoxError),
}

impl Why {
    /// Word for the log.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Refused(_) => "refused",
            Self::Prepare(_) => "prepare",
            Self::Spawn { .. } => "spawn",
            Self::StartTimeout => "start-timeout",
            Self::Hung => "hung",
            Self::Overtime => "overtime",
            Self::Died(_) => "died",
            Self::Protocol(_) => "protocol",
            Self::NotDurable(_) => "not-durable",
        }
    }
}

/// Runs a trainer to its end. Returns validated weights: exact sizes, every value finite.
pub(crate) fn supervise(
    order: &Order,
    recorder: &mut impl Recorder,
    cancel: &Cancel,
) -> Result<Vec<Vec<u8>>, Why> {
    let trainer = Trainer::spawn(order)?;
    trainer.wait_until_ready(order.timing.start_timeout, cancel)?;
    let records = recorder.start().map_err(Why::NotDurable)?;
    // A closed channel means a dead writer; the reader reports that in its own words.
    let _ = trainer.records.send(records);
    let weights = trainer.follow(order, recorder, cancel)?;
    check_weights(&weights, &order.weights)?;
    Ok(weights)
}

/// How often a cancellation is looked for.
const CANCEL_POLL: Duration = Duration::from_millis(20);
/// A report is a few words; refusals name nodes.
const MAX_REPORT_BYTES: u64 = 1 << 20;

enum Signal {
    Report(Report),
    Weights(Vec<Vec<u8>>),
    Gone(io::Error),
}

/// A spawned trainer; killed and reaped when dropped.
struct Trainer {
    child: Child,
    signals: Receiver<Signal>,
    records: Sender<Frames>,
}

impl Drop for Trainer {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

/// Kills a trainer with its group, and reaps it.
fn stop(child: &mut Child) {
    // Not reaped yet, so the group is still this child's. Each fails only when all of it is already dead.
    let _ = rustix::process::kill_process_group(Pid::from_child(child), rustix::process::Signal::KILL);
    let _ = child.kill();
    let _ = child.wait();
}

impl Trainer {
    fn spawn(order: &Order) -> Result<Self, Why> {
        let spawn_error = |source| Why::Spawn {
            program: order.program.clone(),
            source,
        };
        let mut child = Command::new(&order.program)
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
        if let Err(source) = limit_memory(&child, order.memory_bytes) {
            stop(&mut child);
            return Err(spawn_error(source));
        }
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        let (to_writer, records) = channel();
        let (to_supervisor, signals) = sync_channel(1024);
        let trainer = Self {
            child,
            signals,
            records: to_writer,
        };
        let (job, tensors) = (order.job.clone(), Arc::clone(&order.tensors));
        let broken = to_supervisor.clone();
        let sizes = order.weights.iter().map(|weight| weight.bytes).collect();
        named_thread("trainer-in", move || {
            write_all(stdin, &job, &tensors, &records, &broken)
        })
        .map_err(spawn_error)?;
        named_thread("trainer-out", move || read_all(stdout, sizes, &to_supervisor)).map_err(spawn_error)?;
        Ok(trainer)
    }

    /// The next signal, or `None` at `deadline`.
    fn next(&self, deadline: Instant, cancel: &Cancel) -> Result<Option<Signal>, Why> {
        loop {
            if cancel.is_cancelled() {
                return Err(Why::Cancelled);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.signals.recv_timeout(left.min(CANCEL_POLL)) {
                Ok(Signal::Gone(error)) => return Err(Why::Died(error)),
                Ok(signal) => return Ok(Some(signal)),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Why::Died(io::ErrorKind::BrokenPipe.into()));
                }
            }
        }
    }

    fn wait_until_ready(&self, patience: Duration, cancel: &Cancel) -> Result<(), Why> {
        match self.next(Instant::now() + patience, cancel)? {
            Some(Signal::Report(Report::Ready)) => Ok(()),
            Some(Signal::Report(Report::Refused { reason })) => Err(Why::Refused(reason)),
            Some(_) => Err(Why::Protocol("something before Ready")),
            None => Err(Why::StartTimeout),
        }
    }

    /// Follows the steps; commits them at the fixed cadence; returns the weights.
    fn follow(
        &self,
        order: &Order,
        recorder: &mut impl Recorder,
        cancel: &Cancel,
    ) -> Result<Vec<Vec<u8>>, Why> {
        let mut progress = Progress::new(order.timing);
        let mut deadline = Instant::now() + order.timing.step_timeout;
        let end = Instant::now() + order.timing.run_timeout;
        let mut finished = false;
        loop {
            let signal = self.next(progress.due().min(deadline).min(end), cancel)?;
            if Instant::now() >= end {
                return Err(Why::Overtime);
            }
            match signal {
                Some(Signal::Report(Report::Step { step, noisy_loss })) if !finished => {
                    progress.push(step, noisy_loss, &order.job)?;
                }
                Some(Signal::Report(Report::Finished))
                    if !finished && progress.reached == order.job.steps =>
                {
                    finished = true;
                    progress.commit(recorder)?;
                }
                Some(Signal::Weights(weights)) if finished => return Ok(weights),
                Some(_) => return Err(Why::Protocol("report out of order")),
                None if Instant::now() >= deadline => return Err(Why::Hung),
                None => {
                    progress.commit(recorder)?;
                    continue;
                }
            }
            deadline = Instant::now() + order.timing.step_timeout;
            if progress.is_due() {
                progress.commit(recorder)?;
            }
        }
    }
}

/// Steps reported, but not yet durable.
struct Progress {
    timing: Timing,
    reached: u64,
    pending: Vec<Option<f64>>,
    committed_at: Instant,
}

impl Progress {
    fn new(timing: Timing) -> Self {
        Self {
            timing,
            reached: 0,
            pending: Vec::new(),
            committed_at: Instant::now(),
        }
    }

    fn push(&mut self, step: u64, noisy_loss: Option<f64>, job: &Job) -> Result<(), Why> {
        if step != self.reached + 1 || step > job.steps {
            return Err(Why::Protocol("steps out of order"));
        }
        if noisy_loss.is_some() != job.loss.is_some() || noisy_loss.is_some_and(|loss| !loss.is_finite()) {
            return Err(Why::Protocol(
                "a loss that was not asked for, is missing or is not finite",
            ));
        }
        self.reached = step;
        self.pending.push(noisy_loss);
        Ok(())
    }

    /// When the pending steps must be committed.
    fn due(&self) -> Instant {
        if self.pending.is_empty() {
            Instant::now() + self.timing.step_timeout * 2
        } else {
            self.committed_at + self.timing.commit_every
        }
    }

    fn is_due(&self) -> bool {
        self.due() <= Instant::now()
    }

    fn commit(&mut self, recorder: &mut impl Recorder) -> Result<(), Why> {
        if !self.pending.is_empty() {
            recorder
                .release(self.reached, &self.pending)
                .map_err(Why::NotDurable)?;
            self.pending.clear();
        }
        self.committed_at = Instant::now();
        Ok(())
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
    job: &Job,
    tensors: &[Vec<u8>],
    records: &Receiver<Frames>,
    broken: &SyncSender<Signal>,
) {
    let mut stdin = BufWriter::with_capacity(1 << 16, stdin);
    let outcome = write_message(&mut stdin, job)
        .and_then(|()| {
            tensors
                .iter()
                .try_for_each(|bytes| write_frame(&mut stdin, bytes))
        })
        .and_then(|()| stdin.flush());
    let outcome = outcome.and_then(|()| {
        let Ok(records) = records.recv() else {
            return Ok(());
        };
        records
            .iter()
            .try_for_each(|bytes| write_frame(&mut stdin, bytes))?;
        stdin.flush()
    });
    match outcome {
        // A trainer that refuses a job or dies stops reading: the reader thread has the better words for it.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => drop(broken.send(Signal::Gone(error))),
        // The trainer takes end of file for the server's death, so the pipe stays open until the supervisor
        // hangs up.
        _ => drop(records.recv()),
    }
}

fn read_all(stdout: ChildStdout, sizes: Vec<u64>, supervisor: &SyncSender<Signal>) {
    let mut stdout = io::BufReader::with_capacity(1 << 16, stdout);
    let signal = loop {
        match read_message::<Report>(&mut stdout, MAX_REPORT_BYTES) {
            Ok(report) => {
                let last = report == Report::Finished;
                if supervisor.send(Signal::Report(report)).is_err() {
                    return;
                }
                if last {
                    break read_weights(&mut stdout, &sizes).map_or_else(Signal::Gone, Signal::Weights);
                }
            }
            Err(error) => break Signal::Gone(error),
        }
    };
    // The supervisor may have stopped listening (cancelled, timed out): then nobody needs this.
    let _ = supervisor.send(signal);
}

fn read_weights(stdout: &mut impl Read, sizes: &[u64]) -> io::Result<Vec<Vec<u8>>> {
    sizes.iter().map(|&bytes| read_frame(stdout, bytes)).collect()
}

/// Weights come from the process that runs a stranger's graph: exact sizes and finite values, or nothing.
fn check_weights(weights: &[Vec<u8>], shapes: &[WeightShape]) -> Result<(), Why> {
    if weights.len() != shapes.len() {
        return Err(Why::Protocol("wrong number of weights"));
    }
    for (bytes, shape) in weights.iter().zip(shapes) {
        if bytes.len() as u64 != shape.bytes {
            return Err(Why::Protocol("weights of the wrong size"));
        }
        if !bytes.chunks_exact(shape.float_bytes).all(is_finite) {
            return Err(Why::Protocol("weights that are not finite"));
        }
    }
    Ok(())
}

/// Whether a little-endian IEEE float of 4 or 8 bytes is finite.
fn is_finite(bytes: &[u8]) -> bool {
    match bytes {
        &[a, b, c, d] => f32::from_le_bytes([a, b, c, d]).is_finite(),
        _ => <[u8; 8]>::try_from(bytes).is_ok_and(|bytes| f64::from_le_bytes(bytes).is_finite()),
    }
}
