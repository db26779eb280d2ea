//! The scientist's verbs: price a run, start it, watch it, list runs, cancel one.

use crate::convert::{all, amount, dataset_id, digest, principal, required, run_id};
use crate::datasets::{Budget, parse_budget};
use crate::errors::ClientError;
use crate::session::AppraisedPeer;
use bastionai_ledger::amount::Amount;
use bastionai_ledger::id::{DatasetId, Digest32, Principal, RunId};
use bastionai_wire::v1;
use serde::{Deserialize, Serialize};
use tonic::Streaming;

/// What a scientist asks for. In a [`Quote`] every default is filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// From `upload_model`.
    pub model_id: Digest32,
    /// Distinct datasets with the same contract.
    pub dataset_ids: Vec<DatasetId>,
    /// Contract column of each model input, in the order of the inputs.
    pub input_columns: Vec<String>,
    /// Shown in lists.
    pub model_name: String,
    /// Expected logical batch over all datasets.
    pub batch_size: u64,
    /// Physical batch.
    pub max_batch_size: u32,
    /// Optimizer steps.
    pub steps: u64,
    /// Clip of each per-sample gradient, L2.
    pub max_grad_norm: f64,
    /// Privacy asked for, or noise.
    pub privacy: Privacy,
    /// Absent: a tenth of the smallest lifetime δ.
    pub target_delta: Option<f64>,
    /// Noisy loss in the progress; absent: none is released and none is paid for.
    pub loss_release: Option<LossRelease>,
    /// Update rule.
    pub optimizer: Optimizer,
}

/// How the noise is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Privacy {
    /// The server calibrates the noise to this ε.
    TargetEpsilon(f64),
    /// Noise multiplier of the gradient release.
    NoiseMultiplier(f64),
}

/// Release of the noisy training loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossRelease {
    /// Clip of the per-sample loss.
    pub max_loss: f64,
    /// Share of the privacy spent on it, in (0, 1).
    pub share: f64,
}

/// Update rule; fields as in `torch.optim`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Optimizer {
    /// `torch.optim.SGD`.
    Sgd {
        lr: f64,
        momentum: f64,
        dampening: f64,
        weight_decay: f64,
        nesterov: bool,
    },
    /// `torch.optim.AdamW`.
    AdamW {
        lr: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        weight_decay: f64,
    },
}

/// The price of a run, binding until it expires.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quote {
    /// Names the run exactly; what `start_run` takes.
    pub run_digest: Digest32,
    /// With every default filled in.
    pub spec: RunSpec,
    /// Of the gradient release.
    pub noise_multiplier: f64,
    /// Of the loss release; 0: none.
    pub loss_noise_multiplier: f64,
    /// 1/σ² = 1/σ_grad² + 1/σ_loss².
    pub joint_noise_multiplier: f64,
    /// Probability with which each record enters a step.
    pub sample_rate: f64,
    /// Declared records over all datasets.
    pub declared_size: u64,
    /// Cap of the sample of a step.
    pub truncated_batch_size: u64,
    /// Equal physical batches per step.
    pub micro_batches: u32,
    /// Rows of a physical batch.
    pub physical_batch_size: u32,
    /// Estimate for the trainer.
    pub memory_bytes: u64,
    /// Trainable scalars of the model.
    pub trainable_parameters: u64,
    /// What it costs each dataset.
    pub charges: Vec<Charge>,
    /// Server's clock.
    pub expires_unix_ms: u64,
    /// SHA-256 of the canonical typed graph.
    pub graph_digest: Digest32,
    /// What the scientist should reconsider.
    pub warnings: Vec<String>,
}

impl Quote {
    /// Whether every dataset's budget covers its charge.
    pub fn is_affordable(&self) -> bool {
        self.charges.iter().all(|charge| charge.affordable)
    }
}

