//! How a step's sum is made before it gets its noise: one name for client, server and trainer, and its two wire forms.

use crate::v1;
use serde::{Deserialize, Serialize};

/// What the sensitivity of a step's integer sum rests on. The noise itself, a rounded Gaussian on the integer grid, is the
/// same, and so is the price (docs/privacy.md).
///
/// JSON: `"standard"` or `"hardened"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseMode {
    /// Clipped gradients are summed in floating point and rounded to the grid; what that may get wrong is bounded and
    /// charged, at most [`MOST_SENSITIVITY_SLACK`] of C.
    #[default]
    Standard,
    /// Each record's clipped gradient is rounded to the grid by itself, checked in integers and summed in integers: Δ = C.
    Hardened,
}

/// Most by which the sensitivity charged may exceed C, over C: the trainer refuses a run that would need more.
pub const MOST_SENSITIVITY_SLACK: f64 = 0.02;

impl NoiseMode {
    /// Its name in every interface, and in the run digest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Hardened => "hardened",
        }
    }

    /// Most noise beyond σ·C, over σ·C, that the mode costs.
    pub fn most_slack(self) -> f64 {
        match self {
            Self::Standard => MOST_SENSITIVITY_SLACK,
            Self::Hardened => 0.0,
        }
    }
}

/// A number that names no noise mode of this version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the noise mode is unknown: set standard or hardened, or leave it out for standard")]
pub struct UnknownNoiseMode;

impl From<NoiseMode> for v1::NoiseMode {
    fn from(mode: NoiseMode) -> Self {
        match mode {
            NoiseMode::Standard => Self::Standard,
            NoiseMode::Hardened => Self::Hardened,
        }
    }
}

/// From the enum's number in a message; 0, unspecified, is standard.
impl TryFrom<i32> for NoiseMode {
    type Error = UnknownNoiseMode;

    fn try_from(number: i32) -> Result<Self, UnknownNoiseMode> {
        match v1::NoiseMode::try_from(number) {
            Ok(v1::NoiseMode::Unspecified | v1::NoiseMode::Standard) => Ok(Self::Standard),
            Ok(v1::NoiseMode::Hardened) => Ok(Self::Hardened),
            Err(_) => Err(UnknownNoiseMode),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_noise_mode_survives_the_wire_and_none_means_standard() {
        for mode in [NoiseMode::Standard, NoiseMode::Hardened] {
            assert_eq!(NoiseMode::try_from(v1::NoiseMode::from(mode) as i32), Ok(mode));
        }
        assert_eq!(NoiseMode::try_from(0), Ok(NoiseMode::default()));
        assert_eq!(NoiseMode::try_from(99), Err(UnknownNoiseMode));
    }
}
