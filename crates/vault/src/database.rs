//! The redb database: tables, the sealed ledger, and transactions that are durable or nothing.
//!
//! ```text
//! meta       "format" → u32 (little-endian) │ "vault" → vault id = ledger id │ "head" → sealed head
//! ledger     sequence → sealed entry        (AAD: label ‖ sequence)
//! keys       dataset id → wrapped dataset key            (AAD: label ‖ dataset id ‖ genesis policy hash)
//! datasets   dataset id → dataset record, sealed under the dataset key (same AAD, other label)
//! boots      boot id → sealed evidence of the boot
//! released   (run id, step) → sealed released value
//! results    run id → sealed record of a run's weights
//! orders     run id → version ‖ sealed record of what an open run needs to go on       (since format 2)
//! checkpoints run id → version ‖ sealed record of its last checkpoint                  (since format 2)
//! kept       (run id, 2·step + 1 for an average) → sealed record of weights kept on the way (since format 2)
//! ```
//! Entries are sealed, not only chained: without the root key an operator can neither read who trains what
//! nor write a chain of their own.

use crate::crypto::{RootKey, Sealer, random_bytes};
use crate::error::{FORMAT_VERSION, OLDEST_FORMAT, OpenError, StorageError};
use bastionai_ledger::{Entry, Head, Ledger, LedgerId};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use zeroize::Zeroizing;

pub(crate) type Id = [u8; 16];

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const LEDGER: TableDefinition<u64, &[u8]> = TableDefinition::new("ledger");
pub(crate) const KEYS: TableDefinition<Id, &[u8]> = TableDefinition::new("keys");
pub(crate) const DATASETS: TableDefinition<Id, &[u8]> = TableDefinition::new("datasets");
pub(crate) const BOOTS: TableDefinition<Id, &[u8]> = TableDefinition::new("boots");
pub(crate) const RELEASED: TableDefinition<(Id, u64), &[u8]> = TableDefinition::new("released");
pub(crate) const RESULTS: TableDefinition<Id, &[u8]> = TableDefinition::new("results");
pub(crate) const ORDERS: TableDefinition<Id, &[u8]> = TableDefinition::new("orders");
pub(crate) const CHECKPOINTS: TableDefinition<Id, &[u8]> = TableDefinition::new("checkpoints");
pub(crate) const KEPT: TableDefinition<(Id, u64), &[u8]> = TableDefinition::new("kept");

/// The database with the keys that its small values lie under.
pub(crate) struct Store {
    database: Database,
    ledger_sealer: Sealer,
    /// Wraps dataset keys and nothing else.
    pub(crate) wrapper: Sealer,
    /// Seals records of boots, released values and results.
    pub(crate) records: Sealer,
}

impl Store {
    /// Opens the database, or makes a vault of an empty one, and replays its ledger.
    pub(crate) fn open(
        database: Database,
        root: &RootKey,
        now_unix_ms: u64,
    ) -> Result<(Self, Ledger), OpenError> {
        let (vault, format) = match read_meta(&database)? {
            Some(found) => found,
            None => (create(&database, root, now_unix_ms)?, FORMAT_VERSION),
        };
        let store = Self {
            database,
            ledger_sealer: root.derive(&vault, LEDGER_PURPOSE),
            wrapper: root.derive(&vault, "bastionai/v1/vault/dataset-keys"),
            records: root.derive(&vault, "bastionai/v1/vault/records"),
        };
        let ledger = store.replay(&vault)?;
        // Only once the root key has opened the chain: a vault that is refused stays as it was.
        if format < FORMAT_VERSION {
            migrate(&store.database)?;
        }
        Ok((store, ledger))
    }

    fn replay(&self, vault: &Id) -> Result<Ledger, OpenError> {
        let read = self.database.begin_read().map_err(StorageError::database)?;
        let meta = read.open_table(META).map_err(StorageError::database)?;
        let head = meta
            .get("head")
            .map_err(StorageError::database)?
            .ok_or(OpenError::NotAVault {
                what: "it has no ledger head",
            })?;
        // The first value that is opened: a wrong key is told apart from a broken ledger here.
        let head = self
            .ledger_sealer
            .open(HEAD_LABEL, head.value(), "head")
            .map_err(|_| OpenError::WrongRootKey)?;
        let head: Head = postcard::from_bytes(&head).map_err(|_| OpenError::NotAVault {
            what: "its head does not decode",
        })?;
        let table = read.open_table(LEDGER).map_err(StorageError::database)?;
        let mut entries = Vec::new();
        for row in table.iter().map_err(StorageError::database)? {
            let (sequence, sealed) = row.map_err(StorageError::database)?;
            let sequence = sequence.value();
            let bytes = self
                .ledger_sealer
                .open(&entry_aad(sequence), sealed.value(), "a ledger entry")?;
            entries.push(Entry::from_bytes(&bytes).map_err(|source| OpenError::Entry { sequence, source })?);
        }
        if entries.len() as u64 != head.sequence {
            return Err(OpenError::Truncated {
                expected: head.sequence,
                found: entries.len() as u64,
            });
        }
        let ledger = Ledger::replay(entries)?;
        if ledger.head() != head || ledger.id().as_bytes() != vault {
            return Err(OpenError::NotAVault {
                what: "its head is not that of its ledger",
            });
        }
        Ok(ledger)
    }

