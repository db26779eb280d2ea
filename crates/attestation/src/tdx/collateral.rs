//! Intel's word on a platform: TCB info, QE identity and revocation lists, judged by `dcap-qvl`.
//!
//! What `dcap-qvl` reads laxly is read here first: text around PEM, members it does not know, dates that give an error
//! of their own, lists from the future, the chain of the PCK revocation list, Intel's names and the PCE id, which it
//! does not look at.

use super::Roots;
use super::certificate::{Certificate, refused, within};
use super::chain::{self, Chain};
use super::quote::Quote;
use super::report;
use crate::verify::VerifyError;
use dcap_qvl::configs::RingConfig;
use dcap_qvl::quote::TDAttributes;
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{
    QeIdentity, QuoteClaims, QuoteCollateralV3, Tcb, TcbComponents, TcbInfo, TcbLevel, TcbStatus,
};
use serde::Deserialize;
use std::str::FromStr;
use x509_cert::crl::CertificateList;
use x509_cert::der::{DateTime, Decode};

/// Longest collateral read: revocation lists grow, and Intel's is some KiB.
pub(super) const MAX_COLLATERAL_BYTES: usize = 256 * 1024;

/// Collateral as given, nothing of it verified.
pub(super) struct Given {
    wire: Wire,
    tcb_info: TcbInfo,
    qe_identity: QeIdentity,
}

/// What collateral says of a quote's platform, authentic and valid now.
pub(super) struct Verdict {
    pub(super) claims: QuoteClaims,
    pub(super) collateral: report::Collateral,
}

/// The members of the JSON that `dcap-qvl` and PCCS clients write; binary ones in hexadecimal.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    pck_crl_issuer_chain: String,
    root_ca_crl: String,
    pck_crl: String,
    tcb_info_issuer_chain: String,
    tcb_info: String,
    tcb_info_signature: String,
    qe_identity_issuer_chain: String,
    qe_identity: String,
    qe_identity_signature: String,
    #[serde(default)]
    pck_certificate_chain: Option<String>,
}

impl Given {
    pub(super) fn parse(json: &[u8]) -> Result<Self, VerifyError> {
        if json.len() > MAX_COLLATERAL_BYTES {
            return Err(VerifyError::TooLong {
                found: json.len(),
                most: MAX_COLLATERAL_BYTES,
            });
        }
        let malformed = |what: &str, error| VerifyError::Malformed(format!("{what}: {error}"));
        let wire: Wire =
            serde_json::from_slice(json).map_err(|error| malformed("the TDX collateral", error))?;
        let tcb_info = serde_json::from_str(&wire.tcb_info).map_err(|error| malformed(TCB_INFO, error))?;
        let qe_identity =
            serde_json::from_str(&wire.qe_identity).map_err(|error| malformed(QE_IDENTITY, error))?;
        Ok(Self {
            wire,
            tcb_info,
            qe_identity,
        })
    }

