//! Evaluations with the stand-in trainer: held-out datasets, money, permissions, what is released and to whom.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::datasets::{MayTrain, Policy};
use bastionai_client::evaluation::{EvaluationQuote, EvaluationSpec, Metric};
use bastionai_client::runs::{Privacy, Run, RunKind, RunState};
use bastionai_client::session::AppraisedPeer;
use bastionai_client::{ClientError, DatasetId, Digest32, HeadMemory, RunId};
use common::process::ServerProcess;
use common::{
    TestServer, epsilon_of, identity, open_policy, spec, start, try_peer, upload, upload_mlp, upload_under,
    watch,
};
use std::time::Duration;

const SCORES: &[u8] = include_bytes!("fixtures/scores.pt2");
const LEAKY: &[u8] = include_bytes!("fixtures/leaky_scores.pt2");

fn held_out(epsilon: &str) -> Policy {
    Policy {
        evaluation_only: true,
        ..open_policy(epsilon, "1e-5")
    }
}

fn evaluation(model_id: Digest32, datasets: &[DatasetId], epsilon: f64) -> EvaluationSpec {
    EvaluationSpec {
        model_id,
        dataset_ids: datasets.to_vec(),
        input_columns: vec!["x".into(), "y".into()],
        model_name: "mlp".into(),
        confusion: true,
        score_bins: Some(16),
        privacy: Privacy::TargetEpsilon(epsilon),
        target_delta: None,
        max_batch_size: 0,
        weights: None,
    }
}

/// Prices an evaluation at ε = 0.5 and starts it.
async fn started(peer: &AppraisedPeer, model: Digest32, dataset: DatasetId) -> (EvaluationQuote, Run) {
    let spec = evaluation(model, &[dataset], 0.5);
    let quote = peer.price_evaluation(&spec).await.unwrap();
    let run = peer.start_run(quote.run_digest).await.unwrap();
    (quote, run)
}

/// The same on `north.test`, which it uploads, with the model.
async fn uploaded_and_started(peer: &AppraisedPeer) -> (EvaluationQuote, Run) {
    let id = upload_under(peer, "north.test", held_out("2.0")).await;
    let model = peer.upload_model("scores", SCORES, &mut |_| {}).await.unwrap();
    started(peer, model, id).await
}

async fn entries(peer: &AppraisedPeer, run: RunId) -> Vec<String> {
    let shown = peer.show_ledger(Some(*run.as_bytes())).await.unwrap();
    shown.entries.into_iter().map(|entry| entry.kind).collect()
}

/// How often a run was reserved, started and committed.
async fn milestones(peer: &AppraisedPeer, run: RunId) -> [usize; 3] {
    let entries = entries(peer, run).await;
    ["evaluation_reserved", "run_started", "run_committed"]
        .map(|kind| entries.iter().filter(|entry| *entry == kind).count())
}

async fn is_running(peer: &AppraisedPeer) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while peer.list_runs().await.unwrap()[0].state != RunState::Running {
        assert!(std::time::Instant::now() < deadline, "it starts");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_evaluation_is_a_run_that_releases_noisy_histograms_with_a_receipt() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let owner = server.peer(&identity()).await;
    let id = upload_under(&owner, "north.test", held_out("2.0")).await;
    let scientist = server.peer(&identity()).await;
    let model = scientist
        .upload_model("scores", SCORES, &mut |_| {})
        .await
        .unwrap();
    let quote = scientist
        .price_evaluation(&evaluation(model, &[id], 0.5))
        .await
        .unwrap();
    let cost = quote.charges[0].cost;
    assert!(
        cost.epsilon.to_f64() <= 0.5 && cost.epsilon.to_f64() > 0.49,
        "{cost}"
    );
    assert_eq!((quote.classes, quote.declared_size), (2, 64));
    assert!((quote.noise_standard_deviation - quote.noise_multiplier * 2f64.sqrt()).abs() < 1e-9);
    assert!(
        quote.warnings.iter().any(|warning| warning.contains("drowns")),
        "64 records at ε = 0.5"
    );

    let run = scientist.start_run(quote.run_digest).await.unwrap();
    let (losses, state) = watch(&scientist, run.id).await;
    assert_eq!((losses.len(), state), (0, RunState::Succeeded));
    let evaluation = scientist
        .fetch_evaluation(run.id, Some(&run), &[], &mut |_| {})
        .await
        .unwrap();
    // The stand-in's counts are the cells' numbers.
    let confusion = evaluation.confusion.unwrap();
    assert_eq!(confusion.counts, [[0, 1, 2], [3, 4, 5]]);
    assert_eq!(evaluation.metrics.len(), 4, "accuracy, auroc, f1, f1_macro");
    assert_eq!(evaluation.receipt.run.kind, RunKind::Evaluation);
    assert_eq!(evaluation.receipt.run.run_digest, quote.run_digest);
    assert_eq!(evaluation.receipt.datasets[0].name, "north.test");
    let (committed, reserved, _) = epsilon_of(&scientist, "north.test").await;
    assert_eq!((committed, reserved), (cost.epsilon.units(), 0));

    let listed = owner.list_runs().await.unwrap();
    assert_eq!(
        (listed.len(), listed[0].kind, listed[0].steps),
        (1, RunKind::Evaluation, 1)
    );
    let entries = owner.show_ledger(Some(*id.as_bytes())).await.unwrap().entries;
    let kinds: Vec<_> = entries.iter().map(|entry| entry.kind.as_str()).collect();
    assert!(
        kinds.contains(&"evaluation_reserved") && kinds.contains(&"released"),
        "{kinds:?}"
    );
    server.stop().await;
}

