//! What the server's tests share: a server on a loopback port with a stand-in trainer, clients, data, a run.
#![allow(dead_code)]

pub mod example;
pub mod process;
pub mod raw;

use bastionai_attestation::Attester;
use bastionai_client::datasets::{DatasetKind, MayTrain, NewDataset, Policy};
use bastionai_client::runs::{
    Clipping, Compute, LossRelease, NoiseMode, Optimizer, Privacy, RunSpec, RunState, Schedule,
};
use bastionai_client::session::AppraisedPeer;
use bastionai_client::{
    Amount, AppraisalPolicy, ClientError, ConnectOptions, DataContract, DatasetId, Digest32, HeadMemory,
    Identity, RecordBatch, RunId, connect,
};
use bastionai_server::{Config, Server};
use example::own_example;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub const MLP: &[u8] = include_bytes!("../fixtures/mlp.pt2");
pub const LEAKY: &[u8] = include_bytes!("../fixtures/leaky.pt2");
pub const WIDE: &[u8] = include_bytes!("../fixtures/wide.pt2");

/// A server in this process. Dropping it drains and stops it.
pub struct TestServer {
    pub address: SocketAddr,
    pub directory: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    pub task: Option<JoinHandle<()>>,
}

impl TestServer {
    /// A server over a fresh directory whose trainer is the stand-in in this mode.
    pub async fn start(directory: &Path, mode: &str) -> Self {
        Self::start_with(directory, mode, |_| {}).await
    }

    pub async fn start_with(directory: &Path, mode: &str, edit: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(directory, mode);
        edit(&mut config);
        let server = Server::start(config).await.expect("the server starts");
        Self::run(directory, server)
    }

    /// On another platform than the simulated one.
    pub async fn start_attested_by(directory: &Path, mode: &str, attester: Arc<dyn Attester>) -> Self {
        let server = Server::start_attested_by(config(directory, mode), attester).await;
        Self::run(directory, server.expect("the server starts"))
    }

    fn run(directory: &Path, server: Server) -> Self {
        let address = server.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            server.run_until(stopped).await.expect("the server stops cleanly");
        });
        Self {
            address,
            directory: directory.to_owned(),
            stop: Some(stop),
            task: Some(task),
        }
    }

    pub async fn peer(&self, identity: &Identity) -> AppraisedPeer {
        peer(&self.address.to_string(), identity).await
    }

    /// Drains, stops, waits.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.task.take().unwrap().await.unwrap();
    }
}

pub fn config(directory: &Path, mode: &str) -> Config {
    let mut config = Config::insecure_development(directory.join("data"));
    config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.trainer.path = Some(standin(directory, mode));
    config.trainer.threads = 1;
    config.trainer.commit_ms = 50;
    config.trainer.drain_timeout_ms = 300;
    config
}

/// A link to the stand-in trainer whose name is its mode.
pub fn standin(directory: &Path, mode: &str) -> PathBuf {
    let program = own_example("standin_trainer");
    let link = directory.join(mode);
    if !link.exists() {
        std::os::unix::fs::symlink(program, &link).unwrap();
    }
    link
}

pub fn now_unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

pub async fn try_peer(
    address: &str,
    identity: &Identity,
    heads: &HeadMemory,
) -> Result<AppraisedPeer, ClientError> {
    let session = connect(address, identity, &ConnectOptions::default()).await?;
    session
        .appraise(&AppraisalPolicy::insecure_development(), now_unix_ms(), heads)
        .await
}

pub async fn peer(address: &str, identity: &Identity) -> AppraisedPeer {
    try_peer(address, identity, &HeadMemory::in_process())
        .await
        .expect("the session is appraised")
}

pub fn identity() -> Identity {
    Identity::generate().unwrap()
}

pub const CONTRACT: &str = include_str!("../fixtures/contract.json");

pub fn contract() -> DataContract {
    DataContract::parse_json(CONTRACT.as_bytes()).unwrap()
}

/// `count` records whose first feature is `tag`.
pub fn rows(count: u64, tag: f32) -> RecordBatch {
    let mut x = Vec::new();
    let mut y = Vec::new();
    for row in 0..count {
        [tag, row as f32 / 100.0, -1.0, 2.5]
            .iter()
            .for_each(|value: &f32| x.extend(value.to_le_bytes()));
        y.extend(((row % 2) as i64).to_le_bytes());
    }
    RecordBatch {
        rows: count,
        columns: vec![x, y],
    }
}

