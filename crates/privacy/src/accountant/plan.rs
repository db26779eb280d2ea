//! Composition of grid losses by a tilted FFT, with every error on the safe side.
//!
//! δ(ε) = Σ_{s>ε} P(s)(1 − e^{ε−s}) needs the far tail of the sum of many losses, where a plain FFT has
//! only noise. So each step is tilted first: p_λ(l) = p(l)·e^{λl}/M(λ) with λ near the saddle point,
//! which moves the region around ε into the bulk; the FFT composes the tilted steps, and
//! P(s) = P_λ(s)·M^T·e^{−λs}. Errors are then relative to δ, not to 1, and the window need only reach
//! from a little below ε to where the rest no longer matters.
//!
//! What is added to δ, so that the result stays an upper bound:
//! - losses cut off in a step, as infinite loss;
//! - sums above the window (Chernoff); sums outside that wrap around only add mass inside;
//! - the rounding error of transforms and powers (Higham 2002, Theorem 24.2);
//! - a relative allowance for the arithmetic of masses and moments.

use super::AccountingError;
use super::coarse::TOUCHING;
use super::composition::{Bound, Chernoff, Composition, Side, stick_norms};
use super::likelihood::position_to_loss;
use super::mechanism::{Case, Component, Mechanism, Noise, Step};
use super::moments::{Moments, log_moment};
use super::step::{Direction, GridLosses};
use super::transform::{Transforms, stage_error, transform_size};

/// Upper bounds in both directions, tight near `delta`.
///
/// Each direction is first bounded cheaply, by Chernoff and on a coarse grid; the one that is then
/// certain to cost less stays as it is.
pub(super) fn compose_for_delta(mechanism: &Mechanism, delta: f64) -> Result<Vec<Bound>, AccountingError> {
    let mut worst = 0.0;
    let mut bounds = Vec::new();
    for direction in [Direction::Remove, Direction::Add] {
        let coarse = Plan::new(mechanism, direction, delta, COARSE_BINS)?;
        let chernoff = coarse.chernoff_for_delta(delta);
        let mut epsilon = chernoff.epsilon(delta);
        if epsilon <= worst {
            bounds.push(Bound::Chernoff(chernoff));
            continue;
        }
        let composition = coarse.compose_near(epsilon, delta)?;
        epsilon = composition.epsilon(delta).min(epsilon);
        if epsilon <= worst {
            bounds.push(Bound::Composition(composition));
            continue;
        }
        let composition = Plan::new(mechanism, direction, delta, FINE_BINS)?.compose_near(epsilon, delta)?;
        worst = composition.epsilon(delta).max(worst);
        bounds.push(Bound::Composition(composition));
    }
    Ok(bounds)
}

/// Upper bounds in both directions, tight at `epsilon`.
pub(super) fn compose_for_epsilon(
    mechanism: &Mechanism,
    epsilon: f64,
) -> Result<Vec<Bound>, AccountingError> {
    [Direction::Remove, Direction::Add]
        .into_iter()
        .map(|direction| bound_at(mechanism, direction, epsilon))
        .collect()
}

/// How much to cut off depends on δ, which is what is sought: starting from its Chernoff bound, coarse
/// compositions lower it until they agree with themselves.
fn bound_at(mechanism: &Mechanism, direction: Direction, epsilon: f64) -> Result<Bound, AccountingError> {
    let mut delta = 1e-3;
    for _ in 0..MAX_MOVES {
        let coarse = Plan::new(mechanism, direction, delta, COARSE_BINS)?;
        let chernoff = coarse.chernoff_for_epsilon(epsilon);
        let mut found = chernoff.delta(epsilon);
        if found > SMALLEST_DELTA {
            found = coarse.compose_at(epsilon, delta)?.delta(epsilon).min(found);
        } else {
            return Ok(Bound::Chernoff(chernoff));
        }
        if found > 0.5 * delta {
            break;
        }
        delta = found;
    }
    Ok(Bound::Composition(
        Plan::new(mechanism, direction, delta, FINE_BINS)?.compose_at(epsilon, delta)?,
    ))
}

