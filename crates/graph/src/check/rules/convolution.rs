//! Convolutions, also transposed: a Shared kernel over the sample's own spatial axes.

use super::super::call::{Call, batch_axis};
use super::super::facts::{Output, Typed};
use super::super::premise::{Premise, require};
use super::super::refusal::Objection;
use super::contraction::{require_same_dtype, require_shared};
use super::spatial::{Window, after_windows, bounded, require_leading_batch, required};
use super::{Outcome, tap};
use crate::display;
use crate::typed::{Argument, Convolution, Dependence, Extent, Tap, ValueType};

/// `conv1d` … `conv3d` (also with `padding="same"`), `conv_transpose1d` … `conv_transpose3d`, `convolution`.
pub(in super::super) fn convolution(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let (input, weight, bias) = (
        call.tensor("input")?,
        call.tensor("weight")?,
        call.optional_tensor("bias")?,
    );
    require_shared("weight", weight)?;
    bias.map_or(Ok(()), |bias| require_shared("bias", bias))?;
    let axes = spatial_axes(call, weight)?;
    require_leading_batch(input, axes, "a convolution")?;
    let (geometry, output_padding) = geometry(call, weight, axes)?;
    let out = channels(input, weight, &geometry)?;
    if bias.is_some_and(|bias| bias.value_type.shape != [Extent::Fixed(out)]) {
        return Err(Objection::plain(
            "the bias does not have one element per output channel",
            "give a bias of shape [out]",
        ));
    }
    require_same_dtype(&[Some(input), Some(weight), bias])?;
    let value_type = result(input, &geometry, &output_padding, out)?;
    normalise_arguments(call, &geometry, &output_padding);
    let (weight, bias) = (tap::parameter(Some(weight)), tap::parameter(bias));
    let per_sample = value_type.dependence != Dependence::Shared;
    let tap = (per_sample && (weight.is_some() || bias.is_some())).then(|| Tap::Convolution {
        input: input.id,
        weight: weight.clone(),
        bias: bias.clone(),
        geometry,
    });
    if tap.is_some() {
        tap::require_tappable(&input.value_type, &[&weight, &bias], &[])?;
    }
    Ok(Outcome {
        outputs: vec![Output::new(value_type, call.any_requires_grad())],
        tap,
    })
}

/// By the operator's name; `convolution` has as many as its weight says.
fn spatial_axes(call: &Call<'_>, weight: &Typed) -> Result<usize, Objection> {
    let of_weight = weight.value_type.shape.len().checked_sub(2);
    let named = call.schema.name.trim_end_matches('d').chars().last();
    let axes = match named.and_then(|digit| digit.to_digit(10)) {
        Some(axes) => Some(axes as usize),
        None => of_weight,
    };
    axes.filter(|axes| (1..=3).contains(axes) && of_weight == Some(*axes))
        .ok_or_else(|| {
            Objection::plain(
                format!("the weight {} has another rank", display::ty(&weight.value_type)),
                "give a weight of [out, in/groups, kernel..]",
            )
        })
}

fn geometry(call: &Call<'_>, weight: &Typed, axes: usize) -> Result<(Convolution, Vec<u64>), Objection> {
    let general = call.schema.name == "convolution";
    let transposed = if general {
        call.bool("transposed")?
    } else {
        call.schema.name.starts_with("conv_transpose")
    };
    let kernel = kernel(weight)?;
    let stride = required(call, "stride", axes, 1)?;
    let dilation = required(call, "dilation", axes, 1)?;
    let groups = u64::try_from(call.int("groups")?).unwrap_or(0);
    let (padding_before, padding_after) = if call.schema.overload == "padding" {
        named_padding(call.string("padding")?, &kernel, &stride, &dilation)?
    } else {
        let padding = required(call, "padding", axes, 0)?;
        (padding.clone(), padding)
    };
    let output_padding = if general || transposed {
        bounded(call, "output_padding", axes, 0)?.unwrap_or_else(|| vec![0; axes])
    } else {
        vec![0; axes]
    };
    let geometry = Convolution {
        kernel,
        stride,
        padding_before,
        padding_after,
        dilation,
        groups,
        transposed,
    };
    Ok((geometry, output_padding))
}

fn kernel(weight: &Typed) -> Result<Vec<u64>, Objection> {
    weight.value_type.shape[2..]
        .iter()
        .map(|extent| match extent {
            Extent::Fixed(size) if (1..=1 << 16).contains(size) => Ok(*size),
            _ => Err(Objection::plain(
                "the kernel is empty or too large",
                "use 1 to 2^16 along an axis",
            )),
        })
        .collect()
}

/// `"valid"` and `"same"`; an odd number of zeros puts the last one after (aten `_convolution_mode`).
fn named_padding(
    mode: &str,
    kernel: &[u64],
    stride: &[u64],
    dilation: &[u64],
) -> Result<(Vec<u64>, Vec<u64>), Objection> {
    match mode {
        "valid" => Ok((vec![0; kernel.len()], vec![0; kernel.len()])),
        "same" if stride.iter().all(|stride| *stride == 1) => {
            let totals = kernel
                .iter()
                .zip(dilation)
                .map(|(kernel, dilation)| dilation * (kernel - 1));
            Ok(totals.map(|total| (total / 2, total - total / 2)).unzip())
        }
        "same" => Err(Objection::plain(
            "padding=\"same\" has no meaning with a stride",
            "use stride 1 or give the padding in numbers",
        )),
        other => Err(Objection::denied(
            format!("padding={other:?} has no rule"),
            "use \"same\", \"valid\" or numbers",
        )),
    }
}

