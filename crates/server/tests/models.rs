//! Models on their way in: an archive is sent once, and so is a tensor that several archives of one scientist hold.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::{AppraisedPeer, Digest32};
use bastionai_wire::v1;
use common::raw;
use common::{TestServer, identity, upload};

const FROZEN: [&[u8]; 2] = [
    include_bytes!("fixtures/frozen_one.pt2"),
    include_bytes!("fixtures/frozen_two.pt2"),
];
/// Bytes of their common base: 256 x 4 numbers.
const BASE_BYTES: u64 = 4096;

/// Sends an archive; how many of its bytes were sent.
async fn sent_bytes(peer: &AppraisedPeer, archive: &[u8]) -> u64 {
    let mut done = 0;
    let sent = &mut |transfer: bastionai_client::Transfer| done = transfer.done_bytes;
    let model = peer.upload_model("frozen", archive, sent).await.unwrap();
    assert_eq!(model, Digest32::of(archive), "the id covers all of it");
    done
}

#[tokio::test]
async fn a_frozen_base_is_sent_once_under_two_heads_and_anew_by_another_scientist() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let (peer, other) = (server.peer(&identity()).await, server.peer(&identity()).await);
    let length = FROZEN.map(|archive| archive.len() as u64);
    assert_eq!(sent_bytes(&peer, FROZEN[0]).await, length[0]);
    assert_eq!(
        sent_bytes(&other, FROZEN[1]).await,
        length[1],
        "nobody has use of another's tensors"
    );
    assert_eq!(sent_bytes(&peer, FROZEN[1]).await, length[1] - BASE_BYTES);
    let dataset = upload(&peer, "north", "6.0").await;
    let digest = async |peer: &AppraisedPeer| {
        let spec = common::spec(Digest32::of(FROZEN[1]), &[dataset], 0.3, 5);
        let quote = peer.price(&spec).await.unwrap();
        (quote.graph_digest, quote.trainable_parameters)
    };
    assert_eq!(
        digest(&peer).await,
        digest(&other).await,
        "put together it is the same model"
    );
    assert_eq!(digest(&peer).await.1, 2 * 256 + 2);
    server.stop().await;
}

#[tokio::test]
async fn another_scientists_tensor_is_no_more_known_than_one_that_never_was() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    sent_bytes(&server.peer(&identity()).await, FROZEN[0]).await;
    let ranges = bastionai_graph::archive::storages(FROZEN[0], 4096, &Default::default()).unwrap();
    let [base] = &ranges[..] else { panic!("{ranges:?}") };
    let digest = |bytes: &[u8]| Digest32::of(bytes).as_bytes().to_vec();
    let (theirs, nobodys) = (digest(&FROZEN[0][base.clone()]), digest(b"nobody's"));
    let mut stranger = raw::attested(server.address).await;
    let question = v1::FindModelRequest {
        model_id: digest(FROZEN[0]),
        storage_digests: vec![theirs.clone(), nobodys.clone()],
    };
    let reply = stranger.find_model(question).await.unwrap().into_inner();
    assert_eq!((reply.held, reply.storages_held), (false, vec![false, false]));
    let mut refusals = Vec::new();
    for named in [theirs, nobodys] {
        let part = |part| v1::UploadModelRequest { part: Some(part) };
        let header = v1::UploadModelHeader {
            name: "guess".into(),
            size_bytes: BASE_BYTES,
            archive_digest: named.clone(),
        };
        let parts = [
            part(v1::upload_model_request::Part::Header(header)),
            part(v1::upload_model_request::Part::HeldStorage(named)),
        ];
        let status = stranger
            .upload_model(tokio_stream::iter(parts))
            .await
            .unwrap_err();
        assert_eq!(raw::reason(&status), "unknown-model");
        refusals.push(status.message().to_owned());
    }
    assert_eq!(refusals[0], refusals[1]);
    for digests in [vec![vec![0; 31]], vec![vec![0; 32]; 4097]] {
        let question = v1::FindModelRequest {
            model_id: digest(FROZEN[0]),
            storage_digests: digests,
        };
        let status = stranger.find_model(question).await.unwrap_err();
        assert_eq!(raw::reason(&status), "malformed");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_named_tensor_counts_to_the_size_that_was_announced() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let mut client = raw::attested(server.address).await;
    let part = |part| v1::UploadModelRequest { part: Some(part) };
    let upload = |size_bytes, body: Vec<v1::upload_model_request::Part>| {
        let header = v1::UploadModelHeader {
            name: "frozen".into(),
            size_bytes,
            archive_digest: Digest32::of(FROZEN[0]).as_bytes().to_vec(),
        };
        let header = v1::upload_model_request::Part::Header(header);
        tokio_stream::iter(std::iter::once(header).chain(body).map(part).collect::<Vec<_>>())
    };
    let chunk = |bytes: &[u8]| v1::upload_model_request::Part::Chunk(bytes.to_vec());
    let whole = upload(FROZEN[0].len() as u64, vec![chunk(FROZEN[0])]);
    client.upload_model(whole).await.unwrap();
    let base = bastionai_graph::archive::storages(FROZEN[0], 4096, &Default::default()).unwrap()[0].clone();
    let digest = Digest32::of(&FROZEN[0][base]).as_bytes().to_vec();
    let held = || v1::upload_model_request::Part::HeldStorage(digest.clone());
    for (size_bytes, reason) in [
        (BASE_BYTES - 1, "upload-incomplete"),
        (BASE_BYTES, "model-digest"),
    ] {
        let status = client
            .upload_model(upload(size_bytes, vec![held()]))
            .await
            .unwrap_err();
        assert_eq!(raw::reason(&status), reason);
    }
    server.stop().await;
}

#[tokio::test]
async fn an_archive_is_sent_once_per_scientist() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let (peer, other) = (server.peer(&identity()).await, server.peer(&identity()).await);
    let mut sent_bytes = Vec::new();
    for _ in 0..2 {
        let mut done = 0;
        let sent = &mut |transfer: bastionai_client::Transfer| done = transfer.done_bytes;
        peer.upload_model("mlp", common::MLP, sent).await.unwrap();
        sent_bytes.push(done);
    }
    assert_eq!(sent_bytes, [common::MLP.len() as u64, 0]);
    let model = Digest32::of(common::MLP);
    assert!(peer.has_model(model).await.unwrap());
    assert!(
        !other.has_model(model).await.unwrap(),
        "nobody hears what others have sent"
    );
    server.stop().await;
}
