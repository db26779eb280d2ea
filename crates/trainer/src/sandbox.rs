//! What the trainer gives up at its start: core dumps, being traced, inherited files, outliving the server, files
//! but those that libtorch reads, networks, other processes and programs. [`prove`] tries each of them.
//!
//! What it gives up once libtorch has run is [`crate::confinement::confine`].
#![allow(unsafe_code)]

use crate::confinement::{ConfinementError, confine, enclose};
use crate::device::{Device, DeviceError};
use crate::landlock::{self, Left};
use crate::libraries;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

/// First file descriptor after standard input, output and error.
const FIRST_INHERITED: u32 = 3;

/// Of one process: what it may use of things that are neither memory nor time. The server limits memory.
///
/// `NPROC` counts threads of the same user in all processes, so it can only be a ceiling against floods;
/// a new process is refused by [`enclose`] in any case.
const LIMITS: [(Resource, u64); 4] = [
    (libc::RLIMIT_CORE, 0),
    (libc::RLIMIT_FSIZE, 0),
    (libc::RLIMIT_NOFILE, 256),
    (libc::RLIMIT_NPROC, 8192),
];

#[cfg(target_env = "gnu")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_env = "gnu"))]
type Resource = libc::c_int;

/// Beside the folders of the loaded libraries: what libtorch, its thread pools and its random generators look at.
const READABLE: [&str; 5] = [
    "/sys/devices/system",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/self",
    "/dev/urandom",
];

/// What NVIDIA's libraries look at besides, when they start a device. A list made from documentation and from the traces of
/// others (gVisor's nvproxy): it has not met a GPU yet (docs/limitations.md).
const READABLE_FOR_CUDA: [&str; 6] = [
    "/proc/driver/nvidia",
    "/proc/devices",
    "/proc/sys/vm",
    "/sys/bus/pci",
    "/sys/devices",
    "/sys/module/nvidia",
];

/// What is in force after [`harden`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The kernel's Landlock ABI; `None` where it has no Landlock.
    pub landlock_abi: Option<u32>,
}

