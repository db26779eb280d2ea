//! Uploaded model archives: in memory, per boot, bounded; a run that was
//! reserved keeps what it needs of one sealed in the vault. A model is its scientist's secret,
//! so it is found only by the principal that uploaded it.

use crate::errors::{Failure, Reason};
use bastionai_ledger::Principal;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// An archive as uploaded; parsed and checked against each run's contract when it is priced.
pub(crate) struct Model {
    /// SHA-256 of `archive`.
    pub(crate) digest: [u8; 32],
    /// The `.pt2` bytes.
    pub(crate) archive: Vec<u8>,
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

    fn remove(&mut self, place: usize) {
        if let Some((_, model)) = self.models.remove(place) {
            self.bytes -= model.archive.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Principal = Principal::from_bytes([1; 32]);
    const BOB: Principal = Principal::from_bytes([2; 32]);

    fn model(tag: u8, bytes: usize) -> Model {
        Model {
            digest: [tag; 32],
            archive: vec![tag; bytes],
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
