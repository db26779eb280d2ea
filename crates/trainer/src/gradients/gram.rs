//! Norms of `Σ_t g_t x_tᵀ` from the Gram matrices of inputs and gradients:
//! `‖Σ_t g_t x_tᵀ‖² = Σ_st ⟨x_s, x_t⟩⟨g_s, g_t⟩`, without the gradient itself.
//!
//! The matrices are f32, symmetric, and only half of them is made, in tiles (shim/products.h); what their rounding can hide
//! is in [`GramRounding`]. Those of the gradients are never written: each tile is multiplied with the input's as soon as it
//! is there, and the products are summed in f64. The diagonals are the squared norms of the rows, from which `S_i` follows,
//! so that rows are read by nothing else. On a device they are libtorch's products, whole and in any order of summation.

use crate::accelerated::{self, GramParts};
use crate::device::{is_on_host, to_host};
use crate::error::{EngineError, Result};
use crate::ffi::{self, products::Lanes};
use crate::kernels::TrueF32;
use crate::precision::GRAM_PIECE;
use bastionai_privacy::sensitivity::{GramRounding, MAGNITUDE_LIMIT, RowNorms};
use tch::{Kind, Tensor};

/// Memory of one block of Gram matrices, in elements: 32 MiB of f32.
const GRAM_ELEMENTS: i64 = 1 << 23;

/// Squared norms of one parameter's gradients, `[B]` each, f64.
pub(super) struct Ghost {
    /// Upper bounds where Gram matrices are f32.
    pub(super) squared: Tensor,
    pub(super) magnitude_squared: Tensor,
    /// `[B]`, bool: all rows finite and within the limit; none where the tap's row norms tell.
    pub(super) usable: Option<Tensor>,
}

/// Gram matrices of the last input, which the next tap may share: query, key and value read the same rows.
#[derive(Default)]
pub(super) struct Grams {
    last: Option<Last>,
}

struct Last {
    identity: Identity,
    /// Kept, so that no other tensor gets its memory and its identity.
    _input: Tensor,
    gram: Tensor,
}

/// Where a tensor's numbers lie: while it lives, no other has the same.
#[derive(PartialEq)]
struct Identity(*mut std::ffi::c_void, Vec<i64>, Vec<i64>);

impl Identity {
    fn of(tensor: &Tensor) -> Self {
        Self(tensor.data_ptr(), tensor.size(), tensor.stride())
    }
}

