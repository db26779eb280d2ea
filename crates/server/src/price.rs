//! From request and grounds to a quote: the graph is proven, the numbers are planned, every dataset's
//! charge is named, and all of it is put under one digest.

use crate::charges::{self, PricedCharge};
use crate::digest::{Agreement, tensors_digest};
use crate::errors::{Failure, Reason};
use crate::memory::{self, Needs};
use crate::plan::{self, Plan};
use crate::spec::{Privacy, RunRequest};
use crate::terms::{self, Grounds, check_frames, read_archive, refused};
use crate::throughput::Throughput;
use crate::units;
use crate::warm_start::{self, WeightsSource};
use bastionai_graph::typed::TypedGraph;
use bastionai_ledger::{BootId, Delta, Digest32, Ledger, NoiseMode, Principal, RunId, RunReserved};
use bastionai_wire::trainer::{Band, ClassKey, DatasetShape, Job, LossRelease, TRAINER_PROTOCOL_VERSION};
use bastionai_wire::units::Units;
use bastionai_wire::{Average, v1};
use std::sync::Arc;

/// A run that was priced for one scientist and can be started until it expires.
pub(crate) struct PricedRun {
    pub(crate) run_digest: Digest32,
    pub(crate) scientist: Principal,
    pub(crate) request: RunRequest,
    pub(crate) plan: Plan,
    pub(crate) graph: Arc<TypedGraph>,
    pub(crate) declared_sizes: Vec<u64>,
    pub(crate) units: Units,
    pub(crate) charges: Vec<PricedCharge>,
    pub(crate) memory_bytes: u64,
    pub(crate) kept_bytes: u64,
    pub(crate) expires_unix_ms: u64,
}

/// Prices a run. CPU-bound: reads the archive, proves the graph, calibrates the noise.
pub(crate) fn price(mut request: RunRequest, grounds: &Grounds) -> Result<PricedRun, Failure> {
    let (terms, boot, limits) = (&grounds.terms, grounds.boot, grounds.limits);
    terms.check_noise_mode(request.noise_mode)?;
    let inputs = terms.inputs(&request.input_columns)?;
    let archive = read_archive(&grounds.model.archive, limits.model_bytes)?;
    let graph = bastionai_graph::check(&archive, &inputs).map_err(refused)?;
    if plan::trainable_parameters(&graph) == 0 {
        return Err(Failure::new(
            Reason::RunSpecInvalid,
            "no parameter requires a gradient: there is nothing to train",
        ));
    }
    check_written_out(request.noise_mode, &graph)?;
    let declared_sizes = terms.declared_sizes();
    check_frames(&inputs, &declared_sizes)?;
    let delta = terms.delta(request.delta)?;
    let units = terms.units(request.records_per_unit)?;
    request.records_per_unit = Some(units.records_per_unit);
    let sizes = Sizes {
        records: &declared_sizes,
        units: units::declared_units(&units, &declared_sizes),
    };
    let (plan, memory_bytes) = fitting_plan(&request, &graph, sizes, delta, limits.memory_bytes)?;
    let kept_bytes = plan::weight_bytes(&graph).saturating_mul(kept_sets(&request));
    if kept_bytes > limits.kept_bytes {
        let message = format!(
            "the run would keep {kept_bytes} bytes of weights besides its last, the server allows {}: keep fewer steps",
            limits.kept_bytes
        );
        return Err(Failure::new(Reason::RunSpecInvalid, message));
    }
    let datasets = terms.versions();
    let run_digest = Agreement {
        request: &request,
        plan: &plan,
        scientist: terms.scientist(),
        graph: Digest32::from_bytes(graph.digest()),
        initial_weights: tensors_digest(&warm_start::initial_tensors(
            &archive,
            &graph,
            grounds.weights.as_ref(),
        )?),
        datasets: &datasets,
        claims: boot.claims,
        boot: boot.id,
        ledger_head: terms.ledger_head(),
        expires_unix_ms: limits.expires_unix_ms,
    }
    .digest();
    Ok(PricedRun {
        run_digest,
        scientist: terms.scientist(),
        charges: terms.charges(&plan.event, plan.amount)?,
        request,
        plan,
        graph: Arc::new(graph),
        declared_sizes,
        units,
        memory_bytes,
        kept_bytes,
        expires_unix_ms: limits.expires_unix_ms,
    })
}

