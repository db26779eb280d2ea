//! The integer grid on which clipped sums are collected (docs/privacy.md, the rounded Gaussian), and work in parallel chunks.

use crate::error::{EngineError, Result};
use crate::ffi;
use crate::vectors::{Pass, Vectors, Widest};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tch::{Kind, Tensor};

/// Grid units per clipping norm: `g = C·2^-30`.
pub(crate) const UNITS_PER_NORM: f64 = 1_073_741_824.0;

/// `1.5·2^52`: adding it rounds an f64 below 2^51 to an integer, ties to even, and leaves that integer in the low bits.
const ROUNDING_SHIFT: f64 = 6_755_399_441_055_744.0;

/// Largest physical batch: its sums stay at or below `2·2^19·2^30 = 2^50` units, where rounding is exact. Beyond
/// `2^51` the shift of `round_to_integer` leaves its binade and one record could move a sum by any amount.
pub const MAX_PHYSICAL_BATCH_SIZE: u32 = 1 << 19;

/// Elements of a parallel chunk: 256 KiB of sums.
pub(crate) const CHUNK: usize = 1 << 15;

/// A grid: width and largest coordinate that a micro-batch may add.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    width: f64,
    limit: f64,
}

impl Grid {
    /// The grid for clipping norm `max_grad_norm`; a batch of `batch_size` records stays below twice `batch_size·C`.
    ///
    /// # Panics
    /// Above [`MAX_PHYSICAL_BATCH_SIZE`], which [`crate::engine::Engine::new`] refuses.
    pub fn new(max_grad_norm: f64, batch_size: u32) -> Self {
        assert!(
            batch_size <= MAX_PHYSICAL_BATCH_SIZE,
            "the engine refuses larger batches"
        );
        let width = max_grad_norm / UNITS_PER_NORM;
        Self {
            width,
            limit: 2.0 * f64::from(batch_size) * UNITS_PER_NORM,
        }
    }

    /// One unit.
    pub fn width(&self) -> f64 {
        self.width
    }

    /// Units in 1, and most units that a micro-batch may add to a coordinate.
    pub(crate) fn units(&self) -> (f64, f64) {
        (1.0 / self.width, self.limit)
    }

    /// Adds a partial sum, each element rounded to the grid.
    ///
    /// # Errors
    /// [`EngineError::SumOutOfBound`] when an element is not finite or too large: rule G3's last assertion.
    pub(crate) fn add(&self, tensor: &Tensor, sums: &mut [i64], threads: usize) -> Result<()> {
        let flat = tensor.f_contiguous()?;
        if flat.numel() != sums.len() {
            return Err(EngineError::SumOutOfBound);
        }
        let fine = match flat.kind() {
            Kind::Float => ffi::read(&flat, |values: &[f32]| self.add_values(values, sums, threads)),
            Kind::Double => ffi::read(&flat, |values: &[f64]| self.add_values(values, sums, threads)),
            _ => None,
        };
        if fine == Some(true) {
            Ok(())
        } else {
            Err(EngineError::SumOutOfBound)
        }
    }

    /// Adds one row of partial sums; false when an element is not finite or too large.
    pub(crate) fn add_row(&self, values: &[f64], sums: &mut [i64]) -> bool {
        values.len() == sums.len() && Widest.run(self.rounding(values, sums))
    }

    fn rounding<'v, T>(&self, values: &'v [T], sums: &'v mut [i64]) -> AddRounded<'v, T> {
        AddRounded {
            values,
            sums,
            units: 1.0 / self.width,
            limit: self.limit,
        }
    }

    fn add_values<T: Copy + Into<f64> + Sync>(&self, values: &[T], sums: &mut [i64], threads: usize) -> bool {
        let work = sums.chunks_mut(CHUNK).zip(values.chunks(CHUNK)).collect();
        in_parallel(work, threads, |(sums, values)| {
            Widest.run(self.rounding(values, sums))
        })
        .into_iter()
        .all(|fine| fine)
    }
}

/// Adds values, each rounded to the grid; false when one is not finite or too large.
struct AddRounded<'v, T> {
    values: &'v [T],
    sums: &'v mut [i64],
    /// Units in 1.
    units: f64,
    limit: f64,
}

impl<T: Copy + Into<f64>> Pass for AddRounded<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let mut fine = true;
        for (sum, &value) in self.sums.iter_mut().zip(self.values) {
            let units = value.into() * self.units;
            fine &= units.abs() <= self.limit;
            *sum = sum.wrapping_add(round_to_integer(units));
        }
        fine
    }
}

