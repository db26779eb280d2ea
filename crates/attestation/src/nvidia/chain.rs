//! From the key that signed a report up to a pinned root: five certificates, each with one place in the chain.
//!
//! | place | made by | says |
//! | --- | --- | --- |
//! | attestation key | the GPU's boot ROM, at each change of firmware | FWID of the firmware that holds the key |
//! | device | NVIDIA's provisioner, once | identity of this GPU (serial number of the subject) |
//! | provisioner | NVIDIA | |
//! | identity | the root | which chip: `NVIDIA GH100 Identity` |
//! | root | itself | NVIDIA Device Identity CA, also above switches and network cards |
//!
//! RFC 5280, section 6, as far as these certificates need it; what they do not need is refused: any other algorithm
//! than ECDSA P-384 with SHA-384, any other critical extension than the two read here.

use super::dice::{self, Dice};
use super::{Architecture, Roots};
use crate::verify::VerifyError;
use ring::signature::{ECDSA_P384_SHA384_ASN1, UnparsedPublicKey};
use x509_cert::Certificate;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::oid::db::rfc4519::{CN, SERIAL_NUMBER};
use x509_cert::der::oid::db::rfc5912::{ECDSA_WITH_SHA_384, ID_EC_PUBLIC_KEY, SECP_384_R_1};
use x509_cert::der::{Decode, Reader, SliceReader, Tag, Tagged};
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
use x509_cert::name::Name;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_cert::time::Time;

/// Certificates of a chain, the attestation key's first, the root last.
pub const CHAIN_LENGTH: usize = 5;
/// Longest certificate read; those of GPUs have less than 1 KiB.
pub const MAX_CERTIFICATE_BYTES: usize = 4096;

const PLACES: [&str; CHAIN_LENGTH] = ["attestation key", "device", "provisioner", "identity", "root"];
const LEAF: usize = 0;
const DEVICE: usize = 1;
const IDENTITY: usize = 3;
const ROOT: usize = 4;

/// A chain that leads to a root.
#[derive(Debug)]
pub(super) struct Chain {
    /// The point of the key that signs reports.
    pub(super) attestation_key: Vec<u8>,
    pub(super) architecture: Architecture,
    pub(super) chip: String,
    pub(super) hardware_model: String,
    pub(super) device_serial: String,
    pub(super) certificate_serial: String,
    pub(super) dice: Dice,
}

impl Chain {
    pub(super) fn verify(chain: &[Vec<u8>], roots: &Roots, now_unix_ms: u64) -> Result<Self, VerifyError> {
        let chain: &[Vec<u8>; CHAIN_LENGTH] = chain.try_into().map_err(|_| VerifyError::Endorsement {
            what: "the certificate chain of a GPU".to_owned(),
            why: format!("{} certificates, not {CHAIN_LENGTH}", chain.len()),
        })?;
        if !roots.0.contains(&chain[ROOT]) {
            return Err(refused(ROOT, "it is none of the pinned roots"));
        }
        let certificates = (0..CHAIN_LENGTH)
            .map(|place| Link::read(place, &chain[place]))
            .collect::<Result<Vec<_>, _>>()?;
        for (place, link) in certificates.iter().enumerate() {
            link.valid_at(now_unix_ms / 1000)?;
            link.constraints()?;
            link.issued_by(certificates.get(place + 1).unwrap_or(link))?;
        }
        let chip = chip(&certificates)?;
        let leaf = &certificates[LEAF];
        Ok(Self {
            attestation_key: leaf.point()?.to_vec(),
            architecture: architecture(&chip)
                .ok_or_else(|| refused(IDENTITY, format!("{chip} is no GPU of Hopper or Blackwell")))?,
            chip,
            hardware_model: certificates[DEVICE].subject(CN)?,
            device_serial: certificates[DEVICE].subject(SERIAL_NUMBER)?,
            certificate_serial: hex::encode_upper(leaf.parsed.tbs_certificate.serial_number.as_bytes()),
            dice: leaf.dice()?,
        })
    }
}

