//! Sums of noise mode `hardened`: each record's clipped gradient is rounded to the integer grid by itself, paid for in
//! integers, and added in integers.
//!
//! On a grid of `C·2^-30` a vector of norm C is one of 2^60 square units. That is each record's allowance for a
//! micro-batch. Before a parameter's part of its gradient is added, the squares of the very integers that would be added are summed, exactly;
//! a part that what is left of the allowance does not cover is not added at all, and one that is is taken from it. So
//! no record moves a sum by more than C, whatever norms, clip factors or kernels were worth: that rests on integer
//! additions and one comparison, and Δ = C.
//!
//! Integers are additive: neither the order of records nor the way they are split into batches and blocks enters. They
//! are rounded towards zero, which no norm grows by: what was clipped to C in f64, by a norm that is an upper bound, is always covered.

use crate::error::{EngineError, Result};
use crate::ffi::{self, Element};
use crate::grid::{UNITS_PER_NORM, in_parallel};
use crate::vectors::{Pass, Vectors, Widest};
use tch::{Kind, Tensor};

/// C² in square units.
const ALLOWANCE: u64 = (UNITS_PER_NORM * UNITS_PER_NORM) as u64;

/// Squares side by side.
const LANES: usize = 16;

/// Where squares are cut in two: the sums of 2^31 of either half stay below 2^64.
const HALF_BITS: u32 = 30;
const HALF: u64 = (1 << HALF_BITS) - 1;
const MOST_ELEMENTS: usize = 1 << 31;

/// Columns added at once: their sums stay in the nearest cache.
const COLUMNS: usize = 2048;

/// Fewer elements than this are not worth a second thread.
const WORTH_THREADS: usize = 1 << 16;

/// What each record of a micro-batch may still add, in square units.
#[derive(Clone, Debug)]
pub(crate) struct Allowances(Vec<u64>);

impl Allowances {
    pub(crate) fn new(records: usize) -> Self {
        Self(vec![ALLOWANCE; records])
    }

    /// Adds `c_i·G_i`, rounded to the grid, of the records from `first`: `[records, ..]` in host memory, of which there
    /// are `units` grid units in 1. Records with factor 0 are read like any other and add exactly zero.
    ///
    /// # Errors
    /// [`EngineError::SumOutOfBound`] when shapes do not fit together or the tensor is not floating.
    pub(crate) fn add(
        &mut self,
        gradients: &Tensor,
        first: usize,
        factors: &[f64],
        units: f64,
        sums: &mut [i64],
        threads: usize,
    ) -> Result<()> {
        let left = self
            .0
            .get_mut(first..)
            .and_then(|left| left.get_mut(..factors.len()));
        let left = left.ok_or(EngineError::SumOutOfBound)?;
        let gradients = gradients.f_contiguous()?;
        let fits = gradients.numel() == factors.len() * sums.len() && sums.len() <= MOST_ELEMENTS;
        if !fits {
            return Err(EngineError::SumOutOfBound);
        }
        let added = match gradients.kind() {
            Kind::Float => ffi::read(&gradients, |values: &[f32]| {
                add(values, factors, units, left, sums, threads);
            }),
            Kind::Double => ffi::read(&gradients, |values: &[f64]| {
                add(values, factors, units, left, sums, threads);
            }),
            _ => None,
        };
        added.ok_or(EngineError::SumOutOfBound)
    }
}

fn add<T: Element + Into<f64> + Sync>(
    values: &[T],
    factors: &[f64],
    units: f64,
    left: &mut [u64],
    sums: &mut [i64],
    threads: usize,
) {
    if sums.is_empty() || factors.is_empty() {
        return;
    }
    let threads = if values.len() < WORTH_THREADS { 1 } else { threads };
    let of = |(gradient, &factor)| Scaled::new(gradient, factor, units);
    let mut records: Vec<Scaled<'_, T>> = values.chunks_exact(sums.len()).zip(factors).map(of).collect();
    let costs = in_parallel(records.iter().collect(), threads, |record| {
        Widest.run(Squares(*record))
    });
    for ((record, cost), left) in records.iter_mut().zip(costs).zip(left) {
        let is_covered = cost <= u128::from(*left);
        record.mask &= if is_covered { u64::MAX } else { 0 };
        *left -= if is_covered { cost as u64 } else { 0 };
    }
    let columns = COLUMNS.min(sums.len().div_ceil(threads));
    let work = sums.chunks_mut(columns).enumerate().collect();
    in_parallel(work, threads, |(chunk, sums): (usize, &mut [i64])| {
        Widest.run(AddUnits {
            records: &records,
            first: chunk * columns,
            sums,
        });
    });
}

