//! What the trainer may ask of the kernel, in two steps of seccomp filters. There is no way back from either.
//!
//! [`enclose`], at the start: no network, other process, new program or administration; libtorch still opens what
//! Landlock leaves it. [`confine`], once libtorch has run the graph and before a record arrives: memory, threads,
//! time, randomness and open pipes, and nothing else. A call that is not allowed fails with `EPERM`. This is a
//! second line: a graph of allowed operators asks for none of them (soundness A2).

use crate::device::Device;
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

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Takes networks, other processes and new programs from every thread of this process, those to come included.
///
/// # Errors
/// [`ConfinementError`] when the kernel refuses.
pub fn enclose() -> Result<(), ConfinementError> {
    let mut forbidden: Rules = FORBIDDEN.iter().map(|&call| (call, Vec::new())).collect();
    // A new thread shares its memory; whatever does not is a new process.
    let thread = SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64);
    forbidden.insert(libc::SYS_clone, vec![only(0, thread, 0)?]);
    let others = only(0, SeccompCmpOp::Ne, u64::from(std::process::id()))?;
    forbidden.insert(libc::SYS_tgkill, vec![others]);
    apply(forbidden, SeccompAction::Allow, errno(EPERM))?;
    no_clone3()
}

/// Leaves every thread of this process computing on what it has, and nothing else. A device that was started takes orders,
/// through its nodes that are open already.
///
/// # Errors
/// [`ConfinementError`] when the kernel refuses; nothing may then be trained.
pub fn confine(device: Device) -> Result<(), ConfinementError> {
    no_clone3()?;
    let mut allowed: Rules = ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
    let thread = libc::CLONE_THREAD as u64;
    allowed.insert(
        libc::SYS_clone,
        vec![only(0, SeccompCmpOp::MaskedEq(thread), thread)?],
    );
    // Signals to itself: how abort works.
    let own = u64::from(std::process::id());
    allowed.insert(libc::SYS_tgkill, vec![only(0, SeccompCmpOp::Eq, own)?]);
    // Names of threads and mappings.
    let names = [libc::PR_SET_NAME, libc::PR_GET_NAME, PR_SET_VMA];
    let names = names.map(|option| only(0, SeccompCmpOp::Eq, option as u64));
    allowed.insert(libc::SYS_prctl, names.into_iter().collect::<Result<_, _>>()?);
    // Reading a limit, as thread stacks do; never setting one.
    allowed.insert(libc::SYS_prlimit64, vec![only(2, SeccompCmpOp::Eq, 0)?]);
    // Private memory: shared mappings would not count against the server's limit on it.
    let kind = (libc::MAP_SHARED | libc::MAP_PRIVATE) as u64;
    let mut mappings = vec![only(3, SeccompCmpOp::MaskedEq(kind), libc::MAP_PRIVATE as u64)?];
    if device == Device::Cuda {
        // Of something open, which can only be the device: no file is opened any more.
        let kind = kind | libc::MAP_ANONYMOUS as u64;
        mappings.push(only(3, SeccompCmpOp::MaskedEq(kind), libc::MAP_SHARED as u64)?);
        let orders = DEVICE_ORDERS.map(|(mask, value)| only(1, SeccompCmpOp::MaskedEq(mask), value));
        allowed.insert(libc::SYS_ioctl, orders.into_iter().collect::<Result<_, _>>()?);
        allowed.extend(DEVICE_CALLS.iter().map(|&call| (call, Vec::new())));
    }
    allowed.insert(libc::SYS_mmap, mappings);
    apply(allowed, errno(EPERM), SeccompAction::Allow)
}

/// Its flags are behind a pointer that no filter can follow: libc then falls back to `clone`.
fn no_clone3() -> Result<(), ConfinementError> {
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    apply(clone3, SeccompAction::Allow, errno(ENOSYS))
}

/// A rule on one argument.
fn only(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, ConfinementError> {
    let condition =
        SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value).map_err(boxed)?;
    Ok(SeccompRule::new(vec![condition]).map_err(boxed)?)
}

const fn errno(number: i32) -> SeccompAction {
    SeccompAction::Errno(number as u32)
}

fn apply(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<(), ConfinementError> {
    let target = TargetArch::try_from(std::env::consts::ARCH).map_err(boxed)?;
    let filter = SeccompFilter::new(rules, otherwise, matched, target).map_err(boxed)?;
    let program: BpfProgram = filter.try_into().map_err(boxed)?;
    Ok(apply_filter_all_threads(&program).map_err(boxed)?)
}

fn boxed(error: impl std::error::Error + Send + Sync + 'static) -> Box<dyn std::error::Error + Send + Sync> {
    Box::new(error)
}

/// `PR_SET_VMA` (linux/prctl.h): glibc names its mappings.
const PR_SET_VMA: i32 = 0x5356_4d41;

/// The orders that NVIDIA's nodes take, as (mask, value) of the request: those of type `F` (`NV_IOCTL_MAGIC`,
/// nv-ioctl-numbers.h), and the bare numbers below 256 of unified memory (uvm_ioctl.h). No terminal and no socket knows
/// either.
const DEVICE_ORDERS: [(u64, u64); 2] = [(0xff00, 0x4600), (0xffff_ff00, 0)];

/// What the driver's library asks the kernel for while it computes: where memory lies, events, and which files are open.
const DEVICE_CALLS: &[i64] = &[
    libc::SYS_mbind,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_fcntl,
];

/// Memory, threads, time, randomness, and reading and writing what is open.
const ALLOWED: &[i64] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_ppoll,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_membarrier,
    libc::SYS_clone3, // answered with ENOSYS by an earlier filter: the stricter answer counts
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getcpu,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_times,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
];

/// Networks, other processes, new programs, and what could undo or widen any of it.
const FORBIDDEN: &[i64] = &[
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
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
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_memfd_create,
    libc::SYS_shmget,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    // Calls that only older architectures have.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
];
