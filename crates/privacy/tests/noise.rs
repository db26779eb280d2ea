//! The noise over many coordinates, steps and tensors at once: moments, cells, Kolmogorov and Smirnov, low bits, and
//! correlations of values and of sizes. Two million values in every build, 2^27 in `make test-all`.
#![allow(clippy::unwrap_used, missing_docs)]

use bastionai_privacy::noise::NoiseStream;

const SD: f64 = 1_073_741_824.0 * 1.1; // 1.1 noise multipliers on a grid of 2^-30
const CELLS: usize = 4096;
/// Values of one draw.
const LENGTH: usize = 1 << 17;

fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
}

/// How far a sum of n terms of mean 0 and variance 1 is from 0, in standard errors.
#[derive(Clone, Copy, Default)]
struct Drift {
    terms: f64,
    sum: f64,
}

impl Drift {
    fn add(&mut self, term: f64) {
        self.terms += 1.0;
        self.sum += term;
    }

    fn errors(&self) -> f64 {
        self.sum / self.terms.sqrt()
    }
}

/// What is collected in one pass.
struct Study {
    powers: [Drift; 4],
    cells: Vec<u64>,
    low_bytes: [u64; 256],
    /// Of values, then of sizes: with the next coordinate, the next but one, the next step, the next tensor.
    correlations: [[Drift; 4]; 2],
}

impl Study {
    fn of(draws: u64) -> Self {
        let mut study = Self {
            powers: Default::default(),
            cells: vec![0; CELLS],
            low_bytes: [0; 256],
            correlations: Default::default(),
        };
        for draw in 0..draws {
            // Four tensors a step.
            let (step, tensor) = (draw / 4 + 1, (draw % 4) as u32);
            let own = drawn(step, tensor);
            study.add(&own, &drawn(step + draws, tensor), &drawn(step, tensor + 4));
        }
        study
    }

    fn add(&mut self, own: &[i64], next_step: &[i64], next_tensor: &[i64]) {
        let scaled = |units: i64| units as f64 / SD;
        // Raw moments less their expectation, over their standard deviation.
        let of_powers = [(0.0, 1.0), (1.0, 2.0), (0.0, 15.0), (3.0, 96.0_f64)];
        for (at, &units) in own.iter().enumerate() {
            let x = scaled(units);
            for (k, (drift, (mean, variance))) in (1..).zip(self.powers.iter_mut().zip(of_powers)) {
                drift.add((x.powi(k) - mean) / variance.sqrt());
            }
            self.cells[((normal_cdf(x) * CELLS as f64) as usize).min(CELLS - 1)] += 1;
            self.low_bytes[(units & 255) as usize] += 1;
            let neighbours = [
                own.get(at + 1),
                own.get(at + 2),
                next_step.get(at),
                next_tensor.get(at),
            ];
            let size = |x: f64| (x * x - 1.0) / 2.0_f64.sqrt();
            for (place, neighbour) in neighbours.into_iter().enumerate() {
                let Some(y) = neighbour.map(|&units| scaled(units)) else {
                    continue;
                };
                self.correlations[0][place].add(x * y);
                self.correlations[1][place].add(size(x) * size(y));
            }
        }
    }

    fn check(&self) {
        println!("{} values", self.powers[0].terms);
        for (k, drift) in (1..).zip(&self.powers) {
            println!("moment {k}: {:.2} standard errors", drift.errors());
            assert!(
                drift.errors().abs() < 5.0,
                "moment {k}: {} standard errors",
                drift.errors()
            );
        }
        let within = |cells: &[u64], what: &str| {
            let expected = cells.iter().sum::<u64>() as f64 / cells.len() as f64;
            let parts = cells
                .iter()
                .map(|&count| (count as f64 - expected).powi(2) / expected);
            let (chi_squared, freedom): (f64, f64) = (parts.sum(), cells.len() as f64 - 1.0);
            let errors = (chi_squared - freedom) / (2.0 * freedom).sqrt();
            println!("{what}: χ² {chi_squared:.0} for {freedom} degrees of freedom");
            assert!(
                errors.abs() < 5.0,
                "{what}: χ² is {errors} standard deviations off"
            );
        };
        within(&self.cells, "cells of equal probability");
        within(&self.low_bytes, "low bytes");
        let n = self.cells.iter().sum::<u64>() as f64;
        let mut below = 0;
        let distances = self.cells.iter().enumerate().map(|(cell, &count)| {
            below += count;
            (below as f64 / n - (cell + 1) as f64 / CELLS as f64).abs()
        });
        let distance = distances.fold(0.0, f64::max) * n.sqrt();
        println!("Kolmogorov–Smirnov {distance:.2}");
        assert!(distance < 2.3, "Kolmogorov–Smirnov {distance}"); // p ≈ 5e-5
        for (of, correlations) in ["values", "sizes"].into_iter().zip(&self.correlations) {
            let with = ["next coordinate", "next but one", "next step", "next tensor"];
            for (with, drift) in with.into_iter().zip(correlations) {
                println!("{of} and the {with}: {:.2} standard errors", drift.errors());
                assert!(
                    drift.errors().abs() < 5.0,
                    "{of} and the {with}: {}",
                    drift.errors()
                );
            }
        }
    }
}

fn drawn(step: u64, tensor: u32) -> Vec<i64> {
    let mut values = vec![0; LENGTH];
    let noise = NoiseStream::new([11; 32]);
    noise
        .add_rounded_gaussian(step, tensor, 0, &mut values, SD)
        .unwrap();
    values
}

#[test]
fn two_million_values_of_many_steps_and_tensors_are_independent_normals() {
    Study::of(16).check();
}

#[test]
#[ignore = "a minute: make test-all"]
fn a_hundred_million_values_of_many_steps_and_tensors_are_independent_normals() {
    Study::of(1024).check();
}
