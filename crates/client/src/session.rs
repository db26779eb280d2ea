//! From a TLS session to a peer that may be told things: evidence, appraisal, hello, ledger head.

use crate::convert::array;
use crate::errors::{ClientError, is_transport_failure};
use crate::heads::HeadMemory;
use crate::identity::Identity;
use crate::link::Link;
use crate::tls::SessionFacts;
use bastionai_attestation::{
    AppraisalPolicy, AttestationResult, Binding, Evidence, Role, RuntimeClaims, TrustAnchors, verify,
};
use bastionai_ledger::id::{LedgerId, LedgerPublicKey, Principal};
use bastionai_ledger::key::SignedHead;
use bastionai_wire::v1::{AttestRequest, HelloRequest, bastion_client::BastionClient};
use ring::rand::{SecureRandom, SystemRandom};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Response, Status};

/// Version of the protocol this client speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// How patient a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Limit on connecting, and again on the TLS handshake.
    pub connect_timeout: Duration,
    /// Limit on each call that has one answer. Pricing a large run takes seconds.
    pub call_timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            call_timeout: Duration::from_secs(120),
        }
    }
}

/// Opens one TLS 1.3 session with whoever answers at `address` (`host:port`). Nothing is sent yet.
///
/// # Errors
/// [`ClientError::Address`], [`ClientError::Unreachable`] or [`ClientError::Tls`].
pub async fn connect(
    address: &str,
    identity: &Identity,
    options: &ConnectOptions,
) -> Result<UnappraisedSession, ClientError> {
    let port = address
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty())
        .map(|(_, port)| port);
    if !port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port != 0)) {
        return Err(ClientError::Address {
            address: address.to_owned(),
        });
    }
    let (link, facts) = Link::connect(address, identity, options.connect_timeout).await?;
    Ok(UnappraisedSession {
        link,
        facts,
        principal: identity.principal(),
        options: *options,
        anchors: TrustAnchors::bundled(),
    })
}

/// A TLS session with somebody unknown. The only thing to be done with it is to appraise it.
#[derive(Debug)]
pub struct UnappraisedSession {
    link: Link,
    facts: SessionFacts,
    principal: Principal,
    options: ConnectOptions,
    anchors: TrustAnchors,
}

/// A server whose evidence was verified and appraised, on the one session over which it was given.
///
/// Clones share the session. It is never re-established: see [`ClientError::SessionEnded`].
#[derive(Clone, Debug)]
pub struct AppraisedPeer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    link: Link,
    options: ConnectOptions,
    policy: AppraisalPolicy,
    anchors: TrustAnchors,
    attestation: AttestationResult,
    server: ServerInfo,
    heads: HeadMemory,
}

/// What the server said about itself inside the attested session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerInfo {
    /// Version of the server program.
    pub server_version: String,
    /// Protocol version spoken.
    pub protocol_version: u32,
    /// Who the server takes the caller for; equal to the identity's principal.
    pub principal: Principal,
    /// Largest message it accepts.
    pub max_message_bytes: u64,
    /// Largest dataset upload it accepts.
    pub max_upload_bytes: u64,
    /// Largest model archive it accepts.
    pub max_model_bytes: u64,
    /// Its clock; untrusted below freshness level `unlock`.
    pub time_unix_ms: u64,
    /// Whether this client had never seen this ledger before: its past is then taken on trust.
    pub first_contact: bool,
}

impl UnappraisedSession {
    /// Verifies this session's evidence, and the evidence of receipts fetched over it, by these roots and no others;
    /// by default the vendors' own ([`TrustAnchors::bundled`]).
    pub fn with_trust_anchors(self, anchors: TrustAnchors) -> Self {
        Self { anchors, ..self }
    }

