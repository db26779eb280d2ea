//! Weight gradients of convolutions, one matrix product a record and group, or as rows for the Gram trick.

use super::unfold::{unfold, unfold_as_weight};
use super::windows::Windows;
use super::{TapValues, row_norms};
use crate::device::is_on_host;
use crate::error::{EngineError, Result};
use crate::ffi;
use crate::taps::{ConvolutionPlan, TapPlan};
use tch::{Kind, Tensor};

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
            units: None,
        });
    }
    let (unfolded, plain) = if plan.transposed {
        (&gradient, input)
    } else {
        (input, &gradient)
    };
    // One group: only then rows are worth it.
    let unfolded = unfold_as_weight(unfolded, plan, threads)?.f_flatten(1, 2)?;
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
        units: None,
    })
}

/// Weight gradients of records `first..first + count`, `[count, weight shape]`, from values kept as they are, and their
/// squared norms where those came with them. In memory the channels lie last.
pub(crate) fn weight_gradients(
    plan: &ConvolutionPlan,
    tap: &TapValues,
    first: i64,
    count: i64,
    threads: usize,
) -> Result<(Tensor, Option<Vec<f64>>)> {
    let input = tap.input.as_ref().ok_or(EngineError::SumOutOfBound)?;
    let (unfolded, plain) = if plan.transposed {
        (&tap.gradient, input)
    } else {
        (input, &tap.gradient)
    };
    let unfolded = unfolded.f_narrow(0, first, count)?;
    let plain = plain.f_narrow(0, first, count)?;
    if let Some((gradients, squared)) = by_windows(plan, &unfolded, &plain, threads)? {
        return Ok((channels_first(&gradients, plan, count)?, Some(squared)));
    }
    let unfolded = unfold(&unfolded, plan, threads)?.f_flatten(0, 1)?;
    let plain = plain.f_reshape([count * plan.groups, plan.plain_width(), plan.length()])?;
    Ok((channels_first(&plain.f_bmm(&unfolded)?, plan, count)?, None))
}

/// `[count·groups, plain channels, kernel·channels]` as `[count, weight shape]`: the same memory.
fn channels_first(gradients: &Tensor, plan: &ConvolutionPlan, count: i64) -> Result<Tensor> {
    let mut last = vec![count];
    last.extend(plan.weight_shape());
    last[2..].rotate_left(1);
    let axes = last.len() as i64;
    let mut order = vec![0, 1, axes - 1];
    order.extend(2..axes - 1);
    Ok(gradients.f_reshape(&last[..])?.f_permute(&order[..])?)
}

/// `None` for what the machine's kernels are not made for: other numbers than f32, or processors without vectors.
fn by_windows(
    plan: &ConvolutionPlan,
    unfolded: &Tensor,
    plain: &Tensor,
    threads: usize,
) -> Result<Option<(Tensor, Vec<f64>)>> {
    let is_suited = |tensor: &Tensor| tensor.kind() == Kind::Float && is_on_host(tensor);
    let Some(windows) = Windows::new(plan).filter(|_| is_suited(unfolded) && is_suited(plain)) else {
        return Ok(None);
    };
    let (unfolded, plain) = (unfolded.f_contiguous()?, plain.f_contiguous()?);
    let shape = [
        unfolded.size()[0] * plan.groups,
        plan.plain_width(),
        plan.unfolded_width(),
    ];
    let mut gradients = Tensor::f_empty(shape, (Kind::Float, unfolded.device()))?;
    let squared = ffi::read(&unfolded, |unfolded: &[f32]| {
        ffi::read(&plain, |plain: &[f32]| {
            ffi::write(&mut gradients, |gradients: &mut [f32]| {
                windows.gradients(unfolded, plain, gradients, threads)
            })
        })
    });
    let squared = squared.flatten().flatten().flatten();
    Ok(squared.map(|squared| (gradients, squared)))
}
