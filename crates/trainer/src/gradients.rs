//! Per-sample gradients from taps: rows brought into batch order, norms, and the gradient of each record where
//! it is instantiated. Norms are f64, so that γ is about 1e-13, but for Gram matrices in f32 (rule G1).

mod channels;
mod convolution;
pub(crate) mod exact;
mod factored;
pub(crate) mod gram;
pub(crate) mod instantiated;
pub(crate) mod normalised;
mod padding;
pub(crate) mod pulled;
mod unfold;
pub(crate) mod units;
mod windows;

use self::channels::by_channel;
use self::gram::{Ghost, Grams};
use self::instantiated::squared_norms;
use self::normalised::{Norm, Reduced, reduced};
use self::units::Units;
use crate::device::to_host;
use crate::error::{EngineError, Result};
use crate::phases;
use crate::precision::Precision;
use crate::program::BatchAxis;
use crate::table;
use crate::taps::{Method, ParameterPlan, Plan, Role, TapKind, TapPlan, Use, ViewBack};
use bastionai_privacy::sensitivity::MAGNITUDE_LIMIT;
use tch::{Kind, Tensor};

/// Everything a batch's taps hold, in batch order.
pub(crate) struct TapValues {
    /// `[B, T, width]` output gradients of row taps; the raw output gradient of broadcasts and convolutions.
    pub(crate) gradient: Tensor,
    /// `[B, T, width]` inputs; the other operand of a broadcast multiplication;
    /// the raw input of a convolution;
    /// `[B, T]` i64 ids of an embedding, −1 where there is no gradient.
    pub(crate) input: Option<Tensor>,
    /// `[B, T]`, f64: norms of input rows and gradient rows, of taps with a table or with a weight whose norm needs
    /// them.
    pub(crate) row_norms: Option<(Tensor, Tensor)>,
    /// `[B, channels, rest]`: output gradients of taps with a parameter a channel.
    pub(crate) channels: Option<Tensor>,
    /// The gradients of a norm's weight and bias themselves: then there is neither output gradient nor input.
    pub(crate) reduced: Option<Reduced>,
    /// Where units have several records: what is by record above, whose gradients are yet to be added up.
    pub(crate) units: Option<Units>,
}

impl TapValues {
    /// Forgets what it holds: no sum needs it any more.
    pub(crate) fn free(&mut self) {
        *self = Self {
            gradient: Tensor::new(),
            input: None,
            row_norms: None,
            channels: None,
            reduced: None,
            units: None,
        };
    }
}

/// Squared norms and magnitudes of all units: `[B/k]`, f64; units are called records below, as each is one where k = 1.
pub(crate) struct Norms {
    /// Where Gram matrices are f32 their norms are upper bounds already.
    pub(crate) norm_squared: Tensor,
    /// `S_i²`, see [`bastionai_privacy::sensitivity`].
    pub(crate) magnitude_squared: Tensor,
    /// The same of each parameter, in the plan's order.
    pub(crate) parameters: Vec<(Tensor, Tensor)>,
    /// `[B]`, bool: every row finite and within [`MAGNITUDE_LIMIT`].
    pub(crate) usable: Tensor,
    /// For each parameter, what its instantiation left.
    pub(crate) instantiated: Vec<Option<Instantiated>>,
}

/// One parameter's instantiated gradients.
pub(crate) struct Instantiated {
    /// `‖G_i‖²` of the very numbers that are summed.
    pub(crate) squared: Vec<f64>,
    /// The gradients themselves, block by block; none when they are computed again for the sum.
    pub(crate) kept: Vec<Tensor>,
}

/// Brings a tap's gradient and saved input into batch order, by unit.
pub(crate) fn tap_values(
    plan: &TapPlan,
    gradient: Tensor,
    saved: &[Tensor],
    units: &Units,
    threads: usize,
) -> Result<TapValues> {
    let batch_size = units.counted.size()[0];
    units::of_units(
        plan,
        of_records(plan, gradient, saved, batch_size, threads)?,
        units,
    )
}

