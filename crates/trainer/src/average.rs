//! An average of the iterates, kept beside the parameters in their own precision.
//!
//! Post-processing: the iterates are noisy already, so that averaging them costs no privacy.

use crate::error::{EngineError, Result};
use bastionai_wire::Average;
use tch::{Kind, Tensor};

/// The average of the parameters after the steps taken so far.
///
/// *Exponential*: after `t` steps it is the bias-corrected average, `Σ_s d^(t−s)·θ_s / Σ_s d^(t−s)` over `s = 1 … t` for decay
/// `d`: the initial values have no part in it. *Tail*: the plain mean of the iterates from step `s₀` on; before, the
/// iterate itself. Both are held in this form, as `e_t = e_(t−1) + w_t·(θ_t − e_(t−1))` with `w_t = (1−d)/(1−d^t)`, or
/// `1/(t−s₀+1)` and before `s₀` 1, so that a checkpoint holds what is released.
///
/// # References
/// Polyak and Juditsky 1992, <https://doi.org/10.1137/0330046>; for DP-SGD De et al. 2022, section 3.3,
/// <https://arxiv.org/abs/2204.13650>, whose warm-up of `d` the correction takes the place of; of the tail Rakhlin, Shamir
/// and Sridharan 2012, <https://arxiv.org/abs/1109.5647>.
pub struct IterateAverage {
    average: Average,
    /// Of the exponential one 1.
    first: u64,
    steps: u64,
    averages: Vec<Tensor>,
}

impl IterateAverage {
    /// An average of nothing yet, in a run of `run_steps` steps.
    ///
    /// # Errors
    /// [`EngineError::Job`] for a number that makes no average.
    pub fn new(average: Average, run_steps: u64, parameters: &[&Tensor]) -> Result<Self> {
        if !average.is_valid() {
            return Err(EngineError::Job(NOT_AN_AVERAGE.into()));
        }
        let zeros = parameters.iter().map(|each| Ok(each.f_detach()?.f_zeros_like()?));
        Ok(Self {
            average,
            first: run_steps.saturating_sub(average.length(run_steps)) + 1,
            steps: 0,
            averages: zeros.collect::<Result<_>>()?,
        })
    }

    /// Takes in the parameters after one more step.
    ///
    /// # Errors
    /// Libtorch's.
    pub fn update(&mut self, parameters: &[&Tensor]) -> Result<()> {
        self.steps += 1;
        let weight = self.weight();
        for (average, parameter) in self.averages.iter_mut().zip(parameters) {
            let _same = average.f_lerp_(&parameter.f_detach()?, weight)?;
        }
        Ok(())
    }

    /// Of the latest iterate.
    fn weight(&self) -> f64 {
        match self.average {
            Average::Exponential { decay } => {
                // 1 − d^t, exact also where d^t is close to 1.
                let mass = -(self.steps as f64 * decay.ln()).exp_m1();
                ((1.0 - decay) / mass).min(1.0)
            }
            Average::Tail { .. } => 1.0 / (self.steps.saturating_sub(self.first) + 1) as f64,
        }
    }

    /// The averages as they are now, in parameter order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.averages
    }

    /// Continues after `steps` steps with these averages.
    ///
    /// # Errors
    /// [`EngineError::Job`] unless they have the parameters' sizes.
    pub fn restore(&mut self, steps: u64, tensors: &[Vec<u8>]) -> Result<()> {
        let fit = || EngineError::Job("the average is not that of the run's parameters".into());
        if tensors.len() != self.averages.len() {
            return Err(fit());
        }
        for (average, bytes) in self.averages.iter_mut().zip(tensors) {
            let width = if average.kind() == Kind::Double { 8 } else { 4 };
            if bytes.len() != average.numel() * width {
                return Err(fit());
            }
            *average = Tensor::f_from_data_size(bytes, &average.size(), average.kind())?;
        }
        self.steps = steps;
        Ok(())
    }
}

