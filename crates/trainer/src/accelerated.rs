//! The engine's own kernels for tensors on a device, composed of libtorch's operators. Each has a twin for host memory, with
//! the same arguments and the same meaning, which hands over to it where a tensor is not in host memory.
//!
//! What is charged for (rule G1) holds for any order of summation, and so for these: sums of squares, weighted sums and what
//! they are made of are f64, Gram matrices are f32 products of as many terms as on the host. Every result of `[B]` numbers,
//! and every sum over records, comes back in host memory.

use crate::device::{beside, to_host};
use crate::error::{EngineError, Result};
use crate::ffi::Recurrence;
use crate::gradients::blocks;
use crate::gradients::normalised::{Norm, Reduced};
use crate::taps::ConvolutionPlan;
use tch::{Kind, Tensor};

/// Elements that are converted to f64 at once: 128 MiB.
const AT_ONCE: i64 = 1 << 24;

/// Squared norms of `[records, ..]`, f64: what `gradients::instantiated::squared_norms` says.
pub(crate) fn squared_norms(gradients: &Tensor) -> Result<Vec<f64>> {
    let rows = as_rows(gradients)?;
    let records = rows.size()[0];
    let mut total = Tensor::f_zeros([records], (Kind::Double, tch::Device::Cpu))?;
    for (first, count) in columns(&rows) {
        let part = rows.f_narrow(1, first, count)?.f_to_kind(Kind::Double)?;
        let squares = part.f_square()?.f_sum_dim_intlist(1, false, Kind::Double)?;
        total = total.f_add(&to_host(&squares)?)?;
    }
    Ok(Vec::try_from(&total)?)
}

/// `Σ_i c_i·G_i` of `[records, ..]` in f64, in host memory: what `gradients::instantiated::weighted_sum` says. Records with
/// factor 0 are selected out, never multiplied (rule G3).
pub(crate) fn weighted_sum(gradients: &Tensor, factors: &[f64]) -> Result<Tensor> {
    let shape = gradients.size();
    let rows = as_rows(gradients)?;
    if rows.size()[0] as usize != factors.len() {
        return Err(EngineError::SumOutOfBound);
    }
    let factors = beside(&Tensor::f_from_slice(factors)?, gradients)?.f_unsqueeze(0)?;
    let keep = factors.f_ne(0)?.f_transpose(0, 1)?;
    let mut parts = vec![Tensor::f_zeros([0], (Kind::Double, tch::Device::Cpu))?];
    for (first, count) in columns(&rows) {
        let part = rows.f_narrow(1, first, count)?.f_to_kind(Kind::Double)?;
        let part = part.f_where_scalarother(&keep, 0.0)?;
        parts.push(to_host(&factors.f_mm(&part)?.f_squeeze_dim(0)?)?);
    }
    Ok(Tensor::f_cat(&parts, 0)?.f_reshape(&shape[1..])?)
}

/// Of one record's Gram matrices.
pub(crate) struct GramParts {
    /// Squared norms of the rows on either side.
    pub(crate) diagonals: [Vec<f64>; 2],
    /// `Σ_st ⟨l_s, l_t⟩⟨r_s, r_t⟩`.
    pub(crate) dot: f64,
}

/// Of Gram matrices `[count, T, T]` of both sides: their product summed in f64, and their diagonals.
pub(crate) fn gram_parts(left: &Tensor, right: &Tensor) -> Result<Vec<GramParts>> {
    let (left, right) = (left.f_to_kind(Kind::Double)?, right.f_to_kind(Kind::Double)?);
    let dots = left
        .f_mul(&right)?
        .f_sum_dim_intlist(&[1i64, 2][..], false, Kind::Double)?;
    let dots = Vec::<f64>::try_from(&to_host(&dots)?)?;
    let diagonals = |matrices: &Tensor| -> Result<Vec<f64>> {
        let rows = matrices.f_diagonal(0, 1, 2)?.f_contiguous()?;
        Ok(Vec::try_from(&to_host(&rows)?.f_flatten(0, 1)?)?)
    };
    let (lefts, rights, rows) = (diagonals(&left)?, diagonals(&right)?, left.size()[1] as usize);
    let of = |(record, dot): (usize, &f64)| {
        let own = |all: &[f64]| all[record * rows..(record + 1) * rows].to_vec();
        GramParts {
            diagonals: [own(&lefts), own(&rights)],
            dot: *dot,
        }
    };
    Ok(dots.iter().enumerate().map(of).collect())
}

