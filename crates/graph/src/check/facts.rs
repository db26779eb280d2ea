//! What the checker knows of a value beyond its type.

use crate::typed::{ParameterId, ParameterView, ValueId, ValueType};

/// A value under check.
#[derive(Clone, Debug)]
pub(crate) struct Typed {
    pub(crate) id: ValueId,
    pub(crate) value_type: ValueType,
    pub(crate) requires_grad: bool,
    pub(crate) facts: Facts,
}

/// Facts beside the type.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// A parameter, or an isometric view of one (rule G2).
    pub(crate) view: Option<(ParameterId, Vec<ParameterView>)>,
    /// Trainable parameters that reach a Shared value, ascending (rule G2).
    pub(crate) parameters: Vec<ParameterId>,
    /// Least and greatest value of an integer tensor, when the contract or the operator says so (rule G4).
    pub(crate) bounds: Option<(i64, i64)>,
    /// The first of consecutive integers: element `k`, counted row-major, is `iota + k`. So no two are equal.
    pub(crate) iota: Option<i64>,
    /// Whether the recorded type is to be compared (see `hints`).
    pub(crate) hint_trusted: bool,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            view: None,
            parameters: Vec::new(),
            bounds: None,
            iota: None,
            hint_trusted: true,
        }
    }
}

/// One result of a rule.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) value_type: ValueType,
    pub(crate) requires_grad: bool,
    pub(crate) view: Option<(ParameterId, Vec<ParameterView>)>,
    pub(crate) bounds: Option<(i64, i64)>,
    pub(crate) iota: Option<i64>,
}

impl Output {
    /// A differentiable result: it requires grad when any operand does and it is floating.
    pub(crate) fn new(value_type: ValueType, any_requires_grad: bool) -> Self {
        let requires_grad = any_requires_grad && value_type.dtype.is_float();
        Self {
            value_type,
            requires_grad,
            view: None,
            bounds: None,
            iota: None,
        }
    }

    /// A result without gradient.
    pub(crate) fn constant(value_type: ValueType) -> Self {
        Self {
            value_type,
            requires_grad: false,
            view: None,
            bounds: None,
            iota: None,
        }
    }

    /// The same values in another arrangement: bounds stay, a view of a parameter grows by `step`.
    pub(crate) fn rearranged(source: &Typed, value_type: ValueType, step: Option<ParameterView>) -> Self {
        let row_major = !matches!(step, Some(ParameterView::Permute(_)));
        Self {
            iota: source.facts.iota.filter(|_| row_major),
            ..Self::part(source, value_type, step.into_iter().collect())
        }
    }

    /// A part of the source: bounds stay, a view of a parameter grows by `steps`, where the part is one.
    pub(crate) fn part(source: &Typed, value_type: ValueType, steps: Vec<ParameterView>) -> Self {
        let view = source.facts.view.clone().map(|(parameter, mut views)| {
            views.extend(steps);
            (parameter, views)
        });
        Self {
            value_type,
            requires_grad: source.requires_grad,
            view,
            bounds: source.facts.bounds,
            iota: None,
        }
    }

    /// With known bounds.
    pub(crate) fn bounded(mut self, bounds: Option<(i64, i64)>) -> Self {
        self.bounds = bounds;
        self
    }
}
