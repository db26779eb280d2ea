//! `scaled_dot_product_attention`: its shapes, checked again before it may run, and which of its kernels runs.
//!
//! libtorch's flash kernel on the CPU trusts its caller: keys shorter than values are read out of bounds. The checker
//! proved the shapes; here they are compared again at the run's batch size. Every value has its expected shape when
//! the operator is called, since the executor asserts that of each result and input (rule T4).

use crate::error::{EngineError, Result};
use crate::ffi;
use crate::kernels::TrueF32;
use crate::operators::Guard;
use crate::program::{Call, Expected, Prepared};
use tch::{Kind, Tensor};

/// # Errors
/// [`EngineError::Unsupported`] when the shapes or dtypes of an attention node do not fit one another.
pub(crate) fn check(call: &Call, expected: &[Expected]) -> Result<()> {
    if call.guard != Guard::Attention || fits(call, expected).is_some() {
        return Ok(());
    }
    Err(EngineError::Unsupported {
        node: call.name.clone(),
        reason: "query, key, value and mask do not fit one another".into(),
    })
}

/// Calls the operator on the kernel that follows from the graph alone, the same in every batch (rule T2): with dropped
/// weights libtorch has no flash kernel and composes, so it must in the self-test as well, which drops nothing.
///
/// The flash kernel multiplies blocks of 32 rows, for which the fast f32 kernels are set up anew each time: on them it
/// takes two to three times as long, forward and backward. It runs on the default ones. (Where libtorch composes attention of
/// products, as for a mask that is trained, the backward pass of these runs on the kernels that were chosen for the run.)
///
/// # Errors
/// [`EngineError::Torch`]; the operator's own.
pub(crate) fn run(call: &Call, operator: impl FnOnce() -> Result<Vec<Tensor>>) -> Result<Vec<Tensor>> {
    let failed = |_| EngineError::Torch {
        detail: ffi::last_error(),
    };
    let drops = !matches!(argument(call, "dropout_p"), Some(Prepared::Float(p)) if *p == 0.0);
    ffi::use_flash_attention(!drops).map_err(failed)?;
    if drops {
        return operator();
    }
    let _default_kernels = TrueF32::enter()?;
    let outputs = operator()?;
    // One output, so one node: its two hooks would not nest with a second pair.
    let [output] = &outputs[..] else {
        return Err(EngineError::Job(
            "typed graph: attention with more than one output".into(),
        ));
    };
    ffi::backward_on_default_kernels(output).map_err(failed)?;
    Ok(outputs)
}

fn argument<'c>(call: &'c Call, name: &str) -> Option<&'c Prepared> {
    call.position(name).map(|position| &call.arguments[position])
}

fn fits(call: &Call, expected: &[Expected]) -> Option<()> {
    let tensor = |name: &str| match argument(call, name) {
        Some(Prepared::Value(value)) => expected.get(*value),
        _ => None,
    };
    let [query, key, value] = [tensor("query")?, tensor("key")?, tensor("value")?];
    let (leading, [length, width]) = matrix(&query.shape)?;
    let (key_leading, [key_length, key_width]) = matrix(&key.shape)?;
    let (value_leading, [value_length, _]) = matrix(&value.shape)?;
    let same = leading == key_leading
        && leading == value_leading
        && width == key_width
        && key_length == value_length
        && query.kind == key.kind
        && query.kind == value.kind;
    let plain = matches!(argument(call, "enable_gqa")?, Prepared::Bool(false));
    let weights = [leading, &[length, key_length]].concat();
    let masked = match argument(call, "attn_mask")? {
        Prepared::None => true,
        _ => tensor("attn_mask").is_some_and(|mask| {
            (mask.kind == Kind::Bool || mask.kind == query.kind) && broadcasts(&mask.shape, &weights)
        }),
    };
    (same && plain && masked).then_some(())
}

fn matrix(shape: &[i64]) -> Option<(&[i64], [i64; 2])> {
    let (leading, last) = shape.split_at_checked(shape.len().checked_sub(2)?)?;
    Some((leading, [last[0], last[1]]))
}

/// A matrix or more whose extents, right-aligned, are those of `target` or 1.
fn broadcasts(shape: &[i64], target: &[i64]) -> bool {
    shape.len() >= 2
        && shape.len() <= target.len()
        && shape
            .iter()
            .rev()
            .zip(target.iter().rev())
            .all(|(own, wanted)| *own == 1 || own == wanted)
}