/// GH100 is Hopper, GB and three digits Blackwell (NVIDIA's SDK, `blackwell_fsp.cpp`).
fn architecture(chip: &str) -> Option<Architecture> {
    match chip.as_bytes() {
        b"GH100" => Some(Architecture::Hopper),
        [b'G', b'B', digits @ ..] if digits.len() == 3 && digits.iter().all(u8::is_ascii_digit) => {
            Some(Architecture::Blackwell)
        }
        _ => None,
    }
}

/// Which chip the root certified; what is below must be of the same, lest another kind of device speak for a GPU.
fn chip(certificates: &[Link<'_>]) -> Result<String, VerifyError> {
    let identity = certificates[IDENTITY].subject(CN)?;
    let chip = identity
        .strip_prefix("NVIDIA ")
        .and_then(|rest| rest.strip_suffix(" Identity"))
        .ok_or_else(|| refused(IDENTITY, format!("{identity:?} names no chip")))?;
    for place in [LEAF, DEVICE] {
        let name = certificates[place].subject(CN)?;
        if name.split(' ').next() != Some(chip) {
            return Err(refused(place, format!("{name:?} is not of a {chip}")));
        }
    }
    Ok(chip.to_owned())
}

fn refused(place: usize, why: impl Into<String>) -> VerifyError {
    VerifyError::Endorsement {
        what: what(place),
        why: why.into(),
    }
}

fn what(place: usize) -> String {
    format!("the {} certificate of a GPU", PLACES[place])
}

/// A certificate at its place in the chain.
struct Link<'a> {
    place: usize,
    parsed: Certificate,
    /// What its issuer signed, as it came.
    signed: &'a [u8],
}

