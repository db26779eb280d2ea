//! Poisson sampling decided by integers, so that the probability used is the probability priced.
//!
//! Unit i of a dataset is in the sample of a step iff the i-th 64-bit word of the stream
//! ChaCha20(sampling key, nonce = step ‖ dataset) lies below a threshold: independent draws with
//! probability exactly threshold/2^64 (under the assumption that ChaCha20 is a PRF). An empty sample
//! is a sample like any other.

use thiserror::Error;
use zeroize::Zeroizing;

use crate::stream::{Keystream, Purpose, STREAM_BYTES, SubKey};

/// Why a sample could not be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// Not a probability.
    #[error(
        "sampling probability {value} is not in [0, 1]; it is the expected batch size over the declared size"
    )]
    Probability {
        /// What was passed.
        value: f64,
    },
    /// More rows than one stream can decide on.
    #[error("{rows} rows are more than the {MAX_ROWS} one sampling stream can decide on; split the dataset")]
    TooManyRows {
        /// What was passed.
        rows: u64,
    },
}

/// The threshold whose probability is the largest not above `sampling_probability`.
///
/// [`EVERYTHING`] for 1. A probability below 2^−64 gives 0: nothing is ever sampled.
///
/// # Errors
/// [`SamplingError::Probability`] unless 0 ≤ `sampling_probability` ≤ 1.
pub fn threshold(sampling_probability: f64) -> Result<u64, SamplingError> {
    if !(0.0..=1.0).contains(&sampling_probability) {
        return Err(SamplingError::Probability {
            value: sampling_probability,
        });
    }
    // Scaling by 2^64 is exact; the cast drops the fraction and saturates at u64::MAX for 1. The
    // largest f64 below 1 gives 2^64 − 2^11, so nothing but 1 reaches EVERYTHING.
    Ok((sampling_probability * TWO_TO_64) as u64)
}

/// The probability a threshold stands for, never below it: this is what accounting must be given.
///
/// Exact for every threshold made by [`threshold`].
pub fn probability(threshold: u64) -> f64 {
    if threshold == EVERYTHING {
        return 1.0;
    }
    let nearest = threshold as f64;
    let above = if (nearest as u64) < threshold {
        nearest.next_up()
    } else {
        nearest
    };
    (above / TWO_TO_64).min(1.0)
}

/// Draws the samples of a run. The key is wiped on drop and never shown.
pub struct PoissonSampler {
    key: SubKey,
    threshold: u64,
}

impl PoissonSampler {
    /// A sampler for one run. `key` is the run key: fresh at every start of a trainer (soundness.md D1);
    /// it may be shared with [`crate::noise::NoiseStream`], which works under another subkey.
    pub fn new(key: [u8; 32], threshold: u64) -> Self {
        let key = Zeroizing::new(key);
        Self {
            key: SubKey::derive(&key, Purpose::Sampling),
            threshold,
        }
    }

    /// The probability with which every unit is drawn, for accounting.
    pub fn probability(&self) -> f64 {
        probability(self.threshold)
    }

    /// Replaces `out` by the rows of `dataset` drawn at `step`, in ascending order.
    ///
    /// The same (key, step, dataset) gives the same rows; other steps and datasets are independent.
    /// Work and memory traffic depend on `rows` and the size of the sample, not on which rows it holds.
    ///
    /// # Errors
    /// [`SamplingError::TooManyRows`] beyond 2^35 − 128 rows.
    pub fn sample(
        &self,
        step: u64,
        dataset: u32,
        rows: u64,
        out: &mut Vec<u64>,
    ) -> Result<(), SamplingError> {
        out.clear();
        if rows > MAX_ROWS {
            return Err(SamplingError::TooManyRows { rows });
        }
        if self.threshold == EVERYTHING {
            out.extend(0..rows);
            return Ok(());
        }
        let mut stream = self.key.stream(step, dataset, 0);
        let mut first = 0;
        while first < rows {
            let count = (rows - first).min(WORDS_PER_READ as u64);
            self.sample_block(&mut stream, first, count as usize, out);
            first += count;
        }
        Ok(())
    }

    fn sample_block(&self, stream: &mut Keystream, first: u64, count: usize, out: &mut Vec<u64>) {
        let mut bytes = Zeroizing::new([0_u8; WORDS_PER_READ * 8]);
        stream.fill(&mut bytes[..]);
        let (words, _) = bytes.as_chunks::<8>();
        for (row, word) in (first..).zip(&words[..count]) {
            if u64::from_le_bytes(*word) < self.threshold {
                out.push(row);
            }
        }
    }
}

