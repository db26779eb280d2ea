use super::*;
use crate::accountant;

fn planner(dataset_size: u64, batch_size: u64, steps: u64, target_epsilon: f64) -> Planner {
    Planner {
        dataset_size,
        batch_size,
        steps,
        target_epsilon,
        target_delta: 1e-6,
        workload: Workload::PREFIX_SUMS,
        most_bands: MAX_BANDS,
    }
}

/// Choquette-Choo et al. 2023 (figure 1 and section 6): most is gained at one epoch and a large ε, and nothing at many
/// epochs, where independent noise is the best there is.
#[test]
fn few_epochs_and_a_large_epsilon_gain_most_and_many_epochs_nothing() {
    // 200 steps of 1/200, 1/66 and 1/4 of the records.
    let ratio = |batch, epsilon| planner(100_000, batch, 200, epsilon).choose().unwrap().ratio();
    let (one, three, many) = (ratio(500, 8.0), ratio(1500, 8.0), ratio(25_000, 2.0));
    assert!((0.25..0.55).contains(&one), "one epoch: {one}");
    assert!(one < three && three < 0.8, "three epochs: {three}");
    assert!(many > 0.95, "fifty epochs: {many}");
    assert!(ratio(1500, 1.0) > three, "a smaller epsilon gains less");
}

#[test]
fn no_plan_is_worse_than_independent_noise_by_its_own_measure() {
    for (size, batch, steps) in [
        (1000, 1, 1),
        (1000, 1000, 50),
        (6144, 64, 300),
        (6144, 1, 7),
        (50, 20, 1000),
    ] {
        for epsilon in [0.1, 1.0, 20.0] {
            let plan = planner(size, batch, steps, epsilon).choose().unwrap();
            let plain = planner(size, batch, steps, epsilon).with_bands(1).unwrap();
            assert!(
                plan.rms_error <= plain.rms_error,
                "{size} {batch} {steps} {epsilon}"
            );
            assert_eq!(plan.plain_rms_error, plain.rms_error);
            let bands = plan.matrix.bands();
            assert!(bands <= BandedSteps::most_bands(size, batch, steps));
            assert!(bands == 1 || plan.ratio() <= WORTHWHILE);
        }
    }
}

/// Neither a band that was not tried nor one that was ranked low is much better.
#[test]
fn no_other_band_is_much_better() {
    for (size, batch, steps, epsilon) in [
        (20_000, 200, 100, 4.0),
        (20_000, 200, 300, 4.0),
        (20_000, 1000, 60, 2.0),
    ] {
        let wish = planner(size, batch, steps, epsilon);
        let chosen = wish.choose().unwrap();
        for bands in 1..=BandedSteps::most_bands(size, batch, steps) {
            if bands > 24 && bands % 10 != 0 {
                continue;
            }
            let other = wish.with_bands(bands).unwrap();
            assert!(
                chosen.rms_error <= other.rms_error * 1.03,
                "{size} {batch} {steps}: {} bands {}, {bands} bands {}",
                chosen.matrix.bands(),
                chosen.rms_error,
                other.rms_error
            );
        }
    }
}

#[test]
fn a_plan_keeps_to_what_the_trainer_has_room_for() {
    let wish = Planner {
        most_bands: 5,
        ..planner(100_000, 500, 200, 8.0)
    };
    assert!((2..=5).contains(&wish.choose().unwrap().matrix.bands()));
    let none = Planner {
        most_bands: 1,
        ..wish
    };
    let plan = none.choose().unwrap();
    assert_eq!((plan.matrix.bands(), plan.ratio()), (1, 1.0));
}

#[test]
fn the_event_of_a_plan_costs_what_the_turns_of_a_unit_cost() {
    let steps = BandedSteps {
        dataset_size: 1003,
        batch_size: 10,
        steps: 205,
        bands: 10,
    };
    assert_eq!((steps.class_size(), steps.turns()), (101, 21));
    let event = steps.event(Some(40), 0.9).unwrap();
    let turns = steps.turns_of_a_unit().unwrap();
    assert!((turns.sampling_probability - 100.0 / 1003.0).abs() < 1e-15);
    let cost = |event: &DpEvent| accountant::epsilon(event, RELATION, 1e-6).unwrap();
    assert_eq!(cost(&event), cost(&turns.event(Some(40), 0.9)));
    let alone = BandedSteps { bands: 1, ..steps };
    assert!(matches!(
        alone.event(Some(40), 0.9).unwrap(),
        DpEvent::SelfComposed { count: 205, .. }
    ));
}

#[test]
fn bands_of_something_else_than_gaussians_have_no_price() {
    let gaussian = || DpEvent::Gaussian {
        noise_multiplier: 1.0,
    };
    let banded = |bands, event: DpEvent| DpEvent::Banded {
        bands,
        steps: 10,
        event: Box::new(event),
    };
    let cost = |event: &DpEvent| accountant::epsilon(event, RELATION, 1e-6);
    assert_eq!(cost(&banded(10, gaussian())).unwrap(), cost(&gaussian()).unwrap());
    let twice = DpEvent::SelfComposed {
        event: Box::new(gaussian()),
        count: 2,
    };
    assert_eq!(cost(&banded(5, gaussian())).unwrap(), cost(&twice).unwrap());
    assert!(cost(&banded(0, gaussian())).is_err());
    assert!(cost(&banded(2, twice)).is_err());
    let nested = banded(2, banded(2, gaussian()));
    assert!(cost(&nested).is_err());
}

#[test]
fn bands_that_cannot_be_are_refused_with_the_most_there_are() {
    let refused = planner(1000, 100, 50, 2.0).with_bands(11).unwrap_err();
    assert!(refused.to_string().contains("at most 10"), "{refused}");
    assert!(planner(1000, 100, 4, 2.0).with_bands(5).is_err());
    assert!(planner(1000, 100, 50, 2.0).with_bands(0).is_err());
    assert!(planner(1000, 2000, 50, 2.0).choose().is_err());
}
