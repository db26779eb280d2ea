//! Uploads, watching and fetching against a server that refuses, disappears or lies.
#![allow(clippy::unwrap_used)]

mod common;

use bastionai_client::blocking::{Client, Settings, Watched};
use bastionai_client::synth::synthetic_batch;
use bastionai_client::{
    AppraisalPolicy, CheckedRecords, ClientError, DataContract, DatasetKind, Delta, Digest32, Epsilon,
    Freshness, HeadMemory, Identity, MayTrain, NewDataset, Policy, RecordBatch, Run, RunId, Transfer,
    audit_receipt,
};
use bastionai_ledger::key::LedgerKey;
use bastionai_ledger::policy::DatasetKind as LedgerKind;
use bastionai_ledger::receipt::{BudgetStatement, Receipt};
use bastionai_ledger::weights::weights_digest;
use bastionai_privacy::event::DpEvent;
use bastionai_wire::v1::{self, FetchHeader, FetchRunReply, fetch_run_reply::Part};
use common::ledger::{RUN, TestLedger, weights};
use common::proxy::Proxy;
use common::service::Behaviour;
use common::{TestServer, open, options};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn dataset() -> NewDataset {
    let contract = br#"{"version":1,"columns":[
        {"name":"x","dtype":"f32","shape":[30],"domain":{"range":{"minimum":[0.0],"maximum":[1.0]}}},
        {"name":"y","dtype":"i64","shape":[],"domain":{"classes":{"names":["no","yes"]}}}],
        "privacy_unit":"record","declared_size":1024}"#;
    NewDataset {
        name: "hospital".into(),
        kind: DatasetKind::Synthetic,
        contract: DataContract::parse_json(contract).unwrap(),
        policy: Policy {
            lifetime: None,
            composition: Default::default(),
            may_train: MayTrain::Anyone,
            recipients: vec![],
            scientist_receives: true,
            require_hardened: false,
            expires_unix_ms: None,
            evaluation_only: false,
        },
    }
}

fn rows(count: u64, seed: u64) -> RecordBatch {
    synthetic_batch(&dataset().contract, count, seed)
}

fn with_bad_row(mut batch: RecordBatch, row: usize) -> RecordBatch {
    batch.columns[0][row * 120..row * 120 + 4].copy_from_slice(&7.25f32.to_le_bytes());
    batch
}

#[tokio::test]
async fn a_dataset_arrives_whole_whatever_the_batches_and_chunks() {
    let server = TestServer::start(Behaviour::honest()).await;
    let peer = open(&server.address).await.unwrap();
    let mut seen: Vec<Transfer> = Vec::new();
    let batches = vec![rows(100, 1), rows(30_000, 2), rows(1, 3)];
    let made = peer
        .upload_dataset(&dataset(), batches, &mut |t| seen.push(t))
        .await
        .unwrap();
    assert_eq!(*server.rows_received.lock().unwrap(), 30_101);
    assert_eq!((made.name.as_str(), made.owner), ("hospital", peer.principal()));
    assert_eq!(made.contract, dataset().contract);
    let last = seen.last().unwrap();
    assert_eq!(
        (last.done_bytes, last.total_bytes),
        (30_101 * 128, Some(30_101 * 128))
    );
}

