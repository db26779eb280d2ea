//! `TPMT_SIGNATURE` (Part 2, 11.3.4) and the keys it verifies under.

use super::attest::TPM_ALG_SHA256;
use super::cursor::Cursor;
use crate::verify::VerifyError;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256,
    UnparsedPublicKey,
};
use sha2::{Digest, Sha256, Sha384};

/// The public half of an attestation key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublicKey {
    /// 2048 to 8192 bits; big-endian without leading zeros.
    Rsa {
        /// Modulus.
        n: Vec<u8>,
        /// Public exponent.
        e: Vec<u8>,
    },
    /// Uncompressed point: `04 ‖ x ‖ y`.
    EcdsaP256([u8; 65]),
    /// Uncompressed point: `04 ‖ x ‖ y`.
    EcdsaP384([u8; 97]),
}

/// A signature, read but not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Signature<'a> {
    hash: Hash,
    value: Value<'a>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value<'a> {
    Rsassa(&'a [u8]),
    /// ring wants a salt as long as the digest: what TPMs that follow FIPS 186-4 make, since revision 01.38.
    Rsapss(&'a [u8]),
    /// Big-endian, possibly shorter than the field.
    Ecdsa {
        r: &'a [u8],
        s: &'a [u8],
    },
}

/// What the TPM hashed with: the signed bytes, and the PCR values in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha384,
}

impl Hash {
    pub(super) fn digest(self, parts: &[[u8; 32]]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(parts.concat()).to_vec(),
            Self::Sha384 => Sha384::digest(parts.concat()).to_vec(),
        }
    }
}

impl<'a> Signature<'a> {
    /// Reads one signature from the front.
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, VerifyError> {
        let algorithm = cursor.u16("sigAlg")?;
        let hash = match cursor.u16("hash")? {
            TPM_ALG_SHA256 => Hash::Sha256,
            TPM_ALG_SHA384 => Hash::Sha384,
            other => {
                return Err(cursor.malformed(format!("hash {other:#06x} is neither SHA-256 nor SHA-384")));
            }
        };
        let value = match algorithm {
            TPM_ALG_RSASSA => Value::Rsassa(cursor.sized("sig", MAX_RSA)?),
            TPM_ALG_RSAPSS => Value::Rsapss(cursor.sized("sig", MAX_RSA)?),
            TPM_ALG_ECDSA => Value::Ecdsa {
                r: cursor.sized("signatureR", MAX_SCALAR)?,
                s: cursor.sized("signatureS", MAX_SCALAR)?,
            },
            other => {
                return Err(
                    cursor.malformed(format!("algorithm {other:#06x} is not RSASSA, RSAPSS or ECDSA"))
                );
            }
        };
        Ok(Self { hash, value })
    }

    pub(super) fn hash(&self) -> Hash {
        self.hash
    }

    /// RSA and P-256 with SHA-256, P-384 with SHA-384; any other pair is refused.
    pub(super) fn verify(&self, key: &PublicKey, signed: &[u8]) -> Result<(), VerifyError> {
        let outcome = match (key, &self.value, self.hash) {
            (PublicKey::Rsa { n, e }, Value::Rsassa(signature), Hash::Sha256) => {
                PublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, signed, signature)
            }
            (PublicKey::Rsa { n, e }, Value::Rsapss(signature), Hash::Sha256) => {
                PublicKeyComponents { n, e }.verify(&RSA_PSS_2048_8192_SHA256, signed, signature)
            }
            (PublicKey::EcdsaP256(point), Value::Ecdsa { r, s }, Hash::Sha256) => {
                let signature = fixed::<32>(r, s)?;
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed, &signature)
            }
            (PublicKey::EcdsaP384(point), Value::Ecdsa { r, s }, Hash::Sha384) => {
                let signature = fixed::<48>(r, s)?;
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).verify(signed, &signature)
            }
            _ => return Err(VerifyError::Signature),
        };
        outcome.map_err(|_| VerifyError::Signature)
    }
}

/// `TPMT_SIGNATURE` of an RSASSA signature with SHA-256: for evidence that holds the bare signature.
pub(crate) fn rsassa_sha256(signature: &[u8]) -> Vec<u8> {
    let length = u16::try_from(signature.len()).expect("callers cap signatures");
    let head = [TPM_ALG_RSASSA, TPM_ALG_SHA256, length];
    let mut bytes: Vec<u8> = head.into_iter().flat_map(u16::to_be_bytes).collect();
    bytes.extend_from_slice(signature);
    bytes
}

