//! A small server for the client's tests: honest by default, and able to misbehave in one way at a time.
//! (End-to-end tests with the real server live in `crates/server/tests`.)
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod ledger;
pub mod platforms;
pub mod proxy;
pub mod relay;
pub mod service;

use bastionai_attestation::binding::EXPORTER_LABEL;
use bastionai_client::{
    AppraisalPolicy, AppraisedPeer, ClientError, ConnectOptions, HeadMemory, Identity, connect,
};
use bastionai_wire::v1::{ShowLedgerRequest, bastion_server::BastionServer};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use service::{Behaviour, SessionInfo, TestService};
use sha2::{Digest, Sha256};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// A running test server; stops when dropped.
pub struct TestServer {
    pub address: String,
    pub calls: Arc<Mutex<Vec<&'static str>>>,
    pub connections: Arc<AtomicUsize>,
    pub rows_received: Arc<Mutex<u64>>,
    /// What ShowLedger was asked.
    pub asked: Arc<Mutex<Vec<ShowLedgerRequest>>>,
    tasks: Vec<tokio::task::AbortHandle>,
}

impl TestServer {
    pub async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let rows_received = Arc::new(Mutex::new(0));
        let connections = Arc::new(AtomicUsize::new(0));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let service = TestService {
            behaviour: behaviour.clone(),
            calls: calls.clone(),
            rows_received: rows_received.clone(),
            models: Arc::default(),
            asked: asked.clone(),
        };
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        let (config, spki_sha256) = tls_config(&behaviour);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let counter = connections.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                // A refused handshake is the client's affair.
                if let Ok(stream) = acceptor.accept(stream).await {
                    let accepted = Accepted::new(stream, spki_sha256);
                    sender.send(Ok::<_, std::io::Error>(accepted)).await.unwrap();
                }
            }
        });
        let serving = tokio::spawn(async move {
            let service = BastionServer::new(service).max_decoding_message_size(64 << 20);
            let server = tonic::transport::Server::builder().add_service(service);
            server
                .serve_with_incoming(ReceiverStream::new(receiver))
                .await
                .unwrap();
        });
        let tasks = vec![accepting.abort_handle(), serving.abort_handle()];
        Self {
            address,
            calls,
            connections,
            rows_received,
            asked,
            tasks,
        }
    }

    pub fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().clone()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

/// Connects and appraises as a developer would.
pub async fn open(address: &str) -> Result<AppraisedPeer, ClientError> {
    open_with(
        address,
        &AppraisalPolicy::insecure_development(),
        &HeadMemory::in_process(),
    )
    .await
}

pub async fn open_with(
    address: &str,
    policy: &AppraisalPolicy,
    heads: &HeadMemory,
) -> Result<AppraisedPeer, ClientError> {
    let identity = Identity::generate().unwrap();
    connect(address, &identity, &options())
        .await?
        .appraise(policy, 1_000, heads)
        .await
}

pub fn options() -> ConnectOptions {
    ConnectOptions {
        connect_timeout: Duration::from_secs(5),
        call_timeout: Duration::from_secs(5),
    }
}

/// A TLS stream that tells the service what its session is bound to.
pub struct Accepted {
    stream: TlsStream<TcpStream>,
    info: SessionInfo,
}

impl Accepted {
    fn new(stream: TlsStream<TcpStream>, spki_sha256: [u8; 32]) -> Self {
        let connection = stream.get_ref().1;
        let exporter = connection
            .export_keying_material([0u8; 32], EXPORTER_LABEL, None)
            .unwrap();
        let certificate = &connection.peer_certificates().unwrap()[0];
        let parsed = rustls::server::ParsedCertificate::try_from(certificate).unwrap();
        let principal = Sha256::digest(parsed.subject_public_key_info()).into();
        Self {
            info: SessionInfo {
                exporter,
                spki_sha256,
                principal,
            },
            stream,
        }
    }
}

impl Connected for Accepted {
    type ConnectInfo = SessionInfo;

    fn connect_info(&self) -> SessionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn tls_config(behaviour: &Behaviour) -> (ServerConfig, [u8; 32]) {
    let key = match &behaviour.certificate_key {
        Some(key) => rcgen::KeyPair::try_from(&key[..]).unwrap(),
        None => rcgen::KeyPair::generate_for(behaviour.certificate_algorithm).unwrap(),
    };
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    let parsed = rustls::server::ParsedCertificate::try_from(certificate.der()).unwrap();
    let spki_sha256 = Sha256::digest(parsed.subject_public_key_info()).into();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(AnyClient))
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    config.alpn_protocols = behaviour
        .alpn
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    (config, spki_sha256)
}

/// Lets any certificate in; what clients are is not what is tested here.
#[derive(Debug)]
struct AnyClient;

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
