//! Endorsements from a directory: certificates, revocation lists and collateral that the operator refreshes, for what the
//! platform does not hand out itself. The operator and whoever brings them are trusted with nothing: each authenticates
//! itself, and what is missing or stale is refused by the relying party. Read anew for every evidence.

use super::kinds::tdx;
use bastionai_attestation::Item;
use bastionai_attestation::envelope::{CERTIFICATE, REVOCATION_LIST};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Why the directory of endorsements cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndorsementError {
    /// It, or a file in it, cannot be read.
    #[error("attestation.endorsements: cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is none of them.
    #[error("attestation.endorsements: {path}: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not, and what would be one.
        why: String,
    },
}

/// Where endorsements are read.
#[derive(Clone, Debug)]
pub(super) struct Endorsements {
    directory: Option<PathBuf>,
}

/// What a directory holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stapled {
    /// Certificates and revocation lists.
    pub(super) chain: Vec<Item>,
    /// Intel's collateral.
    pub(super) collateral: Vec<Item>,
    /// A TD quote that somebody else's service made (Azure).
    pub(super) td_quote: Vec<Item>,
}

impl Endorsements {
    /// Reads the directory once, so that a server with an unusable one does not start.
    pub(super) fn at(directory: Option<&Path>) -> Result<Self, EndorsementError> {
        let endorsements = Self {
            directory: directory.map(Path::to_owned),
        };
        endorsements.read()?;
        Ok(endorsements)
    }

    /// What it holds now, in the order of file names. Names that begin with a dot are passed over, as mounted secrets have them.
    pub(super) fn read(&self) -> Result<Stapled, EndorsementError> {
        let mut stapled = Stapled::default();
        let Some(directory) = &self.directory else {
            return Ok(stapled);
        };
        let unreadable = |path: &Path, source| EndorsementError::Read {
            path: path.to_owned(),
            source,
        };
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(|source| unreadable(directory, source))? {
            let entry = entry.map_err(|source| unreadable(directory, source))?;
            if !entry.file_name().to_string_lossy().starts_with('.') {
                paths.push(entry.path());
            }
        }
        paths.sort();
        for path in paths {
            let mut bytes = Vec::new();
            std::fs::File::open(&path)
                .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
                .map_err(|source| unreadable(&path, source))?;
            stapled
                .add(&path, bytes)
                .map_err(|why| EndorsementError::File { path, why })?;
        }
        Ok(stapled)
    }
}

impl Stapled {
    fn add(&mut self, path: &Path, bytes: Vec<u8>) -> Result<(), String> {
        if bytes.is_empty() || bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(format!("has {} bytes, wanted 1 to {MAX_FILE_BYTES}", bytes.len()));
        }
        let extension = path.extension().and_then(|extension| extension.to_str());
        match extension.unwrap_or_default() {
            "pem" => self.add_pem(&bytes)?,
            "der" | "cer" | "crt" if is_pem(&bytes) => self.add_pem(&bytes)?,
            "crl" if is_pem(&bytes) => self.add_pem(&bytes)?,
            "der" | "cer" | "crt" => self.chain.push(Item::new(CERTIFICATE, bytes)),
            "crl" => self.chain.push(Item::new(REVOCATION_LIST, bytes)),
            "json" => self.collateral.push(Item::new(tdx::COLLATERAL, bytes)),
            "quote" => self.td_quote.push(Item::new(tdx::QUOTE, bytes)),
            other => {
                return Err(format!(
                    "extension {other:?} is none of pem, der, cer, crt (certificates), crl (revocation lists), json (Intel \
                     collateral), quote (a TD quote); move it away"
                ));
            }
        }
        for (items, what) in [
            (&self.collateral, "collateral (json)"),
            (&self.td_quote, "TD quote"),
        ] {
            if items.len() > 1 {
                return Err(format!("is the second {what}: leave the one of this machine"));
            }
        }
        Ok(())
    }

    fn add_pem(&mut self, bytes: &[u8]) -> Result<(), String> {
        let before = self.chain.len();
        for certificate in CertificateDer::pem_slice_iter(bytes) {
            let certificate = certificate.map_err(|error| error.to_string())?;
            self.chain.push(Item::new(CERTIFICATE, certificate.as_ref()));
        }
        for list in CertificateRevocationListDer::pem_slice_iter(bytes) {
            let list = list.map_err(|error| error.to_string())?;
            self.chain.push(Item::new(REVOCATION_LIST, list.as_ref()));
        }
        if self.chain.len() == before {
            return Err("holds no PEM block `CERTIFICATE` or `X509 CRL`".to_owned());
        }
        Ok(())
    }
}

