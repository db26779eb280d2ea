//! What an open run needs to go on in a later boot: its order, from the reservation on, and its last checkpoint. Both
//! go with the entry that ends the run.
//!
//! ```text
//! stored record = version u32 = 1 ‖ sealed postcard(record)
//! order         AAD: "run-order\0" ‖ version ‖ run id ‖ run digest
//! checkpoint    AAD: "run-checkpoint\0" ‖ version ‖ run id ‖ run digest ‖ step
//! ```
//! The data lie in blocks under a key of their own, with the same AAD and the block's index. Integers are
//! little-endian. Run digest and step are the ledger's: a checkpoint of another run, another agreement or another
//! step does not open, and neither does one of another version.

use crate::blocks::ObjectId;
use crate::database::{CHECKPOINTS, Id, ORDERS, insert, remove};
use crate::error::{NotResumable, StorageError, TransactError};
use crate::objects::{NewObject, ObjectKey};
use crate::vault::Vault;
use bastionai_ledger::{Digest32, Entry, Ledger, Proposal, Refusal, RunId, RunReserved};
use redb::{TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Everything that a run needs beside the data it trains on.
#[derive(Clone, Copy)]
pub struct RunOrder<'a> {
    /// Digest of what must be the same in a boot that goes on with it (rule A11).
    pub conditions: Digest32,
    /// Opaque here, stored one after the other.
    pub parts: &'a [&'a [u8]],
}

/// All that the step after `step` depends on beside the order; never randomness (rule D1).
#[derive(Clone, Copy)]
pub struct Checkpoint<'a> {
    /// Steps completed.
    pub step: u64,
    /// Opaque here, stored one after the other.
    pub parts: &'a [&'a [u8]],
}

/// A checkpoint read back.
pub struct StoredCheckpoint {
    /// Steps completed: the last step released, as the ledger says.
    pub step: u64,
    /// The parts, concatenated; wiped on drop.
    pub data: Zeroizing<Vec<u8>>,
}

/// Says nothing about the values.
impl fmt::Debug for StoredCheckpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "StoredCheckpoint(step {}, {} bytes)",
            self.step,
            self.data.len()
        )
    }
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct OrderRecord {
    conditions: [u8; 32],
    object: ObjectKey,
}

/// Durable blocks and the record that will name them.
pub(crate) struct StoredState<'vault> {
    table: TableDefinition<'static, Id, &'static [u8]>,
    run: Id,
    object: NewObject<'vault>,
    record: Vec<u8>,
}

impl<'vault> StoredState<'vault> {
    pub(crate) fn order(
        vault: &'vault Vault,
        reserved: &RunReserved,
        order: &RunOrder<'_>,
    ) -> Result<Self, StorageError> {
        let aad = order_aad(&reserved.run, reserved.run_digest);
        let object = NewObject::write(vault, &aad, order.parts)?;
        let record = OrderRecord {
            conditions: *order.conditions.as_bytes(),
            object: object.key().clone(),
        };
        Self::sealed(vault, ORDERS, reserved.run, object, &aad, &record)
    }

    pub(crate) fn checkpoint(
        vault: &'vault Vault,
        run: &RunId,
        checkpoint: &Checkpoint<'_>,
    ) -> Result<Self, StorageError> {
        let aad = checkpoint_aad(run, vault.run_digest(run), checkpoint.step);
        let object = NewObject::write(vault, &aad, checkpoint.parts)?;
        let key = object.key().clone();
        Self::sealed(vault, CHECKPOINTS, *run, object, &aad, &key)
    }

    fn sealed(
        vault: &Vault,
        table: TableDefinition<'static, Id, &'static [u8]>,
        run: RunId,
        object: NewObject<'vault>,
        aad: &[u8],
        record: &impl Serialize,
    ) -> Result<Self, StorageError> {
        let plain =
            Zeroizing::new(postcard::to_stdvec(record).expect("postcard encodes arrays and integers"));
        let sealed = vault.inner.store.records.seal(aad, &plain)?;
        Ok(Self {
            table,
            run: *run.as_bytes(),
            object,
            record: [&VERSION.to_le_bytes(), &sealed[..]].concat(),
        })
    }

