//! A stand-in for the trainer in the server's tests: speaks the pipe protocol, touches no libtorch, and
//! misbehaves on demand. A trainer gets no arguments but its device and no environment, so the name it is called by (a link
//! to this program) says how: `MODE-N`, where MODE is one of:
//!
//! - `normal-MS`: every step takes MS milliseconds; its state is the initial parameters with the step in the first
//!   number, which it expects to get back when it continues, and the step added to the second; an average of the
//!   iterates is minus the step and zeros; every "loss" is 0.5 plus fresh randomness, so that a
//!   recomputed step would show a second value;
//! - `hang-N`, `die-N`: after N steps it sleeps for ever, or exits; `die-0` dies as it gets the records;
//! - `deaf-MS`: like `normal-MS`, but never stops when it is asked to;
//! - `greedy-MIB`: asks for so much memory once it has the records, and dies if it gets none;
//! - `segv-N`, `abort-N`, `kill-N`, `exit-N`: after N steps it dies of that signal, as libtorch would crash, throw or
//!   be killed when memory runs out, or exits with status 3; with `early` before the mode, before it is ready; with
//!   `late`, in the middle of a checkpoint;
//! - `nolandlock`: like `normal-0`, on a kernel without Landlock;
//! - `refuse`, `unready`, `mute`, `garbage`: refuses the job, dies before it is ready, never is, or answers nonsense;
//! - `nan`, `short`, `skip`: a state that is not finite, too short, or steps out of order;
//! - `record`: like `normal-0`, and writes every byte it was sent to `record.bin` beside the link, for benches;
//! - `echo-MS`: like `normal-MS`, and writes the records it got to `echo.bin` beside the link;
//! - `trace-MS`: like `normal-MS`, and writes the sizes of all frames it got to `trace.txt` beside the link.
//!
//! Asked to evaluate it counts nothing: every "noisy count" is its cell's number; with `fresh-MS`, which is like `normal-MS`,
//! the first one is fresh randomness, so that a second release would show.

