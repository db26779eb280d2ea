//! The four TPM 2.0 commands that an attesting guest needs, over the kernel's resource manager (`/dev/tpmrm0`), without
//! a C library: NV_ReadPublic, NV_Read, PCR_Read, Quote. *Trusted Platform Module Library* (family 2.0, revision 01.59),
//! Part 2 (structures) and Part 3 (commands); everything is big-endian.

use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why the TPM did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TpmError {
    /// The device.
    #[error("the TPM at {path}: {source}")]
    Device {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A command that failed.
    #[error("{command} failed with TPM response code {code:#x}{}", explain(*code))]
    Refused {
        /// Its name in Part 3.
        command: &'static str,
        /// Response code.
        code: u32,
    },
    /// An answer that is none to the command.
    #[error("the TPM's answer to {command} is malformed: {why}")]
    Malformed {
        /// Its name in Part 3.
        command: &'static str,
        /// What is wrong.
        why: &'static str,
    },
    /// PCRs that do not stand still.
    #[error("the PCRs changed each of the {attempts} times they were quoted")]
    Unsteady {
        /// How often.
        attempts: u32,
    },
}

fn explain(code: u32) -> &'static str {
    match code & 0xff {
        // TPM_RC_HANDLE; the number of the handle at fault is in bits 8 to 11.
        0x8b => " (no such NV index or key: not the vTPM of a confidential VM of Azure)",
        _ => "",
    }
}

/// Bytes to and from a TPM: a device, a socket.
pub(super) trait Channel: Read + Write + Send {}

impl<C: Read + Write + Send> Channel for C {}

type Connect = dyn Fn() -> io::Result<Box<dyn Channel>> + Send + Sync;

/// A TPM; each use is a connection of its own.
pub(super) struct Tpm {
    path: PathBuf,
    connect: Box<Connect>,
}

/// A connection to a TPM.
pub(super) struct Session<'a> {
    tpm: &'a Tpm,
    channel: Box<dyn Channel>,
}

/// What `TPM2_Quote` gives, and the values of the PCRs behind it.
pub(super) struct Quoted {
    pub(super) attest: Vec<u8>,
    pub(super) signature: Vec<u8>,
    pub(super) pcrs: Vec<[u8; 32]>,
}

/// The TPM at a path: a character device of the kernel, or a Unix socket that speaks the same (swtpm).
pub(super) fn open(path: &Path) -> Result<Tpm, TpmError> {
    let device = path.to_owned();
    let connect = move || -> io::Result<Box<dyn Channel>> {
        if std::fs::metadata(&device)?.file_type().is_socket() {
            let stream = UnixStream::connect(&device)?;
            stream.set_read_timeout(Some(SOCKET_PATIENCE))?;
            return Ok(Box::new(stream));
        }
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&device)?;
        Ok(Box::new(file))
    };
    Ok(Tpm::new(path, connect))
}

impl Tpm {
    pub(super) fn new(
        path: &Path,
        connect: impl Fn() -> io::Result<Box<dyn Channel>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            path: path.to_owned(),
            connect: Box::new(connect),
        }
    }

    pub(super) fn session(&self) -> Result<Session<'_>, TpmError> {
        let channel = (self.connect)().map_err(|source| self.device(source))?;
        Ok(Session { tpm: self, channel })
    }

    fn device(&self, source: io::Error) -> TpmError {
        TpmError::Device {
            path: self.path.clone(),
            source,
        }
    }
}