/// Why a process could not be hardened; then it does nothing at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HardenError {
    /// A system call failed.
    #[error("the kernel refused to harden the process: {0}")]
    System(#[from] io::Error),
    /// The device that was asked for does not work within the sandbox.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No seccomp.
    #[error(transparent)]
    Confine(#[from] ConfinementError),
    /// Landlock binds threads that start later, not those that are there.
    #[error("the process has {0} threads at its start: Landlock would not bind them all")]
    Threads(usize),
    /// A protection is in force by name, but not in effect.
    #[error("the sandbox does not hold: a confined process could {0}")]
    Holds(&'static str),
}

/// Hardens the process. Call first, before any thread or file exists, but after [`Device::load`]: what lies beside the
/// libraries loaded by then stays readable, and the nodes of a device stay open to orders when and only when it is
/// [`Device::Cuda`].
///
/// # Errors
/// [`HardenError`]. A kernel without Landlock is no error: [`Sandbox`] says so.
pub fn harden(device: Device) -> Result<Sandbox, HardenError> {
    for (resource, most) in LIMITS {
        limit(resource, most)?;
    }
    // SAFETY: plain integers; forbids core dumps and ptrace by processes of the same user.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    // SAFETY: plain integers; nothing this process starts can gain privileges.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: plain integers; a trainer does not outlive its server.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })?;
    // SAFETY: plain integers; called before this process has opened anything of its own.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, FIRST_INHERITED, u32::MAX, 0) };
    check(closed as i32)?;
    let threads = fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(HardenError::Threads(threads));
    }
    let folders = library_folders()?;
    let readable: Vec<&Path> = READABLE
        .iter()
        .map(Path::new)
        .chain(folders.iter().map(PathBuf::as_path))
        .collect();
    let (listable, devices) = if device == Device::Cuda {
        (READABLE_FOR_CUDA.map(PathBuf::from).to_vec(), device_nodes()?)
    } else {
        (Vec::new(), Vec::new())
    };
    let landlock_abi = landlock::restrict(&Left {
        readable: &readable,
        listable: &listable,
        devices: &devices,
    })?;
    enclose()?;
    Ok(Sandbox { landlock_abi })
}

/// Hardens and confines this process as for a run, then tries what a run must not be able to do. For the server,
/// which asks at its start what it can promise (`bastionai-trainer --sandbox`). A device must compute all the while.
///
/// # Errors
/// [`HardenError`]; [`HardenError::Holds`] names the first attempt that worked.
pub fn prove(device: Device) -> Result<Sandbox, HardenError> {
    let sandbox = harden(device)?;
    device.start()?;
    device.exercise()?;
    if sandbox.landlock_abi.is_some() {
        refused("open a file in its early phase", File::open("/etc/passwd"))?;
        refused("list a folder in its early phase", fs::read_dir("/"))?;
        refused(
            "write a file in its early phase",
            File::create("/tmp/bastionai-sandbox"),
        )?;
    }
    refused(
        "reach a network in its early phase",
        UdpSocket::bind("127.0.0.1:0"),
    )?;
    refused(
        "start a program in its early phase",
        Command::new("/bin/true").status(),
    )?;
    confine(device)?;
    device.exercise()?;
    refused("open a file", File::open("/proc/self/status"))?;
    refused("write a file", File::create("/tmp/bastionai-sandbox"))?;
    refused("listen on a network", TcpListener::bind("127.0.0.1:0"))?;
    refused("reach a network", UdpSocket::bind("127.0.0.1:0"))?;
    refused("start a program", Command::new("/bin/true").status())?;
    refused("signal its parent", signal_parent())?;
    Ok(sandbox)
}

/// An attempt that must fail for want of permission. A file that is not there proves nothing, so it counts as a
/// success.
fn refused<T>(what: &'static str, attempt: io::Result<T>) -> Result<(), HardenError> {
    match attempt {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        _ => Err(HardenError::Holds(what)),
    }
}

fn signal_parent() -> io::Result<()> {
    // SAFETY: plain integers; signal 0 only asks whether one may.
    check(unsafe { libc::kill(libc::getppid(), 0) })
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    // What this process was started with may be lower still.
    let mut current = limit;
    // SAFETY: a live struct, written by the kernel.
    check(unsafe { libc::getrlimit(resource, &raw mut current) })?;
    limit.rlim_max = limit.rlim_max.min(current.rlim_max);
    limit.rlim_cur = limit.rlim_cur.min(limit.rlim_max);
    // SAFETY: a live struct, read by the kernel.
    check(unsafe { libc::setrlimit(resource, &raw const limit) })
}

/// The nodes of NVIDIA's driver: its control, the memory it shares with the host, each GPU, and shares of one (MIG).
fn device_nodes() -> io::Result<Vec<PathBuf>> {
    let mut nodes: Vec<PathBuf> = ["/dev/nvidiactl", "/dev/nvidia-uvm"].map(PathBuf::from).to_vec();
    for folder in ["/dev", "/dev/nvidia-caps"] {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            if path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(is_gpu)
            {
                nodes.push(path);
            }
        }
    }
    Ok(nodes)
}

/// `nvidia0`, and `nvidia-cap1` of a share.
fn is_gpu(name: &str) -> bool {
    let number = name
        .strip_prefix("nvidia-cap")
        .or_else(|| name.strip_prefix("nvidia"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}

/// Where the loaded libraries lie: libtorch opens others beside them on demand.
fn library_folders() -> io::Result<BTreeSet<PathBuf>> {
    let paths = libraries::loaded()?;
    Ok(paths
        .iter()
        .filter_map(|path| Path::new(path).parent())
        .map(Path::to_path_buf)
        .collect())
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

#[cfg(test)]
mod tests {
    use super::is_gpu;

    #[test]
    fn only_gpus_and_shares_of_them_are_devices_that_stay_open() {
        for name in ["nvidia0", "nvidia15", "nvidia-cap2"] {
            assert!(is_gpu(name), "{name}");
        }
        for name in [
            "nvidia",
            "nvidia-modeset",
            "nvidia-cap",
            "nvidia0x",
            "mem",
            "nvme0",
        ] {
            assert!(!is_gpu(name), "{name}");
        }
    }
}
