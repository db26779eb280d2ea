use super::*;
use crate::event::NeighboringRelation::AddOrRemoveOne;
use crate::joint::{joint_noise_multiplier, split_noise_multiplier};
use crate::truncation;
use proptest::prelude::*;

fn gaussian(noise_multiplier: f64) -> DpEvent {
    DpEvent::Gaussian { noise_multiplier }
}

fn sampled(sampling_probability: f64, event: DpEvent) -> DpEvent {
    DpEvent::PoissonSampled {
        sampling_probability,
        event: Box::new(event),
    }
}

fn repeated(event: DpEvent, count: u64) -> DpEvent {
    DpEvent::SelfComposed {
        event: Box::new(event),
        count,
    }
}

fn steps(noise_multiplier: f64, sampling_probability: f64, count: u64) -> DpEvent {
    repeated(sampled(sampling_probability, gaussian(noise_multiplier)), count)
}

fn truncated(noise_multiplier: f64, dataset_size: u64, batch_size: f64, cap: u64, count: u64) -> DpEvent {
    let event = DpEvent::TruncatedSubsampledGaussian {
        dataset_size,
        sampling_probability: batch_size / dataset_size as f64,
        truncated_batch_size: cap,
        noise_multiplier,
    };
    repeated(event, count)
}

fn price(event: &DpEvent, delta: f64) -> f64 {
    epsilon(event, AddOrRemoveOne, delta).unwrap()
}

fn close(a: f64, b: f64, relative: f64) -> bool {
    (a - b).abs() <= relative * a.abs().max(b.abs()) + 1e-9
}

#[test]
fn nothing_released_costs_nothing() {
    let free = [
        DpEvent::NoOp,
        DpEvent::Composed { events: vec![] },
        steps(1.0, 0.5, 0),
        steps(1.0, 0.0, 1000),
        sampled(0.5, DpEvent::NoOp),
        repeated(DpEvent::NonPrivate, 0),
    ];
    for event in free {
        assert_eq!(price(&event, 1e-5), 0.0, "{event:?}");
        assert_eq!(delta(&event, AddOrRemoveOne, 0.0).unwrap(), 0.0, "{event:?}");
    }
}

#[test]
fn an_unprotected_release_costs_everything_wherever_it_hides() {
    let bare = [
        DpEvent::NonPrivate,
        sampled(0.01, DpEvent::NonPrivate),
        DpEvent::Composed {
            events: vec![gaussian(10.0), repeated(DpEvent::NonPrivate, 3)],
        },
    ];
    for event in bare {
        assert_eq!(price(&event, 1e-5), f64::INFINITY, "{event:?}");
        assert_eq!(delta(&event, AddOrRemoveOne, 10.0).unwrap(), 1.0, "{event:?}");
    }
}

/// Balle and Wang 2018: σ = 1 gives ε = 4.3772 at δ = 1e-5 (mpmath: 4.37718…).
#[test]
fn the_plain_gaussian_has_its_analytic_price() {
    let ours = price(&gaussian(1.0), 1e-5);
    let reached = closed_form::Gaussian::new(1.0).delta(ours);
    assert!((ours - 4.377_2).abs() < 1e-4, "{ours}");
    assert!(reached <= 1e-5 && reached > 1e-5 * (1.0 - 1e-8), "{reached}");
}

#[test]
fn n_gaussians_are_one_with_noise_smaller_by_root_n() {
    for delta in [1e-9, 1e-5, 1e-2] {
        let (many, one) = (
            price(&repeated(gaussian(10.0), 100), delta),
            price(&gaussian(1.0), delta),
        );
        assert!(close(many, one, 1e-10));
        let composed = DpEvent::Composed {
            events: vec![gaussian(2.0_f64.sqrt()), gaussian(2.0_f64.sqrt())],
        };
        assert!(close(price(&composed, delta), one, 1e-10));
    }
}

