//! Which average of its iterates a run keeps beside them.

use serde::{Deserialize, Serialize};

/// An average of the iterates: released beside the weights, at no cost, as they are noisy already.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Average {
    /// Exponential, bias-corrected, from the first step on.
    Exponential {
        /// In (0, 1).
        decay: f64,
    },
    /// Uniform over the last part of the run.
    Tail {
        /// Part of the run's steps, in (0, 1].
        share: f64,
    },
}

impl Average {
    /// Whether its number makes an average.
    pub fn is_valid(self) -> bool {
        match self {
            Self::Exponential { decay } => decay > 0.0 && decay < 1.0,
            Self::Tail { share } => share > 0.0 && share <= 1.0,
        }
    }

    /// Iterates of a tail: the last `⌈share·steps⌉`, at least one. All for the exponential average.
    pub fn length(self, steps: u64) -> u64 {
        match self {
            Self::Exponential { .. } => steps,
            Self::Tail { share } => ((share * steps as f64).ceil() as u64).clamp(1, steps.max(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_its_share_of_the_steps_rounded_up() {
        let length = |share, steps| Average::Tail { share }.length(steps);
        assert_eq!((length(0.5, 10), length(0.25, 10), length(1.0, 10)), (5, 3, 10));
        assert_eq!((length(1e-9, 10), length(1.0, 1)), (1, 1));
        assert_eq!(Average::Exponential { decay: 0.9 }.length(10), 10);
    }

    #[test]
    fn numbers_that_make_no_average_are_told() {
        for number in [0.0, -0.5, 1.5, f64::NAN] {
            assert!(
                !Average::Exponential { decay: number }.is_valid()
                    && !Average::Tail { share: number }.is_valid()
            );
        }
        assert!(!Average::Exponential { decay: 1.0 }.is_valid());
        assert!(Average::Tail { share: 1.0 }.is_valid());
    }
}