    /// Appends `entry` and whatever `extra` writes in one transaction; returns once it is durable.
    /// On any error the caller poisons the vault: a failed commit may have reached the disk.
    pub(crate) fn append<T>(
        &self,
        ledger: LedgerId,
        entry: &Entry,
        extra: impl FnOnce(&WriteTransaction) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let write = begin_durable(&self.database)?;
        write_entry(&write, &self.ledger_sealer, ledger, entry)?;
        let value = extra(&write)?;
        write.commit().map_err(StorageError::database)?;
        Ok(value)
    }

    /// The bytes under an id.
    pub(crate) fn get(
        &self,
        table: TableDefinition<Id, &[u8]>,
        id: &Id,
    ) -> Result<Option<Vec<u8>>, StorageError> {
        let read = self.database.begin_read().map_err(StorageError::database)?;
        let table = read.open_table(table).map_err(StorageError::database)?;
        let value = table.get(*id).map_err(StorageError::database)?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    /// Every value of a table, by id.
    pub(crate) fn all(&self, table: TableDefinition<Id, &[u8]>) -> Result<Vec<(Id, Vec<u8>)>, StorageError> {
        let read = self.database.begin_read().map_err(StorageError::database)?;
        let table = read.open_table(table).map_err(StorageError::database)?;
        let rows = table.iter().map_err(StorageError::database)?;
        rows.map(|row| {
            row.map(|(id, value)| (id.value(), value.value().to_vec()))
                .map_err(StorageError::database)
        })
        .collect()
    }

    /// Released values of a run from a step on, still sealed.
    pub(crate) fn released(&self, run: &Id, from_step: u64) -> Result<Vec<(u64, Vec<u8>)>, StorageError> {
        let read = self.database.begin_read().map_err(StorageError::database)?;
        let table = read.open_table(RELEASED).map_err(StorageError::database)?;
        let rows = table
            .range((*run, from_step)..=(*run, u64::MAX))
            .map_err(StorageError::database)?;
        rows.map(|row| {
            row.map(|(key, value)| (key.value().1, value.value().to_vec()))
                .map_err(StorageError::database)
        })
        .collect()
    }
}

impl Store {
    /// The keys of a run's kept weights.
    pub(crate) fn kept(&self, run: &Id) -> Result<Vec<u64>, StorageError> {
        let read = self.database.begin_read().map_err(StorageError::database)?;
        let Some(table) = open_kept(&read)? else {
            return Ok(Vec::new());
        };
        let rows = table
            .range((*run, 0)..=(*run, u64::MAX))
            .map_err(StorageError::database)?;
        rows.map(|row| row.map(|(key, _)| key.value().1).map_err(StorageError::database))
            .collect()
    }

