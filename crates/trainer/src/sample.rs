//! Which records a step uses: an independent draw for every slot of every dataset, cut to the cap.

use crate::error::{EngineError, Result};
use bastionai_privacy::sampling::PoissonSampler;
use bastionai_wire::trainer::DatasetShape;
use ring::hmac;

/// Draws the sample of every step over all datasets of a run.
pub struct PooledSampler {
    sampler: PoissonSampler,
    order: hmac::Key,
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
        let order = hmac::Key::new(hmac::HMAC_SHA256, order_key);
        Self {
            sampler: PoissonSampler::new(key, threshold),
            order,
            datasets,
            cap,
        }
    }

    /// Rows of step `step`, counted through all datasets' capacities.
    ///
    /// Every slot is drawn, padding too, and padding then dropped: the work does not show how many records
    /// there are (rules D8, D10). A sample above the cap is cut to the `cap` rows that come first in an order
    /// keyed by a secret of this start, so each is equally likely to be dropped, whatever it holds; the
    /// probability that this happens is part of the price.
    ///
    /// # Errors
    /// [`EngineError::Job`] when a dataset is larger than a sampling stream.
    pub fn draw(&self, step: u64) -> Result<Vec<u64>> {
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
        if pooled.len() > self.cap {
            pooled.sort_by_cached_key(|&row| self.rank(step, row));
            pooled.truncate(self.cap);
        }
        Ok(pooled)
    }

    fn rank(&self, step: u64, row: u64) -> [u8; 32] {
        let mut message = [0; 16];
        message[..8].copy_from_slice(&step.to_le_bytes());
        message[8..].copy_from_slice(&row.to_le_bytes());
        let mut rank = [0; 32];
        rank.copy_from_slice(hmac::sign(&self.order, &message).as_ref());
        rank
    }
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
        let rows = sampler(u64::MAX, 1000).draw(1).unwrap();
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