use bastionai_graph::typed::TypedGraph;
use bastionai_privacy::histogram::Histograms;
use bastionai_wire::trainer::{
    Control, EvaluationJob, Job, Report, Task, read_frame, read_message, write_frame, write_message,
};
use rustix::process::Signal;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn main() -> io::Result<()> {
    let mut arguments = std::env::args();
    let called = PathBuf::from(arguments.next().unwrap_or_default());
    let mut question = arguments.next();
    if question.as_deref() == Some("--device") {
        let device = arguments.next();
        question = arguments.next();
        if device.as_deref() != Some("cuda") {
            return Err(io::Error::other("no such device"));
        }
    }
    let name = called
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let (mode, number) = name.split_once('-').unwrap_or((&name, "0"));
    match question.as_deref() {
        Some("--libraries") => return Ok(()),
        Some("--probe-device") => {
            println!("memory_bytes {}", 80u64 << 30);
            return Ok(());
        }
        Some("--sandbox") => {
            println!("seccomp");
            if mode != "nolandlock" {
                println!("landlock 7");
            }
            return Ok(());
        }
        _ => {}
    }
    let number: u64 = number.parse().map_err(io::Error::other)?;
    let mut input = Counted {
        input: BufReader::new(io::stdin()),
        sizes: Vec::new(),
        heard: (mode == "record").then(Vec::new),
    };
    let mut output = BufWriter::new(io::stdout());
    let job = match postcard(&input.frame()?)? {
        Task::Train(job) => job,
        Task::Evaluate(job) => return evaluate(&job, &called, (mode, number), input, &mut output),
    };
    let graph = TypedGraph::from_bytes(&job.graph).map_err(io::Error::other)?;
    let mut state = initial_state(&mut input, &job, &graph)?;
    match mode {
        "refuse" => {
            return say(
                &mut output,
                &Report::Refused {
                    reason: "on demand".into(),
                },
            );
        }
        "unready" => return Ok(()),
        "mute" => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        _ if mode.starts_with("early") => die_of(&mode[5..]),
        "garbage" => {
            output.write_all(&[0xff; 64])?;
            return output.flush();
        }
        _ => say(&mut output, &Report::Ready)?,
    }
    let numbered = job.units.of_datasets.iter().flatten().count();
    let records = input.frames(job.datasets.len() * graph.inputs().len() + numbered)?;
    match mode {
        "echo" => std::fs::write(called.with_file_name("echo.bin"), records.concat())?,
        "record" => std::fs::write(
            called.with_file_name("record.bin"),
            input.heard.take().unwrap_or_default(),
        )?,
        "trace" => std::fs::write(called.with_file_name("trace.txt"), input.sizes())?,
        "greedy" => Vec::<u8>::new()
            .try_reserve_exact((number << 20) as usize)
            .map_err(io::Error::other)?,
        _ => {}
    }
    let stop = listen(input.input);
    let base = second_number(&state) - job.start_step as f32;
    let mut losses = Vec::new();
    let mut since = Instant::now();
    for step in job.start_step + 1..=job.steps {
        match mode {
            "hang" if step > number => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            "die" if step > number => return Ok(()),
            "segv" | "abort" | "kill" | "exit" if step > number => die_of(mode),
            "normal" | "deaf" | "echo" | "trace" if number > 0 => {
                std::thread::sleep(Duration::from_millis(number))
            }
            _ => {}
        }
        let shown = if mode == "skip" { step + 1 } else { step };
        say(&mut output, &Report::Step { step: shown })?;
        losses.push(job.loss.map(|_| 0.5 + randomness()));
        let stopping = mode != "deaf" && stop.load(Ordering::Acquire);
        let due = since.elapsed() >= Duration::from_millis(job.checkpoint_ms);
        if due || stopping || step == job.steps || job.keep_steps.contains(&step) {
            since = Instant::now();
            state[0][..4].copy_from_slice(&(step as f32).to_le_bytes());
            state[0][4..8].copy_from_slice(&(base + step as f32).to_le_bytes());
            if job.average.is_some() {
                let average = state.len() - state.len() / job.state_groups();
                state[average][..4].copy_from_slice(&(-(step as f32)).to_le_bytes());
            }
            let losses = std::mem::take(&mut losses);
            write_message(&mut output, &Report::Checkpoint { step, losses })?;
            for tensor in &state {
                match mode {
                    "nan" => write_frame(&mut output, &vec![0xff; tensor.len()])?,
                    _ if mode.starts_with("late") => {
                        output.write_all(&(tensor.len() as u32).to_le_bytes())?;
                        output.write_all(&tensor[..tensor.len() / 2])?;
                        output.flush()?;
                        die_of(&mode[4..]);
                    }
                    "short" => write_frame(&mut output, &tensor[..tensor.len() - 4])?,
                    _ => write_frame(&mut output, tensor)?,
                }
            }
            output.flush()?;
        }
        if stopping {
            return say(&mut output, &Report::Stopped);
        }
    }
    Ok(())
}

fn evaluate(
    job: &EvaluationJob,
    called: &Path,
    (mode, number): (&str, u64),
    mut input: Counted,
    output: &mut impl Write,
) -> io::Result<()> {
    let graph = TypedGraph::from_bytes(&job.graph).map_err(io::Error::other)?;
    input.frames(graph.parameters().len() + graph.constants().len())?;
    say(output, &Report::Ready)?;
    input.frames(job.datasets.len() * graph.inputs().len())?;
    if mode == "trace" {
        std::fs::write(called.with_file_name("trace.txt"), input.sizes())?;
    }
    let stop = listen(input.input);
    let (since, needed) = (Instant::now(), Duration::from_millis(number));
    while since.elapsed() < needed {
        if mode != "deaf" && stop.load(Ordering::Acquire) {
            return say(output, &Report::Stopped);
        }
        std::thread::sleep(needed.saturating_sub(since.elapsed()).min(BATCH));
    }
    say(output, &Report::Step { step: 1 })?;
    let losses = vec![None];
    write_message(output, &Report::Checkpoint { step: 1, losses })?;
    let histograms =
        Histograms::new(job.classes, job.has_confusion, job.score_bins).map_err(io::Error::other)?;
    for shape in histograms.shapes() {
        let missing = u64::from(mode == "short");
        let mut counts: Vec<u64> = (0..shape.counts() - missing).collect();
        if mode == "fresh" {
            counts[0] = (randomness() * 1e12) as u64;
        }
        let counts: Vec<u8> = counts.into_iter().flat_map(u64::to_le_bytes).collect();
        write_frame(output, &counts)?;
    }
    output.flush()
}

