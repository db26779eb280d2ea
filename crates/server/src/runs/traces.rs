//! Rule D8: what a run reads, sends and stores, and what it tells, is the same for neighbouring datasets. A server
//! over a block store that keeps a record, and a stand-in trainer that does.

use super::RunOrder;
use crate::boot::Boot;
use crate::config::{Config, Limits};
use crate::evaluation::{self, EvaluationRequest};
use crate::fixture::example::own_example;
use crate::fixture::{CONTRACT, MLP};
use crate::models::Model;
use crate::price;
use crate::priced::Priced;
use crate::rpc::reserve;
use crate::spec::RunRequest;
use crate::state::{Server, now_unix_ms};
use crate::terms::{Grounds, PriceLimits, Terms};
use crate::tls::ServerIdentity;
use bastionai_ledger::{
    Amount, DatasetKind, Freshness, MayTrain, Policy, Principal, RunKind, RunLimits, RunStatus,
};
use bastionai_vault::{BlockStore, FileBlockStore, ObjectId, RootKey, UploadHeader, Vault, VaultConfig};
use bastionai_wire::v1;
use redb::backends::InMemoryBackend;
use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SCORES: &[u8] = include_bytes!("../../tests/fixtures/scores.pt2");
const SCIENTIST: Principal = Principal::from_bytes([2; 32]);
/// Blocks as files, and every operation on them: objects are numbered as they first appear.
struct Recording {
    blocks: FileBlockStore,
    trace: Arc<Mutex<(Vec<ObjectId>, Vec<String>)>>,
}

impl Recording {
    fn record(&self, what: &str, object: ObjectId, rest: &str) {
        let mut trace = self.trace.lock().unwrap();
        let known = trace.0.iter().position(|known| *known == object);
        let number = known.unwrap_or_else(|| {
            trace.0.push(object);
            trace.0.len() - 1
        });
        trace.1.push(format!("{what} object {number}{rest}"));
    }
}

impl BlockStore for Recording {
    fn put(&self, object: ObjectId, index: u64, bytes: &[u8]) -> io::Result<()> {
        self.record("put", object, &format!(" block {index}: {} bytes", bytes.len()));
        self.blocks.put(object, index, bytes)
    }

    fn sync(&self, object: ObjectId) -> io::Result<()> {
        self.record("sync", object, "");
        self.blocks.sync(object)
    }

    fn get(&self, object: ObjectId, index: u64, max_bytes: u64) -> io::Result<Vec<u8>> {
        let bytes = self.blocks.get(object, index, max_bytes)?;
        self.record("get", object, &format!(" block {index}: {} bytes", bytes.len()));
        Ok(bytes)
    }

    fn delete(&self, object: ObjectId) -> io::Result<()> {
        self.record("delete", object, "");
        self.blocks.delete(object)
    }

    fn list(&self) -> io::Result<Vec<ObjectId>> {
        self.blocks.list()
    }
}

fn standin(directory: &Path) -> PathBuf {
    let program = own_example("standin_trainer");
    // Each step takes longer than a commit is apart: a checkpoint at every step, however busy the machine is.
    let link = directory.join("trace-5");
    std::os::unix::fs::symlink(program, &link).unwrap();
    link
}

fn spec(dataset: &[u8]) -> v1::RunSpec {
    v1::RunSpec {
        model_id: Sha256::digest(MLP).to_vec(),
        dataset_ids: vec![dataset.to_vec()],
        input_columns: vec!["x".into(), "y".into()],
        model_name: "mlp".into(),
        batch_size: 32,
        steps: 6,
        max_grad_norm: 1.0,
        privacy: Some(v1::run_spec::Privacy::NoiseMultiplier(2.0)),
        max_loss: 4.0,
        optimizer: Some(
            bastionai_wire::Optimizer::AdamW(bastionai_wire::Adam {
                lr: 0.1,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.0,
            })
            .into(),
        ),
        ..Default::default()
    }
}

fn evaluation_spec(dataset: &[u8]) -> v1::EvaluationSpec {
    v1::EvaluationSpec {
        model_id: Sha256::digest(SCORES).to_vec(),
        dataset_ids: vec![dataset.to_vec()],
        input_columns: vec!["x".into(), "y".into()],
        model_name: "mlp".into(),
        confusion: true,
        score_bins: 16,
        privacy: Some(v1::evaluation_spec::Privacy::NoiseMultiplier(2.0)),
        ..Default::default()
    }
}

