//! One TCP connection, one TLS session, one HTTP/2 connection, never another (rule A3).
//!
//! gRPC channels reconnect under their caller, and whoever answers the second time was never appraised.
//! This one cannot: it holds the sending half of a single HTTP/2 connection and no address to dial.
//! The first sign of trouble ends it for every clone.

use crate::errors::ClientError;
use crate::identity::Identity;
use crate::tls::{self, SessionFacts};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::body::Body;

/// The sending half of the one connection. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    sender: SendRequest<Body>,
    state: Arc<LinkState>,
}

#[derive(Debug)]
struct LinkState {
    ended: AtomicBool,
    driver: AbortHandle,
}

/// Why a request did not go out or no response came back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("session ended; connect and appraise again")]
    Ended,
    #[error("the connection failed")]
    Transport(#[from] hyper::Error),
}

impl Link {
    /// Connects, shakes hands, and reads off what evidence must be bound to.
    pub(crate) async fn connect(
        address: &str,
        identity: &Identity,
        timeout: Duration,
    ) -> Result<(Self, SessionFacts), ClientError> {
        let unreachable = |source| ClientError::Unreachable {
            address: address.to_owned(),
            source,
        };
        let connected = tokio::time::timeout(timeout, TcpStream::connect(address)).await;
        let stream = connected
            .map_err(|_| unreachable(timed_out("no answer")))?
            .map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let handshake = tokio::time::timeout(timeout, Self::handshake(stream, identity)).await;
        let tls_error = |source| ClientError::Tls {
            address: address.to_owned(),
            source,
        };
        handshake
            .map_err(|_| tls_error(timed_out("the handshake does not end")))?
            .map_err(|error| match error {
                HandshakeError::Io(source) => tls_error(source),
                HandshakeError::Client(error) => error,
            })
    }

    async fn handshake(
        stream: TcpStream,
        identity: &Identity,
    ) -> Result<(Self, SessionFacts), HandshakeError> {
        let config = tls::client_config(identity).map_err(HandshakeError::Client)?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(tls::placeholder_name(), stream).await?;
        let facts = tls::session_facts(stream.get_ref().1).map_err(std::io::Error::other)?;
        Ok((Self::drive(stream).await?, facts))
    }

    async fn drive(stream: TlsStream<TcpStream>) -> Result<Self, HandshakeError> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_header_list_size(MAX_HEADER_BYTES)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        let driver = tokio::spawn(async move {
            // How it ended does not matter: every call on it fails from now on.
            let _ = connection.await;
        });
        let state = LinkState {
            ended: AtomicBool::new(false),
            driver: driver.abort_handle(),
        };
        Ok(Self {
            sender,
            state: Arc::new(state),
        })
    }

    /// Closes the connection for every clone.
    pub(crate) fn end(&self) {
        self.state.ended.store(true, Ordering::SeqCst);
        self.state.driver.abort();
    }

    /// Whether the session is over.
    pub(crate) fn has_ended(&self) -> bool {
        self.state.ended.load(Ordering::SeqCst) || self.sender.is_closed()
    }
}

impl Drop for LinkState {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl tower_service::Service<http::Request<Body>> for Link {
    type Response = http::Response<Incoming>;
    type Error = LinkError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, LinkError>> + Send>>;

    /// Always ready: tonic flattens an error of this method to text, and `call` keeps its cause.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mut link = self.clone();
        Box::pin(async move {
            if link.has_ended() {
                return Err(LinkError::Ended);
            }
            link.sender.ready().await?;
            Ok(link.sender.send_request(request).await?)
        })
    }
}

enum HandshakeError {
    Io(std::io::Error),
    Client(ClientError),
}

impl From<std::io::Error> for HandshakeError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

fn timed_out(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::TimedOut, what.to_owned())
}

/// Flow control: a few megabytes in flight keep a fast link busy.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Status details travel in headers; refusals of a large graph are long.
const MAX_HEADER_BYTES: u32 = 256 * 1024;
/// A dead link is noticed within twice this, also while nothing is asked.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
