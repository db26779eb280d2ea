//! The taps within a recurrent node: for each cell one at its projections and one at its recurrent projections, rows of
//! `[B, T]` like those of a linear layer.

use super::{Role, TapKind, TapPlan};
use crate::error::{EngineError, Result};
use crate::program::Program;
use crate::recurrent::CellKind;
use bastionai_graph::typed::{RecurrentCell, TappedParameter, TypedNode};

/// A tap and the parameters it serves.
pub(super) type Served<'t> = (TapPlan, Vec<(&'t TappedParameter, Role)>);

/// Who is served by a cell's projections, and who by its recurrent projections; nobody: no tap.
///
/// Of all cells but GRU's both have the same gradient, so that the recurrent bias can have its sum with the other's.
pub(crate) fn sides(kind: CellKind, cell: &RecurrentCell) -> [Vec<(&TappedParameter, Role)>; 2] {
    let weight = Role::Weight { transposed: false };
    let (mut projected, mut recurrent) = (served(&cell.weight_ih, &weight), served(&cell.weight_hh, &weight));
    projected.extend(served(&cell.bias_ih, &Role::Sum));
    let with = if kind == CellKind::Gru {
        &mut recurrent
    } else {
        &mut projected
    };
    with.extend(served(&cell.bias_hh, &Role::Sum));
    [projected, recurrent]
}

fn served<'t>(tapped: &'t Option<TappedParameter>, role: &Role) -> Vec<(&'t TappedParameter, Role)> {
    tapped.iter().map(|tapped| (tapped, role.clone())).collect()
}

/// In the order in which the executor taps.
pub(super) fn plans<'t>(
    node: &TypedNode,
    cells: &'t [RecurrentCell],
    program: &Program,
) -> Result<Vec<Served<'t>>> {
    let refuse = || EngineError::Unsupported {
        node: node.name.clone(),
        reason: "its taps are not those of its cells".into(),
    };
    let call = program.calls.iter().find(|call| call.name == node.name);
    let layers = call.and_then(|call| call.recurrent.as_ref()).ok_or_else(refuse)?;
    if layers.cells() != cells.len() {
        return Err(refuse());
    }
    let [rows, steps, _] = layers.shape();
    let batch = layers.batch();
    let mut out = Vec::new();
    for (position, cell) in cells.iter().enumerate() {
        let widths = layers.widths(position).ok_or_else(refuse)?;
        for (served, (input_width, output_width)) in sides(layers.kind(), cell).into_iter().zip(widths) {
            if served.is_empty() {
                continue;
            }
            let plan = TapPlan {
                kind: TapKind::Rows {
                    input_width,
                    output_width,
                },
                batch,
                output_shape: vec![rows, steps, output_width],
                rows_per_record: steps.saturating_mul(batch.inner),
                as_rows: false,
                needs_row_norms: false,
            };
            out.push((plan, served));
        }
    }
    Ok(out)
}