    /// The PCK chain of the quote or, if it has none, of the collateral; where both have one they are the same.
    pub(super) fn pck_chain<'a>(
        &'a self,
        of_quote: Option<&'a [u8]>,
    ) -> Result<Option<&'a [u8]>, VerifyError> {
        let given = self.wire.pck_certificate_chain.as_ref().map(String::as_bytes);
        if let (Some(mine), Some(quoted)) = (given, of_quote) {
            let ders = |pem| -> Result<Vec<_>, _> {
                let certificates = Certificate::parse_pem(pem, chain::PCK)?;
                Ok::<_, VerifyError>(certificates.into_iter().map(|one| one.der).collect())
            };
            if ders(mine)? != ders(quoted)? {
                return Err(refused(chain::PCK, "the collateral's is not the quote's"));
            }
        }
        Ok(of_quote.or(given))
    }

    pub(super) fn verify(
        &self,
        quote: &Quote<'_>,
        chain: &Chain,
        roots: &Roots,
        now: u64,
    ) -> Result<Verdict, VerifyError> {
        readable(quote)?;
        let collateral = self.dates(now)?;
        let wire = &self.wire;
        let signed = [
            (
                TCB_INFO,
                &wire.tcb_info_issuer_chain,
                &wire.tcb_info,
                &wire.tcb_info_signature,
            ),
            (
                QE_IDENTITY,
                &wire.qe_identity_issuer_chain,
                &wire.qe_identity,
                &wire.qe_identity_signature,
            ),
        ];
        for (what, pem, text, signature) in signed {
            let signer = chain::issued_by_root(pem.as_bytes(), what, roots)?;
            if !signer.is_named("Intel SGX TCB Signing") {
                return Err(refused(what, "not signed by Intel's TCB signing certificate"));
            }
            self.not_revoked(&signer, &wire.root_ca_crl, what)?;
            signer.valid_at(now)?;
            signer
                .verify(text.as_bytes(), &binary(what, signature)?)
                .map_err(|_| refused(what, "its signature does not verify"))?;
        }
        let lister = chain::issued_by_root(wire.pck_crl_issuer_chain.as_bytes(), PCK_CRL, roots)?;
        if lister.parsed.tbs_certificate.subject != chain.ca.parsed.tbs_certificate.subject {
            return Err(refused(PCK_CRL, "of another CA than the platform's"));
        }
        self.not_revoked(&chain.ca, &wire.root_ca_crl, "the PCK CA's certificate")?;
        self.not_revoked(&chain.pck, &wire.pck_crl, "the platform's PCK certificate")?;
        let claims = QuoteVerifier::new(chain.root.der.clone())
            .with_config::<RingConfig>()
            .allow_debug(true)
            .allow_service_td(true)
            .dangerous_verify_claims_with_tcb_override(quote.bytes, self.for_dcap_qvl()?, now, with_floor)
            .map_err(|error| refused("the TDX quote with its collateral", format!("{error:#}")))?;
        if !self
            .tcb_info
            .pce_id
            .eq_ignore_ascii_case(&hex::encode(&claims.platform.pck.pce_id))
        {
            return Err(refused(TCB_INFO, "of another PCE id than the platform's"));
        }
        Ok(Verdict { claims, collateral })
    }

    /// Every date but those of certificates, which their chains check.
    fn dates(&self, now: u64) -> Result<report::Collateral, VerifyError> {
        let (info, identity) = (&self.tcb_info, &self.qe_identity);
        let mut collateral = report::Collateral {
            issued_unix_seconds: u64::MAX,
            next_update_unix_seconds: u64::MAX,
            verified_unix_seconds: now,
            tcb_evaluation_data_number: info
                .tcb_evaluation_data_number
                .min(identity.tcb_evaluation_data_number),
        };
        let pck_crl = validity(PCK_CRL, &self.wire.pck_crl)?;
        let monthly = [
            (
                TCB_INFO,
                date(TCB_INFO, &info.issue_date)?,
                date(TCB_INFO, &info.next_update)?,
            ),
            (
                QE_IDENTITY,
                date(QE_IDENTITY, &identity.issue_date)?,
                date(QE_IDENTITY, &identity.next_update)?,
            ),
            (PCK_CRL, pck_crl.0, pck_crl.1),
        ];
        for (what, issued, next_update) in monthly {
            within(what, issued, next_update, now)?;
            collateral.issued_unix_seconds = collateral.issued_unix_seconds.min(issued);
            collateral.next_update_unix_seconds = collateral.next_update_unix_seconds.min(next_update);
        }
        // The root's list is good for a year: it would say nothing of how fresh the rest is.
        let (issued, next_update) = validity(ROOT_CRL, &self.wire.root_ca_crl)?;
        within(ROOT_CRL, issued, next_update, now)?;
        collateral.next_update_unix_seconds = collateral.next_update_unix_seconds.min(next_update);
        Ok(collateral)
    }

    /// For the error's name; the lists' signatures are checked by `dcap-qvl`, which refuses what is revoked as well.
    fn not_revoked(&self, certificate: &Certificate, list: &str, what: &str) -> Result<(), VerifyError> {
        let list = certificate_list(what, list)?;
        let revoked = list.tbs_cert_list.revoked_certificates.unwrap_or_default();
        match revoked
            .iter()
            .any(|entry| entry.serial_number.as_bytes() == certificate.serial_number())
        {
            true => Err(VerifyError::Revoked {
                what: what.to_owned(),
            }),
            false => Ok(()),
        }
    }

    fn for_dcap_qvl(&self) -> Result<QuoteCollateralV3, VerifyError> {
        let wire = &self.wire;
        Ok(QuoteCollateralV3 {
            pck_crl_issuer_chain: wire.pck_crl_issuer_chain.clone(),
            root_ca_crl: binary(ROOT_CRL, &wire.root_ca_crl)?,
            pck_crl: binary(PCK_CRL, &wire.pck_crl)?,
            tcb_info_issuer_chain: wire.tcb_info_issuer_chain.clone(),
            tcb_info: wire.tcb_info.clone(),
            tcb_info_signature: binary(TCB_INFO, &wire.tcb_info_signature)?,
            qe_identity_issuer_chain: wire.qe_identity_issuer_chain.clone(),
            qe_identity: wire.qe_identity.clone(),
            qe_identity_signature: binary(QE_IDENTITY, &wire.qe_identity_signature)?,
            pck_certificate_chain: wire.pck_certificate_chain.clone(),
        })
    }
}

