//! Mechanisms as data, in dp_accounting's vocabulary: the ledger stores these, never ε alone.

use serde::{Deserialize, Serialize};

/// Which pairs of datasets the guarantee compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NeighboringRelation {
    /// One privacy unit added or removed.
    AddOrRemoveOne,
}

/// A mechanism, fully described. Unknown combinations are refused by accountants, never priced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DpEvent {
    /// Nothing is released.
    NoOp,
    /// Something is released without protection: ε = ∞.
    NonPrivate,
    /// Gaussian noise of standard deviation `noise_multiplier` × L2 sensitivity.
    Gaussian {
        /// Standard deviation over L2 sensitivity.
        noise_multiplier: f64,
    },
    /// `event` on a sample that holds each unit independently with this probability.
    PoissonSampled {
        /// Probability in [0, 1].
        sampling_probability: f64,
        /// The mechanism run on the sample.
        event: Box<DpEvent>,
    },
    /// A Gaussian on a Poisson sample of at most `dataset_size` units, cut to `truncated_batch_size`
    /// units when it is larger (dp_accounting's `TruncatedSubsampledGaussianDpEvent`).
    TruncatedSubsampledGaussian {
        /// Upper bound on the number of units: the declared size.
        dataset_size: u64,
        /// Probability in [0, 1].
        sampling_probability: f64,
        /// Largest sample processed.
        truncated_batch_size: u64,
        /// Standard deviation over L2 sensitivity.
        noise_multiplier: f64,
    },
    /// `event`, `count` times.
    SelfComposed {
        /// The mechanism.
        event: Box<DpEvent>,
        /// How many times.
        count: u64,
    },
    /// One after the other.
    Composed {
        /// The mechanisms.
        events: Vec<DpEvent>,
    },
}