#[tokio::test]
async fn one_bad_row_keeps_every_row_at_home() {
    let server = TestServer::start(Behaviour::honest()).await;
    let peer = open(&server.address).await.unwrap();
    let batches = vec![rows(50, 1), with_bad_row(rows(50, 2), 7)];
    let error = peer
        .upload_dataset(&dataset(), batches, &mut |_| {})
        .await
        .unwrap_err();
    let ClientError::RowRefused { row, column, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((*row, column.as_str()), (Some(57), "x"));
    assert!(!error.to_string().contains("7.25"), "{error}");
    assert_eq!(server.calls(), ["Attest", "Hello"]);
}

#[tokio::test]
async fn a_model_that_the_server_has_is_not_sent_again() {
    let server = TestServer::start(Behaviour::honest()).await;
    let peer = open(&server.address).await.unwrap();
    let archive = vec![7; 100_000];
    let mut sent = Vec::new();
    let first = peer
        .upload_model("mlp", &archive, &mut |t| sent.push(t))
        .await
        .unwrap();
    assert_eq!(sent.last().unwrap().done_bytes, 100_000);
    sent.clear();
    let second = peer
        .upload_model("mlp", &archive, &mut |t| sent.push(t))
        .await
        .unwrap();
    assert_eq!((first, &sent), (second, &vec![]));
    let calls = ["Attest", "Hello", "FindModel", "UploadModel", "FindModel"];
    assert_eq!(server.calls(), calls, "no upload was even begun");
}

#[tokio::test]
async fn an_archive_is_sent_whole_where_a_tensor_that_was_held_had_to_make_room() {
    let server = TestServer::start(Behaviour {
        forgets_storages: true,
        ..Behaviour::honest()
    })
    .await;
    let peer = open(&server.address).await.unwrap();
    let archive = include_bytes!("../../server/tests/fixtures/frozen_one.pt2");
    let mut done = 0;
    let sent = peer
        .upload_model("frozen", archive, &mut |t| done = t.done_bytes)
        .await;
    assert_eq!(sent.unwrap(), Digest32::of(archive));
    assert_eq!(done, archive.len() as u64);
    let calls = ["Attest", "Hello", "FindModel", "UploadModel", "UploadModel"];
    assert_eq!(server.calls(), calls);
}

#[tokio::test]
async fn rows_checked_against_another_contract_are_not_sent() {
    let server = TestServer::start(Behaviour::honest()).await;
    let peer = open(&server.address).await.unwrap();
    let records = CheckedRecords::check(&dataset().contract, vec![rows(50, 1)]).unwrap();
    let mut other = dataset();
    other.contract.declared_size = 2048;
    let error = peer
        .upload_checked(&other, records, &mut |_| {})
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Invalid(_)), "{error}");
    assert_eq!(server.calls(), ["Attest", "Hello"]);
}

#[tokio::test]
async fn a_bad_row_in_a_streamed_upload_stops_it_and_nothing_is_kept() {
    let server = TestServer::start(Behaviour::honest()).await;
    let peer = open(&server.address).await.unwrap();
    let mut upload = peer.begin_upload(&dataset()).await.unwrap();
    upload.push(rows(50, 1)).await.unwrap();
    let error = upload.push(with_bad_row(rows(50, 2), 0)).await.unwrap_err();
    assert!(
        matches!(error, ClientError::RowRefused { row: Some(50), .. }),
        "{error}"
    );
    drop(upload);
    assert!(!peer.has_ended(), "giving an upload up does not end the session");
    peer.list_datasets().await.unwrap();
}

#[tokio::test]
async fn the_servers_reason_comes_through_when_it_hangs_up_early() {
    for after in [0, 1] {
        let behaviour = Behaviour {
            refuse_upload_after: Some((after, "name-taken")),
            ..Behaviour::honest()
        };
        let server = TestServer::start(behaviour).await;
        let peer = open(&server.address).await.unwrap();
        let batches = (0..40).map(|seed| rows(8_000, seed)).collect();
        let error = peer
            .upload_dataset(&dataset(), batches, &mut |_| {})
            .await
            .unwrap_err();
        assert!(matches!(error, ClientError::NameTaken(_)), "{error}");
        peer.list_datasets().await.unwrap();
    }
}