impl Grams {
    /// Of inputs `[B, T, a]` and gradients `[B, T, b]`.
    pub(super) fn norms(
        &mut self,
        input: &Tensor,
        gradient: &Tensor,
        rounding: &GramRounding,
    ) -> Result<Ghost> {
        let records: Vec<Record> = self
            .parts(input, gradient)?
            .iter()
            .map(|parts| bounded(parts, rounding))
            .collect();
        let all = |of: &dyn Fn(&Record) -> f64| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(
                &records.iter().map(of).collect::<Vec<f64>>(),
            )?)
        };
        let usable: Vec<bool> = records.iter().map(|record| record.usable).collect();
        Ok(Ghost {
            squared: all(&|record| record.bound)?,
            magnitude_squared: all(&|record| record.magnitude * record.magnitude)?,
            usable: Some(Tensor::f_from_slice(&usable)?),
        })
    }

    /// `Σ_st ⟨l_s, l_t⟩⟨r_s, r_t⟩` as it comes out, `[B]`, f64: for sums of which this is a part.
    pub(super) fn squared_norms(&mut self, left: &Tensor, right: &Tensor) -> Result<Tensor> {
        let parts = self.parts(left, right)?;
        let dots: Vec<f64> = parts.iter().map(|parts| parts.dot).collect();
        Ok(Tensor::f_from_slice(&dots)?)
    }

    fn parts(&mut self, left: &Tensor, right: &Tensor) -> Result<Vec<GramParts>> {
        let (batch_size, rows) = (left.size()[0], left.size()[1]);
        let on_host = is_on_host(right);
        let half = (rows.saturating_mul(rows.saturating_add(4)) / 2).max(1);
        let elements = if on_host { half } else { 2 * half };
        let mut parts = Vec::with_capacity(batch_size as usize);
        for (first, count) in super::blocks(batch_size, GRAM_ELEMENTS / elements) {
            let lefts = self.of_input(&left.f_narrow(0, first, count)?)?;
            if !on_host {
                let rights = whole_gram(&right.f_narrow(0, first, count)?)?;
                parts.extend(accelerated::gram_parts(&lefts, &rights)?);
                continue;
            }
            let rights = in_f32(&right.f_narrow(0, first, count)?)?;
            let [dots, lefts, rights] =
                ffi::products::gram_products(&lefts, &rights, Lanes::Widest).map_err(EngineError::shim)?;
            let read = |rows: Tensor| Vec::<Vec<f64>>::try_from(rows.f_to_kind(Kind::Double)?);
            let diagonals = read(lefts)?.into_iter().zip(read(rights)?);
            let dots = Vec::<f64>::try_from(dots)?;
            parts.extend(
                dots.into_iter()
                    .zip(diagonals)
                    .map(|(dot, (left, right))| GramParts {
                        dot,
                        diagonals: [left, right],
                    }),
            );
        }
        Ok(parts)
    }

    fn of_input(&mut self, input: &Tensor) -> Result<Tensor> {
        let identity = Identity::of(input);
        if let Some(last) = &self.last
            && last.identity == identity
        {
            return Ok(last.gram.shallow_clone());
        }
        let gram = if is_on_host(input) {
            ffi::products::gram(&in_f32(input)?, Lanes::Widest).map_err(EngineError::shim)?
        } else {
            whole_gram(input)?
        };
        self.last = Some(Last {
            identity,
            _input: input.shallow_clone(),
            gram: gram.shallow_clone(),
        });
        Ok(gram)
    }
}

struct Record {
    /// Of `‖G_i‖²`, from above.
    bound: f64,
    /// `S_i`.
    magnitude: f64,
    usable: bool,
}

/// A bound of the norm, and the rows' norms from the diagonals.
fn bounded(parts: &GramParts, rounding: &GramRounding) -> Record {
    let flushed = rounding.flushed();
    let (mut magnitude, mut sums, mut usable) = (0.0, [0.0; 2], true);
    let [lefts, rights] = &parts.diagonals;
    for (&left, &right) in lefts.iter().zip(rights) {
        let squares = [left, right];
        // What is not a number fails.
        usable &= squares.iter().all(|square| *square <= LARGEST_SQUARE);
        let norms = [(squares[0] + flushed[0]).sqrt(), (squares[1] + flushed[1]).sqrt()];
        magnitude += norms[0] * norms[1];
        sums[0] += norms[0];
        sums[1] += norms[1];
    }
    let allowance = rounding.diagonal_allowance();
    let rows = RowNorms {
        magnitude: magnitude * allowance,
        sums: sums.map(|sum| sum * allowance),
    };
    Record {
        bound: rounding.squared_bound(parts.dot, &rows),
        magnitude: rows.magnitude,
        usable,
    }
}

/// As the shim takes rows: f32, each in one piece.
pub(crate) fn in_f32(rows: &Tensor) -> Result<Tensor> {
    let rows = rows.f_to_kind(Kind::Float)?;
    match (rows.size().last(), rows.stride().last()) {
        (Some(2..), Some(&step)) if step != 1 => Ok(rows.f_contiguous()?),
        _ => Ok(rows),
    }
}

