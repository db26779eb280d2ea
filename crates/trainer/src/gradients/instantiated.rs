//! Gradients of single records, written out: their norms, and their weighted sum.
//!
//! Both accumulate in f64, whatever precision the gradients were computed in. That precision needs no bound of its
//! own (rule G1): the numbers that are clipped are the very numbers that are summed, and they are a function of their
//! record alone. A record whose gradient rounds badly trains badly, and moves the sum by C at most all the same.

use crate::error::{EngineError, Result};
use crate::ffi::{self, Element};
use crate::grid::in_parallel;
use tch::{Kind, Tensor};

/// Columns of a sum worked on at once: their f64 sums stay in the nearest cache.
const COLUMNS: usize = 2048;

/// Fewer elements than this are not worth a second thread.
const WORTH_THREADS: usize = 1 << 16;

/// Squared norms of `[records, ..]`: f64.
///
/// # Errors
/// [`EngineError::SumOutOfBound`] when the tensor is not floating.
pub(crate) fn squared_norms(gradients: &Tensor, threads: usize) -> Result<Vec<f64>> {
    let gradients = gradients.f_contiguous()?;
    let records = gradients.size().first().copied().unwrap_or(0) as usize;
    match gradients.kind() {
        Kind::Float => ffi::read(&gradients, |values: &[f32]| norms(values, records, threads)),
        Kind::Double => ffi::read(&gradients, |values: &[f64]| norms(values, records, threads)),
        _ => None,
    }
    .ok_or(EngineError::SumOutOfBound)
}

/// `Σ_i c_i·G_i` of `[records, ..]` in f64. Records with factor 0 are not read (rule G3).
///
/// # Errors
/// [`EngineError::SumOutOfBound`] when the tensor is not floating, or has another number of records.
pub(crate) fn weighted_sum(gradients: &Tensor, factors: &[f64], threads: usize) -> Result<Vec<f64>> {
    let gradients = gradients.f_contiguous()?;
    if gradients
        .size()
        .first()
        .is_none_or(|&records| records as usize != factors.len())
    {
        return Err(EngineError::SumOutOfBound);
    }
    match gradients.kind() {
        Kind::Float => ffi::read(&gradients, |values: &[f32]| sum(values, factors, threads)),
        Kind::Double => ffi::read(&gradients, |values: &[f64]| sum(values, factors, threads)),
        _ => None,
    }
    .ok_or(EngineError::SumOutOfBound)
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
        squared_norm,
    )
}

/// Eight sums side by side, so that the compiler may use vectors; any order is within the bound.
fn squared_norm<T: Element + Into<f64>>(row: &[T]) -> f64 {
    let mut sums = [0.0f64; 8];
    let blocks = row.chunks_exact(8);
    let rest: f64 = blocks
        .remainder()
        .iter()
        .map(|&value| value.into() * value.into())
        .sum();
    for block in blocks {
        for (sum, &value) in sums.iter_mut().zip(block) {
            let value: f64 = value.into();
            *sum += value * value;
        }
    }
    sums.iter().sum::<f64>() + rest
}

fn sum<T: Element + Into<f64> + Sync>(values: &[T], factors: &[f64], threads: usize) -> Vec<f64> {
    let width = values.len() / factors.len().max(1);
    let mut total = vec![0.0f64; width];
    let work: Vec<(usize, &mut [f64])> = total
        .chunks_mut(COLUMNS)
        .enumerate()
        .map(|(chunk, sums)| (chunk * COLUMNS, sums))
        .collect();
    in_parallel(work, worth(values.len(), threads), |(first, sums)| {
        let rows = values
            .chunks_exact(width)
            .zip(factors)
            .filter(|(_, factor)| **factor != 0.0);
        for (row, &factor) in rows {
            for (sum, &value) in sums.iter_mut().zip(&row[first..]) {
                *sum += factor * value.into();
            }
        }
    });
    total
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
            let own = Tensor::from_slice(&weighted_sum(&gradients, &factors, 2).unwrap());
            assert!(
                f64::try_from((own - expected).abs().max()).unwrap() < 1e-12,
                "{width}"
            );
        }
    }

    #[test]
    fn a_record_that_does_not_count_is_not_multiplied_by_zero() {
        let gradients = Tensor::from_slice(&[f32::NAN, f32::INFINITY, 2.0, 3.0]).reshape([2, 2]);
        assert_eq!(weighted_sum(&gradients, &[0.0, 0.5], 1).unwrap(), [1.0, 1.5]);
        assert!(squared_norms(&gradients, 1).unwrap()[0].is_nan());
    }

    #[test]
    fn factors_of_other_records_are_refused() {
        let gradients = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu));
        assert!(weighted_sum(&gradients, &[1.0], 1).is_err());
    }
}