/// In mode `hardened` the trainer writes the gradient of every record out, a tensor at a time.
fn check_written_out(mode: bastionai_wire::NoiseMode, graph: &TypedGraph) -> Result<(), Failure> {
    if mode != bastionai_wire::NoiseMode::Hardened {
        return Ok(());
    }
    let trained = graph.parameters().iter().filter(|each| each.trainable);
    let Some((parameter, elements)) = trained
        .map(|each| (each, plan::elements(&each.shape)))
        .find(|(_, elements)| *elements > MOST_WRITTEN_OUT)
    else {
        return Ok(());
    };
    let message = format!(
        "noise_mode hardened writes the gradient of every record out: parameter {} has {elements} elements, at most \
         {MOST_WRITTEN_OUT} are sensible. Freeze it and train adapters (LoRA) or a head, or use noise_mode standard",
        parameter.names.join(" = ")
    );
    Err(Failure::new(Reason::RunSpecInvalid, message))
}

/// `MOST_INSTANTIATED` of the trainer (taps/method.rs): 64 MiB a record in f32.
const MOST_WRITTEN_OUT: u64 = 1 << 24;

/// Declared sizes: of each dataset in records, and of all together in units.
#[derive(Clone, Copy)]
struct Sizes<'s> {
    records: &'s [u64],
    units: u64,
}

/// The plan whose trainer fits into memory, with its estimate: in smaller physical batches where the scientist
/// named none.
fn fitting_plan(
    request: &RunRequest,
    graph: &TypedGraph,
    sizes: Sizes<'_>,
    delta: Delta,
    allowed: u64,
) -> Result<(Plan, u64), Failure> {
    let records_per_unit = request.records_per_unit.unwrap_or(1);
    let average = request.average.map_or(0, |_| plan::weight_bytes(graph));
    let trainable = plan::trainable_parameters(graph);
    let allowed = allowed.saturating_sub(average);
    // Noise that is remembered takes a quarter of the memory at most, unless it was asked for.
    let most_bands = 1 + allowed / 4 / plan::noise_bytes(2, trainable).max(1);
    let needs = Needs {
        graph,
        declared_sizes: sizes.records,
        records_per_unit,
        compute: request.compute,
        noise_mode: request.noise_mode,
    };
    let plan = Plan::new(request, sizes.units, delta, most_bands)?;
    let noise = plan.noise_bytes(trainable);
    if noise > allowed {
        let message = format!(
            "the noise of {} bands takes {} of memory (8 bytes a trainable parameter for each but one), the server allows \
             {}: choose fewer bands",
            plan.band.bands(),
            memory::in_words(noise),
            memory::in_words(allowed)
        );
        return Err(Failure::new(Reason::RunSpecInvalid, message));
    }
    let (allowed, beside) = (allowed - noise, average + noise);
    let wanted = plan.physical_batch_size;
    let fitting = terms::fitting_batch(needs, wanted, request.max_batch_size, allowed)?;
    let plan = if fitting == wanted {
        plan
    } else {
        let smaller = RunRequest {
            max_batch_size: Some(fitting),
            ..request.clone()
        };
        Plan::new(&smaller, sizes.units, delta, most_bands)?
    };
    let bytes = needs.memory(plan.physical_batch_size).total();
    Ok((plan, bytes + beside))
}

/// Sets of weights that a run keeps besides its last: iterates, each with the average if there is one, and the last
/// average.
fn kept_sets(request: &RunRequest) -> u64 {
    let average = u64::from(request.average.is_some());
    request.keep_steps.len() as u64 * (1 + average) + average
}