/// Gradients of a norm's weight and bias from inputs and output gradients `[B, T, width]`: what `gradients::normalised` says.
pub(crate) fn reduced(norm: Norm, input: &Tensor, gradient: &Tensor) -> Result<Reduced> {
    let &[records, rows, width] = &gradient.size()[..] else {
        return Err(EngineError::SumOutOfBound);
    };
    let (mut scales, mut sums) = (Vec::new(), Vec::new());
    for (first, count) in blocks(records, AT_ONCE / (rows * width).max(1)) {
        let block = |of: &Tensor| of.f_narrow(0, first, count)?.f_to_kind(Kind::Double);
        let (values, gradients) = (block(input)?, block(gradient)?);
        let mean_of = |values: &Tensor| values.f_mean_dim(&[-1i64][..], true, Kind::Double);
        let (centred, eps) = match norm {
            Norm::Layer { eps } => (values.f_sub(&mean_of(&values)?)?, eps),
            Norm::RootMeanSquare { eps } => (values, eps),
        };
        let factor = mean_of(&centred.f_square()?)?.f_add_scalar(eps)?.f_rsqrt()?;
        let products = gradients.f_mul(&centred.f_mul(&factor)?)?;
        let sum = |of: &Tensor| {
            of.f_sum_dim_intlist(1, false, Kind::Double)?
                .f_to_kind(gradient.kind())
        };
        scales.push(sum(&products)?);
        sums.push(sum(&gradients)?);
    }
    Ok(Reduced {
        scale: Tensor::f_cat(&scales, 0)?,
        sum: Tensor::f_cat(&sums, 0)?,
    })
}

/// `[records, channels, ..]` as `[records, groups, positions, kernel·channels of a group]`: what `gradients::unfold` says.
pub(crate) fn unfold(tensor: &Tensor, plan: &ConvolutionPlan) -> Result<Tensor> {
    let axes = plan.unfolded_extents.len();
    let (records, channels) = (tensor.size()[0], plan.unfolded_channels / plan.groups);
    let mut shape = vec![records, plan.groups, channels];
    shape.extend(&plan.unfolded_extents);
    // As far as the kernel reaches; counted from the last axis.
    let mut padding = Vec::with_capacity(2 * axes);
    for axis in (0..axes).rev() {
        let reach = (plan.positions[axis] - 1) * plan.stride[axis];
        let reach = reach + (plan.kernel[axis] - 1) * plan.dilation[axis] + 1;
        let before = plan.padding_before[axis];
        padding.extend([before, (reach - before - plan.unfolded_extents[axis]).max(0)]);
    }
    let padded = tensor
        .f_reshape(&shape[..])?
        .f_constant_pad_nd(&padding[..])?
        .f_contiguous()?;
    let strides = padded.stride();
    let (outer, inner) = strides.split_at(3);
    let mut view = vec![records, plan.groups];
    view.extend(plan.positions.iter().chain(&plan.kernel));
    view.push(channels);
    let mut steps = vec![outer[0], outer[1]];
    steps.extend(inner.iter().zip(&plan.stride).map(|(step, stride)| step * stride));
    steps.extend(
        inner
            .iter()
            .zip(&plan.dilation)
            .map(|(step, dilation)| step * dilation),
    );
    steps.push(outer[2]);
    let width = plan.kernel.iter().product::<i64>() * channels;
    Ok(padded
        .f_as_strided(&view[..], &steps[..], None::<i64>)?
        .f_reshape([
            records,
            plan.groups,
            plan.positions.iter().product::<i64>(),
            width,
        ])?)
}

/// The places of the maxima of `[B, channels, height, width]`, each within its plane, by libtorch's own operator.
pub(crate) fn places_of_maxima(input: &Tensor, windows: [[usize; 2]; 4]) -> Result<Tensor> {
    let [kernel, stride, padding, dilation] = windows.map(|pair| pair.map(|value| value as i64));
    let (_, places) = input.f_max_pool2d_with_indices(kernel, stride, padding, dilation, false)?;
    Ok(places)
}

