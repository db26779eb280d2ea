//! Rounded Gaussian noise that is correlated over a band of steps, exact on the integer grid.
//!
//! With `r_1 … r_(b−1)` the matrix' coefficients, `s` a standard deviation and ξ_t independent standard normal, step `t` adds
//!
//! > `N_t = round(s·ξ_t − Σ_j r_j·N_(t−j))`
//!
//! to its sum. **That is a post-processing of the banded Gaussian mechanism.** For integer sums `G_t` let
//! `w_t = G_t + Σ_j r_j·G_(t−j) + s·ξ_t`, which is what is priced, and define `X_t = round(w_t − Σ_j r_j·X_(t−j))`, a function
//! of `w` alone. If `X_(t−j) = G_(t−j) + N_(t−j)` for all earlier steps, then
//! `X_t = round(G_t + s·ξ_t − Σ_j r_j·N_(t−j)) = G_t + N_t`, since `G_t` is an integer. So the sums of earlier steps need not be
//! kept, only their noise; nothing is ever a float but `s·ξ_t` less a fraction, which is rounded as exactly as
//! independent noise is (see [`super`]); and coefficients being multiples of 2^−[`COEFFICIENT_BITS`], `Σ_j r_j·N_(t−j)` is an
//! integer and a fraction without error.
//!
//! The noise of earlier steps is a secret as its key is: it is not to be stored, and starts from nothing at every start
//! of a trainer. That cuts rows of the matrix off, which moves the sums of fewer steps by less (`docs/privacy.md`).

use super::{MAX_STANDARD_DEVIATION, NoiseError, NoiseStream};
use crate::banded::{BandedMatrix, COEFFICIENT_BITS, LONGEST_RESPONSE};
use crate::vectors::{Pass, Vectors};
use zeroize::Zeroize;

/// Draws the correlated noise of a run.
#[derive(Clone, Debug)]
pub struct BandedNoise {
    /// `r_1, r_2, …`, in units of 2^−[`COEFFICIENT_BITS`].
    numerators: Vec<i64>,
    standard_deviation: f64,
}

/// Where noise is added: values `first_index..` of `tensor` at `step`.
#[derive(Clone, Copy, Debug)]
pub struct NoisePlace {
    /// Step, rising by one from call to call.
    pub step: u64,
    /// Tensor.
    pub tensor: u32,
    /// Index of the first value.
    pub first_index: u64,
}

impl BandedNoise {
    /// `standard_deviation`: of a step's own draw ξ, in grid units; noise multiplier times
    /// [`BandedMatrix::column_norm`] times l2_sensitivity.
    ///
    /// # Errors
    /// [`NoiseError::StandardDeviation`] below 1 or above what the sampler has bounds for; [`NoiseError::TooCorrelated`] if
    /// sums of so many so large values may not fit into an i64.
    pub fn new(matrix: &BandedMatrix, standard_deviation: f64) -> Result<Self, NoiseError> {
        if !(1.0..=MAX_STANDARD_DEVIATION).contains(&standard_deviation) {
            return Err(NoiseError::StandardDeviation {
                value: standard_deviation,
            });
        }
        // |N| ≤ Σ|h_i|·(14·s + 1): no draw has 14 standard deviations, and each rounding adds a half at most.
        let response: f64 = matrix
            .inverse_column(LONGEST_RESPONSE)
            .iter()
            .map(|h| h.abs())
            .sum();
        let largest = matrix.sum() * response * (14.0 * standard_deviation + 1.0);
        if largest.is_nan() || largest * ONE as f64 > LARGEST_SUM {
            return Err(NoiseError::TooCorrelated {
                bands: matrix.bands(),
                standard_deviation,
            });
        }
        Ok(Self {
            numerators: matrix.numerators().iter().map(|&each| i64::from(each)).collect(),
            standard_deviation,
        })
    }

    /// Earlier noise values that are kept for each value of the sums.
    pub fn memory(&self) -> usize {
        self.numerators.len()
    }

    /// Adds a step's noise to `sums`, and puts it into `memory` in place of the oldest there.
    ///
    /// `memory` has [`Self::memory`] values for each of `sums`, zero before the first step and otherwise as the call for
    /// the step before left it. Additions to the sums saturate, as in [`NoiseStream::add_rounded_gaussian`].
    ///
    /// # Guarantee
    /// The noise is a function of the key, the place and the noise in `memory` alone.
    /// # Errors
    /// [`NoiseError`]; nothing is changed then.
    pub fn add_by<V: Vectors>(
        &self,
        vectors: &V,
        stream: &NoiseStream,
        place: NoisePlace,
        sums: &mut [i64],
        memory: &mut [i64],
    ) -> Result<(), NoiseError> {
        let length = sums.len();
        super::check(place.first_index, length as u64, self.standard_deviation)?;
        if memory.len() != length * self.memory() {
            return Err(NoiseError::Memory {
                values: memory.len(),
                wanted: length * self.memory(),
            });
        }
        let (mut carried, mut fractions) = ([0_i64; BLOCK], [0.0_f64; BLOCK]);
        for start in (0..length).step_by(BLOCK) {
            let end = length.min(start + BLOCK);
            let (carried, fractions) = (&mut carried[..end - start], &mut fractions[..end - start]);
            vectors.run(Carry {
                noise: self,
                place,
                length,
                start,
                memory,
                carried,
                fractions,
            });
            let first_index = place.first_index + start as u64;
            stream.add_rounded_gaussian_less(
                vectors,
                (place.step, place.tensor, first_index),
                carried,
                self.standard_deviation,
                fractions,
            )?;
            let row = self.row(place.step, 0) * length;
            if self.memory() > 0 {
                memory[row + start..row + end].copy_from_slice(carried);
            }
            vectors.run(super::Add {
                sums: &mut sums[start..end],
                noise: carried,
            });
        }
        carried.zeroize();
        fractions.zeroize();
        Ok(())
    }

    /// The row of `memory` that holds the noise of `back` steps ago; of none ago: that takes this step's.
    fn row(&self, step: u64, back: usize) -> usize {
        match self.memory() as u64 {
            0 => 0,
            rows => ((step % rows + rows - back as u64 % rows) % rows) as usize,
        }
    }
}

/// `−Σ_j r_j·N_(t−j)` of a block as integers less fractions in [0, 1).
struct Carry<'a> {
    noise: &'a BandedNoise,
    place: NoisePlace,
    length: usize,
    start: usize,
    memory: &'a [i64],
    carried: &'a mut [i64],
    fractions: &'a mut [f64],
}

impl Pass for Carry<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.carried.fill(0);
        for (index, &numerator) in self.noise.numerators.iter().enumerate() {
            let row = self.noise.row(self.place.step, index + 1) * self.length + self.start;
            let earlier = &self.memory[row..row + self.carried.len()];
            for (sum, &value) in self.carried.iter_mut().zip(earlier) {
                *sum = sum.wrapping_add(numerator.wrapping_mul(value));
            }
        }
        for (sum, fraction) in self.carried.iter_mut().zip(self.fractions) {
            *fraction = (*sum & (ONE - 1)) as f64 * (1.0 / ONE as f64);
            *sum = -(*sum >> COEFFICIENT_BITS);
        }
    }
}

const ONE: i64 = 1 << COEFFICIENT_BITS;
/// Room for the sums of products.
const LARGEST_SUM: f64 = (1_u64 << 62) as f64;
/// Values done at once: a multiple of what the noise is made in.
const BLOCK: usize = 1024;

#[cfg(test)]
mod tests;
