//! Trained weights at rest: sealed in blocks under a key of their own, named by one sealed record.

use crate::blocks::ObjectId;
use crate::database::{RESULTS, insert};
use crate::error::{CommitError, ReadError, StorageError};
use crate::objects::{NewObject, ObjectKey};
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
    object: ObjectKey,
    #[zeroize(skip)]
    tensors: Vec<WeightTensor>,
}

/// Weights that are durable but not yet named; dropped before [`StoredResult::enter`], they are deleted.
pub(crate) struct StoredResult<'vault> {
    run: RunId,
    object: NewObject<'vault>,
    sealed_record: Vec<u8>,
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
        let object = NewObject::write(vault, &object_aad(&run), &[&weights.data])?;
        let record = ResultRecord {
            object: object.key().clone(),
            tensors: weights.tensors.clone(),
        };
        let plain = Zeroizing::new(
            postcard::to_stdvec(&record).expect("postcard encodes every field type of ResultRecord"),
        );
        let sealed_record = vault.inner.store.records.seal(&record_aad(&run), &plain)?;
        Ok(Self {
            run,
            object,
            sealed_record,
        })
    }

    /// Names the blocks in the transaction that commits the run.
    pub(crate) fn enter(&mut self, write: &WriteTransaction) -> Result<(), StorageError> {
        self.object.named();
        insert(write, RESULTS, self.run.as_bytes(), &self.sealed_record)
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
        Ok(Weights {
            tensors: record.tensors.clone(),
            data: self.read_object(&record.object, &object_aad(run), "a result block")?,
        })
    }

    fn result_objects(&self) -> Result<Vec<ObjectId>, StorageError> {
        let results = self.inner.store.all(RESULTS)?;
        results
            .iter()
            .map(|(run, _)| {
                self.result_record(&RunId::from_bytes(*run))
                    .map(|record| record.object.id())
            })
            .collect()
    }

    /// Every object that a durable transaction names.
    pub(crate) fn named_objects<Objects: FromIterator<ObjectId>>(&self) -> Result<Objects, StorageError> {
        Ok(self
            .dataset_objects()?
            .into_iter()
            .chain(self.result_objects()?)
            .chain(self.open_run_objects()?)
            .collect())
    }
}

fn record_aad(run: &RunId) -> Vec<u8> {
    [RECORD_LABEL, run.as_bytes()].concat()
}

fn object_aad(run: &RunId) -> Vec<u8> {
    [BLOCK_LABEL, run.as_bytes()].concat()
}

const RECORD_LABEL: &[u8] = b"run-result\0";
const BLOCK_LABEL: &[u8] = b"bastionai/v1/run-weights\0";