/// The FFT must agree with the closed form where both apply: many plain Gaussians beside a step so well
/// hidden that it costs nothing.
#[test]
fn the_transform_agrees_with_the_closed_form() {
    for (noise_multiplier, count, delta) in [(10.0, 30, 1e-5), (5.0, 1000, 1e-9), (100.0, 10, 1e-6)] {
        let plain = repeated(gaussian(noise_multiplier), count);
        let mixed = DpEvent::Composed {
            events: vec![plain.clone(), steps(1000.0, 1e-6, 1)],
        };
        let (ours, exact) = (price(&mixed, delta), price(&plain, delta));
        assert!(ours >= exact && close(ours, exact, 1e-3), "{ours} for {exact}");
    }
}

/// Brute force: the losses of two and three steps enumerated on a fine quadrature of the outputs.
#[test]
fn two_and_three_steps_agree_with_enumeration() {
    let (sigma, q, points) = (1.2, 0.1, 400_i32);
    let width = 16.0 * sigma / f64::from(points);
    let density = |x: f64, center: f64| (-0.5 * ((x - center) / sigma).powi(2)).exp();
    let outputs = (0..=points).map(|i| -7.5 * sigma + width * f64::from(i));
    let raw: Vec<(f64, f64)> = outputs
        .map(|x| ((1.0 - q) * density(x, 0.0) + q * density(x, 1.0), density(x, 0.0)))
        .collect();
    let total: f64 = raw.iter().map(|(p, _)| p).sum();
    let atoms: Vec<(f64, f64)> = raw
        .iter()
        .map(|(p, other)| (p / total, (p / other).ln()))
        .collect();
    let epsilon = 0.5;
    let stick = |losses: &mut dyn Iterator<Item = (f64, f64)>| -> f64 {
        losses
            .map(|(p, loss)| p * (1.0 - (epsilon - loss).exp()).max(0.0))
            .sum()
    };
    let two = stick(
        &mut atoms
            .iter()
            .flat_map(|&(p, l)| atoms.iter().map(move |&(r, m)| (p * r, l + m))),
    );
    let coarse: Vec<(f64, f64)> = atoms.iter().copied().filter(|&(p, _)| p > 1e-9).collect();
    let pairs: Vec<(f64, f64)> = coarse
        .iter()
        .flat_map(|&(p, l)| coarse.iter().map(move |&(r, m)| (p * r, l + m)))
        .collect();
    let three = stick(
        &mut pairs
            .iter()
            .flat_map(|&(p, l)| coarse.iter().map(move |&(r, m)| (p * r, l + m))),
    );
    for (count, truth) in [(2, two), (3, three)] {
        let ours = delta(&steps(sigma, q, count), AddOrRemoveOne, epsilon).unwrap();
        assert!(
            ours >= truth * (1.0 - 2e-3) && close(ours, truth, 2e-3),
            "{count} steps: {ours} for {truth}"
        );
    }
}

#[test]
fn equal_steps_cost_the_same_however_they_are_grouped() {
    let flat = price(&steps(1.0, 0.01, 2000), 1e-5);
    let nested = repeated(repeated(sampled(0.01, gaussian(1.0)), 20), 100);
    let listed = DpEvent::Composed {
        events: vec![steps(1.0, 0.01, 500), steps(1.0, 0.01, 1500)],
    };
    assert_eq!(price(&nested, 1e-5), flat);
    assert_eq!(price(&listed, 1e-5), flat);
}

fn laplace(noise_multiplier: f64) -> DpEvent {
    DpEvent::Laplace { noise_multiplier }
}

/// Outputs left of 0, right of 1 and in many cells between, as (probability, loss) of removal: a cell's loss is that of its middle.
fn laplace_atoms(scale: f64, q: f64) -> Vec<(f64, f64)> {
    let tail = |x: f64| {
        if x < 0.0 {
            1.0 - 0.5 * (x / scale).exp()
        } else {
            0.5 * (-x / scale).exp()
        }
    };
    let cells = 400;
    let edge = |cell: i32| f64::from(cell) / f64::from(cells);
    let outputs = (0..cells).map(|cell| (edge(cell), edge(cell + 1)));
    let ends = [(f64::NEG_INFINITY, 0.0), (1.0, f64::INFINITY)];
    outputs
        .chain(ends)
        .map(|(from, to)| {
            let (plain, shifted) = (tail(from) - tail(to), tail(from - 1.0) - tail(to - 1.0));
            let with = (1.0 - q) * plain + q * shifted;
            (with, (with / plain).ln())
        })
        .collect()
}

