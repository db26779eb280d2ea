//! Gradients of embedding tables: as many rows as there are tokens, never `[B, rows, width]` nor a one-hot matrix.
//! What a step costs does not depend on how large the table is.

use crate::device::{beside, to_host};
use crate::error::{EngineError, Result};
use crate::ffi;
use crate::grid::{Grid, in_parallel};
use tch::{Device, Kind, Tensor};

/// Records whose norms one task computes.
const RECORDS: usize = 8;

/// `‖G_i‖² = Σ_v ‖Σ_{t: id_t = v} g_t‖²`, `[B]`, f64. `ids`: `[B, T]` i64, −1 where there is no gradient; `gradients`:
/// `[B, T, width]`. Equal ids of a record are summed before the square: two tokens of one word may cancel or add up.
pub(crate) fn norms_squared(ids: &Tensor, gradients: &Tensor) -> Result<Tensor> {
    let (ids, gradients) = (to_host(ids)?.f_contiguous()?, to_host(gradients)?.f_contiguous()?);
    let &[_, tokens, width] = &gradients.size()[..] else {
        return Err(EngineError::SumOutOfBound);
    };
    let norms = ffi::read(&ids, |ids: &[i64]| match gradients.kind() {
        Kind::Float => ffi::read(&gradients, |rows: &[f32]| all_norms(ids, rows, tokens, width)),
        _ => ffi::read(&gradients, |rows: &[f64]| all_norms(ids, rows, tokens, width)),
    });
    let norms = norms.flatten().ok_or(EngineError::SumOutOfBound)?;
    Ok(Tensor::f_from_slice(&norms)?)
}

fn all_norms<T: Copy + Into<f64> + Sync>(ids: &[i64], rows: &[T], tokens: i64, width: i64) -> Vec<f64> {
    let (tokens, width) = (tokens as usize, width as usize);
    let work = ids
        .chunks(tokens * RECORDS)
        .zip(rows.chunks(tokens * width * RECORDS))
        .collect();
    let norms = in_parallel(work, tch::get_num_threads() as usize, |(ids, rows)| {
        let records = ids.chunks(tokens).zip(rows.chunks(tokens * width));
        records
            .map(|(ids, rows)| record_norm(ids, rows, width))
            .collect::<Vec<_>>()
    });
    norms.concat()
}

fn record_norm<T: Copy + Into<f64>>(ids: &[i64], rows: &[T], width: usize) -> f64 {
    let mut squares = vec![0.0; width];
    let mut sum = vec![0.0; width];
    for tokens in by_id(ids, |_| true).chunk_by(|one, other| ids[*one] == ids[*other]) {
        sum.fill(0.0);
        for &token in tokens {
            let row = &rows[token * width..][..width];
            sum.iter_mut()
                .zip(row)
                .for_each(|(sum, &value)| *sum += value.into());
        }
        squares
            .iter_mut()
            .zip(&sum)
            .for_each(|(squares, sum)| *squares += sum * sum);
    }
    squares.iter().sum()
}

/// Tokens that have a gradient and are wanted, those of one id together, each id's in order.
fn by_id(ids: &[i64], wanted: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..ids.len())
        .filter(|&token| ids[token] >= 0 && wanted(token))
        .collect();
    order.sort_unstable_by_key(|&token| (ids[token], token));
    order
}

/// Adds `Σ_i c_i G_i` to `sums` (`[rows, width]`, grid units): each row that occurs is summed in f64 and rounded to the
/// grid once. A record with factor 0 is left out, never multiplied (rule G3).
pub(crate) fn add_clipped(
    ids: &Tensor,
    gradients: &Tensor,
    factors: &Tensor,
    grid: &Grid,
    sums: &mut [i64],
    threads: usize,
) -> Result<()> {
    let &[records, tokens, width] = &gradients.size()[..] else {
        return Err(EngineError::SumOutOfBound);
    };
    let (ids, gradients) = (to_host(ids)?.f_contiguous()?, to_host(gradients)?.f_contiguous()?);
    let factors = Vec::<f64>::try_from(factors)?;
    let (tokens, width) = (tokens as usize, width as usize);
    if factors.len() != records as usize {
        return Err(EngineError::SumOutOfBound);
    }
    let step = Step {
        factors: &factors,
        tokens,
        width,
        grid,
        threads,
    };
    let fine = ffi::read(&ids, |ids: &[i64]| match gradients.kind() {
        Kind::Float => ffi::read(&gradients, |rows: &[f32]| step.add(ids, rows, sums)),
        _ => ffi::read(&gradients, |rows: &[f64]| step.add(ids, rows, sums)),
    });
    if fine.flatten() == Some(true) {
        Ok(())
    } else {
        Err(EngineError::SumOutOfBound)
    }
}

struct Step<'s> {
    factors: &'s [f64],
    tokens: usize,
    width: usize,
    grid: &'s Grid,
    threads: usize,
}

/// All tokens of some ids, the first id, and the rows of the sums from that id on.
type Share<'s> = (&'s [&'s [usize]], i64, &'s mut [i64]);

