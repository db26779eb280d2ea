//! The attested session against servers that lie, relay, replay, roll back, or are swapped (A3–A5).
#![allow(clippy::unwrap_used)]

mod common;

use bastionai_attestation::{Rule, insecure_simulated};
use bastionai_client::{AppraisalPolicy, ClientError, HeadMemory, Identity, connect};
use bastionai_ledger::key::LedgerKey;
use bastionai_wire::v1::{AttestReply, AttestRequest, HelloReply, ShowLedgerReply};
use common::ledger::{LEDGER, TestLedger};
use common::proxy::Proxy;
use common::relay::ask_for_evidence;
use common::service::{Behaviour, SessionInfo, honest_reply};
use common::{TestServer, open, open_with, options};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

type Change = fn(&mut AttestReply);
type AttestFuture = Pin<Box<dyn Future<Output = AttestReply> + Send>>;

fn refused_rules(error: &ClientError) -> Vec<Rule> {
    let ClientError::AppraisalRefused(refusals) = error else {
        panic!("{error}")
    };
    refusals.refusals.iter().map(|refusal| refusal.rule).collect()
}

#[tokio::test]
async fn an_honest_server_is_appraised_before_anything_else_is_asked() {
    let server = TestServer::start(Behaviour::honest()).await;
    let heads = HeadMemory::in_process();
    let peer = open_with(&server.address, &AppraisalPolicy::insecure_development(), &heads)
        .await
        .unwrap();
    assert_eq!(peer.list_datasets().await.unwrap(), []);
    assert_eq!(server.calls(), ["Attest", "Hello", "ListDatasets"]);
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    assert!(peer.server().first_contact);
    assert_eq!(peer.attestation().media_type(), insecure_simulated::MEDIA_TYPE);
    assert_eq!(heads.known(LEDGER).unwrap().unwrap().sequence, 3);
}

#[tokio::test]
async fn simulated_evidence_without_allow_simulated_is_refused_and_nothing_more_is_sent() {
    let server = TestServer::start(Behaviour::honest()).await;
    let mut policy = AppraisalPolicy::insecure_development();
    policy.allow_simulated = false;
    let error = open_with(&server.address, &policy, &HeadMemory::in_process())
        .await
        .unwrap_err();
    assert_eq!(refused_rules(&error), [Rule::Simulated]);
    assert!(error.to_string().contains("allow_simulated"), "{error}");
    assert_eq!(server.calls(), ["Attest"]);
}

#[tokio::test]
async fn the_default_policy_refuses_for_want_of_reference_values() {
    let server = TestServer::start(Behaviour::honest()).await;
    let error = open_with(
        &server.address,
        &AppraisalPolicy::default(),
        &HeadMemory::in_process(),
    )
    .await
    .unwrap_err();
    assert!(refused_rules(&error).contains(&Rule::Measurement));
    assert_eq!(server.calls(), ["Attest"]);
}

#[tokio::test]
async fn evidence_replayed_from_an_earlier_session_is_refused() {
    let first: Arc<Mutex<Option<AttestReply>>> = Arc::default();
    let ledger = TestLedger::new(&[1, 2, 3]);
    let attest = move |request: AttestRequest, info: SessionInfo| -> AttestFuture {
        let reply = first
            .lock()
            .unwrap()
            .get_or_insert_with(|| honest_reply(&request, &info, &ledger))
            .clone();
        Box::pin(async move { reply })
    };
    let behaviour = Behaviour {
        attest: Some(Arc::new(attest)),
        ..Behaviour::honest()
    };
    let server = TestServer::start(behaviour).await;
    open(&server.address).await.unwrap();
    let error = open(&server.address).await.unwrap_err();
    assert_eq!(refused_rules(&error), [Rule::Binding]);
}

