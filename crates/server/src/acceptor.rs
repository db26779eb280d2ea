//! Accepts connections: limits, TLS handshake in time, and what is known of the peer for the calls on it.
//!
//! tonic exposes neither exporter nor certificate of a connection (rule A3), so the TLS accept loop is ours:
//! each connection carries its [`Peer`], made once after the handshake, into every request's extensions.

use crate::log::Event;
use crate::operations::OpenSession;
use crate::tls;
use bastionai_ledger::Principal;
use rustls::ServerConfig;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// What the handshake established about the other end of one connection.
#[derive(Clone)]
pub(crate) struct Peer {
    /// Who it is.
    pub(crate) principal: Principal,
    /// RFC 9266 channel binding of this very connection.
    pub(crate) exporter: [u8; 32],
    attested: Arc<AtomicBool>,
}

impl Peer {
    /// Evidence for this connection was handed out.
    pub(crate) fn mark_attested(&self) {
        self.attested.store(true, Ordering::Release);
    }

    /// Whether evidence for this connection was handed out.
    pub(crate) fn is_attested(&self) -> bool {
        self.attested.load(Ordering::Acquire)
    }
}

/// One accepted connection; holds its place among `limits.connections` until it is dropped.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    /// Ends the connection; `None` once evidence was asked for.
    attest_by: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
    _open: OpenSession,
}

/// Bounds of the accept loop.
pub(crate) struct AcceptLimits {
    pub(crate) connections: u32,
    pub(crate) handshake_timeout: Duration,
    pub(crate) attest_timeout: Duration,
}

/// Accepts until the returned stream is dropped.
pub(crate) fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    limits: AcceptLimits,
) -> ReceiverStream<Result<Connection, io::Error>> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(accept_loop(listener, TlsAcceptor::from(config), limits, sender));
    ReceiverStream::new(receiver)
}

async fn accept_loop(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    limits: AcceptLimits,
    sender: mpsc::Sender<Result<Connection, io::Error>>,
) {
    let places = Arc::new(Semaphore::new(limits.connections as usize));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        let Ok((stream, address)) = accepted else {
            // Out of file descriptors, or a peer that was gone at once: breathe, don't spin.
            Event::AcceptFailed.emit();
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            Event::ConnectionRefused {
                address,
                why: "connection limit",
            }
            .emit();
            continue;
        };
        tokio::spawn(handshake(
            stream,
            address,
            acceptor.clone(),
            (limits.handshake_timeout, limits.attest_timeout),
            place,
            sender.clone(),
        ));
    }
}

async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    (timeout, attest_timeout): (Duration, Duration),
    place: OwnedSemaphorePermit,
    sender: mpsc::Sender<Result<Connection, io::Error>>,
) {
    let refused = |why| Event::ConnectionRefused { address, why }.emit();
    if stream.set_nodelay(true).is_err() {
        return refused("peer is gone");
    }
    let stream = match tokio::time::timeout(timeout, acceptor.accept(stream)).await {
        Err(_) => return refused("handshake timeout"),
        Ok(Err(_)) => return refused("handshake failed"),
        Ok(Ok(stream)) => stream,
    };
    match peer_of(&stream) {
        Err(why) => refused(why),
        Ok(peer) => {
            Event::ConnectionAccepted {
                address,
                principal: peer.principal,
            }
            .emit();
            // The receiver is gone only when the server stops; then the connection is dropped, as it should be.
            let _ = sender
                .send(Ok(Connection {
                    stream,
                    peer,
                    attest_by: Some(Box::pin(tokio::time::sleep(attest_timeout))),
                    _place: place,
                    _open: OpenSession::new(),
                }))
                .await;
        }
    }
}

fn peer_of(stream: &TlsStream<TcpStream>) -> Result<Peer, &'static str> {
    let connection = stream.get_ref().1;
    if connection.alpn_protocol() != Some(tls::ALPN) {
        return Err("ALPN is not h2");
    }
    let principal = tls::client_principal(connection).map_err(|_| "client certificate")?;
    let exporter = tls::exporter(connection).map_err(|_| "no exporter")?;
    Ok(Peer {
        principal: Principal::from_bytes(principal),
        exporter,
        attested: Arc::default(),
    })
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.peer.is_attested() {
            self.attest_by = None;
        }
        if let Some(attest_by) = &mut self.attest_by
            && attest_by.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