impl Step<'_> {
    fn add<T: Copy + Into<f64> + Sync>(&self, ids: &[i64], rows: &[T], sums: &mut [i64]) -> bool {
        let order = by_id(ids, |token| self.factors[token / self.tokens] > 0.0);
        let groups: Vec<&[usize]> = order.chunk_by(|one, other| ids[*one] == ids[*other]).collect();
        let Some(shares) = self.shares(ids, &groups, sums) else {
            return false;
        };
        let done = in_parallel(shares, self.threads, |(groups, first, sums)| {
            let mut sum = vec![0.0; self.width];
            groups.iter().all(|group| {
                sum.fill(0.0);
                for &token in *group {
                    let factor = self.factors[token / self.tokens];
                    let row = &rows[token * self.width..][..self.width];
                    sum.iter_mut()
                        .zip(row)
                        .for_each(|(sum, &value)| *sum += factor * value.into());
                }
                let start = (ids[group[0]] - first) as usize * self.width;
                self.grid.add_row(&sum, &mut sums[start..start + self.width])
            })
        });
        done.into_iter().all(|fine| fine)
    }

    /// One share of ids and of the sums for each thread; `None` when an id has no row.
    fn shares<'s>(
        &self,
        ids: &[i64],
        groups: &'s [&'s [usize]],
        mut sums: &'s mut [i64],
    ) -> Option<Vec<Share<'s>>> {
        let mut shares = Vec::with_capacity(self.threads);
        let mut next = 0;
        for part in groups.chunks(groups.len().div_ceil(self.threads).max(1)) {
            let (first, last) = (ids[part.first()?[0]], ids[part.last()?[0]]);
            let (_, rest) = sums.split_at_mut_checked((first - next) as usize * self.width)?;
            let (own, rest) = rest.split_at_mut_checked((last - first + 1) as usize * self.width)?;
            shares.push((part, first, own));
            sums = rest;
            next = last + 1;
        }
        Some(shares)
    }
}

/// The gradient of each record, `[count, rows, width]`, f64: for small tables and for tests.
pub(crate) fn dense(ids: &Tensor, gradients: &Tensor, rows: i64) -> Result<Tensor> {
    let &[count, _, width] = &gradients.size()[..] else {
        return Err(EngineError::SumOutOfBound);
    };
    let first_rows = beside(&Tensor::f_arange(count, (Kind::Int64, Device::Cpu))?, ids)?
        .f_mul_scalar(rows)?
        .f_unsqueeze(1)?;
    let places = ids.f_clamp_min(0)?.f_add(&first_rows)?.f_flatten(0, 1)?;
    let kept = gradients.f_where_scalarother(&ids.f_ge(0)?.f_unsqueeze(2)?, 0.0)?;
    let zeros = Tensor::f_zeros([count * rows, width], (gradients.kind(), Device::Cpu))?;
    Ok(beside(&zeros, gradients)?
        .f_index_add(0, &places, &kept.f_flatten(0, 1)?)?
        .f_reshape([count, rows, width])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> (Tensor, Tensor) {
        let ids = Tensor::from_slice(&[3i64, 0, 3, -1, 1, 1, 1, 2]).reshape([2, 4]);
        let gradients = Tensor::from_slice(&(0..24).map(|value| f64::from(value) - 9.5).collect::<Vec<_>>());
        (ids, gradients.reshape([2, 4, 3]))
    }

    #[test]
    fn norms_by_id_are_the_norms_of_the_dense_gradient() {
        let (ids, gradients) = tokens();
        let dense = dense(&ids, &gradients, 5).unwrap().flatten(1, -1);
        let expected = Vec::<f64>::try_from(dense.square().sum_dim_intlist(1, false, Kind::Double)).unwrap();
        for kind in [Kind::Float, Kind::Double] {
            let norms = Vec::<f64>::try_from(norms_squared(&ids, &gradients.to_kind(kind)).unwrap()).unwrap();
            assert_eq!(norms, expected);
        }
    }

    #[test]
    fn sums_are_the_weighted_dense_gradients_for_any_number_of_threads() {
        let (ids, gradients) = tokens();
        let factors = Tensor::from_slice(&[0.5, 0.25]);
        let grid = Grid::new(100.0, 4);
        let dense = dense(&ids, &gradients, 5).unwrap();
        let expected: Vec<f64> = Vec::try_from(
            (dense * factors.reshape([2, 1, 1]))
                .sum_dim_intlist(0, false, Kind::Double)
                .flatten(0, -1),
        )
        .unwrap();
        for threads in 1..6 {
            let mut sums = vec![0; 15];
            add_clipped(&ids, &gradients, &factors, &grid, &mut sums, threads).unwrap();
            for (sum, expected) in sums.iter().zip(&expected) {
                assert!((*sum as f64 * grid.width() - expected).abs() <= grid.width());
            }
        }
    }

    #[test]
    fn a_record_with_factor_zero_adds_nothing_whatever_it_holds() {
        let (ids, gradients) = tokens();
        let _ = gradients.get(1).fill_(f64::NAN);
        let grid = Grid::new(100.0, 4);
        let (mut sums, mut alone) = (vec![0; 15], vec![0; 15]);
        let factors = Tensor::from_slice(&[0.5, 0.0]);
        add_clipped(&ids, &gradients, &factors, &grid, &mut sums, 2).unwrap();
        let (first, only) = (ids.narrow(0, 0, 1), gradients.narrow(0, 0, 1));
        add_clipped(&first, &only, &factors.narrow(0, 0, 1), &grid, &mut alone, 2).unwrap();
        assert_eq!(sums, alone);
    }

    #[test]
    fn an_id_beyond_the_table_is_an_error_and_no_write() {
        let (ids, gradients) = tokens();
        let factors = Tensor::from_slice(&[0.5, 0.25]);
        let added = add_clipped(&ids, &gradients, &factors, &Grid::new(1.0, 4), &mut [0; 9], 2);
        assert!(matches!(added, Err(EngineError::SumOutOfBound)));
    }
}
