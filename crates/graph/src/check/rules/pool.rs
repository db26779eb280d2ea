//! Pooling: maxima and means of windows over the sample's own axes.

use super::super::call::Call;
use super::super::facts::{Output, Typed};
use super::super::refusal::Objection;
use super::Outcome;
use super::elementwise::require_float;
use super::reduce::require_within_sample;
use super::spatial::{Window, after_windows, bounded, named_axes, required};
use crate::dtype::DType;
use crate::typed::{Argument, Extent, ValueType};

/// `max_pool1d` … `max_pool3d`.
pub(in super::super) fn max(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (value_type, _) = maxima(call)?;
    Ok(Output::new(value_type, call.any_requires_grad()).into())
}

/// `max_pool1d_with_indices` …: maxima, and where in the sample's plane they are.
pub(in super::super) fn max_with_indices(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (value_type, bounds) = maxima(call)?;
    Ok(with_indices(call, value_type, bounds))
}

fn maxima(call: &mut Call<'_>) -> Result<(ValueType, Option<(i64, i64)>), Objection> {
    let (input, axes) = input(call)?;
    let dilation = required(call, "dilation", axes, 1)?;
    let windows = windows(call, input, axes, &dilation)?;
    require_elements(input, &windows)?;
    call.replace("dilation", ints(&dilation));
    let shape = after_windows(input, &windows)?;
    Ok((of(input, shape), plane(input, axes)))
}

/// Every window meets an element. Of one that lies wholly in the padding libtorch makes a maximum with an index beyond
/// the plane, and its backward pass adds the gradient there: in the next sample, or beyond the buffer (rules T7, A2).
///
/// A window that starts in the padding has its first tap at or after 0 before `dilation`, and padding is at most half
/// of the kernel; one that starts later starts within the axis.
fn require_elements(input: &Typed, windows: &[Window]) -> Result<(), Objection> {
    let shape = &input.value_type.shape;
    let spatial = &shape[shape.len() - windows.len()..];
    let empty = |(extent, window): (&Extent, &Window)| matches!(extent, Extent::Fixed(size) if window.before > 0 && window.dilation > *size);
    if spatial.iter().zip(windows).any(empty) {
        return Err(Objection::denied(
            "a window may lie wholly in the padding: its maximum would be taken from outside of the sample",
            "use a dilation of at most the axis's size, or no padding",
        ));
    }
    Ok(())
}

/// `avg_pool1d` … `avg_pool3d`.
pub(in super::super) fn average(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (input, axes) = input(call)?;
    call.bool("count_include_pad")?;
    if axes > 1 && call.optional_int("divisor_override")? == Some(0) {
        return Err(Objection::plain("divisor_override is 0", "use another divisor"));
    }
    let windows = windows(call, input, axes, &vec![1; axes])?;
    let shape = after_windows(input, &windows)?;
    Ok(Output::new(of(input, shape), call.any_requires_grad()).into())
}

/// `adaptive_avg_pool1d` … `adaptive_avg_pool3d`.
pub(in super::super) fn adaptive_average(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (input, axes) = input(call)?;
    let shape = adapted(call, input, axes)?;
    Ok(Output::new(of(input, shape), call.any_requires_grad()).into())
}

/// `adaptive_max_pool1d` … `adaptive_max_pool3d`: maxima and indices.
pub(in super::super) fn adaptive_max(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (input, axes) = input(call)?;
    let shape = adapted(call, input, axes)?;
    let value_type = of(input, shape);
    let bounds = plane(input, axes);
    Ok(with_indices(call, value_type, bounds))
}

/// The pooled value and its number of spatial axes, none of which is the batch.
fn input<'c>(call: &Call<'c>) -> Result<(&'c Typed, usize), Objection> {
    let input = call.tensor("self")?;
    require_float("self", input)?;
    let axes = named_axes(call);
    let rank = input.value_type.shape.len();
    // `[channels, ..]` and `[batch, channels, ..]`: windows move over the last axes only.
    if rank != axes + 1 && rank != axes + 2 {
        let reason = format!("it pools {} or {} axes, not {rank}", axes + 1, axes + 2);
        return Err(Objection::plain(reason, "give an input of [B, channels, ..]"));
    }
    require_within_sample(input, &(rank - axes..rank).collect::<Vec<_>>())?;
    Ok((input, axes))
}

fn windows(
    call: &mut Call<'_>,
    input: &Typed,
    axes: usize,
    dilation: &[u64],
) -> Result<Vec<Window>, Objection> {
    let kernel = required(call, "kernel_size", axes, 1)?;
    let stride = bounded(call, "stride", axes, 1)?.unwrap_or_else(|| kernel.clone());
    let padding = required(call, "padding", axes, 0)?;
    let ceil = call.bool("ceil_mode")?;
    if kernel
        .iter()
        .zip(&padding)
        .any(|(kernel, padding)| *padding > kernel / 2)
    {
        return Err(Objection::plain(
            "the padding is more than half of the kernel",
            "use less padding or a larger kernel",
        ));
    }
    call.replace("kernel_size", ints(&kernel));
    call.replace("stride", ints(&stride));
    call.replace("padding", ints(&padding));
    debug_assert!(input.value_type.shape.len() > axes, "judged by `input`");
    let window = |axis: usize| Window {
        kernel: kernel[axis],
        stride: stride[axis],
        before: padding[axis],
        after: padding[axis],
        dilation: dilation[axis],
        ceil,
    };
    Ok((0..axes).map(window).collect())
}

fn adapted(call: &mut Call<'_>, input: &Typed, axes: usize) -> Result<Vec<Extent>, Objection> {
    let sizes = required(call, "output_size", axes, 1)?;
    call.replace("output_size", ints(&sizes));
    let mut shape = input.value_type.shape.clone();
    let first = shape.len() - axes;
    for (extent, size) in shape[first..].iter_mut().zip(sizes) {
        if let Extent::Fixed(_) = extent {
            *extent = Extent::Fixed(size);
        }
    }
    Ok(shape)
}

fn of(input: &Typed, shape: Vec<Extent>) -> ValueType {
    ValueType {
        shape,
        ..input.value_type.clone()
    }
}

/// Least and greatest index into the pooled axes.
fn plane(input: &Typed, axes: usize) -> Option<(i64, i64)> {
    let shape = &input.value_type.shape;
    let size = super::super::broadcast::product(&shape[shape.len() - axes..])?;
    Some((0, i64::try_from(size).ok()?.checked_sub(1)?))
}

fn with_indices(call: &Call<'_>, values: ValueType, bounds: Option<(i64, i64)>) -> Outcome {
    let indices = ValueType {
        dtype: DType::I64,
        ..values.clone()
    };
    Outcome {
        outputs: vec![
            Output::new(values, call.any_requires_grad()),
            Output::constant(indices).bounded(bounds),
        ],
        tap: None,
    }
}

/// Every list in full, so that one call has one canonical form (rule T9).
fn ints(values: &[u64]) -> Argument {
    Argument::Ints(values.iter().map(|value| *value as i64).collect())
}
