//! Against torch.optim's own numbers (tests/data/generate_optimizers.py), and that the noise is there.

use super::*;
use bastionai_wire::Schedule;
use serde_json::Value;
use tch::Device;

/// So small that every rounded noise value is zero.
const NO_NOISE: f64 = 1e-9;

fn goldens() -> Value {
    serde_json::from_str(include_str!("../../tests/data/optimizers.json")).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|each| each.as_f64().unwrap())
        .collect()
}

fn optimizer(case: &Value) -> Optimizer {
    let number = |name: &str| case["numbers"][name].as_f64().unwrap();
    match case["kind"].as_str().unwrap() {
        "Sgd" => Optimizer::Sgd {
            lr: number("lr"),
            momentum: number("momentum"),
            dampening: number("dampening"),
            weight_decay: number("weight_decay"),
            nesterov: case["numbers"]["nesterov"].as_bool().unwrap(),
        },
        "AdamW" => Optimizer::AdamW(Adam {
            lr: number("lr"),
            beta1: number("beta1"),
            beta2: number("beta2"),
            eps: number("eps"),
            weight_decay: number("weight_decay"),
        }),
        _ => Optimizer::Adam(Adam {
            lr: number("lr"),
            beta1: number("beta1"),
            beta2: number("beta2"),
            eps: number("eps"),
            weight_decay: number("weight_decay"),
        }),
    }
}

/// Largest relative difference from the golden trajectory.
fn worst_difference(case: &Value, goldens: &Value, kind: Kind) -> f64 {
    let name = if kind == Kind::Double {
        "float64"
    } else {
        "float32"
    };
    let mut weight = Tensor::from_slice(&floats(&goldens["start"])).to_kind(kind);
    let steps = case[name].as_array().unwrap().len() as u64;
    let schedule = serde_json::from_value(case["schedule"].clone()).unwrap();
    let rates = LearningRates::new(schedule, steps).unwrap();
    let mut state = OptimizerState::new(optimizer(case), rates, &[&weight]).unwrap();
    let mean = NoisyMean {
        standard_deviation: NO_NOISE,
        scale: goldens["scale"].as_f64().unwrap(),
    };
    let stream = NoiseStream::new([1; 32]);
    let mut worst = 0.0f64;
    for (step, expected) in case[name].as_array().unwrap().iter().enumerate() {
        let sums = vec![
            floats(&goldens["units"][step])
                .iter()
                .map(|&units| units as i64)
                .collect::<Vec<_>>(),
        ];
        state
            .step(&mut [&mut weight], Sums(sums), &stream, step as u64 + 1, mean, 2)
            .unwrap();
        let actual = Vec::<f64>::try_from(weight.to_kind(Kind::Double)).unwrap();
        for (actual, expected) in actual.iter().zip(floats(expected)) {
            worst = worst.max((actual - expected).abs() / expected.abs().max(1.0));
        }
    }
    worst
}

#[test]
fn updates_equal_torch_optim_to_rounding() {
    let goldens = goldens();
    for (name, case) in goldens["cases"].as_object().unwrap() {
        // Adam divides by 1 − β2^t, about 1e-3 at first: 1e-16 becomes 1e-13.
        for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 1e-6)] {
            let worst = worst_difference(case, &goldens, kind);
            assert!(worst < tolerance, "{name} in {kind:?}: {worst:e}");
        }
    }
}

