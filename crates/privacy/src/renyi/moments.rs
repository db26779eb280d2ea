//! ln(A_α − 1) of one release: the excess of the moment E[(dP/dQ)^α] under Q over that of equal P and Q.
//!
//! With t = ln(dP/dQ), E[e^t] = 1, and so A − 1 = E[e^{αt} − 1 − α(e^t − 1)], whose integrand is nowhere negative.

use super::{ln_one_plus_exp, ln_sum};
use crate::accountant::likelihood::{log_ratio, position_to_loss};
use crate::accountant::mechanism::{Noise, Step};

/// ln(A_α − 1), of removing a unit or adding one, whichever is the larger.
pub(super) fn ln_excess_moment(step: Step, order: f64) -> f64 {
    match step.noise {
        Noise::Gaussian => gaussian(step, order),
        Noise::Laplace => laplace(step, order),
    }
}

fn gaussian(step: Step, order: f64) -> f64 {
    let (q, variance) = (step.sampling_probability, step.noise_multiplier.powi(2));
    if q >= 1.0 {
        ln_expm1(order * (order - 1.0) / (2.0 * variance))
    } else if order.fract() == 0.0 {
        gaussian_at_whole_order(q, variance, order)
    } else {
        gaussian_between(step, order)
    }
}

/// Σ_{k≥2} C(α,k)·(1−q)^{α−k}·q^k·(e^{(k²−k)/(2σ²)} − 1): the binomial sum for A (Mironov, Talwar and Zhang 2019, section 3.3)
/// less that of (1 − q + q)^α.
fn gaussian_at_whole_order(q: f64, variance: f64, order: f64) -> f64 {
    let (ln_in, ln_out) = (libm::log(q), libm::log1p(-q));
    let mut ln_binomial = libm::log(order);
    let mut terms = Vec::with_capacity(order as usize);
    for k in 2..=order as u32 {
        let k = f64::from(k);
        ln_binomial += libm::log((order - k + 1.0) / k);
        let drawn = k * ln_in + (order - k) * ln_out;
        terms.push(ln_binomial + drawn + ln_expm1(k * (k - 1.0) / (2.0 * variance)));
    }
    ln_sum(&terms)
}

/// At other orders the trapezoid rule, which converges geometrically: with points h apart its error is about
/// e^{−2πa/h + a²/(2σ²)} of the integral of the moduli on a strip of half-width a, and up to πσ², where the integrand has its first
/// branch points, moduli are at most those on the real line. The h below brings that under e^{−40}. Where it takes too many points, ln A is interpolated
/// between whole orders, which bounds it from above: as a function of α it is convex.
fn gaussian_between(step: Step, order: f64) -> f64 {
    let sigma = step.noise_multiplier;
    let variance = sigma * sigma;
    let strip = 0.95 * std::f64::consts::PI * variance;
    let narrow = std::f64::consts::TAU * strip / (40.0 + strip * strip / (2.0 * variance));
    let wide = 0.5 * sigma;
    // Where the best a, 2πσ²/h, lies within the strip, h = σ/2 gives e^{−79}.
    let spacing = if std::f64::consts::TAU * variance / wide <= strip {
        wide
    } else {
        narrow.min(wide)
    };
    let (low, high) = (-TAIL * sigma, order + TAIL * sigma);
    let points = ((high - low) / spacing).ceil();
    if points.is_nan() || points > MAX_POINTS {
        return gaussian_by_convexity(step, order);
    }
    let ln_scale = libm::log(spacing / (sigma * std::f64::consts::TAU.sqrt()));
    let terms: Vec<f64> = (0..=points as u32)
        .map(|point| {
            let z = low + spacing * f64::from(point);
            ln_scale - z * z / (2.0 * variance) + ln_convex_gap(order, position_to_loss(step, z))
        })
        .collect();
    ln_sum(&terms)
}

fn gaussian_by_convexity(step: Step, order: f64) -> f64 {
    let ln_moment = |whole: f64| {
        if whole <= 1.0 {
            0.0
        } else {
            ln_one_plus_exp(gaussian(step, whole))
        }
    };
    let (below, above) = (order.floor(), order.ceil());
    let part = order - below;
    ln_expm1((1.0 - part) * ln_moment(below) + part * ln_moment(above))
}

