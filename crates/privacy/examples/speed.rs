//! Times noise and sampling on one core: `cargo run --release -p bastionai-privacy --example speed`.

use std::time::Instant;

use bastionai_privacy::{noise::NoiseStream, sampling::PoissonSampler};

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
    Ok(())
}
