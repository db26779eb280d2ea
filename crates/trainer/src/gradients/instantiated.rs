//! Gradients of single records, written out: their norms, and their weighted sum.
//!
//! Both accumulate in f64, whatever precision the gradients were computed in. That precision needs no bound of its
//! own (rule G1): the numbers that are clipped are the very numbers that are summed, and they are a function of their
//! record alone. A record whose gradient rounds badly trains badly, and moves the sum by C at most all the same.

use crate::accelerated;
use crate::device::is_on_host;
use crate::error::{EngineError, Result};
use crate::ffi::{self, Element};
use crate::grid::in_parallel;
use crate::vectors::{Pass, Vectors, Widest};
use std::ops::Range;
use tch::{Kind, Tensor};

/// Columns of a sum worked on at once: their f64 sums stay in the nearest cache.
const COLUMNS: usize = 2048;

/// Fewest columns of a thread.
const FEWEST_COLUMNS: usize = 64;

/// Sums of a norm side by side: four of the widest vectors.
const LANES: usize = 32;

/// Fewer elements than this are not worth a second thread.
const WORTH_THREADS: usize = 1 << 16;

/// Squared norms of `[records, ..]`: f64.
///
/// # Errors
/// [`EngineError::SumOutOfBound`] when the tensor is not floating.
pub(crate) fn squared_norms(gradients: &Tensor, threads: usize) -> Result<Vec<f64>> {
    if !is_on_host(gradients) {
        return accelerated::squared_norms(gradients);
    }
    let (gradients, _) = as_it_lies(gradients)?;
    let records = gradients.size().first().copied().unwrap_or(0) as usize;
    match gradients.kind() {
        Kind::Float => ffi::read(&gradients, |values: &[f32]| norms(values, records, threads)),
        Kind::Double => ffi::read(&gradients, |values: &[f64]| norms(values, records, threads)),
        _ => None,
    }
    .ok_or(EngineError::SumOutOfBound)
}

/// `Σ_i c_i·G_i` of `[records, ..]` in f64: `[..]`. Records with factor 0 are not read (rule G3).
///
/// # Errors
/// [`EngineError::SumOutOfBound`] when the tensor is not floating, or has another number of records.
pub(crate) fn weighted_sum(gradients: &Tensor, factors: &[f64], threads: usize) -> Result<Tensor> {
    if !is_on_host(gradients) {
        return accelerated::weighted_sum(gradients, factors);
    }
    let (gradients, order) = as_it_lies(gradients)?;
    let shape = gradients.size();
    let Some((&records, shape)) = shape.split_first() else {
        return Err(EngineError::SumOutOfBound);
    };
    if records as usize != factors.len() {
        return Err(EngineError::SumOutOfBound);
    }
    let sum = match gradients.kind() {
        Kind::Float => ffi::read(&gradients, |values: &[f32]| sum(values, factors, threads)),
        Kind::Double => ffi::read(&gradients, |values: &[f64]| sum(values, factors, threads)),
        _ => None,
    }
    .ok_or(EngineError::SumOutOfBound)?;
    let mut back = vec![0; shape.len()];
    for (place, axis) in order.iter().enumerate() {
        back[*axis as usize - 1] = place as i64;
    }
    let sum = Tensor::f_from_slice(&sum)?.f_reshape(shape)?;
    Ok(sum.f_permute(&back[..])?.f_contiguous()?)
}

/// `[records, ..]` with the other axes in the order in which they lie in memory, contiguous, and that order.
///
/// A convolution's gradients have their channels last (`taps::convolution`): to copy them would cost as much as their
/// norms.
fn as_it_lies(gradients: &Tensor) -> Result<(Tensor, Vec<i64>)> {
    let strides = gradients.stride();
    let mut order: Vec<i64> = (1..strides.len() as i64).collect();
    order.sort_by_key(|&axis| std::cmp::Reverse(strides[axis as usize]));
    let mut axes = vec![0];
    axes.extend(&order);
    axes.truncate(strides.len());
    Ok((gradients.f_permute(&axes[..])?.f_contiguous()?, order))
}

fn worth(elements: usize, threads: usize) -> usize {
    if elements < WORTH_THREADS { 1 } else { threads }
}

fn norms<T: Element + Into<f64> + Sync>(values: &[T], records: usize, threads: usize) -> Vec<f64> {
    let width = values.len() / records.max(1);
    if width == 0 {
        return vec![0.0; records];
    }
    in_parallel(
        values.chunks_exact(width).collect(),
        worth(values.len(), threads),
        |row| Widest.run(SquaredNorm(row)),
    )
}

/// Of one record.
struct SquaredNorm<'g, T>(&'g [T]);

impl<T: Element + Into<f64>> Pass for SquaredNorm<'_, T> {
    type Output = f64;

    /// Sums side by side, so that the compiler may use vectors; any order is within the bound.
    #[inline(always)]
    fn run(self) -> f64 {
        let mut sums = [0.0f64; LANES];
        let (blocks, rest) = self.0.as_chunks::<LANES>();
        for block in blocks {
            for (sum, &value) in sums.iter_mut().zip(block) {
                let value: f64 = value.into();
                *sum += value * value;
            }
        }
        let rest = rest.iter().map(|&value| value.into() * value.into());
        sums.iter().sum::<f64>() + rest.sum::<f64>()
    }
}

