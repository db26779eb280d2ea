//! FindModel, UploadModel: a `.pt2` archive, as data. It is read here once so that a pickle or a damaged file is refused
//! before anything is priced; its graph is proven when its inputs are known, at PriceRun.

use super::blocking;
use crate::acceptor::Peer;
use crate::errors::{Failure, Reason};
use crate::log::{Event, Hex};
use crate::models::Model;
use crate::price::read_archive;
use crate::spec;
use crate::state::{Server, UploadPlace};
use bastionai_wire::v1;
use bastionai_wire::v1::upload_model_request::Part;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tonic::Streaming;

/// Whether the caller sent this archive before. Others' archives are as if they were not there.
pub(crate) fn find(
    server: &Server,
    peer: &Peer,
    request: &v1::FindModelRequest,
) -> Result<v1::FindModelReply, Failure> {
    if request.model_id.len() != 32 {
        return Err(Failure::malformed(
            "model_id must be the 32 bytes of the archive's SHA-256",
        ));
    }
    let held = server.models.renew(peer.principal, &request.model_id);
    Ok(v1::FindModelReply { held })
}

pub(crate) async fn upload(
    server: Arc<Server>,
    peer: &Peer,
    mut parts: Streaming<v1::UploadModelRequest>,
) -> Result<v1::UploadModelReply, Failure> {
    server.accepts_work()?;
    let place = server.upload_place(peer.principal)?;
    let header = match server
        .next_part(&place, &mut parts)
        .await?
        .and_then(|message| message.part)
    {
        Some(Part::Header(header)) => header,
        _ => {
            return Err(Failure::malformed(
                "the first message of a model upload must be its header",
            ));
        }
    };
    let archive = receive(&server, &place, &header, &mut parts).await?;
    let model_bytes = server.config.limits.model_bytes;
    let owner = peer.principal;
    blocking(move || {
        let digest: [u8; 32] = Sha256::digest(&archive).into();
        if header.archive_digest != digest {
            let message = "the archive's SHA-256 is not the one in the header: it was damaged on the way; send it again";
            return Err(Failure::new(Reason::ModelDigest, message));
        }
        read_archive(&archive, model_bytes)?;
        Event::ModelHeld { model: Hex(&digest), principal: owner, bytes: archive.len() as u64 }.emit();
        server.models.insert(owner, Model { digest, archive });
        Ok(v1::UploadModelReply { model_id: digest.to_vec() })
    })
    .await
}

async fn receive(
    server: &Server,
    place: &UploadPlace,
    header: &v1::UploadModelHeader,
    parts: &mut Streaming<v1::UploadModelRequest>,
) -> Result<Vec<u8>, Failure> {
    spec::name("name", &header.name)?;
    let limit = server.config.limits.model_bytes;
    if header.size_bytes > limit {
        let message = format!(
            "the archive has {} bytes, the server accepts {limit}",
            header.size_bytes
        );
        return Err(Failure::new(Reason::ModelTooLarge, message));
    }
    // Grows with what arrives, not with what the header promises.
    let mut archive = Vec::new();
    while let Some(message) = server.next_part(place, parts).await? {
        let Some(Part::Chunk(chunk)) = message.part else {
            return Err(Failure::malformed(
                "after the header of a model upload come chunks only",
            ));
        };
        if (archive.len() + chunk.len()) as u64 > header.size_bytes {
            return Err(Failure::new(
                Reason::UploadIncomplete,
                "the archive is longer than its header says",
            ));
        }
        archive.extend_from_slice(&chunk);
    }
    if archive.len() as u64 != header.size_bytes {
        let message = format!(
            "the archive ended after {} of {} bytes; nothing was kept",
            archive.len(),
            header.size_bytes
        );
        return Err(Failure::new(Reason::UploadIncomplete, message));
    }
    Ok(archive)
}
