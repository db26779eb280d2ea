//! The signatures: quote ← attestation key ← QE report ← PCK certificate ← PCK CA ← root.

use super::Roots;
use super::certificate::{Certificate, refused};
use super::quote::Quote;
use crate::verify::VerifyError;
use dcap_qvl::intel::parse_pck_extension;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use sha2::{Digest, Sha256};

/// A PCK certificate that leads to the root, and has signed for the quote. Revocation is collateral's matter.
pub(super) struct Chain {
    pub(super) pck: Certificate,
    pub(super) ca: Certificate,
    pub(super) root: Certificate,
}

impl Chain {
    /// The platform's model and configuration, by which Intel files its collateral.
    pub(super) fn fmspc(&self) -> Result<[u8; 6], VerifyError> {
        let extension =
            parse_pck_extension(&self.pck.der).map_err(|error| refused(PCK, format!("{error:#}")))?;
        Ok(extension.fmspc)
    }
}

/// `pck_chain` in PEM: the PCK certificate, its CA and perhaps the root.
pub(super) fn verify(
    quote: &Quote<'_>,
    pck_chain: Option<&[u8]>,
    roots: &Roots,
    now: u64,
) -> Result<Chain, VerifyError> {
    let pem = pck_chain.ok_or_else(|| VerifyError::MissingEndorsement {
        what: PCK.to_owned(),
        remedy: "the quote names its platform by an encrypted PPID: staple collateral with `pck_certificate_chain`"
            .to_owned(),
    })?;
    let (pck, ca, root) = path(pem, PCK, roots)?;
    let is_pck_ca = ca.is_named("Intel SGX PCK Platform CA") || ca.is_named("Intel SGX PCK Processor CA");
    if !pck.is_named("Intel SGX PCK Certificate") || !is_pck_ca {
        return Err(refused(PCK, "not one of Intel's PCK certificates by name"));
    }
    for certificate in [&pck, &ca, &root] {
        certificate.valid_at(now)?;
    }
    pck.verify(quote.qe_report, quote.qe_report_signature)?;
    let report_data = &quote.qe_report[384 - 64..];
    let digest = Sha256::new()
        .chain_update(quote.attestation_key)
        .chain_update(quote.qe_auth_data)
        .finalize();
    // The quoting enclave vouches for the attestation key: 32 bytes of digest, 32 of zero.
    if report_data[..32] != digest[..] || report_data[32..] != [0; 32] {
        return Err(VerifyError::Signature);
    }
    let attestation_key = [&[4][..], quote.attestation_key].concat();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &attestation_key)
        .verify(quote.signed, quote.signature)
        .map_err(|_| VerifyError::Signature)?;
    Ok(Chain { pck, ca, root })
}

/// A leaf, the CA between, and the root; the root may be left out of the PEM, and is ours in any case.
pub(super) fn path(
    pem: &[u8],
    what: &str,
    roots: &Roots,
) -> Result<(Certificate, Certificate, Certificate), VerifyError> {
    let mut certificates = Certificate::parse_pem(pem, what)?;
    let root = root(&mut certificates, 2, what, roots)?;
    let (Some(ca), Some(leaf)) = (certificates.pop(), certificates.pop()) else {
        return Err(refused(what, "not a leaf, a CA and the root"));
    };
    ca.issued_by(&root)?;
    leaf.issued_by(&ca)?;
    Ok((leaf, ca, root))
}

/// One certificate that the root issued itself.
pub(super) fn issued_by_root(pem: &[u8], what: &str, roots: &Roots) -> Result<Certificate, VerifyError> {
    let mut certificates = Certificate::parse_pem(pem, what)?;
    let root = root(&mut certificates, 1, what, roots)?;
    let certificate = certificates
        .pop()
        .ok_or_else(|| refused(what, "no certificate"))?;
    certificate.issued_by(&root)?;
    Ok(certificate)
}

/// Our root; takes it off the end of a list that should hold `wanted` certificates besides.
fn root(
    list: &mut Vec<Certificate>,
    wanted: usize,
    what: &str,
    roots: &Roots,
) -> Result<Certificate, VerifyError> {
    if list.len() == wanted + 1
        && let Some(last) = list.pop()
        && last.der != roots.root_ca
    {
        return Err(refused(what, "it leads to another root than the one trusted"));
    }
    if list.len() != wanted {
        return Err(refused(
            what,
            format!("{} certificates, not {wanted} and the root", list.len()),
        ));
    }
    Certificate::parse(&roots.root_ca, "the root CA")
}

pub(super) const PCK: &str = "the PCK certificate chain";
