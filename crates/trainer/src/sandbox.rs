//! What the trainer gives up at its start: core dumps, being traced, inherited files, outliving the server.
//!
//! What it may ask of the kernel after that is [`crate::confinement`].
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// First file descriptor after standard input, output and error.
const FIRST_INHERITED: u32 = 3;

/// Hardens the process. Call first, before any thread or file exists.
///
/// # Errors
/// The system call's.
pub fn harden() -> io::Result<()> {
    let no_core = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a live struct, read by the kernel.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &no_core) })?;
    // SAFETY: plain integers; forbids core dumps and ptrace by processes of the same user.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    // SAFETY: plain integers; nothing this process starts can gain privileges.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: plain integers; a trainer does not outlive its server.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })?;
    // SAFETY: plain integers; called before this process has opened anything of its own.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, FIRST_INHERITED, u32::MAX, 0) };
    check(closed as i32)
}

/// Keeps standard output for the protocol alone: libraries that print there print to standard error from now on.
///
/// # Errors
/// The system call's.
pub fn take_standard_output() -> io::Result<File> {
    // SAFETY: duplicates this process's own descriptor 1.
    let kept = unsafe { libc::dup(1) };
    check(kept)?;
    // SAFETY: both are this process's own descriptors.
    check(unsafe { libc::dup2(2, 1) })?;
    // SAFETY: `kept` is open and owned by nobody else.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(kept) }))
}

fn check(status: i32) -> io::Result<()> {
    if status < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
