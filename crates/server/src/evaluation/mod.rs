//! Evaluations: what is asked for ([`spec`]), what it costs and is ([`price`]). From there on an evaluation is a
//! run like any other: [`crate::priced`] is what both have in common.

mod price;
mod spec;

pub(crate) use price::{PricedEvaluation, price};
pub(crate) use spec::EvaluationRequest;
