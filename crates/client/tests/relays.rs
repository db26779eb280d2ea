//! Every way to pass a server's evidence on as another's, over real sockets, for every kind of platform: refused with
//! the rule that says why, and nothing but a nonce has left the client.
#![allow(clippy::unwrap_used)]

mod common;

use bastionai_attestation::{Binding, Role, Rule, VerifyError};
use bastionai_client::datasets::{DatasetKind, MayTrain, NewDataset, Policy};
use bastionai_client::{
    AppraisalPolicy, AppraisedPeer, ClientError, DataContract, HeadMemory, Identity, RecordBatch,
    TrustAnchors, audit_receipt_under, connect,
};
use bastionai_ledger::Digest32;
use bastionai_wire::v1::{AttestReply, AttestRequest};
use common::ledger::TestLedger;
use common::proxy::Proxy;
use common::relay::ask_for_evidence;
use common::service::{Behaviour, SessionInfo, binding, bound_reply};
use common::{TestServer, options, platforms};
use platforms::TestPlatform;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

type AttestFuture = Pin<Box<dyn Future<Output = AttestReply> + Send>>;

async fn open(platform: &TestPlatform, address: &str) -> Result<AppraisedPeer, ClientError> {
    open_under(platform, &platform.policy, address).await
}

async fn open_under(
    platform: &TestPlatform,
    policy: &AppraisalPolicy,
    address: &str,
) -> Result<AppraisedPeer, ClientError> {
    connect(address, &Identity::generate().unwrap(), &options())
        .await?
        .with_trust_anchors(platform.anchors.clone())
        .appraise(policy, platform.now_unix_ms, &HeadMemory::in_process())
        .await
}

fn rules(error: &ClientError) -> Vec<Rule> {
    let ClientError::AppraisalRefused(refusals) = error else {
        panic!("{error}")
    };
    refusals.refusals.iter().map(|refusal| refusal.rule).collect()
}

/// A server on this platform that answers requests for evidence in its own way.
async fn answering(
    platform: &TestPlatform,
    attest: impl Fn(AttestRequest, SessionInfo, TestLedger) -> AttestFuture + Send + Sync + 'static,
) -> TestServer {
    let honest = Behaviour::on(&platform.attester);
    let ledger = honest.ledger.clone();
    let attest = move |request, info| attest(request, info, ledger.clone());
    TestServer::start(Behaviour {
        attest: Some(Arc::new(attest)),
        ..honest
    })
    .await
}

/// A server whose evidence is true and bound to something else than this session.
async fn binding_otherwise(platform: &TestPlatform, change: fn(&mut Binding, &SessionInfo)) -> TestServer {
    answering(platform, move |request, info, ledger| {
        let mut binding = binding(&request, &info, &ledger);
        change(&mut binding, &info);
        let reply = bound_reply(&binding, &ledger);
        Box::pin(async move { reply })
    })
    .await
}

/// Refused for its binding, and asked for nothing but evidence.
async fn is_refused(platform: &TestPlatform, server: &TestServer, what: &str) {
    let error = open(platform, &server.address).await.unwrap_err();
    assert_eq!(
        rules(&error),
        [Rule::Binding],
        "{}: {what}: {error}",
        platform.name
    );
    assert!(error.to_string().contains("in between"), "{error}");
    assert!(
        server.calls().iter().all(|call| *call == "Attest"),
        "{}: {what}: {:?}",
        platform.name,
        server.calls()
    );
}

#[tokio::test]
async fn the_true_server_is_appraised_on_every_platform() {
    for platform in platforms::all() {
        let server = TestServer::start(Behaviour::on(&platform.attester)).await;
        let peer = open(&platform, &server.address)
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", platform.name));
        assert_eq!(peer.attestation().media_type(), platform.attester.media_type());
        assert_eq!(peer.list_datasets().await.unwrap(), []);
        assert_eq!(server.calls(), ["Attest", "Hello", "ListDatasets"]);
    }
}

#[tokio::test]
async fn a_man_in_the_middle_with_a_tls_endpoint_of_its_own_is_refused() {
    for platform in platforms::all() {
        let true_server = TestServer::start(Behaviour::on(&platform.attester)).await;
        let upstream = true_server.address.clone();
        let relay = answering(&platform, move |request, _, _| {
            Box::pin(ask_for_evidence(upstream.clone(), request))
        })
        .await;
        is_refused(&platform, &relay, "man in the middle").await;
        assert_eq!(
            true_server.calls(),
            ["Attest"],
            "the evidence is the true server's"
        );
    }
}

/// Only the exporter differs then: nonce, key, role and claims are right.
#[tokio::test]
async fn a_man_in_the_middle_that_stole_the_servers_tls_key_is_refused() {
    for platform in platforms::all() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate_key = Some(key.serialize_der());
        let true_server = TestServer::start(Behaviour {
            certificate_key: certificate_key.clone(),
            ..Behaviour::on(&platform.attester)
        })
        .await;
        let upstream = true_server.address.clone();
        let attest =
            move |request, _| -> AttestFuture { Box::pin(ask_for_evidence(upstream.clone(), request)) };
        let relay = TestServer::start(Behaviour {
            certificate_key,
            attest: Some(Arc::new(attest)),
            ..Behaviour::on(&platform.attester)
        })
        .await;
        is_refused(&platform, &relay, "stolen TLS key").await;
        assert_eq!(true_server.calls(), ["Attest"]);
    }
}

