//! Filters against analysts who choose in view of what they saw, and against what is known exactly.

use super::amount::{Amount, Delta, Epsilon, Rho};
use super::basic::BasicFilter;
use super::odometer::Odometer;
use super::renyi::{RenyiCost, RenyiFilter, RenyiTotal};
use super::terms::{Order, RenyiTerms, TermsError};
use crate::accountant;
use crate::event::{DpEvent, NeighboringRelation};
use proptest::prelude::*;

fn lifetime(epsilon: &str, delta: &str) -> Amount {
    Amount::new(epsilon.parse().unwrap(), delta.parse().unwrap())
}

fn gaussian(terms: &RenyiTerms, noise_multiplier: f64) -> RenyiCost {
    let divergence = |alpha: f64| Ok(alpha / (2.0 * noise_multiplier * noise_multiplier));
    terms.cost(divergence).unwrap()
}

/// A bit that is told rightly with odds e^`epsilon` (Mironov 2017, proposition 5).
fn randomised_response(terms: &RenyiTerms, epsilon: f64) -> RenyiCost {
    let right = 1.0 / (1.0 + (-epsilon).exp());
    let divergence = |alpha: f64| {
        let term = |p: f64, q: f64| (alpha * p.ln() + (1.0 - alpha) * q.ln()).exp();
        Ok((term(right, 1.0 - right) + term(1.0 - right, right)).ln() / (alpha - 1.0) * (1.0 + 1e-12))
    };
    terms.cost(divergence).unwrap()
}

fn sum(filter: &RenyiFilter, costs: &[RenyiCost]) -> RenyiTotal {
    let zero = RenyiTotal::zero(filter.orders().len());
    costs.iter().fold(zero, |total, cost| total.plus(cost))
}

/// SplitMix64 and Box–Muller: enough for simulations.
struct Coins(u64);

