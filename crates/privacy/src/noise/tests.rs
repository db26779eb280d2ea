use super::*;

const COUNT: usize = 10_000_000;
const SD: f64 = 1_073_741_824.0 * 1.1; // 1.1 noise multipliers on a grid of 2^-30

fn draw(key: u8, step: u64, tensor: u32, first: u64, length: usize, standard_deviation: f64) -> Vec<i64> {
    let mut values = vec![0; length];
    NoiseStream::new([key; 32])
        .add_rounded_gaussian(step, tensor, first, &mut values, standard_deviation)
        .unwrap();
    values
}

fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
}

/// Moments 1 to 4, χ² over 64 cells of equal probability, and the far tail, on ten million values.
#[test]
fn ten_million_values_are_normal_in_moments_cells_and_tails() {
    let scaled: Vec<f64> = draw(1, 0, 0, 0, COUNT, SD)
        .into_iter()
        .map(|value| value as f64 / SD)
        .collect();
    let n = COUNT as f64;
    let moment = |k: i32| scaled.iter().map(|x| x.powi(k)).sum::<f64>() / n;
    // Standard errors of the raw moments of a normal: √((E x^2k − (E x^k)²)/n).
    for (k, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
        let (got, error) = (moment(k), (variance / n).sqrt());
        assert!((got - expected).abs() < 5.0 * error, "moment {k}: {got}");
    }
    let mut cells = [0_u64; 64];
    for &x in &scaled {
        cells[((normal_cdf(x) * 64.0) as usize).min(63)] += 1;
    }
    let expected = n / 64.0;
    let chi_squared: f64 = cells
        .iter()
        .map(|&count| (count as f64 - expected).powi(2) / expected)
        .sum();
    assert!(
        (chi_squared - 63.0).abs() < 5.0 * 126.0_f64.sqrt(),
        "{chi_squared}"
    );
    for threshold in [3.0, 4.0, 5.0] {
        let probability = 2.0 * normal_cdf(-threshold);
        let count = scaled.iter().filter(|x| x.abs() > threshold).count() as f64;
        assert!(
            (count - n * probability).abs() < 5.0 * (n * probability).sqrt() + 1.0,
            "beyond {threshold}: {count}"
        );
    }
}

#[test]
fn a_million_values_pass_kolmogorov_and_smirnov() {
    let mut values = draw(2, 0, 0, 0, 1_000_000, SD);
    values.sort_unstable();
    let n = values.len() as f64;
    let distance = values.iter().enumerate().fold(0.0_f64, |worst, (i, &value)| {
        let probability = normal_cdf(value as f64 / SD);
        worst
            .max((probability - i as f64 / n).abs())
            .max(((i + 1) as f64 / n - probability).abs())
    });
    assert!(
        distance * n.sqrt() < 2.3,
        "Kolmogorov–Smirnov {}",
        distance * n.sqrt()
    ); // p ≈ 5e-5
}

/// On a coarse grid every integer has its own probability: χ² against Φ((k+½)/s) − Φ((k−½)/s).
#[test]
fn on_a_coarse_grid_every_integer_has_its_probability() {
    let sd = 1.5;
    let values = draw(3, 0, 0, 0, 2_000_000, sd);
    let n = values.len() as f64;
    let mut chi_squared = 0.0;
    for k in -7_i64..=7 {
        let probability = normal_cdf((k as f64 + 0.5) / sd) - normal_cdf((k as f64 - 0.5) / sd);
        let count = values.iter().filter(|&&value| value == k).count() as f64;
        chi_squared += (count - n * probability).powi(2) / (n * probability);
    }
    assert!(chi_squared < 15.0 + 5.0 * 30.0_f64.sqrt(), "{chi_squared}");
}

#[test]
fn the_low_bits_of_the_grid_are_uniform() {
    let values = draw(4, 0, 0, 0, 1_000_000, SD);
    let mut cells = [0_u64; 256];
    for value in &values {
        cells[(value & 255) as usize] += 1;
    }
    let expected = values.len() as f64 / 256.0;
    let chi_squared: f64 = cells
        .iter()
        .map(|&count| (count as f64 - expected).powi(2) / expected)
        .sum();
    assert!(
        (chi_squared - 255.0).abs() < 5.0 * 510.0_f64.sqrt(),
        "{chi_squared}"
    );
}

/// Sample correlation of two series in standard errors.
fn correlation(a: impl Iterator<Item = f64>, b: impl Iterator<Item = f64>) -> f64 {
    let (mut n, mut sum) = (0.0, 0.0);
    for (x, y) in a.zip(b) {
        n += 1.0;
        sum += x * y;
    }
    sum / f64::sqrt(n)
}

fn normalised(values: &[i64]) -> impl Iterator<Item = f64> {
    values.iter().map(|&value| value as f64 / SD)
}

#[test]
fn coordinates_steps_tensors_and_keys_are_uncorrelated_in_value_and_size() {
    let n = 1_000_000;
    let base = draw(5, 10, 20, 0, n, SD);
    let others = [
        draw(5, 11, 20, 0, n, SD),
        draw(5, 10, 21, 0, n, SD),
        draw(6, 10, 20, 0, n, SD),
    ];
    for other in &others {
        assert!(correlation(normalised(&base), normalised(other)).abs() < 5.0);
    }
    for lag in [1, 2, 3, 64, 127, 128, 129] {
        assert!(
            correlation(normalised(&base), normalised(&base[lag..])).abs() < 5.0,
            "lag {lag}"
        );
        // Sizes too: the two values of a Box–Muller pair share a radius and must still be independent.
        let size = |x: f64| (x * x - 1.0) / 2.0_f64.sqrt();
        let sizes = correlation(normalised(&base).map(size), normalised(&base[lag..]).map(size));
        assert!(sizes.abs() < 5.0, "sizes at lag {lag}: {sizes}");
    }
}

