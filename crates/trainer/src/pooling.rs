//! Max pooling: its windows, checked again before they may run, and its elements, found with vectors.
//!
//! libtorch walks through the windows one element after the other, and its pass over planes that lie together was a
//! quarter of a small network's step. Here the place of the maximum is found for a line of windows at once; the values
//! are gathered from there, so that autograd puts the gradient where libtorch's own operator does.
//!
//! Of a window that lies wholly in the padding libtorch's kernel makes an index beyond the plane, and its backward pass
//! writes there unchecked: into the next sample's gradient, or beyond the buffer (rules T7, A2).

use crate::accelerated;
use crate::device::is_on_host;
use crate::error::{EngineError, Result};
use crate::ffi::{self, Element};
use crate::grid::in_parallel;
use crate::program::{Call, Expected, Prepared};
use crate::vectors::{Pass, Vectors, Widest};
use tch::{Device, Kind, Tensor};

/// # Errors
/// [`EngineError::Unsupported`] when a node pools with padding and a dilation longer than the axis.
pub(crate) fn check(operator: &str, call: &Call, expected: &[Expected]) -> Result<()> {
    if !operator.starts_with("max_pool") || meets_elements(call, expected).unwrap_or(false) {
        return Ok(());
    }
    Err(EngineError::Unsupported {
        node: call.name.clone(),
        reason: "a window may lie wholly in the padding".into(),
    })
}

fn meets_elements(call: &Call, expected: &[Expected]) -> Option<bool> {
    let argument = |name: &str| call.position(name).map(|position| &call.arguments[position]);
    let ints = |name: &str| match argument(name) {
        Some(Prepared::Ints(values)) => Some(values),
        _ => None,
    };
    let Some(Prepared::Value(input)) = argument("self") else {
        return None;
    };
    let (padding, dilation) = (ints("padding")?, ints("dilation")?);
    let shape = &expected.get(*input)?.shape;
    let spatial = &shape[shape.len().checked_sub(padding.len())?..];
    let all = padding.len() == dilation.len();
    let mut axes = spatial.iter().zip(padding).zip(dilation);
    Some(all && axes.all(|((&size, &padding), &dilation)| padding == 0 || dilation <= size))
}

/// Windows over two axes.
struct Windows {
    planes: usize,
    extents: [usize; 2],
    outputs: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
}

/// `max_pool2d` of `[B, channels, height, width]`; `None` for what is left to libtorch.
///
/// # Errors
/// [`EngineError::Torch`] when memory is short.
pub(crate) fn run(call: &Call, values: &[Option<Tensor>], expected: &[Expected]) -> Result<Option<Tensor>> {
    let found = call
        .is_max_pool
        .then(|| windows(call, values, expected))
        .flatten();
    let Some((input, windows)) = found else {
        return Ok(None);
    };
    let threads = tch::get_num_threads().max(1) as usize;
    let output = &expected[call.outputs[0]].shape;
    match input.kind() {
        Kind::Float => pooled::<f32>(input, &windows, output, threads),
        Kind::Double => pooled::<f64>(input, &windows, output, threads),
        _ => Ok(None),
    }
}

fn windows<'v>(
    call: &Call,
    values: &'v [Option<Tensor>],
    expected: &[Expected],
) -> Option<(&'v Tensor, Windows)> {
    let argument = |name: &str| call.position(name).map(|position| &call.arguments[position]);
    let pair = |name: &str| match argument(name) {
        Some(Prepared::Ints(given)) if given.len() == 2 => {
            Some([usize::try_from(given[0]).ok()?, usize::try_from(given[1]).ok()?])
        }
        _ => None,
    };
    let Some(Prepared::Value(position)) = argument("self") else {
        return None;
    };
    let input = values[*position].as_ref()?;
    let (from, to) = (input.size(), &expected[*call.outputs.first()?].shape);
    let (&[batch, channels, height, width], &[.., rows, columns]) = (&from[..], &to[..]) else {
        return None;
    };
    let kernel = pair("kernel_size")?;
    let stride = match argument("stride") {
        Some(Prepared::Ints(given)) if given.is_empty() => kernel,
        _ => pair("stride")?,
    };
    let windows = Windows {
        planes: (batch * channels) as usize,
        extents: [height as usize, width as usize],
        outputs: [rows as usize, columns as usize],
        kernel,
        stride,
        padding: pair("padding")?,
        dilation: pair("dilation")?,
    };
    windows.fits().then_some((input, windows))
}

