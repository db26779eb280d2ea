//! One error for the engine. Its text has a fixed vocabulary: names from the graph and numbers from the job,
//! never a value, a row or the text of an exception (rules G4 and 7).

use tch::TchError;

/// Why the engine stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The job itself is wrong: its text concerns hyper-parameters and sizes only.
    #[error("{0}")]
    Job(String),
    /// The graph asks for something the engine has no sound way to run.
    #[error("node {node}: {reason}")]
    Unsupported {
        /// Exported node name.
        node: String,
        /// Why not, and what would do.
        reason: String,
    },
    /// An operator of the graph raised.
    #[error("node {node}: the operator failed")]
    Operator {
        /// Exported node name.
        node: String,
        /// libtorch's own text: only for a time when no record is in memory.
        detail: String,
    },
    /// A value's shape or dtype is not what the checker proved (rule T4).
    #[error("node {node}: the actual shape or dtype of an output differs from the typed graph")]
    TypeDiffers {
        /// Exported node name.
        node: String,
    },
    /// libtorch refused one of the engine's own operations.
    #[error("libtorch refused an engine operation")]
    Torch {
        /// libtorch's own text: only for a time when no record is in memory.
        detail: String,
    },
    /// A parameter or constant changed during the forward phase (rule T8).
    #[error("a parameter or constant was changed by the graph")]
    Mutated,
    /// The clipped sum is not finite or above what clipping allows: an internal error, caught before any release.
    #[error("the clipped sum is out of its bound")]
    SumOutOfBound,
    /// A row's numbers changed when another row of the batch did, or the same rows gave other sums (rule T2).
    #[error(
        "rows of a batch of {physical_batch_size} influence one another: the graph or libtorch's kernels mix them; \
         choose another max_batch_size or fewer threads, and report this"
    )]
    RowsInteract {
        /// The physical batch size tried.
        physical_batch_size: u32,
    },
    /// A record whose numbers are none, or out of range, adds something else to a sum than one that is absent (rules G3, G4).
    #[error(
        "a record that is not finite or out of range adds to a batch's sum: choose another max_batch_size, and report this"
    )]
    UnusableAdds,
    /// The operating system gave no randomness.
    #[error("the operating system gave no random bytes")]
    NoRandomness,
}

impl EngineError {
    /// libtorch's own text. It may quote values, so it is read only while no record is in memory.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Operator { detail, .. } | Self::Torch { detail } => Some(detail),
            _ => None,
        }
    }

    /// A call through the shim that has just failed on this thread.
    pub(crate) fn shim(_: crate::ffi::Failed) -> Self {
        Self::Torch {
            detail: crate::ffi::last_error(),
        }
    }

    /// One fixed word for the log of a run that has seen records.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Job(_) => "job",
            Self::Unsupported { .. } => "unsupported",
            Self::Operator { .. } => "operator",
            Self::TypeDiffers { .. } => "type",
            Self::Torch { .. } => "libtorch",
            Self::Mutated => "mutated",
            Self::SumOutOfBound => "bound",
            Self::RowsInteract { .. } => "rows",
            Self::UnusableAdds => "unusable",
            Self::NoRandomness => "randomness",
        }
    }
}

impl From<TchError> for EngineError {
    fn from(error: TchError) -> Self {
        Self::Torch {
            detail: error.to_string(),
        }
    }
}

/// The engine's result.
pub type Result<T> = std::result::Result<T, EngineError>;
