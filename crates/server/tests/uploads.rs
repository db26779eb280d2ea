//! Datasets and models on their way in: what is refused, and that nothing half-done is ever seen.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::ClientError;
use bastionai_wire::v1;
use common::raw::{self, finish, header, policy, reason, records};
use common::{CONTRACT, TestServer, dataset, identity, open_policy, rows, upload};
use std::path::Path;
use std::time::Duration;

type Parts = Vec<v1::UploadDatasetRequest>;

/// Files below the vault's block directory: none may remain of an upload that did not finish.
fn block_files(directory: &Path) -> usize {
    fn count(path: &Path) -> usize {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries
            .map(|entry| {
                if entry.path().is_dir() {
                    count(&entry.path())
                } else {
                    1
                }
            })
            .sum()
    }
    count(&directory.join("data/blocks"))
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..200 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{what} did not come true");
}

#[tokio::test]
async fn an_upload_is_seen_by_all_with_its_terms_and_never_a_row() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let owner = identity();
    upload(&server.peer(&owner).await, "north", "6.0").await;
    let shown = server.peer(&identity()).await.list_datasets().await.unwrap();
    assert_eq!(shown.len(), 1);
    assert_eq!(
        (shown[0].name.as_str(), shown[0].owner),
        ("north", owner.principal())
    );
    assert_eq!(shown[0].contract, common::contract());
    let budget = shown[0].budget.unwrap();
    assert_eq!(
        (budget.lifetime, budget.remaining),
        (common::amount("6.0", "1e-5"), common::amount("6.0", "1e-5"))
    );
    assert!(shown[0].trainable_by_caller);
    server.stop().await;
}

#[tokio::test]
async fn a_taken_name_is_refused_and_the_first_stays() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let first = upload(&peer, "north", "6.0").await;
    let files = block_files(directory.path());
    let other = server.peer(&identity()).await;
    let again = dataset("north", open_policy("1.0", "1e-6"));
    let error = other
        .upload_dataset(&again, vec![rows(3, 0.0)], &mut |_| {})
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::NameTaken(_)), "{error}");
    let shown = other.list_datasets().await.unwrap();
    assert_eq!((shown.len(), shown[0].id), (1, first));
    assert_eq!(block_files(directory.path()), files);
    server.stop().await;
}

