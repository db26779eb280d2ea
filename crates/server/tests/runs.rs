//! Runs from price to weights with the stand-in trainer: money, permissions, watchers, ends.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::ClientError;
use bastionai_client::datasets::{MayTrain, Policy};
use bastionai_client::runs::{Privacy, RunState};
use common::{
    TestServer, epsilon_of, identity, open_policy, spec, start, upload, upload_mlp, upload_under, watch,
};
use std::time::Duration;

#[tokio::test]
async fn three_owners_one_model_from_upload_to_receipt() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let mut ids = Vec::new();
    for name in ["north", "east", "south"] {
        ids.push(upload(&server.peer(&identity()).await, name, "6.0").await);
    }
    let scientist = server.peer(&identity()).await;
    let model = upload_mlp(&scientist).await;
    let quote = scientist.price(&spec(model, &ids, 2.0, 30)).await.unwrap();
    assert_eq!(quote.declared_size, 3 * 64);
    assert!((quote.sample_rate - 16.0 / 192.0).abs() < 1e-12);
    assert_eq!(
        quote.truncated_batch_size,
        u64::from(quote.micro_batches) * u64::from(quote.physical_batch_size)
    );
    assert_eq!(quote.trainable_parameters, 4 * 8 + 8 + 8 * 2 + 2);
    assert!(quote.is_affordable() && quote.charges.len() == 3);
    let cost = quote.charges[0].cost;
    assert!(
        cost.epsilon.to_f64() <= 2.0 && cost.epsilon.to_f64() > 1.9,
        "calibrated close to its target: {cost}"
    );
    assert_eq!(
        cost.delta.to_string().parse::<f64>().unwrap(),
        1e-6,
        "a tenth of the lifetime's"
    );

    let run = scientist.start_run(quote.run_digest).await.unwrap();
    let again = scientist.start_run(quote.run_digest).await.unwrap();
    assert_eq!(run.id, again.id, "the same quote is the same run");
    let (losses, state) = watch(&scientist, run.id).await;
    assert_eq!(state, RunState::Succeeded);
    assert_eq!(
        losses.iter().map(|(step, _)| *step).collect::<Vec<_>>(),
        (1..=30).collect::<Vec<_>>()
    );
    let (replayed, _) = watch(&scientist, run.id).await;
    assert_eq!(replayed, losses, "released values are stored, never recomputed");

    let fetched = scientist.fetch_run(run.id, None, &mut |_| {}).await.unwrap();
    assert_eq!(fetched.receipt.run.run_digest, quote.run_digest);
    assert_eq!(fetched.receipt.datasets.len(), 3);
    assert_eq!(fetched.weights.len(), 4);
    for name in ["north", "east", "south"] {
        let (committed, reserved, _) = epsilon_of(&scientist, name).await;
        assert_eq!((committed, reserved), (cost.epsilon.units(), 0));
    }
    let kinds: Vec<String> = scientist
        .show_ledger(None)
        .await
        .unwrap()
        .entries
        .into_iter()
        .map(|entry| entry.kind)
        .collect();
    for kind in [
        "genesis",
        "boot_started",
        "dataset_created",
        "run_reserved",
        "run_started",
        "run_advanced",
        "run_committed",
        "released",
    ] {
        assert!(
            kinds.iter().any(|found| found == kind),
            "{kind} missing in {kinds:?}"
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn a_budget_is_never_exceeded_and_says_what_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let id = upload(&peer, "north", "2.5").await;
    let first = start(&peer, &[id], 2.0, 5).await;
    assert_eq!(watch(&peer, first).await.1, RunState::Succeeded);
    let model = upload_mlp(&peer).await;
    let quote = peer.price(&spec(model, &[id], 1.0, 5)).await.unwrap();
    assert!(!quote.is_affordable());
    let error = peer.start_run(quote.run_digest).await.unwrap_err();
    assert!(matches!(error, ClientError::BudgetExceeded(_)), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("budget exceeded") && text.contains("north") && text.contains("is left"),
        "{text}"
    );
    assert!(epsilon_of(&peer, "north").await.0 <= 2_000_000_000);
    server.stop().await;
}

#[tokio::test]
async fn runs_racing_for_the_last_of_a_budget_cannot_both_have_it() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-5", |config| {
        config.limits.concurrent_runs = 4
    })
    .await;
    let owner = server.peer(&identity()).await;
    let (first, second) = (
        upload(&owner, "north", "3.0").await,
        upload(&owner, "east", "9.0").await,
    );
    let mut racers = Vec::new();
    for index in 0..6 {
        let peer = server.peer(&identity()).await;
        let model = upload_mlp(&peer).await;
        let ids = if index % 2 == 0 {
            vec![first, second]
        } else {
            vec![second, first]
        };
        let quote = peer.price(&spec(model, &ids, 2.0, 10)).await.unwrap();
        racers.push(tokio::spawn(async move {
            peer.start_run(quote.run_digest).await.map(|run| (peer, run.id))
        }));
    }
    let mut winners = Vec::new();
    for racer in racers {
        match racer.await.unwrap() {
            Ok(winner) => winners.push(winner),
            Err(error) => assert!(matches!(error, ClientError::BudgetExceeded(_)), "{error}"),
        }
    }
    assert_eq!(winners.len(), 1);
    let (committed, reserved, _) = epsilon_of(&owner, "east").await;
    assert!(
        committed + reserved <= 2_000_000_000,
        "a refused run holds nothing on its other datasets"
    );
    let (peer, run) = &winners[0];
    assert_eq!(watch(peer, *run).await.1, RunState::Succeeded);
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_priced_is_refused_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    let model = upload_mlp(&peer).await;

    let error = peer.price(&spec(model, &[id, id], 1.0, 5)).await.unwrap_err();
    assert_eq!(error.server_reason(), Some("same-dataset-twice"), "{error}");

    let mut columns = spec(model, &[id], 1.0, 5);
    columns.input_columns[1] = "z".into();
    assert!(peer.price(&columns).await.unwrap_err().to_string().contains('z'));

    let mut batch = spec(model, &[id], 1.0, 5);
    batch.batch_size = 65;
    assert!(peer.price(&batch).await.unwrap_err().to_string().contains("64"));

    let mut noise = spec(model, &[id], 1.0, 5);
    noise.privacy = Privacy::NoiseMultiplier(0.0);
    assert_eq!(
        peer.price(&noise).await.unwrap_err().server_reason(),
        Some("run-spec-invalid")
    );

    let unknown = bastionai_client::DatasetId::from_bytes([9; 16]);
    assert!(matches!(
        peer.price(&spec(model, &[unknown], 1.0, 5)).await,
        Err(ClientError::NotFound(_))
    ));

    let leaky = peer
        .upload_model("leaky", common::LEAKY, &mut |_| {})
        .await
        .unwrap();
    let error = peer.price(&spec(leaky, &[id], 1.0, 5)).await.unwrap_err();
    let ClientError::GraphRefused { message, refusals } = error else {
        panic!("{error}")
    };
    assert!(message.contains("sum"), "{message}");
    assert!(
        refusals.as_array().is_some_and(|list| !list.is_empty()),
        "{refusals}"
    );

    let stranger = server.peer(&identity()).await;
    let error = stranger.price(&spec(model, &[id], 1.0, 5)).await.unwrap_err();
    assert!(
        matches!(error, ClientError::NotFound(_)),
        "a model is its uploader's alone: {error}"
    );

    let other = common::CONTRACT.replace("[10.0]", "[20.0]");
    let mut differing = common::dataset("wide", open_policy("6.0", "1e-5"));
    differing.contract = bastionai_client::DataContract::parse_json(other.as_bytes()).unwrap();
    let wide = peer
        .upload_dataset(&differing, vec![common::rows(4, 1.0)], &mut |_| {})
        .await
        .unwrap()
        .id;
    let error = peer.price(&spec(model, &[id, wide], 1.0, 5)).await.unwrap_err();
    assert_eq!(error.server_reason(), Some("incompatible-datasets"), "{error}");
    assert!(error.to_string().contains("`x`"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn a_gradient_that_drowns_in_noise_is_warned_about_with_numbers() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    let model = upload_mlp(&peer).await;
    let mut drowned = spec(model, &[id], 1.0, 5);
    drowned.batch_size = 1;
    drowned.privacy = Privacy::NoiseMultiplier(20.0);
    let warnings = peer.price(&drowned).await.unwrap().warnings;
    assert!(
        warnings
            .iter()
            .any(|text| text.contains("drowns") && text.contains("58")),
        "{warnings:?}"
    );
    server.stop().await;
}

#[tokio::test]
async fn only_those_the_owners_named_train_and_receive() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let (owner, scientist, auditor, stranger) = (identity(), identity(), identity(), identity());
    let policy = Policy {
        may_train: MayTrain::Only(vec![scientist.principal()]),
        recipients: vec![auditor.principal()],
        scientist_receives: false,
        ..open_policy("6.0", "1e-5")
    };
    let id = upload_under(&server.peer(&owner).await, "north", policy).await;

    let stranger = server.peer(&stranger).await;
    let model = upload_mlp(&stranger).await;
    let error = stranger.price(&spec(model, &[id], 1.0, 5)).await.unwrap_err();
    assert!(matches!(error, ClientError::NotAllowed(_)), "{error}");

    let scientist = server.peer(&scientist).await;
    let run = start(&scientist, &[id], 1.0, 5).await;
    assert_eq!(watch(&scientist, run).await.1, RunState::Succeeded);
    let error = scientist.fetch_run(run, None, &mut |_| {}).await.unwrap_err();
    assert!(matches!(error, ClientError::NotAllowed(_)), "{error}");
    let error = stranger.fetch_run(run, None, &mut |_| {}).await.unwrap_err();
    assert!(
        matches!(error, ClientError::NotFound(_)),
        "a stranger learns of no run: {error}"
    );
    assert!(stranger.list_runs().await.unwrap().is_empty());
    assert!(stranger.watch_run(run, 0).await.is_err());
    assert!(stranger.cancel_run(run).await.is_err());
    let about_runs = |entries: Vec<bastionai_client::LedgerEntry>| {
        entries
            .iter()
            .filter(|entry| entry.kind.starts_with("run_"))
            .count()
    };
    assert_eq!(about_runs(stranger.show_ledger(None).await.unwrap().entries), 0);
    assert!(about_runs(scientist.show_ledger(None).await.unwrap().entries) > 0);

    let auditor = server.peer(&auditor).await;
    let fetched = auditor.fetch_run(run, None, &mut |_| {}).await.unwrap();
    assert_eq!(fetched.receipt.run.id, run);
    server.stop().await;
}

