//! Uploads: begin → push … → finish. Blocks first, then one transaction with keys and ledger entry: before it,
//! nothing of an upload can be seen; after it, everything is there.

use crate::block::Layout;
use crate::block_writer::{BlockWriter, FilledBlock, Sealing};
use crate::blocks::ObjectId;
use crate::crypto::{Sealer, Secret, random_bytes, random_secret};
use crate::database::{DATASETS, Id, KEYS, insert};
use crate::dataset::{DatasetRecord, SegmentRecord, key_aad, record_aad};
use crate::error::{StorageError, UploadError};
use crate::vault::Vault;
use bastionai_ledger::{DatasetCreated, DatasetId, DatasetKind, Digest32, Policy, Principal};
use std::fmt;
use zeroize::Zeroizing;

/// What an owner declares before the first record.
#[derive(Clone, Debug)]
pub struct UploadHeader {
    /// Unique name.
    pub name: String,
    /// Private, public or synthetic.
    pub kind: DatasetKind,
    /// Who uploads.
    pub owner: Principal,
    /// The data contract, canonical JSON.
    pub contract_json: String,
    /// The contract's declared size.
    pub declared_size: u64,
    /// Bytes of one record in each column of the contract, in order.
    pub column_bytes: Vec<u64>,
    /// The owner's terms.
    pub policy: Policy,
}

/// An upload under way; dropped before [`Upload::finish`], nothing of it remains.
pub struct Upload {
    vault: Vault,
    created: DatasetCreated,
    policy_digest: Digest32,
    layout: Layout,
    object: ObjectId,
    key: Secret,
    /// From the first full block on.
    writer: Option<BlockWriter>,
    /// The block being filled, one chunk per column, of full capacity; rows past `filled` are zero.
    chunks: Vec<Zeroizing<Vec<u8>>>,
    filled: u64,
    rows: u64,
    /// Blocks handed to the writer.
    blocks: u64,
    /// Cleared once a transaction may name the object.
    abandon_on_drop: bool,
}

impl Vault {
    /// Begins an upload, having checked everything that can be checked before the data.
    ///
    /// # Errors
    /// [`UploadError`]: refused by the ledger's rules (name taken, policy), or a layout that cannot be stored.
    pub fn begin_upload(&self, header: UploadHeader) -> Result<Upload, UploadError> {
        let config = self.inner.config;
        let layout = Layout::plan(
            header.declared_size,
            &header.column_bytes,
            config.block_bytes,
            config.blocks_per_segment,
        )?;
        let created = DatasetCreated {
            dataset: DatasetId::from_bytes(random_bytes()?),
            name: header.name,
            kind: header.kind,
            owner: header.owner,
            contract_json: header.contract_json,
            declared_size: header.declared_size,
            policy: header.policy,
            blocks: layout.blocks(),
            root: Digest32::of(&[]), // known at the end
        };
        self.read(|ledger| ledger.check_new_dataset(&created))?;
        if self.is_poisoned() {
            return Err(StorageError::Poisoned.into());
        }
        Ok(Upload {
            vault: self.clone(),
            policy_digest: created.policy.digest(),
            created,
            object: ObjectId(random_bytes()?),
            key: random_secret()?,
            writer: None,
            chunks: empty_chunks(&layout),
            layout,
            filled: 0,
            rows: 0,
            blocks: 0,
            abandon_on_drop: true,
        })
    }
}

impl Upload {
    /// The id the dataset will have.
    pub fn dataset(&self) -> DatasetId {
        self.created.dataset
    }

    /// Adds `rows` records, given column by column.
    ///
    /// # Errors
    /// [`UploadError`]; the upload should then be dropped.
    pub fn push(&mut self, rows: u64, columns: &[impl AsRef<[u8]>]) -> Result<(), UploadError> {
        self.check_batch(rows, columns)?;
        let mut taken = 0;
        while taken < rows {
            let count = (rows - taken).min(self.layout.rows_per_block - self.filled);
            for ((chunk, column), bytes) in self.chunks.iter_mut().zip(columns).zip(&self.layout.column_bytes)
            {
                let [to, from, length] = [self.filled, taken, count].map(|rows| (rows * bytes) as usize);
                chunk[to..to + length].copy_from_slice(&column.as_ref()[from..from + length]);
            }
            taken += count;
            self.filled += count;
            self.rows += count;
            if self.filled == self.layout.rows_per_block {
                self.store_block()?;
            }
        }
        Ok(())
    }

