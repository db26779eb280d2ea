//! StartRun, CancelRun, SuspendRun, ResumeRun, ListRuns, WatchRun.

use super::{Replies, blocking};
use crate::acceptor::Peer;
use crate::convert;
use crate::errors::{Failure, Reason};
use crate::governance;
use crate::log::{Event, Hex};
use crate::priced::Priced;
use crate::quotes::QuoteGone;
use crate::runs::{Cancelling, Finish, RunOrder, settle};
use crate::state::Server;
use crate::storage;
use crate::warm_start;
use bastionai_ledger::{Ledger, Refusal, RunId};
use bastionai_vault::TransactError;
use bastionai_wire::v1;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Starts a quoted run: reserve durably with all it needs, then queue. The same quote started again is the same run.
pub(crate) async fn start(
    server: Arc<Server>,
    peer: &Peer,
    request: v1::StartRunRequest,
) -> Result<v1::Run, Failure> {
    server.accepts_work()?;
    let scientist = peer.principal;
    blocking(move || {
        let now_unix_ms = server.now_unix_ms();
        let priced = server
            .quotes
            .find(scientist, &request.run_digest, now_unix_ms)
            .map_err(quote_gone)?;
        let _one_at_a_time = server.runs.changing();
        let known = server.vault.read(|ledger| {
            let run = ledger.runs().find(|run| run.run_digest() == priced.run_digest());
            run.map(bastionai_ledger::Run::id)
        });
        if let Some(run) = known {
            return show(&server, &run);
        }
        server.vault.read(|ledger| {
            let (datasets, kind) = (priced.datasets(), priced.kind());
            governance::usable(ledger, datasets, &scientist, kind, now_unix_ms).map(drop)
        })?;
        let place = server.runs.place(scientist)?;
        let run = server.vault.new_run_id()?;
        reserve(&server, &priced, run, now_unix_ms)?;
        Event::RunQueued {
            run: Hex(run.as_bytes()),
            scientist,
        }
        .emit();
        server.runs.launch(&server, run, scientist, place);
        show(&server, &run)
    })
    .await
}

pub(crate) fn reserve(server: &Server, priced: &Priced, run: RunId, now_unix_ms: u64) -> Result<(), Failure> {
    let scientist = priced.scientist();
    let model = server.models.held(scientist, priced.model().as_bytes())?;
    let initial = warm_start::load(server, priced.weights(), scientist)?;
    let limits = &server.config.limits;
    let threads = server.config.trainer.threads_for(limits.concurrent_runs);
    let order = RunOrder::new(priced, &model, initial.as_ref(), limits, threads)?;
    let head = order.head().map_err(Failure::internal)?;
    let tensors = order.tensors.iter().map(|tensor| &tensor[..]);
    let parts: Vec<&[u8]> = std::iter::once(&head[..]).chain(tensors).collect();
    server.storage.check_room(
        stored_by(&order, &parts, priced),
        storage::free_bytes(&server.config.data_dir)?,
    )?;
    let order = bastionai_vault::RunOrder {
        conditions: server.boot.conditions,
        parts: &parts,
    };
    let _reservation = priced.reserve(&server.vault, run, server.boot.id, order, now_unix_ms)?;
    Ok(())
}

/// What a run may store at once: its order, two checkpoints (the new one is written before the old one goes), its
/// results and the weights it keeps.
fn stored_by(order: &RunOrder, parts: &[&[u8]], priced: &Priced) -> u64 {
    let state: u64 = order.state().iter().map(|shape| shape.bytes).sum();
    let order: u64 = parts.iter().map(|part| part.len() as u64).sum();
    order
        .saturating_add(state.saturating_mul(3))
        .saturating_add(priced.kept_bytes())
}

/// Stops a run for good. Unstarted it costs nothing; started it stays charged, in full or, where a dataset composes by Rényi
/// divergences and a trainer was seen to work on it, for the steps started; its weights are destroyed (rule D5). Answers when the end is in the ledger; a run that ended before answers as it ended.
pub(crate) async fn cancel(
    server: Arc<Server>,
    peer: &Peer,
    request: v1::CancelRunRequest,
) -> Result<v1::Run, Failure> {
    let run = server.vault.read(|ledger| {
        let run = governance::visible_run(ledger, &request.run_id, &peer.principal)?;
        governance::may_cancel(ledger, run, &peer.principal)?;
        Ok::<_, Failure>(run.id())
    })?;
    loop {
        let notices = server.runs.watch(&run);
        let shared = Arc::clone(&server);
        let ended = blocking(move || {
            let _one_at_a_time = shared.runs.changing();
            match shared.runs.cancel(&run) {
                Cancelling::Stopping => Ok(false),
                Cancelling::Idle => {
                    end_idle(&shared, &run)?;
                    Ok(true)
                }
            }
        })
        .await?;
        if ended {
            return show(&server, &run);
        }
        still(&server, &run, notices).await;
    }
}

