//! Rényi differential privacy: curves of mechanisms, and the (ε, δ) they imply.
//!
//! A curve gives, for each order α > 1, a bound on D_α(M(D)‖M(D′)) over neighbours D, D′ (Mironov 2017,
//! <https://arxiv.org/abs/1702.07476>). Curves of adaptively chosen mechanisms add up, whatever the results were, as long
//! as order and curves are fixed beforehand (filters do more). The conversion to (ε, δ) loses a tenth or so against
//! [`crate::accountant`], which should price a run whose parameters are fixed.
//!
//! Every pair below dominates its mechanism for all hockey-stick divergences, hence also for Rényi's (Blackwell's order).
//! - Gaussian: α/(2σ²).
//! - Poisson-sampled Gaussian: ln A_α/(α−1), A_α = E[(1 − q + q·e^{(2z−1)/(2σ²)})^α], z ~ N(0, σ²). Adding a unit never
//!   costs more than removing it (Mironov, Talwar and Zhang 2019, <https://arxiv.org/abs/1908.10530>, Theorem 5).
//! - A sample cut to a cap: the mixture of [`crate::truncation`], whose case is revealed, so that moments mix as cases do:
//!   A_α = (1−τ)·A_α(q, σ) + τ·A_α(q, σ/2).
//! - Laplace, also Poisson-sampled: from its density; of removing and adding the larger.
//!
//! What is computed is A_α − 1, as sums of positive terms: a small q cancels nothing.

mod moments;

use crate::accountant::AccountingError;
use crate::accountant::mechanism::{Cut, Mechanism};
use crate::event::{DpEvent, NeighboringRelation};
use moments::ln_excess_moment;

/// The orders of dp_accounting's RDP accountant (and but for 11 and those above 63, Opacus'): 1.1, 1.2, …, 10.9, 11, 12, …, 63, 128,
/// 256, 512, 1024.
pub fn default_orders() -> Vec<f64> {
    let tenths = (1..100).map(|tenth| 1.0 + f64::from(tenth) / 10.0);
    let whole = (11..64).chain([128, 256, 512, 1024]).map(f64::from);
    tenths.chain(whole).collect()
}

/// Bounds on the Rényi divergence of `event`, one for each of `orders`; infinite where there is none.
///
/// Never below the true value by more than rounding, for which a relative 1e-11 is added.
///
/// # Errors
/// [`AccountingError`]: an order that is not in (1, [`LARGEST_ORDER`]], an event without a proof, a parameter out of its domain.
pub fn curve(
    event: &DpEvent,
    relation: NeighboringRelation,
    orders: &[f64],
) -> Result<Vec<f64>, AccountingError> {
    for &order in orders {
        check_order(order)?;
    }
    let mechanism = Mechanism::parse(event, relation, Cut::Exchange)?;
    let bound = |&order: &f64| {
        if mechanism.is_non_private() {
            return Ok(f64::INFINITY);
        }
        let sum: f64 = mechanism
            .components()
            .iter()
            .map(|part| part.count as f64 * ln_moment(&part.cases(), order) / (order - 1.0))
            .sum();
        if sum.is_nan() {
            return Err(AccountingError::OutOfRange);
        }
        Ok(sum * ROUND_UP)
    };
    orders.iter().map(bound).collect()
}

/// The smallest ε that a curve over [`default_orders`] proves for `event` at `delta`; infinite if there is none.
///
/// # Errors
/// Those of [`curve`], and a δ outside (0, 1).
pub fn epsilon(event: &DpEvent, relation: NeighboringRelation, delta: f64) -> Result<f64, AccountingError> {
    let orders = default_orders();
    epsilon_of_curve(&orders, &curve(event, relation, &orders)?, delta)
}

/// The smallest δ that a curve over [`default_orders`] proves for `event` at `epsilon`; at most 1.
///
/// # Errors
/// Those of [`curve`], and an ε that is negative or not finite.
pub fn delta(event: &DpEvent, relation: NeighboringRelation, epsilon: f64) -> Result<f64, AccountingError> {
    let orders = default_orders();
    delta_of_curve(&orders, &curve(event, relation, &orders)?, epsilon)
}

