//! Which records a step uses, and where in its batches they stand.
//!
//! Every slot of every dataset is drawn independently; the sample is cut to the cap; each record then gets a place,
//! uniformly at random without repetition, among all places of all micro-batches. The rest is padding.
//!
//! # Why random places
//! Rule T2 fixes the batch size because kernels round differently at different sizes. They also round differently
//! from row to row (measured: MKL, `[16, 6]·[6, 5]`), so if records were packed in order, removing one would shift
//! the others, and a graph made to amplify rounding would turn that into a leak. With random places it does not
//! matter: a uniformly random placement of `S ∪ {j}`, restricted to `S`, is a uniformly random placement of `S`.
//! So the runs with and without `j` can be coupled to agree on every other record's place, with padding at `j`'s;
//! for each such pair the sums differ by `j`'s term alone (at a fixed place, rows do not influence one another),
//! and a mixture over places keeps the bound, since hockey-stick divergences are jointly convex. Places come from
//! a pseudo-random function, as the sample itself does ([`RandomOrder`]).

use crate::error::{EngineError, Result};
use bastionai_privacy::order::RandomOrder;
use bastionai_privacy::sampling::PoissonSampler;
use bastionai_wire::trainer::DatasetShape;

/// Draws the sample of every step over all datasets of a run.
pub struct PooledSampler {
    sampler: PoissonSampler,
    order: RandomOrder,
    datasets: Vec<DatasetShape>,
    cap: usize,
}

impl PooledSampler {
    /// `cap`: records that fit into a step, `physical_batch_size × micro_batches`.
    pub fn new(
        key: [u8; 32],
        order_key: &[u8; 32],
        threshold: u64,
        datasets: Vec<DatasetShape>,
        cap: usize,
    ) -> Self {
        Self {
            sampler: PoissonSampler::new(key, threshold),
            order: RandomOrder::new(*order_key),
            datasets,
            cap,
        }
    }

    /// What stands at each of the `cap` places of step `step`: a row, counted through all datasets' capacities, or
    /// padding. Places are in micro-batch order.
    ///
    /// # Errors
    /// [`EngineError::Job`] when a dataset is larger than a sampling stream.
    pub fn places(&self, step: u64) -> Result<Vec<Option<u64>>> {
        let rows = self.draw(step)?;
        let mut places = vec![None; self.cap];
        let order = self.order.of(step, Purpose::Place as u32, self.cap);
        for (place, row) in order.ok_or_else(too_many)?.into_iter().zip(rows) {
            places[place] = Some(row);
        }
        Ok(places)
    }

    /// Rows of step `step`, in order.
    ///
    /// Every slot is drawn, padding too, and padding then dropped: the work does not show how many records
    /// there are (rules D8, D10). A sample above the cap is cut to the `cap` rows that come first in a random order
    /// of this start's secret key, so each is equally likely to be dropped, whatever it holds, and a row that comes or
    /// goes leaves the order of the others; the probability that this happens is part of the price. Samples that fit are
    /// ranked as well: a step that takes longer where one was cut would tell whether the last record was drawn.
    ///
    /// # Errors
    /// [`EngineError::Job`] when a dataset is larger than a sampling stream.
    fn draw(&self, step: u64) -> Result<Vec<u64>> {
        let mut pooled = Vec::new();
        let mut drawn = Vec::new();
        let mut offset = 0;
        for (dataset, shape) in self.datasets.iter().enumerate() {
            self.sampler
                .sample(step, dataset as u32, shape.capacity, &mut drawn)
                .map_err(|error| EngineError::Job(error.to_string()))?;
            pooled.extend(
                drawn
                    .iter()
                    .filter(|&&row| row < shape.rows)
                    .map(|row| row + offset),
            );
            offset += shape.capacity;
        }
        let ranks = pooled
            .iter()
            .map(|&row| self.order.rank(step, Purpose::Cut as u32, row))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(too_many)?;
        let mut ranked: Vec<(u128, u64)> = ranks.into_iter().zip(pooled).collect();
        ranked.sort_unstable();
        ranked.truncate(self.cap);
        Ok(ranked.into_iter().map(|(_, row)| row).collect())
    }
}

