//! The bytes of a quote: read strictly, before any cryptography.
//!
//! ```text
//! version 4: header 48 ‖ TD report 584 ‖ u32 ‖ auth data
//! version 5: header 48 ‖ u16 body type ‖ u32 body size ‖ TD report 584 (type 2) or 648 (type 3) ‖ u32 ‖ auth data
//! auth data: signature 64 ‖ attestation key 64 ‖ u16 = 6 ‖ u32 ‖ QE report data
//! QE report data: QE report 384 ‖ signature 64 ‖ u16 ‖ QE auth data ‖ u16 = 5 ‖ u32 ‖ PCK chain in PEM
//! ```
//! All numbers are little-endian. Every length must be used up exactly.

use crate::verify::VerifyError;

/// Longest quote read: configfs-tsm gives out no more either.
pub(super) const MAX_QUOTE_BYTES: usize = 32 * 1024;

/// A quote, nothing of it verified.
#[derive(Debug)]
pub(super) struct Quote<'a> {
    /// The quote by its own lengths, without what follows it.
    pub(super) bytes: &'a [u8],
    /// What the attestation key signs: header and body.
    pub(super) signed: &'a [u8],
    pub(super) body: Body,
    pub(super) signature: &'a [u8; 64],
    pub(super) attestation_key: &'a [u8; 64],
    pub(super) qe_report: &'a [u8; 384],
    pub(super) qe_report_signature: &'a [u8; 64],
    pub(super) qe_auth_data: &'a [u8],
    /// PEM, leaf first; absent where the quote carries an encrypted PPID instead.
    pub(super) pck_chain: Option<&'a [u8]>,
    trailing: &'a [u8],
}

/// The TD report in a quote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body {
    pub(super) tee_tcb_svn: [u8; 16],
    pub(super) mr_seam: [u8; 48],
    pub(super) mr_signer_seam: [u8; 48],
    pub(super) seam_attributes: [u8; 8],
    pub(super) td_attributes: [u8; 8],
    pub(super) xfam: [u8; 8],
    pub(super) mr_td: [u8; 48],
    pub(super) mr_config_id: [u8; 48],
    pub(super) mr_owner: [u8; 48],
    pub(super) mr_owner_config: [u8; 48],
    pub(super) rtmrs: [[u8; 48]; 4],
    pub(super) report_data: [u8; 64],
    /// TDX 1.5: the TCB now, and the hash of the service TDs bound.
    pub(super) v1_5: Option<([u8; 16], [u8; 48])>,
}

impl<'a> Quote<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, VerifyError> {
        if bytes.len() > MAX_QUOTE_BYTES {
            return Err(VerifyError::TooLong {
                found: bytes.len(),
                most: MAX_QUOTE_BYTES,
            });
        }
        let mut reader = Reader(bytes);
        let version = header(&mut reader)?;
        let is_1_5 = match version {
            4 => false,
            _ => body_is_1_5(&mut reader)?,
        };
        let body = Body::read(&mut reader, is_1_5)?;
        let signed = &bytes[..bytes.len() - reader.0.len()];
        let length = reader.length()?;
        let mut auth = Reader(reader.take(length, "auth data")?);
        let (trailing, quote) = (reader.0, &bytes[..bytes.len() - reader.0.len()]);
        let (signature, attestation_key) = (auth.array("signature")?, auth.array("attestation key")?);
        let mut qe = auth.certification(QE_REPORT_DATA)?;
        auth.finish("the auth data")?;
        let (qe_report, qe_report_signature) = (qe.array("QE report")?, qe.array("QE report's signature")?);
        let length = usize::from(qe.u16("QE auth data")?);
        let qe_auth_data = qe.take(length, "QE auth data")?;
        let (kind, chain) = qe.any_certification()?;
        qe.finish("the QE report data")?;
        let pck_chain = match kind {
            PCK_CHAIN => Some(chain),
            // Encrypted PPID: the chain must come with the collateral.
            2 | 3 => None,
            other => return Err(malformed(format!("certification data of type {other}, not 5"))),
        };
        Ok(Self {
            bytes: quote,
            signed,
            body,
            signature,
            attestation_key,
            qe_report,
            qe_report_signature,
            qe_auth_data,
            pck_chain,
            trailing,
        })
    }

    /// Nothing but zeros may follow: quoting services fill their buffer with them, and nothing signs what follows.
    ///
    /// Apart from [`Self::parse`], since who sends a quote without collateral hears of that first.
    pub(super) fn no_trailing_bytes(&self) -> Result<(), VerifyError> {
        if self.trailing.iter().all(|byte| *byte == 0) {
            Ok(())
        } else {
            let found = self.trailing.len();
            Err(malformed(format!("{found} bytes follow the quote")))
        }
    }
}