/// The losses of two releases enumerated, in both directions.
#[test]
fn two_laplace_releases_agree_with_enumeration() {
    for (scale, q) in [(1.0, 1.0), (2.0, 0.3), (0.4, 0.1)] {
        let remove = laplace_atoms(scale, q);
        let add: Vec<(f64, f64)> = remove
            .iter()
            .map(|&(p, loss)| (p * (-loss).exp(), -loss))
            .collect();
        let event = repeated(sampled(q, laplace(scale)), 2);
        for epsilon in [0.05, 0.3, 0.8, 1.7] {
            let stick = |atoms: &[(f64, f64)]| -> f64 {
                let pair =
                    |a: &(f64, f64), b: &(f64, f64)| a.0 * b.0 * (1.0 - (epsilon - a.1 - b.1).exp()).max(0.0);
                atoms
                    .iter()
                    .map(|a| atoms.iter().map(|b| pair(a, b)).sum::<f64>())
                    .sum()
            };
            let truth = stick(&remove).max(stick(&add));
            let ours = delta(&event, AddOrRemoveOne, epsilon).unwrap();
            assert!(
                (ours - truth).abs() < 1e-4 * truth + 1e-6,
                "{scale} {q} {epsilon}: {ours} for {truth}"
            );
        }
    }
}

/// Whatever δ: no more than the largest losses added up.
#[test]
fn laplace_releases_are_pure() {
    for (scale, q, count) in [(1.0, 1.0, 1_u64), (1.0, 1.0, 2), (3.0, 0.2, 5), (0.05, 1.0, 3)] {
        let event = repeated(sampled(q, laplace(scale)), count);
        let pure = count as f64 * (1.0 - q + q * (1.0 / scale).exp()).ln();
        let ours = price(&event, 1e-12);
        assert!(
            ours <= pure * (1.0 + 1e-11) && ours > pure * 0.99,
            "{scale} {q} {count}: {ours} of {pure}"
        );
        assert!(delta(&event, AddOrRemoveOne, pure * (1.0 + 1e-9)).unwrap() < 1e-11);
    }
}

#[test]
fn histograms_are_one_gaussian_on_their_counts() {
    let histograms = |histograms, standard_deviation| DpEvent::Histograms {
        histograms,
        standard_deviation,
    };
    let (four, one) = (price(&histograms(4, 6.0), 1e-6), price(&gaussian(3.0), 1e-6));
    assert!(close(four, one, 1e-12), "{four} {one}");
    assert_eq!(price(&histograms(0, 6.0), 1e-6), 0.0);
    assert!(matches!(
        epsilon(&histograms(2, 0.0), AddOrRemoveOne, 1e-6),
        Err(AccountingError::NoiseMultiplier { .. })
    ));
}

#[test]
fn accountants_are_named_and_agree_on_what_they_bound() {
    for accountant in [Accountant::Pld, Accountant::Rdp] {
        assert_eq!(accountant.name().parse(), Ok(accountant));
        let cost = accountant.epsilon(&gaussian(2.0), AddOrRemoveOne, 1e-5).unwrap();
        assert!(accountant.delta(&gaussian(2.0), AddOrRemoveOne, cost).unwrap() <= 1e-5 * (1.0 + 1e-9));
    }
    let unknown = "prv".parse::<Accountant>().unwrap_err();
    assert!(unknown.to_string().contains("`prv`"));
}

/// dp.md rule 6: gradient and loss of one sample are one subsampled Gaussian.
#[test]
fn gradient_and_loss_of_one_sample_are_one_mechanism() {
    let (gradient, loss) = split_noise_multiplier(1.1, 0.05).unwrap();
    let pair = DpEvent::Composed {
        events: vec![gaussian(gradient), gaussian(loss)],
    };
    let together = price(&repeated(sampled(0.02, pair), 1000), 1e-6);
    let joint = joint_noise_multiplier(gradient, loss).unwrap();
    assert!(close(together, price(&steps(joint, 0.02, 1000), 1e-6), 1e-6));
    let apart = DpEvent::Composed {
        events: vec![steps(gradient, 0.02, 1000), steps(loss, 0.02, 1000)],
    };
    // Two mechanisms with samples of their own would cost less: pricing the shared sample so would be wrong.
    assert!(together > price(&apart, 1e-6) * 1.001);
}

