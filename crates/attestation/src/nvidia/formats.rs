//! Files that NVIDIA's tools write, into the pieces that are verified. Offline only: no server sends them.

use super::{CHAIN_LENGTH, Evidence};
use crate::verify::{MAX_EVIDENCE_BYTES, VerifyError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use x509_cert::der::Document;

/// Most GPUs of one file.
const MAX_GPUS: usize = 64;
const END_OF_CERTIFICATE: &str = "-----END CERTIFICATE-----";

/// Evidence of one GPU from a file, with what the file says of it beside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated {
    /// What is verified.
    pub evidence: Evidence,
    /// `HOPPER`, `BLACKWELL`: **unsigned**; what counts is the chip of the certificates.
    pub architecture: Option<String>,
    /// The nonce that the report was asked for with: **unsigned**; what counts is that of the request.
    pub nonce: Option<[u8; 32]>,
}

/// JSON of NVIDIA's attestation SDK and of requests to its remote service (NRAS): one GPU's object, a list of them, or
/// `{"nonce": …, "evidence_list": […]}`. `evidence` is the transcript and `certificate` the chain in PEM, both in base64.
///
/// # Errors
/// [`VerifyError::Malformed`] for anything else, [`VerifyError::TooLong`] above [`MAX_EVIDENCE_BYTES`].
pub fn from_json(bytes: &[u8]) -> Result<Vec<Stated>, VerifyError> {
    if bytes.len() > MAX_EVIDENCE_BYTES {
        return Err(VerifyError::TooLong {
            found: bytes.len(),
            most: MAX_EVIDENCE_BYTES,
        });
    }
    let file: File = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    let (gpus, nonce, architecture) = match file {
        File::List(gpus) => (gpus, None, None),
        File::Request {
            nonce,
            arch,
            evidence_list,
        } => (evidence_list, nonce, arch),
        File::One(gpu) => (vec![gpu], None, None),
    };
    if gpus.is_empty() || gpus.len() > MAX_GPUS {
        return Err(malformed(format!("{} GPUs, not 1 to {MAX_GPUS}", gpus.len())));
    }
    gpus.into_iter()
        .map(|gpu| {
            let nonce = gpu.nonce.as_ref().or(nonce.as_ref());
            Ok(Stated {
                evidence: Evidence {
                    transcript: base64("evidence", &gpu.evidence)?,
                    chain: from_pem(&base64("certificate", &gpu.certificate)?)?,
                },
                architecture: gpu.arch.or_else(|| architecture.clone()),
                nonce: nonce.map(|nonce| in_hex("nonce", nonce)).transpose()?,
            })
        })
        .collect()
}

/// A transcript as hexadecimal text, with white space around it.
///
/// # Errors
/// [`VerifyError::Malformed`] for anything else.
pub fn from_hex(text: &[u8]) -> Result<Vec<u8>, VerifyError> {
    hex::decode(text.trim_ascii())
        .map_err(|error| malformed(format!("the transcript is no hexadecimal text: {error}")))
}

/// The chain of a GPU in PEM, in order, as DER.
///
/// # Errors
/// [`VerifyError::Malformed`] if it is not [`CHAIN_LENGTH`] certificates and nothing else.
pub fn from_pem(text: &[u8]) -> Result<Vec<Vec<u8>>, VerifyError> {
    let text = std::str::from_utf8(text).map_err(|_| malformed("the chain is no text"))?;
    let chain = text
        .trim_ascii()
        .split_inclusive(END_OF_CERTIFICATE)
        .map(|pem| match Document::from_pem(pem.trim_ascii_start()) {
            Ok(("CERTIFICATE", document)) => Ok(document.into_vec()),
            Ok((other, _)) => Err(malformed(format!("{other:?} is no certificate"))),
            Err(error) => Err(malformed(format!("the chain: {error}"))),
        })
        .take(CHAIN_LENGTH + 1)
        .collect::<Result<Vec<_>, _>>()?;
    if chain.len() != CHAIN_LENGTH {
        return Err(malformed(format!("a chain not of {CHAIN_LENGTH} certificates")));
    }
    Ok(chain)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum File {
    List(Vec<Gpu>),
    Request {
        nonce: Option<String>,
        arch: Option<String>,
        evidence_list: Vec<Gpu>,
    },
    One(Gpu),
}

#[derive(Deserialize)]
struct Gpu {
    arch: Option<String>,
    nonce: Option<String>,
    evidence: String,
    certificate: String,
}

fn malformed(why: impl AsRef<str>) -> VerifyError {
    VerifyError::Malformed(format!("NVIDIA's evidence: {}", why.as_ref()))
}

fn base64(field: &str, text: &str) -> Result<Vec<u8>, VerifyError> {
    STANDARD
        .decode(text)
        .map_err(|error| malformed(format!("`{field}` is no base64: {error}")))
}

fn in_hex(field: &str, text: &str) -> Result<[u8; 32], VerifyError> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes)
        .map_err(|error| malformed(format!("`{field}` is not 32 bytes of hexadecimal text: {error}")))?;
    Ok(bytes)
}
