//! What the trainer may ask of the kernel once records are about to arrive: memory, threads, time and its pipes.
//!
//! By then libtorch is loaded and has run the graph once, so nothing more need be opened. A system call that
//! could reach a file, a network, another process or a new program fails with `EPERM`, on every thread. This is
//! a second line: a graph of allowed operators asks for none of them (soundness A2).

use libc::{ENOSYS, EPERM};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};
use std::collections::BTreeMap;

/// Why the process could not be confined; then no record is asked for.
#[derive(Debug, thiserror::Error)]
#[error("cannot confine the trainer with seccomp: {0}; the kernel needs CONFIG_SECCOMP_FILTER")]
pub struct ConfinementError(#[from] Box<dyn std::error::Error + Send + Sync>);

/// Confines every thread of this process, those to come included. There is no way back.
///
/// # Errors
/// [`ConfinementError`] when the kernel refuses; nothing may then be trained.
pub fn confine() -> Result<(), ConfinementError> {
    let forbidden = FORBIDDEN.iter().map(|&call| (call, Vec::new())).collect();
    apply(forbidden, EPERM)?;
    // A new thread shares its memory; whatever does not is a new process.
    let no_thread = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64),
        0,
    )
    .map_err(boxed)?;
    let fork = SeccompRule::new(vec![no_thread]).map_err(boxed)?;
    apply(BTreeMap::from([(libc::SYS_clone, vec![fork])]), EPERM)?;
    // Its flags are behind a pointer that no filter can follow: libc then falls back to `clone`.
    apply(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), ENOSYS)
}

fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<(), ConfinementError> {
    let target = TargetArch::try_from(std::env::consts::ARCH).map_err(boxed)?;
    let action = SeccompAction::Errno(errno as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, target).map_err(boxed)?;
    let program: BpfProgram = filter.try_into().map_err(boxed)?;
    Ok(apply_filter_all_threads(&program).map_err(boxed)?)
}

fn boxed(error: impl std::error::Error + Send + Sync + 'static) -> Box<dyn std::error::Error + Send + Sync> {
    Box::new(error)
}

/// Files, networks, other processes, new programs, and what could undo or widen any of it.
const FORBIDDEN: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_truncate,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_memfd_create,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    // Calls that only older architectures have.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_creat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
];
