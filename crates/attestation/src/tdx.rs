//! Intel TDX: a quote, signed by the platform's quoting enclave, that chains to Intel's SGX root.
//!
//! In call order: `quote` reads the bytes → `chain` verifies the signatures from the quote up to the root →
//! `collateral` asks `dcap-qvl` what Intel says of that platform → `event_log` replays the firmware's log →
//! `report` is what comes out → `policy` says whether it is good enough.
//!
//! Sources: Intel TDX DCAP Quoting Library API, revision 0.9, appendix 3 (quote formats 4 and 5); Intel SGX PCK
//! Certificate and CRL Profile Specification; Intel TDX Module ABI Specification 348551 (TD attributes).

mod certificate;
mod chain;
mod collateral;
mod event_log;
mod policy;
mod quote;
mod report;

pub use policy::Policy;
pub(crate) use policy::appraise;
pub use report::{Collateral, Event, Report, TcbStatus};

use crate::envelope::Envelope;
use crate::verify::VerifyError;

/// Media type of an envelope with a TD quote.
pub const MEDIA_TYPE: &str = "application/vnd.bastionai.tdx+cmw";
/// Evidence: a quote of version 4 or 5, as configfs-tsm gives it.
pub const QUOTE: &str = "application/vnd.bastionai.tdx-quote";
/// Evidence, if there is one: the firmware's log as the ACPI table CCEL points to it.
pub const EVENT_LOG: &str = "application/vnd.bastionai.ccel-event-log";
/// Endorsement: Intel's collateral for the platform, the JSON of `dcap-qvl`, binary members in hexadecimal.
pub const COLLATERAL: &str = "application/vnd.bastionai.tdx-collateral+json";

/// The root that TDX evidence may chain to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    root_ca: Vec<u8>,
}

impl Roots {
    /// The Intel SGX Root CA, until 2049.
    pub fn bundled() -> Self {
        Self::new(INTEL_SGX_ROOT_CA)
    }

    /// Another root, e.g. of a test CA: a certificate in DER with a P-256 key.
    pub fn new(root_ca: &[u8]) -> Self {
        Self {
            root_ca: root_ca.to_vec(),
        }
    }
}

/// What the items of a TDX envelope say, if they are authentic.
pub(crate) fn verify(
    envelope: &Envelope,
    roots: &Roots,
    now_unix_ms: u64,
) -> Result<([u8; 64], Report), VerifyError> {
    let mut collaterals = envelope.endorsements(COLLATERAL);
    let collateral = collaterals.next();
    if collaterals.next().is_some() {
        return Err(VerifyError::Malformed(
            "the envelope holds more than one collateral".into(),
        ));
    }
    let (report_data, mut report) = verify_quote(envelope.one(QUOTE)?, collateral, roots, now_unix_ms)?;
    if let Some(log) = envelope.at_most_one(EVENT_LOG)? {
        report.events = replay_event_log(log, &report.rtmrs)?;
    }
    Ok((report_data, report))
}

/// The events of a firmware's log, if its replay gives RTMR0–3.
///
/// # Errors
/// [`VerifyError::Malformed`] for what is no such log, and for one that gives other registers.
pub fn replay_event_log(log: &[u8], rtmrs: &[[u8; 48]; 4]) -> Result<Vec<Event>, VerifyError> {
    event_log::replay(log, rtmrs)
}

/// What a quote says, if it is authentic. Also for quotes that come inside other evidence (Azure).
///
/// The signatures are verified before anything is missed: a forged quote without collateral is a forged quote.
pub(crate) fn verify_quote(
    bytes: &[u8],
    collateral: Option<&[u8]>,
    roots: &Roots,
    now_unix_ms: u64,
) -> Result<([u8; 64], Report), VerifyError> {
    let now = now_unix_ms / 1000;
    let quote = quote::Quote::parse(bytes)?;
    let collateral = collateral.map(collateral::Given::parse).transpose()?;
    let pck_chain = match &collateral {
        Some(given) => given.pck_chain(quote.pck_chain)?,
        None => quote.pck_chain,
    };
    let chain = chain::verify(&quote, pck_chain, roots, now)?;
    let fmspc = chain.fmspc()?;
    let collateral = collateral.ok_or_else(|| VerifyError::MissingEndorsement {
        what: "the collateral of the TDX platform (TCB info, QE identity, revocation lists)".to_owned(),
        remedy: format!(
            "whoever attests should staple it as {COLLATERAL}; it comes from Intel's Provisioning Certification \
             Service (api.trustedservices.intel.com/tdx/certification/v4) or a PCCS for FMSPC {}, and is \
             good for about 30 days",
            hex::encode(fmspc)
        ),
    })?;
    quote.no_trailing_bytes()?;
    let verdict = collateral.verify(&quote, &chain, roots, now)?;
    Ok((quote.body.report_data, Report::new(&quote.body, verdict)))
}

/// SHA-256 44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3, from
/// <https://certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.cer>.
const INTEL_SGX_ROOT_CA: &[u8] = include_bytes!("tdx/intel-sgx-root-ca.der");

#[cfg(test)]
mod tests;
