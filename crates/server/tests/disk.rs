//! A disk that fills up: the call says so, nothing acknowledged is lost, nothing half-done is seen, and a restart
//! with room goes on.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::DataContract;
use common::process::ServerProcess;
use common::{dataset, identity, open_policy, rows};

#[tokio::test]
async fn a_full_disk_is_told_and_harms_nothing_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let me = identity();
    let server = ServerProcess::start_with_small_disk(directory.path(), "normal-0", 6_000, |_| {});
    let peer = common::peer(&server.address, &me).await;
    let mut acknowledged = Vec::new();
    let mut refusal = None;
    for count in 0..400 {
        let name = format!("d{count}");
        let mut new = dataset(&name, open_policy("6.0", "1e-5"));
        new.contract = long_contract();
        match peer.upload_dataset(&new, vec![rows(20, 1.0)], &mut |_| {}).await {
            Ok(_) => acknowledged.push(name),
            Err(error) => {
                refusal = Some((name, error.to_string()));
                break;
            }
        }
    }
    let (refused, text) = refusal.expect("the ledger outgrows 6 MB");
    assert!(text.contains("storage"), "{text}");
    assert!(!acknowledged.is_empty());
    let shown = peer.list_datasets().await.expect("reading still works");
    assert!(shown.iter().all(|dataset| dataset.name != refused));
    server.kill();

    let server = ServerProcess::start(directory.path(), "normal-0", |_| {});
    let peer = common::peer(&server.address, &me).await;
    let shown: Vec<String> = peer
        .list_datasets()
        .await
        .unwrap()
        .into_iter()
        .map(|dataset| dataset.name)
        .collect();
    for name in &acknowledged {
        assert!(shown.contains(name), "acknowledged {name} is lost");
    }
    let again = dataset("after", open_policy("6.0", "1e-5"));
    peer.upload_dataset(&again, vec![rows(20, 1.0)], &mut |_| {})
        .await
        .expect("there is room again");
}

/// The usual contract with class names of 60 KB in all: entries that fill a ledger fast.
fn long_contract() -> DataContract {
    let names: Vec<String> = (0..500).map(|class| format!("\"{class:0>110}\"")).collect();
    let json = common::CONTRACT.replace("\"benign\",\"malignant\"", &names.join(","));
    DataContract::parse_json(json.as_bytes()).unwrap()
}