fn is_pem(bytes: &[u8]) -> bool {
    bytes.starts_with(b"-----BEGIN")
}

/// Collateral has some tens of KiB, AMD's lists a few.
const MAX_FILE_BYTES: u64 = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n-----BEGIN X509 CRL-----\nBAUG\n-----END X509 CRL-----\n";

    fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(directory.path().join(name), bytes).unwrap();
        }
        directory
    }

    #[test]
    fn each_kind_of_file_becomes_its_item_in_the_order_of_names() {
        let directory = directory(&[
            ("b.der", b"\x30vcek"),
            ("a.pem", PEM.as_bytes()),
            ("c.crt", PEM.as_bytes()),
            ("d.crl", b"\x30list"),
            ("collateral.json", b"{}"),
            ("td.quote", b"quote"),
            (".hidden", b"x"),
        ]);
        let stapled = Endorsements::at(Some(directory.path())).unwrap().read().unwrap();
        let expected = Stapled {
            chain: vec![
                Item::new(CERTIFICATE, [1, 2, 3]),
                Item::new(REVOCATION_LIST, [4, 5, 6]),
                Item::new(CERTIFICATE, *b"\x30vcek"),
                Item::new(CERTIFICATE, [1, 2, 3]),
                Item::new(REVOCATION_LIST, [4, 5, 6]),
                Item::new(REVOCATION_LIST, *b"\x30list"),
            ],
            collateral: vec![Item::new(tdx::COLLATERAL, *b"{}")],
            td_quote: vec![Item::new(tdx::QUOTE, *b"quote")],
        };
        assert_eq!(stapled, expected);
    }

    #[test]
    fn a_refreshed_file_is_read_at_the_next_evidence() {
        let directory = directory(&[("collateral.json", b"old")]);
        let endorsements = Endorsements::at(Some(directory.path())).unwrap();
        std::fs::write(directory.path().join("collateral.json"), b"new").unwrap();
        assert_eq!(
            endorsements.read().unwrap().collateral,
            [Item::new(tdx::COLLATERAL, *b"new")]
        );
    }

    #[test]
    fn what_is_no_endorsement_is_refused_by_name_and_none_is_needed() {
        assert_eq!(
            Endorsements::at(None).unwrap().read().unwrap(),
            Stapled::default()
        );
        for (files, reason) in [
            (vec![("notes.txt", &b"x"[..])], "\"txt\""),
            (vec![("empty.der", b"")], "0 bytes"),
            (
                vec![("key.pem", b"-----BEGIN KEY-----\nAQID\n-----END KEY-----\n")],
                "no PEM block",
            ),
            (vec![("a.json", b"{}"), ("b.json", b"{}")], "second collateral"),
            (
                vec![("long.crl", &[0; MAX_FILE_BYTES as usize + 1])],
                "wanted 1 to",
            ),
        ] {
            let directory = directory(&files);
            let error = Endorsements::at(Some(directory.path())).unwrap_err().to_string();
            assert!(
                error.contains(reason) && error.contains(files.last().unwrap().0),
                "{error}"
            );
        }
        let missing = Endorsements::at(Some(Path::new("/nonexistent/endorsements"))).unwrap_err();
        assert!(
            missing.to_string().contains("/nonexistent/endorsements"),
            "{missing}"
        );
    }
}
