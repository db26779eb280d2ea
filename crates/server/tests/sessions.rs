//! Connections, evidence and hello, over a real loopback socket.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::{AppraisalPolicy, ClientError, ConnectOptions, HeadMemory, connect};
use bastionai_wire::v1;
use common::{TestServer, identity, raw};
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

#[tokio::test]
async fn an_appraised_client_is_known_by_its_key() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let me = identity();
    let peer = server.peer(&me).await;
    assert_eq!(peer.principal(), me.principal());
    assert_eq!(peer.list_datasets().await.unwrap(), vec![]);
    let claims = peer.attestation().runtime_claims();
    assert_eq!(claims.root_key_provider, "InsecureFileRootKey");
    assert!(
        claims
            .insecure_flags
            .iter()
            .any(|flag| flag == "insecure-simulated-evidence")
    );
    server.stop().await;
}

#[tokio::test]
async fn simulated_evidence_is_refused_unless_named() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let session = connect(
        &server.address.to_string(),
        &identity(),
        &ConnectOptions::default(),
    )
    .await
    .unwrap();
    let mut policy = AppraisalPolicy::insecure_development();
    policy.allow_simulated = false;
    let error = session
        .appraise(&policy, common::now_unix_ms(), &HeadMemory::in_process())
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::AppraisalRefused(_)), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn a_session_that_asks_for_no_evidence_is_closed_and_one_that_does_stays() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-0", |config| {
        config.limits.attest_timeout_ms = 500
    })
    .await;
    let stays = server.peer(&identity()).await;
    let config = Arc::new(raw::tls(&rcgen::PKCS_ED25519, b"h2"));
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from("bastionai").unwrap();
    let mut silent = TlsConnector::from(config).connect(name, stream).await.unwrap();
    silent
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut said = Vec::new();
    // Closed by the server, with or without a goodbye; otherwise this waits until the test times out.
    drop(common::timeout(silent.read_to_end(&mut said)).await);
    stays.list_datasets().await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn nothing_but_attest_is_answered_before_attest() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let mut client = raw::unattested(server.address).await;
    let status = client
        .hello(v1::HelloRequest { protocol_version: 1 })
        .await
        .unwrap_err();
    assert_eq!(raw::reason(&status), "not-attested");
    let status = client
        .list_datasets(v1::ListDatasetsRequest {})
        .await
        .unwrap_err();
    assert_eq!(raw::reason(&status), "not-attested");
    let status = client
        .attest(v1::AttestRequest { nonce: vec![1; 31] })
        .await
        .unwrap_err();
    assert_eq!(raw::reason(&status), "malformed");
    let status = client
        .hello(v1::HelloRequest { protocol_version: 1 })
        .await
        .unwrap_err();
    assert_eq!(raw::reason(&status), "not-attested", "a refused Attest is none");
    server.stop().await;
}

#[tokio::test]
async fn evidence_differs_by_nonce_and_by_session() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let mut one = raw::unattested(server.address).await;
    let mut other = raw::unattested(server.address).await;
    let ask = |nonce: u8| v1::AttestRequest {
        nonce: vec![nonce; 32],
    };
    let first = one.attest(ask(1)).await.unwrap().into_inner();
    let again = one.attest(ask(1)).await.unwrap().into_inner();
    let fresh = one.attest(ask(2)).await.unwrap().into_inner();
    let elsewhere = other.attest(ask(1)).await.unwrap().into_inner();
    assert_eq!(first.evidence, again.evidence);
    assert_ne!(first.evidence, fresh.evidence, "another nonce");
    assert_ne!(first.evidence, elsewhere.evidence, "another session");
    assert_eq!(first.runtime_claims, elsewhere.runtime_claims);
    server.stop().await;
}

#[tokio::test]
async fn another_protocol_version_is_refused_by_number() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let mut client = raw::attested(server.address).await;
    let status = client
        .hello(v1::HelloRequest { protocol_version: 2 })
        .await
        .unwrap_err();
    assert_eq!(raw::reason(&status), "protocol-version");
    assert!(status.message().contains('2'), "{}", status.message());
    server.stop().await;
}

#[tokio::test]
async fn clients_without_an_ed25519_certificate_or_h2_are_not_served() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let mut anonymous = raw::anonymous_tls().with_no_client_auth();
    anonymous.alpn_protocols = vec![b"h2".to_vec()];
    let configs = [
        anonymous,
        raw::tls(&rcgen::PKCS_ECDSA_P256_SHA256, b"h2"),
        raw::tls(&rcgen::PKCS_ED25519, b"http/1.1"),
    ];
    for (index, config) in configs.into_iter().enumerate() {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let name = ServerName::try_from("bastionai").unwrap();
        // In TLS 1.3 the client may finish before the server refuses: then reading fails or ends.
        if let Ok(mut stream) = TlsConnector::from(Arc::new(config)).connect(name, stream).await {
            let _ = stream
                .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
                .await;
            let mut buffer = [0; 64];
            let read = common::timeout(stream.read(&mut buffer)).await;
            assert!(
                read.is_err() || matches!(read, Ok(0)),
                "client {index} was served"
            );
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn silent_and_surplus_connections_are_dropped_and_others_served() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-0", |config| {
        config.limits.connections = 3;
        config.limits.handshake_timeout_ms = 400;
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut surplus = TcpStream::connect(server.address).await.unwrap();
    let read = common::timeout(surplus.read(&mut [0; 8])).await;
    assert!(
        matches!(read, Ok(0) | Err(_)),
        "the fourth connection is closed at once"
    );
    for stream in &mut silent {
        let read = common::timeout(stream.read(&mut [0; 8])).await;
        assert!(
            matches!(read, Ok(0) | Err(_)),
            "a silent connection is closed after the handshake timeout"
        );
    }
    server.peer(&identity()).await;
    server.stop().await;
}
