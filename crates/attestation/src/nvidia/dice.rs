//! What the key that signs reports was made for: the firmware id (FWID) that a GPU's boot ROM certified.
//!
//! Hopper has the *CompositeDeviceID* of RIoT under 2.23.133.5.4.1, Blackwell TCG's *DiceTcbInfo* (DICE Attestation
//! Architecture 1.1, section 6.1.1) under 2.23.133.5.4.1.1; NVIDIA's SDK takes both forms under the first.

use super::spdm::Digest;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier, OctetStringRef};
use x509_cert::der::{Decode, Error, ErrorKind, Reader, SliceReader, Tag, Tagged};

pub(super) const EXTENSIONS: [ObjectIdentifier; 2] = [
    ObjectIdentifier::new_unwrap("2.23.133.5.4.1"),
    ObjectIdentifier::new_unwrap("2.23.133.5.4.1.1"),
];
const SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
/// `fwids [6] IMPLICIT FWIDLIST` and `flags [7] IMPLICIT OperationalFlags` of DiceTcbInfo.
const FWIDS: u8 = 6;
const FLAGS: u8 = 7;
/// *notSecure*, *recovery* and *debug*, bits 1 to 3 of OperationalFlags, in its first byte. *notConfigured* (bit 0) is set in
/// the certificates of Blackwell in use (expected values of NVIDIA's SDK, `golden/blackwell_chain.json`).
const UNSAFE_FLAGS: u8 = 0x70;

/// What the extension says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dice {
    /// SHA-384 of the firmware that holds the key.
    pub(super) fwid: Digest,
    /// Whether an operational flag is set that makes it unsafe: not secure, recovery, debug.
    pub(super) is_flagged: bool,
}

impl Dice {
    pub(super) fn read(extension: &[u8]) -> Result<Self, Error> {
        let mut reader = SliceReader::new(extension)?;
        let dice = reader.sequence(|fields| match fields.peek_tag()? {
            Tag::Integer => composite_device_id(fields),
            _ => tcb_info(fields),
        })?;
        reader.finish(dice)
    }
}

/// `version INTEGER (1), deviceID SubjectPublicKeyInfo, fwid FWID`.
fn composite_device_id<'r>(fields: &mut impl Reader<'r>) -> Result<Dice, Error> {
    if u8::decode(fields)? != 1 {
        return Err(ErrorKind::Value { tag: Tag::Integer }.into());
    }
    fields.tlv_bytes()?;
    let fwid = fwid(fields)?;
    Ok(Dice {
        fwid,
        is_flagged: false,
    })
}

/// Fields with tags [0] to [9], all optional; the first FWID counts, as in NVIDIA's SDK.
fn tcb_info<'r>(fields: &mut impl Reader<'r>) -> Result<Dice, Error> {
    let (mut digest, mut is_flagged) = (None, false);
    while !fields.is_finished() {
        let field = AnyRef::decode(fields)?;
        let Tag::ContextSpecific { number, .. } = field.tag() else {
            return Err(field.tag().unexpected_error(None));
        };
        match number.value() {
            FWIDS => digest = Some(fwid(&mut SliceReader::new(field.value())?)?),
            // BIT STRING: the first byte counts unused bits.
            FLAGS => {
                is_flagged |= field
                    .value()
                    .get(1)
                    .is_some_and(|flags| flags & UNSAFE_FLAGS != 0)
            }
            _ => {}
        }
    }
    let fwid = digest.ok_or(ErrorKind::Failed)?;
    Ok(Dice { fwid, is_flagged })
}

/// `hashAlg OBJECT IDENTIFIER, digest OCTET STRING`.
fn fwid<'r>(reader: &mut impl Reader<'r>) -> Result<Digest, Error> {
    reader.sequence(|fields| {
        let algorithm = ObjectIdentifier::decode(fields)?;
        if algorithm != SHA384 {
            return Err(ErrorKind::OidUnknown { oid: algorithm }.into());
        }
        let digest = OctetStringRef::decode(fields)?;
        let wrong_length = |_| {
            Error::from(ErrorKind::Length {
                tag: Tag::OctetString,
            })
        };
        digest.as_bytes().try_into().map_err(wrong_length)
    })
}
