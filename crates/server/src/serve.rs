//! Start, serve, drain, stop.

use crate::acceptor::{AcceptLimits, accept};
use crate::attester;
use crate::boot::{Boot, BootError};
use crate::config::{Config, ConfigError, RootKeyKind};
use crate::log::{Event, Hex};
use crate::operations::{CountCalls, Operations};
use crate::root_key::{self, RootKeyError};
use crate::rpc::Service;
use crate::runs::resume;
use crate::state::{self, now_unix_ms};
use crate::tls::{IdentityError, ServerIdentity};
use bastionai_attestation::Attester;
use bastionai_vault::{OpenError, Vault, VaultConfig};
use bastionai_wire::v1::bastion_server::BastionServer;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Why the server did not start or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address.
    #[error("cannot listen on {address}: {source}; stop what listens there or choose another `listen`")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The address of probes and metrics.
    #[error(
        "cannot listen on operations.listen = {address}: {source}; stop what listens there or choose another"
    )]
    Operations {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The data directory.
    #[error("cannot make the data directory {path}: {source}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The root key.
    #[error(transparent)]
    RootKey(#[from] RootKeyError),
    /// The vault.
    #[error("cannot open the vault: {0}")]
    Vault(#[from] OpenError),
    /// The boot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// TLS.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The transport failed while serving.
    #[error("the transport failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// A task of the server panicked; the panic's own words may quote data (rule G4).
    #[error("a task of the server panicked; the log says where")]
    Panicked,
}

impl From<tokio::task::JoinError> for ServeError {
    fn from(_: tokio::task::JoinError) -> Self {
        Self::Panicked
    }
}

/// Hardens this process, binds, boots and serves until `shutdown`, then drains.
///
/// # Errors
/// [`ServeError`].
pub async fn serve(config: Config, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
    crate::harden_process();
    Server::start(config).await?.run_until(shutdown).await
}

/// A server that has booted and listens, but does not answer yet.
pub struct Server {
    shared: Arc<state::Server>,
    listener: TcpListener,
    address: SocketAddr,
    _operations: Option<Operations>,
}

impl Server {
    /// Checks the configuration, finds the platform it names, listens, opens the vault, boots.
    ///
    /// # Errors
    /// [`ServeError`]; nothing was entered in the ledger unless everything before that worked.
    pub async fn start(config: Config) -> Result<Self, ServeError> {
        config.check()?;
        let (kind, places) = (config.attester, config.attestation.clone());
        let opened = tokio::task::spawn_blocking(move || attester::open(kind, &places)).await?;
        Self::start_attested_by(config, opened.map_err(BootError::from)?.into()).await
    }

    /// The same with an attester of the caller's in place of the one that the configuration names: for platforms of
    /// tests. What the claims say of it follows from the evidence that it makes.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn start_attested_by(config: Config, attester: Arc<dyn Attester>) -> Result<Self, ServeError> {
        config.check()?;
        let address = config.listen;
        let listen_error = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let operations = listen_for_operations(config.operations.listen).await?;
        let shared = Arc::new(tokio::task::spawn_blocking(move || boot(config, attester)).await??);
        if let Some(operations) = &operations {
            operations.serve(&shared);
        }
        let head = shared.vault.head();
        Event::Listening {
            address,
            boot: Hex(shared.boot.id.as_bytes()),
            ledger: Hex(head.ledger.as_bytes()),
            entries: head.sequence,
        }
        .emit();
        resume::take_up_open_runs(&shared);
        Ok(Self {
            shared,
            listener,
            address,
            _operations: operations,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` resolves; then refuses new work, has running trainers hand over a checkpoint within
    /// `trainer.drain_timeout_ms`, and closes. The next boot goes on with their runs and with those in the queue.
    ///
    /// # Errors
    /// [`ServeError::Transport`].
    pub async fn run_until(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
        let measured = Arc::clone(&self.shared);
        // A thread of its own: a server that stops at once does not wait for it.
        std::thread::spawn(move || measured.measure_throughput());
        let (close, closed) = oneshot::channel::<()>();
        let mut transport = tokio::spawn(transport(Arc::clone(&self.shared), self.listener, closed));
        tokio::select! {
            ended = &mut transport => return Ok(ended??),
            () = shutdown => {}
        }
        Event::Draining.emit();
        self.shared.start_draining();
        self.shared.runs.drain().await;
        // The transport may have stopped on its own meanwhile.
        let _ = close.send(());
        match tokio::time::timeout(CLOSE_TIMEOUT, &mut transport).await {
            Ok(ended) => ended??,
            Err(_) => transport.abort(),
        }
        Event::Stopped.emit();
        Ok(())
    }
}

async fn listen_for_operations(address: Option<SocketAddr>) -> Result<Option<Operations>, ServeError> {
    let Some(address) = address else { return Ok(None) };
    let listening = Operations::listen(address).await;
    let operations = listening.map_err(|source| ServeError::Operations { address, source })?;
    Event::OperationsListening {
        address: operations.address,
    }
    .emit();
    Ok(Some(operations))
}

fn boot(config: Config, attester: Arc<dyn Attester>) -> Result<state::Server, ServeError> {
    create_data_dir(&config)?;
    let root = match config.root_key {
        RootKeyKind::InsecureFile => match &config.root_key_file {
            Some(path) => root_key::load(path)?,
            None => root_key::load_or_create(&config.data_dir)?,
        },
    };
    let now_unix_ms = now_unix_ms();
    let vault = Vault::open(&config.data_dir, &root, VaultConfig::default(), now_unix_ms)?;
    let identity = ServerIdentity::generate()?;
    let boot = Boot::start(&config, &vault, attester, now_unix_ms)?;
    let server = state::Server::new(config, vault, boot, identity);
    Event::TrainerMemory {
        bytes: server.trainer_memory_bytes,
    }
    .emit();
    Ok(server)
}

fn create_data_dir(config: &Config) -> Result<(), ServeError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    let path = config.data_dir.clone();
    builder
        .create(&path)
        .map_err(|source| ServeError::DataDir { path, source })
}

async fn transport(
    server: Arc<state::Server>,
    listener: TcpListener,
    closed: oneshot::Receiver<()>,
) -> Result<(), tonic::transport::Error> {
    let limits = server.config.limits.clone();
    let accept_limits = AcceptLimits {
        connections: limits.connections,
        handshake_timeout: limits.handshake_timeout(),
        attest_timeout: Duration::from_millis(limits.attest_timeout_ms),
    };
    let connections = accept(listener, Arc::clone(&server.identity.config), accept_limits);
    let service = BastionServer::new(Service::new(server))
        .max_decoding_message_size(usize::try_from(limits.message_bytes).unwrap_or(usize::MAX));
    tonic::transport::Server::builder()
        .layer(CountCalls)
        .max_concurrent_streams(limits.calls_per_connection)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES * 2)
        .serve_with_incoming_shutdown(service, connections, async {
            // Dropped or sent: either way it is time to stop.
            let _ = closed.await;
        })
        .await
}

/// A client that is gone is noticed after two of these.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Calls still open after the drain (idle watchers, abandoned uploads) get this long.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
const WINDOW_BYTES: u32 = 4 << 20;
const MAX_HEADER_BYTES: u32 = 64 << 10;
