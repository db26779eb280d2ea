//! Noise per value, ours beside libtorch's and `rand_distr`'s, alternating on one thread: what `benches/noise.py` tables.
//!
//! Argument: seconds to spend. Prints one line a contender: name, best nanoseconds per value, median of its ratios to
//! ours. Each fills or adds to 2^20 values; ours adds to integer sums, the others fill floats, which leaves their addition out.
#![allow(clippy::print_stdout)]

use anyhow::Context as _;
use bastionai_privacy::noise::NoiseStream;
use bastionai_trainer::vectors::Widest;
use rand::SeedableRng as _;
use rand_distr::{Distribution as _, StandardNormal};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

const VALUES: usize = 1 << 20;
const DEVIATION: f64 = 1_073_741_824.0; // 2^30 grid units

struct Contender<'c> {
    name: &'static str,
    fill: Box<dyn FnMut() -> anyhow::Result<()> + 'c>,
    nanoseconds: Vec<f64>,
}

fn main() -> anyhow::Result<()> {
    let seconds: f64 = std::env::args()
        .nth(1)
        .context("usage: bench_noise SECONDS")?
        .parse()?;
    tch::set_num_threads(1);
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let mut contenders = contenders();
    // The first round warms up.
    for round in 0.. {
        for contender in &mut contenders {
            let since = Instant::now();
            (contender.fill)()?;
            let spent = since.elapsed().as_secs_f64() * 1e9 / VALUES as f64;
            if round > 0 {
                contender.nanoseconds.push(spent);
            }
        }
        if round > 2 && Instant::now() > until {
            break;
        }
    }
    let ours = contenders[0].nanoseconds.clone();
    for contender in &contenders {
        let mut ratios: Vec<f64> = contender
            .nanoseconds
            .iter()
            .zip(&ours)
            .map(|(one, our)| one / our)
            .collect();
        ratios.sort_by(f64::total_cmp);
        let best = contender
            .nanoseconds
            .iter()
            .copied()
            .fold(f64::INFINITY, f64::min);
        println!("{}\t{best:.3}\t{:.3}", contender.name, ratios[ratios.len() / 2]);
    }
    Ok(())
}

fn contenders<'c>() -> Vec<Contender<'c>> {
    let mut contenders = Vec::new();
    let mut add = |name, fill: Box<dyn FnMut() -> anyhow::Result<()> + 'c>| {
        contenders.push(Contender {
            name,
            fill,
            nanoseconds: Vec::new(),
        });
    };
    let (noise, mut sums, mut step) = (NoiseStream::new([1; 32]), vec![0_i64; VALUES], 0);
    add(
        "rounded Gaussian, ChaCha20 (ours)",
        Box::new(move || {
            step += 1;
            noise.add_rounded_gaussian_by(&Widest, step, 0, 0, &mut sums, DEVIATION)?;
            Ok(())
        }),
    );
    for (name, kind) in [
        ("torch.normal, float32", Kind::Float),
        ("torch.normal, float64", Kind::Double),
    ] {
        let mut values = Tensor::zeros([VALUES as i64], (kind, Device::Cpu));
        add(
            name,
            Box::new(move || {
                let _ = values.f_normal_(0.0, 1.0)?;
                Ok(())
            }),
        );
    }
    let mut small = rand::rngs::SmallRng::seed_from_u64(1);
    let mut values = vec![0.0_f64; VALUES];
    add(
        "rand_distr ziggurat, SmallRng",
        Box::new(move || {
            values.fill_with(|| StandardNormal.sample(&mut small));
            Ok(())
        }),
    );
    let mut secure = rand::rngs::StdRng::seed_from_u64(1);
    let mut values = vec![0.0_f64; VALUES];
    add(
        "rand_distr ziggurat, StdRng (ChaCha12)",
        Box::new(move || {
            values.fill_with(|| StandardNormal.sample(&mut secure));
            Ok(())
        }),
    );
    contenders
}
