//! Runs, prices and specifications to and from the wire. No decisions.

use super::{
    Bands, Charge, LossRelease, Privacy, Progress, Quote, RenyiPrice, Run, RunKind, RunSpec, RunState,
    RunWeights, WeightsSource,
};
use crate::convert::{all, amount, dataset_id, digest, meant, number, principal, required, run_id};
use crate::datasets::parse_budget;
use crate::errors::ClientError;
use bastionai_wire::v1;

pub(super) fn spec_to_wire(spec: &RunSpec) -> v1::RunSpec {
    let (bands, plan_bands) = spec.bands.to_wire();
    v1::RunSpec {
        model_id: spec.model_id.as_bytes().to_vec(),
        dataset_ids: spec.dataset_ids.iter().map(|id| id.as_bytes().to_vec()).collect(),
        input_columns: spec.input_columns.clone(),
        model_name: spec.model_name.clone(),
        batch_size: spec.batch_size,
        max_batch_size: spec.max_batch_size,
        steps: spec.steps,
        max_grad_norm: spec.max_grad_norm,
        clipping: v1::Clipping::from(spec.clipping).into(),
        compute: v1::Compute::from(spec.compute).into(),
        noise_mode: v1::NoiseMode::from(spec.noise_mode).into(),
        privacy: Some(match spec.privacy {
            Privacy::TargetEpsilon(epsilon) => v1::run_spec::Privacy::TargetEpsilon(epsilon),
            Privacy::NoiseMultiplier(multiplier) => v1::run_spec::Privacy::NoiseMultiplier(multiplier),
        }),
        target_delta: spec.target_delta.unwrap_or(0.0),
        max_loss: spec.loss_release.map_or(0.0, |release| release.max_loss),
        loss_share: spec.loss_release.map_or(0.0, |release| release.share),
        optimizer: Some(spec.optimizer.into()),
        schedule: Some(spec.schedule.into()),
        initial_weights: spec.initial_weights.map(source_to_wire),
        ema_decay: spec.ema_decay.unwrap_or(0.0),
        tail_average: spec.tail_average.unwrap_or(0.0),
        bands,
        plan_bands,
        keep_steps: spec.keep_steps.clone(),
        keep_every: spec.keep_every.unwrap_or(0),
        records_per_unit: spec.records_per_unit.unwrap_or(0),
    }
}

pub(crate) fn source_to_wire(source: WeightsSource) -> v1::WeightsSource {
    let source = match source {
        WeightsSource::Model(model) => v1::weights_source::Source::ModelId(model.as_bytes().to_vec()),
        WeightsSource::Run(RunWeights { run, step, ema }) => {
            v1::weights_source::Source::Run(v1::RunWeights {
                run_id: run.as_bytes().to_vec(),
                step: step.unwrap_or(0),
                ema,
            })
        }
    };
    v1::WeightsSource { source: Some(source) }
}

pub(crate) fn parse_source(
    call: &'static str,
    wire: v1::WeightsSource,
) -> Result<WeightsSource, ClientError> {
    match required(call, "the source of the weights", wire.source)? {
        v1::weights_source::Source::ModelId(model) => {
            digest(call, "model_id", &model).map(WeightsSource::Model)
        }
        v1::weights_source::Source::Run(v1::RunWeights {
            run_id: run,
            step,
            ema,
        }) => Ok(WeightsSource::Run(RunWeights {
            run: run_id(call, &run)?,
            step: (step != 0).then_some(step),
            ema,
        })),
    }
}

fn parse_spec(call: &'static str, wire: v1::RunSpec) -> Result<RunSpec, ClientError> {
    let privacy = match required(call, "the spec's privacy", wire.privacy)? {
        v1::run_spec::Privacy::TargetEpsilon(epsilon) => Privacy::TargetEpsilon(epsilon),
        v1::run_spec::Privacy::NoiseMultiplier(multiplier) => Privacy::NoiseMultiplier(multiplier),
    };
    let schedule = wire.schedule.map(|schedule| meant(call, schedule));
    Ok(RunSpec {
        model_id: digest(call, "model_id", &wire.model_id)?,
        dataset_ids: all(call, &wire.dataset_ids, |call, id| dataset_id(call, id))?,
        input_columns: wire.input_columns,
        model_name: wire.model_name,
        batch_size: wire.batch_size,
        records_per_unit: (wire.records_per_unit != 0).then_some(wire.records_per_unit),
        max_batch_size: wire.max_batch_size,
        steps: wire.steps,
        max_grad_norm: wire.max_grad_norm,
        clipping: meant(call, wire.clipping)?,
        compute: meant(call, wire.compute)?,
        noise_mode: meant(call, wire.noise_mode)?,
        privacy,
        target_delta: (wire.target_delta != 0.0).then_some(wire.target_delta),
        loss_release: (wire.max_loss != 0.0).then_some(LossRelease {
            max_loss: wire.max_loss,
            share: wire.loss_share,
        }),
        optimizer: meant(call, required(call, "the spec's optimizer", wire.optimizer)?)?,
        schedule: schedule.transpose()?.unwrap_or_default(),
        ema_decay: (wire.ema_decay != 0.0).then_some(wire.ema_decay),
        tail_average: (wire.tail_average != 0.0).then_some(wire.tail_average),
        bands: Bands::from_wire(wire.bands, wire.plan_bands)
            .map_err(|error| ClientError::protocol(call, error.to_string()))?,
        keep_steps: wire.keep_steps,
        keep_every: (wire.keep_every != 0).then_some(wire.keep_every),
        initial_weights: wire
            .initial_weights
            .map(|source| parse_source(call, source))
            .transpose()?,
    })
}