#[tokio::test]
async fn an_old_nonce_on_the_same_session_facts_is_refused() {
    let ledger = TestLedger::new(&[1, 2, 3]);
    let attest = move |_: AttestRequest, info: SessionInfo| -> AttestFuture {
        let stale = AttestRequest { nonce: vec![0; 32] };
        let reply = honest_reply(&stale, &info, &ledger);
        Box::pin(async move { reply })
    };
    let behaviour = Behaviour {
        attest: Some(Arc::new(attest)),
        ..Behaviour::honest()
    };
    let server = TestServer::start(behaviour).await;
    assert_eq!(
        refused_rules(&open(&server.address).await.unwrap_err()),
        [Rule::Binding]
    );
}

/// The attacker terminates TLS itself and passes the client's nonce on to the true server over a second
/// session. Nonce, claims and signature of what comes back are right; the session is not.
#[tokio::test]
async fn true_evidence_relayed_through_another_tls_endpoint_is_refused() {
    let true_server = TestServer::start(Behaviour::honest()).await;
    let upstream = true_server.address.clone();
    let attest = move |request: AttestRequest, _: SessionInfo| -> AttestFuture {
        Box::pin(ask_for_evidence(upstream.clone(), request))
    };
    let relay = TestServer::start(Behaviour {
        attest: Some(Arc::new(attest)),
        ..Behaviour::honest()
    })
    .await;
    let error = open(&relay.address).await.unwrap_err();
    assert_eq!(refused_rules(&error), [Rule::Binding]);
    assert!(error.to_string().contains("in between"), "{error}");
    assert_eq!(relay.calls(), ["Attest"]);
    assert_eq!(
        true_server.calls(),
        ["Attest"],
        "the evidence came from the true server"
    );
}

/// The same with the true server's certificate key known (a leaked key): only the exporter differs.
#[tokio::test]
async fn a_relay_that_holds_the_servers_key_still_cannot_relay_evidence() {
    let true_ledger = TestLedger::new(&[1, 2, 3]);
    let attest = move |request: AttestRequest, relay: SessionInfo| -> AttestFuture {
        let upstream = SessionInfo {
            exporter: [0xaa; 32],
            ..relay
        };
        let reply = honest_reply(&request, &upstream, &true_ledger);
        Box::pin(async move { reply })
    };
    let behaviour = Behaviour {
        attest: Some(Arc::new(attest)),
        ..Behaviour::honest()
    };
    let relay = TestServer::start(behaviour).await;
    assert_eq!(
        refused_rules(&open(&relay.address).await.unwrap_err()),
        [Rule::Binding]
    );
}

#[tokio::test]
async fn changed_evidence_claims_and_media_types_are_refused() {
    let changes: [(Change, &str); 5] = [
        (
            |reply| *reply.evidence.last_mut().unwrap() ^= 1,
            "evidence-refused",
        ),
        (|reply| reply.evidence.truncate(20), "evidence-refused"),
        (
            |reply| reply.media_type = "application/sev-snp".into(),
            "evidence-refused",
        ),
        // The last 32 bytes but 8 are the ledger head: well-formed, and not what is bound.
        (
            |reply| {
                let at = reply.runtime_claims.len() - 20;
                reply.runtime_claims[at] ^= 1
            },
            "appraisal-refused",
        ),
        (|reply| reply.runtime_claims.clear(), "claims-refused"),
    ];
    for (index, (change_attest, kind)) in changes.into_iter().enumerate() {
        let server = TestServer::start(Behaviour {
            change_attest,
            ..Behaviour::honest()
        })
        .await;
        let error = open(&server.address).await.unwrap_err();
        assert_eq!(error.kind(), kind, "change {index}: {error}");
        assert_eq!(server.calls(), ["Attest"]);
    }
}

#[tokio::test]
async fn a_flood_before_appraisal_is_not_read_to_its_end() {
    let change_attest = |reply: &mut AttestReply| reply.evidence = vec![0; 3 << 20];
    let server = TestServer::start(Behaviour {
        change_attest,
        ..Behaviour::honest()
    })
    .await;
    let error = open(&server.address).await.unwrap_err();
    assert!(error.to_string().contains("too large"), "{error}");
    assert_eq!(server.calls(), ["Attest"]);
}