#[tokio::test]
async fn a_server_killed_in_an_upload_ends_the_session_and_is_never_replaced() {
    let (server, other) = (
        TestServer::start(Behaviour::honest()).await,
        TestServer::start(Behaviour::honest()).await,
    );
    let network = Proxy::start(&server.address).await;
    let peer = open(&network.address).await.unwrap();
    let mut upload = peer.begin_upload(&dataset()).await.unwrap();
    upload.push(rows(100, 1)).await.unwrap();
    network.swap(&other.address).await;
    let mut outcome = Ok(());
    for seed in 0..200 {
        outcome = upload.push(rows(8_000, seed)).await;
        if outcome.is_err() {
            break;
        }
    }
    let error = match outcome {
        Err(error) => error,
        Ok(()) => upload.finish().await.unwrap_err(),
    };
    assert!(matches!(error, ClientError::SessionEnded), "{error}");
    assert_eq!(other.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_server_that_stops_reading_does_not_hold_the_owner_for_ever() {
    let server = TestServer::start(Behaviour {
        hangs: true,
        ..Behaviour::honest()
    })
    .await;
    let peer = open(&server.address).await.unwrap();
    let batches = (0..40).map(|seed| rows(8_000, seed)).collect();
    let error = peer
        .upload_dataset(&dataset(), batches, &mut |_| {})
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::TimedOut {
                call: "UploadDataset",
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_push_given_up_half_way_cannot_be_finished() {
    let server = TestServer::start(Behaviour {
        hangs: true,
        ..Behaviour::honest()
    })
    .await;
    let peer = open(&server.address).await.unwrap();
    let mut upload = peer.begin_upload(&dataset()).await.unwrap();
    let large = rows(200_000, 1);
    let given_up = tokio::time::timeout(Duration::from_millis(500), upload.push(large)).await;
    assert!(
        given_up.is_err(),
        "the server does not read, so the push cannot end"
    );
    let error = upload.push(rows(1, 2)).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Invalid(text) if text.contains("in part")),
        "{error}"
    );
    assert_eq!(upload.finish().await.unwrap_err().kind(), "invalid");
}

#[tokio::test]
async fn limits_are_met_before_anything_is_sent() {
    let change_hello =
        |reply: &mut v1::HelloReply| (reply.max_upload_bytes, reply.max_model_bytes) = (1000, 10);
    let server = TestServer::start(Behaviour {
        change_hello: Arc::new(change_hello),
        ..Behaviour::honest()
    })
    .await;
    let peer = open(&server.address).await.unwrap();
    let error = peer
        .upload_dataset(&dataset(), vec![rows(100, 1)], &mut |_| {})
        .await
        .unwrap_err();
    assert_eq!(error.kind(), "limit-exceeded");
    let error = peer.upload_model("mlp", &[0; 11], &mut |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), "limit-exceeded");
    assert_eq!(server.calls(), ["Attest", "Hello"]);
}

#[tokio::test]
async fn a_model_is_named_by_its_bytes_and_arrives_in_chunks() {
    let server = TestServer::start(Behaviour::honest()).await;
    let peer = open(&server.address).await.unwrap();
    let archive: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
    let mut steps = 0;
    let id = peer
        .upload_model("mlp", &archive, &mut |_| steps += 1)
        .await
        .unwrap();
    assert_eq!(id, Digest32::of(&archive));
    assert_eq!(steps, 3);
}

#[tokio::test]
async fn refusals_of_prices_and_starts_are_told_apart() {
    let server = TestServer::start(Behaviour::honest()).await;
    let peer = open(&server.address).await.unwrap();
    assert!(matches!(
        peer.start_run(Digest32::of(b"")).await,
        Err(ClientError::BudgetExceeded(_))
    ));
    assert!(matches!(
        peer.cancel_run(RUN).await,
        Err(ClientError::NotFound(_))
    ));
}

fn wire_run() -> v1::Run {
    v1::Run {
        id: RUN.as_bytes().to_vec(),
        run_digest: vec![8; 32],
        state: v1::RunState::Running.into(),
        kind: v1::RunKind::Training.into(),
        model_name: "mlp".into(),
        scientist: vec![1; 32],
        steps: 10,
        ..v1::Run::default()
    }
}

fn progress(step: u64) -> v1::RunProgress {
    v1::RunProgress {
        run: Some(wire_run()),
        step,
        has_loss: true,
        noisy_loss: 0.5,
    }
}

#[tokio::test]
async fn a_watch_shows_every_step_and_ends_with_the_session() {
    let behaviour = Behaviour {
        progress: vec![progress(1), progress(2)],
        progress_ends: false,
        ..Behaviour::honest()
    };
    let server = TestServer::start(behaviour).await;
    let network = Proxy::start(&server.address).await;
    let peer = open(&network.address).await.unwrap();
    let mut watch = peer.watch_run(RUN, 0).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().step, 1);
    assert_eq!(watch.next().await.unwrap().unwrap().noisy_loss, Some(0.5));
    let waited = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
    assert!(waited.is_err());
    network.swap(&server.address).await;
    assert!(matches!(watch.next().await, Err(ClientError::SessionEnded)));
    assert!(matches!(peer.list_runs().await, Err(ClientError::SessionEnded)));
}

/// What an honest server sends for [`RUN`].
fn honest_fetch(ledger: &TestLedger) -> Vec<FetchRunReply> {
    let (tensors, data) = weights();
    let receipt = ledger.receipt(weights_digest(&tensors, &data));
    fetch_of(receipt.sign(&ledger.key), &data)
}

