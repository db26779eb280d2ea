//! The privacy loss of one step on a grid, never pessimistic.
//!
//! Whoever sees only which of some intervals an output lies in knows less than the output. So the outputs are cut, from the
//! smallest loss to the largest, into intervals whose likelihood ratio is that of a grid point: each interval
//! goes on until its mean ratio has reached the next point. That is post-processing, and keeps both neighbours' probabilities;
//! like connecting the dots it changes the variance of a loss by about the square of the spacing. What remains at the end gets the next lower point,
//! and outputs beyond the range none, which both only lower δ.

use super::likelihood::{Pair, loss_to_position};
use super::mechanism::{Case, Noise, Step};
use super::step::{Direction, GridLosses, Range};

/// Adds a case to the grid.
pub(super) fn fill(grid: &mut GridLosses, case: Case, direction: Direction, range: Range) {
    Sweep {
        step: case.step,
        direction,
    }
    .fill(grid, case.weight, range);
}

struct Sweep {
    step: Step,
    direction: Direction,
}

impl Sweep {
    fn fill(&self, grid: &mut GridLosses, weight: f64, range: Range) {
        let (mut from, end) = match self.direction {
            Direction::Remove => (range.low, range.high),
            Direction::Add => (range.high, range.low),
        };
        let losses: Vec<f64> = grid
            .dots
            .iter()
            .map(|dot| dot.index as f64 * grid.spacing)
            .collect();
        let mut put = |dot: Option<usize>, from: f64, to: f64| {
            if let Some(dot) = dot {
                grid.dots[dot].mass += weight * self.mass(from, to);
            }
        };
        let mut last = end;
        if self.step.noise == Noise::Laplace {
            // All outputs left of 0 have one loss, and all right of 1: intervals of their own.
            let (bottom, top) = match self.direction {
                Direction::Remove => (0.0, 1.0),
                Direction::Add => (1.0, 0.0),
            };
            let dot = self.dot_below(&losses, from, bottom);
            if dot.is_some_and(|dot| {
                self.excess(from, bottom, losses[dot]).abs() <= TOUCHING * self.mass(from, bottom)
            }) {
                put(dot, from, bottom);
                from = bottom;
            }
            put(self.dot_below(&losses, top, end), top, end);
            last = top;
        }
        let mut next = 0;
        while next < losses.len() {
            match self.reach(&losses, next, from, last) {
                Some(to) => {
                    put(Some(next), from, to);
                    from = to;
                    next += 1;
                    // An interval may have to reach beyond the next points for its mean.
                    while next < losses.len() && self.is_beyond(to, losses[next]) {
                        next += 1;
                    }
                }
                // Its smallest ratio is above the first points of a grid that other cases need.
                None if self.excess(from, last, losses[next]) >= 0.0 => next += 1,
                None => break,
            }
        }
        put(self.dot_below(&losses, from, last), from, last);
    }

    /// The output up to which the mean ratio from `from` on is that of `losses[next]`; none where it is so nowhere.
    fn reach(&self, losses: &[f64], next: usize, from: f64, last: f64) -> Option<f64> {
        let loss = losses[next];
        if self.is_beyond(from, loss) {
            return None;
        }
        let (mut short, mut far) = (self.position(loss, from, last), last);
        for &bound in &losses[next + 1..] {
            let candidate = self.position(bound, from, last);
            if self.excess(from, candidate, loss) >= 0.0 && candidate != from {
                far = candidate;
                break;
            }
            short = candidate;
        }
        if self.excess(from, far, loss) < 0.0 {
            return None;
        }
        // Of outputs that reach the mean, the first: rounding leaves it above.
        for _ in 0..ROUNDS {
            let middle = 0.5 * (short + far);
            if self.excess(from, middle, loss) >= 0.0 {
                far = middle;
            } else {
                short = middle;
            }
        }
        Some(far)
    }

    /// True if all outputs from `x` on lose more than `loss`.
    fn is_beyond(&self, x: f64, loss: f64) -> bool {
        let at = self.position(loss, f64::NEG_INFINITY, f64::INFINITY);
        match self.direction {
            Direction::Remove => at < x,
            Direction::Add => at > x,
        }
    }

    /// The output from which on losses are above `loss`, within `from` and `last`.
    fn position(&self, loss: f64, from: f64, last: f64) -> f64 {
        match self.direction {
            Direction::Remove => loss_to_position(self.step, loss).clamp(from.min(last), from.max(last)),
            Direction::Add => loss_to_position(self.step, -loss).clamp(from.min(last), from.max(last)),
        }
    }

    /// The largest grid point that the mean ratio of an interval reaches.
    fn dot_below(&self, losses: &[f64], from: f64, to: f64) -> Option<usize> {
        let mass = self.mass(from, to);
        if mass <= 0.0 {
            return None;
        }
        let reached =
            losses.partition_point(|&loss| self.excess(from, to, loss) >= -TOUCHING * mass * loss.abs());
        reached.checked_sub(1)
    }

    fn probabilities(&self, from: f64, to: f64) -> (f64, f64) {
        let (left, right) = (from.min(to), from.max(to));
        Pair::new(self.step, left).until(&Pair::new(self.step, right))
    }

    fn mass(&self, from: f64, to: f64) -> f64 {
        let q = self.step.sampling_probability;
        let (plain, shifted) = self.probabilities(from, to);
        match self.direction {
            Direction::Remove => (1.0 - q) * plain + q * shifted,
            Direction::Add => plain,
        }
    }

    /// Mass less e^loss times the mass under the neighbour: not negative where the mean ratio is at least that of `loss`.
    fn excess(&self, from: f64, to: f64, loss: f64) -> f64 {
        let q = self.step.sampling_probability;
        let (plain, shifted) = self.probabilities(from, to);
        let moved = q * (shifted - plain);
        match self.direction {
            Direction::Remove => moved - libm::expm1(loss) * plain,
            Direction::Add => -moved - libm::expm1(loss) * (plain + moved),
        }
    }
}

/// Rounding that may keep an atom of probability from the grid point made for it, relative to its loss.
pub(super) const TOUCHING: f64 = 1e-12;
/// Halvings of an interval's last cell.
const ROUNDS: usize = 40;