#[tokio::test]
async fn a_swapped_server_after_appraisal_never_gets_a_connection() {
    let (true_server, other) = (
        TestServer::start(Behaviour::honest()).await,
        TestServer::start(Behaviour::honest()).await,
    );
    let network = Proxy::start(&true_server.address).await;
    let peer = open(&network.address).await.unwrap();
    peer.list_datasets().await.unwrap();

    network.swap(&other.address).await;
    for _ in 0..3 {
        let error = peer.list_datasets().await.unwrap_err();
        assert!(matches!(error, ClientError::SessionEnded), "{error}");
        assert_eq!(error.to_string(), "session ended; connect and appraise again");
    }
    assert!(peer.has_ended());
    assert!(matches!(
        peer.clone().list_runs().await,
        Err(ClientError::SessionEnded)
    ));
    assert_eq!(other.connections.load(Ordering::SeqCst), 0);
    assert_eq!(other.calls(), [] as [&str; 0]);

    // A new session is a new appraisal, by name.
    open(&network.address).await.unwrap();
    assert_eq!(other.calls(), ["Attest", "Hello"]);
}

#[tokio::test]
async fn a_link_cut_before_appraisal_leaves_no_peer() {
    let (true_server, other) = (
        TestServer::start(Behaviour::honest()).await,
        TestServer::start(Behaviour::honest()).await,
    );
    let network = Proxy::start(&true_server.address).await;
    let session = connect(&network.address, &Identity::generate().unwrap(), &options())
        .await
        .unwrap();
    network.swap(&other.address).await;
    let outcome = session
        .appraise(
            &AppraisalPolicy::insecure_development(),
            0,
            &HeadMemory::in_process(),
        )
        .await;
    assert!(matches!(outcome, Err(ClientError::SessionEnded)));
    assert_eq!(other.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn closing_ends_the_session_for_every_clone() {
    let server = TestServer::start(Behaviour::honest()).await;
    let peer = open(&server.address).await.unwrap();
    peer.clone().close();
    assert!(matches!(
        peer.list_datasets().await,
        Err(ClientError::SessionEnded)
    ));
}

#[tokio::test]
async fn a_rolled_back_or_forked_ledger_is_refused_before_anything_is_sent() {
    let policy = AppraisalPolicy::insecure_development();
    let heads = HeadMemory::in_process();
    let first = TestServer::start(Behaviour::with_ledger(&[1, 2, 3, 4])).await;
    open_with(&first.address, &policy, &heads).await.unwrap();

    let rolled_back = TestServer::start(Behaviour::with_ledger(&[1, 2, 3])).await;
    let error = open_with(&rolled_back.address, &policy, &heads)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, ClientError::Rollback(r) if r.known == 4 && r.found == 3),
        "{error}"
    );
    assert_eq!(rolled_back.calls(), ["Attest", "Hello"]);

    for fork in [&[1, 2, 3, 9][..], &[1, 2, 3, 9, 5], &[1, 2, 9, 4, 5, 6]] {
        let forked = TestServer::start(Behaviour::with_ledger(fork)).await;
        let error = open_with(&forked.address, &policy, &heads).await.unwrap_err();
        assert_eq!(error.kind(), "rollback", "{fork:?}: {error}");
        assert!(!forked.calls().contains(&"ListDatasets"));
    }

    let grown = TestServer::start(Behaviour::with_ledger(&[1, 2, 3, 4, 5, 6])).await;
    let peer = open_with(&grown.address, &policy, &heads).await.unwrap();
    assert!(!peer.server().first_contact);
    assert_eq!(grown.calls(), ["Attest", "Hello", "ShowLedger"]);
    assert_eq!(heads.known(LEDGER).unwrap().unwrap().sequence, 6);
}

/// A file as another session of the same user leaves it after it saw this chain.
async fn seen(chain: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("heads.json");
    let server = TestServer::start(Behaviour::with_ledger(chain)).await;
    open_with(
        &server.address,
        &AppraisalPolicy::insecure_development(),
        &HeadMemory::open(&path),
    )
    .await
    .unwrap();
    std::fs::read(path).unwrap()
}

