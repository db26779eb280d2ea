//! Gradients of parameters with one number a channel: `Σ g ∘ x̂` and `Σ g` of each record and channel in one pass over
//! input and output gradient, or what the latter is multiplied with, `[B, channels, rest]`.

use super::normalised::Reduced;
use crate::device::is_on_host;
use crate::error::{EngineError, Result};
use crate::ffi::{self, Element};
use crate::grid::in_parallel;
use crate::taps::Normalised;
use crate::vectors::{Pass, Vectors, Widest};
use tch::{Kind, Tensor};

/// `[B, channels, ..]` as `[B, channels, rest]`.
pub(crate) fn by_channel(tensor: &Tensor, batch_size: i64, channels: i64) -> Result<Tensor> {
    Ok(tensor.f_reshape([batch_size, channels, -1])?)
}

/// The normalised input, or for a slope the negative part of it.
///
/// `saved`: the input, and for fixed statistics mean and variance.
pub(crate) fn normalised(
    how: &Normalised,
    saved: &[Tensor],
    batch_size: i64,
    channels: i64,
) -> Result<Tensor> {
    let [input, statistics @ ..] = saved else {
        return Err(EngineError::Job("typed graph: a tap without its input".into()));
    };
    let input = by_channel(input, batch_size, channels)?;
    Ok(match (how, statistics) {
        (Normalised::InGroups { groups, eps }, []) => {
            let rest = input.size()[2];
            let none = None::<&Tensor>;
            input
                .f_contiguous()?
                .f_native_group_norm(none, none, batch_size, channels, rest, *groups, *eps)?
                .0
        }
        (Normalised::ByStatistics { eps }, [mean, variance]) => {
            let column = |values: &Tensor| values.f_reshape([1, -1, 1]);
            let scale = variance.f_add_scalar(*eps)?.f_rsqrt()?;
            input.f_sub(&column(mean)?)?.f_mul(&column(&scale)?)?
        }
        (Normalised::NegativePart, []) => input.f_clamp_max(0.0)?,
        _ => {
            return Err(EngineError::Job(
                "typed graph: a tap with other values than its operator takes".into(),
            ));
        }
    })
}

/// Sums of a channel side by side, so that the compiler may use vectors.
const LANES: usize = 16;

/// `Σ g ∘ x̂` and `Σ g` of a group norm, `[B, channels]` in the model's precision. `None` for other norms, and where
/// memory cannot be read directly.
///
/// `Σ g·(x − μ)/s = (Σ g·x − μ·Σ g)/s`, so that mean and deviation of a group may be known last. All sums are f64.
pub(crate) fn reduced(
    how: &Normalised,
    saved: &[Tensor],
    gradient: &Tensor,
    batch_size: i64,
    channels: i64,
    threads: usize,
) -> Result<Option<Reduced>> {
    let (Normalised::InGroups { groups, eps }, [input]) = (how, saved) else {
        return Ok(None);
    };
    if !is_on_host(gradient) {
        return Ok(None);
    }
    let of =
        |tensor: &Tensor| -> Result<Tensor> { Ok(by_channel(tensor, batch_size, channels)?.f_contiguous()?) };
    let (input, gradient) = (of(input)?, of(gradient)?);
    let norm = GroupNorm {
        channels: channels as usize,
        groups: *groups as usize,
        eps: *eps,
    };
    let kind = gradient.kind();
    let sums = match kind {
        Kind::Float => norm.all::<f32>(&input, &gradient, threads),
        Kind::Double => norm.all::<f64>(&input, &gradient, threads),
        _ => None,
    };
    let Some(sums) = sums else { return Ok(None) };
    let (scales, sums): (Vec<_>, Vec<_>) = sums.into_iter().unzip();
    let joined = |rows: Vec<Vec<f64>>| -> Result<Tensor> {
        let rows = Tensor::f_from_slice(&rows.concat())?.f_reshape([batch_size, channels])?;
        Ok(rows.f_to_kind(kind)?)
    };
    Ok(Some(Reduced {
        scale: joined(scales)?,
        sum: joined(sums)?,
    }))
}

struct GroupNorm {
    channels: usize,
    groups: usize,
    eps: f64,
}

/// Of each channel, `Σ g ∘ x̂` and `Σ g`.
type OfRecord = (Vec<f64>, Vec<f64>);

impl GroupNorm {
    fn all<T: Element + Into<f64> + Sync>(
        &self,
        input: &Tensor,
        gradient: &Tensor,
        threads: usize,
    ) -> Option<Vec<OfRecord>> {
        ffi::read(input, |inputs: &[T]| {
            ffi::read(gradient, |gradients: &[T]| {
                let rest = input.size()[2] as usize;
                if rest == 0 || inputs.len() != gradients.len() {
                    return None;
                }
                let record = self.channels * rest;
                let records = inputs.chunks_exact(record).zip(gradients.chunks_exact(record));
                Some(in_parallel(records.collect(), threads, |(inputs, gradients)| {
                    self.of_record(inputs, gradients, rest)
                }))
            })
        })??
    }

