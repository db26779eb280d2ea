//! A test Azure VM: a paravisor that has a TEE (of another test vendor) vouch for its runtime data, and a vTPM whose
//! attestation key is one of two that everybody has.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bastionai_attestation::azure::{MEDIA_TYPE, Pieces};
use bastionai_attestation::envelope::{CERTIFICATE, REVOCATION_LIST};
use bastionai_attestation::tpm::Quote;
use bastionai_attestation::{AttestError, Attester, Envelope, Evidence, tdx};
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// How the VM is to be run, before it is booted.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// `vm-configuration` in the paravisor's runtime data: a JSON object.
    pub vm_configuration: String,
    /// PKCS #8 of the key that the paravisor names as the vTPM's.
    pub attestation_key: &'static [u8],
}

impl Default for Configuration {
    /// Secure boot, no console, [`ATTESTATION_KEY`].
    fn default() -> Self {
        Self {
            vm_configuration: r#"{"console-enabled":false,"secure-boot":true,"tpm-enabled":true,"vmUniqueId":"11111111-2222-3333-4444-555555555555"}"#
                .to_owned(),
            attestation_key: ATTESTATION_KEY,
        }
    }
}

/// A VM that runs. [`Attester::attest`] quotes all PCRs over the report data.
pub struct TestAzure {
    /// All pieces but the quote.
    pub pieces: Pieces,
    /// PCR values, by index. Set them as if something had been measured.
    pub pcrs: BTreeMap<u8, [u8; 32]>,
    /// The key that the vTPM signs with: the one named, unless a test swaps it.
    pub signing_key: &'static [u8],
}

impl TestAzure {
    /// Boots: `tee` is asked once for evidence over the report data that names the runtime data.
    ///
    /// Its envelope holds a SEV-SNP report or a TD quote of version 4, with all endorsements.
    ///
    /// # Panics
    /// If it holds neither.
    pub fn boot(configuration: &Configuration, tee: impl FnOnce(&[u8; 64]) -> Envelope) -> Self {
        let runtime = runtime_data(configuration);
        let mut report_data = [0; 64];
        report_data[..32].copy_from_slice(&Sha256::digest(&runtime));
        let pieces = pieces(tee(&report_data), &runtime);
        Self {
            pieces,
            pcrs: (0..24).map(|index| (index, pcr(index))).collect(),
            signing_key: configuration.attestation_key,
        }
    }

    /// A quote of `pcrs` over any qualifying data.
    pub fn quote(&self, qualifying_data: &[u8]) -> Quote {
        let mut selection = [0_u8; 3];
        for index in self.pcrs.keys() {
            selection[usize::from(index / 8)] |= 1 << (index % 8);
        }
        let pcrs: Vec<[u8; 32]> = self.pcrs.values().copied().collect();
        let sized = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
        let attest = [
            &[0xff, 0x54, 0x43, 0x47, 0x80, 0x18][..],
            &sized(&[&[0, 0x0b][..], &[7; 32]].concat()),
            &sized(qualifying_data),
            // Clock in ms, resets, restarts, safe, firmware version.
            &[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 1],
            &0x2020_0312_0012_0003_u64.to_be_bytes(),
            &[0, 0, 0, 1, 0, 0x0b, 3],
            &selection,
            &sized(&Sha256::digest(pcrs.as_flattened())),
        ]
        .concat();
        let key = RsaKeyPair::from_pkcs8(self.signing_key).expect("a key of this crate");
        let mut signature = vec![0; key.public().modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &attest, &mut signature)
            .expect("the system has random numbers");
        Quote {
            attest,
            // TPMT_SIGNATURE: RSASSA, SHA-256.
            signature: [&[0, 0x14, 0, 0x0b][..], &sized(&signature)].concat(),
            pcrs,
        }
    }

    /// All pieces, with a quote over any qualifying data.
    pub fn pieces_over(&self, qualifying_data: &[u8]) -> Pieces {
        Pieces {
            quote: Some(self.quote(qualifying_data).to_bytes()),
            ..self.pieces.clone()
        }
    }
}

impl Attester for TestAzure {
    fn media_type(&self) -> &'static str {
        MEDIA_TYPE
    }

    fn attest(&self, report_data: &[u8; 64]) -> Result<Evidence, AttestError> {
        Ok(Evidence {
            media_type: MEDIA_TYPE.to_owned(),
            bytes: self.pieces_over(report_data).into_envelope().to_bytes(),
        })
    }
}

