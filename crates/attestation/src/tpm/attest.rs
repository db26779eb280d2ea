//! `TPMS_ATTEST` of a quote: what the TPM signed (Part 2, 10.12.12; `TPMS_QUOTE_INFO`: 10.12.4).

use super::cursor::Cursor;
use crate::verify::VerifyError;
use serde::Serialize;

/// The clock of a TPM when it signed (`TPMS_CLOCK_INFO`, Part 2, 10.11.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Clock {
    /// Milliseconds during which the TPM was powered since its clock was last cleared.
    pub clock_ms: u64,
    /// Resets of the TPM: one more at each boot of the machine.
    pub reset_count: u32,
    /// Restarts and resumptions since the last reset.
    pub restart_count: u32,
    /// Whether no greater value of `clock_ms` can have been given before.
    pub is_safe: bool,
}

/// A quote, read but not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attest<'a> {
    pub(super) extra_data: &'a [u8],
    pub(super) clock: Clock,
    pub(super) firmware_version: u64,
    /// Indices of the quoted PCRs of the SHA-256 bank, ascending.
    pub(super) pcrs: Vec<u8>,
    pub(super) pcr_digest: &'a [u8],
}

impl<'a> Attest<'a> {
    /// Reads the quote of one selection, of the SHA-256 bank.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, VerifyError> {
        let mut cursor = Cursor::new("the TPM quote", bytes);
        // A restricted key signs a caller's bytes only if they do not begin so: this is what makes it the TPM's word.
        if cursor.u32("magic")? != TPM_GENERATED_VALUE {
            return Err(cursor.malformed("not made by a TPM: no TPM_GENERATED_VALUE"));
        }
        let kind = cursor.u16("type")?;
        if kind != TPM_ST_ATTEST_QUOTE {
            return Err(cursor.malformed(format!("type {kind:#06x} is not TPM_ST_ATTEST_QUOTE")));
        }
        cursor.sized("qualifiedSigner", MAX_NAME)?;
        let extra_data = cursor.sized("extraData", MAX_DATA)?;
        let clock = Clock {
            clock_ms: cursor.u64("clock")?,
            reset_count: cursor.u32("resetCount")?,
            restart_count: cursor.u32("restartCount")?,
            is_safe: match cursor.u8("safe")? {
                0 => false,
                1 => true,
                other => return Err(cursor.malformed(format!("`safe` is {other}, neither 0 nor 1"))),
            },
        };
        let firmware_version = cursor.u64("firmwareVersion")?;
        let pcrs = selection(&mut cursor)?;
        let pcr_digest = cursor.sized("pcrDigest", MAX_DIGEST)?;
        cursor.finish()?;
        Ok(Self {
            extra_data,
            clock,
            firmware_version,
            pcrs,
            pcr_digest,
        })
    }
}

/// `TPML_PCR_SELECTION` (Part 2, 10.9.7) of one `TPMS_PCR_SELECTION` (10.6.2).
fn selection(cursor: &mut Cursor<'_>) -> Result<Vec<u8>, VerifyError> {
    let count = cursor.u32("pcrSelect")?;
    if count != 1 {
        return Err(cursor.malformed(format!("{count} selections of PCRs, not one of the SHA-256 bank")));
    }
    let bank = cursor.u16("hash")?;
    if bank != TPM_ALG_SHA256 {
        return Err(cursor.malformed(format!("PCRs of bank {bank:#06x}, not of SHA-256")));
    }
    let size = usize::from(cursor.u8("sizeofSelect")?);
    if size > MAX_SELECT {
        return Err(cursor.malformed(format!("`sizeofSelect` is {size}, at most {MAX_SELECT}")));
    }
    let bitmap = cursor.take("pcrSelect", size)?;
    let is_selected = |index: &u8| bitmap[usize::from(index / 8)] & (1 << (index % 8)) != 0;
    Ok((0..8 * size as u8).filter(is_selected).collect())
}

/// Part 2, 6.2.
const TPM_GENERATED_VALUE: u32 = 0xff54_4347;
/// Part 2, 6.9.
const TPM_ST_ATTEST_QUOTE: u16 = 0x8018;
/// Part 2, 6.3.
pub(super) const TPM_ALG_SHA256: u16 = 0x000b;
/// A name is an algorithm and a digest, of SHA-512 at most.
const MAX_NAME: usize = 2 + 64;
/// `TPM2B_DATA` holds a `TPMT_HA`: what a caller may have signed. SHA-512 fits.
const MAX_DATA: usize = 2 + 64;
const MAX_DIGEST: usize = 64;
/// Platforms have 24 PCRs, three bytes; four is what implementations allow at most.
const MAX_SELECT: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// A quote in the layout of Part 2, written by hand: a name, `challenge`, all PCRs.
    fn quote() -> Vec<u8> {
        let fields = [
            "ff544347 8018",
            "0022 000b 0101010101010101010101010101010101010101010101010101010101010101",
            "0009 6368616c6c656e6765",
            "0000000000359bae 00000002 00000005 01 2020031200120003",
            "00000001 000b 03 ffffff",
            "0020 0202020202020202020202020202020202020202020202020202020202020202",
        ];
        hex::decode(fields.concat().replace(' ', "")).unwrap()
    }

    #[test]
    fn a_quote_is_read_field_by_field() {
        let bytes = quote();
        let attest = Attest::parse(&bytes).unwrap();
        assert_eq!(attest.extra_data, b"challenge");
        assert_eq!(attest.clock.clock_ms, 0x0035_9bae);
        assert_eq!((attest.clock.reset_count, attest.clock.restart_count), (2, 5));
        assert!(attest.clock.is_safe);
        assert_eq!(attest.firmware_version, 0x2020_0312_0012_0003);
        assert_eq!(attest.pcrs, (0..24).collect::<Vec<_>>());
        assert_eq!(attest.pcr_digest, [2; 32]);
    }

    #[test]
    fn every_truncation_and_every_extension_is_refused() {
        let bytes = quote();
        for length in 0..bytes.len() {
            assert!(Attest::parse(&bytes[..length]).is_err(), "{length} bytes");
        }
        assert!(Attest::parse(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn what_is_no_quote_of_the_sha256_bank_is_refused_by_name() {
        let good = quote();
        for (at, value, reason) in [
            (0, 0xfe, "TPM_GENERATED_VALUE"),
            (5, 0x17, "TPM_ST_ATTEST_QUOTE"),
            (6, 0xff, "qualifiedSigner"),
            (42, 0xff, "extraData"),
            (69, 2, "neither 0 nor 1"),
            (81, 2, "selections"),
            (83, 0x0c, "SHA-256"),
            (84, 5, "sizeofSelect"),
        ] {
            let mut bytes = good.clone();
            bytes[at] = value;
            let error = Attest::parse(&bytes).unwrap_err().to_string();
            assert!(error.contains(reason), "byte {at}: {error}");
        }
    }
}
