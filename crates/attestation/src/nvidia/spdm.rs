//! The signed transcript: a GET_MEASUREMENTS request and the MEASUREMENTS response to it, as a GPU's firmware makes it.
//!
//! DMTF DSP0274 1.1.1 (SPDM), section 10.11: tables 42 (request), 45 (response), 46 and 47 (measurement blocks). Little
//! endian. Of what the specification leaves open, only what NVIDIA's GPUs do is read: all measurements at once, signed
//! by the key of slot 0, each a SHA-384 digest.

use crate::tpm::cursor::Cursor;
use crate::verify::VerifyError;
use std::collections::BTreeMap;

/// A SHA-384 digest.
pub type Digest = [u8; 48];

/// Request code, a signature asked for, and all measurements (`0xFF`).
const REQUEST: [u8; 4] = [0x11, 0xE0, 0x01, 0xFF];
/// Response code; both parameters are 0 when all measurements were asked for, of slot 0.
const RESPONSE: [u8; 4] = [0x11, 0x60, 0, 0];
/// The measurement specification of the DMTF.
const DMTF: u8 = 1;
/// `r ‖ s` of ECDSA P-384.
pub(super) const SIGNATURE_BYTES: usize = 96;
/// Most opaque data (DSP0274 1.1.1, section 10.11.2).
const MAX_OPAQUE_BYTES: usize = 1024;
/// Longest transcript read: 255 blocks of 55 bytes, the longest opaque data, and the rest.
pub const MAX_TRANSCRIPT_BYTES: usize = 16 * 1024;

/// What a transcript says. Nothing of it is authentic before the signature was verified.
pub(super) struct Transcript<'a> {
    /// Nonce of the request.
    pub(super) nonce: [u8; 32],
    /// By index, from 1.
    pub(super) measurements: BTreeMap<u8, Digest>,
    /// NVIDIA's own fields.
    pub(super) opaque: &'a [u8],
    /// All bytes before the signature.
    pub(super) signed: &'a [u8],
    pub(super) signature: [u8; SIGNATURE_BYTES],
}

impl<'a> Transcript<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, VerifyError> {
        let mut rest = Cursor::new("the SPDM transcript of a GPU", bytes);
        if bytes.len() > MAX_TRANSCRIPT_BYTES {
            return Err(rest.malformed(format!("more than {MAX_TRANSCRIPT_BYTES} bytes")));
        }
        expect(&mut rest, "GET_MEASUREMENTS", REQUEST)?;
        let nonce = rest.array("nonce of the request")?;
        expect(&mut rest, "slot of the request", [0])?;
        expect(&mut rest, "MEASUREMENTS", RESPONSE)?;
        let [blocks] = rest.array("number of blocks")?;
        let [low, middle, high] = rest.array("length of the measurements")?;
        let length = usize::from(low) | usize::from(middle) << 8 | usize::from(high) << 16;
        let measurements = measurements(rest.take("measurements", length)?, blocks)?;
        rest.take("nonce of the response", 32)?;
        let length = usize::from(rest.u16_le("length of the opaque data")?);
        if length > MAX_OPAQUE_BYTES {
            return Err(rest.malformed(format!(
                "{length} bytes of opaque data, at most {MAX_OPAQUE_BYTES} are allowed"
            )));
        }
        let opaque = rest.take("opaque data", length)?;
        let signature = rest.array("signature")?;
        rest.finish()?;
        Ok(Self {
            nonce,
            measurements,
            opaque,
            signed: &bytes[..bytes.len() - SIGNATURE_BYTES],
            signature,
        })
    }
}

fn expect<const N: usize>(rest: &mut Cursor<'_>, field: &str, wanted: [u8; N]) -> Result<(), VerifyError> {
    let found: [u8; N] = rest.array(field)?;
    if found == wanted {
        return Ok(());
    }
    Err(rest.malformed(format!(
        "`{field}` is {}, not {}",
        hex::encode(found),
        hex::encode(wanted)
    )))
}

/// `blocks` blocks of index, specification, size, type of value, size of value, value; each index once.
fn measurements(record: &[u8], blocks: u8) -> Result<BTreeMap<u8, Digest>, VerifyError> {
    let mut rest = Cursor::new("the measurements of a GPU", record);
    let mut found = BTreeMap::new();
    for _ in 0..blocks {
        let [index, specification] = rest.array("index and specification of a block")?;
        let size = rest.u16_le("size of a block")?;
        // Bit 7 of the type would say that the value is no digest; the rest says what was measured.
        let [kind] = rest.array("type of a value")?;
        let length = rest.u16_le("size of a value")?;
        if specification != DMTF || kind & 0x80 != 0 || length != 48 || size != length + 3 {
            return Err(rest.malformed(format!(
                "measurement {index} is no SHA-384 digest of the DMTF's form"
            )));
        }
        let digest = rest.array("digest")?;
        if index == 0 || found.insert(index, digest).is_some() {
            return Err(rest.malformed(format!("index {index} is 0 or there twice")));
        }
    }
    rest.finish()?;
    Ok(found)
}
