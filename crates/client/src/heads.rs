//! The memory of ledger heads: what makes a rolled back or forked ledger visible (rule A1, level `none`).
//!
//! A client remembers, per ledger, the highest head it ever saw. A server whose chain does not continue
//! it is refused before anything is sent. This detects; it does not prevent: somebody who meets a ledger
//! for the first time takes its past on trust.

use bastionai_ledger::chain::{ExtensionError, Head, Link, verify_extension};
use bastionai_ledger::id::LedgerId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Where heads are remembered. Clones share it, and so do processes that name the same file.
#[derive(Clone, Debug)]
pub struct HeadMemory {
    place: Arc<Place>,
}

#[derive(Debug)]
enum Place {
    File(PathBuf),
    Process(Mutex<Heads>),
}

/// The ledger shown is not a continuation of the ledger seen before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "rollback or fork: {source} (ledger {ledger}: {known} entries seen, {found} shown); nothing was sent. \
     Budgets spent since may have been forgotten: ask the operator, and do not use this server until it is explained"
)]
pub struct RollbackError {
    /// Which ledger.
    pub ledger: LedgerId,
    /// Entries seen before.
    pub known: u64,
    /// Entries shown now.
    pub found: u64,
    /// How the chains part.
    pub source: ExtensionError,
}