impl Coins {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// What an analyst may ask for.
#[derive(Clone, Copy, Debug)]
enum Run {
    Gaussian(f64),
    Response(f64),
}

/// The loss of a run's output under D, where the statistic is 1, against D′, where it is 0.
fn loss(run: Run, coins: &mut Coins) -> f64 {
    match run {
        Run::Gaussian(sigma) => (0.5 / sigma + coins.normal()) / sigma,
        Run::Response(epsilon) => {
            let right = 1.0 / (1.0 + (-epsilon).exp());
            if coins.uniform() < right {
                epsilon
            } else {
                -epsilon
            }
        }
    }
}

/// Tries every kind of run in the order that the analyst prefers, given the loss so far, and stops only when the filter
/// admits none.
fn interaction(menu: &[(Run, RenyiCost)], filter: &RenyiFilter, habit: Habit, coins: &mut Coins) -> f64 {
    let mut total = RenyiTotal::zero(filter.orders().len());
    let mut so_far = 0.0;
    for round in 0.. {
        let mut wishes: Vec<usize> = (0..menu.len()).collect();
        if habit(so_far, round) {
            wishes.reverse();
        }
        let Some(&(run, ref cost)) = wishes
            .iter()
            .map(|&at| &menu[at])
            .find(|(_, cost)| filter.admits(&total, cost))
        else {
            return so_far;
        };
        total = total.plus(cost);
        so_far += loss(run, coins);
    }
    unreachable!("budgets are finite")
}

/// Loss so far and round → whether to ask for the end of the menu first.
type Habit = fn(f64, u32) -> bool;

const HABITS: [(&str, Habit); 6] = [
    ("the loudest always", |_, _| false),
    ("the quietest always", |_, _| true),
    ("loud while it goes well", |loss, _| loss < 0.0),
    ("loud while it goes badly", |loss, _| loss > 0.3),
    ("quiet first", |_, round| round < 5),
    ("by turns", |_, round| round.is_multiple_of(2)),
];

/// An unbiased estimate of the δ at ε of the transcript, by the losses of `TRIALS` transcripts under D, and its error.
fn delta_at(epsilon: f64, menu: &[(Run, RenyiCost)], filter: &RenyiFilter, habit: Habit) -> (f64, f64) {
    let mut coins = Coins(20_261_123);
    let (mut sum, mut squares) = (0.0, 0.0);
    for _ in 0..TRIALS {
        let above = (1.0 - (epsilon - interaction(menu, filter, habit, &mut coins)).exp()).max(0.0);
        sum += above;
        squares += above * above;
    }
    let mean = sum / f64::from(TRIALS);
    (
        mean,
        ((squares / f64::from(TRIALS) - mean * mean) / f64::from(TRIALS)).sqrt(),
    )
}

const TRIALS: u32 = 20_000;

/// Randomised response spares high orders, a Gaussian low ones: analysts mix them in view of the loss, so that another order
/// survives in another transcript. The same analysts under a filter of twice the ε show that the test would notice.
#[test]
fn no_analyst_who_adapts_gets_beyond_the_lifetime() {
    let terms = RenyiTerms::default();
    let limit = lifetime("1", "0.02");
    let menu: Vec<_> = [
        Run::Gaussian(1.5),
        Run::Response(0.8),
        Run::Gaussian(4.0),
        Run::Response(0.2),
        Run::Gaussian(10.0),
    ]
    .into_iter()
    .map(|run| match run {
        Run::Gaussian(sigma) => (run, gaussian(&terms, sigma)),
        Run::Response(epsilon) => (run, randomised_response(&terms, epsilon)),
    })
    .collect();
    let filter = RenyiFilter::new(limit, &terms).unwrap();
    let lax = RenyiFilter::new(lifetime("2", "0.02"), &terms).unwrap();
    let mut noticed = 0;
    for (name, habit) in HABITS {
        let (delta, error) = delta_at(1.0, &menu, &filter, habit);
        assert!(delta + 4.0 * error <= 0.02, "{name}: {delta} ± {error}");
        let (delta, error) = delta_at(1.0, &menu, &lax, habit);
        noticed += u32::from(delta - 4.0 * error > 0.02);
    }
    assert!(noticed >= 4, "{noticed}");
}

/// T Gaussians of σ are one of σ/√T, whatever an analyst does with their outputs (Gaussian differential privacy is closed
/// under composition); its ε is known exactly (Balle and Wang 2018).
#[test]
fn all_gaussians_stay_below_the_exact_price_and_come_close_to_it() {
    let terms = RenyiTerms::default();
    for (epsilon, delta, sigma) in [
        ("1", "1e-6", 60.0),
        ("3", "1e-5", 30.0),
        ("6", "1e-5", 20.0),
        ("20", "1e-8", 10.0),
    ] {
        let limit = lifetime(epsilon, delta);
        let filter = RenyiFilter::new(limit, &terms).unwrap();
        let cost = gaussian(&terms, sigma);
        let exact = |runs: u32| {
            let noise_multiplier = sigma / f64::from(runs).sqrt();
            let event = DpEvent::Gaussian { noise_multiplier };
            accountant::epsilon(&event, NeighboringRelation::AddOrRemoveOne, limit.delta.to_f64()).unwrap()
        };
        let mut total = RenyiTotal::zero(filter.orders().len());
        let mut runs = 0;
        while filter.admits(&total, &cost) {
            total = total.plus(&cost);
            runs += 1;
            assert!(filter.epsilon(&total) <= limit.epsilon);
            assert!(
                exact(runs) <= filter.epsilon(&total).to_f64(),
                "after {runs} runs"
            );
        }
        let possible = (1..).find(|&runs| exact(runs) > limit.epsilon.to_f64()).unwrap() - 1;
        assert!(
            runs <= possible && 10 * runs >= 6 * possible,
            "{runs} of {possible} at {limit}"
        );
    }
}

/// Thirty runs of a tenth: what each costs alone at a tenth of δ, against what they cost together.
#[test]
fn a_long_sequence_of_runs_is_admitted_several_times_over() {
    let terms = RenyiTerms::default();
    let limit = lifetime("6", "1e-5");
    let delta = limit.delta.to_f64() / 1000.0;
    let (basic, renyi) = (BasicFilter::new(limit), RenyiFilter::new(limit, &terms).unwrap());
    let mut factors = Vec::new();
    for noise_multiplier in [20.0, 50.0, 100.0] {
        let event = DpEvent::Gaussian { noise_multiplier };
        let epsilon = accountant::epsilon(&event, NeighboringRelation::AddOrRemoveOne, delta).unwrap();
        let amount = Amount::new(
            Epsilon::from_f64_round_up(epsilon).unwrap(),
            Delta::from_f64_round_up(delta).unwrap(),
        );
        let cost = gaussian(&terms, noise_multiplier);
        let (mut spent, mut total) = (Amount::ZERO, RenyiTotal::zero(renyi.orders().len()));
        let (mut by_basic, mut by_renyi) = (0_u32, 0_u32);
        while basic.admits(spent, amount) {
            spent = spent.checked_add(amount).unwrap();
            by_basic += 1;
        }
        while renyi.admits(&total, &cost) {
            total = total.plus(&cost);
            by_renyi += 1;
        }
        factors.push(f64::from(by_renyi) / f64::from(by_basic));
        println!("σ {noise_multiplier}: {by_basic} runs by basic composition, {by_renyi} by Rényi's");
    }
    assert!(factors.iter().all(|&factor| factor > 5.0), "{factors:?}");
}

#[test]
fn an_order_that_is_spent_admits_nothing_more_while_another_still_does() {
    let terms = RenyiTerms::new(
        &[
            Order::from_thousandths(4_000).unwrap(),
            Order::from_thousandths(32_000).unwrap(),
        ],
        &[],
    )
    .unwrap();
    let filter = RenyiFilter::new(lifetime("6", "1e-5"), &terms).unwrap();
    let [Some(low), Some(high)] = filter.budgets() else {
        panic!("both have budgets")
    };
    let zero = RenyiTotal::zero(2);
    let just = RenyiCost::new(vec![*low, Rho::MAX]);
    assert!(filter.admits(&zero, &just), "by the low order, to the last unit");
    let spent = zero.plus(&just);
    assert!(filter.holds(&spent));
    assert_eq!(filter.epsilon(&spent).to_string(), "6.0");
    for cost in [vec![Rho::from_units(1), Rho::ZERO], vec![Rho::from_units(1); 2]] {
        assert!(!filter.admits(&spent, &RenyiCost::new(cost)));
    }
    let both = RenyiCost::new(vec![
        Rho::from_units(low.units() + 1),
        Rho::from_units(high.units() + 1),
    ]);
    assert!(!filter.admits(&zero, &both), "each order for itself is exceeded");
    assert!(
        !filter.admits(&zero, &RenyiCost::new(vec![Rho::ZERO])),
        "of another account"
    );
}

#[test]
fn a_lifetime_that_no_order_reaches_is_refused() {
    let terms = RenyiTerms::new(&[Order::from_thousandths(2_000).unwrap()], &[]).unwrap();
    assert!(matches!(
        RenyiFilter::new(lifetime("1", "1e-9"), &terms),
        Err(TermsError::NoBudget { .. })
    ));
    assert!(matches!(
        Odometer::new(lifetime("1", "1e-9"), &terms),
        Err(TermsError::NoBudget { .. })
    ));
    RenyiFilter::new(lifetime("25", "1e-9"), &terms).unwrap();
}

#[test]
fn a_part_of_a_run_costs_its_steps_rounded_up_and_without_a_bound_all() {
    let run = RenyiCost::new(vec![Rho::from_units(10), Rho::MAX, Rho::ZERO]);
    let rho = |started| run.of_steps(started, 3).rho().to_vec();
    assert_eq!(rho(1), [Rho::from_units(4), Rho::MAX, Rho::ZERO]);
    assert_eq!(rho(2), [Rho::from_units(7), Rho::MAX, Rho::ZERO]);
    assert_eq!(rho(0), [Rho::ZERO; 3]);
    assert_eq!([rho(3), rho(4)], [run.rho().to_vec(), run.rho().to_vec()]);
}

#[test]
fn an_odometer_reads_the_lowest_rung_that_is_not_spent() {
    let terms = RenyiTerms::default();
    let limit = lifetime("4", "1e-5");
    let (odometer, filter) = (
        Odometer::new(limit, &terms).unwrap(),
        RenyiFilter::new(limit, &terms).unwrap(),
    );
    let cost = gaussian(&terms, 60.0);
    let mut total = RenyiTotal::zero(filter.orders().len());
    let mut readings = vec![odometer.read(&total).unwrap()];
    while filter.admits(&total, &cost) {
        total = total.plus(&cost);
        let reading = odometer.read(&total).unwrap();
        assert!(reading.epsilon >= filter.epsilon(&total) && reading.delta == limit.delta);
        if readings.last() != Some(&reading) {
            readings.push(reading);
        }
    }
    let epsilons: Vec<_> = readings
        .iter()
        .map(|reading| reading.epsilon.to_string())
        .collect();
    assert_eq!(epsilons, ["0.5", "1.0", "2.0", "4.0", "8.0"]);
    let unbounded = RenyiCost::new(vec![Rho::MAX; filter.orders().len()]);
    assert_eq!(odometer.read(&total.plus(&unbounded)), None);
}

fn costs() -> impl Strategy<Value = Vec<RenyiCost>> {
    let rho = prop_oneof![8 => 0_u64..2_000_000_000_000, 1 => Just(u64::MAX)];
    let cost = prop::collection::vec(rho, 12)
        .prop_map(|units| RenyiCost::new(units.into_iter().map(Rho::from_units).collect()));
    prop::collection::vec(cost, 0..40)
}

proptest! {
    /// Whatever the order of runs, whatever was refused: what was admitted is within some order's budget.
    #[test]
    fn no_sequence_of_runs_exceeds_every_budget(costs in costs(), epsilon in 1_u64..20) {
        let limit = Amount::new(Epsilon::from_units(epsilon * 1_000_000_000), "1e-5".parse().unwrap());
        let filter = RenyiFilter::new(limit, &RenyiTerms::default()).unwrap();
        let mut admitted = Vec::new();
        for cost in costs {
            let before = sum(&filter, &admitted);
            if filter.admits(&before, &cost) {
                admitted.push(cost);
            }
            // A second time, in numbers of their own.
            let within = filter.budgets().iter().enumerate().any(|(at, budget)| {
                let spent: u128 = admitted.iter().map(|cost| u128::from(cost.rho()[at].units())).sum();
                budget.is_some_and(|budget| spent <= u128::from(budget.units()))
            });
            prop_assert!(within);
            prop_assert!(filter.epsilon(&sum(&filter, &admitted)) <= limit.epsilon);
        }
    }

    #[test]
    fn totals_do_not_depend_on_the_order_and_taking_away_undoes_adding(costs in costs()) {
        let filter = RenyiFilter::new(lifetime("6", "1e-5"), &RenyiTerms::default()).unwrap();
        let total = sum(&filter, &costs);
        let mut reversed = costs.clone();
        reversed.reverse();
        prop_assert_eq!(&sum(&filter, &reversed), &total);
        let (first, second) = costs.split_at(costs.len() / 2);
        prop_assert_eq!(&sum(&filter, first).and(&sum(&filter, second)), &total);
        let emptied = costs.iter().fold(total, |total, cost| total.minus(cost));
        prop_assert_eq!(emptied, RenyiTotal::zero(12));
    }

    #[test]
    fn parts_of_a_run_never_cost_less_than_their_share(units in any::<u64>(), started in 0_u64..1000, steps in 1_u64..1000) {
        let part = RenyiCost::new(vec![Rho::from_units(units)]).of_steps(started, steps).rho()[0].units();
        let share = u128::from(units) * u128::from(started.min(steps));
        prop_assert!(u128::from(part) * u128::from(steps) >= share);
        prop_assert!(part <= units);
    }

    #[test]
    fn a_cost_is_never_below_the_divergence(value in 0.0_f64..1e6) {
        let terms = RenyiTerms::default();
        let cost = terms.cost(|_| Ok(value)).unwrap();
        prop_assert!(cost.rho().iter().all(|rho| rho.units() as f64 >= value * 1e12 * (1.0 - 1e-15)));
        prop_assert!(terms.cost(|_| Ok(-value - 1.0)).is_err() && terms.cost(|_| Ok(f64::NAN)).is_err());
    }
}
