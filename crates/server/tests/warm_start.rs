//! Runs that start from weights which the server holds. The stand-in trainer hands its initial parameters back as
//! the trained weights, but for the first two numbers, so what is fetched is what the run began with.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::datasets::Policy;
use bastionai_client::runs::{RunSpec, RunState, RunWeights, WeightsSource};
use bastionai_client::{AppraisedPeer, ClientError, DatasetId, Digest32, RunId};
use bastionai_graph::archive::{Archive, Limits};
use common::{
    LEAKY, TestServer, WIDE, identity, open_policy, spec, start, upload, upload_mlp, upload_under, watch,
};

/// The parameters of an archive by first name.
fn parameters(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let archive = Archive::read(archive, &Limits::default()).unwrap();
    let described = archive.program().parameters().iter().enumerate();
    let tensors = described
        .map(|(index, each)| {
            (
                each.names[0].clone(),
                archive.parameter_bytes(index).unwrap().to_vec(),
            )
        })
        .collect();
    unstamped(tensors)
}

/// Without the two numbers that the stand-in writes steps into.
fn unstamped(mut tensors: Vec<(String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    tensors[0].1.drain(..8);
    tensors
}

/// What a run was given, as its weights, by first name.
async fn weights(peer: &AppraisedPeer, run: RunId) -> Vec<(String, Vec<u8>)> {
    let fetched = peer.fetch_run(run, None, &mut |_| {}).await.unwrap();
    let tensors = fetched.weights.into_iter();
    unstamped(
        tensors
            .map(|tensor| (tensor.names[0].clone(), tensor.bytes))
            .collect(),
    )
}

fn from_run(run: RunId) -> Option<WeightsSource> {
    Some(WeightsSource::Run(RunWeights {
        run,
        step: None,
        ema: false,
    }))
}

fn starting_from(source: Option<WeightsSource>, model: Digest32, dataset: DatasetId) -> RunSpec {
    RunSpec {
        initial_weights: source,
        ..spec(model, &[dataset], 0.5, 3)
    }
}

async fn train(peer: &AppraisedPeer, spec: &RunSpec) -> RunId {
    let quote = peer.price(spec).await.unwrap();
    assert_eq!(quote.spec.initial_weights, spec.initial_weights);
    let run = peer.start_run(quote.run_digest).await.unwrap().id;
    assert_eq!(watch(peer, run).await.1, RunState::Succeeded);
    run
}

#[tokio::test]
async fn a_run_starts_from_another_archive_or_from_an_earlier_run_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let me = identity();
    let peer = server.peer(&me).await;
    let dataset = upload(&peer, "north", "6.0").await;
    let (mlp, other) = (
        upload_mlp(&peer).await,
        peer.upload_model("other", LEAKY, &mut |_| {}).await.unwrap(),
    );
    let plain = train(&peer, &starting_from(None, mlp, dataset)).await;
    assert_eq!(weights(&peer, plain).await, parameters(common::MLP));
    // The other archive's graph is one that the checker refuses: only its numbers are used.
    let source = Some(WeightsSource::Model(other));
    let second = train(&peer, &starting_from(source, mlp, dataset)).await;
    assert_eq!(weights(&peer, second).await, parameters(LEAKY));
    let third = train(&peer, &starting_from(from_run(second), mlp, dataset)).await;
    assert_eq!(weights(&peer, third).await, parameters(LEAKY));
    server.stop().await;

    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&me).await;
    let gone = peer
        .price(&starting_from(source, mlp, dataset))
        .await
        .unwrap_err();
    assert!(
        matches!(gone, ClientError::NotFound(_)),
        "archives live as long as a boot: {gone}"
    );
    let mlp = upload_mlp(&peer).await;
    let fourth = train(&peer, &starting_from(from_run(third), mlp, dataset)).await;
    assert_eq!(weights(&peer, fourth).await, parameters(LEAKY));
    server.stop().await;
}

#[tokio::test]
async fn the_initial_weights_are_in_the_run_digest() {
    let directory = tempfile::tempdir().unwrap();
    // The boot, the ledger's head and the expiry are the same for both: only one thing differs.
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let dataset = upload(&peer, "north", "6.0").await;
    let mlp = upload_mlp(&peer).await;
    let other = peer.upload_model("other", LEAKY, &mut |_| {}).await.unwrap();
    let own = peer
        .price(&starting_from(Some(WeightsSource::Model(mlp)), mlp, dataset))
        .await
        .unwrap();
    let others = peer
        .price(&starting_from(Some(WeightsSource::Model(other)), mlp, dataset))
        .await
        .unwrap();
    assert_ne!(own.run_digest, others.run_digest);
    assert_eq!(own.graph_digest, others.graph_digest);
    server.stop().await;
}

