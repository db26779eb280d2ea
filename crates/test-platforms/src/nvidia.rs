//! A maker of GPUs: a root, its authorities, and GPUs with a chain of five certificates that sign SPDM transcripts.

use bastionai_attestation::nvidia::{Evidence, nonce};
use bastionai_attestation::{AttestError, Attester, Envelope, Evidence as CpuEvidence};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PublicKeyData, date_time_ymd,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use std::collections::BTreeMap;

/// Places of certificates in a chain, as their index.
pub const LEAF: usize = 0;
/// The certificate of the device.
pub const DEVICE: usize = 1;
/// The certificate of the provisioner.
pub const PROVISIONER: usize = 2;
/// The certificate of the chip's authority.
pub const IDENTITY: usize = 3;
/// The self-signed one.
pub const ROOT: usize = 4;

/// Makes GPUs under one root.
pub struct Vendor {
    root_key: KeyPair,
    root: CertificateParams,
    root_der: Vec<u8>,
}

/// A GPU, with the key that signs its reports.
pub struct Gpu {
    /// DER, the attestation key's first.
    pub chain: Vec<Vec<u8>>,
    /// As its chain says.
    pub fwid: [u8; 48],
    key: EcdsaKeyPair,
}

/// What a GPU is to be.
#[derive(Clone, Debug)]
pub struct Model {
    /// `GH100` (Hopper), `GB100` (Blackwell).
    pub chip: String,
    /// Serial number of the device.
    pub serial: String,
    /// Firmware id.
    pub fwid: [u8; 48],
}

impl Default for Model {
    fn default() -> Self {
        Self {
            chip: "GH100".to_owned(),
            serial: "0123456789ABCDEF".to_owned(),
            fwid: [0x5A; 48],
        }
    }
}

/// What a GPU is to report. Fields of the opaque data in order: a list, so that tests can repeat and omit.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Digest by index.
    pub measurements: BTreeMap<u8, [u8; 48]>,
    /// Type and value of each field.
    pub opaque: Vec<(u16, Vec<u8>)>,
}

impl Measured {
    /// Three measurements, the second not in use; driver 590.12, VBIOS 96.00.A5.00.01, confidential computing.
    pub fn by(gpu: &Gpu) -> Self {
        Self {
            measurements: BTreeMap::from([(1, [1; 48]), (2, [0; 48]), (3, [3; 48])]),
            opaque: vec![
                (6, vec![0x00, 0xA5, 0x00, 0x96, 1, 0, 0, 0]),
                (3, b"590.12\0".to_vec()),
                (20, gpu.fwid.to_vec()),
                (34, vec![1, 0]),
                (36, vec![0, 0]),
            ],
        }
    }

    /// With another value of a field of the opaque data.
    pub fn with_field(mut self, kind: u16, value: &[u8]) -> Self {
        self.opaque.retain(|(other, _)| *other != kind);
        self.opaque.push((kind, value.to_vec()));
        self
    }
}

impl Vendor {
    /// A root of its own.
    ///
    /// # Panics
    /// Without a source of random numbers, as everything here.
    pub fn new() -> Self {
        let root_key = key();
        let root = params(&[(DnType::CommonName, "Test Device Identity CA")], ROOT);
        let root_der = root.self_signed(&root_key).expect("a root").der().to_vec();
        Self {
            root_key,
            root,
            root_der,
        }
    }

    /// DER of the root.
    pub fn root(&self) -> Vec<u8> {
        self.root_der.clone()
    }

    /// A GPU of this model.
    pub fn gpu(&self, model: &Model) -> Gpu {
        self.gpu_with(model, |_, _| ())
    }

    /// A GPU with certificates that `change`, called with the place of each before it is signed, made of them.
    pub fn gpu_with(&self, model: &Model, change: impl Fn(usize, &mut CertificateParams)) -> Gpu {
        let Model { chip, serial, fwid } = model;
        let names = [
            format!("{chip} A01 GSP FMC LF"),
            format!("{chip} A01 GSP BROM"),
            format!("NVIDIA {chip} Provisioner ICA 1"),
            format!("NVIDIA {chip} Identity"),
        ];
        let keys = [key(), key(), key(), key()];
        let mut chain = vec![self.root_der.clone()];
        let mut issuer = Issuer::from_params(&self.root, &self.root_key);
        for place in (LEAF..=IDENTITY).rev() {
            let mut name = vec![(DnType::CommonName, names[place].as_str())];
            if place == DEVICE {
                name.push((DnType::CustomDnType(vec![2, 5, 4, 5]), serial));
            }
            let mut params = params(&name, place);
            if place == LEAF {
                params.custom_extensions.push(dice(chip, fwid, &keys[DEVICE]));
            }
            change(place, &mut params);
            let certificate = params.signed_by(&keys[place], &issuer).expect("a certificate");
            chain.push(certificate.der().to_vec());
            issuer = Issuer::new(params, &keys[place]);
        }
        chain.reverse();
        Gpu {
            chain,
            fwid: *fwid,
            key: EcdsaKeyPair::from_pkcs8(
                &ECDSA_P384_SHA384_FIXED_SIGNING,
                &keys[LEAF].serialize_der(),
                &SystemRandom::new(),
            )
            .expect("the key was just made"),
        }
    }
}

