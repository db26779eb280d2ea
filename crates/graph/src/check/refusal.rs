//! What the checker says no to, and what to do about it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One refused node (or input, or output).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Exported node or value name.
    pub node: String,
    /// Operator and overload, e.g. `aten.sum.dim_IntList`; empty for inputs and outputs.
    pub operator: String,
    /// Python `file:line`, when the export recorded it.
    pub source: Option<String>,
    /// The rule of soundness.md that is not met, e.g. `T7`; none for a plain mistake.
    pub rule: Option<String>,
    /// Why.
    pub reason: String,
    /// What to do instead.
    pub remedy: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(formatter, "{source}: ")?,
            None => write!(formatter, "(no Python line): ")?,
        }
        write!(formatter, "{}", self.node)?;
        if !self.operator.is_empty() {
            write!(formatter, " ({})", self.operator)?;
        }
        write!(formatter, ": {}", self.reason)?;
        if let Some(rule) = &self.rule {
            write!(formatter, " [rule {rule}]")?;
        }
        write!(formatter, "\n    instead: {}", self.remedy)
    }
}

/// Every refusal of a program, in node order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Refusals {
    /// At least one.
    pub refusals: Vec<Refusal>,
}

impl fmt::Display for Refusals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.refusals.len();
        let noun = if count == 1 { "reason" } else { "reasons" };
        write!(
            formatter,
            "the model cannot be proven safe to train, {count} {noun}:"
        )?;
        self.refusals
            .iter()
            .try_for_each(|refusal| write!(formatter, "\n{refusal}"))
    }
}

impl std::error::Error for Refusals {}

/// Why a rule does not apply; the checker adds node, operator and source.
#[derive(Debug)]
pub(crate) struct Objection {
    pub(crate) rule: Option<&'static str>,
    pub(crate) reason: String,
    pub(crate) remedy: String,
}

impl Objection {
    /// A mistake that is no leak: shapes that do not fit, an argument of another type.
    pub(crate) fn plain(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            rule: None,
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    /// An operator (or a use of it) without a rule.
    pub(crate) fn denied(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            rule: Some("T7"),
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }
}