/// The memory cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeadMemoryError {
    /// The file cannot be read or written.
    #[error("the memory of ledger heads {} cannot be used: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// Not our format; never ignored, since that would forget every rollback.
    #[error("the memory of ledger heads {} is not readable by this version: {what}; restore it, or move it away to forget every ledger seen", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// Why a head was not remembered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RememberError {
    #[error(transparent)]
    Rollback(#[from] RollbackError),
    #[error(transparent)]
    Memory(#[from] HeadMemoryError),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Heads {
    version: u32,
    heads: BTreeMap<LedgerId, Head>,
}

impl HeadMemory {
    /// A JSON file, made when the first head is seen. Writes are atomic and locked between processes.
    pub fn open(path: impl Into<PathBuf>) -> Self {
        Self {
            place: Arc::new(Place::File(path.into())),
        }
    }

    /// Remembers as long as the process lives: for tests, and for callers who keep no files.
    pub fn in_process() -> Self {
        Self {
            place: Arc::new(Place::Process(Mutex::new(Heads {
                version: VERSION,
                ..Heads::default()
            }))),
        }
    }

    /// The highest head seen of this ledger.
    ///
    /// # Errors
    /// [`HeadMemoryError`] if the file cannot be read.
    pub fn known(&self, ledger: LedgerId) -> Result<Option<Head>, HeadMemoryError> {
        let heads = match &*self.place {
            Place::File(path) => read(path)?,
            Place::Process(heads) => heads.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        Ok(heads.heads.get(&ledger).copied())
    }

    /// Checks that `head` continues `known` over `links`, and remembers it if it is the highest.
    ///
    /// `known` is what [`HeadMemory::known`] gave when the proof was asked for; `None` is a first contact.
    pub(crate) fn follow(
        &self,
        known: Option<&Head>,
        head: &Head,
        links: &[Link],
    ) -> Result<(), RememberError> {
        if let Some(known) = known {
            check(known, head, links)?;
        }
        match &*self.place {
            Place::File(path) => locked(path, |heads| remember(heads, head)),
            Place::Process(heads) => {
                remember(&mut heads.lock().unwrap_or_else(PoisonError::into_inner), head)
            }
        }
    }
}

fn check(known: &Head, head: &Head, links: &[Link]) -> Result<(), RollbackError> {
    verify_extension(Some(known), head, links).map_err(|source| RollbackError {
        ledger: known.ledger,
        known: known.sequence,
        found: head.sequence,
        source,
    })
}

/// Another session may have moved on meanwhile: the higher head stays, and equal heights must agree.
fn remember(heads: &mut Heads, head: &Head) -> Result<(), RememberError> {
    match heads.heads.get(&head.ledger) {
        Some(known) if known.sequence > head.sequence => Ok(()),
        Some(known) if known.sequence == head.sequence => Ok(check(known, head, &[])?),
        _ => {
            heads.heads.insert(head.ledger, *head);
            Ok(())
        }
    }
}

/// Read, change, write under a lock that other processes respect.
fn locked(
    path: &Path,
    change: impl FnOnce(&mut Heads) -> Result<(), RememberError>,
) -> Result<(), RememberError> {
    let error = |source| HeadMemoryError::File {
        path: path.to_owned(),
        source,
    };
    std::fs::create_dir_all(folder_of(path)).map_err(error)?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(beside(path, ".lock"))
        .map_err(error)?;
    lock.lock().map_err(error)?;
    let mut heads = read(path)?;
    let before = heads.clone();
    change(&mut heads)?;
    if heads.heads != before.heads {
        replace(path, &heads).map_err(error)?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Heads, HeadMemoryError> {
    let malformed = |what: String| HeadMemoryError::Malformed {
        path: path.to_owned(),
        what,
    };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(Heads {
                version: VERSION,
                ..Heads::default()
            });
        }
        Err(source) => {
            return Err(HeadMemoryError::File {
                path: path.to_owned(),
                source,
            });
        }
    };
    let heads: Heads = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
    if heads.version != VERSION {
        return Err(malformed(format!(
            "format version {}, this program reads {VERSION}",
            heads.version
        )));
    }
    Ok(heads)
}

/// A crash leaves the old file or the new one, never half of either.
fn replace(path: &Path, heads: &Heads) -> std::io::Result<()> {
    let folder = folder_of(path);
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(&mut file, heads)?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(folder)?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use bastionai_ledger::entry::entry_hash;
    use bastionai_ledger::id::{Digest32, EntryHash};

    const LEDGER: LedgerId = LedgerId::from_bytes([1; 16]);

    fn link(byte: u8) -> Link {
        Link {
            time_unix_ms: u64::from(byte),
            body_digest: Digest32::from_bytes([byte; 32]),
        }
    }

    /// The head of a chain with these links.
    fn head(bytes: &[u8]) -> Head {
        let start = EntryHash::NONE;
        let hash = (0u64..).zip(bytes).fold(start, |previous, (sequence, &byte)| {
            entry_hash(
                sequence,
                previous,
                link(byte).time_unix_ms,
                link(byte).body_digest,
            )
        });
        Head {
            ledger: LEDGER,
            sequence: bytes.len() as u64,
            entry_hash: hash,
        }
    }

    fn both() -> (tempfile::TempDir, [HeadMemory; 2]) {
        let folder = tempfile::tempdir().unwrap();
        let file = HeadMemory::open(folder.path().join("heads.json"));
        (folder, [file, HeadMemory::in_process()])
    }

    #[test]
    fn an_extension_is_followed_and_remembered() {
        let (_folder, memories) = both();
        for memory in memories {
            assert_eq!(memory.known(LEDGER).unwrap(), None);
            memory.follow(None, &head(&[1, 2]), &[]).unwrap();
            let known = memory.known(LEDGER).unwrap().unwrap();
            memory
                .follow(Some(&known), &head(&[1, 2, 3, 4]), &[link(3), link(4)])
                .unwrap();
            assert_eq!(memory.known(LEDGER).unwrap(), Some(head(&[1, 2, 3, 4])));
        }
    }

    #[test]
    fn a_rolled_back_ledger_is_refused_and_the_memory_kept() {
        let (_folder, memories) = both();
        for memory in memories {
            memory.follow(None, &head(&[1, 2, 3]), &[]).unwrap();
            let known = memory.known(LEDGER).unwrap().unwrap();
            let error = memory.follow(Some(&known), &head(&[1, 2]), &[]).unwrap_err();
            assert!(
                matches!(&error, RememberError::Rollback(r) if r.known == 3 && r.found == 2),
                "{error}"
            );
            assert_eq!(memory.known(LEDGER).unwrap(), Some(head(&[1, 2, 3])));
        }
    }

    #[test]
    fn a_forked_ledger_is_refused_however_long_it_is() {
        let (_folder, memories) = both();
        for memory in memories {
            memory.follow(None, &head(&[1, 2, 3]), &[]).unwrap();
            let known = memory.known(LEDGER).unwrap().unwrap();
            for (fork, links) in [
                (head(&[1, 2, 9]), vec![]),
                (head(&[1, 2, 9, 4]), vec![link(4)]),
                (head(&[1, 2, 9, 4]), vec![link(9), link(4)]),
            ] {
                let error = memory.follow(Some(&known), &fork, &links).unwrap_err();
                assert!(matches!(error, RememberError::Rollback(_)));
            }
            assert_eq!(memory.known(LEDGER).unwrap(), Some(head(&[1, 2, 3])));
        }
    }

    #[test]
    fn of_two_first_contacts_at_one_height_the_second_must_agree() {
        let memory = HeadMemory::in_process();
        memory.follow(None, &head(&[1, 2]), &[]).unwrap();
        assert!(memory.follow(None, &head(&[1, 2]), &[]).is_ok());
        assert!(matches!(
            memory.follow(None, &head(&[1, 9]), &[]),
            Err(RememberError::Rollback(_))
        ));
    }

    #[test]
    fn a_slower_session_does_not_lower_the_memory() {
        let memory = HeadMemory::in_process();
        memory.follow(None, &head(&[1, 2, 3]), &[]).unwrap();
        memory.follow(None, &head(&[1, 2]), &[]).unwrap();
        assert_eq!(memory.known(LEDGER).unwrap(), Some(head(&[1, 2, 3])));
    }

    #[test]
    fn a_damaged_or_newer_file_is_refused_not_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("heads.json");
        for content in [
            "",
            "{",
            r#"{"version":2,"heads":{}}"#,
            r#"{"version":1,"heads":{},"more":1}"#,
        ] {
            std::fs::write(&path, content).unwrap();
            let memory = HeadMemory::open(&path);
            assert!(
                matches!(memory.known(LEDGER), Err(HeadMemoryError::Malformed { .. })),
                "{content}"
            );
            assert!(memory.follow(None, &head(&[1]), &[]).is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[test]
    fn the_format_of_version_1_is_pinned() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("heads.json");
        let memory = HeadMemory::open(&path);
        let head = Head {
            ledger: LEDGER,
            sequence: 3,
            entry_hash: EntryHash::from_bytes([2; 32]),
        };
        memory.follow(None, &head, &[]).unwrap();
        let expected = format!(
            "{{\n  \"version\": 1,\n  \"heads\": {{\n    \"{id}\": {{\n      \"ledger\": \"{id}\",\n      \
             \"sequence\": 3,\n      \"entry_hash\": \"{hash}\"\n    }}\n  }}\n}}\n",
            id = "01".repeat(16),
            hash = "02".repeat(32)
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    }

    #[test]
    fn many_threads_through_one_file_keep_the_highest_head() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("heads.json");
        let chain: Vec<u8> = (1..=20).collect();
        std::thread::scope(|scope| {
            for length in 1..=chain.len() {
                let (path, chain) = (path.clone(), &chain);
                scope.spawn(move || {
                    HeadMemory::open(path)
                        .follow(None, &head(&chain[..length]), &[])
                        .unwrap()
                });
            }
        });
        assert_eq!(HeadMemory::open(path).known(LEDGER).unwrap(), Some(head(&chain)));
    }
}