#[tokio::test]
async fn two_evaluations_are_two_charges_and_the_budget_ends() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let id = upload_under(&peer, "north.test", held_out("1.2")).await;
    let model = peer.upload_model("scores", SCORES, &mut |_| {}).await.unwrap();
    for _ in 0..2 {
        let (_, run) = started(&peer, model, id).await;
        assert_eq!(watch(&peer, run.id).await.1, RunState::Succeeded);
    }
    let (committed, _, remaining) = epsilon_of(&peer, "north.test").await;
    let quote = peer
        .price_evaluation(&evaluation(model, &[id], 0.5))
        .await
        .unwrap();
    assert_eq!(committed, 2 * quote.charges[0].cost.epsilon.units());
    assert!(!quote.is_affordable());
    let error = peer.start_run(quote.run_digest).await.unwrap_err();
    assert!(matches!(error, ClientError::BudgetExceeded(_)), "{error}");
    assert_eq!(epsilon_of(&peer, "north.test").await.2, remaining);
    server.stop().await;
}

#[tokio::test]
async fn nobody_trains_on_a_held_out_dataset_and_only_those_named_evaluate_on_it() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let (owner, invited, stranger) = (identity(), identity(), identity());
    let policy = Policy {
        may_train: MayTrain::Only(vec![invited.principal(), owner.principal()]),
        ..held_out("2.0")
    };
    let owner = server.peer(&owner).await;
    let id = upload_under(&owner, "north.test", policy).await;
    let shown = owner.list_datasets().await.unwrap();
    assert!(shown[0].policy.evaluation_only);
    assert!(matches!(&shown[0].policy.may_train, MayTrain::Only(named) if named.len() == 2));
    assert!(shown[0].evaluable_by_caller && !shown[0].trainable_by_caller);

    let model = upload_mlp(&owner).await;
    let error = owner.price(&spec(model, &[id], 1.0, 5)).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::NotAllowed(text) if text.contains("held out")),
        "{error}"
    );

    let stranger = server.peer(&stranger).await;
    let scores = stranger
        .upload_model("scores", SCORES, &mut |_| {})
        .await
        .unwrap();
    let error = stranger
        .price_evaluation(&evaluation(scores, &[id], 0.5))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, ClientError::NotAllowed(text) if text.contains("evaluate")),
        "{error}"
    );
    let invited = server.peer(&invited).await;
    let scores = invited.upload_model("scores", SCORES, &mut |_| {}).await.unwrap();
    invited
        .price_evaluation(&evaluation(scores, &[id], 0.5))
        .await
        .unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_training_dataset_can_be_evaluated_on_with_a_warning_and_pools_are_counted_together() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let ids = [
        upload(&peer, "north", "6.0").await,
        upload(&peer, "east", "6.0").await,
    ];
    let model = peer.upload_model("scores", SCORES, &mut |_| {}).await.unwrap();
    let quote = peer
        .price_evaluation(&evaluation(model, &ids, 0.5))
        .await
        .unwrap();
    assert_eq!((quote.declared_size, quote.charges.len()), (128, 2));
    let warned = |name: &str| quote.warnings.iter().any(|warning| warning.contains(name));
    assert!(
        warned("`north` is not held out") && warned("`east` is not held out"),
        "{:?}",
        quote.warnings
    );
    let training = start(&peer, &ids, 1.0, 3).await;
    assert_eq!(watch(&peer, training).await.1, RunState::Succeeded);
    let error = peer
        .fetch_evaluation(training, None, &[], &mut |_| {})
        .await
        .unwrap_err();
    assert!(error.to_string().contains("trained a model"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn models_and_numbers_that_cannot_be_evaluated_are_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let id = upload_under(&peer, "north.test", held_out("2.0")).await;
    let loss = upload_mlp(&peer).await;
    let leaky = peer.upload_model("leaky", LEAKY, &mut |_| {}).await.unwrap();
    let scores = peer.upload_model("scores", SCORES, &mut |_| {}).await.unwrap();
    let good = evaluation(scores, &[id], 0.5);
    let refused = async |spec: EvaluationSpec| peer.price_evaluation(&spec).await.unwrap_err();

    let error = refused(evaluation(loss, &[id], 0.5)).await;
    assert!(
        matches!(&error, ClientError::GraphRefused { message, .. } if message.contains("two tensors: scores and label")),
        "{error}"
    );
    let error = refused(evaluation(leaky, &[id], 0.5)).await;
    assert!(
        matches!(&error, ClientError::GraphRefused { message, .. } if message.contains("mean")),
        "{error}"
    );
    let error = peer.price(&spec(scores, &[id], 1.0, 5)).await.unwrap_err();
    assert!(matches!(error, ClientError::NotAllowed(_)), "{error}");

    for (words, bad) in [
        (
            "target_epsilon",
            EvaluationSpec {
                privacy: Privacy::TargetEpsilon(0.0),
                ..good.clone()
            },
        ),
        (
            "target_epsilon",
            EvaluationSpec {
                privacy: Privacy::TargetEpsilon(-1.0),
                ..good.clone()
            },
        ),
        (
            "score bins",
            EvaluationSpec {
                score_bins: Some(7),
                ..good.clone()
            },
        ),
        (
            "neither a confusion",
            EvaluationSpec {
                score_bins: None,
                confusion: false,
                ..good.clone()
            },
        ),
        (
            "named twice",
            EvaluationSpec {
                dataset_ids: vec![id, id],
                ..good.clone()
            },
        ),
        (
            "inputs",
            EvaluationSpec {
                input_columns: vec!["x".into()],
                ..good.clone()
            },
        ),
    ] {
        let error = refused(bad).await.to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    let error = refused(EvaluationSpec {
        dataset_ids: vec![DatasetId::from_bytes([9; 16])],
        ..good
    })
    .await;
    assert!(matches!(error, ClientError::NotFound(_)), "{error}");
    server.stop().await;
}

/// A trainer that sends too few counts: nothing is released, nobody hears why, and the charge stays (D5).
#[tokio::test]
async fn a_trainer_that_sends_something_else_fails_the_evaluation() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "short-0").await;
    let peer = server.peer(&identity()).await;
    let (quote, run) = uploaded_and_started(&peer).await;
    assert_eq!(watch(&peer, run.id).await.1, RunState::Failed);
    let charged = quote.charges[0].cost.epsilon.units();
    assert_eq!(epsilon_of(&peer, "north.test").await.0, charged);
    let error = peer
        .fetch_evaluation(run.id, None, &[Metric::Accuracy], &mut |_| {})
        .await
        .unwrap_err();
    assert!(!error.to_string().contains("short"), "{error}");
    server.stop().await;
}

