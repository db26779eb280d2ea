//! Room for datasets: what is stored and what is being uploaded, in all and per owner, and how much of the disk
//! must stay free so that the ledger can always be written.
//!
//! An upload is padded to its declared size, so that is what counts, from its first message on.

use crate::config::Limits;
use crate::errors::{Failure, Reason};
use bastionai_graph::contract::DataContract;
use bastionai_ledger::{Dataset, Ledger, Principal};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts bytes by owner.
pub(crate) struct Storage {
    used: Arc<Mutex<Used>>,
    total: u64,
    per_principal: u64,
    free_reserve: u64,
}

#[derive(Default)]
struct Used {
    by_owner: HashMap<Principal, u64>,
    total: u64,
    /// Claimed by uploads in progress: perhaps not written yet.
    pending: u64,
}

/// The room of one upload: given back when dropped, unless the dataset was entered.
pub(crate) struct Claim {
    used: Arc<Mutex<Used>>,
    owner: Principal,
    bytes: u64,
    entered: bool,
}

impl Storage {
    /// Counts the datasets that the ledger holds.
    pub(crate) fn new(limits: &Limits, ledger: &Ledger) -> Self {
        let mut used = Used::default();
        for dataset in ledger.datasets() {
            let erased = if dataset.is_removed() {
                erased_bytes_of(dataset)
            } else {
                0
            };
            used.add(dataset.owner(), stored_bytes_of(dataset) - erased);
        }
        Self {
            used: Arc::new(Mutex::new(used)),
            total: limits.stored_bytes,
            per_principal: limits.stored_bytes_per_principal,
            free_reserve: limits.free_bytes_reserve,
        }
    }

    /// Bytes taken, padded, uploads in progress included.
    pub(crate) fn used_bytes(&self) -> u64 {
        lock(&self.used).total
    }

    /// Room for `bytes` of this owner's, on a disk with `free_bytes` left.
    pub(crate) fn claim(&self, owner: Principal, bytes: u64, free_bytes: u64) -> Result<Claim, Failure> {
        let mut used = lock(&self.used);
        let own = used.by_owner.get(&owner).copied().unwrap_or_default();
        if own.saturating_add(bytes) > self.per_principal {
            let message = format!(
                "this dataset takes {bytes} bytes of storage and yours take {own}; one principal may store {}: \
                 declare a smaller size, or ask the server's operator",
                self.per_principal
            );
            return Err(Failure::new(Reason::StorageQuota, message));
        }
        if used.total.saturating_add(bytes) > self.total {
            let message = format!(
                "this dataset takes {bytes} bytes of storage, more than is left of the {} that the server stores",
                self.total
            );
            return Err(Failure::new(Reason::StorageQuota, message));
        }
        let wanted = self
            .free_reserve
            .saturating_add(used.pending)
            .saturating_add(bytes);
        if free_bytes < wanted {
            let message = "the server's disk has too little room for this dataset; tell its operator";
            return Err(Failure::new(Reason::StorageFull, message));
        }
        used.add(owner, bytes);
        used.pending += bytes;
        Ok(Claim {
            used: Arc::clone(&self.used),
            owner,
            bytes,
            entered: false,
        })
    }
}

impl Storage {
    /// A dataset was removed: its owner has the room of the records again. Entry and contract stay in the ledger, and
    /// count: or uploads and removals in turn would fill it.
    pub(crate) fn freed(&self, dataset: &Dataset) {
        lock(&self.used).subtract(dataset.owner(), erased_bytes_of(dataset));
    }

    /// Whether a run may store this much besides what the disk must keep free for the ledger.
    pub(crate) fn check_room(&self, bytes: u64, free_bytes: u64) -> Result<(), Failure> {
        let wanted = self
            .free_reserve
            .saturating_add(lock(&self.used).pending)
            .saturating_add(bytes);
        if free_bytes < wanted {
            let message = "the server's disk has too little room for this run's weights and checkpoints; nothing was \
                           charged; keep fewer iterates, or tell its operator";
            return Err(Failure::new(Reason::StorageFull, message));
        }
        Ok(())
    }
}

impl Claim {
    /// The dataset is in the ledger: its room stays taken.
    pub(crate) fn entered(mut self) {
        self.entered = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut used = lock(&self.used);
        used.pending -= self.bytes;
        if !self.entered {
            used.subtract(self.owner, self.bytes);
        }
    }
}

