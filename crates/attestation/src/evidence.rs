//! Evidence and who makes it.

use std::fmt;

/// Bytes that say, signed by a platform, what runs where. They authenticate themselves.
#[derive(Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Kind of evidence, e.g. [`crate::insecure_simulated::MEDIA_TYPE`].
    pub media_type: String,
    /// The attester's bytes.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Evidence({:?}, {} bytes)", self.media_type, self.bytes.len())
    }
}

/// Why a platform gave no evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttestError {
    /// The platform's interface cannot be used.
    #[error("the platform gives no evidence: {0}")]
    Unavailable(String),
}

/// The platform's side: turns 64 bytes of report data into evidence.
pub trait Attester: Send + Sync {
    /// Media type of the evidence it makes.
    fn media_type(&self) -> &'static str;

    /// Evidence that covers `report_data`.
    ///
    /// # Errors
    /// [`AttestError::Unavailable`] if the platform refuses or is not there.
    fn attest(&self, report_data: &[u8; 64]) -> Result<Evidence, AttestError>;
}