/// TCB info with a lowest level that every platform meets: out of date, and no level of Intel's.
///
/// `dcap-qvl` gives no claims at all for a platform below the levels listed, and people should see what they refuse.
/// The report says that the level is not Intel's ([`report::Report::tcb_listed`]), and no policy accepts it.
fn with_floor(mut info: TcbInfo) -> TcbInfo {
    let zeros = || vec![TcbComponents { svn: 0 }; 16];
    info.tcb_levels.push(TcbLevel {
        tcb: Tcb {
            sgx_components: zeros(),
            tdx_components: zeros(),
            pce_svn: 0,
        },
        tcb_date: "1970-01-01T00:00:00Z".to_owned(),
        tcb_status: TcbStatus::OutOfDate,
        advisory_ids: Vec::new(),
    });
    info
}

/// Whether a level is one that Intel lists: none of those has zeros alone.
pub(super) fn is_listed(level: &TcbLevel) -> bool {
    level.tcb.sgx_components.iter().any(|component| component.svn > 0)
}

/// What `dcap-qvl` refuses whatever a policy says, under a name that people can act on.
fn readable(quote: &Quote<'_>) -> Result<(), VerifyError> {
    let attributes = TDAttributes::parse(quote.body.td_attributes)
        .map_err(|error| VerifyError::Malformed(format!("the TD quote: its attributes: {error}")))?;
    let why = if attributes.reserved != 0 {
        "reserved bits are set"
    } else if attributes.sec.migratable {
        "the TD is migratable: another machine may come to hold it, which no quote shows"
    } else if !attributes.sec.sept_ve_disable {
        "SEPT_VE_DISABLE is off: the host could inject exceptions by taking pages away"
    } else {
        return Ok(());
    };
    let what = format!("the TD's attributes {}", hex::encode(quote.body.td_attributes));
    Err(refused(&what, why))
}

fn validity(what: &str, list: &str) -> Result<(u64, u64), VerifyError> {
    let list = certificate_list(what, list)?.tbs_cert_list;
    let next_update = list
        .next_update
        .ok_or_else(|| refused(what, "no date of its next update"))?;
    let seconds = |time: x509_cert::time::Time| time.to_unix_duration().as_secs();
    Ok((seconds(list.this_update), seconds(next_update)))
}

fn certificate_list(what: &str, list: &str) -> Result<CertificateList, VerifyError> {
    CertificateList::from_der(&binary(what, list)?).map_err(|error| refused(what, error))
}

fn binary(what: &str, hexadecimal: &str) -> Result<Vec<u8>, VerifyError> {
    hex::decode(hexadecimal).map_err(|error| VerifyError::Malformed(format!("{what}: {error}")))
}

fn date(what: &str, text: &str) -> Result<u64, VerifyError> {
    let date = DateTime::from_str(text)
        .map_err(|error| VerifyError::Malformed(format!("{what}: the date {text:?}: {error}")))?;
    Ok(date.unix_duration().as_secs())
}

const TCB_INFO: &str = "the TCB info";
const QE_IDENTITY: &str = "the identity of the quoting enclave";
const PCK_CRL: &str = "the revocation list of the PCK CA";
const ROOT_CRL: &str = "the revocation list of the root CA";
