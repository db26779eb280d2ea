//! Which batch size and how many steps, when a scientist leaves them open.
//!
//! A step releases `(Σ clipped + σ·C·N(0, I)) / B`: noise of norm `σ·C·√d / B` on a mean gradient of norm at most
//! `C`. Over `T` steps what the gradients agree on adds up as `T`, independent noise as `√T`; so, up to `√d`, which
//! no plan changes, the **signal-to-noise ratio of a run** is `B·√T / σ`.
//!
//! At a fixed (ε, δ) the noise follows from the plan. In the central limit (Dong, Roth and Su 2019,
//! arXiv 1905.02383; Bu et al. 2019, arXiv 1911.11607) `T` steps at rate `q` cost `μ = q·√T·√(exp(1/σ²) − 1)`.
//! With `w = q·√T` and `n` records the ratio is `n·w·√ln(1 + μ²/w²)`: it rises with `w` alone and levels off at
//! `n·μ`. That is what practice reports: for the same work larger batches are better, and more work helps until
//! the noise multiplier is well above 1 (Ponomareva et al. 2023, "How to DP-fy ML", arXiv 2303.00654; De et al. 2022,
//! arXiv 2204.13650). Hence the rules below: as large a batch as leaves the optimizer enough steps, and no more
//! work than what brings [`WORTHWHILE`] of the limit.
//!
//! # Guarantee
//! None about privacy: a plan is a wish. Its price is the accountant's, over the plan's own event.

use crate::calibrate::{self, CalibrationError};
use crate::event::{DpEvent, NeighboringRelation};

/// What a run should achieve, and what of its plan is fixed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wish {
    /// Records that may be sampled: the declared size.
    pub dataset_size: u64,
    /// What sets the noise.
    pub noise: NoiseWish,
    /// Expected records per step, if that is fixed.
    pub batch_size: Option<u64>,
    /// Steps, if they are fixed; not together with `passes`.
    pub steps: Option<u64>,
    /// Expected uses of each record, if they are fixed.
    pub passes: Option<f64>,
}

/// What sets the noise of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NoiseWish {
    /// The noise that meets this.
    Target {
        /// ε of the run.
        epsilon: f64,
        /// δ of the run.
        delta: f64,
    },
    /// This much: ε follows, and grows with the sampling rate.
    Multiplier(f64),
}

/// A plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    /// Expected records per step.
    pub batch_size: u64,
    /// Steps.
    pub steps: u64,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Two numbers that say the same thing differently.
    #[error("steps and epochs are both given; give one of them, or neither to have them planned")]
    StepsAndPasses,
    /// A number no plan can have.
    #[error("{what}={value}: expected {expected}")]
    OutOfRange {
        /// Which number.
        what: &'static str,
        /// What was given.
        value: f64,
        /// What it must be.
        expected: &'static str,
    },
    /// Noise alone says nothing about how long to train.
    #[error(
        "with a noise multiplier instead of a target epsilon, give steps or epochs: nothing else bounds the work"
    )]
    NothingBoundsTheWork,
    /// The target has no noise.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
}

/// Fills in what is open.
///
/// # Errors
/// [`PlanError`]: numbers out of range or in contradiction, or a target that no noise reaches.
pub fn choose(wish: &Wish) -> Result<Chosen, PlanError> {
    check(wish)?;
    let size = wish.dataset_size;
    let plan = |batch_size: u64, steps: u64| Chosen { batch_size, steps };
    let steps_of = |passes: f64, batch: u64| ((passes * size as f64 / batch as f64).ceil() as u64).max(1);
    Ok(match (wish.batch_size, wish.steps, wish.passes) {
        (Some(batch), Some(steps), _) => plan(batch, steps),
        (Some(batch), None, Some(passes)) => plan(batch, steps_of(passes, batch)),
        (None, None, Some(passes)) => {
            let batch = largest_batch(size, passes, wish.noise);
            plan(batch, steps_of(passes, batch))
        }
        (None, Some(steps), None) => plan(worthwhile_batch(wish, steps)?, steps),
        (None, None, None) => plan(worthwhile_batch(wish, STEPS_WHEN_FREE)?, STEPS_WHEN_FREE),
        (Some(batch), None, None) => {
            let width = worthwhile_width(wish.noise)?.ok_or(PlanError::NothingBoundsTheWork)?;
            let steps = (width * size as f64 / batch as f64).powi(2).ceil();
            let most = (MOST_PASSES * size as f64 / batch as f64).max(STEPS_WHEN_FREE as f64);
            plan(batch, steps.clamp(STEPS_WHEN_FREE as f64, most) as u64)
        }
        (None, Some(_), Some(_)) => return Err(PlanError::StepsAndPasses),
    })
}