/// An ε that certainly is not enough for `delta`: the larger of both directions'. `near`: an upper bound.
pub(super) fn epsilon_from_below(
    mechanism: &Mechanism,
    delta: f64,
    near: f64,
) -> Result<f64, AccountingError> {
    let mut best = 0.0;
    for direction in [Direction::Remove, Direction::Add] {
        let mut plan = Plan::on_side(mechanism, direction, delta, BELOW_BINS, Side::Below)?;
        let (mut near, mut found) = (near, 0.0);
        for _ in 0..MAX_MOVES {
            let composition = plan.compose(near, delta)?;
            found = composition.epsilon_from_below(delta);
            if found > 0.0 {
                break;
            }
            // What wraps around, which from above does no harm, is less in a wider window.
            if composition.lost > 0.01 * delta && plan.room < MAX_ROOM {
                plan.room *= 2;
            } else if composition.lowest() > 0.0 {
                near = composition.lowest();
            } else {
                break;
            }
        }
        // Atoms may stand a little too high.
        let touching: f64 = mechanism
            .components()
            .iter()
            .filter(|part| part.step.noise == Noise::Laplace)
            .map(|part| TOUCHING * part.count as f64 * position_to_loss(part.step, f64::INFINITY))
            .sum();
        best = (found - touching).max(best);
    }
    Ok(best)
}

/// Points (ε, δ) of the upper bound in one direction, ε rising: enough compositions to reach from `smallest_delta`
/// to ε = 0.
pub(super) fn tabulate(
    mechanism: &Mechanism,
    direction: Direction,
    smallest_delta: f64,
) -> Result<Vec<Vec<(f64, f64)>>, AccountingError> {
    let mut tables = Vec::new();
    let mut delta = smallest_delta;
    for _ in 0..MAX_TABLES {
        let mut plan = Plan::new(mechanism, direction, delta, FINE_BINS)?;
        plan.reaches_zero = true;
        let near = plan.chernoff_for_delta(delta).epsilon(delta);
        let table = plan.compose(near, delta)?.table(TABLE_POINTS);
        // The lowest ε from which on everything is precise, and δ there.
        let imprecise = table.iter().rposition(|(_, _, precise)| !precise);
        let reached = imprecise
            .and_then(|at| table.get(at + 1))
            .map(|(_, delta, _)| *delta);
        tables.push(
            table
                .into_iter()
                .map(|(epsilon, delta, _)| (epsilon, delta))
                .collect(),
        );
        match (imprecise, reached) {
            (None, _) => break,
            (Some(_), reached) => delta = reached.unwrap_or(delta).max(4.0 * delta),
        }
        if delta > 0.25 {
            break;
        }
    }
    Ok(tables)
}

/// One direction of a mechanism and the grid it is put on.
struct Plan<'a> {
    components: &'a [Component],
    direction: Direction,
    side: Side,
    /// True if the window must reach down to ε = 0.
    reaches_zero: bool,
    /// How many times as wide as needed from above the window is.
    room: usize,
    /// Probability cut off a side of each step.
    cut: f64,
    /// Standard deviation of the sum of all losses.
    deviation: f64,
    spacing: f64,
    parts: Vec<(GridLosses, u64)>,
}

/// A tilt and the grid points a composition is computed at.
struct Window {
    order: f64,
    low: f64,
    width: f64,
    /// Bound on the probability, untilted, of sums above it.
    above: f64,
}

impl<'a> Plan<'a> {
    fn new(
        mechanism: &'a Mechanism,
        direction: Direction,
        delta: f64,
        bins_per_deviation: f64,
    ) -> Result<Self, AccountingError> {
        Self::on_side(mechanism, direction, delta, bins_per_deviation, Side::Above)
    }

