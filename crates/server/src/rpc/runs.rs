//! StartRun, CancelRun, ListRuns, WatchRun.

use super::price::unknown_model;
use super::{Replies, blocking};
use crate::acceptor::Peer;
use crate::convert;
use crate::errors::{Failure, Reason};
use crate::governance;
use crate::log::{Event, Hex};
use crate::quotes::QuoteGone;
use crate::runs::StopWhy;
use crate::state::Server;
use crate::warm_start::WeightsSource;
use bastionai_ledger::RunId;
use bastionai_wire::v1;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Starts a quoted run: reserve durably, then queue. The same quote started again is the same run.
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
        let _one_at_a_time = server.runs.starting();
        let known = server.vault.read(|ledger| {
            let run = ledger.runs().find(|run| run.run_digest() == priced.run_digest());
            run.map(|run| convert::run(ledger, run))
        });
        if let Some(run) = known {
            return Ok(run);
        }
        server.vault.read(|ledger| {
            let (datasets, kind) = (priced.datasets(), priced.kind());
            governance::usable(ledger, datasets, &scientist, kind, now_unix_ms).map(drop)
        })?;
        let model = server
            .models
            .find(scientist, priced.model().as_bytes())
            .ok_or_else(unknown_model)?;
        if let Some(WeightsSource::Model(source)) = priced.weights() {
            server
                .models
                .find(scientist, source.as_bytes())
                .ok_or_else(unknown_model)?;
        }
        let place = server.runs.place(scientist)?;
        let run = server.vault.new_run_id()?;
        let _reservation = priced.reserve(&server.vault, run, server.boot.id, now_unix_ms)?;
        Event::RunQueued {
            run: Hex(run.as_bytes()),
            scientist,
        }
        .emit();
        server.runs.launch(Arc::clone(&server), run, priced, model, place);
        show(&server, &run)
    })
    .await
}

/// Stops a run. Unstarted it costs nothing; started it stays charged in full, and its weights are destroyed
/// (rule D5). Answers when the end is in the ledger.
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
    let notices = server.runs.watch(&run);
    if server.runs.stop(&run, StopWhy::Cancel)
        && let Some(mut notices) = notices
    {
        // Closed when the run has ended.
        while server.runs.watch(&run).is_some() && notices.changed().await.is_ok() {}
    }
    show(&server, &run)
}

/// The runs that concern the caller, oldest first.
pub(crate) async fn list(server: Arc<Server>, peer: &Peer) -> Result<v1::ListRunsReply, Failure> {
    let caller = peer.principal;
    blocking(move || {
        let runs = server.vault.read(|ledger| {
            let shown = ledger
                .runs()
                .filter(|run| ledger.concerns(&run.id(), &caller) || ledger.may_receive(&run.id(), &caller));
            shown.map(|run| convert::run(ledger, run)).collect()
        });
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
    server.vault.read(|ledger| {
        let found = ledger.run(run).map(|run| convert::run(ledger, run));
        found.ok_or_else(|| Failure::new(Reason::UnknownRun, "there is no such run"))
    })
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
