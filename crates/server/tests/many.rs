//! Sixty-four sessions at once, uploading, listing, training and watching: every budget is exact at the end, and the
//! server's memory stays bounded.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::runs::RunState;
use bastionai_client::session::AppraisedPeer;
use bastionai_client::{ClientError, DatasetId, Identity, RunId};
use common::process::ServerProcess;
use common::{dataset, epsilon_of, identity, open_policy, rows, spec, watch};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

const OF_EACH_KIND: usize = 16;
const SHARED: usize = 4;
/// Lifetime ε of a shared dataset: room for six of the eight runs that want 0.5.
const LIFETIME: &str = "3.0";

/// What one session leaves behind.
enum Done {
    /// Names of its datasets.
    Uploaded(Vec<String>),
    /// ε charged for its runs on one shared dataset, in units, and how many the budget refused.
    Trained(usize, u64, usize),
    Watched(usize),
    Listed,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_sessions_leave_exact_budgets_and_a_server_of_bounded_size() {
    let directory = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(directory.path(), "normal-2", |config| {
        config.limits.concurrent_runs = 4;
        config.limits.concurrent_uploads = 6;
    });
    let owners: Vec<Arc<Identity>> = (0..SHARED).map(|_| Arc::new(identity())).collect();
    let mut shared = Vec::new();
    for (index, owner) in owners.iter().enumerate() {
        let peer = common::peer(&server.address, owner).await;
        let new = dataset(&format!("shared-{index}"), open_policy(LIFETIME, "1e-5"));
        shared.push(
            peer.upload_dataset(&new, vec![rows(40, 1.0)], &mut |_| {})
                .await
                .unwrap()
                .id,
        );
    }
    let before = peak_memory_bytes(server.id());

    let mut sessions = JoinSet::new();
    let shared = Arc::new(shared);
    for index in 0..OF_EACH_KIND {
        let of_owner = Arc::clone(&owners[index % SHARED]);
        let connect = |identity: Arc<Identity>| {
            let address = server.address.clone();
            async move { common::peer(&address, &identity).await }
        };
        let (first, second, third, fourth) = (
            connect(Arc::new(identity())),
            connect(Arc::new(identity())),
            connect(Arc::new(identity())),
            connect(of_owner),
        );
        let shared = Arc::clone(&shared);
        sessions.spawn(async move { uploader(first.await, index).await });
        sessions.spawn(async move {
            scientist(second.await, index % SHARED, shared[index % SHARED], index).await
        });
        sessions.spawn(async move { lister(third.await).await });
        sessions.spawn(async move { watcher(fourth.await).await });
    }
    assert_eq!(sessions.len(), 64);
    let mut names = Vec::new();
    let mut spent: BTreeMap<usize, u64> = BTreeMap::new();
    let (mut refused, mut watched) = (0, 0);
    while let Some(done) = sessions.join_next().await {
        match done.unwrap() {
            Done::Uploaded(uploaded) => names.extend(uploaded),
            Done::Trained(dataset, epsilon, not_started) => {
                *spent.entry(dataset).or_default() += epsilon;
                refused += not_started;
            }
            Done::Watched(count) => watched += count,
            Done::Listed => {}
        }
    }

    let peer = common::peer(&server.address, &identity()).await;
    for index in 0..SHARED {
        let (committed, reserved, remaining) = epsilon_of(&peer, &format!("shared-{index}")).await;
        assert_eq!(
            Some(&committed),
            spent.get(&index),
            "shared-{index}: what was charged, to the last digit"
        );
        assert_eq!(
            (reserved, committed + remaining),
            (0, 3_000_000_000),
            "shared-{index}"
        );
    }
    assert!(refused > 0, "more wanted to train than the budgets hold");
    assert!(watched > 0, "owners saw runs go on");
    let listed: Vec<String> = peer
        .list_datasets()
        .await
        .unwrap()
        .into_iter()
        .map(|each| each.name)
        .collect();
    assert_eq!(listed.len(), SHARED + names.len());
    assert!(
        names.iter().all(|name| listed.contains(name)),
        "every acknowledged upload is there"
    );

    let grown = peak_memory_bytes(server.id()) - before;
    assert!(grown < 192 << 20, "sixty-four sessions took {} MiB", grown >> 20);
    server.kill();
}

/// `None` when all places are taken: try again, as the server says to, after a moment.
async fn unless_full<T>(outcome: Result<T, ClientError>) -> Option<T> {
    match outcome {
        Ok(done) => Some(done),
        Err(ClientError::LimitExceeded(_)) => {
            tokio::time::sleep(Duration::from_millis(20)).await;
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Three datasets.
async fn uploader(peer: AppraisedPeer, index: usize) -> Done {
    let mut names = Vec::new();
    for count in 0..3 {
        let name = format!("own-{index}-{count}");
        let new = dataset(&name, open_policy("6.0", "1e-5"));
        let batches = || vec![rows(20, 1.0), rows(20, 2.0)];
        while unless_full(peer.upload_dataset(&new, batches(), &mut |_| {}).await)
            .await
            .is_none()
        {}
        names.push(name);
    }
    Done::Uploaded(names)
}

/// Two scientists in a group want the same share of one dataset; each watches its run to the end.
async fn scientist(peer: AppraisedPeer, which: usize, dataset: DatasetId, index: usize) -> Done {
    let model = loop {
        if let Some(model) = unless_full(peer.upload_model("mlp", common::MLP, &mut |_| {}).await).await {
            break model;
        }
    };
    let (mut charged, mut refused) = (0, 0);
    for round in 0..2 {
        let steps = 5 + (2 * index + round) as u64;
        let quote = peer.price(&spec(model, &[dataset], 0.5, steps)).await.unwrap();
        let cost = quote.charges[0].cost.epsilon.units();
        match peer.start_run(quote.run_digest).await {
            Ok(run) => {
                let (losses, state) = watch(&peer, run.id).await;
                assert_eq!((losses.len() as u64, state), (steps, RunState::Succeeded));
                charged += cost;
            }
            Err(ClientError::BudgetExceeded(_)) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    Done::Trained(which, charged, refused)
}

async fn lister(peer: AppraisedPeer) -> Done {
    for _ in 0..20 {
        let datasets = peer.list_datasets().await.unwrap();
        for budget in datasets.iter().filter_map(|dataset| dataset.budget) {
            let sum = budget.committed.epsilon.units() + budget.reserved.epsilon.units();
            assert!(
                sum + budget.remaining.epsilon.units() <= 6_000_000_000,
                "{budget:?}"
            );
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    Done::Listed
}

/// Follows every run on the owner's dataset that it can find.
async fn watcher(peer: AppraisedPeer) -> Done {
    let mut seen: Vec<RunId> = Vec::new();
    for _ in 0..40 {
        let runs = peer.list_runs().await.unwrap();
        let new: Vec<RunId> = runs
            .iter()
            .map(|run| run.id)
            .filter(|id| !seen.contains(id))
            .collect();
        for run in new {
            watch(&peer, run).await;
            seen.push(run);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Done::Watched(seen.len())
}

/// Most memory a process ever held.
fn peak_memory_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib << 10
}
