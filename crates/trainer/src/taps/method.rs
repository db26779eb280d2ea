//! How each parameter's norms and clipped sum are computed: by what it costs on the shapes at hand.

use super::{Factor, Method, ParameterPlan, Plan, Role, TapKind, TapPlan, Use};
use crate::error::{EngineError, Result};
use bastionai_graph::typed::TypedGraph;

/// Most memory of gradients that are kept from norm to sum, in elements: 256 MiB of f32. Beyond it they are
/// computed twice.
pub(super) const KEPT_ELEMENTS: i64 = 1 << 26;

/// Memory of one block of instantiated gradients, or of what they are made from, in elements: 64 MiB of f32.
pub(crate) const BLOCK_ELEMENTS: i64 = 1 << 24;

/// What writing one element of a convolution's gradient and reading it for the sum costs, in multiplications of an f32
/// matrix product. Its norm comes with it.
const ELEMENT: i64 = 30;

/// What an element of unfolded rows costs: written, and read by the Gram matrix and the sum.
const UNFOLDED_ELEMENT: i64 = 30;

/// The same of a linear layer over several rows, whose gradients would also be most of a step's memory: those of BERT
/// for a batch of 16 are 5 GB.
const LINEAR_ELEMENT: i64 = 120;

/// What an element of two Gram matrices costs: added up from the lanes of its dot products, and multiplied.
const GRAM_ELEMENT: i64 = 110;

impl Plan {
    /// Sets method and block of every parameter, and which convolutions are handled by rows. At most `kept` elements
    /// of gradients are kept from norm to sum. A unit has `length` records, whose gradients are added up.
    pub(crate) fn choose_methods(&mut self, length: i64, mut kept: i64) {
        let batch_size = self.units;
        for tap in &mut self.taps {
            (tap.as_rows, tap.needs_row_norms) = (false, false);
        }
        for parameter in &mut self.parameters {
            let elements = parameter.shape.iter().product::<i64>().max(1);
            let all = elements.saturating_mul(batch_size);
            let keep = all <= kept;
            parameter.method = if self.written_out {
                Method::Instantiate { kept: keep }
            } else {
                method(parameter, &self.taps, keep)
            };
            let of_unit = elements
                .max(scratch(parameter, &self.taps))
                .saturating_mul(length);
            parameter.block = (BLOCK_ELEMENTS / of_unit).clamp(1, batch_size);
            if self.written_out {
                // Blocks of one length: kernels then round a record alike wherever it stands.
                let whole = (1..=parameter.block).rev().find(|block| batch_size % block == 0);
                parameter.block = whole.unwrap_or(1);
            }
            match parameter.method {
                Method::Instantiate { kept: true } => kept -= all,
                Method::Instantiate { kept: false } => {}
                Method::Factored => {
                    for each in &parameter.uses {
                        self.taps[each.tap].needs_row_norms = true;
                    }
                }
                Method::Rows | Method::Ghost => {
                    let tap = &mut self.taps[parameter.uses[0].tap];
                    tap.as_rows = true;
                    tap.needs_row_norms |= parameter.method == Method::Rows || self.in_f64;
                }
            }
        }
    }

    /// Every parameter's gradient is instantiated for each record, whatever it costs.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] for a parameter whose gradient is too large for that.
    pub(crate) fn write_out(&mut self, graph: &TypedGraph, records_per_unit: u32) -> Result<()> {
        self.written_out = true;
        self.choose_methods(i64::from(records_per_unit), KEPT_ELEMENTS);
        let elements = |each: &ParameterPlan| each.shape.iter().product::<i64>();
        match self
            .parameters
            .iter()
            .find(|each| elements(each) > MOST_INSTANTIATED)
        {
            None => Ok(()),
            Some(large) => Err(EngineError::Unsupported {
                node: graph.parameters()[large.parameter].names.join(" = "),
                reason: format!(
                    "noise_mode hardened writes the gradient of every record out, and this parameter has {} elements: \
                     freeze it and train adapters or a head, or use noise_mode standard",
                    elements(large)
                ),
            }),
        }
    }
}

/// Elements of a record that instantiating a parameter's gradient makes besides the gradient.
fn scratch(parameter: &ParameterPlan, taps: &[TapPlan]) -> i64 {
    let of = |tap: &TapPlan| match &tap.kind {
        TapKind::Convolution(convolution) => convolution.unfolded_elements(),
        _ => 1,
    };
    parameter
        .uses
        .iter()
        .map(|each| of(&taps[each.tap]))
        .max()
        .unwrap_or(1)
}

