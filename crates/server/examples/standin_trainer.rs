//! A stand-in for the trainer in the server's tests: speaks the pipe protocol, touches no libtorch, and
//! misbehaves on demand. A trainer gets no arguments and no environment, so the name it is called by (a link
//! to this program) says how: `MODE-N`, where MODE is one of:
//!
//! - `normal-MS`: every step takes MS milliseconds; the "weights" are the initial parameters, every "loss" is
//!   0.5 plus fresh randomness, so that a recomputed step would show a second value;
//! - `hang-N`, `die-N`: after N steps it sleeps for ever, or exits; `die-0` dies as it gets the records;
//! - `greedy-MIB`: asks for so much memory once it has the records, and dies if it gets none;
//! - `refuse`, `unready`, `garbage`: refuses the job, dies before it is ready, or answers nonsense;
//! - `nan`, `short`, `skip`: weights that are not finite, too short, or steps out of order;
//! - `echo`: like `normal-0`, and writes the records it got to `echo.bin` beside the link.

use bastionai_graph::typed::TypedGraph;
use bastionai_wire::trainer::{Job, Report, read_frame, read_message, write_frame, write_message};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn main() -> io::Result<()> {
    let mut arguments = std::env::args();
    let called = PathBuf::from(arguments.next().unwrap_or_default());
    if arguments.any(|argument| argument == "--libraries") {
        return Ok(());
    }
    let name = called
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let (mode, number) = name.split_once('-').unwrap_or((&name, "0"));
    let number: u64 = number.parse().map_err(io::Error::other)?;
    let mut input = BufReader::new(io::stdin());
    let mut output = BufWriter::new(io::stdout());
    let job: Job = read_message(&mut input, MAX)?;
    let graph = TypedGraph::from_bytes(&job.graph).map_err(io::Error::other)?;
    let parameters: Vec<Vec<u8>> = frames(&mut input, graph.parameters().len())?;
    frames(&mut input, graph.constants().len())?;
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
        "garbage" => {
            output.write_all(&[0xff; 64])?;
            return output.flush();
        }
        _ => say(&mut output, &Report::Ready)?,
    }
    let records = frames(&mut input, job.datasets.len() * graph.inputs().len())?;
    if mode == "echo" {
        std::fs::write(called.with_file_name("echo.bin"), records.concat())?;
    }
    if mode == "greedy" {
        Vec::<u8>::new()
            .try_reserve_exact((number << 20) as usize)
            .map_err(io::Error::other)?;
    }
    for step in 1..=job.steps {
        match mode {
            "hang" if step > number => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            "die" if step > number => return Ok(()),
            "normal" if number > 0 => std::thread::sleep(Duration::from_millis(number)),
            _ => {}
        }
        let step = if mode == "skip" { step + 1 } else { step };
        say(
            &mut output,
            &Report::Step {
                step,
                noisy_loss: job.loss.map(|_| 0.5 + randomness()),
            },
        )?;
    }
    say(&mut output, &Report::Finished)?;
    for (bytes, parameter) in parameters.iter().zip(graph.parameters()) {
        if !parameter.trainable {
            continue;
        }
        match mode {
            "nan" => write_frame(&mut output, &vec![0xff; bytes.len()])?,
            "short" => write_frame(&mut output, &bytes[..bytes.len() - 4])?,
            _ => write_frame(&mut output, bytes)?,
        }
    }
    output.flush()
}

fn frames(input: &mut impl Read, count: usize) -> io::Result<Vec<Vec<u8>>> {
    (0..count).map(|_| read_frame(input, MAX)).collect()
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