impl<'a> Link<'a> {
    fn read(place: usize, der: &'a [u8]) -> Result<Self, VerifyError> {
        let malformed = |error: x509_cert::der::Error| refused(place, error.to_string());
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(refused(place, format!("more than {MAX_CERTIFICATE_BYTES} bytes")));
        }
        let parsed = Certificate::from_der(der).map_err(malformed)?;
        let mut reader = SliceReader::new(der).map_err(malformed)?;
        let signed = reader.sequence(|fields| {
            let signed = fields.tlv_bytes()?;
            fields.tlv_bytes()?;
            fields.tlv_bytes()?;
            Ok(signed)
        });
        Ok(Self {
            place,
            parsed,
            signed: signed.map_err(malformed)?,
        })
    }

    fn refused(&self, why: impl Into<String>) -> VerifyError {
        refused(self.place, why)
    }

    fn valid_at(&self, now: u64) -> Result<(), VerifyError> {
        let validity = &self.parsed.tbs_certificate.validity;
        let seconds = |time: &Time| time.to_unix_duration().as_secs();
        let (not_before, not_after) = (seconds(&validity.not_before), seconds(&validity.not_after));
        if (not_before..=not_after).contains(&now) {
            return Ok(());
        }
        Err(VerifyError::NotValidNow {
            what: what(self.place),
            not_before,
            not_after,
            now,
        })
    }

    /// Certificates above the attestation key may sign certificates, it may not; nothing else is critical.
    fn constraints(&self) -> Result<(), VerifyError> {
        let malformed = |error: x509_cert::der::Error| self.refused(error.to_string());
        let certificate = &self.parsed.tbs_certificate;
        for extension in certificate.extensions.iter().flatten() {
            let is_read = [BasicConstraints::OID, KeyUsage::OID].contains(&extension.extn_id);
            if extension.critical && !is_read {
                return Err(self.refused(format!(
                    "critical extension {} is not understood",
                    extension.extn_id
                )));
            }
        }
        let (_, usage) = certificate
            .get::<KeyUsage>()
            .map_err(malformed)?
            .ok_or_else(|| self.refused("no key usage"))?;
        let constraints = certificate.get::<BasicConstraints>().map_err(malformed)?;
        let is_authority = constraints
            .as_ref()
            .is_some_and(|(_, constraints)| constraints.ca);
        if self.place == LEAF {
            if is_authority || usage.key_cert_sign() || !usage.digital_signature() {
                return Err(self.refused("it is no certificate of a key that signs reports"));
            }
            return Ok(());
        }
        if !is_authority || !usage.key_cert_sign() {
            return Err(self.refused("it is no certificate of an authority"));
        }
        let below = self.place - 1;
        match constraints.and_then(|(_, constraints)| constraints.path_len_constraint) {
            Some(most) if usize::from(most) < below => {
                Err(self.refused(format!("{below} authorities are below it, it allows {most}")))
            }
            _ => Ok(()),
        }
    }

    fn issued_by(&self, issuer: &Link<'_>) -> Result<(), VerifyError> {
        let (certificate, issuing) = (&self.parsed.tbs_certificate, &issuer.parsed.tbs_certificate);
        if certificate.issuer != issuing.subject {
            return Err(self.refused("its issuer is not the next certificate"));
        }
        let is_ecdsa = |algorithm: &AlgorithmIdentifierOwned| {
            algorithm.oid == ECDSA_WITH_SHA_384 && algorithm.parameters.is_none()
        };
        if !is_ecdsa(&self.parsed.signature_algorithm) || !is_ecdsa(&certificate.signature) {
            return Err(self.refused("it is not signed with ECDSA and SHA-384"));
        }
        let signature = self.parsed.signature.as_bytes().unwrap_or_default();
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, issuer.point()?)
            .verify(self.signed, signature)
            .map_err(|_| self.refused("its signature does not verify under the key of the next certificate"))
    }

    /// The uncompressed point of a P-384 key; whether it is on the curve is checked by whoever uses it.
    fn point(&self) -> Result<&[u8], VerifyError> {
        let key = &self.parsed.tbs_certificate.subject_public_key_info;
        let curve = key.algorithm.parameters.as_ref();
        let is_p384 = key.algorithm.oid == ID_EC_PUBLIC_KEY
            && curve.is_some_and(|curve| curve.decode_as::<ObjectIdentifier>() == Ok(SECP_384_R_1));
        key.subject_public_key
            .as_bytes()
            .filter(|_| is_p384)
            .ok_or_else(|| self.refused("its key is not of P-384"))
    }

    fn dice(&self) -> Result<Dice, VerifyError> {
        let extensions = self.parsed.tbs_certificate.extensions.iter().flatten();
        let mut found = extensions.filter(|extension| dice::EXTENSIONS.contains(&extension.extn_id));
        let extension = found
            .next()
            .ok_or_else(|| self.refused("it says for which firmware (FWID) it is by no extension"))?;
        if found.next().is_some() {
            return Err(self.refused("it says for which firmware (FWID) it is twice"));
        }
        Dice::read(extension.extn_value.as_bytes())
            .map_err(|error| self.refused(format!("its FWID: {error}")))
    }

    /// The one attribute of its subject of a type, as text.
    fn subject(&self, attribute: ObjectIdentifier) -> Result<String, VerifyError> {
        one(&self.parsed.tbs_certificate.subject, attribute)
            .ok_or_else(|| self.refused(format!("its subject has not one readable attribute {attribute}")))
    }
}

fn one(name: &Name, attribute: ObjectIdentifier) -> Option<String> {
    let mut of_type = name
        .0
        .iter()
        .flat_map(|relative| relative.0.iter())
        .filter(|pair| pair.oid == attribute);
    let (value, None) = (&of_type.next()?.value, of_type.next()) else {
        return None;
    };
    let is_text = matches!(value.tag(), Tag::Utf8String | Tag::PrintableString);
    let text = std::str::from_utf8(AnyRef::from(value).value()).ok()?;
    let is_shown = is_text && text.len() <= 64 && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    is_shown.then(|| text.to_owned())
}
