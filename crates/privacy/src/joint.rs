//! One price for the gradient and the loss released from the same sample.
//!
//! Both are Gaussian releases of the same Poisson batch. Scaled by their own noise, they are one
//! vector with unit noise whose L2 sensitivity squared is 1/σ_g² + 1/σ_l², so the pair is one
//! subsampled Gaussian with 1/σ² = 1/σ_g² + 1/σ_l² (dp.md, rule 6). Accounting for the two as if each had
//! drawn a sample of its own would be wrong, and too cheap: a unit is in both or in neither.

use thiserror::Error;

/// Why noise multipliers could not be joined or split.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum JointError {
    /// A noise multiplier that is not a positive finite number.
    #[error("noise multiplier {value} is not positive and finite; pass the ratio of noise to l2_sensitivity")]
    NoiseMultiplier {
        /// What was passed.
        value: f64,
    },
    /// A share outside (0, 1).
    #[error(
        "loss_share {value} is not strictly between 0 and 1; 0.05 gives the loss a twentieth of the precision"
    )]
    LossShare {
        /// What was passed.
        value: f64,
    },
}

/// The noise multiplier of the gradient and the loss as one mechanism: (σ_g⁻² + σ_l⁻²)^(−1/2).
///
/// # Errors
/// [`JointError::NoiseMultiplier`] unless both are positive and finite.
pub fn joint_noise_multiplier(gradient: f64, loss: f64) -> Result<f64, JointError> {
    let (gradient, loss) = (positive(gradient)?, positive(loss)?);
    // Factored so that neither square can overflow or vanish.
    let (small, large) = if gradient < loss {
        (gradient, loss)
    } else {
        (loss, gradient)
    };
    let ratio = small / large;
    Ok(small / (1.0 + ratio * ratio).sqrt())
}

/// Noise multipliers (gradient, loss) whose joint multiplier is `joint`, the loss taking `loss_share`
/// of it: 1/σ_l² = s/σ², 1/σ_g² = (1−s)/σ².
///
/// Both are rounded up, so that what is joined again is never below `joint`.
///
/// # Errors
/// [`JointError`] unless `joint` is positive and finite and `loss_share` strictly between 0 and 1.
pub fn split_noise_multiplier(joint: f64, loss_share: f64) -> Result<(f64, f64), JointError> {
    let joint = positive(joint)?;
    if !(loss_share > 0.0 && loss_share < 1.0) {
        return Err(JointError::LossShare { value: loss_share });
    }
    let gradient = positive(joint / (1.0 - loss_share).sqrt() * ROUND_UP)?;
    let loss = positive(joint / loss_share.sqrt() * ROUND_UP)?;
    Ok((gradient, loss))
}

fn positive(value: f64) -> Result<f64, JointError> {
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(JointError::NoiseMultiplier { value })
    }
}

/// Covers the handful of roundings of split and join together.
const ROUND_UP: f64 = 1.0 + 16.0 * f64::EPSILON;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_equal_releases_cost_as_much_as_one_with_noise_smaller_by_root_two() {
        let joint = joint_noise_multiplier(2.0, 2.0).unwrap();
        assert!((joint - 2.0_f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn a_hundredth_for_the_loss_raises_gradient_noise_by_half_a_percent() {
        let (gradient, loss) = split_noise_multiplier(1.0, 0.01).unwrap();
        assert!((gradient - 1.0 / 0.99_f64.sqrt()).abs() < 1e-13);
        assert!((loss - 10.0).abs() < 1e-12);
    }

    #[test]
    fn arguments_that_mean_nothing_are_refused() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(matches!(
                joint_noise_multiplier(bad, 1.0),
                Err(JointError::NoiseMultiplier { .. })
            ));
            assert!(matches!(
                joint_noise_multiplier(1.0, bad),
                Err(JointError::NoiseMultiplier { .. })
            ));
            assert!(matches!(
                split_noise_multiplier(bad, 0.5),
                Err(JointError::NoiseMultiplier { .. })
            ));
        }
        for bad in [0.0, 1.0, -0.1, 1.1, f64::NAN] {
            assert!(matches!(
                split_noise_multiplier(1.0, bad),
                Err(JointError::LossShare { .. })
            ));
        }
        assert!(split_noise_multiplier(1e308, 1e-300).is_err());
    }

    proptest! {
        #[test]
        fn joining_what_was_split_never_costs_more_than_was_charged(
            joint in 0.01_f64..1000.0, share in 1e-6_f64..0.999_999,
        ) {
            let (gradient, loss) = split_noise_multiplier(joint, share).unwrap();
            let rejoined = joint_noise_multiplier(gradient, loss).unwrap();
            prop_assert!(rejoined >= joint);
            prop_assert!(rejoined <= joint * (1.0 + 1e-13));
        }
    }
}
