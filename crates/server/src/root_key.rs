//! `InsecureFileRootKey`: the vault's root key from a file in the data directory. Whoever copies the disk copies
//! the key, so the runtime claims carry its name and clients refuse it unless they allow it (rule A4).

use bastionai_vault::RootKey;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Its name in the runtime claims.
pub(crate) const INSECURE_FILE_ROOT_KEY: &str = "InsecureFileRootKey";
const FILE_NAME: &str = "insecure-root-key";
const KEY_BYTES: usize = 32;

/// Why there is no root key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootKeyError {
    /// The file could not be read or written.
    #[error("root key {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a key.
    #[error("root key {path} does not have {KEY_BYTES} bytes: restore the file from a backup")]
    Length {
        /// The file.
        path: PathBuf,
    },
    /// A vault without its key: a fresh key would not open it.
    #[error(
        "{path} is missing, but there is a vault beside it, which only this key opens: restore the file from a backup"
    )]
    Lost {
        /// The file.
        path: PathBuf,
    },
    /// The random generator failed.
    #[error("cannot make a root key: {0}")]
    Generate(#[from] bastionai_vault::StorageError),
}

/// Reads the key that somebody else keeps, such as a systemd credential.
pub(crate) fn load(path: &Path) -> Result<RootKey, RootKeyError> {
    let file = File::open(path).map_err(|source| RootKeyError::File {
        path: path.to_owned(),
        source,
    })?;
    read(file, path)
}

/// Reads the key, or makes one for a data directory that has no vault yet.
pub(crate) fn load_or_create(data_dir: &Path) -> Result<RootKey, RootKeyError> {
    let path = data_dir.join(FILE_NAME);
    match File::open(&path) {
        Ok(file) => read(file, &path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(data_dir, path),
        Err(source) => Err(RootKeyError::File { path, source }),
    }
}

fn read(file: File, path: &Path) -> Result<RootKey, RootKeyError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_BYTES + 1));
    let length = file.take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes);
    length.map_err(|source| RootKeyError::File {
        path: path.to_owned(),
        source,
    })?;
    let key = <[u8; KEY_BYTES]>::try_from(&bytes[..]).map_err(|_| RootKeyError::Length {
        path: path.to_owned(),
    })?;
    Ok(RootKey::from_bytes(key))
}

fn create(data_dir: &Path, path: PathBuf) -> Result<RootKey, RootKeyError> {
    if data_dir.join("vault.redb").exists() {
        return Err(RootKeyError::Lost { path });
    }
    let key = RootKey::generate()?;
    match write(data_dir, &path, key.as_bytes()) {
        Ok(()) => Ok(key),
        Err(source) => Err(RootKeyError::File { path, source }),
    }
}

/// Durable and complete under its name, or not there: a crash leaves no half key.
fn write(data_dir: &Path, path: &Path, key: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&draft)?;
    file.write_all(key)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(data_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_key_file_is_read_and_never_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credential");
        let error = load(&path).err().unwrap();
        assert!(error.to_string().contains("credential"), "{error}");
        assert!(!path.exists());
        std::fs::write(&path, [7; 31]).unwrap();
        assert!(matches!(load(&path), Err(RootKeyError::Length { .. })));
        std::fs::write(&path, [7; 32]).unwrap();
        assert_eq!(load(&path).unwrap().as_bytes(), &[7; 32]);
    }

    #[test]
    fn a_key_is_made_once_and_read_back_with_private_permissions() {
        let directory = tempfile::tempdir().unwrap();
        let made = load_or_create(directory.path()).unwrap();
        assert_eq!(
            load_or_create(directory.path()).unwrap().as_bytes(),
            made.as_bytes()
        );
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(directory.path().join(FILE_NAME))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o077, 0);
        }
    }

    #[test]
    fn a_vault_whose_key_is_gone_gets_no_new_key() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("vault.redb"), b"x").unwrap();
        assert!(matches!(
            load_or_create(directory.path()),
            Err(RootKeyError::Lost { .. })
        ));
    }

    #[test]
    fn a_cut_or_overlong_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for length in [0, 31, 33, 1000] {
            fs::write(directory.path().join(FILE_NAME), vec![0; length]).unwrap();
            assert!(matches!(
                load_or_create(directory.path()),
                Err(RootKeyError::Length { .. })
            ));
        }
    }
}
