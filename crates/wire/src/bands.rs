//! Over how many steps a run's noise is correlated.

use serde::{Deserialize, Serialize};

/// Steps whose noise a step's depends on, itself among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bands {
    /// So many; 1: independent noise, DP-SGD.
    Fixed(u32),
    /// As many as leave the least noise at the run's price, by the server's plan.
    Planned,
}

impl Default for Bands {
    fn default() -> Self {
        Self::Fixed(1)
    }
}

/// A message that asks for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("set bands or plan_bands, not both")]
pub struct BothBands;

impl Bands {
    /// `bands` and `plan_bands` of the wire.
    pub fn to_wire(self) -> (u32, bool) {
        match self {
            Self::Fixed(bands) => (bands, false),
            Self::Planned => (0, true),
        }
    }

    /// From `bands` and `plan_bands`; neither is 1.
    ///
    /// # Errors
    /// [`BothBands`].
    pub fn from_wire(bands: u32, plan: bool) -> Result<Self, BothBands> {
        match (bands, plan) {
            (0, true) => Ok(Self::Planned),
            (_, true) => Err(BothBands),
            (bands, false) => Ok(Self::Fixed(bands.max(1))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_survive_the_wire() {
        for bands in [Bands::Fixed(1), Bands::Fixed(16), Bands::Planned] {
            let (fixed, plan) = bands.to_wire();
            assert_eq!(Bands::from_wire(fixed, plan), Ok(bands));
        }
        assert_eq!(Bands::from_wire(0, false), Ok(Bands::default()));
        assert_eq!(Bands::from_wire(3, true), Err(BothBands));
    }
}
