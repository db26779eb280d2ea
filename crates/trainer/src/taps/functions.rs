//! Functions of trainable parameters that enter taps (rule G2): `linear(x, 100·w)` clipped at `100·w` would have a
//! hundred times its sensitivity in `w`. So the gradient of each record with respect to the function's value is pulled
//! back to the parameters by the function's vector-Jacobian product, and norm and clipping are theirs.
//!
//! Each parameter of a function has one more use, of what is pulled back: it is held like a tap's gradient, behind those
//! of the nodes. What is clipped and summed are these very numbers, so rounding inside the function moves no bound.

use super::{ParameterPlan, Plan, Role, TapKind, TapPlan, Use};
use crate::error::{EngineError, Result};
use crate::program::{BatchAxis, Program};
use bastionai_graph::typed::TypedGraph;

/// Elements of all records' pulled-back gradients of one parameter: 1 GiB in f32.
const MOST_PULLED_BACK: i64 = 1 << 28;

/// How taps use one function.
#[derive(Clone, Debug, Default)]
pub(crate) struct FunctionPlan {
    pub(crate) uses: Vec<Use>,
    /// Shapes of its parameters, in the program's order.
    pub(crate) shapes: Vec<Vec<i64>>,
}

impl Plan {
    /// Gives every parameter of a function its use of what is pulled back.
    pub(super) fn pull_back_functions(&mut self, graph: &TypedGraph, program: &Program) -> Result<()> {
        for (plan, function) in self.functions.iter_mut().zip(&program.functions) {
            for index in &function.parameters {
                let parameter = self
                    .parameters
                    .iter_mut()
                    .find(|parameter| parameter.parameter == *index)
                    .ok_or_else(|| {
                        unsupported(
                            graph,
                            *index,
                            "a function of it is tapped and it is not trainable",
                        )
                    })?;
                check_size(graph, parameter, program.batch_size)?;
                parameter.uses.push(Use {
                    tap: self.taps.len(),
                    role: Role::Pulled,
                    value_shape: parameter.shape.clone(),
                    back: Vec::new(),
                });
                plan.shapes.push(parameter.shape.clone());
                self.taps.push(pulled(&parameter.shape, program.batch_size));
            }
        }
        Ok(())
    }
}

fn pulled(shape: &[i64], batch_size: i64) -> TapPlan {
    TapPlan {
        kind: TapKind::Pulled,
        batch: BatchAxis { axis: 0, inner: 1 },
        output_shape: std::iter::once(batch_size).chain(shape.iter().copied()).collect(),
        rows_per_record: 1,
        as_rows: false,
        needs_row_norms: false,
    }
}

fn check_size(graph: &TypedGraph, parameter: &ParameterPlan, batch_size: i64) -> Result<()> {
    let elements = parameter
        .shape
        .iter()
        .fold(batch_size, |product, extent| product.saturating_mul(*extent));
    if elements <= MOST_PULLED_BACK {
        return Ok(());
    }
    let most = MOST_PULLED_BACK / (elements / batch_size).max(1);
    let reason = format!(
        "a function of it is trained, which needs its gradient for each of {batch_size} records; use it as it is, or a \
         max_batch_size of at most {most}"
    );
    Err(unsupported(graph, parameter.parameter, &reason))
}

fn unsupported(graph: &TypedGraph, parameter: usize, reason: &str) -> EngineError {
    EngineError::Unsupported {
        node: graph.parameters()[parameter].names.join(" = "),
        reason: reason.into(),
    }
}
