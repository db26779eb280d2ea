//! How each record's gradient is bounded: one name for client, server and trainer, and its two wire forms.

use crate::v1;
use serde::{Deserialize, Serialize};

/// What is held to the clipping norm C, and how. Each bounds the L2 norm of a record's whole clipped gradient by C, so
/// that noise and price are the same (docs/privacy.md).
///
/// JSON: `"flat"`, `"per_layer"` or `"automatic"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clipping {
    /// The whole gradient, cut to C.
    #[default]
    Flat,
    /// The gradient of each of K trainable parameter tensors by itself, cut to C/√K.
    PerLayer,
    /// The whole gradient, scaled to nearly C (AUTO-S): `C/(‖g‖ + 0.01)`.
    Automatic,
}

impl Clipping {
    /// Its name in every interface, and in the run digest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::PerLayer => "per_layer",
            Self::Automatic => "automatic",
        }
    }
}

/// A number that names no clipping of this version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the clipping is unknown: set flat, per_layer or automatic, or leave it out for flat")]
pub struct UnknownClipping;

impl From<Clipping> for v1::Clipping {
    fn from(clipping: Clipping) -> Self {
        match clipping {
            Clipping::Flat => Self::Flat,
            Clipping::PerLayer => Self::PerLayer,
            Clipping::Automatic => Self::Automatic,
        }
    }
}

/// From the enum's number in a message; 0, unspecified, is flat.
impl TryFrom<i32> for Clipping {
    type Error = UnknownClipping;

    fn try_from(number: i32) -> Result<Self, UnknownClipping> {
        match v1::Clipping::try_from(number) {
            Ok(v1::Clipping::Unspecified | v1::Clipping::Flat) => Ok(Self::Flat),
            Ok(v1::Clipping::PerLayer) => Ok(Self::PerLayer),
            Ok(v1::Clipping::Automatic) => Ok(Self::Automatic),
            Err(_) => Err(UnknownClipping),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clipping_survives_the_wire_and_none_means_flat() {
        for clipping in [Clipping::Flat, Clipping::PerLayer, Clipping::Automatic] {
            assert_eq!(
                Clipping::try_from(v1::Clipping::from(clipping) as i32),
                Ok(clipping)
            );
        }
        assert_eq!(Clipping::try_from(0), Ok(Clipping::default()));
        assert_eq!(Clipping::default(), Clipping::Flat);
        assert_eq!(Clipping::try_from(99), Err(UnknownClipping));
    }
}