/// What a run costs one dataset.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Charge {
    /// The dataset.
    pub dataset_id: DatasetId,
    /// Its name.
    pub dataset_name: String,
    /// Exact, rounded up.
    pub cost: Amount,
    /// Its budget before the charge; absent unless private.
    pub budget_before: Option<Budget>,
    /// Whether the budget covers it.
    pub affordable: bool,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Reserved, waiting for a trainer.
    Queued,
    /// Training.
    Running,
    /// Weights can be fetched.
    Succeeded,
    /// Charged as its receipt says; never says why.
    Failed,
    /// By the scientist.
    Cancelled,
}

impl RunState {
    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// Set by the server.
    pub id: RunId,
    /// Of the quote it was started from.
    pub run_digest: Digest32,
    /// Where it is.
    pub state: RunState,
    /// Given by the scientist.
    pub model_name: String,
    /// Who started it.
    pub scientist: Principal,
    /// What it trains on.
    pub dataset_ids: Vec<DatasetId>,
    /// Their names.
    pub dataset_names: Vec<String>,
    /// Steps planned.
    pub steps: u64,
    /// Last step whose progress was released.
    pub released_step: u64,
    /// Server's clock.
    pub created_unix_ms: u64,
    /// Server's clock; absent while it runs.
    pub ended_unix_ms: Option<u64>,
    /// What it costs each dataset.
    pub charges: Vec<Charge>,
}

/// One message of a watched run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Progress {
    /// The run as it is now.
    pub run: Run,
    /// Steps completed; 0 when none was released yet.
    pub step: u64,
    /// Noisy mean loss, paid for.
    pub noisy_loss: Option<f64>,
}

/// The progress of one run: replayed first, then live. Dropping it detaches; the run goes on.
#[derive(Debug)]
pub struct RunWatch {
    peer: AppraisedPeer,
    stream: Streaming<v1::RunProgress>,
}

impl RunWatch {
    /// The next message, or `None` after the last one. Cancel-safe: a dropped wait loses nothing.
    ///
    /// # Errors
    /// [`ClientError::SessionEnded`] and the server's refusals.
    pub async fn next(&mut self) -> Result<Option<Progress>, ClientError> {
        let message = self
            .stream
            .message()
            .await
            .map_err(|status| self.peer.refusal(WATCH, &status))?;
        message
            .map(|progress| parse_progress(WATCH, progress))
            .transpose()
    }
}

impl AppraisedPeer {
    /// What the run would cost, at no cost.
    ///
    /// # Errors
    /// [`ClientError::GraphRefused`] with every refusal, [`ClientError::NotAllowed`],
    /// [`ClientError::NotFound`], [`ClientError::ServerRefused`] for a specification that makes no sense.
    pub async fn price(&self, spec: &RunSpec) -> Result<Quote, ClientError> {
        let request = v1::PriceRunRequest {
            spec: Some(spec_to_wire(spec)),
        };
        parse_quote(
            "PriceRun",
            self.answer("PriceRun", self.client().price_run(request)).await?,
        )
    }

    /// Reserves the full cost, durably, and starts the run of a quote.
    ///
    /// # Errors
    /// [`ClientError::BudgetExceeded`], [`ClientError::QuoteExpired`], [`ClientError::LimitExceeded`].
    pub async fn start_run(&self, run_digest: Digest32) -> Result<Run, ClientError> {
        let request = v1::StartRunRequest {
            run_digest: run_digest.as_bytes().to_vec(),
        };
        let run = parse_run(
            "StartRun",
            self.answer("StartRun", self.client().start_run(request)).await?,
        )?;
        if run.run_digest != run_digest {
            return Err(ClientError::protocol(
                "StartRun",
                "it started another run than was asked for",
            ));
        }
        Ok(run)
    }