fn fetch_of(receipt_dsse_json: Vec<u8>, data: &[u8]) -> Vec<FetchRunReply> {
    let tensors = weights().0.into_iter().map(|tensor| v1::WeightTensor {
        names: tensor.names,
        dtype: tensor.dtype,
        shape: tensor.shape,
        size_bytes: tensor.size_bytes,
    });
    let header = FetchHeader {
        receipt_dsse_json,
        tensors: tensors.collect(),
    };
    let mut parts = vec![Part::Header(header)];
    parts.extend(data.chunks(9).map(|chunk| Part::Chunk(chunk.to_vec())));
    parts
        .into_iter()
        .map(|part| FetchRunReply { part: Some(part) })
        .collect()
}

async fn fetch(fetch: Vec<FetchRunReply>, expected: Option<&Run>) -> Result<Vec<Vec<u8>>, ClientError> {
    let server = TestServer::start(Behaviour {
        fetch,
        ..Behaviour::honest()
    })
    .await;
    let peer = open(&server.address).await.unwrap();
    let fetched = peer.fetch_run(RUN, expected, &mut |_| {}).await?;
    assert_eq!(fetched.weights[0].names, ["fc.weight", "tied"]);
    Ok(fetched.weights.into_iter().map(|tensor| tensor.bytes).collect())
}

#[tokio::test]
async fn weights_come_with_a_receipt_that_covers_them() {
    let ledger = TestLedger::new(&[1, 2, 3]);
    let bytes = fetch(honest_fetch(&ledger), None).await.unwrap();
    assert_eq!(bytes, [(0..24).collect::<Vec<u8>>(), (24..32).collect()]);
}

#[tokio::test]
async fn weights_or_receipts_that_do_not_match_are_refused() {
    let ledger = TestLedger::new(&[1, 2, 3]);
    let (tensors, data) = weights();
    let digest = weights_digest(&tensors, &data);
    let good = ledger.receipt(digest);
    let mut changed = data.clone();
    changed[31] ^= 1;
    let mut other_run = good.clone();
    other_run.run.id = RunId::from_bytes([0; 16]);
    let other_key = TestLedger {
        key: Arc::new(LedgerKey::from_seed(&[1; 32])),
        ..ledger.clone()
    };
    let mut forged = good.sign(&ledger.key);
    let at = forged.len() / 2;
    forged[at] ^= 1;
    let mut without_evidence = good.clone();
    without_evidence.issuer.evidence.pop();
    let mut other_claims = good.clone();
    other_claims.issuer.claims = TestLedger::new(&[1, 2, 3, 4]).claims().to_bytes();
    let cases = [
        (
            "changed weights",
            fetch_of(good.sign(&ledger.key), &changed),
            "receipt-refused",
        ),
        (
            "another run",
            fetch_of(other_run.sign(&ledger.key), &data),
            "receipt-refused",
        ),
        (
            "another key",
            fetch_of(other_key.receipt(digest).sign(&other_key.key), &data),
            "receipt-refused",
        ),
        ("a flipped byte", fetch_of(forged, &data), "receipt-refused"),
        ("no receipt", fetch_of(vec![], &data), "receipt-refused"),
        (
            "cut evidence",
            fetch_of(without_evidence.sign(&ledger.key), &data),
            "evidence-refused",
        ),
        (
            "claims that are not bound",
            fetch_of(other_claims.sign(&ledger.key), &data),
            "appraisal-refused",
        ),
        (
            "too few bytes",
            fetch_of(good.sign(&ledger.key), &data[..31]),
            "protocol",
        ),
        (
            "too many bytes",
            fetch_of(good.sign(&ledger.key), &[&data[..], &[0]].concat()),
            "protocol",
        ),
        ("no header", honest_fetch(&ledger).split_off(1), "protocol"),
        ("nothing", vec![], "protocol"),
    ];
    for (name, parts, kind) in cases {
        let error = fetch(parts, None).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
    }
}

/// What a server answers to FetchReceipt with this envelope.
async fn fetch_receipt(envelope: Vec<u8>) -> Result<bastionai_client::FetchedReceipt, ClientError> {
    let server = TestServer::start(Behaviour {
        fetch: fetch_of(envelope, &[]),
        ..Behaviour::honest()
    })
    .await;
    let peer = open(&server.address).await.unwrap();
    peer.fetch_receipt(RUN, None).await
}

