//! The whole path with the real trainer: libtorch, noise, weights that moved.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::runs::RunState;
use common::process::ServerProcess;
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

/// `kill -9` while libtorch trains: the state of SGD with momentum comes back, and weights come of it.
#[tokio::test]
async fn a_run_of_the_real_trainer_survives_kills_and_ends_with_weights() {
    let directory = tempfile::tempdir().unwrap();
    let (me, heads) = (identity(), bastionai_client::HeadMemory::in_process());
    let boot = || {
        ServerProcess::start(directory.path(), "unused", |config| {
            config.trainer.path = Some(trainer());
            config.trainer.commit_ms = 20;
        })
    };
    let mut server = boot();
    let mut peer = common::try_peer(&server.address, &me, &heads).await.unwrap();
    let id = upload(&peer, "north", "6.0").await;
    let model = upload_mlp(&peer).await;
    let mut momentum = spec(model, &[id], 2.0, 3_000);
    momentum.optimizer = bastionai_client::Optimizer::Sgd {
        lr: 0.01,
        momentum: 0.9,
        dampening: 0.0,
        weight_decay: 0.0,
        nesterov: false,
    };
    let quote = peer.price(&momentum).await.unwrap();
    let run = peer.start_run(quote.run_digest).await.unwrap();
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..3 {
        let from = seen.keys().next_back().copied().unwrap_or(0);
        let mut watcher = peer.watch_run(run.id, 0).await.unwrap();
        while seen.keys().next_back().is_none_or(|last| *last <= from) {
            let progress = common::timeout(watcher.next())
                .await
                .unwrap()
                .expect("3000 steps take longer");
            if let Some(loss) = progress.noisy_loss {
                let first = *seen.entry(progress.step).or_insert(loss);
                assert_eq!(
                    first.to_bits(),
                    loss.to_bits(),
                    "step {} has two values",
                    progress.step
                );
            }
        }
        server.kill();
        server = boot();
        peer = common::try_peer(&server.address, &me, &heads).await.unwrap();
    }
    let (losses, state) = watch(&peer, run.id).await;
    assert_eq!((losses.len(), state), (3_000, RunState::Succeeded));
    for (step, loss) in losses {
        assert!(
            seen.get(&step)
                .is_none_or(|first| first.to_bits() == loss.to_bits()),
            "step {step}"
        );
    }
    let fetched = peer.fetch_run(run.id, Some(&run), &mut |_| {}).await.unwrap();
    assert_eq!(fetched.weights.len(), 4);
    assert_eq!(fetched.receipt.run.resumed_by.len(), 3);
    let (committed, reserved, _) = epsilon_of(&peer, "north").await;
    assert_eq!(
        (committed, reserved),
        (quote.charges[0].cost.epsilon.units(), 0),
        "one charge"
    );
    server.kill();
}
