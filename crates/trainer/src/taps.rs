//! Where trainable parameters meet data, worked out once: for each parameter its uses, and how its per-sample
//! norms and clipped sum are computed.

mod checks;

use self::checks::{check_origin, check_untapped, check_value_shape, reaching_the_loss, views_back};
use crate::error::{EngineError, Result};
use crate::program::{BatchAxis, Expected, Program, index};
use bastionai_graph::typed::{Argument, Number, Tap, TappedParameter, TypedGraph, TypedNode};

/// What one tap computes with: rows of inputs and of output gradients, or a broadcast.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TapKind {
    /// `linear`, `mm`, `addmm`, `matmul`: input rows of one width, gradient rows of another.
    Rows { input_width: i64, output_width: i64 },
    /// `layer_norm`: rows of `width`, normalised again.
    LayerNorm {
        normalized_shape: Vec<i64>,
        eps: f64,
        width: i64,
    },
    /// Addition or multiplication by broadcasting.
    Broadcast,
    /// `embedding`: `rows` of `width`; a token with the padding id has no gradient.
    Embedding {
        rows: i64,
        width: i64,
        padding: Option<i64>,
    },
}

/// One tapped node.
#[derive(Clone, Debug)]
pub(crate) struct TapPlan {
    pub(crate) kind: TapKind,
    /// The output's batch axis; rows of input and output gradient are brought into the same order.
    pub(crate) batch: BatchAxis,
    /// Shape of the output.
    pub(crate) output_shape: Vec<i64>,
    /// Rows of a record (T): 1 for plain `[B, width]`.
    pub(crate) rows_per_record: i64,
}

/// How a parameter's per-sample gradient follows from a tap.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Role {
    /// `Σ_t g_t x_tᵀ`, or its transpose for `x·W`.
    Weight { transposed: bool },
    /// `Σ_t g_t`.
    Sum,
    /// `Σ_t g_t ∘ x̂_t`.
    Scale,
    /// ± the output gradient summed over broadcast axes.
    BroadcastAdd { scale: f64 },
    /// Output gradient times the other operand, summed over broadcast axes.
    BroadcastMul,
    /// `Σ_t g_t` into the row that the token's id names.
    Table,
}

/// One use of a parameter.
#[derive(Clone, Debug)]
pub(crate) struct Use {
    pub(crate) tap: usize,
    pub(crate) role: Role,
    /// Shape in which the parameter enters the node.
    pub(crate) value_shape: Vec<i64>,
    /// From that shape back to the parameter's, in order.
    pub(crate) back: Vec<ViewBack>,
}

/// One step from a view back to its source.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ViewBack {
    Permute(Vec<i64>),
    Reshape(Vec<i64>),
    /// Zeros before and after along an axis.
    Widen {
        axis: i64,
        before: i64,
        after: i64,
    },
}

/// How norms and sums are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Method {
    /// One weight use, one row per record: `‖G_i‖ = ‖x_i‖‖g_i‖`.
    Rows,
    /// One weight use, several rows per record: Gram matrices of inputs and gradients.
    Ghost,
    /// One weight use, several rows per record: the gradient of each record, for its norm only.
    Direct,
    /// The gradient of each record, for norm and sum: small parameters, and tied ones where that is cheaper.
    Instantiate,
    /// A table, or a tie of tables and weights: norms from the factors of each use and their cross terms, never a
    /// gradient of the whole parameter for a record.
    Factored,
}

/// One trainable parameter.
#[derive(Clone, Debug)]
pub(crate) struct ParameterPlan {
    /// Index among the graph's parameters.
    pub(crate) parameter: usize,
    pub(crate) shape: Vec<i64>,
    pub(crate) uses: Vec<Use>,
    pub(crate) method: Method,
}

/// All taps and trainable parameters.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) taps: Vec<TapPlan>,
    pub(crate) parameters: Vec<ParameterPlan>,
}

impl Plan {
    /// # Errors
    /// [`EngineError::Unsupported`] when a trainable parameter reaches data other than through a tap (G2), or a tap
    /// has a form that the engine has no exact gradient for.
    pub(crate) fn new(graph: &TypedGraph, program: &Program) -> Result<Self> {
        let reaches = reaching_the_loss(graph);
        let mut plan = Self {
            taps: Vec::new(),
            parameters: trainable(graph),
        };
        for node in graph.nodes() {
            if let Some(tap) = &node.tap {
                let tap_index = plan.taps.len();
                plan.taps.push(tap_plan(node, tap, program)?);
                for (tapped, role) in roles(tap) {
                    plan.add_use(graph, node, program, tap_index, tapped, role)?;
                }
            }
            check_untapped(graph, node, &reaches)?;
        }
        for parameter in &mut plan.parameters {
            parameter.method = method(parameter, &plan.taps);
            check_instantiable(graph, parameter)?;
        }
        Ok(plan)
    }

