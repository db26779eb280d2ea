//! The files of a vault: one process at a time, and a database that is there whole or not at all.
//!
//! ```text
//! vault.lock       locked while the vault is open
//! vault.redb       the database; made as vault.redb.new and renamed, since a crash while redb lays out a new
//!                  file leaves one that it refuses
//! blocks/          sealed blocks
//! ```

use crate::blocks::{BlockStore, FileBlockStore};
use crate::error::{OpenError, StorageError};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

pub(crate) struct VaultFiles {
    pub(crate) lock: File,
    pub(crate) database: PathBuf,
    pub(crate) blocks: FileBlockStore,
}

impl VaultFiles {
    /// Locks the directory; when there is no database yet, lets `create` make one at the path it is given.
    pub(crate) fn open(
        directory: &Path,
        create: impl FnOnce(&Path) -> Result<(), OpenError>,
    ) -> Result<Self, OpenError> {
        let blocks = FileBlockStore::open(directory.join("blocks")).map_err(StorageError::blocks("open"))?;
        let lock = lock(&directory.join("vault.lock"))?;
        let (database, new) = (directory.join("vault.redb"), directory.join("vault.redb.new"));
        if !database.try_exists().map_err(files("look for the database"))? {
            // A fresh database names no blocks: opening it would sweep them all away.
            if !blocks.list().map_err(StorageError::blocks("list"))?.is_empty() {
                return Err(OpenError::DatabaseMissing);
            }
            remove_leftover(&new).map_err(files("remove a half-made database"))?;
            create(&new)?;
            fs::rename(&new, &database).map_err(files("name the new database"))?;
        }
        // The new names are durable only with their directory, and so is all that is acknowledged later.
        for path in [Some(directory), directory.parent()].into_iter().flatten() {
            let path = if path.as_os_str().is_empty() {
                Path::new(".")
            } else {
                path
            };
            File::open(path)
                .and_then(|file| file.sync_all())
                .map_err(files("sync the directory"))?;
        }
        Ok(Self {
            lock,
            database,
            blocks,
        })
    }
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(files("open the lock file"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse),
        Err(TryLockError::Error(error)) => Err(files("lock the directory")(error).into()),
    }
}

fn remove_leftover(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn files(action: &'static str) -> impl FnOnce(io::Error) -> StorageError {
    move |source| StorageError::Files { action, source }
}
