//! Intel's certificates: P-256 with SHA-256 throughout, in strict PEM.
//!
//! `dcap-qvl` (webpki) builds and judges the paths again once collateral is there; what is here gives a forged quote
//! its error without collateral, and reads more strictly.

use crate::verify::VerifyError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use x509_cert::der::{Decode, Encode, oid::ObjectIdentifier};
use x509_cert::ext::pkix::BasicConstraints;

/// A certificate, parsed and not verified.
pub(super) struct Certificate {
    pub(super) der: Vec<u8>,
    pub(super) parsed: x509_cert::Certificate,
    what: String,
}

impl Certificate {
    pub(super) fn parse(der: &[u8], what: &str) -> Result<Self, VerifyError> {
        let parsed = x509_cert::Certificate::from_der(der).map_err(|error| refused(what, error))?;
        Ok(Self {
            der: der.to_vec(),
            parsed,
            what: what.to_owned(),
        })
    }

    /// Certificates in PEM, at most four, with nothing between them and at most an end of line or of text behind.
    pub(super) fn parse_pem(pem: &[u8], what: &str) -> Result<Vec<Self>, VerifyError> {
        let text = std::str::from_utf8(pem).map_err(|error| refused(what, error))?;
        let text = text.strip_suffix('\0').unwrap_or(text);
        let mut certificates = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (base64, after) = rest
                .strip_prefix(BEGIN)
                .and_then(|rest| rest.split_once(END))
                .ok_or_else(|| refused(what, "not a list of certificates in PEM"))?;
            let der = STANDARD
                .decode(base64.replace('\n', ""))
                .map_err(|error| refused(what, error))?;
            if wrapped(&STANDARD.encode(&der)) != base64 || certificates.len() == MAX_CERTIFICATES {
                return Err(refused(
                    what,
                    "lines of other than 64 characters, or too many certificates",
                ));
            }
            certificates.push(Self::parse(&der, what)?);
            rest = after.strip_prefix('\n').unwrap_or(after);
        }
        Ok(certificates)
    }

    /// Whether its subject has this common name.
    pub(super) fn is_named(&self, common_name: &str) -> bool {
        let name = self.parsed.tbs_certificate.subject.to_string();
        name.split(',')
            .any(|part| part.strip_prefix("CN=") == Some(common_name))
    }

    /// That `issuer`, a CA, signed this one.
    pub(super) fn issued_by(&self, issuer: &Self) -> Result<(), VerifyError> {
        let (mine, ca) = (&self.parsed, &issuer.parsed.tbs_certificate);
        let constraints: Option<(bool, BasicConstraints)> =
            ca.get().map_err(|error| refused(&issuer.what, error))?;
        if mine.tbs_certificate.issuer != ca.subject || !constraints.is_some_and(|(_, found)| found.ca) {
            return Err(refused(
                &self.what,
                "its issuer is not the next certificate, or that is no CA",
            ));
        }
        if mine.signature_algorithm.oid != ECDSA_WITH_SHA256
            || mine.tbs_certificate.signature != mine.signature_algorithm
        {
            return Err(refused(&self.what, "not signed with ECDSA and SHA-256"));
        }
        let signed = mine
            .tbs_certificate
            .to_der()
            .map_err(|error| refused(&self.what, error))?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, issuer.public_key())
            .verify(&signed, mine.signature.raw_bytes())
            .map_err(|_| refused(&self.what, "its issuer's signature does not verify"))
    }

    /// That the key of this certificate made the signature `r ‖ s`.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), VerifyError> {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.public_key())
            .verify(message, signature)
            .map_err(|_| VerifyError::Signature)
    }

    pub(super) fn valid_at(&self, now: u64) -> Result<(), VerifyError> {
        let validity = &self.parsed.tbs_certificate.validity;
        let seconds = |time: x509_cert::time::Time| time.to_unix_duration().as_secs();
        within(
            &self.what,
            seconds(validity.not_before),
            seconds(validity.not_after),
            now,
        )
    }

    pub(super) fn serial_number(&self) -> &[u8] {
        self.parsed.tbs_certificate.serial_number.as_bytes()
    }

    fn public_key(&self) -> &[u8] {
        self.parsed
            .tbs_certificate
            .subject_public_key_info
            .subject_public_key
            .raw_bytes()
    }
}

/// That `now` lies in a validity; all in Unix seconds.
pub(super) fn within(what: &str, not_before: u64, not_after: u64, now: u64) -> Result<(), VerifyError> {
    if (not_before..=not_after).contains(&now) {
        return Ok(());
    }
    Err(VerifyError::NotValidNow {
        what: what.to_owned(),
        not_before,
        not_after,
        now,
    })
}

/// An endorsement that does not do.
pub(super) fn refused(what: &str, why: impl ToString) -> VerifyError {
    VerifyError::Endorsement {
        what: what.to_owned(),
        why: why.to_string(),
    }
}

fn wrapped(base64: &str) -> String {
    let lines = base64.as_bytes().chunks(64);
    lines.fold(String::new(), |text, line| {
        text + &String::from_utf8_lossy(line) + "\n"
    })
}

const BEGIN: &str = "-----BEGIN CERTIFICATE-----\n";
const END: &str = "-----END CERTIFICATE-----";
const MAX_CERTIFICATES: usize = 4;
const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