fn pooled<T: Maximum>(
    input: &Tensor,
    windows: &Windows,
    output: &[i64],
    threads: usize,
) -> Result<Option<Tensor>> {
    if !is_on_host(input) {
        let Windows {
            kernel,
            stride,
            padding,
            dilation,
            ..
        } = *windows;
        let places = accelerated::places_of_maxima(&input.f_detach()?, [kernel, stride, padding, dilation])?;
        return gathered(input, windows, &places, output);
    }
    let source = input.f_detach()?.f_contiguous()?;
    let (plane, places) = (windows.plane(), windows.outputs.iter().product::<usize>());
    let planes = windows.planes as i64;
    let mut indices = Tensor::f_empty([planes, places as i64], (Kind::Int64, Device::Cpu))?;
    let share = windows.planes.div_ceil(threads.max(1)).max(1);
    let done = ffi::read(&source, |source: &[T]| {
        ffi::write(&mut indices, |indices: &mut [i64]| {
            let work = source
                .chunks(share * plane)
                .zip(indices.chunks_mut(share * places))
                .collect();
            in_parallel(work, threads, |(source, indices)| {
                Widest.run(Places {
                    windows,
                    source,
                    indices,
                })
            });
        })
    });
    if done.flatten().is_none() {
        return Ok(None);
    }
    gathered(input, windows, &indices, output)
}

/// The elements at these places of each plane.
fn gathered(input: &Tensor, windows: &Windows, places: &Tensor, output: &[i64]) -> Result<Option<Tensor>> {
    let planes = windows.planes as i64;
    let values = input.f_reshape([planes, windows.plane() as i64])?.f_gather(
        1,
        &places.f_reshape([planes, -1])?,
        false,
    )?;
    Ok(Some(values.f_reshape(output)?))
}

/// Numbers that have a maximum.
trait Maximum: Element + PartialOrd + Send + Sync {
    /// Below or equal to all others.
    const LOWEST: Self;
}
impl Maximum for f32 {
    const LOWEST: Self = Self::NEG_INFINITY;
}
impl Maximum for f64 {
    const LOWEST: Self = Self::NEG_INFINITY;
}

impl Windows {
    fn plane(&self) -> usize {
        self.extents[0] * self.extents[1]
    }

    /// No extent is zero, planes are short enough for the indices, and the last window starts inside the padded plane.
    fn fits(&self) -> bool {
        let positive = |extents: &[usize; 2]| extents.iter().all(|&extent| extent > 0);
        let all = [
            &self.extents,
            &self.outputs,
            &self.kernel,
            &self.stride,
            &self.dilation,
        ];
        all.into_iter().all(positive)
            && self.planes > 0
            && self.padded().iter().product::<usize>() < i32::MAX as usize
            && (0..2).all(|axis| {
                let start = (self.outputs[axis] - 1) * self.stride[axis];
                start < self.extents[axis] + self.padding[axis]
            })
    }

    /// Extents of the plane with its padding, as far as the windows reach at least.
    fn padded(&self) -> [usize; 2] {
        [0, 1].map(|axis| {
            let last = (self.outputs[axis] - 1) * self.stride[axis];
            let reach = last + (self.kernel[axis] - 1) * self.dilation[axis] + 1;
            reach.max(self.padding[axis] + self.extents[axis])
        })
    }
}

/// Where in its plane each window's maximum is: the first of equals, the last NaN, as libtorch has it.
struct Places<'a, T> {
    windows: &'a Windows,
    source: &'a [T],
    indices: &'a mut [i64],
}

impl<T: Maximum> Pass for Places<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let windows = self.windows;
        let [rows, columns] = windows.outputs;
        let [height, width] = windows.padded();
        let mut padded = vec![T::LOWEST; height * width];
        let lines = (0..windows.kernel[0]).map(|at| at * windows.dilation[0] * width);
        let offsets: Vec<usize> = lines
            .flat_map(|line| (0..windows.kernel[1]).map(move |at| line + at * windows.dilation[1]))
            .collect();
        // Windows one element apart, of one row of outputs; of all rows where rows are one line apart, too.
        let across = (columns - 1) * windows.stride[1] + 1;
        let (runs, length) = match windows.stride[0] {
            1 => (1, (rows - 1) * width + across),
            _ => (rows, across),
        };
        let (mut best, mut place) = (vec![T::LOWEST; length], vec![0i32; length]);
        let planes = self.source.chunks_exact(windows.plane());
        for (plane, indices) in planes.zip(self.indices.chunks_exact_mut(rows * columns)) {
            for (y, line) in plane.chunks_exact(windows.extents[1]).enumerate() {
                let start = (y + windows.padding[0]) * width + windows.padding[1];
                padded[start..start + line.len()].copy_from_slice(line);
            }
            let mut outputs = indices.chunks_exact_mut(columns).enumerate();
            for run in 0..runs {
                let start = run * windows.stride[0] * width;
                largest(&padded, start, &offsets, &mut best, &mut place);
                for (row, indices) in outputs.by_ref().take(rows / runs) {
                    let first = (row - run) * width;
                    let places = place[first..].iter().step_by(windows.stride[1]);
                    for (column, (index, &place)) in indices.iter_mut().zip(places).enumerate() {
                        *index = windows.in_plane(place as usize, width, [row, column]);
                    }
                }
            }
        }
    }
}