fn of_records(
    plan: &TapPlan,
    gradient: Tensor,
    saved: &[Tensor],
    batch_size: i64,
    threads: usize,
) -> Result<TapValues> {
    let all_saved = saved;
    if saved.is_empty()
        && let Some(values) = of_bias(plan, &gradient, batch_size)?
    {
        return Ok(values);
    }
    let saved = || {
        saved
            .first()
            .ok_or_else(|| EngineError::Job("typed graph: a tap without its input".into()))
    };
    let reduced_values = |norm: Norm, width: i64| -> Result<TapValues> {
        let of = |tensor: &Tensor| rows(tensor, plan.batch, batch_size, width);
        Ok(of_reduced(reduced(
            norm,
            &of(saved()?)?,
            &of(&gradient)?,
            threads,
        )?))
    };
    Ok(match &plan.kind {
        TapKind::Rows {
            input_width,
            output_width,
        } => {
            let input = rows(saved()?, plan.batch, batch_size, *input_width)?;
            let gradient = rows(&gradient, plan.batch, batch_size, *output_width)?;
            let row_norms = if plan.needs_row_norms {
                Some((row_norms(&input, threads)?, row_norms(&gradient, threads)?))
            } else {
                None
            };
            TapValues {
                gradient,
                input: Some(input),
                row_norms,
                channels: None,
                reduced: None,
                units: None,
            }
        }
        TapKind::LayerNorm { eps, width, .. } => reduced_values(Norm::Layer { eps: *eps }, *width)?,
        TapKind::Embedding { width, padding, .. } => {
            let gradient = rows(&gradient, plan.batch, batch_size, *width)?.f_contiguous()?;
            let ids = rows(saved()?, plan.batch, batch_size, 1)?
                .f_squeeze_dim(2)?
                .f_to_kind(Kind::Int64)?;
            let (ids, norms) = without_padding(&ids, row_norms(&gradient, threads)?, *padding)?;
            TapValues {
                row_norms: Some((norms.f_ones_like()?, norms)),
                gradient,
                input: Some(ids),
                channels: None,
                reduced: None,
                units: None,
            }
        }
        TapKind::RmsNorm { eps, width } => reduced_values(Norm::RootMeanSquare { eps: *eps }, *width)?,
        TapKind::Convolution(convolution) => {
            convolution::values(convolution, plan, gradient, saved()?, batch_size, threads)?
        }
        TapKind::Channels { channels, normalised } => {
            let sums = channels::reduced(normalised, all_saved, &gradient, batch_size, *channels, threads)?;
            match sums {
                Some(sums) => of_reduced(sums),
                None => TapValues {
                    channels: Some(by_channel(&gradient, batch_size, *channels)?),
                    input: Some(channels::normalised(
                        normalised, all_saved, batch_size, *channels,
                    )?),
                    gradient,
                    row_norms: None,
                    reduced: None,
                    units: None,
                },
            }
        }
        TapKind::Pulled => return Err(EngineError::SumOutOfBound),
        TapKind::Broadcast => TapValues {
            gradient,
            input: saved().ok().map(Tensor::shallow_clone),
            row_norms: None,
            channels: None,
            reduced: None,
            units: None,
        },
    })
}

/// Of a tap whose gradients are made already: it needs neither input nor output gradient any more.
fn of_reduced(reduced: Reduced) -> TapValues {
    TapValues {
        gradient: Tensor::new(),
        input: None,
        row_norms: None,
        channels: None,
        reduced: Some(reduced),
        units: None,
    }
}

/// Of a tap that only biases have: their gradients are sums of the output's. `None` for kinds that are no such tap.
fn of_bias(plan: &TapPlan, gradient: &Tensor, batch_size: i64) -> Result<Option<TapValues>> {
    let (width, channels) = match &plan.kind {
        TapKind::Rows { output_width, .. } => (Some(*output_width), None),
        TapKind::LayerNorm { width, .. } => (Some(*width), None),
        TapKind::Channels { channels, .. } => (None, Some(*channels)),
        TapKind::Convolution(convolution) => (None, Some(convolution.output_channels())),
        TapKind::Broadcast | TapKind::Embedding { .. } | TapKind::RmsNorm { .. } | TapKind::Pulled => {
            return Ok(None);
        }
    };
    let channels = channels.map(|channels| by_channel(gradient, batch_size, channels));
    Ok(Some(TapValues {
        gradient: match width {
            Some(width) => rows(gradient, plan.batch, batch_size, width)?,
            None => gradient.shallow_clone(),
        },
        input: None,
        row_norms: None,
        channels: channels.transpose()?,
        reduced: None,
        units: None,
    }))
}

/// `[.., B·k, .., width]` as `[B, T, width]`, batch-major.
fn rows(tensor: &Tensor, batch: BatchAxis, batch_size: i64, width: i64) -> Result<Tensor> {
    Ok(tensor
        .f_movedim_int(batch.axis, 0)?
        .f_reshape([batch_size, -1, width])?)
}

