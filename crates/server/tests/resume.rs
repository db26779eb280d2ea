//! Runs that outlive a kill, a drain, a suspension: same digest, same steps, one charge; and those that must not.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::runs::{Run, RunState};
use bastionai_client::session::AppraisedPeer;
use bastionai_client::{ClientError, HeadMemory, Identity, RunId};
use common::process::ServerProcess;
use common::{TestServer, epsilon_of, identity, start, timeout, upload, upload_mlp, watch};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Watches until a loss of step `step` or later was seen; everything seen so far.
async fn watch_to(peer: &AppraisedPeer, run: RunId, step: u64) -> BTreeMap<u64, u64> {
    let mut watch = peer.watch_run(run, 0).await.unwrap();
    let mut seen = BTreeMap::new();
    while seen.keys().next_back().is_none_or(|last| *last < step) {
        let progress = timeout(watch.next())
            .await
            .unwrap()
            .expect("the run has not ended");
        if let Some(loss) = progress.noisy_loss {
            seen.insert(progress.step, loss.to_bits());
        }
    }
    seen
}

async fn entries(peer: &AppraisedPeer, run: RunId) -> Vec<String> {
    let shown = peer.show_ledger(Some(*run.as_bytes())).await.unwrap();
    shown.entries.into_iter().map(|entry| entry.kind).collect()
}

fn count(entries: &[String], kind: &str) -> usize {
    entries.iter().filter(|entry| *entry == kind).count()
}

/// What was seen before is seen again, unchanged, and the run ends with every step once.
async fn ends_with(peer: &AppraisedPeer, run: RunId, steps: u64, seen: &BTreeMap<u64, u64>) {
    let (losses, state) = watch(peer, run).await;
    assert_eq!(state, RunState::Succeeded);
    let all: BTreeMap<u64, u64> = losses
        .iter()
        .map(|(step, loss)| (*step, loss.to_bits()))
        .collect();
    assert_eq!(
        (losses.len() as u64, all.len() as u64),
        (steps, steps),
        "each step once"
    );
    for (step, loss) in seen {
        assert_eq!(all.get(step), Some(loss), "step {step} was released before (D1)");
    }
    let entries = entries(peer, run).await;
    for kind in ["run_reserved", "run_started", "run_committed"] {
        assert_eq!(count(&entries, kind), 1, "{kind}: {entries:?}");
    }
}

async fn again(server: &ServerProcess, me: &Identity, heads: &HeadMemory) -> AppraisedPeer {
    common::try_peer(&server.address, me, heads)
        .await
        .expect("the ledger extends what was seen")
}

#[tokio::test]
async fn a_run_survives_kills_of_its_server_and_is_charged_once() {
    let directory = tempfile::tempdir().unwrap();
    let (me, heads) = (identity(), HeadMemory::in_process());
    let boot = || {
        ServerProcess::start(directory.path(), "normal-20", |config| {
            config.trainer.commit_ms = 10
        })
    };
    let server = boot();
    let peer = again(&server, &me, &heads).await;
    let id = upload(&peer, "north", "6.0").await;
    let run = start(&peer, &[id], 1.0, 60).await;
    let before = epsilon_of(&peer, "north").await;
    let mut seen = watch_to(&peer, run, 5).await;
    server.kill();
    for step in [15, 25] {
        let server = boot();
        let peer = again(&server, &me, &heads).await;
        let held = epsilon_of(&peer, "north").await;
        assert_eq!(held, before, "still one reservation");
        for (step, loss) in watch_to(&peer, run, step).await {
            assert_eq!(
                *seen.entry(step).or_insert(loss),
                loss,
                "step {step} has two values"
            );
        }
        server.kill();
    }
    let server = boot();
    let peer = again(&server, &me, &heads).await;
    ends_with(&peer, run, 60, &seen).await;
    assert_eq!(count(&entries(&peer, run).await, "run_resumed"), 3);
    let (committed, reserved, _) = epsilon_of(&peer, "north").await;
    assert_eq!((committed, reserved), (before.1, 0), "charged once");
    let fetched = peer.fetch_run(run, None, &mut |_| {}).await.unwrap();
    assert_eq!(fetched.receipt.run.resumed_by.len(), 3);
    assert_eq!(fetched.receipt.resumers.len(), 2, "the third signs the receipt");
    server.kill();
}