/// `r ‖ s`, each `N` bytes.
fn fixed<const N: usize>(r: &[u8], s: &[u8]) -> Result<Vec<u8>, VerifyError> {
    let mut signature = vec![0; 2 * N];
    for (scalar, end) in [(r, N), (s, 2 * N)] {
        if scalar.len() > N {
            return Err(VerifyError::Signature);
        }
        signature[end - scalar.len()..end].copy_from_slice(scalar);
    }
    Ok(signature)
}

/// Part 2, 6.3.
const TPM_ALG_SHA384: u16 = 0x000c;
const TPM_ALG_RSASSA: u16 = 0x0014;
const TPM_ALG_RSAPSS: u16 = 0x0016;
const TPM_ALG_ECDSA: u16 = 0x0018;
/// RSA of 8192 bits.
pub(crate) const MAX_RSA: usize = 1024;
/// P-384.
const MAX_SCALAR: usize = 48;

#[cfg(test)]
mod tests {
    use super::*;
    use ring::rand::SystemRandom;
    use ring::signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        EcdsaSigningAlgorithm, KeyPair,
    };

    fn ecdsa(algorithm: &'static EcdsaSigningAlgorithm) -> (EcdsaKeyPair, Vec<u8>) {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        let point = pair.public_key().as_ref().to_vec();
        (pair, point)
    }

    fn wire(hash: u16, signature: &[u8]) -> Vec<u8> {
        let mut bytes = [TPM_ALG_ECDSA.to_be_bytes(), hash.to_be_bytes()].concat();
        for scalar in signature.chunks(signature.len() / 2) {
            // As TPMs may: no leading zeros.
            let zeros = scalar.iter().take_while(|byte| **byte == 0).count();
            bytes.extend_from_slice(&((scalar.len() - zeros) as u16).to_be_bytes());
            bytes.extend_from_slice(&scalar[zeros..]);
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Signature<'_>, VerifyError> {
        let mut cursor = Cursor::new("the signature", bytes);
        let signature = Signature::read(&mut cursor)?;
        cursor.finish()?;
        Ok(signature)
    }

    #[test]
    fn signatures_on_both_curves_verify_and_on_other_bytes_do_not() {
        let (pair, point) = ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING);
        let p256 = PublicKey::EcdsaP256(point.try_into().unwrap());
        let random = SystemRandom::new();
        // Enough of them that some have a short scalar.
        for message in 0..600_u16 {
            let message = message.to_be_bytes();
            let bytes = wire(TPM_ALG_SHA256, pair.sign(&random, &message).unwrap().as_ref());
            assert_eq!(read(&bytes).unwrap().verify(&p256, &message), Ok(()));
            assert_eq!(
                read(&bytes).unwrap().verify(&p256, b"other"),
                Err(VerifyError::Signature)
            );
        }
        let (pair, point) = ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING);
        let p384 = PublicKey::EcdsaP384(point.try_into().unwrap());
        let bytes = wire(TPM_ALG_SHA384, pair.sign(&random, b"message").unwrap().as_ref());
        assert_eq!(read(&bytes).unwrap().verify(&p384, b"message"), Ok(()));
        assert_eq!(
            read(&bytes).unwrap().verify(&p256, b"message"),
            Err(VerifyError::Signature)
        );
        assert_eq!(
            read(&bytes).unwrap().verify(&p384, b"other"),
            Err(VerifyError::Signature)
        );
    }

    #[test]
    fn unknown_algorithms_and_lengths_are_refused() {
        for (bytes, reason) in [
            (&[0, 0x15, 0, 0x0b, 0, 0][..], "algorithm"),
            (&[0, 0x14, 0, 0x04, 0, 0], "hash"),
            (&[0, 0x14, 0, 0x0b, 0xff, 0xff], "sig"),
            (&[0, 0x18, 0, 0x0b, 0, 49], "signatureR"),
            (&[0, 0x18, 0, 0x0b, 0, 0], "signatureS"),
        ] {
            let error = read(bytes).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