/// Against NumPy. The sums are made such that with the noise that the step adds they are the goldens' units.
#[test]
fn moments_are_corrected_for_the_noise_as_the_paper_has_it() {
    let goldens = goldens();
    let scale = goldens["scale"].as_f64().unwrap();
    let mean = NoisyMean {
        standard_deviation: 1.0 / scale,
        scale,
    };
    let stream = NoiseStream::new([1; 32]);
    let mut floors = 0;
    for case in goldens["corrected"].as_array().unwrap() {
        let Optimizer::Adam(adam) =
            optimizer(&serde_json::json!({"kind": "Adam", "numbers": case["numbers"]}))
        else {
            panic!("{case}")
        };
        let corrected = Optimizer::NoiseCorrected {
            adam,
            decoupled: case["decoupled"].as_bool().unwrap(),
            floor: case["floor"].as_f64().unwrap(),
        };
        let bands: Vec<u32> = floats(&case["bands"]).iter().map(|&each| each as u32).collect();
        let matrix = BandedMatrix::from_numerators(bands).unwrap();
        let noise = BandedNoise::new(&matrix, mean.standard_deviation).unwrap();
        for (kind, name, tolerance) in [(Kind::Double, "float64", 1e-12), (Kind::Float, "float32", 1e-5)] {
            let mut weight = Tensor::from_slice(&floats(&goldens["start"])).to_kind(kind);
            let mut state = OptimizerState::new(corrected, constant(), &[&weight]).unwrap();
            if matrix.bands() > 1 {
                state
                    .correlate(&matrix, mean.standard_deviation, &[&weight])
                    .unwrap();
            }
            let mut memory = vec![0; noise.memory() * weight.numel()];
            for (step, expected) in (1..).zip(case[name].as_array().unwrap()) {
                let mut added = vec![0; weight.numel()];
                let place = NoisePlace {
                    step,
                    tensor: 0,
                    first_index: 0,
                };
                noise
                    .add_by(&Widest, &stream, place, &mut added, &mut memory)
                    .unwrap();
                let units = floats(&goldens["units"][step as usize - 1]);
                let sums = units
                    .iter()
                    .zip(added)
                    .map(|(&units, added)| units as i64 - added);
                let sums = Sums(vec![sums.collect()]);
                state
                    .step(&mut [&mut weight], sums, &stream, step, mean, 1)
                    .unwrap();
                let actual = Vec::<f64>::try_from(weight.to_kind(Kind::Double)).unwrap();
                for (actual, expected) in actual.iter().zip(floats(expected)) {
                    assert!(
                        (actual - expected).abs() < tolerance * expected.abs().max(1.0),
                        "{step} {kind:?}: {actual} {expected}"
                    );
                    floors += 1;
                }
            }
        }
    }
    assert_eq!(floors, 2 * 2 * 5 * 6);
}

/// The released noise of a whole run, over all pairs of its steps, against C⁻¹C⁻ᵀ of a dense inverse; and that it is one
/// pass whatever the threads.
#[test]
fn correlated_noise_has_the_covariance_of_the_inverse_matrix() {
    let (size, steps, deviation) = (40_000_i64, 6_usize, 1e6);
    let coefficients = [0.5, 0.375];
    let numerators = coefficients.iter().map(|each| (each * 4096.0) as u32).collect();
    let matrix = BandedMatrix::from_numerators(numerators).unwrap();
    let mean = NoisyMean {
        standard_deviation: deviation,
        scale: 1.0 / deviation,
    };
    let run = |threads| {
        let mut weight = Tensor::zeros([size], (Kind::Double, Device::Cpu));
        let mut state = OptimizerState::new(sgd(1.0), constant(), &[&weight]).unwrap();
        state.correlate(&matrix, deviation, &[&weight]).unwrap();
        let stream = NoiseStream::new([9; 32]);
        let mut noise = Vec::new();
        for step in 1..=steps as u64 {
            let before = weight.copy();
            let sums = Sums(vec![vec![0; size as usize]]);
            state
                .step(&mut [&mut weight], sums, &stream, step, mean, threads)
                .unwrap();
            noise.push(before - &weight);
        }
        noise
    };
    let noise = run(1);
    for (one, other) in noise.iter().zip(run(3)) {
        assert_eq!(*one, other);
    }
    let mut inverse = [[0.0; 6]; 6];
    #[allow(clippy::needless_range_loop, reason = "columns of a matrix")]
    for column in 0..steps {
        for row in column..steps {
            let earlier = coefficients
                .iter()
                .enumerate()
                .filter(|(back, _)| row > column + back);
            let rest: f64 = earlier
                .map(|(back, each)| each * inverse[row - back - 1][column])
                .sum();
            inverse[row][column] = f64::from(u8::from(row == column)) - rest;
        }
    }
    for one in 0..steps {
        for other in 0..=one {
            let found = f64::try_from((&noise[one] * &noise[other]).mean(Kind::Double)).unwrap();
            let expected: f64 = (0..=other)
                .map(|from| inverse[one][from] * inverse[other][from])
                .sum();
            // A product has a standard deviation of at most √2·1.3.
            assert!(
                (found - expected).abs() < 5.0 * 1.85 / (size as f64).sqrt(),
                "{one} {other}: {found} {expected}"
            );
        }
    }
}