    fn add_use(
        &mut self,
        graph: &TypedGraph,
        node: &TypedNode,
        program: &Program,
        tap: usize,
        tapped: &TappedParameter,
        role: Role,
    ) -> Result<()> {
        let refuse = |reason: &str| EngineError::Unsupported {
            node: node.name.clone(),
            reason: reason.into(),
        };
        let plan = self
            .parameters
            .iter_mut()
            .find(|plan| plan.parameter == tapped.parameter.0 as usize)
            .ok_or_else(|| refuse("the tap names a parameter that is not trainable"))?;
        let value_shape = program.expected[index(tapped.value)].shape.clone();
        let back = views_back(&plan.shape, &tapped.views, &value_shape)
            .ok_or_else(|| refuse("the tap's views do not lead from the parameter to the value"))?;
        check_value_shape(&self.taps[tap], &role, &value_shape).ok_or_else(|| {
            refuse("the parameter's shape does not fit the operator's; use a parameter of the operator's own shape")
        })?;
        check_origin(graph, tapped)
            .ok_or_else(|| refuse("the tapped value is not a view of its parameter"))?;
        plan.uses.push(Use {
            tap,
            role,
            value_shape,
            back,
        });
        Ok(())
    }
}

fn trainable(graph: &TypedGraph) -> Vec<ParameterPlan> {
    let shape = |extents: &[u64]| extents.iter().map(|&extent| extent as i64).collect();
    graph
        .parameters()
        .iter()
        .enumerate()
        .filter(|(_, parameter)| parameter.trainable)
        .map(|(index, parameter)| ParameterPlan {
            parameter: index,
            shape: shape(&parameter.shape),
            uses: Vec::new(),
            method: Method::Instantiate,
        })
        .collect()
}

/// The parameters a tap serves, each with its role.
fn roles(tap: &Tap) -> Vec<(&TappedParameter, Role)> {
    let mut out = Vec::new();
    match tap {
        Tap::Linear { weight, bias, .. } => {
            out.extend(
                weight
                    .as_ref()
                    .map(|tapped| (tapped, Role::Weight { transposed: false })),
            );
            out.extend(bias.as_ref().map(|tapped| (tapped, Role::Sum)));
        }
        Tap::MatMul { weight, bias, .. } => {
            out.extend(
                weight
                    .as_ref()
                    .map(|tapped| (tapped, Role::Weight { transposed: true })),
            );
            out.extend(bias.as_ref().map(|tapped| (tapped, Role::Sum)));
        }
        Tap::LayerNorm { weight, bias, .. } => {
            out.extend(weight.as_ref().map(|tapped| (tapped, Role::Scale)));
            out.extend(bias.as_ref().map(|tapped| (tapped, Role::Sum)));
        }
        Tap::BroadcastAdd { parameter, scale } => {
            out.push((parameter, Role::BroadcastAdd { scale: scale.get() }))
        }
        Tap::BroadcastMul { parameter, .. } => out.push((parameter, Role::BroadcastMul)),
        Tap::Embedding { weight, .. } => out.push((weight, Role::Table)),
        // Repeating is adding to zeros.
        Tap::Expand { parameter } => out.push((parameter, Role::BroadcastAdd { scale: 1.0 })),
    }
    out
}

