//! One run on a trainer: read its order and its last checkpoint, open records, supervise, enter the end in the ledger.

use super::LiveRun;
use super::order::RunOrder;
use super::record::Record;
use super::stop::StopWhy;
use super::supervise::{Ended, Frames, Order, StateTensors, Timing, Why, supervise};
use crate::config::TrainerConfig;
use crate::errors::{Failure, chain};
use crate::log::{Event, Hex};
use crate::state::Server;
use crate::units::{self, Identifiers};
use bastionai_graph::contract::DataContract;
use bastionai_ledger::{RefundReason, RunId};
use bastionai_vault::{RunEnd, Weights};
use bastionai_wire::trainer::{DatasetShape, Task};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// Whether a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// In the ledger, or not at all: then the next boot finds it open.
    Ended,
    /// It goes on later.
    Paused,
}

/// Executes an open run to its last ledger entry, or until it pauses. Whatever happens, nobody hears more than
/// `failed` (G4).
pub(crate) fn execute(server: &Server, live: &LiveRun) -> End {
    let ended = match work(server, live) {
        Ok(Some(weights)) => succeed(server, live, weights),
        Ok(None) => Ok(End::Paused),
        // The ledger refuses all progress of a suspended run, also before its trainer hears of it.
        Err(Why::NotDurable(_)) if is_suspended(server, &live.id) => Ok(End::Paused),
        Err(why) => fail(server, live, &why).map(|()| End::Ended),
    };
    match ended {
        Ok(end) => {
            if end == End::Paused {
                let run = Hex(live.id.as_bytes());
                Event::RunPaused { run }.emit();
            }
            end
        }
        Err(failure) => {
            // The entry is missing: the next boot goes on with the run, or settles it.
            fault(live, &failure.chain().unwrap_or_default());
            End::Ended
        }
    }
}

/// Settles a run whose supervisor panicked.
pub(crate) fn after_panic(server: &Server, live: &LiveRun) {
    fault(live, "panicked");
    if let Err(failure) = settle(server, &live.id, Finish::Failed) {
        fault(live, &failure.chain().unwrap_or_default());
    }
}

/// The trained weights, or `None` when the run paused.
fn work(server: &Server, live: &LiveRun) -> Result<Option<Weights>, Why> {
    match live.stop.why() {
        Some(StopWhy::Cancel) => {
            return Err(Why::Cancelled { started_steps: None });
        }
        Some(StopWhy::Suspend | StopWhy::Drain) => return Ok(None),
        None => {}
    }
    let stored = server.vault.read_order(&live.id).map_err(prepare)?;
    let order = RunOrder::parse(&stored).map_err(prepare)?;
    drop(stored);
    let (start_step, state) = last_state(server, live, &order)?;
    let state = if start_step == order.steps() {
        // All steps were taken; only the end is missing.
        state
    } else {
        let (command, mut record) = command(server, live, &order, start_step, state)?;
        let run = Hex(live.id.as_bytes());
        Event::TrainerStarted { run }.emit();
        let started_before = server.vault.read(|ledger| ledger.started(&live.id).is_some());
        let ended = supervise(&command, &mut record, &live.stop);
        match ended.map_err(|why| {
            if started_before {
                why.of_a_later_trainer()
            } else {
                why
            }
        })? {
            Ended::Finished(state) => state,
            Ended::Paused => return Ok(None),
        }
    };
    Ok(Some(order.results(&state)))
}

/// Steps released so far, and the state after them.
fn last_state(server: &Server, live: &LiveRun, order: &RunOrder) -> Result<(u64, StateTensors), Why> {
    let Some(checkpoint) = server.vault.read_checkpoint(&live.id).map_err(prepare)? else {
        return Ok((0, Vec::new()));
    };
    let state = order.cut(&checkpoint.data);
    Ok((
        checkpoint.step,
        state.ok_or_else(|| Why::Prepare("a checkpoint of other tensors".into()))?,
    ))
}