pub(super) fn parse_quote(call: &'static str, wire: v1::Quote) -> Result<Quote, ClientError> {
    Ok(Quote {
        run_digest: digest(call, "run_digest", &wire.run_digest)?,
        spec: parse_spec(call, required(call, "the spec", wire.spec)?)?,
        noise_multiplier: wire.noise_multiplier,
        loss_noise_multiplier: wire.loss_noise_multiplier,
        joint_noise_multiplier: wire.joint_noise_multiplier,
        noise_slack: wire.noise_slack,
        sample_rate: wire.sample_rate,
        declared_size: wire.declared_size,
        truncated_batch_size: wire.truncated_batch_size,
        micro_batches: wire.micro_batches,
        physical_batch_size: wire.physical_batch_size,
        memory_bytes: wire.memory_bytes,
        kept_bytes: wire.kept_bytes,
        noise_ratio: wire.noise_ratio,
        trainable_parameters: wire.trainable_parameters,
        charges: all(call, wire.charges, parse_charge)?,
        expires_unix_ms: wire.expires_unix_ms,
        graph_digest: digest(call, "graph_digest", &wire.graph_digest)?,
        expected_seconds: (wire.expected_seconds > 0.0).then_some(wire.expected_seconds),
        warnings: wire.warnings,
    })
}

pub(crate) fn parse_charge(call: &'static str, wire: v1::Charge) -> Result<Charge, ClientError> {
    let by_renyi = wire.composition() == v1::Composition::Renyi;
    Ok(Charge {
        dataset_id: dataset_id(call, &wire.dataset_id)?,
        cost: amount(call, &wire.epsilon, &wire.delta)?,
        budget_before: wire
            .budget_before
            .map(|budget| parse_budget(call, &budget))
            .transpose()?,
        affordable: wire.affordable,
        by_renyi,
        renyi: wire
            .renyi
            .map(|price| parse_renyi_price(call, &price))
            .transpose()?,
        privacy_unit: wire.privacy_unit,
        dataset_name: wire.dataset_name,
    })
}

fn parse_renyi_price(call: &'static str, wire: &v1::RenyiPrice) -> Result<RenyiPrice, ClientError> {
    let divergence = |text: &String| match text.as_str() {
        "" => Ok(None),
        text => number(call, text).map(Some),
    };
    let orders = wire.orders.iter().map(|order| number(call, order));
    let orders: Vec<_> = orders.collect::<Result<_, ClientError>>()?;
    let divergences: Vec<_> = wire
        .divergences
        .iter()
        .map(divergence)
        .collect::<Result<_, _>>()?;
    if orders.len() != divergences.len() {
        return Err(ClientError::protocol(call, "divergences of other orders"));
    }
    Ok(RenyiPrice {
        orders,
        divergences,
        epsilon_before: number(call, &wire.epsilon_before)?,
        epsilon_after: number(call, &wire.epsilon_after)?,
    })
}

