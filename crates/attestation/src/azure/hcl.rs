//! The report of Azure's paravisor (HCL, OpenHCL): a report of the TEE, and the runtime data it vouches for.
//!
//! Little-endian, as OpenHCL's `openhcl_attestation_protocol::igvm_attest::get` has it:
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..32 | header: `HCLA`, version, size of all but padding, request type, status, 12 reserved bytes |
//! | 32..1216 | SEV-SNP report (1184 bytes), or TD report (1024 bytes) and zeros |
//! | 1216..1236 | size of this and the next, version, type of report, type of hash, size of the next |
//! | 1236.. | runtime data: JSON |
//! | behind | zeros up to the size of the NV index of the vTPM it is read from |
//!
//! Nothing but the report is signed, by the TEE; its report data is the SHA-256 of the JSON and 32 zeros. The rest is
//! only framing: it is read strictly, so that there is one way to write a report.

use crate::verify::VerifyError;
use sha2::{Digest, Sha256};

/// A report whose runtime data the report of the TEE names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hcl<'a> {
    pub(super) tee: TeeReport<'a>,
    /// JSON.
    pub(super) runtime: &'a [u8],
}

/// The report inside, unverified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TeeReport<'a> {
    Snp(&'a [u8; SNP_BYTES]),
    Tdx(&'a [u8; TD_BYTES]),
}

impl<'a> Hcl<'a> {
    /// Reads a report and checks that its runtime data are those that the report of the TEE names.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, VerifyError> {
        if bytes.len() > MAX_BYTES {
            return Err(malformed(format!(
                "{} bytes, at most {MAX_BYTES} are read",
                bytes.len()
            )));
        }
        let (header, rest) = split(bytes, HEADER_BYTES, "the header")?;
        let (report, rest) = split(rest, SNP_BYTES, "the report of the TEE")?;
        let (request, rest) = split(rest, REQUEST_BYTES, "the request data")?;
        let request = words(request);
        let (runtime, padding) = split(rest, request[4] as usize, "the runtime data")?;
        let sizes = [
            HEADER_BYTES + SNP_BYTES + REQUEST_BYTES + runtime.len(),
            REQUEST_BYTES + runtime.len(),
        ];
        check_header(&words(header), &request, sizes)?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(malformed("bytes other than zero follow the runtime data"));
        }
        let tee = match request[2] {
            SNP_VM_REPORT => TeeReport::Snp(report.try_into().expect("split at this length")),
            TDX_VM_REPORT => {
                let (report, zeros) = report.split_first_chunk().expect("shorter than SNP's");
                if zeros.iter().any(|byte| *byte != 0) {
                    return Err(malformed("bytes other than zero follow the TD report"));
                }
                TeeReport::Tdx(report)
            }
            other => {
                return Err(malformed(format!(
                    "report type {other} is neither 2 (SEV-SNP) nor 4 (TDX)"
                )));
            }
        };
        let hcl = Self { tee, runtime };
        hcl.check_binding()?;
        Ok(hcl)
    }

    fn check_binding(&self) -> Result<(), VerifyError> {
        let mut named = [0; 64];
        named[..32].copy_from_slice(&Sha256::digest(self.runtime));
        if *self.tee.report_data() == named {
            return Ok(());
        }
        Err(VerifyError::Unbound {
            what: "the runtime data of the paravisor".to_owned(),
            why: "their SHA-256 and 32 zeros are not the report data of the TEE's report".to_owned(),
        })
    }
}

impl<'a> TeeReport<'a> {
    /// What the paravisor asked the TEE to sign along: SNP ABI, table 23; TDX module ABI, `REPORTMACSTRUCT`.
    pub(super) fn report_data(&self) -> &'a [u8; 64] {
        let start = match self {
            Self::Snp(_) => 0x50,
            Self::Tdx(_) => 128,
        };
        let bytes: &[u8] = match self {
            Self::Snp(report) => *report,
            Self::Tdx(report) => *report,
        };
        bytes[start..start + 64].try_into().expect("64 bytes")
    }
}

fn check_header(header: &[u32], request: &[u32], sizes: [usize; 2]) -> Result<(), VerifyError> {
    if header[0] != u32::from_le_bytes(*b"HCLA") {
        return Err(malformed("does not begin with HCLA"));
    }
    let fields = [
        ("version of the header", header[1], &[1, 2][..]),
        ("size of the report", header[2], &[sizes[0] as u32]),
        ("type of request", header[3], &[AK_CERT_REQUEST]),
        ("status", header[4], &[0]),
        ("reserved word", header[5] | header[6] | header[7], &[0]),
        ("size of the request data", request[0], &[sizes[1] as u32]),
        ("version of the request", request[1], &[1]),
        ("type of hash", request[3], &[SHA_256]),
    ];
    for (name, found, known) in fields {
        if !known.contains(&found) {
            return Err(malformed(format!("the {name} is {found}, known is {known:?}")));
        }
    }
    Ok(())
}

fn split<'a>(bytes: &'a [u8], length: usize, field: &str) -> Result<(&'a [u8], &'a [u8]), VerifyError> {
    bytes
        .split_at_checked(length)
        .ok_or_else(|| malformed(format!("{field} is truncated")))
}

fn words(bytes: &[u8]) -> Vec<u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

fn malformed(why: impl AsRef<str>) -> VerifyError {
    VerifyError::Malformed(format!("the paravisor's report: {}", why.as_ref()))
}

const HEADER_BYTES: usize = 32;
const REQUEST_BYTES: usize = 20;
/// Of a SEV-SNP report: the longest there is.
const SNP_BYTES: usize = 1184;
/// `TDREPORT_STRUCT`.
pub(super) const TD_BYTES: usize = 1024;
/// The NV index has 2600 bytes; runtime data grow by a member now and then.
const MAX_BYTES: usize = 16 * 1024;
/// Runtime data of this request name the keys of the vTPM; those of a key release name another key.
const AK_CERT_REQUEST: u32 = 2;
const SNP_VM_REPORT: u32 = 2;
const TDX_VM_REPORT: u32 = 4;
const SHA_256: u32 = 1;
