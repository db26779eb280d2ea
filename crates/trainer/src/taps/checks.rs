//! What a tap must be for its gradient to be the parameter's own (rule G2), checked again here: the checker proved it,
//! but the engine's sums are only as sound as this.

use super::{Normalised, Role, TapKind, TapPlan, ViewBack};
use crate::error::{EngineError, Result};
use crate::operators;
use crate::program::{element_count, index};
use bastionai_graph::typed::{
    Argument, Dependence, Origin, ParameterId, ParameterView, TappedParameter, TypedGraph, TypedNode, ValueId,
};

pub(super) fn check_value_shape(tap: &TapPlan, role: &Role, value_shape: &[i64]) -> Option<()> {
    let elements: i64 = value_shape.iter().product();
    let fits = match (&tap.kind, role) {
        (
            TapKind::Rows {
                input_width,
                output_width,
            },
            Role::Weight { transposed },
        ) => {
            let (first, second) = if *transposed {
                (input_width, output_width)
            } else {
                (output_width, input_width)
            };
            value_shape == [*first, *second] || (*output_width == 1 && value_shape == [*input_width])
        }
        (TapKind::Rows { output_width, .. }, Role::Sum) => elements == *output_width,
        (TapKind::LayerNorm { normalized_shape, .. }, Role::Sum | Role::Scale) => {
            value_shape == &normalized_shape[..]
        }
        (TapKind::Convolution(plan), Role::Weight { transposed }) => {
            *transposed == plan.transposed && value_shape == plan.weight_shape()
        }
        (TapKind::Convolution(plan), Role::ChannelSum) => value_shape == [plan.output_channels()],
        (
            TapKind::Channels {
                normalised: Normalised::NegativePart,
                channels,
            },
            Role::ChannelScale,
        ) => value_shape.len() <= 1 && (elements == 1 || elements == *channels),
        (TapKind::Channels { channels, .. }, Role::ChannelSum | Role::ChannelScale) => {
            value_shape == [*channels]
        }
        (TapKind::RmsNorm { width, .. }, Role::Scale) => elements == *width,
        (TapKind::Broadcast, Role::BroadcastAdd { .. } | Role::BroadcastMul) => broadcasts(value_shape, tap),
        (TapKind::Embedding { rows, width, .. }, Role::Table) => value_shape == [*rows, *width],
        _ => false,
    };
    fits.then_some(())
}

/// Right-aligned, each extent is the output's or 1, and 1 on the batch axis (T4).
fn broadcasts(value_shape: &[i64], tap: &TapPlan) -> bool {
    let Some(missing) = tap.output_shape.len().checked_sub(value_shape.len()) else {
        return false;
    };
    value_shape.iter().enumerate().all(|(axis, &extent)| {
        let axis = axis + missing;
        extent == 1 || (axis as i64 != tap.batch.axis && extent == tap.output_shape[axis])
    })
}

/// Views that keep elements at most once: the only way from a parameter to a tap (G2). `embedding` is one where the
/// checker knows its ids to be consecutive constants.
const ISOMETRIC_VIEWS: &[&str] = &[
    "_to_copy",
    "_unsafe_view",
    "alias",
    "chunk",
    "clone",
    "contiguous",
    "embedding",
    "expand",
    "flatten",
    "permute",
    "reshape",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "t",
    "to",
    "transpose",
    "unbind",
    "unsqueeze",
    "view",
];

/// A slice skips nothing, and an embedding on the way reads a slice: by constant ids, which the views name.
fn keeps_elements_once(graph: &TypedGraph, node: &TypedNode, tapped: &TappedParameter) -> bool {
    let argument = |name: &str| node.arguments.iter().find(|named| named.name == name);
    match node.operator.as_str() {
        // A conversion to the same dtype, a repetition to the same shape.
        "_to_copy" | "to" | "expand" => argument("self").is_some_and(|named| match named.value {
            Argument::Value(id) => node.outputs.first().is_some_and(|output| {
                graph.values()[index(*output)].value_type == graph.values()[index(id)].value_type
            }),
            _ => false,
        }),
        "slice" => argument("step").is_some_and(|step| step.value == Argument::Int(1)),
        "embedding" => {
            let constant = argument("indices").is_some_and(|named| match named.value {
                Argument::Value(id) => graph.values()[index(id)].value_type.dependence == Dependence::Shared,
                _ => false,
            });
            let narrow = |view: &ParameterView| matches!(view, ParameterView::Narrow { axis: 0, .. });
            constant && tapped.views.iter().any(narrow)
        }
        _ => true,
    }
}

