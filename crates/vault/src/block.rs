//! The layout of a dataset in blocks, and the bytes of one block.
//!
//! ```text
//! plaintext = version u8 = 1 ‖ unit kind u8 = 0 (record) ‖ zero u16 ‖ columns u32
//!             ‖ first unit u64 ‖ capacity u64 ‖ records u64 ‖ column chunks in contract order
//! chunk     = capacity × bytes of one element of the column, row-major; rows past `records` are zero
//! stored    = AES-256-GCM(segment key, nonce = index in segment, AAD)
//! AAD       = "bastionai/v1/block\0" ‖ dataset id ‖ genesis policy hash ‖ segment u32 ‖ index u32   (rule A10)
//! ```
//! Integers are little-endian. With unit kind 0 the unit of a row is its record index, `first unit` and up;
//! kind 1 is kept for explicit 16-byte unit ids (capacity × 16 bytes before the chunks) and refused by this version.
//! Number and size of blocks follow from the contract and the declared size alone (rule D10).

use crate::crypto::{BlockSealer, TAG_BYTES};
use crate::error::{MAX_COLUMNS, MAX_RECORD_BYTES, UploadError};
use bastionai_ledger::{DatasetId, Digest32};
use serde::{Deserialize, Serialize};

/// How a dataset's records are cut into blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// Declared number of records.
    pub(crate) declared_size: u64,
    /// Bytes of one element of each column.
    pub(crate) column_bytes: Vec<u64>,
    /// Records per block; every block has room for this many, the last one too.
    pub(crate) rows_per_block: u64,
    /// Blocks under one segment key.
    pub(crate) blocks_per_segment: u32,
}

/// Which block of which dataset: what its AAD binds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockPlace {
    pub(crate) dataset: DatasetId,
    pub(crate) policy_digest: Digest32,
    pub(crate) segment: u32,
    pub(crate) index: u32,
}

/// The header of an opened block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockHeader {
    pub(crate) columns: u32,
    pub(crate) first_unit: u64,
    pub(crate) capacity: u64,
    pub(crate) records: u64,
}

impl Layout {
    pub(crate) fn plan(
        declared_size: u64,
        column_bytes: &[u64],
        block_bytes: u64,
        blocks_per_segment: u32,
    ) -> Result<Self, UploadError> {
        let record_bytes = column_bytes
            .iter()
            .try_fold(0u64, |sum, &bytes| sum.checked_add(bytes));
        let record_bytes = record_bytes
            .filter(|bytes| (1..=MAX_RECORD_BYTES).contains(bytes))
            .ok_or(UploadError::RecordLength)?;
        if column_bytes.contains(&0) || column_bytes.len() > MAX_COLUMNS {
            return Err(UploadError::RecordLength);
        }
        let rows_per_block = (block_bytes / record_bytes).clamp(1, declared_size.max(1));
        let layout = Self {
            declared_size,
            column_bytes: column_bytes.to_vec(),
            rows_per_block,
            blocks_per_segment,
        };
        let total = declared_size
            .checked_mul(record_bytes)
            .filter(|&bytes| usize::try_from(bytes).is_ok());
        let segments = layout.blocks().div_ceil(u64::from(blocks_per_segment));
        if declared_size == 0 || total.is_none() || u32::try_from(segments).is_err() {
            return Err(UploadError::DeclaredSize);
        }
        Ok(layout)
    }

    /// Number of blocks: a function of the layout alone.
    pub(crate) fn blocks(&self) -> u64 {
        self.declared_size.div_ceil(self.rows_per_block)
    }

    /// Bytes of one stored block: a function of the layout alone.
    pub(crate) fn stored_bytes(&self) -> u64 {
        let chunks: u64 = self
            .column_bytes
            .iter()
            .map(|bytes| bytes * self.rows_per_block)
            .sum();
        chunks + (HEADER_BYTES + TAG_BYTES) as u64
    }

    /// Segment and index in it of the `block`-th block.
    pub(crate) fn place(&self, block: u64) -> (u32, u32) {
        let per_segment = u64::from(self.blocks_per_segment);
        ((block / per_segment) as u32, (block % per_segment) as u32)
    }
}

impl BlockPlace {
    fn aad(&self) -> Vec<u8> {
        let mut aad = BLOCK_LABEL.to_vec();
        aad.extend(self.dataset.as_bytes());
        aad.extend(self.policy_digest.as_bytes());
        aad.extend(self.segment.to_le_bytes());
        aad.extend(self.index.to_le_bytes());
        aad
    }

