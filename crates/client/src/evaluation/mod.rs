//! Evaluating a model on data nobody may see: price it, start it like any run, fetch the noisy histograms, and
//! estimate metrics from them, each with its error.
//!
//! In call order: [`EvaluationSpec`] → [`EvaluationQuote`] (`price_evaluation`) → `start_run`, `watch_run` →
//! [`NoisyHistograms`] (what was released) → [`Metric`]s → [`Evaluation`].

mod histograms;
mod metrics;
mod wire;

pub use histograms::{NoisyHistograms, ReleasedHistogram};
pub use metrics::{Confusion, Estimate, Metric, UnknownMetric};

use crate::errors::ClientError;
use crate::fetch::FetchedRun;
use crate::rows::Transfer;
use crate::runs::{Charge, Privacy, Run, WeightsSource};
use crate::session::AppraisedPeer;
use bastionai_ledger::id::{DatasetId, Digest32, RunId};
use bastionai_ledger::policy::RunKind;
use bastionai_ledger::receipt::Receipt;
use bastionai_wire::v1;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a scientist asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationSpec {
    /// From `upload_model`: an archive that returns scores and label.
    pub model_id: Digest32,
    /// Distinct datasets with the same contract; their records are counted together.
    pub dataset_ids: Vec<DatasetId>,
    /// Contract column of each model input, in the order of the inputs.
    pub input_columns: Vec<String>,
    /// Shown in lists.
    pub model_name: String,
    /// Release label × predicted class.
    pub confusion: bool,
    /// Release label × score bins, this many (even); absent: no scores.
    pub score_bins: Option<u32>,
    /// Privacy asked for, or noise.
    pub privacy: Privacy,
    /// Absent: a tenth of the smallest lifetime δ.
    pub target_delta: Option<f64>,
    /// Largest physical batch; 0: the server's choice.
    pub max_batch_size: u32,
    /// Weights that the server holds, instead of the archive's own.
    pub weights: Option<WeightsSource>,
}

impl EvaluationSpec {
    /// Asks for the histograms that these metrics need, and for no other: each one costs precision.
    pub fn for_metrics(mut self, metrics: &[Metric], score_bins: u32) -> Self {
        self.confusion = metrics.iter().any(|metric| metric.needs_confusion());
        self.score_bins = metrics
            .iter()
            .any(|metric| metric.needs_scores())
            .then_some(score_bins);
        self
    }
}

/// The price of an evaluation, binding until it expires.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluationQuote {
    /// Names the evaluation exactly; what `start_run` takes.
    pub run_digest: Digest32,
    /// With every default filled in.
    pub spec: EvaluationSpec,
    /// Of the model's scores.
    pub classes: u32,
    /// Of all histograms as one release.
    pub noise_multiplier: f64,
    /// √m for m histograms.
    pub l2_sensitivity: f64,
    /// Of the noise on each count.
    pub noise_standard_deviation: f64,
    /// Declared records over all datasets.
    pub declared_size: u64,
    /// Equal physical batches.
    pub micro_batches: u32,
    /// Rows of a physical batch.
    pub physical_batch_size: u32,
    /// Estimate for the trainer.
    pub memory_bytes: u64,
    /// What it costs each dataset.
    pub charges: Vec<Charge>,
    /// Server's clock.
    pub expires_unix_ms: u64,
    /// SHA-256 of the canonical typed graph.
    pub graph_digest: Digest32,
    /// What the scientist should reconsider.
    pub warnings: Vec<String>,
}

impl EvaluationQuote {
    /// Whether every dataset's budget covers its charge.
    pub fn is_affordable(&self) -> bool {
        self.charges.iter().all(|charge| charge.affordable)
    }
}

/// A finished evaluation: what is proven about it, what was released, and what follows from that.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// The run.
    pub run: RunId,
    /// Number of classes.
    pub classes: u32,
    /// Standard deviation of the noise on each count.
    pub noise_standard_deviation: f64,
    /// Records counted. Noisy: the true number is nobody's to know.
    pub records: Estimate,
    /// The metrics that were asked for, by name.
    pub metrics: BTreeMap<String, Estimate>,
    /// Noisy counts, if they were released and asked for.
    pub confusion: Option<Confusion>,
    /// The signed statement, checked.
    pub receipt: Receipt,
    /// The DSSE envelope as it came: what an auditor checks offline.
    #[serde(skip)]
    pub receipt_dsse_json: Vec<u8>,
}

impl Evaluation {
    /// Estimates metrics from a fetched run; none named means all that its histograms allow.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when the run is no evaluation or did not release what a metric needs;
    /// [`ClientError::ReceiptRefused`] when the released noise is not what the receipt says was charged.
    pub fn new(fetched: FetchedRun, metrics: &[Metric]) -> Result<Self, ClientError> {
        let run = fetched.receipt.run.id;
        if fetched.receipt.run.kind != RunKind::Evaluation {
            return Err(ClientError::Invalid(format!(
                "run {run} trained a model: it evaluated nothing"
            )));
        }
        let histograms = NoisyHistograms::released(&fetched.receipt, &fetched.weights)?;
        let all = Metric::ALL
            .into_iter()
            .filter(|metric| histograms.allows(*metric));
        let metrics = if metrics.is_empty() {
            all.collect()
        } else {
            metrics.to_vec()
        };
        if let Some(missing) = metrics.iter().find(|metric| !histograms.allows(**metric)) {
            return Err(ClientError::Invalid(format!(
                "run {run} did not release what `{missing}` needs: name it when the evaluation is started"
            )));
        }
        let wants_confusion = metrics.contains(&Metric::Confusion);
        let estimates = metrics.iter().filter_map(|metric| {
            let estimate = histograms.estimate(*metric)?;
            Some((metric.to_string(), estimate))
        });
        Ok(Self {
            run,
            classes: histograms.classes(),
            noise_standard_deviation: histograms.noise_standard_deviation(),
            records: histograms.records(),
            metrics: estimates.collect(),
            confusion: histograms.confusion().filter(|_| wants_confusion),
            receipt: fetched.receipt,
            receipt_dsse_json: fetched.receipt_dsse_json,
        })
    }
}

impl AppraisedPeer {
    /// What the evaluation would cost, at no cost. [`AppraisedPeer::start_run`] takes the quote's digest.
    ///
    /// # Errors
    /// [`ClientError::GraphRefused`] with every refusal, [`ClientError::NotAllowed`],
    /// [`ClientError::NotFound`], [`ClientError::ServerRefused`] for a specification that makes no sense.
    pub async fn price_evaluation(&self, spec: &EvaluationSpec) -> Result<EvaluationQuote, ClientError> {
        const CALL: &str = "PriceEvaluation";
        let request = v1::PriceEvaluationRequest {
            spec: Some(wire::spec_to_wire(spec)),
        };
        let reply = self.answer(CALL, self.client().price_evaluation(request)).await?;
        wire::parse_quote(CALL, reply)
    }

    /// Fetches a finished evaluation, checks it as [`AppraisedPeer::fetch_run`] does, and estimates `metrics`.
    ///
    /// # Errors
    /// As [`AppraisedPeer::fetch_run`] and [`Evaluation::new`].
    pub async fn fetch_evaluation(
        &self,
        run: RunId,
        expected: Option<&Run>,
        metrics: &[Metric],
        on_progress: &mut (dyn FnMut(Transfer) + Send),
    ) -> Result<Evaluation, ClientError> {
        Evaluation::new(self.fetch_run(run, expected, on_progress).await?, metrics)
    }
}