fn too_many() -> EngineError {
    EngineError::Job("a step has more records than can be put in random order".into())
}

/// Keeps the two uses of the order key apart.
#[derive(Clone, Copy)]
enum Purpose {
    Cut = 0,
    Place = 1,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(threshold: u64, cap: usize) -> PooledSampler {
        let datasets = vec![
            DatasetShape {
                capacity: 64,
                rows: 40,
            },
            DatasetShape {
                capacity: 32,
                rows: 32,
            },
        ];
        PooledSampler::new([3; 32], &[4; 32], threshold, datasets, cap)
    }

    #[test]
    fn padding_is_never_drawn_and_every_record_can_be() {
        let mut rows = sampler(u64::MAX, 1000).draw(1).unwrap();
        rows.sort_unstable();
        let expected: Vec<u64> = (0..40).chain(64..96).collect();
        assert_eq!(rows, expected);
    }

    #[test]
    fn an_empty_sample_is_a_sample() {
        assert!(sampler(0, 10).draw(7).unwrap().is_empty());
    }

    #[test]
    fn a_sample_above_the_cap_is_cut_evenly() {
        let sampler = sampler(u64::MAX, 18);
        let mut kept = vec![0u32; 96];
        for step in 0..4000 {
            let rows = sampler.draw(step).unwrap();
            assert_eq!(rows.len(), 18);
            rows.iter().for_each(|&row| kept[row as usize] += 1);
        }
        // Each of 72 records is kept with probability 1/4: 1000 ± 27 (one standard deviation).
        let extremes = (0..40).chain(64..96).map(|row: usize| kept[row]);
        assert!(
            extremes.clone().min() > Some(860) && extremes.max() < Some(1140),
            "{kept:?}"
        );
    }

    /// What `privacy::truncation` prices: with a record more, one other at most gives way to it.
    #[test]
    fn a_record_that_comes_displaces_one_other_at_most() {
        let with = sampler(1 << 62, 18);
        let mut without = sampler(1 << 62, 18);
        without.datasets[0].rows -= 1;
        let (mut came, mut displaced) = (0, 0);
        for step in 0..2000 {
            let (with, without) = (with.draw(step).unwrap(), without.draw(step).unwrap());
            let new: Vec<&u64> = with.iter().filter(|row| !without.contains(row)).collect();
            let lost = without.iter().filter(|row| !with.contains(row)).count();
            assert!(new.is_empty() || new == [&39], "{new:?}");
            assert!(lost <= new.len(), "{lost} gave way to {new:?}");
            assert!(
                lost == 0 || without.len() == 18,
                "a sample of {} had room",
                without.len()
            );
            came += new.len();
            displaced += lost;
        }
        assert!(displaced > 50 && came > displaced + 50, "{displaced} of {came}");
    }

    #[test]
    fn every_record_is_at_one_place_and_every_place_is_equally_likely() {
        let sampler = sampler(u64::MAX, 80);
        let mut first = vec![0u32; 80];
        for step in 0..4000 {
            let places = sampler.places(step).unwrap();
            let mut rows: Vec<u64> = places.iter().flatten().copied().collect();
            let place = places.iter().position(|&row| row == Some(0)).unwrap();
            first[place] += 1;
            rows.sort_unstable();
            let mut drawn = sampler.draw(step).unwrap();
            drawn.sort_unstable();
            assert_eq!(rows, drawn);
        }
        // Row 0 is at each of 80 places 50 times, ± 7 (one standard deviation).
        assert!(first.iter().all(|&count| (15..90).contains(&count)), "{first:?}");
    }

    #[test]
    fn samples_of_steps_and_datasets_differ() {
        let sampler = sampler(1 << 63, 1000);
        assert_ne!(sampler.draw(1).unwrap(), sampler.draw(2).unwrap());
        let rows = sampler.draw(1).unwrap();
        let first: Vec<u64> = rows.iter().copied().filter(|&row| row < 32).collect();
        let second: Vec<u64> = rows
            .iter()
            .filter(|&&row| row >= 64)
            .map(|row| row - 64)
            .collect();
        assert_ne!(first, second);
    }
}