/// What a test PCR holds: something up to 15, zeros or ones in those that only a running system extends.
pub fn pcr(index: u8) -> [u8; 32] {
    match index {
        0..=15 => Sha256::digest([index]).into(),
        17..=22 => [0xff; 32],
        _ => [0; 32],
    }
}

/// The paravisor's report: framing around what `report_type` (2: SNP, 4: TDX) is made of, as long as the NV index.
pub fn hcl_report(report: &[u8], report_type: u32, runtime: &[u8]) -> Vec<u8> {
    let length = runtime.len() as u32;
    let words = |words: &[u32]| {
        words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect::<Vec<_>>()
    };
    let mut bytes = b"HCLA".to_vec();
    bytes.extend(words(&[1, 1236 + length, 2, 0, 0, 0, 0]));
    bytes.extend_from_slice(report);
    bytes.resize(32 + 1184, 0);
    bytes.extend(words(&[20 + length, 1, report_type, 1, length]));
    bytes.extend_from_slice(runtime);
    bytes.resize(bytes.len().max(2600), 0);
    bytes
}

/// The pieces of a VM whose paravisor had this evidence made.
fn pieces(tee: Envelope, runtime: &[u8]) -> Pieces {
    let evidence = |media_type: &str| {
        let mut items = tee.evidence.iter();
        Some(items.find(|item| item.media_type == media_type)?.bytes.clone())
    };
    let endorsements = |media_type: &str| {
        let of_type = tee
            .endorsements
            .iter()
            .filter(|item| item.media_type == media_type);
        of_type.map(|item| item.bytes.clone()).collect::<Vec<_>>()
    };
    let td_quote = evidence(tdx::QUOTE);
    let hcl_report = match (&td_quote, evidence("application/vnd.bastionai.snp-report")) {
        (Some(quote), None) => hcl_report(&td_report(quote), 4, runtime),
        (None, Some(report)) => hcl_report(&report, 2, runtime),
        _ => panic!("neither a SEV-SNP report nor a TD quote"),
    };
    Pieces {
        hcl_report,
        quote: None,
        td_quote,
        collateral: endorsements(tdx::COLLATERAL).pop(),
        certificates: endorsements(CERTIFICATE),
        revocation_lists: endorsements(REVOCATION_LIST),
    }
}

fn runtime_data(configuration: &Configuration) -> Vec<u8> {
    let key = RsaKeyPair::from_pkcs8(configuration.attestation_key).expect("a key of this crate");
    let public = PublicKeyComponents::<Vec<u8>>::from(key.public());
    let jwk = |name: &str, operation: &str| {
        format!(
            r#"{{"kid":"{name}","key_ops":["{operation}"],"kty":"RSA","e":"{}","n":"{}"}}"#,
            URL_SAFE_NO_PAD.encode(&public.e),
            URL_SAFE_NO_PAD.encode(&public.n)
        )
    };
    format!(
        r#"{{"keys":[{},{}],"vm-configuration":{},"user-data":"{}"}}"#,
        jwk("HCLAkPub", "sign"),
        jwk("HCLEkPub", "encrypt"),
        configuration.vm_configuration,
        "00".repeat(64)
    )
    .into_bytes()
}

/// The TD report that a quote of version 4 is made of (offsets: `bastionai_attestation::azure`, `td_report`).
fn td_report(quote: &[u8]) -> Vec<u8> {
    let body = &quote[48..48 + 584];
    let mut report = vec![0; 1024];
    report[0] = 0x81;
    // REPORTDATA; TEE_TCB_SVN, MRSEAM, MRSIGNERSEAM, attributes of SEAM; all of the TD from its attributes to RTMR3.
    report[128..192].copy_from_slice(&body[520..584]);
    report[264..384].copy_from_slice(&body[0..120]);
    report[512..912].copy_from_slice(&body[120..520]);
    let tcb_info = sha2::Sha384::digest(&report[256..495]);
    report[32..80].copy_from_slice(&tcb_info);
    let td_info = sha2::Sha384::digest(&report[512..1024]);
    report[80..128].copy_from_slice(&td_info);
    report
}

/// RSA-2048, PKCS #8, made with `openssl genpkey`: public on purpose.
pub const ATTESTATION_KEY: &[u8] = include_bytes!("../keys/INSECURE-published-test-attestation-key.pk8");
/// Another.
pub const OTHER_ATTESTATION_KEY: &[u8] =
    include_bytes!("../keys/INSECURE-published-test-other-attestation-key.pk8");