/// Ids with −1 for tokens without a gradient, and the norms of what is left.
fn without_padding(ids: &Tensor, norms: Tensor, padding: Option<i64>) -> Result<(Tensor, Tensor)> {
    let Some(padding) = padding else {
        return Ok((ids.f_contiguous()?, norms));
    };
    let kept = ids.f_ne(padding)?;
    Ok((
        ids.f_where_scalarother(&kept, -1)?.f_contiguous()?,
        norms.f_where_scalarother(&to_host(&kept)?, 0.0)?,
    ))
}

/// Norms of the rows of `[B, T, width]`, `[B, T]` in f64, whatever precision the rows have.
fn row_norms(rows: &Tensor, threads: usize) -> Result<Tensor> {
    let size = rows.size();
    let norms: Vec<f64> = squared_norms(&rows.f_flatten(0, 1)?, threads)?
        .into_iter()
        .map(f64::sqrt)
        .collect();
    Ok(Tensor::f_from_slice(&norms)?.f_reshape(&size[..2])?)
}

/// Norms of every record over all trainable parameters.
pub(crate) fn norms(plan: &Plan, taps: &[TapValues], precision: &Precision, threads: usize) -> Result<Norms> {
    let batch_size = precision.batch_size();
    let zeros = || Tensor::f_zeros([batch_size], (Kind::Double, tch::Device::Cpu));
    let (mut norm_squared, mut magnitude_squared) = (zeros()?, zeros()?);
    let mut usable = zeros()?.f_eq(0)?;
    for tap in taps {
        if let Some((inputs, gradients)) = &tap.row_norms {
            let within = |norms: &Tensor| norms.f_le(MAGNITUDE_LIMIT)?.f_all_dim(1, false);
            let both = within(inputs)?.f_logical_and(&within(gradients)?)?;
            usable = usable.f_logical_and(&both)?;
        }
    }
    let mut all_instantiated = Vec::with_capacity(plan.parameters.len());
    let mut parameters = Vec::with_capacity(plan.parameters.len());
    let mut grams = Grams::default();
    for parameter in &plan.parameters {
        let (squared, magnitude) = if let Method::Instantiate { kept } = parameter.method {
            let found = instantiate_all(parameter, plan, taps, batch_size, kept, threads)?;
            let squared = Tensor::f_from_slice(&found.squared)?;
            all_instantiated.push(Some(found));
            (squared.shallow_clone(), squared)
        } else {
            all_instantiated.push(None);
            let found = parameter_norms(parameter, taps, precision, &mut grams)?;
            if let Some(within) = &found.usable {
                usable = usable.f_logical_and(within)?;
            }
            (found.squared, found.magnitude_squared)
        };
        norm_squared = norm_squared.f_add(&squared)?;
        magnitude_squared = magnitude_squared.f_add(&magnitude)?;
        parameters.push((squared, magnitude));
        phases::end(parameter.method.norms());
    }
    usable = usable
        .f_logical_and(&magnitude_squared.f_isfinite()?)?
        .f_logical_and(&norm_squared.f_isfinite()?)?;
    Ok(Norms {
        norm_squared,
        magnitude_squared,
        parameters,
        usable,
        instantiated: all_instantiated,
    })
}

fn instantiate_all(
    parameter: &ParameterPlan,
    plan: &Plan,
    taps: &[TapValues],
    batch_size: i64,
    keep: bool,
    threads: usize,
) -> Result<Instantiated> {
    let (mut squared, mut kept) = (Vec::with_capacity(batch_size as usize), Vec::new());
    for (first, count) in blocks(batch_size, parameter.block) {
        let (gradients, own) = measured(parameter, plan, taps, first, count, threads)?;
        squared.extend(own);
        if keep {
            kept.push(gradients);
        }
    }
    Ok(Instantiated { squared, kept })
}

/// Norms of one parameter that is handled by rows.
fn parameter_norms(
    parameter: &ParameterPlan,
    taps: &[TapValues],
    precision: &Precision,
    grams: &mut Grams,
) -> Result<Ghost> {
    if parameter.method == Method::Factored {
        return factored::norms(parameter, taps, precision, grams);
    }
    let tap = &taps[parameter.uses[0].tap];
    let input = tap.input.as_ref().ok_or(EngineError::SumOutOfBound)?;
    let widths = [input.size()[2], tap.gradient.size()[2]];
    if let (Method::Ghost, Some(rounding)) = (parameter.method, precision.gram_rounding(widths)) {
        return grams.norms(input, &tap.gradient, &rounding);
    }
    let (inputs, gradients) = tap.row_norms.as_ref().ok_or(EngineError::SumOutOfBound)?;
    let magnitude_squared = inputs
        .f_mul(gradients)?
        .f_sum_dim_intlist(1, false, Kind::Double)?
        .f_square()?;
    let squared = match parameter.method {
        Method::Rows => magnitude_squared.shallow_clone(),
        _ => gram::squared_norms_f64(input, &tap.gradient)?,
    };
    Ok(Ghost {
        squared,
        magnitude_squared,
        usable: None,
    })
}