#[tokio::test]
async fn recorded_evidence_replayed_in_a_later_session_is_refused() {
    for platform in platforms::all() {
        let recorded: Arc<Mutex<Option<AttestReply>>> = Arc::default();
        let server = answering(&platform, move |request, info, ledger| {
            let mut recorded = recorded.lock().unwrap();
            let fresh = || bound_reply(&binding(&request, &info, &ledger), &ledger);
            let reply = recorded.get_or_insert_with(fresh).clone();
            Box::pin(async move { reply })
        })
        .await;
        open(&platform, &server.address).await.unwrap();
        let error = open(&platform, &server.address).await.unwrap_err();
        assert_eq!(rules(&error), [Rule::Binding], "{}", platform.name);
        assert_eq!(server.calls(), ["Attest", "Hello", "Attest"]);
    }
}

#[tokio::test]
async fn evidence_that_the_clients_own_side_of_the_session_would_give_reflected_is_refused() {
    for platform in platforms::all() {
        let reflecting = |binding: &mut Binding, info: &SessionInfo| binding.spki_sha256 = info.principal;
        let server = binding_otherwise(&platform, reflecting).await;
        is_refused(&platform, &server, "reflection").await;
    }
}

#[tokio::test]
async fn evidence_of_another_session_of_the_same_server_is_refused() {
    for platform in platforms::all() {
        let other: Arc<Mutex<Option<[u8; 32]>>> = Arc::default();
        let server = answering(&platform, move |request, info, ledger| {
            let exporter = *other.lock().unwrap().get_or_insert(info.exporter);
            let reply = bound_reply(
                &Binding {
                    exporter,
                    ..binding(&request, &info, &ledger)
                },
                &ledger,
            );
            Box::pin(async move { reply })
        })
        .await;
        let first = open(&platform, &server.address).await.unwrap();
        let error = open(&platform, &server.address).await.unwrap_err();
        assert_eq!(rules(&error), [Rule::Binding], "{}", platform.name);
        assert!(!first.has_ended(), "the other session is unharmed");
        assert_eq!(server.calls(), ["Attest", "Hello", "Attest"]);
    }
}

#[tokio::test]
async fn a_stale_nonce_on_the_very_session_is_refused() {
    for platform in platforms::all() {
        let server = binding_otherwise(&platform, |binding, _| binding.nonce = [0; 32]).await;
        is_refused(&platform, &server, "stale nonce").await;
    }
}

#[tokio::test]
async fn evidence_for_another_role_is_refused() {
    for platform in platforms::all() {
        let server = binding_otherwise(&platform, |binding, _| binding.role = Role::Witness).await;
        is_refused(&platform, &server, "another role").await;
    }
}

#[tokio::test]
async fn changed_runtime_claims_are_refused() {
    for platform in platforms::all() {
        // The claims end with the ledger's head (32 bytes) and the freshness level (4 and its length): well-formed still.
        let one_byte = |reply: &mut AttestReply| {
            let at = reply.runtime_claims.len() - 20;
            reply.runtime_claims[at] ^= 1;
        };
        let other_boot = |reply: &mut AttestReply| {
            let mut claims = bastionai_attestation::RuntimeClaims::from_bytes(&reply.runtime_claims).unwrap();
            claims.boot_id = [0xbb; 16];
            claims.insecure_flags.clear();
            reply.runtime_claims = claims.to_bytes();
        };
        for (what, change_attest) in [
            ("one byte", one_byte as fn(&mut AttestReply)),
            ("another boot", other_boot),
        ] {
            let server = TestServer::start(Behaviour {
                change_attest,
                ..Behaviour::on(&platform.attester)
            })
            .await;
            is_refused(&platform, &server, what).await;
        }
    }
}

#[tokio::test]
async fn changed_evidence_is_refused_as_such() {
    for platform in platforms::all() {
        let cut = |reply: &mut AttestReply| reply.evidence.truncate(reply.evidence.len() / 2);
        let empty = |reply: &mut AttestReply| reply.evidence.clear();
        let other_type = |reply: &mut AttestReply| reply.media_type = "application/vnd.example".into();
        for change_attest in [cut as fn(&mut AttestReply), empty, other_type] {
            let server = TestServer::start(Behaviour {
                change_attest,
                ..Behaviour::on(&platform.attester)
            })
            .await;
            let error = open(&platform, &server.address).await.unwrap_err();
            assert_eq!(error.kind(), "evidence-refused", "{}: {error}", platform.name);
            assert_eq!(server.calls(), ["Attest"]);
        }
    }
}

