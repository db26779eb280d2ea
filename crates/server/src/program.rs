//! The trainer's program and what it loads, measured at boot (rule A4) and measured again before each run.

use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The trainer as it was when the runtime claims were made.
pub(crate) struct TrainerProgram {
    pub(crate) program: PathBuf,
    pub(crate) digest: [u8; 32],
    /// Over the libraries it says it loads, by name and content.
    pub(crate) libraries_digest: [u8; 32],
    /// What confines it on this kernel, as it proved by trying.
    pub(crate) sandbox: Sandbox,
    libraries: Vec<PathBuf>,
    /// Size, time of change and inode of the program and its libraries, in this order.
    marks: Vec<Mark>,
}

type Mark = (u64, i64, i64, u64);

/// What confines a trainer on this kernel. Seccomp always does: without it no trainer can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sandbox {
    /// The kernel's Landlock ABI; `None` where it has no Landlock.
    pub(crate) landlock_abi: Option<u32>,
}

/// Why a trainer cannot be measured or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainerError {
    /// A file cannot be read.
    #[error(
        "cannot read {path}: {source}; build the trainer with `cargo build --release` or set trainer.path"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not say which libraries it loads.
    #[error(
        "`{program} --libraries` does not work ({why}): is libtorch where the trainer was built against?"
    )]
    Libraries {
        /// The program.
        program: PathBuf,
        /// What happened.
        why: String,
    },
    /// It cannot be confined, or what should confine it does not hold.
    #[error("the trainer's sandbox does not work here: `{program} --sandbox` says: {why}")]
    Sandbox {
        /// The program.
        program: PathBuf,
        /// What happened.
        why: String,
    },
    /// The configuration asks for Landlock, the kernel has none.
    #[error(
        "trainer.require_landlock is set and this kernel has no Landlock: boot one with CONFIG_SECURITY_LANDLOCK and \
         `landlock` among lsm=, or take the setting out (clients then see `insecure-trainer-sandbox`)"
    )]
    NoLandlock,
    /// The program is not the one that was attested.
    #[error(
        "{program} or a library of it has changed since the server started and was attested: restart the server"
    )]
    Changed {
        /// The program.
        program: PathBuf,
    },
}

impl TrainerProgram {
    /// Measures the program, asks it for its libraries, and measures those.
    pub(crate) fn measure(program: PathBuf) -> Result<Self, TrainerError> {
        let digest = file_digest(&program)?;
        let libraries = libraries(&program)?;
        let sandbox = sandbox(&program)?;
        Ok(Self {
            digest,
            sandbox,
            libraries_digest: libraries_digest(&libraries)?,
            marks: marks(&program, &libraries)?,
            program,
            libraries,
        })
    }

    /// Whether every file is still the one that was measured, by size, time and inode: for a probe, which cannot read
    /// gigabytes at every call.
    pub(crate) fn looks_unchanged(&self) -> bool {
        marks(&self.program, &self.libraries).is_ok_and(|marks| marks == self.marks)
    }

    /// Refuses a program or library that was replaced after boot: evidence names the old ones.
    ///
    /// What remains: the files are hashed, then executed by path. Whoever can write them between the two runs
    /// another program; a read-only root in the measured image closes that.
    pub(crate) fn check_unchanged(&self) -> Result<(), TrainerError> {
        let same = file_digest(&self.program)? == self.digest
            && libraries_digest(&self.libraries)? == self.libraries_digest;
        if same {
            return Ok(());
        }
        Err(TrainerError::Changed {
            program: self.program.clone(),
        })
    }
}

/// The shared libraries that the trainer says it loads.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, TrainerError> {
    let text = ask(program, "--libraries").map_err(|why| TrainerError::Libraries {
        program: program.to_owned(),
        why,
    })?;
    let lines = text.lines().filter(|line| !line.is_empty());
    Ok(lines.map(PathBuf::from).collect())
}

/// What confines the trainer: one protection a line, `seccomp` and perhaps `landlock ABI`.
fn sandbox(program: &Path) -> Result<Sandbox, TrainerError> {
    let failed = |why: String| TrainerError::Sandbox {
        program: program.to_owned(),
        why,
    };
    let text = ask(program, "--sandbox").map_err(failed)?;
    if !text.lines().any(|line| line == "seccomp") {
        return Err(failed(
            "no seccomp; server and trainer must be of one build".into(),
        ));
    }
    let abi = text.lines().find_map(|line| line.strip_prefix("landlock "));
    let landlock_abi = abi.map(str::parse).transpose();
    let landlock_abi = landlock_abi.map_err(|_| failed("a Landlock ABI that is no number".into()))?;
    Ok(Sandbox { landlock_abi })
}