/// What the trainer says of a number that is none.
pub(crate) const NOT_AN_AVERAGE: &str =
    "ema_decay must be between 0 and 1, tail_average above 0 and at most 1";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn exponential(decay: f64, parameters: &[&Tensor]) -> Result<IterateAverage> {
        IterateAverage::new(Average::Exponential { decay }, 100, parameters)
    }

    fn floats(value: &Value) -> Vec<f64> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|each| each.as_f64().unwrap())
            .collect()
    }

    /// Against the plain weighted mean of torch.optim's own iterates, which `generate_optimizers.py` takes in float64.
    #[test]
    fn the_average_equals_the_weighted_mean_of_all_iterates() {
        let goldens: Value = serde_json::from_str(include_str!("../tests/data/optimizers.json")).unwrap();
        let iterates = goldens["cases"]["sgd_momentum"]["float64"].as_array().unwrap();
        let cases = goldens["averages"].as_array().unwrap();
        assert!(cases.len() >= 3);
        for case in cases {
            for (kind, tolerance) in [(Kind::Double, 1e-14), (Kind::Float, 5e-7)] {
                let decay = case["decay"].as_f64().unwrap();
                let first = Tensor::from_slice(&floats(&iterates[0])).to_kind(kind);
                let mut average = exponential(decay, &[&first]).unwrap();
                for (iterate, expected) in iterates.iter().zip(case["averages"].as_array().unwrap()) {
                    let iterate = Tensor::from_slice(&floats(iterate)).to_kind(kind);
                    average.update(&[&iterate]).unwrap();
                    let found = Vec::<f64>::try_from(average.tensors()[0].to_kind(Kind::Double)).unwrap();
                    for (found, expected) in found.iter().zip(floats(expected)) {
                        assert!(
                            (found - expected).abs() < tolerance,
                            "{decay} {kind:?}: {found} {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_first_average_is_the_first_iterate_and_a_restored_one_goes_on() {
        let iterates: Vec<Tensor> = (0..6)
            .map(|seed| Tensor::from_slice(&[f64::from(seed).sin(), 2.5]))
            .collect();
        let mut whole = exponential(0.9, &[&iterates[0]]).unwrap();
        whole.update(&[&iterates[0]]).unwrap();
        assert_eq!(whole.tensors()[0], iterates[0]);
        iterates[1..3]
            .iter()
            .for_each(|each| whole.update(&[each]).unwrap());
        let bytes = crate::state::with_bytes(&whole.tensors()[0], <[u8]>::to_vec).unwrap();
        let mut rest = exponential(0.9, &[&iterates[0]]).unwrap();
        rest.restore(3, &[bytes]).unwrap();
        for each in &iterates[3..] {
            whole.update(&[each]).unwrap();
            rest.update(&[each]).unwrap();
        }
        assert_eq!(whole.tensors()[0], rest.tensors()[0]);
        assert!(rest.restore(3, &[vec![0; 15]]).is_err() && rest.restore(3, &[]).is_err());
    }

    #[test]
    fn a_decay_outside_its_range_is_refused() {
        for decay in [0.0, 1.0, -0.5, f64::NAN] {
            assert!(exponential(decay, &[]).is_err(), "{decay}");
        }
        for share in [0.0, 1.1, f64::NAN] {
            assert!(
                IterateAverage::new(Average::Tail { share }, 10, &[]).is_err(),
                "{share}"
            );
        }
    }

    /// Against the plain mean of the last iterates, in float64; a checkpoint in the middle of the tail and one before it.
    #[test]
    fn the_average_of_a_tail_is_the_mean_of_its_iterates() {
        let value = |step: u64| (step as f64).sin();
        let (steps, tail) = (11, Average::Tail { share: 0.4 });
        let first_of_tail = 7;
        for (kind, tolerance) in [(Kind::Double, 1e-15), (Kind::Float, 2e-7)] {
            let iterate = |step| Tensor::from_slice(&[value(step), 2.5]).to_kind(kind);
            let mut average = IterateAverage::new(tail, steps, &[&iterate(1)]).unwrap();
            for step in 1..=steps {
                if step == 5 || step == 9 {
                    let bytes = crate::state::with_bytes(&average.tensors()[0], <[u8]>::to_vec).unwrap();
                    average = IterateAverage::new(tail, steps, &[&iterate(1)]).unwrap();
                    average.restore(step - 1, &[bytes]).unwrap();
                }
                average.update(&[&iterate(step)]).unwrap();
                let from = first_of_tail.min(step);
                let mean = (from..=step).map(value).sum::<f64>() / (step - from + 1) as f64;
                let found = Vec::<f64>::try_from(average.tensors()[0].to_kind(Kind::Double)).unwrap();
                assert!(
                    (found[0] - mean).abs() < tolerance && found[1] == 2.5,
                    "{step} {kind:?}: {found:?} {mean}"
                );
            }
        }
    }
}
