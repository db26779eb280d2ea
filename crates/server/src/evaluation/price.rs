//! From request, model and contracts to a priced evaluation: the graph is proven to give scores and labels, the
//! noise is calibrated, and all of it is put under one digest (rule A11).

use super::EvaluationRequest;
use crate::charges::{self, PricedCharge};
use crate::digest::{DatasetVersion, Fields, tensors_digest};
use crate::errors::{Failure, Reason};
use crate::memory::Needs;
use crate::plan::{self, RELATION};
use crate::spec::Privacy;
use crate::terms::{Boot, Grounds, Terms, check_frames, fitting_batch, read_archive, refused};
use crate::warm_start::{self, WeightsSource};
use bastionai_graph::contract::{Domain, InputColumn};
use bastionai_graph::typed::{Origin, Results, TypedGraph};
use bastionai_ledger::{
    Amount, BootId, Delta, Digest32, Epsilon, Ledger, NoiseMode, Principal, RunId, RunReserved,
};
use bastionai_privacy::event::DpEvent;
use bastionai_privacy::histogram::Histograms;
use bastionai_privacy::{accountant, calibrate};
use bastionai_wire::trainer::{DatasetShape, EvaluationJob, TRAINER_PROTOCOL_VERSION};
use bastionai_wire::{Compute, v1};
use std::sync::Arc;

/// An evaluation that was priced for one scientist and can be started until it expires.
pub(crate) struct PricedEvaluation {
    pub(crate) run_digest: Digest32,
    pub(crate) scientist: Principal,
    pub(crate) request: EvaluationRequest,
    pub(crate) graph: Arc<TypedGraph>,
    pub(crate) histograms: Histograms,
    pub(crate) expires_unix_ms: u64,
    release: Release,
    declared_sizes: Vec<u64>,
    physical_batch_size: u32,
    pub(crate) charges: Vec<PricedCharge>,
    memory_bytes: u64,
}

/// The noise of the one release, and what it costs each private dataset.
#[derive(Clone, Debug)]
struct Release {
    noise_multiplier: f64,
    event: DpEvent,
    amount: Amount,
}

impl Release {
    /// # Guarantee
    /// `amount` is an upper bound of the (ε, δ) of `event`, and never above a target.
    fn new(privacy: Privacy, delta: Delta) -> Result<Self, Failure> {
        // δ is exact in the ledger; the accountant gets the next float below, so that the price never rounds down.
        let accounted_delta = delta.to_f64().next_down();
        let gaussian = |noise_multiplier| DpEvent::Gaussian { noise_multiplier };
        let noise_multiplier = match privacy {
            Privacy::NoiseMultiplier(multiplier) => multiplier,
            Privacy::TargetEpsilon(epsilon) => {
                calibrate::noise_multiplier(epsilon, accounted_delta, RELATION, &gaussian)
                    .map_err(unpriceable)?
            }
        };
        let event = gaussian(noise_multiplier);
        let epsilon = accountant::epsilon(&event, RELATION, accounted_delta).map_err(unpriceable)?;
        let epsilon = Epsilon::from_f64_round_up(epsilon).map_err(unpriceable)?;
        Ok(Self {
            noise_multiplier,
            event,
            amount: Amount::new(epsilon, delta),
        })
    }
}

/// Prices an evaluation. CPU-bound: reads the archive and proves the graph.
pub(crate) fn price(request: EvaluationRequest, grounds: &Grounds) -> Result<PricedEvaluation, Failure> {
    let (terms, limits) = (&grounds.terms, grounds.limits);
    terms.must_be_per_record()?;
    let inputs = terms.inputs(&request.input_columns)?;
    let archive = read_archive(&grounds.model.archive, limits.model_bytes)?;
    let graph = bastionai_graph::check_scores(&archive, &inputs).map_err(refused)?;
    let histograms = histograms(&graph, &request)?;
    check_label(&graph, &inputs, histograms.classes())?;
    let declared_sizes = terms.declared_sizes();
    check_frames(&inputs, &declared_sizes)?;
    let release = Release::new(request.privacy, terms.delta(request.delta)?)?;
    let needs = Needs {
        graph: &graph,
        declared_sizes: &declared_sizes,
        records_per_unit: 1,
        compute: Compute::Float32,
        noise_mode: bastionai_wire::NoiseMode::Standard,
    };
    let asked = request.max_batch_size;
    let wanted = asked.unwrap_or(plan::DEFAULT_PHYSICAL_BATCH);
    let physical_batch_size = fitting_batch(needs, wanted, asked, limits.memory_bytes)?;
    let memory_bytes = needs.memory(physical_batch_size).total();
    let mut priced = PricedEvaluation {
        run_digest: Digest32::from_bytes([0; 32]),
        scientist: terms.scientist(),
        charges: terms.charges(&release.event, release.amount)?,
        request,
        graph: Arc::new(graph),
        histograms,
        release,
        declared_sizes,
        physical_batch_size,
        memory_bytes,
        expires_unix_ms: limits.expires_unix_ms,
    };
    let weights = warm_start::initial_tensors(&archive, &priced.graph, grounds.weights.as_ref())?;
    priced.run_digest = priced.digest(tensors_digest(&weights), terms, grounds.boot);
    Ok(priced)
}

