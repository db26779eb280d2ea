//! Parses an `EvaluationSpec` from the wire: after this, every number is in range.

use crate::errors::Failure;
use crate::spec::{self, Privacy};
use crate::warm_start::WeightsSource;
use bastionai_ledger::{DatasetId, Delta, Digest32};
use bastionai_wire::v1;
use bastionai_wire::v1::evaluation_spec::Privacy as WirePrivacy;

/// An evaluation as asked for, checked.
#[derive(Clone, Debug)]
pub(crate) struct EvaluationRequest {
    pub(crate) model: Digest32,
    /// Distinct (rule D3), in the order given.
    pub(crate) datasets: Vec<DatasetId>,
    pub(crate) input_columns: Vec<String>,
    pub(crate) model_name: String,
    /// Whether label × predicted class is released.
    pub(crate) has_confusion: bool,
    /// Bins of the score histograms, if they are released; checked with the model's classes.
    pub(crate) score_bins: Option<u32>,
    pub(crate) privacy: Privacy,
    /// `None`: a tenth of the smallest lifetime δ (rule D6).
    pub(crate) delta: Option<Delta>,
    /// `None`: those of the archive.
    pub(crate) weights: Option<WeightsSource>,
    /// Largest physical batch; `None`: the server's choice.
    pub(crate) max_batch_size: Option<u32>,
}

impl EvaluationRequest {
    /// Checks every field of the scientist's request.
    pub(crate) fn parse(wire: &v1::EvaluationSpec) -> Result<Self, Failure> {
        Ok(Self {
            model: spec::model(&wire.model_id)?,
            datasets: spec::datasets(&wire.dataset_ids)?,
            input_columns: spec::input_columns(&wire.input_columns)?,
            model_name: spec::name("model_name", &wire.model_name)?,
            has_confusion: wire.confusion,
            score_bins: (wire.score_bins > 0).then_some(wire.score_bins),
            privacy: match wire.privacy {
                Some(WirePrivacy::TargetEpsilon(epsilon)) => spec::target_epsilon(epsilon)?,
                Some(WirePrivacy::NoiseMultiplier(multiplier)) => spec::noise_multiplier(multiplier)?,
                None => return Err(spec::no_privacy()),
            },
            delta: spec::delta(wire.target_delta)?,
            weights: wire.weights.as_ref().map(WeightsSource::parse).transpose()?,
            max_batch_size: spec::max_batch_size(wire.max_batch_size)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> v1::EvaluationSpec {
        v1::EvaluationSpec {
            model_id: vec![1; 32],
            dataset_ids: vec![vec![1; 16]],
            input_columns: vec!["x".into(), "y".into()],
            model_name: "mlp".into(),
            confusion: true,
            score_bins: 0,
            privacy: Some(WirePrivacy::TargetEpsilon(0.5)),
            target_delta: 0.0,
            max_batch_size: 0,
            weights: None,
        }
    }

    #[test]
    fn every_field_out_of_range_is_refused() {
        EvaluationRequest::parse(&wire()).unwrap();
        type Edit = fn(&mut v1::EvaluationSpec);
        let edits: Vec<(&str, Edit)> = vec![
            ("model_id", |s| s.model_id = vec![0; 31]),
            ("no datasets", |s| s.dataset_ids.clear()),
            ("a dataset twice", |s| s.dataset_ids.push(vec![1; 16])),
            ("no inputs", |s| s.input_columns.clear()),
            ("no name", |s| s.model_name.clear()),
            ("ε = 0", |s| s.privacy = Some(WirePrivacy::TargetEpsilon(0.0))),
            ("ε < 0", |s| s.privacy = Some(WirePrivacy::TargetEpsilon(-1.0))),
            ("ε = NaN", |s| {
                s.privacy = Some(WirePrivacy::TargetEpsilon(f64::NAN))
            }),
            ("σ = 0", |s| s.privacy = Some(WirePrivacy::NoiseMultiplier(0.0))),
            ("no privacy", |s| s.privacy = None),
            ("δ = 1", |s| s.target_delta = 1.0),
            ("weights of nothing", |s| {
                s.weights = Some(v1::WeightsSource { source: None })
            }),
            ("a batch above the trainer's", |s| {
                s.max_batch_size = (1 << 19) + 1
            }),
        ];
        for (what, edit) in edits {
            let mut wire = wire();
            edit(&mut wire);
            assert!(EvaluationRequest::parse(&wire).is_err(), "{what} was accepted");
        }
    }
}
