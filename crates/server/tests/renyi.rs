//! Datasets whose runs add up in Rényi divergences, from upload to receipt: prices in both currencies, one that decides.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::{
    AppraisalPolicy, AppraisedPeer, ClientError, Composition, Dataset, DatasetId, Order, Policy, RenyiTerms,
    RunState, audit_receipt,
};
use common::*;

fn renyi_policy(epsilon: &str) -> Policy {
    Policy {
        composition: Composition::Renyi(None),
        ..open_policy(epsilon, "1e-5")
    }
}

async fn listed(peer: &AppraisedPeer, id: DatasetId) -> Dataset {
    let datasets = peer.list_datasets().await.unwrap();
    datasets.into_iter().find(|dataset| dataset.id == id).unwrap()
}

/// At order 8.
async fn divergences(peer: &AppraisedPeer, id: DatasetId) -> (f64, f64) {
    let account = listed(peer, id).await.renyi_budget.unwrap();
    let order: Order = "8".parse().unwrap();
    let at = account.orders.iter().find(|each| each.order == order).unwrap();
    (at.committed.to_f64(), at.reserved.to_f64())
}

#[tokio::test]
async fn a_policy_names_its_orders_and_a_hopeless_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let me = identity();
    let peer = server.peer(&me).await;
    let id = upload_under(&peer, "default", renyi_policy("6.0")).await;
    let shown = listed(&peer, id).await;
    assert_eq!(
        shown.policy.composition,
        Composition::Renyi(Some(RenyiTerms::default()))
    );
    let account = shown.renyi_budget.unwrap();
    assert_eq!(account.remaining_epsilon.to_string(), "6.0");
    assert_eq!(account.orders.len(), RenyiTerms::default().orders().len());
    assert!(
        listed(&peer, upload(&peer, "sums", "6.0").await)
            .await
            .renyi_budget
            .is_none()
    );

    let own = RenyiTerms::new(&["4".parse().unwrap(), "10.5".parse().unwrap()], &[1, 3]).unwrap();
    let policy = Policy {
        composition: Composition::Renyi(Some(own)),
        ..open_policy("6.0", "1e-5")
    };
    let id = upload_under(&peer, "own", policy.clone()).await;
    assert_eq!(listed(&peer, id).await.policy, policy);

    let hopeless = dataset("hopeless", renyi_policy("0.001"));
    let error = peer
        .upload_dataset(&hopeless, vec![rows(16, 0.0)], &mut |_| {})
        .await
        .unwrap_err();
    assert_eq!(error.server_reason(), Some("policy-invalid"), "{error}");
    assert!(error.to_string().contains("none of these orders"), "{error}");
    server.stop().await;
}

/// Runs of ε = 1 at a tenth of δ: six by sums; the price says so, and what decides is the account.
#[tokio::test]
async fn the_account_of_divergences_admits_more_runs_and_both_currencies_are_shown() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let me = identity();
    let peer = server.peer(&me).await;
    let renyi = upload_under(&peer, "renyi", renyi_policy("6.0")).await;
    // δ enough for more runs than the account admits.
    let sums = upload_under(&peer, "sums", open_policy("60.0", "1e-3")).await;
    let model = upload_mlp(&peer).await;
    let mut admitted = 0;
    let refused = loop {
        let quote = peer.price(&spec(model, &[renyi, sums], 1.0, 5)).await.unwrap();
        let [by_renyi, by_sums] = &quote.charges[..] else {
            panic!("two charges")
        };
        assert!(by_renyi.by_renyi && !by_sums.by_renyi);
        let (one, other) = (by_renyi.renyi.as_ref().unwrap(), by_sums.renyi.as_ref().unwrap());
        assert_eq!(one.orders, other.orders);
        assert_eq!(one.divergences, other.divergences, "one mechanism");
        assert!(one.epsilon_before < one.epsilon_after);
        let (before, after) = by_renyi.epsilon_left();
        assert_eq!(
            before.unwrap(),
            listed(&peer, renyi).await.renyi_budget.unwrap().remaining_epsilon
        );
        assert_eq!(after.is_some(), quote.is_affordable());
        assert!(by_sums.affordable, "60 are enough");
        if !quote.is_affordable() {
            break peer.start_run(quote.run_digest).await.unwrap_err();
        }
        let run = peer.start_run(quote.run_digest).await.unwrap().id;
        assert_eq!(watch(&peer, run).await.1, RunState::Succeeded);
        admitted += 1;
    };
    assert!(matches!(refused, ClientError::BudgetExceeded(_)), "{refused}");
    assert!((12..60).contains(&admitted), "{admitted}");
    println!("{admitted} runs of ε = 1 within a lifetime of 6");
    let shown = listed(&peer, renyi).await;
    let spent = shown.budget.unwrap().committed.epsilon.to_f64();
    assert!(
        spent > 0.9 * f64::from(admitted),
        "shown, and above the lifetime: {spent}"
    );
    server.stop().await;
}