/// The threshold of probability 1.
pub const EVERYTHING: u64 = u64::MAX;
/// Eight bytes a row.
const MAX_ROWS: u64 = STREAM_BYTES / 8;
const WORDS_PER_READ: usize = 256;
const TWO_TO_64: f64 = 18_446_744_073_709_551_616.0;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn draw(sampler: &PoissonSampler, step: u64, dataset: u32, rows: u64) -> Vec<u64> {
        let mut out = Vec::new();
        sampler.sample(step, dataset, rows, &mut out).unwrap();
        out
    }

    fn sampler(seed: u8, q: f64) -> PoissonSampler {
        PoissonSampler::new([seed; 32], threshold(q).unwrap())
    }

    /// Inclusion counts of each row, and of each pair of rows, against their binomial expectation.
    #[test]
    fn marginals_and_pairs_are_those_of_independent_draws() {
        let (rows, steps, q) = (64_usize, 100_000_u64, 0.125_f64);
        let sampler = sampler(3, q);
        let mut single = vec![0_u64; rows];
        let mut pairs = vec![0_u64; rows * rows];
        let mut sample = Vec::new();
        for step in 0..steps {
            sampler.sample(step, 0, rows as u64, &mut sample).unwrap();
            for (position, &a) in sample.iter().enumerate() {
                single[a as usize] += 1;
                for &b in &sample[position + 1..] {
                    pairs[a as usize * rows + b as usize] += 1;
                }
            }
        }
        let z =
            |count: u64, p: f64| (count as f64 - steps as f64 * p) / (steps as f64 * p * (1.0 - p)).sqrt();
        assert_chi_squared(single.iter().map(|&count| z(count, q)));
        // Σ (a − q)(b − q) over the steps: uncorrelated between pairs that share a row, as counts of both are not.
        let together = |(a, b): (usize, usize)| {
            let sum = pairs[a * rows + b] as f64 - q * (single[a] + single[b]) as f64 + steps as f64 * q * q;
            sum / (q * (1.0 - q) * (steps as f64).sqrt())
        };
        let upper = (0..rows).flat_map(|a| (a + 1..rows).map(move |b| (a, b)));
        assert_chi_squared(upper.map(together));
    }

    /// Σ z² is χ² with as many degrees of freedom as there are z (normal approximation, 5 sd).
    fn assert_chi_squared(scores: impl Iterator<Item = f64>) {
        let scores: Vec<f64> = scores.collect();
        let (n, sum) = (scores.len() as f64, scores.iter().map(|z| z * z).sum::<f64>());
        assert!(
            (sum - n).abs() < 5.0 * (2.0 * n).sqrt(),
            "chi squared {sum} for {n} degrees of freedom"
        );
        assert!(scores.iter().all(|z| z.abs() < 6.0));
    }

    #[test]
    fn sample_sizes_are_binomial_and_can_be_zero() {
        let (rows, steps, q) = (20_u64, 50_000_u64, 0.05_f64);
        let sampler = sampler(4, q);
        let mut sizes = [0_u64; 21];
        for step in 0..steps {
            sizes[draw(&sampler, step, 1, rows).len()] += 1;
        }
        let mut expected = (1.0 - q).powi(20);
        assert!(sizes[0] > 0, "an empty batch must be possible");
        for (k, &size) in sizes.iter().enumerate().take(5) {
            let sd = (steps as f64 * expected * (1.0 - expected)).sqrt();
            assert!(
                (size as f64 - steps as f64 * expected).abs() < 5.0 * sd,
                "size {k}"
            );
            expected *= (20 - k) as f64 / (k + 1) as f64 * q / (1.0 - q);
        }
    }

    #[test]
    fn consecutive_steps_and_datasets_are_independent() {
        let (rows, q) = (200_000_u64, 0.1_f64);
        let sampler = sampler(5, q);
        let base = draw(&sampler, 7, 0, rows);
        for other in [
            draw(&sampler, 8, 0, rows),
            draw(&sampler, 7, 1, rows),
            draw(&self::sampler(6, q), 7, 0, rows),
        ] {
            let both = other.iter().filter(|row| base.binary_search(row).is_ok()).count() as f64;
            let (mean, sd) = (rows as f64 * q * q, (rows as f64 * q * q * (1.0 - q * q)).sqrt());
            assert!(
                (both - mean).abs() < 5.0 * sd,
                "{both} rows in common, {mean} expected"
            );
        }
    }

    #[test]
    fn the_sample_is_a_function_of_key_step_and_dataset() {
        assert_eq!(
            draw(&sampler(1, 0.3), 2, 3, 1000),
            draw(&sampler(1, 0.3), 2, 3, 1000)
        );
    }

    /// Golden: an independent ChaCha20 in pure Python.
    #[test]
    fn the_sample_of_a_known_key_is_that_of_an_independent_implementation() {
        let sampler = PoissonSampler::new([42; 32], 1 << 62);
        assert_eq!(draw(&sampler, 1, 2, 24), [4, 5, 6, 10, 11, 14, 15, 16, 23]);
    }

    #[test]
    fn a_prefix_of_the_rows_is_decided_alike_whatever_follows() {
        let sampler = sampler(1, 0.3);
        let long = draw(&sampler, 2, 3, 1000);
        let short = draw(&sampler, 2, 3, 300);
        assert_eq!(
            short,
            long.into_iter().filter(|&row| row < 300).collect::<Vec<_>>()
        );
    }

    #[test]
    fn probability_one_takes_everything_and_zero_nothing() {
        assert_eq!(draw(&sampler(1, 1.0), 0, 0, 1000), (0..1000).collect::<Vec<_>>());
        assert!(draw(&sampler(1, 0.0), 0, 0, 1000).is_empty());
        assert!(draw(&sampler(1, 0.5), 0, 0, 0).is_empty());
    }

    #[test]
    fn arguments_that_mean_nothing_are_refused() {
        for q in [-0.1, 1.0 + f64::EPSILON, f64::NAN, f64::INFINITY] {
            assert!(matches!(threshold(q), Err(SamplingError::Probability { .. })));
        }
        let mut out = vec![1];
        let refused = sampler(1, 0.5).sample(0, 0, MAX_ROWS + 1, &mut out);
        assert!(matches!(refused, Err(SamplingError::TooManyRows { .. })));
        assert!(out.is_empty());
    }

    proptest! {
        #[test]
        fn the_probability_priced_is_the_probability_used(q in 0.0_f64..=1.0) {
            let threshold = threshold(q).unwrap();
            let used = probability(threshold);
            prop_assert!(used <= q && used >= q - 1.0 / TWO_TO_64);
            prop_assert_eq!(super::threshold(used).unwrap(), threshold);
        }

        #[test]
        fn no_threshold_is_priced_below_itself(threshold in any::<u64>()) {
            let used = probability(threshold) * TWO_TO_64;
            prop_assert!(used >= TWO_TO_64 || used as u64 >= threshold);
        }
    }
}