#[tokio::test]
async fn hostile_uploads_are_refused_with_a_reason_and_leave_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-0", |config| {
        config.limits.upload_bytes = 4096;
        config.limits.message_bytes = 64 << 10;
    })
    .await;
    let good = || header("hostile", CONTRACT, policy());
    let batch = rows(2, 1.0).columns;
    let mut outside = rows(2, 1.0).columns;
    outside[0][..4].copy_from_slice(&11.0f32.to_le_bytes());
    let mut not_a_number = rows(2, 1.0).columns;
    not_a_number[0][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let mut class = rows(2, 1.0).columns;
    class[1][..8].copy_from_slice(&2i64.to_le_bytes());
    let large = CONTRACT.replace("64}", "1024}");
    let no_budget = v1::Policy {
        lifetime_epsilon: String::new(),
        lifetime_delta: String::new(),
        ..policy()
    };
    let fine = v1::Policy {
        lifetime_epsilon: "1e-10".into(),
        ..policy()
    };
    let cases: Vec<(&str, Parts, &str)> = vec![
        ("nothing", vec![], "malformed"),
        ("no header", vec![records(2, batch.clone())], "malformed"),
        (
            "empty message",
            vec![good(), v1::UploadDatasetRequest { part: None }],
            "malformed",
        ),
        ("two headers", vec![good(), good()], "malformed"),
        (
            "no finish",
            vec![good(), records(2, batch.clone())],
            "upload-incomplete",
        ),
        (
            "wrong count",
            vec![good(), records(2, batch.clone()), finish(3)],
            "upload-incomplete",
        ),
        (
            "after the finish",
            vec![good(), records(2, batch.clone()), finish(2), good()],
            "malformed",
        ),
        (
            "contract is not JSON",
            vec![header("hostile", "{", policy())],
            "contract-invalid",
        ),
        (
            "size off the ladder",
            vec![header("hostile", &CONTRACT.replace("64}", "65}"), policy())],
            "contract-invalid",
        ),
        (
            "too large by contract",
            vec![header("hostile", &large, policy())],
            "upload-too-large",
        ),
        (
            "private without budget",
            vec![header("hostile", CONTRACT, no_budget)],
            "policy-invalid",
        ),
        (
            "finer than the unit",
            vec![header("hostile", CONTRACT, fine)],
            "policy-invalid",
        ),
        (
            "name with an escape",
            vec![header("\u{1b}[2J", CONTRACT, policy())],
            "malformed",
        ),
        (
            "out of range",
            vec![good(), records(2, outside)],
            "outside-contract",
        ),
        (
            "not a number",
            vec![good(), records(2, not_a_number)],
            "outside-contract",
        ),
        (
            "no such class",
            vec![good(), records(2, class)],
            "outside-contract",
        ),
        (
            "cut column",
            vec![
                good(),
                records(2, vec![batch[0][..31].to_vec(), batch[1].clone()]),
            ],
            "outside-contract",
        ),
        (
            "missing column",
            vec![good(), records(2, vec![batch[0].clone()])],
            "outside-contract",
        ),
        ("no rows", vec![good(), finish(0)], "upload-incomplete"),
        (
            "an empty batch",
            vec![good(), records(0, vec![vec![], vec![]]), finish(0)],
            "malformed",
        ),
        (
            "more rows than declared",
            vec![good(), records(65, rows(65, 1.0).columns), finish(65)],
            "upload-too-large",
        ),
        (
            "huge message",
            vec![good(), records(9000, rows(9000, 1.0).columns)],
            "upload-too-large",
        ),
    ];
    for (what, parts, expected) in cases {
        let mut client = raw::attested(server.address).await;
        let status = common::timeout(client.upload_dataset(tokio_stream::iter(parts)))
            .await
            .unwrap_err();
        assert_eq!(reason(&status), expected, "{what}: {status}");
        assert!(!status.message().is_empty(), "{what}");
    }
    assert!(
        server
            .peer(&identity())
            .await
            .list_datasets()
            .await
            .unwrap()
            .is_empty()
    );
    eventually("an empty block store", || block_files(directory.path()) == 0).await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_disappears_or_falls_silent_in_an_upload_leaves_nothing_and_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-0", |config| {
        config.limits.concurrent_uploads = 1;
        config.limits.upload_idle_ms = 300;
    })
    .await;
    let gone = server.peer(&identity()).await;
    let mut upload_of_gone = gone
        .begin_upload(&dataset("gone", open_policy("6.0", "1e-5")))
        .await
        .unwrap();
    upload_of_gone.push(rows(10, 1.0)).await.unwrap();
    gone.close();
    drop(upload_of_gone);
    let silent = server.peer(&identity()).await;
    let mut kept = None;
    for _ in 0..100 {
        let mut upload = silent
            .begin_upload(&dataset("silent", open_policy("6.0", "1e-5")))
            .await
            .unwrap();
        if upload.push(rows(1, 1.0)).await.is_ok() {
            kept = Some(upload);
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(900)).await;
    let error = kept.expect("a place is free again").finish().await.unwrap_err();
    assert!(
        error.to_string().contains("too long") || error.to_string().contains("nothing"),
        "{error}"
    );
    let peer = server.peer(&identity()).await;
    upload(&peer, "gone", "6.0").await;
    assert_eq!(
        peer.list_datasets().await.unwrap().len(),
        1,
        "neither name was taken, neither row kept"
    );
    server.stop().await;
}

#[tokio::test]
async fn one_owner_cannot_fill_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-0", |config| {
        config.limits.stored_bytes_per_principal = 200 << 10;
    })
    .await;
    let (greedy, modest) = (server.peer(&identity()).await, server.peer(&identity()).await);
    upload(&greedy, "first", "6.0").await;
    upload(&greedy, "second", "6.0").await;
    upload(&greedy, "third", "6.0").await;
    let fourth = dataset("fourth", open_policy("6.0", "1e-5"));
    let error = greedy
        .upload_dataset(&fourth, vec![rows(3, 0.0)], &mut |_| {})
        .await
        .unwrap_err();
    assert!(
        matches!(error, ClientError::LimitExceeded(_)) && error.to_string().contains("204800"),
        "{error}"
    );
    upload(&modest, "other", "6.0").await;
    server.stop().await;
}

#[tokio::test]
async fn an_upload_ends_in_time_and_takes_no_place_beyond_its_owners_share() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-0", |config| {
        config.limits.uploads_per_principal = 1;
        config.limits.upload_timeout_ms = 1_500;
    })
    .await;
    let (greedy, modest) = (server.peer(&identity()).await, server.peer(&identity()).await);
    let mut slow = greedy
        .begin_upload(&dataset("slow", open_policy("6.0", "1e-5")))
        .await
        .unwrap();
    slow.push(rows(1, 1.0)).await.unwrap();
    let second = dataset("second", open_policy("6.0", "1e-5"));
    let error = greedy
        .upload_dataset(&second, vec![rows(3, 0.0)], &mut |_| {})
        .await
        .unwrap_err();
    assert!(
        matches!(error, ClientError::LimitExceeded(_)) && error.to_string().contains("1 uploads"),
        "{error}"
    );
    tokio::time::sleep(Duration::from_millis(1_800)).await;
    let error = slow.finish().await.unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
    upload(&modest, "small", "6.0").await;
    server.stop().await;
}