/// Nearest integer, ties to even, for `|value| < 2^51`; anything for others (their chunk is refused).
#[inline(always)]
pub(crate) fn round_to_integer(value: f64) -> i64 {
    ((value + ROUNDING_SHIFT).to_bits() as i64).wrapping_sub(ROUNDING_SHIFT.to_bits() as i64)
}

/// Runs `body` on every item, on up to `threads` of libtorch's threads, the caller's among them; results in order of
/// items. A thread takes the next item when it is free. Threads of our own would compete with libtorch's, which wait
/// for work in a loop, and each would cost as much to start as a small layer's work.
pub(crate) fn in_parallel<I: Send, R: Send>(
    items: Vec<I>,
    threads: usize,
    body: impl Fn(I) -> R + Sync,
) -> Vec<R> {
    let threads = threads.clamp(1, items.len().max(1));
    if threads == 1 {
        return items.into_iter().map(body).collect();
    }
    let places: Vec<Mutex<Place<I, R>>> = items
        .into_iter()
        .map(|item| Mutex::new(Place::Waits(item)))
        .collect();
    let (next, panic) = (AtomicUsize::new(0), Mutex::new(None));
    let work = |_thread: usize| {
        let worked = catch_unwind(AssertUnwindSafe(|| {
            while let Some(place) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
                // The lock is released before the work begins.
                let taken = std::mem::replace(&mut *locked(place), Place::Taken);
                if let Place::Waits(item) = taken {
                    let result = body(item);
                    *locked(place) = Place::Done(result);
                }
            }
        }));
        if let Err(payload) = worked {
            next.store(places.len(), Ordering::Relaxed);
            *locked(&panic) = Some(payload);
        }
    };
    if ffi::parallel(threads, &work).is_err() {
        // libtorch could not share out the work: what is left of it is done here.
        work(0);
    }
    if let Some(payload) = locked(&panic).take() {
        resume_unwind(payload);
    }
    let results = places.into_iter().map(|place| match place.into_inner() {
        Ok(Place::Done(result)) => result,
        _ => unreachable!("every item was worked on"),
    });
    results.collect()
}

/// An item of work, or what came of it.
enum Place<I, R> {
    Waits(I),
    Taken,
    Done(R),
}

/// No lock is held while anything can panic.
fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even_and_exact_for_integers() {
        for (value, rounded) in [
            (0.5, 0),
            (1.5, 2),
            (-0.5, 0),
            (-1.5, -2),
            (2.4, 2),
            (-2.6, -3),
            (1e12 + 0.25, 1_000_000_000_000),
        ] {
            assert_eq!(round_to_integer(value), rounded, "{value}");
        }
    }

    #[test]
    fn rounding_is_exact_up_to_the_largest_sum_a_grid_lets_in() {
        let limit = Grid::new(1.0, MAX_PHYSICAL_BATCH_SIZE).limit;
        for value in [limit, limit - 0.5, limit - 1.0, limit / 2.0 + 0.5, limit / 3.0] {
            assert_eq!(round_to_integer(value), value.round_ties_even() as i64, "{value}");
            assert_eq!(
                round_to_integer(-value),
                (-value).round_ties_even() as i64,
                "-{value}"
            );
        }
    }

    #[test]
    fn a_sum_that_is_not_finite_never_reaches_the_noise() {
        let grid = Grid::new(1.0, 4);
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 8.1] {
            let mut sums = vec![0; 3];
            let tensor = Tensor::from_slice(&[0.0, bad, 1.0]);
            assert!(
                matches!(grid.add(&tensor, &mut sums, 1), Err(EngineError::SumOutOfBound)),
                "{bad}"
            );
        }
        let mut sums = vec![1; 2];
        grid.add(&Tensor::from_slice(&[1.0f32, -0.5]), &mut sums, 2)
            .unwrap();
        assert_eq!(sums, [(1 << 30) + 1, -(1 << 29) + 1]);
    }

    #[test]
    fn parallel_results_come_in_order() {
        let squares = in_parallel((0..103).collect(), 4, |value: i64| value * value);
        assert_eq!(squares, (0..103).map(|value| value * value).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_of_one_item_is_the_callers() {
        let panics = || in_parallel((0..10).collect(), 2, |item: i32| assert!(item != 7));
        assert!(catch_unwind(panics).is_err());
        assert_eq!(in_parallel(vec![1, 2], 2, |item| item + 1), [2, 3]);
    }
}