/// One record's gradient and the factor that makes grid units of it. One that adds nothing is selected away by its mask:
/// whatever it holds, it is never multiplied (rule G3), and it is read like any other (rule D8).
#[derive(Clone, Copy)]
struct Scaled<'g, T> {
    gradient: &'g [T],
    factor: f64,
    mask: u64,
}

impl<'g, T: Element + Into<f64>> Scaled<'g, T> {
    fn new(gradient: &'g [T], factor: f64, units: f64) -> Self {
        Self {
            gradient,
            factor: factor * units,
            mask: if factor == 0.0 { 0 } else { u64::MAX },
        }
    }

    /// Towards zero; what is out of range is the nearest there is, and no number is zero: neither is ever covered, or both are.
    #[inline(always)]
    fn units(&self, value: T) -> i32 {
        (f64::from_bits(value.into().to_bits() & self.mask) * self.factor) as i32
    }
}

/// Sum of the squares of a record's units, exactly.
struct Squares<'g, T>(Scaled<'g, T>);

impl<T: Element + Into<f64>> Pass for Squares<'_, T> {
    type Output = u128;

    #[inline(always)]
    fn run(self) -> u128 {
        let (mut high, mut low) = ([0u64; LANES], [0u64; LANES]);
        let (blocks, rest) = self.0.gradient.as_chunks::<LANES>();
        let mut take = |lane: usize, value: T| {
            let units = i64::from(self.0.units(value));
            // At most 2^62.
            let square = (units * units) as u64;
            high[lane] += square >> HALF_BITS;
            low[lane] += square & HALF;
        };
        for block in blocks {
            for (lane, &value) in block.iter().enumerate() {
                take(lane, value);
            }
        }
        for (lane, &value) in rest.iter().enumerate() {
            take(lane, value);
        }
        let sum = |halves: &[u64]| halves.iter().map(|&half| u128::from(half)).sum::<u128>();
        (sum(&high) << HALF_BITS) + sum(&low)
    }
}

/// Of the columns from `first`.
struct AddUnits<'g, T> {
    records: &'g [Scaled<'g, T>],
    first: usize,
    sums: &'g mut [i64],
}

