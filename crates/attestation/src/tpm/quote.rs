//! The quote as an item of an envelope, and the way from its bytes to what the TPM said.

use super::attest::{Attest, Clock};
use super::cursor::Cursor;
use super::signature::{PublicKey, Signature};
use crate::verify::VerifyError;
use std::collections::BTreeMap;

/// Media type of [`Quote::to_bytes`].
pub const MEDIA_TYPE: &str = "application/vnd.bastionai.tpm-quote";

/// What `TPM2_Quote` answers, and the values of the PCRs it covers: unverified.
///
/// The bytes of the item are the parameters of the TPM's answer as they are, and the values behind them:
/// `TPM2B_ATTEST ‖ TPMT_SIGNATURE ‖ 32 bytes for each selected PCR of the SHA-256 bank, ascending`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// `TPMS_ATTEST`, the signed bytes.
    pub attest: Vec<u8>,
    /// `TPMT_SIGNATURE`.
    pub signature: Vec<u8>,
    /// Values of the selected PCRs in ascending order of their indices.
    pub pcrs: Vec<[u8; 32]>,
}

/// What a TPM said, under a key that the caller named. Only [`Quote::verify`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quoted {
    /// What the caller of the TPM asked it to sign along: at most 66 bytes.
    pub extra_data: Vec<u8>,
    /// The TPM's clock.
    pub clock: Clock,
    /// Version of the TPM's firmware, in its vendor's numbering.
    pub firmware_version: u64,
    /// PCR values of the SHA-256 bank, by index.
    pub pcrs: BTreeMap<u8, [u8; 32]>,
}

impl Quote {
    /// The bytes of the item.
    ///
    /// # Panics
    /// If `attest` has 64 KiB or more: TPMs make none above a few hundred bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = u16::try_from(self.attest.len()).expect("TPMS_ATTEST is below 64 KiB");
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.attest);
        bytes.extend_from_slice(&self.signature);
        bytes.extend_from_slice(self.pcrs.as_flattened());
        bytes
    }

    /// Reads the bytes of the item.
    ///
    /// # Errors
    /// [`VerifyError::Malformed`] with the field that is not as Part 2 says.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, VerifyError> {
        let mut cursor = Cursor::new("the TPM quote", bytes);
        let attest = cursor.sized("quoted", MAX_ATTEST)?;
        let start = cursor.rest();
        Signature::read(&mut cursor)?;
        let values = cursor.rest();
        let signature = &start[..start.len() - values.len()];
        let (pcrs, odd) = values.as_chunks::<32>();
        if !odd.is_empty() || pcrs.len() > MAX_PCRS {
            return Err(cursor.malformed(format!(
                "{} bytes behind the signature are not the values of at most {MAX_PCRS} PCRs",
                values.len()
            )));
        }
        Ok(Self {
            attest: attest.to_vec(),
            signature: signature.to_vec(),
            pcrs: pcrs.to_vec(),
        })
    }

    /// What the TPM said, if `key` signed it and these are the PCR values it covers.
    ///
    /// That the key is a restricted key of a TPM, which signs no caller's bytes as if they were a quote, is for whoever
    /// vouches for the key to know.
    ///
    /// # Errors
    /// [`VerifyError::Signature`] if another key signed, [`VerifyError::Unbound`] if the values are not those quoted,
    /// [`VerifyError::Malformed`] for anything that is no quote of the SHA-256 bank.
    pub fn verify(&self, key: &PublicKey) -> Result<Quoted, VerifyError> {
        let mut cursor = Cursor::new("the TPM signature", &self.signature);
        let signature = Signature::read(&mut cursor)?;
        cursor.finish()?;
        signature.verify(key, &self.attest)?;
        let attest = Attest::parse(&self.attest)?;
        let unbound = |why: &str| VerifyError::Unbound {
            what: "the list of PCR values".to_owned(),
            why: why.to_owned(),
        };
        if attest.pcrs.len() != self.pcrs.len() {
            return Err(unbound("the quote selects another number of PCRs"));
        }
        if signature.hash().digest(&self.pcrs) != attest.pcr_digest {
            return Err(unbound("it does not hash to the digest in the quote"));
        }
        Ok(Quoted {
            extra_data: attest.extra_data.to_vec(),
            clock: attest.clock,
            firmware_version: attest.firmware_version,
            pcrs: attest.pcrs.into_iter().zip(self.pcrs.iter().copied()).collect(),
        })
    }

    /// Indices of the PCRs that the signed bytes select: unverified.
    pub(crate) fn selected(&self) -> Result<Vec<u8>, VerifyError> {
        Ok(Attest::parse(&self.attest)?.pcrs)
    }
}

/// A quote with the longest name, data, selection and digest has 241 bytes.
const MAX_ATTEST: usize = 1024;
const MAX_PCRS: usize = 32;