/// (by exchange, by total variation), each by itself.
fn both_prices(event: &DpEvent, delta: f64) -> (f64, f64) {
    let mechanism = Mechanism::parse(event, AddOrRemoveOne, Cut::TotalVariation).unwrap();
    let curve = Curve::for_delta(&mechanism, delta).unwrap();
    let total_variation = epsilon_with_truncation(&mechanism, &curve, delta).unwrap();
    (
        epsilon_by_exchange(event, AddOrRemoveOne, delta).unwrap(),
        total_variation,
    )
}

/// But for what the grid cuts off. The proof is in `truncation.rs`; what total variation charged before must still be
/// covered, to the last digit.
#[test]
fn an_exchange_never_costs_more_than_total_variation() {
    let mut felt = 0;
    for (n, batch, sigma, count, delta) in [
        (65_536, 512.0, 1.0, 1000, 1e-6),
        (65_536, 512.0, 0.5, 200, 1e-5),
        (4096, 32.0, 0.8, 300, 1e-6),
        (4096, 32.0, 4.0, 5000, 1e-5),
        (16_384, 1024.0, 10.0, 10_000, 1e-9),
        (512, 128.0, 3.0, 50, 1e-5),
        (192, 96.0, 1.5, 2, 1e-4),
        (192, 96.0, 0.4, 1, 1e-3),
    ] {
        let q: f64 = batch / n as f64;
        let uncut = price(&steps(sigma, q, count), delta);
        for deviations in [3.0, 4.0, 5.0, 5.5, 6.0, 7.0] {
            let cap = ((batch + deviations * (batch * (1.0 - q)).sqrt()) as u64).min(n);
            let event = truncated(sigma, n, batch, cap, count);
            let (exchange, total_variation) = both_prices(&event, delta);
            let label = format!("n {n} B {batch} sigma {sigma} T {count} cap {cap}");
            assert!(
                exchange <= total_variation * (1.0 + 2e-4) + 1e-9,
                "{label}: {exchange} and {total_variation}"
            );
            let ours = price(&event, delta);
            assert!(ours <= total_variation, "{label}: {ours} above {total_variation}");
            assert!(ours >= uncut * (1.0 - 1e-4), "{label}: {ours} below {uncut}");
            felt += u32::from(total_variation > 2.0 * exchange);
        }
    }
    assert!(felt > 10, "total variation was as good but for {felt} caps");
}

#[test]
fn a_cap_below_the_mean_costs_what_half_the_noise_does() {
    for cap in [0, 1, 200, 511] {
        let reckless = price(&truncated(1.0, 65_536, 512.0, cap, 5000), 1e-6);
        assert_eq!(
            reckless,
            price(&steps(0.5, 512.0 / 65_536.0, 5000), 1e-6),
            "cap {cap}"
        );
    }
    let whole = price(&truncated(2.0, 100, 100.0, 99, 10), 1e-6);
    assert_eq!(whole, price(&repeated(gaussian(1.0), 10), 1e-6));
    assert_eq!(
        price(&truncated(2.0, 100, 100.0, 100, 10), 1e-6),
        price(&repeated(gaussian(2.0), 10), 1e-6)
    );
}

#[test]
fn room_for_everybody_costs_nothing() {
    for count in [1, 500] {
        let uncut = price(&steps(2.0, 0.0625, count), 1e-5);
        assert_eq!(price(&truncated(2.0, 4096, 256.0, 4096, count), 1e-5), uncut);
        let (exchange, total_variation) = both_prices(&truncated(2.0, 4096, 256.0, 4096, count), 1e-5);
        assert_eq!((exchange, total_variation), (uncut, uncut));
    }
}