impl Session<'_> {
    /// Size of an NV index in bytes.
    pub(super) fn nv_size(&mut self, index: u32) -> Result<u16, TpmError> {
        let answer = self.transmit(&NV_READ_PUBLIC, &[index], &[])?;
        let mut fields = Fields::of(NV_READ_PUBLIC.name, &answer);
        let mut public = Fields::of(NV_READ_PUBLIC.name, fields.sized()?);
        // nvIndex, nameAlg, attributes.
        public.take(4 + 2 + 4)?;
        public.sized()?;
        public.u16()
    }

    /// The whole of an NV index that its owner may read without a password.
    pub(super) fn nv_read(&mut self, index: u32) -> Result<Vec<u8>, TpmError> {
        let size = self.nv_size(index)?;
        let mut bytes = Vec::with_capacity(usize::from(size));
        for offset in (0..size).step_by(usize::from(NV_CHUNK)) {
            let length = NV_CHUNK.min(size - offset);
            let parameters = [length.to_be_bytes(), offset.to_be_bytes()].concat();
            let answer = self.transmit(&NV_READ, &[OWNER, index], &parameters)?;
            let chunk = Fields::of(NV_READ.name, &answer).sized()?;
            if chunk.len() != usize::from(length) {
                return Err(malformed(NV_READ.name, "another number of bytes than asked for"));
            }
            bytes.extend_from_slice(chunk);
        }
        Ok(bytes)
    }

    /// A quote of these PCRs (SHA-256 bank, ascending) over `data`, by a key that needs no password, with their values
    /// as they were when it was made.
    pub(super) fn quote(&mut self, key: u32, data: &[u8; 64], pcrs: &[u8]) -> Result<Quoted, TpmError> {
        for _ in 0..QUOTE_ATTEMPTS {
            let mut counts = Vec::new();
            let values = self.pcr_read(pcrs, &mut counts)?;
            let parameters = [
                &(data.len() as u16).to_be_bytes()[..],
                data,
                &ALG_NULL.to_be_bytes(),
                &selection(pcrs),
            ]
            .concat();
            let answer = self.transmit(&QUOTE, &[key], &parameters)?;
            let mut fields = Fields::of(QUOTE.name, &answer);
            let attest = fields.sized()?.to_vec();
            let signature = fields.rest().to_vec();
            self.pcr_read(&pcrs[..1], &mut counts)?;
            // The TPM counts changes of PCRs: none between the first reading and the last, none at the quote.
            if counts.iter().all(|count| *count == counts[0]) {
                return Ok(Quoted {
                    attest,
                    signature,
                    pcrs: values,
                });
            }
        }
        Err(TpmError::Unsteady {
            attempts: QUOTE_ATTEMPTS,
        })
    }

    /// Values in order; each reading notes the TPM's count of changes.
    fn pcr_read(&mut self, pcrs: &[u8], counts: &mut Vec<u32>) -> Result<Vec<[u8; 32]>, TpmError> {
        let mut values = Vec::new();
        // A TPM answers with at most eight digests.
        for some in pcrs.chunks(8) {
            let answer = self.transmit(&PCR_READ, &[], &selection(some))?;
            let mut fields = Fields::of(PCR_READ.name, &answer);
            counts.push(fields.u32()?);
            if fields.take(selection(some).len())? != selection(some) {
                return Err(malformed(
                    PCR_READ.name,
                    "other PCRs than asked for: is its SHA-256 bank on?",
                ));
            }
            if fields.u32()? as usize != some.len() {
                return Err(malformed(
                    PCR_READ.name,
                    "another number of values than asked for",
                ));
            }
            for _ in some {
                let value = fields.sized()?.try_into();
                values.push(value.map_err(|_| malformed(PCR_READ.name, "a value that has not 32 bytes"))?);
            }
        }
        Ok(values)
    }

    /// The parameters of the answer to one command; a TPM that is busy is asked again.
    fn transmit(
        &mut self,
        command: &Command,
        handles: &[u32],
        parameters: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        let bytes = command.bytes(handles, parameters);
        let mut answer = self.exchange(command.name, &bytes)?;
        for _ in 1..BUSY_ATTEMPTS {
            match command.parameters(&answer) {
                Err(TpmError::Refused { code, .. }) if BUSY.contains(&code) => std::thread::sleep(BUSY_WAIT),
                _ => break,
            }
            answer = self.exchange(command.name, &bytes)?;
        }
        command.parameters(&answer).map(<[u8]>::to_vec)
    }

    fn exchange(&mut self, command: &'static str, bytes: &[u8]) -> Result<Vec<u8>, TpmError> {
        let failed = |source| self.tpm.device(source);
        self.channel.write_all(bytes).map_err(failed)?;
        self.channel.flush().map_err(failed)?;
        let mut answer = vec![0; MAX_ANSWER];
        let mut filled = 0;
        // The device gives an answer in one read; a socket may take several.
        loop {
            let read = self.channel.read(&mut answer[filled..]).map_err(failed)?;
            filled += read;
            let announced = answer[..filled].get(2..6);
            let announced = announced.map(|size| u32::from_be_bytes(size.try_into().expect("four")) as usize);
            match announced {
                Some(size) if size > MAX_ANSWER || filled > size => {
                    return Err(malformed(command, "another length than it announces"));
                }
                Some(size) if filled == size => break,
                _ if read == 0 => return Err(malformed(command, "it ends early")),
                _ => {}
            }
        }
        answer.truncate(filled);
        Ok(answer)
    }
}

/// One command of Part 3.
pub(super) struct Command {
    pub(super) name: &'static str,
    pub(super) code: u32,
    /// Whether its first handle is authorised, with the empty password.
    pub(super) authorised: bool,
    /// Handles in its answer.
    pub(super) answer_handles: usize,
}