    /// Progress of a run, replayed from the first released step after `from_step`, then live.
    ///
    /// # Errors
    /// [`ClientError::NotFound`] if there is no such run for this client.
    pub async fn watch_run(&self, run: RunId, from_step: u64) -> Result<RunWatch, ClientError> {
        let request = v1::WatchRunRequest {
            run_id: run.as_bytes().to_vec(),
            from_step,
        };
        let stream = self.answer(WATCH, self.client().watch_run(request)).await?;
        Ok(RunWatch {
            peer: self.clone(),
            stream,
        })
    }

    /// Runs this client may see, as scientist or owner.
    ///
    /// # Errors
    /// [`ClientError::SessionEnded`] and the server's refusals.
    pub async fn list_runs(&self) -> Result<Vec<Run>, ClientError> {
        let reply = self
            .answer("ListRuns", self.client().list_runs(v1::ListRunsRequest {}))
            .await?;
        all("ListRuns", reply.runs, parse_run)
    }

    /// Stops a run. What was started stays charged; its weights are destroyed.
    ///
    /// # Errors
    /// [`ClientError::NotFound`], [`ClientError::NotAllowed`], or a refusal if it has ended.
    pub async fn cancel_run(&self, run: RunId) -> Result<Run, ClientError> {
        let request = v1::CancelRunRequest {
            run_id: run.as_bytes().to_vec(),
        };
        parse_run(
            "CancelRun",
            self.answer("CancelRun", self.client().cancel_run(request))
                .await?,
        )
    }
}

fn spec_to_wire(spec: &RunSpec) -> v1::RunSpec {
    v1::RunSpec {
        model_id: spec.model_id.as_bytes().to_vec(),
        dataset_ids: spec.dataset_ids.iter().map(|id| id.as_bytes().to_vec()).collect(),
        input_columns: spec.input_columns.clone(),
        model_name: spec.model_name.clone(),
        batch_size: spec.batch_size,
        max_batch_size: spec.max_batch_size,
        steps: spec.steps,
        max_grad_norm: spec.max_grad_norm,
        privacy: Some(match spec.privacy {
            Privacy::TargetEpsilon(epsilon) => v1::run_spec::Privacy::TargetEpsilon(epsilon),
            Privacy::NoiseMultiplier(multiplier) => v1::run_spec::Privacy::NoiseMultiplier(multiplier),
        }),
        target_delta: spec.target_delta.unwrap_or(0.0),
        max_loss: spec.loss_release.map_or(0.0, |release| release.max_loss),
        loss_share: spec.loss_release.map_or(0.0, |release| release.share),
        optimizer: Some(v1::Optimizer {
            kind: Some(optimizer_to_wire(spec.optimizer)),
        }),
    }
}

fn optimizer_to_wire(optimizer: Optimizer) -> v1::optimizer::Kind {
    match optimizer {
        Optimizer::Sgd {
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
        } => v1::optimizer::Kind::Sgd(v1::Sgd {
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
        }),
        Optimizer::AdamW {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
        } => v1::optimizer::Kind::Adamw(v1::AdamW {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
        }),
    }
}

fn parse_spec(call: &'static str, wire: v1::RunSpec) -> Result<RunSpec, ClientError> {
    let privacy = match required(call, "the spec's privacy", wire.privacy)? {
        v1::run_spec::Privacy::TargetEpsilon(epsilon) => Privacy::TargetEpsilon(epsilon),
        v1::run_spec::Privacy::NoiseMultiplier(multiplier) => Privacy::NoiseMultiplier(multiplier),
    };
    let optimizer = match required(call, "the spec's optimizer", wire.optimizer.and_then(|o| o.kind))? {
        v1::optimizer::Kind::Sgd(v1::Sgd {
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
        }) => Optimizer::Sgd {
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
        },
        v1::optimizer::Kind::Adamw(v1::AdamW {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
        }) => Optimizer::AdamW {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
        },
    };
    Ok(RunSpec {
        model_id: digest(call, "model_id", &wire.model_id)?,
        dataset_ids: all(call, &wire.dataset_ids, |call, id| dataset_id(call, id))?,
        input_columns: wire.input_columns,
        model_name: wire.model_name,
        batch_size: wire.batch_size,
        max_batch_size: wire.max_batch_size,
        steps: wire.steps,
        max_grad_norm: wire.max_grad_norm,
        privacy,
        target_delta: (wire.target_delta != 0.0).then_some(wire.target_delta),
        loss_release: (wire.max_loss != 0.0).then_some(LossRelease {
            max_loss: wire.max_loss,
            share: wire.loss_share,
        }),
        optimizer,
    })
}

