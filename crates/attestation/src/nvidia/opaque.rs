//! NVIDIA's fields in the opaque data of a response: type (2 bytes), length (2 bytes), value; little endian.
//!
//! Types are those of NVIDIA's attestation SDK (github.com/NVIDIA/attestation-sdk, `gpu_opaque_data_parser.hpp`; the SDK's
//! verifier reads versions up to 2 of them). The form with a header, which the FSP of some Blackwell GPUs sends
//! (`NVDAOD`), is not read.

use super::Mode;
use super::spdm::Digest;
use crate::tpm::cursor::Cursor;
use crate::verify::VerifyError;
use std::collections::BTreeMap;

const DRIVER_VERSION: u16 = 3;
const VBIOS_VERSION: u16 = 6;
const CHIP_SKU: u16 = 15;
const PROJECT: u16 = 17;
const PROJECT_SKU: u16 = 18;
const FWID: u16 = 20;
const DATA_VERSION: u16 = 34;
const FEATURE_FLAG: u16 = 36;
/// All types that version 2 of the data has: what is not among them is not understood.
const KNOWN: [std::ops::RangeInclusive<u16>; 2] = [1..=25, 32..=36];
/// Highest version of the data that is read; data without one is older than version 1.
const MAX_DATA_VERSION: u64 = 2;
/// Longest text shown to people.
const MAX_TEXT_BYTES: usize = 64;

/// What the fields say, of what is appraised or shown.
pub(super) struct Opaque {
    pub(super) driver_version: String,
    pub(super) vbios_version: String,
    pub(super) chip_sku: Option<String>,
    pub(super) project: Option<String>,
    pub(super) project_sku: Option<String>,
    pub(super) fwid: Option<Digest>,
    pub(super) mode: Mode,
}

impl Opaque {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, VerifyError> {
        let fields = Fields::read(bytes)?;
        if fields.number(DATA_VERSION)?.unwrap_or(0) > MAX_DATA_VERSION {
            return Err(malformed(format!("version above {MAX_DATA_VERSION}")));
        }
        Ok(Self {
            driver_version: fields
                .text(DRIVER_VERSION)?
                .ok_or_else(|| malformed("no driver version"))?,
            vbios_version: fields
                .vbios_version()?
                .ok_or_else(|| malformed("no VBIOS version"))?,
            chip_sku: fields.text(CHIP_SKU)?,
            project: fields.text(PROJECT)?,
            project_sku: fields.text(PROJECT_SKU)?,
            fwid: fields.fwid()?,
            mode: fields.mode()?,
        })
    }
}

fn malformed(why: impl AsRef<str>) -> VerifyError {
    VerifyError::Malformed(format!("the opaque data of a GPU: {}", why.as_ref()))
}

/// Values by type, each once.
struct Fields<'a>(BTreeMap<u16, &'a [u8]>);

