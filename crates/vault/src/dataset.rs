//! Stored datasets: their sealed records, reading them back whole, withdrawing and erasing them.

use crate::block::{BlockHeader, BlockPlace, Layout};
use crate::blocks::ObjectId;
use crate::crypto::{BlockSealer, Sealer, Secret};
use crate::database::{DATASETS, KEYS, remove};
use crate::error::{ReadError, StorageError, TransactError};
use crate::vault::Vault;
use bastionai_ledger::{DatasetId, Digest32, Principal};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A dataset's records in clear, padded to the declared size; wiped on drop. Stays in the TEE.
pub struct DatasetRows {
    /// Records; rows past this are zero. Private: not in logs, errors, timings or names (rule D10).
    pub rows: u64,
    /// Rows of every column below.
    pub declared_size: u64,
    /// One per contract column: `declared_size` × bytes of one element, row-major.
    pub columns: Vec<Zeroizing<Vec<u8>>>,
}

/// What is needed to read a dataset, sealed under its key. Its length must not depend on the row count:
/// `rows` is stored with fixed length.
#[derive(Serialize, Deserialize)]
pub(crate) struct DatasetRecord {
    pub(crate) object: [u8; 16],
    pub(crate) rows: [u8; 8],
    pub(crate) layout: Layout,
    pub(crate) segments: Vec<SegmentRecord>,
}

/// The key of one segment.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub(crate) struct SegmentRecord {
    key: [u8; 32],
}

/// SHA-256 over a label and the SHA-256 of each stored block in order: a dataset's version root (rule A11).
pub(crate) struct VersionRoot(Sha256);

impl Vault {
    /// Reads a whole dataset, always every block in order: the access pattern says nothing (rule D8).
    ///
    /// A withdrawn dataset still opens, for the runs that started before (rule D7).
    ///
    /// # Errors
    /// [`ReadError`]: unknown, removed, or stored bytes that do not open.
    pub fn read_dataset(&self, dataset: &DatasetId) -> Result<DatasetRows, ReadError> {
        let known = self.read(|ledger| {
            ledger.dataset(dataset).map(|found| {
                (
                    found.policy_digest(),
                    found.root(),
                    found.blocks(),
                    found.is_withdrawn(),
                    found.is_removed(),
                )
            })
        });
        let (policy_digest, root, blocks, withdrawn, removed) =
            known.ok_or(ReadError::NoDataset { dataset: *dataset })?;
        if removed || (withdrawn && self.was_erased_at_withdrawal(dataset)?) {
            return Err(ReadError::Removed { dataset: *dataset });
        }
        let record = self.dataset_record(dataset, &policy_digest)?;
        if record.layout.blocks() != blocks {
            return Err(sealed("a dataset record").into());
        }
        Ok(self.read_blocks(dataset, policy_digest, &record, root)?)
    }

    /// Withdraws a dataset: no run starts on it any more. Runs that have started go on with its records, which
    /// stay (rule D7).
    ///
    /// # Errors
    /// [`TransactError`].
    pub fn withdraw_dataset(
        &self,
        dataset: &DatasetId,
        by: Principal,
        now_unix_ms: u64,
    ) -> Result<(), TransactError> {
        self.transact(|ledger| ledger.propose_withdrawal(*dataset, by, now_unix_ms))
            .map(drop)
    }

    /// Erases a dataset: its key is destroyed with the ledger entry, then its blocks are deleted. Erasure is best
    /// effort at freshness level `none` (rule A8).
    ///
    /// # Errors
    /// [`TransactError`], also while a run that is not over uses it. Blocks that could not be deleted are swept at
    /// the next open.
    pub fn remove_dataset(
        &self,
        dataset: &DatasetId,
        by: Principal,
        now_unix_ms: u64,
    ) -> Result<(), TransactError> {
        let policy_digest = self.read(|ledger| ledger.dataset(dataset).map(|found| found.policy_digest()));
        let record = policy_digest.and_then(|digest| self.dataset_record(dataset, &digest).ok());
        self.transact_with(
            |ledger| ledger.propose_removal(*dataset, by, now_unix_ms),
            |write, _| {
                remove(write, KEYS, dataset.as_bytes())?;
                remove(write, DATASETS, dataset.as_bytes())
            },
        )?;
        if let Some(record) = record {
            // The removal is durable; ciphertext without a key is only litter, swept at the next open.
            drop(self.inner.blocks.delete(ObjectId(record.object)));
        }
        Ok(())
    }