/// Started it stays charged in full, and there is nothing to fetch (D5).
#[tokio::test]
async fn a_cancelled_evaluation_releases_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-60000").await;
    let peer = server.peer(&identity()).await;
    let (quote, run) = uploaded_and_started(&peer).await;
    is_running(&peer).await;
    let ended = peer.cancel_run(run.id).await.unwrap();
    assert_eq!((ended.state, ended.released_step), (RunState::Cancelled, 0));
    assert_eq!(
        epsilon_of(&peer, "north.test").await.0,
        quote.charges[0].cost.epsilon.units()
    );
    assert!(
        peer.fetch_evaluation(run.id, None, &[], &mut |_| {})
            .await
            .is_err()
    );
    server.stop().await;
}

/// Rule D1: killed anywhere between start and release, an evaluation is charged once and has one histogram, which a
/// client that got it gets again. The trainer's first count is fresh each time it is computed.
#[tokio::test]
async fn an_evaluation_survives_kills_of_its_server_is_charged_once_and_released_once() {
    let directory = tempfile::tempdir().unwrap();
    let (me, heads) = (identity(), HeadMemory::in_process());
    let boot = async || {
        let server = ServerProcess::start(directory.path(), "fresh-40", |config| {
            config.limits.starts_per_day = u32::MAX;
        });
        let peer = try_peer(&server.address, &me, &heads).await;
        (server, peer.expect("the ledger extends what was seen"))
    };
    let (server, peer) = boot().await;
    let id = upload_under(&peer, "north.test", held_out("200")).await;
    drop(server);
    let mut spent = 0;
    let mut redone = 0;
    for milliseconds in [0, 5, 15, 30, 45, 60, 75, 90, 120, 150] {
        let (server, peer) = boot().await;
        let model = peer.upload_model("scores", SCORES, &mut |_| {}).await.unwrap();
        let (quote, run) = started(&peer, model, id).await;
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        server.kill();
        // Once more in the middle of its second life.
        let (server, peer) = boot().await;
        let cost = quote.charges[0].cost.epsilon.units();
        let (committed, reserved, _) = epsilon_of(&peer, "north.test").await;
        assert_eq!(
            committed + reserved,
            spent + cost,
            "killed after {milliseconds} ms"
        );
        tokio::time::sleep(Duration::from_millis(milliseconds / 2)).await;
        server.kill();

        let (server, peer) = boot().await;
        assert_eq!(watch(&peer, run.id).await.1, RunState::Succeeded);
        let first = peer
            .fetch_evaluation(run.id, None, &[], &mut |_| {})
            .await
            .unwrap();
        server.kill();
        let (server, peer) = boot().await;
        let again = peer
            .fetch_evaluation(run.id, None, &[], &mut |_| {})
            .await
            .unwrap();
        assert_eq!(first.confusion.unwrap().counts, again.confusion.unwrap().counts);
        assert_eq!(milestones(&peer, run.id).await, [1, 1, 1]);
        redone += u64::from(entries(&peer, run.id).await.contains(&"run_resumed".to_owned()));
        spent += cost;
        let (committed, reserved, _) = epsilon_of(&peer, "north.test").await;
        assert_eq!(
            (committed, reserved),
            (spent, 0),
            "killed after {milliseconds} ms"
        );
        server.kill();
    }
    assert!(redone >= 3, "{redone} of 10 were cut off: this test shows little");
}

