//! Trained weights at rest: sealed in blocks under a key of their own, named by one sealed record.

use crate::blocks::ObjectId;
use crate::crypto::{BlockSealer, Secret, TAG_BYTES, random_bytes, random_secret};
use crate::database::{RESULTS, insert};
use crate::error::{CommitError, ReadError, StorageError};
use crate::vault::Vault;
use bastionai_ledger::{Digest32, RunId, WeightTensor, weights_digest};
use redb::WriteTransaction;
use serde::{Deserialize, Serialize};
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A run's trained weights.
pub struct Weights {
    /// Descriptions, in order.
    pub tensors: Vec<WeightTensor>,
    /// The tensors' bytes, concatenated, little-endian; wiped on drop.
    pub data: Zeroizing<Vec<u8>>,
}

/// What is needed to read a result back.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct ResultRecord {
    object: [u8; 16],
    key: [u8; 32],
    data_bytes: u64,
    block_bytes: u64,
    #[zeroize(skip)]
    tensors: Vec<WeightTensor>,
}

/// Blocks that are durable but not yet named; dropped before [`StoredResult::enter`], they are deleted.
pub(crate) struct StoredResult<'vault> {
    vault: &'vault Vault,
    run: RunId,
    object: ObjectId,
    sealed_record: Vec<u8>,
    abandon_on_drop: bool,
}

impl Weights {
    /// The digest that ledger, receipt and clients know them by.
    pub fn digest(&self) -> Digest32 {
        weights_digest(&self.tensors, &self.data)
    }

    pub(crate) fn checked_digest(&self) -> Result<Digest32, CommitError> {
        let found = self.data.len() as u64;
        let expected = self
            .tensors
            .iter()
            .try_fold(0u64, |sum, tensor| sum.checked_add(tensor.size_bytes));
        match expected {
            Some(expected) if expected == found => Ok(self.digest()),
            expected => Err(CommitError::WeightBytes {
                expected: expected.unwrap_or(u64::MAX),
                found,
            }),
        }
    }
}

/// Says nothing about the values.
impl fmt::Debug for Weights {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "Weights({} tensors, {} bytes)",
            self.tensors.len(),
            self.data.len()
        )
    }
}

impl<'vault> StoredResult<'vault> {
    pub(crate) fn write(vault: &'vault Vault, run: RunId, weights: &Weights) -> Result<Self, StorageError> {
        let (object, key) = (ObjectId(random_bytes()?), random_secret()?);
        let record = ResultRecord {
            object: object.0,
            key: *key,
            data_bytes: weights.data.len() as u64,
            block_bytes: vault.inner.config.block_bytes.max(1),
            tensors: weights.tensors.clone(),
        };
        let plain = Zeroizing::new(
            postcard::to_stdvec(&record).expect("postcard encodes every field type of ResultRecord"),
        );
        let sealed_record = vault.inner.store.records.seal(&record_aad(&run), &plain)?;
        let stored = Self {
            vault,
            run,
            object,
            sealed_record,
            abandon_on_drop: true,
        };
        stored.write_blocks(&key, &record, &weights.data)?;
        Ok(stored)
    }

    fn write_blocks(&self, key: &Secret, record: &ResultRecord, data: &[u8]) -> Result<(), StorageError> {
        let (sealer, blocks) = (BlockSealer::new(key), &self.vault.inner.blocks);
        for index in 0..record.blocks()? {
            let mut block = data[record.range(index)].to_vec();
            sealer.seal(index, &block_aad(&self.run, index), &mut block);
            blocks
                .put(self.object, u64::from(index), &block)
                .map_err(StorageError::blocks("write a block"))?;
        }
        blocks.sync(self.object).map_err(StorageError::blocks("sync"))
    }

    /// Names the blocks in the transaction that commits the run.
    pub(crate) fn enter(&mut self, write: &WriteTransaction) -> Result<(), StorageError> {
        self.abandon_on_drop = false;
        insert(write, RESULTS, self.run.as_bytes(), &self.sealed_record)
    }
}