pub fn amount(epsilon: &str, delta: &str) -> Amount {
    Amount::new(epsilon.parse().unwrap(), delta.parse().unwrap())
}

pub fn open_policy(epsilon: &str, delta: &str) -> Policy {
    Policy {
        lifetime: Some(amount(epsilon, delta)),
        composition: Default::default(),
        may_train: MayTrain::Anyone,
        recipients: Vec::new(),
        scientist_receives: true,
        require_hardened: false,
        expires_unix_ms: None,
        evaluation_only: false,
    }
}

pub fn dataset(name: &str, policy: Policy) -> NewDataset {
    let kind = if policy.lifetime.is_some() {
        DatasetKind::Private
    } else {
        DatasetKind::Synthetic
    };
    NewDataset {
        name: name.to_owned(),
        kind,
        contract: contract(),
        policy,
    }
}

/// Uploads 40 records under an open policy.
pub async fn upload(peer: &AppraisedPeer, name: &str, epsilon: &str) -> DatasetId {
    upload_under(peer, name, open_policy(epsilon, "1e-5")).await
}

pub async fn upload_under(peer: &AppraisedPeer, name: &str, policy: Policy) -> DatasetId {
    peer.upload_dataset(&dataset(name, policy), vec![rows(40, 1.0)], &mut |_| {})
        .await
        .unwrap()
        .id
}

pub async fn upload_mlp(peer: &AppraisedPeer) -> Digest32 {
    peer.upload_model("mlp", MLP, &mut |_| {}).await.unwrap()
}

pub fn spec(model: Digest32, datasets: &[DatasetId], epsilon: f64, steps: u64) -> RunSpec {
    RunSpec {
        model_id: model,
        dataset_ids: datasets.to_vec(),
        input_columns: vec!["x".into(), "y".into()],
        model_name: "mlp".into(),
        batch_size: 16,
        records_per_unit: None,
        max_batch_size: 0,
        steps,
        max_grad_norm: 1.0,
        clipping: Clipping::Flat,
        compute: Compute::Float32,
        noise_mode: NoiseMode::Standard,
        privacy: Privacy::TargetEpsilon(epsilon),
        target_delta: None,
        loss_release: Some(LossRelease {
            max_loss: 4.0,
            share: 0.05,
        }),
        optimizer: Optimizer::Sgd {
            lr: 0.1,
            momentum: 0.0,
            dampening: 0.0,
            weight_decay: 0.0,
            nesterov: false,
        },
        schedule: Schedule::default(),
        initial_weights: None,
        ema_decay: None,
        tail_average: None,
        bands: Default::default(),
        keep_steps: vec![],
        keep_every: None,
    }
}

/// Uploads the model, prices, starts.
pub async fn start(peer: &AppraisedPeer, datasets: &[DatasetId], epsilon: f64, steps: u64) -> RunId {
    let model = upload_mlp(peer).await;
    let quote = peer.price(&spec(model, datasets, epsilon, steps)).await.unwrap();
    peer.start_run(quote.run_digest).await.unwrap().id
}

/// Everything a watcher saw: (step, loss), and how the run ended.
pub async fn watch(peer: &AppraisedPeer, run: RunId) -> (Vec<(u64, f64)>, RunState) {
    let mut watch = peer.watch_run(run, 0).await.unwrap();
    let mut losses = Vec::new();
    let mut state = RunState::Queued;
    while let Some(progress) = timeout(watch.next()).await.unwrap() {
        if let Some(loss) = progress.noisy_loss {
            losses.push((progress.step, loss));
        }
        state = progress.run.state;
    }
    (losses, state)
}

/// No test waits for ever.
pub async fn timeout<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("done within a minute")
}

/// (committed, reserved, remaining) ε of a dataset by name, in units of 1e-9.
pub async fn epsilon_of(peer: &AppraisedPeer, name: &str) -> (u64, u64, u64) {
    let datasets = peer.list_datasets().await.unwrap();
    let budget = datasets
        .iter()
        .find(|dataset| dataset.name == name)
        .unwrap()
        .budget
        .unwrap();
    (
        budget.committed.epsilon.units(),
        budget.reserved.epsilon.units(),
        budget.remaining.epsilon.units(),
    )
}
