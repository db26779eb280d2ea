//! One run on a pool slot: open records, supervise the trainer, enter the end in the ledger.

use super::supervise::{Ended, Frames, Order, StateShape, Timing, Why, supervise};
use super::{LiveRun, StopWhy, record::Record};
use crate::errors::{Failure, chain};
use crate::log::{Event, Hex};
use crate::models::Model;
use crate::price;
use crate::priced::Priced;
use crate::state::Server;
use crate::warm_start;
use bastionai_graph::contract::DataContract;
use bastionai_graph::dtype::DType;
use bastionai_graph::typed::{Parameter, TypedGraph};
use bastionai_ledger::{Outcome, RefundReason, RunStatus, WeightTensor};
use bastionai_privacy::histogram::HistogramShape;
use bastionai_vault::{RunEnd, Weights};
use bastionai_wire::trainer::{Job, Task};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// Executes a reserved run to its last ledger entry. Whatever happens, nobody hears more than `failed` (G4).
pub(crate) fn execute(server: &Server, live: &LiveRun, priced: &Priced, model: &Model) {
    let outcome = match prepare(server, live, priced, model) {
        Ok((order, mut record)) => {
            Event::TrainerStarted {
                run: Hex(live.id.as_bytes()),
            }
            .emit();
            supervise(&order, &mut record, &live.stop)
        }
        Err(why) => Err(why),
    };
    let ended = match outcome {
        Ok(Ended::Finished(state)) => succeed(server, live, priced, &state),
        Ok(Ended::Paused) => fail(server, live, &Why::Cancelled),
        Err(why) => fail(server, live, &why),
    };
    if let Err(failure) = ended {
        // The entry is missing: the next boot settles the run as failed and charged, or refunds it.
        let chain = failure.chain().unwrap_or_default();
        Event::RunFault {
            run: Hex(live.id.as_bytes()),
            chain: &chain,
        }
        .emit();
    }
}

/// Settles a run whose supervisor panicked.
pub(crate) fn after_panic(server: &Server, live: &LiveRun) {
    Event::RunFault {
        run: Hex(live.id.as_bytes()),
        chain: "panicked",
    }
    .emit();
    if let Err(failure) = settle(server, live, Outcome::Failed, RefundReason::NotStartable) {
        let chain = failure.chain().unwrap_or_default();
        Event::RunFault {
            run: Hex(live.id.as_bytes()),
            chain: &chain,
        }
        .emit();
    }
}

fn prepare<'a>(
    server: &'a Server,
    live: &'a LiveRun,
    priced: &Priced,
    model: &Model,
) -> Result<(Order, Record<'a>), Why> {
    if live.stop.why().is_some() {
        return Err(Why::Cancelled);
    }
    server
        .boot
        .trainer
        .check_unchanged()
        .map_err(|error| Why::Prepare(Box::new(error)))?;
    let archive =
        price::read_archive(&model.archive, server.config.limits.model_bytes).map_err(prepare_failed)?;
    let initial = warm_start::load(server, priced.weights(), priced.scientist()).map_err(prepare_failed)?;
    let tensors = warm_start::initial_tensors(&archive, priced.graph(), initial.as_ref());
    let tensors = tensors.map_err(prepare_failed)?;
    let (rows, frames) = open_records(server, priced)?;
    let limits = &server.config.limits;
    let trainer = &server.config.trainer;
    let threads = trainer.threads_for(limits.concurrent_runs);
    let (task, groups) = match priced {
        Priced::Training(run) => {
            let job = Job {
                checkpoint_ms: trainer.commit_ms,
                ..run.job(&rows, threads)
            };
            let groups = job.state_groups();
            (Task::Train(job), groups)
        }
        Priced::Evaluation(evaluation) => (Task::Evaluate(evaluation.job(&rows, threads)), 1),
    };
    let order = Order {
        program: server.boot.trainer.program.clone(),
        task,
        tensors: Arc::new(tensors),
        state: results(priced)
            .into_iter()
            .map(|(_, shape)| shape)
            .collect::<Vec<_>>()
            .repeat(groups),
        timing: Timing {
            start_timeout: Duration::from_millis(trainer.start_timeout_ms),
            step_timeout: Duration::from_millis(match priced {
                Priced::Training(_) => trainer.step_timeout_ms,
                // One pass over everything, of which nothing is said before its end.
                Priced::Evaluation(_) => trainer.run_timeout_ms,
            }),
            run_timeout: Duration::from_millis(trainer.run_timeout_ms),
            stop_timeout: Duration::from_millis(trainer.drain_timeout_ms),
        },
        memory_bytes: trainer.memory_bytes,
    };
    Ok((order, Record::new(server, live, frames)))
}