    /// The bytes under a run and a key.
    pub(crate) fn get_kept(&self, run: &Id, key: u64) -> Result<Option<Vec<u8>>, StorageError> {
        let read = self.database.begin_read().map_err(StorageError::database)?;
        let Some(table) = open_kept(&read)? else {
            return Ok(None);
        };
        let value = table.get((*run, key)).map_err(StorageError::database)?;
        Ok(value.map(|value| value.value().to_vec()))
    }
}

type KeptTable = redb::ReadOnlyTable<(Id, u64), &'static [u8]>;

/// The table of kept weights: absent in a vault of format 2 in which no run has kept any yet.
fn open_kept(read: &redb::ReadTransaction) -> Result<Option<KeptTable>, StorageError> {
    match read.open_table(KEPT) {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(StorageError::database(error)),
    }
}

/// Writes one value in a transaction.
pub(crate) fn insert(
    write: &WriteTransaction,
    table: TableDefinition<Id, &[u8]>,
    id: &Id,
    value: &[u8],
) -> Result<(), StorageError> {
    let mut table = write.open_table(table).map_err(StorageError::database)?;
    table.insert(*id, value).map_err(StorageError::database)?;
    Ok(())
}

/// Removes one value in a transaction.
pub(crate) fn remove(
    write: &WriteTransaction,
    table: TableDefinition<Id, &[u8]>,
    id: &Id,
) -> Result<(), StorageError> {
    let mut table = write.open_table(table).map_err(StorageError::database)?;
    table.remove(*id).map_err(StorageError::database)?;
    Ok(())
}

/// The vault's id and format, or `None` when the database is empty: a crash while it was made left nothing.
fn read_meta(database: &Database) -> Result<Option<(Id, u32)>, OpenError> {
    let read = database.begin_read().map_err(StorageError::database)?;
    if read
        .list_tables()
        .map_err(StorageError::database)?
        .next()
        .is_none()
    {
        return Ok(None);
    }
    let not_a_vault = |what| OpenError::NotAVault { what };
    let meta = read
        .open_table(META)
        .map_err(|_| not_a_vault("it has tables of something else"))?;
    let field = |name| meta.get(name).map_err(StorageError::database);
    let format = field("format")?.ok_or(not_a_vault("it names no format"))?;
    let format = format
        .value()
        .try_into()
        .map(u32::from_le_bytes)
        .map_err(|_| not_a_vault("its format is odd"))?;
    if format > FORMAT_VERSION {
        return Err(OpenError::NewerFormat { found: format });
    }
    if format < OLDEST_FORMAT {
        return Err(not_a_vault("its format is none this program ever wrote"));
    }
    let vault = field("vault")?.ok_or(not_a_vault("it has no id"))?;
    let vault = vault
        .value()
        .try_into()
        .map_err(|_| not_a_vault("its id is odd"))?;
    Ok(Some((vault, format)))
}

/// From format 1, in which no run outlived its boot: three tables more, nothing else.
fn migrate(database: &Database) -> Result<(), StorageError> {
    let write = begin_durable(database)?;
    for table in [ORDERS, CHECKPOINTS] {
        write.open_table(table).map_err(StorageError::database)?;
    }
    write.open_table(KEPT).map_err(StorageError::database)?;
    write_meta(&write, "format", &FORMAT_VERSION.to_le_bytes())?;
    write.commit().map_err(StorageError::database)
}

/// Everything a new vault has, in one transaction.
fn create(database: &Database, root: &RootKey, now_unix_ms: u64) -> Result<Id, StorageError> {
    let vault: Id = random_bytes()?;
    let ledger = LedgerId::from_bytes(vault);
    let write = begin_durable(database)?;
    for table in [KEYS, DATASETS, BOOTS, RESULTS, ORDERS, CHECKPOINTS] {
        write.open_table(table).map_err(StorageError::database)?;
    }
    write.open_table(RELEASED).map_err(StorageError::database)?;
    write.open_table(KEPT).map_err(StorageError::database)?;
    write_meta(&write, "format", &FORMAT_VERSION.to_le_bytes())?;
    write_meta(&write, "vault", &vault)?;
    write_entry(
        &write,
        &root.derive(&vault, LEDGER_PURPOSE),
        ledger,
        &Ledger::genesis(ledger, now_unix_ms),
    )?;
    write.commit().map_err(StorageError::database)?;
    Ok(vault)
}

fn begin_durable(database: &Database) -> Result<WriteTransaction, StorageError> {
    let mut write = database.begin_write().map_err(StorageError::database)?;
    write
        .set_durability(Durability::Immediate)
        .map_err(StorageError::database)?;
    Ok(write)
}

fn write_meta(write: &WriteTransaction, name: &str, value: &[u8]) -> Result<(), StorageError> {
    let mut meta = write.open_table(META).map_err(StorageError::database)?;
    meta.insert(name, value).map_err(StorageError::database)?;
    Ok(())
}

fn write_entry(
    write: &WriteTransaction,
    sealer: &Sealer,
    ledger: LedgerId,
    entry: &Entry,
) -> Result<(), StorageError> {
    let head = Head {
        ledger,
        sequence: entry.sequence() + 1,
        entry_hash: entry.hash(),
    };
    let head = postcard::to_stdvec(&head).expect("postcard encodes a head");
    let sealed = sealer.seal(&entry_aad(entry.sequence()), &Zeroizing::new(entry.to_bytes()))?;
    let mut table = write.open_table(LEDGER).map_err(StorageError::database)?;
    table
        .insert(entry.sequence(), sealed.as_slice())
        .map_err(StorageError::database)?;
    write_meta(write, "head", &sealer.seal(HEAD_LABEL, &head)?)
}

fn entry_aad(sequence: u64) -> Vec<u8> {
    [ENTRY_LABEL, &sequence.to_le_bytes()[..]].concat()
}

const LEDGER_PURPOSE: &str = "bastionai/v1/vault/ledger";
const ENTRY_LABEL: &[u8] = b"entry\0";
const HEAD_LABEL: &[u8] = b"head\0";
