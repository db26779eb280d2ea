//! A server in a process of its own, to be killed.

use super::config;
use super::example::own_example;
use bastionai_server::Config;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running server process; killed when dropped.
pub struct ServerProcess {
    child: Child,
    pub address: String,
}

impl ServerProcess {
    /// Starts a server over `directory`; its log is appended to `server.log` there.
    pub fn start(directory: &Path, mode: &str, edit: impl FnOnce(&mut Config)) -> Self {
        let mut command = Command::new(own_example("standalone_server"));
        command.arg(write_config(directory, mode, edit));
        Self::wait(directory, command)
    }

    /// Starts a server whose files cannot grow beyond this many KiB: a full disk, as far as it can tell.
    pub fn start_with_small_disk(
        directory: &Path,
        mode: &str,
        kib: u32,
        edit: impl FnOnce(&mut Config),
    ) -> Self {
        let config = write_config(directory, mode, edit);
        let mut command = Command::new("bash");
        // Ignored signals stay ignored after exec: writing then fails with EFBIG instead.
        command
            .arg("-c")
            .arg(format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" \"$1\""))
            .arg(own_example("standalone_server"))
            .arg(config);
        Self::wait(directory, command)
    }

    /// Starts a server and kills it `after` this long, wherever in its boot it is.
    pub fn kill_while_booting(directory: &Path, mode: &str, after: Duration, edit: impl FnOnce(&mut Config)) {
        let config = write_config(directory, mode, edit);
        let silent = || Stdio::null();
        let mut child = Command::new(own_example("standalone_server"))
            .arg(config)
            .stdout(silent())
            .stderr(silent())
            .spawn()
            .unwrap();
        std::thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn wait(directory: &Path, mut command: Command) -> Self {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(directory.join("server.log"))
            .unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut address)
            .unwrap();
        let address = address.trim().to_owned();
        assert!(
            !address.is_empty(),
            "the server did not start; see {}",
            directory.join("server.log").display()
        );
        Self { child, address }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_config(directory: &Path, mode: &str, edit: impl FnOnce(&mut Config)) -> PathBuf {
    let mut config = config(directory, mode);
    edit(&mut config);
    let path = directory.join("server.toml");
    std::fs::write(&path, config.to_toml()).unwrap();
    path
}
