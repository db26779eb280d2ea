//! The privacy loss of one step on a grid, never optimistic.
//!
//! Connect the dots (Doroshenko et al. 2022): loss ℓ in a cell [iκ, (i+1)κ] is split between the two ends
//! so that both its probability and its e^{−ℓ}-weighted probability (that under the neighbour) stay.
//! The hockey-stick curve of the result passes through the true one at every grid point and lies above it
//! between. Masses come from differences of normal tails taken on the side where they are small, and
//! from expressions in which a small q cancels nothing.

use super::coarse;
use super::likelihood::{Pair, loss_to_position, position_to_loss, upper_tail};
use super::mechanism::{Case, Noise, Step};

/// Which neighbour the output comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the dataset with the unit: loss of the mixture against N(0, σ²); unbounded above.
    Remove,
    /// From the dataset without: loss of N(0, σ²) against the mixture; at most −ln(1−q).
    Add,
}

/// Loss index·spacing with probability mass for each of `dots`, and infinite loss with probability
/// `infinite`.
///
/// The dots need not be every grid point. Far from 0 they are a constant *ratio* apart: a loss ℓ moved by
/// 0.5% adds less variance than ℓ²·1e-5, so a few thousand dots do where the grid has millions.
pub(super) struct GridLosses {
    pub(super) spacing: f64,
    pub(super) dots: Vec<Dot>,
    pub(super) infinite: f64,
}

/// A grid point that carries probability.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dot {
    pub(super) index: i64,
    pub(super) mass: f64,
    /// −∞ where there is none.
    pub(super) ln_mass: f64,
}

/// The range of outputs x that is put on the grid; beyond it the probability is at most `cut` a side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Range {
    pub(super) fn new(step: Step, direction: Direction, cut: f64) -> Self {
        let (q, sigma) = (step.sampling_probability, step.noise_multiplier);
        // All losses beyond 0 and 1 are the same.
        if step.noise == Noise::Laplace {
            return Self {
                low: f64::NEG_INFINITY,
                high: f64::INFINITY,
            };
        }
        // Below 0 both directions are no heavier than N(0, σ²) (with q = 1, N(1, σ²) is lighter).
        let plain = |x: f64| upper_tail(step, x);
        let beyond = |x: f64| match direction {
            Direction::Remove => (1.0 - q) * plain(x) + q * plain(x - 1.0),
            Direction::Add => plain(x),
        };
        Self {
            low: -first_below(plain, cut, sigma),
            high: first_below(beyond, cut, sigma),
        }
    }

    /// The losses of removal at the ends.
    pub(super) fn losses(&self, step: Step) -> (f64, f64) {
        (
            position_to_loss(step, self.low),
            position_to_loss(step, self.high),
        )
    }
}