/// Rule D5: the steps that a trainer started, and the whole reserve where sums are added.
#[tokio::test]
async fn a_cancelled_run_pays_for_the_steps_it_started_and_its_receipt_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-30").await;
    let me = identity();
    let peer = server.peer(&me).await;
    let renyi = upload_under(&peer, "renyi", renyi_policy("6.0")).await;
    let sums = upload(&peer, "sums", "6.0").await;
    let run = start(&peer, &[renyi, sums], 1.0, 1000).await;
    let mut watcher = peer.watch_run(run, 0).await.unwrap();
    while timeout(watcher.next()).await.unwrap().unwrap().step < 3 {}
    let (_, reserved) = divergences(&peer, renyi).await;
    let cancelled = peer.cancel_run(run).await.unwrap();
    assert_eq!(cancelled.state, RunState::Cancelled);
    let (committed, left) = divergences(&peer, renyi).await;
    assert_eq!(left, 0.0);
    let least = reserved * cancelled.released_step as f64 / 1000.0;
    assert!(
        committed >= least && committed < reserved / 2.0,
        "{committed} of {reserved}"
    );
    let (committed, reserved, _) = epsilon_of(&peer, "sums").await;
    assert!(committed > 0 && reserved == 0, "all of it");

    let fetched = peer.fetch_receipt(run, None).await.unwrap();
    let policy = AppraisalPolicy::insecure_development();
    let audited = audit_receipt(&fetched.receipt_dsse_json, &policy, now_unix_ms()).unwrap();
    let receipt = audited.receipt();
    let started = receipt.run.started_steps.unwrap();
    assert!(started > receipt.run.released_step && started < 1000, "{started}");
    let account = receipt.datasets[0]
        .budget
        .as_ref()
        .unwrap()
        .renyi
        .as_ref()
        .unwrap();
    assert_eq!(Some(&account.total), receipt.datasets[0].renyi.as_ref());
    assert!(receipt.datasets[1].renyi.is_none());
    server.stop().await;
}

/// What an earlier trainer had started, and not reported in time, is charged as well: all is.
#[tokio::test]
async fn a_run_that_is_cancelled_on_its_second_trainer_pays_for_all_steps() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-30").await;
    let peer = server.peer(&identity()).await;
    let renyi = upload_under(&peer, "renyi", renyi_policy("6.0")).await;
    let run = start(&peer, &[renyi], 1.0, 1000).await;
    let mut watcher = peer.watch_run(run, 0).await.unwrap();
    while timeout(watcher.next()).await.unwrap().unwrap().step < 3 {}
    let (_, reserved) = divergences(&peer, renyi).await;
    let suspended = peer.suspend_run(run).await.unwrap();
    peer.resume_run(run).await.unwrap();
    while timeout(watcher.next()).await.unwrap().unwrap().step <= suspended.released_step {}
    let cancelled = peer.cancel_run(run).await.unwrap();
    assert_eq!(cancelled.state, RunState::Cancelled);
    assert_eq!(divergences(&peer, renyi).await, (reserved, 0.0));
    server.stop().await;
}

/// Cancelled runs cost little in divergences, and their whole (ε, δ) in the sums shown beside: those must stay numbers.
#[tokio::test]
async fn a_delta_above_a_datasets_lifetime_is_refused_at_the_price() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let renyi = upload_under(&peer, "renyi", renyi_policy("6.0")).await;
    let other = upload_under(&peer, "other", open_policy("6.0", "1e-3")).await;
    let model = upload_mlp(&peer).await;
    let asking = |delta| {
        let mut spec = spec(model, &[other, renyi], 1.0, 5);
        spec.target_delta = Some(delta);
        spec
    };
    for above in [0.9, 1.000_001e-5] {
        let error = peer.price(&asking(above)).await.unwrap_err();
        assert_eq!(error.server_reason(), Some("run-spec-invalid"), "{error}");
        assert!(
            error.to_string().contains("`renyi`") && error.to_string().contains("above 1e-5,"),
            "{error}"
        );
    }
    assert!(
        peer.price(&asking(1e-5)).await.is_ok(),
        "all of it may be asked for"
    );
    server.stop().await;
}
