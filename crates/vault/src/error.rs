//! What can go wrong, by operation.

use bastionai_ledger::{ChainError, DatasetId, Refusal, RunId};
use std::io;

/// The storage below failed, or had failed before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The database failed while writing. Whether its last transaction is durable is unknown, so nothing
    /// more is written until it is opened again.
    #[error("the vault's database failed: {0}; free space or repair the disk, then restart the server")]
    Database(#[source] Box<redb::Error>),
    /// An earlier write failed.
    #[error("the vault refuses writes since an earlier one failed; restart the server once the disk is well")]
    Poisoned,
    /// The block store failed.
    #[error("the block store failed to {action}: {source}")]
    Blocks {
        /// What was tried.
        action: &'static str,
        /// The store's error.
        source: io::Error,
    },
    /// The vault's directory cannot be used.
    #[error("the vault's directory cannot be used: failed to {action}: {source}")]
    Files {
        /// What was tried.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The random generator failed.
    #[error("the system's random generator failed")]
    Random,
    /// A stored value does not open: it was changed, swapped, or sealed under another key.
    #[error("{what} does not open: it was changed, exchanged or cut short on disk")]
    Sealed {
        /// Which value.
        what: &'static str,
    },
    /// A stored value is missing.
    #[error("{what} is missing on disk")]
    Missing {
        /// Which value.
        what: &'static str,
    },
}

/// Why a vault does not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open.
    #[error("the vault is open in another process; stop that server first")]
    InUse,
    /// Written by a newer program.
    #[error("the vault has format version {found}, this program knows up to {FORMAT_VERSION}; update it")]
    NewerFormat {
        /// Version found.
        found: u32,
    },
    /// There are blocks, and no database that says what they are.
    #[error(
        "the vault's directory holds blocks/ but no vault.redb: its database is lost or elsewhere; restore it beside blocks/, \
         or move blocks/ away to begin a new vault. Nothing was deleted"
    )]
    DatabaseMissing,
    /// Not one of our databases.
    #[error("the database is not a vault: {what}")]
    NotAVault {
        /// What is missing or odd.
        what: &'static str,
    },
    /// The root key is another one than the vault was made with.
    #[error("the root key does not open this vault: give the key it was created with")]
    WrongRootKey,
    /// The chain is not what its writer left.
    #[error("the vault's ledger is not intact: {0}")]
    Chain(#[from] ChainError),
    /// An entry that does not decode.
    #[error("ledger entry {sequence} does not decode: {source}")]
    Entry {
        /// Where.
        sequence: u64,
        /// Why.
        source: bastionai_ledger::EntryError,
    },
    /// Entries are missing at the end, or added.
    #[error(
        "the vault's ledger has {found} entries, its head names {expected}: it was cut short or rolled back in part"
    )]
    Truncated {
        /// Entries the head names.
        expected: u64,
        /// Entries found.
        found: u64,
    },
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why a ledger step was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransactError {
    /// The ledger's rules refuse it; nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The storage failed. When the vault is poisoned by it, the step may or may not be found durable after a
    /// restart; it has not taken effect before.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why an upload was refused or broke off. Nothing of it is visible then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// The ledger's rules refuse the dataset.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Records without columns, or so long that they cannot be stored.
    #[error("a record has between 1 and {MAX_RECORD_BYTES} bytes in between 1 and {MAX_COLUMNS} columns")]
    RecordLength,
    /// Too large to address.
    #[error("the declared size is too large to be stored")]
    DeclaredSize,
    /// A batch without all columns.
    #[error("a batch has {found} columns, the contract {expected}")]
    ColumnCount {
        /// Columns of the contract.
        expected: usize,
        /// Columns sent.
        found: usize,
    },
    /// A column of the wrong length.
    #[error("column {column} of the batch has {found} bytes, {expected} are due")]
    ColumnLength {
        /// Index of the column.
        column: usize,
        /// Bytes due: rows times the bytes of one element of the column.
        expected: u64,
        /// Bytes sent.
        found: u64,
    },
    /// More records than declared: said to the owner alone, who knows both numbers (rule D10).
    #[error("more records were sent than the declared size {declared_size}; declare a larger size class")]
    TooManyRows {
        /// The declared size.
        declared_size: u64,
    },
    /// The total does not match what was sent.
    #[error("{received} records arrived, the sender counted {sent}: the upload is incomplete")]
    RowCount {
        /// Records received.
        received: u64,
        /// Records the sender counted.
        sent: u64,
    },
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why a run that an earlier boot left open cannot go on. Then it is settled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotResumable {
    /// Nothing was kept that it could go on with: it was reserved by a program that resumed no runs.
    #[error("nothing was kept that it could go on with")]
    NoOrder,
    /// The program, its configuration or its trainer is another than the run was agreed for (rule A11).
    #[error(
        "the server's program, configuration, trainer or libraries are not those the run was agreed for (rule A11): \
         let runs end before changing them"
    )]
    OtherConditions,
    /// It was written by another version of this program.
    #[error("{what} has version {found}, this program reads version {expected}")]
    Version {
        /// Which value.
        what: &'static str,
        /// Version found.
        found: u32,
        /// Version of this program.
        expected: u32,
    },
    /// The storage failed, or what it returned does not open.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why stored data was not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No such dataset.
    #[error("there is no dataset {dataset}")]
    NoDataset {
        /// The id.
        dataset: DatasetId,
    },
    /// Its keys were destroyed when its owner removed it.
    #[error("dataset {dataset} was removed by its owner: its keys are destroyed")]
    Removed {
        /// The id.
        dataset: DatasetId,
    },
    /// No result is stored for this run.
    #[error("run {run} has no stored weights")]
    NoWeights {
        /// The run.
        run: RunId,
    },
    /// The run kept no such set of weights.
    #[error("run {run} kept no {} of step {step}", if *ema { "average" } else { "weights" })]
    NotKept {
        /// The run.
        run: RunId,
        /// The step asked for.
        step: u64,
        /// Whether the average was asked for.
        ema: bool,
    },
    /// The storage failed, or what it returned does not open.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why a run could not be advanced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdvanceError {
    /// Values and steps do not belong together.
    #[error("released values must have rising steps, none above the step that is released")]
    Steps,
    /// Descriptions and bytes of kept weights disagree.
    #[error("kept weights do not have the bytes that their tensors add up to")]
    WeightBytes,
    /// The step was not taken.
    #[error(transparent)]
    Transact(#[from] TransactError),
}