/// Ends a run that no trainer works on; one that has ended already stays as it is.
fn end_idle(server: &Server, run: &RunId) -> Result<(), Failure> {
    let open = |ledger: &Ledger| ledger.run(run).is_some_and(bastionai_ledger::Run::is_open);
    if server.vault.read(open) {
        settle(server, run, Finish::Cancelled { started_steps: None })?;
        Event::RunEnded {
            run: Hex(run.as_bytes()),
            outcome: "cancelled",
            why: "cancelled",
        }
        .emit();
    }
    server.runs.forget(run);
    Ok(())
}

/// Stops a run for the time being, at the word of an owner of one of its datasets. Once this answers, nothing more of
/// it is released and no trainer works on it, in this boot or a later one, until that owner resumes it.
pub(crate) async fn suspend(
    server: Arc<Server>,
    peer: &Peer,
    request: v1::SuspendRunRequest,
) -> Result<v1::Run, Failure> {
    let by = peer.principal;
    let run = server.vault.read(|ledger| {
        let run = governance::visible_run(ledger, &request.run_id, &by)?;
        governance::may_suspend(ledger, run, &by)?;
        Ok::<_, Failure>(run.id())
    })?;
    let shared = Arc::clone(&server);
    blocking(move || {
        let _one_at_a_time = shared.runs.changing();
        let suspended = |run: &bastionai_ledger::Run| run.suspended_by().contains(&by);
        if !shared
            .vault
            .read(|ledger| ledger.run(&run).is_some_and(suspended))
        {
            shared.vault.suspend_run(run, by, shared.now_unix_ms())?;
            let run = Hex(run.as_bytes());
            Event::RunSuspended { run, by }.emit();
        }
        shared.runs.suspend(&run);
        Ok(())
    })
    .await?;
    while server.runs.is_running(&run) {
        let notices = server.runs.watch(&run);
        still(&server, &run, notices).await;
    }
    show(&server, &run)
}

/// Lifts the caller's own suspension. The run goes on from its last checkpoint when its turn comes, unless another
/// owner's suspension stands; one that went on too often without getting on ends, as cancelled.
pub(crate) async fn resume(
    server: Arc<Server>,
    peer: &Peer,
    request: v1::ResumeRunRequest,
) -> Result<v1::Run, Failure> {
    let by = peer.principal;
    let run = server.vault.read(|ledger| {
        governance::visible_run(ledger, &request.run_id, &by).map(bastionai_ledger::Run::id)
    })?;
    while server.runs.is_running(&run) && server.vault.read(|ledger| is_suspended(ledger, &run)) {
        let notices = server.runs.watch(&run);
        still(&server, &run, notices).await;
    }
    blocking(move || {
        let _one_at_a_time = server.runs.changing();
        match server.vault.unsuspend_run(run, by, server.now_unix_ms()) {
            Err(TransactError::Refused(refusal @ Refusal::GetsNowhere { .. })) => {
                Event::NotResumed {
                    run: Hex(run.as_bytes()),
                    chain: &refusal.to_string(),
                }
                .emit();
                end_idle(&server, &run)?;
                return show(&server, &run);
            }
            lifted => lifted?,
        }
        Event::RunUnsuspended {
            run: Hex(run.as_bytes()),
            by,
        }
        .emit();
        if !server.vault.read(|ledger| is_suspended(ledger, &run)) {
            server.runs.unsuspend(&server, &run);
        }
        show(&server, &run)
    })
    .await
}

fn is_suspended(ledger: &Ledger, run: &RunId) -> bool {
    ledger.run(run).is_some_and(bastionai_ledger::Run::is_suspended)
}

/// Waits for the next notice of a run that a trainer works on; briefly, in case it came before this listened.
async fn still(server: &Server, run: &RunId, notices: Option<tokio::sync::watch::Receiver<()>>) {
    if let Some(mut notices) = notices
        && server.runs.is_running(run)
    {
        // Closed when the run has ended: then it runs no more.
        let _ = tokio::time::timeout(BRIEFLY, notices.changed()).await;
    }
}

/// The runs that concern the caller, oldest first.
pub(crate) async fn list(server: Arc<Server>, peer: &Peer) -> Result<v1::ListRunsReply, Failure> {
    let caller = peer.principal;
    blocking(move || {
        let runs = server.vault.read(|ledger| {
            let shown = ledger
                .runs()
                .filter(|run| ledger.concerns(&run.id(), &caller) || ledger.may_receive(&run.id(), &caller));
            shown.map(|run| convert::run(ledger, run)).collect::<Vec<_>>()
        });
        let runs = runs.into_iter().map(|run| with_position(&server, run)).collect();
        Ok(v1::ListRunsReply { runs })
    })
    .await
}