/// Norm of the noise in a step's averaged gradient over the norm to which each gradient is clipped:
/// `σ·√d / B`. Below 1 a single step points the right way; runs of many steps live with more.
pub fn noise_to_signal(noise_multiplier: f64, trainable_parameters: u64, batch_size: u64) -> f64 {
    noise_multiplier * (trainable_parameters as f64).sqrt() / batch_size as f64
}

/// The noise multiplier of a plan at a target (ε, δ), by the accountant; without the small shares of the cap
/// ([`crate::cap::EPSILON_SHARE`] of ε at most) and of a loss release.
///
/// # Errors
/// [`CalibrationError`].
pub fn noise_multiplier(
    dataset_size: u64,
    epsilon: f64,
    delta: f64,
    plan: Chosen,
) -> Result<f64, CalibrationError> {
    let sampling_probability = (plan.batch_size as f64 / dataset_size as f64).min(1.0);
    let event = |noise_multiplier| DpEvent::SelfComposed {
        event: Box::new(DpEvent::PoissonSampled {
            sampling_probability,
            event: Box::new(DpEvent::Gaussian { noise_multiplier }),
        }),
        count: plan.steps,
    };
    calibrate::noise_multiplier(epsilon, delta, RELATION, &event)
}

/// The batch to suggest where noise drowns the signal: at the same target and number of steps, the smallest
/// doubling of `plan`'s that brings [`noise_to_signal`] to `bearable`, else the largest there is; with its ratio.
/// `None` when no larger batch fits the records.
///
/// # Errors
/// [`CalibrationError`].
pub fn batch_that_helps(
    dataset_size: u64,
    epsilon: f64,
    delta: f64,
    plan: Chosen,
    trainable_parameters: u64,
    bearable: f64,
) -> Result<Option<(u64, f64)>, CalibrationError> {
    let mut found = None;
    let mut batch_size = plan.batch_size.saturating_mul(2);
    while batch_size <= dataset_size {
        let larger = Chosen { batch_size, ..plan };
        let multiplier = noise_multiplier(dataset_size, epsilon, delta, larger)?;
        let ratio = noise_to_signal(multiplier, trainable_parameters, batch_size);
        found = Some((batch_size, ratio));
        if ratio <= bearable {
            break;
        }
        batch_size = batch_size.saturating_mul(2);
    }
    Ok(found)
}

fn check(wish: &Wish) -> Result<(), PlanError> {
    let refuse = |what, value, expected| {
        Err(PlanError::OutOfRange {
            what,
            value,
            expected,
        })
    };
    let size = wish.dataset_size;
    if size == 0 {
        return refuse("dataset_size", 0.0, "at least one record");
    }
    if let Some(batch) = wish.batch_size.filter(|&batch| batch == 0 || batch > size) {
        return refuse("batch_size", batch as f64, "between 1 and the declared size");
    }
    if wish.steps == Some(0) {
        return refuse("steps", 0.0, "at least one");
    }
    if let Some(passes) = wish
        .passes
        .filter(|passes| !(passes.is_finite() && *passes > 0.0))
    {
        return refuse("nb_epochs", passes, "a positive number");
    }
    if wish.steps.is_some() && wish.passes.is_some() {
        return Err(PlanError::StepsAndPasses);
    }
    Ok(())
}

/// The largest power of two that leaves [`FEWEST_STEPS`]: at equal work a larger batch is never worse. With given
/// noise a larger batch is paid for in ε instead, so that a quarter of the records is the most.
fn largest_batch(size: u64, passes: f64, noise: NoiseWish) -> u64 {
    let most = match noise {
        NoiseWish::Target { .. } => size,
        NoiseWish::Multiplier(_) => size / 4,
    };
    let by_steps = (passes * size as f64 / FEWEST_STEPS as f64) as u64;
    power_of_two_below(most.min(by_steps).max(SMALLEST_BATCH)).min(size)
}

/// The smallest power of two that brings [`WORTHWHILE`] of the limit in so many steps.
fn worthwhile_batch(wish: &Wish, steps: u64) -> Result<u64, PlanError> {
    let size = wish.dataset_size;
    let Some(width) = worthwhile_width(wish.noise)? else {
        return match wish.steps {
            Some(_) => Ok(power_of_two_below((size / 4).max(SMALLEST_BATCH)).min(size)),
            None => Err(PlanError::NothingBoundsTheWork),
        };
    };
    let batch = (width * size as f64 / (steps as f64).sqrt()).ceil() as u64;
    Ok(batch.max(SMALLEST_BATCH).next_power_of_two().min(size))
}