#[tokio::test]
async fn a_drained_run_hands_over_its_last_step_and_the_queue_stays() {
    let directory = tempfile::tempdir().unwrap();
    // No checkpoint but those that are asked for.
    let edit = |config: &mut bastionai_server::Config| {
        config.trainer.commit_ms = 3_600_000;
        config.trainer.drain_timeout_ms = 20_000;
    };
    let server = TestServer::start_with(directory.path(), "normal-20", edit).await;
    let (me, heads) = (identity(), HeadMemory::in_process());
    let peer = common::try_peer(&server.address.to_string(), &me, &heads)
        .await
        .unwrap();
    let id = upload(&peer, "north", "6.0").await;
    let running = start(&peer, &[id], 1.0, 60).await;
    let queued = start(&peer, &[id], 2.0, 5).await;
    let mut watcher = peer.watch_run(running, 0).await.unwrap();
    while state(&peer, running).await.state != RunState::Running {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let model = upload_mlp(&peer).await;
    let quote = peer.price(&common::spec(model, &[id], 1.0, 5)).await.unwrap();
    let stopping = tokio::spawn(server.stop());
    let mut told = None;
    while told.is_none() {
        told = timeout(watcher.next()).await.err();
    }
    let told = told.unwrap();
    assert!(
        matches!(told, ClientError::Draining(_)) && told.to_string().contains("goes on"),
        "{told}"
    );
    let refused = peer.start_run(quote.run_digest).await.unwrap_err();
    assert!(
        matches!(refused, ClientError::Draining(_) | ClientError::SessionEnded),
        "{refused}"
    );
    timeout(stopping).await.unwrap();

    let server = TestServer::start_with(directory.path(), "normal-20", edit).await;
    let peer = common::try_peer(&server.address.to_string(), &me, &heads)
        .await
        .unwrap();
    let seen = state(&peer, running).await.released_step;
    assert!(
        (1..60).contains(&seen),
        "its last step before the stop was released: {seen}"
    );
    ends_with(&peer, running, 60, &BTreeMap::new()).await;
    ends_with(&peer, queued, 5, &BTreeMap::new()).await;
    server.stop().await;
}

async fn state(peer: &AppraisedPeer, run: RunId) -> Run {
    let runs = peer.list_runs().await.unwrap();
    runs.into_iter().find(|found| found.id == run).unwrap()
}

#[tokio::test]
async fn a_trainer_that_does_not_stop_in_time_is_killed_and_its_run_goes_on_from_the_checkpoint_before() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "deaf-20").await;
    let me = identity();
    let peer = server.peer(&me).await;
    let id = upload(&peer, "north", "6.0").await;
    let run = start(&peer, &[id], 1.0, 60).await;
    let seen = watch_to(&peer, run, 3).await;
    timeout(server.stop()).await;
    let server = TestServer::start(directory.path(), "deaf-20").await;
    ends_with(&server.peer(&me).await, run, 60, &seen).await;
    server.stop().await;
}

#[tokio::test]
async fn another_configuration_ends_open_runs_charged_if_they_had_started_and_says_so_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let (me, heads) = (identity(), HeadMemory::in_process());
    let server = ServerProcess::start(directory.path(), "normal-20", |_| {});
    let peer = again(&server, &me, &heads).await;
    let id = upload(&peer, "north", "6.0").await;
    let running = start(&peer, &[id], 1.0, 1000).await;
    let queued = start(&peer, &[id], 2.0, 1000).await;
    watch_to(&peer, running, 2).await;
    let (_, reserved, _) = epsilon_of(&peer, "north").await;
    server.kill();
    let server = ServerProcess::start(directory.path(), "normal-20", |config| {
        config.limits.connections += 1
    });
    let peer = again(&server, &me, &heads).await;
    assert_eq!(state(&peer, running).await.state, RunState::Failed);
    let refunded = state(&peer, queued).await;
    assert_eq!((refunded.state, refunded.charges.len()), (RunState::Failed, 0));
    let (committed, left, _) = epsilon_of(&peer, "north").await;
    assert!(
        committed > 900_000_000 && committed < reserved && left == 0,
        "the started one alone is charged"
    );
    let log = std::fs::read_to_string(directory.path().join("server.log")).unwrap();
    let why: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("run_not_resumed"))
        .collect();
    assert!(
        why.len() == 2 && why[0].contains("configuration") && why[0].contains("A11"),
        "{why:?}"
    );
    server.kill();
}

