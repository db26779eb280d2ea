//! The JSON in which confidential-containers' Trustee carries evidence of Azure VMs (`az-snp-vtpm`, `az-tdx-vtpm`,
//! version 1), for looking at evidence that others collected.
//!
//! ```json
//! {"version": 1, "hcl_report": "<base64>", "vcek": "<base64, DER>", "td_quote": "<base64>",
//!  "tpm_quote": {"message": "<hex, TPMS_ATTEST>", "signature": "<hex, RSASSA with SHA-256>", "pcrs": ["<hex>", …]}}
//! ```
//!
//! `vcek` is there on SNP, `td_quote` on TDX; `pcrs` are all 24 of the SHA-256 bank.

use super::Pieces;
use crate::envelope::Envelope;
use crate::tpm::{MAX_RSA, Quote, rsassa_sha256};
use crate::verify::VerifyError;
use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

/// The envelope of such evidence; collateral, or AMD's chain, may be added to its endorsements.
///
/// # Errors
/// [`VerifyError::Malformed`] for anything else.
pub fn evidence_json(json: &[u8]) -> Result<Envelope, VerifyError> {
    let evidence: EvidenceV1 = serde_json::from_slice(json).map_err(|error| malformed(error.to_string()))?;
    if evidence.version != 1 {
        return Err(malformed(format!("version {}, known is 1", evidence.version)));
    }
    let optional = |name, text: Option<String>| text.map(|text| base64(name, &text)).transpose();
    let pieces = Pieces {
        hcl_report: base64("hcl_report", &evidence.hcl_report)?,
        quote: Some(evidence.tpm_quote.read()?.to_bytes()),
        td_quote: optional("td_quote", evidence.td_quote)?,
        certificates: optional("vcek", evidence.vcek)?.into_iter().collect(),
        ..Pieces::default()
    };
    Ok(pieces.into_envelope())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EvidenceV1 {
    version: u32,
    hcl_report: String,
    tpm_quote: TpmQuote,
    td_quote: Option<String>,
    vcek: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TpmQuote {
    message: String,
    signature: String,
    pcrs: Vec<String>,
}

impl TpmQuote {
    fn read(&self) -> Result<Quote, VerifyError> {
        let signature = hex("signature", &self.signature)?;
        let attest = hex("message", &self.message)?;
        if signature.len() > MAX_RSA || attest.len() > usize::from(u16::MAX) {
            return Err(malformed("message or signature is longer than a TPM makes it"));
        }
        let mut quote = Quote {
            attest,
            signature: rsassa_sha256(&signature),
            pcrs: vec![],
        };
        for index in quote.selected()? {
            let text = self
                .pcrs
                .get(usize::from(index))
                .ok_or_else(|| malformed(format!("PCR {index} is quoted and not there")))?;
            let value = hex("pcrs", text)?;
            let value = value
                .try_into()
                .map_err(|_| malformed(format!("PCR {index} is not of 32 bytes")))?;
            quote.pcrs.push(value);
        }
        Ok(quote)
    }
}

/// Either alphabet, with padding or without: Trustee mixes them in one file.
fn base64(name: &str, text: &str) -> Result<Vec<u8>, VerifyError> {
    let alphabet = if text.contains(['-', '_']) {
        &URL_SAFE
    } else {
        &STANDARD
    };
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(alphabet, config)
        .decode(text)
        .map_err(|error| malformed(format!("{name}: {error}")))
}

fn hex(name: &str, text: &str) -> Result<Vec<u8>, VerifyError> {
    hex::decode(text).map_err(|error| malformed(format!("{name}: {error}")))
}

fn malformed(why: impl AsRef<str>) -> VerifyError {
    VerifyError::Malformed(format!("evidence of version 1: {}", why.as_ref()))
}
