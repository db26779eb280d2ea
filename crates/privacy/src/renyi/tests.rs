use super::*;
use crate::cap::SampledSteps;
use crate::event::NeighboringRelation::AddOrRemoveOne;
use crate::{accountant, truncation};
use proptest::prelude::*;

fn laplace(noise_multiplier: f64) -> DpEvent {
    DpEvent::Laplace { noise_multiplier }
}

fn at(event: &DpEvent, order: f64) -> f64 {
    curve(event, AddOrRemoveOne, &[order]).unwrap()[0]
}

#[test]
fn the_gaussian_has_its_well_known_curve() {
    let event = DpEvent::Gaussian {
        noise_multiplier: 3.0,
    }
    .repeated(5);
    for order in [1.1, 2.0, 64.0] {
        assert!((at(&event, order) / (5.0 * order / 18.0) - 1.0).abs() < 1e-10);
    }
}

#[test]
fn curves_of_what_is_composed_add_up() {
    let (training, release) = (
        DpEvent::dp_sgd(1.1, 0.02, 300),
        laplace(20.0).sampled(0.5).repeated(7),
    );
    let both = DpEvent::Composed {
        events: vec![training.clone(), release.clone()],
    };
    for order in [1.3, 4.0, 33.0] {
        let sum = at(&training, order) + at(&release, order);
        assert!((at(&both, order) / sum - 1.0).abs() < 1e-12);
    }
}

/// Between whole orders, where quadrature gives way to interpolation, the bound stays one and stays near.
#[test]
fn interpolated_orders_are_bounded_from_above_by_their_neighbours() {
    let event = DpEvent::dp_sgd(0.02, 1e-3, 1);
    let (low, middle, high) = (at(&event, 40.0), at(&event, 40.5), at(&event, 41.0));
    assert!(low < middle && middle < high);
    let chord = 0.5 * (39.0 * low + 40.0 * high) / 39.5;
    assert!((middle / chord - 1.0).abs() < 1e-9);
}

#[test]
fn a_cap_costs_what_a_revealed_exchange_does() {
    let (size, q, cap, sigma) = (4096, 0.0625, 280, 1.2);
    let run = SampledSteps {
        dataset_size: size,
        sampling_probability: q,
        steps: 1,
    };
    let tau = truncation::exchange_probability(size, q, cap).unwrap();
    let moment = |sigma: f64, order: f64| ((order - 1.0) * at(&DpEvent::dp_sgd(sigma, q, 1), order)).exp();
    for order in [1.5, 3.0, 12.0] {
        let mixed = (1.0 - tau) * moment(sigma, order) + tau * moment(sigma / 2.0, order);
        let ours = at(&run.event(Some(cap), sigma), order);
        assert!(
            (ours / (mixed.ln() / (order - 1.0)) - 1.0).abs() < 1e-9,
            "{order}"
        );
        assert!(ours > at(&run.event(None, sigma), order));
    }
    let always = at(&run.event(Some(0), sigma), 5.0);
    assert_eq!(always, at(&DpEvent::dp_sgd(sigma / 2.0, q, 1), 5.0));
}

/// A Laplace release never loses more than 1/b, sampled less; at a large order that is what it costs.
#[test]
fn laplace_curves_end_at_their_largest_loss() {
    let largest = |scale: f64, q: f64| (1.0 - q + q * (1.0 / scale).exp()).ln();
    for (scale, q) in [(1.0, 1.0), (0.01, 1.0), (0.01, 0.1), (2.0, 0.3)] {
        let event = laplace(scale).sampled(q);
        let bound = largest(scale, q);
        assert!(at(&event, LARGEST_ORDER) <= bound * (1.0 + 1e-10), "{scale} {q}");
        assert!(at(&event, LARGEST_ORDER) >= bound * 0.999, "{scale} {q}");
        assert!(at(&event, 2.5) < bound);
    }
}

#[test]
fn nothing_costs_nothing_and_an_unprotected_release_everything() {
    for free in [
        DpEvent::NoOp,
        DpEvent::dp_sgd(1.0, 0.0, 10),
        DpEvent::dp_sgd(1.0, 0.5, 0),
    ] {
        assert_eq!(curve(&free, AddOrRemoveOne, &[1.5, 2.0]).unwrap(), [0.0, 0.0]);
        assert_eq!(epsilon(&free, AddOrRemoveOne, 1e-5).unwrap(), 0.0);
        assert_eq!(delta(&free, AddOrRemoveOne, 0.5).unwrap(), 0.0);
    }
    let bare = DpEvent::NonPrivate.sampled(0.1);
    assert_eq!(curve(&bare, AddOrRemoveOne, &[2.0]).unwrap(), [f64::INFINITY]);
    assert_eq!(epsilon(&bare, AddOrRemoveOne, 1e-5).unwrap(), f64::INFINITY);
    assert_eq!(delta(&bare, AddOrRemoveOne, 3.0).unwrap(), 1.0);
}

