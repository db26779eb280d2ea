//! The trainer's program and what it loads, measured at boot (rule A4) and measured again before each run.

use crate::config::DeviceKind;
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
    /// Where it computes.
    pub(crate) device: DeviceKind,
    /// All memory of that device; `None` of the processor.
    pub(crate) device_memory_bytes: Option<u64>,
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
    /// The device that the configuration asks for cannot be used.
    #[error(
        "trainer.device = \"cuda\" cannot be used here: `{program} --device cuda --probe-device` says: {why}"
    )]
    Device {
        /// The program.
        program: PathBuf,
        /// What is missing, and what to do.
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
    /// Measures the program, asks it for its device and its libraries, and measures those.
    pub(crate) fn measure(program: PathBuf, device: DeviceKind) -> Result<Self, TrainerError> {
        let digest = file_digest(&program)?;
        let device_memory_bytes = match device {
            DeviceKind::Cpu => None,
            DeviceKind::Cuda => Some(device_memory(&program, device)?),
        };
        let libraries = libraries(&program, device)?;
        let sandbox = sandbox(&program, device)?;
        Ok(Self {
            device,
            device_memory_bytes,
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

/// What a trainer is started with, so that it loads its device's libraries before it gives anything up.
pub(crate) const fn arguments(device: DeviceKind) -> &'static [&'static str] {
    match device {
        DeviceKind::Cpu => &[],
        DeviceKind::Cuda => &["--device", "cuda"],
    }
}

/// The device's memory, once it has computed.
fn device_memory(program: &Path, device: DeviceKind) -> Result<u64, TrainerError> {
    let failed = |why: String| TrainerError::Device {
        program: program.to_owned(),
        why,
    };
    let text = ask(program, device, "--probe-device").map_err(failed)?;
    let line = text.lines().find_map(|line| line.strip_prefix("memory_bytes "));
    let bytes = line.and_then(|number| number.trim().parse().ok());
    bytes.ok_or_else(|| failed("no memory; server and trainer must be of one build".into()))
}

/// The shared libraries that the trainer says it loads.
fn libraries(program: &Path, device: DeviceKind) -> Result<Vec<PathBuf>, TrainerError> {
    let text = ask(program, device, "--libraries").map_err(|why| TrainerError::Libraries {
        program: program.to_owned(),
        why,
    })?;
    let lines = text.lines().filter(|line| !line.is_empty());
    Ok(lines.map(PathBuf::from).collect())
}

/// What confines the trainer: one protection a line, `seccomp` and perhaps `landlock ABI`.
fn sandbox(program: &Path, device: DeviceKind) -> Result<Sandbox, TrainerError> {
    let failed = |why: String| TrainerError::Sandbox {
        program: program.to_owned(),
        why,
    };
    let text = ask(program, device, "--sandbox").map_err(failed)?;
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
fn ask(program: &Path, device: DeviceKind, question: &str) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments(device))
        .arg(question)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        // No record exists yet: its words can be shown.
        let words: String = String::from_utf8_lossy(&output.stderr)
            .chars()
            .take(1000)
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

    fn measure(program: PathBuf) -> Result<TrainerProgram, TrainerError> {
        TrainerProgram::measure(program, DeviceKind::Cpu)
    }

    #[test]
    fn a_device_that_cannot_be_used_is_an_error_in_its_own_words() {
        let directory = tempfile::tempdir().unwrap();
        let without = "test \"$1 $2 $3\" = '--device cuda --probe-device' || exit 0; \
                       echo 'trainer: there is no NVIDIA driver' >&2; exit 1";
        let without = program(directory.path(), without);
        let error = TrainerProgram::measure(without, DeviceKind::Cuda).err().unwrap();
        assert!(matches!(error, TrainerError::Device { .. }), "{error}");
        assert!(error.to_string().contains("there is no NVIDIA driver"), "{error}");
        let mute = program(directory.path(), "exit 0");
        let error = TrainerProgram::measure(mute, DeviceKind::Cuda).err().unwrap();
        assert!(matches!(error, TrainerError::Device { .. }), "{error}");
    }

    #[test]
    fn every_question_to_a_trainer_of_a_device_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let script = "test \"$1 $2\" = '--device cuda' || exit 1; \
                      test $3 = --probe-device && echo memory_bytes 85899345920; \
                      test $3 = --sandbox && echo seccomp; exit 0";
        let with = program(directory.path(), script);
        let measured = TrainerProgram::measure(with, DeviceKind::Cuda).unwrap();
        assert_eq!(measured.device_memory_bytes, Some(80 << 30));
        assert_eq!(measured.device, DeviceKind::Cuda);
    }

    #[test]
    fn what_confines_the_trainer_is_asked_and_a_sandbox_that_does_not_hold_is_refused_in_its_words() {
        let directory = tempfile::tempdir().unwrap();
        let with = program(
            directory.path(),
            "test $1 = --libraries || { echo seccomp; echo landlock 7; }",
        );
        let found = measure(with).unwrap().sandbox;
        assert_eq!(found.landlock_abi, Some(7));
        let without = program(directory.path(), "test $1 = --libraries || echo seccomp");
        assert_eq!(measure(without).unwrap().sandbox.landlock_abi, None);
        let broken = "test $1 = --libraries && exit 0; echo 'a confined process could fork' >&2; exit 1";
        let error = measure(program(directory.path(), broken)).err().unwrap();
        assert!(matches!(error, TrainerError::Sandbox { .. }), "{error}");
        assert!(error.to_string().contains("could fork"), "{error}");
        let mute = program(directory.path(), "exit 0");
        assert!(matches!(measure(mute), Err(TrainerError::Sandbox { .. })));
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
        let measured = measure(program).unwrap();
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
