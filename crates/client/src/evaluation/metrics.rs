//! Metrics from noisy histograms, each with the error that the noise makes, the error that the sample makes, and
//! for AUROC the error that the bins make. All of it is post-processing of what was released and paid for.
//!
//! # Method
//! Every metric m is a smooth function of the counts c. With noise of variance s² on each count,
//! Var(m) ≈ s²·Σ (∂m/∂c)² (delta method). All metrics here are homogeneous of degree 0 (twice the records, the same
//! accuracy), so Σ c·∂m/∂c = 0, and for records drawn independently from a population the multinomial delta method
//! gives Var(m) ≈ Σ c·(∂m/∂c)²: for an accuracy this is a(1−a)/n, for a binned AUROC the estimator of DeLong, DeLong and
//! Clarke-Pearson (1988). Both use the noisy counts. Where noise is not small against the count that a metric divides by,
//! there is no value: see [`Estimate::value`].

use super::histograms::ReleasedHistogram;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A metric that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of records whose predicted class is their label.
    Accuracy,
    /// Area under the ROC curve; for more than two classes the mean of one versus the rest.
    Auroc,
    /// F1 of class 1; for more than two classes as [`Self::F1Macro`].
    F1,
    /// Mean of the classes' F1.
    F1Macro,
    /// Label × predicted class.
    Confusion,
}

/// No metric has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is no metric: choose from accuracy, auroc, f1, f1_macro, confusion")]
pub struct UnknownMetric {
    /// What was asked for.
    pub name: String,
}

/// An estimate and what is known about its error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// For a metric within [0, 1]. Absent where the noise drowns the count that the metric divides by (less than
    /// four standard deviations of noise).
    pub value: Option<f64>,
    /// Standard error from the noise: how far the metric of exactly these records may be.
    pub std_error: Option<f64>,
    /// Standard error from the sample: how far the metric of the population that the records are drawn from may be
    /// in addition.
    pub sampling_error: Option<f64>,
    /// Most that counting scores in bins can move the metric; 0 where nothing is binned.
    pub discretisation: f64,
    /// Where the metric of exactly these records lies with a probability of about 95%: 1.96 standard errors of the
    /// noise and the discretisation to either side, within [0, 1].
    pub interval: (f64, f64),
}

/// Noisy counts of label × predicted class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Confusion {
    /// One row for each label: predicted classes, and last the records without finite scores. Counts may be below
    /// zero: that is the noise.
    pub counts: Vec<Vec<i64>>,
    /// Of each count.
    pub std_error: f64,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Self; 5] = [
        Self::Accuracy,
        Self::Auroc,
        Self::F1,
        Self::F1Macro,
        Self::Confusion,
    ];

    /// Whether it needs the confusion histogram.
    pub fn needs_confusion(self) -> bool {
        self != Self::Auroc
    }

    /// Whether it needs the score histograms.
    pub fn needs_scores(self) -> bool {
        self == Self::Auroc
    }

    fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Auroc => "auroc",
            Self::F1 => "f1",
            Self::F1Macro => "f1_macro",
            Self::Confusion => "confusion",
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Metric {
    type Err = UnknownMetric;

    fn from_str(text: &str) -> Result<Self, UnknownMetric> {
        let known = Self::ALL.into_iter().find(|metric| metric.name() == text);
        known.ok_or_else(|| UnknownMetric {
            name: text.to_owned(),
        })
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.value, self.std_error) {
            (Some(value), Some(error)) => write!(formatter, "{value:.3} ± {error:.3}"),
            _ => formatter.write_str("drowned in noise"),
        }
    }
}

impl Confusion {
    pub(super) fn new(histogram: &ReleasedHistogram, noise: f64) -> Self {
        Self {
            counts: histogram
                .counts
                .chunks(histogram.columns as usize)
                .map(<[i64]>::to_vec)
                .collect(),
            std_error: variance(noise).sqrt(),
        }
    }
}

/// Of the rounded Gaussian on each count; rounding adds that of a uniform on one unit.
fn variance(noise: f64) -> f64 {
    if noise == 0.0 {
        0.0
    } else {
        noise * noise + 1.0 / 12.0
    }
}

/// A metric of one histogram and its derivative by every count.
struct Smooth {
    value: f64,
    derivative: Vec<f64>,
    /// Least over its divisors of the divisor over its own noise; infinite without noise.
    resolution: f64,
    discretisation: f64,
}