#[tokio::test]
async fn a_receipt_alone_is_checked_as_strictly_as_one_with_weights() {
    let ledger = TestLedger::new(&[1, 2, 3]);
    let good = ledger.receipt(Digest32::of(b"weights"));
    let fetched = fetch_receipt(good.sign(&ledger.key)).await.unwrap();
    assert_eq!((fetched.receipt.run.id, &fetched.receipt), (RUN, &good));
    let mut other_run = good.clone();
    other_run.run.id = RunId::from_bytes([0; 16]);
    let mut without_evidence = good.clone();
    without_evidence.issuer.evidence.pop();
    let mut forged = good.sign(&ledger.key);
    let at = forged.len() / 2;
    forged[at] ^= 1;
    for (what, envelope, kind) in [
        ("another run", other_run.sign(&ledger.key), "receipt-refused"),
        ("a flipped byte", forged, "receipt-refused"),
        ("nothing", vec![], "receipt-refused"),
        (
            "cut evidence",
            without_evidence.sign(&ledger.key),
            "evidence-refused",
        ),
    ] {
        let error = fetch_receipt(envelope).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
    }
}

#[tokio::test]
async fn a_receipt_for_another_run_digest_than_was_started_is_refused() {
    let ledger = TestLedger::new(&[1, 2, 3]);
    let server = TestServer::start(Behaviour {
        progress: vec![progress(1)],
        ..Behaviour::honest()
    })
    .await;
    let peer = open(&server.address).await.unwrap();
    let started = peer
        .watch_run(RUN, 0)
        .await
        .unwrap()
        .next()
        .await
        .unwrap()
        .unwrap()
        .run;
    fetch(honest_fetch(&ledger), Some(&started)).await.unwrap();
    let other = Run {
        run_digest: Digest32::of(b"other"),
        ..started
    };
    let error = fetch(honest_fetch(&ledger), Some(&other)).await.unwrap_err();
    assert!(error.to_string().contains("run digest"), "{error}");
}

#[test]
fn an_auditor_needs_nothing_but_the_receipt_and_a_policy() {
    let ledger = TestLedger::new(&[1, 2, 3]);
    let envelope = ledger.receipt(Digest32::of(b"")).sign(&ledger.key);
    let policy = AppraisalPolicy::insecure_development();
    let audited = audit_receipt(&envelope, &policy, 1).unwrap();
    assert_eq!(audited.receipt().run.id, RUN);
    assert_eq!(audited.issuer().runtime_claims(), &ledger.claims());

    let error = audit_receipt(&envelope, &AppraisalPolicy::default(), 1).unwrap_err();
    assert_eq!(error.kind(), "appraisal-refused");
    for at in 0..envelope.len() {
        let mut flipped = envelope.clone();
        flipped[at] ^= 1;
        assert!(audit_receipt(&flipped, &policy, 1).is_err(), "byte {at}");
    }
    // Signed by a key made outside the TEE: the evidence does not bind it.
    let outside = TestLedger {
        key: Arc::new(LedgerKey::from_seed(&[1; 32])),
        ..ledger.clone()
    };
    let mut forged = outside.receipt(Digest32::of(b""));
    let stolen = ledger.boot_evidence();
    (forged.issuer.evidence, forged.issuer.claims) = (stolen.evidence, stolen.claims);
    assert_eq!(
        audit_receipt(&forged.sign(&outside.key), &policy, 1)
            .unwrap_err()
            .kind(),
        "appraisal-refused"
    );
}

#[test]
fn a_receipt_that_contradicts_the_evidence_it_carries_is_refused() {
    let ledger = TestLedger::new(&[1, 2, 3]);
    let policy = AppraisalPolicy::insecure_development();
    let refusal = |change: &dyn Fn(&mut Receipt)| {
        let mut receipt = ledger.receipt(Digest32::of(b""));
        change(&mut receipt);
        let error = audit_receipt(&receipt.sign(&ledger.key), &policy, 1).unwrap_err();
        assert_eq!(error.kind(), "receipt-refused", "{error}");
        error.to_string()
    };
    let witnessed = refusal(&|receipt| {
        let mut claims = ledger.claims();
        claims.freshness = Freshness::Witness;
        receipt.issuer = ledger.evidence_of(&claims);
    });
    assert!(
        witnessed.contains("freshness none, its evidence witness"),
        "{witnessed}"
    );
    let behind = refusal(&|receipt| receipt.ledger_head = TestLedger::new(&[1, 2]).head().head);
    assert!(behind.contains("fewer than the 3"), "{behind}");
    let other = refusal(&|receipt| receipt.ledger_head = TestLedger::new(&[1, 2, 9]).head().head);
    assert!(other.contains("not the one bound"), "{other}");

    let mut later = ledger.receipt(Digest32::of(b""));
    later.ledger_head = TestLedger::new(&[1, 2, 3, 4]).head().head;
    audit_receipt(&later.sign(&ledger.key), &policy, 1).unwrap();
}