impl Command {
    const fn new(name: &'static str, code: u32, authorised: bool) -> Self {
        Self {
            name,
            code,
            authorised,
            answer_handles: 0,
        }
    }

    pub(super) fn bytes(&self, handles: &[u32], parameters: &[u8]) -> Vec<u8> {
        let mut body: Vec<u8> = handles.iter().flat_map(|handle| handle.to_be_bytes()).collect();
        if self.authorised {
            // TPM_RS_PW, no nonce, no attributes, no password.
            body.extend_from_slice(&9_u32.to_be_bytes());
            body.extend_from_slice(&PASSWORD_SESSION.to_be_bytes());
            body.extend_from_slice(&[0; 5]);
        }
        body.extend_from_slice(parameters);
        let tag = if self.authorised {
            TAG_SESSIONS
        } else {
            TAG_NO_SESSIONS
        };
        let size = u32::try_from(HEADER_BYTES + body.len()).expect("commands are short");
        [
            &tag.to_be_bytes()[..],
            &size.to_be_bytes(),
            &self.code.to_be_bytes(),
            &body,
        ]
        .concat()
    }

    /// Handles and parameters of an answer.
    pub(super) fn parameters<'a>(&self, answer: &'a [u8]) -> Result<&'a [u8], TpmError> {
        let mut fields = Fields::of(self.name, answer);
        fields.take(2 + 4)?;
        let code = fields.u32()?;
        if code != 0 {
            return Err(TpmError::Refused {
                command: self.name,
                code,
            });
        }
        fields.take(4 * self.answer_handles)?;
        if !self.authorised {
            return Ok(fields.rest());
        }
        let length = fields.u32()? as usize;
        fields.take(length)
    }
}

/// Reads an answer in order.
pub(super) struct Fields<'a> {
    command: &'static str,
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn of(command: &'static str, bytes: &'a [u8]) -> Self {
        Self { command, bytes }
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], TpmError> {
        let split = self.bytes.split_at_checked(length);
        let (taken, rest) = split.ok_or_else(|| malformed(self.command, "it ends early"))?;
        self.bytes = rest;
        Ok(taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16, TpmError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub(super) fn u32(&mut self) -> Result<u32, TpmError> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A `TPM2B`.
    pub(super) fn sized(&mut self) -> Result<&'a [u8], TpmError> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.bytes
    }
}

/// `TPML_PCR_SELECTION` of the SHA-256 bank, for PCRs below 24.
fn selection(pcrs: &[u8]) -> [u8; 10] {
    let mut bits = [0; 3];
    for pcr in pcrs {
        bits[usize::from(pcr / 8)] |= 1 << (pcr % 8);
    }
    let [high, low] = ALG_SHA256.to_be_bytes();
    [0, 0, 0, 1, high, low, 3, bits[0], bits[1], bits[2]]
}

fn malformed(command: &'static str, why: &'static str) -> TpmError {
    TpmError::Malformed { command, why }
}

const NV_READ_PUBLIC: Command = Command::new("TPM2_NV_ReadPublic", 0x169, false);
const NV_READ: Command = Command::new("TPM2_NV_Read", 0x14e, true);
const PCR_READ: Command = Command::new("TPM2_PCR_Read", 0x17e, false);
const QUOTE: Command = Command::new("TPM2_Quote", 0x158, true);

const TAG_NO_SESSIONS: u16 = 0x8001;
const TAG_SESSIONS: u16 = 0x8002;
pub(super) const ALG_SHA256: u16 = 0x000b;
pub(super) const ALG_NULL: u16 = 0x0010;
/// `TPM_RH_OWNER`.
pub(super) const OWNER: u32 = 0x4000_0001;
const PASSWORD_SESSION: u32 = 0x4000_0009;
const HEADER_BYTES: usize = 10;
/// What every TPM reads at once (`TPM_PT_NV_BUFFER_MAX` is 512 at least in what is sold).
const NV_CHUNK: u16 = 512;
/// `TPM_PT_MAX_RESPONSE_SIZE` of the kernel's interface.
const MAX_ANSWER: usize = 4096;
/// TPM_RC_YIELDED, TPM_RC_TESTING, TPM_RC_RETRY: ask again.
const BUSY: [u32; 3] = [0x908, 0x90a, 0x922];
const BUSY_ATTEMPTS: u32 = 10;
const BUSY_WAIT: Duration = Duration::from_millis(20);
const QUOTE_ATTEMPTS: u32 = 4;
const SOCKET_PATIENCE: Duration = Duration::from_secs(20);

#[cfg(test)]
pub(super) mod tests;