#[tokio::test]
async fn only_those_who_may_receive_a_runs_weights_start_from_them() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let (owner, scientist, recipient) = (identity(), identity(), identity());
    let secret = Policy {
        scientist_receives: false,
        recipients: vec![recipient.principal()],
        ..open_policy("6.0", "1e-5")
    };
    let owner = server.peer(&owner).await;
    let (secret, open) = (
        upload_under(&owner, "secret", secret).await,
        upload(&owner, "open", "6.0").await,
    );
    let scientist = server.peer(&scientist).await;
    let run = start(&scientist, &[secret], 0.5, 3).await;
    assert_eq!(watch(&scientist, run).await.1, RunState::Succeeded);

    let refusal = |peer: AppraisedPeer| async move {
        let mlp = upload_mlp(&peer).await;
        peer.price(&starting_from(from_run(run), mlp, open))
            .await
            .unwrap_err()
    };
    let error = refusal(scientist).await;
    assert!(matches!(error, ClientError::NotAllowed(_)), "{error}");
    let error = refusal(server.peer(&identity()).await).await;
    assert!(
        matches!(error, ClientError::NotFound(_)),
        "a stranger learns of no run: {error}"
    );

    let recipient = server.peer(&recipient).await;
    let mlp = upload_mlp(&recipient).await;
    let entries = |entries: Vec<bastionai_client::LedgerEntry>| {
        entries.iter().filter(|entry| entry.kind == "released").count()
    };
    let before = entries(recipient.show_ledger(None).await.unwrap().entries);
    let next = train(&recipient, &starting_from(from_run(run), mlp, open)).await;
    let after = entries(recipient.show_ledger(None).await.unwrap().entries);
    assert_eq!(before, after, "nothing left the server");
    assert_eq!(weights(&recipient, next).await, parameters(common::MLP));

    let stranger = server.peer(&identity()).await;
    let own = upload_mlp(&stranger).await;
    recipient
        .upload_model("theirs", LEAKY, &mut |_| {})
        .await
        .unwrap();
    let theirs = Some(WeightsSource::Model(Digest32::of(LEAKY)));
    let error = stranger
        .price(&starting_from(theirs, own, open))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ClientError::NotFound(_)),
        "another's archive: {error}"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_run_without_weights_is_no_source() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-50").await;
    let peer = server.peer(&identity()).await;
    let dataset = upload(&peer, "north", "6.0").await;
    let mlp = upload_mlp(&peer).await;
    let run = start(&peer, &[dataset], 0.5, 1000).await;
    let running = peer
        .price(&starting_from(from_run(run), mlp, dataset))
        .await
        .unwrap_err();
    assert_eq!(running.server_reason(), Some("not-releasable"), "{running}");
    peer.cancel_run(run).await.unwrap();
    let cancelled = peer
        .price(&starting_from(from_run(run), mlp, dataset))
        .await
        .unwrap_err();
    assert_eq!(cancelled.server_reason(), Some("not-releasable"), "{cancelled}");
    server.stop().await;
}

#[tokio::test]
async fn weights_that_do_not_fit_are_refused_with_every_mismatch() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let dataset = upload(&peer, "north", "6.0").await;
    let mlp = upload_mlp(&peer).await;
    let wide = peer.upload_model("wide", WIDE, &mut |_| {}).await.unwrap();
    let source = Some(WeightsSource::Model(wide));
    let error = peer
        .price(&starting_from(source, mlp, dataset))
        .await
        .unwrap_err();
    assert_eq!(error.server_reason(), Some("weights-mismatch"), "{error}");
    let text = error.to_string();
    for part in [
        "4 of 6 tensors",
        "`first.weight` is float32[9, 4] there and float32[8, 4] in this model",
        "`first.bias` is float32[9]",
        "`middle.weight` is no parameter of this model",
    ] {
        assert!(text.contains(part), "{part} missing in: {text}");
    }
    assert!(!text.contains("second"), "what fits is not listed: {text}");
    server.stop().await;
}