/// Flips a byte in every file of every object that is not in `before`.
fn damage(directory: &Path, before: &[std::path::PathBuf]) -> usize {
    let files = block_files(directory)
        .into_iter()
        .filter(|file| !before.contains(file));
    files
        .map(|file| {
            let mut bytes = std::fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(file, bytes).unwrap();
        })
        .count()
}

fn block_files(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![directory.join("data/blocks")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    files
}

#[tokio::test]
async fn a_damaged_checkpoint_ends_its_run_failed_and_charged() {
    let directory = tempfile::tempdir().unwrap();
    let (me, heads) = (identity(), HeadMemory::in_process());
    let server = ServerProcess::start(directory.path(), "normal-20", |_| {});
    let peer = again(&server, &me, &heads).await;
    let id = upload(&peer, "north", "6.0").await;
    let dataset = block_files(directory.path());
    let run = start(&peer, &[id], 1.0, 1000).await;
    let order: Vec<_> = block_files(directory.path());
    assert!(order.len() > dataset.len());
    watch_to(&peer, run, 2).await;
    server.kill();
    assert!(damage(directory.path(), &order) > 0);
    let server = ServerProcess::start(directory.path(), "normal-20", |_| {});
    let peer = again(&server, &me, &heads).await;
    assert_eq!(watch(&peer, run).await.1, RunState::Failed);
    let (committed, reserved, _) = epsilon_of(&peer, "north").await;
    assert!(committed > 900_000_000 && reserved == 0);
    let log = std::fs::read_to_string(directory.path().join("server.log")).unwrap();
    assert!(log.contains("checkpoint does not open"), "{log}");
    server.kill();
}

#[tokio::test]
async fn a_trainer_that_died_is_not_tried_again_by_the_next_boot() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "die-7").await;
    let me = identity();
    let peer = server.peer(&me).await;
    let id = upload(&peer, "north", "6.0").await;
    let run = start(&peer, &[id], 1.0, 20).await;
    assert_eq!(watch(&peer, run).await.1, RunState::Failed);
    server.stop().await;
    let server = TestServer::start(directory.path(), "die-7").await;
    assert_eq!(state(&server.peer(&me).await, run).await.state, RunState::Failed);
    server.stop().await;
}

#[tokio::test]
async fn an_owner_suspends_a_run_nothing_is_released_meanwhile_and_only_they_resume_it() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-20").await;
    let (north, east, me) = (identity(), identity(), identity());
    let (north, east) = (server.peer(&north).await, server.peer(&east).await);
    let ids = [
        upload(&north, "north", "6.0").await,
        upload(&east, "east", "6.0").await,
    ];
    let peer = server.peer(&me).await;
    let run = start(&peer, &ids, 1.0, 60).await;
    let seen = watch_to(&peer, run, 3).await;

    let refused = peer.suspend_run(run).await.unwrap_err();
    assert!(
        matches!(refused, ClientError::NotAllowed(_)),
        "the scientist: {refused}"
    );
    let stranger = server.peer(&identity()).await;
    assert!(matches!(
        stranger.suspend_run(run).await,
        Err(ClientError::NotFound(_))
    ));

    let suspended = north.suspend_run(run).await.unwrap();
    assert_eq!(suspended.state, RunState::Suspended);
    assert_eq!(suspended.suspended_by, [north.principal()]);
    assert_eq!(north.suspend_run(run).await.unwrap(), suspended, "twice is once");
    let stopped_at = suspended.released_step;
    // Its trainer is free: another run goes through meanwhile.
    let other = start(&peer, &[ids[1]], 1.0, 10).await;
    assert_eq!(watch(&peer, other).await.1, RunState::Succeeded);
    assert_eq!(
        state(&peer, run).await.released_step,
        stopped_at,
        "nothing is released"
    );

    for wrong in [&peer, &east] {
        let refused = wrong.resume_run(run).await.unwrap_err();
        assert!(matches!(refused, ClientError::NotAllowed(_)), "{refused}");
    }
    east.suspend_run(run).await.unwrap();
    let still = north.resume_run(run).await.unwrap();
    assert_eq!(
        (still.state, still.suspended_by),
        (RunState::Suspended, vec![east.principal()])
    );
    let resumed = east.resume_run(run).await.unwrap();
    assert!(
        matches!(resumed.state, RunState::Queued | RunState::Running),
        "{resumed:?}"
    );
    ends_with(&peer, run, 60, &seen).await;
    let entries = entries(&peer, run).await;
    assert_eq!(
        (
            count(&entries, "run_suspended"),
            count(&entries, "run_unsuspended")
        ),
        (2, 2)
    );
    assert!(north.suspend_run(run).await.is_err(), "it has ended");
    server.stop().await;
}