fn command<'a>(
    server: &'a Server,
    live: &'a LiveRun,
    order: &RunOrder,
    start_step: u64,
    state: StateTensors,
) -> Result<(Order, Record<'a>), Why> {
    server.boot.trainer.check_unchanged().map_err(prepare)?;
    let (datasets, frames) = open_records(server, order)?;
    let trainer = &server.config.trainer;
    let shapes = order.state();
    let state_bytes = shapes.iter().map(|shape| shape.bytes).sum();
    let task = order.task(datasets, start_step, checkpoint_ms(trainer, state_bytes));
    let step_timeout_ms = match task {
        Task::Train(_) => trainer.step_timeout_ms,
        // One pass over everything, of which nothing is said before its end.
        Task::Evaluate(_) => trainer.run_timeout_ms,
    };
    let tensors = order.tensors.iter().cloned().map(Zeroizing::new).chain(state);
    let command = Order {
        program: server.boot.trainer.program.clone(),
        device: server.boot.trainer.device,
        task,
        tensors: Arc::new(tensors.collect()),
        state: shapes,
        timing: Timing {
            start_timeout: Duration::from_millis(trainer.start_timeout_ms),
            step_timeout: Duration::from_millis(step_timeout_ms),
            run_timeout: Duration::from_millis(trainer.run_timeout_ms),
            stop_timeout: Duration::from_millis(trainer.drain_timeout_ms),
        },
        // A boot that finds less memory than the one that priced the run keeps that boot's word.
        memory_bytes: server
            .trainer_memory_bytes
            .max(order.memory_bytes(&declared_sizes(server, order))),
    };
    Ok((
        command,
        Record::new(server, live, frames, start_step, order.keeping()),
    ))
}

/// Public sizes of the run's datasets.
fn declared_sizes(server: &Server, order: &RunOrder) -> Vec<u64> {
    server.vault.read(|ledger| {
        let datasets = order.datasets().iter().filter_map(|id| ledger.dataset(id));
        datasets.map(|dataset| dataset.declared_size()).collect()
    })
}

/// Small states go with every commit; large ones cost seconds, and wait for a time of their own. Public: it depends on
/// the model's size and the configuration alone.
fn checkpoint_ms(trainer: &TrainerConfig, state_bytes: u64) -> u64 {
    if state_bytes <= SMALL_STATE_BYTES {
        trainer.commit_ms
    } else {
        trainer.checkpoint_ms
    }
}

/// Reads every dataset whole, whatever will be sampled (rule D8): true row counts, one frame per dataset and graph input,
/// and one of the units' numbers where a dataset has units. Identifiers go no further.
fn open_records(server: &Server, order: &RunOrder) -> Result<(Vec<DatasetShape>, Frames), Why> {
    let mut shapes = Vec::new();
    let mut frames = Vec::new();
    let mut identifiers = Vec::new();
    let (inputs, units) = (order.graph.inputs(), order.units());
    for (dataset, id) in order.datasets().iter().enumerate() {
        let contract = server.vault.read(|ledger| {
            ledger
                .dataset(id)
                .map(|dataset| DataContract::parse_json(dataset.contract_json().as_bytes()))
        });
        let contract = contract.ok_or_else(|| Why::Prepare("a dataset of the run is gone".into()))?;
        let contract = contract.map_err(prepare)?;
        let mut data = server.vault.read_dataset(id).map_err(prepare)?;
        shapes.push(DatasetShape {
            capacity: data.declared_size,
            rows: data.rows,
        });
        let mut own = Frames::new();
        for (at, input) in inputs.iter().enumerate() {
            let column = contract
                .columns
                .iter()
                .position(|column| column.name == input.column);
            let column = column.ok_or_else(|| Why::Prepare("a column of the run is gone".into()))?;
            let used_again = inputs[at + 1..].iter().any(|later| later.column == input.column);
            let frame = if used_again {
                data.columns[column].clone()
            } else {
                std::mem::take(&mut data.columns[column])
            };
            own.push(frame);
        }
        frames.push(own);
        let Some(group) = units.of_datasets.get(dataset).copied().flatten() else {
            continue;
        };
        let width = contract
            .unit_column()
            .map_or(0, |unit| unit.dtype.size_bytes() as usize);
        let bytes = data.columns.get_mut(contract.columns.len()).filter(|_| width > 0);
        let bytes = bytes.ok_or_else(|| Why::Prepare("a dataset of the run has no units".into()))?;
        identifiers.push(Identifiers {
            dataset,
            group,
            rows: data.rows,
            width,
            bytes: std::mem::take(bytes),
        });
    }
    for (dataset, numbers) in units::number(&identifiers, &units, order.unit_key()).map_err(prepare)? {
        frames[dataset].push(numbers);
    }
    Ok((shapes, frames.into_iter().flatten().collect()))
}

