//! Hockey-stick curves of the sum of many losses, never below the true one, or never above it.

use super::moments::ln_peak;
use super::transform::Sums;

/// An upper bound on δ as a function of ε, in one direction.
pub(super) enum Bound {
    Chernoff(Chernoff),
    Composition(Composition),
}

impl Bound {
    pub(super) fn epsilon(&self, delta: f64) -> f64 {
        match self {
            Bound::Chernoff(bound) => bound.epsilon(delta),
            Bound::Composition(bound) => bound.epsilon(delta),
        }
    }

    pub(super) fn delta(&self, epsilon: f64) -> f64 {
        match self {
            Bound::Chernoff(bound) => bound.delta(epsilon),
            Bound::Composition(bound) => bound.delta(epsilon),
        }
    }
}

/// δ(ε) ≤ e^{K(λ) − λε}·λ^λ/(1+λ)^{1+λ} + P[infinite loss]: enough for a direction that costs less anyway.
pub(super) struct Chernoff {
    pub(super) order: f64,
    /// K(λ), raised by its rounding error.
    pub(super) log_moment: f64,
    pub(super) infinite: f64,
}

impl Chernoff {
    pub(super) fn epsilon(&self, delta: f64) -> f64 {
        let available = delta - self.infinite;
        if available.is_nan() || available <= 0.0 || !self.log_moment.is_finite() {
            return f64::INFINITY;
        }
        let bound = (self.log_moment - libm::log(available) + ln_peak(self.order)) / self.order;
        if bound.is_nan() {
            return f64::INFINITY;
        }
        (bound * (1.0 + 1e-12)).max(0.0)
    }

    pub(super) fn delta(&self, epsilon: f64) -> f64 {
        let exponent = self.log_moment - self.order * epsilon + ln_peak(self.order);
        if exponent.is_nan() || !self.log_moment.is_finite() {
            return 1.0;
        }
        (libm::exp(exponent) * (1.0 + 1e-12) + self.infinite).min(1.0)
    }
}

/// The sums of all losses on a grid, tilted: P(s) = P_λ(s)·e^{K(λ) − λs}.
pub(super) struct Composition {
    pub(super) sums: Sums,
    /// Grid index of the first sum.
    pub(super) low: i64,
    pub(super) spacing: f64,
    pub(super) order: f64,
    pub(super) log_moment: f64,
    /// Added to δ: infinite losses and what lies above the window. Taken from a bound from below: what wraps around.
    pub(super) lost: f64,
    /// At least 1: by how much the arithmetic of masses and moments may have changed δ.
    pub(super) slack: f64,
    pub(super) side: Side,
}

/// On which side of the true curve a bound lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Above,
    Below,
}