/// Signed by a vendor, but not by one of ours.
#[tokio::test]
async fn evidence_of_a_vendor_that_is_no_trust_anchor_is_refused() {
    for platform in platforms::all() {
        let server = TestServer::start(Behaviour::on(&platform.attester)).await;
        let stranger = TestPlatform {
            anchors: TrustAnchors::none(),
            ..platform.clone()
        };
        let error = open(&stranger, &server.address).await.unwrap_err();
        assert!(
            matches!(error, ClientError::EvidenceRefused(_)),
            "{}: {error}",
            platform.name
        );
        if platform.name != "insecure-simulated" {
            // No bundled root knows a test vendor.
            let bundled = TestPlatform {
                anchors: TrustAnchors::bundled(),
                ..platform.clone()
            };
            let error = open(&bundled, &server.address).await.unwrap_err();
            assert!(
                matches!(&error, ClientError::EvidenceRefused(refused) if !matches!(refused, VerifyError::Malformed(_))),
                "{}: {error}",
                platform.name
            );
        }
        assert!(server.calls().iter().all(|call| *call == "Attest"));
    }
}

/// Whoever rents a genuine machine can have anything signed over a session of their own: the measurement says who runs.
#[tokio::test]
async fn another_guest_of_a_genuine_platform_is_refused_by_its_measurement() {
    for platform in platforms::all() {
        let server = TestServer::start(Behaviour::on(&platform.attester)).await;
        let error = open_under(&platform, &platform.policy_for_another_guest, &server.address)
            .await
            .unwrap_err();
        assert_eq!(rules(&error), [Rule::Measurement], "{}: {error}", platform.name);
        assert_eq!(server.calls(), ["Attest"]);
    }
}

#[tokio::test]
async fn a_link_killed_between_appraisal_and_upload_never_reaches_the_server_put_in_its_place() {
    for platform in platforms::all() {
        let (true_server, other) = (
            TestServer::start(Behaviour::on(&platform.attester)).await,
            TestServer::start(Behaviour::on(&platform.attester)).await,
        );
        let network = Proxy::start(&true_server.address).await;
        let peer = open(&platform, &network.address).await.unwrap();
        network.swap(&other.address).await;
        let error = peer
            .upload_dataset(&dataset(), vec![rows()], &mut |_| {})
            .await
            .unwrap_err();
        assert!(
            matches!(error, ClientError::SessionEnded),
            "{}: {error}",
            platform.name
        );
        assert_eq!(other.connections.load(Ordering::SeqCst), 0, "nobody dials again");
        assert_eq!(other.calls(), [] as [&str; 0]);
        assert_eq!(*true_server.rows_received.lock().unwrap(), 0);
    }
}

/// A6: the second evidence, of the boot, serves who was never there; it is none for a session, nor a session's for it.
#[tokio::test]
async fn receipts_verify_offline_on_every_platform_and_only_by_its_roots() {
    for platform in platforms::all() {
        let ledger = TestLedger::on(&platform.attester);
        let receipt = ledger.receipt(Digest32::from_bytes([1; 32]));
        let envelope = receipt.sign(&ledger.key);
        let audit = |anchors| audit_receipt_under(&envelope, &platform.policy, anchors, platform.now_unix_ms);
        let audited = audit(&platform.anchors).unwrap_or_else(|error| panic!("{}: {error}", platform.name));
        assert_eq!(audited.issuer().media_type(), platform.attester.media_type());
        let error = audit(&TrustAnchors::none()).unwrap_err();
        assert!(matches!(error, ClientError::EvidenceRefused(_)), "{error}");

        let session = Binding {
            nonce: [1; 32],
            exporter: [2; 32],
            spki_sha256: [3; 32],
            role: Role::Server,
            claims_sha256: ledger.claims().digest(),
        };
        let mut of_a_session = receipt;
        of_a_session.issuer.evidence = bound_reply(&session, &ledger).evidence;
        let envelope = of_a_session.sign(&ledger.key);
        let error = audit_receipt_under(
            &envelope,
            &platform.policy,
            &platform.anchors,
            platform.now_unix_ms,
        )
        .unwrap_err();
        assert_eq!(rules(&error), [Rule::Binding], "{}", platform.name);
    }
}

#[tokio::test]
async fn evidence_of_a_boot_is_none_for_a_session() {
    for platform in platforms::all() {
        let server = answering(&platform, |_, _, ledger| {
            let boot = ledger.boot_evidence();
            let reply = AttestReply {
                media_type: boot.evidence_media_type,
                evidence: boot.evidence,
                runtime_claims: boot.claims,
            };
            Box::pin(async move { reply })
        })
        .await;
        is_refused(&platform, &server, "evidence of a boot").await;
    }
}

fn dataset() -> NewDataset {
    let contract = br#"{"version":1,"columns":[
        {"name":"y","dtype":"i64","shape":[],"domain":{"classes":{"names":["no","yes"]}}}],
        "privacy_unit":"record","declared_size":16}"#;
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

fn rows() -> RecordBatch {
    RecordBatch {
        rows: 1,
        columns: vec![1_i64.to_le_bytes().to_vec()],
    }
}