    /// Seals a block. `chunks` hold `capacity` rows each, padded.
    pub(crate) fn seal(
        &self,
        sealer: &BlockSealer,
        header: BlockHeader,
        chunks: &[impl AsRef<[u8]>],
    ) -> Vec<u8> {
        let length: usize = chunks.iter().map(|chunk| chunk.as_ref().len()).sum();
        let mut block = Vec::with_capacity(HEADER_BYTES + length + TAG_BYTES);
        header.write(&mut block);
        chunks
            .iter()
            .for_each(|chunk| block.extend_from_slice(chunk.as_ref()));
        sealer.seal(self.index, &self.aad(), &mut block);
        block
    }

    /// Opens a stored block in place; header and the concatenated chunks.
    pub(crate) fn open<'block>(
        &self,
        sealer: &BlockSealer,
        block: &'block mut [u8],
    ) -> Option<(BlockHeader, &'block [u8])> {
        let length = sealer.open(self.index, &self.aad(), block)?;
        BlockHeader::read(&block[..length])
    }
}

impl BlockHeader {
    fn write(&self, block: &mut Vec<u8>) {
        block.extend([BLOCK_VERSION, UNIT_RECORD, 0, 0]);
        block.extend(self.columns.to_le_bytes());
        block.extend(self.first_unit.to_le_bytes());
        block.extend(self.capacity.to_le_bytes());
        block.extend(self.records.to_le_bytes());
    }

    fn read(block: &[u8]) -> Option<(Self, &[u8])> {
        let (header, chunks) = block.split_at_checked(HEADER_BYTES)?;
        if header[..4] != [BLOCK_VERSION, UNIT_RECORD, 0, 0] {
            return None;
        }
        let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let columns = u32::from_le_bytes(header[4..8].try_into().expect("four bytes"));
        Some((
            Self {
                columns,
                first_unit: word(8),
                capacity: word(16),
                records: word(24),
            },
            chunks,
        ))
    }
}

const BLOCK_LABEL: &[u8] = b"bastionai/v1/block\0";
const BLOCK_VERSION: u8 = 1;
/// Privacy unit: one record.
const UNIT_RECORD: u8 = 0;
const HEADER_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random_secret;
    use proptest::prelude::*;

    fn place() -> BlockPlace {
        BlockPlace {
            dataset: DatasetId::from_bytes([1; 16]),
            policy_digest: Digest32::of(b"policy"),
            segment: 2,
            index: 3,
        }
    }

    proptest! {
        #[test]
        fn blocks_round_trip_and_refuse_any_other_place(chunk in prop::collection::vec(any::<u8>(), 1..200), position in any::<prop::sample::Index>()) {
            let sealer = BlockSealer::new(&random_secret().unwrap());
            let header = BlockHeader { columns: 1, first_unit: 7, capacity: chunk.len() as u64, records: 1 };
            let stored = place().seal(&sealer, header, &[&chunk]);
            let (opened, data) = { let mut copy = stored.clone(); let (h, d) = place().open(&sealer, &mut copy).unwrap(); (h, d.to_vec()) };
            prop_assert_eq!(opened, header);
            prop_assert_eq!(data, chunk);

            let mut flipped = stored.clone();
            flipped[position.index(stored.len())] ^= 0x40;
            prop_assert!(place().open(&sealer, &mut flipped).is_none());
            for elsewhere in [
                BlockPlace { dataset: DatasetId::from_bytes([9; 16]), ..place() },
                BlockPlace { policy_digest: Digest32::of(b"looser"), ..place() },
                BlockPlace { segment: 1, ..place() },
                BlockPlace { index: 4, ..place() },
            ] {
                prop_assert!(elsewhere.open(&sealer, &mut stored.clone()).is_none());
            }
        }

        #[test]
        fn the_layout_covers_the_declared_size(size in 1u64..100_000, columns in prop::collection::vec(1u64..5000, 1..5), block in 1u64..100_000) {
            let layout = Layout::plan(size, &columns, block, 7).unwrap();
            prop_assert!(layout.blocks() * layout.rows_per_block >= size);
            prop_assert!((layout.blocks() - 1) * layout.rows_per_block < size);
            let record: u64 = columns.iter().sum();
            prop_assert!(layout.stored_bytes() <= block.max(record) + (HEADER_BYTES + TAG_BYTES) as u64);
        }
    }

    #[test]
    fn layouts_that_cannot_be_stored_are_refused() {
        assert!(matches!(
            Layout::plan(1, &[], 1, 1),
            Err(UploadError::RecordLength)
        ));
        assert!(matches!(
            Layout::plan(1, &[4, 0], 1, 1),
            Err(UploadError::RecordLength)
        ));
        assert!(matches!(
            Layout::plan(1, &[u64::MAX, 2], 1, 1),
            Err(UploadError::RecordLength)
        ));
        assert!(matches!(
            Layout::plan(u64::MAX, &[8], 1, 1),
            Err(UploadError::DeclaredSize)
        ));
        assert!(matches!(
            Layout::plan(0, &[8], 1, 1),
            Err(UploadError::DeclaredSize)
        ));
    }
}