fn policy() -> Policy {
    Policy {
        lifetime: Some(Amount::new("100".parse().unwrap(), "1e-3".parse().unwrap())),
        composition: Default::default(),
        may_train: MayTrain::Anyone,
        recipients: [].into(),
        scientist_receives: true,
        require_hardened: false,
        expires_unix_ms: None,
        freshness: Freshness::None,
        limits: RunLimits::default(),
    }
}

/// A whole run of a kind on `rows` records whose values are functions of `tag`: everything that happens, line by line.
async fn trace(kind: RunKind, rows: u64, tag: f32) -> Vec<String> {
    trace_of(kind, rows, tag, None).await
}

/// Where records are grouped into units: row `n` is of unit `n % units`.
const BY_PATIENT: &str = r#"{"column":{"name":"patient","dtype":"i64","max_records":8,"declared_units":64}}"#;

async fn trace_of(kind: RunKind, rows: u64, tag: f32, units: Option<u64>) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let trace = Arc::<Mutex<(Vec<ObjectId>, Vec<String>)>>::default();
    let blocks = Recording {
        blocks: FileBlockStore::open(directory.path().join("blocks")).unwrap(),
        trace: Arc::clone(&trace),
    };
    let (root, now) = (RootKey::from_bytes([1; 32]), now_unix_ms());
    // Small blocks, so that reads of a part would show.
    let sizes = VaultConfig {
        block_bytes: 512,
        object_block_bytes: 512,
        ..VaultConfig::default()
    };
    let vault = Vault::open_with(InMemoryBackend::new(), Box::new(blocks), &root, sizes, now).unwrap();
    let mut config = Config::insecure_development(directory.path().join("data"));
    std::fs::create_dir(&config.data_dir).unwrap();
    config.trainer.path = Some(standin(directory.path()));
    config.trainer.threads = 1;
    config.trainer.commit_ms = 1;
    let boot = Boot::start(
        &config,
        &vault,
        std::sync::Arc::new(bastionai_attestation::InsecureSimulatedAttester::new()),
        now,
    )
    .unwrap();
    let server = Arc::new(Server::new(
        config,
        vault,
        boot,
        ServerIdentity::generate().unwrap(),
    ));

    let contract = CONTRACT.replace(":64}", ":256}");
    let contract = match units {
        None => contract,
        Some(_) => contract.replace(r#""record""#, BY_PATIENT),
    };
    let mut upload = server
        .vault
        .begin_upload(UploadHeader {
            name: "north".into(),
            kind: DatasetKind::Private,
            owner: Principal::from_bytes([1; 32]),
            contract_json: contract,
            declared_size: 256,
            column_bytes: if units.is_some() {
                vec![16, 8, 8]
            } else {
                vec![16, 8]
            },
            policy: policy(),
        })
        .unwrap();
    let x: Vec<u8> = (0..rows * 4)
        .flat_map(|n| (tag * n as f32).sin().to_le_bytes())
        .collect();
    let y: Vec<u8> = (0..rows)
        .flat_map(|n| ((n as f32 * tag) as i64 % 2).to_le_bytes())
        .collect();
    let mut columns = vec![x, y];
    columns.extend(units.map(|units| {
        let patients = (0..rows).map(|row| (row % units) as i64);
        patients.flat_map(i64::to_le_bytes).collect()
    }));
    upload.push(rows, &columns).unwrap();
    let dataset = upload.finish(rows, now).unwrap();
    trace.lock().unwrap().1.clear();

    let archive = match kind {
        RunKind::Training => MLP.to_vec(),
        RunKind::Evaluation => SCORES.to_vec(),
    };
    let digest: [u8; 32] = Sha256::digest(&archive).into();
    let held = Model::new(digest, archive.clone()).unwrap();
    server.models.insert(SCIENTIST, held);
    let terms = server
        .vault
        .read(|ledger| Terms::of(ledger, &[ledger.dataset(&dataset).unwrap()], SCIENTIST));
    let grounds = Grounds {
        model: Arc::new(Model::new(digest, archive).unwrap()),
        weights: None,
        terms,
        boot: server.boot.as_priced(),
        limits: PriceLimits {
            model_bytes: 1 << 30,
            memory_bytes: 1 << 40,
            kept_bytes: 0,
            expires_unix_ms: u64::MAX,
        },
    };
    let id = dataset.as_bytes();
    let priced = match kind {
        RunKind::Training => {
            let request = RunRequest::parse(&spec(id), &Limits::default()).unwrap();
            Priced::Training(price::price(request, &grounds).unwrap())
        }
        RunKind::Evaluation => {
            let request = EvaluationRequest::parse(&evaluation_spec(id)).unwrap();
            Priced::Evaluation(evaluation::price(request, &grounds).unwrap())
        }
    };
    let run = server.vault.new_run_id().unwrap();
    let place = server.runs.place(SCIENTIST).unwrap();
    reserve(&server, &priced, run, now).unwrap();
    assert!(RunOrder::parse(&server.vault.read_order(&run).unwrap()).is_ok());
    server.runs.launch(&server, run, SCIENTIST, place);
    while server.runs.watch(&run).is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let status = server.vault.read(|ledger| ledger.run(&run).unwrap().status());
    assert_eq!(status, RunStatus::Committed(bastionai_ledger::Outcome::Succeeded));

    let mut lines = std::mem::take(&mut trace.lock().unwrap().1);
    let frames = std::fs::read_to_string(directory.path().join("trace.txt")).unwrap();
    lines.extend(
        frames
            .lines()
            .map(|size| format!("frame of {size} bytes to the trainer")),
    );
    lines.extend(server.vault.read(|ledger| {
        let entries = ledger.entries().iter().map(|entry| entry.body());
        let shown = entries.map(|body| format!("{}: {} bytes", body.kind(), body.to_bytes().len()));
        shown.collect::<Vec<_>>()
    }));
    let released = server.vault.released_values(&run, 0).unwrap();
    lines.extend(released.iter().map(|value| {
        format!(
            "step {} released, loss: {}",
            value.step,
            value.noisy_loss.is_some()
        )
    }));
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neighbouring_datasets_leave_the_same_trace() {
    let one = trace(RunKind::Training, 127, 1.0).await;
    let count = |what: &str| one.iter().filter(|line| line.contains(what)).count();
    assert_eq!(count("run_advanced"), 6, "a checkpoint each step: {one:#?}");
    assert!(
        count("get object 0 block") >= 12,
        "the dataset is read in many blocks"
    );
    assert!(count("frame of") >= 7 && count(" released, ") == 6, "{one:#?}");
    // One record more, across a length at which numbers of varying length grow; and other values.
    for (rows, tag) in [(128, 1.0), (126, 1.0), (127, 7.5), (0, 1.0)] {
        assert_eq!(
            one,
            trace(RunKind::Training, rows, tag).await,
            "{rows} records, tag {tag}"
        );
    }
}

/// A unit that comes or goes takes all its records with it; another grouping of the same rows is as silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neighbouring_units_leave_the_same_trace() {
    let of = |rows, tag, units| trace_of(RunKind::Training, rows, tag, Some(units));
    let one = of(127, 1.0, 30).await;
    let numbers = "frame of 1024 bytes to the trainer";
    assert!(
        one.iter().any(|line| line == numbers),
        "256 rows of four bytes: {one:#?}"
    );
    for (rows, tag, units) in [(119, 1.0, 30), (127, 1.0, 16), (127, 7.5, 64), (1, 1.0, 1)] {
        assert_eq!(one, of(rows, tag, units).await, "{rows} records, {units} units");
    }
}

/// One pass over every place, padding too, and one release.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evaluation_of_neighbouring_datasets_leaves_the_same_trace() {
    let one = trace(RunKind::Evaluation, 127, 1.0).await;
    let count = |what: &str| one.iter().filter(|line| line.contains(what)).count();
    assert!(
        count("get object 0 block") >= 12 && count("frame of") >= 3,
        "the dataset is read in many blocks: {one:#?}"
    );
    assert_eq!(
        (count("evaluation_reserved"), count("run_committed")),
        (1, 1),
        "{one:#?}"
    );
    for (rows, tag) in [(128, 1.0), (126, 1.0), (127, 7.5), (0, 1.0)] {
        let other = trace(RunKind::Evaluation, rows, tag).await;
        assert_eq!(one, other, "{rows} records, tag {tag}");
    }
}
