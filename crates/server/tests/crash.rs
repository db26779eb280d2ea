//! `kill -9` of the whole server at random moments, again and again over one vault. The oracle recounts from what
//! *clients received*: whatever reached a client is paid for, no step ever has two values, nothing acknowledged
//! is lost, nothing half-done is seen. Runs go on after each kill; in the end every one of them has taken exactly the
//! steps of its quote and is charged exactly once.
//!
//! `BASTIONAI_KILLS` sets how often (default 150; 400 with `BASTIONAI_SLOW`, as `make test-all` sets it).
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::runs::{Privacy, Quote, RunSpec, RunState};
use bastionai_client::session::AppraisedPeer;
use bastionai_client::{Digest32, HeadMemory, RunId};
use bastionai_server::Config;
use common::process::ServerProcess;
use common::{MLP, dataset, identity, open_policy, rows, spec, try_peer};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What clients know for certain, because it reached them.
#[derive(Default)]
struct Known {
    /// Datasets whose upload was acknowledged.
    uploaded: BTreeSet<String>,
    /// Released values, by run and step, as bits.
    values: BTreeMap<(RunId, u64), u64>,
    /// ε units on `pool` of every run whose start was acknowledged.
    started: BTreeMap<RunId, u64>,
    /// Runs of which anything was received: they must be charged.
    received: BTreeSet<RunId>,
    weights: BTreeMap<RunId, Digest32>,
}

type Shared = Arc<Mutex<Known>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_kills_lose_nothing_acknowledged_and_never_undercount() {
    let directory = tempfile::tempdir().unwrap();
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let kills = kills();
    println!("seed {seed}, {kills} kills");
    let mut random = Random(seed | 1);
    let (owner, scientist) = (identity(), identity());
    let heads = HeadMemory::in_process();
    let known = Shared::default();
    for kill in 0..kills {
        if kill % 3 == 2 {
            // The settlement of open runs is cut short, too.
            let after = Duration::from_millis(random.below(120));
            ServerProcess::kill_while_booting(directory.path(), TRAINER, after, edit);
        }
        let server = start(directory.path());
        let owner_peer = try_peer(&server.address, &owner, &heads)
            .await
            .expect("the ledger extends what clients saw");
        let peer = try_peer(&server.address, &scientist, &heads)
            .await
            .expect("the ledger extends what clients saw");
        check(&owner_peer, &peer, &known).await;
        let tasks = [
            tokio::spawn(keep_uploading(owner_peer, kill, Arc::clone(&known))),
            tokio::spawn(keep_training(peer.clone(), Arc::clone(&known))),
            tokio::spawn(keep_fetching(peer, Arc::clone(&known))),
        ];
        tokio::time::sleep(Duration::from_millis(random.below(600))).await;
        server.kill();
        for task in tasks {
            task.await.expect("an assertion of the oracle failed");
        }
    }
    let server = start(directory.path());
    let owner = try_peer(&server.address, &owner, &heads).await.unwrap();
    let peer = try_peer(&server.address, &scientist, &heads).await.unwrap();
    check(&owner, &peer, &known).await;
    finish(&peer, &known).await;
    check(&owner, &peer, &known).await;
    let known = known.lock().unwrap();
    println!(
        "{} datasets, {} runs acknowledged, {} values, {} weights received",
        known.uploaded.len(),
        known.started.len(),
        known.values.len(),
        known.weights.len()
    );
    assert!(
        known.values.len() as u64 > kills,
        "the kills left no time for any work: this test shows nothing"
    );
}

fn start(directory: &Path) -> ServerProcess {
    ServerProcess::start(directory, TRAINER, edit)
}

fn edit(config: &mut Config) {
    config.limits.failed_runs_per_dataset = u32::MAX;
    config.limits.starts_per_day = u32::MAX;
    config.limits.concurrent_runs = 2;
    config.limits.runs_per_principal = 64;
    config.trainer.commit_ms = 5;
}