fn parse_quote(call: &'static str, wire: v1::Quote) -> Result<Quote, ClientError> {
    Ok(Quote {
        run_digest: digest(call, "run_digest", &wire.run_digest)?,
        spec: parse_spec(call, required(call, "the spec", wire.spec)?)?,
        noise_multiplier: wire.noise_multiplier,
        loss_noise_multiplier: wire.loss_noise_multiplier,
        joint_noise_multiplier: wire.joint_noise_multiplier,
        sample_rate: wire.sample_rate,
        declared_size: wire.declared_size,
        truncated_batch_size: wire.truncated_batch_size,
        micro_batches: wire.micro_batches,
        physical_batch_size: wire.physical_batch_size,
        memory_bytes: wire.memory_bytes,
        trainable_parameters: wire.trainable_parameters,
        charges: all(call, wire.charges, parse_charge)?,
        expires_unix_ms: wire.expires_unix_ms,
        graph_digest: digest(call, "graph_digest", &wire.graph_digest)?,
        warnings: wire.warnings,
    })
}

fn parse_charge(call: &'static str, wire: v1::Charge) -> Result<Charge, ClientError> {
    Ok(Charge {
        dataset_id: dataset_id(call, &wire.dataset_id)?,
        cost: amount(call, &wire.epsilon, &wire.delta)?,
        budget_before: wire
            .budget_before
            .map(|budget| parse_budget(call, &budget))
            .transpose()?,
        affordable: wire.affordable,
        dataset_name: wire.dataset_name,
    })
}

pub(crate) fn parse_run(call: &'static str, wire: v1::Run) -> Result<Run, ClientError> {
    let state = match wire.state() {
        v1::RunState::Queued => RunState::Queued,
        v1::RunState::Running => RunState::Running,
        v1::RunState::Succeeded => RunState::Succeeded,
        v1::RunState::Failed => RunState::Failed,
        v1::RunState::Cancelled => RunState::Cancelled,
        v1::RunState::Unspecified => return Err(ClientError::protocol(call, "a run in an unknown state")),
    };
    Ok(Run {
        id: run_id(call, &wire.id)?,
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
    })
}

fn parse_progress(call: &'static str, wire: v1::RunProgress) -> Result<Progress, ClientError> {
    Ok(Progress {
        run: parse_run(call, required(call, "the run", wire.run)?)?,
        step: wire.step,
        noisy_loss: wire.has_loss.then_some(wire.noisy_loss),
    })
}

const WATCH: &str = "WatchRun";

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn spec() -> RunSpec {
        RunSpec {
            model_id: Digest32::from_bytes([1; 32]),
            dataset_ids: vec![DatasetId::from_bytes([2; 16]), DatasetId::from_bytes([3; 16])],
            input_columns: vec!["x".into(), "y".into()],
            model_name: "mlp".into(),
            batch_size: 64,
            max_batch_size: 32,
            steps: 100,
            max_grad_norm: 1.0,
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
        }
    }

    #[test]
    fn a_specification_survives_the_wire() {
        let other = RunSpec {
            privacy: Privacy::NoiseMultiplier(1.5),
            target_delta: None,
            loss_release: None,
            optimizer: Optimizer::AdamW {
                lr: 1e-3,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.01,
            },
            ..spec()
        };
        for spec in [spec(), other] {
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