/// Reads every dataset whole, whatever will be sampled (rule D8): true row counts, and one frame per dataset
/// and graph input.
fn open_records(server: &Server, priced: &Priced) -> Result<(Vec<u64>, Frames), Why> {
    let mut rows = Vec::new();
    let mut frames = Frames::new();
    for id in priced.datasets() {
        let contract = server.vault.read(|ledger| {
            ledger
                .dataset(id)
                .map(|dataset| DataContract::parse_json(dataset.contract_json().as_bytes()))
        });
        let contract = contract.ok_or_else(|| Why::Prepare("a dataset of the run is gone".into()))?;
        let contract = contract.map_err(|error| Why::Prepare(Box::new(error)))?;
        let mut data = server
            .vault
            .read_dataset(id)
            .map_err(|error| Why::Prepare(Box::new(error)))?;
        rows.push(data.rows);
        for (at, input) in priced.graph().inputs().iter().enumerate() {
            let column = contract
                .columns
                .iter()
                .position(|column| column.name == input.column);
            let column = column.ok_or_else(|| Why::Prepare("a column of the run is gone".into()))?;
            let used_again = priced.graph().inputs()[at + 1..]
                .iter()
                .any(|later| later.column == input.column);
            let frame = if used_again {
                data.columns[column].clone()
            } else {
                std::mem::take(&mut data.columns[column])
            };
            frames.push(frame);
        }
    }
    Ok((rows, frames))
}

/// Seals the weights and commits, in one step; only then are they releasable.
fn succeed(
    server: &Server,
    live: &LiveRun,
    priced: &Priced,
    state: &[Zeroizing<Vec<u8>>],
) -> Result<(), Failure> {
    let run = Hex(live.id.as_bytes());
    let started = server.vault.read(|ledger| ledger.started(&live.id));
    let Some(started) = started else {
        return settle(server, live, Outcome::Failed, RefundReason::NotStartable);
    };
    let mut tensors: Vec<WeightTensor> = results(priced).into_iter().map(|(tensor, _)| tensor).collect();
    let results = state.iter().take(tensors.len()).map(|bytes| &bytes[..]);
    let mut data = results.collect::<Vec<_>>().concat();
    if let Some((tensor, bytes)) = facts(priced) {
        tensors.push(tensor);
        data.extend(bytes);
    }
    let weights = Weights {
        tensors,
        data: data.into(),
    };
    let committed = server
        .vault
        .commit_run(started, RunEnd::Succeeded(weights), server.now_unix_ms());
    if let Err(error) = committed {
        Event::RunFault {
            run,
            chain: &chain(&error),
        }
        .emit();
        return settle(server, live, Outcome::Failed, RefundReason::NotStartable);
    }
    Event::RunEnded {
        run,
        outcome: "succeeded",
        why: "all steps done",
    }
    .emit();
    Ok(())
}

fn fail(server: &Server, live: &LiveRun, why: &Why) -> Result<(), Failure> {
    let cancelled = matches!(why, Why::Cancelled);
    let outcome = if cancelled {
        Outcome::Cancelled
    } else {
        Outcome::Failed
    };
    let reason = match live.stop.why().filter(|_| cancelled) {
        Some(StopWhy::Cancel) => RefundReason::Cancelled,
        Some(_) => RefundReason::ServerStopped,
        None => RefundReason::NotStartable,
    };
    if why.is_loss() {
        Event::TrainerLost {
            run: Hex(live.id.as_bytes()),
            why: why.name(),
        }
        .emit();
    }
    if !cancelled {
        Event::RunFault {
            run: Hex(live.id.as_bytes()),
            chain: &chain(why),
        }
        .emit();
    }
    settle(server, live, outcome, reason)?;
    let word = if cancelled { "cancelled" } else { "failed" };
    Event::RunEnded {
        run: Hex(live.id.as_bytes()),
        outcome: word,
        why: why.name(),
    }
    .emit();
    Ok(())
}

