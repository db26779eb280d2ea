//! The premises the rules stand on, each with the rule of soundness.md it implements.
//!
//! Every soundness condition of the checker goes through [`require`]. Tests drop one premise at a time
//! (a *rule mutant*) and show that some leaky graph is then accepted: no premise is idle.

use super::refusal::Objection;

/// A condition whose absence would let a leaky graph through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Premise {
    /// T1: a size that mentions B is not a scalar, a bound, a probability, a dimension.
    BatchSizeOnlyInSizeLists,
    /// T1: size arithmetic on B is only multiplication by a constant.
    BatchSizeOnlyScaled,
    /// T1: `arange(B)` only indexes the batch axis.
    IotaOnlyIndexes,
    /// T1: B appears on one axis of a result only.
    OneBatchAxis,
    /// T3: random values are drawn per sample.
    RandomnessPerSample,
    /// T4: batch axes of operands coincide after right-alignment.
    BatchAxesAligned,
    /// T4: on the aligned batch axis a Shared operand has extent 1 or none.
    SharedSpansNoBatch,
    /// T4: recorded shapes and dtypes do not contradict inferred ones.
    RecordedTypesAgree,
    /// T6: the axes left of the batch axis have product 1 or pass through as the same list.
    LeftAxesPassThrough,
    /// T6: the new batch axis keeps whole blocks: k divides inner × following extents.
    BlocksStayWhole,
    /// T7: reductions and normalisations stay within a sample.
    DimsExcludeBatch,
    /// T7: no dims given means all of them.
    EmptyDimsMeanAll,
    /// T7: contractions do not sum over the batch axis.
    ContractionWithinSample,
    /// T7: weights, norm scales and class weights are Shared.
    WeightIsShared,
    /// T7: losses are not reduced over the batch.
    ReductionNone,
    /// T7: selecting, slicing, splitting and squeezing leave the batch axis alone.
    BatchAxisUntouched,
    /// T7: joins are not along the batch axis.
    JoinsWithinSample,
    /// T7: gathers read the sample's own block.
    GatherWithinSample,
    /// T7: an index tensor replaces an axis of the sample, or reads a Shared table.
    IndexWithinSample,
    /// T7: an argument that no rule looks at has its schema's default.
    UnreadArgumentsAreDefault,
    /// T7: one-hot and the like have a declared number of classes.
    ShapesDoNotDependOnValues,
    /// T8: the graph returns a result only, no new state.
    NoState,
    /// G2: a trainable parameter, or a function of some, meets per-sample data only where it is tapped.
    ParametersAreTapped,
    /// T4: what a convolution or normalisation takes for the batch, axis 0, is the batch.
    BatchIsLeading,
    /// The taps' batch axis is axis 0.
    TapsAreBatchFirst,
    /// G4: values that can be out of range by the declared contract.
    IndicesWithinContract,
    /// Every result is per sample: a loss, or scores and a label.
    LossPerSample,
}

impl Premise {
    /// The rule of soundness.md.
    pub(crate) fn rule(self) -> &'static str {
        match self {
            Self::BatchSizeOnlyInSizeLists
            | Self::BatchSizeOnlyScaled
            | Self::IotaOnlyIndexes
            | Self::OneBatchAxis => "T1",
            Self::RandomnessPerSample => "T3",
            Self::BatchAxesAligned
            | Self::SharedSpansNoBatch
            | Self::RecordedTypesAgree
            | Self::BatchIsLeading => "T4",
            Self::ShapesDoNotDependOnValues => "T5",
            Self::LeftAxesPassThrough | Self::BlocksStayWhole => "T6",
            Self::NoState => "T8",
            Self::ParametersAreTapped | Self::TapsAreBatchFirst => "G2",
            Self::IndicesWithinContract => "G4",
            _ => "T7",
        }
    }
}

/// Objects unless the premise holds.
pub(crate) fn require(
    premise: Premise,
    holds: bool,
    objection: impl FnOnce() -> (String, String),
) -> Result<(), Objection> {
    if holds || is_dropped(premise) {
        return Ok(());
    }
    let (reason, remedy) = objection();
    Err(Objection {
        rule: Some(premise.rule()),
        reason,
        remedy,
    })
}

/// Whether a test has dropped this premise. Never outside of tests.
#[cfg(not(test))]
pub(crate) fn is_dropped(_: Premise) -> bool {
    false
}

#[cfg(test)]
pub(crate) use mutant::{dropping, is_dropped};

#[cfg(test)]
mod mutant {
    use super::Premise;
    use std::cell::Cell;

    thread_local! {
        static DROPPED: Cell<Option<Premise>> = const { Cell::new(None) };
    }

    pub(crate) fn is_dropped(premise: Premise) -> bool {
        DROPPED.get() == Some(premise)
    }

    /// Runs `body` with one premise dropped on this thread.
    pub(crate) fn dropping<T>(premise: Premise, body: impl FnOnce() -> T) -> T {
        DROPPED.set(Some(premise));
        let result = body();
        DROPPED.set(None);
        result
    }
}