/// Each time a trainer starts on the same records, and nothing comes of it.
#[tokio::test]
async fn a_run_that_is_suspended_and_resumed_for_ever_ends_as_cancelled_and_charged_in_full() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-60000").await;
    let peer = server.peer(&identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    let run = start(&peer, &[id], 1.0, 60).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while count(&entries(&peer, run).await, "run_started") == 0 {
        assert!(Instant::now() < deadline, "it starts");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let reserved = epsilon_of(&peer, "north").await.1;
    let mut resumed = 0;
    let ended = loop {
        peer.suspend_run(run).await.unwrap();
        let shown = peer.resume_run(run).await.unwrap();
        if !matches!(shown.state, RunState::Queued | RunState::Running) {
            break shown;
        }
        resumed += 1;
        assert!(resumed <= 32, "it goes on for ever");
    };
    assert_eq!((resumed, ended.state), (32, RunState::Cancelled));
    let (committed, left, _) = epsilon_of(&peer, "north").await;
    assert_eq!((committed, left), (reserved, 0), "all of it");
    assert!(peer.resume_run(run).await.is_err(), "it has ended");
    server.stop().await;
}

#[tokio::test]
async fn a_suspended_run_stays_suspended_over_restarts_and_its_scientist_may_cancel_it() {
    let directory = tempfile::tempdir().unwrap();
    let (owner, me, heads) = (identity(), identity(), HeadMemory::in_process());
    let boot = || ServerProcess::start(directory.path(), "normal-20", |_| {});
    let server = boot();
    let owner_peer = again(&server, &owner, &heads).await;
    let id = upload(&owner_peer, "north", "6.0").await;
    let peer = again(&server, &me, &heads).await;
    let (first, second) = (
        start(&peer, &[id], 1.0, 40).await,
        start(&peer, &[id], 1.5, 40).await,
    );
    let seen = watch_to(&peer, first, 2).await;
    let charged = state(&peer, first).await.charges[0].cost.epsilon.units();
    for run in [first, second] {
        assert_eq!(
            owner_peer.suspend_run(run).await.unwrap().state,
            RunState::Suspended
        );
    }
    server.kill();
    let server = boot();
    let peer = again(&server, &me, &heads).await;
    for run in [first, second] {
        assert_eq!(state(&peer, run).await.state, RunState::Suspended);
    }
    // The one that had started is charged, the other is not.
    assert_eq!(peer.cancel_run(second).await.unwrap().state, RunState::Cancelled);
    assert_eq!(epsilon_of(&peer, "north").await.0, 0);
    let owner_peer = again(&server, &owner, &heads).await;
    owner_peer.resume_run(first).await.unwrap();
    ends_with(&peer, first, 40, &seen).await;

    let third = start(&peer, &[id], 1.0, 1000).await;
    watch_to(&peer, third, 2).await;
    owner_peer.suspend_run(third).await.unwrap();
    assert_eq!(peer.cancel_run(third).await.unwrap().state, RunState::Cancelled);
    let (committed, reserved, _) = epsilon_of(&peer, "north").await;
    assert!(
        committed > charged && reserved == 0,
        "cancelled after it started: charged (D5)"
    );
    assert!(peer.fetch_run(third, None, &mut |_| {}).await.is_err());
    server.kill();
}

#[tokio::test]
async fn the_queue_is_fair_shows_its_order_and_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-20", |config| {
        config.limits.queued_runs = 5;
    })
    .await;
    let (busy, modest) = (server.peer(&identity()).await, server.peer(&identity()).await);
    let id = upload(&busy, "north", "60.0").await;
    let first = start(&busy, &[id], 1.0, 1000).await;
    let mut many = Vec::new();
    for steps in 2..6 {
        many.push(start(&busy, &[id], 1.0, steps).await);
    }
    let one = start(&modest, &[id], 1.0, 6).await;
    let position = async |run| state(&busy, run).await.queue_position;
    assert_eq!(position(first).await, None, "it runs");
    let places = [
        position(many[0]).await,
        position(many[1]).await,
        position(many[3]).await,
    ];
    assert_eq!(
        places,
        [Some(1), Some(3), Some(5)],
        "one of the other principal's comes in between"
    );
    assert_eq!(state(&modest, one).await.queue_position, Some(2));

    let model = upload_mlp(&modest).await;
    let quote = modest.price(&common::spec(model, &[id], 1.0, 7)).await.unwrap();
    let before = epsilon_of(&modest, "north").await;
    let full = modest.start_run(quote.run_digest).await.unwrap_err();
    assert!(matches!(full, ClientError::QueueFull(_)), "{full}");
    assert_eq!(epsilon_of(&modest, "north").await, before, "nothing was charged");

    busy.cancel_run(first).await.unwrap();
    assert_eq!(watch(&modest, one).await.1, RunState::Succeeded);
    assert_eq!(
        state(&busy, many[3]).await.state,
        RunState::Queued,
        "the last of many waits for its own principal's others"
    );
    for run in many {
        assert_eq!(watch(&busy, run).await.1, RunState::Succeeded);
    }
    server.stop().await;
}

