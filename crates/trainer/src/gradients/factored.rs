//! Norms of tables and of tied parameters from the factors of each use, cross terms included, without the gradient of
//! the whole parameter: `‖Σ_k G_k‖² = Σ_kl ⟨G_k, G_l⟩`.
//!
//! Each use is `G = Σ_t l_t r_tᵀ`. Uses in `linear` or `matmul` are joined along `t`, so that one pair of Gram matrices
//! has all their products; tables, whose `l` is one-hot, are summed by id; and of a table with a weight
//! `⟨G, G′⟩ = Σ_st l′_s[id_t]·⟨r′_s, g_t⟩` needs one look-up for each pair of tokens.

use super::{TapValues, ghost_norms_squared, in_blocks};
use crate::error::{EngineError, Result};
use crate::table;
use crate::taps::{Factor, ParameterPlan};
use tch::{Kind, Tensor};

/// Rows of all uses of one kind: `[B, T, ·]` and `[B, T, width]`; for tables ids `[B, T]` and gradients.
type Rows = Option<(Tensor, Tensor)>;

/// `(‖G_i‖², S_i²)` of one parameter, `[B]` each, f64.
pub(super) fn norms(
    parameter: &ParameterPlan,
    taps: &[TapValues],
    batch_size: i64,
) -> Result<(Tensor, Tensor)> {
    let (mut lefts, mut rights, mut ids, mut tokens) = (vec![], vec![], vec![], vec![]);
    let mut magnitude: Option<Tensor> = None;
    for each in &parameter.uses {
        let tap = &taps[each.tap];
        let input = tap.input.as_ref().ok_or(EngineError::SumOutOfBound)?;
        let (inputs, gradients) = tap.row_norms.as_ref().ok_or(EngineError::SumOutOfBound)?;
        let own = inputs
            .f_mul(gradients)?
            .f_sum_dim_intlist(1, false, Kind::Double)?;
        magnitude = Some(match magnitude {
            None => own,
            Some(sum) => sum.f_add(&own)?,
        });
        match each.factor().ok_or(EngineError::SumOutOfBound)? {
            Factor::Table => {
                ids.push(input);
                tokens.push(&tap.gradient);
            }
            Factor::GradientInput => {
                lefts.push(&tap.gradient);
                rights.push(input);
            }
            Factor::InputGradient => {
                lefts.push(input);
                rights.push(&tap.gradient);
            }
        }
    }
    let dense = joined(&lefts, &rights)?;
    let table = joined(&ids, &tokens)?;
    let mut squared = Tensor::f_zeros([batch_size], (Kind::Double, tch::Device::Cpu))?;
    if let Some((left, right)) = &dense {
        squared = squared.f_add(&ghost_norms_squared(left, right, batch_size)?)?;
    }
    if let Some((ids, gradients)) = &table {
        squared = squared.f_add(&table::norms_squared(ids, gradients)?)?;
    }
    if let (Some((left, right)), Some((ids, gradients))) = (&dense, &table) {
        let products = cross_products(left, right, ids, gradients, batch_size)?;
        squared = squared.f_add(&products.f_mul_scalar(2.0)?)?;
    }
    let magnitude = magnitude.ok_or(EngineError::SumOutOfBound)?;
    Ok((squared, magnitude.f_square()?))
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
    batch_size: i64,
) -> Result<Tensor> {
    let (rows, tokens, width) = (left.size()[1], ids.size()[1], right.size()[2]);
    let per_record = rows * tokens.max(width) + tokens * width;
    in_blocks(batch_size, per_record, |first, count| {
        let narrow = |tensor: &Tensor| tensor.f_narrow(0, first, count);
        let ids = narrow(ids)?
            .f_unsqueeze(1)?
            .f_expand([count, rows, tokens], false)?;
        let read = narrow(left)?
            .f_gather(2, &ids.f_clamp_min(0)?, false)?
            .f_to_kind(Kind::Double)?
            .f_where_scalarother(&ids.f_ge(0)?, 0.0)?;
        let inner = narrow(right)?
            .f_to_kind(Kind::Double)?
            .f_bmm(&narrow(gradients)?.f_to_kind(Kind::Double)?.f_transpose(1, 2)?)?;
        Ok(read
            .f_mul(&inner)?
            .f_sum_dim_intlist(&[1i64, 2][..], false, Kind::Double)?)
    })
}