/// The tapped value must come from its parameter, directly or through isometric views.
pub(super) fn check_origin(graph: &TypedGraph, tapped: &TappedParameter) -> Option<()> {
    let mut value = graph.values().get(index(tapped.value))?;
    for _ in 0..graph.nodes().len() {
        match value.origin {
            Origin::Parameter(id) => return (id == tapped.parameter).then_some(()),
            Origin::Node { node, .. } => {
                let node = graph.nodes().get(node as usize)?;
                if !ISOMETRIC_VIEWS.contains(&node.operator.as_str())
                    || !keeps_elements_once(graph, node, tapped)
                {
                    return None;
                }
                let source = node.arguments.iter().find_map(|named| match named.value {
                    Argument::Value(id) => Some(id),
                    _ => None,
                })?;
                value = graph.values().get(index(source))?;
            }
            _ => return None,
        }
    }
    None
}

/// A function's value comes from parameters and constants only, by operators that draw nothing, and every trainable
/// parameter that its gradient reaches is named.
pub(super) fn check_function(graph: &TypedGraph, value: ValueId, parameters: &[ParameterId]) -> Option<()> {
    let mut seen = vec![false; graph.values().len()];
    let mut pending = vec![(value, true)];
    while let Some((id, differentiated)) = pending.pop() {
        let value = graph.values().get(index(id))?;
        if value.value_type.dependence != Dependence::Shared {
            return None;
        }
        let differentiated = differentiated && value.requires_grad;
        if std::mem::replace(&mut seen[index(id)], differentiated) || !differentiated {
            continue;
        }
        match value.origin {
            Origin::Parameter(id) => {
                let trainable = graph.parameters().get(id.0 as usize)?.trainable;
                if trainable && !parameters.contains(&id) {
                    return None;
                }
            }
            Origin::Constant(_) => {}
            Origin::Input(_) => return None,
            Origin::Node { node, .. } => {
                let node = graph.nodes().get(node as usize)?;
                if operators::guard(&node.operator, &node.overload)?.draws() {
                    return None;
                }
                let operands = node.arguments.iter().flat_map(|named| named.value.value_ids());
                pending.extend(operands.map(|operand| (operand, node.operator != "detach")));
            }
        }
    }
    Some(())
}

/// Values whose gradient can reach the loss: backwards through floating outputs, stopped by `detach`.
pub(super) fn reaching_the_loss(graph: &TypedGraph) -> Vec<bool> {
    let is_float = |value: ValueId| graph.values()[index(value)].value_type.dtype.is_float();
    let mut reaches = vec![false; graph.values().len()];
    for result in graph.results().values() {
        reaches[index(result)] = true;
    }
    for node in graph
        .nodes()
        .iter()
        .rev()
        .filter(|node| node.operator != "detach")
    {
        if node.outputs.iter().any(|output| reaches[index(*output)]) {
            let arguments = node.arguments.iter().flat_map(|named| named.value.value_ids());
            arguments
                .filter(|value| is_float(*value))
                .for_each(|value| reaches[index(value)] = true);
        }
    }
    reaches
}