/// `[count, T, T]`: dot products of all rows of each record, at most [`GRAM_PIECE`] terms in f32.
fn whole_gram(rows: &Tensor) -> Result<Tensor> {
    let _true_f32 = TrueF32::enter()?;
    let rows = rows.f_to_kind(Kind::Float)?;
    let width = rows.size()[2];
    let mut total: Option<Tensor> = None;
    for (first, count) in super::blocks(width, GRAM_PIECE) {
        let piece = rows.f_narrow(2, first, count)?;
        let product = piece.f_bmm(&piece.f_transpose(1, 2)?)?;
        total = Some(match total {
            None if count == width => product.f_contiguous()?,
            None => product.f_to_kind(Kind::Double)?,
            Some(mut sum) => sum.f_add_(&product)?,
        });
    }
    total.ok_or(EngineError::SumOutOfBound)
}

/// A little below the square of [`MAGNITUDE_LIMIT`], for what the diagonal's own rounding can hide.
const LARGEST_SQUARE: f64 = MAGNITUDE_LIMIT * MAGNITUDE_LIMIT * 0.99;

/// `Σ_st ⟨x_s, x_t⟩⟨g_s, g_t⟩` of rows `[B, T, ·]`, in f64.
pub(super) fn squared_norms_f64(input: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let gram = |rows: Tensor| -> Result<Tensor> {
        let rows = rows.f_to_kind(Kind::Double)?;
        Ok(rows.f_bmm(&rows.f_transpose(1, 2)?)?)
    };
    let (rows, widths) = (input.size()[1], input.size()[2] + gradient.size()[2]);
    let per_record = rows.saturating_mul(rows.max(widths));
    in_blocks(input.size()[0], per_record, |first, count| {
        let inputs = gram(input.f_narrow(0, first, count)?)?;
        let gradients = gram(gradient.f_narrow(0, first, count)?)?;
        let products = inputs.f_mul(&gradients)?;
        Ok(products.f_sum_dim_intlist(&[1i64, 2][..], false, Kind::Double)?)
    })
}