impl Windows {
    /// From an index into the padded plane. Padding wins only where all else in the window is -∞: its first element,
    /// then.
    #[inline(always)]
    fn in_plane(&self, place: usize, width: usize, output: [usize; 2]) -> i64 {
        if width == self.extents[1] && self.padding == [0, 0] {
            return place as i64;
        }
        let at = [place / width, place % width];
        let inside = (0..2)
            .all(|axis| (self.padding[axis]..self.padding[axis] + self.extents[axis]).contains(&at[axis]));
        let at = if inside { at } else { self.first(output) };
        let line = (at[0] - self.padding[0]) * self.extents[1];
        (line + at[1] - self.padding[1]) as i64
    }

    /// The first element of a window that is no padding, in the padded plane.
    #[cold]
    fn first(&self, output: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|axis| {
            let start = output[axis] * self.stride[axis];
            let missing = self.padding[axis].saturating_sub(start);
            start + missing.div_ceil(self.dilation[axis]) * self.dilation[axis]
        })
    }
}

/// Maximum and its index of each of the windows that start at `start` and after.
#[inline(always)]
fn largest<T: Maximum>(padded: &[T], start: usize, offsets: &[usize], best: &mut [T], place: &mut [i32]) {
    best.fill(T::LOWEST);
    place.fill(start as i32);
    for (turn, offset) in offsets.iter().enumerate() {
        let values = &padded[start + offset..][..best.len()];
        let mut index = (start + offset) as i32;
        for ((best, place), &value) in best.iter_mut().zip(place.iter_mut()).zip(values) {
            let wins = is_larger(value, *best) || turn == 0;
            *best = if wins { value } else { *best };
            *place = if wins { index } else { *place };
            // Checked additions would keep the compiler from using vectors; a plane has fewer than 2^31 elements.
            index = index.wrapping_add(1);
        }
    }
}

#[inline(always)]
#[allow(clippy::eq_op)]
fn is_larger<T: Maximum>(value: T, best: T) -> bool {
    // NaN is not equal to itself.
    value > best || value != value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(input: &Tensor, kernel: i64, stride: i64, padding: i64, dilation: i64, ceil: bool) {
        let pair = |value: i64| [value as usize; 2];
        let expected = input.max_pool2d([kernel; 2], [stride; 2], [padding; 2], [dilation; 2], ceil);
        let (from, to) = (input.size(), expected.size());
        let windows = Windows {
            planes: (from[0] * from[1]) as usize,
            extents: [from[2] as usize, from[3] as usize],
            outputs: [to[2] as usize, to[3] as usize],
            kernel: pair(kernel),
            stride: pair(stride),
            padding: pair(padding),
            dilation: pair(dilation),
        };
        assert!(windows.fits());
        let own = match input.kind() {
            Kind::Float => pooled::<f32>(input, &windows, &to, 2),
            _ => pooled::<f64>(input, &windows, &to, 2),
        };
        let own = own.unwrap().unwrap();
        let case = format!("{from:?} {kernel} {stride} {padding} {dilation} {ceil}");
        assert!(own.allclose(&expected, 0.0, 0.0, true), "{case}");
        let weights = Tensor::rand_like(&expected);
        let gradient = |output: &Tensor| {
            let sum = (output.nan_to_num(0.0, 0.0, 0.0) * &weights).sum(input.kind());
            Tensor::run_backward(&[sum], &[input], false, false).remove(0)
        };
        assert!(
            gradient(&own).allclose(&gradient(&expected), 1e-6, 1e-6, true),
            "{case}"
        );
    }

    #[test]
    fn values_and_gradients_are_libtorchs() {
        for kind in [Kind::Float, Kind::Double] {
            for (kernel, stride, padding, dilation, ceil) in [
                (2, 1, 0, 1, false),
                (2, 2, 0, 1, false),
                (3, 2, 1, 1, false),
                (3, 2, 1, 1, true),
                (3, 3, 1, 2, false),
                (2, 3, 1, 1, true),
                (5, 1, 2, 1, false),
            ] {
                // Many ties, as after a relu.
                let random = Tensor::randn([3, 4, 11, 9], (kind, Device::Cpu)).relu();
                both(
                    &random.set_requires_grad(true),
                    kernel,
                    stride,
                    padding,
                    dilation,
                    ceil,
                );
            }
        }
    }

    #[test]
    fn values_that_are_no_numbers_are_where_libtorch_has_them() {
        let row = [
            f32::NAN,
            1.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            -0.0,
            0.0,
        ];
        let values: Vec<f32> = (0..64).map(|place| row[(place * 5 + place / 8) % 8]).collect();
        let input = Tensor::from_slice(&values).reshape([1, 1, 8, 8]);
        for (kernel, stride, padding) in [(2, 1, 0), (2, 2, 1), (3, 2, 1)] {
            both(&input.set_requires_grad(true), kernel, stride, padding, 1, false);
        }
    }

    #[test]
    fn windows_that_reach_nowhere_are_left_to_libtorch() {
        let windows = Windows {
            planes: 1,
            extents: [2, 2],
            outputs: [4, 4],
            kernel: [2, 2],
            stride: [2, 2],
            padding: [1, 1],
            dilation: [1, 1],
        };
        assert!(!windows.fits());
    }
}
