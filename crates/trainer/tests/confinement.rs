//! A confined process can compute, and can reach nothing. One test, for there is no way back out.

use bastionai_trainer::confinement::confine;
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
    confine().expect("this kernel has seccomp filters");

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
