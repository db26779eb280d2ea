//! The memory of ledger heads: what makes a rolled back or forked ledger visible (rule A1, level `none`).
//!
//! A client remembers, per ledger, the highest head it ever saw. A server whose chain does not continue
//! it is refused before anything is sent. This detects; it does not prevent: somebody who meets a ledger
//! for the first time takes its past on trust.

use bastionai_ledger::chain::{ExtensionError, Head, Link, follow_links, verify_extension};
use bastionai_ledger::id::{EntryHash, LedgerId};
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

/// What the memory makes of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Followed {
    /// It continues everything seen, and is remembered.
    Proven,
    /// Another session changed the memory meanwhile, and the proof does not reach what it holds now: ask again.
    Unproven(Head),
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

    /// Checks that `head` continues `known` over `links`, then, under the lock, that it continues whatever
    /// other sessions have put there since; only then is it remembered.
    ///
    /// `known` is what [`HeadMemory::known`] gave before the proof was asked for; `None` is a first contact.
    pub(crate) fn follow(
        &self,
        known: Option<&Head>,
        head: &Head,
        links: &[Link],
    ) -> Result<Followed, RememberError> {
        if known.is_some() || !links.is_empty() {
            check(known, head, links)?;
        }
        let shown = Shown { known, head, links };
        match &*self.place {
            Place::File(path) => locked(path, |heads| remember(heads, shown)),
            Place::Process(heads) => {
                remember(&mut heads.lock().unwrap_or_else(PoisonError::into_inner), shown)
            }
        }
    }
}

impl RollbackError {
    /// `head` could not be shown to continue `seen`.
    pub(crate) fn unproven(seen: &Head, head: &Head) -> Self {
        Self {
            ledger: seen.ledger,
            known: seen.sequence,
            found: head.sequence,
            source: ExtensionError::RolledBack {
                known: seen.sequence,
                found: head.sequence,
            },
        }
    }
}

/// A head with its proof, checked from `known` on.
#[derive(Clone, Copy)]
struct Shown<'a> {
    known: Option<&'a Head>,
    head: &'a Head,
    links: &'a [Link],
}

impl Shown<'_> {
    /// Hash of the shown chain's entry at `sequence`, if the proof spans it.
    fn hash_at(&self, sequence: u64) -> Option<EntryHash> {
        if sequence == self.head.sequence {
            return Some(self.head.entry_hash);
        }
        let (start, hash) = self
            .known
            .map_or((0, EntryHash::NONE), |known| (known.sequence, known.entry_hash));
        let count = usize::try_from(sequence.checked_sub(start)?).ok()?;
        Some(follow_links(start, hash, self.links.get(..count)?))
    }
}

fn check(known: Option<&Head>, head: &Head, links: &[Link]) -> Result<(), RollbackError> {
    verify_extension(known, head, links).map_err(|source| RollbackError {
        ledger: head.ledger,
        known: known.map_or(0, |known| known.sequence),
        found: head.sequence,
        source,
    })
}

/// Never compares heights alone: a rolled back or forked server answers slowly, so that the memory has moved on.
fn remember(heads: &mut Heads, shown: Shown<'_>) -> Result<Followed, RememberError> {
    let head = *shown.head;
    if let Some(stored) = heads.heads.get(&head.ledger) {
        let Some(hash) = shown.hash_at(stored.sequence) else {
            return Ok(Followed::Unproven(*stored));
        };
        if hash != stored.entry_hash {
            return Err(RememberError::Rollback(RollbackError {
                ledger: head.ledger,
                known: stored.sequence,
                found: head.sequence,
                source: ExtensionError::Forked,
            }));
        }
    }
    heads.heads.insert(head.ledger, head);
    Ok(Followed::Proven)
}