impl Smooth {
    fn noise_variance(&self, variance: f64) -> f64 {
        variance * self.derivative.iter().map(|each| each * each).sum::<f64>()
    }

    fn sampling_variance(&self, counts: &[f64]) -> f64 {
        let each = self.derivative.iter().zip(counts);
        each.map(|(derivative, count)| derivative * derivative * count.max(0.0))
            .sum()
    }
}

/// The metric from these histograms; `None` for the confusion and where its histograms are missing.
pub(super) fn estimate(
    metric: Metric,
    classes: usize,
    histograms: &[ReleasedHistogram],
    noise: f64,
) -> Option<Estimate> {
    let variance = variance(noise);
    let counts = |each: &ReleasedHistogram| each.counts.iter().map(|&count| count as f64).collect::<Vec<_>>();
    if metric.needs_scores() {
        let scores = histograms.iter().filter(|each| each.name != "confusion");
        let each: Vec<_> = scores
            .map(|histogram| {
                let counts = counts(histogram);
                (auroc(&counts, variance), counts)
            })
            .collect();
        return (!each.is_empty()).then(|| mean(&each, variance));
    }
    let confusion = counts(histograms.iter().find(|each| each.name == "confusion")?);
    let smooth = match metric {
        Metric::Accuracy => accuracy(&confusion, classes, variance),
        Metric::F1 if classes == 2 => f1(&confusion, classes, 1, variance),
        Metric::F1 | Metric::F1Macro => f1_macro(&confusion, classes, variance),
        Metric::Auroc | Metric::Confusion => return None,
    };
    Some(mean(&[(smooth, confusion)], variance))
}

/// Number of records, from the histogram with the fewest counts.
pub(super) fn records(histograms: &[ReleasedHistogram], noise: f64) -> Estimate {
    let fewest = histograms.iter().min_by_key(|each| each.counts.len());
    let counts = fewest.map_or(&[][..], |each| &each.counts);
    let total = counts.iter().map(|&count| count as f64).sum::<f64>();
    let error = (variance(noise) * counts.len() as f64).sqrt();
    Estimate {
        value: Some(total.max(0.0)),
        std_error: Some(error),
        sampling_error: Some(0.0),
        discretisation: 0.0,
        interval: (
            (total - QUANTILE * error).max(0.0),
            (total + QUANTILE * error).max(0.0),
        ),
    }
}

/// The mean over histograms: their noises are independent, their records are the same.
fn mean(each: &[(Smooth, Vec<f64>)], variance: f64) -> Estimate {
    let n = each.len() as f64;
    let over = |value: fn(&Smooth) -> f64| each.iter().map(|(smooth, _)| value(smooth)).sum::<f64>() / n;
    let discretisation = over(|smooth| smooth.discretisation);
    let resolution = each
        .iter()
        .fold(f64::INFINITY, |least, (smooth, _)| least.min(smooth.resolution));
    if resolution.is_nan() || resolution < RESOLVED {
        return Estimate {
            value: None,
            std_error: None,
            sampling_error: None,
            discretisation,
            interval: (0.0, 1.0),
        };
    }
    let noise_variance = each
        .iter()
        .map(|(smooth, _)| smooth.noise_variance(variance))
        .sum::<f64>()
        / (n * n);
    // Correlated between the histograms in an unknown way: no mean has a larger error than the mean of errors.
    let sampling = each
        .iter()
        .map(|(smooth, counts)| smooth.sampling_variance(counts).sqrt());
    let (value, error) = (over(|smooth| smooth.value), noise_variance.sqrt());
    let reach = QUANTILE * error + discretisation;
    Estimate {
        value: Some(value.clamp(0.0, 1.0)),
        std_error: Some(error),
        sampling_error: Some(sampling.sum::<f64>() / n),
        discretisation,
        interval: ((value - reach).clamp(0.0, 1.0), (value + reach).clamp(0.0, 1.0)),
    }
}

fn resolution(divisor: f64, noise_variance: f64) -> f64 {
    match (divisor > 0.0, noise_variance > 0.0) {
        (true, true) => divisor / noise_variance.sqrt(),
        (true, false) => f64::INFINITY,
        (false, _) => 0.0,
    }
}