    /// Names the blocks in the transaction that gives them meaning.
    pub(crate) fn enter(&mut self, write: &WriteTransaction) -> Result<(), StorageError> {
        self.object.named();
        insert(write, self.table, &self.run, &self.record)
    }
}

impl Vault {
    /// Whether a run can go on under these conditions, as far as records tell: the data are read when it does.
    ///
    /// # Errors
    /// [`NotResumable`] says why not.
    pub fn check_resumable(&self, run: &RunId, conditions: Digest32) -> Result<(), NotResumable> {
        let order = self.order_record(run)?;
        if order.conditions != *conditions.as_bytes() {
            return Err(NotResumable::OtherConditions);
        }
        if self.last_step(run) > 0 {
            self.checkpoint_key(run)?;
        }
        Ok(())
    }

    /// The parts of a run's order, concatenated.
    ///
    /// # Errors
    /// [`NotResumable`] when there is none or it does not open.
    pub fn read_order(&self, run: &RunId) -> Result<Zeroizing<Vec<u8>>, NotResumable> {
        let record = self.order_record(run)?;
        Ok(self.read_object(
            &record.object,
            &order_aad(run, self.run_digest(run)),
            "a run's order",
        )?)
    }

    /// A run's last checkpoint: none before its first step was released.
    ///
    /// # Errors
    /// [`NotResumable`] when steps were released and there is none, or it does not open: as a checkpoint of this run,
    /// this agreement, this step and this version.
    pub fn read_checkpoint(&self, run: &RunId) -> Result<Option<StoredCheckpoint>, NotResumable> {
        let step = self.last_step(run);
        if step == 0 {
            return Ok(None);
        }
        let key = self.checkpoint_key(run)?;
        let data = self.read_object(&key, &checkpoint_aad(run, self.run_digest(run), step), CHECKPOINT)?;
        Ok(Some(StoredCheckpoint { step, data }))
    }

    /// Takes the step that ends a run without weights; its order, its checkpoint and what it kept go with it (rule D5).
    pub(crate) fn end_run(
        &self,
        run: &RunId,
        propose: impl FnOnce(&Ledger) -> Result<Proposal, Refusal>,
    ) -> Result<Entry, TransactError> {
        let kept = self.kept_objects(run)?;
        let entry = self.end_run_with(run, propose, |write| Self::remove_kept(write, run))?;
        kept.into_iter().for_each(|object| self.delete_object(object));
        Ok(entry)
    }

    /// As [`Vault::end_run`], but for what it kept; what `extra` writes becomes durable in the same transaction.
    pub(crate) fn end_run_with(
        &self,
        run: &RunId,
        propose: impl FnOnce(&Ledger) -> Result<Proposal, Refusal>,
        extra: impl FnOnce(&WriteTransaction) -> Result<(), StorageError>,
    ) -> Result<Entry, TransactError> {
        let objects = self.objects_of(run)?;
        let entry = self.transact_with(propose, |write, _| {
            remove(write, ORDERS, run.as_bytes())?;
            remove(write, CHECKPOINTS, run.as_bytes())?;
            extra(write)
        })?;
        objects.into_iter().for_each(|object| self.delete_object(object));
        Ok(entry)
    }

    /// The objects of all open runs that can be read. One whose record does not open is lost with its key: swept.
    pub(crate) fn open_run_objects(&self) -> Result<Vec<ObjectId>, StorageError> {
        let open = self.read(|ledger| {
            let open = ledger.runs().filter(|run| run.is_open());
            open.map(bastionai_ledger::Run::id).collect::<Vec<_>>()
        });
        let mut objects = Vec::new();
        for run in open {
            objects.extend(self.objects_of(&run)?);
        }
        Ok(objects)
    }