#[test]
fn arguments_that_mean_nothing_are_refused() {
    let event = DpEvent::dp_sgd(1.0, 0.1, 10);
    for bad in [1.0, 0.5, -2.0, f64::NAN, f64::INFINITY, 2.0 * LARGEST_ORDER] {
        let refused = [
            curve(&event, AddOrRemoveOne, &[2.0, bad]).map(|_| ()),
            epsilon_of_curve(&[bad], &[1.0], 1e-5).map(|_| ()),
            delta_of_curve(&[bad], &[1.0], 1.0).map(|_| ()),
        ];
        assert!(
            refused
                .iter()
                .all(|one| matches!(one, Err(AccountingError::Order { .. }))),
            "{bad}"
        );
    }
    for bad in [0.0, 1.0, f64::NAN] {
        assert_eq!(
            epsilon(&event, AddOrRemoveOne, bad).map_err(|error| error.to_string()),
            Err(format!("delta {bad} is not strictly between 0 and 1"))
        );
    }
    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(
            delta(&event, AddOrRemoveOne, bad),
            Err(AccountingError::Epsilon { .. })
        ));
    }
    assert!(matches!(
        epsilon_of_curve(&[2.0, 3.0], &[1.0], 1e-5),
        Err(AccountingError::Curve { orders: 2, bounds: 1 })
    ));
    for bad in [f64::NAN, -1.0] {
        assert_eq!(
            epsilon_of_curve(&[2.0], &[bad], 1e-5),
            Err(AccountingError::OutOfRange)
        );
    }
    let twice = event.sampled(0.5);
    assert!(matches!(
        curve(&twice, AddOrRemoveOne, &[2.0]),
        Err(AccountingError::Unsupported { .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// (α−1)·D_α is convex in α, D_α does not fall, and more noise or less sampling never costs more.
    #[test]
    fn curves_have_the_shape_of_curves(
        sigma in 0.3_f64..30.0, ln_q in -12.0_f64..0.0, order in 1.05_f64..40.0, heavy_tailed: bool,
    ) {
        let q = ln_q.exp();
        let event = |sigma: f64, q: f64| if heavy_tailed { laplace(sigma).sampled(q) } else { DpEvent::dp_sgd(sigma, q, 1) };
        let event_here = event(sigma, q);
        let (a, b, c) = (order, order + 0.37, order + 0.74);
        let [x, y, z] = [a, b, c].map(|order| at(&event_here, order));
        prop_assert!(x > 0.0 && x <= y * (1.0 + 1e-9) && y <= z * (1.0 + 1e-9), "{x} {y} {z}");
        prop_assert!((b - 1.0) * y <= 0.5 * ((a - 1.0) * x + (c - 1.0) * z) * (1.0 + 1e-9));
        prop_assert!(at(&event(sigma * 1.1, q), order) <= x * (1.0 + 1e-9));
        prop_assert!(at(&event(sigma, q * 0.9), order) <= x * (1.0 + 1e-9));
    }

    /// Both accountants bound the same thing, and the finer one is never the larger.
    #[test]
    fn losses_never_cost_more_than_their_moments_say(
        sigma in 0.5_f64..5.0, ln_q in -7.0_f64..-0.5, ln_steps in 0.0_f64..7.0, ln_delta in -20.0_f64..-6.0,
    ) {
        let (event, at) = (DpEvent::dp_sgd(sigma, ln_q.exp(), ln_steps.exp() as u64), ln_delta.exp());
        let by_moments = epsilon(&event, AddOrRemoveOne, at).unwrap();
        let by_losses = accountant::epsilon(&event, AddOrRemoveOne, at).unwrap();
        prop_assert!(by_losses <= by_moments * (1.0 + 1e-4) + 1e-7, "{by_losses} {by_moments}");
        if by_moments > 0.0 {
            let back = delta(&event, AddOrRemoveOne, by_moments).unwrap();
            prop_assert!(back <= at * (1.0 + 1e-9), "{back} for {at}");
        }
    }
}
