//! `bastionai-trainer`: started by the server for one run, speaks `bastionai_wire::trainer` on standard input and
//! output, logs a fixed vocabulary on standard error.

use bastionai_trainer::libraries;
use bastionai_trainer::probe::Throughput;
use bastionai_trainer::process::{self, ProcessError};
use bastionai_trainer::sandbox;
use std::process::ExitCode;

/// The run failed, or the server is gone.
const FAILED: u8 = 1;
/// The job was refused; the server was told why.
const REFUSED: u8 = 2;
/// A bug: the place is logged, never the message, which may quote values.
const PANICKED: u8 = 70;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
        eprintln!("trainer: internal error{place}");
        std::process::exit(i32::from(PANICKED));
    }));
    match std::env::args().nth(1).as_deref() {
        Some("--libraries") => return list_libraries(),
        Some("--sandbox") => return prove_sandbox(),
        _ => {}
    }
    if let (Some("--probe"), Some(threads)) = (std::env::args().nth(1).as_deref(), std::env::args().nth(2)) {
        return probe(&threads);
    }
    let output = match sandbox::harden().and_then(|_| Ok(sandbox::take_standard_output()?)) {
        Ok(output) => output,
        Err(error) => {
            eprintln!("trainer: cannot harden the process: {error}");
            return ExitCode::from(FAILED);
        }
    };
    match process::serve(std::io::stdin(), output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trainer: {error}");
            ExitCode::from(if matches!(error, ProcessError::Refused) {
                REFUSED
            } else {
                FAILED
            })
        }
    }
}

/// `bastionai-trainer --sandbox`: what confines a trainer on this kernel, proven by trying; one protection a line.
fn prove_sandbox() -> ExitCode {
    match sandbox::prove() {
        Ok(sandbox) => {
            println!("seccomp");
            if let Some(abi) = sandbox.landlock_abi {
                println!("landlock {abi}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("trainer: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// `bastionai-trainer --probe THREADS`: how fast this machine is, for the server's estimates.
fn probe(threads: &str) -> ExitCode {
    let measured = threads.parse().map_err(|_| "threads: a number is due".to_owned());
    match measured.and_then(|threads| Throughput::measure(threads).map_err(|error| error.to_string())) {
        Ok(throughput) => {
            print!("{}", throughput.lines());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("trainer: cannot measure this machine: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// `bastionai-trainer --libraries`: what the server measures at boot, one path a line.
fn list_libraries() -> ExitCode {
    match libraries::loaded() {
        Ok(paths) => {
            paths.iter().for_each(|path| println!("{path}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("trainer: cannot list the loaded libraries: {error}");
            ExitCode::from(FAILED)
        }
    }
}
