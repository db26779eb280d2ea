//! Graph inputs: parameters and constants from storage, model inputs from the contract's columns.

use super::Checker;
use super::call::Named;
use super::facts::Output;
use super::hints;
use super::judge::check_extents;
use super::refusal::Objection;
use crate::contract::{Domain, InputColumn};
use crate::dtype::DType;
use crate::program::InputKind;
use crate::typed::{Dependence, Extent, Input, Origin, ParameterId, ValueType};

impl Checker<'_> {
    /// Types every graph input.
    pub(super) fn inputs(&mut self, columns: &[InputColumn]) {
        let program = self.program;
        let users = program
            .inputs()
            .iter()
            .filter(|input| input.kind == InputKind::User)
            .count();
        if users != columns.len() {
            let reason = format!(
                "the module takes {users} inputs and {} columns are given",
                columns.len()
            );
            self.refuse(
                "input",
                "",
                None,
                Objection::plain(reason, "name one contract column per input, in order"),
            );
        }
        let mut columns = columns.iter();
        for input in program.inputs() {
            let (origin, output) = match input.kind {
                InputKind::Parameter(index) => self.parameter(index),
                InputKind::Constant(index) => self.constant(index),
                InputKind::User => match columns.next() {
                    Some(column) => self.column(column),
                    None => continue,
                },
            };
            let is_column = input.kind == InputKind::User;
            let agrees = hints::agree_input(program.hint(&input.name), &output.value_type, is_column);
            let verdict = check_extents(&output.value_type).and(agrees);
            if let Err(objection) = verdict {
                self.refuse(&input.name, "", None, objection);
                self.names.insert(&input.name, Named::Unknown);
                continue;
            }
            let parameters = match origin {
                Origin::Parameter(id) => vec![id],
                _ => Vec::new(),
            };
            self.define(&input.name, origin, output, &parameters, true);
        }
    }

    fn parameter(&self, index: usize) -> (Origin, Output) {
        let parameter = &self.program.parameters()[index];
        let id = ParameterId(u32::try_from(index).unwrap_or(u32::MAX));
        let value_type = shared(&parameter.shape, parameter.dtype);
        let requires_grad = self.is_trained && parameter.requires_grad && parameter.dtype.is_float();
        let view = Some((id, Vec::new()));
        (
            Origin::Parameter(id),
            Output {
                value_type,
                requires_grad,
                view,
                bounds: None,
                iota: None,
            },
        )
    }

    fn constant(&self, index: usize) -> (Origin, Output) {
        let constant = &self.program.constants()[index];
        let origin = Origin::Constant(u32::try_from(index).unwrap_or(u32::MAX));
        (origin, Output::constant(shared(&constant.shape, constant.dtype)))
    }

    fn column(&mut self, column: &InputColumn) -> (Origin, Output) {
        let origin = Origin::Input(u32::try_from(self.graph_inputs.len()).unwrap_or(u32::MAX));
        let InputColumn {
            column: name,
            dtype,
            shape,
            ..
        } = column;
        self.graph_inputs.push(Input {
            column: name.clone(),
            dtype: *dtype,
            shape: shape.clone(),
        });
        let extents =
            std::iter::once(Extent::Batch(1)).chain(shape.iter().map(|extent| Extent::Fixed(*extent)));
        let value_type = ValueType {
            dependence: Dependence::PerSample { axis: 0 },
            shape: extents.collect(),
            dtype: *dtype,
        };
        (origin, Output::constant(value_type).bounded(bounds(column)))
    }
}

fn shared(shape: &[u64], dtype: DType) -> ValueType {
    ValueType {
        dependence: Dependence::Shared,
        shape: shape.iter().map(|extent| Extent::Fixed(*extent)).collect(),
        dtype,
    }
}

/// The declared range of an integer column (rule G4).
fn bounds(column: &InputColumn) -> Option<(i64, i64)> {
    match column.domain.as_ref()? {
        Domain::Bool => Some((0, 1)),
        Domain::Classes { names } => Some((0, i64::try_from(names.len()).ok()? - 1)),
        Domain::Range { minimum, maximum } if !column.dtype.is_float() => {
            let least = minimum.iter().copied().fold(f64::INFINITY, f64::min);
            let greatest = maximum.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            Some((least as i64, greatest as i64))
        }
        Domain::Range { .. } => None,
    }
}