impl Composition {
    /// δ at every grid point from the top of the window down, as (index, δ without `lost`).
    ///
    /// With D_j = Σ_{s>j} P_λ(s)e^{−λ(s−j)h}(1 − e^{−(s−j)h}) and A_j the same without the last factor,
    /// D_{j−1} = e^{−λh}((A_j + P_j)(1 − e^{−h}) + e^{−h}D_j): sums of positive numbers.
    fn walk(&self) -> impl Iterator<Item = (i64, f64)> + '_ {
        let untilt = libm::exp(self.order * self.spacing);
        let (decay, gain) = (libm::exp(-self.spacing), -libm::expm1(-self.spacing));
        let (slack, error) = match self.side {
            Side::Above => (self.slack, self.error()),
            Side::Below => (1.0 / self.slack, -self.error()),
        };
        let scale_at =
            move |index: i64| slack * libm::exp(self.log_moment - self.order * self.spacing * index as f64);
        let top = self.low + self.sums.probabilities.len() as i64 - 1;
        let (mut all, mut stick, mut scale) = (0.0, 0.0, 0.0);
        (self.low..=top)
            .rev()
            .zip(self.sums.probabilities.iter().rev())
            .map(move |(index, probability)| {
                // Afresh often enough that multiplying costs no precision.
                let steps_down = top - index;
                scale = if steps_down % 512 == 0 {
                    scale_at(index)
                } else {
                    scale * untilt
                };
                let here = (index, scale * (stick + error));
                let including = all + probability;
                stick = (including * gain + decay * stick) / untilt;
                all = including / untilt;
                here
            })
    }

    /// What the errors of the sums can add to D: with weights w_k = e^{−λkh}(1 − e^{−kh}), at most the
    /// largest error times ‖w‖₁ and at most the 2-norm of the errors times ‖w‖₂.
    fn error(&self) -> f64 {
        let (first, second) = stick_norms(self.order, self.spacing);
        (self.sums.largest_error * first).min(self.sums.error_norm * second)
    }

    /// The smallest ε ≥ 0 whose δ is at most `delta`; the lowest sum of the window if that is smaller.
    pub(super) fn epsilon(&self, delta: f64) -> f64 {
        let available = delta - self.lost;
        if available.is_nan() || available <= 0.0 {
            return f64::INFINITY;
        }
        let mut above: Option<(i64, f64)> = None;
        for (index, value) in self.walk() {
            if value.is_nan() || value > available {
                return above.map_or(f64::INFINITY, |above| {
                    self.interpolate((index, value), above, available)
                });
            }
            if index <= 0 {
                return 0.0;
            }
            above = Some((index, value));
        }
        self.lowest()
    }

    /// An ε ≥ 0 at which δ is at least `delta`, of a bound from below; 0 where it shows none.
    pub(super) fn epsilon_from_below(&self, delta: f64) -> f64 {
        let needed = delta + self.lost;
        let mut above = (i64::MAX, 0.0);
        for (index, value) in self.walk() {
            if index < 0 || needed.is_nan() {
                break;
            }
            if value >= needed {
                let left = index as f64 * self.spacing;
                // The curve is a line in e^ε between grid points, and both values lie below it.
                let part = (value - needed) / (value - above.1);
                let within = if above.0 == i64::MAX || part.is_nan() {
                    0.0
                } else {
                    libm::log1p(part.clamp(0.0, 1.0) * libm::expm1(self.spacing))
                };
                return (left + within.min(self.spacing)) / ROUND_UP;
            }
            above = (index, value.max(0.0));
        }
        0.0
    }

    /// The bound at up to `count` grid points from the lowest ε ≥ 0 of the window up, as (ε, δ) with ε rising, and whether each is known
    /// to a few thousandths.
    pub(super) fn table(&self, count: usize) -> Vec<(f64, f64, bool)> {
        let error = self.error() * self.slack;
        let first = self.low.max(0);
        let top = self.low + self.sums.probabilities.len() as i64 - 1;
        let stride = ((top - first).max(0) / count as i64 + 1).max(1);
        let mut points: Vec<(f64, f64, bool)> = self
            .walk()
            .take_while(|(index, _)| *index >= first)
            .filter(|(index, _)| (index - first) % stride == 0)
            .map(|(index, value)| {
                let epsilon = index as f64 * self.spacing;
                let rounding = error * libm::exp(self.log_moment - self.order * epsilon);
                (epsilon, (value + self.lost).min(1.0), rounding <= PRECISE * value)
            })
            .collect();
        points.reverse();
        points
    }

    /// The ε below which the window says nothing.
    pub(super) fn lowest(&self) -> f64 {
        (self.low as f64 * self.spacing).max(0.0) * ROUND_UP
    }

    /// Between grid points δ is linear in e^ε.
    fn interpolate(&self, left: (i64, f64), right: (i64, f64), delta: f64) -> f64 {
        let part = ((left.1 - delta) / (left.1 - right.1)).clamp(0.0, 1.0);
        let part = if part.is_nan() { 1.0 } else { part };
        let within = libm::log1p(part * libm::expm1(self.spacing));
        ((left.0 as f64 * self.spacing + within).min(right.0 as f64 * self.spacing) * ROUND_UP).max(0.0)
    }

    /// δ(ε), at most 1: the line between the values at the grid points around ε; 1 below the window.
    pub(super) fn delta(&self, epsilon: f64) -> f64 {
        let index = (epsilon / self.spacing).floor() as i64;
        let top = self.low + self.sums.probabilities.len() as i64 - 1;
        if index < self.low {
            return 1.0;
        }
        // Above the window δ is at most what it is at its top.
        let index = index.min(top);
        let (mut left, mut right) = (0.0, 0.0);
        for (at, value) in self.walk() {
            if at == index {
                left = value;
                break;
            }
            right = value;
        }
        let part = libm::expm1(epsilon - index as f64 * self.spacing) / libm::expm1(self.spacing);
        let value = if index == top {
            left
        } else {
            left + (right - left) * part.clamp(0.0, 1.0)
        };
        (value + self.lost).min(1.0)
    }
}

/// (‖w‖₁, ‖w‖₂) of w_k = e^{−λkh}(1 − e^{−kh}), k ≥ 1: sums of geometric series.
pub(super) fn stick_norms(order: f64, spacing: f64) -> (f64, f64) {
    // Σ_{k≥1} e^{−xk} = 1/(e^x − 1).
    let series = |x: f64| 1.0 / libm::expm1(x);
    let first = series(order * spacing) - series((order + 1.0) * spacing);
    let second = series(2.0 * order * spacing) - 2.0 * series((2.0 * order + 1.0) * spacing)
        + series((2.0 * order + 2.0) * spacing);
    (first, second.max(0.0).sqrt())
}

const ROUND_UP: f64 = 1.0 + 8.0 * f64::EPSILON;
/// Part of δ that may be rounding in a point of a table that is called precise.
const PRECISE: f64 = 2e-3;