fn sgd(lr: f64) -> Optimizer {
    Optimizer::Sgd {
        lr,
        momentum: 0.0,
        dampening: 0.0,
        weight_decay: 0.0,
        nesterov: false,
    }
}

fn constant() -> LearningRates {
    LearningRates::new(Schedule::default(), 1).unwrap()
}

/// Weights after one step of learning rate 1 from zero: minus the noisy mean.
fn one_noisy_step(
    size: i64,
    sum: i64,
    standard_deviation: f64,
    scale: f64,
    step: u64,
    threads: usize,
) -> Vec<f64> {
    let mut weight = Tensor::zeros([size], (Kind::Double, Device::Cpu));
    let mut state = OptimizerState::new(sgd(1.0), constant(), &[&weight]).unwrap();
    let sums = Sums(vec![vec![sum; size as usize]]);
    let mean = NoisyMean {
        standard_deviation,
        scale,
    };
    state
        .step(
            &mut [&mut weight],
            sums,
            &NoiseStream::new([9; 32]),
            step,
            mean,
            threads,
        )
        .unwrap();
    Vec::<f64>::try_from(&weight).unwrap()
}

#[test]
fn the_update_carries_noise_of_exactly_the_standard_deviation_asked_for() {
    let size = 200_000;
    let weights = one_noisy_step(size, 0, 1e6, 1e-3, 1, 2);
    let mean = weights.iter().sum::<f64>() / size as f64;
    let variance = weights.iter().map(|weight| (weight - mean).powi(2)).sum::<f64>() / size as f64;
    // Standard errors: mean 1e3/sqrt(n) = 2.2; standard deviation 1e3/sqrt(2n) = 1.6.
    assert!(mean.abs() < 12.0, "{mean}");
    assert!((variance.sqrt() - 1e3).abs() < 9.0, "{}", variance.sqrt());
}

#[test]
fn the_divisor_is_the_public_one() {
    let weights = one_noisy_step(3, 1 << 20, NO_NOISE, 2f64.powi(-20) / 8.0, 1, 1);
    assert_eq!(weights, [-0.125; 3]);
}

#[test]
fn noise_differs_from_step_to_step_and_not_with_the_number_of_threads() {
    let size = 100_000;
    let first = one_noisy_step(size, 0, 1e6, 1.0, 1, 1);
    assert_eq!(first, one_noisy_step(size, 0, 1e6, 1.0, 1, 3));
    let second = one_noisy_step(size, 0, 1e6, 1.0, 2, 1);
    let correlation = first.iter().zip(&second).map(|(l, r)| l * r).sum::<f64>() / (size as f64 * 1e12);
    assert!(correlation.abs() < 0.02, "{correlation}");
}

#[test]
fn parameters_get_noise_of_their_own() {
    let mut weights: Vec<Tensor> = (0..2)
        .map(|_| Tensor::zeros([50_000], (Kind::Float, Device::Cpu)))
        .collect();
    let mut state = OptimizerState::new(sgd(1.0), constant(), &weights.iter().collect::<Vec<_>>()).unwrap();
    let sums = Sums(vec![vec![0; 50_000]; 2]);
    let mean = NoisyMean {
        standard_deviation: 1e6,
        scale: 1e-6,
    };
    let mut all: Vec<&mut Tensor> = weights.iter_mut().collect();
    state
        .step(&mut all, sums, &NoiseStream::new([9; 32]), 1, mean, 2)
        .unwrap();
    let product = f64::try_from((&weights[0] * &weights[1]).mean(Kind::Double)).unwrap();
    assert!(product.abs() < 0.03, "{product}");
}

#[test]
fn hyper_parameters_torch_refuses_are_refused() {
    let weight = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    let nesterov = Optimizer::Sgd {
        lr: 0.1,
        momentum: 0.0,
        dampening: 0.0,
        weight_decay: 0.0,
        nesterov: true,
    };
    let beta = Optimizer::AdamW(Adam {
        lr: 0.1,
        beta1: 1.0,
        beta2: 0.9,
        eps: 1e-8,
        weight_decay: 0.0,
    });
    let eps = Optimizer::Adam(Adam {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.9,
        eps: -1.0,
        weight_decay: 0.0,
    });
    for wrong in [sgd(-1.0), sgd(f64::NAN), nesterov, beta, eps] {
        assert!(matches!(
            OptimizerState::new(wrong, constant(), &[&weight]),
            Err(EngineError::Job(_))
        ));
    }
}