#[test]
fn a_receipt_that_charges_less_than_its_mechanism_costs_is_refused() {
    let ledger = TestLedger::new(&[1, 2, 3]);
    let policy = AppraisalPolicy::insecure_development();
    let audit = |epsilon: &str, count: u64| {
        let mut receipt = ledger.receipt(Digest32::of(b""));
        let dataset = &mut receipt.datasets[0];
        dataset.kind = LedgerKind::Private;
        dataset.event = DpEvent::SelfComposed {
            event: Box::new(DpEvent::Gaussian {
                noise_multiplier: 10f64.sqrt(),
            }),
            count,
        };
        (dataset.epsilon, dataset.delta) = (epsilon.parse().unwrap(), "1e-5".parse().unwrap());
        dataset.budget = Some(BudgetStatement {
            renyi: None,
            total_epsilon: dataset.epsilon,
            total_delta: dataset.delta,
            reserved_epsilon: Epsilon::ZERO,
            reserved_delta: Delta::ZERO,
            lifetime_epsilon: "6".parse().unwrap(),
            lifetime_delta: "1e-4".parse().unwrap(),
        });
        audit_receipt(&receipt.sign(&ledger.key), &policy, 1)
    };
    // Ten steps at √10 are one at 1: ε = 4.3772 at δ = 1e-5 (Balle and Wang 2018, theorem 8).
    audit("4.39", 10).unwrap();
    for (epsilon, count, why) in [
        ("4.37", 10, "costs"),
        ("4.39", 1, "1 steps"),
        ("5.9", 11, "11 steps"),
    ] {
        let error = audit(epsilon, count).unwrap_err();
        assert_eq!(error.kind(), "receipt-refused", "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

fn settings() -> Settings {
    Settings {
        policy: AppraisalPolicy::insecure_development(),
        heads: HeadMemory::in_process(),
        options: options(),
        interrupt: None,
    }
}

#[test]
fn the_blocking_client_waits_polls_and_can_be_interrupted() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let behaviour = Behaviour {
        hangs: true,
        progress: vec![progress(1)],
        progress_ends: false,
        ..Behaviour::honest()
    };
    let server = runtime.block_on(TestServer::start(behaviour));
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    let interrupt: bastionai_client::blocking::Interrupt = Arc::new(move || asked.load(Ordering::SeqCst));
    let settings = Settings {
        interrupt: Some(interrupt),
        ..settings()
    };
    let client = Client::connect(&server.address, &Identity::generate().unwrap(), &settings).unwrap();

    let mut watch = client.watch_run(RUN, 0).unwrap();
    let Watched::Progress(first) = watch.next_progress(Duration::from_secs(5)).unwrap() else {
        panic!()
    };
    assert_eq!(first.step, 1);
    assert_eq!(
        watch.next_progress(Duration::from_millis(50)).unwrap(),
        Watched::Waiting
    );

    stop.store(true, Ordering::SeqCst);
    assert!(matches!(client.list_datasets(), Err(ClientError::Interrupted)));
    stop.store(false, Ordering::SeqCst);
    assert!(
        !client.has_ended(),
        "an interrupted wait does not end the session"
    );
    assert_eq!(
        watch.next_progress(Duration::from_millis(50)).unwrap(),
        Watched::Waiting
    );
}

#[test]
fn the_blocking_client_uploads_lists_and_sees_the_end_of_a_run() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(TestServer::start(Behaviour {
        progress: vec![progress(1)],
        ..Behaviour::honest()
    }));
    let client = Client::connect(&server.address, &Identity::generate().unwrap(), &settings()).unwrap();
    let mut upload = client.begin_upload(&dataset()).unwrap();
    upload.push(rows(10, 1)).unwrap();
    assert_eq!(upload.finish().unwrap().name, "hospital");
    assert!(client.list_datasets().unwrap().is_empty());
    let mut watch = client.watch_run(RUN, 0).unwrap();
    assert!(matches!(
        watch.next_progress(Duration::from_secs(5)).unwrap(),
        Watched::Progress(_)
    ));
    assert_eq!(
        watch.next_progress(Duration::from_secs(5)).unwrap(),
        Watched::Ended
    );
}