#[test]
fn pairs_fill_the_plane_evenly() {
    let values = draw(7, 0, 0, 0, 1_000_000, SD);
    let mut cells = [0_u64; 256];
    for pair in values.as_chunks::<2>().0 {
        let cell = |value: i64| ((normal_cdf(value as f64 / SD) * 16.0) as usize).min(15);
        cells[16 * cell(pair[0]) + cell(pair[1])] += 1;
    }
    let expected = 500_000.0 / 256.0;
    let chi_squared: f64 = cells
        .iter()
        .map(|&count| (count as f64 - expected).powi(2) / expected)
        .sum();
    assert!(
        (chi_squared - 255.0).abs() < 5.0 * 510.0_f64.sqrt(),
        "{chi_squared}"
    );
}

#[test]
fn any_split_into_chunks_gives_the_same_noise() {
    let whole = draw(8, 3, 4, 0, 1000, SD);
    for (first, length) in [
        (0, 1),
        (1, 1),
        (1, 999),
        (127, 2),
        (128, 128),
        (333, 500),
        (999, 1),
    ] {
        assert_eq!(
            draw(8, 3, 4, first as u64, length, SD),
            whole[first..first + length]
        );
    }
}

#[test]
fn the_last_values_of_a_stream_can_be_drawn_and_no_more() {
    assert_eq!(draw(8, 0, 0, MAX_VALUES - 3, 3, SD).len(), 3);
    let mut values = [1_i64; 2];
    let stream = NoiseStream::new([0; 32]);
    for first in [MAX_VALUES - 1, MAX_VALUES, u64::MAX] {
        let refused = stream.add_rounded_gaussian(0, 0, first, &mut values, 1.0);
        assert!(matches!(refused, Err(NoiseError::TooManyValues { .. })));
    }
    assert_eq!(values, [1, 1]);
}

#[test]
fn noise_is_added_to_what_is_there() {
    let noise = draw(9, 0, 0, 0, 4, SD);
    let mut sums = [5, -7, 1 << 60, 0];
    NoiseStream::new([9; 32])
        .add_rounded_gaussian(0, 0, 0, &mut sums, SD)
        .unwrap();
    assert_eq!(
        sums,
        [5 + noise[0], -7 + noise[1], (1 << 60) + noise[2], noise[3]]
    );
}

#[test]
fn sums_at_the_end_of_the_range_saturate_instead_of_wrapping() {
    let noise = draw(9, 0, 0, 0, 2, SD);
    let towards = |value: i64| if value > 0 { i64::MAX } else { i64::MIN };
    let mut sums = [towards(noise[0]), towards(noise[1])];
    NoiseStream::new([9; 32])
        .add_rounded_gaussian(0, 0, 0, &mut sums, SD)
        .unwrap();
    assert_eq!(sums, [towards(noise[0]), towards(noise[1])]);
}

#[test]
fn one_value_is_the_first_of_its_tensor() {
    let one = NoiseStream::new([9; 32]).rounded_gaussian(1, 2, SD).unwrap();
    assert_eq!(one, draw(9, 1, 2, 0, 1, SD)[0]);
}

#[test]
fn standard_deviations_that_mean_nothing_are_refused() {
    let stream = NoiseStream::new([0; 32]);
    let mut values = [1_i64; 2];
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, MAX_STANDARD_DEVIATION * 1.01] {
        let refused = stream.add_rounded_gaussian(0, 0, 0, &mut values, bad);
        assert!(matches!(refused, Err(NoiseError::StandardDeviation { .. })));
    }
    assert_eq!(values, [1, 1]);
}

#[test]
fn a_vanishing_standard_deviation_adds_nothing() {
    assert!(draw(1, 0, 0, 0, 100, 1e-9).iter().all(|&value| value == 0));
}

#[test]
fn the_approximation_is_far_below_any_delta() {
    // All parameters of GPT-2 small for ten thousand steps; more than anyone can; the coarsest noise of all.
    for (values, epsilon, standard_deviation) in [
        (1.24e8 * 1e4, 8.0, SD),
        (2.0_f64.powi(60), 20.0, SD),
        (2.0_f64.powi(60), 1.0, MAX_STANDARD_DEVIATION),
    ] {
        let eta = values * total_variation_per_value(standard_deviation) * (1.0 + f64::exp(epsilon));
        assert!(eta < 1e-15, "{values} values at epsilon {epsilon}: {eta}");
    }
}

/// Golden: an independent ChaCha20 and 300-bit Box–Muller in Python (pure Python and mpmath 1.3) gave these.
/// Also pins the noise: a change of stream layout would break runs replayed for tests.
#[test]
fn the_values_of_a_known_key_are_those_of_an_independent_implementation() {
    assert_eq!(
        draw(42, 1, 2, 0, 4, SD),
        [-547_595_765, 37_436_010, -398_182_570, -1_437_139_925]
    );
}
