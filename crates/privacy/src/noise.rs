//! Rounded Gaussian noise on an integer grid (dp.md, rule 8).
//!
//! Adds round(N(0, s²)) to integer sums. As f + round(Z) = round(f + Z) for integer f, the result is
//! a post-processing of the continuous Gaussian mechanism on f, so its accounting applies unchanged;
//! there are no floating-point outputs whose gaps could betray f (Mironov 2012).
//!
//! **How exact it is** (soundness.md D11). Value pair (2p, 2p+1) of (step, tensor) is a Box–Muller pair
//! of two uniforms of 192 bits from ChaCha20. The vectorised path computes it from their first 64 bits
//! in f64 with a proven error bound, and is used only where no value within that bound rounds otherwise;
//! the rest, about one value in thirty thousand, are redone with 128 bits in 106-bit arithmetic, and what that
//! does not decide either, about one in a billion, with all bits in fixed point of 320. The
//! integer is therefore the exact rounding of the exact Gaussian but for an event of probability below
//! [`total_variation_per_value`], which is nothing in any run there can be. Which path is taken depends on the noise
//! alone, never on the sums.

mod banded;
mod double_double;
mod exact;
mod finest;
mod fixed;
mod vector;

pub use banded::{BandedNoise, NoisePlace};

use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use crate::stream::{BLOCK_BYTES, Purpose, STREAM_BYTES, SubKey};
use crate::vectors::{Baseline, Pass, Vectors};
use vector::{BLOCK_VALUES, Round, RoundLess, RoundedBlock};

/// Why noise could not be drawn. Nothing has been added then.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum NoiseError {
    /// A standard deviation the sampler has no error bound for.
    #[error(
        "standard deviation {value} (in grid units) is not in (0, {MAX_STANDARD_DEVIATION:e}]; choose a coarser grid"
    )]
    StandardDeviation {
        /// What was passed.
        value: f64,
    },
    /// More values than one stream holds.
    #[error(
        "values {first_index}.. ({length} of them) of a tensor reach beyond the {MAX_VALUES} one stream holds; split the tensor"
    )]
    TooManyValues {
        /// First index asked for.
        first_index: u64,
        /// How many.
        length: u64,
    },
    /// Correlated noise whose sums may not fit into an i64.
    #[error(
        "noise of standard deviation {standard_deviation} (in grid units) over {bands} bands is beyond 64-bit sums; choose fewer bands"
    )]
    TooCorrelated {
        /// Bands of the matrix.
        bands: u64,
        /// Of a step's own draw.
        standard_deviation: f64,
    },
    /// Memory of other values' noise.
    #[error("the noise of earlier steps has {values} values, the sums need {wanted}")]
    Memory {
        /// What was passed.
        values: usize,
        /// What it must be.
        wanted: usize,
    },
}

/// The Gaussian noise of one run. The key is wiped on drop and never shown.
pub struct NoiseStream {
    head: SubKey,
    tail: SubKey,
    end: SubKey,
}

impl NoiseStream {
    /// Noise for one run. `key` is the run key: fresh from the system's randomness at every start of a
    /// trainer (soundness.md D1), never persisted, never logged.
    pub fn new(key: [u8; 32]) -> Self {
        let key = Zeroizing::new(key);
        Self {
            head: SubKey::derive(&key, Purpose::Noise),
            tail: SubKey::derive(&key, Purpose::NoiseTail),
            end: SubKey::derive(&key, Purpose::NoiseEnd),
        }
    }

    /// Adds round(N(0, `standard_deviation`²)) to each of `sums`, independently.
    ///
    /// `standard_deviation` is in grid units; `sums` are values `first_index..` of `tensor` at `step`, so
    /// the chunks of a tensor can be done in parallel and give what one call gives. Additions saturate:
    /// a clamp of the noisy value is post-processing and, unlike an error, tells nobody about the sum.
    ///
    /// # Guarantee
    /// The noise is a function of (key, step, tensor, index, `standard_deviation`) alone. Never call it
    /// twice for one (step, tensor, index) with different sums: the noise would cancel (soundness.md D1).
    /// # Errors
    /// [`NoiseError`]; `sums` are then untouched.
    pub fn add_rounded_gaussian(
        &self,
        step: u64,
        tensor: u32,
        first_index: u64,
        sums: &mut [i64],
        standard_deviation: f64,
    ) -> Result<(), NoiseError> {
        self.add_rounded_gaussian_by(&Baseline, step, tensor, first_index, sums, standard_deviation)
    }

