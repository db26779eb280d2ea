//! The engine's own f32 products (shim/products.h), whose order of summation is known.

use super::{Failed, owned, pointer, succeed};
use std::ffi::c_void;
use std::ptr::null_mut;
use tch::Tensor;

unsafe extern "C" {
    fn bastion_gram(rows: *const c_void, lanes: i32, tiles: *mut *mut c_void) -> i32;
    fn bastion_gram_products(
        tiles: *const c_void,
        rows: *const c_void,
        lanes: i32,
        outputs: *mut *mut c_void,
    ) -> i32;
    fn bastion_contract(
        left: *const c_void,
        right: *const c_void,
        factors: *const c_void,
        blocks: *const [i64; 2],
        block_count: usize,
        units: f64,
        limit: f64,
        sums: *mut i64,
        sum_count: usize,
        fresh: i32,
        lanes: i32,
        fine: *mut i32,
    ) -> i32;
}

/// Most rows of one block of [`contract`].
pub(crate) const MOST_BLOCK_ROWS: i64 = 512;

/// On which vectors products run. Results differ by rounding only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lanes {
    /// The widest of this machine.
    Widest,
    /// Of so many f32: 4, 8 or 16. Fails where the machine has none.
    #[cfg(test)]
    Of(i32),
}

impl Lanes {
    fn number(self) -> i32 {
        match self {
            Self::Widest => 0,
            #[cfg(test)]
            Self::Of(lanes) => lanes,
        }
    }
}

/// Gram matrices of rows `[records, rows, width]`, f32 with unit stride along a row: `[records, tiles, 16]`.
pub(crate) fn gram(rows: &Tensor, lanes: Lanes) -> Result<Tensor, Failed> {
    let mut tiles = null_mut();
    // SAFETY: the tensor is alive; the shim checks its type, place and strides, and writes an owned tensor only on
    // success.
    succeed(unsafe { bastion_gram(pointer(rows), lanes.number(), &mut tiles) })?;
    Ok(owned(tiles))
}

/// Of the Gram matrices `tiles` and those of `rows`: the sum of the products of all their elements, `[records]`, f64,
/// and both diagonals, `[records, rows]`, f32.
pub(crate) fn gram_products(tiles: &Tensor, rows: &Tensor, lanes: Lanes) -> Result<[Tensor; 3], Failed> {
    let mut outputs = [null_mut(); 3];
    // SAFETY: as for `gram`; the shim checks that the tiles are of as many rows, and has three outputs to write.
    succeed(unsafe {
        bastion_gram_products(
            pointer(tiles),
            pointer(rows),
            lanes.number(),
            outputs.as_mut_ptr(),
        )
    })?;
    Ok(outputs.map(owned))
}

/// `Σ_i c_i Σ_t l_it r_itᵀ`.
pub(crate) struct Contraction<'t> {
    /// `[records, rows, width]`, f32 with unit stride along a row; these are multiplied by the factors.
    pub(crate) left: &'t Tensor,
    /// As many rows of another width.
    pub(crate) right: &'t Tensor,
    /// `[records]`, f64, each an f32: rows of records whose factor is not positive are selected as zeros.
    pub(crate) factors: &'t Tensor,
    /// `(first, count)` of the rows that are summed in f32 together, at most [`MOST_BLOCK_ROWS`]; blocks are added in
    /// f64.
    pub(crate) blocks: &'t [[i64; 2]],
    /// Grid units in 1.
    pub(crate) units: f64,
    /// Most units of one sum.
    pub(crate) limit: f64,
}

/// Adds it to `sums`, `[left width, right width]`, each element rounded to the grid; false when an element is not finite
/// or beyond the limit.
pub(crate) fn contract(of: &Contraction<'_>, sums: &mut [i64], lanes: Lanes) -> Result<bool, Failed> {
    // SAFETY: the sums are borrowed for the call, and nothing else has them.
    unsafe { contract_into(of, sums.as_mut_ptr(), sums.len(), false, lanes) }
}