    /// Asks for evidence with a fresh nonce, verifies it, appraises it under `policy`, says hello, and
    /// checks that the server's ledger continues the one in `heads`. Only then is there a peer.
    ///
    /// # Guarantee
    /// The evidence was made for this nonce on this TLS session by whoever holds this server key, with
    /// the runtime claims that were appraised. The ledger head is signed by the key in those claims.
    /// # Errors
    /// [`ClientError::EvidenceRefused`], [`ClientError::AppraisalRefused`], [`ClientError::Rollback`] and
    /// others; the session is closed then, and nothing but the nonce has left.
    pub async fn appraise(
        self,
        policy: &AppraisalPolicy,
        now_unix_ms: u64,
        heads: &HeadMemory,
    ) -> Result<AppraisedPeer, ClientError> {
        let link = self.link.clone();
        let outcome = self.appraise_session(policy, now_unix_ms, heads).await;
        if outcome.is_err() {
            link.end();
        }
        outcome
    }

    async fn appraise_session(
        self,
        policy: &AppraisalPolicy,
        now_unix_ms: u64,
        heads: &HeadMemory,
    ) -> Result<AppraisedPeer, ClientError> {
        let attestation = self.attest(policy, now_unix_ms).await?;
        let ledger = LedgerId::from_bytes(attestation.runtime_claims().ledger_id);
        // Read before the server is asked: another session that moves the memory on meanwhile is no rollback.
        let known = heads.known(ledger)?;
        let (mut server, head) = self.hello(attestation.runtime_claims()).await?;
        server.first_contact = known.is_none();
        let Self {
            link,
            options,
            anchors,
            ..
        } = self;
        let shared = Shared {
            link,
            options,
            policy: policy.clone(),
            anchors,
            attestation,
            server,
            heads: heads.clone(),
        };
        let peer = AppraisedPeer {
            shared: Arc::new(shared),
        };
        peer.follow_ledger(known, head).await?;
        Ok(peer)
    }

    async fn attest(
        &self,
        policy: &AppraisalPolicy,
        now_unix_ms: u64,
    ) -> Result<AttestationResult, ClientError> {
        let nonce = random_nonce()?;
        let request = AttestRequest {
            nonce: nonce.to_vec(),
        };
        let mut client = client(&self.link, BEFORE_APPRAISAL_BYTES);
        let reply = answer(
            &self.link,
            "Attest",
            self.options.call_timeout,
            client.attest(request),
        )
        .await?;
        let evidence = Evidence {
            media_type: reply.media_type,
            bytes: reply.evidence,
        };
        let verified = verify(&evidence, &self.anchors, now_unix_ms)?;
        let claims = RuntimeClaims::from_bytes(&reply.runtime_claims)?;
        let binding = Binding {
            nonce,
            exporter: self.facts.exporter,
            spki_sha256: self.facts.spki_sha256,
            role: Role::Server,
            claims_sha256: Sha256::digest(&reply.runtime_claims).into(),
        };
        Ok(verified.appraise(policy, &binding, &claims)?)
    }

    async fn hello(&self, claims: &RuntimeClaims) -> Result<(ServerInfo, SignedHead), ClientError> {
        let request = HelloRequest {
            protocol_version: PROTOCOL_VERSION,
        };
        let mut client = client(&self.link, BEFORE_APPRAISAL_BYTES);
        let reply = answer(
            &self.link,
            "Hello",
            self.options.call_timeout,
            client.hello(request),
        )
        .await?;
        if reply.protocol_version != PROTOCOL_VERSION {
            return Err(ClientError::ProtocolVersion {
                ours: PROTOCOL_VERSION,
                theirs: reply.protocol_version,
            });
        }
        let principal = Principal::from_bytes(array("Hello", "principal", &reply.principal)?);
        if principal != self.principal {
            let what = format!("it takes this client for {principal}, who is {}", self.principal);
            return Err(ClientError::protocol("Hello", what));
        }
        let head = crate::ledger::signed_head("Hello", reply.ledger_head)?;
        let bound = LedgerPublicKey::from_bytes(claims.ledger_public_key);
        crate::ledger::check_head(&head, &bound, claims)?;
        let server = ServerInfo {
            server_version: claims.server_version.clone(),
            protocol_version: reply.protocol_version,
            principal,
            max_message_bytes: reply.max_message_bytes,
            max_upload_bytes: reply.max_upload_bytes,
            max_model_bytes: reply.max_model_bytes,
            time_unix_ms: reply.time_unix_ms,
            first_contact: false,
        };
        Ok((server, head))
    }
}

