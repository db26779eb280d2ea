//! Weight gradients of convolutions, one matrix product a record and group, or as rows for the Gram trick.

use super::unfold::unfold;
use super::{TapValues, row_norms};
use crate::error::{EngineError, Result};
use crate::taps::{ConvolutionPlan, TapPlan};
use tch::Tensor;

/// Gradient and input as the tap keeps them: rows where the weight is handled by rows, else as they are.
pub(crate) fn values(
    plan: &ConvolutionPlan,
    tap: &TapPlan,
    gradient: Tensor,
    input: &Tensor,
    batch_size: i64,
    threads: usize,
) -> Result<TapValues> {
    let channels = Some(super::by_channel(&gradient, batch_size, plan.output_channels())?);
    if !tap.as_rows {
        return Ok(TapValues {
            gradient,
            input: Some(input.shallow_clone()),
            row_norms: None,
            channels,
            reduced: None,
        });
    }
    let (unfolded, plain) = if plan.transposed {
        (&gradient, input)
    } else {
        (input, &gradient)
    };
    // One group: only then rows are worth it.
    let unfolded = unfold(unfolded, plan, threads)?.f_flatten(1, 2)?;
    let plain = super::by_channel(plain, batch_size, plan.plain_channels)?.f_transpose(1, 2)?;
    let (input, gradient) = if plan.transposed {
        (plain, unfolded)
    } else {
        (unfolded, plain)
    };
    let row_norms = if tap.needs_row_norms {
        Some((row_norms(&input, threads)?, row_norms(&gradient, threads)?))
    } else {
        None
    };
    Ok(TapValues {
        gradient,
        input: Some(input),
        row_norms,
        channels,
        reduced: None,
    })
}

/// Weight gradients of records `first..first + count`, `[count, weight shape]` with the channels last, from values
/// kept as they are.
pub(crate) fn weight_gradients(
    plan: &ConvolutionPlan,
    tap: &TapValues,
    first: i64,
    count: i64,
    threads: usize,
) -> Result<Tensor> {
    let input = tap.input.as_ref().ok_or(EngineError::SumOutOfBound)?;
    let (unfolded, plain) = if plan.transposed {
        (&tap.gradient, input)
    } else {
        (input, &tap.gradient)
    };
    let (groups, length) = (count * plan.groups, plan.length());
    let unfolded = unfold(&unfolded.f_narrow(0, first, count)?, plan, threads)?.f_flatten(0, 1)?;
    let plain = plain
        .f_narrow(0, first, count)?
        .f_reshape([groups, plan.plain_width(), length])?;
    Ok(plain.f_bmm(&unfolded)?)
}
