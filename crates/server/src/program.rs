//! The trainer's program and what it loads, measured at boot (rule A4) and measured again before each run.

use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The trainer as it was when the runtime claims were made.
pub(crate) struct TrainerProgram {
    pub(crate) program: PathBuf,
    pub(crate) digest: [u8; 32],
    /// Over the libraries it says it loads, by name and content.
    pub(crate) libraries_digest: [u8; 32],
    libraries: Vec<PathBuf>,
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
        Ok(Self {
            program,
            digest,
            libraries_digest: libraries_digest(&libraries)?,
            libraries,
        })
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
    let failed = |why: String| TrainerError::Libraries {
        program: program.to_owned(),
        why,
    };
    let output = Command::new(program)
        .arg("--libraries")
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(output.status.to_string()));
    }
    let text = String::from_utf8(output.stdout).map_err(|error| failed(error.to_string()))?;
    let lines = text.lines().filter(|line| !line.is_empty());
    Ok(lines.map(PathBuf::from).collect())
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

    #[test]
    fn a_library_replaced_after_boot_is_noticed_before_a_run() {
        let directory = tempfile::tempdir().unwrap();
        let library = directory.path().join("libtorch.so");
        std::fs::write(&library, "attested").unwrap();
        let program = directory.path().join("trainer");
        std::fs::write(&program, format!("#!/bin/sh\necho {}\n", library.display())).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).unwrap();
        let measured = TrainerProgram::measure(program).unwrap();
        measured.check_unchanged().unwrap();
        std::fs::write(&library, "another").unwrap();
        let error = measured.check_unchanged().unwrap_err();
        assert!(matches!(error, TrainerError::Changed { .. }), "{error}");
        std::fs::remove_file(&library).unwrap();
        let error = measured.check_unchanged().unwrap_err();
        assert!(matches!(error, TrainerError::Read { .. }), "{error}");
    }
}
