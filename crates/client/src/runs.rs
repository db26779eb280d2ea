//! The scientist's verbs: price a run, start it, watch it, list runs, cancel one.

mod wire;

use crate::convert::all;
use crate::datasets::Budget;
use crate::errors::ClientError;
use crate::session::AppraisedPeer;
use bastionai_ledger::amount::{Amount, Epsilon, Rho};
use bastionai_ledger::id::{DatasetId, Digest32, Principal, RunId};
pub use bastionai_ledger::policy::RunKind;
use bastionai_privacy::filter::terms::Order;
use bastionai_wire::v1;
pub use bastionai_wire::{Adam, Bands, Clipping, Compute, Decay, NoiseMode, Optimizer, Schedule, Warmup};
use serde::{Deserialize, Serialize};
use tonic::Streaming;
pub(crate) use wire::{parse_charge, parse_source, source_to_wire};
use wire::{parse_progress, parse_quote, parse_run, spec_to_wire};

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
    /// Expected logical batch over all datasets, in units of privacy.
    pub batch_size: u64,
    /// Records of a unit that a step uses; absent: the smallest `max_records` that the datasets declare.
    #[serde(default)]
    pub records_per_unit: Option<u32>,
    /// Physical batch.
    pub max_batch_size: u32,
    /// Optimizer steps.
    pub steps: u64,
    /// Clip of each per-sample gradient, L2.
    pub max_grad_norm: f64,
    /// How gradients are held to it.
    #[serde(default)]
    pub clipping: Clipping,
    /// Precision of the graph's products.
    #[serde(default)]
    pub compute: Compute,
    /// What the sum's sensitivity rests on.
    #[serde(default)]
    pub noise_mode: NoiseMode,
    /// Privacy asked for, or noise.
    pub privacy: Privacy,
    /// Absent: a tenth of the smallest lifetime δ.
    pub target_delta: Option<f64>,
    /// Noisy loss in the progress; absent: none is released and none is paid for.
    pub loss_release: Option<LossRelease>,
    /// Update rule.
    pub optimizer: Optimizer,
    /// How its learning rate moves; a quote names the warm-up in steps.
    #[serde(default)]
    pub schedule: Schedule,
    /// Decay of the average of the iterates that is released beside the weights, in (0, 1).
    #[serde(default)]
    pub ema_decay: Option<f64>,
    /// Instead: part of the steps, from the last back, whose iterates are averaged with equal weights, in (0, 1].
    #[serde(default)]
    pub tail_average: Option<f64>,
    /// Steps over which the gradient's noise is correlated; a quote names what was planned.
    #[serde(default)]
    pub bands: Bands,
    /// Steps whose weights are kept and released with the run's; a quote lists them all.
    #[serde(default)]
    pub keep_steps: Vec<u64>,
    /// The same, every so many steps; not with `keep_steps`.
    #[serde(default)]
    pub keep_every: Option<u64>,
    /// Weights on the server that the run begins with; absent: the archive's own.
    #[serde(default)]
    pub initial_weights: Option<WeightsSource>,
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

/// Weights that are on the server already. Tensors are matched by name, shape and dtype; parameters that the source
/// does not name keep the archive's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightsSource {
    /// Those of an archive that this client uploaded.
    Model(Digest32),
    /// Those of an earlier run that this client may receive.
    Run(RunWeights),
}

/// One set of a run's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunWeights {
    /// The run.
    pub run: RunId,
    /// A kept step; absent: the last.
    #[serde(default)]
    pub step: Option<u64>,
    /// The average of the iterates up to that step instead of the iterate.
    #[serde(default)]
    pub ema: bool,
}

