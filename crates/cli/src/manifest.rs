//! A release's manifest, as flags: `--manifest FILE --manifest-key HEX|FILE`.

use anyhow::Context;
use bastionai_attestation::reference::Hex;
use bastionai_attestation::{ReleaseManifest, VerifiedManifest};
use std::path::Path;

/// Reads and verifies a manifest under the key that the relying party names.
pub(crate) fn verified(path: &Path, key: &str) -> anyhow::Result<VerifiedManifest> {
    let signed =
        std::fs::read(path).with_context(|| format!("cannot read the manifest {}", path.display()))?;
    ReleaseManifest::verify(&signed, &public_key(key)?).with_context(|| path.display().to_string())
}

/// 64 hex digits, or a file that holds them.
fn public_key(key: &str) -> anyhow::Result<[u8; 32]> {
    if let Ok(Hex(bytes)) = key.parse() {
        return Ok(bytes);
    }
    let text = std::fs::read_to_string(key).with_context(|| {
        format!("--manifest-key {key:?} is neither 64 lower-case hex digits nor a file that can be read")
    })?;
    let Hex(bytes) = text
        .trim()
        .parse()
        .with_context(|| format!("--manifest-key {key}: a public key of Ed25519"))?;
    Ok(bytes)
}
