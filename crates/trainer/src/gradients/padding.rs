//! A record's group with its channels last and its padding around it, in memory that stays in the nearest caches, and
//! where in it the kernel's runs lie.

use crate::taps::ConvolutionPlan;
use crate::vectors::{Pass, Vectors, Widest};
use std::array::from_fn;

/// Runs up to this long are copied with a length that the compiler knows, what follows them included.
const SHORT: usize = 16;

/// Channels whose lines are turned at once, and places of a line.
const SIDE: usize = 8;

/// Elements behind a record's padded memory that may be read and mean nothing.
const BEHIND: usize = SHORT;

/// The plan in three dimensions, missing ones in front with extent 1.
pub(super) struct Window {
    pub(super) groups: usize,
    /// Of one group, or of as many of its channels as are handled at once.
    channels: usize,
    extents: [usize; 3],
    /// With padding, as far as the kernel reaches at least.
    padded: [usize; 3],
    before: [usize; 3],
    /// Where in the padded memory each position of the kernel starts.
    pub(super) starts: Vec<usize>,
    /// Where from there the kernel's runs start: places along its last axis that lie together.
    pub(super) runs: Vec<usize>,
    /// Elements of a run.
    pub(super) run: usize,
}

impl Window {
    pub(super) fn new(plan: &ConvolutionPlan) -> Self {
        Self::of_channels(plan, plan.unfolded_channels / plan.groups)
    }

    /// Of so many channels at once.
    pub(super) fn of_channels(plan: &ConvolutionPlan, channels: i64) -> Self {
        let three = |values: &[i64], missing: usize| {
            let mut all = [missing; 3];
            for (slot, &value) in all.iter_mut().rev().zip(values.iter().rev()) {
                *slot = value as usize;
            }
            all
        };
        let (positions, kernel) = (three(&plan.positions, 1), three(&plan.kernel, 1));
        let (stride, dilation) = (three(&plan.stride, 1), three(&plan.dilation, 1));
        let mut window = Self {
            groups: plan.groups as usize,
            channels: channels as usize,
            extents: three(&plan.unfolded_extents, 1),
            padded: [0; 3],
            before: three(&plan.padding_before, 0),
            starts: Vec::new(),
            runs: Vec::new(),
            run: 0,
        };
        for axis in 0..3 {
            let last = (positions[axis] - 1) * stride[axis];
            let reach = last + (kernel[axis] - 1) * dilation[axis] + 1;
            window.padded[axis] = reach.max(window.before[axis] + window.extents[axis]);
        }
        let together = if dilation[2] == 1 { kernel[2] } else { 1 };
        window.run = together * window.channels;
        let starts = triples([positions[0], positions[1], positions[2]]);
        window.starts = starts.map(|at| window.offset(product(at, stride))).collect();
        let runs = triples([kernel[0], kernel[1], kernel[2].div_ceil(together)]);
        let runs = runs.map(|[z, y, x]| product([z, y, x * together], dilation));
        window.runs = runs.map(|at| window.offset(at)).collect();
        window
    }

    /// Of one record's group, as it is.
    pub(super) fn plane(&self) -> usize {
        self.channels * self.extents.iter().product::<usize>()
    }

    pub(super) fn elements(&self) -> usize {
        self.groups * self.plane()
    }

    /// Elements of a row: what one position of the kernel meets.
    pub(super) fn width(&self) -> usize {
        self.runs.len() * self.run
    }

    pub(super) fn unfolded(&self) -> usize {
        self.groups * self.starts.len() * self.width()
    }

    /// Memory for [`Self::pad`], zero, and [`BEHIND`] elements more. Its padding is written once: only what lies inside
    /// changes from group to group.
    pub(super) fn padded_memory<T: Copy + Default>(&self) -> Vec<T> {
        vec![T::default(); self.channels * self.padded.iter().product::<usize>() + BEHIND]
    }