/// Twelve steps take some 40 ms: kills fall into queues, runs and releases alike.
const TRAINER: &str = "normal-3";

/// Uploads small datasets until the server is gone. Names never repeat, so each is there wholly or not at all.
async fn keep_uploading(peer: AppraisedPeer, kill: u64, known: Shared) {
    for count in 0.. {
        let name = if known.lock().unwrap().uploaded.is_empty() {
            "pool".to_owned()
        } else {
            format!("d{kill}-{count}")
        };
        let new = dataset(&name, open_policy("100000.0", "0.9"));
        match peer
            .upload_dataset(&new, vec![rows(20, 1.0), rows(20, 2.0)], &mut |_| {})
            .await
        {
            Ok(_) => known.lock().unwrap().uploaded.insert(name),
            // A dataset whose acknowledgement was lost took the name `pool`: it is there.
            Err(bastionai_client::ClientError::NameTaken(_)) => known.lock().unwrap().uploaded.insert(name),
            Err(_) => return,
        };
    }
}

/// Starts runs on `pool` and watches them until the server is gone.
async fn keep_training(peer: AppraisedPeer, known: Shared) {
    while let Ok(run) = train_once(&peer, &known).await {
        if watch(&peer, run, &known).await.is_none() {
            return;
        }
    }
}

