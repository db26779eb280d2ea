//! Log-moments of losses on a grid, and the bounds they give: where to look, how far, how much is cut.

use super::step::GridLosses;

/// ln E[e^{λL}] of the finite losses. All terms are positive: nothing cancels.
pub(super) fn log_moment(losses: &GridLosses, order: f64) -> f64 {
    let step = order * losses.spacing;
    let exponents = || {
        losses
            .dots
            .iter()
            .map(|dot| step * dot.index as f64 + dot.ln_mass)
    };
    let largest = exponents().fold(f64::NEG_INFINITY, f64::max);
    if !largest.is_finite() {
        return largest;
    }
    // Terms below e^−46 of the largest are at most 1e-20 of it each; what they are left out for is
    // put back as if all of them were that large.
    let (mut sum, mut left_out) = (0.0, 0_u32);
    for exponent in exponents() {
        if exponent - largest > -46.0 {
            sum += (exponent - largest).exp();
        } else {
            left_out += 1;
        }
    }
    largest + libm::log(sum + f64::from(left_out) * 1.1e-20)
}

/// Puts each mass times e^{λ·loss − log_moment}: the tilted distribution, of total mass 1.
pub(super) fn tilted(losses: &GridLosses, order: f64, log_moment: f64, mut put: impl FnMut(i64, f64)) {
    let step = order * losses.spacing;
    for dot in &losses.dots {
        put(
            dot.index,
            libm::exp(step * dot.index as f64 + dot.ln_mass - log_moment),
        );
    }
}

/// Log-moment of a whole composition as a function of the order.
pub(super) struct Moments<'a> {
    pub(super) parts: &'a [(GridLosses, u64)],
}

impl Moments<'_> {
    pub(super) fn at(&self, order: f64) -> f64 {
        self.parts
            .iter()
            .map(|(losses, count)| *count as f64 * log_moment(losses, order))
            .sum()
    }

    /// Where losses are bounded and ε lies above them all, the best order is infinite; at this one a grid
    /// step already counts e^½.
    fn largest_order(&self) -> f64 {
        self.parts
            .iter()
            .map(|(losses, _)| 0.5 / losses.spacing)
            .fold(f64::INFINITY, f64::min)
    }

    /// An order λ > 0 near the one with the smallest Chernoff bound on ε(δ):
    /// δ(ε) ≤ e^{K(λ) − λε}·λ^λ/(1+λ)^{1+λ}. `guess` is where to start looking.
    ///
    /// Any order gives a true bound, so a search that ends beside the optimum is harmless.
    pub(super) fn order_for_delta(&self, ln_delta: f64, guess: f64) -> f64 {
        let bound = |order: f64| (self.at(order) - ln_delta + ln_peak(order)) / order;
        minimise(bound, guess, self.largest_order())
    }

    /// An order near the one with the smallest Chernoff bound on δ(ε).
    pub(super) fn order_for_epsilon(&self, epsilon: f64, guess: f64) -> f64 {
        minimise(
            |order: f64| self.at(order) - order * epsilon + ln_peak(order),
            guess,
            self.largest_order(),
        )
    }

    /// A width W with P[S > low + W] ≤ e^{c − λW}, from P[S > s] ≤ e^{K(μ) − μs} at the best μ > λ.
    pub(super) fn width_above(&self, order: f64, low: f64, ln_cut: f64) -> f64 {
        let width = |excess: f64| (self.at(order + excess) - (order + excess) * low - ln_cut) / excess;
        width(minimise(width, order, self.largest_order())).max(0.0)
    }

    /// A sum that is undercut with probability at most e^`ln_cut`.
    pub(super) fn lower_quantile(&self, ln_cut: f64, guess: f64) -> f64 {
        let negative = |order: f64| (self.at(-order) - ln_cut) / order;
        -negative(minimise(negative, guess, self.largest_order()))
    }
}

impl Moments<'_> {
    /// Most that sums outside [low, low + width] add to δ when they wrap around into it, read with the weights e^{−λs} of
    /// a tilt by `order`: e^{λjW}·P[S ≥ low + jW] from above and e^{−λjW}·P[S < low − (j−1)W] from below, for all j ≥ 1.
    pub(super) fn wrapped(&self, order: f64, low: f64, width: f64) -> f64 {
        let from_above = |excess: f64| {
            let steeper = order + excess;
            self.at(steeper) - steeper * (low + width) + order * width
        };
        let excess = minimise(from_above, order, self.largest_order());
        let above = libm::exp(from_above(excess)) / -libm::expm1(-excess * width);
        let negative = |order: f64| self.at(-order) + order * low;
        let below = negative(minimise(negative, order, self.largest_order())).min(0.0);
        above + libm::exp(below) / libm::expm1(order * width)
    }
}

/// ln max_x e^{−λx}(1 − e^{−x}) = ln(λ^λ/(1+λ)^{1+λ}).
pub(super) fn ln_peak(order: f64) -> f64 {
    -order * libm::log1p(1.0 / order) - libm::log1p(order)
}

/// A positive minimum of a function with one valley: walks down from `start` over a logarithmic scale in
/// steps that double, then narrows. Looks no further than `largest`.
fn minimise(function: impl Fn(f64) -> f64, start: f64, largest: f64) -> f64 {
    let value = |x: f64| {
        let y = function(libm::exp(x).min(largest));
        if y.is_nan() { f64::INFINITY } else { y }
    };
    let (mut middle, mut step) = (libm::log(start.min(largest)), 0.5);
    let mut best = value(middle);
    let (right, left) = (value(middle + step), value(middle - step));
    let direction = if right < left { 1.0 } else { -1.0 };
    let mut ahead = right.min(left);
    let mut behind = middle - direction * step;
    for _ in 0..MAX_WALK {
        if ahead >= best {
            break;
        }
        behind = middle;
        middle += direction * step;
        best = ahead;
        step *= 2.0;
        ahead = value(middle + direction * step);
    }
    let end = middle + direction * step;
    libm::exp(narrow(value, behind.min(end), behind.max(end), (middle, best))).min(largest)
}

/// Golden-section search, to a few hundredths: what is minimised is flat at its minimum.
fn narrow(value: impl Fn(f64) -> f64, mut low: f64, mut high: f64, known: (f64, f64)) -> f64 {
    let mut best = known;
    let mut inner = [high - GOLDEN * (high - low), low + GOLDEN * (high - low)];
    let mut values = inner.map(&value);
    while high - low > 0.05 {
        if values[0] <= values[1] {
            high = inner[1];
            inner = [high - GOLDEN * (high - low), inner[0]];
            values = [value(inner[0]), values[0]];
        } else {
            low = inner[0];
            inner = [inner[1], low + GOLDEN * (high - low)];
            values = [values[1], value(inner[1])];
        }
        for (&x, &y) in inner.iter().zip(&values) {
            if y < best.1 {
                best = (x, y);
            }
        }
    }
    best.0
}

const GOLDEN: f64 = 0.618_033_988_749_894_8;
const MAX_WALK: usize = 8;
