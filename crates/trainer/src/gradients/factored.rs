//! Norms of tables and of tied parameters from the factors of each use, cross terms included, without the gradient of
//! the whole parameter: `‖Σ_k G_k‖² = Σ_kl ⟨G_k, G_l⟩`.
//!
//! Each use is `G = Σ_t l_t r_tᵀ`. Uses in `linear` or `matmul` are joined along `t`, so that one pair of Gram matrices
//! has all their products; tables, whose `l` is one-hot, are summed by id; and of a table with a weight
//! `⟨G, G′⟩ = Σ_st l′_s[id_t]·⟨r′_s, g_t⟩` needs one look-up for each pair of tokens.

use super::TapValues;
use super::gram::{Ghost, Grams, in_blocks, squared_norms_f64};
use crate::error::{EngineError, Result};
use crate::kernels::TrueF32;
use crate::precision::Precision;
use crate::table;
use crate::taps::{Factor, ParameterPlan};
use bastionai_privacy::sensitivity::{GramRounding, RowNorms};
use tch::{Kind, Tensor};

/// Rows of all uses of one kind: `[B, T, ·]` and `[B, T, width]`; for tables ids `[B, T]` and gradients.
type Rows = Option<(Tensor, Tensor)>;

/// Of one parameter, all its uses together.
pub(super) fn norms(
    parameter: &ParameterPlan,
    taps: &[TapValues],
    precision: &Precision,
    grams: &mut Grams,
) -> Result<Ghost> {
    let batch_size = precision.batch_size();
    let (mut lefts, mut rights, mut ids, mut tokens) = (vec![], vec![], vec![], vec![]);
    let zeros = || Tensor::f_zeros([batch_size], (Kind::Double, tch::Device::Cpu));
    let (mut magnitude, mut sums) = (zeros()?, [zeros()?, zeros()?]);
    for each in &parameter.uses {
        let tap = &taps[each.tap];
        let input = tap.input.as_ref().ok_or(EngineError::SumOutOfBound)?;
        let (inputs, gradients) = tap.row_norms.as_ref().ok_or(EngineError::SumOutOfBound)?;
        let sum = |norms: &Tensor| norms.f_sum_dim_intlist(1, false, Kind::Double);
        magnitude = magnitude.f_add(&sum(&inputs.f_mul(gradients)?)?)?;
        let mut own = [sum(inputs)?, sum(gradients)?];
        match each.factor().ok_or(EngineError::SumOutOfBound)? {
            Factor::Table => {
                ids.push(input);
                tokens.push(&tap.gradient);
            }
            Factor::GradientInput => {
                lefts.push(&tap.gradient);
                rights.push(input);
                own.reverse();
            }
            Factor::InputGradient => {
                lefts.push(input);
                rights.push(&tap.gradient);
            }
        }
        for (sum, own) in sums.iter_mut().zip(&own) {
            *sum = sum.f_add(own)?;
        }
    }
    let dense = joined(&lefts, &rights)?;
    let table = joined(&ids, &tokens)?;
    let mut squared = zeros()?;
    let mut rounding = None;
    if let Some((left, right)) = &dense {
        rounding = precision.gram_rounding([left.size()[2], right.size()[2]]);
        if let Some(rounding) = rounding.as_mut().filter(|_| table.is_some()) {
            // The dot products with a table's rows are libtorch's: any order of summation, and whole.
            rounding.roundings[1] = rounding.widths[1];
        }
        let own = match &rounding {
            Some(_) => grams.squared_norms(left, right)?,
            None => squared_norms_f64(left, right)?,
        };
        squared = squared.f_add(&own)?;
    }
    if let Some((ids, gradients)) = &table {
        squared = squared.f_add(&table::norms_squared(ids, gradients)?)?;
    }
    if let (Some((left, right)), Some((ids, gradients))) = (&dense, &table) {
        let products = cross_products(left, right, ids, gradients, precision)?;
        squared = squared.f_add(&products.f_mul_scalar(2.0)?)?;
    }
    if let Some(rounding) = &rounding {
        squared = bounds(&squared, &magnitude, &sums, rounding)?;
    }
    Ok(Ghost {
        squared,
        magnitude_squared: magnitude.f_square()?,
        usable: None,
    })
}

/// Upper bounds of the squared norms. The dot products between a weight's rows and a table's are f32 as well: their
/// error is at most `γ·S_dense·S_table` twice, and with those of the Gram matrices no more than `γ·(S_dense + S_table)²`.
/// What underflow takes of them, the sums of all uses cover: a token's one-hot row has norm 1.
fn bounds(
    squared: &Tensor,
    magnitude: &Tensor,
    sums: &[Tensor; 2],
    rounding: &GramRounding,
) -> Result<Tensor> {
    let read = |tensor: &Tensor| Vec::<f64>::try_from(tensor);
    let (squared, magnitude) = (read(squared)?, read(magnitude)?);
    let [lefts, rights] = [read(&sums[0])?, read(&sums[1])?];
    let bounds: Vec<f64> = squared
        .iter()
        .zip(&magnitude)
        .zip(lefts.iter().zip(&rights))
        .map(|((&squared, &magnitude), (&left, &right))| {
            let rows = RowNorms {
                magnitude,
                sums: [left, right],
            };
            rounding.squared_bound(squared, &rows)
        })
        .collect();
    Ok(Tensor::f_from_slice(&bounds)?)
}

fn joined(left: &[&Tensor], right: &[&Tensor]) -> Result<Rows> {
    Ok(match (left, right) {
        ([], _) | (_, []) => None,
        ([left], [right]) => Some((left.shallow_clone(), right.shallow_clone())),
        _ => Some((Tensor::f_cat(left, 1)?, Tensor::f_cat(right, 1)?)),
    })
}

/// `Σ_st l_s[id_t]·⟨r_s, g_t⟩`, `[B]`, f64.
fn cross_products(
    left: &Tensor,
    right: &Tensor,
    ids: &Tensor,
    gradients: &Tensor,
    precision: &Precision,
) -> Result<Tensor> {
    let _true_f32 = TrueF32::enter()?;
    let kind = precision.gram();
    let (rows, tokens, width) = (left.size()[1], ids.size()[1], right.size()[2]);
    let per_record = rows * tokens.max(width) + tokens * width;
    in_blocks(precision.batch_size(), per_record, |first, count| {
        let narrow = |tensor: &Tensor| tensor.f_narrow(0, first, count);
        let ids = narrow(ids)?
            .f_unsqueeze(1)?
            .f_expand([count, rows, tokens], false)?;
        let read = narrow(left)?
            .f_gather(2, &ids.f_clamp_min(0)?, false)?
            .f_to_kind(Kind::Double)?
            .f_where_scalarother(&ids.f_ge(0)?, 0.0)?;
        let inner = narrow(right)?
            .f_to_kind(kind)?
            .f_bmm(&narrow(gradients)?.f_to_kind(kind)?.f_transpose(1, 2)?)?;
        Ok(read
            .f_mul(&inner)?
            .f_sum_dim_intlist(&[1i64, 2][..], false, Kind::Double)?)
    })
}