/// Why a run could not be committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// Descriptions and bytes disagree.
    #[error("the weights have {found} bytes, their tensors add up to {expected}")]
    WeightBytes {
        /// Sum over the tensors.
        expected: u64,
        /// Bytes given.
        found: u64,
    },
    /// The step was not taken.
    #[error(transparent)]
    Transact(#[from] TransactError),
}

/// Why weights were not released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// They could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The release was not entered in the ledger.
    #[error(transparent)]
    Transact(#[from] TransactError),
}

macro_rules! storage_error_through_transact {
    ($($name:ident),*) => {$(
        impl From<StorageError> for $name {
            fn from(error: StorageError) -> Self {
                Self::Transact(TransactError::Storage(error))
            }
        }
        impl From<Refusal> for $name {
            fn from(refusal: Refusal) -> Self {
                Self::Transact(TransactError::Refused(refusal))
            }
        }
    )*};
}
storage_error_through_transact!(AdvanceError, CommitError, ReleaseError);

impl From<TransactError> for UploadError {
    fn from(error: TransactError) -> Self {
        match error {
            TransactError::Refused(refusal) => Self::Refused(refusal),
            TransactError::Storage(error) => Self::Storage(error),
        }
    }
}

impl StorageError {
    pub(crate) fn database(error: impl Into<redb::Error>) -> Self {
        Self::Database(Box::new(error.into()))
    }

    pub(crate) fn blocks(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Blocks { action, source }
    }
}

/// Newest vault format this program reads and the one it writes.
pub const FORMAT_VERSION: u32 = 2;
/// Oldest vault format this program reads; it is brought up to [`FORMAT_VERSION`] when it is opened.
pub const OLDEST_FORMAT: u32 = 1;
/// Longest record.
pub const MAX_RECORD_BYTES: u64 = 1 << 30;
/// Most columns.
pub const MAX_COLUMNS: usize = 4096;
