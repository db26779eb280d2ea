//! Runs that keep weights on their way. The stand-in trainer writes the step into the first number of its weights, adds
//! it to the second, and writes minus the step into the first number of the average.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::runs::{RunSpec, RunState, RunWeights, WeightsSource};
use bastionai_client::{AppraisedPeer, ClientError, DatasetId, Digest32, FetchedRun, RunId, WeightsAt};
use common::{TestServer, identity, spec, upload, upload_mlp, watch};

/// 10 steps that keep 2 and 4, each with the average, and the last average.
fn keeping(model: Digest32, dataset: DatasetId) -> RunSpec {
    RunSpec {
        keep_steps: vec![4, 2, 10],
        ema_decay: Some(0.9),
        ..spec(model, &[dataset], 0.5, 10)
    }
}

fn at(step: Option<u64>, ema: bool) -> WeightsAt {
    WeightsAt { step, ema }
}

async fn fetch(peer: &AppraisedPeer, run: RunId, at: WeightsAt) -> Result<FetchedRun, ClientError> {
    peer.fetch_weights(run, at, None, &mut |_| {}).await
}

fn numbers(fetched: &FetchedRun) -> [f32; 2] {
    let bytes = &fetched.weights[0].bytes;
    [0, 4].map(|at| f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()))
}

async fn train(peer: &AppraisedPeer, spec: &RunSpec) -> RunId {
    let quote = peer.price(spec).await.unwrap();
    let run = peer.start_run(quote.run_digest).await.unwrap().id;
    assert_eq!(watch(peer, run).await.1, RunState::Succeeded);
    run
}

#[tokio::test]
async fn kept_weights_come_with_a_receipt_that_covers_every_set() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let dataset = upload(&peer, "north", "6.0").await;
    let model = upload_mlp(&peer).await;
    let quote = peer.price(&keeping(model, dataset)).await.unwrap();
    assert_eq!(
        quote.spec.keep_steps,
        [2, 4],
        "rising, and the last is kept in any case"
    );
    assert_eq!((quote.spec.ema_decay, quote.spec.keep_every), (Some(0.9), None));
    assert_eq!(quote.kept_bytes, 5 * 4 * (4 * 8 + 8 + 8 * 2 + 2));
    let plain = peer.price(&spec(model, &[dataset], 0.5, 10)).await.unwrap();
    assert_eq!(
        (plain.kept_bytes, plain.charges[0].cost),
        (0, quote.charges[0].cost),
        "post-processing is free"
    );

    let run = train(&peer, &keeping(model, dataset)).await;
    for (step, ema, first) in [
        (None, false, 10.0),
        (Some(10), false, 10.0),
        (Some(2), false, 2.0),
        (Some(4), false, 4.0),
        (Some(2), true, -2.0),
        (Some(4), true, -4.0),
        (None, true, -10.0),
    ] {
        let fetched = fetch(&peer, run, at(step, ema)).await.unwrap();
        assert_eq!(numbers(&fetched)[0], first, "{step:?} {ema}");
        let kept: Vec<_> = fetched
            .receipt
            .run
            .kept
            .iter()
            .map(|kept| (kept.step, kept.ema))
            .collect();
        assert_eq!(kept, [(2, false), (2, true), (4, false), (4, true), (10, true)]);
    }
    let missing = fetch(&peer, run, at(Some(3), false)).await.unwrap_err();
    assert_eq!(missing.server_reason(), Some("not-releasable"), "{missing}");
    let text = missing.to_string();
    assert!(
        text.contains("no weights of step 3") && text.contains("step 4") && text.contains("last average"),
        "{text}"
    );
    let released = peer.show_ledger(None).await.unwrap().entries;
    let released = released.iter().filter(|entry| entry.kind == "released").count();
    assert_eq!(released, 6, "one entry a set: the last twice asked for is one");
    let stranger = server.peer(&identity()).await;
    let error = fetch(&stranger, run, at(Some(2), false)).await.unwrap_err();
    assert!(matches!(error, ClientError::NotFound(_)), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn a_run_starts_from_a_kept_iterate_of_another() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let dataset = upload(&peer, "north", "6.0").await;
    let model = upload_mlp(&peer).await;
    let run = train(&peer, &keeping(model, dataset)).await;
    let last = numbers(&fetch(&peer, run, WeightsAt::default()).await.unwrap())[1];
    let starting = |step, ema| RunSpec {
        initial_weights: Some(WeightsSource::Run(RunWeights { run, step, ema })),
        ..spec(model, &[dataset], 0.5, 3)
    };
    for (step, ema, second) in [
        (Some(4), false, last - 10.0 + 4.0),
        (None, false, last),
        (None, true, 0.0),
    ] {
        let next = train(&peer, &starting(step, ema)).await;
        let found = numbers(&fetch(&peer, next, WeightsAt::default()).await.unwrap())[1];
        assert!(
            (found - (second + 3.0)).abs() < 1e-5,
            "{step:?} {ema}: {found} after 3 steps from {second}"
        );
    }
    let error = peer.price(&starting(Some(5), false)).await.unwrap_err();
    assert_eq!(error.server_reason(), Some("not-releasable"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn what_a_run_may_keep_is_bounded_and_checked() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-0", |config| {
        config.limits.kept_iterates = 3;
        config.limits.kept_bytes = 1000;
    })
    .await;
    let peer = server.peer(&identity()).await;
    let dataset = upload(&peer, "north", "6.0").await;
    let model = upload_mlp(&peer).await;
    let plain = spec(model, &[dataset], 0.5, 10);
    let keep = |steps: &[u64], every, ema_decay| RunSpec {
        keep_steps: steps.to_vec(),
        keep_every: every,
        ema_decay,
        ..plain.clone()
    };
    for (spec, says) in [
        (keep(&[1, 2, 3, 4], None, None), "at most 3 steps"),
        (keep(&[], Some(2), None), "at most 3 steps"),
        (keep(&[11], None, None), "step 11"),
        (keep(&[1], Some(5), None), "not both"),
        (keep(&[1, 2, 3], None, Some(0.5)), "bytes of weights"),
        (keep(&[], None, Some(1.0)), "ema_decay"),
        (keep(&[], None, Some(-0.5)), "ema_decay"),
    ] {
        let error = peer.price(&spec).await.unwrap_err();
        assert_eq!(error.server_reason(), Some("run-spec-invalid"), "{error}");
        assert!(error.to_string().contains(says), "{says} missing in: {error}");
    }
    assert_eq!(
        peer.price(&keep(&[], Some(3), None))
            .await
            .unwrap()
            .spec
            .keep_steps,
        [3, 6, 9]
    );
    server.stop().await;
}

