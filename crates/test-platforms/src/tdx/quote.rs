//! Quotes: what a TD reports, signed by the platform's quoting enclave.

use super::pki::{QE_MR_SIGNER, TestIntel};
use ring::digest::{SHA256, digest};

/// What a quote says besides the report data.
#[derive(Clone, Debug)]
pub struct TestTd {
    /// Quote version, 4 or 5.
    pub version: u16,
    /// MRTD.
    pub mr_td: [u8; 48],
    /// RTMR0–3.
    pub rtmrs: [[u8; 48]; 4],
    /// TDATTRIBUTES.
    pub attributes: u64,
    /// TEE_TCB_SVN.
    pub tee_tcb_svn: [u8; 16],
    /// MRSIGNERSEAM; zero is Intel.
    pub mr_signer_seam: [u8; 48],
    /// MRCONFIGID.
    pub mr_config_id: [u8; 48],
    /// With a TDX 1.5 body (version 5 only): MRSERVICETD; TEE_TCB_SVN2 is as at the launch.
    pub mr_service_td: Option<[u8; 48]>,
}

impl Default for TestTd {
    /// A TD in order: SEPT_VE_DISABLE alone, MRTD and RTMR0–2 of ones, twos, … and RTMR3 of zeros.
    fn default() -> Self {
        Self {
            version: 4,
            mr_td: [0xd0; 48],
            rtmrs: [[1; 48], [2; 48], [3; 48], [0; 48]],
            attributes: 1 << 28,
            tee_tcb_svn: TEE_TCB_SVN,
            mr_signer_seam: [0; 48],
            mr_config_id: [0; 48],
            mr_service_td: None,
        }
    }
}

impl TestIntel {
    /// A quote of the TD over `report_data`.
    pub fn quote(&self, td: &TestTd, report_data: &[u8; 64]) -> Vec<u8> {
        let mut signed = header(td.version);
        if td.version == 5 {
            let (kind, size) = if td.mr_service_td.is_some() {
                (3u16, 648u32)
            } else {
                (2, 584)
            };
            signed.extend(kind.to_le_bytes());
            signed.extend(size.to_le_bytes());
        }
        for part in [&td.tee_tcb_svn[..], &[0x5e; 48], &td.mr_signer_seam, &[0; 8]] {
            signed.extend(part);
        }
        signed.extend(td.attributes.to_le_bytes());
        // XFAM: x87, SSE, AVX, AVX-512, PKRU, AMX.
        signed.extend(0x0006_02e7u64.to_le_bytes());
        for part in [&td.mr_td, &td.mr_config_id, &[0; 48], &[0; 48]] {
            signed.extend(part);
        }
        signed.extend(td.rtmrs.concat());
        signed.extend(report_data);
        if let Some(service) = &td.mr_service_td {
            signed.extend(td.tee_tcb_svn);
            signed.extend(service);
        }
        let auth = self.auth_data(&signed);
        signed.extend((auth.len() as u32).to_le_bytes());
        signed.extend(auth);
        signed
    }

    fn auth_data(&self, signed: &[u8]) -> Vec<u8> {
        let attestation_key = self.attestation_key.public_point();
        let qe_auth_data = [0x0a; 32];
        let bound = digest(&SHA256, &[&attestation_key[..], &qe_auth_data].concat());
        let qe_report = qe_report(bound.as_ref());
        let chain = self.pck_chain();
        let mut qe = qe_report.clone();
        qe.extend(self.pck_key.sign(&qe_report));
        qe.extend(32u16.to_le_bytes());
        qe.extend(qe_auth_data);
        qe.extend(certification(5, chain.as_bytes()));
        let mut auth = self.attestation_key.sign(signed);
        auth.extend(attestation_key);
        auth.extend(certification(6, &qe));
        auth
    }
}

fn header(version: u16) -> Vec<u8> {
    let mut header = Vec::with_capacity(48);
    header.extend(version.to_le_bytes());
    header.extend(2u16.to_le_bytes());
    header.extend(0x81u32.to_le_bytes());
    header.extend([0; 4]);
    header.extend([
        0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
    ]);
    header.extend([0; 20]);
    header
}

/// An SGX report of the quoting enclave: attributes INIT and MODE64BIT, product 2, security version 4.
fn qe_report(bound: &[u8]) -> Vec<u8> {
    let mut report = vec![0; 384];
    report[..16].copy_from_slice(&CPU_SVN);
    report[48] = 0x11;
    report[64..96].fill(0x0e);
    report[128..160].copy_from_slice(&QE_MR_SIGNER);
    report[256] = 2;
    report[258] = 4;
    report[320..352].copy_from_slice(bound);
    report
}

fn certification(kind: u16, bytes: &[u8]) -> Vec<u8> {
    [
        &kind.to_le_bytes()[..],
        &(bytes.len() as u32).to_le_bytes(),
        bytes,
    ]
    .concat()
}

/// Security versions of the test platform's processor; its collateral asks for these.
pub(super) const CPU_SVN: [u8; 16] = [2; 16];
/// Security version of the provisioning enclave.
pub(super) const PCE_SVN: u16 = 11;
/// TDX module 1, security version 5.
pub(super) const TEE_TCB_SVN: [u8; 16] = [5, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