/// The trained parameters as they were sent, and zeros for the optimizer; or, continuing, what the server kept.
fn initial_state(input: &mut Counted, job: &Job, graph: &TypedGraph) -> io::Result<Vec<Vec<u8>>> {
    let parameters = input.frames(graph.parameters().len())?;
    input.frames(graph.constants().len())?;
    let trained = parameters.into_iter().zip(graph.parameters());
    let trained = trained.filter(|(_, each)| each.trainable).map(|(bytes, _)| bytes);
    let mut state: Vec<Vec<u8>> = trained.collect();
    let zeros: Vec<Vec<u8>> = state.iter().map(|bytes| vec![0; bytes.len()]).collect();
    (1..job.state_groups()).for_each(|_| state.extend(zeros.clone()));
    if job.start_step > 0 {
        state = input.frames(state.len())?;
        let kept = f32::from_le_bytes(state[0][..4].try_into().map_err(io::Error::other)?);
        if kept != job.start_step as f32 {
            return Err(io::Error::other("the state of another step came back"));
        }
    }
    Ok(state)
}

fn second_number(state: &[Vec<u8>]) -> f32 {
    let bytes = state[0].get(4..8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0.0, f32::from_le_bytes)
}

/// Ends this process by the signal that such an end brings.
fn die_of(what: &str) -> ! {
    let signal = match what {
        "segv" => Some(Signal::SEGV),
        "kill" => Some(Signal::KILL),
        _ => None,
    };
    // Twice: Rust's own handler of SIGSEGV takes the first one that is no stack overflow, and steps aside.
    for signal in signal.into_iter().chain(signal) {
        let sent = rustix::process::kill_process(rustix::process::getpid(), signal);
        sent.expect("a process may signal itself");
    }
    if what == "abort" {
        std::process::abort();
    }
    std::process::exit(3)
}

/// Frames, the sizes of those read so far, and, if somebody wants them, their bytes.
struct Counted {
    input: BufReader<io::Stdin>,
    sizes: Vec<usize>,
    heard: Option<Vec<u8>>,
}

impl Counted {
    fn frame(&mut self) -> io::Result<Vec<u8>> {
        let frame = read_frame(&mut self.input, MAX)?;
        self.sizes.push(frame.len());
        if let Some(heard) = &mut self.heard {
            write_frame(heard, &frame)?;
        }
        Ok(frame)
    }

    fn frames(&mut self, count: usize) -> io::Result<Vec<Vec<u8>>> {
        (0..count).map(|_| self.frame()).collect()
    }

    fn sizes(&self) -> String {
        self.sizes.iter().map(|size| format!("{size}\n")).collect()
    }
}

/// Set once the server asks to stop; without a server there is nothing to do at all.
fn listen(mut input: impl Read + Send + 'static) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    std::thread::spawn(move || match read_message(&mut input, MAX) {
        Ok(Control::Stop) => asked.store(true, Ordering::Release),
        Err(_) => std::process::exit(1),
    });
    stop
}

fn postcard(frame: &[u8]) -> io::Result<Task> {
    let mut framed = (frame.len() as u32).to_le_bytes().to_vec();
    framed.extend_from_slice(frame);
    read_message(&mut &framed[..], MAX)
}

fn say(output: &mut impl Write, report: &Report) -> io::Result<()> {
    write_message(output, report)?;
    output.flush()
}

/// In [0, 1e-3), different at every call: nanoseconds are enough for a stand-in.
fn randomness() -> f64 {
    let nanoseconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.subsec_nanos());
    f64::from(nanoseconds) * 1e-12
}

const MAX: u64 = 1 << 30;
/// How long a batch of an evaluation takes.
const BATCH: Duration = Duration::from_millis(2);
