//! In what precision a graph's products run: one name for client, server and trainer, and its two wire forms.

use crate::v1;
use serde::{Deserialize, Serialize};

/// Precision of the operands of matrix products and convolutions, forward and backward; sums inside a product are f32.
/// A performance setting: per-sample gradients are clipped, summed and charged as they come out (docs/privacy.md).
///
/// JSON: `"float32"` or `"bfloat16"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    /// IEEE binary32, as the model has it.
    #[default]
    Float32,
    /// Eight bits of significand. Slower than float32 on a processor without instructions for it.
    Bfloat16,
}

impl Compute {
    /// Its name in every interface, and in the run digest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
        }
    }

    /// Whether the operands of this operator are rounded to bfloat16, where all it takes and gives is f32: those that
    /// autocast runs in lower precision and the engine knows.
    pub fn lowers(self, operator: &str) -> bool {
        self == Self::Bfloat16 && PRODUCTS.contains(&operator)
    }
}

const PRODUCTS: [&str; 11] = [
    "addmm",
    "bmm",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolution",
    "linear",
    "matmul",
];

/// A number that names no precision of this version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the compute precision is unknown: set float32 or bfloat16, or leave it out for float32")]
pub struct UnknownCompute;

impl From<Compute> for v1::Compute {
    fn from(compute: Compute) -> Self {
        match compute {
            Compute::Float32 => Self::Float32,
            Compute::Bfloat16 => Self::Bfloat16,
        }
    }
}

/// From the enum's number in a message; 0, unspecified, is float32.
impl TryFrom<i32> for Compute {
    type Error = UnknownCompute;

    fn try_from(number: i32) -> Result<Self, UnknownCompute> {
        match v1::Compute::try_from(number) {
            Ok(v1::Compute::Unspecified | v1::Compute::Float32) => Ok(Self::Float32),
            Ok(v1::Compute::Bfloat16) => Ok(Self::Bfloat16),
            Err(_) => Err(UnknownCompute),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_precision_survives_the_wire_and_none_means_float32() {
        for compute in [Compute::Float32, Compute::Bfloat16] {
            assert_eq!(Compute::try_from(v1::Compute::from(compute) as i32), Ok(compute));
        }
        assert_eq!(Compute::try_from(0), Ok(Compute::Float32));
        assert_eq!(Compute::try_from(99), Err(UnknownCompute));
    }
}