impl Drop for StoredResult<'_> {
    fn drop(&mut self) {
        if self.abandon_on_drop {
            // Best effort: the key is gone with this value, and the next open sweeps.
            drop(self.vault.inner.blocks.delete(self.object));
        }
    }
}

impl ResultRecord {
    /// One block at least, so that the object exists even for a model without parameters.
    fn blocks(&self) -> Result<u32, StorageError> {
        let blocks = self.data_bytes.div_ceil(self.block_bytes).max(1);
        u32::try_from(blocks).map_err(|_| StorageError::Sealed {
            what: "a result record",
        })
    }

    fn range(&self, index: u32) -> std::ops::Range<usize> {
        let start = u64::from(index) * self.block_bytes;
        start as usize..(start + self.block_bytes).min(self.data_bytes) as usize
    }
}

impl Vault {
    /// The weights of a run, checked against the ledger's digest. Only [`Vault::release_weights`] hands them out.
    pub(crate) fn read_weights(&self, run: &RunId) -> Result<Weights, ReadError> {
        let expected = self.read(|ledger| ledger.run(run).and_then(|run| run.weights_digest()));
        let expected = expected.ok_or(ReadError::NoWeights { run: *run })?;
        let record = self.result_record(run)?;
        let weights = self.read_result(run, &record)?;
        if weights.digest() == expected {
            Ok(weights)
        } else {
            Err(StorageError::Sealed { what: "a result" }.into())
        }
    }

    fn result_record(&self, run: &RunId) -> Result<ResultRecord, StorageError> {
        let what = "a result record";
        let sealed = self
            .inner
            .store
            .get(RESULTS, run.as_bytes())?
            .ok_or(StorageError::Missing { what })?;
        let record = self.inner.store.records.open(&record_aad(run), &sealed, what)?;
        postcard::from_bytes(&record).map_err(|_| StorageError::Sealed { what })
    }

    fn read_result(&self, run: &RunId, record: &ResultRecord) -> Result<Weights, StorageError> {
        let sealer = BlockSealer::new(&Zeroizing::new(record.key));
        let mut data = Zeroizing::new(Vec::with_capacity(record.data_bytes as usize));
        for index in 0..record.blocks()? {
            let most = record.block_bytes + TAG_BYTES as u64;
            let block = self
                .inner
                .blocks
                .get(ObjectId(record.object), u64::from(index), most);
            let mut block = Zeroizing::new(block.map_err(StorageError::blocks("read a block"))?);
            let length = sealer.open(index, &block_aad(run, index), &mut block);
            let length = length.ok_or(StorageError::Sealed {
                what: "a result block",
            })?;
            data.extend_from_slice(&block[..length]);
        }
        Ok(Weights {
            tensors: record.tensors.clone(),
            data,
        })
    }

    fn result_objects(&self) -> Result<Vec<ObjectId>, StorageError> {
        let results = self.inner.store.all(RESULTS)?;
        results
            .iter()
            .map(|(run, _)| {
                self.result_record(&RunId::from_bytes(*run))
                    .map(|record| ObjectId(record.object))
            })
            .collect()
    }

    /// Every object that a durable transaction names.
    pub(crate) fn named_objects<Objects: FromIterator<ObjectId>>(&self) -> Result<Objects, StorageError> {
        Ok(self
            .dataset_objects()?
            .into_iter()
            .chain(self.result_objects()?)
            .collect())
    }
}

fn record_aad(run: &RunId) -> Vec<u8> {
    [RECORD_LABEL, run.as_bytes()].concat()
}

fn block_aad(run: &RunId, index: u32) -> Vec<u8> {
    [BLOCK_LABEL, run.as_bytes(), &index.to_le_bytes()[..]].concat()
}

const RECORD_LABEL: &[u8] = b"run-result\0";
const BLOCK_LABEL: &[u8] = b"bastionai/v1/run-weights\0";