/// Runs the trainer with one question; what it prints, or why it failed.
fn ask(program: &Path, question: &str) -> Result<String, String> {
    let output = Command::new(program)
        .arg(question)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        // No record exists yet: its words can be shown.
        let words: String = String::from_utf8_lossy(&output.stderr)
            .chars()
            .take(500)
            .collect();
        return Err(format!("{} {}", output.status, words.trim()));
    }
    String::from_utf8(output.stdout).map_err(|error| error.to_string())
}

/// SHA-256 over the sorted (file name, SHA-256) pairs of shared libraries.
fn libraries_digest(paths: &[PathBuf]) -> Result<[u8; 32], TrainerError> {
    let mut libraries = Vec::new();
    for path in paths {
        let name = path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned();
        libraries.push((name, file_digest(path)?));
    }
    libraries.sort_unstable();
    let mut hasher = Sha256::new();
    hasher.update(b"bastionai/v1/trainer-libraries\0");
    for (name, digest) in libraries {
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(digest);
    }
    Ok(hasher.finalize().into())
}

fn marks(program: &Path, libraries: &[PathBuf]) -> Result<Vec<Mark>, TrainerError> {
    let mark = |path: &Path| {
        let file = std::fs::metadata(path).map_err(|source| TrainerError::Read {
            path: path.to_owned(),
            source,
        })?;
        Ok((file.len(), file.mtime(), file.mtime_nsec(), file.ino()))
    };
    std::iter::once(program)
        .chain(libraries.iter().map(PathBuf::as_path))
        .map(mark)
        .collect()
}

fn file_digest(path: &Path) -> Result<[u8; 32], TrainerError> {
    let read = |source| TrainerError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(read)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(read)? {
            0 => return Ok(hasher.finalize().into()),
            length => hasher.update(&buffer[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn program(directory: &Path, script: &str) -> PathBuf {
        let program = directory.join("trainer");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).unwrap();
        program
    }

    #[test]
    fn what_confines_the_trainer_is_asked_and_a_sandbox_that_does_not_hold_is_refused_in_its_words() {
        let directory = tempfile::tempdir().unwrap();
        let with = program(
            directory.path(),
            "test $1 = --libraries || { echo seccomp; echo landlock 7; }",
        );
        let found = TrainerProgram::measure(with).unwrap().sandbox;
        assert_eq!(found.landlock_abi, Some(7));
        let without = program(directory.path(), "test $1 = --libraries || echo seccomp");
        assert_eq!(
            TrainerProgram::measure(without).unwrap().sandbox.landlock_abi,
            None
        );
        let broken = "test $1 = --libraries && exit 0; echo 'a confined process could fork' >&2; exit 1";
        let error = TrainerProgram::measure(program(directory.path(), broken))
            .err()
            .unwrap();
        assert!(matches!(error, TrainerError::Sandbox { .. }), "{error}");
        assert!(error.to_string().contains("could fork"), "{error}");
        let mute = program(directory.path(), "exit 0");
        assert!(matches!(
            TrainerProgram::measure(mute),
            Err(TrainerError::Sandbox { .. })
        ));
    }

    #[test]
    fn a_library_replaced_after_boot_is_noticed_before_a_run() {
        let directory = tempfile::tempdir().unwrap();
        let library = directory.path().join("libtorch.so");
        std::fs::write(&library, "attested").unwrap();
        let script = format!(
            "test $1 = --sandbox && echo seccomp || echo {}",
            library.display()
        );
        let program = program(directory.path(), &script);
        let measured = TrainerProgram::measure(program).unwrap();
        measured.check_unchanged().unwrap();
        assert!(measured.looks_unchanged());
        std::fs::write(&library, "another").unwrap();
        assert!(!measured.looks_unchanged());
        let error = measured.check_unchanged().unwrap_err();
        assert!(matches!(error, TrainerError::Changed { .. }), "{error}");
        std::fs::remove_file(&library).unwrap();
        let error = measured.check_unchanged().unwrap_err();
        assert!(matches!(error, TrainerError::Read { .. }), "{error}");
    }
}
