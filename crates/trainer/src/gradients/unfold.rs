//! A convolution's input as a matrix: for every place of the kernel the elements it meets (im2col).
//!
//! Channels come last, so that what the kernel meets along its last axis lies together: a place is a few copies of
//! whole runs, whatever the stride. Each record's group is first brought into that order, with its padding, in memory
//! that stays in the nearest caches.

use super::padding::Window;
use crate::accelerated;
use crate::device::is_on_host;
use crate::error::{EngineError, Result};
use crate::ffi::{self, Element};
use crate::grid::in_parallel;
use crate::taps::ConvolutionPlan;
use tch::{Device, Kind, Tensor};

/// `[records, channels, ..]` as `[records, groups, positions, kernel·channels of a group]`; elements stay as they are.
///
/// # Errors
/// [`EngineError::Torch`] when memory is short, [`EngineError::SumOutOfBound`] when the tensor is not the plan's.
pub(crate) fn unfold(tensor: &Tensor, plan: &ConvolutionPlan, threads: usize) -> Result<Tensor> {
    match tensor.kind() {
        _ if plan.length() == 0 => Err(EngineError::SumOutOfBound),
        _ if plan.is_pointwise() => pointwise(tensor, plan),
        _ if !is_on_host(tensor) => accelerated::unfold(tensor, plan),
        Kind::Float => unfold_as::<f32>(tensor, plan, threads),
        Kind::Double => unfold_as::<f64>(tensor, plan, threads),
        _ => Err(EngineError::SumOutOfBound),
    }
}

/// A kernel of one place meets every element once: the same memory, axes swapped.
fn pointwise(tensor: &Tensor, plan: &ConvolutionPlan) -> Result<Tensor> {
    let channels = plan.unfolded_channels / plan.groups;
    let shape = [-1, plan.groups, channels, plan.length()];
    Ok(tensor.f_reshape(shape)?.f_transpose(2, 3)?)
}

/// The same with columns in the order of the weight, `[records, groups, positions, channels of a group·kernel]`: a
/// product of such rows is the weight's gradient as it is, whose turning would cost more than the product's few rows.
///
/// # Errors
/// As [`unfold`].
pub(crate) fn unfold_as_weight(tensor: &Tensor, plan: &ConvolutionPlan, threads: usize) -> Result<Tensor> {
    match tensor.kind() {
        Kind::Float if is_on_host(tensor) && plan.length() > 0 && !plan.is_pointwise() => {
            columns_of::<f32, _>(tensor, plan, threads, Columns::new(plan))
        }
        _ => {
            let (kernel, channels) = (plan.kernel.iter().product(), plan.unfolded_channels / plan.groups);
            let split = [-1, plan.groups, plan.length(), kernel, channels];
            let unfolded = unfold(tensor, plan, threads)?
                .f_reshape(split)?
                .f_transpose(3, 4)?;
            Ok(unfolded.f_reshape([-1, plan.groups, plan.length(), channels * kernel])?)
        }
    }
}

fn unfold_as<T: Element + Default + Send + Sync>(
    tensor: &Tensor,
    plan: &ConvolutionPlan,
    threads: usize,
) -> Result<Tensor> {
    columns_of::<T, _>(tensor, plan, threads, Window::new(plan))
}

/// A way to unfold a record.
trait Unfold: Sync {
    /// Elements of a record, before and after.
    fn elements(&self) -> (usize, usize);
    fn unfold<T: Copy + Default>(&self, source: &[T], target: &mut [T]);
}

impl Unfold for Window {
    fn elements(&self) -> (usize, usize) {
        (self.elements(), self.unfolded())
    }

    fn unfold<T: Copy + Default>(&self, source: &[T], target: &mut [T]) {
        self.unfold(source, target);
    }
}

/// Channel by channel.
struct Columns {
    /// Of one channel.
    window: Window,
    channels: usize,
    /// From a position's start, all places of the kernel.
    places: Vec<usize>,
}

impl Columns {
    fn new(plan: &ConvolutionPlan) -> Self {
        let window = Window::of_channels(plan, 1);
        let runs = window.runs.iter();
        Self {
            places: runs.flat_map(|start| *start..start + window.run).collect(),
            channels: (plan.unfolded_channels / plan.groups) as usize,
            window,
        }
    }

    fn width(&self) -> usize {
        self.channels * self.places.len()
    }
}

impl Unfold for Columns {
    fn elements(&self) -> (usize, usize) {
        let groups = self.window.groups;
        let unfolded = groups * self.window.starts.len() * self.width();
        (groups * self.channels * self.window.plane(), unfolded)
    }

    fn unfold<T: Copy + Default>(&self, source: &[T], target: &mut [T]) {
        let mut padded = self.window.padded_memory();
        let (plane, places) = (self.window.plane(), self.places.len());
        let groups = source.chunks_exact(plane * self.channels);
        let each = self.window.starts.len() * self.width();
        for (group, target) in groups.zip(target.chunks_exact_mut(each)) {
            for (channel, plane) in group.chunks_exact(plane).enumerate() {
                self.window.pad(plane, &mut padded);
                for (row, start) in target.chunks_exact_mut(self.width()).zip(&self.window.starts) {
                    let columns = &mut row[channel * places..][..places];
                    for (column, place) in columns.iter_mut().zip(&self.places) {
                        *column = padded[start + place];
                    }
                }
            }
        }
    }
}