/// One direction of one recurrent layer, step by step: what `shim/recurrence.h` says of `ffi::recurrence`, but that the gates'
/// memory is left alone.
pub(crate) fn recurrence(of: &Recurrence<'_>) -> Result<Vec<Tensor>> {
    let (gates, weight) = (of.gates.f_unbind(1)?, of.weight.f_detach()?.f_transpose(0, 1)?);
    let stand_ins = of.recurrent.map(|stand_in| stand_in.f_unbind(1)).transpose()?;
    let bias = of.bias.map(Tensor::f_detach).transpose()?;
    let (mut hidden, mut cell) = (of.h0.shallow_clone(), of.c0.map(Tensor::shallow_clone));
    let mut outputs = Vec::with_capacity(gates.len());
    for step in 0..gates.len() {
        let at = if of.reverse { gates.len() - 1 - step } else { step };
        let mut recurrent = hidden.f_mm(&weight)?;
        if let Some(bias) = &bias {
            recurrent = recurrent.f_add(bias)?;
        }
        if let Some(stand_ins) = &stand_ins {
            recurrent = recurrent.f_add(&stand_ins[at])?;
        }
        (hidden, cell) = stepped(of.cell, &gates[at], &recurrent, &hidden, cell.as_ref())?;
        outputs.push(hidden.shallow_clone());
    }
    if of.reverse {
        outputs.reverse();
    }
    let mut results = vec![Tensor::f_stack(&outputs, 1)?, hidden];
    results.extend(cell);
    Ok(results)
}

/// One step of a cell: the next output, and LSTM's next cell state.
fn stepped(
    kind: i64,
    gates: &Tensor,
    recurrent: &Tensor,
    hidden: &Tensor,
    cell: Option<&Tensor>,
) -> Result<(Tensor, Option<Tensor>)> {
    match (kind, cell) {
        (LSTM, Some(cell)) => {
            let all = gates.f_add(recurrent)?.f_chunk(4, 1)?;
            let [input, forget, candidate, output] = &all[..] else {
                return Err(EngineError::SumOutOfBound);
            };
            let kept = forget.f_sigmoid()?.f_mul(cell)?;
            let next = kept.f_add(&input.f_sigmoid()?.f_mul(&candidate.f_tanh()?)?)?;
            Ok((output.f_sigmoid()?.f_mul(&next.f_tanh()?)?, Some(next)))
        }
        (GRU, None) => {
            let (ours, theirs) = (gates.f_chunk(3, 1)?, recurrent.f_chunk(3, 1)?);
            let ([reset, update, new], [to_reset, to_update, to_new]) = (&ours[..], &theirs[..]) else {
                return Err(EngineError::SumOutOfBound);
            };
            let reset = reset.f_add(to_reset)?.f_sigmoid()?;
            let update = update.f_add(to_update)?.f_sigmoid()?;
            let new = new.f_add(&reset.f_mul(to_new)?)?.f_tanh()?;
            Ok((new.f_add(&update.f_mul(&hidden.f_sub(&new)?)?)?, None))
        }
        (TANH, None) => Ok((gates.f_add(recurrent)?.f_tanh()?, None)),
        (RELU, None) => Ok((gates.f_add(recurrent)?.f_relu()?, None)),
        _ => Err(EngineError::SumOutOfBound),
    }
}

/// `recurrent::CellKind`'s numbers, which are the shim's.
const LSTM: i64 = 0;
const GRU: i64 = 1;
const TANH: i64 = 2;
const RELU: i64 = 3;

/// `[records, rest]`.
fn as_rows(gradients: &Tensor) -> Result<Tensor> {
    let records = gradients
        .size()
        .first()
        .copied()
        .ok_or(EngineError::SumOutOfBound)?;
    let width = gradients.size()[1..].iter().product::<i64>();
    Ok(gradients.f_reshape([records, width])?)
}

fn columns(rows: &Tensor) -> impl Iterator<Item = (i64, i64)> {
    let size = rows.size();
    blocks(size[1], AT_ONCE / size[0].max(1))
}
