//! Which operators can fail on a value (rule G4), so that the trainer can guard them.
//!
//! Of the allowed operators only `gather`, `index.Tensor`, `one_hot`, `embedding`, `cross_entropy_loss`,
//! `nll_loss_nd` and `nll_loss` raise on values: on an index out of range. Before each, the trainer must
//! replace the whole index row of an offending sample by an allowed value and zero that sample's loss
//! and gradient. (Integer powers, `binary_cross_entropy`, assertions and the like have no rule.)

use crate::typed::{Argument, Dependence, Extent, TypedGraph, TypedNode, ValueId};

/// An integer argument with the values that do not raise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueGuard {
    /// The index tensor: `PerSample`, its batch axis in its type.
    pub index: ValueId,
    /// Least allowed value.
    pub minimum: i64,
    /// Greatest allowed value.
    pub maximum: i64,
    /// One more allowed value (`ignore_index`).
    pub also_allowed: Option<i64>,
}

/// The guards a node needs, empty for operators that cannot raise on values.
pub fn value_guards(graph: &TypedGraph, node: &TypedNode) -> Vec<ValueGuard> {
    let guards = match node.operator.as_str() {
        "gather" => axis_guard(graph, node, "self", "index"),
        "embedding" => first_axis_guard(graph, node, "weight", "indices", 0),
        "one_hot" => one_hot_guard(node).into_iter().collect(),
        "cross_entropy_loss" | "nll_loss_nd" | "nll_loss" => class_guard(graph, node),
        "index" => index_guards(graph, node),
        _ => Vec::new(),
    };
    let per_sample = |guard: &ValueGuard| {
        let value = &graph.values()[guard.index.0 as usize];
        matches!(value.value_type.dependence, Dependence::PerSample { .. })
            && !value.value_type.dtype.is_float()
    };
    guards.into_iter().filter(per_sample).collect()
}

fn argument<'g>(node: &'g TypedNode, name: &str) -> Option<&'g Argument> {
    node.arguments
        .iter()
        .find(|argument| argument.name == name)
        .map(|argument| &argument.value)
}

fn value(node: &TypedNode, name: &str) -> Option<ValueId> {
    match argument(node, name)? {
        Argument::Value(id) => Some(*id),
        _ => None,
    }
}

fn fixed(graph: &TypedGraph, id: ValueId, axis: usize) -> Option<i64> {
    match graph.values()[id.0 as usize].value_type.shape.get(axis)? {
        Extent::Fixed(size) => i64::try_from(*size).ok(),
        Extent::Batch(_) => None,
    }
}

fn below(index: ValueId, size: i64) -> ValueGuard {
    ValueGuard {
        index,
        minimum: 0,
        maximum: size - 1,
        also_allowed: None,
    }
}

fn first_axis_guard(
    graph: &TypedGraph,
    node: &TypedNode,
    data: &str,
    index: &str,
    axis: usize,
) -> Vec<ValueGuard> {
    let size = value(node, data).and_then(|data| fixed(graph, data, axis));
    value(node, index)
        .zip(size)
        .map(|(index, size)| below(index, size))
        .into_iter()
        .collect()
}

fn axis_guard(graph: &TypedGraph, node: &TypedNode, data: &str, index: &str) -> Vec<ValueGuard> {
    let Some(Argument::Int(dim)) = argument(node, "dim") else {
        return Vec::new();
    };
    let rank = value(node, data).map_or(0, |data| graph.values()[data.0 as usize].value_type.shape.len());
    let axis = if *dim < 0 {
        dim.saturating_add(i64::try_from(rank).unwrap_or(0))
    } else {
        *dim
    };
    usize::try_from(axis).map_or_else(
        |_| Vec::new(),
        |axis| first_axis_guard(graph, node, data, index, axis),
    )
}

fn one_hot_guard(node: &TypedNode) -> Option<ValueGuard> {
    let Some(Argument::Int(classes)) = argument(node, "num_classes") else {
        return None;
    };
    value(node, "self").map(|index| below(index, *classes))
}

fn class_guard(graph: &TypedGraph, node: &TypedNode) -> Vec<ValueGuard> {
    let also_allowed = match argument(node, "ignore_index") {
        Some(Argument::Int(index)) => Some(*index),
        _ => None,
    };
    let guards = first_axis_guard(graph, node, "self", "target", 1);
    guards
        .into_iter()
        .map(|guard| ValueGuard {
            also_allowed,
            ..guard
        })
        .collect()
}

/// `index.Tensor` takes negative indices from the end.
fn index_guards(graph: &TypedGraph, node: &TypedNode) -> Vec<ValueGuard> {
    let (Some(data), Some(Argument::OptionalValues(indices))) =
        (value(node, "self"), argument(node, "indices"))
    else {
        return Vec::new();
    };
    let guard = |(axis, index): (usize, &Option<ValueId>)| {
        let size = fixed(graph, data, axis)?;
        Some(ValueGuard {
            index: (*index)?,
            minimum: -size,
            maximum: size - 1,
            also_allowed: None,
        })
    };
    indices.iter().enumerate().filter_map(guard).collect()
}