fn columns_of<T: Element + Default + Send + Sync, U: Unfold>(
    tensor: &Tensor,
    plan: &ConvolutionPlan,
    threads: usize,
    window: U,
) -> Result<Tensor> {
    let source = tensor.f_contiguous()?;
    let (from, to) = window.elements();
    let records = source.size()[0];
    if source.numel() != records as usize * from || from == 0 || to == 0 {
        return Err(EngineError::SumOutOfBound);
    }
    let shape = [records, plan.groups, plan.length(), plan.unfolded_width()];
    let mut target = Tensor::f_empty(shape, (T::KIND, Device::Cpu))?;
    let share = (records as usize).div_ceil(threads.max(1)).max(1);
    let done = ffi::read(&source, |source: &[T]| {
        ffi::write(&mut target, |target: &mut [T]| {
            let work = source
                .chunks(share * from)
                .zip(target.chunks_mut(share * to))
                .collect();
            in_parallel(work, threads, |(source, target)| window.unfold(source, target));
        })
    });
    match done.flatten() {
        Some(()) => Ok(target),
        None => Err(EngineError::SumOutOfBound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(
        channels: i64,
        extents: &[i64],
        kernel: &[i64],
        stride: i64,
        padding: i64,
        dilation: i64,
    ) -> ConvolutionPlan {
        let axes = extents.len();
        let positions = extents
            .iter()
            .zip(kernel)
            .map(|(extent, kernel)| (extent + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1)
            .collect();
        ConvolutionPlan {
            unfolded_channels: channels,
            plain_channels: 1,
            unfolded_extents: extents.to_vec(),
            positions,
            kernel: kernel.to_vec(),
            stride: vec![stride; axes],
            dilation: vec![dilation; axes],
            padding_before: vec![padding; axes],
            groups: 1,
            transposed: false,
        }
    }

    /// libtorch's `[B, channels·kernel, positions]` in this module's order.
    fn reordered(columns: &Tensor, plan: &ConvolutionPlan) -> Tensor {
        let (channels, kernel) = (
            plan.unfolded_channels / plan.groups,
            plan.kernel.iter().product::<i64>(),
        );
        let shape = [-1, plan.groups, channels, kernel, plan.length()];
        let out = [-1, plan.groups, plan.length(), kernel * channels];
        columns.reshape(shape).permute([0, 1, 4, 3, 2]).reshape(out)
    }

    #[test]
    fn it_is_libtorchs_im2col() {
        for (extents, kernel, stride, padding, dilation) in [
            ([7, 5], [3, 3], 1, 0, 1),
            ([7, 5], [3, 2], 2, 1, 1),
            ([9, 8], [2, 3], 3, 2, 2),
            ([4, 4], [1, 1], 1, 0, 1),
            ([3, 6], [3, 5], 1, 4, 1),
            ([28, 28], [8, 8], 2, 3, 1),
        ] {
            for (channels, groups) in [(3, 1), (1, 1), (34, 2), (6, 6)] {
                let plan = ConvolutionPlan {
                    groups,
                    ..plan(channels, &extents, &kernel, stride, padding, dilation)
                };
                let shape = [3, channels, extents[0], extents[1]];
                let tensor = Tensor::randn(shape, (Kind::Float, Device::Cpu));
                let expected = tensor.im2col(kernel, [dilation; 2], [padding; 2], [stride; 2]);
                let expected = reordered(&expected, &plan);
                let case = format!("{extents:?} {kernel:?} {channels} {groups}");
                assert!(unfold(&tensor, &plan, 2).unwrap().equal(&expected), "{case}");
                let as_weight = tensor.im2col(kernel, [dilation; 2], [padding; 2], [stride; 2]);
                let as_weight = as_weight
                    .reshape([3, groups, plan.unfolded_width(), plan.length()])
                    .transpose(2, 3);
                for kind in [Kind::Float, Kind::Double] {
                    let own = unfold_as_weight(&tensor.to_kind(kind), &plan, 2).unwrap();
                    assert!(own.equal(&as_weight.to_kind(kind)), "{case}");
                }
            }
        }
    }

    #[test]
    fn one_and_three_axes_are_two_with_others_of_extent_one() {
        let tensor = Tensor::randn([2, 3, 9], (Kind::Double, Device::Cpu));
        let flat = plan(3, &[9], &[4], 2, 1, 1);
        let expected = tensor.unsqueeze(2).im2col([1, 4], [1, 1], [0, 1], [1, 2]);
        assert!(
            unfold(&tensor, &flat, 1)
                .unwrap()
                .equal(&reordered(&expected, &flat))
        );
        let deep = ConvolutionPlan {
            padding_before: vec![0, 1, 1],
            positions: vec![1, 5, 5],
            ..plan(3, &[1, 5, 5], &[1, 3, 3], 1, 1, 1)
        };
        let tensor = Tensor::randn([2, 3, 1, 5, 5], (Kind::Float, Device::Cpu));
        let expected = tensor.squeeze_dim(2).im2col([3, 3], [1, 1], [1, 1], [1, 1]);
        assert!(
            unfold(&tensor, &deep, 1)
                .unwrap()
                .equal(&reordered(&expected, &deep))
        );
    }

    #[test]
    fn a_tensor_of_another_shape_is_refused() {
        let plan = plan(3, &[7, 5], &[3, 3], 1, 0, 1);
        assert!(unfold(&Tensor::randn([2, 3, 7, 6], (Kind::Float, Device::Cpu)), &plan, 1).is_err());
    }
}
