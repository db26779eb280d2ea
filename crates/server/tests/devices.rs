//! Where runs are computed, as clients see it.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::runs::RunState;
use bastionai_client::{AppraisalPolicy, ClientError, ConnectOptions, HeadMemory, connect};
use bastionai_server::Server;
use bastionai_server::config::DeviceKind;
use common::{TestServer, identity, now_unix_ms, start, upload, watch};

const FLAG: &str = "insecure-unattested-gpu";

/// A server whose stand-in trainer says that it has a GPU.
async fn with_gpu(directory: &std::path::Path) -> TestServer {
    TestServer::start_with(directory, "normal-0", |config| {
        config.trainer.device = DeviceKind::Cuda;
        config.trainer.insecure_unattested_gpu = true;
    })
    .await
}

#[tokio::test]
async fn a_gpu_is_in_the_claims_and_refused_by_whoever_does_not_name_it() {
    let directory = tempfile::tempdir().unwrap();
    let server = with_gpu(directory.path()).await;
    let address = server.address.to_string();
    let refused = common::try_peer(&address, &identity(), &HeadMemory::in_process()).await;
    let Err(error @ ClientError::AppraisalRefused(_)) = refused else {
        panic!("even a policy for development says nothing of GPUs");
    };
    assert!(error.to_string().contains(FLAG), "{error}");
    let mut policy = AppraisalPolicy::insecure_development();
    policy.allowed_insecure_flags.push(FLAG.to_owned());
    let session = connect(&address, &identity(), &ConnectOptions::default())
        .await
        .unwrap();
    let peer = session
        .appraise(&policy, now_unix_ms(), &HeadMemory::in_process())
        .await
        .unwrap();
    let flags = &peer.attestation().runtime_claims().insecure_flags;
    assert!(flags.iter().any(|flag| flag == FLAG), "{flags:?}");
    // And its trainers are started with the device.
    let id = upload(&peer, "north", "6.0").await;
    let run = start(&peer, &[id], 1.0, 5).await;
    assert_eq!(watch(&peer, run).await.1, RunState::Succeeded);
    server.stop().await;
}

#[tokio::test]
async fn a_server_on_the_cpu_says_nothing_of_gpus() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let flags = &peer.attestation().runtime_claims().insecure_flags;
    assert!(!flags.iter().any(|flag| flag == FLAG), "{flags:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_gpu_that_nobody_acknowledged_keeps_the_server_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = common::config(directory.path(), "normal-0");
    config.trainer.device = DeviceKind::Cuda;
    let error = Server::start(config).await.err().unwrap();
    assert!(
        error.to_string().contains("trainer.insecure_unattested_gpu"),
        "{error}"
    );
}