    fn of_record<T: Element + Into<f64>>(&self, inputs: &[T], gradients: &[T], rest: usize) -> OfRecord {
        let channels = inputs.chunks_exact(rest).zip(gradients.chunks_exact(rest));
        let sums = channels.map(|(input, gradient)| Widest.run(Channel { input, gradient }));
        let sums: Vec<Moments> = sums.collect();
        let together = self.channels / self.groups.max(1);
        let count = (together * rest) as f64;
        let mut scale = Vec::with_capacity(self.channels);
        for group in sums.chunks(together.max(1)) {
            let mean = group.iter().map(|sums| sums.input).sum::<f64>() / count;
            let square = group.iter().map(|sums| sums.input_squared).sum::<f64>() / count;
            let factor = 1.0 / ((square - mean * mean).max(0.0) + self.eps).sqrt();
            // A variance that is no number must not become 0.
            let factor = if square.is_finite() { factor } else { f64::NAN };
            scale.extend(
                group
                    .iter()
                    .map(|sums| (sums.product - mean * sums.gradient) * factor),
            );
        }
        (scale, sums.iter().map(|sums| sums.gradient).collect())
    }
}

/// `Σ x`, `Σ x²`, `Σ g` and `Σ g·x`.
struct Moments {
    input: f64,
    input_squared: f64,
    gradient: f64,
    product: f64,
}

/// Of one record.
struct Channel<'a, T> {
    input: &'a [T],
    gradient: &'a [T],
}

impl<T: Element + Into<f64>> Pass for Channel<'_, T> {
    type Output = Moments;

    #[inline(always)]
    fn run(self) -> Moments {
        let mut sums = [[0.0f64; LANES]; 4];
        let (inputs, input_rest) = self.input.as_chunks::<LANES>();
        let (gradients, gradient_rest) = self.gradient.as_chunks::<LANES>();
        for (input, gradient) in inputs.iter().zip(gradients) {
            for lane in 0..LANES {
                let (x, g): (f64, f64) = (input[lane].into(), gradient[lane].into());
                sums[0][lane] += x;
                sums[1][lane] += x * x;
                sums[2][lane] += g;
                sums[3][lane] += g * x;
            }
        }
        for (lane, (&x, &g)) in input_rest.iter().zip(gradient_rest).enumerate() {
            let (x, g): (f64, f64) = (x.into(), g.into());
            sums[0][lane] += x;
            sums[1][lane] += x * x;
            sums[2][lane] += g;
            sums[3][lane] += g * x;
        }
        let [input, input_squared, gradient, product] = sums.map(|lanes| lanes.iter().sum());
        Moments {
            input,
            input_squared,
            gradient,
            product,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn gradients_of_a_group_norm_are_those_of_autograd_on_one_record() {
        tch::manual_seed(11);
        for (channels, groups, extents) in [(6, 3, [5, 7]), (4, 1, [1, 3]), (8, 8, [4, 4]), (32, 2, [16, 3])]
        {
            let random = || Tensor::randn([3, channels, extents[0], extents[1]], (Kind::Double, Device::Cpu));
            let (input, gradient) = (random() * 2.0 + 5.0, random());
            let how = Normalised::InGroups { groups, eps: 1e-5 };
            let own = reduced(&how, &[input.shallow_clone()], &gradient, 3, channels, 2)
                .unwrap()
                .unwrap();
            for record in 0..3 {
                let weight = Tensor::ones([channels], (Kind::Double, Device::Cpu)).set_requires_grad(true);
                let bias = Tensor::zeros([channels], (Kind::Double, Device::Cpu)).set_requires_grad(true);
                let row = input.narrow(0, record, 1);
                let output = row.group_norm(groups, Some(&weight), Some(&bias), 1e-5, false);
                (output * gradient.narrow(0, record, 1))
                    .sum(Kind::Double)
                    .backward();
                for (own, other) in [(&own.scale, weight.grad()), (&own.sum, bias.grad())] {
                    let difference = f64::try_from((own.get(record) - other).abs().max()).unwrap();
                    assert!(difference < 1e-10, "{channels} {groups}: {difference}");
                }
            }
        }
    }

    #[test]
    fn a_channel_that_is_no_number_gives_none_and_touches_no_other_record() {
        for bad in [f64::NAN, f64::INFINITY] {
            let input = Tensor::randn([2, 4, 9], (Kind::Float, Device::Cpu));
            let gradient = Tensor::randn([2, 4, 9], (Kind::Float, Device::Cpu));
            let how = Normalised::InGroups { groups: 2, eps: 1e-5 };
            let of = |input: &Tensor| {
                reduced(&how, &[input.shallow_clone()], &gradient, 2, 4, 1)
                    .unwrap()
                    .unwrap()
            };
            let before = of(&input);
            let other = input.copy();
            let _ = other.get(1).get(0).get(3).fill_(bad);
            let after = of(&other);
            assert!(before.scale.get(0).equal(&after.scale.get(0)));
            assert!(Vec::<f32>::try_from(after.scale.get(1)).unwrap()[0].is_nan());
        }
    }
}
