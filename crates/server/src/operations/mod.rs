//! For whoever operates the server: liveness, readiness and metrics over plain HTTP on a loopback address
//! (`operations.listen`; off unless configured). What it says is what the log says: ids and public numbers in sums.
//!
//! The listener answers while the server boots. It is written out here instead of taken from a framework: three
//! paths, no bodies, no keep-alive, nothing else understood.

mod calls;
mod exposition;
mod metrics;
mod readiness;

pub(crate) use calls::CountCalls;
pub(crate) use metrics::{Metrics, OpenSession};

use crate::state::Server;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// The listener; stops when dropped.
pub(crate) struct Operations {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    booted: Arc<OnceLock<Arc<Server>>>,
    task: JoinHandle<()>,
}

impl Operations {
    /// Listens. Until [`Operations::serve`] the server is alive and not ready.
    pub(crate) async fn listen(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let booted = Arc::default();
        Ok(Self {
            address: listener.local_addr()?,
            task: tokio::spawn(accept(listener, Arc::clone(&booted))),
            booted,
        })
    }

    /// The server has booted: from now on its state is what is shown.
    pub(crate) fn serve(&self, server: &Arc<Server>) {
        // Set once, by the one boot.
        let _ = self.booted.set(Arc::clone(server));
    }
}

impl Drop for Operations {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, booted: Arc<OnceLock<Arc<Server>>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(BREATH).await;
            continue;
        };
        // Too many at once: dropped, which a probe sees as a failure and tries again.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let booted = Arc::clone(&booted);
        tokio::spawn(async move {
            // A prober that hung up needs no answer.
            let _ = tokio::time::timeout(PATIENCE, converse(stream, &booted)).await;
            drop(place);
        });
    }
}

async fn converse(mut stream: TcpStream, booted: &OnceLock<Arc<Server>>) -> io::Result<()> {
    let Some(head) = read_head(&mut stream).await? else {
        return Ok(());
    };
    let reply = answer(&head, booted.get().cloned()).await;
    stream.write_all(reply.to_http().as_bytes()).await?;
    stream.shutdown().await
}

/// The request's head, up to its empty line; `None` if it is too long or cut off.
async fn read_head(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while head.len() < HEAD_BYTES {
        let length = stream.read(&mut part).await?;
        if length == 0 {
            return Ok(None);
        }
        head.extend_from_slice(&part[..length]);
        if head.windows(4).any(|window| window == b"\r\n\r\n") {
            return Ok(String::from_utf8(head).ok());
        }
    }
    Ok(None)
}

async fn answer(head: &str, server: Option<Arc<Server>>) -> Reply {
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Reply::text(400, "bad request\n");
    };
    if method != "GET" {
        return Reply::text(405, "only GET\n");
    }
    match path {
        "/livez" => Reply::text(200, "alive\n"),
        "/readyz" => blocking(move || readiness::of(server.as_deref()).into()).await,
        "/metrics" => blocking(move || exposition::of(server.as_deref()).into()).await,
        _ => Reply::text(404, "there are /livez, /readyz and /metrics\n"),
    }
}

/// Looks at the ledger and the disk off the async threads.
async fn blocking(work: impl FnOnce() -> Reply + Send + 'static) -> Reply {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Reply::text(500, "failed\n"))
}

/// What goes back.
struct Reply {
    status: u16,
    kind: &'static str,
    body: String,
}

impl Reply {
    fn text(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            kind: "text/plain; charset=utf-8",
            body: body.into(),
        }
    }

    fn to_http(&self) -> String {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             Connection: close\r\n\r\n{}",
            self.status,
            self.kind,
            self.body.len(),
            self.body
        )
    }
}

impl From<readiness::Readiness> for Reply {
    fn from(readiness: readiness::Readiness) -> Self {
        Self::text(
            if readiness.is_ready() { 200 } else { 503 },
            readiness.to_string(),
        )
    }
}

impl From<exposition::Exposition> for Reply {
    fn from(exposition: exposition::Exposition) -> Self {
        Self {
            status: 200,
            kind: "text/plain; version=0.0.4; charset=utf-8",
            body: exposition.into_text(),
        }
    }
}

const CONNECTIONS: usize = 16;
const HEAD_BYTES: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);
const BREATH: Duration = Duration::from_millis(20);