    /// The object of the last checkpoint, if its record opens.
    pub(crate) fn checkpoint_object(&self, run: &RunId) -> Result<Option<ObjectId>, StorageError> {
        Ok(readable(self.checkpoint_key(run))?.map(|key| key.id()))
    }

    fn objects_of(&self, run: &RunId) -> Result<Vec<ObjectId>, StorageError> {
        let order = readable(self.order_record(run))?.map(|record| record.object.id());
        Ok(order.into_iter().chain(self.checkpoint_object(run)?).collect())
    }

    fn order_record(&self, run: &RunId) -> Result<OrderRecord, NotResumable> {
        let stored = self.inner.store.get(ORDERS, run.as_bytes())?;
        let stored = stored.ok_or(NotResumable::NoOrder)?;
        self.open_record(&stored, &order_aad(run, self.run_digest(run)), "a run's order")
    }

    fn checkpoint_key(&self, run: &RunId) -> Result<ObjectKey, NotResumable> {
        let stored = self.inner.store.get(CHECKPOINTS, run.as_bytes())?;
        let stored = stored.ok_or(StorageError::Missing { what: CHECKPOINT })?;
        let aad = checkpoint_aad(run, self.run_digest(run), self.last_step(run));
        self.open_record(&stored, &aad, CHECKPOINT)
    }

    fn open_record<T: for<'de> Deserialize<'de>>(
        &self,
        stored: &[u8],
        aad: &[u8],
        what: &'static str,
    ) -> Result<T, NotResumable> {
        let damaged = || StorageError::Sealed { what };
        let (version, sealed) = stored.split_first_chunk::<4>().ok_or_else(damaged)?;
        let found = u32::from_le_bytes(*version);
        if found != VERSION {
            let expected = VERSION;
            return Err(NotResumable::Version {
                what,
                found,
                expected,
            });
        }
        let plain = self.inner.store.records.open(aad, sealed, what)?;
        Ok(postcard::from_bytes(&plain).map_err(|_| damaged())?)
    }

    /// Nothing is stored for a run that the ledger does not know, so what this says of one does not matter.
    fn run_digest(&self, run: &RunId) -> Digest32 {
        self.read(|ledger| {
            ledger
                .run(run)
                .map_or(Digest32::from_bytes([0; 32]), |run| run.run_digest())
        })
    }

    fn last_step(&self, run: &RunId) -> u64 {
        self.read(|ledger| ledger.run(run).map_or(0, |run| run.released_step()))
    }
}

/// `None` for what is not there or does not open; an error only where the storage itself failed.
fn readable<T>(found: Result<T, NotResumable>) -> Result<Option<T>, StorageError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(NotResumable::Storage(error))
            if !matches!(error, StorageError::Sealed { .. } | StorageError::Missing { .. }) =>
        {
            Err(error)
        }
        Err(_) => Ok(None),
    }
}

fn order_aad(run: &RunId, run_digest: Digest32) -> Vec<u8> {
    [
        ORDER_LABEL,
        &VERSION.to_le_bytes(),
        run.as_bytes(),
        run_digest.as_bytes(),
    ]
    .concat()
}

fn checkpoint_aad(run: &RunId, run_digest: Digest32, step: u64) -> Vec<u8> {
    let (version, step) = (VERSION.to_le_bytes(), step.to_le_bytes());
    [
        CHECKPOINT_LABEL,
        &version,
        run.as_bytes(),
        run_digest.as_bytes(),
        &step,
    ]
    .concat()
}

/// Version of orders and checkpoints.
const VERSION: u32 = 1;
const ORDER_LABEL: &[u8] = b"run-order\0";
const CHECKPOINT_LABEL: &[u8] = b"run-checkpoint\0";
const CHECKPOINT: &str = "a run's checkpoint";
