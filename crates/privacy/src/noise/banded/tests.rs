use super::*;
use crate::banded::Workload;
use crate::vectors::Baseline;

const SD: f64 = 1_073_741_824.0 * 1.3;

fn matrix(bands: u64) -> BandedMatrix {
    BandedMatrix::square_root(Workload::PREFIX_SUMS, bands).unwrap()
}

/// The outputs of `steps` steps on these sums, step by step.
fn run(noise: &BandedNoise, key: u8, sums: &[Vec<i64>]) -> Vec<Vec<i64>> {
    let stream = NoiseStream::new([key; 32]);
    let mut memory = vec![0; noise.memory() * sums[0].len()];
    let mut outputs = sums.to_vec();
    for (step, sums) in (1..).zip(&mut outputs) {
        let place = NoisePlace {
            step,
            tensor: 3,
            first_index: 0,
        };
        noise
            .add_by(&Baseline, &stream, place, sums, &mut memory)
            .unwrap();
    }
    outputs
}

fn nothing(steps: usize, length: usize) -> Vec<Vec<i64>> {
    vec![vec![0; length]; steps]
}

#[test]
fn one_band_is_independent_noise_bit_for_bit() {
    let outputs = run(&BandedNoise::new(&matrix(1), SD).unwrap(), 1, &nothing(3, 300));
    let stream = NoiseStream::new([1; 32]);
    for (step, output) in (1..).zip(outputs) {
        let mut plain = vec![0; 300];
        stream.add_rounded_gaussian(step, 3, 0, &mut plain, SD).unwrap();
        assert_eq!(output, plain);
    }
}

/// The recursion in exact integers, from independent noise of the same key: 2^k·N_t + Σ ρ_j N_(t−j) = 2^k·s·ξ_t up to
/// half a unit, and round(s·ξ_t) is the independent noise.
#[test]
fn each_step_takes_back_what_the_band_says_to_a_unit() {
    let (bands, steps, length) = (7, 40, 1500);
    let noise = BandedNoise::new(&matrix(bands), SD).unwrap();
    let outputs = run(&noise, 2, &nothing(steps, length));
    let stream = NoiseStream::new([2; 32]);
    let mut off = 0_i128;
    for step in 0..steps {
        let mut plain = vec![0; length];
        stream
            .add_rounded_gaussian(step as u64 + 1, 3, 0, &mut plain, SD)
            .unwrap();
        for index in 0..length {
            let one = i128::from(ONE);
            let taken: i128 = (1..=step.min(bands as usize - 1))
                .map(|back| i128::from(noise.numerators[back - 1]) * i128::from(outputs[step - back][index]))
                .sum();
            let difference = one * (i128::from(outputs[step][index]) - i128::from(plain[index])) + taken;
            // s·ξ is within half a unit of `plain`, and N within half a unit of what is exact.
            assert!(
                difference.abs() <= one,
                "step {step}, value {index}: {difference}"
            );
            off += difference;
        }
    }
    // Rounding is unbiased: each difference has a deviation of about √(2/12) units.
    let values = (steps * length) as f64;
    assert!(
        (off as f64 / ONE as f64).abs() < 5.0 * (values / 6.0).sqrt(),
        "{off}"
    );
}

/// What makes it post-processing: outputs are rounded sums of what was released before, with noise that no sum changes.
#[test]
fn the_noise_does_not_depend_on_the_sums() {
    let noise = BandedNoise::new(&matrix(5), SD).unwrap();
    let sums: Vec<Vec<i64>> = (0..12_i64)
        .map(|step| {
            (0..200)
                .map(|index| (step * 7919 + index * 104_729) % 1_000_003 - 500_000)
                .collect()
        })
        .collect();
    let (with, without) = (run(&noise, 4, &sums), run(&noise, 4, &nothing(12, 200)));
    for ((with, without), sums) in with.iter().zip(&without).zip(&sums) {
        for ((with, without), sum) in with.iter().zip(without).zip(sums) {
            assert_eq!(with - without, *sum);
        }
    }
}

