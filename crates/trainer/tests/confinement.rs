//! A confined process can compute, and can reach nothing. One test, for there is no way back out; what a hostile
//! build of the whole trainer can do under its server is in crates/server/tests/hostile.rs.
#![allow(unsafe_code)]

use bastionai_trainer::Device;
use bastionai_trainer::confinement::confine;
use std::io::Error;
use std::io::ErrorKind::PermissionDenied;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::Command;

#[test]
fn a_confined_trainer_computes_and_reaches_no_file_network_or_process() {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let earlier = std::thread::spawn(move || {
        stopped.recv().expect("the test says when");
        std::fs::read("/proc/self/status").map_err(|error| error.kind())
    });
    std::fs::read("/proc/self/status").expect("before, files can be read");
    confine(Device::Cpu).expect("this kernel has seccomp filters");

    let denied = |what: &str, outcome: std::io::Result<()>| {
        assert_eq!(
            outcome.map_err(|error| error.kind()),
            Err(PermissionDenied),
            "{what}"
        );
    };
    denied("read a file", std::fs::read("/proc/self/status").map(drop));
    denied("write a file", std::fs::write("/tmp/bastionai-confinement", "x"));
    denied(
        "remove a file",
        std::fs::remove_file("/tmp/bastionai-confinement"),
    );
    denied("list a folder", std::fs::read_dir("/").map(drop));
    denied("listen", TcpListener::bind("127.0.0.1:0").map(drop));
    denied("connect", TcpStream::connect("127.0.0.1:1").map(drop));
    denied("send a datagram", UdpSocket::bind("127.0.0.1:0").map(drop));
    denied("pair sockets", UnixStream::pair().map(drop));
    denied("start a program", Command::new("/bin/true").status().map(drop));

    // SAFETY: none of these calls touches memory of this process; each is refused before it does anything.
    let system = |what: &str, call: &dyn Fn() -> i64| {
        let outcome = outcome_of(call());
        denied(what, outcome);
    };
    let parent = unsafe { libc::getppid() };
    system("fork", &|| unsafe {
        libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0)
    });
    system("trace another process", &|| unsafe {
        libc::ptrace(libc::PTRACE_ATTACH, parent, 0, 0)
    });
    system("signal another process", &|| {
        i64::from(unsafe { libc::kill(parent, 0) })
    });
    system("signal a thread of another process", &|| unsafe {
        libc::syscall(libc::SYS_tgkill, parent, parent, 0)
    });
    system("read another's memory", &|| unsafe {
        libc::process_vm_readv(parent, std::ptr::null(), 0, std::ptr::null(), 0, 0) as i64
    });
    system("raise a limit", &|| {
        let limit = libc::rlimit {
            rlim_cur: 1 << 40,
            rlim_max: 1 << 40,
        };
        i64::from(unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) })
    });
    system("share memory, which no limit would count", &|| {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, -1, 0) };
        if at == libc::MAP_FAILED { -1 } else { 0 }
    });
    system("become traceable again", &|| {
        i64::from(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) })
    });
    system("make an anonymous file", &|| {
        i64::from(unsafe { libc::memfd_create(c"x".as_ptr(), 0) })
    });
    system("control a device", &|| {
        i64::from(unsafe { libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr()) })
    });

    stop.send(()).expect("the thread waits");
    let other = earlier.join().expect("the thread lives");
    assert_eq!(
        other.map(drop),
        Err(PermissionDenied),
        "threads that were there before"
    );
    let sum = std::thread::spawn(|| {
        (1..=1000u64)
            .map(|value| vec![value; 1000].iter().sum::<u64>())
            .sum::<u64>()
    });
    assert_eq!(sum.join().expect("threads can still start"), 500_500_000);
}

/// What libc reports of a call that returned this.
fn outcome_of(status: i64) -> std::io::Result<()> {
    if status == -1 {
        Err(Error::last_os_error())
    } else {
        Ok(())
    }
}
