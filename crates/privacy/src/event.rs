//! Mechanisms as data, in dp_accounting's vocabulary: the ledger stores these, never ε alone.
//!
//! What is stored stays readable: variants are only ever appended, and none changes its meaning.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Which pairs of datasets the guarantee compares. Every price is for one of these; a relation that no proof here is for
/// cannot be written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NeighboringRelation {
    /// One privacy unit added or removed.
    AddOrRemoveOne,
}

impl NeighboringRelation {
    /// As it is written: `add_or_remove_one`.
    pub fn name(self) -> &'static str {
        match self {
            Self::AddOrRemoveOne => "add_or_remove_one",
        }
    }
}

/// A relation by a name that nothing is priced for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "neighboring relation `{name}` is not priced, only add_or_remove_one: amplification by Poisson sampling is proven here for adding or removing a unit; a unit replaced by another can cost twice the ε"
)]
pub struct UnpricedRelation {
    /// What was asked for.
    pub name: String,
}

impl FromStr for NeighboringRelation {
    type Err = UnpricedRelation;

    fn from_str(name: &str) -> Result<Self, UnpricedRelation> {
        match name {
            "add_or_remove_one" => Ok(Self::AddOrRemoveOne),
            _ => Err(UnpricedRelation {
                name: name.to_owned(),
            }),
        }
    }
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
    /// Laplace noise on a number, or on numbers of which one unit moves one at most (disjoint counts).
    Laplace {
        /// Scale of the noise over the most that one unit moves the number (its L1 sensitivity).
        noise_multiplier: f64,
    },
    /// Gaussian noise on every count of some histograms, each unit being in one cell of each at most: an evaluation's
    /// release ([`crate::histogram`]). The same mechanism as [`DpEvent::Gaussian`] at `standard_deviation` / √`histograms`.
    Histograms {
        /// How many histograms a unit is counted in.
        histograms: u64,
        /// Standard deviation of the noise on each count, in counts.
        standard_deviation: f64,
    },
    /// `steps` Gaussian releases whose noise is correlated over `bands` steps, each unit having its turn in one step of
    /// `bands` in a row ([`crate::banded`]). `event` is a unit's turn: what it costs that all the steps which a turn reaches
    /// are released, with the noise multiplier relative to a turn's l2_sensitivity. A unit has at most ⌈steps/bands⌉ turns.
    Banded {
        /// Steps from one turn of a unit to its next; at least 1.
        bands: u64,
        /// Releases.
        steps: u64,
        /// A Gaussian on a sample of the units that have their turn.
        event: Box<DpEvent>,
    },
}

impl DpEvent {
    /// DP-SGD: `steps` times Gaussian noise on the sum over a Poisson sample.
    ///
    /// ```
    /// use bastionai_privacy::{accountant, event::{DpEvent, NeighboringRelation::AddOrRemoveOne}};
    /// let training = DpEvent::dp_sgd(1.0, 0.01, 10_000);
    /// let epsilon = accountant::epsilon(&training, AddOrRemoveOne, 1e-5)?;
    /// assert!((epsilon - 6.188).abs() < 1e-3);
    /// # Ok::<(), accountant::AccountingError>(())
    /// ```
    pub fn dp_sgd(noise_multiplier: f64, sampling_probability: f64, steps: u64) -> Self {
        Self::Gaussian { noise_multiplier }
            .sampled(sampling_probability)
            .repeated(steps)
    }

    /// This mechanism on a Poisson sample.
    #[must_use]
    pub fn sampled(self, sampling_probability: f64) -> Self {
        Self::PoissonSampled {
            sampling_probability,
            event: Box::new(self),
        }
    }

    /// This mechanism so many times.
    #[must_use]
    pub fn repeated(self, count: u64) -> Self {
        Self::SelfComposed {
            event: Box::new(self),
            count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_without_a_proof_cannot_be_named() {
        assert_eq!(
            "add_or_remove_one".parse(),
            Ok(NeighboringRelation::AddOrRemoveOne)
        );
        assert_eq!(NeighboringRelation::AddOrRemoveOne.name(), "add_or_remove_one");
        for name in ["replace_one", "replace_special", "AddOrRemoveOne", ""] {
            let refused = name.parse::<NeighboringRelation>().unwrap_err();
            assert!(refused.to_string().contains(&format!("`{name}`")), "{refused}");
        }
    }

    /// What receipts and ledgers written before hold.
    #[test]
    fn written_events_keep_their_form() {
        for (event, written) in [
            (
                DpEvent::dp_sgd(1.5, 0.25, 3),
                r#"{"self_composed":{"event":{"poisson_sampled":{"sampling_probability":0.25,"event":{"gaussian":{"noise_multiplier":1.5}}}},"count":3}}"#,
            ),
            (
                DpEvent::Composed {
                    events: vec![DpEvent::NoOp, DpEvent::NonPrivate],
                },
                r#"{"composed":{"events":["no_op","non_private"]}}"#,
            ),
            (
                DpEvent::TruncatedSubsampledGaussian {
                    dataset_size: 96,
                    sampling_probability: 0.5,
                    truncated_batch_size: 64,
                    noise_multiplier: 2.0,
                },
                r#"{"truncated_subsampled_gaussian":{"dataset_size":96,"sampling_probability":0.5,"truncated_batch_size":64,"noise_multiplier":2.0}}"#,
            ),
            (
                DpEvent::Laplace {
                    noise_multiplier: 4.0,
                },
                r#"{"laplace":{"noise_multiplier":4.0}}"#,
            ),
            (
                DpEvent::Histograms {
                    histograms: 2,
                    standard_deviation: 8.0,
                },
                r#"{"histograms":{"histograms":2,"standard_deviation":8.0}}"#,
            ),
            (
                DpEvent::Banded {
                    bands: 4,
                    steps: 10,
                    event: Box::new(DpEvent::Gaussian {
                        noise_multiplier: 2.0,
                    }),
                },
                r#"{"banded":{"bands":4,"steps":10,"event":{"gaussian":{"noise_multiplier":2.0}}}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&event).unwrap(), written);
            assert_eq!(serde_json::from_str::<DpEvent>(written).unwrap(), event);
        }
        assert!(
            serde_json::from_str::<DpEvent>(r#"{"gaussian":{"noise_multiplier":1.0,"more":1}}"#).is_err()
        );
    }
}
