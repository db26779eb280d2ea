//! TLS as this client speaks it: version 1.3 only, mutual, ALPN `h2`, one session, nothing resumed (A3).
//!
//! The server's certificate is self-signed with a key made at its boot; no authority vouches for it.
//! The handshake proves that the other end holds the key; *whose* key it is, evidence bound to this
//! session's exporter must say before anything is sent.

use crate::identity::Identity;
use bastionai_attestation::binding::EXPORTER_LABEL;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring as provider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, PeerIncompatible,
};
use rustls::{ProtocolVersion, SignatureScheme};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use x509_parser::oid_registry::OID_SIG_ED25519;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What this end knows of an established session, for the binding of evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionFacts {
    /// RFC 9266 `tls-exporter` value.
    pub(crate) exporter: [u8; 32],
    /// SHA-256 of the server certificate's SubjectPublicKeyInfo.
    pub(crate) spki_sha256: [u8; 32],
}

/// The TLS configuration for one session of `identity`.
pub(crate) fn client_config(identity: &Identity) -> Result<ClientConfig, crate::ClientError> {
    let (certificate, key) = identity.certificate()?;
    let provider = Arc::new(provider::default_provider());
    let verifier = SelfSignedEd25519 {
        algorithms: provider.signature_verification_algorithms,
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(setup)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(vec![certificate], key)
        .map_err(setup)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // The name is not checked, so it need not be told to the network either.
    config.enable_sni = false;
    Ok(config)
}

/// A name for rustls' interface; never sent and never compared.
pub(crate) fn placeholder_name() -> ServerName<'static> {
    ServerName::try_from("bastionai.invalid").expect("a valid DNS name")
}

/// Reads what evidence must be bound to from an established connection.
pub(crate) fn session_facts(connection: &ClientConnection) -> Result<SessionFacts, Error> {
    if connection.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
        return Err(PeerIncompatible::SupportedVersionsExtensionRequired.into());
    }
    if connection.alpn_protocol() != Some(b"h2") {
        return Err(Error::NoApplicationProtocol);
    }
    let certificate = connection
        .peer_certificates()
        .and_then(<[_]>::first)
        .ok_or(Error::NoCertificatesPresented)?;
    let spki_sha256 = self_signed_ed25519(certificate).map_err(Error::InvalidCertificate)?;
    let exporter = connection.export_keying_material([0u8; 32], EXPORTER_LABEL, Some(&[]))?;
    Ok(SessionFacts {
        exporter,
        spki_sha256,
    })
}

fn setup(error: Error) -> crate::ClientError {
    crate::ClientError::Setup(error.to_string())
}

/// Parses a certificate, checks that it signed itself with Ed25519, returns the SHA-256 of its SPKI.
fn self_signed_ed25519(certificate: &CertificateDer<'_>) -> Result<[u8; 32], CertificateError> {
    let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    if !rest.is_empty() {
        return Err(CertificateError::BadEncoding);
    }
    // The parser is lenient about what the signature does not cover; this pins the rest.
    let tail = certificate.len().checked_sub(SIGNATURE_HEADER.len() + 64);
    if !tail.is_some_and(|tail| certificate[tail..].starts_with(&SIGNATURE_HEADER)) {
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

/// Accepts any well-formed self-signed Ed25519 certificate whose holder signs the handshake.
#[derive(Debug)]
struct SelfSignedEd25519 {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for SelfSignedEd25519 {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !intermediates.is_empty() {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        // Name and validity dates say nothing here: the key lives for one boot and evidence vouches for it.
        self_signed_ed25519(end_entity).map_err(Error::InvalidCertificate)?;
        Ok(ServerCertVerified::assertion())
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

/// RFC 8410: AlgorithmIdentifier of Ed25519, then a BIT STRING of 64 bytes without unused bits.
const SIGNATURE_HEADER: [u8; 10] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x41, 0x00];

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(algorithm: &'static rcgen::SignatureAlgorithm) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        rcgen::CertificateParams::default()
            .self_signed(&key)
            .unwrap()
            .der()
            .clone()
    }

    #[test]
    fn every_flipped_byte_of_a_certificate_is_refused() {
        let good = certificate(&rcgen::PKCS_ED25519);
        assert!(self_signed_ed25519(&good).is_ok());
        for at in 0..good.len() {
            let mut bytes = good.to_vec();
            bytes[at] ^= 1;
            let around = hex::encode(&good[at.saturating_sub(8)..(at + 8).min(good.len())]);
            let refused = self_signed_ed25519(&CertificateDer::from(bytes)).is_err();
            assert!(refused, "byte {at} of {} in {around}", good.len());
        }
    }

    #[test]
    fn other_key_types_and_trailing_bytes_are_refused() {
        assert!(self_signed_ed25519(&certificate(&rcgen::PKCS_ECDSA_P256_SHA256)).is_err());
        let mut bytes = certificate(&rcgen::PKCS_ED25519).to_vec();
        bytes.push(0);
        assert!(self_signed_ed25519(&CertificateDer::from(bytes)).is_err());
    }

    #[test]
    fn a_certificate_signed_by_another_key_is_refused() {
        let issuer_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let issuer = rcgen::Issuer::new(rcgen::CertificateParams::default(), issuer_key);
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let signed = rcgen::CertificateParams::default()
            .signed_by(&key, &issuer)
            .unwrap();
        assert_eq!(
            self_signed_ed25519(signed.der()),
            Err(CertificateError::BadSignature)
        );
    }

    #[test]
    fn nothing_is_resumed_or_sent_early() {
        let config = client_config(&Identity::generate().unwrap()).unwrap();
        assert!(!config.enable_early_data && !config.enable_sni);
        assert_eq!(config.alpn_protocols, [b"h2".to_vec()]);
        assert!(format!("{:?}", config.resumption).contains("NoClientSessionStorage"));
    }
}
