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
    /// A parameter, or an isometric view of a whole one (rule G2).
    pub(crate) view: Option<(ParameterId, Vec<ParameterView>)>,
    /// Least and greatest value of an integer tensor, when the contract or the operator says so (rule G4).
    pub(crate) bounds: Option<(i64, i64)>,
    /// Whether the recorded type is to be compared (see `hints`).
    pub(crate) hint_trusted: bool,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            view: None,
            bounds: None,
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
        }
    }

    /// A result without gradient.
    pub(crate) fn constant(value_type: ValueType) -> Self {
        Self {
            value_type,
            requires_grad: false,
            view: None,
            bounds: None,
        }
    }

    /// The same values in another arrangement: bounds stay, a view of a whole parameter grows by `step`.
    pub(crate) fn rearranged(source: &Typed, value_type: ValueType, step: Option<ParameterView>) -> Self {
        let view = source.facts.view.clone().map(|(parameter, mut views)| {
            views.extend(step);
            (parameter, views)
        });
        Self {
            value_type,
            requires_grad: source.requires_grad,
            view,
            bounds: source.facts.bounds,
        }
    }

    /// With known bounds.
    pub(crate) fn bounded(mut self, bounds: Option<(i64, i64)>) -> Self {
        self.bounds = bounds;
        self
    }
}
