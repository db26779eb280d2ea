//! The released histograms of an evaluation: read from a fetched run, or given (for tests and simulations).

use super::metrics::{self, Confusion, Estimate, Metric};
use crate::errors::ClientError;
use crate::fetch::WeightTensor;
use bastionai_graph::dtype::DType;
use bastionai_ledger::policy::DatasetKind;
use bastionai_ledger::receipt::{DatasetStatement, Receipt};
use bastionai_privacy::event::DpEvent;
use bastionai_privacy::histogram::{HistogramShape, Histograms, MAX_COUNTS};
use serde::{Deserialize, Serialize};

/// Noisy counts, row-major.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReleasedHistogram {
    /// `confusion`, or `scores/CLASS`.
    pub name: String,
    /// Labels.
    pub rows: u64,
    /// Predicted classes or score bins, and last the records without finite scores.
    pub columns: u64,
    /// `rows × columns` counts.
    pub counts: Vec<i64>,
}

/// All histograms of one release, and how much noise each count has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NoisyHistograms {
    classes: u32,
    noise_standard_deviation: f64,
    histograms: Vec<ReleasedHistogram>,
}

impl NoisyHistograms {
    /// Histograms with their noise. `noise_standard_deviation` may be 0: exact counts.
    ///
    /// # Errors
    /// What is wrong: an unknown name, or extents that do not fit `classes`.
    pub fn new(
        classes: u32,
        noise_standard_deviation: f64,
        histograms: Vec<ReleasedHistogram>,
    ) -> Result<Self, String> {
        if !(noise_standard_deviation >= 0.0 && noise_standard_deviation.is_finite()) {
            return Err("the noise is not a standard deviation".into());
        }
        let has_confusion = histograms.iter().any(|each| each.name == "confusion");
        let bins = histograms.iter().find(|each| each.name != "confusion");
        let bins = bins.map(|each| u32::try_from(each.columns.saturating_sub(1)).unwrap_or(u32::MAX));
        let expected = Histograms::new(classes, has_confusion, bins).map_err(|error| error.to_string())?;
        let shape = |each: &ReleasedHistogram| HistogramShape {
            name: each.name.clone(),
            rows: each.rows,
            columns: each.columns,
        };
        if expected.shapes() != histograms.iter().map(shape).collect::<Vec<_>>() {
            return Err(format!("the histograms are not those of {classes} classes"));
        }
        let fits = |each: &ReleasedHistogram| each.counts.len() as u64 == each.rows * each.columns;
        if !histograms.iter().all(fits) {
            return Err("a histogram has not as many counts as cells".into());
        }
        Ok(Self {
            classes,
            noise_standard_deviation,
            histograms,
        })
    }

    /// What a fetched evaluation released.
    pub(super) fn released(receipt: &Receipt, tensors: &[WeightTensor]) -> Result<Self, ClientError> {
        let refused = |what: String| ClientError::ReceiptRefused {
            run: receipt.run.id.to_string(),
            what,
        };
        let (noise, histograms) = tensors
            .split_last()
            .ok_or_else(|| refused("the evaluation released nothing".into()))?;
        let noise = noise_of(noise)
            .ok_or_else(|| refused("it does not say how much noise the counts have".into()))?;
        let histograms: Vec<ReleasedHistogram> =
            histograms
                .iter()
                .map(histogram_of)
                .collect::<Option<_>>()
                .ok_or_else(|| refused("a result is not a histogram".into()))?;
        let first = histograms.first().map_or(0, |each| each.rows);
        let scores = histograms.iter().filter(|each| each.name != "confusion").count() as u64;
        let classes = if histograms.first().is_some_and(|each| each.name == "confusion") {
            first
        } else {
            scores.max(2)
        };
        let classes = u32::try_from(classes).unwrap_or(u32::MAX);
        check_noise(&receipt.datasets, noise, histograms.len()).map_err(refused)?;
        Self::new(classes, noise, histograms).map_err(refused)
    }

    /// Number of classes.
    pub fn classes(&self) -> u32 {
        self.classes
    }

    /// Of the noise on each count.
    pub fn noise_standard_deviation(&self) -> f64 {
        self.noise_standard_deviation
    }

    /// Whether the metric can be estimated from what was released.
    pub fn allows(&self, metric: Metric) -> bool {
        let has = |is_confusion: bool| {
            self.histograms
                .iter()
                .any(|each| (each.name == "confusion") == is_confusion)
        };
        (!metric.needs_confusion() || has(true)) && (!metric.needs_scores() || has(false))
    }

    /// The metric with its errors; `None` for the confusion, which is no number, and for what was not released.
    pub fn estimate(&self, metric: Metric) -> Option<Estimate> {
        metrics::estimate(
            metric,
            self.classes as usize,
            &self.histograms,
            self.noise_standard_deviation,
        )
        .filter(|_| self.allows(metric))
    }

    /// Number of records counted, with noise.
    pub fn records(&self) -> Estimate {
        metrics::records(&self.histograms, self.noise_standard_deviation)
    }

    /// The noisy confusion matrix, if it was released.
    pub fn confusion(&self) -> Option<Confusion> {
        let histogram = self.histograms.iter().find(|each| each.name == "confusion")?;
        Some(Confusion::new(histogram, self.noise_standard_deviation))
    }
}

