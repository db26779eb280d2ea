//! A client without manners: the generated stub over a TLS session of its own, no local checks.

use bastionai_wire::v1::bastion_client::BastionClient;
use bastionai_wire::v1::{self, UploadDatasetRequest, upload_dataset_request::Part};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

pub type Raw = BastionClient<Channel>;

/// A connected client that has asked for evidence, and believed it unseen.
pub async fn attested(address: SocketAddr) -> Raw {
    let mut client = unattested(address).await;
    client
        .attest(v1::AttestRequest { nonce: vec![7; 32] })
        .await
        .unwrap();
    client
}

/// A connected client that has said nothing yet.
pub async fn unattested(address: SocketAddr) -> Raw {
    let connector = TlsConnector::from(Arc::new(tls(&rcgen::PKCS_ED25519, b"h2")));
    let connect = tower_connector(move |_: http::Uri| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("bastionai").unwrap();
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    let channel = Endpoint::from_static("http://bastionai.invalid")
        .connect_with_connector(connect)
        .await
        .unwrap();
    BastionClient::new(channel)
}

/// TLS with a fresh client certificate of this kind and this application protocol; any server will do.
pub fn tls(algorithm: &'static rcgen::SignatureAlgorithm, alpn: &[u8]) -> ClientConfig {
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let certificate = rcgen::CertificateParams::new(vec![])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = anonymous_tls()
        .with_client_auth_cert(vec![certificate.der().clone()], private)
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

pub fn anonymous_tls() -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
}

/// The header of an upload.
pub fn header(name: &str, contract_json: &str, policy: v1::Policy) -> UploadDatasetRequest {
    let kind = v1::DatasetKind::Private.into();
    let contract_json = contract_json.as_bytes().to_vec();
    part(Part::Header(v1::UploadHeader {
        name: name.into(),
        kind,
        contract_json,
        policy: Some(policy),
    }))
}

pub fn policy() -> v1::Policy {
    v1::Policy {
        lifetime_epsilon: "6.0".into(),
        lifetime_delta: "1e-5".into(),
        anyone_may_train: true,
        scientist_receives: true,
        ..Default::default()
    }
}

pub fn records(rows: u32, columns: Vec<Vec<u8>>) -> UploadDatasetRequest {
    part(Part::Records(v1::RecordBatch { rows, columns }))
}

pub fn finish(rows: u64) -> UploadDatasetRequest {
    part(Part::Finish(v1::UploadFinish { rows }))
}

fn part(part: Part) -> UploadDatasetRequest {
    UploadDatasetRequest { part: Some(part) }
}

/// The machine-readable reason of a status.
pub fn reason(status: &tonic::Status) -> String {
    status
        .metadata()
        .get("bastionai-reason")
        .map(|value| value.to_str().unwrap().to_owned())
        .unwrap_or_default()
}

#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// A function as a connector.
#[derive(Clone)]
struct Connector<F>(F);

fn tower_connector<F>(connect: F) -> Connector<F> {
    Connector(connect)
}

impl<F, Fut, T> tower_service::Service<http::Uri> for Connector<F>
where
    F: FnMut(http::Uri) -> Fut,
    Fut: Future<Output = std::io::Result<T>>,
{
    type Response = T;
    type Error = std::io::Error;
    type Future = Fut;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: http::Uri) -> Fut {
        (self.0)(uri)
    }
}