impl<T: Element + Into<f64>> Pass for AddUnits<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let columns = self.first..self.first + self.sums.len();
        for record in self.records {
            for (sum, &value) in self.sums.iter_mut().zip(&record.gradient[columns.clone()]) {
                *sum += i64::from(record.units(value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    const UNIT: f64 = 1.0 / UNITS_PER_NORM;

    fn added(gradients: &Tensor, factors: &[f64], left: &mut Allowances) -> Vec<i64> {
        let mut sums = vec![0; gradients.numel() / factors.len()];
        left.add(gradients, 0, factors, UNITS_PER_NORM, &mut sums, 2)
            .unwrap();
        sums
    }

    #[test]
    fn a_record_is_rounded_towards_zero_and_pays_in_squares() {
        let gradients =
            Tensor::from_slice(&[3.7 * UNIT, -3.7 * UNIT, 0.9 * UNIT, 2.0 * UNIT]).reshape([1, 4]);
        let mut left = Allowances::new(1);
        assert_eq!(added(&gradients, &[1.0], &mut left), [3, -3, 0, 2]);
        assert_eq!(left.0, [ALLOWANCE - 22]);
        assert_eq!(ALLOWANCE, 1 << 60);
    }

    #[test]
    fn a_part_that_is_not_covered_is_not_added_and_costs_nothing() {
        let whole = Tensor::from_slice(&[0.8f64, 0.6]).reshape([1, 2]);
        let mut left = Allowances::new(1);
        let units = UNITS_PER_NORM as i64;
        let first = added(&whole, &[1.0], &mut left);
        let spent: u64 = first.iter().map(|units| (units * units) as u64).sum();
        assert_eq!(left.0, [ALLOWANCE - spent]);
        // A second part as long: the record has nothing left for it.
        assert_eq!(added(&whole, &[1.0], &mut left), [0, 0]);
        assert_eq!(left.0, [ALLOWANCE - spent]);
        // The longest that is covered, and one unit more.
        let mut left = Allowances::new(2);
        let edge = Tensor::from_slice(&[1.0, 0.0, 1.0, UNIT]).reshape([2, 2]);
        assert_eq!(added(&edge, &[1.0, 1.0], &mut left), [units, 0]);
        assert_eq!(left.0, [0, ALLOWANCE]);
    }

    #[test]
    fn no_factor_and_no_value_gets_a_record_past_its_allowance() {
        let hostile = [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            1e300,
            -1e300,
            2.5,
            1.0 + 1e-9,
            -4.0,
            1e-320,
        ];
        for value in hostile {
            for factor in [0.0, 1.0, 1e-3, 1e9, 9e18] {
                for width in [1i64, 2, 33, 5000] {
                    let gradients = Tensor::full([1, width], value, (Kind::Double, Device::Cpu));
                    let sums = added(&gradients, &[factor], &mut Allowances::new(1));
                    let squares: u128 = sums
                        .iter()
                        .map(|&units| u128::from(units.unsigned_abs()).pow(2))
                        .sum();
                    assert!(
                        squares <= u128::from(ALLOWANCE),
                        "{value} {factor} {width}: {squares}"
                    );
                }
            }
        }
    }

    /// Whose squares would wrap around 2^64 in a plain sum.
    #[test]
    fn squares_are_summed_without_wrapping() {
        for width in [4i64, 16, 64, 1 << 17] {
            let gradients = Tensor::full([1, width], -2.0, (Kind::Float, Device::Cpu));
            let cost = ffi::read(&gradients, |values: &[f32]| {
                Widest.run(Squares(Scaled::new(values, 1.0, UNITS_PER_NORM)))
            });
            assert_eq!(cost, Some((width as u128) << 62));
            assert!(
                added(&gradients, &[1.0], &mut Allowances::new(1))
                    .iter()
                    .all(|&sum| sum == 0)
            );
        }
    }

    #[test]
    fn widths_threads_and_permutations_do_not_matter() {
        for width in [1i64, 15, 16, 17, 2047, 2049, 9000] {
            let gradients = Tensor::randn([13, width], (Kind::Float, Device::Cpu)) * 1e-3;
            let factors: Vec<f64> = (0..13).map(|record| f64::from(record) / 13.0).collect();
            let own = added(&gradients, &factors, &mut Allowances::new(13));
            let values = Vec::<f64>::try_from(gradients.to_kind(Kind::Double).flatten(0, 1)).unwrap();
            let expected: Vec<i64> = (0..width as usize)
                .map(|column| {
                    let units = |record: usize| {
                        let scaled =
                            values[record * width as usize + column] * (factors[record] * UNITS_PER_NORM);
                        scaled.trunc() as i64
                    };
                    (0..13).map(units).sum()
                })
                .collect();
            assert_eq!(own, expected, "{width}");
            let backwards = gradients.flip([0]);
            let factors: Vec<f64> = factors.into_iter().rev().collect();
            assert_eq!(added(&backwards, &factors, &mut Allowances::new(13)), expected);
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let gradients = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu));
        let mut left = Allowances::new(2);
        for (first, factors, width) in [(0, 1, 2), (0, 2, 3), (1, 2, 2), (3, 0, 0)] {
            let mut sums = vec![0; width];
            let refused = left.add(&gradients, first, &vec![1.0; factors], 1.0, &mut sums, 1);
            assert!(refused.is_err(), "{first} {factors} {width}");
        }
    }
}
