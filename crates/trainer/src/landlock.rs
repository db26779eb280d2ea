//! Landlock (<https://docs.kernel.org/userspace-api/landlock.html>): from its start on a trainer reads the few
//! places libtorch looks at, and writes, creates, removes and executes nothing; on newer kernels it also neither
//! binds nor connects TCP, nor signals others, nor uses their abstract sockets.
//!
//! Each kernel knows its own subset (the ABI); what it does not know is left out. No Landlock at all is the
//! caller's to judge: the server says so in its runtime claims, or refuses to start.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What is left of the file system.
pub(crate) struct Left<'p> {
    /// Files under these can be read.
    pub(crate) readable: &'p [&'p Path],
    /// The same, and folders under them can be listed.
    pub(crate) listable: &'p [PathBuf],
    /// Device nodes that can be read, written and given orders (ioctl).
    pub(crate) devices: &'p [PathBuf],
}

/// Restricts this thread and all it will start to what is left; nothing else can be done to any file. Paths that are not
/// there are left out. Returns the kernel's ABI, or `None` if it has no Landlock.
///
/// # Errors
/// The system call's, when the kernel has Landlock and refuses.
pub(crate) fn restrict(left: &Left<'_>) -> io::Result<Option<u32>> {
    let Some(abi) = kernel_abi()? else {
        return Ok(None);
    };
    let rights = Rights::of(abi);
    let ruleset = create_ruleset(rights)?;
    let allow = |path: &Path, allowed: u64, also_of_folders: u64| match place(path) {
        Ok(file) => {
            let is_folder = file.metadata()?.is_dir();
            add(
                &ruleset,
                &file,
                allowed | if is_folder { also_of_folders } else { 0 },
            )
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    for path in left.readable {
        allow(path, READ_FILE, 0)?;
    }
    for path in left.listable {
        allow(path, READ_FILE, READ_DIR)?;
    }
    for path in left.devices {
        allow(path, (READ_FILE | WRITE_FILE | IOCTL_DEV) & rights.files, 0)?;
    }
    restrict_self(&ruleset)?;
    Ok(Some(abi))
}

/// `struct landlock_ruleset_attr` (linux/landlock.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct Rights {
    files: u64,
    network: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr` (linux/landlock.h), packed there as here.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

impl Rights {
    /// Everything an ABI can take away. Older kernels refuse bits they do not know.
    fn of(abi: u32) -> Self {
        let files = match abi {
            1 => 13,     // EXECUTE … MAKE_SYM
            2 => 14,     // REFER
            3 | 4 => 15, // TRUNCATE
            _ => 16,     // IOCTL_DEV
        };
        Self {
            files: (1 << files) - 1,
            network: if abi >= 4 { 0b11 } else { 0 }, // bind and connect TCP
            scoped: if abi >= 6 { 0b11 } else { 0 },  // abstract sockets, signals
        }
    }

    /// The struct grew with the ABI; a kernel takes the length it knows, or more if the rest is zero.
    const fn length() -> usize {
        size_of::<Self>()
    }
}

/// `LANDLOCK_ACCESS_FS_WRITE_FILE`.
const WRITE_FILE: u64 = 1 << 1;
/// `LANDLOCK_ACCESS_FS_READ_FILE`.
const READ_FILE: u64 = 1 << 2;
/// `LANDLOCK_ACCESS_FS_READ_DIR`.
const READ_DIR: u64 = 1 << 3;
/// `LANDLOCK_ACCESS_FS_IOCTL_DEV`, since ABI 5.
const IOCTL_DEV: u64 = 1 << 15;
/// `LANDLOCK_RULE_PATH_BENEATH`.
const PATH_BENEATH: i32 = 1;
/// `LANDLOCK_CREATE_RULESET_VERSION`.
const ASK_VERSION: u32 = 1;

/// The kernel's ABI; `None` when it was built or started without Landlock.
fn kernel_abi() -> io::Result<Option<u32>> {
    // SAFETY: with this flag the kernel reads no struct and only returns a number.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<Rights>(),
            0usize,
            ASK_VERSION,
        )
    };
    if abi >= 1 {
        return Ok(Some(abi as u32));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EOPNOTSUPP) => Ok(None),
        _ => Err(error),
    }
}

fn create_ruleset(rights: Rights) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads a live struct of this length.
    let ruleset = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const rights,
            Rights::length(),
            0u32,
        )
    };
    if ruleset < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made it; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(ruleset as i32) })
}

/// The place of a file, without opening what is there: a device would start.
fn place(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
}

fn add(ruleset: &OwnedFd, parent: &File, allowed: u64) -> io::Result<()> {
    let rule = PathBeneath {
        allowed,
        parent: parent.as_raw_fd(),
    };
    // SAFETY: both descriptors are open, the struct is alive while the kernel reads it.
    let status = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            PATH_BENEATH,
            &raw const rule,
            0u32,
        )
    };
    checked(status)
}

fn restrict_self(ruleset: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain integers; "no new privileges" is set by the caller.
    checked(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) })
}

fn checked(status: libc::c_long) -> io::Result<()> {
    if status < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_right_is_named_before_its_abi_and_none_is_lost_later() {
        let mut last = Rights::of(1);
        assert_eq!((last.files, last.network, last.scoped), (0x1fff, 0, 0));
        for abi in 2..12 {
            let rights = Rights::of(abi);
            assert_eq!(rights.files & last.files, last.files, "{abi}");
            assert!(
                rights.network >= last.network && rights.scoped >= last.scoped,
                "{abi}"
            );
            last = rights;
        }
        assert_eq!((last.files, last.network, last.scoped), (0xffff, 3, 3));
    }
}