fn tap_plan(node: &TypedNode, tap: &Tap, program: &Program) -> Result<TapPlan> {
    let refuse = |reason: &str| EngineError::Unsupported {
        node: node.name.clone(),
        reason: reason.into(),
    };
    let output = node
        .outputs
        .first()
        .map(|value| &program.expected[index(*value)])
        .ok_or_else(|| refuse("no output"))?;
    let batch = output
        .batch
        .ok_or_else(|| refuse("a tapped output must be per sample"))?;
    let kind = match tap {
        Tap::Linear { input, .. } | Tap::MatMul { input, .. } => {
            let input = &program.expected[index(*input)];
            rows_kind(node, input, output).ok_or_else(|| {
                refuse("input and output must have the same axes but the last, and the batch axis before it")
            })?
        }
        Tap::LayerNorm {
            input,
            normalized_shape,
            eps,
            ..
        } => {
            let normalized: Vec<i64> = normalized_shape.iter().map(|&extent| extent as i64).collect();
            let trailing = program.expected[index(*input)]
                .shape
                .len()
                .checked_sub(normalized.len());
            if trailing.is_none_or(|leading| batch.axis >= leading as i64) {
                return Err(refuse("layer_norm may not normalise over the batch axis"));
            }
            let width = normalized.iter().product();
            TapKind::LayerNorm {
                normalized_shape: normalized,
                eps: eps.get(),
                width,
            }
        }
        Tap::BroadcastAdd { .. } | Tap::BroadcastMul { .. } | Tap::Expand { .. } => TapKind::Broadcast,
        Tap::Embedding {
            indices,
            weight,
            padding_idx,
        } => {
            let table = &program.expected[index(weight.value)].shape;
            table_kind(table, &program.expected[index(*indices)], output, *padding_idx)
                .ok_or_else(|| refuse("the ids and the table do not give the output's shape"))?
        }
    };
    let width = match &kind {
        TapKind::Rows { output_width, .. } => *output_width,
        TapKind::LayerNorm { width, .. } | TapKind::Embedding { width, .. } => *width,
        TapKind::Broadcast => 1,
    };
    let elements: i64 = output.shape.iter().product();
    let rows_per_record = elements / (program.batch_size * width).max(1);
    check_scales(node, tap).ok_or_else(|| refuse("addmm must have beta = alpha = 1"))?;
    Ok(TapPlan {
        kind,
        batch,
        output_shape: output.shape.clone(),
        rows_per_record,
    })
}

/// Widths of a contraction over the input's last axis; a vector as right operand gives width 1.
fn rows_kind(node: &TypedNode, input: &Expected, output: &Expected) -> Option<TapKind> {
    let (&input_width, leading) = input.shape.split_last()?;
    let vector = node.operator == "matmul" && output.shape.len() + 1 == input.shape.len();
    let output_width = if vector { 1 } else { *output.shape.last()? };
    let output_leading = if vector {
        &output.shape[..]
    } else {
        output.shape.split_last()?.1
    };
    let aligned = leading == output_leading && input.batch == output.batch;
    let before_last = input.batch.is_some_and(|batch| batch.axis < leading.len() as i64);
    (aligned && before_last).then_some(TapKind::Rows {
        input_width,
        output_width,
    })
}

/// One row of the table for each id.
fn table_kind(table: &[i64], ids: &Expected, output: &Expected, padding: Option<u64>) -> Option<TapKind> {
    let &[rows, width] = table else { return None };
    let (last, leading) = output.shape.split_last()?;
    let fits = *last == width && leading == ids.shape && ids.batch.is_some() && ids.batch == output.batch;
    fits.then_some(TapKind::Embedding {
        rows,
        width,
        // A padding id beyond the table pads nothing.
        padding: padding
            .and_then(|row| i64::try_from(row).ok())
            .filter(|row| *row < rows),
    })
}

fn check_scales(node: &TypedNode, tap: &Tap) -> Option<()> {
    if !matches!(tap, Tap::MatMul { .. }) {
        return Some(());
    }
    let one = |argument: &Argument| match argument {
        Argument::Int(value) | Argument::NumberAsTensor(Number::Int(value)) => *value == 1,
        Argument::Float(bits) | Argument::NumberAsTensor(Number::Float(bits)) => bits.get() == 1.0,
        _ => false,
    };
    let mut scales = node
        .arguments
        .iter()
        .filter(|named| named.name == "beta" || named.name == "alpha");
    scales.all(|named| one(&named.value)).then_some(())
}

/// Norms by Gram matrices cost `T²(in+out)` multiplications a record, by instantiation `T·in·out`.
fn method(parameter: &ParameterPlan, taps: &[TapPlan]) -> Method {
    if let [only] = &parameter.uses[..] {
        let tap = &taps[only.tap];
        if let (
            Role::Weight { .. },
            TapKind::Rows {
                input_width,
                output_width,
            },
        ) = (&only.role, &tap.kind)
        {
            let ghost = tap.rows_per_record.saturating_mul(input_width + output_width);
            return if tap.rows_per_record == 1 {
                Method::Rows
            } else if ghost < input_width.saturating_mul(*output_width) {
                Method::Ghost
            } else {
                Method::Direct
            };
        }
    }
    let factors: Option<Vec<Factor>> = parameter.uses.iter().map(Use::factor).collect();
    match factors {
        Some(factors) if !factors.is_empty() && is_cheaper_factored(parameter, &factors, taps) => {
            Method::Factored
        }
        _ => Method::Instantiate,
    }
}