/// Seals the weights and commits, in one step; only then are they releasable. A cancellation that comes before this
/// entry is too late only once the entry is durable.
fn succeed(server: &Server, live: &LiveRun, weights: Weights) -> Result<End, Failure> {
    if live.stop.why() == Some(StopWhy::Cancel) {
        drop(weights);
        let all = Why::Cancelled { started_steps: None };
        return fail(server, live, &all).map(|()| End::Ended);
    }
    let Some(started) = server.vault.read(|ledger| ledger.started(&live.id)) else {
        settle(server, &live.id, Finish::Failed)?;
        return Ok(End::Ended);
    };
    let committed = server
        .vault
        .commit_run(started, RunEnd::Succeeded(weights), server.now_unix_ms());
    if let Err(error) = committed {
        if is_suspended(server, &live.id) {
            return Ok(End::Paused);
        }
        fault(live, &chain(&error));
        settle(server, &live.id, Finish::Failed)?;
        return Ok(End::Ended);
    }
    Event::RunEnded {
        run: Hex(live.id.as_bytes()),
        outcome: "succeeded",
        why: "all steps done",
    }
    .emit();
    Ok(End::Ended)
}

fn fail(server: &Server, live: &LiveRun, why: &Why) -> Result<(), Failure> {
    let (word, finish) = match *why {
        Why::Cancelled { started_steps } => ("cancelled", Finish::Cancelled { started_steps }),
        _ => {
            fault(live, &chain(why));
            ("failed", Finish::Failed)
        }
    };
    if why.is_loss() {
        Event::TrainerLost {
            run: Hex(live.id.as_bytes()),
            why: why.name(),
        }
        .emit();
    }
    settle(server, &live.id, finish)?;
    Event::RunEnded {
        run: Hex(live.id.as_bytes()),
        outcome: word,
        why: why.name(),
    }
    .emit();
    Ok(())
}

/// How a run ends without weights.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Finish {
    /// Something went wrong: charged in full.
    Failed,
    /// Somebody wanted it.
    Cancelled {
        /// Steps started at most, if they were counted; whatever came of them is gone.
        started_steps: Option<u64>,
    },
}

/// Ends a run without weights: charged if the ledger says that it started (D5), else refunded.
pub(crate) fn settle(server: &Server, run: &RunId, finish: Finish) -> Result<(), Failure> {
    let now_unix_ms = server.now_unix_ms();
    let (reservation, started) = server
        .vault
        .read(|ledger| (ledger.reservation(run), ledger.started(run)));
    if let Some(started) = started {
        let end = match finish {
            Finish::Failed => RunEnd::Failed,
            Finish::Cancelled {
                started_steps: Some(started_steps),
            } => RunEnd::Stopped { started_steps },
            Finish::Cancelled { started_steps: None } => RunEnd::Cancelled,
        };
        let _receipt = server.vault.commit_run(started, end, now_unix_ms)?;
    } else if let Some(reservation) = reservation {
        let reason = match finish {
            Finish::Failed => RefundReason::NotStartable,
            Finish::Cancelled { .. } => RefundReason::Cancelled,
        };
        server.vault.refund_run(reservation, reason, now_unix_ms)?;
    }
    Ok(())
}

fn is_suspended(server: &Server, run: &RunId) -> bool {
    server.vault.read(|ledger| {
        ledger
            .run(run)
            .is_some_and(|run| run.is_open() && run.is_suspended())
    })
}

fn fault(live: &LiveRun, chain: &str) {
    let run = Hex(live.id.as_bytes());
    Event::RunFault { run, chain }.emit();
}

fn prepare(error: impl std::error::Error + Send + Sync + 'static) -> Why {
    Why::Prepare(Box::new(error))
}

/// A state up to this size is sealed and synced in tens of milliseconds (docs/design.md).
const SMALL_STATE_BYTES: u64 = 16 << 20;