/// The histograms asked for, over the classes that the graph's scores have.
fn histograms(graph: &TypedGraph, request: &EvaluationRequest) -> Result<Histograms, Failure> {
    let classes = graph.score_width().map_or(0, |width| width.max(2));
    let classes = u32::try_from(classes).unwrap_or(u32::MAX);
    Histograms::new(classes, request.has_confusion, request.score_bins)
        .map_err(|error| Failure::of(Reason::RunSpecInvalid, error))
}

/// A label that is a column of the contract must be a class by contract: others would be counted nowhere.
fn check_label(graph: &TypedGraph, inputs: &[InputColumn], classes: u32) -> Result<(), Failure> {
    let Results::Scores { label, .. } = graph.results() else {
        return Ok(());
    };
    let column = match graph.values().get(label.0 as usize).map(|value| &value.origin) {
        Some(Origin::Input(input)) => inputs.get(*input as usize),
        _ => None,
    };
    let Some((column, domain)) = column.and_then(|column| Some((&column.column, column.domain.as_ref()?)))
    else {
        return Ok(());
    };
    let (lowest, highest) = match domain {
        Domain::Bool => (0.0, 1.0),
        Domain::Classes { names } => (0.0, names.len() as f64 - 1.0),
        Domain::Range { minimum, maximum } => (
            minimum.iter().copied().fold(f64::INFINITY, f64::min),
            maximum.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        ),
    };
    if lowest >= 0.0 && highest < f64::from(classes) {
        return Ok(());
    }
    let message = format!(
        "labels of column `{column}` go from {lowest} to {highest} by contract, the model scores the classes 0 to {}: \
         evaluate a model with as many classes, or return a class index computed from the column as the label",
        classes - 1
    );
    Err(Failure::new(Reason::RunSpecInvalid, message))
}

impl PricedEvaluation {
    /// SHA-256 over everything agreed, each field length-prefixed.
    fn digest(&self, weights: Digest32, terms: &Terms, boot: Boot) -> Digest32 {
        let (request, release) = (&self.request, &self.release);
        let mut fields = Fields::new(b"bastionai/v1/evaluation");
        fields.add(self.scientist.as_bytes());
        fields.add(&self.graph.digest());
        fields.add(weights.as_bytes());
        fields.add(request.model_name.as_bytes());
        fields.count(request.input_columns.len());
        request
            .input_columns
            .iter()
            .for_each(|column| fields.add(column.as_bytes()));
        fields.add(b"noise=standard");
        fields.integer(u64::from(self.histograms.classes()));
        fields.integer(u64::from(request.has_confusion));
        fields.integer(u64::from(request.score_bins.unwrap_or(0)));
        fields.float(release.noise_multiplier);
        fields.float(self.histograms.l2_sensitivity());
        fields.integer(u64::from(self.physical_batch_size));
        fields.integer(self.declared_sizes.iter().sum());
        fields.integer(release.amount.epsilon.units());
        fields.integer(release.amount.delta.units());
        DatasetVersion::add_all(&terms.versions(), &mut fields);
        fields.add(boot.claims.as_bytes());
        fields.add(boot.id.as_bytes());
        fields.add(terms.ledger_head().as_bytes());
        fields.integer(self.expires_unix_ms);
        fields.finish()
    }

    /// Standard deviation of the noise on each count.
    pub(crate) fn noise_standard_deviation(&self) -> f64 {
        self.release.noise_multiplier * self.histograms.l2_sensitivity()
    }

    /// The quote as the scientist sees it.
    pub(crate) fn to_wire(&self, ledger: &Ledger) -> v1::EvaluationQuote {
        let declared_size: u64 = self.declared_sizes.iter().sum();
        let micro_batches = declared_size.div_ceil(u64::from(self.physical_batch_size));
        v1::EvaluationQuote {
            run_digest: self.run_digest.as_bytes().to_vec(),
            spec: Some(self.resolved_spec()),
            classes: self.histograms.classes(),
            noise_multiplier: self.release.noise_multiplier,
            l2_sensitivity: self.histograms.l2_sensitivity(),
            noise_standard_deviation: self.noise_standard_deviation(),
            declared_size,
            micro_batches: u32::try_from(micro_batches).unwrap_or(u32::MAX),
            physical_batch_size: self.physical_batch_size,
            memory_bytes: self.memory_bytes,
            charges: charges::to_wire(ledger, &self.charges),
            expires_unix_ms: self.expires_unix_ms,
            graph_digest: self.graph.digest().to_vec(),
            warnings: self.warnings(ledger, declared_size),
        }
    }