/// Ends a run without weights: charged in full if the ledger says that it started (D5), else refunded.
fn settle(server: &Server, live: &LiveRun, outcome: Outcome, reason: RefundReason) -> Result<(), Failure> {
    let now_unix_ms = server.now_unix_ms();
    let (reservation, started) = server
        .vault
        .read(|ledger| (ledger.reservation(&live.id), ledger.started(&live.id)));
    if let Some(started) = started {
        let end = if outcome == Outcome::Cancelled {
            RunEnd::Cancelled
        } else {
            RunEnd::Failed
        };
        let _receipt = server.vault.commit_run(started, end, now_unix_ms)?;
    } else if let Some(reservation) = reservation {
        server.vault.refund_run(reservation, reason, now_unix_ms)?;
    }
    Ok(())
}

fn prepare_failed(failure: Failure) -> Why {
    let text = failure
        .chain()
        .unwrap_or_else(|| failure.reason.name().to_owned());
    Why::Prepare(text.into())
}

/// What the trainer hands over at the end, in order: trained parameters, or histograms.
fn results(priced: &Priced) -> Vec<(WeightTensor, StateShape)> {
    match priced {
        Priced::Training(run) => trainable(&run.graph)
            .map(|parameter| (weight_tensor(parameter), state_shape(parameter)))
            .collect(),
        Priced::Evaluation(evaluation) => evaluation
            .histograms
            .shapes()
            .into_iter()
            .map(histogram)
            .collect(),
    }
}

/// Public facts that are sealed and released with the results: how much noise the counts of a histogram have.
fn facts(priced: &Priced) -> Option<(WeightTensor, Vec<u8>)> {
    let Priced::Evaluation(evaluation) = priced else {
        return None;
    };
    let noise = evaluation.noise_standard_deviation().to_le_bytes().to_vec();
    let tensor = WeightTensor {
        names: vec!["noise_standard_deviation".into()],
        dtype: DType::F64.torch_name().to_owned(),
        shape: Vec::new(),
        size_bytes: noise.len() as u64,
    };
    Some((tensor, noise))
}

fn histogram(shape: HistogramShape) -> (WeightTensor, StateShape) {
    let dtype = DType::I64;
    let bytes = shape.counts() * dtype.size_bytes() as u64;
    let tensor = WeightTensor {
        names: vec![shape.name],
        dtype: dtype.torch_name().to_owned(),
        shape: vec![shape.rows, shape.columns],
        size_bytes: bytes,
    };
    let float_bytes = None;
    (tensor, StateShape { bytes, float_bytes })
}

fn trainable(graph: &TypedGraph) -> impl Iterator<Item = &Parameter> {
    graph.parameters().iter().filter(|parameter| parameter.trainable)
}

fn weight_tensor(parameter: &Parameter) -> WeightTensor {
    WeightTensor {
        names: parameter.names.clone(),
        dtype: parameter.dtype.torch_name().to_owned(),
        shape: parameter.shape.clone(),
        size_bytes: state_shape(parameter).bytes,
    }
}

fn state_shape(parameter: &Parameter) -> StateShape {
    let float_bytes = parameter.dtype.size_bytes();
    StateShape {
        bytes: crate::plan::elements(&parameter.shape).saturating_mul(float_bytes as u64),
        float_bytes: Some(float_bytes),
    }
}

/// Whether a run waits for its start.
pub(crate) fn is_queued(server: &Server, run: &bastionai_ledger::RunId) -> bool {
    server.vault.read(|ledger| {
        ledger
            .run(run)
            .is_some_and(|run| run.status() == RunStatus::Reserved)
    })
}
