//! Linux' one interface for reports of SEV-SNP and TDX guests, configfs-tsm (Documentation/ABI/testing/configfs-tsm-report).
//!
//! An entry is a directory that is made, whose attribute files the kernel makes with it: `inblob` takes what is to be
//! signed, `outblob` gives the report, `auxblob` what came with it, `provider` says which kind it is, `generation` counts
//! writes. Every request has an entry of its own; should somebody write to it nevertheless, the count shows it and the
//! request is made again.

use super::endorsements::Endorsements;
use super::kinds::{snp, tdx};
use super::{AttesterError, certificate_table, evidence};
use bastionai_attestation::{AttestError, Attester, Envelope, Evidence, Item};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Which kind of reports the kernel gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    /// AMD SEV-SNP.
    SevGuest,
    /// Intel TDX.
    TdxGuest,
}

/// What is done to the directory: the kernel's own, or a test's.
pub(super) trait Kernel: Send + Sync {
    fn make(&self, entry: &Path) -> io::Result<()>;
    /// In one write, committed when the file is closed.
    fn write(&self, attribute: &Path, bytes: &[u8]) -> io::Result<()>;
    fn read(&self, attribute: &Path) -> io::Result<Vec<u8>>;
    fn remove(&self, entry: &Path) -> io::Result<()>;
}

/// The kernel's.
pub(super) struct Configfs;

impl Kernel for Configfs {
    fn make(&self, entry: &Path) -> io::Result<()> {
        std::fs::create_dir(entry)
    }

    fn write(&self, attribute: &Path, bytes: &[u8]) -> io::Result<()> {
        std::fs::OpenOptions::new()
            .write(true)
            .open(attribute)?
            .write_all(bytes)
    }

    fn read(&self, attribute: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(attribute)?;
        file.take(MAX_BLOB_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_BLOB_BYTES {
            return Err(io::Error::other(format!("more than {MAX_BLOB_BYTES} bytes")));
        }
        Ok(bytes)
    }

    fn remove(&self, entry: &Path) -> io::Result<()> {
        std::fs::remove_dir(entry)
    }
}

/// An SEV-SNP or TDX guest.
pub(super) struct ConfigfsTsm<K> {
    kernel: K,
    directory: PathBuf,
    event_log: PathBuf,
    endorsements: Endorsements,
    provider: Provider,
}

/// What one request gave.
struct Blobs {
    report: Vec<u8>,
    /// Empty where the provider has none.
    auxiliary: Vec<u8>,
}

impl<K: Kernel> ConfigfsTsm<K> {
    /// Asks which provider there is.
    pub(super) fn open(
        kernel: K,
        directory: &Path,
        event_log: &Path,
        endorsements: Endorsements,
    ) -> Result<Self, AttesterError> {
        let entry = Entry::make(&kernel, directory)?;
        let provider = entry.provider()?;
        drop(entry);
        Ok(Self {
            kernel,
            directory: directory.to_owned(),
            event_log: event_log.to_owned(),
            endorsements,
            provider,
        })
    }

    /// Itself, if it is of this kind.
    pub(super) fn demand(self, wanted: Provider, asked: &'static str) -> Result<Self, AttesterError> {
        if self.provider == wanted {
            return Ok(self);
        }
        Err(AttesterError::OtherPlatform {
            asked,
            found: format!("the kernel's provider of reports is `{}`", self.provider.name()),
        })
    }

    fn report(&self, report_data: &[u8; 64]) -> Result<Blobs, AttesterError> {
        let mut outcome = self.report_once(report_data);
        for _ in 1..ATTEMPTS {
            if !matches!(outcome, Err(AttesterError::Race { .. })) {
                break;
            }
            outcome = self.report_once(report_data);
        }
        outcome
    }

    fn report_once(&self, report_data: &[u8; 64]) -> Result<Blobs, AttesterError> {
        let entry = Entry::make(&self.kernel, &self.directory)?;
        let provider = entry.provider()?;
        if provider != self.provider {
            return Err(AttesterError::OtherPlatform {
                asked: self.provider.name(),
                found: format!("the kernel's provider of reports became `{}`", provider.name()),
            });
        }
        let before = entry.generation()?;
        let mut writes = 1;
        // On SNP a report is of a privilege level; the lowest permitted is the one this guest runs at.
        if let Some(floor) = entry.optional("privlevel_floor")? {
            entry.write("privlevel", floor.trim_ascii())?;
            writes += 1;
        }
        entry.write("inblob", report_data)?;
        let report = entry.read("outblob")?;
        let auxiliary = entry.optional("auxblob")?.unwrap_or_default();
        let after = entry.generation()?;
        // The write itself is committed when its file is closed, which reports no error: the count tells of that as well.
        if after.wrapping_sub(before) != writes {
            return Err(AttesterError::Race {
                path: entry.path.clone(),
                found: after.wrapping_sub(before),
                wanted: writes,
                attempts: ATTEMPTS,
            });
        }
        if report.is_empty() {
            return Err(AttesterError::Format {
                what: entry.path.join("outblob").display().to_string(),
                why: "is empty".into(),
            });
        }
        Ok(Blobs { report, auxiliary })
    }