/// The outcome of a session that starts from memory `before` (`None`: nothing seen), while another session sees
/// `other` between this one's Hello and its answer. Hello shows `hello`, ShowLedger `shown`.
async fn overlapping(
    before: Option<&[u8]>,
    other: &[u8],
    hello: &[u8],
    shown: &[u8],
) -> (Result<u64, ClientError>, Vec<&'static str>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/on/demand/heads.json");
    let heads = HeadMemory::open(&path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    if let Some(before) = before {
        std::fs::write(&path, seen(before).await).unwrap();
    }
    let other = seen(other).await;
    let behaviour = Behaviour {
        change_hello: Arc::new(move |_: &mut HelloReply| std::fs::write(&path, &other).unwrap()),
        shown_ledger: Some(TestLedger::new(shown)),
        ..Behaviour::with_ledger(hello)
    };
    let server = TestServer::start(behaviour).await;
    let policy = AppraisalPolicy::insecure_development();
    let outcome = open_with(&server.address, &policy, &heads).await;
    let sequence = outcome.map(|_| heads.known(LEDGER).unwrap().unwrap().sequence);
    (sequence, server.calls())
}

#[tokio::test]
async fn a_memory_moved_on_by_another_session_is_no_rollback() {
    for before in [None, Some(&[1, 2][..]), Some(&[1, 2, 3])] {
        let (outcome, calls) = overlapping(before, &[1, 2, 3, 4, 5], &[1, 2, 3], &[1, 2, 3, 4, 5, 6]).await;
        assert_eq!(outcome.unwrap(), 6, "{before:?}");
        assert_eq!(calls.last(), Some(&"ShowLedger"));
    }
}

/// The operator holds a Hello back while another session moves on, then rolls the ledger back and answers.
#[tokio::test]
async fn a_rollback_behind_a_held_back_hello_is_refused() {
    for before in [None, Some(&[1, 2][..]), Some(&[1, 2, 3])] {
        let (outcome, _) = overlapping(before, &[1, 2, 3, 4, 5], &[1, 2, 3], &[1, 2, 3]).await;
        let error = outcome.unwrap_err();
        assert!(
            matches!(&error, ClientError::Rollback(r) if r.known == 5 && r.found == 3),
            "{before:?}: {error}"
        );
    }
}

/// The same with a fork that is longer than what the other session saw.
#[tokio::test]
async fn a_longer_fork_behind_a_held_back_hello_is_refused() {
    let fork = [1, 2, 3, 9, 5, 6];
    for before in [None, Some(&[1, 2, 3][..])] {
        let (outcome, _) = overlapping(before, &[1, 2, 3, 4], &fork, &fork).await;
        assert_eq!(outcome.unwrap_err().kind(), "rollback", "{before:?}");
    }
}

/// Whoever overtakes this session at every answer cannot make it give in.
#[tokio::test]
async fn a_head_that_is_overtaken_at_every_answer_is_refused_in_the_end() {
    let chain: Vec<u8> = (1..=20).collect();
    let mut memories = vec![];
    for length in (2..=20).step_by(2) {
        memories.push(seen(&chain[..length]).await);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("heads.json");
    std::fs::write(&path, &memories[0]).unwrap();
    let heads = HeadMemory::open(&path);
    let asked = AtomicUsize::new(0);
    let overtake = move |reply: &mut ShowLedgerReply| {
        // The memory holds 2, 4, 6 … entries, and each answer proves one more than that.
        let round = asked.fetch_add(1, Ordering::SeqCst);
        let shown = TestLedger::new(&chain[..2 * round + 3]);
        reply.head = Some(shown.wire_head());
        reply.extension = vec![shown.links().last().unwrap().to_bytes().to_vec()];
        std::fs::write(&path, &memories[round + 1]).unwrap();
    };
    let server = TestServer::start(Behaviour {
        change_show_ledger: Arc::new(overtake),
        ..Behaviour::with_ledger(&[1, 2, 3])
    })
    .await;
    let error = open_with(&server.address, &AppraisalPolicy::insecure_development(), &heads)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), "rollback", "{error}");
    assert!(server.calls().len() < 10);
}