/// Hits over all; records without finite scores are misses.
fn accuracy(counts: &[f64], classes: usize, variance: f64) -> Smooth {
    let is_hit = |cell: usize| cell / (classes + 1) == cell % (classes + 1);
    let total: f64 = counts.iter().sum();
    let hits: f64 = (0..counts.len())
        .filter(|&cell| is_hit(cell))
        .map(|cell| counts[cell])
        .sum();
    let value = hits / total;
    let by = |cell: usize| (f64::from(u8::from(is_hit(cell))) - value) / total;
    Smooth {
        value,
        derivative: (0..counts.len()).map(by).collect(),
        resolution: resolution(total, variance * counts.len() as f64),
        discretisation: 0.0,
    }
}

/// 2·TP / (2·TP + FP + FN): the divisor is the class's row plus its column.
fn f1(counts: &[f64], classes: usize, class: usize, variance: f64) -> Smooth {
    let weight = |cell: usize| {
        let (label, predicted) = (cell / (classes + 1), cell % (classes + 1));
        f64::from(u8::from(label == class) + u8::from(predicted == class))
    };
    let hit = class * (classes + 1) + class;
    let divisor: f64 = (0..counts.len()).map(|cell| weight(cell) * counts[cell]).sum();
    let value = 2.0 * counts[hit] / divisor;
    let by = |cell: usize| (2.0 * f64::from(u8::from(cell == hit)) - value * weight(cell)) / divisor;
    let weights: f64 = (0..counts.len()).map(|cell| weight(cell).powi(2)).sum();
    Smooth {
        value,
        derivative: (0..counts.len()).map(by).collect(),
        resolution: resolution(divisor, variance * weights),
        discretisation: 0.0,
    }
}

fn f1_macro(counts: &[f64], classes: usize, variance: f64) -> Smooth {
    let each: Vec<Smooth> = (0..classes)
        .map(|class| f1(counts, classes, class, variance))
        .collect();
    let n = classes as f64;
    let by = |cell: usize| each.iter().map(|smooth| smooth.derivative[cell]).sum::<f64>() / n;
    Smooth {
        value: each.iter().map(|smooth| smooth.value).sum::<f64>() / n,
        derivative: (0..counts.len()).map(by).collect(),
        resolution: each
            .iter()
            .map(|smooth| smooth.resolution)
            .fold(f64::INFINITY, f64::min),
        discretisation: 0.0,
    }
}

/// Pairs in order, ties by half. Scores in one bin are ties: in whatever order they really are, the area differs
/// by at most half of the tied pairs, which is the discretisation. Records without finite scores are left out.
fn auroc(counts: &[f64], variance: f64) -> Smooth {
    let columns = counts.len() / 2;
    let bins = columns - 1;
    let (others, class) = (&counts[..bins], &counts[columns..columns + bins]);
    let (negatives, positives): (f64, f64) = (others.iter().sum(), class.iter().sum());
    // Shares of the other side that a count of this bin ranks above (class) or below (others).
    let below = shares(others, negatives, 0..bins);
    let above = shares(class, positives, (0..bins).rev());
    let value = class
        .iter()
        .zip(&below)
        .map(|(count, below)| count * below)
        .sum::<f64>()
        / positives;
    let mut derivative = vec![0.0; counts.len()];
    for bin in 0..bins {
        derivative[bin] = (above[bin] - value) / negatives;
        derivative[columns + bin] = (below[bin] - value) / positives;
    }
    let tied: f64 = others.iter().zip(class).map(|(other, class)| other * class).sum();
    let noise = variance * bins as f64;
    Smooth {
        value,
        derivative,
        resolution: resolution(negatives, noise).min(resolution(positives, noise)),
        discretisation: if positives > 0.0 && negatives > 0.0 {
            (0.5 * tied / (positives * negatives)).clamp(0.0, 0.5)
        } else {
            0.5
        },
    }
}

/// For each bin, the share of `counts` in the bins before it, its own by half.
fn shares(counts: &[f64], total: f64, order: impl Iterator<Item = usize>) -> Vec<f64> {
    let mut shares = vec![0.0; counts.len()];
    let mut before = 0.0;
    for bin in order {
        shares[bin] = (before + 0.5 * counts[bin]) / total;
        before += counts[bin];
    }
    shares
}

/// Of the standard normal, for 95%.
const QUANTILE: f64 = 1.959_963_984_540_054;
/// A divisor with less than so many standard deviations of noise resolves nothing: a ratio over it has no
/// meaningful error bar.
const RESOLVED: f64 = 4.0;

#[cfg(test)]
mod tests;
