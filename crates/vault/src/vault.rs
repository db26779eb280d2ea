//! The vault: one writer, every step durable before it takes effect, fail-closed after a failed write.

use crate::blocks::{BlockStore, ObjectId};
use crate::crypto::{RootKey, random_bytes};
use crate::database::Store;
use crate::error::{OpenError, StorageError, TransactError};
use crate::files::VaultFiles;
use bastionai_ledger::{BootId, Entry, Head, Ledger, LedgerId, Proposal, Refusal, RunId};
use redb::{Database, DatabaseError, StorageBackend, WriteTransaction};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Sizes of what is stored. They may change between openings; stored datasets remember their own.
#[derive(Clone, Copy, Debug)]
pub struct VaultConfig {
    /// Plaintext bytes aimed at per block; a longer record gets a block of its own.
    pub block_bytes: u64,
    /// Blocks sealed under one key (rule A9).
    pub blocks_per_segment: u32,
    /// Plaintext bytes per block of weights, checkpoints and orders: larger than a dataset's, since each block is a file
    /// to sync, and these are written while a trainer waits.
    pub object_block_bytes: u64,
    /// Memory for the database's page cache.
    pub cache_bytes: usize,
}

/// An open vault; clones share it.
#[derive(Clone)]
pub struct Vault {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: VaultConfig,
    pub(crate) store: Store,
    pub(crate) blocks: Box<dyn BlockStore>,
    ledger: RwLock<Ledger>,
    /// Held from check to apply: two proposals never see the same budget.
    writer: Mutex<()>,
    poisoned: AtomicBool,
    /// Last: released once the database is closed.
    _lock: Option<File>,
}

impl Default for VaultConfig {
    fn default() -> Self {
        Self {
            block_bytes: 1 << 20,
            blocks_per_segment: 4096,
            object_block_bytes: 16 << 20,
            cache_bytes: 16 << 20,
        }
    }
}

impl Vault {
    /// Opens the vault in a directory, or makes one there: `vault.redb` and `blocks/`.
    ///
    /// # Errors
    /// [`OpenError`]: in use, newer format, wrong root key, ledger not intact, storage failed.
    pub fn open(
        directory: &Path,
        root: &RootKey,
        config: VaultConfig,
        now_unix_ms: u64,
    ) -> Result<Self, OpenError> {
        let files = VaultFiles::open(directory, |path| {
            let database = open_database(builder(config).create(path))?;
            Store::open(database, root, now_unix_ms).map(drop)
        })?;
        let database = open_database(builder(config).open(&files.database))?;
        Self::assemble(
            database,
            Box::new(files.blocks),
            Some(files.lock),
            root,
            config,
            now_unix_ms,
        )
    }

    /// Opens a vault over any storage backend and block store, which the caller keeps to one process. An
    /// empty backend becomes a vault; a crash while it does may leave it unreadable, but then holding nothing.
    ///
    /// # Errors
    /// As [`Vault::open`].
    pub fn open_with(
        backend: impl StorageBackend,
        blocks: Box<dyn BlockStore>,
        root: &RootKey,
        config: VaultConfig,
        now_unix_ms: u64,
    ) -> Result<Self, OpenError> {
        let database = open_database(builder(config).create_with_backend(backend))?;
        Self::assemble(database, blocks, None, root, config, now_unix_ms)
    }

    fn assemble(
        database: Database,
        blocks: Box<dyn BlockStore>,
        lock: Option<File>,
        root: &RootKey,
        config: VaultConfig,
        now_unix_ms: u64,
    ) -> Result<Self, OpenError> {
        let (store, ledger) = Store::open(database, root, now_unix_ms)?;
        let (ledger, writer) = (RwLock::new(ledger), Mutex::new(()));
        let inner = Inner {
            config,
            store,
            blocks,
            ledger,
            writer,
            poisoned: AtomicBool::new(false),
            _lock: lock,
        };
        let vault = Self {
            inner: Arc::new(inner),
        };
        vault.sweep()?;
        Ok(vault)
    }

