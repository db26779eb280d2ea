use super::super::kinds::{azure, tdx};
use super::super::vtpm::{ATTESTATION_KEY, HCL_REPORT_INDEX, QUOTED_PCRS, Vtpm};
use super::*;
use crate::attester::endorsements::Endorsements;
use crate::attester::tests::places;
use bastionai_attestation::tpm::{PublicKey, Quote};
use bastionai_attestation::{Attester, Envelope, Item};
use std::process::{Child, Command as Program, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A TPM that answers from memory, with what a test told it: no signatures, but every length and code.
#[derive(Clone, Default)]
pub(in crate::attester) struct StandInTpm {
    /// How many more readings of PCRs find them changed.
    unsteady: Arc<Mutex<u32>>,
    /// How many more answers are TPM_RC_RETRY.
    busy: Arc<Mutex<u32>>,
    /// Changes every answer.
    change: Option<fn(Vec<u8>) -> Vec<u8>>,
    answer: Vec<u8>,
}

/// As on a machine that has none.
pub(in crate::attester) fn no_tpm(path: &Path) -> Result<Tpm, TpmError> {
    let path = path.to_owned();
    Ok(Tpm::new(&path, || Err(io::ErrorKind::NotFound.into())))
}

const REPORT_BYTES: u16 = 1300;

fn hcl_report() -> Vec<u8> {
    (0..REPORT_BYTES).map(|byte| byte as u8).collect()
}

impl StandInTpm {
    pub(in crate::attester) fn tpm(&self) -> Tpm {
        let stand_in = self.clone();
        Tpm::new(Path::new("stand-in"), move || Ok(Box::new(stand_in.clone())))
    }

    fn take_one(counter: &Mutex<u32>) -> bool {
        let mut counter = counter.lock().unwrap();
        let some = *counter > 0;
        *counter = counter.saturating_sub(1);
        some
    }

    /// The body of the answer, or its code.
    fn answer_to(&self, code: u32, body: &[u8]) -> Result<Vec<u8>, u32> {
        let handle = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
        let sized = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
        let with_session = |parameters: Vec<u8>| {
            let length = (parameters.len() as u32).to_be_bytes();
            [&length[..], &parameters, &[0, 0, 1, 0, 0]].concat()
        };
        let password = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
        match code {
            0x169 if handle(0) == HCL_REPORT_INDEX => {
                let index = HCL_REPORT_INDEX.to_be_bytes();
                let public = [
                    &index[..],
                    &[0, 0x0b, 0, 2, 0, 2, 0, 0],
                    &REPORT_BYTES.to_be_bytes(),
                ]
                .concat();
                Ok([sized(&public), sized(&[9; 34])].concat())
            }
            0x14e if (handle(0), handle(4)) == (OWNER, HCL_REPORT_INDEX) && body[8..21] == password => {
                let word = |at: usize| usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
                let (length, offset) = (word(21), word(23));
                Ok(with_session(sized(&hcl_report()[offset..offset + length])))
            }
            0x17e => {
                let asked: Vec<u8> = (0..24)
                    .filter(|pcr| body[7 + pcr / 8] >> (pcr % 8) & 1 == 1)
                    .map(|pcr| pcr as u8)
                    .collect();
                assert!((1..=8).contains(&asked.len()), "a TPM gives eight at once");
                let count = u32::from(Self::take_one(&self.unsteady));
                let values: Vec<u8> = asked.iter().flat_map(|pcr| sized(&[*pcr; 32])).collect();
                Ok([
                    &count.to_be_bytes()[..],
                    body,
                    &(asked.len() as u32).to_be_bytes(),
                    &values,
                ]
                .concat())
            }
            0x158 if handle(0) == ATTESTATION_KEY && body[4..17] == password => {
                assert_eq!(body[17..19], [0, 64]);
                assert_eq!(body[83..85], ALG_NULL.to_be_bytes());
                Ok(with_session(
                    [sized(&body[19..83]), b"signature".to_vec()].concat(),
                ))
            }
            _ => Err(0x18b),
        }
    }
}

impl Write for StandInTpm {
    fn write(&mut self, command: &[u8]) -> io::Result<usize> {
        let size = u32::from_be_bytes(command[2..6].try_into().unwrap());
        assert_eq!(size as usize, command.len(), "one command in one write");
        let code = u32::from_be_bytes(command[6..10].try_into().unwrap());
        let outcome = if Self::take_one(&self.busy) {
            Err(0x922)
        } else {
            self.answer_to(code, &command[10..])
        };
        let (code, body) = match outcome {
            Ok(body) => (0_u32, body),
            Err(code) => (code, vec![]),
        };
        let size = (10 + body.len()) as u32;
        self.answer = [&command[..2], &size.to_be_bytes(), &code.to_be_bytes(), &body].concat();
        if let Some(change) = self.change {
            self.answer = change(std::mem::take(&mut self.answer));
        }
        Ok(command.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for StandInTpm {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(self.answer.len());
        buffer[..length].copy_from_slice(&self.answer[..length]);
        self.answer.drain(..length);
        Ok(length)
    }
}

fn pcr_values() -> Vec<[u8; 32]> {
    QUOTED_PCRS.map(|pcr| [pcr; 32]).into()
}

#[test]
fn report_quote_and_values_come_in_one_envelope_with_what_the_operator_brings() {
    let directory = tempfile::tempdir().unwrap();
    let stapled = places(directory.path()).endorsements.unwrap();
    std::fs::write(stapled.join("vcek.der"), b"vcek").unwrap();
    std::fs::write(stapled.join("td.quote"), b"quote").unwrap();
    let endorsements = Endorsements::at(Some(&stapled)).unwrap();
    let attester = Vtpm::open(StandInTpm::default().tpm(), endorsements).unwrap();
    let evidence = attester.attest(&[7; 64]).unwrap();
    assert_eq!(evidence.media_type, azure::MEDIA_TYPE);
    // TPM2B_ATTEST ‖ TPMT_SIGNATURE ‖ values, as crates/attestation reads it.
    let quote = [&[0, 64][..], &[7; 64], b"signature", pcr_values().as_flattened()].concat();
    let expected = Envelope {
        evidence: vec![
            Item::new(azure::HCL_REPORT, hcl_report()),
            Item::new(bastionai_attestation::tpm::MEDIA_TYPE, quote),
            Item::new(tdx::QUOTE, *b"quote"),
        ],
        endorsements: vec![Item::new(bastionai_attestation::envelope::CERTIFICATE, *b"vcek")],
    };
    assert_eq!(Envelope::from_bytes(&evidence.bytes).unwrap(), expected);
}

#[test]
fn pcrs_that_change_meanwhile_are_quoted_again_and_a_busy_tpm_is_asked_again() {
    let stand_in = StandInTpm::default();
    let tpm = stand_in.tpm();
    *stand_in.unsteady.lock().unwrap() = 1;
    *stand_in.busy.lock().unwrap() = BUSY_ATTEMPTS - 1;
    let quoted = tpm
        .session()
        .unwrap()
        .quote(ATTESTATION_KEY, &[1; 64], &QUOTED_PCRS)
        .unwrap();
    assert_eq!(
        (quoted.pcrs, &quoted.signature[..]),
        (pcr_values(), &b"signature"[..])
    );
    *stand_in.busy.lock().unwrap() = BUSY_ATTEMPTS;
    let refused = tpm.session().unwrap().nv_read(HCL_REPORT_INDEX).unwrap_err();
    assert!(
        matches!(refused, TpmError::Refused { code: 0x922, .. }),
        "{refused}"
    );
}

#[test]
fn pcrs_that_never_stand_still_are_given_up() {
    // Three readings an attempt, for sixteen PCRs and one: the last of each finds a change.
    let stand_in = StandInTpm {
        change: Some(|mut answer| {
            static READINGS: Mutex<u8> = Mutex::new(0);
            let mut readings = READINGS.lock().unwrap();
            if answer[..2] == TAG_NO_SESSIONS.to_be_bytes() {
                *readings = readings.wrapping_add(1);
                answer[13] = *readings;
            }
            answer
        }),
        ..StandInTpm::default()
    };
    let error = stand_in
        .tpm()
        .session()
        .unwrap()
        .quote(ATTESTATION_KEY, &[1; 64], &QUOTED_PCRS)
        .err()
        .unwrap();
    assert!(
        matches!(
            error,
            TpmError::Unsteady {
                attempts: QUOTE_ATTEMPTS
            }
        ),
        "{error}"
    );
}

#[test]
fn answers_that_are_cut_extended_or_refusals_are_errors_without_panic() {
    let changes: [fn(Vec<u8>) -> Vec<u8>; 6] = [
        |_| vec![],
        |answer| answer[..answer.len() - 1].to_vec(),
        |answer| [answer, vec![0]].concat(),
        |mut answer| {
            answer[2] = 0xff;
            answer
        },
        |mut answer| {
            let end = answer.len().min(40);
            answer[10..end].fill(0xff);
            answer
        },
        |answer| [&answer[..2], &[0, 0, 0, 10, 0, 0, 1, 0x8b]].concat(),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let stand_in = StandInTpm {
            change: Some(change),
            ..StandInTpm::default()
        };
        let tpm = stand_in.tpm();
        assert!(
            tpm.session().unwrap().nv_read(HCL_REPORT_INDEX).is_err(),
            "change {index}"
        );
        let quoted = tpm
            .session()
            .unwrap()
            .quote(ATTESTATION_KEY, &[1; 64], &QUOTED_PCRS);
        assert!(quoted.is_err(), "change {index}");
    }
}

#[test]
fn a_tpm_without_a_paravisors_report_is_told_apart_from_none() {
    let error = StandInTpm::default()
        .tpm()
        .session()
        .unwrap()
        .nv_size(0x0140_0009)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("not the vTPM of a confidential VM of Azure"),
        "{error}"
    );
    let error = no_tpm(Path::new("/dev/tpmrm0")).unwrap().session().err().unwrap();
    assert!(error.to_string().contains("/dev/tpmrm0"), "{error}");
}

/// A TPM that nobody here wrote, with the key and the NV index that Azure's paravisor makes in its own.
struct Swtpm {
    process: Child,
    _state: tempfile::TempDir,
    socket: PathBuf,
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // Gone already where the test closed its socket.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Swtpm {
    /// `None` where it is not installed.
    fn start() -> Option<Self> {
        let state = tempfile::tempdir().unwrap();
        let socket = state.path().join("tpm");
        let process = Program::new("swtpm")
            .args([
                "socket",
                "--tpm2",
                "--flags",
                "not-need-init,startup-clear",
                "--tpmstate",
            ])
            .arg(format!("dir={}", state.path().display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = match process {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            other => other.unwrap(),
        };
        let swtpm = Self {
            process,
            _state: state,
            socket,
        };
        let begun = Instant::now();
        while !swtpm.socket.exists() {
            assert!(begun.elapsed() < Duration::from_secs(20), "swtpm makes no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(swtpm)
    }
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

/// Makes what Azure's paravisor makes; gives the public half of the attestation key.
fn provision(session: &mut Session<'_>) -> PublicKey {
    let define = Command::new("TPM2_NV_DefineSpace", 0x12a, true);
    let attributes = 0x0002_0002_u32 | 0x4 | 0x0004_0000;
    let public = [
        &HCL_REPORT_INDEX.to_be_bytes()[..],
        &ALG_SHA256.to_be_bytes(),
        &attributes.to_be_bytes(),
        &[0, 0],
        &REPORT_BYTES.to_be_bytes(),
    ]
    .concat();
    session
        .transmit(&define, &[OWNER], &[vec![0, 0], sized(&public)].concat())
        .unwrap();
    let write = Command::new("TPM2_NV_Write", 0x137, true);
    for (index, chunk) in hcl_report().chunks(512).enumerate() {
        let offset = (index as u16 * 512).to_be_bytes();
        let parameters = [&sized(chunk)[..], &offset].concat();
        session
            .transmit(&write, &[OWNER, HCL_REPORT_INDEX], &parameters)
            .unwrap();
    }
    let create = Command {
        answer_handles: 0,
        ..Command::new("TPM2_CreatePrimary", 0x131, true)
    };
    // RSA 2048, RSASSA with SHA-256; fixed to its TPM and parent, made there, for the user, restricted, signing.
    let template = [
        &[0, 1, 0, 0x0b, 0, 5, 0, 0x72, 0, 0][..],
        &[0, 0x10, 0, 0x14, 0, 0x0b, 8, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    let parameters = [&sized(&[0; 4])[..], &sized(&template), &[0, 0], &[0; 4]].concat();
    let answer = session
        .exchange(create.name, &create.bytes(&[OWNER], &parameters))
        .unwrap();
    let handle = u32::from_be_bytes(answer[10..14].try_into().unwrap());
    let with_handle = Command {
        answer_handles: 1,
        ..create
    };
    let parameters = with_handle.parameters(&answer).unwrap();
    let mut public = Fields::of("key", Fields::of("key", parameters).sized().unwrap());
    public.take(template.len() - 2).unwrap();
    let n = public.sized().unwrap().to_vec();
    let evict = Command::new("TPM2_EvictControl", 0x120, true);
    session
        .transmit(&evict, &[OWNER, handle], &ATTESTATION_KEY.to_be_bytes())
        .unwrap();
    PublicKey::Rsa { n, e: vec![1, 0, 1] }
}

#[test]
fn a_software_tpm_quotes_over_its_socket_and_the_quote_verifies() {
    let Some(swtpm) = Swtpm::start() else {
        println!("swtpm is not installed (Debian package `swtpm`): not tested against it");
        return;
    };
    let tpm = open(&swtpm.socket).unwrap();
    let mut session = tpm.session().unwrap();
    assert!(session.nv_size(HCL_REPORT_INDEX).is_err(), "nothing is there yet");
    let key = provision(&mut session);
    assert_eq!(session.nv_read(HCL_REPORT_INDEX).unwrap(), hcl_report());
    for data in [[7; 64], [8; 64]] {
        let quoted = session.quote(ATTESTATION_KEY, &data, &QUOTED_PCRS).unwrap();
        let quote = Quote {
            attest: quoted.attest,
            signature: quoted.signature,
            pcrs: quoted.pcrs,
        };
        let verified = Quote::from_bytes(&quote.to_bytes())
            .unwrap()
            .verify(&key)
            .unwrap();
        assert_eq!(verified.extra_data, data);
        assert_eq!(verified.pcrs.keys().copied().collect::<Vec<_>>(), QUOTED_PCRS);
    }
}