#[test]
fn a_smaller_cap_and_a_larger_dataset_never_cost_less() {
    let at = |n: u64, cap| {
        let event = DpEvent::TruncatedSubsampledGaussian {
            dataset_size: n,
            sampling_probability: 0.0625,
            truncated_batch_size: cap,
            noise_multiplier: 1.0,
        };
        price(&repeated(event, 300), 1e-6)
    };
    let caps: Vec<f64> = (300..=360).step_by(12).map(|cap| at(4096, cap)).collect();
    assert!(
        caps.windows(2).all(|pair| pair[0] >= pair[1] * (1.0 - 1e-5)),
        "{caps:?}"
    );
    let sizes: Vec<f64> = [3500, 4000, 4096, 4200].map(|n| at(n, 320)).to_vec();
    assert!(
        sizes.windows(2).all(|pair| pair[1] >= pair[0] * (1.0 - 1e-5)),
        "{sizes:?}"
    );
}

#[test]
fn the_price_of_delta_is_the_smaller_of_both_bounds() {
    let q = 256.0 / 4096.0;
    let without = delta(&steps(2.0, q, 500), AddOrRemoveOne, 5.0).unwrap();
    for cap in [320, 340, 360, 400] {
        let with = delta(&truncated(2.0, 4096, 256.0, cap, 500), AddOrRemoveOne, 5.0).unwrap();
        let term = 500.0 * truncation::tail(4096, q, cap).unwrap() * (1.0 + 5.0_f64.exp());
        assert!(
            with <= (without + term) * (1.0 + 1e-9),
            "cap {cap}: {with} for {without}"
        );
        assert!(
            with >= without * (1.0 - 1e-4),
            "cap {cap}: {with} below {without}"
        );
    }
    // Where much is cut, δ at the ε computed for it is that δ.
    let event = truncated(2.0, 4096, 256.0, 310, 500);
    let back = delta(&event, AddOrRemoveOne, price(&event, 1e-5)).unwrap();
    assert!((0.97e-5..=1.01e-5).contains(&back), "{back}");
}

#[test]
fn runs_with_different_caps_compose() {
    let runs = |caps: [u64; 2]| DpEvent::Composed {
        events: caps.map(|cap| truncated(1.0, 4096, 256.0, cap, 200)).to_vec(),
    };
    let (narrow, mixed, wide) = (
        price(&runs([310, 310]), 1e-6),
        price(&runs([310, 330]), 1e-6),
        price(&runs([330, 330]), 1e-6),
    );
    assert_eq!(narrow, price(&truncated(1.0, 4096, 256.0, 310, 400), 1e-6));
    assert!(narrow > mixed && mixed > wide, "{narrow} {mixed} {wide}");
}

#[test]
fn the_whole_range_users_ask_for_has_finite_prices() {
    for sigma in [0.3, 1.0, 100.0] {
        for q in [1e-6, 1e-3, 0.3, 1.0 - 1e-12, 1.0] {
            for count in [1, 2, 100, 1_000_000] {
                for delta in [1e-12, 1e-2] {
                    let ours = epsilon(&steps(sigma, q, count), AddOrRemoveOne, delta).unwrap();
                    assert!(
                        ours.is_finite() && ours >= 0.0,
                        "sigma {sigma} q {q} T {count} delta {delta}: {ours}"
                    );
                }
            }
        }
    }
}

#[test]
fn absurd_parameters_are_priced_or_refused_but_never_nan() {
    for sigma in [1e-300, 1e-6, 0.01, 1e6, 1e300] {
        for q in [1e-300, 1e-15, 0.5, 1.0 - f64::EPSILON, 1.0] {
            for count in [1, 3, u64::MAX] {
                match epsilon(&steps(sigma, q, count), AddOrRemoveOne, 1e-5) {
                    Ok(ours) => assert!(ours >= 0.0, "sigma {sigma} q {q} T {count}: {ours}"),
                    Err(error) => assert_eq!(error, AccountingError::OutOfRange),
                }
            }
        }
    }
}

