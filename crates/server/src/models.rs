//! Uploaded model archives: in memory, per boot, bounded; a run that was
//! reserved keeps what it needs of one sealed in the vault. A model is its scientist's secret,
//! so it is found only by the principal that uploaded it; and so are its stored tensors, which another archive of the
//! same scientist may hold too (a frozen base) and which are then not sent again.

use crate::errors::{Failure, Reason};
use bastionai_graph::archive::{Limits, storages};
use bastionai_ledger::Principal;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// An archive as uploaded; parsed and checked against each run's contract when it is priced.
pub(crate) struct Model {
    /// SHA-256 of `archive`.
    pub(crate) digest: [u8; 32],
    /// The `.pt2` bytes.
    pub(crate) archive: Vec<u8>,
    /// Where its large stored tensors are, by their SHA-256 as computed here.
    storages: HashMap<[u8; 32], Range<usize>>,
}

impl Model {
    /// From an archive and its SHA-256. What its tensors are called by is computed here, not told by anybody.
    ///
    /// # Errors
    /// [`Reason::ArchiveInvalid`] when it is no archive.
    pub(crate) fn new(digest: [u8; 32], archive: Vec<u8>) -> Result<Self, Failure> {
        let limits = Limits {
            max_archive_bytes: archive.len() as u64,
            ..Limits::default()
        };
        let ranges = storages(&archive, SHARED_STORAGE_BYTES, &limits)
            .map_err(|error| Failure::of(Reason::ArchiveInvalid, error))?;
        let digested = |range: Range<usize>| (Sha256::digest(&archive[range.clone()]).into(), range);
        Ok(Self {
            digest,
            storages: ranges.into_iter().map(digested).collect(),
            archive,
        })
    }
}

/// One stored tensor of a model that stays while this is held.
pub(crate) struct HeldStorage {
    model: Arc<Model>,
    range: Range<usize>,
}

impl HeldStorage {
    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.model.archive[self.range.clone()]
    }
}

/// The archives held, oldest first.
pub(crate) struct Models {
    held: Mutex<Held>,
    total_bytes: u64,
}

#[derive(Default)]
struct Held {
    models: VecDeque<(Principal, Arc<Model>)>,
    bytes: u64,
}

impl Models {
    /// Holds at most `total_bytes` of archives.
    pub(crate) fn new(total_bytes: u64) -> Self {
        Self {
            held: Mutex::default(),
            total_bytes,
        }
    }

    /// Keeps a model; the owner's oldest, then the oldest of all, make room. Runs already quoted keep what they need.
    pub(crate) fn insert(&self, owner: Principal, model: Model) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = held.position(owner, &model.digest) {
            held.remove(place);
        }
        let own = held.models.iter().filter(|(holder, _)| *holder == owner).count();
        if own >= MOST_MODELS
            && let Some(oldest) = held.models.iter().position(|(holder, _)| *holder == owner)
        {
            held.remove(oldest);
        }
        let bytes = model.archive.len() as u64;
        while held.bytes + bytes > self.total_bytes && !held.models.is_empty() {
            let own = held.models.iter().position(|(holder, _)| *holder == owner);
            held.remove(own.unwrap_or(0));
        }
        held.bytes += bytes;
        held.models.push_back((owner, Arc::new(model)));
    }

    /// Whether this principal's model is held; if so it counts as just uploaded, for it is about to be used.
    pub(crate) fn renew(&self, owner: Principal, digest: &[u8]) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = held.position(owner, digest) else {
            return false;
        };
        if let Some(model) = held.models.remove(place) {
            held.models.push_back(model);
        }
        true
    }

    /// For each digest, whether a model of this principal stores such a tensor; those models count as just uploaded.
    pub(crate) fn renew_storages(&self, owner: Principal, digests: &[[u8; 32]]) -> Vec<bool> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut used = Vec::new();
        let found = digests.iter().map(|digest| {
            let model = held.storing(owner, digest)?;
            used.push(model.digest);
            Some(())
        });
        let found: Vec<bool> = found.map(|model| model.is_some()).collect();
        used.sort_unstable();
        used.dedup();
        for digest in used {
            let place = held.position(owner, &digest);
            if let Some(model) = place.and_then(|place| held.models.remove(place)) {
                held.models.push_back(model);
            }
        }
        found
    }

    /// A tensor that one of this principal's models stores.
    ///
    /// # Errors
    /// [`Reason::UnknownModel`] when none does (any more), whoever else's may.
    pub(crate) fn storage(&self, owner: Principal, digest: &[u8]) -> Result<HeldStorage, Failure> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let digest: Option<[u8; 32]> = digest.try_into().ok();
        let found = digest.and_then(|digest| {
            let model = held.storing(owner, &digest)?;
            let range = model.storages.get(&digest)?.clone();
            let model = Arc::clone(model);
            Some(HeldStorage { model, range })
        });
        found.ok_or_else(|| {
            Failure::new(
                Reason::UnknownModel,
                "the server does not hold a tensor that was left out (any more): send the archive whole",
            )
        })
    }

    /// The model whose archive has this digest.
    ///
    /// # Errors
    /// [`Reason::UnknownModel`] when this principal never uploaded it, or it had to make room.
    pub(crate) fn held(&self, owner: Principal, digest: &[u8]) -> Result<Arc<Model>, Failure> {
        self.find(owner, digest).ok_or_else(|| {
            Failure::new(
                Reason::UnknownModel,
                "the server does not hold this model (any more): upload it, then ask the price again",
            )
        })
    }

    /// The model this principal uploaded under this digest.
    fn find(&self, owner: Principal, digest: &[u8]) -> Option<Arc<Model>> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let place = held.position(owner, digest)?;
        Some(Arc::clone(&held.models[place].1))
    }
}

