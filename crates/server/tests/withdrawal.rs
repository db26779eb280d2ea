//! An owner stops lending: withdrawal, removal, and the receipts of what was charged.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::datasets::{DatasetState, MayTrain, Policy};
use bastionai_client::runs::RunState;
use bastionai_client::{AppraisalPolicy, ClientError, DatasetId, RunId, audit_receipt};
use common::{
    TestServer, epsilon_of, identity, now_unix_ms, open_policy, spec, start, upload, upload_mlp,
    upload_under, watch,
};

/// Waits until the run has released its first step.
async fn first_step(peer: &bastionai_client::AppraisedPeer, run: RunId) {
    let mut progress = peer.watch_run(run, 0).await.unwrap();
    while common::timeout(progress.next()).await.unwrap().unwrap().step == 0 {}
}

#[tokio::test]
async fn a_withdrawn_dataset_takes_no_new_run_and_a_running_one_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    // 100 steps of 20 ms, one trainer at a time.
    let server = TestServer::start_with(directory.path(), "normal-20", |config| {
        config.limits.concurrent_runs = 1
    })
    .await;
    let owner = server.peer(&identity()).await;
    let scientist = server.peer(&identity()).await;
    let id = upload(&owner, "north", "6.0").await;
    let running = start(&scientist, &[id], 1.0, 100).await;
    first_step(&scientist, running).await;
    let queued = start(&scientist, &[id], 1.5, 5).await;
    let model = upload_mlp(&scientist).await;
    let priced = scientist.price(&spec(model, &[id], 0.5, 5)).await.unwrap();

    let withdrawn = owner.withdraw_dataset(id).await.unwrap();
    assert_eq!(
        (withdrawn.state, withdrawn.trainable_by_caller),
        (DatasetState::Withdrawn, false)
    );
    let again = owner.withdraw_dataset(id).await.unwrap();
    assert_eq!(
        again.state,
        DatasetState::Withdrawn,
        "asked again, the answer is the same"
    );
    for error in [
        scientist.start_run(priced.run_digest).await.unwrap_err(),
        scientist.price(&spec(model, &[id], 0.7, 5)).await.unwrap_err(),
    ] {
        assert!(
            matches!(&error, ClientError::NotAllowed(what) if what.contains("withdrawn")),
            "{error}"
        );
    }
    assert!(
        scientist.list_datasets().await.unwrap().is_empty(),
        "what is not lent is its owner's to see"
    );
    assert_eq!(owner.list_datasets().await.unwrap().len(), 1);

    assert_eq!(watch(&scientist, running).await.1, RunState::Succeeded);
    assert_eq!(
        watch(&scientist, queued).await.1,
        RunState::Failed,
        "it had not started when the dataset was withdrawn"
    );
    let (committed, reserved, _) = epsilon_of(&owner, "north").await;
    assert!(committed > 900_000_000 && committed <= 1_000_000_000 && reserved == 0);
    scientist.fetch_run(running, None, &mut |_| {}).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_removed_dataset_is_gone_from_disk_and_its_account_stays() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-20", |config| {
        // Room for one dataset and the entry of another (64 KiB each), not for the records of two.
        config.limits.stored_bytes_per_principal = 134_000;
    })
    .await;
    let me = identity();
    let owner = server.peer(&me).await;
    let id = upload(&owner, "north", "6.0").await;
    let quota = owner
        .upload_dataset(
            &common::dataset("south", open_policy("6.0", "1e-5")),
            vec![common::rows(40, 1.0)],
            &mut |_| {},
        )
        .await;
    assert!(matches!(quota, Err(ClientError::LimitExceeded(_))), "{quota:?}");
    let run = start(&owner, &[id], 1.0, 200).await;
    first_step(&owner, run).await;
    let refused = owner.remove_dataset(id).await.unwrap_err();
    assert_eq!(refused.server_reason(), Some("dataset-in-use"), "{refused}");
    let text = refused.to_string();
    assert!(
        text.contains(&run.to_string()) && text.contains("withdraw"),
        "{text}"
    );
    owner.cancel_run(run).await.unwrap();
    let blocks = directory.path().join("data/blocks");
    assert!(files(&blocks) > 0);

    let removed = owner.remove_dataset(id).await.unwrap();
    assert_eq!(removed.state, DatasetState::Removed);
    assert_eq!(files(&blocks), 0, "its blocks are deleted");
    assert_eq!(
        owner.remove_dataset(id).await.unwrap().state,
        DatasetState::Removed
    );
    let taken = owner
        .upload_dataset(
            &common::dataset("north", open_policy("6.0", "1e-5")),
            vec![common::rows(40, 1.0)],
            &mut |_| {},
        )
        .await;
    assert!(
        matches!(taken, Err(ClientError::NameTaken(_))),
        "no new budget under the old name: {taken:?}"
    );
    upload(&owner, "south", "6.0").await; // the room is free again
    let account = epsilon_of(&owner, "north").await;
    server.stop().await;
    let server = TestServer::start(directory.path(), "normal-0").await;
    let owner = server.peer(&me).await;
    assert_eq!(epsilon_of(&owner, "north").await, account);
    server.stop().await;
}

