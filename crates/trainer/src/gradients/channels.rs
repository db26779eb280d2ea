//! What a parameter with one number a channel is multiplied with: `[B, channels, rest]`.

use crate::error::{EngineError, Result};
use crate::taps::Normalised;
use tch::Tensor;

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