    /// Version 0.1.0 destroyed a dataset's key when it was withdrawn, and had no other removal.
    fn was_erased_at_withdrawal(&self, dataset: &DatasetId) -> Result<bool, StorageError> {
        Ok(self.inner.store.get(KEYS, dataset.as_bytes())?.is_none())
    }

    pub(crate) fn dataset_record(
        &self,
        dataset: &DatasetId,
        policy_digest: &Digest32,
    ) -> Result<DatasetRecord, StorageError> {
        let store = &self.inner.store;
        let wrapped = store
            .get(KEYS, dataset.as_bytes())?
            .ok_or(StorageError::Missing {
                what: "a dataset key",
            })?;
        let key = store
            .wrapper
            .open(&key_aad(dataset, policy_digest), &wrapped, "a dataset key")?;
        let key: Secret = Zeroizing::new(key.as_slice().try_into().map_err(|_| sealed("a dataset key"))?);
        let record = store
            .get(DATASETS, dataset.as_bytes())?
            .ok_or(StorageError::Missing {
                what: "a dataset record",
            })?;
        let record =
            Sealer::new(&key).open(&record_aad(dataset, policy_digest), &record, "a dataset record")?;
        postcard::from_bytes(&record).map_err(|_| sealed("a dataset record"))
    }

    fn read_blocks(
        &self,
        dataset: &DatasetId,
        policy_digest: Digest32,
        record: &DatasetRecord,
        expected_root: Digest32,
    ) -> Result<DatasetRows, StorageError> {
        let layout = &record.layout;
        let mut rows = DatasetRows::empty(layout, u64::from_le_bytes(record.rows));
        let mut root = VersionRoot::default();
        let mut sealer = None;
        for block in 0..layout.blocks() {
            let (segment, index) = layout.place(block);
            if index == 0 {
                let segment = record
                    .segments
                    .get(segment as usize)
                    .ok_or_else(|| sealed("a dataset record"))?;
                sealer = Some(BlockSealer::new(&Zeroizing::new(segment.key)));
            }
            let sealer = sealer.as_ref().expect("block 0 has index 0");
            let stored = self
                .inner
                .blocks
                .get(ObjectId(record.object), block, layout.stored_bytes());
            let mut stored = Zeroizing::new(stored.map_err(StorageError::blocks("read a block"))?);
            root.update(&stored);
            let place = BlockPlace {
                dataset: *dataset,
                policy_digest,
                segment,
                index,
            };
            let (header, chunks) = place.open(sealer, &mut stored).ok_or_else(|| sealed("a block"))?;
            rows.take_block(layout, block, header, chunks)
                .ok_or_else(|| sealed("a block"))?;
        }
        if root.digest() == expected_root {
            Ok(rows)
        } else {
            Err(sealed("a dataset"))
        }
    }

    /// Objects named by durable transactions.
    pub(crate) fn dataset_objects(&self) -> Result<Vec<ObjectId>, StorageError> {
        let datasets = self.read(|ledger| {
            let live = ledger.datasets().filter(|dataset| !dataset.is_removed());
            live.map(|dataset| (dataset.id(), dataset.policy_digest(), dataset.is_withdrawn()))
                .collect::<Vec<_>>()
        });
        let mut objects = Vec::new();
        for (id, policy, withdrawn) in &datasets {
            if !(*withdrawn && self.was_erased_at_withdrawal(id)?) {
                objects.push(ObjectId(self.dataset_record(id, policy)?.object));
            }
        }
        Ok(objects)
    }
}

impl DatasetRows {
    fn empty(layout: &Layout, rows: u64) -> Self {
        let column = |bytes: &u64| Zeroizing::new(vec![0; (layout.declared_size * bytes) as usize]);
        Self {
            rows,
            declared_size: layout.declared_size,
            columns: layout.column_bytes.iter().map(column).collect(),
        }
    }

    /// `None` when the header contradicts the layout.
    fn take_block(&mut self, layout: &Layout, block: u64, header: BlockHeader, chunks: &[u8]) -> Option<()> {
        let first = block * layout.rows_per_block;
        let records = self.rows.saturating_sub(first).min(layout.rows_per_block);
        let expected = BlockHeader {
            columns: layout.column_bytes.len() as u32,
            first_unit: first,
            capacity: layout.rows_per_block,
            records,
        };
        if header != expected {
            return None;
        }
        let rows = (layout.declared_size - first).min(layout.rows_per_block);
        let mut rest = chunks;
        for (column, bytes) in self.columns.iter_mut().zip(&layout.column_bytes) {
            let (chunk, tail) = rest.split_at_checked((layout.rows_per_block * bytes) as usize)?;
            let [at, length] = [first, rows].map(|rows| (rows * bytes) as usize);
            column[at..at + length].copy_from_slice(&chunk[..length]);
            rest = tail;
        }
        rest.is_empty().then_some(())
    }
}

