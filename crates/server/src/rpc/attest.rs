//! Attest: evidence for this very session (docs/protocol.md, step 2). The only call open before appraisal.

use crate::acceptor::Peer;
use crate::errors::Failure;
use crate::log::Event;
use crate::rpc::blocking;
use crate::state::Server;
use bastionai_attestation::{Binding, Role};
use bastionai_wire::v1;
use std::sync::Arc;

pub(crate) async fn attest(
    server: &Arc<Server>,
    peer: &Peer,
    request: &v1::AttestRequest,
) -> Result<v1::AttestReply, Failure> {
    let nonce = <[u8; 32]>::try_from(&request.nonce[..])
        .map_err(|_| Failure::malformed("nonce must be 32 random bytes"))?;
    let binding = Binding {
        nonce,
        exporter: peer.exporter,
        spki_sha256: server.identity.spki_sha256,
        role: Role::Server,
        claims_sha256: *server.boot.claims_digest.as_bytes(),
    };
    // A platform signs one report at a time, and takes milliseconds to seconds for it.
    let _turn = server.attesting.lock().await;
    let attester = Arc::clone(&server.boot.attester);
    let evidence =
        blocking(move || attester.attest(&binding.report_data()).map_err(Failure::internal)).await?;
    peer.mark_attested();
    Event::Attested {
        principal: peer.principal,
    }
    .emit();
    Ok(v1::AttestReply {
        media_type: evidence.media_type,
        evidence: evidence.bytes,
        runtime_claims: server.boot.claims.clone(),
    })
}
