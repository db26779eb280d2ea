//! Weight gradients of convolutions, record by record, from memory that stays in a core's own caches.
//!
//! A record's group is brought into the order of its channels and padded; its rows are then read from there wherever the
//! kernel stands, so that the unfolded rows are never written out. Only where what lies together is too short for the
//! machine's vectors, they are, a few positions at a time. The squares of a gradient are summed while it is still in
//! registers: it is written once, and read again for the sum over records alone.

use super::padding::Window;
use crate::ffi::{self, Slot, WindowProduct};
use crate::grid::in_parallel;
use crate::taps::ConvolutionPlan;

/// Positions whose products are summed before the result is written: their part of a column's rows then stays in the
/// nearest cache.
const POSITIONS: usize = 128;

/// What writing a row's vector to an unfolded block costs, in multiplications of it.
const UNFOLDED_VECTOR: usize = 4;

/// How the rows of one group of a convolution are read.
pub(super) struct Windows {
    window: Window,
    /// Plain channels of a group.
    plain: usize,
    /// Places of the kernel, each where its row starts.
    starts: Vec<i32>,
    slots: Vec<Slot>,
    /// Of the vectors.
    lanes: usize,
    /// Whether a block of rows is written out before it is multiplied.
    unfolds: bool,
}

impl Windows {
    /// `None` where this machine has no kernel for it, or a record is beyond what its offsets can tell.
    pub(super) fn new(plan: &ConvolutionPlan) -> Option<Self> {
        Self::with(plan, ffi::convolution_lanes())
    }

    fn with(plan: &ConvolutionPlan, lanes: usize) -> Option<Self> {
        if plan.length() == 0 {
            return None;
        }
        let window = Window::new(plan);
        let last = window.starts.last()? + window.runs.last()? + window.run;
        let most = last.max(POSITIONS.checked_mul(window.width())?);
        if lanes == 0 || i32::try_from(most).is_err() || window.elements() == 0 || plan.plain_width() == 0 {
            return None;
        }
        let plain = plan.plain_width() as usize;
        let runs = window.runs.iter().enumerate();
        let together = runs.flat_map(|(turn, &start)| slots(start, turn * window.run, window.run, lanes));
        let together: Vec<Slot> = together.collect();
        let written: Vec<Slot> = slots(0, 0, window.width(), lanes).collect();
        let unfolds = written.len() * (plain + UNFOLDED_VECTOR) < together.len() * plain;
        let starts: Vec<i32> = if unfolds {
            (0..POSITIONS.min(window.starts.len()))
                .map(|at| (at * window.width()) as i32)
                .collect()
        } else {
            window.starts.iter().map(|&start| start as i32).collect()
        };
        Some(Self {
            slots: if unfolds { written } else { together },
            starts,
            unfolds,
            plain,
            lanes,
            window,
        })
    }

    /// Gradients and their squared norms of records, from what is unfolded, `[records, groups, channels, extents]`, and
    /// what is plain, `[records, groups, plain channels, positions]`. `target`:
    /// `[records, groups, plain channels, kernel, channels]`. `None` when the slices are not of these sizes.
    pub(super) fn gradients(
        &self,
        unfolded: &[f32],
        plain: &[f32],
        target: &mut [f32],
        threads: usize,
    ) -> Option<Vec<f64>> {
        let (from, with, to) = (self.window.elements(), self.plain_elements(), self.elements());
        let records = unfolded.len() / from;
        if unfolded.len() != records * from || plain.len() != records * with || target.len() != records * to {
            return None;
        }
        let share = records.div_ceil(threads.max(1)).max(1);
        let work = unfolded
            .chunks(share * from)
            .zip(plain.chunks(share * with))
            .zip(target.chunks_mut(share * to));
        let squares = in_parallel(work.collect(), threads, |((unfolded, plain), target)| {
            let mut memory = Memory::new(self);
            let records = unfolded.chunks_exact(from).zip(plain.chunks_exact(with));
            let records = records.zip(target.chunks_exact_mut(to));
            records
                .map(|((unfolded, plain), target)| self.of_record(unfolded, plain, target, &mut memory))
                .collect::<Vec<f64>>()
        });
        Some(squares.concat())
    }

    fn plain_elements(&self) -> usize {
        self.window.groups * self.plain * self.window.starts.len()
    }

    fn elements(&self) -> usize {
        self.window.groups * self.plain * self.window.width()
    }