/// A point, to a thousandth of σ, beyond which the falling `tail` is at most `cut`.
fn first_below(tail: impl Fn(f64) -> f64, cut: f64, sigma: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0 + 40.0 * sigma);
    while high - low > 1e-3 * sigma {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if tail(middle) <= cut {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

impl GridLosses {
    /// Puts a mixture of steps, the case revealed, on the grid of `spacing`, and cuts off a probability of at most
    /// `cut` a side, of every case but the first [`RARE_CUT`] times as much; `None` where f64 cannot hold such a grid.
    ///
    /// The loss of a mixture whose case is revealed is the mixture of the losses.
    pub(super) fn new(cases: &[Case], direction: Direction, spacing: f64, cut: f64) -> Option<Self> {
        let (mut grid, ranges) = Self::empty(cases, direction, spacing, cut)?;
        for (case, range) in cases.iter().zip(ranges) {
            match direction {
                Direction::Remove => grid.fill_removal(*case, range),
                Direction::Add => grid.fill_addition(*case, range),
            }
        }
        grid.finished()
    }

    /// The same from below: see [`super::coarse`].
    pub(super) fn from_below(cases: &[Case], direction: Direction, spacing: f64, cut: f64) -> Option<Self> {
        let (mut grid, ranges) = Self::empty(cases, direction, spacing, cut)?;
        for (case, range) in cases.iter().zip(ranges) {
            coarse::fill(&mut grid, *case, direction, range);
        }
        grid.finished()
    }

    /// A mass that is no number would drop out of every maximum and comparison later, and with it what it weighs.
    fn finished(mut self) -> Option<Self> {
        for dot in &mut self.dots {
            if !(dot.mass.is_finite() && dot.mass >= 0.0) {
                return None;
            }
            dot.ln_mass = libm::log(dot.mass);
        }
        self.infinite.is_finite().then_some(self)
    }

    /// A grid that holds the losses of all cases, without probabilities, and the range of outputs of each case.
    fn empty(cases: &[Case], direction: Direction, spacing: f64, cut: f64) -> Option<(Self, Vec<Range>)> {
        let cut_of = |index: usize, case: &Case| {
            let cut = if index == 0 { cut } else { cut * RARE_CUT };
            (cut / case.weight).min(LARGEST_CUT)
        };
        let cuts = || cases.iter().enumerate().map(|(index, case)| cut_of(index, case));
        let ranges: Vec<Range> = cases
            .iter()
            .zip(cuts())
            .map(|(case, cut)| Range::new(case.step, direction, cut))
            .collect();
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for ((case, range), cut) in cases.iter().zip(&ranges).zip(cuts()) {
            let losses = range.losses(case.step);
            low = low.min(losses.0);
            high = high.max(losses.1);
            let largest = match direction {
                Direction::Remove => losses.1,
                Direction::Add => -losses.0,
            };
            // The neighbour gives outputs of that loss e^−loss times as much.
            let rarest = largest - libm::log(cut);
            if rarest.is_nan() || rarest > LARGEST_LN {
                return None;
            }
        }
        let widest = low.abs().max(high.abs()) / spacing;
        if !(widest < MAX_INDEX && spacing > f64::MIN_POSITIVE) {
            return None;
        }
        let (bottom, top) = match direction {
            Direction::Remove => (low, high),
            Direction::Add => (-high, -low),
        };
        let mut dots = dots((bottom / spacing).floor() as i64, (top / spacing).ceil() as i64);
        let (first, last) = (dots[0], dots[dots.len() - 1]);
        if last as f64 * spacing > LARGEST_LN {
            return None;
        }
        // Nothing is spread where much of the probability has one loss.
        for (case, range) in cases.iter().zip(&ranges) {
            if case.step.noise == Noise::Laplace {
                let (smallest, largest) = range.losses(case.step);
                dots.extend(
                    [smallest, largest, -smallest, -largest].map(|loss| (loss / spacing).round() as i64),
                );
            }
        }
        dots.retain(|dot| (first..=last).contains(dot));
        dots.sort_unstable();
        dots.dedup();
        let empty = |index| Dot {
            index,
            mass: 0.0,
            ln_mass: f64::NEG_INFINITY,
        };
        let grid = Self {
            spacing,
            dots: dots.into_iter().map(empty).collect(),
            infinite: 0.0,
        };
        Some((grid, ranges))
    }

    fn fill_removal(&mut self, Case { weight, step }: Case, range: Range) {
        let q = step.sampling_probability;
        let (bottom, top) = range.losses(step);
        let cells = self.cells(bottom, top);
        let mut left = Pair::new(step, range.low);
        // Below the range: rounded up to a dot that is certainly above those losses, which is pessimistic.
        self.dots[cells.start + 1].mass +=
            weight * ((1.0 - q) * left.plain.lower() + q * left.shifted.lower());
        for cell in cells.clone() {
            let (from, to) = self.ends(cell);
            let right = if cell + 1 == cells.end {
                Pair::new(step, range.high)
            } else {
                Pair::new(step, loss_to_position(step, to).clamp(range.low, range.high))
            };
            let (plain, shifted) = left.until(&right);
            let mass = (1.0 - q) * plain + q * shifted;
            // mass − e^from·plain, so that small q and losses cancel nothing.
            let excess = q * (shifted - plain) - libm::expm1(from) * plain;
            self.split(cell, weight * mass, weight * excess);
            left = right;
        }
        self.infinite += weight * ((1.0 - q) * left.plain.upper() + q * left.shifted.upper());
    }

    fn fill_addition(&mut self, Case { weight, step }: Case, range: Range) {
        let q = step.sampling_probability;
        let (bottom, top) = range.losses(step);
        let cells = self.cells(-top, -bottom);
        let mut right = Pair::new(step, range.high);
        self.dots[cells.start + 1].mass += weight * right.plain.upper();
        for cell in cells.clone() {
            let (from, to) = self.ends(cell);
            let left = if cell + 1 == cells.end {
                Pair::new(step, range.low)
            } else {
                Pair::new(step, loss_to_position(step, -to).clamp(range.low, range.high))
            };
            let (plain, shifted) = left.until(&right);
            let mixture = (1.0 - q) * plain + q * shifted;
            let excess = q * (plain - shifted) - libm::expm1(from) * mixture;
            self.split(cell, weight * plain, weight * excess);
            right = left;
        }
        self.infinite += weight * right.plain.lower();
    }

    /// The cells, named by their lower dot, that losses from `bottom` to `top` lie in: at least one.
    fn cells(&self, bottom: f64, top: f64) -> std::ops::Range<usize> {
        let loss = |dot: &Dot| dot.index as f64 * self.spacing;
        let first = self
            .dots
            .partition_point(|dot| loss(dot) <= bottom)
            .saturating_sub(1);
        let end = self.dots.partition_point(|dot| loss(dot) < top);
        let end = end.min(self.dots.len() - 1);
        first.min(end.saturating_sub(1))..end.max(1)
    }

    /// The losses at the ends of a cell.
    fn ends(&self, cell: usize) -> (f64, f64) {
        (
            self.dots[cell].index as f64 * self.spacing,
            self.dots[cell + 1].index as f64 * self.spacing,
        )
    }

    /// Splits the probability of a cell between its ends, given `excess` = mass − e^from·(mass under the
    /// neighbour): the upper end gets excess/(1 − e^{−width}).
    fn split(&mut self, cell: usize, mass: f64, excess: f64) {
        let (from, to) = self.ends(cell);
        let up = (excess / -libm::expm1(from - to)).clamp(0.0, mass);
        self.dots[cell].mass += mass - up;
        self.dots[cell + 1].mass += up;
    }
}

/// Grid indices from `first` to at least `last`, at least two.
fn dots(first: i64, last: i64) -> Vec<i64> {
    let mut dots = vec![first];
    let mut dot = first;
    while dot < last || dots.len() < 2 {
        dot += (dot.abs() / DOTS_PER_RATIO).max(1);
        dots.push(dot);
    }
    dots
}

/// Dots are at most this part of their distance from 0 apart, where that is more than a grid step.
const DOTS_PER_RATIO: i64 = 200;
/// The far losses of an exchange are as good as infinite, and would stretch the grid several times over.
const RARE_CUT: f64 = 100.0;
/// Most that is cut off a side of a case, however unlikely the case.
const LARGEST_CUT: f64 = 0.1;
/// e^−this is still a normal double, and e^this finite: what is rarer would be 0, and its loss worth nothing.
const LARGEST_LN: f64 = 700.0;
/// Indices stay exact in f64, and so do sums of a few.
const MAX_INDEX: f64 = 1e14;

#[cfg(test)]
mod tests {
    use super::super::closed_form::SingleStep;
    use super::*;

    fn hockey_stick(grid: &GridLosses, epsilon: f64) -> f64 {
        let over = |dot: &Dot| dot.mass * (-(epsilon - dot.index as f64 * grid.spacing).exp_m1()).max(0.0);
        grid.dots.iter().map(over).sum::<f64>() + grid.infinite
    }

    fn steps() -> Vec<Step> {
        let gaussians = [
            (1.0, 0.01),
            (0.5, 1e-4),
            (0.3, 1e-6),
            (10.0, 0.2),
            (100.0, 1e-6),
            (2.0, 0.9),
        ]
        .map(|case| (Noise::Gaussian, case));
        let laplaces = [(1.0, 1.0), (0.1, 0.01), (20.0, 0.3), (3.0, 1e-5)].map(|case| (Noise::Laplace, case));
        let step = |(noise, (noise_multiplier, sampling_probability))| Step {
            sampling_probability,
            noise,
            noise_multiplier,
        };
        gaussians.into_iter().chain(laplaces).map(step).collect()
    }

    fn grid(step: Step, direction: Direction, spacing: f64) -> GridLosses {
        GridLosses::new(&[Case { weight: 1.0, step }], direction, spacing, 1e-25).unwrap()
    }

    fn spacing(step: Step) -> f64 {
        let deviation = match step.noise {
            Noise::Gaussian => (1.0 / step.noise_multiplier.powi(2)).exp_m1().sqrt(),
            Noise::Laplace => 1.0 / step.noise_multiplier,
        };
        step.sampling_probability * deviation / 50.0
    }

    #[test]
    fn the_grid_has_all_the_mass_of_both_neighbours() {
        for step in steps() {
            for direction in [Direction::Remove, Direction::Add] {
                let grid = grid(step, direction, spacing(step));
                let total: f64 = grid.dots.iter().map(|dot| dot.mass).sum();
                let other: f64 = grid
                    .dots
                    .iter()
                    .map(|dot| dot.mass * (-(dot.index as f64) * grid.spacing).exp())
                    .sum();
                assert!(
                    (total + grid.infinite - 1.0).abs() < 1e-13,
                    "{step:?} {direction:?} {total}"
                );
                // What is cut off at the top is heavier under the neighbour by no more than e^−loss.
                assert!((other - 1.0).abs() < 1e-10, "{step:?} {direction:?} {other}");
            }
        }
    }

    #[test]
    fn the_curve_of_the_grid_meets_the_true_one_at_the_dots_and_lies_above_between() {
        for step in steps() {
            let exact = SingleStep::new(vec![Case { weight: 1.0, step }]);
            let (remove, add) = (
                grid(step, Direction::Remove, spacing(step)),
                grid(step, Direction::Add, spacing(step)),
            );
            let worst = |epsilon| hockey_stick(&remove, epsilon).max(hockey_stick(&add, epsilon));
            for (dot, next) in remove
                .dots
                .iter()
                .zip(&remove.dots[1..])
                .map(|(a, b)| (a.index, b.index))
            {
                let epsilon = dot as f64 * remove.spacing;
                if epsilon < 0.0 || exact.delta(epsilon) < 1e-18 {
                    continue;
                }
                let (ours, truth) = (worst(epsilon), exact.delta(epsilon));
                assert!(
                    (ours / truth - 1.0).abs() < 1e-6,
                    "{step:?} at {epsilon}: {ours:e} {truth:e}"
                );
                let between = epsilon + 0.37 * (next - dot) as f64 * remove.spacing;
                assert!(
                    worst(between) >= exact.delta(between) * (1.0 - 1e-6),
                    "{step:?} at {between}"
                );
            }
        }
    }
}
