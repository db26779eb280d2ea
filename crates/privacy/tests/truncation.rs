//! The cut mechanism itself, small enough for its densities to be written down, against its price.
#![allow(clippy::unwrap_used)]

use bastionai_privacy::accountant::delta;
use bastionai_privacy::event::{DpEvent, NeighboringRelation::AddOrRemoveOne};

/// A mixture of normals of one deviation: (mean, weight).
type Mixture = Vec<(f64, f64)>;

/// The noisy sum of a Poisson sample of `values`, of which `cap`, uniformly chosen, are kept when there are more.
fn mechanism(values: &[f64], q: f64, cap: usize) -> Mixture {
    let mut mixture = Vec::new();
    for drawn in subsets(values) {
        let chance = q.powi(drawn.len() as i32) * (1.0 - q).powi((values.len() - drawn.len()) as i32);
        let mut kept: Vec<Vec<f64>> = subsets(&drawn);
        kept.retain(|kept| kept.len() == drawn.len().min(cap));
        let each = chance / kept.len() as f64;
        mixture.extend(kept.iter().map(|kept| (kept.iter().sum(), each)));
    }
    mixture
}

fn subsets(values: &[f64]) -> Vec<Vec<f64>> {
    let chosen = |mask: usize| {
        let in_it = values.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1);
        in_it.map(|(_, &value)| value).collect()
    };
    (0..1_usize << values.len()).map(chosen).collect()
}

/// The densities of a mixture on points `width` apart, times `width`.
fn masses(mixture: &Mixture, sigma: f64, points: usize) -> Vec<f64> {
    let (low, high) = (-3.0 - 8.0 * sigma, 3.0 + 8.0 * sigma);
    let width = (high - low) / points as f64;
    let scale = width / (sigma * (2.0 * std::f64::consts::PI).sqrt());
    (0..=points)
        .map(|i| {
            let x = low + width * i as f64;
            let density = |&(mean, weight): &(f64, f64)| weight * (-0.5 * ((x - mean) / sigma).powi(2)).exp();
            scale * mixture.iter().map(density).sum::<f64>()
        })
        .collect()
}

fn hockey_stick(from: &[f64], to: &[f64], epsilon: f64) -> f64 {
    let alpha = epsilon.exp();
    from.iter().zip(to).map(|(p, q)| (p - alpha * q).max(0.0)).sum()
}

fn priced(cap: usize, q: f64, sigma: f64, steps: u64, epsilon: f64) -> f64 {
    let event = DpEvent::SelfComposed {
        event: Box::new(DpEvent::TruncatedSubsampledGaussian {
            dataset_size: 4,
            sampling_probability: q,
            truncated_batch_size: cap as u64,
            noise_multiplier: sigma,
        }),
        count: steps,
    };
    delta(&event, AddOrRemoveOne, epsilon).unwrap()
}

const EPSILONS: [f64; 6] = [0.0, 0.2, 0.7, 1.5, 3.0, 4.0];
const VALUES: [f64; 4] = [-1.0, -0.4, 0.6, 1.0];

/// All datasets of up to three others with values among [`VALUES`], in any order.
fn others() -> Vec<Vec<f64>> {
    let mut found = vec![vec![]];
    for size in 1..=3_u32 {
        for mut code in 0..4_usize.pow(size) {
            let mut values = Vec::new();
            for _ in 0..size {
                values.push(VALUES[code % 4]);
                code /= 4;
            }
            if values.is_sorted() {
                found.push(values);
            }
        }
    }
    found
}

/// Every pair of neighbours of at most four units, in both directions: the true δ is never above the price. It is
/// above the price without a cap, and not far below ours (which takes q for q·cap/(|S|+1), a third less at cap 1).
#[test]
fn no_pair_of_small_datasets_is_told_apart_better_than_priced() {
    for (cap, q, sigma) in [
        (1, 0.3, 0.8),
        (1, 0.6, 1.5),
        (2, 0.5, 2.0),
        (2, 0.7, 1.0),
        (3, 0.8, 1.5),
    ] {
        let mut worst = [0.0_f64; EPSILONS.len()];
        for others in others() {
            let without = masses(&mechanism(&others, q, cap), sigma, 1500);
            for x in VALUES {
                let with: Vec<f64> = others.iter().copied().chain([x]).collect();
                let with = masses(&mechanism(&with, q, cap), sigma, 1500);
                for (epsilon, worst) in EPSILONS.iter().zip(&mut worst) {
                    let pair = hockey_stick(&with, &without, *epsilon);
                    *worst = worst.max(pair).max(hockey_stick(&without, &with, *epsilon));
                }
            }
        }
        let (mut uncut_undercut, mut nearest) = (false, 0.0_f64);
        for (&epsilon, &truth) in EPSILONS.iter().zip(&worst) {
            let ours = priced(cap, q, sigma, 1, epsilon);
            // The kinks of the integrand cost the quadrature that much.
            assert!(
                truth <= ours + 2e-5,
                "cap {cap} q {q} sigma {sigma} epsilon {epsilon}: {truth} above {ours}"
            );
            let uncut = priced(4, q, sigma, 1, epsilon);
            uncut_undercut |= truth > 1e-5 && truth > 1.05 * uncut;
            nearest = nearest.max(truth / ours);
        }
        assert!(
            uncut_undercut,
            "cap {cap} q {q} sigma {sigma}: no exchange was felt"
        );
        assert!(
            nearest > 0.5,
            "cap {cap} q {q} sigma {sigma}: at most {nearest} of the price"
        );
    }
}

/// Two steps seen together.
#[test]
fn nor_by_two_steps() {
    for (cap, q, sigma) in [(1, 0.3, 1.2), (2, 0.5, 0.9)] {
        for others in [[-1.0, -1.0, -1.0], [-1.0, -0.4, 1.0], [1.0, 1.0, 1.0]] {
            let with: Vec<f64> = others.iter().copied().chain([1.0]).collect();
            let one = |values: &[f64]| masses(&mechanism(values, q, cap), sigma, 400);
            let two = |once: &[f64]| -> Vec<f64> {
                once.iter()
                    .flat_map(|a| once.iter().map(move |b| a * b))
                    .collect()
            };
            let (without, with) = (two(&one(&others)), two(&one(&with)));
            for epsilon in EPSILONS {
                let ours = priced(cap, q, sigma, 2, epsilon);
                for truth in [
                    hockey_stick(&with, &without, epsilon),
                    hockey_stick(&without, &with, epsilon),
                ] {
                    assert!(
                        truth <= ours + 1e-4,
                        "cap {cap} {others:?} epsilon {epsilon}: {truth} above {ours}"
                    );
                }
            }
        }
    }
}