/// Neither killed nor waited for: it ends at its next batch, long before the drain's patience does.
#[tokio::test]
async fn a_drained_evaluation_stops_at_once_and_is_redone_by_the_next_boot() {
    let directory = tempfile::tempdir().unwrap();
    let (me, heads) = (identity(), HeadMemory::in_process());
    let patient = |config: &mut bastionai_server::Config| config.trainer.drain_timeout_ms = 50_000;
    let server = TestServer::start_with(directory.path(), "fresh-2500", patient).await;
    let peer = try_peer(&server.address.to_string(), &me, &heads).await.unwrap();
    let (quote, run) = uploaded_and_started(&peer).await;
    is_running(&peer).await;
    drop(peer);
    let since = std::time::Instant::now();
    server.stop().await;
    let took = since.elapsed();
    assert!(
        took < Duration::from_secs(20),
        "it waited for the drain to end: {took:?}"
    );

    let server = TestServer::start_with(directory.path(), "fresh-2500", patient).await;
    let peer = try_peer(&server.address.to_string(), &me, &heads).await.unwrap();
    assert_eq!(watch(&peer, run.id).await.1, RunState::Succeeded);
    let found = entries(&peer, run.id).await;
    assert!(
        found.contains(&"run_resumed".to_owned()),
        "it was stopped before its release: {found:?}"
    );
    assert_eq!(milestones(&peer, run.id).await, [1, 1, 1]);
    let (committed, reserved, _) = epsilon_of(&peer, "north.test").await;
    assert_eq!((committed, reserved), (quote.charges[0].cost.epsilon.units(), 0));
    peer.fetch_evaluation(run.id, None, &[], &mut |_| {})
        .await
        .unwrap();
    server.stop().await;
}
