//! How fast this machine does what steps are made of, for the server's estimate of a run's duration. Public: made-up
//! numbers, no graph, no record.

use crate::device::{self, Device};
use crate::error::{EngineError, Result};
use crate::selftest;
use bastionai_privacy::noise::NoiseStream;
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// What a second holds, by libtorch with as many threads as a run gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throughput {
    /// Multiplications and additions of a matrix product in f32.
    pub matmul_flops: f64,
    /// Bytes read and written by an element-wise operator on values beyond the caches.
    pub bytes: f64,
    /// Small operators with their backward: what dispatch and autograd cost.
    pub operators: f64,
    /// Noise values, on one thread.
    pub noise_values: f64,
}

impl Throughput {
    /// Measures for about a second.
    ///
    /// # Errors
    /// Libtorch's; [`EngineError::Job`] for a device that cannot be used.
    pub fn measure(threads: u32, device: Device) -> Result<Self> {
        device
            .start()
            .map_err(|error| EngineError::Job(error.to_string()))?;
        selftest::prepare_process(threads)?;
        Ok(Self {
            matmul_flops: matmul_flops(device)?,
            bytes: bytes(device)?,
            operators: operators(device)?,
            noise_values: noise_values(),
        })
    }

    /// One line a number, as `bastionai-trainer --probe` prints them.
    pub fn lines(&self) -> String {
        format!(
            "matmul_flops {:e}\nbytes {:e}\noperators {:e}\nnoise_values {:e}\n",
            self.matmul_flops, self.bytes, self.operators, self.noise_values
        )
    }
}

fn matmul_flops(device: Device) -> Result<f64> {
    let (rows, inner, columns) = (256, 512, 512);
    let a = made_up(&[rows, inner], device)?;
    let b = made_up(&[inner, columns], device)?;
    let seconds = seconds_of(|| finished(&a.f_matmul(&b)?))?;
    Ok((2 * rows * inner * columns) as f64 / seconds)
}

fn bytes(device: Device) -> Result<f64> {
    let values = 8 << 20;
    let a = made_up(&[values], device)?;
    let mut out = made_up(&[values], device)?;
    // In place: one read of each operand, one write.
    let seconds = seconds_of(|| finished(&out.f_add_(&a)?))?;
    Ok((3 * 4 * values) as f64 / seconds)
}

fn made_up(shape: &[i64], device: Device) -> Result<Tensor> {
    device.place(&Tensor::f_rand(shape, (Kind::Float, tch::Device::Cpu))?)
}

/// Waits for a device: its operators return before they are done.
fn finished(result: &Tensor) -> std::result::Result<(), tch::TchError> {
    if device::is_on_host(result) {
        return Ok(());
    }
    result
        .f_flatten(0, -1)?
        .f_narrow(0, 0, 1)?
        .f_to_device(tch::Device::Cpu)
        .map(drop)
}

fn operators(device: Device) -> Result<f64> {
    let chained = 32;
    let start = made_up(&[8, 8], device)?.f_set_requires_grad(true)?;
    let seconds = seconds_of(|| {
        let mut value = start.f_mul_scalar(0.5)?;
        for _ in 1..chained {
            value = value.f_tanh()?;
        }
        let gradients = Tensor::f_run_backward(&[value.f_sum(Kind::Float)?], &[&start], false, false)?;
        finished(&gradients[0])
    })?;
    Ok(f64::from(chained) / seconds)
}

fn noise_values() -> f64 {
    let (noise, mut sums) = (NoiseStream::new([1; 32]), vec![0_i64; 1 << 16]);
    let mut step = 0;
    let seconds = seconds_of(|| {
        step += 1;
        // Never an error: the shape and the deviation are constants in range.
        noise
            .add_rounded_gaussian(step, 0, 0, &mut sums, f64::from(1_u32 << 30))
            .map_err(|error| tch::TchError::Kind(error.to_string()))
    });
    seconds.map_or(0.0, |seconds| sums.len() as f64 / seconds)
}

/// Seconds of one call: the median of many, after some that warm caches and thread pools up.
fn seconds_of(mut work: impl FnMut() -> std::result::Result<(), tch::TchError>) -> Result<f64> {
    for _ in 0..3 {
        work()?;
    }
    let (mut times, since) = (Vec::new(), Instant::now());
    while times.len() < 5 || since.elapsed() < MEASURED {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2].max(1e-9))
}

/// Each of the four is measured for so long, at least.
const MEASURED: Duration = Duration::from_millis(150);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_multiplies_moves_dispatches_and_draws() {
        let found = Throughput::measure(1, Device::Cpu).unwrap();
        // A calculator from 1995 does less, no CPU does more.
        assert!((1e7..1e14).contains(&found.matmul_flops), "{found:?}");
        assert!((1e7..1e13).contains(&found.bytes), "{found:?}");
        assert!((1e3..1e8).contains(&found.operators), "{found:?}");
        assert!((1e5..1e10).contains(&found.noise_values), "{found:?}");
        assert_eq!(found.lines().lines().count(), 4);
    }
}