#[tokio::test]
async fn a_ledger_head_of_another_key_or_behind_the_evidence_is_refused() {
    let other_key = |reply: &mut HelloReply| {
        let ledger = TestLedger {
            key: Arc::new(LedgerKey::from_seed(&[1; 32])),
            ..TestLedger::new(&[1, 2, 3])
        };
        reply.ledger_head = Some(ledger.wire_head());
    };
    let behind = |reply: &mut HelloReply| {
        reply.ledger_head = Some(TestLedger::new(&[1, 2]).wire_head());
    };
    let differs = |reply: &mut HelloReply| {
        reply.ledger_head = Some(TestLedger::new(&[1, 2, 9]).wire_head());
    };
    let forged = |reply: &mut HelloReply| {
        reply.ledger_head.as_mut().unwrap().signature[0] ^= 1;
    };
    let absent = |reply: &mut HelloReply| reply.ledger_head = None;
    let changes: [fn(&mut HelloReply); 5] = [other_key, behind, differs, forged, absent];
    for (index, change_hello) in changes.into_iter().enumerate() {
        let server = TestServer::start(Behaviour {
            change_hello: Arc::new(change_hello),
            ..Behaviour::honest()
        })
        .await;
        let error = open(&server.address).await.unwrap_err();
        assert_eq!(error.kind(), "protocol", "change {index}: {error}");
        assert_eq!(server.calls(), ["Attest", "Hello"]);
    }
}

#[tokio::test]
async fn a_server_of_another_protocol_version_or_that_sees_another_client_is_refused() {
    let version = |reply: &mut HelloReply| reply.protocol_version = 2;
    let server = TestServer::start(Behaviour {
        change_hello: Arc::new(version),
        ..Behaviour::honest()
    })
    .await;
    let error = open(&server.address).await.unwrap_err();
    assert!(
        matches!(error, ClientError::ProtocolVersion { ours: 1, theirs: 2 }),
        "{error}"
    );

    let principal = |reply: &mut HelloReply| reply.principal = vec![0; 32];
    let server = TestServer::start(Behaviour {
        change_hello: Arc::new(principal),
        ..Behaviour::honest()
    })
    .await;
    assert_eq!(open(&server.address).await.unwrap_err().kind(), "protocol");
}

#[tokio::test]
async fn servers_with_other_certificates_or_protocols_get_no_session() {
    let ecdsa = Behaviour {
        certificate_algorithm: &rcgen::PKCS_ECDSA_P256_SHA256,
        ..Behaviour::honest()
    };
    let no_alpn = Behaviour {
        alpn: vec![],
        ..Behaviour::honest()
    };
    let http1 = Behaviour {
        alpn: vec!["http/1.1"],
        ..Behaviour::honest()
    };
    for behaviour in [ecdsa, no_alpn, http1] {
        let server = TestServer::start(behaviour).await;
        let error = open(&server.address).await.unwrap_err();
        assert_eq!(error.kind(), "tls", "{error}");
        assert!(server.calls().is_empty());
    }
}