    fn check_batch(&self, rows: u64, columns: &[impl AsRef<[u8]>]) -> Result<(), UploadError> {
        let widths = &self.layout.column_bytes;
        if columns.len() != widths.len() {
            return Err(UploadError::ColumnCount {
                expected: widths.len(),
                found: columns.len(),
            });
        }
        let declared_size = self.layout.declared_size;
        if rows > declared_size - self.rows {
            return Err(UploadError::TooManyRows { declared_size });
        }
        for (column, (bytes, width)) in columns.iter().zip(widths).enumerate() {
            let (expected, found) = (rows * width, bytes.as_ref().len() as u64);
            if expected != found {
                return Err(UploadError::ColumnLength {
                    column,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }

    /// Pads to the declared size, makes every block durable, then enters the dataset in the ledger.
    /// `sent` is the sender's count of records.
    ///
    /// # Errors
    /// [`UploadError::RowCount`], [`UploadError::Refused`] when the name was taken meanwhile,
    /// [`UploadError::Storage`]. The dataset does not exist then (after a failed database write: unless a
    /// restart finds it durable and complete).
    pub fn finish(mut self, sent: u64, now_unix_ms: u64) -> Result<DatasetId, UploadError> {
        if self.rows != sent {
            return Err(UploadError::RowCount {
                received: self.rows,
                sent,
            });
        }
        while self.blocks < self.layout.blocks() {
            self.store_block()?;
        }
        let written = self.writer()?.finish()?;
        self.vault
            .inner
            .blocks
            .sync(self.object)
            .map_err(StorageError::blocks("sync"))?;
        self.created.root = written.root.digest();
        let (id, wrapped_key, record) = self.sealed_records(written.segments)?;
        let (vault, created) = (self.vault.clone(), self.created.clone());
        let abandon_on_drop = &mut self.abandon_on_drop;
        vault.transact_with(
            |ledger| ledger.propose_dataset(created, now_unix_ms),
            |write, _| {
                *abandon_on_drop = false;
                insert(write, KEYS, &id, &wrapped_key)?;
                insert(write, DATASETS, &id, &record)
            },
        )?;
        Ok(self.created.dataset)
    }

    fn sealed_records(&self, segments: Vec<SegmentRecord>) -> Result<(Id, Vec<u8>, Vec<u8>), StorageError> {
        let dataset = self.created.dataset;
        let record = DatasetRecord {
            object: self.object.0,
            rows: self.rows.to_le_bytes(),
            layout: self.layout.clone(),
            segments,
        };
        let wrapped = self
            .vault
            .inner
            .store
            .wrapper
            .seal(&key_aad(&dataset, &self.policy_digest), self.key.as_slice())?;
        let sealed =
            Sealer::new(&self.key).seal(&record_aad(&dataset, &self.policy_digest), &record.to_bytes())?;
        Ok((*dataset.as_bytes(), wrapped, sealed))
    }

    fn store_block(&mut self) -> Result<(), StorageError> {
        let block = FilledBlock {
            chunks: std::mem::replace(&mut self.chunks, empty_chunks(&self.layout)),
            records: std::mem::take(&mut self.filled),
        };
        self.blocks += 1;
        self.writer()?.put(block)
    }

    fn writer(&mut self) -> Result<&mut BlockWriter, StorageError> {
        if self.writer.is_none() {
            let sealing = Sealing::new(
                self.vault.clone(),
                self.created.dataset,
                self.policy_digest,
                self.layout.clone(),
                self.object,
            );
            self.writer = Some(BlockWriter::start(sealing)?);
        }
        Ok(self.writer.as_mut().expect("it was made just now"))
    }
}

fn empty_chunks(layout: &Layout) -> Vec<Zeroizing<Vec<u8>>> {
    let chunk = |bytes: &u64| Zeroizing::new(vec![0; (bytes * layout.rows_per_block) as usize]);
    layout.column_bytes.iter().map(chunk).collect()
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        writer.abandon();
        if self.abandon_on_drop {
            // Best effort: what stays is sealed under a key that is gone now, and is swept at the next open.
            drop(self.vault.inner.blocks.delete(self.object));
        }
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Upload({})", self.created.dataset)
    }
}
