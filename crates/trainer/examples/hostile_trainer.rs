//! A hostile build of the trainer, for the server's tests: it links the real confinement, speaks the pipe protocol,
//! and then does what code execution inside libtorch would try. A trainer gets no arguments and no environment, so
//! the name it is called by (a link to this program) says what, as `MODE-0`:
//!
//! - `attempts`: everything that must be refused, before records arrive and after; if any of it works it exits at
//!   once with status 99, so the run fails; else it goes on like an honest trainer, and the run succeeds;
//! - `greedy`: takes and touches 8 GiB, piece by piece, and goes on only if it gets them;
//! - `spin`: computes for ever, in silence; `flood`: starts threads until it cannot;
//! - `segv`, `abort`: dies as a crash in libtorch or an exception nobody catches would, once it has records;
//!   `earlysegv`: before.
//!
//! `--sandbox` and `--libraries` answer as the trainer does.
#![allow(unsafe_code)]

use bastionai_graph::typed::TypedGraph;
use bastionai_trainer::Device;
use bastionai_trainer::confinement::confine;
use bastionai_trainer::sandbox;
use bastionai_wire::trainer::{Report, Task, read_frame, read_message, write_frame, write_message};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, exit};

/// Tells the test that something worked that must not.
const ESCAPED: i32 = 99;
const MAX: u64 = 1 << 30;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args();
    let called = PathBuf::from(arguments.next().unwrap_or_default());
    match arguments.next().as_deref() {
        Some("--libraries") => return Ok(()),
        Some("--sandbox") => {
            sandbox::prove(Device::Cpu)?;
            println!("seccomp");
            return Ok(());
        }
        _ => {}
    }
    let name = called
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mode = name.split('-').next().unwrap_or_default();

    let in_force = sandbox::harden(Device::Cpu)?;
    let mut output = sandbox::take_standard_output()?;
    let mut input = BufReader::new(io::stdin());
    let Task::Train(job) = read_message(&mut input, MAX)? else {
        return Err("it is hostile to training runs only".into());
    };
    let graph = TypedGraph::from_bytes(&job.graph)?;
    let parameters = frames(&mut input, graph.parameters().len())?;
    frames(&mut input, graph.constants().len())?;
    match mode {
        "attempts" => {
            if in_force.landlock_abi.is_some() {
                files();
            }
            others();
        }
        "earlysegv" => crash(),
        _ => {}
    }
    confine(Device::Cpu)?;
    write_message(&mut output, &Report::Ready)?;
    frames(&mut input, job.datasets.len() * graph.inputs().len())?;
    match mode {
        "attempts" => {
            files();
            others();
        }
        "greedy" => greedy(),
        "spin" => spin(),
        "flood" => flood(),
        "segv" => crash(),
        "abort" => std::process::abort(),
        _ => {}
    }
    let mut losses = Vec::new();
    for step in 1..=job.steps {
        write_message(&mut output, &Report::Step { step })?;
        losses.push(job.loss.map(|_| 0.5));
    }
    let step = job.steps;
    write_message(&mut output, &Report::Checkpoint { step, losses })?;
    let trained = parameters
        .iter()
        .zip(graph.parameters())
        .filter(|(_, each)| each.trainable);
    let trained: Vec<&Vec<u8>> = trained.map(|(bytes, _)| bytes).collect();
    for bytes in (0..job.state_groups()).flat_map(|_| &trained) {
        write_frame(&mut output, bytes)?;
    }
    Ok(output.flush()?)
}

fn frames(input: &mut impl Read, count: usize) -> io::Result<Vec<Vec<u8>>> {
    (0..count).map(|_| read_frame(input, MAX)).collect()
}

/// Exits if an attempt worked, or failed for another reason than that it is forbidden.
fn must_fail<T>(attempt: io::Result<T>) {
    match attempt {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        _ => exit(ESCAPED),
    }
}

fn files() {
    must_fail(File::open("/etc/passwd"));
    must_fail(File::create("/tmp/bastionai-hostile"));
    must_fail(fs::create_dir("/tmp/bastionai-hostile-folder"));
    must_fail(fs::read_dir("/"));
    must_fail(fs::remove_file("/etc/passwd"));
    must_fail(std::os::unix::fs::symlink(
        "/etc/passwd",
        "/tmp/bastionai-hostile",
    ));
}

fn others() {
    must_fail(TcpStream::connect("127.0.0.1:1"));
    must_fail(TcpListener::bind("127.0.0.1:0"));
    must_fail(UdpSocket::bind("127.0.0.1:0"));
    must_fail(UnixStream::pair());
    must_fail(Command::new("/bin/true").status());
    // SAFETY: plain integers and null pointers; each call is refused, or the process exits.
    unsafe {
        let parent = libc::getppid();
        must_fail(outcome(i64::from(libc::fork())));
        must_fail(outcome(libc::ptrace(libc::PTRACE_ATTACH, parent, 0, 0)));
        must_fail(outcome(i64::from(libc::kill(parent, libc::SIGTERM))));
        must_fail(outcome(libc::syscall(
            libc::SYS_tgkill,
            parent,
            parent,
            libc::SIGTERM,
        )));
        must_fail(outcome(libc::syscall(libc::SYS_pidfd_open, parent, 0)));
        must_fail(outcome(libc::syscall(libc::SYS_bpf, 0, 0, 0)));
        must_fail(outcome(libc::syscall(libc::SYS_io_uring_setup, 1, 0)));
    }
}

fn outcome(status: i64) -> io::Result<()> {
    if status == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Pages that were touched count, whoever promises what.
fn greedy() {
    for _ in 0..128 {
        std::mem::forget(std::hint::black_box(vec![1u8; 64 << 20]));
    }
}

fn spin() -> ! {
    let mut value = 1u64;
    loop {
        value = std::hint::black_box(value.wrapping_mul(3));
    }
}

fn flood() {
    loop {
        let started = std::thread::Builder::new().spawn(|| {
            std::hint::black_box([1u8; 4096]);
            std::thread::park();
        });
        if started.is_err() {
            exit(1);
        }
    }
}

fn crash() {
    // SAFETY: there is none: this is the crash.
    unsafe { std::hint::black_box(std::ptr::null_mut::<u8>()).write_volatile(1) };
}
