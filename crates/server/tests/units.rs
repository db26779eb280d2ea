//! All records of a patient are protected as one, over the datasets of a run that name their patients alike (rule D9), and
//! nobody but the server learns who they are.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::runs::RunState;
use bastionai_client::session::AppraisedPeer;
use bastionai_client::{Bands, ClientError, DataContract, DatasetKind, HeadMemory, NewDataset, RecordBatch};
use bastionai_graph::contract::UnitType;
use common::process::ServerProcess;
use common::raw::{self, finish, header, policy, records};
use common::{CONTRACT, TestServer, identity, open_policy, spec, timeout, upload_mlp, watch};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// In every identifier, and nowhere else.
const MARK: &str = "zyx-patient-";

fn contract(max_records: u64) -> DataContract {
    let unit = format!(
        r#"{{"column":{{"name":"patient_id","dtype":"string","max_records":{max_records},"declared_units":32}}}}"#
    );
    DataContract::parse_json(CONTRACT.replace(r#""record""#, &unit).as_bytes()).unwrap()
}

fn new(name: &str, contract: DataContract) -> NewDataset {
    NewDataset {
        name: name.into(),
        kind: DatasetKind::Private,
        contract,
        policy: open_policy("6.0", "1e-5"),
    }
}

/// Records of these patients, in this order.
fn rows(patients: &[u32]) -> RecordBatch {
    let mut batch = common::rows(patients.len() as u64, 1.0);
    let encode = |patient: &u32| UnitType::String.encode(&format!("{MARK}{patient}")).unwrap();
    batch.columns.push(patients.iter().flat_map(encode).collect());
    batch
}

fn north() -> Vec<u32> {
    (0..40).map(|row| row / 2).collect()
}

fn south() -> Vec<u32> {
    (0..30).map(|row| 10 + row % 15).collect()
}

fn holds(bytes: &[u8], pattern: &[u8]) -> bool {
    bytes.windows(pattern.len()).any(|window| window == pattern)
}

fn files_below(path: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(path).unwrap().flatten() {
        if entry.path().is_dir() {
            files_below(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

#[tokio::test]
async fn patients_of_two_owners_are_one_unit_and_their_names_stay_in_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(directory.path(), "echo", |_| {});
    let peer = common::peer(&server.address, &identity()).await;
    let mut ids = Vec::new();
    for (name, most, patients) in [("north", 5, north()), ("south", 3, south())] {
        let shown = peer
            .upload_dataset(&new(name, contract(most)), vec![rows(&patients)], &mut |_| {})
            .await
            .unwrap();
        ids.push(shown.id);
    }
    ids.push(common::upload(&peer, "east", "6.0").await);
    let model = upload_mlp(&peer).await;
    let quote = peer.price(&spec(model, &ids, 1.0, 4)).await.unwrap();
    assert_eq!(quote.spec.records_per_unit, Some(3), "the smallest cap");
    assert_eq!(
        quote.declared_size,
        32 + 32 + 64,
        "units, and records where they are the unit"
    );
    assert_eq!(quote.physical_batch_size % 3, 0);
    let joined = "per patient_id, joined over datasets north, south";
    let units: Vec<&str> = quote
        .charges
        .iter()
        .map(|charge| charge.privacy_unit.as_str())
        .collect();
    assert_eq!(units, [joined, joined, "per record, per dataset"]);

    let run = peer.start_run(quote.run_digest).await.unwrap();
    assert_eq!(watch(&peer, run.id).await.1, RunState::Succeeded);
    let fetched = peer.fetch_run(run.id, None, &mut |_| {}).await.unwrap();
    let receipt = &fetched.receipt;
    let stated: Vec<Option<&str>> = receipt
        .datasets
        .iter()
        .map(|each| each.privacy_unit.as_deref())
        .collect();
    assert_eq!(stated, [Some(joined), Some(joined), None]);
    assert_eq!(receipt.accounting.privacy_unit, "as stated for each dataset");
    assert!(receipt.accounting.assumptions[0].contains("all records of one unit"));
    server.kill();

    // What the trainer got: of each dataset 64 rows of x, y and, where it has patients, their numbers.
    let echoed = std::fs::read(directory.path().join("echo.bin")).unwrap();
    let (columns, numbers) = (64 * 16 + 64 * 8, 64 * 4);
    assert_eq!(echoed.len(), 3 * columns + 2 * numbers);
    let read = |from: usize| -> Vec<u32> {
        let (words, _) = echoed[from..from + numbers].as_chunks::<4>();
        words.iter().map(|word| u32::from_le_bytes(*word)).collect()
    };
    let (first, second) = (read(columns), read(columns + numbers + columns));
    let mut of_patient: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for (patients, numbers) in [(north(), &first), (south(), &second)] {
        for (patient, number) in patients.iter().zip(numbers) {
            of_patient.entry(*patient).or_default().insert(*number);
        }
        assert!(numbers[patients.len()..].iter().all(|&number| number == u32::MAX));
    }
    assert!(
        of_patient.values().all(|numbers| numbers.len() == 1),
        "{of_patient:?}"
    );
    let all: BTreeSet<u32> = of_patient.values().flatten().copied().collect();
    assert_eq!((all.len(), all.last()), (25, Some(&24)), "one number a patient");

    let mut files = Vec::new();
    files_below(directory.path(), &mut files);
    assert!(files.len() > 6, "{files:?}");
    for file in files {
        let found = holds(&std::fs::read(&file).unwrap(), MARK.as_bytes());
        assert!(!found, "{} holds an identifier in clear", file.display());
    }
    assert!(!format!("{quote:?} {run:?} {receipt:?}").contains(MARK));
}

/// With correlated noise a unit's number decides in which steps it may have its turn: at another start of the run's trainer it
/// is the same, in another run it is not.
#[tokio::test]
async fn a_run_that_goes_on_after_a_kill_numbers_its_units_as_before_and_another_run_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let echo = directory.path().join("echo.bin");
    let (me, heads) = (identity(), HeadMemory::in_process());
    let boot = || {
        ServerProcess::start(directory.path(), "echo-50", |config| {
            config.trainer.commit_ms = 10
        })
    };
    let server = boot();
    let peer = common::try_peer(&server.address, &me, &heads).await.unwrap();
    let hospital = new("north", contract(5));
    let id = peer
        .upload_dataset(&hospital, vec![rows(&north())], &mut |_| {})
        .await
        .unwrap()
        .id;
    let mut asked = spec(upload_mlp(&peer).await, &[id], 1.0, 60);
    asked.bands = Bands::Fixed(2);
    let quote = peer.price(&asked).await.unwrap();
    assert_eq!((quote.declared_size, quote.spec.bands), (32, Bands::Fixed(2)));
    let run = peer.start_run(quote.run_digest).await.unwrap().id;
    let released = |peer: AppraisedPeer| async move {
        let mut watch = peer.watch_run(run, 0).await.unwrap();
        while timeout(watch.next())
            .await
            .unwrap()
            .expect("the run goes on")
            .noisy_loss
            .is_none()
        {}
    };
    // Where a step is released, all records were sent.
    released(peer).await;
    server.kill();
    let numbers = |sent: Vec<u8>| sent[64 * 16 + 64 * 8..].to_vec();
    let before = numbers(std::fs::read(&echo).unwrap());
    assert_eq!(before.len(), 64 * 4);
    std::fs::remove_file(&echo).unwrap();

    let server = boot();
    let peer = common::try_peer(&server.address, &me, &heads).await.unwrap();
    assert_eq!(watch(&peer, run).await.1, RunState::Succeeded);
    let after = numbers(std::fs::read(&echo).unwrap());
    assert_eq!(after, before, "in the same order");
    let receipt = peer.fetch_run(run, None, &mut |_| {}).await.unwrap().receipt;
    assert_eq!(receipt.run.resumed_by.len(), 1);

    let asked = spec(upload_mlp(&peer).await, &[id], 1.0, 2);
    let quote = peer.price(&asked).await.unwrap();
    let other = peer.start_run(quote.run_digest).await.unwrap().id;
    assert_eq!(watch(&peer, other).await.1, RunState::Succeeded);
    let other = numbers(std::fs::read(&echo).unwrap());
    assert_ne!(other, before, "20 units in one of 20! orders");
    server.kill();
}

/// A sender without manners: what the client would have refused, the server refuses, to the sender alone (G4).
#[tokio::test]
async fn a_unit_above_its_cap_is_its_owners_error_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(directory.path(), "normal-0", |_| {});
    let contract_json = String::from_utf8(contract(2).to_canonical_json()).unwrap();
    let many: Vec<u32> = (0..33).collect();
    let mut unnamed = rows(&[1, 2]).columns;
    unnamed[2][..65].fill(0);
    for (batches, said) in [
        (
            vec![rows(&[7, 8, 7]).columns, rows(&[8, 7]).columns],
            "starts at row 3: column \"patient_id\", row 1",
        ),
        (vec![rows(&many).columns], "more than 32 units"),
        (vec![unnamed], "not an identifier"),
        (vec![common::rows(2, 1.0).columns], "3"),
    ] {
        let mut parts = vec![header("broken", &contract_json, policy())];
        parts.extend(
            batches
                .into_iter()
                .map(|columns| records((columns[1].len() / 8) as u32, columns)),
        );
        parts.push(finish(5));
        let mut client = raw::attested(server.address.parse().unwrap()).await;
        let status = client
            .upload_dataset(tokio_stream::iter(parts))
            .await
            .unwrap_err();
        assert!(status.message().contains(said), "{status:?}");
        assert!(!format!("{status:?}").contains(MARK));
    }
    let peer = common::peer(&server.address, &identity()).await;
    assert!(peer.list_datasets().await.unwrap().is_empty());
    let refused = peer
        .upload_dataset(&new("north", contract(2)), vec![rows(&[7, 8, 7, 7])], &mut |_| {})
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, ClientError::RowRefused { row: Some(3), .. }),
        "{refused}"
    );
    server.kill();
    let log = std::fs::read_to_string(directory.path().join("server.log")).unwrap();
    assert!(
        log.contains("outside-contract") && !log.contains(MARK) && !log.contains("patient"),
        "{log}"
    );
}

#[tokio::test]
async fn what_cannot_be_meant_of_units_is_refused_with_a_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let hospital = new("north", contract(5));
    let units = peer
        .upload_dataset(&hospital, vec![rows(&north())], &mut |_| {})
        .await
        .unwrap()
        .id;
    let records = common::upload(&peer, "east", "6.0").await;
    let model = upload_mlp(&peer).await;
    let priced = |dataset, records_per_unit, max_batch_size| {
        let mut asked = spec(model, &[dataset], 1.0, 4);
        asked.records_per_unit = records_per_unit;
        asked.max_batch_size = max_batch_size;
        let peer = &peer;
        async move { peer.price(&asked).await.map_err(|error| error.to_string()) }
    };
    let said = priced(units, Some(6), 0).await.unwrap_err();
    assert!(said.contains("from 1 to 5"), "{said}");
    let said = priced(records, Some(2), 0).await.unwrap_err();
    assert!(said.contains("leave records_per_unit out"), "{said}");
    let said = priced(units, Some(4), 3).await.unwrap_err();
    assert!(
        said.contains("max_batch_size 3 is below records_per_unit 4"),
        "{said}"
    );
    let (one, two) = (
        priced(units, Some(1), 0).await.unwrap(),
        priced(units, Some(2), 0).await.unwrap(),
    );
    assert_ne!(one.run_digest, two.run_digest);
    assert_eq!(
        one.charges[0].cost, two.charges[0].cost,
        "records of a unit cost nothing"
    );
    server.stop().await;
}