/// Runs `body(first, count)` over blocks of records that fit in memory and joins the results along axis 0, in host memory.
pub(super) fn in_blocks(
    batch_size: i64,
    elements_per_record: i64,
    mut body: impl FnMut(i64, i64) -> Result<Tensor>,
) -> Result<Tensor> {
    let parts: Vec<Tensor> = super::blocks(batch_size, GRAM_ELEMENTS / elements_per_record.max(1))
        .map(|(first, count)| to_host(&body(first, count)?))
        .collect::<Result<_>>()?;
    Ok(Tensor::f_cat(&parts, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precision::gram_roundings;
    use tch::Device;

    fn rounding(widths: [i64; 2]) -> GramRounding {
        GramRounding {
            widths: widths.map(|width| width as u64),
            roundings: widths.map(gram_roundings),
            sum: 1e-11,
        }
    }

    /// Bounds of ‖G_i‖ and the true norms, from f64 products of the same f32 rows.
    fn bounds_and_norms(input: &Tensor, gradient: &Tensor) -> (Vec<f64>, Vec<f64>) {
        let rounding = rounding([input.size()[2], gradient.size()[2]]);
        let ghost = Grams::default().norms(input, gradient, &rounding).unwrap();
        let exact = gradient
            .to_kind(Kind::Double)
            .transpose(1, 2)
            .bmm(&input.to_kind(Kind::Double));
        let norms = exact
            .square()
            .sum_dim_intlist(&[1i64, 2][..], false, Kind::Double)
            .sqrt();
        let of = |tensor: &Tensor| Vec::<f64>::try_from(tensor).unwrap();
        (of(&ghost.squared.sqrt()), of(&norms))
    }

    #[test]
    fn two_tokens_that_nearly_cancel_cannot_hide_their_gradient() {
        // Soundness G1: x1 = x2 = a·u, g1 = b·v + δw, g2 = −b·v; the true norm is a·δ = 100.
        let input = Tensor::from_slice(&[1e3f32, 0.0, 0.0, 1e3, 0.0, 0.0]).reshape([1, 2, 3]);
        let gradient = Tensor::from_slice(&[1e3f32, 0.1, -1e3, 0.0]).reshape([1, 2, 2]);
        let plain = Grams::default().squared_norms(&input, &gradient).unwrap();
        assert!(
            f64::try_from(plain).unwrap().max(0.0) < 2500.0,
            "the attack needs a wrong norm"
        );
        let (bounds, norms) = bounds_and_norms(&input, &gradient);
        assert!((norms[0] - 100.0).abs() < 1e-3);
        assert!(bounds[0] >= norms[0], "{} below {}", bounds[0], norms[0]);
    }

    #[test]
    fn no_cancellation_gets_a_gradient_below_its_norm() {
        tch::manual_seed(3);
        for (rows, a, b) in [(2, 3, 5), (7, 64, 33), (64, 384, 96), (33, 5000, 7)] {
            for exponent in -9..3 {
                // Pairs of rows that cancel but for a share of 10^exponent.
                let share = 10f64.powi(exponent);
                let half = |width: i64| Tensor::randn([8, rows, width], (Kind::Float, Device::Cpu)) * 1e3;
                let (input, gradient) = (half(a), half(b));
                let inputs = Tensor::cat(&[&input, &input], 1);
                let other = &gradient * -1.0 + half(b) * share;
                let gradients = Tensor::cat(&[&gradient, &other], 1);
                let (bounds, norms) = bounds_and_norms(&inputs, &gradients);
                for (bound, norm) in bounds.iter().zip(&norms) {
                    assert!(bound >= norm, "{rows} {a} {b} 1e{exponent}: {bound} below {norm}");
                }
            }
        }
    }

    #[test]
    fn what_underflows_in_a_gram_matrix_is_bounded() {
        let input = Tensor::full([1, 4, 2], 1e-19, (Kind::Float, Device::Cpu));
        let gradient = Tensor::full([1, 4, 2], 1e18, (Kind::Float, Device::Cpu));
        let (bounds, norms) = bounds_and_norms(&input, &gradient);
        assert!(
            norms[0] > 0.5 && bounds[0] >= norms[0],
            "{} {}",
            bounds[0],
            norms[0]
        );
    }

    #[test]
    fn the_bound_of_ordinary_rows_is_within_a_percent() {
        tch::manual_seed(4);
        let rows = |width: i64| Tensor::randn([3, 128, width], (Kind::Float, Device::Cpu));
        let (bounds, norms) = bounds_and_norms(&rows(768), &rows(3072));
        for (bound, norm) in bounds.iter().zip(&norms) {
            assert!(bound / norm < 1.02, "{bound} for {norm}");
        }
    }

    #[test]
    fn rows_that_are_not_finite_or_too_large_are_told_apart() {
        for bad in [f64::NAN, f64::INFINITY, 1e19, 1e30] {
            let input = Tensor::ones([3, 4, 2], (Kind::Float, Device::Cpu));
            let _ = input.get(1).get(2).fill_(bad);
            let gradient = Tensor::ones([3, 4, 5], (Kind::Float, Device::Cpu));
            let ghost = Grams::default()
                .norms(&input, &gradient, &rounding([2, 5]))
                .unwrap();
            assert_eq!(
                Vec::<bool>::try_from(ghost.usable.unwrap()).unwrap(),
                [true, false, true],
                "{bad}"
            );
        }
    }

    #[test]
    fn taps_of_the_same_input_share_its_gram_matrices() {
        let input = Tensor::randn([2, 3, 4], (Kind::Float, Device::Cpu));
        let mut grams = Grams::default();
        let first = grams.of_input(&input).unwrap();
        assert_eq!(
            grams.of_input(&input.shallow_clone()).unwrap().data_ptr(),
            first.data_ptr()
        );
        assert_ne!(
            grams.of_input(&input.copy()).unwrap().data_ptr(),
            first.data_ptr()
        );
    }
}