#[tokio::test]
async fn uploads_stop_before_the_ledger_has_no_room() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-0", |config| {
        config.limits.free_bytes_reserve = u64::MAX / 2
    })
    .await;
    let error = server
        .peer(&identity())
        .await
        .upload_dataset(
            &dataset("north", open_policy("6.0", "1e-5")),
            vec![rows(3, 0.0)],
            &mut |_| {},
        )
        .await
        .unwrap_err();
    assert!(error.to_string().contains("too little room"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn the_ledger_is_shown_in_pages_and_links_alone_when_asked() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let names: Vec<String> = (0..500).map(|class| format!("\"{class:0>110}\"")).collect();
    let json = CONTRACT.replace("\"benign\",\"malignant\"", &names.join(","));
    for number in 0..20 {
        let mut large = dataset(&format!("d{number}"), open_policy("6.0", "1e-5"));
        large.contract = bastionai_client::DataContract::parse_json(json.as_bytes()).unwrap();
        peer.upload_dataset(&large, vec![rows(3, 1.0)], &mut |_| {})
            .await
            .unwrap();
    }
    let mut client = raw::attested(server.address).await;
    let request = v1::ShowLedgerRequest::default();
    let first = client.show_ledger(request.clone()).await.unwrap().into_inner();
    let head = first.head.clone().unwrap();
    assert!(
        first.more && first.extension.is_empty(),
        "twenty contracts of 60 KB are more than a page"
    );
    let rest = v1::ShowLedgerRequest {
        from_sequence: first.entries.last().unwrap().sequence + 1,
        ..request.clone()
    };
    let rest = client.show_ledger(rest).await.unwrap().into_inner();
    assert!(!rest.more);
    let sequences = first
        .entries
        .iter()
        .chain(&rest.entries)
        .map(|entry| entry.sequence);
    assert!(sequences.eq(0..head.sequence), "each entry once, in order");
    let links = v1::ShowLedgerRequest {
        links_only: true,
        known_sequence: 1,
        ..request
    };
    let links = client.show_ledger(links).await.unwrap().into_inner();
    assert!(links.entries.is_empty() && !links.more);
    assert_eq!(links.extension.len() as u64, head.sequence - 1);
    let whole = peer.show_ledger(None).await.unwrap();
    assert_eq!(whole.entries.len() as u64, head.sequence);
    server.stop().await;
}

#[tokio::test]
async fn models_that_are_no_archive_or_another_than_announced_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-0", |config| {
        config.limits.model_bytes = 100_000
    })
    .await;
    let peer = server.peer(&identity()).await;
    common::upload_mlp(&peer).await;

    let pickle = [b"\x80\x04cos\nsystem\n", &[b'.'; 64][..]].concat();
    let error = peer
        .upload_model("pickle", &pickle, &mut |_| {})
        .await
        .unwrap_err();
    assert_eq!(error.server_reason(), Some("archive-invalid"), "{error}");

    let config = br#""use_pickle": true"#;
    let tampered = replace(common::MLP, br#""use_pickle": false"#, config);
    let error = peer
        .upload_model("pickled tensor", &tampered, &mut |_| {})
        .await
        .unwrap_err();
    assert_eq!(error.server_reason(), Some("archive-invalid"), "{error}");

    let cut = &common::MLP[..common::MLP.len() / 2];
    let error = peer.upload_model("cut", cut, &mut |_| {}).await.unwrap_err();
    assert_eq!(error.server_reason(), Some("archive-invalid"), "{error}");

    let mut client = raw::attested(server.address).await;
    let part = |part| v1::UploadModelRequest { part: Some(part) };
    let header = |size_bytes, digest: u8| {
        part(v1::upload_model_request::Part::Header(v1::UploadModelHeader {
            name: "m".into(),
            size_bytes,
            archive_digest: vec![digest; 32],
        }))
    };
    let chunk = || part(v1::upload_model_request::Part::Chunk(vec![1; 100]));
    let cases = [
        ("announces too much", vec![header(1 << 40, 0)], "model-too-large"),
        ("sends less", vec![header(200, 0), chunk()], "upload-incomplete"),
        ("sends more", vec![header(50, 0), chunk()], "upload-incomplete"),
        ("another digest", vec![header(100, 0), chunk()], "model-digest"),
        ("no header", vec![chunk()], "malformed"),
    ];
    for (what, parts, expected) in cases {
        let status = client.upload_model(tokio_stream::iter(parts)).await.unwrap_err();
        assert_eq!(reason(&status), expected, "{what}: {status}");
    }
    server.stop().await;
}

/// The bytes with the first occurrence replaced; the lengths differ by the padding of JSON.
fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes
        .windows(from.len())
        .position(|window| window == from)
        .expect("the archive says use_pickle");
    let mut replaced = bytes.to_vec();
    replaced.splice(
        at..at + from.len(),
        to.iter()
            .copied()
            .chain(std::iter::repeat_n(b' ', from.len() - to.len())),
    );
    replaced
}
