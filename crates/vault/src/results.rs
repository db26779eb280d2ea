//! Trained weights at rest: sealed in blocks under a key of their own, named by one sealed record.

use crate::blocks::ObjectId;
use crate::database::{KEPT, RESULTS, insert};
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
    place: Place,
    object: NewObject<'vault>,
    sealed_record: Vec<u8>,
}

/// Which weights of which run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Those of the last step.
    Last(RunId),
    /// Those kept on the way.
    Kept { run: RunId, step: u64, ema: bool },
}

impl Place {
    /// From a key of the table of kept weights.
    pub(crate) fn from_key(run: RunId, key: u64) -> Self {
        Self::Kept {
            run,
            step: key >> 1,
            ema: key & 1 == 1,
        }
    }

    fn record_aad(&self) -> Vec<u8> {
        match self {
            Self::Last(run) => [RECORD_LABEL, run.as_bytes()].concat(),
            Self::Kept { run, step, ema } => [
                KEPT_RECORD_LABEL,
                run.as_bytes(),
                &kept_key(*step, *ema).to_le_bytes(),
            ]
            .concat(),
        }
    }

    fn object_aad(&self) -> Vec<u8> {
        match self {
            Self::Last(run) => [BLOCK_LABEL, run.as_bytes()].concat(),
            Self::Kept { run, step, ema } => [
                KEPT_BLOCK_LABEL,
                run.as_bytes(),
                &kept_key(*step, *ema).to_le_bytes(),
            ]
            .concat(),
        }
    }
}

/// Steps are below 2^63: a run of more would not end.
fn kept_key(step: u64, ema: bool) -> u64 {
    (step << 1) | u64::from(ema)
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
    pub(crate) fn write(vault: &'vault Vault, place: Place, weights: &Weights) -> Result<Self, StorageError> {
        let object = NewObject::write(vault, &place.object_aad(), &[&weights.data])?;
        let record = ResultRecord {
            object: object.key().clone(),
            tensors: weights.tensors.clone(),
        };
        let plain = Zeroizing::new(
            postcard::to_stdvec(&record).expect("postcard encodes every field type of ResultRecord"),
        );
        let sealed_record = vault.inner.store.records.seal(&place.record_aad(), &plain)?;
        Ok(Self {
            place,
            object,
            sealed_record,
        })
    }

    /// Names the blocks in the transaction that commits the run, or advances it past the step they are kept at.
    pub(crate) fn enter(&mut self, write: &WriteTransaction) -> Result<(), StorageError> {
        self.object.named();
        match self.place {
            Place::Last(run) => insert(write, RESULTS, run.as_bytes(), &self.sealed_record),
            Place::Kept { run, step, ema } => {
                let mut table = write.open_table(KEPT).map_err(StorageError::database)?;
                let key = (*run.as_bytes(), kept_key(step, ema));
                table
                    .insert(key, &self.sealed_record[..])
                    .map_err(StorageError::database)?;
                Ok(())
            }
        }
    }
}

impl Vault {
    /// The weights of a run, checked against the ledger's digest. Only [`Vault::release_weights`] hands them out.
    pub(crate) fn read_weights(&self, run: &RunId) -> Result<Weights, ReadError> {
        let expected = self.read(|ledger| ledger.run(run).and_then(|run| run.weights_digest()));
        let expected = expected.ok_or(ReadError::NoWeights { run: *run })?;
        self.read_place(&Place::Last(*run), expected)
    }

    /// The weights at a place, which must have this digest.
    pub(crate) fn read_place(&self, place: &Place, expected: Digest32) -> Result<Weights, ReadError> {
        let record = self.result_record(place)?;
        let weights = Weights {
            tensors: record.tensors.clone(),
            data: self.read_object(&record.object, &place.object_aad(), "a result block")?,
        };
        if weights.digest() == expected {
            Ok(weights)
        } else {
            Err(StorageError::Sealed { what: "a result" }.into())
        }
    }

    fn result_record(&self, place: &Place) -> Result<ResultRecord, StorageError> {
        let what = "a result record";
        let store = &self.inner.store;
        let sealed = match place {
            Place::Last(run) => store.get(RESULTS, run.as_bytes())?,
            Place::Kept { run, step, ema } => store.get_kept(run.as_bytes(), kept_key(*step, *ema))?,
        };
        let sealed = sealed.ok_or(StorageError::Missing { what })?;
        let record = store.records.open(&place.record_aad(), &sealed, what)?;
        postcard::from_bytes(&record).map_err(|_| StorageError::Sealed { what })
    }

    /// The object at a place, if its record opens.
    pub(crate) fn place_object(&self, place: &Place) -> Option<ObjectId> {
        self.result_record(place).ok().map(|record| record.object.id())
    }

    fn result_objects(&self) -> Result<Vec<ObjectId>, StorageError> {
        let results = self.inner.store.all(RESULTS)?;
        results
            .iter()
            .map(|(run, _)| {
                self.result_record(&Place::Last(RunId::from_bytes(*run)))
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
            .chain(self.all_kept_objects()?)
            .collect())
    }

    fn all_kept_objects(&self) -> Result<Vec<ObjectId>, StorageError> {
        let keeping = self.read(|ledger| {
            let runs = ledger.runs().filter(|run| !run.kept().is_empty());
            runs.map(bastionai_ledger::Run::id).collect::<Vec<_>>()
        });
        let mut objects = Vec::new();
        for run in keeping {
            objects.extend(self.kept_objects(&run)?);
        }
        Ok(objects)
    }
}

const RECORD_LABEL: &[u8] = b"run-result\0";
const BLOCK_LABEL: &[u8] = b"bastionai/v1/run-weights\0";
const KEPT_RECORD_LABEL: &[u8] = b"run-kept\0";
const KEPT_BLOCK_LABEL: &[u8] = b"bastionai/v1/run-kept-weights\0";
