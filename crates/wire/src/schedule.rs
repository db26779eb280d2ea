//! One description of a learning-rate schedule for client, server and trainer, and its two wire forms.

use crate::v1;
use serde::{Deserialize, Serialize};

/// How the learning rate moves over a run: warm-up from 0, then decay. Depends on the step alone, never on data.
///
/// JSON: `{"decay": {"cosine": {"final_ratio": 0.0}}, "warmup": {"steps": 10}}`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// What follows the warm-up.
    pub decay: Decay,
    /// Steps over which the rate rises linearly from 0.
    pub warmup: Warmup,
}

/// What the learning rate does after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Stays.
    Constant,
    /// Falls linearly, to reach `final_ratio` of the full rate one step after the last.
    Linear {
        /// In [0, 1].
        final_ratio: f64,
    },
    /// Falls along half a cosine, to reach `final_ratio` of the full rate one step after the last.
    Cosine {
        /// In [0, 1].
        final_ratio: f64,
    },
}

/// Length of the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Warmup {
    /// So many steps; 0: none.
    Steps(u64),
    /// This share of the run's steps, in [0, 1], rounded up.
    Ratio(f64),
}

impl Warmup {
    /// Steps of the warm-up of a run of `total` steps: `ceil(total · ratio)`, as in `transformers`.
    pub fn steps(self, total: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Ratio(ratio) => (total as f64 * ratio).ceil() as u64,
        }
    }
}

impl Default for Schedule {
    /// The full rate at every step.
    fn default() -> Self {
        Self {
            decay: Decay::Constant,
            warmup: Warmup::Steps(0),
        }
    }
}

/// A message whose decay is absent, or of a later version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the schedule is unknown: set constant, linear or cosine, or leave the schedule out for constant")]
pub struct UnknownSchedule;

impl From<Schedule> for v1::Schedule {
    fn from(schedule: Schedule) -> Self {
        use v1::schedule::{Decay as Wire, Warmup as WireWarmup};
        Self {
            decay: Some(match schedule.decay {
                Decay::Constant => Wire::Constant(v1::ConstantRate {}),
                Decay::Linear { final_ratio } => Wire::Linear(v1::LinearDecay { final_ratio }),
                Decay::Cosine { final_ratio } => Wire::Cosine(v1::CosineDecay { final_ratio }),
            }),
            warmup: Some(match schedule.warmup {
                Warmup::Steps(steps) => WireWarmup::WarmupSteps(steps),
                Warmup::Ratio(ratio) => WireWarmup::WarmupRatio(ratio),
            }),
        }
    }
}

impl TryFrom<v1::Schedule> for Schedule {
    type Error = UnknownSchedule;

    /// Takes the numbers as they are: whether they make sense is the server's to say.
    fn try_from(wire: v1::Schedule) -> Result<Self, UnknownSchedule> {
        use v1::schedule::{Decay as Wire, Warmup as WireWarmup};
        Ok(Self {
            decay: match wire.decay.ok_or(UnknownSchedule)? {
                Wire::Constant(v1::ConstantRate {}) => Decay::Constant,
                Wire::Linear(v1::LinearDecay { final_ratio }) => Decay::Linear { final_ratio },
                Wire::Cosine(v1::CosineDecay { final_ratio }) => Decay::Cosine { final_ratio },
            },
            warmup: match wire.warmup {
                None => Warmup::Steps(0),
                Some(WireWarmup::WarmupSteps(steps)) => Warmup::Steps(steps),
                Some(WireWarmup::WarmupRatio(ratio)) => Warmup::Ratio(ratio),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schedule_survives_the_wire() {
        let decays = [
            Decay::Constant,
            Decay::Linear { final_ratio: 0.1 },
            Decay::Cosine { final_ratio: 0.2 },
        ];
        for decay in decays {
            for warmup in [Warmup::Steps(3), Warmup::Ratio(0.25)] {
                let schedule = Schedule { decay, warmup };
                assert_eq!(Schedule::try_from(v1::Schedule::from(schedule)), Ok(schedule));
            }
        }
        assert_eq!(Schedule::try_from(v1::Schedule::default()), Err(UnknownSchedule));
    }

    /// `TrainingArguments.get_warmup_steps` of transformers: `math.ceil(num_training_steps * warmup_ratio)`.
    #[test]
    fn a_ratio_of_steps_is_rounded_up() {
        let steps = |ratio, total| Warmup::Ratio(ratio).steps(total);
        assert_eq!(
            (steps(0.1, 100), steps(0.1, 101), steps(0.0, 7), steps(1.0, 7)),
            (10, 11, 0, 7)
        );
        assert_eq!(Warmup::Steps(5).steps(3), 5);
    }
}