fn method(parameter: &ParameterPlan, taps: &[TapPlan], keep: bool) -> Method {
    if let Some(method) = by_rows(parameter, taps, keep) {
        return method;
    }
    let factors: Option<Vec<Factor>> = parameter.uses.iter().map(Use::factor).collect();
    let is_weight = matches!(&parameter.uses[..], [only] if matches!(only.role, Role::Weight { .. }));
    match factors {
        Some(factors)
            if !factors.is_empty() && !is_weight && is_cheaper_factored(parameter, &factors, taps) =>
        {
            Method::Factored
        }
        _ => Method::Instantiate { kept: keep },
    }
}

/// A weight with one use is handled by rows where a record has one row, or where Gram matrices are cheaper than the
/// gradient of each record.
///
/// With T rows of widths a and b: Gram matrices, of which half is made, cost `T²(a + b)/2` and their elements, and the sum
/// after them `T·a·b`, and a convolution's rows must be unfolded for both; a gradient costs `T·a·b` and its elements, twice
/// when it is not kept.
fn by_rows(parameter: &ParameterPlan, taps: &[TapPlan], keep: bool) -> Option<Method> {
    let [only] = &parameter.uses[..] else {
        return None;
    };
    let tap = &taps[only.tap];
    let (a, b, element, unfolded) = match (&only.role, &tap.kind) {
        (
            Role::Weight { .. },
            TapKind::Rows {
                input_width,
                output_width,
            },
        ) => (*input_width, *output_width, LINEAR_ELEMENT, 0),
        (Role::Weight { .. }, TapKind::Convolution(plan)) if plan.groups == 1 => {
            let (width, rows) = (plan.unfolded_width(), tap.rows_per_record);
            let unfolded = rows.saturating_mul(width).saturating_mul(UNFOLDED_ELEMENT);
            (width, plan.plain_width(), ELEMENT, unfolded)
        }
        _ => return None,
    };
    let rows = tap.rows_per_record;
    if rows == 1 {
        return Some(Method::Rows);
    }
    let product = a.saturating_mul(b);
    let grams = rows.saturating_mul(rows).saturating_mul(a + b + GRAM_ELEMENT) / 2;
    let ghost = grams
        .saturating_add(rows.saturating_mul(product))
        .saturating_add(unfolded);
    let times = if keep { 1 } else { 2 };
    let instantiated = product
        .saturating_mul(rows.saturating_add(element))
        .saturating_mul(times);
    (ghost < instantiated).then_some(Method::Ghost)
}

/// Tables alone are always cheaper by their factors: no gradient has more rows than tokens. Ties with weights cost
/// `T²(rows + width)/2` for the weights and `T_weights·T_tables·width` for the cross terms, against `T·rows·width`.
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
    let grams = dense.saturating_mul(dense).saturating_mul(rows + width) / 2;
    let ghost = grams.saturating_add(dense.saturating_mul(tokens).saturating_mul(width));
    let instantiated = dense.saturating_add(1).saturating_mul(rows).saturating_mul(width);
    dense == 0 || ghost <= instantiated || rows.saturating_mul(width) > MOST_INSTANTIATED
}

/// Elements of a parameter whose gradient is still instantiated for each record: 128 MiB in f64.
const MOST_INSTANTIATED: i64 = 1 << 24;

/// A table in a form that only instantiation could serve must be small.
pub(super) fn check_instantiable(graph: &TypedGraph, parameter: &ParameterPlan) -> Result<()> {
    let has_table = parameter.uses.iter().any(|each| each.role == Role::Table);
    let elements: i64 = parameter.shape.iter().product();
    if !has_table || !matches!(parameter.method, Method::Instantiate { .. }) || elements <= MOST_INSTANTIATED
    {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::BatchAxis;

    fn weight(transposed: bool) -> Use {
        Use {
            tap: 0,
            role: Role::Weight { transposed },
            value_shape: vec![2, 3],
            back: Vec::new(),
        }
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
            as_rows: false,
            needs_row_norms: false,
        };
        let table = Use {
            role: Role::Table,
            ..weight(false)
        };
        let tied = |rows: i64, width: i64| ParameterPlan {
            parameter: 0,
            shape: vec![rows, width],
            uses: vec![table.clone(), weight(false)],
            method: Method::Instantiate { kept: true },
            block: 1,
        };
        assert_eq!(method(&tied(1000, 64), &[tap(8)], true), Method::Factored);
        assert_eq!(
            method(&tied(10, 4), &[tap(512)], true),
            Method::Instantiate { kept: true }
        );
        let only = ParameterPlan {
            uses: vec![table.clone(), table.clone()],
            ..tied(10, 4)
        };
        assert_eq!(method(&only, &[tap(512)], true), Method::Factored);
    }
}
