//! Limits that no other test meets: each is told to whoever meets it, and harms nobody else.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::ClientError;
use bastionai_client::runs::RunState;
use common::{
    TestServer, dataset, epsilon_of, identity, open_policy, rows, spec, start, upload, upload_mlp, watch,
};
use std::time::Duration;

#[tokio::test]
async fn one_scientist_cannot_take_the_whole_queue() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-50", |config| {
        config.limits.runs_per_principal = 2;
    })
    .await;
    let (greedy, modest) = (server.peer(&identity()).await, server.peer(&identity()).await);
    let id = upload(&greedy, "north", "6.0").await;
    let first = start(&greedy, &[id], 0.5, 1000).await;
    let second = start(&greedy, &[id], 0.5, 1001).await;
    let model = upload_mlp(&greedy).await;
    let quote = greedy.price(&spec(model, &[id], 0.5, 1002)).await.unwrap();
    let error = greedy.start_run(quote.run_digest).await.unwrap_err();
    assert!(
        matches!(error, ClientError::QueueFull(_)) && error.to_string().contains("as one may"),
        "{error}"
    );
    let third = start(&modest, &[id], 0.5, 1003).await;
    for (peer, run) in [(&modest, third), (&greedy, second), (&greedy, first)] {
        peer.cancel_run(run).await.unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn storage_in_all_is_bounded_and_said() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-0", |config| {
        config.limits.stored_bytes = 150 << 10;
    })
    .await;
    upload(&server.peer(&identity()).await, "first", "6.0").await;
    upload(&server.peer(&identity()).await, "second", "6.0").await;
    let third = dataset("third", open_policy("6.0", "1e-5"));
    let late = server.peer(&identity()).await;
    let error = late
        .upload_dataset(&third, vec![rows(3, 0.0)], &mut |_| {})
        .await
        .unwrap_err();
    assert!(
        matches!(error, ClientError::LimitExceeded(_)) && error.to_string().contains("153600"),
        "{error}"
    );
    server.stop().await;
}

#[tokio::test]
async fn calls_beyond_a_connections_share_wait_and_other_connections_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-50", |config| {
        config.limits.calls_per_connection = 2;
    })
    .await;
    let me = identity();
    let (peer, other) = (server.peer(&me).await, server.peer(&me).await);
    let id = upload(&peer, "north", "6.0").await;
    let run = start(&peer, &[id], 0.5, 1000).await;
    let mut watchers = Vec::new();
    for _ in 0..2 {
        let mut watcher = peer.watch_run(run, 0).await.unwrap();
        common::timeout(watcher.next()).await.unwrap();
        watchers.push(watcher);
    }
    let third = tokio::time::timeout(Duration::from_millis(400), peer.list_runs()).await;
    assert!(third.is_err(), "two watchers fill the connection");
    common::timeout(other.list_runs()).await.unwrap();
    drop(watchers.pop());
    common::timeout(peer.list_runs())
        .await
        .expect("a call has ended: the next is answered");
    other.cancel_run(run).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_new_quote_takes_the_place_of_the_oldest() {
    for per_principal in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let server = TestServer::start_with(directory.path(), "normal-0", |config| {
            if per_principal {
                config.limits.quotes_per_principal = 1;
            } else {
                config.limits.quotes = 1;
            }
        })
        .await;
        let peer = server.peer(&identity()).await;
        let id = upload(&peer, "north", "6.0").await;
        let model = upload_mlp(&peer).await;
        let older = peer.price(&spec(model, &[id], 0.5, 5)).await.unwrap();
        let newer = peer.price(&spec(model, &[id], 0.5, 6)).await.unwrap();
        let error = peer.start_run(older.run_digest).await.unwrap_err();
        assert!(matches!(error, ClientError::QuoteExpired(_)), "{error}");
        assert!(error.to_string().contains("no such quote"), "{error}");
        let run = peer.start_run(newer.run_digest).await.unwrap();
        assert_eq!(watch(&peer, run.id).await.1, RunState::Succeeded);
        server.stop().await;
    }
}

#[tokio::test]
async fn more_steps_than_allowed_are_refused_before_anything_is_priced() {
    let directory = tempfile::tempdir().unwrap();
    let server =
        TestServer::start_with(directory.path(), "normal-0", |config| config.limits.steps = 100).await;
    let peer = server.peer(&identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    let model = upload_mlp(&peer).await;
    let error = peer.price(&spec(model, &[id], 0.5, 101)).await.unwrap_err();
    assert_eq!(error.server_reason(), Some("run-spec-invalid"), "{error}");
    assert!(error.to_string().contains("100"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn a_trainer_that_is_never_ready_costs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "mute-0", |config| {
        config.trainer.start_timeout_ms = 300;
    })
    .await;
    let peer = server.peer(&identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    let run = start(&peer, &[id], 1.0, 5).await;
    assert_eq!(watch(&peer, run).await.1, RunState::Failed);
    let (committed, reserved, _) = epsilon_of(&peer, "north").await;
    assert_eq!((committed, reserved), (0, 0));
    server.stop().await;
}