/// A node that mixes a `Shared` value of trainable parameters with data, on a way to the loss, must be a tap that
/// names it (G2).
pub(super) fn check_untapped(graph: &TypedGraph, node: &TypedNode, reaches: &[bool]) -> Result<()> {
    let on_the_way = node.outputs.iter().any(|output| {
        let per_sample = matches!(
            graph.values()[index(*output)].value_type.dependence,
            Dependence::PerSample { .. }
        );
        per_sample && reaches[index(*output)]
    });
    let tapped: Vec<_> = node
        .tap
        .iter()
        .flat_map(|tap| tap.parameters())
        .map(|tapped| tapped.value)
        .collect();
    let escapes = node
        .arguments
        .iter()
        .flat_map(|named| named.value.value_ids())
        .any(|id| {
            let value = &graph.values()[index(id)];
            value.requires_grad && value.value_type.dependence == Dependence::Shared && !tapped.contains(&id)
        });
    if on_the_way && escapes {
        let reason =
            "a trainable parameter meets data here in a way that has no per-sample gradient (G2)".into();
        return Err(EngineError::Unsupported {
            node: node.name.clone(),
            reason,
        });
    }
    Ok(())
}

pub(super) fn views_back(parameter: &[i64], views: &[ParameterView], value: &[i64]) -> Option<Vec<ViewBack>> {
    let mut shape = parameter.to_vec();
    let mut back = Vec::with_capacity(views.len());
    for view in views {
        match view {
            ParameterView::Permute(permutation) => {
                let mut inverse = vec![-1; shape.len()];
                let mut permuted = Vec::with_capacity(shape.len());
                for (axis, &source) in permutation.iter().enumerate() {
                    *inverse.get_mut(usize::from(source))? = axis as i64;
                    permuted.push(shape[usize::from(source)]);
                }
                if permuted.len() != shape.len() || inverse.contains(&-1) {
                    return None;
                }
                back.push(ViewBack::Permute(inverse));
                shape = permuted;
            }
            ParameterView::Reshape(to) => {
                let to: Vec<i64> = to
                    .iter()
                    .map(|&extent| i64::try_from(extent).ok())
                    .collect::<Option<_>>()?;
                if element_count(&to)? != element_count(&shape)? {
                    return None;
                }
                back.push(ViewBack::Reshape(shape));
                shape = to;
            }
            ParameterView::Function(_) => return None,
            ParameterView::Narrow { axis, start, length } => {
                let extent = shape.get_mut(usize::from(*axis))?;
                let (start, length) = (i64::try_from(*start).ok()?, i64::try_from(*length).ok()?);
                let after = extent
                    .checked_sub(start.checked_add(length)?)
                    .filter(|after| *after >= 0)?;
                back.push(ViewBack::Widen {
                    axis: i64::from(*axis),
                    before: start,
                    after,
                });
                *extent = length;
            }
        }
    }
    back.reverse();
    (shape == value).then_some(back)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_undone_in_reverse_order() {
        let views = [
            ParameterView::Permute(vec![1, 0]),
            ParameterView::Reshape(vec![6]),
        ];
        let back = views_back(&[2, 3], &views, &[6]).unwrap();
        assert_eq!(
            back,
            [ViewBack::Reshape(vec![3, 2]), ViewBack::Permute(vec![1, 0])]
        );
    }

    #[test]
    fn a_slice_is_undone_by_zeros_around_it() {
        let narrow = |start, length| {
            vec![ParameterView::Narrow {
                axis: 0,
                start,
                length,
            }]
        };
        let back = views_back(&[7, 3], &narrow(2, 4), &[4, 3]).unwrap();
        assert_eq!(
            back,
            [ViewBack::Widen {
                axis: 0,
                before: 2,
                after: 1
            }]
        );
        assert!(
            views_back(&[7, 3], &narrow(4, 4), &[4, 3]).is_none(),
            "beyond the end"
        );
        assert!(views_back(&[7, 3], &narrow(u64::MAX, 4), &[4, 3]).is_none());
    }

    #[test]
    fn a_view_that_repeats_an_axis_or_changes_the_count_is_refused() {
        assert!(views_back(&[2, 2], &[ParameterView::Permute(vec![0, 0])], &[2, 2]).is_none());
        assert!(views_back(&[2, 2], &[ParameterView::Reshape(vec![3])], &[3]).is_none());
        for huge in [vec![1 << 32, 1 << 32], vec![u64::MAX]] {
            assert!(views_back(&[2, 2], &[ParameterView::Reshape(huge)], &[4]).is_none());
        }
        assert!(views_back(&[2, 2], &[], &[4]).is_none());
    }
}