    /// As [`Self::add_rounded_gaussian`], on the caller's vectors: the same values, faster.
    ///
    /// # Errors
    /// As [`Self::add_rounded_gaussian`].
    pub fn add_rounded_gaussian_by<V: Vectors>(
        &self,
        vectors: &V,
        step: u64,
        tensor: u32,
        first_index: u64,
        sums: &mut [i64],
        standard_deviation: f64,
    ) -> Result<(), NoiseError> {
        self.add(
            vectors,
            (step, tensor, first_index),
            sums,
            standard_deviation,
            None,
        )
    }

    /// Adds round(N(0, `standard_deviation`²) − fraction) to each of `sums`, for fractions in [0, 1) and a standard
    /// deviation of at least 1, below which the error of the subtraction is not covered by the bound.
    fn add_rounded_gaussian_less<V: Vectors>(
        &self,
        vectors: &V,
        place: (u64, u32, u64),
        sums: &mut [i64],
        standard_deviation: f64,
        fractions: &[f64],
    ) -> Result<(), NoiseError> {
        self.add(vectors, place, sums, standard_deviation, Some(fractions))
    }

    fn add<V: Vectors>(
        &self,
        vectors: &V,
        (step, tensor, first_index): (u64, u32, u64),
        sums: &mut [i64],
        standard_deviation: f64,
        fractions: Option<&[f64]>,
    ) -> Result<(), NoiseError> {
        check(first_index, sums.len() as u64, standard_deviation)?;
        let mut key_block = first_index / VALUES_OF_KEY_BLOCK;
        let mut skip = (first_index % VALUES_OF_KEY_BLOCK) as usize;
        let mut words = Zeroizing::new([0_u8; BLOCK_VALUES * 8]);
        let mut block = RoundedBlock::new(standard_deviation);
        let mut less = [0.0; BLOCK_VALUES];
        let mut fractions = fractions;
        let mut rest = sums;
        while !rest.is_empty() {
            let wanted = rest.len().min(BLOCK_VALUES - skip);
            let bytes = &mut words[..(skip + wanted).div_ceil(2) * PAIR_BYTES as usize];
            // Within [`MAX_VALUES`] block numbers are below 2^32.
            vectors.keystream(&self.head.blocks(step, tensor, key_block as u32), bytes);
            let settled = match fractions.as_mut() {
                None => vectors.run(Round {
                    words: &words,
                    block: &mut block,
                }),
                Some(fractions) => {
                    let (now, later) = fractions.split_at(wanted);
                    less[skip..skip + wanted].copy_from_slice(now);
                    *fractions = later;
                    vectors.run(RoundLess {
                        words: &words,
                        less: &less,
                        block: &mut block,
                    })
                }
            };
            if !settled {
                let pair = key_block * VALUES_OF_KEY_BLOCK / 2;
                self.settle(step, tensor, pair, &words, &less, skip..skip + wanted, &mut block);
            }
            let (now, later) = rest.split_at_mut(wanted);
            vectors.run(Add {
                sums: now,
                noise: &block.values[skip..skip + wanted],
            });
            rest = later;
            key_block += BLOCK_VALUES as u64 / VALUES_OF_KEY_BLOCK;
            skip = 0;
        }
        block.values.zeroize();
        Ok(())
    }

