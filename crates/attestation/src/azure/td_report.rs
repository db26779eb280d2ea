//! The TD report in the paravisor's report and the TD quote beside it: they speak of one TD, or are refused.
//!
//! A TD report is authenticated by a MAC of the processor that made it, which nobody else can check. The quote is
//! signed, and covers all that the TD report says of the TD: of the TD report itself nothing is believed, and CPUSVN and
//! the MAC, which the quote does not have, are not read. Offsets: *Intel TDX Module ABI*, `TDREPORT_STRUCT`
//! (`REPORTMACSTRUCT`, `TEE_TCB_INFO`, `TDINFO_STRUCT`); *Intel TDX DCAP Quoting Library API*, TD quote body.

use super::hcl::TD_BYTES;
use crate::verify::VerifyError;
use sha2::{Digest, Sha384};
use std::ops::Range;

/// Checks that the body of an (unverified) quote says what the TD report says.
pub(super) fn check(report: &[u8; TD_BYTES], quote: &[u8]) -> Result<(), VerifyError> {
    let unbound = |why: String| VerifyError::Unbound {
        what: "the TD report of the paravisor".to_owned(),
        why,
    };
    if report[..TYPE.len()] != TYPE {
        return Err(unbound("it is of a type other than TDX".to_owned()));
    }
    let body = body(quote)?;
    for (name, in_report, in_body) in FIELDS {
        if report[in_report] != body[in_body] {
            return Err(unbound(format!("its {name} is not that of the TD quote")));
        }
    }
    for reserved in RESERVED {
        if report[reserved].iter().any(|byte| *byte != 0) {
            return Err(unbound("a reserved byte of it is not zero".to_owned()));
        }
    }
    for (name, digest, of) in HASHES {
        if Sha384::digest(&report[of])[..] != report[digest] {
            return Err(unbound(format!("its {name} is not the SHA-384 of what follows")));
        }
    }
    Ok(())
}

/// The body of a quote of version 4 or 5, at least that of TDX 1.0.
fn body(quote: &[u8]) -> Result<&[u8], VerifyError> {
    let start = match quote {
        [4, 0, ..] => HEADER_BYTES,
        // Version 5 has a type and a size before the body.
        [5, 0, ..] => HEADER_BYTES + 6,
        _ => {
            return Err(VerifyError::Malformed(
                "the TD quote is neither of version 4 nor of version 5".to_owned(),
            ));
        }
    };
    quote
        .get(start..start + BODY_BYTES)
        .ok_or_else(|| VerifyError::Malformed("the TD quote is truncated".to_owned()))
}

/// `REPORTTYPE`: TDX, subtype 0, version 0.
const TYPE: [u8; 4] = [0x81, 0, 0, 0];
const HEADER_BYTES: usize = 48;
const BODY_BYTES: usize = 584;
/// Name, bytes of the TD report, bytes of the body.
const FIELDS: [(&str, Range<usize>, Range<usize>); 12] = [
    ("REPORTDATA", 128..192, 520..584),
    ("TEE_TCB_SVN", 264..280, 0..16),
    ("MRSEAM", 280..328, 16..64),
    ("MRSIGNERSEAM", 328..376, 64..112),
    ("SEAM attributes", 376..384, 112..120),
    ("TD attributes", 512..520, 120..128),
    ("XFAM", 520..528, 128..136),
    ("MRTD", 528..576, 136..184),
    ("MRCONFIGID", 576..624, 184..232),
    ("MROWNER", 624..672, 232..280),
    ("MROWNERCONFIG", 672..720, 280..328),
    ("RTMRs", 720..912, 328..520),
];
/// Name, bytes of the digest, what it is of.
const HASHES: [(&str, Range<usize>, Range<usize>); 2] = [
    ("TEE_TCB_INFO_HASH", 32..80, 256..495),
    ("TEE_INFO_HASH", 80..128, 512..1024),
];
const RESERVED: [Range<usize>; 3] = [4..16, 192..224, 495..512];