fn noise_of(tensor: &WeightTensor) -> Option<f64> {
    let is_noise = tensor.names == ["noise_standard_deviation"] && tensor.dtype == DType::F64;
    let bytes: [u8; 8] = tensor.bytes.as_slice().try_into().ok()?;
    is_noise.then(|| f64::from_le_bytes(bytes))
}

fn histogram_of(tensor: &WeightTensor) -> Option<ReleasedHistogram> {
    let ([name], &[rows, columns], DType::I64) = (&tensor.names[..], &tensor.shape[..], tensor.dtype) else {
        return None;
    };
    let counts = tensor.bytes.chunks_exact(8);
    rows.checked_mul(columns).filter(|&counts| counts <= MAX_COUNTS)?;
    Some(ReleasedHistogram {
        name: name.clone(),
        rows,
        columns,
        counts: counts
            .map(|bytes| i64::from_le_bytes(bytes.try_into().expect("chunks of 8 bytes")))
            .collect(),
    })
}

/// The noise that error bars rest on must be the noise that was charged: √m times the event's multiplier.
fn check_noise(datasets: &[DatasetStatement], noise: f64, histograms: usize) -> Result<(), String> {
    let private = datasets
        .iter()
        .filter(|dataset| dataset.kind == DatasetKind::Private);
    for dataset in private {
        let DpEvent::Gaussian { noise_multiplier } = dataset.event else {
            return Err(format!(
                "`{}` is charged for another mechanism than histograms",
                dataset.name
            ));
        };
        let charged = noise_multiplier * (histograms as f64).sqrt();
        let agrees = (noise / charged - 1.0).abs() <= NOISE_TOLERANCE;
        if !agrees {
            return Err(format!(
                "the counts have noise of {noise}, `{}` is charged for noise of {charged}",
                dataset.name
            ));
        }
    }
    Ok(())
}

/// Rounding up of √m.
const NOISE_TOLERANCE: f64 = 1e-9;

#[cfg(test)]
mod tests {
    use super::*;
    use bastionai_ledger::id::{DatasetId, Digest32, Principal};
    use bastionai_ledger::{Delta, Epsilon};
    use bastionai_privacy::event::NeighboringRelation;

    fn charged(kind: DatasetKind, event: DpEvent) -> DatasetStatement {
        DatasetStatement {
            renyi: None,
            id: DatasetId::from_bytes([1; 16]),
            name: "north.test".into(),
            kind,
            owner: Principal::from_bytes([2; 32]),
            contract_digest: Digest32::of(b"contract"),
            policy_digest: Digest32::of(b"policy"),
            root: Digest32::of(b"blocks"),
            declared_size: 64,
            privacy_unit: None,
            event,
            relation: NeighboringRelation::AddOrRemoveOne,
            epsilon: Epsilon::ZERO,
            delta: Delta::ZERO,
            budget: None,
        }
    }

    /// Error bars are worth nothing if a server may understate the noise that it charged for.
    #[test]
    fn noise_that_is_not_what_was_charged_is_refused() {
        let gaussian = DpEvent::Gaussian {
            noise_multiplier: 4.0,
        };
        let private = [charged(DatasetKind::Private, gaussian.clone())];
        check_noise(&private, 4.0 * 2f64.sqrt() * (1.0 + 1e-15), 2).unwrap();
        for (noise, histograms) in [
            (4.0, 2),
            (4.0 * 2f64.sqrt(), 1),
            (0.0, 2),
            (f64::NAN, 2),
            (-5.0, 2),
        ] {
            assert!(
                check_noise(&private, noise, histograms).is_err(),
                "{noise} on {histograms}"
            );
        }
        let training = DpEvent::SelfComposed {
            event: Box::new(gaussian),
            count: 1,
        };
        let error = check_noise(&[charged(DatasetKind::Private, training)], 4.0, 1).unwrap_err();
        assert!(error.contains("another mechanism"), "{error}");
        check_noise(&[charged(DatasetKind::Public, DpEvent::NoOp)], 7.0, 1).unwrap();
    }

    #[test]
    fn a_result_of_another_form_is_no_histogram() {
        let tensor = |name: &str, dtype, shape: &[u64], bytes| WeightTensor {
            names: vec![name.into()],
            dtype,
            shape: shape.to_vec(),
            bytes: vec![0; bytes],
        };
        assert!(histogram_of(&tensor("confusion", DType::I64, &[2, 3], 48)).is_some());
        assert!(histogram_of(&tensor("confusion", DType::F64, &[2, 3], 48)).is_none());
        assert!(histogram_of(&tensor("confusion", DType::I64, &[6], 48)).is_none());
        assert!(histogram_of(&tensor("confusion", DType::I64, &[1 << 40, 1 << 40], 48)).is_none());
        assert!(noise_of(&tensor("noise_standard_deviation", DType::F64, &[], 8)).is_some());
        assert!(noise_of(&tensor("noise", DType::F64, &[], 8)).is_none());
        assert!(noise_of(&tensor("noise_standard_deviation", DType::F64, &[2], 16)).is_none());
    }
}