/// `(first, count)` of blocks of at most `most` records, at least one each.
pub(crate) fn blocks(batch_size: i64, most: i64) -> impl Iterator<Item = (i64, i64)> {
    let step = most.clamp(1, batch_size.max(1));
    (0..batch_size)
        .step_by(step as usize)
        .map(move |first| (first, step.min(batch_size - first)))
}

/// Gradients of records `first..first + count`, `[count, parameter shape]`, in the model's precision: the sum over
/// all uses, so that the cross terms of tied parameters are there.
pub(crate) fn instantiate(
    parameter: &ParameterPlan,
    plan: &Plan,
    taps: &[TapValues],
    first: i64,
    count: i64,
    threads: usize,
) -> Result<Tensor> {
    sum_of_uses(
        &parameter.uses,
        &parameter.shape,
        plan,
        taps,
        (first, count),
        threads,
    )
}

/// As [`instantiate`], with the squared norm of each record's gradient.
pub(crate) fn measured(
    parameter: &ParameterPlan,
    plan: &Plan,
    taps: &[TapValues],
    first: i64,
    count: i64,
    threads: usize,
) -> Result<(Tensor, Vec<f64>)> {
    let convolution = match &parameter.uses[..] {
        [only] => match (&only.role, &plan.taps[only.tap].kind) {
            (Role::Weight { .. }, TapKind::Convolution(convolution)) => Some((only, convolution)),
            _ => None,
        },
        _ => None,
    };
    // Norms come with the gradients where each is a unit's.
    let Some((only, convolution)) = convolution.filter(|(only, _)| taps[only.tap].units.is_none()) else {
        let gradients = instantiate(parameter, plan, taps, first, count, threads)?;
        let squared = squared_norms(&gradients, threads)?;
        return Ok((gradients, squared));
    };
    let (gradients, squared) =
        convolution::weight_gradients(convolution, &taps[only.tap], first, count, threads)?;
    let squared = match squared {
        Some(squared) => squared,
        None => squared_norms(&gradients, threads)?,
    };
    let mut shape = vec![count];
    shape.extend(&only.value_shape);
    // Views neither add to a norm nor take from it.
    Ok((
        undo_views(&gradients.f_reshape(&shape[..])?, &only.back)?,
        squared,
    ))
}

fn sum_of_uses(
    uses: &[Use],
    own_shape: &[i64],
    plan: &Plan,
    taps: &[TapValues],
    (first, count): (i64, i64),
    threads: usize,
) -> Result<Tensor> {
    let mut shape = vec![count];
    shape.extend(own_shape);
    let mut total: Option<Tensor> = None;
    for each in uses {
        let gradient = use_gradient(
            each,
            &plan.taps[each.tap],
            &taps[each.tap],
            (first, count),
            threads,
        )?;
        let gradient = undo_views(&gradient, &each.back)?;
        total = Some(match total {
            None => gradient,
            Some(sum) => sum.f_add(&gradient)?,
        });
    }
    match total {
        Some(total) => Ok(total),
        None => Ok(Tensor::f_zeros(&shape[..], (Kind::Double, tch::Device::Cpu))?),
    }
}

/// From the shape in which a parameter enters its node to its own; a leading axis of records stays.
pub(crate) fn undo_views(gradient: &Tensor, back: &[ViewBack]) -> Result<Tensor> {
    let mut out = gradient.shallow_clone();
    let records = out.size()[0];
    for step in back {
        out = match step {
            ViewBack::Permute(axes) => {
                let axes: Vec<i64> = std::iter::once(0)
                    .chain(axes.iter().map(|axis| axis + 1))
                    .collect();
                out.f_permute(&axes[..])?
            }
            ViewBack::Reshape(shape) => {
                let shape: Vec<i64> = std::iter::once(records).chain(shape.iter().copied()).collect();
                out.f_reshape(&shape[..])?
            }
            ViewBack::Widen { axis, before, after } => {
                // Counted from the last axis: none of the later ones grows.
                let mut padding = vec![0; 2 * (out.size().len() - 2 - *axis as usize)];
                padding.extend([*before, *after]);
                out.f_constant_pad_nd(&padding[..])?
            }
        };
    }
    Ok(out)
}

