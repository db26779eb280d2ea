//! Sending a model: the `.pt2` archive's bytes, named by their SHA-256. Stored tensors that the server has from this
//! client already, in this archive or another (a frozen base under a new head), are named instead of sent.

use crate::convert::digest;
use crate::errors::ClientError;
use crate::link::Link;
use crate::outgoing::Outgoing;
use crate::rows::Transfer;
use crate::session::AppraisedPeer;
use bastionai_graph::archive::{Limits, storages};
use bastionai_ledger::id::Digest32;
use bastionai_wire::v1::bastion_client::BastionClient;
use bastionai_wire::v1::{
    FindModelReply, FindModelRequest, UploadModelHeader, UploadModelRequest, upload_model_request::Part,
};
use std::ops::Range;

/// A range of an archive: a stored tensor by its SHA-256, or what lies between.
struct Piece {
    range: Range<usize>,
    storage: Option<Digest32>,
}

impl AppraisedPeer {
    /// Sends the archive, unless the server has it from this client already, and returns the model's id, the
    /// SHA-256 of its bytes. Tensors that the server has are not sent again; `on_progress` hears of what is sent.
    ///
    /// # Errors
    /// [`ClientError::LimitExceeded`] if it is too large, [`ClientError::GraphRefused`] or
    /// [`ClientError::ServerRefused`] if the server cannot read it.
    pub async fn upload_model(
        &self,
        name: &str,
        archive: &[u8],
        on_progress: &mut (dyn FnMut(Transfer) + Send),
    ) -> Result<Digest32, ClientError> {
        let size_bytes = archive.len() as u64;
        if size_bytes > self.server().max_model_bytes {
            let most = self.server().max_model_bytes;
            return Err(ClientError::LimitExceeded(format!(
                "the model archive has {size_bytes} bytes, the server accepts at most {most}"
            )));
        }
        let archive_digest = Digest32::of(archive);
        let mut pieces = pieces(archive);
        let reply = self.find_model(archive_digest, &pieces).await?;
        if reply.held {
            return Ok(archive_digest);
        }
        keep_held(&mut pieces, &reply.storages_held)?;
        match self
            .send_model(name, archive, archive_digest, &pieces, on_progress)
            .await
        {
            // What was held a moment ago had to make room.
            Err(ClientError::NotFound(_)) if reply.storages_held.contains(&true) => {
                pieces.iter_mut().for_each(|piece| piece.storage = None);
                self.send_model(name, archive, archive_digest, &pieces, on_progress)
                    .await
            }
            sent => sent,
        }
    }

    /// Whether the server holds an archive that this client sent before.
    ///
    /// # Errors
    /// [`ClientError::SessionEnded`] and the server's refusals.
    pub async fn has_model(&self, model: Digest32) -> Result<bool, ClientError> {
        Ok(self.find_model(model, &[]).await?.held)
    }

    async fn find_model(&self, model: Digest32, pieces: &[Piece]) -> Result<FindModelReply, ClientError> {
        let digests = pieces.iter().filter_map(|piece| piece.storage);
        let request = FindModelRequest {
            model_id: model.as_bytes().to_vec(),
            storage_digests: digests.map(|digest| digest.as_bytes().to_vec()).collect(),
        };
        self.answer("FindModel", self.client().find_model(request)).await
    }

    async fn send_model(
        &self,
        name: &str,
        archive: &[u8],
        archive_digest: Digest32,
        pieces: &[Piece],
        on_progress: &mut (dyn FnMut(Transfer) + Send),
    ) -> Result<Digest32, ClientError> {
        let header = UploadModelHeader {
            name: name.to_owned(),
            size_bytes: archive.len() as u64,
            archive_digest: archive_digest.as_bytes().to_vec(),
        };
        let start =
            |mut client: BastionClient<Link>, stream| async move { client.upload_model(stream).await };
        let mut outgoing = Outgoing::begin(self, CALL, start);
        outgoing.send(message(Part::Header(header))).await?;
        let sent = pieces.iter().filter(|piece| piece.storage.is_none());
        let total_bytes = sent.map(|piece| piece.range.len() as u64).sum();
        let mut done_bytes = 0;
        for piece in pieces {
            if let Some(digest) = piece.storage {
                let digest = digest.as_bytes().to_vec();
                outgoing.send(message(Part::HeldStorage(digest))).await?;
                continue;
            }
            for chunk in archive[piece.range.clone()].chunks(self.chunk_bytes()) {
                outgoing.send(message(Part::Chunk(chunk.to_vec()))).await?;
                done_bytes += chunk.len() as u64;
                on_progress(Transfer {
                    done_bytes,
                    total_bytes: Some(total_bytes),
                });
            }
        }
        let model_id = digest(CALL, "model_id", &outgoing.finish().await?.model_id)?;
        if model_id != archive_digest {
            return Err(ClientError::protocol(
                CALL,
                "it names another model than was sent",
            ));
        }
        Ok(model_id)
    }
}

/// Cuts an archive at its large stored tensors. What cannot be read as one stays whole: the server says what is wrong.
fn pieces(archive: &[u8]) -> Vec<Piece> {
    let limits = Limits {
        max_archive_bytes: archive.len() as u64,
        ..Limits::default()
    };
    let mut ranges = storages(archive, SHARED_STORAGE_BYTES, &limits).unwrap_or_default();
    ranges.sort_unstable_by_key(|range| std::cmp::Reverse(range.len()));
    ranges.truncate(MOST_STORAGES);
    ranges.sort_unstable_by_key(|range| range.start);
    let mut pieces = Vec::with_capacity(2 * ranges.len() + 1);
    let mut end = 0;
    let between = |range: Range<usize>| Piece { range, storage: None };
    for range in ranges {
        pieces.push(between(end..range.start));
        end = range.end;
        pieces.push(Piece {
            storage: Some(Digest32::of(&archive[range.clone()])),
            range,
        });
    }
    pieces.push(between(end..archive.len()));
    pieces.retain(|piece| !piece.range.is_empty());
    pieces
}

/// Leaves those storages named that the server holds.
fn keep_held(pieces: &mut [Piece], held: &[bool]) -> Result<(), ClientError> {
    let mut named: Vec<&mut Piece> = pieces
        .iter_mut()
        .filter(|piece| piece.storage.is_some())
        .collect();
    if named.len() != held.len() {
        return Err(ClientError::protocol(
            "FindModel",
            "it answers for another number of tensors than were asked for",
        ));
    }
    for (piece, held) in named.iter_mut().zip(held) {
        piece.storage = piece.storage.filter(|_| *held);
    }
    Ok(())
}

fn message(part: Part) -> UploadModelRequest {
    UploadModelRequest { part: Some(part) }
}

const CALL: &str = "UploadModel";

/// Naming a smaller tensor saves nothing. Of the server's constant of the same name.
const SHARED_STORAGE_BYTES: usize = 4096;

/// Most tensors that one question asks for, the largest first.
const MOST_STORAGES: usize = 4096;
