//! The certificate table that a hypervisor hands out with an SEV-SNP report (GHCB specification, revision 2.03, section
//! 4.1.8.1): entries of GUID, offset and length, ended by a GUID of zeros, then the certificates.

use super::AttesterError;
use bastionai_attestation::Item;
use bastionai_attestation::envelope::{CERTIFICATE, REVOCATION_LIST};

/// The certificates and revocation lists of a table, in its order. An empty table has none.
pub(super) fn items(table: &[u8]) -> Result<Vec<Item>, AttesterError> {
    let malformed = |why: String| AttesterError::Format {
        what: "the certificate table of the hypervisor".into(),
        why,
    };
    let mut items = Vec::new();
    let mut entries = table;
    while !entries.is_empty() {
        let (entry, rest) = entries
            .split_first_chunk::<ENTRY_BYTES>()
            .ok_or_else(|| malformed(format!("{} bytes where an entry should be", entries.len())))?;
        entries = rest;
        let (guid, at) = entry.split_first_chunk::<16>().expect("an entry is longer");
        if *guid == [0; 16] {
            return Ok(items);
        }
        let word = |at: &[u8]| u32::from_le_bytes(at.try_into().expect("four bytes")) as usize;
        let (offset, length) = (word(&at[..4]), word(&at[4..]));
        let bytes = offset
            .checked_add(length)
            .and_then(|end| table.get(offset..end))
            .ok_or_else(|| {
                malformed(format!(
                    "an entry of {length} bytes at {offset} of {}",
                    table.len()
                ))
            })?;
        match *guid {
            VCEK | VLEK | ASK | ARK if length > 0 => items.push(Item::new(CERTIFICATE, bytes)),
            CRL if length > 0 => items.push(Item::new(REVOCATION_LIST, bytes)),
            // The specification lets hypervisors add entries of their own, and reserve empty ones.
            _ => {}
        }
        if items.len() > MOST {
            return Err(malformed(format!("more than {MOST} certificates")));
        }
    }
    if table.is_empty() {
        return Ok(items);
    }
    Err(malformed("no entry of zeros ends it".into()))
}

/// 63da758d-e664-4564-adc5-f4b93be8accd
const VCEK: [u8; 16] = 0x63da758d_e664_4564_adc5_f4b93be8accd_u128.to_be_bytes();
/// a8074bc2-a25a-483e-aae6-39c045a0b8a1
const VLEK: [u8; 16] = 0xa8074bc2_a25a_483e_aae6_39c045a0b8a1_u128.to_be_bytes();
/// 4ab7b379-bbac-4fe4-a02f-05aef327c782
const ASK: [u8; 16] = 0x4ab7b379_bbac_4fe4_a02f_05aef327c782_u128.to_be_bytes();
/// c0b406a4-a803-4952-9743-3fb6014cd0ae
const ARK: [u8; 16] = 0xc0b406a4_a803_4952_9743_3fb6014cd0ae_u128.to_be_bytes();
/// 92f81bc3-5811-4d3d-97ff-d19f88dc67ea
const CRL: [u8; 16] = 0x92f81bc3_5811_4d3d_97ff_d19f88dc67ea_u128.to_be_bytes();
const ENTRY_BYTES: usize = 24;
const MOST: usize = 16;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A table as a hypervisor writes it: entries, the end, the bytes.
    pub(in crate::attester) fn table(entries: &[([u8; 16], &[u8])]) -> Vec<u8> {
        let mut offset = (entries.len() + 1) * ENTRY_BYTES;
        let mut table = Vec::new();
        for (guid, bytes) in entries {
            table.extend_from_slice(guid);
            table.extend_from_slice(&(offset as u32).to_le_bytes());
            table.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            offset += bytes.len();
        }
        table.extend_from_slice(&[0; ENTRY_BYTES]);
        entries
            .iter()
            .for_each(|(_, bytes)| table.extend_from_slice(bytes));
        table
    }

    pub(in crate::attester) fn full() -> Vec<u8> {
        table(&[
            (VCEK, b"vcek"),
            (ASK, b"ask"),
            ([7; 16], b"else"),
            (ARK, b"ark"),
            (CRL, b"crl"),
        ])
    }

    #[test]
    fn certificates_and_lists_come_out_in_order_and_unknown_entries_do_not() {
        let found: Vec<_> = items(&full()).unwrap();
        let expected: Vec<Item> = [
            (CERTIFICATE, "vcek"),
            (CERTIFICATE, "ask"),
            (CERTIFICATE, "ark"),
            (REVOCATION_LIST, "crl"),
        ]
        .map(|(media_type, bytes)| Item::new(media_type, bytes.as_bytes()))
        .into();
        assert_eq!(found, expected);
        assert_eq!(items(&table(&[(VLEK, b"vlek")])).unwrap().len(), 1);
        assert_eq!(items(&[]).unwrap(), []);
        assert_eq!(items(&table(&[(VCEK, b"")])).unwrap(), []);
    }

    #[test]
    fn every_truncation_and_every_length_that_is_out_of_bounds_is_refused() {
        let whole = full();
        for length in 1..whole.len() {
            assert!(items(&whole[..length]).is_err(), "{length} bytes");
        }
        for (at, value) in [(16, u32::MAX), (20, u32::MAX), (16, whole.len() as u32 - 3)] {
            let mut table = whole.clone();
            table[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let error = items(&table).unwrap_err().to_string();
            assert!(error.contains("at") && error.contains("of"), "{error}");
        }
        let many: Vec<([u8; 16], &[u8])> = vec![(VCEK, b"v"); MOST + 1];
        assert!(items(&table(&many)).is_err());
    }
}
