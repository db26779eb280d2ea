//! The server on every kind of platform, over real sockets: what it claims, what it gives, and receipts of it offline.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;
#[allow(dead_code)]
#[path = "../../client/tests/common/platforms.rs"]
mod platforms;

use bastionai_attestation::{AttestError, Attester, Evidence, InsecureSimulatedAttester, RuntimeClaims};
use bastionai_client::{
    AppraisedPeer, ClientError, ConnectOptions, HeadMemory, TrustAnchors, audit_receipt_under, connect,
};
use bastionai_server::Server;
use bastionai_server::config::{AttestationConfig, AttesterKind};
use bastionai_wire::v1;
use common::{TestServer, config, identity, raw};
use platforms::TestPlatform;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const SIMULATED: &str = "insecure-simulated-evidence";

async fn start(directory: &Path, attester: Arc<dyn Attester>) -> TestServer {
    TestServer::start_attested_by(directory, "normal-0", attester).await
}

async fn appraise(
    platform: &TestPlatform,
    server: &TestServer,
    anchors: TrustAnchors,
) -> Result<AppraisedPeer, ClientError> {
    let session = connect(
        &server.address.to_string(),
        &identity(),
        &ConnectOptions::default(),
    )
    .await?;
    session
        .with_trust_anchors(anchors)
        .appraise(&platform.policy, platform.now_unix_ms, &HeadMemory::in_process())
        .await
}

#[tokio::test]
async fn on_every_platform_a_run_ends_with_a_receipt_that_verifies_offline_by_that_platforms_roots() {
    for platform in platforms::all() {
        let directory = tempfile::tempdir().unwrap();
        let server = start(directory.path(), platform.attester.clone()).await;
        let refused = appraise(&platform, &server, TrustAnchors::none())
            .await
            .unwrap_err();
        assert!(matches!(refused, ClientError::EvidenceRefused(_)), "{refused}");
        let peer = appraise(&platform, &server, platform.anchors.clone())
            .await
            .unwrap();
        let flags = &peer.attestation().runtime_claims().insecure_flags;
        assert_eq!(
            flags.iter().any(|flag| flag == SIMULATED),
            platform.name == "insecure-simulated",
            "{flags:?}"
        );
        let dataset = common::upload(&peer, "hospital", "3").await;
        let run = common::start(&peer, &[dataset], 1.0, 2).await;
        common::watch(&peer, run).await;
        let fetched = peer.fetch_receipt(run, None).await.unwrap();
        server.stop().await;

        let envelope = &fetched.receipt_dsse_json;
        let audit = |anchors| audit_receipt_under(envelope, &platform.policy, anchors, platform.now_unix_ms);
        let audited = audit(&platform.anchors).unwrap();
        assert_eq!(audited.issuer().media_type(), platform.attester.media_type());
        assert!(matches!(
            audit(&TrustAnchors::none()),
            Err(ClientError::EvidenceRefused(_))
        ));
    }
}

/// The simulated attester, under another name, or worse.
#[derive(Default)]
struct Odd {
    media_type: Option<&'static str>,
    fails: Arc<AtomicBool>,
    at_once: AtomicUsize,
    most_at_once: Arc<AtomicUsize>,
}

impl Attester for Odd {
    fn media_type(&self) -> &'static str {
        self.media_type
            .unwrap_or(InsecureSimulatedAttester::new().media_type())
    }

    fn attest(&self, report_data: &[u8; 64]) -> Result<Evidence, AttestError> {
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(30));
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        if self.fails.load(Ordering::SeqCst) {
            return Err(AttestError::Unavailable("the firmware says no".into()));
        }
        InsecureSimulatedAttester::new().attest(report_data)
    }
}

fn request() -> v1::AttestRequest {
    v1::AttestRequest { nonce: vec![7; 32] }
}

#[tokio::test]
async fn the_claim_of_simulated_evidence_follows_the_evidence_and_not_the_configuration() {
    for (media_type, claimed) in [(None, true), (Some("application/vnd.bastionai.snp+cmw"), false)] {
        let directory = tempfile::tempdir().unwrap();
        let attester = Odd {
            media_type,
            ..Odd::default()
        };
        let server = start(directory.path(), Arc::new(attester)).await;
        let reply = raw::unattested(server.address)
            .await
            .attest(request())
            .await
            .unwrap()
            .into_inner();
        let claims = RuntimeClaims::from_bytes(&reply.runtime_claims).unwrap();
        assert_eq!(
            claims.insecure_flags.iter().any(|flag| flag == SIMULATED),
            claimed
        );
        server.stop().await;
    }
}

#[tokio::test]
async fn sessions_take_turns_at_the_platform_and_nothing_else_waits() {
    let directory = tempfile::tempdir().unwrap();
    let attester = Odd::default();
    let most = attester.most_at_once.clone();
    let server = start(directory.path(), Arc::new(attester)).await;
    let mut attested = raw::attested(server.address).await;
    let address = server.address;
    let asking: Vec<_> = (0..8)
        .map(|_| {
            tokio::spawn(async move { raw::unattested(address).await.attest(request()).await.map(|_| ()) })
        })
        .collect();
    attested.list_datasets(v1::ListDatasetsRequest {}).await.unwrap();
    for asked in asking {
        common::timeout(asked).await.unwrap().unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_platform_that_fails_leaves_the_session_unattested_and_tells_it_no_more_than_that() {
    let directory = tempfile::tempdir().unwrap();
    let attester = Odd::default();
    let fails = attester.fails.clone();
    let server = start(directory.path(), Arc::new(attester)).await;
    fails.store(true, Ordering::SeqCst);
    let mut client = raw::unattested(server.address).await;
    let status = client.attest(request()).await.unwrap_err();
    assert_eq!(raw::reason(&status), "failed");
    assert!(!status.message().contains("firmware"), "{}", status.message());
    let hello = v1::HelloRequest { protocol_version: 1 };
    let status = client.hello(hello).await.unwrap_err();
    assert_eq!(raw::reason(&status), "not-attested");
    fails.store(false, Ordering::SeqCst);
    client.attest(request()).await.unwrap();
    client.hello(hello).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_server_whose_platform_fails_or_is_not_there_does_not_start_and_enters_nothing() {
    let directory = tempfile::tempdir().unwrap();
    for kind in [
        AttesterKind::Auto,
        AttesterKind::Snp,
        AttesterKind::Tdx,
        AttesterKind::Azure,
    ] {
        let mut config = config(directory.path(), "normal-0");
        config.attester = kind;
        config.attestation = AttestationConfig {
            endorsements: None,
            tsm: directory.path().join("no-tsm"),
            tpm: directory.path().join("no-tpm"),
            event_log: directory.path().join("no-log"),
        };
        let error = Server::start(config).await.err().unwrap().to_string();
        assert!(
            error.contains("no-tsm") || error.contains("no-tpm"),
            "{kind:?}: {error}"
        );
        assert!(!directory.path().join("data").exists(), "{kind:?}");
    }
    let failing = Odd::default();
    failing.fails.store(true, Ordering::SeqCst);
    let config = config(directory.path(), "normal-0");
    let error = Server::start_attested_by(config, Arc::new(failing))
        .await
        .err()
        .unwrap();
    assert!(error.to_string().contains("the firmware says no"), "{error}");
    let server = start(directory.path(), Arc::new(InsecureSimulatedAttester::new())).await;
    let head = server
        .peer(&identity())
        .await
        .show_ledger(None)
        .await
        .unwrap()
        .head;
    assert_eq!(head.sequence, 2, "genesis and this boot");
    server.stop().await;
}