fn sum<T: Element + Into<f64> + Sync>(values: &[T], factors: &[f64], threads: usize) -> Vec<f64> {
    let width = values.len() / factors.len().max(1);
    let mut total = vec![0.0f64; width];
    let records: Vec<Weighted<'_, T>> = values
        .chunks_exact(width.max(1))
        .zip(factors)
        .map(|(gradient, &factor)| Weighted {
            gradient,
            factor,
            mask: if factor == 0.0 { 0 } else { u64::MAX },
        })
        .collect();
    let threads = worth(values.len(), threads);
    let columns = COLUMNS.min(width.div_ceil(threads)).max(FEWEST_COLUMNS);
    let work: Vec<(usize, &mut [f64])> = total
        .chunks_mut(columns)
        .enumerate()
        .map(|(chunk, sums)| (chunk * columns, sums))
        .collect();
    in_parallel(work, threads, |(first, sums)| {
        Widest.run(WeightedSum {
            records: &records,
            first,
            sums,
        });
    });
    total
}

/// One record's gradient. One that does not count is read like any other, so that the time tells nothing (rule D8), and
/// is selected away by its mask: whatever it holds, it is never multiplied (rule G3).
struct Weighted<'g, T> {
    gradient: &'g [T],
    factor: f64,
    mask: u64,
}

impl<'g, T: Element + Into<f64>> Weighted<'g, T> {
    #[inline(always)]
    fn part(&self, columns: &Range<usize>) -> (&'g [T], impl Fn(T) -> f64 + use<'g, T>) {
        let (factor, mask) = (self.factor, self.mask);
        let weighted = move |value: T| factor * f64::from_bits(Into::<f64>::into(value).to_bits() & mask);
        (&self.gradient[columns.clone()], weighted)
    }
}

/// Of the columns from `first`; `sums` are zero.
struct WeightedSum<'g, T> {
    records: &'g [Weighted<'g, T>],
    first: usize,
    sums: &'g mut [f64],
}

impl<T: Element + Into<f64>> Pass for WeightedSum<'_, T> {
    type Output = ();

    /// Four records at a time: sums are read and written a quarter as often.
    #[inline(always)]
    fn run(self) {
        let columns = self.first..self.first + self.sums.len();
        let (fours, rest) = self.records.as_chunks::<4>();
        for four in fours {
            let [(a, of_a), (b, of_b), (c, of_c), (d, of_d)] =
                four.each_ref().map(|record| record.part(&columns));
            let values = a.iter().zip(b).zip(c).zip(d);
            for (sum, (((&a, &b), &c), &d)) in self.sums.iter_mut().zip(values) {
                *sum += (of_a(a) + of_b(b)) + (of_c(c) + of_d(d));
            }
        }
        for record in rest {
            let (values, weighted) = record.part(&columns);
            for (sum, &value) in self.sums.iter_mut().zip(values) {
                *sum += weighted(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn norms_and_sums_are_those_of_f64_whatever_the_width() {
        for width in [1, 7, 8, 9, 2047, 2049, 5000] {
            let gradients = Tensor::randn([13, width], (Kind::Float, Device::Cpu));
            let exact = gradients.to_kind(Kind::Double);
            let expected =
                Vec::<f64>::try_from(exact.square().sum_dim_intlist(1, false, Kind::Double)).unwrap();
            for (own, expected) in squared_norms(&gradients, 2).unwrap().iter().zip(&expected) {
                assert!((own - expected).abs() <= 1e-13 * expected, "{width}");
            }
            let factors: Vec<f64> = (0..13).map(|record| f64::from(record) / 7.0).collect();
            let expected = Tensor::from_slice(&factors)
                .unsqueeze(0)
                .mm(&exact)
                .squeeze_dim(0);
            let own = weighted_sum(&gradients, &factors, 2).unwrap();
            assert!(
                f64::try_from((own - expected).abs().max()).unwrap() < 1e-12,
                "{width}"
            );
        }
    }

    #[test]
    fn a_record_that_does_not_count_is_not_multiplied_by_zero() {
        let gradients = Tensor::from_slice(&[f32::NAN, f32::INFINITY, 2.0, 3.0]).reshape([2, 2]);
        let sum = weighted_sum(&gradients, &[0.0, 0.5], 1).unwrap();
        assert_eq!(Vec::<f64>::try_from(sum).unwrap(), [1.0, 1.5]);
        assert!(squared_norms(&gradients, 1).unwrap()[0].is_nan());
    }

    #[test]
    fn the_order_of_axes_in_memory_does_not_matter() {
        let lying = Tensor::randn([5, 4, 3, 2, 7], (Kind::Float, Device::Cpu));
        let factors = [0.5, 0.0, 0.25, 1.0, 2.0];
        for axes in [[0, 1, 4, 2, 3], [0, 4, 3, 2, 1], [0, 1, 2, 3, 4]] {
            let permuted = lying.permute(axes);
            let expected = weighted_sum(&permuted.contiguous(), &factors, 2).unwrap();
            assert_eq!(weighted_sum(&permuted, &factors, 2).unwrap(), expected);
            assert_eq!(
                squared_norms(&permuted, 1).unwrap(),
                squared_norms(&lying, 1).unwrap()
            );
        }
    }

    #[test]
    fn factors_of_other_records_are_refused() {
        let gradients = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu));
        assert!(weighted_sum(&gradients, &[1.0], 1).is_err());
    }
}