/// Says nothing about the rows.
impl fmt::Debug for DatasetRows {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "DatasetRows({} columns, declared size {})",
            self.columns.len(),
            self.declared_size
        )
    }
}

impl DatasetRecord {
    pub(crate) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(postcard::to_stdvec(self).expect("postcard encodes every field type of DatasetRecord"))
    }
}

impl SegmentRecord {
    pub(crate) fn new(key: &Secret) -> Self {
        Self { key: **key }
    }
}

impl Default for VersionRoot {
    fn default() -> Self {
        Self(Sha256::new_with_prefix(ROOT_LABEL))
    }
}

impl VersionRoot {
    pub(crate) fn update(&mut self, stored_block: &[u8]) {
        self.0.update(Sha256::digest(stored_block));
    }

    pub(crate) fn digest(&self) -> Digest32 {
        Digest32::from_bytes(self.0.clone().finalize().into())
    }
}

pub(crate) fn key_aad(dataset: &DatasetId, policy_digest: &Digest32) -> Vec<u8> {
    [KEY_LABEL, dataset.as_bytes(), policy_digest.as_bytes()].concat()
}

pub(crate) fn record_aad(dataset: &DatasetId, policy_digest: &Digest32) -> Vec<u8> {
    [RECORD_LABEL, dataset.as_bytes(), policy_digest.as_bytes()].concat()
}

fn sealed(what: &'static str) -> StorageError {
    StorageError::Sealed { what }
}

const KEY_LABEL: &[u8] = b"dataset-key\0";
const RECORD_LABEL: &[u8] = b"dataset-record\0";
const ROOT_LABEL: &[u8] = b"bastionai/v1/dataset-root\0";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RootKey, UploadHeader, VaultConfig};
    use bastionai_ledger::{Composition, DatasetKind, Freshness, MayTrain, Policy, RunLimits};

    /// The root in the ledger holds even against whoever has the segment key.
    #[test]
    fn a_block_resealed_under_its_own_key_is_not_the_dataset_of_the_ledger() {
        let directory = tempfile::tempdir().unwrap();
        let root = RootKey::from_bytes([1; 32]);
        let vault = Vault::open(directory.path(), &root, VaultConfig::default(), 0).unwrap();
        let policy = Policy {
            lifetime: None,
            composition: Composition::Basic,
            may_train: MayTrain::Anyone,
            recipients: [].into(),
            scientist_receives: true,
            require_hardened: false,
            expires_unix_ms: None,
            freshness: Freshness::None,
            limits: RunLimits::default(),
        };
        let mut upload = vault
            .begin_upload(UploadHeader {
                name: "a".into(),
                kind: DatasetKind::Public,
                owner: Principal::from_bytes([1; 32]),
                contract_json: "{}".into(),
                declared_size: 2,
                column_bytes: vec![3],
                policy: policy.clone(),
            })
            .unwrap();
        upload.push(2, &[b"abcdef"]).unwrap();
        let dataset = upload.finish(2, 0).unwrap();
        let record = vault.dataset_record(&dataset, &policy.digest()).unwrap();
        let place = BlockPlace {
            dataset,
            policy_digest: policy.digest(),
            segment: 0,
            index: 0,
        };
        let header = BlockHeader {
            columns: 1,
            first_unit: 0,
            capacity: 2,
            records: 2,
        };
        let sealer = BlockSealer::new(&Zeroizing::new(record.segments[0].key));
        let reseal = |rows: &[u8]| {
            let block = place.seal(&sealer, header, &[rows]);
            vault
                .inner
                .blocks
                .put(ObjectId(record.object), 0, &block)
                .unwrap();
            vault.read_dataset(&dataset)
        };
        assert_eq!(*reseal(b"abcdef").unwrap().columns[0], b"abcdef");
        let error = reseal(b"abcdeX").unwrap_err();
        assert!(
            matches!(
                error,
                ReadError::Storage(StorageError::Sealed { what: "a dataset" })
            ),
            "{error}"
        );
    }
}