/// The sums themselves, `count` of them, as [`contract`] makes of zeros; `None` where it says false. Their memory is
/// written once and not read.
pub(crate) fn contract_fresh(
    of: &Contraction<'_>,
    count: usize,
    lanes: Lanes,
) -> Result<Option<Vec<i64>>, Failed> {
    let mut sums = Vec::with_capacity(count);
    // SAFETY: there is room for as many sums, which nothing else has; fresh ones are written and never read.
    let fine = unsafe { contract_into(of, sums.as_mut_ptr(), count, true, lanes) }?;
    if !fine {
        return Ok(None);
    }
    // SAFETY: without an error every element of `[left width, right width]` was written, and the shim has checked that
    // these are `count`.
    unsafe { sums.set_len(count) };
    Ok(Some(sums))
}

/// # Safety
/// There must be room for `count` sums, for this call alone; initialised ones unless they are `fresh`.
unsafe fn contract_into(
    of: &Contraction<'_>,
    sums: *mut i64,
    count: usize,
    fresh: bool,
    lanes: Lanes,
) -> Result<bool, Failed> {
    let mut fine = 0;
    // SAFETY: tensors and blocks are alive for the call, the sums by the caller's word; the shim checks types, places,
    // strides, blocks and the number of sums before it touches any.
    succeed(unsafe {
        bastion_contract(
            pointer(of.left),
            pointer(of.right),
            pointer(of.factors),
            of.blocks.as_ptr(),
            of.blocks.len(),
            of.units,
            of.limit,
            sums,
            count,
            i32::from(fresh),
            lanes.number(),
            &mut fine,
        )
    })?;
    Ok(fine == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    const UNITS: f64 = 1_073_741_824.0;

    /// Every width of vectors that this machine has, and the one it takes by itself.
    fn all_lanes() -> Vec<Lanes> {
        let mut lanes = vec![Lanes::Widest, Lanes::Of(4)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                lanes.push(Lanes::Of(8));
            }
            if is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl") {
                lanes.push(Lanes::Of(16));
            }
        }
        lanes
    }

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn list(tensor: &Tensor) -> Vec<f64> {
        Vec::<f64>::try_from(tensor.to_kind(Kind::Double).reshape([-1])).unwrap()
    }

    fn largest(tensor: &Tensor) -> f64 {
        f64::try_from(tensor.to_kind(Kind::Double).abs().max()).unwrap()
    }

    /// `[records, rows, a]` and rows of width b that lie apart: no two axes of theirs can be joined.
    fn rows_of([records, rows, a, b]: [i64; 4]) -> (Tensor, Tensor) {
        let apart = random(&[rows, records, b + 3]).transpose(0, 1).narrow(2, 1, b);
        (random(&[records, rows, a]), apart)
    }

    /// One row, odd widths, widths of one element and of several chunks, groups of four rows that are not full.
    const SHAPES: [[i64; 4]; 9] = [
        [1, 1, 1, 1],
        [3, 1, 5, 7],
        [2, 2, 33, 70],
        [4, 7, 384, 100],
        [2, 33, 49, 1],
        [3, 128, 384, 200],
        [2, 130, 5000, 300],
        [1, 257, 17, 50],
        [2, 3, 300, 2000],
    ];

    fn found(left: &Tensor, right: &Tensor, lanes: Lanes) -> [Tensor; 3] {
        gram_products(&gram(left, lanes).unwrap(), right, lanes).unwrap()
    }

    #[test]
    fn gram_products_are_those_of_f64_on_all_vectors() {
        tch::manual_seed(11);
        for shape in SHAPES {
            let (left, right) = rows_of(shape);
            let exact = |rows: &Tensor| {
                let rows = rows.to_kind(Kind::Double);
                rows.bmm(&rows.transpose(1, 2))
            };
            let (lefts, rights) = (exact(&left), exact(&right));
            let sums = (&lefts * &rights).sum_dim_intlist(&[1i64, 2][..], false, Kind::Double);
            for lanes in all_lanes() {
                let [dots, left_squares, right_squares] = found(&left, &right, lanes);
                assert!(largest(&(dots / &sums - 1.0)) < 1e-6, "{shape:?} {lanes:?}");
                for (squares, exact) in [(left_squares, &lefts), (right_squares, &rights)] {
                    let exact = exact.diagonal(0, 1, 2);
                    assert!(largest(&(squares / exact - 1.0)) < 4e-6, "{shape:?} {lanes:?}");
                }
            }
        }
    }

    #[test]
    fn a_records_gram_product_depends_on_nothing_but_its_rows() {
        tch::manual_seed(12);
        for lanes in all_lanes() {
            let (left, right) = rows_of([5, 37, 70, 900]);
            let all = list(&found(&left, &right, lanes)[0]);
            for record in 0..5 {
                let alone = |rows: &Tensor| rows.narrow(0, record, 1).contiguous();
                let own = list(&found(&alone(&left), &alone(&right), lanes)[0]);
                assert_eq!(own[0].to_bits(), all[record as usize].to_bits(), "{lanes:?}");
            }
            let _ = left.get(2).fill_(f64::NAN);
            let with_bad = list(&found(&left, &right, lanes)[0]);
            assert!(with_bad[2].is_nan());
            for record in [0, 1, 3, 4] {
                assert_eq!(with_bad[record].to_bits(), all[record].to_bits(), "{lanes:?}");
            }
        }
    }

    fn blocks_of(rows: i64, most: i64) -> Vec<[i64; 2]> {
        let firsts = (0..rows).step_by(most as usize);
        firsts.map(|first| [first, most.min(rows - first)]).collect()
    }

    fn sum(left: &Tensor, right: &Tensor, factors: &[f64], most: i64, lanes: Lanes) -> Option<Vec<i64>> {
        let factors = Tensor::from_slice(factors);
        let blocks = blocks_of(left.size()[0] * left.size()[1], most);
        let contraction = Contraction {
            left,
            right,
            factors: &factors,
            blocks: &blocks,
            units: UNITS,
            limit: 1e14,
        };
        let mut sums = vec![5; (left.size()[2] * right.size()[2]) as usize];
        let added = contract(&contraction, &mut sums, lanes).unwrap().then_some(sums);
        let count = (left.size()[2] * right.size()[2]) as usize;
        let fresh = contract_fresh(&contraction, count, lanes).unwrap();
        let fresh = fresh.map(|sums| sums.into_iter().map(|each| each + 5).collect());
        assert_eq!(added, fresh, "what is written is what would be added to zeros");
        added
    }

    #[test]
    fn contractions_are_those_of_f64_on_all_vectors() {
        tch::manual_seed(13);
        for shape in SHAPES {
            let (left, right) = rows_of(shape);
            let factors: Vec<f64> = (1..=shape[0])
                .map(|record| f64::from(0.3f32) / record as f64)
                .collect();
            let factors: Vec<f64> = factors
                .into_iter()
                .map(|factor| f64::from(factor as f32))
                .collect();
            let scaled = left.to_kind(Kind::Double) * Tensor::from_slice(&factors).reshape([-1, 1, 1]);
            let exact = scaled
                .flatten(0, 1)
                .tr()
                .mm(&right.to_kind(Kind::Double).flatten(0, 1));
            // Σ_t ‖l_t‖‖r_t‖ bounds every element; γ of 102 roundings, and half a unit.
            let norms = |rows: &Tensor| {
                rows.to_kind(Kind::Double)
                    .square()
                    .sum_dim_intlist(2, false, Kind::Double)
                    .sqrt()
            };
            let magnitude = f64::try_from((norms(&scaled) * norms(&right)).sum(Kind::Double)).unwrap();
            let bound = magnitude * 102.0 * 2f64.powi(-24) + 0.51 / UNITS;
            for lanes in all_lanes() {
                let sums = sum(&left, &right, &factors, 100, lanes).unwrap();
                for (own, exact) in sums.iter().zip(list(&exact)) {
                    let own = (*own - 5) as f64 / UNITS;
                    assert!(
                        (own - exact).abs() <= bound,
                        "{shape:?} {lanes:?}: {own} for {exact}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_wide_contraction_is_packed_in_strips() {
        tch::manual_seed(14);
        let (left, right) = rows_of([2, 3, 2000, 2100]);
        let exact = left
            .to_kind(Kind::Double)
            .flatten(0, 1)
            .tr()
            .mm(&right.to_kind(Kind::Double).flatten(0, 1));
        let sums = sum(&left, &right, &[1.0, 1.0], 6, Lanes::Widest).unwrap();
        let own = (Tensor::from_slice(&sums) - 5).to_kind(Kind::Double) / UNITS;
        assert!(largest(&(own.reshape([2000, 2100]) - exact)) < 1e-4);
    }

    #[test]
    fn rows_of_a_record_that_does_not_count_are_selected_out_whatever_they_hold() {
        tch::manual_seed(15);
        for bad in [f64::NAN, f64::INFINITY, 1e30] {
            for lanes in all_lanes() {
                let (left, right) = rows_of([3, 5, 30, 60]);
                let zeros = |rows: &Tensor| {
                    let rows = rows.copy();
                    let _ = rows.get(1).zero_();
                    rows
                };
                let clean = sum(&zeros(&left), &zeros(&right), &[0.5, 0.0, 1.0], 7, lanes);
                let _ = left.get(1).fill_(bad);
                let _ = right.get(1).fill_(bad);
                let own = sum(&left, &right, &[0.5, 0.0, 1.0], 7, lanes);
                assert!(own.is_some());
                assert_eq!(own, clean, "{bad} {lanes:?}");
                assert_eq!(
                    sum(&left, &right, &[0.5, 0.5, 1.0], 7, lanes),
                    None,
                    "{bad} {lanes:?}"
                );
            }
        }
    }

    #[test]
    fn how_many_threads_share_the_work_changes_no_bit() {
        tch::manual_seed(16);
        let (left, right) = rows_of([6, 64, 200, 500]);
        let of = |threads: i32| {
            tch::set_num_threads(threads);
            let sums = sum(&left, &right, &[0.25; 6], 64, Lanes::Widest);
            (sums, list(&found(&left, &right, Lanes::Widest)[0]))
        };
        assert_eq!(of(1), of(3));
    }

    #[test]
    fn what_the_loops_trust_is_checked() {
        let rows = random(&[2, 3, 4]);
        let lanes = Lanes::Widest;
        assert!(gram(&rows.to_kind(Kind::Double), lanes).is_err());
        assert!(gram(&rows.transpose(1, 2), lanes).is_err());
        assert!(gram(&rows.get(0), lanes).is_err());
        assert!(gram(&rows, Lanes::Of(5)).is_err());
        let tiles = gram(&rows, lanes).unwrap();
        assert!(gram_products(&tiles, &random(&[2, 5, 4]), lanes).is_err());
        assert!(gram_products(&tiles, &random(&[1, 3, 4]), lanes).is_err());
        let factors = Tensor::from_slice(&[1.0, 1.0]);
        let attempt = |right: &Tensor, factors: &Tensor, blocks: &[[i64; 2]], sums: usize| {
            let contraction = Contraction {
                left: &rows,
                right,
                factors,
                blocks,
                units: UNITS,
                limit: 1e14,
            };
            let added = contract(&contraction, &mut vec![0; sums], lanes).is_err();
            assert_eq!(contract_fresh(&contraction, sums, lanes).is_err(), added);
            added
        };
        assert!(!attempt(&rows, &factors, &[[0, 6]], 16));
        assert!(attempt(&rows, &factors, &[[0, 7]], 16));
        assert!(attempt(&rows, &factors, &[[-1, 2]], 16));
        assert!(attempt(&rows, &factors, &[[0, 0]], 16));
        assert!(attempt(&rows, &factors, &[[0, 6]], 15));
        assert!(attempt(&random(&[2, 2, 4]), &factors, &[[0, 6]], 16));
        assert!(attempt(&rows, &Tensor::from_slice(&[1.0]), &[[0, 6]], 16));
    }
}
