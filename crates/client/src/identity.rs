//! Who a client is: an Ed25519 key in a file that nobody else can read.
//!
//! The principal, the name by which owners allow somebody to train, is the SHA-256 of the public key's
//! SubjectPublicKeyInfo. There is no registration and no authority: whoever holds the key is the principal.

use bastionai_ledger::id::Principal;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519, PublicKeyData, SigningKey};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// An Ed25519 key pair. Its `Debug` shows the principal only.
pub struct Identity {
    key: KeyPair,
    principal: Principal,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A key is there already; overwriting it would lose a principal for good.
    #[error("{} exists already; choose another path, or move the file away if the identity is no longer needed", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read or written.
    #[error("identity {}: {source}; make one with `bastionai keygen`", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// Others on this machine could read the key.
    #[error("identity {} can be read by others (mode {mode:03o}); run `chmod 600` on it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not an Ed25519 private key.
    #[error("identity {} is not a PKCS#8 PEM file with an Ed25519 private key; make one with `bastionai keygen`", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The operating system gave no key or certificate.
    #[error("cannot make a key or certificate: {0}")]
    Generate(String),
}

impl Identity {
    /// A fresh key.
    ///
    /// # Errors
    /// [`IdentityError::Generate`] if the system's random number generator fails.
    pub fn generate() -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(|e| IdentityError::Generate(e.to_string()))?;
        Ok(Self::from_key(key))
    }

    /// Reads a key that [`Identity::save`] or any PKCS#8 tool wrote.
    ///
    /// # Errors
    /// [`IdentityError`] if the file is missing, readable by others, or holds no Ed25519 key.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, IdentityError> {
        let path = path.as_ref();
        let file_error = |source| IdentityError::File {
            path: path.to_owned(),
            source,
        };
        let file = std::fs::File::open(path).map_err(file_error)?;
        refuse_exposed(path, &file)?;
        let mut pem = Zeroizing::new(String::new());
        file.take(MAX_KEY_BYTES)
            .read_to_string(&mut pem)
            .map_err(file_error)?;
        let malformed = |_| IdentityError::Malformed {
            path: path.to_owned(),
        };
        KeyPair::from_pkcs8_pem_and_sign_algo(&pem, &PKCS_ED25519)
            .map_err(malformed)
            .map(Self::from_key)
    }

    /// Writes the key to a new file with mode 0600, durably.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] if anything is at `path`: nothing is ever overwritten.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), IdentityError> {
        let path = path.as_ref();
        let pem = Zeroizing::new(self.key.serialize_pem());
        write_new_private_file(path, pem.as_bytes()).map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => IdentityError::Exists {
                path: path.to_owned(),
            },
            _ => IdentityError::File {
                path: path.to_owned(),
                source,
            },
        })
    }

    /// The name under which servers and owners know this key.
    pub fn principal(&self) -> Principal {
        self.principal
    }

    /// The Ed25519 public key.
    pub fn public_key(&self) -> [u8; 32] {
        let bytes = self.key.der_bytes();
        bytes.try_into().expect("an Ed25519 public key has 32 bytes")
    }

    /// Signs `message`. What is signed says what it is: TLS and envelopes (DSSE) each begin in a way of their own.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.key.sign(message).expect("Ed25519 signs any message");
        signature.try_into().expect("an Ed25519 signature has 64 bytes")
    }

    /// A self-signed certificate and its key, for one TLS session.
    pub(crate) fn certificate(
        &self,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), IdentityError> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        parameters
            .distinguished_name
            .push(DnType::CommonName, "bastionai client");
        let certificate = parameters
            .self_signed(&self.key)
            .map_err(|e| IdentityError::Generate(e.to_string()))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        Ok((certificate.der().clone(), key))
    }

    fn from_key(key: KeyPair) -> Self {
        let principal = Principal::from_bytes(Sha256::digest(key.subject_public_key_info()).into());
        Self { key, principal }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.principal)
    }
}

#[cfg(unix)]
fn refuse_exposed(path: &Path, file: &std::fs::File) -> Result<(), IdentityError> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = file.metadata().map_err(|source| IdentityError::File {
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

#[cfg(not(unix))]
fn refuse_exposed(_path: &Path, _file: &std::fs::File) -> Result<(), IdentityError> {
    Ok(())
}

fn write_new_private_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        // A torn key file would block the path for good.
        let _ = std::fs::remove_file(path);
    }
    written
}

/// Far above any PKCS#8 Ed25519 file.
const MAX_KEY_BYTES: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_file_and_keeps_its_principal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("me.pem");
        let identity = Identity::generate().unwrap();
        identity.save(&path).unwrap();
        assert_eq!(Identity::load(&path).unwrap().principal(), identity.principal());
    }

    #[test]
    fn the_principal_is_the_digest_of_the_certificates_public_key_info() {
        let identity = Identity::generate().unwrap();
        let (certificate, _) = identity.certificate().unwrap();
        let parsed = rustls::server::ParsedCertificate::try_from(&certificate).unwrap();
        let digest = Sha256::digest(parsed.subject_public_key_info());
        assert_eq!(identity.principal().as_bytes()[..], digest[..]);
    }

    #[test]
    fn signatures_verify_under_the_public_key() {
        let identity = Identity::generate().unwrap();
        let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, identity.public_key());
        let signature = identity.sign(b"message");
        assert!(key.verify(b"message", &signature).is_ok());
        assert!(key.verify(b"massage", &signature).is_err());
    }

    #[test]
    fn an_existing_file_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("me.pem");
        std::fs::write(&path, "precious").unwrap();
        let error = Identity::generate().unwrap().save(&path).unwrap_err();
        assert!(matches!(error, IdentityError::Exists { .. }));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[cfg(unix)]
    #[test]
    fn keys_are_private_files_and_exposed_ones_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("me.pem");
        Identity::generate().unwrap().save(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            Identity::load(&path),
            Err(IdentityError::Exposed { mode: 0o640, .. })
        ));
    }

    #[test]
    fn other_files_and_other_keys_are_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .unwrap()
            .serialize_pem();
        for (name, content) in [("text", "hello"), ("empty", ""), ("p256", other.as_str())] {
            let path = folder.path().join(name);
            write_new_private_file(&path, content.as_bytes()).unwrap();
            let error = Identity::load(&path).unwrap_err();
            assert!(
                matches!(error, IdentityError::Malformed { .. }),
                "{name}: {error}"
            );
            assert!(error.to_string().contains("keygen"));
        }
        assert!(matches!(
            Identity::load(folder.path().join("absent")),
            Err(IdentityError::File { .. })
        ));
    }

    #[test]
    fn debug_shows_no_key() {
        let identity = Identity::generate().unwrap();
        assert_eq!(
            format!("{identity:?}"),
            format!("Identity({})", identity.principal())
        );
    }
}