impl<'a> Fields<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, VerifyError> {
        let mut rest = Cursor::new("the opaque data of a GPU", bytes);
        let mut fields = BTreeMap::new();
        while !rest.is_empty() {
            let kind = rest.u16_le("type of a field")?;
            let length = rest.u16_le("length of a field")?;
            let value = rest.take("field", length.into())?;
            if !KNOWN.iter().any(|range| range.contains(&kind)) {
                return Err(rest.malformed(format!("fields of type {kind} are not understood")));
            }
            if fields.insert(kind, value).is_some() {
                return Err(rest.malformed(format!("a field of type {kind} twice")));
            }
        }
        Ok(Self(fields))
    }

    /// Printable ASCII up to the padding of zeros: it is shown on terminals.
    fn text(&self, kind: u16) -> Result<Option<String>, VerifyError> {
        let Some(value) = self.0.get(&kind) else {
            return Ok(None);
        };
        let end = value
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        let text = &value[..end];
        if text.len() > MAX_TEXT_BYTES || !text.iter().all(u8::is_ascii_graphic) {
            return Err(malformed(format!("field {kind} is no short text")));
        }
        Ok(Some(String::from_utf8_lossy(text).into_owned()))
    }

    /// At most eight bytes.
    fn number(&self, kind: u16) -> Result<Option<u64>, VerifyError> {
        let Some(value) = self.0.get(&kind) else {
            return Ok(None);
        };
        let mut bytes = [0; 8];
        bytes
            .get_mut(..value.len())
            .ok_or_else(|| malformed(format!("field {kind} has more than 8 bytes")))?
            .copy_from_slice(value);
        Ok(Some(u64::from_le_bytes(bytes)))
    }

    /// As the driver shows it: four bytes in reverse, then the fifth (`96.00.A5.00.01`); three that are zero follow.
    fn vbios_version(&self) -> Result<Option<String>, VerifyError> {
        match self.0.get(&VBIOS_VERSION) {
            None => Ok(None),
            Some(&[d, c, b, a, e, 0, 0, 0]) => Ok(Some(format!("{a:02X}.{b:02X}.{c:02X}.{d:02X}.{e:02X}"))),
            Some(_) => Err(malformed(
                "the VBIOS version is not in the form of Hopper and Blackwell",
            )),
        }
    }

    fn fwid(&self) -> Result<Option<Digest>, VerifyError> {
        let digest =
            |value: &&[u8]| Digest::try_from(*value).map_err(|_| malformed("the FWID is no SHA-384 digest"));
        self.0.get(&FWID).map(digest).transpose()
    }

    fn mode(&self) -> Result<Mode, VerifyError> {
        match self.number(FEATURE_FLAG)? {
            None => Ok(Mode::NotStated),
            Some(0 | 1) => Ok(Mode::Confidential),
            Some(2) => Ok(Mode::ProtectedPcie),
            Some(other) => Err(malformed(format!("feature flag {other} is not understood"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).unwrap();
        [&kind.to_le_bytes()[..], &length.to_le_bytes(), value].concat()
    }

    fn needed() -> Vec<u8> {
        let vbios = field(VBIOS_VERSION, &[0x00, 0xa5, 0x00, 0x96, 1, 0, 0, 0]);
        [field(DRIVER_VERSION, b"590.12\0"), vbios].concat()
    }

    fn refused(more: &[u8]) -> String {
        let fields = [needed(), more.to_vec()].concat();
        Opaque::read(&fields).err().unwrap().to_string()
    }

    #[test]
    fn versions_read_as_the_driver_shows_them() {
        let opaque = Opaque::read(&needed()).unwrap();
        assert_eq!(opaque.driver_version, "590.12");
        assert_eq!(opaque.vbios_version, "96.00.A5.00.01");
        assert_eq!(opaque.mode, Mode::NotStated);
    }

    #[test]
    fn every_mode_is_told_from_the_others_and_an_unknown_one_is_refused() {
        let mode = |flag: &[u8]| {
            Opaque::read(&[needed(), field(FEATURE_FLAG, flag)].concat())
                .unwrap()
                .mode
        };
        assert_eq!(mode(&[0, 0]), Mode::Confidential);
        assert_eq!(mode(&[1, 0]), Mode::Confidential);
        assert_eq!(mode(&[2, 0]), Mode::ProtectedPcie);
        assert!(refused(&field(FEATURE_FLAG, &[3, 0])).contains("feature flag 3"));
        assert!(refused(&field(FEATURE_FLAG, &[0; 9])).contains("more than 8"));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert!(refused(&field(DATA_VERSION, &[3, 0])).contains("version above 2"));
        assert!(refused(&field(99, &[])).contains("type 99"));
        assert!(refused(b"NVDAOD\0\0\0\0\0\0").contains("truncated"));
        assert!(refused(&field(DRIVER_VERSION, b"1")).contains("twice"));
        assert!(refused(&field(FWID, &[0; 47])).contains("FWID"));
        assert!(refused(&field(CHIP_SKU, b"a\x1b[2J")).contains("no short text"));
        assert!(refused(&field(CHIP_SKU, &[b'a'; 65])).contains("no short text"));
        assert!(refused(&[CHIP_SKU as u8, 0, 9, 0, 1]).contains("truncated"));
        assert!(refused(&[CHIP_SKU as u8]).contains("truncated"));
    }

    #[test]
    fn both_versions_must_be_there() {
        for (fields, what) in [
            (field(DRIVER_VERSION, b"590.12"), "VBIOS"),
            (field(VBIOS_VERSION, &[0; 8]), "driver"),
            (
                [field(DRIVER_VERSION, b"1"), field(VBIOS_VERSION, &[1; 8])].concat(),
                "VBIOS",
            ),
        ] {
            assert!(Opaque::read(&fields).err().unwrap().to_string().contains(what));
        }
    }
}