#[tokio::test]
async fn a_cancelled_run_releases_nothing_that_it_kept() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-20").await;
    let peer = server.peer(&identity()).await;
    let dataset = upload(&peer, "north", "6.0").await;
    let model = upload_mlp(&peer).await;
    let spec = RunSpec {
        keep_steps: vec![1],
        ..spec(model, &[dataset], 0.5, 1000)
    };
    let quote = peer.price(&spec).await.unwrap();
    let run = peer.start_run(quote.run_digest).await.unwrap().id;
    let mut watcher = peer.watch_run(run, 0).await.unwrap();
    while common::timeout(watcher.next()).await.unwrap().unwrap().step < 1 {}
    let running = fetch(&peer, run, at(Some(1), false)).await.unwrap_err();
    assert_eq!(
        running.server_reason(),
        Some("not-releasable"),
        "not before the run is committed: {running}"
    );
    peer.cancel_run(run).await.unwrap();
    let cancelled = fetch(&peer, run, at(Some(1), false)).await.unwrap_err();
    assert_eq!(cancelled.server_reason(), Some("not-releasable"), "{cancelled}");
    server.stop().await;
}

#[tokio::test]
async fn kept_weights_outlive_a_restart_in_the_middle_of_their_run() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-20").await;
    let me = identity();
    let peer = server.peer(&me).await;
    let dataset = upload(&peer, "north", "6.0").await;
    let model = upload_mlp(&peer).await;
    let spec = RunSpec {
        keep_steps: vec![2, 90],
        ema_decay: Some(0.9),
        ..spec(model, &[dataset], 0.5, 100)
    };
    let quote = peer.price(&spec).await.unwrap();
    let run = peer.start_run(quote.run_digest).await.unwrap().id;
    let mut watcher = peer.watch_run(run, 0).await.unwrap();
    while common::timeout(watcher.next()).await.unwrap().unwrap().step < 3 {}
    drop(watcher);
    server.stop().await;
    let server = TestServer::start(directory.path(), "normal-20").await;
    let peer = server.peer(&me).await;
    assert_eq!(watch(&peer, run).await.1, RunState::Succeeded);
    for (step, ema, first) in [
        (Some(2), false, 2.0),
        (Some(90), false, 90.0),
        (Some(2), true, -2.0),
        (None, true, -100.0),
    ] {
        let fetched = fetch(&peer, run, at(step, ema)).await.unwrap();
        assert_eq!(numbers(&fetched)[0], first, "{step:?} {ema}");
    }
    server.stop().await;
}