impl Used {
    fn add(&mut self, owner: Principal, bytes: u64) {
        let own = self.by_owner.entry(owner).or_default();
        *own = own.saturating_add(bytes);
        self.total = self.total.saturating_add(bytes);
    }

    fn subtract(&mut self, owner: Principal, bytes: u64) {
        self.total = self.total.saturating_sub(bytes);
        if let Some(own) = self.by_owner.get_mut(&owner) {
            *own = own.saturating_sub(bytes);
        }
        self.by_owner.retain(|_, own| *own > 0);
    }
}

/// Bytes that a dataset under this contract takes, padded, with its entry.
pub(crate) fn stored_bytes(contract: &DataContract, contract_json: &[u8]) -> u64 {
    let records = contract.record_bytes().saturating_mul(contract.declared_size);
    records
        .saturating_add(contract_json.len() as u64)
        .saturating_add(ENTRY_BYTES)
}

fn stored_bytes_of(dataset: &Dataset) -> u64 {
    let json = dataset.contract_json().as_bytes();
    // The contract was parsed before it was entered; one of a later format counts by its blocks' number.
    DataContract::parse_json(json).map_or_else(
        |_| {
            dataset
                .blocks()
                .saturating_mul(bastionai_vault::VaultConfig::default().block_bytes)
        },
        |contract| stored_bytes(&contract, json),
    )
}

/// Bytes of a dataset that its removal erases: all but its entry and contract.
fn erased_bytes_of(dataset: &Dataset) -> u64 {
    let kept = ENTRY_BYTES.saturating_add(dataset.contract_json().len() as u64);
    stored_bytes_of(dataset).saturating_sub(kept)
}

/// Bytes that an unprivileged process may still write on the file system of `directory`.
pub(crate) fn free_bytes(directory: &Path) -> Result<u64, Failure> {
    let file_system = rustix::fs::statvfs(directory).map_err(Failure::internal)?;
    Ok(file_system.f_bavail.saturating_mul(file_system.f_frsize))
}

fn lock(used: &Mutex<Used>) -> MutexGuard<'_, Used> {
    used.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ledger entry, keys and the smallest file: small datasets are not free.
const ENTRY_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Principal = Principal::from_bytes([1; 32]);
    const BOB: Principal = Principal::from_bytes([2; 32]);

    fn storage() -> Storage {
        Storage {
            used: Arc::default(),
            total: 100,
            per_principal: 60,
            free_reserve: 10,
        }
    }

    fn reason(outcome: Result<Claim, Failure>) -> Option<Reason> {
        outcome.err().map(|failure| failure.reason)
    }

    #[test]
    fn uploads_in_progress_count_and_give_back_what_was_not_entered() {
        let storage = storage();
        let claim = storage.claim(ALICE, 60, 1000).unwrap();
        assert_eq!(reason(storage.claim(ALICE, 1, 1000)), Some(Reason::StorageQuota));
        assert_eq!(reason(storage.claim(BOB, 41, 1000)), Some(Reason::StorageQuota));
        drop(claim);
        storage.claim(ALICE, 60, 1000).unwrap().entered();
        assert_eq!(reason(storage.claim(ALICE, 1, 1000)), Some(Reason::StorageQuota));
        assert_eq!(reason(storage.claim(BOB, 40, 1000)), None);
    }

    #[test]
    fn a_run_leaves_the_reserve_and_what_is_being_uploaded() {
        let storage = storage();
        let _claim = storage.claim(ALICE, 20, 1000).unwrap();
        assert!(storage.check_room(5, 35).is_ok());
        let refused = storage.check_room(6, 35).unwrap_err();
        assert_eq!(refused.reason, Reason::StorageFull);
        assert!(storage.check_room(u64::MAX, 35).is_err());
    }

    #[test]
    fn the_disk_keeps_its_reserve_whatever_is_being_uploaded() {
        let storage = storage();
        assert_eq!(reason(storage.claim(ALICE, 20, 29)), Some(Reason::StorageFull));
        let _claim = storage.claim(ALICE, 20, 30).unwrap();
        assert_eq!(reason(storage.claim(BOB, 20, 49)), Some(Reason::StorageFull));
        assert_eq!(reason(storage.claim(BOB, 20, 50)), None);
    }
}
