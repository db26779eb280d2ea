//! Gradients of `layer_norm`'s and `rms_norm`'s weight and bias, `Σ_t g_t ∘ x̂_t` and `Σ_t g_t` of each record, in one
//! pass over inputs and output gradients: rows are normalised again while they are in cache.
//!
//! Sums are f64; the gradients are then rounded to the model's precision and are what is clipped and summed.

use crate::accelerated;
use crate::device::is_on_host;
use crate::error::{EngineError, Result};
use crate::ffi::{self, Element};
use crate::grid::in_parallel;
use tch::{Kind, Tensor};

/// `[B, width]` each, in the model's precision.
pub(crate) struct Reduced {
    /// `Σ_t g_t ∘ x̂_t`.
    pub(crate) scale: Tensor,
    /// `Σ_t g_t`.
    pub(crate) sum: Tensor,
}

/// How a row is normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Norm {
    /// `(x − mean)/sqrt(variance + eps)`.
    Layer { eps: f64 },
    /// `x/sqrt(mean of squares + eps)`.
    RootMeanSquare { eps: f64 },
}

/// Of inputs and output gradients `[B, T, width]`.
pub(crate) fn reduced(norm: Norm, input: &Tensor, gradient: &Tensor, threads: usize) -> Result<Reduced> {
    if !is_on_host(gradient) {
        return accelerated::reduced(norm, input, gradient);
    }
    let (input, gradient) = (input.f_contiguous()?, gradient.f_contiguous()?);
    let &[batch_size, rows, width] = &gradient.size()[..] else {
        return Err(EngineError::SumOutOfBound);
    };
    let record = (rows * width) as usize;
    let sums = match gradient.kind() {
        Kind::Float => all::<f32>(norm, &input, &gradient, record, width as usize, threads),
        Kind::Double => all::<f64>(norm, &input, &gradient, record, width as usize, threads),
        _ => None,
    };
    let (scales, sums): (Vec<_>, Vec<_>) = sums.ok_or(EngineError::SumOutOfBound)?.into_iter().unzip();
    let joined = |rows: Vec<Vec<f64>>| -> Result<Tensor> {
        Ok(Tensor::f_from_slice(&rows.concat())?
            .f_reshape([batch_size, width])?
            .f_to_kind(gradient.kind())?)
    };
    Ok(Reduced {
        scale: joined(scales)?,
        sum: joined(sums)?,
    })
}

fn all<T: Element + Into<f64> + Sync>(
    norm: Norm,
    input: &Tensor,
    gradient: &Tensor,
    record: usize,
    width: usize,
    threads: usize,
) -> Option<Vec<(Vec<f64>, Vec<f64>)>> {
    ffi::read(input, |inputs: &[T]| {
        ffi::read(gradient, |gradients: &[T]| {
            let records = inputs.chunks_exact(record).zip(gradients.chunks_exact(record));
            in_parallel(records.collect(), threads, |(inputs, gradients)| {
                of_record(norm, inputs, gradients, width)
            })
        })
    })?
}

fn of_record<T: Element + Into<f64>>(
    norm: Norm,
    inputs: &[T],
    gradients: &[T],
    width: usize,
) -> (Vec<f64>, Vec<f64>) {
    let (mut scale, mut sum) = (vec![0.0; width], vec![0.0; width]);
    let mut row = vec![0.0; width];
    for (inputs, gradients) in inputs.chunks_exact(width).zip(gradients.chunks_exact(width)) {
        let (mean, factor) = normalisation(norm, inputs, &mut row);
        let columns = row.iter().zip(gradients).zip(scale.iter_mut().zip(&mut sum));
        for ((&value, &gradient), (scale, sum)) in columns {
            let gradient: f64 = gradient.into();
            *scale += gradient * ((value - mean) * factor);
            *sum += gradient;
        }
    }
    (scale, sum)
}

/// The row in f64, and its mean and factor.
fn normalisation<T: Element + Into<f64>>(norm: Norm, inputs: &[T], row: &mut [f64]) -> (f64, f64) {
    for (value, &input) in row.iter_mut().zip(inputs) {
        *value = input.into();
    }
    let width = row.len() as f64;
    match norm {
        Norm::Layer { eps } => {
            let mean = sum_of(row, |value| value) / width;
            let variance = sum_of(row, |value| (value - mean) * (value - mean)) / width;
            (mean, 1.0 / (variance + eps).sqrt())
        }
        Norm::RootMeanSquare { eps } => {
            let squares = sum_of(row, |value| value * value) / width;
            (0.0, 1.0 / (squares + eps).sqrt())
        }
    }
}

/// Eight sums side by side, so that the compiler may use vectors.
fn sum_of(row: &[f64], of: impl Fn(f64) -> f64) -> f64 {
    let mut sums = [0.0f64; 8];
    let blocks = row.chunks_exact(8);
    let rest: f64 = blocks.remainder().iter().map(|&value| of(value)).sum();
    for block in blocks {
        for (sum, &value) in sums.iter_mut().zip(block) {
            *sum += of(value);
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn gradients_of_a_norm_are_those_of_autograd_on_one_record() {
        tch::manual_seed(5);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Double, Device::Cpu));
        let (input, gradient) = (random(&[4, 6, 11]) + 3.0, random(&[4, 6, 11]));
        let close = |own: &Tensor, other: &Tensor| {
            let difference = f64::try_from((own - other).abs().max()).unwrap();
            assert!(difference < 1e-11, "{difference}");
        };
        for norm in [Norm::Layer { eps: 1e-5 }, Norm::RootMeanSquare { eps: 1e-6 }] {
            let own = reduced(norm, &input, &gradient, 2).unwrap();
            for record in 0..4 {
                let weight = Tensor::ones([11], (Kind::Double, Device::Cpu)).set_requires_grad(true);
                let bias = Tensor::zeros([11], (Kind::Double, Device::Cpu)).set_requires_grad(true);
                let row = input.get(record);
                let output = match norm {
                    Norm::Layer { eps } => row.layer_norm([11], Some(&weight), Some(&bias), eps, false),
                    Norm::RootMeanSquare { eps } => {
                        let size = (row.square().mean_dim(-1, true, None::<Kind>) + eps).sqrt();
                        row / size * &weight + &bias
                    }
                };
                (output * gradient.get(record)).sum(Kind::Double).backward();
                close(&own.scale.get(record), &weight.grad());
                close(&own.sum.get(record), &bias.grad());
            }
        }
    }

    #[test]
    fn f32_rows_are_summed_in_f64() {
        tch::manual_seed(6);
        let (input, gradient) = (
            Tensor::randn([3, 50, 24], (Kind::Float, Device::Cpu)),
            Tensor::randn([3, 50, 24], (Kind::Float, Device::Cpu)),
        );
        let norm = Norm::Layer { eps: 1e-5 };
        let own = reduced(norm, &input, &gradient, 1).unwrap();
        let exact = reduced(
            norm,
            &input.to_kind(Kind::Double),
            &gradient.to_kind(Kind::Double),
            1,
        )
        .unwrap();
        assert_eq!(own.scale, exact.scale.to_kind(Kind::Float));
        assert_eq!(own.sum, exact.sum.to_kind(Kind::Float));
    }
}