#[test]
fn parameters_that_mean_nothing_are_refused() {
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let refused = epsilon(&gaussian(bad), AddOrRemoveOne, 1e-5);
        assert!(
            matches!(refused, Err(AccountingError::NoiseMultiplier { .. })),
            "{bad}"
        );
        let refused = epsilon(&steps(bad, 0.1, 10), AddOrRemoveOne, 1e-5);
        assert!(
            matches!(refused, Err(AccountingError::NoiseMultiplier { .. })),
            "{bad}"
        );
    }
    for bad in [-0.1, 1.0 + f64::EPSILON, f64::NAN, f64::INFINITY] {
        let refused = epsilon(&steps(1.0, bad, 10), AddOrRemoveOne, 1e-5);
        assert!(
            matches!(refused, Err(AccountingError::SamplingProbability { .. })),
            "{bad}"
        );
    }
    for bad in [0.0, 1.0, -1e-5, f64::NAN, f64::INFINITY] {
        let refused = epsilon(&gaussian(1.0), AddOrRemoveOne, bad);
        assert!(matches!(refused, Err(AccountingError::Delta { .. })), "{bad}");
    }
    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        let refused = delta(&gaussian(1.0), AddOrRemoveOne, bad);
        assert!(matches!(refused, Err(AccountingError::Epsilon { .. })), "{bad}");
    }
}

#[test]
fn mechanisms_without_a_proof_are_refused_not_guessed() {
    let twice = sampled(0.5, sampled(0.5, gaussian(1.0)));
    assert!(matches!(
        epsilon(&twice, AddOrRemoveOne, 1e-5),
        Err(AccountingError::Unsupported { .. })
    ));
    for cut in [
        truncated(1.0, 100, 10.0, 20, 1),
        truncated(1.0, 100, 100.0, 20, 1),
    ] {
        assert!(matches!(
            epsilon(&sampled(0.5, cut), AddOrRemoveOne, 1e-5),
            Err(AccountingError::Unsupported { .. })
        ));
    }
}

#[test]
fn releases_of_one_sample_are_priced_together_only_if_all_are_gaussian() {
    let mixed = DpEvent::Composed {
        events: vec![gaussian(1.0), laplace(1.0)],
    };
    for event in [mixed, repeated(laplace(1.0), 2)] {
        let refused = epsilon(&sampled(0.5, event.clone()), AddOrRemoveOne, 1e-5).unwrap_err();
        assert!(refused.to_string().contains("Laplace"), "{refused}");
        assert!(price(&event, 1e-5) > 0.0);
    }
}

/// A bound from below is one wherever there is a price, however loose.
#[test]
fn no_bound_from_below_is_above_one_from_above() {
    for sigma in [0.3, 1.0, 20.0] {
        for q in [1e-5, 0.01, 0.7] {
            for count in [1, 2, 30, 100_000] {
                for release in [gaussian(sigma), laplace(sigma)] {
                    let event = repeated(sampled(q, release), count);
                    let above = price(&event, 1e-6);
                    let below = epsilon_lower_bound(&event, AddOrRemoveOne, 1e-6).unwrap();
                    assert!((0.0..=above).contains(&below), "{event:?}: {below} and {above}");
                }
            }
        }
    }
    for (event, bound) in [(DpEvent::NoOp, 0.0), (DpEvent::NonPrivate, f64::INFINITY)] {
        assert_eq!(epsilon_lower_bound(&event, AddOrRemoveOne, 1e-6).unwrap(), bound);
    }
}

/// By enumeration: the curve from below of two steps lies under the true one and near it.
#[test]
fn the_bound_from_below_of_two_laplace_releases_is_below_and_near_the_pure_price() {
    let event = repeated(laplace(1.0), 2);
    let (below, above) = (
        epsilon_lower_bound(&event, AddOrRemoveOne, 1e-9).unwrap(),
        price(&event, 1e-9),
    );
    assert!(
        below > 1.995 && below <= above && above <= 2.0 + 1e-9,
        "{below} {above}"
    );
}

#[test]
fn a_profile_of_the_free_and_of_the_unprotected_is_flat() {
    let free = PrivacyProfile::new(&DpEvent::NoOp, AddOrRemoveOne, 1e-9).unwrap();
    assert_eq!(
        (free.epsilon(1e-9).unwrap(), free.delta(0.0).unwrap()),
        (0.0, 0.0)
    );
    let bare = PrivacyProfile::new(&DpEvent::NonPrivate, AddOrRemoveOne, 1e-9).unwrap();
    assert_eq!(
        (bare.epsilon(0.1).unwrap(), bare.delta(9.0).unwrap()),
        (f64::INFINITY, 1.0)
    );
    assert!(matches!(
        PrivacyProfile::new(&DpEvent::NoOp, AddOrRemoveOne, 0.0),
        Err(AccountingError::Delta { .. })
    ));
    assert!(matches!(
        free.delta(f64::NAN),
        Err(AccountingError::Epsilon { .. })
    ));
}