    fn of_record(&self, unfolded: &[f32], plain: &[f32], target: &mut [f32], memory: &mut Memory) -> f64 {
        let groups = unfolded.chunks_exact(self.window.plane());
        let groups = groups.zip(plain.chunks_exact(self.plain * self.window.starts.len()));
        let groups = groups.zip(target.chunks_exact_mut(self.plain * self.window.width()));
        groups
            .map(|((unfolded, plain), target)| self.of_group(unfolded, plain, target, memory))
            .sum()
    }

    /// The sum of squares.
    fn of_group(&self, unfolded: &[f32], plain: &[f32], target: &mut [f32], memory: &mut Memory) -> f64 {
        self.window.pad(unfolded, &mut memory.padded);
        let mut squares = 0.0;
        let positions = self.window.starts.len();
        for first in (0..positions).step_by(POSITIONS) {
            let block = first..positions.min(first + POSITIONS);
            let (source, starts) = if self.unfolds {
                let places = &self.window.starts[block.clone()];
                let rows = &mut memory.rows[..places.len() * self.window.width()];
                self.window.rows(places, &memory.padded, rows);
                (&memory.rows, &self.starts[..places.len()])
            } else {
                (&memory.padded, &self.starts[block.clone()])
            };
            squares = ffi::window_product(WindowProduct {
                lanes: self.lanes,
                plain: &plain[first..],
                plain_stride: positions,
                rows: self.plain,
                source,
                starts,
                slots: &self.slots,
                target: &mut *target,
                packed: &mut memory.packed,
                add: first > 0,
                is_last: block.end == positions,
            });
        }
        squares
    }
}

/// Of one thread.
struct Memory {
    padded: Vec<f32>,
    rows: Vec<f32>,
    packed: Vec<f32>,
}

impl Memory {
    fn new(windows: &Windows) -> Self {
        let block = POSITIONS.min(windows.window.starts.len());
        let rows = if windows.unfolds {
            block * windows.window.width() + ffi::MOST_LANES
        } else {
            0
        };
        Self {
            padded: windows.window.padded_memory(),
            rows: vec![0.0; rows],
            packed: vec![0.0; windows.plain * block],
        }
    }
}

/// `width` columns that lie together, in slots of at most `lanes`.
fn slots(start: usize, column: usize, width: usize, lanes: usize) -> impl Iterator<Item = Slot> {
    (0..width).step_by(lanes).map(move |at| Slot {
        offset: (start + at) as i32,
        column: (column + at) as i32,
        lanes: lanes.min(width - at) as i32,
    })
}

#[cfg(test)]
mod tests {
    use super::super::unfold::unfold;
    use super::*;
    use tch::{Device, Kind, Tensor};

    struct Case {
        channels: i64,
        plain: i64,
        extents: [i64; 2],
        kernel: [i64; 2],
        stride: i64,
        padding: i64,
        dilation: i64,
        groups: i64,
    }

    impl Case {
        fn plan(&self) -> ConvolutionPlan {
            let positions = self.extents.iter().zip(&self.kernel).map(|(extent, kernel)| {
                (extent + 2 * self.padding - self.dilation * (kernel - 1) - 1) / self.stride + 1
            });
            ConvolutionPlan {
                unfolded_channels: self.channels,
                plain_channels: self.plain,
                unfolded_extents: self.extents.to_vec(),
                positions: positions.collect(),
                kernel: self.kernel.to_vec(),
                stride: vec![self.stride; 2],
                dilation: vec![self.dilation; 2],
                padding_before: vec![self.padding; 2],
                groups: self.groups,
                transposed: false,
            }
        }
    }

    fn case(channels: i64, plain: i64, extent: i64, kernel: [i64; 2], stride: i64, padding: i64) -> Case {
        Case {
            channels,
            plain,
            extents: [extent, extent + 2],
            kernel,
            stride,
            padding,
            dilation: 1,
            groups: 1,
        }
    }

    fn cases() -> Vec<Case> {
        vec![
            case(1, 16, 28, [8, 8], 2, 3),
            case(3, 10, 30, [7, 7], 2, 3),
            case(16, 32, 13, [4, 4], 2, 0),
            case(64, 29, 9, [3, 3], 1, 1),
            case(64, 64, 5, [1, 1], 1, 0),
            case(40, 7, 6, [1, 1], 2, 0),
            case(5, 1, 4, [2, 3], 1, 2),
            Case {
                dilation: 2,
                ..case(19, 15, 9, [3, 2], 1, 1)
            },
            Case {
                groups: 4,
                ..case(12, 8, 12, [3, 3], 1, 1)
            },
            Case {
                groups: 6,
                ..case(6, 6, 11, [3, 3], 1, 1)
            },
        ]
    }

    const RECORDS: i64 = 5;