impl Default for Vendor {
    fn default() -> Self {
        Self::new()
    }
}

impl Gpu {
    /// Evidence that it measured this, asked with `nonce`.
    pub fn evidence(&self, nonce: &[u8; 32], measured: &Measured) -> Evidence {
        let mut record = vec![];
        for (index, digest) in &measured.measurements {
            record.extend_from_slice(&[*index, 1, 51, 0, 1, 48, 0]);
            record.extend_from_slice(digest);
        }
        let mut opaque = vec![];
        for (kind, value) in &measured.opaque {
            opaque.extend_from_slice(&kind.to_le_bytes());
            opaque.extend_from_slice(&u16::try_from(value.len()).expect("short").to_le_bytes());
            opaque.extend_from_slice(value);
        }
        let blocks = u8::try_from(measured.measurements.len()).expect("few");
        let transcript = [
            &[0x11, 0xE0, 0x01, 0xFF],
            &nonce[..],
            &[0],
            &[0x11, 0x60, 0, 0, blocks],
            &u32::try_from(record.len()).expect("short").to_le_bytes()[..3],
            &record,
            &[0xC4; 32],
            &u16::try_from(opaque.len()).expect("short").to_le_bytes(),
            &opaque,
        ]
        .concat();
        self.sign(transcript)
    }

    /// Evidence with any transcript, signed.
    pub fn sign(&self, transcript: Vec<u8>) -> Evidence {
        let signature = self
            .key
            .sign(&SystemRandom::new(), &transcript)
            .expect("a signature");
        Evidence {
            transcript: [transcript, signature.as_ref().to_vec()].concat(),
            chain: self.chain.clone(),
        }
    }
}

/// A machine with GPUs: the evidence of its CPU, and that of each GPU for the same report data.
pub struct WithGpus<A> {
    /// Of the CPU: its evidence is an envelope.
    pub cpu: A,
    /// What each GPU reports.
    pub gpus: Vec<(Gpu, Measured)>,
}

impl<A: Attester> Attester for WithGpus<A> {
    fn media_type(&self) -> &'static str {
        self.cpu.media_type()
    }

    fn attest(&self, report_data: &[u8; 64]) -> Result<CpuEvidence, AttestError> {
        let evidence = self.cpu.attest(report_data)?;
        let mut envelope = Envelope::from_bytes(&evidence.bytes)
            .map_err(|error| AttestError::Unavailable(error.to_string()))?;
        let gpus = self.gpus.iter();
        let items = gpus.map(|(gpu, measured)| gpu.evidence(&nonce(report_data), measured).item());
        envelope.evidence.extend(items);
        Ok(CpuEvidence {
            bytes: envelope.to_bytes(),
            ..evidence
        })
    }
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("random numbers")
}

fn params(name: &[(DnType, &str)], place: usize) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(2022, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in name {
        params.distinguished_name.push(kind.clone(), *value);
    }
    if place == LEAF {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    } else {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    }
    params
}

/// CompositeDeviceID for Hopper, DiceTcbInfo for Blackwell.
fn dice(chip: &str, fwid: &[u8; 48], device: &KeyPair) -> CustomExtension {
    let sha384 = [0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
    let fwid = [&sha384[..], &tlv(0x04, fwid)].concat();
    if chip == "GH100" {
        let key = device.subject_public_key_info();
        let fields = [tlv(0x02, &[1]), key, tlv(0x30, &fwid)].concat();
        return CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1], tlv(0x30, &fields));
    }
    // vendor, fwids, flags: none is set.
    let fields = [
        tlv(0x80, b"NVIDIA"),
        tlv(0xA6, &tlv(0x30, &fwid)),
        tlv(0x87, &[4, 0]),
    ]
    .concat();
    CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1, 1], tlv(0x30, &fields))
}

/// DER of contents below 64 KiB.
pub fn tlv(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = u16::try_from(contents.len()).expect("short").to_be_bytes();
    let head = match length {
        [0, low] if low < 128 => vec![tag, low],
        [0, low] => vec![tag, 0x81, low],
        [high, low] => vec![tag, 0x82, high, low],
    };
    [head, contents.to_vec()].concat()
}