/// Read, change, write under a lock that other processes respect.
fn locked(
    path: &Path,
    change: impl FnOnce(&mut Heads) -> Result<Followed, RememberError>,
) -> Result<Followed, RememberError> {
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
    let followed = change(&mut heads)?;
    if heads.heads != before.heads {
        replace(path, &heads).map_err(error)?;
    }
    Ok(followed)
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

    fn first(memory: &HeadMemory, chain: &[u8]) {
        assert_eq!(memory.follow(None, &head(chain), &[]).unwrap(), Followed::Proven);
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
            first(&memory, &[1, 2]);
            let known = memory.known(LEDGER).unwrap().unwrap();
            let followed = memory.follow(Some(&known), &head(&[1, 2, 3, 4]), &[link(3), link(4)]);
            assert_eq!(followed.unwrap(), Followed::Proven);
            assert_eq!(memory.known(LEDGER).unwrap(), Some(head(&[1, 2, 3, 4])));
        }
    }

    #[test]
    fn a_rolled_back_ledger_is_refused_and_the_memory_kept() {
        let (_folder, memories) = both();
        for memory in memories {
            first(&memory, &[1, 2, 3]);
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
            first(&memory, &[1, 2, 3]);
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
        first(&memory, &[1, 2]);
        first(&memory, &[1, 2]);
        assert!(matches!(
            memory.follow(None, &head(&[1, 9]), &[]),
            Err(RememberError::Rollback(_))
        ));
    }

    #[test]
    fn a_first_contact_that_another_overtook_at_another_height_is_not_believed() {
        for chain in [&[1, 2][..], &[1, 9], &[1, 2, 3, 4], &[1, 2, 9, 4]] {
            let memory = HeadMemory::in_process();
            first(&memory, &[1, 2, 3]);
            let followed = memory.follow(None, &head(chain), &[]).unwrap();
            assert_eq!(followed, Followed::Unproven(head(&[1, 2, 3])), "{chain:?}");
            assert_eq!(memory.known(LEDGER).unwrap(), Some(head(&[1, 2, 3])));
        }
    }

    #[test]
    fn a_head_below_what_another_session_saw_meanwhile_is_not_believed() {
        let (_folder, memories) = both();
        for memory in memories {
            first(&memory, &[1, 2]);
            let known = memory.known(LEDGER).unwrap().unwrap();
            let _ = memory
                .follow(Some(&known), &head(&[1, 2, 3, 4]), &[link(3), link(4)])
                .unwrap();
            for (chain, links) in [
                (&[1, 2][..], vec![]),
                (&[1, 2, 3], vec![link(3)]),
                (&[1, 2, 9], vec![link(9)]),
            ] {
                let followed = memory.follow(Some(&known), &head(chain), &links).unwrap();
                assert_eq!(followed, Followed::Unproven(head(&[1, 2, 3, 4])), "{chain:?}");
                assert_eq!(memory.known(LEDGER).unwrap(), Some(head(&[1, 2, 3, 4])));
            }
        }
    }

    #[test]
    fn a_longer_fork_does_not_replace_what_another_session_saw_meanwhile() {
        let (_folder, memories) = both();
        for memory in memories {
            first(&memory, &[1, 2]);
            let known = memory.known(LEDGER).unwrap().unwrap();
            let _ = memory
                .follow(Some(&known), &head(&[1, 2, 3]), &[link(3)])
                .unwrap();
            for fork in [&[1, 2, 9][..], &[1, 2, 9, 4]] {
                let links: Vec<Link> = fork[2..].iter().map(|&byte| link(byte)).collect();
                let error = memory.follow(Some(&known), &head(fork), &links).unwrap_err();
                assert!(
                    matches!(&error, RememberError::Rollback(r) if r.source == ExtensionError::Forked),
                    "{error}"
                );
                assert_eq!(memory.known(LEDGER).unwrap(), Some(head(&[1, 2, 3])));
            }
            // The true chain, proven from where this session stood, passes over what the other saw.
            let followed = memory.follow(Some(&known), &head(&[1, 2, 3, 4]), &[link(3), link(4)]);
            assert_eq!(followed.unwrap(), Followed::Proven);
            assert_eq!(memory.known(LEDGER).unwrap(), Some(head(&[1, 2, 3, 4])));
        }
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
        assert_eq!(memory.follow(None, &head, &[]).unwrap(), Followed::Proven);
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
                scope.spawn(move || climb(&HeadMemory::open(path), &chain[..length]));
            }
        });
        assert_eq!(HeadMemory::open(path).known(LEDGER).unwrap(), Some(head(&chain)));
    }

    /// Asks again with a longer proof, as sessions do, unless the memory is higher already.
    fn climb(memory: &HeadMemory, chain: &[u8]) {
        loop {
            let known = memory.known(LEDGER).unwrap();
            let seen = known.map_or(0, |known| known.sequence as usize);
            let links: Vec<Link> = chain.iter().skip(seen).map(|&byte| link(byte)).collect();
            let links = if seen == 0 { &[][..] } else { &links };
            if seen > chain.len()
                || memory.follow(known.as_ref(), &head(chain), links).unwrap() == Followed::Proven
            {
                return;
            }
        }
    }
}