/// Release of the noisy training loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossRelease {
    /// Clip of the per-sample loss.
    pub max_loss: f64,
    /// Share of the privacy spent on it, in (0, 1).
    pub share: f64,
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
    /// Most noise beyond `noise_multiplier · max_grad_norm`, over it, that rounding costs.
    pub noise_slack: f64,
    /// Probability with which each unit enters a step.
    pub sample_rate: f64,
    /// Declared units over all datasets: records where these are the unit.
    pub declared_size: u64,
    /// Cap of the sample of a step, in units.
    pub truncated_batch_size: u64,
    /// Equal physical batches per step.
    pub micro_batches: u32,
    /// Rows of a physical batch.
    pub physical_batch_size: u32,
    /// Estimate for the trainer.
    pub memory_bytes: u64,
    /// Bytes of the weights kept besides the last.
    pub kept_bytes: u64,
    /// Noise in the weights over that of independent noise at the same price; 1 without bands.
    pub noise_ratio: f64,
    /// Trainable scalars of the model.
    pub trainable_parameters: u64,
    /// What it costs each dataset.
    pub charges: Vec<Charge>,
    /// Server's clock.
    pub expires_unix_ms: u64,
    /// SHA-256 of the canonical typed graph.
    pub graph_digest: Digest32,
    /// Of a run that has its slot for itself, by the server's estimate; absent if it could not measure its machine.
    pub expected_seconds: Option<f64>,
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
    /// Whether the budget covers it, by the rule of the dataset's policy.
    pub affordable: bool,
    /// Whether sums of Rényi divergences are that rule; else sums of (ε, δ) are.
    pub by_renyi: bool,
    /// What it means in Rényi divergences, whichever rule decides; absent unless private, and on runs.
    pub renyi: Option<RenyiPrice>,
    /// What is protected: `per record, per dataset`, or per unit and over which datasets of the run.
    pub privacy_unit: String,
}

impl Charge {
    /// ε left before and after it by the rule that decides: none where there is no budget, or not enough.
    pub fn epsilon_left(&self) -> (Option<Epsilon>, Option<Epsilon>) {
        let Some(budget) = self.budget_before else {
            return (None, None);
        };
        let (before, after) = match &self.renyi {
            Some(price) if self.by_renyi => {
                let lifetime = budget.lifetime.epsilon;
                let left = |used: Epsilon| lifetime.checked_sub(used);
                (left(price.epsilon_before), left(price.epsilon_after))
            }
            _ => {
                let after = budget.remaining.checked_sub(self.cost);
                (Some(budget.remaining.epsilon), after.map(|after| after.epsilon))
            }
        };
        (before, after.filter(|_| self.affordable))
    }
}

/// What a run means in Rényi divergences.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RenyiPrice {
    /// The dataset's, or the server's default ones where sums of (ε, δ) decide.
    pub orders: Vec<Order>,
    /// Of this run alone, in nats, rounded up, one for each order; none where there is no bound.
    pub divergences: Vec<Option<Rho>>,
    /// ε that all runs so far mean together at the lifetime's δ, rounded up.
    pub epsilon_before: Epsilon,
    /// The same with this run.
    pub epsilon_after: Epsilon,
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
    /// By the scientist or an owner.
    Cancelled,
    /// By an owner, who may resume it.
    Suspended,
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
    /// What it does with the data.
    pub kind: RunKind,
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
    /// Runs served before it, itself included; absent unless queued.
    pub queue_position: Option<u32>,
    /// Owners whose suspension stands.
    pub suspended_by: Vec<Principal>,
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
    /// [`ClientError::BudgetExceeded`], [`ClientError::QuoteExpired`], [`ClientError::QueueFull`],
    /// [`ClientError::LimitExceeded`].
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

impl AppraisedPeer {
    /// As an owner of one of its datasets, stops a run until [`AppraisedPeer::resume_run`]. Once this returns nothing more
    /// of it is released.
    ///
    /// # Errors
    /// [`ClientError::NotFound`]; [`ClientError::NotAllowed`] unless this client owns one of its datasets; a refusal if
    /// it has ended.
    pub async fn suspend_run(&self, run: RunId) -> Result<Run, ClientError> {
        let request = v1::SuspendRunRequest {
            run_id: run.as_bytes().to_vec(),
        };
        let call = "SuspendRun";
        parse_run(call, self.answer(call, self.client().suspend_run(request)).await?)
    }

    /// Lifts this client's own suspension. The run goes on from its last checkpoint, unless another owner's stands.
    ///
    /// # Errors
    /// [`ClientError::NotFound`]; [`ClientError::NotAllowed`] unless this client suspended it; a refusal if it has ended.
    pub async fn resume_run(&self, run: RunId) -> Result<Run, ClientError> {
        let request = v1::ResumeRunRequest {
            run_id: run.as_bytes().to_vec(),
        };
        let call = "ResumeRun";
        parse_run(call, self.answer(call, self.client().resume_run(request)).await?)
    }
}

const WATCH: &str = "WatchRun";
