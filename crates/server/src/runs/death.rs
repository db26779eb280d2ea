//! How a trainer ended, for the operator's log: the signal or exit status and the phase, never a word of its own
//! (rule G4).

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// What the trainer was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Before it was ready: no record had reached it, nothing is charged.
    Starting,
    /// With records: the run is charged.
    Training,
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Starting => "starting",
            Self::Training => "training",
        })
    }
}

/// How the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// By a signal.
    Signal(i32),
    /// With an exit status.
    Exit(i32),
    /// It closed its pipe and lives on, or its end is not known.
    Unknown,
}

impl Death {
    /// Reaps a trainer whose pipe is closed; it gets a moment to be gone.
    pub(crate) fn of(child: &mut Child) -> Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Self::from(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
                _ => return Self::Unknown,
            }
        }
    }
}

impl From<ExitStatus> for Death {
    fn from(status: ExitStatus) -> Self {
        match (status.signal(), status.code()) {
            (Some(signal), _) => Self::Signal(signal),
            (None, Some(code)) => Self::Exit(code),
            (None, None) => Self::Unknown,
        }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Signal(number) => match signal(number) {
                Some((name, meaning)) => write!(formatter, "was ended by {name} ({meaning})"),
                None => write!(formatter, "was ended by signal {number}"),
            },
            Self::Exit(code) => write!(formatter, "exited with status {code}{}", meaning(code)),
            Self::Unknown => formatter.write_str("closed its pipe"),
        }
    }
}

/// Names and likely causes (signal(7); the numbers are those of every Linux but Alpha, MIPS, PA-RISC and SPARC).
fn signal(number: i32) -> Option<(&'static str, &'static str)> {
    Some(match number {
        4 => ("SIGILL", "an instruction this CPU lacks"),
        6 => (
            "SIGABRT",
            "an abort: memory refused at trainer.memory_bytes, or an exception nobody caught",
        ),
        7 => ("SIGBUS", "a crash in libtorch, or memory that is not there"),
        8 => ("SIGFPE", "an integer division by zero in libtorch"),
        9 => ("SIGKILL", "by the system when memory ran out, or by hand"),
        11 => ("SIGSEGV", "a crash in libtorch, or a stack that ran over"),
        15 => ("SIGTERM", "by hand"),
        25 => ("SIGXFSZ", "it tried to write a file"),
        31 => ("SIGSYS", "a system call that is not allowed"),
        _ => return None,
    })
}

/// Exit statuses of `bastionai-trainer` (its main.rs).
const fn meaning(code: i32) -> &'static str {
    match code {
        1 => " (the run failed inside it)",
        70 => " (a bug: it panicked)",
        _ => "",
    }
}

const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_dead_childs_signal_or_status_is_named() {
        for (script, expected) in [
            (
                "kill -SEGV $$",
                "was ended by SIGSEGV (a crash in libtorch, or a stack that ran over)",
            ),
            (
                "kill -KILL $$",
                "was ended by SIGKILL (by the system when memory ran out, or by hand)",
            ),
            ("kill -USR1 $$", "was ended by signal 10"),
            ("exit 70", "exited with status 70 (a bug: it panicked)"),
            ("exit 3", "exited with status 3"),
        ] {
            let mut child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
            assert_eq!(Death::of(&mut child).to_string(), expected, "{script}");
        }
    }
}
