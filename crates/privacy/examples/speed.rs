//! Times noise, sampling and accounting on one core: `cargo run --release -p bastionai-privacy --example speed`.

use std::time::Instant;

use bastionai_privacy::cap::SampledSteps;
use bastionai_privacy::event::{DpEvent, NeighboringRelation::AddOrRemoveOne};
use bastionai_privacy::{accountant, calibrate, noise::NoiseStream, sampling::PoissonSampler};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut sums = vec![0_i64; 1 << 20];
    let noise = NoiseStream::new([1; 32]);
    let rounds = 20;
    let start = Instant::now();
    for step in 0..rounds {
        noise.add_rounded_gaussian(step, 0, 0, &mut sums, f64::from(1_u32 << 30))?;
    }
    let nanoseconds = start.elapsed().as_nanos() as f64;
    println!(
        "noise: {:.2} ns a value",
        nanoseconds / (rounds as f64 * sums.len() as f64)
    );

    let sampler = PoissonSampler::new([1; 32], 1 << 57);
    let (rows, mut sample) = (1 << 24, Vec::new());
    let start = Instant::now();
    sampler.sample(0, 0, rows, &mut sample)?;
    println!(
        "sampling: {:.2} ns a row",
        start.elapsed().as_nanos() as f64 / rows as f64
    );

    // dp-accounting 0.6 on the same: 0.8 to 1.0 s and 10 to 22 s (dp.md).
    let start = Instant::now();
    let epsilon = accountant::epsilon(&training(1.0), AddOrRemoveOne, 1e-5)?;
    println!(
        "epsilon: {epsilon:.4} in {:.1} ms",
        start.elapsed().as_secs_f64() * 1e3
    );
    let sampled = SampledSteps {
        dataset_size: 60_000,
        sampling_probability: 0.01,
        steps: 10_000,
    };
    for cap in [None, Some(680), Some(720)] {
        let start = Instant::now();
        let epsilon = accountant::epsilon(&sampled.event(cap, 1.0), AddOrRemoveOne, 1e-5)?;
        println!(
            "epsilon of at most {cap:?} records: {epsilon:.4} in {:.1} ms",
            start.elapsed().as_secs_f64() * 1e3
        );
    }
    let start = Instant::now();
    let cap = sampled.truncated_batch_size(1.565, 1e-5)?;
    println!(
        "cap: {cap} for 600 in {:.1} ms",
        start.elapsed().as_secs_f64() * 1e3
    );
    let capped = |noise_multiplier| sampled.event(Some(cap), noise_multiplier);
    let start = Instant::now();
    let noise_multiplier = calibrate::noise_multiplier(3.0, 1e-5, AddOrRemoveOne, &capped)?;
    println!(
        "calibration with it: {noise_multiplier:.4} in {:.1} ms",
        start.elapsed().as_secs_f64() * 1e3
    );
    let start = Instant::now();
    let noise_multiplier = calibrate::noise_multiplier(3.0, 1e-5, AddOrRemoveOne, &training)?;
    println!(
        "calibration: {noise_multiplier:.4} in {:.1} ms",
        start.elapsed().as_secs_f64() * 1e3
    );
    Ok(())
}

/// Ten thousand steps at a sampling probability of a hundredth.
fn training(noise_multiplier: f64) -> DpEvent {
    let gaussian = Box::new(DpEvent::Gaussian { noise_multiplier });
    let event = Box::new(DpEvent::PoissonSampled {
        sampling_probability: 0.01,
        event: gaussian,
    });
    DpEvent::SelfComposed { event, count: 10_000 }
}