/// Channels of the result, after the weight is found to fit the input.
fn channels(input: &Typed, weight: &Typed, geometry: &Convolution) -> Result<u64, Objection> {
    let groups = geometry.groups;
    let [Extent::Fixed(first), Extent::Fixed(second)] = weight.value_type.shape[..2] else {
        return Err(Objection::plain(
            "the weight has no constant shape",
            "use a parameter",
        ));
    };
    let (out, inner) = if geometry.transposed {
        (second.checked_mul(groups), Some(first))
    } else {
        (Some(first), second.checked_mul(groups))
    };
    let (Some(out), Some(inner)) = (out, inner) else {
        return Err(Objection::plain("the channels exceed 2^64", "use fewer groups"));
    };
    // Only in a rule mutant is there no channel axis after the batch.
    let channel_axis = input.value_type.shape.len() - geometry.kernel.len() - 1;
    let given = input.value_type.shape[channel_axis];
    let over_batch = matches!(given, Extent::Batch(_));
    require(
        Premise::ContractionWithinSample,
        !over_batch || channel_axis == 0,
        || {
            let reason = format!(
                "the convolution sums over the batch as its channels: {}",
                display::ty(&input.value_type)
            );
            (reason, "move the batch to axis 0".into())
        },
    )?;
    let divides = groups >= 1 && out % groups == 0 && inner % groups == 0;
    if divides && (given == Extent::Fixed(inner) || over_batch) {
        return Ok(out);
    }
    let reason = format!(
        "a weight of {} in {groups} groups does not fit {}",
        display::ty(&weight.value_type),
        display::ty(&input.value_type)
    );
    Err(Objection::plain(
        reason,
        "the input's channels must be the weight's times the groups, which divide both channels",
    ))
}

fn result(
    input: &Typed,
    geometry: &Convolution,
    output_padding: &[u64],
    out: u64,
) -> Result<ValueType, Objection> {
    let axes = geometry.kernel.len();
    let mut shape = if geometry.transposed {
        after_transposed(input, geometry, output_padding)?
    } else {
        let window = |axis: usize| Window {
            kernel: geometry.kernel[axis],
            stride: geometry.stride[axis],
            before: geometry.padding_before[axis],
            after: geometry.padding_after[axis],
            dilation: geometry.dilation[axis],
            ceil: false,
        };
        after_windows(input, &(0..axes).map(window).collect::<Vec<_>>())?
    };
    let channel_axis = shape.len() - axes - 1;
    shape[channel_axis] = Extent::Fixed(out);
    let value_type = ValueType {
        shape,
        ..input.value_type.clone()
    };
    // Only in a rule mutant was the batch a channel.
    Ok(if batch_axis(&value_type).is_none() {
        ValueType {
            dependence: Dependence::Shared,
            ..value_type
        }
    } else {
        value_type
    })
}

/// `(size − 1)·stride − 2·padding + dilation·(kernel − 1) + output_padding + 1` along each axis.
fn after_transposed(
    input: &Typed,
    geometry: &Convolution,
    output_padding: &[u64],
) -> Result<Vec<Extent>, Objection> {
    let mut shape = input.value_type.shape.clone();
    let first = shape.len() - geometry.kernel.len();
    for (axis, extent) in shape[first..].iter_mut().enumerate() {
        let Extent::Fixed(size) = *extent else { continue };
        let (stride, dilation) = (geometry.stride[axis], geometry.dilation[axis]);
        if output_padding[axis] >= stride.max(dilation) {
            return Err(Objection::plain(
                "output_padding is not below the stride or the dilation",
                "use a smaller output_padding",
            ));
        }
        let grown = i128::from(size - 1) * i128::from(stride)
            + i128::from(dilation) * i128::from(geometry.kernel[axis] - 1)
            - 2 * i128::from(geometry.padding_before[axis])
            + i128::from(output_padding[axis])
            + 1;
        let grown = u64::try_from(grown)
            .ok()
            .filter(|grown| *grown > 0 && *grown < 1 << 62);
        *extent = Extent::Fixed(grown.ok_or_else(|| {
            Objection::plain(
                "the transposed convolution has an empty or enormous result",
                "use less padding or a smaller stride",
            )
        })?);
    }
    Ok(shape)
}

/// Every list in full, so that one call has one canonical form (rule T9).
fn normalise_arguments(call: &mut Call<'_>, geometry: &Convolution, output_padding: &[u64]) {
    // All are at most 2^16.
    let ints = |values: &[u64]| Argument::Ints(values.iter().map(|value| *value as i64).collect());
    call.replace("stride", ints(&geometry.stride));
    call.replace("dilation", ints(&geometry.dilation));
    if call.schema.overload != "padding" {
        call.replace("padding", ints(&geometry.padding_before));
    }
    if geometry.transposed || call.schema.name == "convolution" {
        call.replace("output_padding", ints(output_padding));
    }
}
