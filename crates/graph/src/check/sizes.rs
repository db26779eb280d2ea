//! Sizes: resolved while checking, so that the typed graph names extents and computes none (rule T1).

use super::call::{Named, Unresolved};
use super::premise::{Premise, require};
use super::refusal::Objection;
use super::{Checker, broadcast, rules};
use crate::program::{ProgramNode, RawArgument, RawOutput, RawSize};
use crate::typed::Extent;

impl Checker<'_> {
    /// Sizes are resolved here and leave no node: `sym_size.int` and multiplication (rule T1).
    pub(super) fn size_node(&self, node: &ProgramNode) -> Result<Option<Extent>, Unresolved> {
        let [RawOutput::Size(_)] = node.outputs.as_slice() else {
            return Ok(None);
        };
        let argument = |name: &str| {
            node.arguments
                .iter()
                .find(|(found, _)| found == name)
                .map(|(_, value)| value)
        };
        if node.target == "torch.ops.aten.sym_size.int" {
            let (Some(RawArgument::Tensor(tensor)), Some(RawArgument::Int(dim))) =
                (argument("self"), argument("dim"))
            else {
                return Err(rules::no_rule(&node.target).into());
            };
            let Some(Named::Value(id)) = self.names.get(tensor.as_str()) else {
                return Err(Unresolved::Unknown);
            };
            let shape = &self.typed[id.0 as usize].value_type.shape;
            return Ok(Some(shape[broadcast::normalise_dim(*dim, shape.len())?]));
        }
        let mut operands = Vec::with_capacity(node.arguments.len());
        for (_, value) in &node.arguments {
            operands.push(match value {
                RawArgument::Int(value) => Some(i128::from(*value)).zip(Some(false)),
                RawArgument::Size(RawSize::Int(value)) => Some(i128::from(*value)).zip(Some(false)),
                RawArgument::Size(RawSize::Name(name)) => match self.names.get(name.as_str()) {
                    Some(Named::Size(Extent::Fixed(value))) => Some((i128::from(*value), false)),
                    Some(Named::Size(Extent::Batch(inner))) => Some((i128::from(*inner), true)),
                    _ => return Err(Unresolved::Unknown),
                },
                _ => None,
            });
        }
        size_product(&node.target, &operands).map(Some)
    }
}

/// Size arithmetic: products of constants with at most one factor that mentions B (rule T1).
fn size_product(target: &str, operands: &[Option<(i128, bool)>]) -> Result<Extent, Unresolved> {
    let batch_factors = operands.iter().flatten().filter(|(_, batch)| *batch).count();
    let scaled = target == "_operator.mul" && batch_factors <= 1 && operands.len() == 2;
    require(Premise::BatchSizeOnlyScaled, scaled, || {
        let reason =
            "it computes with the batch size; only a constant multiple of it is a size of the batch axis";
        (
            reason.into(),
            "use constants, or x.flatten(...) and x.view(B, ...) with sizes B or B*k".into(),
        )
    })?;
    let product = operands
        .iter()
        .try_fold(1i128, |product, operand| product.checked_mul((*operand)?.0));
    let value = product
        .and_then(|product| u64::try_from(product).ok())
        .filter(|value| *value >= 1);
    let value = value
        .ok_or_else(|| Objection::plain("a size is not a positive integer", "use positive constants"))?;
    Ok(if batch_factors > 0 {
        Extent::Batch(value)
    } else {
        Extent::Fixed(value)
    })
}
