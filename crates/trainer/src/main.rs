//! `bastionai-trainer`: started by the server for one run, speaks `bastionai_wire::trainer` on standard input and
//! output, logs a fixed vocabulary on standard error.

use bastionai_trainer::Device;
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
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (device, question) = match &arguments[..] {
        ["--device", name, question @ ..] => (Device::named(name), question),
        question => (Some(Device::Cpu), question),
    };
    let Some(device) = device else {
        eprintln!("trainer: --device: one of cpu and cuda is due");
        return ExitCode::from(FAILED);
    };
    // Before the process is hardened, which leaves readable what is beside the loaded libraries.
    if let Err(error) = device.load() {
        eprintln!("trainer: {error}");
        return ExitCode::from(FAILED);
    }
    match question {
        ["--libraries"] => return list_libraries(device),
        ["--sandbox"] => return prove_sandbox(device),
        ["--probe-device"] => return probe_device(device),
        ["--probe", threads] => return probe(threads, device),
        _ => {}
    }
    let output = match sandbox::harden(device).and_then(|_| Ok(sandbox::take_standard_output()?)) {
        Ok(output) => output,
        Err(error) => {
            eprintln!("trainer: cannot harden the process: {error}");
            return ExitCode::from(FAILED);
        }
    };
    match process::serve(std::io::stdin(), output, device) {
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
fn prove_sandbox(device: Device) -> ExitCode {
    match sandbox::prove(device) {
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

/// `bastionai-trainer --device NAME --probe-device`: whether it can be used and what it has, one fact a line.
fn probe_device(device: Device) -> ExitCode {
    match device.start().and_then(|facts| device.exercise().map(|()| facts)) {
        Ok(facts) => {
            if let Some(facts) = facts {
                println!("memory_bytes {}", facts.memory_bytes);
                println!("free_bytes {}", facts.free_bytes);
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
fn probe(threads: &str, device: Device) -> ExitCode {
    let measured = threads.parse().map_err(|_| "threads: a number is due".to_owned());
    let measure = |threads| Throughput::measure(threads, device).map_err(|error| error.to_string());
    match measured.and_then(measure) {
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
fn list_libraries(device: Device) -> ExitCode {
    let paths = if device.is_cpu() {
        libraries::loaded()
    } else {
        libraries::loadable()
    };
    match paths {
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