#[tokio::test]
async fn a_run_goes_on_without_its_watcher_and_is_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-20").await;
    let me = identity();
    let peer = server.peer(&me).await;
    let id = upload(&peer, "north", "6.0").await;
    let run = start(&peer, &[id], 1.0, 40).await;
    let mut watcher = peer.watch_run(run, 0).await.unwrap();
    common::timeout(watcher.next()).await.unwrap();
    peer.close();
    drop(watcher);
    let back = server.peer(&me).await;
    assert_eq!(back.list_runs().await.unwrap()[0].id, run);
    let (losses, state) = watch(&back, run).await;
    assert_eq!((losses.len(), state), (40, RunState::Succeeded));
    let mut late = back.watch_run(run, 35).await.unwrap();
    let mut steps = Vec::new();
    while let Some(progress) = late.next().await.unwrap() {
        steps.extend(progress.noisy_loss.map(|_| progress.step));
    }
    assert_eq!(steps, vec![36, 37, 38, 39, 40]);
    server.stop().await;
}

#[tokio::test]
async fn cancelling_a_queued_run_is_free_and_a_started_one_is_charged_in_full_without_weights() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-30").await;
    let (owner, me) = (identity(), identity());
    let owner = server.peer(&owner).await;
    let id = upload(&owner, "north", "6.0").await;
    let peer = server.peer(&me).await;
    let running = start(&peer, &[id], 1.0, 1000).await;
    let queued = start(&peer, &[id], 2.0, 1000).await;
    let mut watcher = peer.watch_run(running, 0).await.unwrap();
    while common::timeout(watcher.next()).await.unwrap().unwrap().step == 0 {}

    let cancelled = peer.cancel_run(queued).await.unwrap();
    assert_eq!(cancelled.state, RunState::Cancelled);
    assert!(cancelled.charges.is_empty());
    let (committed, reserved, _) = epsilon_of(&peer, "north").await;
    assert!(
        committed == 0 && reserved > 0 && reserved <= 1_000_000_000,
        "only the running one holds a reserve"
    );

    let cancelled = owner.cancel_run(running).await.unwrap();
    assert_eq!(cancelled.state, RunState::Cancelled, "an owner has a stop button");
    let (committed, reserved_after, _) = epsilon_of(&peer, "north").await;
    assert_eq!(
        (committed, reserved_after),
        (reserved, 0),
        "all of it stays charged (D5)"
    );
    let error = peer.fetch_run(running, None, &mut |_| {}).await.unwrap_err();
    assert_eq!(error.server_reason(), Some("not-releasable"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn quotes_end_with_their_time_and_with_the_boot() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-0", |config| {
        config.limits.quote_lifetime_ms = 1000
    })
    .await;
    let me = identity();
    let peer = server.peer(&me).await;
    let id = upload(&peer, "north", "6.0").await;
    let model = upload_mlp(&peer).await;
    let old = peer.price(&spec(model, &[id], 1.0, 5)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(matches!(
        peer.start_run(old.run_digest).await,
        Err(ClientError::QuoteExpired(_))
    ));
    let fresh = peer.price(&spec(model, &[id], 1.0, 5)).await.unwrap();
    assert_ne!(
        old.run_digest, fresh.run_digest,
        "expiry and ledger head are in the digest"
    );
    let stranger = server.peer(&identity()).await;
    assert!(matches!(
        stranger.start_run(fresh.run_digest).await,
        Err(ClientError::QuoteExpired(_))
    ));
    server.stop().await;

    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&me).await;
    assert!(matches!(
        peer.start_run(fresh.run_digest).await,
        Err(ClientError::QuoteExpired(_))
    ));
    server.stop().await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_charges_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-50", |config| {
        config.limits.queued_runs = 1
    })
    .await;
    let peer = server.peer(&identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    let first = start(&peer, &[id], 1.0, 1000).await;
    let second = start(&peer, &[id], 1.0, 1001).await;
    let before = epsilon_of(&peer, "north").await;
    let model = upload_mlp(&peer).await;
    let quote = peer.price(&spec(model, &[id], 1.0, 1002)).await.unwrap();
    let error = peer.start_run(quote.run_digest).await.unwrap_err();
    assert!(matches!(error, ClientError::QueueFull(_)), "{error}");
    assert_eq!(epsilon_of(&peer, "north").await, before);
    peer.cancel_run(second).await.unwrap();
    peer.cancel_run(first).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_rehearsal_on_synthetic_rows_costs_nobody_anything() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let policy = Policy {
        lifetime: None,
        ..open_policy("1.0", "1e-5")
    };
    let id = upload_under(&peer, "synthetic", policy).await;
    let model = upload_mlp(&peer).await;
    let quote = peer.price(&spec(model, &[id], 1.0, 5)).await.unwrap();
    assert!(
        quote
            .charges
            .iter()
            .all(|charge| charge.cost.is_zero() && charge.affordable && charge.budget_before.is_none())
    );
    let run = peer.start_run(quote.run_digest).await.unwrap().id;
    assert_eq!(watch(&peer, run).await.1, RunState::Succeeded);
    peer.fetch_run(run, None, &mut |_| {}).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn the_trainer_gets_every_record_once_padded_to_the_declared_size() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "echo").await;
    let peer = server.peer(&identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    let run = start(&peer, &[id], 1.0, 5).await;
    assert_eq!(watch(&peer, run).await.1, RunState::Succeeded);
    let sent = std::fs::read(directory.path().join("echo.bin")).unwrap();
    let mut expected = Vec::new();
    for (column, width) in common::rows(40, 1.0).columns.iter().zip([16, 8]) {
        expected.extend(column);
        expected.resize(expected.len() + 24 * width, 0);
    }
    assert!(
        sent == expected,
        "64 rows of x, then of y: 40 records and 24 rows of zeros"
    );
    server.stop().await;
}