async fn train_once(peer: &AppraisedPeer, known: &Shared) -> Result<RunId, ()> {
    let pool = loop {
        let datasets = peer.list_datasets().await.map_err(drop)?;
        if let Some(pool) = datasets.into_iter().find(|dataset| dataset.name == "pool") {
            break pool.id;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let model = peer.upload_model("mlp", MLP, &mut |_| {}).await.map_err(drop)?;
    let request = RunSpec {
        privacy: Privacy::NoiseMultiplier(4.0),
        target_delta: Some(1e-6),
        ..spec(model, &[pool], 1.0, 12)
    };
    let quote: Quote = peer.price(&request).await.map_err(drop)?;
    let run = peer.start_run(quote.run_digest).await.map_err(drop)?;
    known
        .lock()
        .unwrap()
        .started
        .insert(run.id, quote.charges[0].cost.epsilon.units());
    Ok(run.id)
}

/// Records every value; `None` when the session broke.
async fn watch(peer: &AppraisedPeer, run: RunId, known: &Shared) -> Option<RunState> {
    let mut watch = peer.watch_run(run, 0).await.ok()?;
    let mut state = None;
    loop {
        match watch.next().await {
            Ok(Some(progress)) => {
                state = Some(progress.run.state);
                if let Some(loss) = progress.noisy_loss {
                    receive(known, run, progress.step, loss);
                }
            }
            Ok(None) => return state,
            Err(_) => return None,
        }
    }
}

fn receive(known: &Shared, run: RunId, step: u64, loss: f64) {
    let mut known = known.lock().unwrap();
    known.received.insert(run);
    let earlier = known.values.insert((run, step), loss.to_bits());
    assert!(
        earlier.is_none_or(|earlier| earlier == loss.to_bits()),
        "step {step} of {run} was released twice (D1)"
    );
}

/// Fetches weights of whatever succeeded until the server is gone.
async fn keep_fetching(peer: AppraisedPeer, known: Shared) {
    loop {
        let Ok(runs) = peer.list_runs().await else { return };
        for run in runs.iter().filter(|run| run.state == RunState::Succeeded) {
            let Ok(fetched) = peer.fetch_run(run.id, None, &mut |_| {}).await else {
                return;
            };
            let digest = fetched
                .receipt
                .run
                .weights_digest
                .expect("a succeeded run has weights");
            let mut known = known.lock().unwrap();
            known.received.insert(run.id);
            let earlier = known.weights.insert(run.id, digest);
            assert!(
                earlier.is_none_or(|earlier| earlier == digest),
                "weights of {} changed",
                run.id
            );
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Left alone, every run ends as its quote says: nothing failed but the server, again and again.
async fn finish(peer: &AppraisedPeer, known: &Shared) {
    let runs = peer.list_runs().await.unwrap();
    let mut resumptions = 0;
    for run in &runs {
        let state = watch(peer, run.id, known).await.expect("no kill any more");
        assert_eq!(state, RunState::Succeeded, "run {}", run.id);
        let shown = peer.show_ledger(Some(*run.id.as_bytes())).await.unwrap().entries;
        let count = |kind: &str| shown.iter().filter(|entry| entry.kind == kind).count();
        for kind in ["run_reserved", "run_started", "run_committed"] {
            assert_eq!(count(kind), 1, "{kind} of run {}", run.id);
        }
        resumptions += count("run_resumed");
        let known = known.lock().unwrap();
        let values = known.values.range((run.id, 0)..=(run.id, u64::MAX));
        assert!(
            values.map(|((_, step), _)| *step).eq(1..=run.steps),
            "run {} has each of its steps once",
            run.id
        );
    }
    println!("{} runs, {resumptions} resumptions", runs.len());
    assert!(resumptions > 0, "no kill hit a run: this test shows nothing");
    let datasets = peer.list_datasets().await.unwrap();
    let pool = datasets
        .iter()
        .find(|dataset| dataset.name == "pool")
        .unwrap()
        .budget
        .unwrap();
    assert!(pool.reserved.is_zero(), "every run has ended");
}

/// The oracle, after each restart.
async fn check(owner: &AppraisedPeer, scientist: &AppraisedPeer, known: &Shared) {
    let datasets = owner.list_datasets().await.unwrap();
    let runs = scientist.list_runs().await.unwrap();
    let state_of = |id: &RunId| runs.iter().find(|run| run.id == *id).map(|run| run.state);
    let (replays, charged) = {
        let known = known.lock().unwrap();
        for name in &known.uploaded {
            assert!(
                datasets.iter().any(|dataset| dataset.name == *name),
                "acknowledged dataset {name} is lost"
            );
        }
        for run in known.started.keys() {
            let state = state_of(run).unwrap_or_else(|| panic!("acknowledged run {run} is lost"));
            assert!(
                matches!(state, RunState::Queued | RunState::Running | RunState::Succeeded),
                "run {run} is {state:?}, and nobody wanted that"
            );
        }
        for run in known.weights.keys() {
            assert_eq!(
                state_of(run),
                Some(RunState::Succeeded),
                "weights of {run} left, so it is committed"
            );
        }
        let charge = |run: &RunId| known.started.get(run).copied().unwrap_or_default();
        (
            known.received.iter().copied().collect::<Vec<_>>(),
            known.received.iter().map(charge).sum::<u64>(),
        )
    };
    if let Some(pool) = datasets.iter().find(|dataset| dataset.name == "pool") {
        let budget = pool.budget.unwrap();
        let used = budget.committed.epsilon.units() + budget.reserved.epsilon.units();
        assert!(
            used >= charged,
            "clients received releases worth {charged}, only {used} is accounted for"
        );
        let shown: u64 = runs
            .iter()
            .flat_map(|run| &run.charges)
            .map(|charge| charge.cost.epsilon.units())
            .sum();
        assert_eq!(used, shown, "the budget is the sum of its runs");
    }
    // Replay some of what was received before: the values must be the very same.
    let ended = |run: &&RunId| state_of(run).is_some_and(RunState::is_final);
    for run in replays.iter().rev().filter(ended).take(3) {
        watch(scientist, *run, known)
            .await
            .expect("an ended run is replayed to its end");
    }
}

fn kills() -> u64 {
    let default = if std::env::var_os("BASTIONAI_SLOW").is_some() {
        400
    } else {
        150
    };
    std::env::var("BASTIONAI_KILLS")
        .map_or(default, |text| text.parse().expect("BASTIONAI_KILLS is a number"))
}

/// xorshift64: where a kill falls need not be unpredictable, only repeatable from the printed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
