//! Operators that are another one under a second name: checked, and run, as that one, so that there is one rule, one
//! kernel and one set of shape checks. Core ATen's `_native_batch_norm_legit_no_training` is one: called with statistics
//! that are too short, its kernel reads beyond them.

use super::refusal::Objection;
use crate::program::{ProgramNode, RawArgument, RawOutput};
use std::collections::HashSet;

/// The same call under the name that has a rule.
pub(super) struct Lowered {
    pub(super) target: &'static str,
    pub(super) arguments: Vec<(String, RawArgument)>,
    /// Results that it keeps, the first ones; nothing reads the others.
    pub(super) results: usize,
}

/// What to check and run in the node's place; None for operators that stand for themselves.
pub(super) fn lowered(node: &ProgramNode, needed: &HashSet<&str>) -> Result<Option<Lowered>, Objection> {
    match node.target.as_str() {
        "torch.ops.aten._native_batch_norm_legit_no_training.default" => {
            frozen_batch_norm(node, needed).map(Some)
        }
        _ => Ok(None),
    }
}

/// `(out, save_mean, save_invstd)` of fixed statistics; the last two are empty.
fn frozen_batch_norm(node: &ProgramNode, needed: &HashSet<&str>) -> Result<Lowered, Objection> {
    let mut saved = node.outputs.iter().skip(1).flat_map(RawOutput::names);
    if node.outputs.is_empty() || saved.any(|name| needed.contains(name.as_str())) {
        return Err(Objection::denied(
            "the saved statistics of BatchNorm are read, which are empty in evaluation mode",
            "use the first result only",
        ));
    }
    let mut arguments = node.arguments.clone();
    for name in ["training", "cudnn_enabled"] {
        arguments.push((name.to_owned(), RawArgument::Bool(false)));
    }
    Ok(Lowered {
        target: "torch.ops.aten.batch_norm.default",
        arguments,
        results: 1,
    })
}
