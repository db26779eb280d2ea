//! Products in bfloat16: the operands of matrix products and convolutions are rounded to it, the product is summed in
//! f32 and comes back as f32, and so its gradients flow. A matter of speed, as autocast is for PyTorch.
//!
//! Nothing of the guarantee rests on it. Taps save the values before they are rounded and receive f32 gradients, and
//! what is clipped and summed is made of these very numbers, a function of their record alone. That a row is computed
//! alike whatever the others hold (rule T2) the self-test shows for these kernels as for any.

use crate::ffi::CallArgument;
use crate::program::{Call, Expected, Prepared};
use bastionai_wire::Compute;
use tch::{Kind, Tensor};

/// Whether a call is a product of f32 values.
pub(crate) fn is_product(operator: &str, call: &Call, expected: &[Expected]) -> bool {
    let is_f32 = |value: &usize| expected[*value].kind == Kind::Float;
    let operands = call.arguments.iter().filter_map(|argument| match argument {
        Prepared::Value(value) => Some(value),
        _ => None,
    });
    Compute::Bfloat16.lowers(operator) && operands.chain(&call.outputs).all(is_f32)
}

/// The operands of a call in bfloat16, by their position; `None` for what is no tensor.
pub(crate) fn lowered(arguments: &[CallArgument<'_>]) -> Result<Vec<Option<Tensor>>, tch::TchError> {
    let lower = |argument: &CallArgument<'_>| match argument {
        CallArgument::Tensor(tensor) => tensor.f_to_kind(Kind::BFloat16).map(Some),
        _ => Ok(None),
    };
    arguments.iter().map(lower).collect()
}