/// Replays what was released after `from_step`, then follows. Nothing is ever computed again (rule D1).
pub(crate) fn watch(
    server: Arc<Server>,
    peer: &Peer,
    request: &v1::WatchRunRequest,
) -> Result<Replies<v1::RunProgress>, Failure> {
    let caller = peer.principal;
    let run = server.vault.read(|ledger| {
        governance::visible_run(ledger, &request.run_id, &caller).map(bastionai_ledger::Run::id)
    })?;
    let (sender, receiver) = mpsc::channel(64);
    let after_step = request.from_step;
    tokio::spawn(async move {
        if let Err(failure) = follow(&server, run, after_step, &sender).await {
            // A watcher that is gone needs no answer.
            let _ = sender
                .send(Err(super::status("watch_run", caller, failure)))
                .await;
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

type ProgressSender = mpsc::Sender<Result<v1::RunProgress, tonic::Status>>;

async fn follow(
    server: &Arc<Server>,
    run: RunId,
    after_step: u64,
    sender: &ProgressSender,
) -> Result<(), Failure> {
    let mut told = after_step;
    let mut greeted = false;
    loop {
        let mut notices = server.runs.watch(&run);
        let reader = Arc::clone(server);
        let (shown, values) = blocking(move || {
            let shown = show(&reader, &run)?;
            // Read after the snapshot; what the snapshot does not cover yet comes with the next one.
            let mut values = reader.vault.released_values(&run, told.saturating_add(1))?;
            values.retain(|value| value.step <= shown.released_step);
            Ok((shown, values))
        })
        .await?;
        let ended = shown.ended_unix_ms != 0;
        told = told.max(values.last().map_or(0, |value| value.step));
        let steps = values.into_iter().map(|value| (value.step, value.noisy_loss));
        // The first message says where the run is, the last how it ended.
        let bare = [(shown.released_step, None)]
            .into_iter()
            .filter(|_| !greeted || ended);
        let messages: Vec<_> = if ended {
            steps.chain(bare).collect()
        } else {
            bare.chain(steps).collect()
        };
        for (step, loss) in messages {
            let progress = v1::RunProgress {
                run: Some(shown.clone()),
                step,
                has_loss: loss.is_some(),
                noisy_loss: loss.unwrap_or(0.0),
            };
            if sender.send(Ok(progress)).await.is_err() {
                return Ok(()); // the watcher is gone; the run goes on
            }
        }
        if ended {
            return Ok(());
        }
        if server.runs.is_left_to_the_next_boot(&run) {
            let message = format!(
                "the server is draining: the run stopped after step {told} and goes on when the server is back; watch it again then"
            );
            return Err(Failure::new(Reason::Draining, message));
        }
        greeted = true;
        wait(server, &run, notices.as_mut(), sender).await?;
    }
}

/// Waits for the next notice. A run that is open in the ledger but not alive here lost its storage.
async fn wait(
    server: &Server,
    run: &RunId,
    notices: Option<&mut tokio::sync::watch::Receiver<()>>,
    sender: &ProgressSender,
) -> Result<(), Failure> {
    let Some(notices) = notices else {
        return match show(server, run)? {
            shown if shown.ended_unix_ms != 0 => Ok(()),
            _ => Err(Failure::new(
                Reason::Failed,
                "failed; the run's end could not be stored; the server's log says why",
            )),
        };
    };
    tokio::select! {
        // Closed when the run has ended: look once more.
        _ = notices.changed() => {}
        () = sender.closed() => {}
        () = tokio::time::sleep(LOOK_AGAIN) => {}
    }
    Ok(())
}

fn show(server: &Server, run: &RunId) -> Result<v1::Run, Failure> {
    let found = server
        .vault
        .read(|ledger| ledger.run(run).map(|run| convert::run(ledger, run)));
    let found = found.ok_or_else(|| Failure::new(Reason::UnknownRun, "there is no such run"))?;
    Ok(with_position(server, found))
}

/// Where a queued run stands in the queue; runs that were asked for after the ledger was read may show 0.
fn with_position(server: &Server, mut shown: v1::Run) -> v1::Run {
    if shown.state() == v1::RunState::Queued
        && let Ok(run) = RunId::try_from(&shown.id[..])
    {
        shown.queue_position = server.runs.position(&run).unwrap_or(0);
    }
    shown
}

fn quote_gone(gone: QuoteGone) -> Failure {
    match gone {
        QuoteGone::Unknown => Failure::new(
            Reason::QuoteUnknown,
            "quote expired: the server holds no such quote of yours since it started; ask the price again",
        ),
        QuoteGone::Expired => Failure::new(
            Reason::QuoteExpired,
            "quote expired: it is too old; ask the price again",
        ),
    }
}

/// A notice may come between a look and the next wait's subscription; then this bounds the delay.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// As above, where somebody waits for an answer.
const BRIEFLY: Duration = Duration::from_millis(200);
