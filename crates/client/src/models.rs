//! Sending a model: the `.pt2` archive's bytes, named by their SHA-256.

use crate::convert::digest;
use crate::errors::ClientError;
use crate::link::Link;
use crate::outgoing::Outgoing;
use crate::rows::Transfer;
use crate::session::AppraisedPeer;
use bastionai_ledger::id::Digest32;
use bastionai_wire::v1::bastion_client::BastionClient;
use bastionai_wire::v1::{
    FindModelRequest, UploadModelHeader, UploadModelRequest, upload_model_request::Part,
};

impl AppraisedPeer {
    /// Sends the archive, unless the server has it from this client already, and returns the model's id, the
    /// SHA-256 of its bytes. `on_progress` hears nothing when nothing is sent.
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
        if self.has_model(archive_digest).await? {
            return Ok(archive_digest);
        }
        let header = UploadModelHeader {
            name: name.to_owned(),
            size_bytes,
            archive_digest: archive_digest.as_bytes().to_vec(),
        };
        let start =
            |mut client: BastionClient<Link>, stream| async move { client.upload_model(stream).await };
        let mut outgoing = Outgoing::begin(self, CALL, start);
        outgoing.send(message(Part::Header(header))).await?;
        let mut done_bytes = 0;
        for chunk in archive.chunks(self.chunk_bytes()) {
            outgoing.send(message(Part::Chunk(chunk.to_vec()))).await?;
            done_bytes += chunk.len() as u64;
            on_progress(Transfer {
                done_bytes,
                total_bytes: Some(size_bytes),
            });
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

    /// Whether the server holds an archive that this client sent before.
    ///
    /// # Errors
    /// [`ClientError::SessionEnded`] and the server's refusals.
    pub async fn has_model(&self, model: Digest32) -> Result<bool, ClientError> {
        let request = FindModelRequest {
            model_id: model.as_bytes().to_vec(),
        };
        let reply = self
            .answer("FindModel", self.client().find_model(request))
            .await?;
        Ok(reply.held)
    }
}

fn message(part: Part) -> UploadModelRequest {
    UploadModelRequest { part: Some(part) }
}

const CALL: &str = "UploadModel";