/// Whichever entry is durable first holds: cancelled without weights, or succeeded with them. Never both, never neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancellation_that_races_the_end_has_one_outcome() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-1", |config| {
        config.limits.runs_per_principal = 64;
        config.trainer.commit_ms = 1;
    })
    .await;
    let peer = server.peer(&identity()).await;
    let id = upload(&peer, "north", "600.0").await;
    let model = upload_mlp(&peer).await;
    let mut outcomes = BTreeMap::<&str, u32>::new();
    let mut spec = common::spec(model, &[id], 1.0, 3);
    spec.target_delta = Some(1e-7);
    // How long a run takes depends on the machine, and on who else is there.
    let mut whole = Duration::ZERO;
    for round in 0..40u32 {
        let quote = peer.price(&spec).await.unwrap();
        let started = Instant::now();
        let run = peer.start_run(quote.run_digest).await.unwrap().id;
        if round % 10 == 0 {
            watch(&peer, run).await;
            whole = started.elapsed();
        }
        // From the queue to beyond the end.
        tokio::time::sleep(whole * (round % 10) / 6).await;
        let ended = timeout(peer.cancel_run(run)).await.unwrap();
        let entries = entries(&peer, run).await;
        assert_eq!(
            count(&entries, "run_committed") + count(&entries, "run_refunded"),
            1,
            "{entries:?}"
        );
        match ended.state {
            RunState::Succeeded => {
                peer.fetch_run(run, None, &mut |_| {})
                    .await
                    .expect("weights that were not destroyed");
                // Also while, and after, they were released.
                assert_eq!(peer.cancel_run(run).await.unwrap().state, RunState::Succeeded);
                *outcomes.entry("succeeded").or_default() += 1;
            }
            RunState::Cancelled => {
                assert!(peer.fetch_run(run, None, &mut |_| {}).await.is_err());
                let charged = count(&entries, "run_started") == 1;
                assert_eq!(
                    ended.charges.is_empty(),
                    !charged,
                    "charged exactly if it had started (D5)"
                );
                *outcomes.entry("cancelled").or_default() += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(outcomes.len(), 2, "both happened: {outcomes:?}");
    server.stop().await;
}