#[tokio::test]
async fn wrong_addresses_and_silent_servers_give_clear_errors_in_time() {
    for address in [
        "",
        "localhost",
        "localhost:",
        "localhost:0",
        ":7443",
        "localhost:99999",
    ] {
        let error = connect(address, &Identity::generate().unwrap(), &options())
            .await
            .unwrap_err();
        assert!(matches!(error, ClientError::Address { .. }), "{address}: {error}");
    }
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    let impatient = bastionai_client::ConnectOptions {
        connect_timeout: Duration::from_millis(200),
        ..options()
    };
    let begun = Instant::now();
    let error = connect(&address, &Identity::generate().unwrap(), &impatient)
        .await
        .unwrap_err();
    assert!(matches!(&error, ClientError::Tls { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(3));
    drop(nobody);
    let error = connect(&address, &Identity::generate().unwrap(), &options())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("bastionai serve"), "{error}");
}

#[tokio::test]
async fn a_call_without_an_answer_times_out_and_says_that_it_may_have_been_done() {
    let server = TestServer::start(Behaviour {
        hangs: true,
        ..Behaviour::honest()
    })
    .await;
    let impatient = bastionai_client::ConnectOptions {
        call_timeout: Duration::from_secs(1),
        ..options()
    };
    let session = connect(&server.address, &Identity::generate().unwrap(), &impatient)
        .await
        .unwrap();
    let policy = AppraisalPolicy::insecure_development();
    let peer = session
        .appraise(&policy, 0, &HeadMemory::in_process())
        .await
        .unwrap();
    let error = peer.list_datasets().await.unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::TimedOut {
                call: "ListDatasets",
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn the_ledger_view_is_checked_to_continue_what_was_seen() {
    let server = TestServer::start(Behaviour::honest()).await;
    let view = open(&server.address)
        .await
        .unwrap()
        .show_ledger(None)
        .await
        .unwrap();
    assert_eq!(
        (view.head.sequence, view.entries[0].content["boot"].as_str()),
        (3, Some("04"))
    );

    let forged = |reply: &mut ShowLedgerReply| {
        reply.head = Some(TestLedger::new(&[1, 2, 9, 4]).wire_head());
        reply.extension = vec![TestLedger::new(&[1, 2, 9, 4]).links()[3].to_bytes().to_vec()];
    };
    let server = TestServer::start(Behaviour {
        change_show_ledger: Arc::new(forged),
        ..Behaviour::honest()
    })
    .await;
    let error = open(&server.address)
        .await
        .unwrap()
        .show_ledger(None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), "rollback", "{error}");
}

#[tokio::test]
async fn following_the_chain_asks_for_links_alone_and_entries_come_in_pages() {
    let policy = AppraisalPolicy::insecure_development();
    let heads = HeadMemory::in_process();
    let first = TestServer::start(Behaviour::with_ledger(&[1, 2, 3])).await;
    open_with(&first.address, &policy, &heads).await.unwrap();
    let server = TestServer::start(Behaviour {
        page: 2,
        ..Behaviour::with_ledger(&[1, 2, 3, 4, 5, 6])
    })
    .await;
    let peer = open_with(&server.address, &policy, &heads).await.unwrap();
    let view = peer.show_ledger(None).await.unwrap();
    let shown: Vec<u64> = view.entries.iter().map(|entry| entry.sequence).collect();
    assert_eq!((shown, view.head.sequence), (vec![1, 2, 3, 4, 5], 6));
    let asked = server.asked.lock().unwrap().clone();
    let asked: Vec<_> = asked
        .iter()
        .map(|request| (request.links_only, request.known_sequence, request.from_sequence))
        .collect();
    assert_eq!(asked, [(true, 3, 0), (false, 6, 0), (false, 6, 3), (false, 6, 5)]);
}

#[tokio::test]
async fn pages_that_repeat_or_never_end_are_refused() {
    let again = |reply: &mut ShowLedgerReply| reply.entries[0].sequence = 1;
    let empty = |reply: &mut ShowLedgerReply| {
        reply.entries.clear();
        reply.more = true;
    };
    let beyond = |reply: &mut ShowLedgerReply| reply.entries[0].sequence = 5;
    let changes: [fn(&mut ShowLedgerReply); 3] = [again, empty, beyond];
    for (index, change_show_ledger) in changes.into_iter().enumerate() {
        let server = TestServer::start(Behaviour {
            page: 1,
            change_show_ledger: Arc::new(change_show_ledger),
            ..Behaviour::with_ledger(&[1, 2, 3, 4, 5])
        })
        .await;
        let peer = open(&server.address).await.unwrap();
        let error = peer.show_ledger(None).await.unwrap_err();
        assert_eq!(error.kind(), "protocol", "change {index}: {error}");
    }
}
