//! TLS as this server speaks it: version 1.3 only, mutual, ALPN h2, no tickets, no resumption, no early data.
//!
//! A client *is* its Ed25519 key: any well-formed self-signed certificate is let in, and its principal is the
//! SHA-256 of the SubjectPublicKeyInfo. Who that is allowed to be is decided by the datasets' policies.
//! The server's own key is made at boot, inside the TEE, and proven by evidence, not by a CA (rules A3, A4).

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring as provider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, ServerConfig,
    SignatureScheme,
};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use x509_parser::oid_registry::OID_SIG_ED25519;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The only application protocol.
pub(crate) const ALPN: &[u8] = b"h2";
/// RFC 9266, section 2: the label of the `tls-exporter` channel binding. Its context is empty.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// The server's TLS identity of this boot.
pub(crate) struct ServerIdentity {
    /// For connections.
    pub(crate) config: Arc<ServerConfig>,
    /// SHA-256 of the server certificate's SubjectPublicKeyInfo; bound in evidence.
    pub(crate) spki_sha256: [u8; 32],
}

/// Why the server has no TLS identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Key or certificate generation failed.
    #[error("cannot make the server's TLS key and certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// The TLS library refused the configuration.
    #[error("cannot configure TLS: {0}")]
    Configure(#[from] Error),
}

impl ServerIdentity {
    /// Makes a fresh Ed25519 key and its self-signed certificate.
    pub(crate) fn generate() -> Result<Self, IdentityError> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let certificate = rcgen::CertificateParams::new(vec!["bastionai".to_owned()])?.self_signed(&key)?;
        let spki_sha256 = ed25519_self_signed(certificate.der()).map_err(Error::InvalidCertificate)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = server_config(certificate.der().clone(), private)?;
        Ok(Self {
            config: Arc::new(config),
            spki_sha256,
        })
    }
}

/// The RFC 9266 `tls-exporter` value of an established connection.
pub(crate) fn exporter(connection: &rustls::ServerConnection) -> Result<[u8; 32], Error> {
    connection.export_keying_material([0u8; 32], EXPORTER_LABEL, Some(&[]))
}

/// The principal of the client at the other end: SHA-256 of its SubjectPublicKeyInfo.
pub(crate) fn client_principal(connection: &rustls::ServerConnection) -> Result<[u8; 32], Error> {
    let certificate = connection
        .peer_certificates()
        .and_then(<[_]>::first)
        .ok_or(Error::NoCertificatesPresented)?;
    ed25519_self_signed(certificate).map_err(Error::InvalidCertificate)
}

fn server_config(
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, Error> {
    let provider = Arc::new(provider::default_provider());
    let verifier = Arc::new(SelfSignedEd25519::new(&provider));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// Parses a certificate, checks that it signed itself with Ed25519, and returns the SHA-256 of its SPKI.
fn ed25519_self_signed(certificate: &CertificateDer<'_>) -> Result<[u8; 32], CertificateError> {
    let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    if !rest.is_empty() {
        return Err(CertificateError::BadEncoding);
    }
    if parsed.public_key().algorithm.algorithm != OID_SIG_ED25519 {
        return Err(CertificateError::ApplicationVerificationFailure);
    }
    parsed
        .verify_signature(None)
        .map_err(|_| CertificateError::BadSignature)?;
    Ok(Sha256::digest(parsed.public_key().raw).into())
}

/// Lets in any well-formed self-signed Ed25519 certificate whose holder signs the handshake.
#[derive(Debug)]
struct SelfSignedEd25519 {
    algorithms: WebPkiSupportedAlgorithms,
}

impl SelfSignedEd25519 {
    fn new(provider: &CryptoProvider) -> Self {
        Self {
            algorithms: provider.signature_verification_algorithms,
        }
    }
}

impl ClientCertVerifier for SelfSignedEd25519 {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if !intermediates.is_empty() {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        // Validity dates say nothing here: the key is the identity, and policies expire on their own.
        ed25519_self_signed(end_entity).map_err(Error::InvalidCertificate)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if signature.scheme != SignatureScheme::ED25519 {
            return Err(PeerIncompatible::NoSignatureSchemesInCommon.into());
        }
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(
        algorithm: &'static rcgen::SignatureAlgorithm,
    ) -> (CertificateDer<'static>, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let certificate = rcgen::CertificateParams::new(vec![])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        (certificate.der().clone(), key)
    }

    #[test]
    fn principal_is_the_digest_of_the_public_key_info() {
        let (der, key) = certificate(&rcgen::PKCS_ED25519);
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        assert_eq!(
            ed25519_self_signed(&der).unwrap(),
            <[u8; 32]>::from(Sha256::digest(spki))
        );
    }

    #[test]
    fn other_key_types_are_refused() {
        let (der, _) = certificate(&rcgen::PKCS_ECDSA_P256_SHA256);
        assert!(ed25519_self_signed(&der).is_err());
    }

    #[test]
    fn no_flipped_byte_of_a_certificate_makes_it_another_principal() {
        let (der, _) = certificate(&rcgen::PKCS_ED25519);
        let principal = ed25519_self_signed(&der).unwrap();
        let mut accepted = 0;
        for index in 0..der.len() {
            let mut bytes = der.to_vec();
            bytes[index] ^= 1;
            if let Ok(found) = ed25519_self_signed(&CertificateDer::from(bytes)) {
                assert_eq!(found, principal, "byte {index}");
                accepted += 1;
            }
        }
        // The signature covers all but its own wrapping: algorithm identifier and unused bits.
        assert!(accepted <= 8, "{accepted} flipped bytes were accepted");
    }

    #[test]
    fn tickets_resumption_and_early_data_are_off() {
        let identity = ServerIdentity::generate().unwrap();
        assert_eq!(identity.config.send_tls13_tickets, 0);
        assert_eq!(identity.config.max_early_data_size, 0);
        assert!(!identity.config.session_storage.can_cache());
        assert_eq!(identity.config.alpn_protocols, vec![ALPN.to_vec()]);
    }
}