impl Held {
    fn position(&self, owner: Principal, digest: &[u8]) -> Option<usize> {
        self.models
            .iter()
            .position(|(holder, model)| *holder == owner && model.digest == digest)
    }

    /// This principal's latest model that stores such a tensor.
    fn storing(&self, owner: Principal, digest: &[u8; 32]) -> Option<&Arc<Model>> {
        let own = self.models.iter().rev().filter(|(holder, _)| *holder == owner);
        own.map(|(_, model)| model)
            .find(|model| model.storages.contains_key(digest))
    }

    fn remove(&mut self, place: usize) {
        if let Some((_, model)) = self.models.remove(place) {
            self.bytes -= model.archive.len() as u64;
        }
    }
}

/// Smaller tensors are sent with each archive. Of the client's constant of the same name.
pub(crate) const SHARED_STORAGE_BYTES: usize = 4096;

/// Most models of one principal: bounds what a question for stored tensors looks through.
const MOST_MODELS: usize = 64;

/// Most stored tensors that one FindModel asks for.
pub(crate) const MOST_STORAGES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Principal = Principal::from_bytes([1; 32]);
    const BOB: Principal = Principal::from_bytes([2; 32]);

    fn model(tag: u8, bytes: usize) -> Model {
        Model {
            digest: [tag; 32],
            archive: vec![tag; bytes],
            storages: HashMap::from([([tag; 32], 1..bytes), ([0; 32], 0..1)]),
        }
    }

    #[test]
    fn a_model_is_found_by_its_owner_only() {
        let models = Models::new(100);
        models.insert(ALICE, model(1, 10));
        assert!(models.find(ALICE, &[1; 32]).is_some());
        assert!(models.find(BOB, &[1; 32]).is_none());
    }

    #[test]
    fn a_model_asked_for_is_the_last_to_make_room_and_only_its_owner_hears_of_it() {
        let models = Models::new(100);
        models.insert(ALICE, model(1, 40));
        models.insert(ALICE, model(2, 40));
        assert!(
            models.renew(ALICE, &[1; 32]) && !models.renew(BOB, &[1; 32]) && !models.renew(ALICE, &[3; 32])
        );
        models.insert(ALICE, model(3, 40));
        assert!(models.find(ALICE, &[1; 32]).is_some());
        assert!(models.find(ALICE, &[2; 32]).is_none());
    }

    #[test]
    fn a_stored_tensor_is_found_in_ones_own_models_only_and_the_latest_keeps_it() {
        let models = Models::new(100);
        models.insert(ALICE, model(1, 40));
        models.insert(ALICE, model(2, 40));
        assert_eq!(models.storage(ALICE, &[1; 32]).unwrap().bytes(), [1; 39]);
        assert_eq!(
            models.storage(ALICE, &[0; 32]).unwrap().bytes(),
            [2],
            "of the latest"
        );
        let refusal = |digest| tonic::Status::from(models.storage(BOB, digest).err().unwrap());
        let (unknown, others) = (refusal(&[9; 32]), refusal(&[1; 32]));
        assert_eq!(
            (unknown.code(), unknown.message()),
            (others.code(), others.message())
        );
        assert!(models.storage(ALICE, &[1; 31]).is_err());
        assert_eq!(models.renew_storages(BOB, &[[1; 32]]), [false]);
        assert_eq!(models.renew_storages(ALICE, &[[1; 32], [9; 32]]), [true, false]);
        let held = models.storage(ALICE, &[2; 32]).unwrap();
        models.insert(ALICE, model(3, 40));
        assert!(models.find(ALICE, &[1; 32]).is_some(), "asked for, so renewed");
        assert!(models.storage(ALICE, &[2; 32]).is_err());
        assert_eq!(held.bytes(), [2; 39], "whoever reads it has it");
    }

    #[test]
    fn of_many_small_models_the_oldest_makes_room() {
        let models = Models::new(1 << 20);
        models.insert(BOB, model(255, 10));
        for tag in 0..=MOST_MODELS as u8 {
            models.insert(ALICE, model(tag, 10));
        }
        let holds = |owner, tag| models.find(owner, &[tag; 32]).is_some();
        assert!(!holds(ALICE, 0) && holds(ALICE, 1) && holds(ALICE, MOST_MODELS as u8) && holds(BOB, 255));
    }

    #[test]
    fn an_owners_models_make_room_before_others_do() {
        let models = Models::new(100);
        models.insert(ALICE, model(1, 40));
        models.insert(BOB, model(2, 60));
        models.insert(BOB, model(3, 60));
        assert!(models.find(ALICE, &[1; 32]).is_some());
        assert!(models.find(BOB, &[2; 32]).is_none());
    }

    #[test]
    fn the_oldest_make_room_and_a_repeat_counts_once() {
        let models = Models::new(100);
        models.insert(ALICE, model(1, 40));
        models.insert(ALICE, model(1, 40));
        models.insert(BOB, model(2, 60));
        assert!(models.find(ALICE, &[1; 32]).is_some(), "40 + 60 bytes fit");
        models.insert(BOB, model(3, 100));
        assert!(models.find(ALICE, &[1; 32]).is_none());
        assert!(models.find(BOB, &[2; 32]).is_none());
        assert!(models.find(BOB, &[3; 32]).is_some());
    }
}