pub(super) fn parse_run(call: &'static str, wire: v1::Run) -> Result<Run, ClientError> {
    let state = match wire.state() {
        v1::RunState::Queued => RunState::Queued,
        v1::RunState::Running => RunState::Running,
        v1::RunState::Succeeded => RunState::Succeeded,
        v1::RunState::Failed => RunState::Failed,
        v1::RunState::Cancelled => RunState::Cancelled,
        v1::RunState::Suspended => RunState::Suspended,
        v1::RunState::Unspecified => return Err(ClientError::protocol(call, "a run in an unknown state")),
    };
    let kind = match wire.kind() {
        v1::RunKind::Training => RunKind::Training,
        v1::RunKind::Evaluation => RunKind::Evaluation,
        v1::RunKind::Unspecified => return Err(ClientError::protocol(call, "a run of an unknown kind")),
    };
    Ok(Run {
        id: run_id(call, &wire.id)?,
        kind,
        run_digest: digest(call, "run_digest", &wire.run_digest)?,
        state,
        scientist: principal(call, &wire.scientist)?,
        dataset_ids: all(call, &wire.dataset_ids, |call, id| dataset_id(call, id))?,
        charges: all(call, wire.charges, parse_charge)?,
        model_name: wire.model_name,
        dataset_names: wire.dataset_names,
        steps: wire.steps,
        released_step: wire.released_step,
        created_unix_ms: wire.created_unix_ms,
        ended_unix_ms: (wire.ended_unix_ms != 0).then_some(wire.ended_unix_ms),
        queue_position: (wire.queue_position != 0).then_some(wire.queue_position),
        suspended_by: all(call, &wire.suspended_by, |call, by| principal(call, by))?,
    })
}

pub(super) fn parse_progress(call: &'static str, wire: v1::RunProgress) -> Result<Progress, ClientError> {
    Ok(Progress {
        run: parse_run(call, required(call, "the run", wire.run)?)?,
        step: wire.step,
        noisy_loss: wire.has_loss.then_some(wire.noisy_loss),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::{Clipping, Compute, NoiseMode, Optimizer, Schedule};
    use bastionai_ledger::id::DatasetId;
    use bastionai_ledger::id::{Digest32, RunId};
    use bastionai_wire::{Adam, Decay, Warmup};

    fn spec() -> RunSpec {
        RunSpec {
            model_id: Digest32::from_bytes([1; 32]),
            dataset_ids: vec![DatasetId::from_bytes([2; 16]), DatasetId::from_bytes([3; 16])],
            input_columns: vec!["x".into(), "y".into()],
            model_name: "mlp".into(),
            batch_size: 64,
            records_per_unit: Some(3),
            max_batch_size: 32,
            steps: 100,
            max_grad_norm: 1.0,
            clipping: Clipping::Flat,
            compute: Compute::Float32,
            noise_mode: NoiseMode::Standard,
            privacy: Privacy::TargetEpsilon(2.0),
            target_delta: Some(1e-6),
            loss_release: Some(LossRelease {
                max_loss: 4.0,
                share: 0.05,
            }),
            optimizer: Optimizer::Sgd {
                lr: 0.5,
                momentum: 0.9,
                dampening: 0.0,
                weight_decay: 0.1,
                nesterov: true,
            },
            schedule: Schedule::default(),
            initial_weights: None,
            ema_decay: None,
            tail_average: None,
            bands: Bands::Fixed(1),
            keep_steps: vec![],
            keep_every: None,
        }
    }

    #[test]
    fn a_specification_survives_the_wire() {
        let other = RunSpec {
            privacy: Privacy::NoiseMultiplier(1.5),
            target_delta: None,
            loss_release: None,
            optimizer: Optimizer::AdamW(Adam {
                lr: 1e-3,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.01,
            }),
            schedule: Schedule {
                decay: Decay::Cosine { final_ratio: 0.1 },
                warmup: Warmup::Ratio(0.05),
            },
            initial_weights: Some(WeightsSource::Model(Digest32::from_bytes([7; 32]))),
            ema_decay: Some(0.999),
            bands: Bands::Planned,
            keep_steps: vec![3, 5],
            clipping: Clipping::Automatic,
            compute: Compute::Bfloat16,
            noise_mode: NoiseMode::Hardened,
            ..spec()
        };
        let from_run = RunSpec {
            clipping: Clipping::PerLayer,
            tail_average: Some(0.25),
            bands: Bands::Fixed(12),
            initial_weights: Some(WeightsSource::Run(RunWeights {
                run: RunId::from_bytes([8; 16]),
                step: Some(3),
                ema: true,
            })),
            ..spec()
        };
        for spec in [spec(), other, from_run] {
            assert_eq!(parse_spec("PriceRun", spec_to_wire(&spec)).unwrap(), spec);
        }
    }

    #[test]
    fn malformed_answers_are_errors_not_panics() {
        assert_eq!(
            parse_quote("PriceRun", v1::Quote::default()).unwrap_err().kind(),
            "protocol"
        );
        assert_eq!(
            parse_run("ListRuns", v1::Run::default()).unwrap_err().kind(),
            "protocol"
        );
        assert_eq!(
            parse_progress("WatchRun", v1::RunProgress::default())
                .unwrap_err()
                .kind(),
            "protocol"
        );
    }
}