    /// What a scientist should know before paying, with the numbers.
    fn warnings(&self, ledger: &Ledger, declared_size: u64) -> Vec<String> {
        let mut warnings = Vec::new();
        let trained_on = |id| {
            ledger
                .dataset(id)
                .filter(|dataset| !dataset.policy().is_evaluation_only())
        };
        for dataset in self.request.datasets.iter().filter_map(trained_on) {
            warnings.push(format!(
                "`{}` is not held out: on records that a model was trained on its scores look better than they are",
                dataset.name()
            ));
        }
        // The error of an accuracy: the noise of all counts of a class, over all records.
        let classes = f64::from(self.histograms.classes());
        let error = self.noise_standard_deviation() * classes / declared_size as f64;
        if error > DROWNED {
            warnings.push(format!(
                "noise drowns the counts: each has a standard deviation of {:.1}, an accuracy over {declared_size} records \
                 about {error:.2}; ask for fewer histograms, or a larger epsilon",
                self.noise_standard_deviation()
            ));
        }
        warnings
    }

    /// What the ledger is asked to set aside.
    pub(crate) fn reservation(&self, run: RunId, boot: BootId) -> RunReserved {
        RunReserved {
            run,
            boot,
            run_digest: self.run_digest,
            graph_digest: Digest32::from_bytes(self.graph.digest()),
            scientist: self.scientist,
            model_name: self.request.model_name.clone(),
            steps: 1,
            noise_mode: NoiseMode::Standard,
            charges: charges::charges(&self.charges),
        }
    }

    /// The trainer's job. `rows` are filled in when the records are opened: they are private.
    pub(crate) fn job(&self, rows: &[u64], threads: u32) -> EvaluationJob {
        let datasets = self.declared_sizes.iter().zip(rows);
        EvaluationJob {
            version: TRAINER_PROTOCOL_VERSION,
            graph: self.graph.to_bytes(),
            datasets: datasets
                .map(|(&capacity, &rows)| DatasetShape { capacity, rows })
                .collect(),
            physical_batch_size: self.physical_batch_size,
            classes: self.histograms.classes(),
            has_confusion: self.request.has_confusion,
            score_bins: self.request.score_bins,
            noise_multiplier: self.release.noise_multiplier,
            threads,
        }
    }

    fn resolved_spec(&self) -> v1::EvaluationSpec {
        use v1::evaluation_spec::Privacy as WirePrivacy;
        let request = &self.request;
        v1::EvaluationSpec {
            model_id: request.model.as_bytes().to_vec(),
            dataset_ids: request.datasets.iter().map(|id| id.as_bytes().to_vec()).collect(),
            input_columns: request.input_columns.clone(),
            model_name: request.model_name.clone(),
            confusion: request.has_confusion,
            score_bins: request.score_bins.unwrap_or(0),
            privacy: Some(match request.privacy {
                Privacy::TargetEpsilon(epsilon) => WirePrivacy::TargetEpsilon(epsilon),
                Privacy::NoiseMultiplier(multiplier) => WirePrivacy::NoiseMultiplier(multiplier),
            }),
            target_delta: self.release.amount.delta.to_f64(),
            max_batch_size: self.physical_batch_size,
            weights: request.weights.map(WeightsSource::to_wire),
        }
    }
}

fn unpriceable(error: impl std::error::Error) -> Failure {
    Failure::of(Reason::Unpriceable, error)
}

/// Standard error of an accuracy beyond which a warning is due.
const DROWNED: f64 = 0.1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calibrated_evaluation_costs_at_most_its_target_and_close_to_it() {
        let delta: Delta = "1e-6".parse().unwrap();
        for target in [0.1, 0.5, 2.0, 8.0] {
            let release = Release::new(Privacy::TargetEpsilon(target), delta).unwrap();
            let cost = release.amount.epsilon.to_f64();
            assert!(cost <= target && cost > 0.99 * target, "{cost} for {target}");
        }
    }

    /// Balle and Wang 2018, theorem 8: ε = 4.3772 at σ = 1 and δ = 1e-5.
    #[test]
    fn the_price_of_given_noise_is_the_analytic_gaussians() {
        let delta: Delta = "1e-5".parse().unwrap();
        let release = Release::new(Privacy::NoiseMultiplier(1.0), delta).unwrap();
        assert!(
            (release.amount.epsilon.to_f64() - 4.3772).abs() < 1e-4,
            "{release:?}"
        );
    }
}