    fn envelope(&self, report_data: &[u8; 64]) -> Result<Envelope, AttesterError> {
        let blobs = self.report(report_data)?;
        let stapled = self.endorsements.read()?;
        match self.provider {
            Provider::SevGuest => {
                let mut endorsements = certificate_table::items(&blobs.auxiliary)?;
                // What the hypervisor hands out as well is not sent twice.
                for item in stapled.chain {
                    if !endorsements.contains(&item) {
                        endorsements.push(item);
                    }
                }
                Ok(Envelope {
                    evidence: vec![Item::new(snp::REPORT, blobs.report)],
                    endorsements,
                })
            }
            Provider::TdxGuest => {
                let mut evidence = vec![Item::new(tdx::QUOTE, blobs.report)];
                evidence.extend(self.event_log()?.map(|log| Item::new(tdx::EVENT_LOG, log)));
                Ok(Envelope {
                    evidence,
                    endorsements: stapled.collateral,
                })
            }
        }
    }

    /// The firmware's log, if the firmware left one.
    fn event_log(&self) -> Result<Option<Vec<u8>>, AttesterError> {
        match Configfs.read(&self.event_log) {
            Ok(log) => Ok(Some(log)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(AttesterError::Interface {
                path: self.event_log.clone(),
                source,
            }),
        }
    }
}

impl<K: Kernel> Attester for ConfigfsTsm<K> {
    fn media_type(&self) -> &'static str {
        match self.provider {
            Provider::SevGuest => snp::MEDIA_TYPE,
            Provider::TdxGuest => tdx::MEDIA_TYPE,
        }
    }

    fn attest(&self, report_data: &[u8; 64]) -> Result<Evidence, AttestError> {
        Ok(evidence(self.media_type(), &self.envelope(report_data)?)?)
    }
}

impl Provider {
    fn name(self) -> &'static str {
        match self {
            Self::SevGuest => "sev_guest",
            Self::TdxGuest => "tdx_guest",
        }
    }
}

/// One request's directory; removed when dropped.
struct Entry<'a, K: Kernel> {
    kernel: &'a K,
    path: PathBuf,
}

impl<'a, K: Kernel> Entry<'a, K> {
    fn make(kernel: &'a K, directory: &Path) -> Result<Self, AttesterError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "bastionai-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = directory.join(name);
        match kernel.make(&path) {
            Ok(()) => Ok(Self { kernel, path }),
            Err(source) => Err(AttesterError::Interface { path, source }),
        }
    }

    fn attribute<T>(
        &self,
        name: &str,
        work: impl FnOnce(&Path) -> io::Result<T>,
    ) -> Result<T, AttesterError> {
        let path = self.path.join(name);
        work(&path).map_err(|source| AttesterError::Interface { path, source })
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, AttesterError> {
        self.attribute(name, |path| self.kernel.read(path))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), AttesterError> {
        self.attribute(name, |path| self.kernel.write(path, bytes))
    }

    /// `None` where the provider has no such attribute.
    fn optional(&self, name: &str) -> Result<Option<Vec<u8>>, AttesterError> {
        match self.read(name) {
            Err(AttesterError::Interface { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    fn text(&self, name: &str) -> Result<String, AttesterError> {
        let bytes = self.read(name)?;
        Ok(String::from_utf8_lossy(bytes.trim_ascii()).into_owned())
    }

    fn provider(&self) -> Result<Provider, AttesterError> {
        let found = self.text("provider")?;
        [Provider::SevGuest, Provider::TdxGuest]
            .into_iter()
            .find(|provider| provider.name() == found)
            .ok_or_else(|| AttesterError::Provider {
                path: self.path.join("provider"),
                found,
            })
    }

    fn generation(&self) -> Result<u64, AttesterError> {
        let text = self.text("generation")?;
        text.parse().map_err(|_| AttesterError::Format {
            what: self.path.join("generation").display().to_string(),
            why: format!("{text:?} is no number"),
        })
    }
}

impl<K: Kernel> Drop for Entry<'_, K> {
    fn drop(&mut self) {
        // An entry that stays is some kernel memory, and its name is not used again: the report counts for more.
        let _ = self.kernel.remove(&self.path);
    }
}

/// How often a request is made where somebody writes to its entry.
const ATTEMPTS: u32 = 4;
/// The kernel's own limit on a report is 16 MiB in newer versions, 32 KiB in others; reports have a few KiB, logs 64.
const MAX_BLOB_BYTES: u64 = 256 * 1024;

#[cfg(test)]
pub(super) mod tests;
