//! The whole path with the real trainer: libtorch, noise, weights that moved.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::runs::RunState;
use common::{TestServer, epsilon_of, identity, spec, start, upload, upload_mlp, watch};
use std::path::PathBuf;

/// `bastionai-trainer` beside the other binaries, or where `BASTIONAI_TRAINER` says.
fn trainer() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let beside = own.parent().unwrap().parent().unwrap().join("bastionai-trainer");
    let path = std::env::var_os("BASTIONAI_TRAINER").map_or(beside, PathBuf::from);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --release -p bastionai-trainer` (`make test` does), or set BASTIONAI_TRAINER",
        path.display()
    );
    path
}

#[tokio::test]
async fn three_owners_train_one_model_and_its_weights_move() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "unused", |config| {
        config.trainer.path = Some(trainer())
    })
    .await;
    let mut ids = Vec::new();
    for name in ["north", "east", "south"] {
        ids.push(upload(&server.peer(&identity()).await, name, "6.0").await);
    }
    let scientist = server.peer(&identity()).await;
    let model = upload_mlp(&scientist).await;
    let quote = scientist.price(&spec(model, &ids, 2.0, 20)).await.unwrap();
    let mut fetched = Vec::new();
    for attempt in 0..2 {
        let quote = if attempt == 0 {
            quote.clone()
        } else {
            scientist.price(&quote.spec).await.unwrap()
        };
        let run = scientist.start_run(quote.run_digest).await.unwrap();
        let (losses, state) = watch(&scientist, run.id).await;
        assert_eq!((losses.len(), state), (20, RunState::Succeeded));
        assert!(losses.iter().all(|(_, loss)| loss.is_finite()));
        fetched.push(
            scientist
                .fetch_run(run.id, Some(&run), &mut |_| {})
                .await
                .unwrap(),
        );
    }
    let shapes: Vec<_> = fetched[0]
        .weights
        .iter()
        .map(|tensor| (tensor.names.clone(), tensor.shape.clone()))
        .collect();
    assert_eq!(shapes.len(), 4, "{shapes:?}");
    assert_ne!(
        fetched[0].weights[0].bytes, fetched[1].weights[0].bytes,
        "noise is fresh at each start (D1)"
    );
    let (committed, reserved, _) = epsilon_of(&scientist, "east").await;
    assert_eq!(
        (committed, reserved),
        (2 * quote.charges[0].cost.epsilon.units(), 0)
    );
    server.stop().await;
}

#[tokio::test]
async fn cancelling_ends_the_trainer_and_the_next_run_gets_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "unused", |config| {
        config.trainer.path = Some(trainer())
    })
    .await;
    let peer = server.peer(&identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    let endless = start(&peer, &[id], 1.0, 1_000_000).await;
    let mut watcher = peer.watch_run(endless, 0).await.unwrap();
    while common::timeout(watcher.next()).await.unwrap().unwrap().step == 0 {}
    assert_eq!(peer.cancel_run(endless).await.unwrap().state, RunState::Cancelled);
    let next = start(&peer, &[id], 1.0, 10).await;
    assert_eq!(watch(&peer, next).await.1, RunState::Succeeded);
    server.stop().await;
}
