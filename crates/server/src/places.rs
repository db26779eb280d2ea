//! Places to work in: so many in all, so many for one principal, so that no principal can take them all.

use bastionai_ledger::Principal;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts what is in use.
#[derive(Clone)]
pub(crate) struct Places {
    taken: Arc<Mutex<HashMap<Principal, u32>>>,
    total: u32,
    per_principal: u32,
}

/// One place, given back when dropped.
pub(crate) struct Place {
    taken: Arc<Mutex<HashMap<Principal, u32>>>,
    holder: Principal,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// All are taken.
    Full,
    /// This principal has as many as one may have.
    Yours,
}

impl Places {
    pub(crate) fn new(total: u32, per_principal: u32) -> Self {
        Self {
            taken: Arc::default(),
            total,
            per_principal,
        }
    }

    /// Takes a place for `holder`, or says at once that there is none.
    pub(crate) fn take(&self, holder: Principal) -> Result<Place, NoPlace> {
        let mut taken = lock(&self.taken);
        if taken.get(&holder).is_some_and(|&own| own >= self.per_principal) {
            return Err(NoPlace::Yours);
        }
        if taken.values().sum::<u32>() >= self.total {
            return Err(NoPlace::Full);
        }
        *taken.entry(holder).or_default() += 1;
        Ok(Place {
            taken: Arc::clone(&self.taken),
            holder,
        })
    }

    /// Takes a place that `holder` had before, whether one is free or not.
    pub(crate) fn add(&self, holder: Principal) -> Place {
        *lock(&self.taken).entry(holder).or_default() += 1;
        Place {
            taken: Arc::clone(&self.taken),
            holder,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        if let Some(own) = taken.get_mut(&self.holder) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.holder);
            }
        }
    }
}

fn lock(taken: &Mutex<HashMap<Principal, u32>>) -> MutexGuard<'_, HashMap<Principal, u32>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Principal = Principal::from_bytes([1; 32]);
    const BOB: Principal = Principal::from_bytes([2; 32]);
    const CAROL: Principal = Principal::from_bytes([3; 32]);

    #[test]
    fn one_principal_never_has_more_than_its_share_nor_all_more_than_there_are() {
        let places = Places::new(3, 2);
        let first = places.take(ALICE).unwrap();
        let _second = places.take(ALICE).unwrap();
        assert_eq!(places.take(ALICE).err(), Some(NoPlace::Yours));
        let _third = places.take(BOB).unwrap();
        assert_eq!(places.take(CAROL).err(), Some(NoPlace::Full));
        drop(first);
        assert!(places.take(CAROL).is_ok());
        assert!(places.take(ALICE).is_ok(), "a dropped place is free again");
    }

    #[test]
    fn a_place_that_was_had_before_is_had_again_and_counts() {
        let places = Places::new(1, 1);
        let _first = places.take(ALICE).unwrap();
        let again = places.add(BOB);
        assert_eq!(places.take(CAROL).err(), Some(NoPlace::Full));
        drop(again);
        assert_eq!(places.take(CAROL).err(), Some(NoPlace::Full));
    }
}