impl AppraisedPeer {
    /// What was attested.
    pub fn attestation(&self) -> &AttestationResult {
        &self.shared.attestation
    }

    /// What the server said about itself.
    pub fn server(&self) -> &ServerInfo {
        &self.shared.server
    }

    /// This client's principal.
    pub fn principal(&self) -> Principal {
        self.shared.server.principal
    }

    /// Whether the session is over. A `false` may be out of date by the time it is read.
    pub fn has_ended(&self) -> bool {
        self.shared.link.has_ended()
    }

    /// Ends the session, for every clone.
    pub fn close(&self) {
        self.shared.link.end();
    }

    pub(crate) fn heads(&self) -> &HeadMemory {
        &self.shared.heads
    }

    /// The policy this peer was appraised under.
    pub fn policy(&self) -> &AppraisalPolicy {
        &self.shared.policy
    }

    /// The roots its evidence was verified by.
    pub fn trust_anchors(&self) -> &TrustAnchors {
        &self.shared.anchors
    }

    pub(crate) fn client(&self) -> BastionClient<Link> {
        client(&self.shared.link, MAX_REPLY_BYTES)
    }

    pub(crate) fn call_timeout(&self) -> Duration {
        self.shared.options.call_timeout
    }

    /// Largest piece of a streamed upload.
    pub(crate) fn chunk_bytes(&self) -> usize {
        let most = usize::try_from(self.shared.server.max_message_bytes).unwrap_or(usize::MAX);
        CHUNK_BYTES
            .min(most.saturating_sub(MESSAGE_OVERHEAD_BYTES))
            .max(1)
    }

    /// Waits for the one answer of a call.
    pub(crate) async fn answer<T>(
        &self,
        call: &'static str,
        reply: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ClientError> {
        answer(&self.shared.link, call, self.shared.options.call_timeout, reply).await
    }

    /// Turns a status of a stream into an error; a broken link ends the session for every clone.
    pub(crate) fn refusal(&self, call: &'static str, status: &Status) -> ClientError {
        refusal(&self.shared.link, call, status)
    }

    pub(crate) fn ledger_key(&self) -> LedgerPublicKey {
        LedgerPublicKey::from_bytes(self.shared.attestation.runtime_claims().ledger_public_key)
    }
}

fn client(link: &Link, most_bytes: usize) -> BastionClient<Link> {
    let origin = http::Uri::from_static("https://bastionai.invalid");
    BastionClient::with_origin(link.clone(), origin)
        .max_decoding_message_size(most_bytes)
        .max_encoding_message_size(usize::MAX)
}

async fn answer<T>(
    link: &Link,
    call: &'static str,
    limit: Duration,
    reply: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, ClientError> {
    match tokio::time::timeout(limit, reply).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(refusal(link, call, &status)),
        Err(_) => Err(ClientError::TimedOut {
            call,
            seconds: limit.as_secs(),
        }),
    }
}

fn refusal(link: &Link, call: &'static str, status: &Status) -> ClientError {
    if is_transport_failure(status) {
        // Whatever broke, nobody can say what the other end is now: start over.
        link.end();
    }
    ClientError::from_status(call, status)
}

fn random_nonce() -> Result<[u8; 32], ClientError> {
    let mut nonce = [0; 32];
    let drawn = SystemRandom::new().fill(&mut nonce);
    drawn.map_err(|_| ClientError::Setup("the system's random number generator failed".into()))?;
    Ok(nonce)
}

/// Evidence with its chain is some tens of KiB; nobody unappraised may make us hold more.
const BEFORE_APPRAISAL_BYTES: usize = 1024 * 1024;
/// Lists and price quotes; weights come in chunks.
const MAX_REPLY_BYTES: usize = 64 * 1024 * 1024;
/// Size of a piece of a streamed upload.
const CHUNK_BYTES: usize = 1024 * 1024;
/// Room for the field tags of a message.
const MESSAGE_OVERHEAD_BYTES: usize = 4096;