    fn on_side(
        mechanism: &'a Mechanism,
        direction: Direction,
        delta: f64,
        bins_per_deviation: f64,
        side: Side,
    ) -> Result<Self, AccountingError> {
        let components = mechanism.components();
        let steps: f64 = components.iter().map(|part| part.count as f64).sum();
        let variance: f64 = components
            .iter()
            .map(|part| part.count as f64 * loss_variance(&part.cases(), direction))
            .sum();
        let largest_atom = largest_atom(components);
        // Nothing smooths the edges of a few Laplace releases.
        let finer = match largest_atom {
            Some(_) => (EDGE_BINS / steps.sqrt()).max(1.0),
            None => 1.0,
        };
        let spacing = (variance / steps).sqrt() / (bins_per_deviation * finer);
        let mut plan = Self {
            components,
            direction,
            side,
            reaches_zero: false,
            room: 1,
            cut: (delta * CUT_SHARE / steps).max(1e-300),
            deviation: variance.sqrt(),
            spacing: largest_atom.map_or(spacing, |atom| atom / (atom / spacing).ceil()),
            parts: Vec::new(),
        };
        plan.discretise()?;
        Ok(plan)
    }

    fn discretise(&mut self) -> Result<(), AccountingError> {
        let grid = match self.side {
            Side::Above => GridLosses::new,
            Side::Below => GridLosses::from_below,
        };
        let put = |part: &Component| {
            grid(&part.cases(), self.direction, self.spacing, self.cut).map(|losses| (losses, part.count))
        };
        self.parts = self
            .components
            .iter()
            .map(put)
            .collect::<Option<_>>()
            .ok_or(AccountingError::OutOfRange)?;
        Ok(())
    }