impl Body {
    /// TDATTRIBUTES.DEBUG: the host can read the TD's memory.
    pub(super) fn is_debug(&self) -> bool {
        self.td_attributes[0] & 1 != 0
    }

    fn read(reader: &mut Reader<'_>, is_1_5: bool) -> Result<Self, VerifyError> {
        Ok(Self {
            tee_tcb_svn: *reader.array("TEE_TCB_SVN")?,
            mr_seam: *reader.array("MRSEAM")?,
            mr_signer_seam: *reader.array("MRSIGNERSEAM")?,
            seam_attributes: *reader.array("SEAMATTRIBUTES")?,
            td_attributes: *reader.array("TDATTRIBUTES")?,
            xfam: *reader.array("XFAM")?,
            mr_td: *reader.array("MRTD")?,
            mr_config_id: *reader.array("MRCONFIGID")?,
            mr_owner: *reader.array("MROWNER")?,
            mr_owner_config: *reader.array("MROWNERCONFIG")?,
            rtmrs: [
                *reader.array("RTMR0")?,
                *reader.array("RTMR1")?,
                *reader.array("RTMR2")?,
                *reader.array("RTMR3")?,
            ],
            report_data: *reader.array("REPORTDATA")?,
            v1_5: match is_1_5 {
                true => Some((*reader.array("TEE_TCB_SVN2")?, *reader.array("MRSERVICETD")?)),
                false => None,
            },
        })
    }
}

/// The version, if this is a TD's quote signed with ECDSA P-256 by Intel's quoting enclave.
fn header(reader: &mut Reader<'_>) -> Result<u16, VerifyError> {
    let version = reader.u16("version")?;
    if !matches!(version, 4 | 5) {
        return Err(malformed(format!("quote version {version}, not 4 or 5 (TDX)")));
    }
    let key_type = reader.u16("attestation key type")?;
    if key_type != ECDSA_P256 {
        return Err(malformed(format!(
            "attestation key type {key_type}, not ECDSA P-256"
        )));
    }
    let tee = u32::from_le_bytes(*reader.array("TEE type")?);
    if tee != TDX {
        return Err(malformed(format!(
            "a quote of TEE type {tee:#x}, not of TDX (0x81)"
        )));
    }
    // The SVNs of QE and PCE here are not signed by Intel's certificates; collateral judges those that are.
    reader.take(4, "QE and PCE SVN")?;
    if *reader.array::<16>("QE vendor")? != INTEL_QE {
        return Err(malformed("the quoting enclave is not Intel's".into()));
    }
    reader.take(20, "user data")?;
    Ok(version)
}

fn body_is_1_5(reader: &mut Reader<'_>) -> Result<bool, VerifyError> {
    let kind = reader.u16("body type")?;
    match (kind, u32::from_le_bytes(*reader.array("body size")?)) {
        (2, 584) => Ok(false),
        (3, 648) => Ok(true),
        (kind, size) => Err(malformed(format!(
            "a body of type {kind} with {size} bytes; only TDX 1.0 (type 2, 584 bytes) and 1.5 (type 3, 648 bytes) are read"
        ))),
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8], VerifyError> {
        let (found, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| malformed(format!("the quote ends within: {what}")))?;
        self.0 = rest;
        Ok(found)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<&'a [u8; N], VerifyError> {
        let bytes = self.take(N, what)?;
        Ok(bytes.try_into().expect("as many as were taken"))
    }

    fn u16(&mut self, what: &str) -> Result<u16, VerifyError> {
        Ok(u16::from_le_bytes(*self.array(what)?))
    }

    fn length(&mut self) -> Result<usize, VerifyError> {
        Ok(u32::from_le_bytes(*self.array("length")?) as usize)
    }

    fn any_certification(&mut self) -> Result<(u16, &'a [u8]), VerifyError> {
        let (kind, length) = (self.u16("certification data type")?, self.length()?);
        Ok((kind, self.take(length, "certification data")?))
    }

    fn certification(&mut self, wanted: u16) -> Result<Self, VerifyError> {
        match self.any_certification()? {
            (kind, bytes) if kind == wanted => Ok(Self(bytes)),
            (kind, _) => Err(malformed(format!(
                "certification data of type {kind}, not {wanted}"
            ))),
        }
    }

    fn finish(self, what: &str) -> Result<(), VerifyError> {
        match self.0.len() {
            0 => Ok(()),
            left => Err(malformed(format!("{left} bytes too many in {what}"))),
        }
    }
}

fn malformed(why: String) -> VerifyError {
    VerifyError::Malformed(format!("the TD quote: {why}"))
}

const ECDSA_P256: u16 = 2;
const TDX: u32 = 0x81;
const QE_REPORT_DATA: u16 = 6;
const PCK_CHAIN: u16 = 5;
/// 939A7233-F79C-4CA9-940A-0DB3957F0607.
const INTEL_QE: [u8; 16] = [
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];
