//! Gradients with respect to functions of parameters, pulled back to the parameters record by record (rule G2).

use super::{TapValues, blocks, sum_of_uses};
use crate::device::beside;
use crate::error::{EngineError, Result};
use crate::executor::FunctionValue;
use crate::ffi;
use crate::taps::{FunctionPlan, Plan};
use tch::Tensor;

/// Memory of one block of gradients with respect to a function's value, in elements: 16 MiB of f32.
const BLOCK_ELEMENTS: i64 = 1 << 22;

/// One more tap value for each parameter of each function, in the plan's order: `[B, parameter shape]`.
///
/// Every record has a pass of its own through the function's autograd graph, so that nothing of another record can
/// enter it, and the passes are made once: norms and sums see the same numbers.
///
/// # Errors
/// [`EngineError::Torch`].
pub(crate) fn pull_back(
    plan: &Plan,
    functions: &[FunctionValue],
    taps: &[TapValues],
    batch_size: i64,
    threads: usize,
) -> Result<Vec<TapValues>> {
    let mut out = Vec::new();
    for (function, value) in plan.functions.iter().zip(functions) {
        let gradients = gradients(plan, function, value, taps, (batch_size, threads))?;
        for (position, shape) in function.shapes.iter().enumerate() {
            let rows = gradients.iter().map(|record| &record[position]);
            let mut whole = vec![batch_size];
            whole.extend(shape);
            out.push(TapValues {
                gradient: Tensor::f_stack(&rows.collect::<Vec<_>>(), 0)?.f_reshape(&whole[..])?,
                input: None,
                row_norms: None,
                channels: None,
                reduced: None,
                units: None,
            });
        }
    }
    Ok(out)
}

/// For each record the gradients of all the function's parameters.
fn gradients(
    plan: &Plan,
    function: &FunctionPlan,
    value: &FunctionValue,
    taps: &[TapValues],
    (batch_size, threads): (i64, usize),
) -> Result<Vec<Vec<Tensor>>> {
    let shape = value.value.size();
    let most = BLOCK_ELEMENTS / shape.iter().product::<i64>().max(1);
    let mut out = Vec::new();
    for (first, count) in blocks(batch_size, most) {
        let each = sum_of_uses(&function.uses, &shape, plan, taps, (first, count), threads)?;
        let each = beside(&each.f_to_kind(value.value.kind())?, &value.value)?;
        for record in 0..count {
            out.push(of_record(function, value, &each.f_select(0, record)?)?);
        }
    }
    Ok(out)
}

fn of_record(function: &FunctionPlan, value: &FunctionValue, gradient: &Tensor) -> Result<Vec<Tensor>> {
    let edges: Vec<_> = value.edges.iter().collect();
    let arrived = if value.value.requires_grad() {
        let passed = ffi::backward(&value.value, &gradient.f_contiguous()?, &edges, true);
        passed.map_err(|_| EngineError::Torch {
            detail: ffi::last_error(),
        })?
    } else {
        edges.iter().map(|_| None).collect()
    };
    arrived
        .into_iter()
        .zip(&function.shapes)
        .map(|(gradient, shape)| match gradient {
            Some(gradient) => Ok(gradient),
            None => beside(
                &Tensor::f_zeros(&shape[..], (value.value.kind(), tch::Device::Cpu))?,
                &value.value,
            ),
        })
        .collect()
}