#[test]
fn hostile_events_cannot_exhaust_stack_or_time() {
    let mut deep = gaussian(1.0);
    for _ in 0..1000 {
        deep = repeated(deep, 1);
    }
    assert_eq!(
        epsilon(&deep, AddOrRemoveOne, 1e-5),
        Err(AccountingError::TooComplex)
    );
    let wide = DpEvent::Composed {
        events: (1..100).map(|i| steps(f64::from(i), 0.1, 10)).collect(),
    };
    assert_eq!(
        epsilon(&wide, AddOrRemoveOne, 1e-5),
        Err(AccountingError::TooComplex)
    );
    let many = repeated(steps(1.0, 0.1, 1 << 40), 1 << 40);
    assert_eq!(
        epsilon(&many, AddOrRemoveOne, 1e-5),
        Err(AccountingError::TooManySteps)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// More steps, more sampling, less noise or a smaller δ never cost less (beyond the grid's 1e-4).
    #[test]
    fn the_price_moves_the_right_way(
        sigma in 0.3_f64..20.0, ln_q in -10.0_f64..-0.5, ln_steps in 0.0_f64..9.0, ln_delta in -25.0_f64..-5.0,
        is_laplace: bool,
    ) {
        let (q, count, delta) = (ln_q.exp(), ln_steps.exp() as u64, ln_delta.exp());
        let release = if is_laplace { laplace } else { gaussian };
        let steps = |sigma: f64, q: f64, count: u64| repeated(sampled(q, release(sigma)), count);
        let here = price(&steps(sigma, q, count), delta);
        let slack = here * 1e-4 + 1e-7;
        prop_assert!(here.is_finite() && here >= 0.0);
        prop_assert!(price(&steps(sigma, q, count + 1 + count / 10), delta) >= here - slack);
        prop_assert!(price(&steps(sigma, q * 1.1, count), delta) >= here - slack);
        prop_assert!(price(&steps(sigma * 1.1, q, count), delta) <= here + slack);
        prop_assert!(price(&steps(sigma, q, count), delta * 1.1) <= here + slack);
    }

    /// ε at δ gives back a δ that is neither exceeded nor far off.
    #[test]
    fn epsilon_and_delta_are_inverse(
        sigma in 0.5_f64..10.0, ln_q in -8.0_f64..-0.5, ln_steps in 0.0_f64..8.0, ln_delta in -22.0_f64..-6.0,
    ) {
        let (event, at) = (steps(sigma, ln_q.exp(), ln_steps.exp() as u64), ln_delta.exp());
        let ours = price(&event, at);
        let back = delta(&event, AddOrRemoveOne, ours).unwrap();
        prop_assert!(back <= at * 1.01);
        prop_assert!(ours == 0.0 || back >= at * 0.97);
    }

    /// Composition never costs more than the sum of its parts with δ shared out, nor less than a part.
    #[test]
    fn composition_lies_between_its_parts_and_their_sum(
        a in 0.7_f64..5.0, b in 0.7_f64..5.0, n in 1_u64..500, m in 1_u64..500,
    ) {
        let (left, right) = (steps(a, 0.02, n), steps(b, 0.05, m));
        let both = price(&DpEvent::Composed { events: vec![left.clone(), right.clone()] }, 2e-6);
        prop_assert!(both <= (price(&left, 1e-6) + price(&right, 1e-6)) * (1.0 + 1e-4) + 1e-7);
        prop_assert!(both >= price(&left, 2e-6).max(price(&right, 2e-6)) * (1.0 - 1e-4) - 1e-7);
    }
}

/// An ε that one such release certainly costs: the test that says "in" where the output is above 0.9 is right with probability q/2
/// and wrong with at most e^{−z²/2}.
fn cost_of_a_threshold(noise_multiplier: f64, q: f64, delta: f64) -> f64 {
    let z = 0.9 / noise_multiplier;
    (0.5 * z * z + (0.5 * q - delta).ln()).max(0.0)
}

fn is_refused_or_at_least(price: Result<f64, AccountingError>, least: f64, what: &str) {
    match price {
        Err(AccountingError::OutOfRange) => {}
        Ok(price) => assert!(price >= least, "{what}: {price} below {least}"),
        Err(error) => panic!("{what}: {error}"),
    }
}

#[test]
fn losses_beyond_doubles_never_drop_out_of_the_price() {
    for (sigma, q, count) in [
        (0.01, 0.5, 1),
        (0.01, 0.5, 20),
        (0.01, 0.99, 3),
        (0.025, 0.5, 30),
        (5e-5, 0.015_625, 1000),
        (0.02, 0.015_625, 1000),
    ] {
        let event = steps(sigma, q, count);
        let least = cost_of_a_threshold(sigma, q, 1e-5);
        let what = format!("{sigma} {q} {count}");
        is_refused_or_at_least(epsilon(&event, AddOrRemoveOne, 1e-5), least, &what);
        let beside = DpEvent::Composed {
            events: vec![event, steps(1.0, 0.01, 10)],
        };
        is_refused_or_at_least(epsilon(&beside, AddOrRemoveOne, 1e-5), least, &what);
        let profile = PrivacyProfile::new(&beside, AddOrRemoveOne, 1e-6);
        is_refused_or_at_least(profile.and_then(|profile| profile.epsilon(1e-5)), least, &what);
        match delta(&beside, AddOrRemoveOne, 0.5 * least) {
            Err(AccountingError::OutOfRange) => {}
            Ok(found) => assert!(found > 1e-5, "{what}: δ {found}"),
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

#[test]
fn laplace_releases_with_losses_beyond_doubles_cost_what_they_cost() {
    let laplace = |loss: f64| DpEvent::Laplace {
        noise_multiplier: 1.0 / loss,
    };
    let price = |event: &DpEvent| epsilon(event, AddOrRemoveOne, 1e-5);
    is_refused_or_at_least(price(&laplace(2000.0)), 1999.9, "once");
    is_refused_or_at_least(price(&repeated(laplace(2000.0), 2)), 1999.9, "twice");
    let two = DpEvent::Composed {
        events: vec![laplace(800.0), laplace(900.0)],
    };
    is_refused_or_at_least(price(&two), 899.9, "two");
}

#[test]
fn what_no_double_holds_is_an_error_and_ends() {
    for sigma in [f64::MIN_POSITIVE, 1e-300, 1e-14, 1e-6] {
        let event = steps(sigma, 0.01, 10);
        assert_eq!(
            epsilon(&event, AddOrRemoveOne, 1e-5),
            Err(AccountingError::OutOfRange),
            "{sigma}"
        );
    }
    for (event, delta) in [
        (steps(1.0, 0.01, 1000), 1.0 - 1e-10),
        (steps(50.0, 0.5, 1000), 0.999_999_999_999),
    ] {
        is_refused_or_at_least(epsilon(&event, AddOrRemoveOne, delta), 0.0, "δ next to 1");
    }
    for (event, epsilon) in [(steps(1.0, 1e-20, 1000), 1.0), (steps(1.0, 0.01, 10), 1e300)] {
        match delta(&event, AddOrRemoveOne, epsilon) {
            Err(AccountingError::OutOfRange) => {}
            found => assert!(found.unwrap() <= 1e-9),
        }
    }
}

proptest! {
    #[test]
    fn no_price_is_below_what_a_threshold_tells(
        ln_sigma in -7.0..-1.6_f64,
        ln_q in -8.0..0.0_f64,
        count in 1_u64..200,
        ln_delta in -25.0..-12.0_f64,
    ) {
        let (sigma, q, delta) = (ln_sigma.exp(), ln_q.exp(), ln_delta.exp());
        let least = cost_of_a_threshold(sigma, q, delta);
        let what = format!("{sigma} {q} {count} {delta}");
        is_refused_or_at_least(epsilon(&steps(sigma, q, count), AddOrRemoveOne, delta), least, &what);
    }
}
