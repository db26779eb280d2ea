//! FindModel, UploadModel: a `.pt2` archive, as data. It is read here once so that a pickle or a damaged file is refused
//! before anything is priced; its graph is proven when its inputs are known, at PriceRun.

use super::blocking;
use crate::acceptor::Peer;
use crate::errors::{Failure, Reason};
use crate::log::{Event, Hex};
use crate::models::{MOST_STORAGES, Model};
use crate::partial_archive::PartialArchive;
use crate::spec;
use crate::state::{Server, UploadPlace};
use crate::terms::read_archive;
use bastionai_wire::v1;
use bastionai_wire::v1::upload_model_request::Part;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tonic::Streaming;

/// Whether the caller sent this archive before. Others' archives are as if they were not there.
pub(crate) async fn find(
    server: Arc<Server>,
    peer: &Peer,
    request: v1::FindModelRequest,
) -> Result<v1::FindModelReply, Failure> {
    if request.model_id.len() != 32 {
        return Err(Failure::malformed(
            "model_id must be the 32 bytes of the archive's SHA-256",
        ));
    }
    let digests = request.storage_digests.iter().map(|digest| digest[..].try_into());
    let digests: Vec<[u8; 32]> = digests.collect::<Result<_, _>>().map_err(|_| {
        Failure::malformed("a storage digest must be the 32 bytes of a stored tensor's SHA-256")
    })?;
    if digests.len() > MOST_STORAGES {
        return Err(Failure::malformed(format!(
            "at most {MOST_STORAGES} storage digests in one question"
        )));
    }
    let owner = peer.principal;
    blocking(move || {
        let held = server.models.renew(owner, &request.model_id);
        let storages_held = server.models.renew_storages(owner, &digests);
        Ok(v1::FindModelReply { held, storages_held })
    })
    .await
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
    let archive = receive(&server, peer, &place, &header, &mut parts).await?;
    let model_bytes = server.config.limits.model_bytes;
    let owner = peer.principal;
    blocking(move || {
        // The place is given back when the work ends, whether or not the caller still waits for it.
        let _place = place;
        let archive = archive.assemble(&server.models, owner)?;
        let digest: [u8; 32] = Sha256::digest(&archive).into();
        if header.archive_digest != digest {
            let message = "the archive's SHA-256 is not the one in the header: it was damaged on the way; send it again";
            return Err(Failure::new(Reason::ModelDigest, message));
        }
        read_archive(&archive, model_bytes)?;
        let bytes = archive.len() as u64;
        server.models.insert(owner, Model::new(digest, archive)?);
        Event::ModelHeld { model: Hex(&digest), principal: owner, bytes }.emit();
        Ok(v1::UploadModelReply { model_id: digest.to_vec() })
    })
    .await
}

/// What the archive is made of arrives in order: its own bytes, and the names of tensors that the caller sent before.
async fn receive(
    server: &Server,
    peer: &Peer,
    place: &UploadPlace,
    header: &v1::UploadModelHeader,
    parts: &mut Streaming<v1::UploadModelRequest>,
) -> Result<PartialArchive, Failure> {
    spec::name("name", &header.name)?;
    let limit = server.config.limits.model_bytes;
    if header.size_bytes > limit {
        let message = format!(
            "the archive has {} bytes, the server accepts {limit}",
            header.size_bytes
        );
        return Err(Failure::new(Reason::ModelTooLarge, message));
    }
    let mut archive = PartialArchive::new(header.size_bytes);
    while let Some(message) = server.next_part(place, parts).await? {
        match message.part {
            Some(Part::Chunk(chunk)) => archive.push_own(&chunk)?,
            Some(Part::HeldStorage(digest)) => archive.push_held(&server.models, peer.principal, digest)?,
            _ => {
                return Err(Failure::malformed(
                    "after the header of a model upload come chunks and held storages only",
                ));
            }
        }
    }
    archive.check_whole()?;
    Ok(archive)
}
