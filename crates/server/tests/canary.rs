//! A canary planted in the data appears in no log, error, metric or file in clear (rules G4, G5, D7).
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::RecordBatch;
use bastionai_client::runs::RunState;
use common::process::ServerProcess;
use common::raw::{self, finish, header, policy, records};
use common::{CONTRACT, identity, open_policy, spec, upload_mlp, watch};
use std::path::{Path, PathBuf};

/// Four features that occur nowhere by chance: 16 bytes as stored, and as anybody would print them.
const CANARY: [f32; 4] = [7.331_337, -3.141_421, 9.876_543, 1.618_271];
const PRINTED: [&str; 4] = ["7.33133", "3.14142", "9.87654", "1.61827"];

fn canary_bytes() -> Vec<u8> {
    CANARY.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn canary_rows(count: u64) -> RecordBatch {
    let x = canary_bytes().repeat(count as usize);
    let y = (0..count)
        .flat_map(|row| ((row % 2) as i64).to_le_bytes())
        .collect();
    RecordBatch {
        rows: count,
        columns: vec![x, y],
    }
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

fn holds(bytes: &[u8], pattern: &[u8]) -> bool {
    bytes.windows(pattern.len()).any(|window| window == pattern)
}

fn leaks(bytes: &[u8]) -> bool {
    let canary = canary_bytes();
    // Two neighbouring values are 8 bytes: enough to be no accident.
    holds(bytes, &canary[..8])
        || holds(bytes, &canary[8..])
        || PRINTED.iter().any(|text| holds(bytes, text.as_bytes()))
}

#[tokio::test]
async fn planted_values_reach_the_trainer_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let mut told = Vec::new();
    for (mode, expected) in [
        ("echo", RunState::Succeeded),
        ("die-2", RunState::Failed),
        ("nan", RunState::Failed),
    ] {
        let server = ServerProcess::start(directory.path(), mode, |_| {});
        let peer = common::peer(&server.address, &identity()).await;
        let new = common::dataset(mode, open_policy("6.0", "1e-5"));
        let shown = peer
            .upload_dataset(&new, vec![canary_rows(40)], &mut |_| {})
            .await
            .unwrap();
        told.push(format!("{shown:?}"));
        told.extend(provoke_errors(&server.address).await);
        let model = upload_mlp(&peer).await;
        let quote = peer.price(&spec(model, &[shown.id], 1.0, 8)).await.unwrap();
        told.push(format!("{quote:?}"));
        let run = peer.start_run(quote.run_digest).await.unwrap();
        let (losses, state) = watch(&peer, run.id).await;
        assert_eq!(state, expected, "{mode}");
        told.push(format!("{run:?} {losses:?}"));
        told.push(format!("{:?}", peer.fetch_run(run.id, None, &mut |_| {}).await));
        told.push(format!("{:?}", peer.show_ledger(None).await.unwrap()));
        server.kill();
    }

    let echoed = std::fs::read(directory.path().join("echo.bin")).unwrap();
    assert!(
        leaks(&echoed),
        "the trainer got the records, and this search finds them"
    );
    let mut files = Vec::new();
    files_below(&directory.path().join("data"), &mut files);
    files.push(directory.path().join("server.log"));
    assert!(files.len() > 4, "{files:?}");
    for file in files {
        assert!(
            !leaks(&std::fs::read(&file).unwrap()),
            "{} holds the canary in clear",
            file.display()
        );
    }
    let log = std::fs::read_to_string(directory.path().join("server.log")).unwrap();
    for event in [
        "listening",
        "dataset_created",
        "call_refused",
        "run_started",
        "run_ended",
    ] {
        assert!(
            log.contains(event),
            "the log says nothing of {event}: it was not looked at"
        );
    }
    for line in log.lines().filter(|line| line.contains("dataset_created")) {
        assert!(!line.contains("bytes") && !line.contains("rows"), "D10: {line}");
    }
    for text in told {
        assert!(!leaks(text.as_bytes()), "an answer holds the canary: {text}");
    }
}

/// Uploads that break the contract around planted values; returns what the server said.
async fn provoke_errors(address: &str) -> Vec<String> {
    let mut said = Vec::new();
    let mut outside = canary_rows(3).columns;
    outside[0][16..20].copy_from_slice(&(CANARY[0] * 10.0).to_le_bytes());
    let cut = vec![
        canary_rows(3).columns[0][..47].to_vec(),
        canary_rows(3).columns[1].clone(),
    ];
    for parts in [
        vec![records(3, outside)],
        vec![records(3, cut)],
        vec![records(3, canary_rows(3).columns), finish(9)],
    ] {
        let mut client = raw::attested(address.parse().unwrap()).await;
        let parts: Vec<_> = [vec![header("broken", CONTRACT, policy())], parts].concat();
        let status = client
            .upload_dataset(tokio_stream::iter(parts))
            .await
            .unwrap_err();
        said.push(format!("{status:?}"));
    }
    said
}