    /// The ledger's id.
    pub fn ledger_id(&self) -> LedgerId {
        self.read(Ledger::id)
    }

    /// The ledger's head: of durable entries only.
    pub fn head(&self) -> Head {
        self.read(Ledger::head)
    }

    /// Looks at the ledger. Keep it short: steps that become durable wait for it.
    pub fn read<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.inner.ledger.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes one ledger step: `propose` is called under the writer's lock, its entry made durable, then applied.
    ///
    /// # Guarantee
    /// When this returns `Ok` the step is durable and in effect; on [`TransactError::Refused`] nothing happened.
    /// # Errors
    /// [`TransactError`].
    pub fn transact(
        &self,
        propose: impl FnOnce(&Ledger) -> Result<Proposal, Refusal>,
    ) -> Result<Entry, TransactError> {
        self.transact_with(propose, |_, _| Ok(()))
    }

    /// Like [`Vault::transact`]; what `extra` writes becomes durable in the same transaction.
    pub(crate) fn transact_with(
        &self,
        propose: impl FnOnce(&Ledger) -> Result<Proposal, Refusal>,
        extra: impl FnOnce(&WriteTransaction, &Entry) -> Result<(), StorageError>,
    ) -> Result<Entry, TransactError> {
        // A writer that panicked may have stopped between durable and applied.
        let _writer = self.inner.writer.lock().map_err(|_| StorageError::Poisoned)?;
        if self.inner.poisoned.load(Ordering::Acquire) {
            return Err(StorageError::Poisoned.into());
        }
        let (entry, id) =
            self.read(|ledger| propose(ledger).map(|proposal| (proposal.into_entry(), ledger.id())))?;
        let stored = self.inner.store.append(id, &entry, |write| extra(write, &entry));
        if let Err(error) = stored {
            self.inner.poisoned.store(true, Ordering::Release);
            return Err(error.into());
        }
        let mut ledger = self.inner.ledger.write().map_err(|_| StorageError::Poisoned)?;
        ledger
            .apply(entry.clone())
            .expect("the writer's lock is held: the entry still continues the chain");
        Ok(entry)
    }

    /// Whether an earlier write failed, so that only a restart helps.
    pub fn is_poisoned(&self) -> bool {
        self.inner.poisoned.load(Ordering::Acquire) || self.inner.writer.is_poisoned()
    }

    /// A fresh random run id.
    ///
    /// # Errors
    /// [`StorageError::Random`].
    pub fn new_run_id(&self) -> Result<RunId, StorageError> {
        random_bytes().map(RunId::from_bytes)
    }

    /// A fresh random boot id.
    ///
    /// # Errors
    /// [`StorageError::Random`].
    pub fn new_boot_id(&self) -> Result<BootId, StorageError> {
        random_bytes().map(BootId::from_bytes)
    }

    /// Deletes objects that no durable transaction names: uploads that were cut off by a crash.
    fn sweep(&self) -> Result<(), StorageError> {
        let named: BTreeSet<ObjectId> = self.named_objects()?;
        let stored = self.inner.blocks.list().map_err(StorageError::blocks("list"))?;
        let stale = stored.into_iter().filter(|object| !named.contains(object));
        stale
            .into_iter()
            .try_for_each(|object| self.inner.blocks.delete(object))
            .map_err(StorageError::blocks("delete"))
    }
}

fn open_database(database: Result<Database, DatabaseError>) -> Result<Database, OpenError> {
    database.map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse,
        error => OpenError::Storage(StorageError::database(error)),
    })
}

/// Integrity is checked on every open: the operator can change the file, and redb may panic on one it trusts.
fn builder(config: VaultConfig) -> redb::Builder {
    let mut builder = redb::Builder::new();
    builder
        .set_cache_size(config.cache_bytes)
        .set_check_integrity_on_open(true);
    builder
}

impl fmt::Debug for Vault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = self.head();
        write!(
            formatter,
            "Vault(ledger {}, {} entries)",
            head.ledger, head.sequence
        )
    }
}
