//! Records that an adversary would choose.

use super::models::Model;
use super::*;

/// Values that break arithmetic: not finite, huge, tiny, opposite.
pub const HOSTILE: [f64; 9] = [
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    3e38,
    -3e38,
    1e19,
    1e-45,
    0.0,
    -0.0,
];

/// The model with record `row` of its float input set to `value`.
pub fn with_hostile_row(model: &Model, row: i64, value: f64) -> Vec<Tensor> {
    model
        .inputs
        .iter()
        .map(|input| {
            if input.kind() == Kind::Int64 {
                input.copy()
            } else {
                with_row(input, row, value)
            }
        })
        .collect()
}