/// One use's gradients of a block of units `(first, count)`, `[count, value shape]`, in the model's precision.
fn use_gradient(
    each: &Use,
    plan: &TapPlan,
    tap: &TapValues,
    block: (i64, i64),
    threads: usize,
) -> Result<Tensor> {
    // Of a convolution that is handled by rows, the bias alone is by record.
    let by_record = !plan.as_rows || each.role == Role::ChannelSum;
    let units = tap.units.as_ref().filter(|_| by_record);
    units::of_block(units, block, |records| {
        record_gradient(each, plan, tap, records, threads)
    })
}

fn record_gradient(
    each: &Use,
    plan: &TapPlan,
    tap: &TapValues,
    (first, count): (i64, i64),
    threads: usize,
) -> Result<Tensor> {
    let narrow = |tensor: &Tensor| tensor.f_narrow(0, first, count);
    let input = || tap.input.as_ref().ok_or(EngineError::SumOutOfBound);
    let channels = || tap.channels.as_ref().ok_or(EngineError::SumOutOfBound);
    let reduced = || tap.reduced.as_ref().ok_or(EngineError::SumOutOfBound);
    let sum = |tensor: &Tensor, axes: &[i64]| tensor.f_sum_dim_intlist(axes, false, None::<Kind>);
    let mut shape = vec![count];
    shape.extend(&each.value_shape);
    let gradient = match (&each.role, &plan.kind) {
        (Role::Weight { .. }, TapKind::Convolution(convolution)) if !plan.as_rows => {
            return Ok(convolution::weight_gradients(convolution, tap, first, count, threads)?.0);
        }
        (Role::Weight { transposed }, _) => {
            let (inputs, gradients) = (narrow(input()?)?, narrow(&tap.gradient)?);
            let (left, right) = if *transposed {
                (inputs, gradients)
            } else {
                (gradients, inputs)
            };
            left.f_transpose(1, 2)?.f_bmm(&right)?
        }
        (Role::Pulled, _) => narrow(&tap.gradient)?,
        (Role::Sum | Role::ChannelSum, _) if tap.reduced.is_some() => narrow(&reduced()?.sum)?,
        (Role::Scale, _) => narrow(&reduced()?.scale)?,
        (Role::ChannelScale, _) if tap.reduced.is_some() => narrow(&reduced()?.scale)?,
        (Role::Sum, _) => sum(&narrow(&tap.gradient)?, &[1])?,
        (Role::Table, _) => {
            let ids = input()?.f_narrow(0, first, count)?;
            table::dense(&ids, &narrow(&tap.gradient)?, each.value_shape[0])?
        }
        (Role::ChannelSum, _) => sum(&narrow(channels()?)?, &[2])?,
        (Role::ChannelScale, _) => {
            let products = narrow(channels()?)?.f_mul(&narrow(input()?)?)?;
            let single = each.value_shape.iter().product::<i64>() == 1;
            sum(&products, if single { &[1, 2] } else { &[2] })?
        }
        (Role::BroadcastAdd { scale }, _) => {
            let gradient = narrow(&broadcast_rows(&tap.gradient, plan)?)?;
            sum_broadcast(&gradient, plan, &each.value_shape)?.f_mul_scalar(*scale)?
        }
        (Role::BroadcastMul, _) => {
            let gradient = narrow(&broadcast_rows(&tap.gradient, plan)?)?;
            let other = input()?.f_broadcast_to(&plan.output_shape[..])?;
            sum_broadcast(
                &gradient.f_mul(&narrow(&broadcast_rows(&other, plan)?)?)?,
                plan,
                &each.value_shape,
            )?
        }
    };
    Ok(gradient.f_reshape(&shape[..])?)
}

/// The output's shape with records in front: `[B, .., k, ..]`, where `k` takes the batch axis's place.
fn broadcast_rows(tensor: &Tensor, plan: &TapPlan) -> Result<Tensor> {
    let axis = plan.batch.axis as usize;
    let mut split = plan.output_shape.clone();
    split[axis] /= plan.batch.inner;
    split.insert(axis + 1, plan.batch.inner);
    Ok(tensor.f_reshape(&split[..])?.f_movedim_int(plan.batch.axis, 0)?)
}

/// Sums over the axes on which the parameter was broadcast.
fn sum_broadcast(rows: &Tensor, plan: &TapPlan, value_shape: &[i64]) -> Result<Tensor> {
    let missing = plan.output_shape.len() - value_shape.len();
    let axes: Vec<i64> = (0..plan.output_shape.len())
        .filter(|&axis| axis < missing || value_shape[axis - missing] == 1)
        .map(|axis| axis as i64 + 1)
        .collect();
    if axes.is_empty() {
        Ok(rows.shallow_clone())
    } else {
        Ok(rows.f_sum_dim_intlist(&axes[..], true, None::<Kind>)?)
    }
}
