//! The learning rate of every step: a function of the step's number, the same as `transformers` computes.

use crate::error::{EngineError, Result};
use bastionai_wire::{Decay, Schedule, Warmup};
use std::f64::consts::PI;

/// A schedule over a run of known length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRates {
    decay: Decay,
    warmup_steps: u64,
    steps: u64,
}

impl LearningRates {
    /// The schedule of a run of `steps` steps.
    ///
    /// # Errors
    /// [`EngineError::Job`] for a ratio outside [0, 1].
    pub fn new(schedule: Schedule, steps: u64) -> Result<Self> {
        let final_ratio = match schedule.decay {
            Decay::Constant => 1.0,
            Decay::Linear { final_ratio } | Decay::Cosine { final_ratio } => final_ratio,
        };
        let warmup_ratio = match schedule.warmup {
            Warmup::Steps(_) => 0.0,
            Warmup::Ratio(ratio) => ratio,
        };
        if ![final_ratio, warmup_ratio]
            .iter()
            .all(|ratio| (0.0..=1.0).contains(ratio))
        {
            return Err(EngineError::Job("schedule: ratios must be in [0, 1]".into()));
        }
        Ok(Self {
            decay: schedule.decay,
            warmup_steps: schedule.warmup.steps(steps),
            steps,
        })
    }

    /// Factor of the learning rate at step `step`, counted from 0.
    ///
    /// # References
    /// `get_{constant,linear,cosine}_schedule_with_warmup` and `get_cosine_with_min_lr_schedule_with_warmup` (for
    /// the final ratio) of transformers, `optimization.py`, under `torch.optim.lr_scheduler.LambdaLR`.
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let length = (self.steps - self.warmup_steps.min(self.steps)).max(1) as f64;
        let progress = (step - self.warmup_steps) as f64 / length;
        let (factor, final_ratio) = match self.decay {
            Decay::Constant => (1.0, 0.0),
            Decay::Linear { final_ratio } => ((1.0 - progress).max(0.0), final_ratio),
            Decay::Cosine { final_ratio } => ((0.5 * (1.0 + (PI * progress).cos())).max(0.0), final_ratio),
        };
        factor * (1.0 - final_ratio) + final_ratio
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn factors_equal_torch_lambda_lr() {
        let goldens: Value = serde_json::from_str(include_str!("../tests/data/optimizers.json")).unwrap();
        let cases = goldens["schedules"].as_array().unwrap();
        assert!(cases.len() >= 12, "{}", cases.len());
        for case in cases {
            let schedule: Schedule = serde_json::from_value(case["schedule"].clone()).unwrap();
            let factors = case["factors"].as_array().unwrap();
            let rates = LearningRates::new(schedule, factors.len() as u64).unwrap();
            for (step, expected) in factors.iter().enumerate() {
                let (found, expected) = (rates.factor(step as u64), expected.as_f64().unwrap());
                assert!(
                    (found - expected).abs() <= 4.0 * f64::EPSILON,
                    "{schedule:?} at step {step}: {found}, torch has {expected}"
                );
            }
        }
    }

    #[test]
    fn ratios_out_of_range_are_refused() {
        for ratio in [-0.1, 1.1, f64::NAN] {
            let decay = Schedule {
                decay: Decay::Cosine { final_ratio: ratio },
                warmup: Warmup::Steps(0),
            };
            let warmup = Schedule {
                decay: Decay::Constant,
                warmup: Warmup::Ratio(ratio),
            };
            assert!(LearningRates::new(decay, 10).is_err(), "{ratio}");
            assert!(LearningRates::new(warmup, 10).is_err(), "{ratio}");
        }
    }
}