/// Losses are constant left of 0 and right of 1, with probability ½ and e^{−1/b}/2 without the unit.
fn laplace(step: Step, order: f64) -> f64 {
    let (q, scale) = (step.sampling_probability, step.noise_multiplier);
    if q >= 1.0 {
        // α/(2α−1)·e^{(α−1)/b} + (α−1)/(2α−1)·e^{−α/b} (Mironov 2017, Proposition 6).
        let (up, down) = ((order - 1.0) / scale, -order / scale);
        return ln_sum(&[
            libm::log(order / (2.0 * order - 1.0)) + ln_expm1_less_linear(up),
            libm::log((order - 1.0) / (2.0 * order - 1.0)) + ln_expm1_less_linear(down),
        ]);
    }
    let largest = position_to_loss(step, f64::INFINITY);
    let panels = (order * log_ratio(step, 1.0)).ceil().max(1.0);
    if panels.is_nan() || panels > MAX_PANELS {
        // D_α is at most the largest loss.
        return ln_expm1((order - 1.0) * largest);
    }
    // dQ/dP to the power α under P is dP/dQ to the power 1 − α under Q.
    let direction = |exponent: f64| {
        let at = |x: f64| ln_convex_gap(exponent, position_to_loss(step, x));
        let mut terms = vec![
            -std::f64::consts::LN_2 + at(0.0),
            -std::f64::consts::LN_2 - 1.0 / scale + at(1.0),
        ];
        let width = 1.0 / panels;
        for panel in 0..panels as u32 {
            for (node, weight) in GAUSS_LEGENDRE {
                for side in [-node, node] {
                    let x = width * (f64::from(panel) + 0.5 * (1.0 + side));
                    let ln_density = -x / scale - libm::log(2.0 * scale);
                    terms.push(libm::log(0.5 * width * weight) + ln_density + at(x));
                }
            }
        }
        ln_sum(&terms)
    };
    direction(order).max(direction(1.0 - order))
}

/// ln(e^{βt} − 1 − β(e^t − 1)) for β outside [0, 1], where that is not negative.
fn ln_convex_gap(beta: f64, t: f64) -> f64 {
    if (beta * t).abs() < 0.5 && t.abs() < 0.5 {
        // Σ_{n≥2} (βⁿ − β)·tⁿ/n!
        let (mut power, mut factor, mut sum) = (beta, 1.0, 0.0);
        for n in 2..24 {
            power *= beta;
            factor *= t / f64::from(n);
            sum += (power - beta) * factor;
        }
        return libm::log((sum * t).max(0.0));
    }
    let largest = t.max(beta * t);
    if largest < 30.0 {
        return libm::log((libm::expm1(beta * t) - beta * libm::expm1(t)).max(0.0));
    }
    let scaled = |x: f64| libm::exp(x - largest);
    largest + libm::log(scaled(beta * t) - scaled(0.0) - beta * (scaled(t) - scaled(0.0)))
}

/// ln(e^x − 1), x ≥ 0.
fn ln_expm1(x: f64) -> f64 {
    if x > 40.0 { x } else { libm::log(libm::expm1(x)) }
}

/// ln(e^x − 1 − x).
fn ln_expm1_less_linear(x: f64) -> f64 {
    if x.abs() < 0.5 {
        let (mut term, mut sum) = (x, 0.0);
        for n in 2..24 {
            term *= x / f64::from(n);
            sum += term;
        }
        libm::log(sum)
    } else if x < 40.0 {
        libm::log(libm::expm1(x) - x)
    } else {
        x + libm::log1p(-(1.0 + x) * libm::exp(-x))
    }
}

/// Standard deviations beyond which the integrand is left out: relative e^{−50} of what is within.
const TAIL: f64 = 10.0;
const MAX_POINTS: f64 = 20_000.0;
const MAX_PANELS: f64 = 4096.0;
/// Positive nodes and weights of the 16-point rule on [−1, 1] (Abramowitz and Stegun, table 25.4).
const GAUSS_LEGENDRE: [(f64, f64); 8] = [
    (0.095_012_509_837_637_44, 0.189_450_610_455_068_5),
    (0.281_603_550_779_258_9, 0.182_603_415_044_923_6),
    (0.458_016_777_657_227_37, 0.169_156_519_395_002_54),
    (0.617_876_244_402_643_7, 0.149_595_988_816_576_73),
    (0.755_404_408_355_003, 0.124_628_971_255_533_87),
    (0.865_631_202_387_831_7, 0.095_158_511_682_492_78),
    (0.944_575_023_073_232_6, 0.062_253_523_938_647_894),
    (0.989_400_934_991_649_9, 0.027_152_459_411_754_095),
];
