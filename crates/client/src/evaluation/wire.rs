//! Evaluations to and from the wire. No decisions.

use super::{EvaluationQuote, EvaluationSpec};
use crate::convert::{all, dataset_id, digest, required};
use crate::errors::ClientError;
use crate::runs::{Privacy, parse_charge, parse_source, source_to_wire};
use bastionai_wire::v1;
use bastionai_wire::v1::evaluation_spec::Privacy as WirePrivacy;

pub(super) fn spec_to_wire(spec: &EvaluationSpec) -> v1::EvaluationSpec {
    v1::EvaluationSpec {
        model_id: spec.model_id.as_bytes().to_vec(),
        dataset_ids: spec.dataset_ids.iter().map(|id| id.as_bytes().to_vec()).collect(),
        input_columns: spec.input_columns.clone(),
        model_name: spec.model_name.clone(),
        confusion: spec.confusion,
        score_bins: spec.score_bins.unwrap_or(0),
        privacy: Some(match spec.privacy {
            Privacy::TargetEpsilon(epsilon) => WirePrivacy::TargetEpsilon(epsilon),
            Privacy::NoiseMultiplier(multiplier) => WirePrivacy::NoiseMultiplier(multiplier),
        }),
        target_delta: spec.target_delta.unwrap_or(0.0),
        max_batch_size: spec.max_batch_size,
        weights: spec.weights.map(source_to_wire),
    }
}

fn parse_spec(call: &'static str, wire: v1::EvaluationSpec) -> Result<EvaluationSpec, ClientError> {
    let privacy = match required(call, "the spec's privacy", wire.privacy)? {
        WirePrivacy::TargetEpsilon(epsilon) => Privacy::TargetEpsilon(epsilon),
        WirePrivacy::NoiseMultiplier(multiplier) => Privacy::NoiseMultiplier(multiplier),
    };
    Ok(EvaluationSpec {
        model_id: digest(call, "model_id", &wire.model_id)?,
        dataset_ids: all(call, &wire.dataset_ids, |call, id| dataset_id(call, id))?,
        input_columns: wire.input_columns,
        model_name: wire.model_name,
        confusion: wire.confusion,
        score_bins: (wire.score_bins != 0).then_some(wire.score_bins),
        privacy,
        target_delta: (wire.target_delta != 0.0).then_some(wire.target_delta),
        max_batch_size: wire.max_batch_size,
        weights: wire
            .weights
            .map(|source| parse_source(call, source))
            .transpose()?,
    })
}

pub(super) fn parse_quote(
    call: &'static str,
    wire: v1::EvaluationQuote,
) -> Result<EvaluationQuote, ClientError> {
    Ok(EvaluationQuote {
        run_digest: digest(call, "run_digest", &wire.run_digest)?,
        spec: parse_spec(call, required(call, "the spec", wire.spec)?)?,
        classes: wire.classes,
        noise_multiplier: wire.noise_multiplier,
        l2_sensitivity: wire.l2_sensitivity,
        noise_standard_deviation: wire.noise_standard_deviation,
        declared_size: wire.declared_size,
        micro_batches: wire.micro_batches,
        physical_batch_size: wire.physical_batch_size,
        memory_bytes: wire.memory_bytes,
        charges: all(call, wire.charges, parse_charge)?,
        expires_unix_ms: wire.expires_unix_ms,
        graph_digest: digest(call, "graph_digest", &wire.graph_digest)?,
        warnings: wire.warnings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::WeightsSource;
    use bastionai_ledger::id::{DatasetId, Digest32};

    #[test]
    fn a_specification_survives_the_wire() {
        let whole = EvaluationSpec {
            model_id: Digest32::from_bytes([1; 32]),
            dataset_ids: vec![DatasetId::from_bytes([2; 16])],
            input_columns: vec!["x".into(), "y".into()],
            model_name: "mlp".into(),
            confusion: true,
            score_bins: Some(32),
            privacy: Privacy::TargetEpsilon(0.5),
            target_delta: Some(1e-6),
            max_batch_size: 64,
            weights: Some(WeightsSource::Model(Digest32::from_bytes([7; 32]))),
        };
        let bare = EvaluationSpec {
            confusion: false,
            score_bins: None,
            privacy: Privacy::NoiseMultiplier(8.0),
            target_delta: None,
            weights: None,
            ..whole.clone()
        };
        for spec in [whole, bare] {
            assert_eq!(parse_spec("PriceEvaluation", spec_to_wire(&spec)).unwrap(), spec);
        }
        let error = parse_quote("PriceEvaluation", v1::EvaluationQuote::default()).unwrap_err();
        assert_eq!(error.kind(), "protocol");
    }
}