    fn moments(&self) -> Moments<'_> {
        Moments { parts: &self.parts }
    }

    fn chernoff_for_delta(&self, delta: f64) -> Chernoff {
        let guess = (-2.0 * libm::log(delta)).max(0.1).sqrt() / self.deviation;
        self.chernoff(self.moments().order_for_delta(libm::log(delta), guess))
    }

    fn chernoff_for_epsilon(&self, epsilon: f64) -> Chernoff {
        let guess = (1.0 + epsilon / self.deviation) / self.deviation;
        self.chernoff(self.moments().order_for_epsilon(epsilon, guess))
    }

    fn chernoff(&self, order: f64) -> Chernoff {
        let log_moment = self.moments().at(order);
        Chernoff {
            order,
            log_moment: log_moment + libm::log(self.slack(log_moment)),
            infinite: self.infinite(),
        }
    }

    fn infinite(&self) -> f64 {
        self.parts
            .iter()
            .map(|(losses, count)| losses.infinite * *count as f64)
            .sum()
    }

    fn steps(&self) -> f64 {
        self.parts.iter().map(|(_, count)| *count as f64).sum()
    }

    /// Factor that covers the relative error of masses and moments.
    fn slack(&self, log_moment: f64) -> f64 {
        libm::exp((self.steps() + log_moment.abs()) * ARITHMETIC_ERROR)
    }

    /// Composes around an ε that is known to be large enough, moving down while the answer lies below
    /// the window.
    fn compose_near(mut self, epsilon: f64, delta: f64) -> Result<Composition, AccountingError> {
        let mut near = epsilon;
        for _ in 0..MAX_MOVES {
            let composition = self.compose(near, delta)?;
            let found = composition.epsilon(delta);
            if found > composition.lowest() || found == 0.0 {
                return Ok(composition);
            }
            near = composition.lowest();
        }
        self.compose(near, delta)
    }

    fn compose_at(mut self, epsilon: f64, delta: f64) -> Result<Composition, AccountingError> {
        self.compose(epsilon, delta)
    }

    /// Composes on a window around ε; where that takes too many grid points, on a coarser grid.
    fn compose(&mut self, epsilon: f64, delta: f64) -> Result<Composition, AccountingError> {
        for _ in 0..MAX_REGRIDS {
            let window = self.window(epsilon, delta)?;
            let bins = self.room as f64 * window.width / self.spacing + 8.0;
            if bins <= MAX_BINS as f64 {
                return self.transform(&window, transform_size(bins.max(64.0) as usize));
            }
            let spacing = self.spacing * 1.05 * bins / MAX_BINS as f64;
            self.spacing = match largest_atom(self.components) {
                Some(atom) if atom > spacing => atom / (atom / spacing).floor(),
                _ => spacing,
            };
            self.discretise()?;
        }
        Err(AccountingError::OutOfRange)
    }

    /// The tilt with the narrowest window among those whose transform is precise enough.
    ///
    /// The saddle point is the best tilt while many small losses add up. Where few large losses
    /// decide, it lifts them so much that the window must hold several of them; a weaker tilt then
    /// does with less.
    fn window(&self, epsilon: f64, delta: f64) -> Result<Window, AccountingError> {
        let guess = (1.0 + epsilon / self.deviation) / self.deviation;
        let saddle = self.moments().order_for_epsilon(epsilon, guess);
        let ln_cut = libm::log(delta * CUT_SHARE);
        let mut best: Option<(bool, f64, Window)> = None;
        for weakening in 0..TILTS {
            let order = saddle * TILT_RATIO.powi(weakening);
            let window = self.window_at(order, epsilon, ln_cut);
            let error = self.expected_error(order, epsilon) / delta;
            let precise = error <= PRECISION;
            let better = match &best {
                _ if !(window.width.is_finite() && error.is_finite()) => false,
                None => true,
                Some((true, _, old)) => precise && window.width < old.width,
                Some((false, old_error, _)) => precise || error < *old_error,
            };
            if better {
                best = Some((precise, error, window));
            }
        }
        best.map(|(_, _, window)| window)
            .ok_or(AccountingError::OutOfRange)
    }

    /// Roughly what the transform's rounding adds to δ at ε (compare `Transforms::errors`).
    fn expected_error(&self, order: f64, epsilon: f64) -> f64 {
        let (first, second) = stick_norms(order, self.spacing);
        let norm_of_sums = (self.spacing / (3.5 * self.deviation)).sqrt().min(1.0);
        let weights = second.min(first * norm_of_sums);
        0.5 * self.steps()
            * stage_error(MAX_BINS)
            * weights
            * libm::exp(self.moments().at(order) - order * epsilon)
    }

    /// Sums above low + W must have probability at most e^{c − λW}, since wrapping down by W raises
    /// their weight by e^{λW}; sums below low that wrap up lose as much, so λW ≥ −c does for them, or
    /// low so deep that nothing lies below. c is `ln_cut`.
    fn window_at(&self, order: f64, epsilon: f64, ln_cut: f64) -> Window {
        let moments = self.moments();
        let width_from = |low: f64| moments.width_above(order, low, ln_cut);
        let near = width_from(epsilon).max(-ln_cut / order);
        let mut low = epsilon - MARGIN * near;
        if self.reaches_zero {
            low = low.min(-self.spacing);
        }
        let near = width_from(low).max(-ln_cut / order);
        let bottom = moments.lower_quantile(ln_cut, 6.0 / self.deviation).min(epsilon) - self.spacing;
        let deep = width_from(bottom);
        let (low, width) = if deep < near || !near.is_finite() {
            (bottom, deep)
        } else {
            (low, near)
        };
        Window {
            order,
            low,
            width,
            above: libm::exp(ln_cut),
        }
    }

    fn transform(&self, window: &Window, size: usize) -> Result<Composition, AccountingError> {
        let order = window.order;
        let mut transforms = Transforms::new(size);
        let mut log_moment_of_sum = 0.0;
        for (losses, count) in &self.parts {
            let log_moment = log_moment(losses, order);
            log_moment_of_sum += *count as f64 * log_moment;
            transforms.include(losses, *count, order, log_moment)?;
        }
        let low = (window.low / self.spacing).floor();
        if low.is_nan() || low.abs() >= LARGEST_INDEX {
            return Err(AccountingError::OutOfRange);
        }
        let low = low as i64;
        let sums = transforms.finish(low)?;
        if !log_moment_of_sum.is_finite() {
            return Err(AccountingError::OutOfRange);
        }
        let slack = self.slack(log_moment_of_sum);
        let lost = match self.side {
            Side::Above => self.infinite() + window.above,
            Side::Below => {
                let (low, width) = (low as f64 * self.spacing, size as f64 * self.spacing);
                self.moments().wrapped(order, low, width) * slack
            }
        };
        Ok(Composition {
            sums,
            low,
            spacing: self.spacing,
            order,
            log_moment: log_moment_of_sum,
            lost,
            slack,
            side: self.side,
        })
    }
}

