//! Hello: protocol version and limits, inside the attested session.

use crate::acceptor::Peer;
use crate::convert;
use crate::errors::{Failure, Reason};
use crate::state::Server;
use bastionai_wire::v1;

/// Version of the gRPC contract spoken here.
const PROTOCOL_VERSION: u32 = 1;

pub(crate) fn hello(
    server: &Server,
    peer: &Peer,
    request: &v1::HelloRequest,
) -> Result<v1::HelloReply, Failure> {
    if request.protocol_version != PROTOCOL_VERSION {
        let message = format!(
            "this server speaks protocol version {PROTOCOL_VERSION}, the client asked for {}: use matching releases",
            request.protocol_version
        );
        return Err(Failure::new(Reason::ProtocolVersion, message));
    }
    let limits = &server.config.limits;
    Ok(v1::HelloReply {
        protocol_version: PROTOCOL_VERSION,
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        max_message_bytes: limits.message_bytes,
        max_upload_bytes: limits.upload_bytes,
        max_model_bytes: limits.model_bytes,
        principal: peer.principal.as_bytes().to_vec(),
        time_unix_ms: server.now_unix_ms(),
        ledger_head: Some(convert::head(&server.signed_head())),
    })
}