/// `w = q·√T` from which on the ratio is at least [`WORTHWHILE`] of its limit: `√(ln(1 + y)/y) = 0.9` at
/// `y = μ²/w² = 1/2`. `None` for given noise, which no limit belongs to.
fn worthwhile_width(noise: NoiseWish) -> Result<Option<f64>, PlanError> {
    let NoiseWish::Target { epsilon, delta } = noise else {
        return Ok(None);
    };
    let once = |noise_multiplier| DpEvent::Gaussian { noise_multiplier };
    let mu = 1.0 / calibrate::noise_multiplier(epsilon, delta, RELATION, &once)?;
    Ok(Some(mu * std::f64::consts::SQRT_2))
}

fn power_of_two_below(most: u64) -> u64 {
    1 << most.max(1).ilog2()
}

/// Share of the limit of the signal-to-noise ratio that is worth working for: the rest costs without end. It is the
/// central limit's share; by the accountant it is a little less, 0.875 at ε = 8.
pub const WORTHWHILE: f64 = 0.9;
/// With fewer steps an optimizer barely moves, whatever the noise: the least when the passes are given.
pub const FEWEST_STEPS: u64 = 60;
/// Steps when nothing is given: enough for an optimizer's momentum and schedule, few enough to wait for.
pub const STEPS_WHEN_FREE: u64 = 200;
/// Most passes of a plan of ours.
const MOST_PASSES: f64 = 100.0;
const SMALLEST_BATCH: u64 = 16;
const RELATION: NeighboringRelation = NeighboringRelation::AddOrRemoveOne;

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: [(f64, f64); 4] = [(0.5, 1e-6), (1.0, 1e-5), (2.0, 1e-6), (8.0, 1e-6)];
    const SIZES: [u64; 2] = [768, 98304];

    fn open(dataset_size: u64, (epsilon, delta): (f64, f64)) -> Wish {
        Wish {
            dataset_size,
            noise: NoiseWish::Target { epsilon, delta },
            batch_size: None,
            steps: None,
            passes: None,
        }
    }

    /// By the accountant, not by the central limit that the rules are made from.
    fn signal_to_noise(size: u64, (epsilon, delta): (f64, f64), plan: Chosen) -> f64 {
        let multiplier = noise_multiplier(size, epsilon, delta, plan).unwrap();
        plan.batch_size as f64 * (plan.steps as f64).sqrt() / multiplier
    }

    /// Half the batch for twice the steps, and the other way round, where the optimizer has enough steps.
    fn equal_work(plan: Chosen, size: u64, fewest: u64) -> Vec<Chosen> {
        let smaller = Chosen {
            batch_size: plan.batch_size / 2,
            steps: plan.steps * 2,
        };
        let larger = Chosen {
            batch_size: plan.batch_size * 2,
            steps: plan.steps / 2,
        };
        [smaller, larger]
            .into_iter()
            .filter(|plan| {
                plan.batch_size <= size && plan.steps >= fewest && plan.batch_size >= SMALLEST_BATCH
            })
            .collect()
    }

    #[test]
    fn no_plan_of_equal_work_has_a_better_signal_to_noise_ratio() {
        for target in TARGETS {
            for size in SIZES {
                for passes in [None, Some(2.0), Some(10.0), Some(60.0)] {
                    let wish = Wish {
                        passes,
                        ..open(size, target)
                    };
                    let plan = choose(&wish).unwrap();
                    let fewest = if passes.is_some() {
                        FEWEST_STEPS
                    } else {
                        STEPS_WHEN_FREE
                    };
                    let chosen = signal_to_noise(size, target, plan);
                    for neighbour in equal_work(plan, size, fewest) {
                        let other = signal_to_noise(size, target, neighbour);
                        assert!(
                            chosen >= other * 0.9999,
                            "{target:?} n={size} {passes:?}: {plan:?} {chosen} and {neighbour:?} {other}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn an_open_plan_brings_most_of_the_limit_and_half_its_work_does_not() {
        for target in TARGETS {
            let size = 98_304;
            let plan = choose(&open(size, target)).unwrap();
            let everything = Chosen {
                batch_size: size,
                steps: 1,
            };
            let limit = signal_to_noise(size, target, everything);
            let share = |plan: Chosen| signal_to_noise(size, target, plan) / limit;
            assert!(share(plan) >= 0.87, "{target:?}: {plan:?} {}", share(plan));
            let half = Chosen {
                batch_size: plan.batch_size / 2,
                ..plan
            };
            assert!(share(half) < WORTHWHILE, "{target:?}: {half:?} {}", share(half));
        }
    }

    #[test]
    fn what_is_given_is_kept() {
        let wish = Wish {
            batch_size: Some(48),
            steps: Some(7),
            ..open(768, TARGETS[0])
        };
        assert_eq!(
            choose(&wish).unwrap(),
            Chosen {
                batch_size: 48,
                steps: 7
            }
        );
        let wish = Wish {
            batch_size: Some(64),
            passes: Some(10.0),
            ..open(768, TARGETS[0])
        };
        assert_eq!(
            choose(&wish).unwrap(),
            Chosen {
                batch_size: 64,
                steps: 120
            }
        );
        let wish = Wish {
            passes: Some(2.0),
            ..open(6144, TARGETS[2])
        };
        assert_eq!(
            choose(&wish).unwrap(),
            Chosen {
                batch_size: 128,
                steps: 96
            }
        );
        let wish = Wish {
            passes: Some(0.01),
            ..open(16, TARGETS[2])
        };
        assert_eq!(
            choose(&wish).unwrap(),
            Chosen {
                batch_size: 16,
                steps: 1
            }
        );
        let wish = Wish {
            steps: Some(40),
            ..open(768, TARGETS[2])
        };
        assert_eq!(choose(&wish).unwrap().steps, 40);
        let wish = Wish {
            batch_size: Some(32),
            ..open(768, TARGETS[1])
        };
        let plan = choose(&wish).unwrap();
        assert!(plan.batch_size == 32 && plan.steps >= STEPS_WHEN_FREE);
    }

    #[test]
    fn given_noise_samples_at_most_a_quarter_and_needs_to_know_how_long() {
        let wish = Wish {
            noise: NoiseWish::Multiplier(1.0),
            ..open(768, TARGETS[0])
        };
        assert_eq!(choose(&wish), Err(PlanError::NothingBoundsTheWork));
        let stepped = Wish {
            steps: Some(100),
            ..wish
        };
        assert_eq!(
            choose(&stepped).unwrap(),
            Chosen {
                batch_size: 128,
                steps: 100
            }
        );
        let passed = Wish {
            passes: Some(500.0),
            ..wish
        };
        assert_eq!(choose(&passed).unwrap().batch_size, 128);
    }

    #[test]
    fn numbers_no_plan_can_have_are_refused_by_name() {
        let wish = open(768, TARGETS[0]);
        for (wish, named) in [
            (
                Wish {
                    batch_size: Some(769),
                    ..wish
                },
                "batch_size=769",
            ),
            (
                Wish {
                    batch_size: Some(0),
                    ..wish
                },
                "batch_size=0",
            ),
            (
                Wish {
                    steps: Some(0),
                    ..wish
                },
                "steps=0",
            ),
            (
                Wish {
                    passes: Some(f64::NAN),
                    ..wish
                },
                "nb_epochs=NaN",
            ),
            (
                Wish {
                    passes: Some(-1.0),
                    ..wish
                },
                "nb_epochs=-1",
            ),
            (
                Wish {
                    steps: Some(1),
                    passes: Some(1.0),
                    ..wish
                },
                "both given",
            ),
            (
                Wish {
                    batch_size: Some(1),
                    steps: Some(1),
                    passes: Some(1.0),
                    ..wish
                },
                "both given",
            ),
            (open(0, TARGETS[0]), "dataset_size=0"),
            (open(768, (-1.0, 1e-6)), "epsilon -1"),
        ] {
            let error = choose(&wish).unwrap_err().to_string();
            assert!(error.contains(named), "{wish:?}: {error}");
        }
    }

    #[test]
    fn a_larger_batch_is_suggested_with_the_ratio_it_brings() {
        let plan = Chosen {
            batch_size: 16,
            steps: 200,
        };
        let (size, epsilon, delta, parameters) = (6144, 2.0, 1e-6, 1_200_000);
        let before = noise_multiplier(size, epsilon, delta, plan).unwrap();
        let before = noise_to_signal(before, parameters, plan.batch_size);
        let (batch, after) = batch_that_helps(size, epsilon, delta, plan, parameters, 10.0)
            .unwrap()
            .unwrap();
        assert!(
            batch > 16 && after < before / 4.0,
            "{before} at 16, {after} at {batch}"
        );
        let multiplier = noise_multiplier(
            size,
            epsilon,
            delta,
            Chosen {
                batch_size: batch,
                ..plan
            },
        )
        .unwrap();
        assert_eq!(after, noise_to_signal(multiplier, parameters, batch));
        let whole = Chosen {
            batch_size: size,
            steps: 200,
        };
        assert_eq!(
            batch_that_helps(size, epsilon, delta, whole, parameters, 10.0).unwrap(),
            None
        );
    }
}
