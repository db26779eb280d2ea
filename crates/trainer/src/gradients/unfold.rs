//! A convolution's input as a matrix: for every position of the kernel the elements it meets (im2col).
//!
//! One record at a time and in parallel over records, without a padded copy: what lies outside is written as zero.

use crate::error::{EngineError, Result};
use crate::ffi::{self, Element};
use crate::grid::in_parallel;
use crate::taps::ConvolutionPlan;
use tch::{Device, Kind, Tensor};

/// `[records, channels, ..]` as `[records, channels·kernel, positions]`; elements stay as they are.
///
/// # Errors
/// [`EngineError::Torch`] when memory is short, [`EngineError::SumOutOfBound`] when the tensor is not the plan's.
pub(crate) fn unfold(tensor: &Tensor, plan: &ConvolutionPlan, threads: usize) -> Result<Tensor> {
    match tensor.kind() {
        Kind::Float => unfold_as::<f32>(tensor, plan, threads),
        Kind::Double => unfold_as::<f64>(tensor, plan, threads),
        _ => Err(EngineError::SumOutOfBound),
    }
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
    if source.numel() != records as usize * from {
        return Err(EngineError::SumOutOfBound);
    }
    let rows = (window.channels * window.kernel.iter().product::<usize>()) as i64;
    let positions = window.positions.iter().product::<usize>() as i64;
    let mut target = Tensor::f_empty([records, rows, positions], (T::KIND, Device::Cpu))?;
    let done = ffi::read(&source, |source: &[T]| {
        ffi::write(&mut target, |target: &mut [T]| {
            let work = source
                .chunks_exact(from)
                .zip(target.chunks_exact_mut(to))
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
    channels: usize,
    extents: [usize; 3],
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
        Self {
            channels: plan.unfolded_channels as usize,
            extents: three(&plan.unfolded_extents, 1),
            positions: three(&plan.positions, 1),
            kernel: three(&plan.kernel, 1),
            stride: three(&plan.stride, 1),
            dilation: three(&plan.dilation, 1),
            before: three(&plan.padding_before, 0),
        }
    }

    fn elements(&self) -> usize {
        self.channels * self.extents.iter().product::<usize>()
    }

    fn unfolded(&self) -> usize {
        self.channels * self.kernel.iter().product::<usize>() * self.positions.iter().product::<usize>()
    }

    /// One record: `[channels, extents]` to `[channels, kernel, positions]`.
    fn unfold<T: Copy + Default>(&self, source: &[T], target: &mut [T]) {
        let plane: usize = self.extents.iter().product();
        let [_, height, width] = self.extents;
        let mut lines = target.chunks_exact_mut(self.positions[2]);
        for channel in source.chunks_exact(plane) {
            for at in positions(self.kernel) {
                let inside = self.inside(2, at[2]);
                for depth in 0..self.positions[0] {
                    let z = self.meets(0, depth, at[0]);
                    for row in 0..self.positions[1] {
                        let Some(line) = lines.next() else { return };
                        let y = self.meets(1, row, at[1]);
                        let source = z.zip(y).map(|(z, y)| {
                            let start = (z * height + y) * width;
                            &channel[start..start + width]
                        });
                        match source {
                            Some(source) => self.line(source, line, at[2], &inside),
                            None => line.fill(T::default()),
                        }
                    }
                }
            }
        }
    }

    fn line<T: Copy + Default>(
        &self,
        source: &[T],
        line: &mut [T],
        kernel: usize,
        inside: &std::ops::Range<usize>,
    ) {
        line[..inside.start].fill(T::default());
        line[inside.end..].fill(T::default());
        let Some(first) = self.meets(2, inside.start, kernel).filter(|_| !inside.is_empty()) else {
            return;
        };
        let line = &mut line[inside.clone()];
        if self.stride[2] == 1 {
            line.copy_from_slice(&source[first..first + line.len()]);
        } else {
            let strided = source[first..].iter().step_by(self.stride[2]);
            line.iter_mut()
                .zip(strided)
                .for_each(|(slot, &value)| *slot = value);
        }
    }

    /// The element that a position meets at a place of the kernel; None in the padding.
    fn meets(&self, axis: usize, position: usize, kernel: usize) -> Option<usize> {
        (position * self.stride[axis] + kernel * self.dilation[axis])
            .checked_sub(self.before[axis])
            .filter(|&element| element < self.extents[axis])
    }

    /// Positions along `axis` that meet an element at this place of the kernel.
    fn inside(&self, axis: usize, kernel: usize) -> std::ops::Range<usize> {
        let (stride, shift) = (self.stride[axis], kernel * self.dilation[axis]);
        let first = self.before[axis].saturating_sub(shift).div_ceil(stride);
        let end = (self.extents[axis] + self.before[axis])
            .saturating_sub(shift)
            .div_ceil(stride);
        let end = end.min(self.positions[axis]);
        first.min(end)..end
    }
}

fn positions(extents: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    let [depth, height, width] = extents;
    (0..depth * height * width)
        .map(move |flat| [flat / (height * width), flat / width % height, flat % width])
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
            let plan = plan(3, &extents, &kernel, stride, padding, dilation);
            let tensor = Tensor::randn([2, 3, extents[0], extents[1]], (Kind::Float, Device::Cpu));
            let expected = tensor.im2col(kernel, [dilation; 2], [padding; 2], [stride; 2]);
            assert!(
                unfold(&tensor, &plan, 2).unwrap().equal(&expected),
                "{extents:?} {kernel:?}"
            );
        }
    }

    #[test]
    fn one_and_three_axes_are_two_with_others_of_extent_one() {
        let tensor = Tensor::randn([2, 3, 9], (Kind::Double, Device::Cpu));
        let flat = plan(3, &[9], &[4], 2, 1, 1);
        let expected = tensor.unsqueeze(2).im2col([1, 4], [1, 1], [0, 1], [1, 2]);
        assert!(unfold(&tensor, &flat, 1).unwrap().equal(&expected));
        let deep = ConvolutionPlan {
            padding_before: vec![0, 1, 1],
            positions: vec![1, 5, 5],
            ..plan(3, &[1, 5, 5], &[1, 3, 3], 1, 1, 1)
        };
        let tensor = Tensor::randn([2, 3, 1, 5, 5], (Kind::Float, Device::Cpu));
        let expected = tensor.squeeze_dim(2).im2col([3, 3], [1, 1], [1, 1], [1, 1]);
        assert!(unfold(&tensor, &deep, 1).unwrap().equal(&expected));
    }

    #[test]
    fn a_tensor_of_another_shape_is_refused() {
        let plan = plan(3, &[7, 5], &[3, 3], 1, 0, 1);
        assert!(unfold(&Tensor::randn([2, 3, 7, 6], (Kind::Float, Device::Cpu)), &plan, 1).is_err());
    }
}