/// The largest loss of the Laplace release that adds most: it has much of the probability, and so gets a grid point.
fn largest_atom(components: &[Component]) -> Option<f64> {
    let atoms = components
        .iter()
        .filter(|part| part.step.noise == Noise::Laplace)
        .map(|part| (part.count as f64, position_to_loss(part.step, f64::INFINITY)));
    let by_sum = |a: &(f64, f64), b: &(f64, f64)| (a.0 * a.1).total_cmp(&(b.0 * b.1));
    atoms.max_by(by_sum).map(|(_, atom)| atom)
}

/// Variance of the loss of one step, whose case is revealed.
fn loss_variance(cases: &[Case], direction: Direction) -> f64 {
    let (mut mean, mut square) = (0.0, 0.0);
    for case in cases {
        let moments = loss_moments(case.step, direction);
        mean += case.weight * moments.0;
        square += case.weight * moments.1;
    }
    // Cancellation: keep a floor far below any variance that matters.
    (square - mean * mean).max(1e-12 * square)
}

/// Mean and mean square of the loss of one step, by the trapezoid rule, which converges geometrically on
/// Gaussian integrands.
fn loss_moments(step: Step, direction: Direction) -> (f64, f64) {
    let (q, scale) = (step.sampling_probability, step.noise_multiplier);
    let weight = |plain: f64, shifted: f64| match direction {
        Direction::Remove => (1.0 - q) * plain + q * shifted,
        Direction::Add => plain,
    };
    let (low, high) = match step.noise {
        Noise::Gaussian => (-9.0 * scale, 1.0 + 9.0 * scale),
        Noise::Laplace => (0.0, 1.0),
    };
    let density = |z: f64| match step.noise {
        Noise::Gaussian => libm::exp(-0.5 * z * z),
        Noise::Laplace => libm::exp(-z.abs()),
    };
    let width = (high - low) / VARIANCE_POINTS as f64;
    let (mut mass, mut mean, mut square) = (0.0, 0.0, 0.0);
    let mut add = |x: f64, weight: f64| {
        let loss = position_to_loss(step, x);
        mass += weight;
        mean += weight * loss;
        square += weight * loss * loss;
    };
    for point in 0..=VARIANCE_POINTS {
        let x = low + width * point as f64;
        add(x, weight(density(x / scale), density((x - 1.0) / scale)));
    }
    if step.noise == Noise::Laplace {
        // Half of the noise lies on either side; ∫ e^{−|x|/b} of a side is b.
        let (near, far) = (scale / width, scale / width * libm::exp(-1.0 / scale));
        add(0.0, weight(near, far));
        add(1.0, weight(far, near));
    }
    (mean / mass, square / mass)
}

/// Grid points per standard deviation of a step's loss. Splitting a loss between grid points adds at most
/// h²/4, on average h²/6, to its variance: relative 7e-5 at 50, hence about 3e-5 of ε.
const FINE_BINS: f64 = 40.0;
/// From below intervals are up to twice as wide as the grid's cells.
const BELOW_BINS: f64 = 100.0;
const MAX_ROOM: usize = 8;
const TABLE_POINTS: usize = 8192;
const MAX_TABLES: usize = 12;
/// For finding the neighbourhood.
const COARSE_BINS: f64 = 8.0;
/// How much finer the grid of a single Laplace release is; of n releases, by √n less.
const EDGE_BINS: f64 = 128.0;
/// Part of δ given to each thing that is cut off.
const CUT_SHARE: f64 = 1e-5;
/// Part of δ that rounding of the transform may take without a look for a better tilt.
const PRECISION: f64 = 1e-3;
/// Part of the window below the ε it is made for.
const MARGIN: f64 = 0.25;
/// Below this δ is only bounded roughly.
const SMALLEST_DELTA: f64 = 1e-30;
/// 16 MiB a vector; past it the grid is coarsened.
const MAX_BINS: usize = 1 << 21;
/// Grid points beyond it are not exact in f64.
const LARGEST_INDEX: f64 = 9e15;
const MAX_REGRIDS: usize = 8;
const MAX_MOVES: usize = 8;
const TILTS: i32 = 9;
const TILT_RATIO: f64 = 0.7;
const VARIANCE_POINTS: usize = 600;
/// Relative error of a step's masses and log-moment.
const ARITHMETIC_ERROR: f64 = 1e-13;
