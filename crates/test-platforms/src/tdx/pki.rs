//! Keys and certificates of the test Intel.

use super::quote::{CPU_SVN, PCE_SVN};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DistinguishedName,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, RevocationReason,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use std::time::Duration;

/// A root of its own, and one platform under it.
pub struct TestIntel {
    root_der: Vec<u8>,
    root_pem: String,
    root: Issuer<'static, KeyPair>,
    ca_pem: String,
    ca: Issuer<'static, KeyPair>,
    pck_pem: String,
    tcb_signer_pem: String,
    pub(super) pck_key: Key,
    pub(super) attestation_key: Key,
    pub(super) tcb_key: Key,
}

impl TestIntel {
    /// New keys; certificates are valid from 2020 to 2049.
    pub fn new() -> Self {
        let (root_key, ca_key) = (Key::new(), Key::new());
        let (pck_key, tcb_key) = (Key::new(), Key::new());
        let root_params = authority("Intel SGX Root CA", 1);
        let root_cert = root_params
            .self_signed(&root_key.pair())
            .expect("a valid certificate");
        let root = Issuer::new(root_params, root_key.pair());
        let ca_params = authority("Intel SGX PCK Platform CA", 2);
        let ca_cert = ca_params
            .signed_by(&ca_key.pair(), &root)
            .expect("a valid certificate");
        let ca = Issuer::new(ca_params, ca_key.pair());
        let mut pck = leaf("Intel SGX PCK Certificate", PCK_SERIAL);
        let sgx = CustomExtension::from_oid_content(&[1, 2, 840, 113741, 1, 13, 1], sgx_extensions());
        pck.custom_extensions.push(sgx);
        let pck_cert = pck.signed_by(&pck_key.pair(), &ca).expect("a valid certificate");
        let signer = leaf("Intel SGX TCB Signing", 4);
        let tcb_signer = signer
            .signed_by(&tcb_key.pair(), &root)
            .expect("a valid certificate");
        Self {
            root_der: root_cert.der().to_vec(),
            root_pem: unix_lines(&root_cert.pem()),
            root,
            ca_pem: unix_lines(&ca_cert.pem()),
            ca,
            pck_pem: unix_lines(&pck_cert.pem()),
            tcb_signer_pem: unix_lines(&tcb_signer.pem()),
            pck_key,
            attestation_key: Key::new(),
            tcb_key,
        }
    }

    /// The root that a relying party must trust, in DER.
    pub fn root_ca(&self) -> &[u8] {
        &self.root_der
    }

    /// Name of the platform.
    pub fn ppid(&self) -> [u8; 16] {
        PPID
    }

    pub(super) fn pck_chain(&self) -> String {
        format!("{}{}{}", self.pck_pem, self.ca_pem, self.root_pem)
    }

    pub(super) fn ca_chain(&self) -> String {
        format!("{}{}", self.ca_pem, self.root_pem)
    }

    pub(super) fn tcb_signer_chain(&self) -> String {
        format!("{}{}", self.tcb_signer_pem, self.root_pem)
    }

    /// Lists of the root and of the PCK CA, in DER.
    pub(super) fn revocation_lists(&self, issued: u64, next_update: u64, pck_revoked: bool) -> [Vec<u8>; 2] {
        let at = |seconds| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
        let list = |revoked_certs, issuer: &Issuer<'static, KeyPair>| {
            let list = CertificateRevocationListParams {
                this_update: at(issued),
                next_update: at(next_update),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs,
                key_identifier_method: KeyIdMethod::Sha256,
            };
            list.signed_by(issuer).expect("a valid list").der().to_vec()
        };
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(PCK_SERIAL),
            revocation_time: at(issued),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        let of_ca = if pck_revoked { vec![revoked] } else { Vec::new() };
        [list(Vec::new(), &self.root), list(of_ca, &self.ca)]
    }
}

impl Default for TestIntel {
    fn default() -> Self {
        Self::new()
    }
}

/// A P-256 key, for certificates as well as for raw signatures.
pub(super) struct Key(Vec<u8>);

impl Key {
    fn new() -> Self {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        Self(document.expect("the system has random numbers").as_ref().to_vec())
    }

    fn pair(&self) -> KeyPair {
        let der = self.0.as_slice().into();
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256).expect("a key made here")
    }

    fn ring(&self) -> EcdsaKeyPair {
        let rng = SystemRandom::new();
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &self.0, &rng).expect("a key made here")
    }

    /// `x ‖ y`.
    pub(super) fn public_point(&self) -> Vec<u8> {
        self.ring().public_key().as_ref()[1..].to_vec()
    }

    /// `r ‖ s`.
    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature = self.ring().sign(&SystemRandom::new(), message);
        signature
            .expect("the system has random numbers")
            .as_ref()
            .to_vec()
    }
}

fn named(common_name: &str, serial: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Test Intel");
    params.serial_number = Some(SerialNumber::from(serial));
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 12, 31);
    params
}

fn authority(common_name: &str, serial: u64) -> CertificateParams {
    let mut params = named(common_name, serial);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf(common_name: &str, serial: u64) -> CertificateParams {
    let mut params = named(common_name, serial);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn unix_lines(pem: &str) -> String {
    pem.replace("\r\n", "\n")
}

/// Intel SGX PCK Certificate and CRL Profile Specification, table 3-7.
fn sgx_extensions() -> Vec<u8> {
    let octets = |bytes: &[u8]| der(0x04, bytes);
    let mut tcb: Vec<u8> = Vec::new();
    for (index, svn) in CPU_SVN.iter().enumerate() {
        tcb.extend(entry(&[2, index as u8 + 1], der(0x02, &[*svn])));
    }
    tcb.extend(entry(&[2, 17], der(0x02, &[PCE_SVN as u8])));
    tcb.extend(entry(&[2, 18], octets(&CPU_SVN)));
    let yes = || der(0x01, &[0xff]);
    let configuration = [
        entry(&[7, 1], yes()),
        entry(&[7, 2], yes()),
        entry(&[7, 3], yes()),
    ]
    .concat();
    let entries = [
        entry(&[1], octets(&PPID)),
        entry(&[2], der(0x30, &tcb)),
        entry(&[3], octets(&[0, 0])),
        entry(&[4], octets(&FMSPC)),
        entry(&[5], der(0x0a, &[1])),
        entry(&[6], octets(&[0x1d; 16])),
        entry(&[7], der(0x30, &configuration)),
    ];
    der(0x30, &entries.concat())
}

/// `SEQUENCE { 1.2.840.113741.1.13.1.path, value }`.
fn entry(path: &[u8], value: Vec<u8>) -> Vec<u8> {
    let oid = [&[0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 1, 13, 1], path].concat();
    der(0x30, &[der(0x06, &oid), value].concat())
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut bytes = match length {
        0..128 => vec![tag, length as u8],
        128..256 => vec![tag, 0x81, length as u8],
        _ => vec![tag, 0x82, (length >> 8) as u8, length as u8],
    };
    bytes.extend(content);
    bytes
}

const PCK_SERIAL: u64 = 3;
const PPID: [u8; 16] = [0x99; 16];
pub(super) const FMSPC: [u8; 6] = [0x90, 0xc0, 0x6f, 0, 0, 0];
pub(super) const QE_MR_SIGNER: [u8; 32] = [0xdc; 32];