/// Tables alone are always cheaper by their factors: no gradient has more rows than tokens. Ties with weights cost
/// `T²(rows + width)` for the weights and `T_weights·T_tables·width` for the cross terms, against `T·rows·width`.
fn is_cheaper_factored(parameter: &ParameterPlan, factors: &[Factor], taps: &[TapPlan]) -> bool {
    let rows_of = |wanted: fn(&Factor) -> bool| -> i64 {
        let uses = parameter.uses.iter().zip(factors);
        uses.filter(|(_, factor)| wanted(factor))
            .map(|(each, _)| taps[each.tap].rows_per_record)
            .sum()
    };
    let tokens = rows_of(|factor| *factor == Factor::Table);
    let dense = rows_of(|factor| *factor != Factor::Table);
    let &[rows, width] = &parameter.shape[..] else {
        return false;
    };
    let ghost = dense
        .saturating_mul(dense)
        .saturating_mul(rows + width)
        .saturating_add(dense.saturating_mul(tokens).saturating_mul(width));
    let instantiated = dense.saturating_add(1).saturating_mul(rows).saturating_mul(width);
    dense == 0 || ghost <= instantiated || rows.saturating_mul(width) > MOST_INSTANTIATED
}

/// Elements of a parameter whose gradient is still instantiated for each record: 128 MiB in f64.
const MOST_INSTANTIATED: i64 = 1 << 24;

/// A table in a form that only instantiation could serve must be small.
fn check_instantiable(graph: &TypedGraph, parameter: &ParameterPlan) -> Result<()> {
    let has_table = parameter.uses.iter().any(|each| each.role == Role::Table);
    let elements: i64 = parameter.shape.iter().product();
    if !has_table || parameter.method != Method::Instantiate || elements <= MOST_INSTANTIATED {
        return Ok(());
    }
    Err(EngineError::Unsupported {
        node: graph.parameters()[parameter.parameter].names.join(" = "),
        reason: format!(
            "a table of {elements} elements is also used in a way that needs its whole gradient for each record; use it \
             as an embedding and in linear or matmul only"
        ),
    })
}

/// How one use's gradient factors into rows: `Σ_t l_t r_tᵀ` in the parameter's own shape `[rows, width]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Factor {
    /// `l` is one-hot in the token's id, `r` the output gradient.
    Table,
    /// `l` is the output gradient and `r` the input.
    GradientInput,
    /// `l` is the input and `r` the output gradient.
    InputGradient,
}

impl Use {
    /// `None` where the parameter enters through more than transposes.
    pub(crate) fn factor(&self) -> Option<Factor> {
        let mut turned = false;
        for step in &self.back {
            match step {
                ViewBack::Permute(axes) if axes[..] == [1, 0] => turned = !turned,
                ViewBack::Permute(axes) if axes[..] == [0, 1] => {}
                _ => return None,
            }
        }
        match &self.role {
            Role::Table if !turned => Some(Factor::Table),
            Role::Weight { transposed } if self.value_shape.len() == 2 => Some(if *transposed == turned {
                Factor::GradientInput
            } else {
                Factor::InputGradient
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(transposed: bool, back: Vec<ViewBack>) -> Use {
        Use {
            tap: 0,
            role: Role::Weight { transposed },
            value_shape: vec![2, 3],
            back,
        }
    }

    #[test]
    fn two_transposes_cancel_and_one_swaps_the_factors() {
        let turn = || ViewBack::Permute(vec![1, 0]);
        assert_eq!(weight(false, vec![]).factor(), Some(Factor::GradientInput));
        assert_eq!(weight(true, vec![]).factor(), Some(Factor::InputGradient));
        assert_eq!(weight(true, vec![turn()]).factor(), Some(Factor::GradientInput));
        assert_eq!(
            weight(false, vec![turn(), turn()]).factor(),
            Some(Factor::GradientInput)
        );
        assert_eq!(weight(false, vec![ViewBack::Reshape(vec![6])]).factor(), None);
    }

    #[test]
    fn a_large_tie_is_factored_and_a_small_one_over_many_rows_instantiated() {
        let tap = |rows_per_record| TapPlan {
            kind: TapKind::Rows {
                input_width: 64,
                output_width: 1000,
            },
            batch: BatchAxis { axis: 0, inner: 1 },
            output_shape: vec![],
            rows_per_record,
        };
        let table = Use {
            role: Role::Table,
            ..weight(false, vec![])
        };
        let tied = |rows: i64, width: i64| ParameterPlan {
            parameter: 0,
            shape: vec![rows, width],
            uses: vec![table.clone(), weight(false, vec![])],
            method: Method::Instantiate,
        };
        assert_eq!(method(&tied(1000, 64), &[tap(8)]), Method::Factored);
        assert_eq!(method(&tied(10, 4), &[tap(512)]), Method::Instantiate);
        let only = ParameterPlan {
            uses: vec![table.clone(), table.clone()],
            ..tied(10, 4)
        };
        assert_eq!(method(&only, &[tap(512)]), Method::Factored);
    }
}
