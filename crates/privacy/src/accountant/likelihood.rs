//! One release, as an output x of which 0 or 1 was the number before the noise: its losses and probabilities.
//!
//! With the unit, which is in the sample with probability q, x has the density (1−q)·p(x) + q·p(x−1), without it p(x). For
//! Gaussian and Laplace noise p(x−1)/p(x) does not fall with x, and so neither does the loss.

use super::mechanism::{Noise, Step};
use crate::tails::{TailPoint, laplace_upper_tail, normal_upper_tail};

/// ln p(x−1)/p(x): (x − ½)/σ² for Gaussian noise; (|x| − |x−1|)/b for Laplace, which from 1 on is 1/b, and below 0 is −1/b.
pub(crate) fn log_ratio(step: Step, x: f64) -> f64 {
    let scale = step.noise_multiplier;
    match step.noise {
        Noise::Gaussian => (x - 0.5) / (scale * scale),
        Noise::Laplace => (2.0 * x - 1.0).clamp(-1.0, 1.0) / scale,
    }
}

/// ℓ(x) = ln(1 − q + q·p(x−1)/p(x)), the loss of removal at output x.
pub(crate) fn position_to_loss(step: Step, x: f64) -> f64 {
    let q = step.sampling_probability;
    let exponent = log_ratio(step, x);
    if q >= 1.0 {
        exponent
    } else if exponent > 30.0 {
        // ln q + exponent + ln(1 + (1−q)/q·e^{−exponent}), free of overflow.
        libm::log(q) + exponent + libm::log1p((1.0 - q) / q * libm::exp(-exponent))
    } else {
        libm::log1p(q * libm::expm1(exponent))
    }
}

/// The x from which on the loss of removal is above `loss`: −∞ below the smallest loss, +∞ from the largest on.
pub(super) fn loss_to_position(step: Step, loss: f64) -> f64 {
    let q = step.sampling_probability;
    let exponent = if q >= 1.0 {
        loss
    } else if loss > 30.0 {
        // ln((e^loss − 1 + q)/q) = loss − ln q + ln(1 − (1−q)·e^{−loss}).
        loss - libm::log(q) + libm::log1p(-(1.0 - q) * libm::exp(-loss))
    } else {
        let inner = libm::expm1(loss) / q;
        if inner <= -1.0 {
            f64::NEG_INFINITY
        } else {
            libm::log1p(inner)
        }
    };
    let scale = step.noise_multiplier;
    match step.noise {
        Noise::Gaussian => exponent * scale * scale + 0.5,
        Noise::Laplace if exponent * scale >= 1.0 => f64::INFINITY,
        Noise::Laplace if exponent * scale < -1.0 => f64::NEG_INFINITY,
        Noise::Laplace => 0.5 * (exponent * scale + 1.0),
    }
}

/// P[x > `x`] without the unit.
pub(super) fn upper_tail(step: Step, x: f64) -> f64 {
    match step.noise {
        Noise::Gaussian => normal_upper_tail(x / step.noise_multiplier),
        Noise::Laplace => laplace_upper_tail(x / step.noise_multiplier),
    }
}

/// An output under p(x) and p(x−1).
#[derive(Clone, Copy)]
pub(super) struct Pair {
    pub(super) plain: TailPoint,
    pub(super) shifted: TailPoint,
}

impl Pair {
    pub(super) fn new(step: Step, x: f64) -> Self {
        let point = match step.noise {
            Noise::Gaussian => TailPoint::normal,
            Noise::Laplace => TailPoint::laplace,
        };
        Self {
            plain: point(x / step.noise_multiplier),
            shifted: point((x - 1.0) / step.noise_multiplier),
        }
    }

    /// The probabilities of [self, right].
    pub(super) fn until(&self, right: &Self) -> (f64, f64) {
        (self.plain.until(&right.plain), self.shifted.until(&right.shifted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_and_positions_are_inverse() {
        for (noise, noise_multiplier, sampling_probability, positions) in [
            (Noise::Gaussian, 1.0, 0.01, [-1.0, 0.3, 0.5, 1.0, 5.0]),
            (Noise::Gaussian, 0.3, 1e-6, [-1.0, 0.3, 0.5, 1.0, 5.0]),
            (Noise::Gaussian, 100.0, 1e-6, [-1.0, 0.3, 0.5, 1.0, 5.0]),
            (Noise::Gaussian, 2.0, 0.9, [-1.0, 0.3, 0.5, 1.0, 5.0]),
            (Noise::Laplace, 1.0, 0.01, [0.1, 0.3, 0.5, 0.7, 0.99]),
            (Noise::Laplace, 0.02, 1.0, [0.1, 0.3, 0.5, 0.7, 0.99]),
            (Noise::Laplace, 50.0, 0.5, [0.1, 0.3, 0.5, 0.7, 0.99]),
        ] {
            let step = Step {
                sampling_probability,
                noise,
                noise_multiplier,
            };
            for x in positions {
                let back = loss_to_position(step, position_to_loss(step, x));
                assert!((back - x).abs() < 1e-6, "{step:?} {x} {back}");
            }
        }
    }

    #[test]
    fn beyond_the_losses_there_are_lie_all_outputs_or_none() {
        let gaussian = Step {
            sampling_probability: 0.5,
            noise: Noise::Gaussian,
            noise_multiplier: 1.0,
        };
        assert_eq!(loss_to_position(gaussian, -0.8), f64::NEG_INFINITY);
        let laplace = Step {
            sampling_probability: 1.0,
            noise: Noise::Laplace,
            noise_multiplier: 2.0,
        };
        assert_eq!(loss_to_position(laplace, 0.5), f64::INFINITY);
        assert_eq!(loss_to_position(laplace, -0.500_001), f64::NEG_INFINITY);
        assert_eq!(position_to_loss(laplace, f64::INFINITY), 0.5);
        assert_eq!(position_to_loss(laplace, -3.0), -0.5);
    }
}