    /// Records: `[groups, channels, extents]` to `[groups, positions, kernel, channels]` each.
    pub(super) fn unfold<T: Copy + Default>(&self, source: &[T], target: &mut [T]) {
        let mut padded = self.padded_memory();
        let each = self.unfolded() / self.groups;
        for (group, target) in source
            .chunks_exact(self.plane())
            .zip(target.chunks_exact_mut(each))
        {
            self.pad(group, &mut padded);
            self.rows(&self.starts, &padded, target);
        }
    }

    /// `[channels, extents]` to `[padded extents, channels]`.
    pub(super) fn pad<T: Copy>(&self, group: &[T], padded: &mut [T]) {
        Widest.run(Lines {
            window: self,
            group,
            padded,
        });
    }

    /// The rows of the positions that start there: `[starts, kernel, channels]`.
    pub(super) fn rows<T: Copy>(&self, starts: &[usize], padded: &[T], target: &mut [T]) {
        Widest.run(Rows {
            window: self,
            starts,
            padded,
            target,
        });
    }

    fn offset(&self, [z, y, x]: [usize; 3]) -> usize {
        ((z * self.padded[1] + y) * self.padded[2] + x) * self.channels
    }
}

/// `[channels, extents]` to `[padded extents, channels]`.
struct Lines<'a, T> {
    window: &'a Window,
    group: &'a [T],
    padded: &'a mut [T],
}

impl<T: Copy> Pass for Lines<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (window, channels) = (self.window, self.window.channels);
        let [depth, height, width] = window.extents;
        let plane = depth * height * width;
        for (line, [z, y]) in pairs([depth, height]).enumerate() {
            let at = [z + window.before[0], y + window.before[1], window.before[2]];
            let target = &mut self.padded[window.offset(at)..][..width * channels];
            let source = |channel: usize| &self.group[channel * plane + line * width..][..width];
            let whole = channels - channels % SIDE;
            for first in (0..whole).step_by(SIDE) {
                turn(
                    from_fn(|channel| source(first + channel)),
                    &mut target[first..],
                    channels,
                );
            }
            for channel in whole..channels {
                let slots = target[channel..].iter_mut().step_by(channels);
                slots
                    .zip(source(channel))
                    .for_each(|(slot, &value)| *slot = value);
            }
        }
    }
}

/// The lines of some channels side by side, `stride` elements from place to place.
#[inline(always)]
fn turn<T: Copy>(lines: [&[T]; SIDE], target: &mut [T], stride: usize) {
    let width = lines[0].len();
    let mut first = 0;
    while first + SIDE <= width {
        let square: [[T; SIDE]; SIDE] = from_fn(|channel| from_fn(|place| lines[channel][first + place]));
        for place in 0..SIDE {
            let column: [T; SIDE] = from_fn(|channel| square[channel][place]);
            target[(first + place) * stride..][..SIDE].copy_from_slice(&column);
        }
        first += SIDE;
    }
    for place in first..width {
        let column: [T; SIDE] = from_fn(|channel| lines[channel][place]);
        target[place * stride..][..SIDE].copy_from_slice(&column);
    }
}

/// `[padded extents, channels]` to `[starts, kernel, channels]`.
struct Rows<'a, T> {
    window: &'a Window,
    starts: &'a [usize],
    /// And [`BEHIND`] elements more.
    padded: &'a [T],
    target: &'a mut [T],
}

impl<T: Copy> Pass for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (runs, run) = (&self.window.runs, self.window.run);
        let mut slot = 0;
        for base in self.starts {
            for start in runs {
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

fn product(at: [usize; 3], steps: [usize; 3]) -> [usize; 3] {
    [at[0] * steps[0], at[1] * steps[1], at[2] * steps[2]]
}

/// All triples below these extents, in order.
fn triples([outer, middle, inner]: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    pairs([outer, middle]).flat_map(move |[z, y]| (0..inner).map(move |x| [z, y, x]))
}

/// All pairs below these extents, in order.
fn pairs([outer, inner]: [usize; 2]) -> impl Iterator<Item = [usize; 2]> {
    (0..outer).flat_map(move |first| (0..inner).map(move |second| [first, second]))
}
