//! A convolution's input as a matrix: for every place of the kernel the elements it meets (im2col).
//!
//! Channels come last, so that what the kernel meets along its last axis lies together: a place is a few copies of
//! whole runs, whatever the stride. Each record's group is first brought into that order, with its padding, in memory
//! that stays in the nearest caches.

use crate::accelerated;
use crate::device::is_on_host;
use crate::error::{EngineError, Result};
use crate::ffi::{self, Element};
use crate::grid::in_parallel;
use crate::taps::ConvolutionPlan;
use crate::vectors::{Pass, Vectors, Widest};
use tch::{Device, Kind, Tensor};

/// Runs up to this long are copied with a length that the compiler knows, what follows them included.
const SHORT: usize = 16;

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

fn unfold_as<T: Element + Default + Send + Sync>(
    tensor: &Tensor,
    plan: &ConvolutionPlan,
    threads: usize,
) -> Result<Tensor> {
    let source = tensor.f_contiguous()?;
    let window = Window::new(plan);
    let (from, to) = (window.elements(), window.unfolded());
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

/// The plan in three dimensions, missing ones in front with extent 1.
struct Window {
    groups: usize,
    /// Of one group.
    channels: usize,
    extents: [usize; 3],
    /// With padding, as far as the kernel reaches at least.
    padded: [usize; 3],
    positions: [usize; 3],
    kernel: [usize; 3],
    stride: [usize; 3],
    dilation: [usize; 3],
    before: [usize; 3],
}

impl Window {
    fn new(plan: &ConvolutionPlan) -> Self {
        let three = |values: &[i64], missing: usize| {
            let mut all = [missing; 3];
            for (slot, &value) in all.iter_mut().rev().zip(values.iter().rev()) {
                *slot = value as usize;
            }
            all
        };
        let mut window = Self {
            groups: plan.groups as usize,
            channels: (plan.unfolded_channels / plan.groups) as usize,
            extents: three(&plan.unfolded_extents, 1),
            padded: [0; 3],
            positions: three(&plan.positions, 1),
            kernel: three(&plan.kernel, 1),
            stride: three(&plan.stride, 1),
            dilation: three(&plan.dilation, 1),
            before: three(&plan.padding_before, 0),
        };
        for axis in 0..3 {
            let last = (window.positions[axis] - 1) * window.stride[axis];
            let reach = last + (window.kernel[axis] - 1) * window.dilation[axis] + 1;
            window.padded[axis] = reach.max(window.before[axis] + window.extents[axis]);
        }
        window
    }

    /// Of one record's group, as it is.
    fn plane(&self) -> usize {
        self.channels * self.extents.iter().product::<usize>()
    }

    fn elements(&self) -> usize {
        self.groups * self.plane()
    }

    fn unfolded(&self) -> usize {
        let places = self.positions.iter().product::<usize>();
        self.groups * places * self.channels * self.kernel.iter().product::<usize>()
    }

    /// Records: `[groups, channels, extents]` to `[groups, positions, kernel, channels]` each.
    fn unfold<T: Copy + Default>(&self, source: &[T], target: &mut [T]) {
        // Its padding is written once; only what lies inside changes from group to group.
        let padded = self.channels * self.padded.iter().product::<usize>();
        let mut padded = vec![T::default(); padded + SHORT];
        let each = self.unfolded() / self.groups;
        for (group, target) in source
            .chunks_exact(self.plane())
            .zip(target.chunks_exact_mut(each))
        {
            self.pad(group, &mut padded);
            Widest.run(Places {
                window: self,
                padded: &padded,
                target,
            });
        }
    }

    /// `[channels, extents]` to `[padded extents, channels]`.
    fn pad<T: Copy>(&self, group: &[T], padded: &mut [T]) {
        let [depth, height, width] = self.extents;
        let plane = depth * height * width;
        for (line, [z, y]) in pairs([depth, height]).enumerate() {
            let at = [z + self.before[0], y + self.before[1], self.before[2]];
            let target = &mut padded[self.offset(at)..][..width * self.channels];
            for (channel, plane) in group.chunks_exact(plane).enumerate() {
                let source = &plane[line * width..][..width];
                let slots = target[channel..].iter_mut().step_by(self.channels);
                slots.zip(source).for_each(|(slot, &value)| *slot = value);
            }
        }
    }

    fn offset(&self, [z, y, x]: [usize; 3]) -> usize {
        ((z * self.padded[1] + y) * self.padded[2] + x) * self.channels
    }
}

/// `[padded extents, channels]` to `[positions, kernel, channels]`.
struct Places<'a, T> {
    window: &'a Window,
    /// And [`SHORT`] elements more.
    padded: &'a [T],
    target: &'a mut [T],
}

impl<T: Copy> Pass for Places<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Window {
            channels,
            positions,
            kernel,
            stride,
            dilation,
            ..
        } = *self.window;
        // Places along the last axis of the kernel that lie together.
        let together = if dilation[2] == 1 { kernel[2] } else { 1 };
        let run = together * channels;
        let mut starts = Vec::new();
        for [z, y] in pairs([kernel[0], kernel[1]]) {
            for x in (0..kernel[2]).step_by(together) {
                let at = [z * dilation[0], y * dilation[1], x * dilation[2]];
                starts.push(self.window.offset(at));
            }
        }
        let mut slot = 0;
        for [z, y] in pairs([positions[0], positions[1]]) {
            for x in 0..positions[2] {
                let base = self.window.offset([z * stride[0], y * stride[1], x * stride[2]]);
                for start in &starts {
                    let source = &self.padded[base + start..];
                    let target = &mut self.target[slot..];
                    if run <= SHORT && target.len() >= SHORT {
                        // Beyond the run: what the next ones write again.
                        target[..SHORT].copy_from_slice(&source[..SHORT]);
                    } else {
                        target[..run].copy_from_slice(&source[..run]);
                    }
                    slot += run;
                }
            }
        }
    }
}

/// All pairs below these extents, in order.
fn pairs([outer, inner]: [usize; 2]) -> impl Iterator<Item = [usize; 2]> {
    (0..outer).flat_map(move |first| (0..inner).map(move |second| [first, second]))
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
                assert!(
                    unfold(&tensor, &plan, 2).unwrap().equal(&expected),
                    "{extents:?} {kernel:?} {channels} {groups}"
                );
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