    /// One value: round(N(0, `standard_deviation`²)), what [`Self::add_rounded_gaussian`] adds at index 0.
    ///
    /// For single numbers on an integer grid, such as the loss sum. Give it a tensor id of its own.
    ///
    /// # Errors
    /// [`NoiseError::StandardDeviation`].
    pub fn rounded_gaussian(
        &self,
        step: u64,
        tensor: u32,
        standard_deviation: f64,
    ) -> Result<i64, NoiseError> {
        let mut value = [0];
        self.add_rounded_gaussian(step, tensor, 0, &mut value, standard_deviation)?;
        Ok(value[0])
    }

    /// Replaces the values of a block that 64 bits did not settle by the exact ones.
    #[allow(clippy::too_many_arguments)]
    fn settle(
        &self,
        step: u64,
        tensor: u32,
        first_pair: u64,
        words: &[u8; BLOCK_VALUES * 8],
        less: &[f64; BLOCK_VALUES],
        wanted: std::ops::Range<usize>,
        block: &mut RoundedBlock,
    ) {
        for position in wanted {
            if block.settled[position] == 0 {
                let pair = position / 2;
                let mut head = [0_u8; 16];
                head.copy_from_slice(&words[16 * pair..16 * pair + 16]);
                let further = |key: &SubKey| {
                    let mut bits = [0_u8; 16];
                    let at = (first_pair + pair as u64) * PAIR_BYTES;
                    key.stream(step, tensor, at).fill(&mut bits);
                    bits
                };
                let (tail, odd) = (further(&self.tail), position % 2 == 1);
                let (standard_deviation, less) = (block.standard_deviation, less[position]);
                block.values[position] = exact::settled(&head, &tail, odd, standard_deviation, less)
                    .unwrap_or_else(|| {
                        let parts = [head, tail, further(&self.end)];
                        finest::Value::new(&parts, odd).rounded(standard_deviation, less)
                    });
            }
        }
    }
}

/// Bound on the total variation between one value and the exact rounded Gaussian, ChaCha20 being ideal.
///
/// A value differs only if the exact Gaussian lies within the error of the finest path of a rounding boundary, of which
/// there is one a grid unit. That error is what 192 bits leave of the radius' uniform U, 2^−193/(U·r) standard deviations
/// at radius r, and of the angle's, 2π·2^−193·r; its mean is below 2^−188, since dU/(U·r) = dr and r ≤ 16.4 (the arithmetic's
/// own 2^−300 is nothing beside). With a factor of 2^8 to spare: at 2^30 grid units, 2^−149. A run of T steps over d values is
/// within T·d times this of the ideal one, which adds that times (1 + e^ε) to δ: below 2^−59 at T·d = 2^60 and ε = 20.
pub fn total_variation_per_value(standard_deviation: f64) -> f64 {
    2.0 * standard_deviation * 2.0_f64.powi(-180) + 2.0_f64.powi(-180)
}

fn check(first_index: u64, length: u64, standard_deviation: f64) -> Result<(), NoiseError> {
    if !(standard_deviation > 0.0 && standard_deviation <= MAX_STANDARD_DEVIATION) {
        return Err(NoiseError::StandardDeviation {
            value: standard_deviation,
        });
    }
    match first_index.checked_add(length) {
        Some(end) if end <= MAX_VALUES => Ok(()),
        _ => Err(NoiseError::TooManyValues { first_index, length }),
    }
}

/// Adds the noise of a block, saturating.
struct Add<'a> {
    sums: &'a mut [i64],
    noise: &'a [i64],
}

impl Pass for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (sum, noise) in self.sums.iter_mut().zip(self.noise) {
            *sum = sum.saturating_add(*noise);
        }
    }
}

/// Largest standard deviation in grid units. Values stay below 14 × 2^44 < 2^48, exact in f64.
pub const MAX_STANDARD_DEVIATION: f64 = (1_u64 << 44) as f64;
/// A pair of values takes two 64-bit words of a stream.
const PAIR_BYTES: u64 = 16;
/// Four pairs a block of the cipher: blocks of values start with one.
const VALUES_OF_KEY_BLOCK: u64 = BLOCK_BYTES / 8;
/// Values of a tensor one stream holds: nearly 2^35.
const MAX_VALUES: u64 = STREAM_BYTES / 8;

#[cfg(test)]
mod tests;
