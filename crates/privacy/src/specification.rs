//! Compositions as people write them: a JSON list of releases.
//!
//! ```json
//! [{"type": "sg", "sigma": 1.1, "q": 0.01, "steps": 5000}, {"type": "laplace", "scale": 20, "count": 1}]
//! ```

use serde::{Deserialize, Serialize};

use crate::event::DpEvent;

/// One entry of the list. Noise is relative to how much one unit moves what is released.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Release {
    /// Gaussian noise on the sum over a Poisson sample: steps of DP-SGD.
    #[serde(rename = "sg")]
    SampledGaussian {
        /// Standard deviation over L2 sensitivity.
        sigma: f64,
        /// Probability of each unit.
        q: f64,
        /// How often.
        steps: u64,
    },
    /// The same with at most `cap` units of a sample kept.
    #[serde(rename = "tsg")]
    TruncatedSampledGaussian {
        /// Standard deviation over L2 sensitivity.
        sigma: f64,
        /// Probability of each unit.
        q: f64,
        /// How often.
        steps: u64,
        /// Upper bound on the number of units.
        size: u64,
        /// Most units of a sample.
        cap: u64,
    },
    /// Gaussian noise.
    Gaussian {
        /// Standard deviation over L2 sensitivity.
        sigma: f64,
        /// How often.
        count: u64,
    },
    /// Laplace noise on a number.
    Laplace {
        /// Scale over the most that one unit moves it.
        scale: f64,
        /// How often.
        count: u64,
    },
    /// Laplace noise on a number computed from a Poisson sample.
    #[serde(rename = "sl")]
    SampledLaplace {
        /// Scale over the most that one unit moves it.
        scale: f64,
        /// Probability of each unit.
        q: f64,
        /// How often.
        steps: u64,
    },
    /// Gaussian noise on the counts of histograms.
    Histograms {
        /// How many histograms a unit is counted in.
        histograms: u64,
        /// Standard deviation, in counts.
        deviation: f64,
        /// How often.
        count: u64,
    },
}

impl From<Release> for DpEvent {
    fn from(release: Release) -> Self {
        match release {
            Release::SampledGaussian { sigma, q, steps } => Self::dp_sgd(sigma, q, steps),
            Release::TruncatedSampledGaussian {
                sigma,
                q,
                steps,
                size,
                cap,
            } => Self::TruncatedSubsampledGaussian {
                dataset_size: size,
                sampling_probability: q,
                truncated_batch_size: cap,
                noise_multiplier: sigma,
            }
            .repeated(steps),
            Release::Gaussian { sigma, count } => Self::Gaussian {
                noise_multiplier: sigma,
            }
            .repeated(count),
            Release::Laplace { scale, count } => Self::Laplace {
                noise_multiplier: scale,
            }
            .repeated(count),
            Release::SampledLaplace { scale, q, steps } => Self::Laplace {
                noise_multiplier: scale,
            }
            .sampled(q)
            .repeated(steps),
            Release::Histograms {
                histograms,
                deviation,
                count,
            } => Self::Histograms {
                histograms,
                standard_deviation: deviation,
            }
            .repeated(count),
        }
    }
}

/// All releases of a list, one after the other.
pub fn composed(releases: &[Release]) -> DpEvent {
    DpEvent::Composed {
        events: releases.iter().copied().map(DpEvent::from).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_the_composition_of_its_entries() {
        let text = r#"[{"type":"sg","sigma":1.5,"q":0.25,"steps":3},{"type":"laplace","scale":2,"count":4},
            {"type":"gaussian","sigma":7,"count":1},{"type":"sl","scale":2,"q":0.5,"steps":6},
            {"type":"histograms","histograms":2,"deviation":5,"count":1},
            {"type":"tsg","sigma":1,"q":0.5,"steps":2,"size":10,"cap":8}]"#;
        let releases: Vec<Release> = serde_json::from_str(text).unwrap();
        let laplace = DpEvent::Laplace {
            noise_multiplier: 2.0,
        };
        let expected = vec![
            DpEvent::dp_sgd(1.5, 0.25, 3),
            laplace.clone().repeated(4),
            DpEvent::Gaussian {
                noise_multiplier: 7.0,
            }
            .repeated(1),
            laplace.sampled(0.5).repeated(6),
            DpEvent::Histograms {
                histograms: 2,
                standard_deviation: 5.0,
            }
            .repeated(1),
            DpEvent::TruncatedSubsampledGaussian {
                dataset_size: 10,
                sampling_probability: 0.5,
                truncated_batch_size: 8,
                noise_multiplier: 1.0,
            }
            .repeated(2),
        ];
        assert_eq!(composed(&releases), DpEvent::Composed { events: expected });
    }

    #[test]
    fn entries_that_are_not_understood_are_refused() {
        for text in [
            r#"{"type":"exponential","scale":1,"count":1}"#,
            r#"{"type":"gaussian","sigma":1}"#,
            r#"{"type":"gaussian","sigma":1,"count":1,"q":0.1}"#,
            r#"{"sigma":1,"count":1}"#,
        ] {
            assert!(serde_json::from_str::<Release>(text).is_err(), "{text}");
        }
    }
}