#[tokio::test]
async fn only_its_owner_may_stop_lending_and_others_cannot_tell_whether_it_exists() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let id = upload(&server.peer(&identity()).await, "north", "6.0").await;
    let stranger = server.peer(&identity()).await;
    let unknown = DatasetId::from_bytes([9; 16]);
    let mut answers = Vec::new();
    for dataset in [id, unknown] {
        for error in [
            stranger.withdraw_dataset(dataset).await.unwrap_err(),
            stranger.remove_dataset(dataset).await.unwrap_err(),
        ] {
            assert!(matches!(error, ClientError::NotFound(_)), "{error}");
            answers.push(error.to_string());
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(
        stranger.list_datasets().await.unwrap()[0].state,
        DatasetState::Offered
    );
    server.stop().await;
}

#[tokio::test]
async fn an_owner_without_weights_gets_the_receipt_of_each_run_that_charged_them() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-20").await;
    let owner = server.peer(&identity()).await;
    let co_owner = server.peer(&identity()).await;
    let scientist = server.peer(&identity()).await;
    let stranger = server.peer(&identity()).await;
    let ids = [
        upload(&owner, "north", "6.0").await,
        upload_under(
            &co_owner,
            "south",
            Policy {
                may_train: MayTrain::Anyone,
                ..open_policy("5.0", "1e-5")
            },
        )
        .await,
    ];
    let run = start(&scientist, &ids, 1.0, 5).await;
    assert_eq!(watch(&scientist, run).await.1, RunState::Succeeded);
    let weights = owner.fetch_run(run, None, &mut |_| {}).await.unwrap_err();
    assert!(matches!(weights, ClientError::NotAllowed(_)), "{weights}");
    for peer in [&owner, &co_owner, &scientist] {
        let fetched = peer.fetch_receipt(run, None).await.unwrap();
        assert_eq!(fetched.receipt.run.id, run);
        assert!(fetched.receipt.datasets.iter().all(|d| d.epsilon.units() > 0));
        let policy = AppraisalPolicy::insecure_development();
        audit_receipt(&fetched.receipt_dsse_json, &policy, now_unix_ms()).unwrap();
    }
    let nobodys = stranger.fetch_receipt(run, None).await.unwrap_err();
    assert!(matches!(nobodys, ClientError::NotFound(_)), "{nobodys}");

    let cancelled = start(&scientist, &ids, 1.0, 500).await;
    first_step(&scientist, cancelled).await;
    let early = owner.fetch_receipt(cancelled, None).await.unwrap_err();
    assert_eq!(early.server_reason(), Some("not-releasable"), "{early}");
    scientist.cancel_run(cancelled).await.unwrap();
    let receipt = owner.fetch_receipt(cancelled, None).await.unwrap().receipt;
    assert!(
        receipt.run.weights_digest.is_none(),
        "it was charged and has no weights"
    );
    server.stop().await;
}

fn files(path: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.path().is_dir() {
            true => files(&entry.path()),
            false => 1,
        })
        .sum()
}
