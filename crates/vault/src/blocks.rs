//! Where sealed blocks lie: a trait, so that object stores fit under it, and the file system.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// A group of blocks stored and deleted together: one upload, or one run's weights. Random.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub [u8; 16]);

/// A store of immutable blocks. What it holds is sealed already; it is trusted with availability only.
pub trait BlockStore: Send + Sync {
    /// Stores one block. Need not be durable before [`BlockStore::sync`].
    ///
    /// # Errors
    /// The store's.
    fn put(&self, object: ObjectId, index: u64, bytes: &[u8]) -> io::Result<()>;

    /// Returns once every block put so far under `object` is durable.
    ///
    /// # Errors
    /// The store's; then nothing may be assumed of any of them.
    fn sync(&self, object: ObjectId) -> io::Result<()>;

    /// Reads one block of at most `max_bytes`.
    ///
    /// # Errors
    /// `NotFound` when there is none; `InvalidData` when it is longer; the store's.
    fn get(&self, object: ObjectId, index: u64, max_bytes: u64) -> io::Result<Vec<u8>>;

    /// Deletes an object with all its blocks; one that does not exist is deleted already.
    ///
    /// # Errors
    /// The store's.
    fn delete(&self, object: ObjectId) -> io::Result<()>;

    /// Every object that has blocks: at open, those that no transaction names are swept.
    ///
    /// # Errors
    /// The store's.
    fn list(&self) -> io::Result<Vec<ObjectId>>;
}

/// Blocks as files: `<root>/<first two hex digits>/<object in hex>/<index, eight hex digits>`.
#[derive(Debug)]
pub struct FileBlockStore {
    root: PathBuf,
}

impl ObjectId {
    fn hex(self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ObjectId({})", self.hex())
    }
}

impl FileBlockStore {
    /// Opens or creates a store in this directory.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        create_private_directory(&root)?;
        Ok(Self { root })
    }

    fn directory(&self, object: ObjectId) -> PathBuf {
        let name = object.hex();
        self.root.join(&name[..2]).join(name)
    }

    fn file(&self, object: ObjectId, index: u64) -> PathBuf {
        self.directory(object).join(format!("{index:08x}"))
    }
}

impl BlockStore for FileBlockStore {
    fn put(&self, object: ObjectId, index: u64, bytes: &[u8]) -> io::Result<()> {
        if index == 0 {
            create_private_directory(&self.directory(object))?;
        }
        // In place, without a rename: nobody looks at an object before the transaction that names it.
        let mut file = File::create(self.file(object, index))?;
        file.write_all(bytes)?;
        file.sync_data()
    }

    fn sync(&self, object: ObjectId) -> io::Result<()> {
        let directory = self.directory(object);
        let mut to_sync = vec![directory.as_path()];
        to_sync.extend(directory.ancestors().skip(1).take(2));
        to_sync
            .into_iter()
            .try_for_each(|path| File::open(path)?.sync_all())
    }

    fn get(&self, object: ObjectId, index: u64, max_bytes: u64) -> io::Result<Vec<u8>> {
        let file = File::open(self.file(object, index))?;
        let length = file.metadata()?.len();
        if length > max_bytes {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "block longer than its kind allows",
            ));
        }
        let mut bytes = Vec::with_capacity(length as usize);
        file.take(max_bytes).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn delete(&self, object: ObjectId) -> io::Result<()> {
        match fs::remove_dir_all(self.directory(object)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn list(&self) -> io::Result<Vec<ObjectId>> {
        let mut objects = Vec::new();
        for shard in fs::read_dir(&self.root)? {
            let shard = shard?;
            if !shard.file_type()?.is_dir() {
                continue;
            }
            for object in fs::read_dir(shard.path())? {
                objects.extend(parse_object(&object?.file_name().to_string_lossy()));
            }
        }
        Ok(objects)
    }
}

/// Files that are not ours are left alone.
fn parse_object(name: &str) -> Option<ObjectId> {
    let mut id = [0; 16];
    hex::decode_to_slice(name, &mut id).ok()?;
    Some(ObjectId(id))
}

#[cfg(unix)]
fn create_private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(not(unix))]
fn create_private_directory(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_until_their_object_is_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileBlockStore::open(directory.path().join("blocks")).unwrap();
        let object = ObjectId([0xa5; 16]);
        store.put(object, 0, b"zero").unwrap();
        store.put(object, 1, b"one").unwrap();
        store.sync(object).unwrap();
        assert_eq!(store.get(object, 1, 3).unwrap(), b"one");
        assert_eq!(
            store.get(object, 0, 3).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        assert_eq!(
            store.get(object, 2, 9).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert_eq!(store.list().unwrap(), [object]);
        store.delete(object).unwrap();
        store.delete(object).unwrap();
        assert!(store.list().unwrap().is_empty());
    }
}