impl PricedRun {
    /// The quote as the scientist sees it.
    pub(crate) fn to_wire(&self, ledger: &Ledger, machine: Option<Throughput>) -> v1::Quote {
        let trainable_parameters = plan::trainable_parameters(&self.graph);
        v1::Quote {
            run_digest: self.run_digest.as_bytes().to_vec(),
            spec: Some(self.resolved_spec()),
            noise_multiplier: self.plan.noise_multiplier,
            loss_noise_multiplier: self.plan.loss_noise_multiplier.unwrap_or(0.0),
            joint_noise_multiplier: self.plan.joint_noise_multiplier,
            noise_slack: self.request.noise_mode.most_slack(),
            sample_rate: self.plan.sample_rate,
            declared_size: self.plan.declared_size,
            truncated_batch_size: self.plan.truncated_batch_size(),
            micro_batches: self.plan.micro_batches,
            physical_batch_size: self.plan.physical_batch_size,
            memory_bytes: self.memory_bytes,
            kept_bytes: self.kept_bytes,
            noise_ratio: self.plan.noise_ratio,
            trainable_parameters,
            charges: charges::to_wire(ledger, &self.charges),
            expires_unix_ms: self.expires_unix_ms,
            graph_digest: self.graph.digest().to_vec(),
            warnings: self.plan.warnings(&self.request, trainable_parameters),
            expected_seconds: machine.map_or(0.0, |machine| {
                machine.expected_seconds(
                    &self.graph,
                    self.request.noise_mode,
                    self.plan.physical_batch_size,
                    self.plan.micro_batches,
                    self.request.steps,
                )
            }),
        }
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
            steps: self.request.steps,
            noise_mode: match self.request.noise_mode {
                bastionai_wire::NoiseMode::Standard => NoiseMode::Standard,
                bastionai_wire::NoiseMode::Hardened => NoiseMode::Hardened,
            },
            charges: charges::charges(&self.charges),
        }
    }

    /// The trainer's job. `rows` are filled in when the records are opened: they are private. `class_key` is the run's own,
    /// and of use with bands only.
    pub(crate) fn job(&self, rows: &[u64], threads: u32, class_key: ClassKey) -> Job {
        let datasets = self.declared_sizes.iter().zip(rows);
        Job {
            version: TRAINER_PROTOCOL_VERSION,
            graph: self.graph.to_bytes(),
            datasets: datasets
                .map(|(&capacity, &rows)| DatasetShape { capacity, rows })
                .collect(),
            units: self.units.clone(),
            steps: self.request.steps,
            start_step: 0,
            checkpoint_ms: 0, // the executor's to say
            sample_threshold: self.plan.sample_threshold,
            expected_batch_size: self.plan.sample_rate * self.plan.declared_size as f64,
            physical_batch_size: self.plan.physical_batch_size,
            micro_batches: self.plan.micro_batches,
            max_grad_norm: self.request.max_grad_norm,
            clipping: self.request.clipping,
            compute: self.request.compute,
            noise_mode: self.request.noise_mode,
            noise_multiplier: self.plan.noise_multiplier,
            loss: self.loss_release(),
            optimizer: self.request.optimizer,
            schedule: self.request.schedule,
            average: self.request.average,
            band: (self.plan.band.bands() > 1).then(|| Band {
                numerators: self.plan.band.numerators().to_vec(),
                class_key,
            }),
            keep_steps: self.request.keep_steps.clone(),
            threads,
        }
    }

    fn loss_release(&self) -> Option<LossRelease> {
        let (loss, noise_multiplier) = (self.request.loss?, self.plan.loss_noise_multiplier?);
        Some(LossRelease {
            max_loss: loss.max_loss,
            noise_multiplier,
        })
    }

    fn resolved_spec(&self) -> v1::RunSpec {
        let request = &self.request;
        v1::RunSpec {
            model_id: request.model.as_bytes().to_vec(),
            dataset_ids: request.datasets.iter().map(|id| id.as_bytes().to_vec()).collect(),
            input_columns: request.input_columns.clone(),
            model_name: request.model_name.clone(),
            batch_size: request.batch_size,
            max_batch_size: self.plan.physical_batch_size,
            steps: request.steps,
            max_grad_norm: request.max_grad_norm,
            clipping: v1::Clipping::from(request.clipping).into(),
            compute: v1::Compute::from(request.compute).into(),
            noise_mode: v1::NoiseMode::from(request.noise_mode).into(),
            privacy: Some(match request.privacy {
                Privacy::TargetEpsilon(epsilon) => v1::run_spec::Privacy::TargetEpsilon(epsilon),
                Privacy::NoiseMultiplier(multiplier) => v1::run_spec::Privacy::NoiseMultiplier(multiplier),
            }),
            target_delta: self.plan.amount.delta.to_f64(),
            max_loss: request.loss.map_or(0.0, |loss| loss.max_loss),
            loss_share: request.loss.map_or(0.0, |loss| loss.share),
            optimizer: Some(request.optimizer.into()),
            schedule: Some(request.schedule.into()),
            initial_weights: request.initial_weights.map(WeightsSource::to_wire),
            ema_decay: match request.average {
                Some(Average::Exponential { decay }) => decay,
                _ => 0.0,
            },
            tail_average: match request.average {
                Some(Average::Tail { share }) => share,
                _ => 0.0,
            },
            bands: self.plan.band.bands() as u32,
            plan_bands: false,
            keep_steps: request.keep_steps.clone(),
            keep_every: 0,
            // Nothing to choose where the record is the unit.
            records_per_unit: if self.units.are_records() {
                0
            } else {
                self.units.records_per_unit
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{mlp, request};
    use bastionai_privacy::event::DpEvent;

    const RECORDS: [u64; 1] = [100_000];

    /// A run of 4096 records a step, under a limit of memory.
    fn planned(asked: Option<u32>, allowed: u64) -> Result<(Plan, u64), Failure> {
        let request = RunRequest {
            max_batch_size: asked,
            ..request(4096, 10, Privacy::NoiseMultiplier(1.0), None)
        };
        let delta = "1e-6".parse().expect("a constant");
        let sizes = Sizes {
            records: &RECORDS,
            units: RECORDS[0],
        };
        fitting_plan(&request, &mlp(), sizes, delta, allowed)
    }

    fn bytes_at(physical_batch_size: u32) -> u64 {
        let needs = Needs {
            graph: &mlp(),
            declared_sizes: &RECORDS,
            records_per_unit: 1,
            compute: bastionai_wire::Compute::Float32,
            noise_mode: bastionai_wire::NoiseMode::Standard,
        };
        needs.memory(physical_batch_size).total()
    }

    fn refusal(asked: Option<u32>, allowed: u64) -> String {
        let failure = planned(asked, allowed).err().unwrap();
        tonic::Status::from(failure).message().to_owned()
    }

    #[test]
    fn the_physical_batch_is_what_fits_into_the_memory_of_a_trainer_and_the_plan_pays_for_it() {
        let (roomy, _) = planned(None, u64::MAX).unwrap();
        assert!(
            (200..=plan::DEFAULT_PHYSICAL_BATCH).contains(&roomy.physical_batch_size),
            "equal micro-batches of at most 256"
        );
        for fitting in [1, 7, 100] {
            let limit = bytes_at(fitting + 1) - 1;
            let (tight, bytes) = planned(None, limit).unwrap();
            assert!(
                tight.physical_batch_size <= fitting && bytes <= limit,
                "{fitting}"
            );
            assert!(
                tight.truncated_batch_size() >= 4096,
                "the step is as large, in more micro-batches: {}",
                tight.truncated_batch_size()
            );
            let DpEvent::SelfComposed { event, .. } = &tight.event else {
                panic!("{:?}", tight.event)
            };
            let DpEvent::TruncatedSubsampledGaussian {
                truncated_batch_size, ..
            } = **event
            else {
                panic!("{event:?}")
            };
            assert_eq!(truncated_batch_size, tight.truncated_batch_size());
        }
    }

    #[test]
    fn bands_that_were_asked_for_are_counted_and_refused_where_they_do_not_fit() {
        let with = |bands, batch: u64, allowed| {
            let request = RunRequest {
                bands: bastionai_wire::Bands::Fixed(bands),
                ..request(batch, 300, Privacy::NoiseMultiplier(1.0), None)
            };
            let delta = "1e-6".parse().expect("a constant");
            let sizes = Sizes {
                records: &RECORDS,
                units: RECORDS[0],
            };
            fitting_plan(&request, &mlp(), sizes, delta, allowed)
        };
        let parameters = plan::trainable_parameters(&mlp());
        for bands in [1, 101] {
            let (plan, bytes) = with(bands, 64, u64::MAX).unwrap();
            let noise = u64::from(bands - 1) * 8 * parameters;
            assert_eq!(bytes, bytes_at(plan.physical_batch_size) + noise, "{bands} bands");
        }
        let refused = with(200, 64, 199 * 8 * parameters - 1).err().unwrap();
        let said = tonic::Status::from(refused).message().to_owned();
        assert!(said.contains("fewer bands"), "{said}");
    }

    #[test]
    fn a_batch_that_was_asked_for_and_does_not_fit_is_refused_with_the_one_that_would() {
        let said = refusal(Some(4096), bytes_at(100));
        assert!(said.contains("max_batch_size 4096"), "{said}");
        let fitting = said.split("choose max_batch_size ").nth(1).unwrap();
        let fitting: u32 = fitting.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(fitting, 100, "{said}");
        assert!(planned(Some(fitting), bytes_at(100)).is_ok());
    }

    #[test]
    fn a_model_of_which_not_one_record_fits_is_refused_with_what_takes_the_memory() {
        for asked in [None, Some(16)] {
            let said = refusal(asked, bytes_at(1) - 1);
            for part in [
                "even one record at a time",
                "the records of all datasets",
                "the parameters",
                "libtorch",
                "train a smaller model",
            ] {
                assert!(said.contains(part), "{part}: {said}");
            }
        }
    }
}