/// The smallest ε, over all orders, that bounds on the Rényi divergence prove at `delta`: infinite where no bound is finite.
///
/// ε = r + ln(1 − 1/α) − ln(δ·α)/(α − 1) (Canonne, Kamath and Steinke 2020, <https://arxiv.org/abs/2004.00010>,
/// Proposition 12), and 0 where √(1 − e^{−r}), which bounds the total variation (Bretagnolle and Huber), is at most δ.
///
/// The orders and `curve` must not depend on anything released, or be those of a filter.
///
/// # Errors
/// [`AccountingError`]: δ outside (0, 1), an order not above 1, or another number of bounds than of orders.
pub fn epsilon_of_curve(orders: &[f64], curve: &[f64], delta: f64) -> Result<f64, AccountingError> {
    if !(delta > 0.0 && delta < 1.0) {
        return Err(AccountingError::Delta { value: delta });
    }
    let at = |order: f64, bound: f64| {
        if delta * delta + libm::expm1(-bound) > 0.0 {
            return 0.0;
        }
        let gained = libm::log1p(-1.0 / order) - libm::log(delta * order) / (order - 1.0);
        // ln(δα) cancels nothing that matters: its error is divided by α − 1 like the bound's.
        (bound + gained + 4.0 * f64::EPSILON * (bound + gained.abs())).max(0.0)
    };
    best_of(orders, curve, f64::INFINITY, at)
}

/// The smallest δ, over all orders, that bounds on the Rényi divergence prove at `epsilon`; at most 1.
///
/// # Errors
/// [`AccountingError`]: an ε that is negative or not finite, an order not above 1, or another number of bounds than of orders.
pub fn delta_of_curve(orders: &[f64], curve: &[f64], epsilon: f64) -> Result<f64, AccountingError> {
    if !(epsilon.is_finite() && epsilon >= 0.0) {
        return Err(AccountingError::Epsilon { value: epsilon });
    }
    let at = |order: f64, bound: f64| {
        let exponent = (order - 1.0) * (bound - epsilon + libm::log1p(-1.0 / order)) - libm::log(order);
        let error = 8.0 * f64::EPSILON * (order * (bound + epsilon) + 1.0);
        let total_variation = (-libm::expm1(-bound)).sqrt() * (1.0 + 4.0 * f64::EPSILON);
        libm::exp(exponent + error).min(total_variation)
    };
    best_of(orders, curve, 1.0, at)
}

fn best_of(
    orders: &[f64],
    curve: &[f64],
    none: f64,
    at: impl Fn(f64, f64) -> f64,
) -> Result<f64, AccountingError> {
    if orders.len() != curve.len() {
        return Err(AccountingError::Curve {
            orders: orders.len(),
            bounds: curve.len(),
        });
    }
    let mut best = none;
    for (&order, &bound) in orders.iter().zip(curve) {
        check_order(order)?;
        if bound.is_nan() || bound < 0.0 {
            return Err(AccountingError::OutOfRange);
        }
        if bound.is_finite() {
            best = at(order, bound).min(best);
        }
    }
    Ok(best)
}

/// ln A_α of a step that is a mixture of cases, the case revealed.
fn ln_moment(cases: &[crate::accountant::mechanism::Case], order: f64) -> f64 {
    let excess: Vec<f64> = cases
        .iter()
        .map(|case| libm::log(case.weight) + ln_excess_moment(case.step, order))
        .collect();
    ln_one_plus_exp(ln_sum(&excess))
}

/// ln Σ e^x.
fn ln_sum(exponents: &[f64]) -> f64 {
    let largest = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !largest.is_finite() {
        return largest;
    }
    let sum: f64 = exponents.iter().map(|x| libm::exp(x - largest)).sum();
    largest + libm::log(sum)
}

/// ln(1 + e^x).
fn ln_one_plus_exp(x: f64) -> f64 {
    if x > 40.0 { x } else { libm::log1p(libm::exp(x)) }
}

fn check_order(value: f64) -> Result<(), AccountingError> {
    if value > 1.0 && value <= LARGEST_ORDER {
        Ok(())
    } else {
        Err(AccountingError::Order { value })
    }
}

/// A sum over a whole order has as many terms.
pub const LARGEST_ORDER: f64 = 65_536.0;
const ROUND_UP: f64 = 1.0 + 1e-11;

#[cfg(test)]
mod tests;
