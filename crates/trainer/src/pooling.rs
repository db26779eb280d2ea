//! Max pooling's windows, checked again before they may run: each meets an element of its plane.
//!
//! Of a window that lies wholly in the padding libtorch's kernel makes an index beyond the plane, and its backward pass
//! writes there unchecked: into the next sample's gradient, or beyond the buffer (rules T7, A2).

use crate::error::{EngineError, Result};
use crate::program::{Call, Expected, Prepared};

/// # Errors
/// [`EngineError::Unsupported`] when a node pools with padding and a dilation longer than the axis.
pub(crate) fn check(operator: &str, call: &Call, expected: &[Expected]) -> Result<()> {
    if !operator.starts_with("max_pool") || meets_elements(call, expected).unwrap_or(false) {
        return Ok(());
    }
    Err(EngineError::Unsupported {
        node: call.name.clone(),
        reason: "a window may lie wholly in the padding".into(),
    })
}

fn meets_elements(call: &Call, expected: &[Expected]) -> Option<bool> {
    let argument = |name: &str| call.position(name).map(|position| &call.arguments[position]);
    let ints = |name: &str| match argument(name) {
        Some(Prepared::Ints(values)) => Some(values),
        _ => None,
    };
    let Some(Prepared::Value(input)) = argument("self") else {
        return None;
    };
    let (padding, dilation) = (ints("padding")?, ints("dilation")?);
    let shape = &expected.get(*input)?.shape;
    let spatial = &shape[shape.len().checked_sub(padding.len())?..];
    let all = padding.len() == dilation.len();
    let mut axes = spatial.iter().zip(padding).zip(dilation);
    Some(all && axes.all(|((&size, &padding), &dilation)| padding == 0 || dilation <= size))
}