    fn slice(tensor: &Tensor) -> Vec<f32> {
        Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap()
    }

    fn operands(case: &Case, plan: &ConvolutionPlan) -> (Tensor, Tensor) {
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let unfolded = random(&[RECORDS, case.channels, case.extents[0], case.extents[1]]);
        (unfolded, random(&[RECORDS, case.plain, plan.length()]))
    }

    fn all_lanes() -> impl Iterator<Item = usize> {
        [16, 8]
            .into_iter()
            .filter(|lanes| *lanes <= ffi::convolution_lanes())
    }

    #[test]
    fn gradients_and_norms_are_those_of_an_unfolded_product_in_f64() {
        tch::manual_seed(8);
        for case in cases() {
            let plan = case.plan();
            let (unfolded, plain) = operands(&case, &plan);
            let groups = RECORDS * plan.groups;
            let rows = unfold(&unfolded.to_kind(Kind::Double), &plan, 1)
                .unwrap()
                .flatten(0, 1);
            let exact = plain
                .to_kind(Kind::Double)
                .reshape([groups, plan.plain_width(), plan.length()])
                .bmm(&rows);
            for (lanes, threads) in all_lanes().flat_map(|lanes| [(lanes, 1), (lanes, 2)]) {
                let windows = Windows::with(&plan, lanes).unwrap();
                let mut own = vec![f32::NAN; exact.numel()];
                let squares = windows
                    .gradients(&slice(&unfolded), &slice(&plain), &mut own, threads)
                    .unwrap();
                let own = Tensor::from_slice(&own)
                    .to_kind(Kind::Double)
                    .reshape(exact.size());
                let error = f64::try_from((&own - &exact).abs().max()).unwrap();
                let name = format!("{} {:?} {lanes}", case.channels, case.kernel);
                assert!(error < 1e-4, "{name}: {error}");
                let norms = own
                    .reshape([RECORDS, -1])
                    .square()
                    .sum_dim_intlist(1, false, Kind::Double);
                for (square, norm) in squares.iter().zip(Vec::<f64>::try_from(norms).unwrap()) {
                    assert!(
                        (square - norm).abs() <= 1e-12 * norm,
                        "{name}: {square} for {norm}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_record_that_is_no_number_changes_no_bit_of_the_others() {
        tch::manual_seed(9);
        for case in cases() {
            let plan = case.plan();
            let (unfolded, plain) = operands(&case, &plan);
            for lanes in all_lanes() {
                let windows = Windows::with(&plan, lanes).unwrap();
                let run = |unfolded: &Tensor, plain: &Tensor| {
                    let mut own = vec![0.0; RECORDS as usize * windows.elements()];
                    let squares = windows
                        .gradients(&slice(unfolded), &slice(plain), &mut own, 1)
                        .unwrap();
                    (own, squares)
                };
                let (gradients, squares) = run(&unfolded, &plain);
                for bad in [f64::NAN, f64::INFINITY, 1e30] {
                    let (other, other_plain) = (unfolded.copy(), plain.copy());
                    let _ = other.get(2).fill_(bad);
                    let _ = other_plain.get(2).fill_(bad);
                    let (changed, changed_squares) = run(&other, &other_plain);
                    let bits =
                        |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                    for record in [0, 1, 3, 4] {
                        let own = record * windows.elements()..(record + 1) * windows.elements();
                        assert_eq!(bits(&gradients[own.clone()]), bits(&changed[own]));
                        assert_eq!(squares[record].to_bits(), changed_squares[record].to_bits());
                    }
                    assert!(
                        !changed_squares[2].is_finite() || changed_squares[2] > 1e30,
                        "{bad}"
                    );
                }
            }
        }
    }

    #[test]
    fn memory_of_other_sizes_is_refused() {
        let plan = case(3, 4, 6, [3, 3], 1, 1).plan();
        let Some(windows) = Windows::new(&plan) else {
            return;
        };
        let (unfolded, plain) = (
            vec![0.0; windows.window.elements()],
            vec![0.0; windows.plain_elements()],
        );
        assert!(
            windows
                .gradients(&unfolded, &plain, &mut vec![0.0; windows.elements()], 1)
                .is_some()
        );
        assert!(
            windows
                .gradients(&unfolded[1..], &plain, &mut vec![0.0; windows.elements()], 1)
                .is_none()
        );
        assert!(
            windows
                .gradients(&unfolded, &plain[1..], &mut vec![0.0; windows.elements()], 1)
                .is_none()
        );
        assert!(
            windows
                .gradients(&unfolded, &plain, &mut vec![0.0; windows.elements() - 1], 1)
                .is_none()
        );
    }
}