/// The covariance over steps of what is added, against C⁻¹C⁻ᵀ from the matrix' inverse column.
#[test]
fn the_covariance_over_steps_is_that_of_the_inverse() {
    let (bands, steps, length) = (4, 10, 20_000);
    let matrix = matrix(bands);
    let outputs = run(
        &BandedNoise::new(&matrix, SD).unwrap(),
        5,
        &nothing(steps, length),
    );
    let inverse = matrix.inverse_column(steps as u64);
    for one in 0..steps {
        for other in 0..=one {
            let found = outputs[one].iter().zip(&outputs[other]);
            let found: f64 =
                found.map(|(&a, &b)| a as f64 / SD * (b as f64 / SD)).sum::<f64>() / length as f64;
            let expected: f64 = (0..=other)
                .map(|from| inverse[one - from] * inverse[other - from])
                .sum();
            // Each product has a standard deviation of at most √2·1.3.
            assert!(
                (found - expected).abs() < 5.5 * 1.85 / (length as f64).sqrt(),
                "{one} {other}: {found} {expected}"
            );
        }
    }
}

#[test]
fn chunks_in_any_order_give_what_one_call_gives() {
    let noise = BandedNoise::new(&matrix(3), SD).unwrap();
    let whole = run(&noise, 6, &nothing(5, 5000));
    let stream = NoiseStream::new([6; 32]);
    let mut parts = vec![(4096..5000, vec![]), (0..2048, vec![]), (2048..4096, vec![])];
    for (range, memory) in &mut parts {
        memory.resize(2 * range.len(), 0);
    }
    for (step, whole) in (1..).zip(&whole) {
        for (range, memory) in &mut parts {
            let mut sums = vec![0; range.len()];
            let place = NoisePlace {
                step,
                tensor: 3,
                first_index: range.start as u64,
            };
            noise
                .add_by(&Baseline, &stream, place, &mut sums, memory)
                .unwrap();
            assert_eq!(sums, whole[range.clone()]);
        }
    }
}

/// Prefix sums of the noise, which is what a model feels, are as small as the plan said.
#[test]
fn the_noise_of_prefix_sums_is_what_the_plan_said() {
    let (steps, length) = (60, 4000);
    let matrix = matrix(12);
    let noise = BandedNoise::new(&matrix, SD * matrix.column_norm()).unwrap();
    let outputs = run(&noise, 7, &nothing(steps, length));
    let mut prefix = vec![0.0; length];
    let mut squares = 0.0;
    for output in &outputs {
        for (sum, &value) in prefix.iter_mut().zip(output) {
            *sum += value as f64 / SD;
            squares += *sum * *sum;
        }
    }
    let found = (squares / (steps * length) as f64).sqrt();
    let planned = matrix.rms_error(Workload::PREFIX_SUMS, steps as u64);
    assert!((found / planned - 1.0).abs() < 0.03, "{found} {planned}");
    let independent = ((steps as f64 + 1.0) / 2.0).sqrt();
    assert!(planned < 0.75 * independent, "{planned} {independent}");
}

#[test]
fn what_may_not_fit_is_refused_before_anything_is_drawn() {
    for standard_deviation in [0.5, 0.0, f64::NAN, MAX_STANDARD_DEVIATION * 2.0] {
        let refused = BandedNoise::new(&matrix(3), standard_deviation);
        assert!(matches!(refused, Err(NoiseError::StandardDeviation { .. })));
    }
    let refused = BandedNoise::new(&matrix(1024), MAX_STANDARD_DEVIATION);
    assert!(matches!(refused, Err(NoiseError::TooCorrelated { .. })));
    assert!(BandedNoise::new(&matrix(2), MAX_STANDARD_DEVIATION).is_ok());
    let noise = BandedNoise::new(&matrix(3), SD).unwrap();
    let stream = NoiseStream::new([1; 32]);
    let place = NoisePlace {
        step: 1,
        tensor: 0,
        first_index: 0,
    };
    let (mut sums, mut memory) = (vec![5; 10], vec![7; 19]);
    let refused = noise.add_by(&Baseline, &stream, place, &mut sums, &mut memory);
    assert!(matches!(
        refused,
        Err(NoiseError::Memory {
            values: 19,
            wanted: 20
        })
    ));
    assert_eq!((sums, memory), (vec![5; 10], vec![7; 19]));
}
