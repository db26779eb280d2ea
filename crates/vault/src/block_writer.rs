//! Seals and writes the blocks of an upload on a thread of its own: while the disk makes one block durable, the next
//! one is received. At most one block waits, so a fast sender is held back by the disk, not kept in memory.
//!
//! The order of what reaches the block store is that of the blocks, and whoever ends a writer waits for it: after
//! [`BlockWriter::finish`] every block was put, after [`BlockWriter::abandon`] none is put any more.

use crate::block::{BlockHeader, BlockPlace, Layout};
use crate::blocks::ObjectId;
use crate::crypto::{BlockSealer, random_secret};
use crate::dataset::{SegmentRecord, VersionRoot};
use crate::error::StorageError;
use crate::vault::Vault;
use bastionai_ledger::{DatasetId, Digest32};
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use zeroize::Zeroizing;

/// A block's plaintext: one chunk per column, of full capacity; rows past `records` are zero.
pub(crate) struct FilledBlock {
    pub(crate) chunks: Vec<Zeroizing<Vec<u8>>>,
    pub(crate) records: u64,
}

/// The thread and the way to it.
pub(crate) struct BlockWriter {
    queue: Option<SyncSender<FilledBlock>>,
    thread: Option<JoinHandle<Result<Written, StorageError>>>,
}

/// What all blocks together gave.
pub(crate) struct Written {
    pub(crate) segments: Vec<SegmentRecord>,
    pub(crate) root: VersionRoot,
}

/// What the thread works with.
pub(crate) struct Sealing {
    vault: Vault,
    dataset: DatasetId,
    policy_digest: Digest32,
    layout: Layout,
    object: ObjectId,
    sealer: Option<BlockSealer>,
    next_block: u64,
    written: Written,
}

impl BlockWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`StorageError::Blocks`] when the system gives no thread.
    pub(crate) fn start(sealing: Sealing) -> Result<Self, StorageError> {
        let (queue, blocks) = sync_channel(BLOCKS_WAITING);
        let thread = Builder::new()
            .name("block-writer".into())
            .spawn(move || sealing.write_all(&blocks))
            .map_err(StorageError::blocks("start a thread that writes blocks"))?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
        })
    }

    /// Hands over the next block; waits while another one waits.
    ///
    /// # Errors
    /// What stopped the thread at an earlier block. Nothing is written after it.
    pub(crate) fn put(&mut self, block: FilledBlock) -> Result<(), StorageError> {
        let sent = self.queue.as_ref().is_some_and(|queue| queue.send(block).is_ok());
        if sent {
            return Ok(());
        }
        // It hung up, so it failed, and says how.
        self.finish().map(drop)
    }

    /// Waits until every block handed over was put.
    ///
    /// # Errors
    /// What stopped the thread.
    pub(crate) fn finish(&mut self) -> Result<Written, StorageError> {
        drop(self.queue.take());
        let failed_before =
            || StorageError::blocks("write a block")(io::Error::other("an earlier block was not written"));
        match self.thread.take().ok_or_else(failed_before)?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Waits until the thread is gone, whatever became of the blocks.
    pub(crate) fn abandon(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            // Its blocks are deleted next: how it ended does not matter.
            drop(thread.join());
        }
    }
}

impl Sealing {
    pub(crate) fn new(
        vault: Vault,
        dataset: DatasetId,
        policy_digest: Digest32,
        layout: Layout,
        object: ObjectId,
    ) -> Self {
        Self {
            vault,
            dataset,
            policy_digest,
            layout,
            object,
            sealer: None,
            next_block: 0,
            written: Written {
                segments: Vec::new(),
                root: VersionRoot::default(),
            },
        }
    }

    fn write_all(mut self, blocks: &Receiver<FilledBlock>) -> Result<Written, StorageError> {
        for block in blocks {
            self.write(&block)?;
        }
        Ok(self.written)
    }

    fn write(&mut self, filled: &FilledBlock) -> Result<(), StorageError> {
        let (segment, index) = self.layout.place(self.next_block);
        if index == 0 {
            let key = random_secret()?;
            self.sealer = Some(BlockSealer::new(&key));
            self.written.segments.push(SegmentRecord::new(&key));
        }
        let place = BlockPlace {
            dataset: self.dataset,
            policy_digest: self.policy_digest,
            segment,
            index,
        };
        let header = BlockHeader {
            columns: filled.chunks.len() as u32,
            first_unit: self.next_block * self.layout.rows_per_block,
            capacity: self.layout.rows_per_block,
            records: filled.records,
        };
        let sealer = self
            .sealer
            .as_ref()
            .expect("the first block of a segment made its sealer");
        let block = place.seal(sealer, header, &filled.chunks);
        self.written.root.update(&block);
        self.vault
            .inner
            .blocks
            .put(self.object, self.next_block, &block)
            .map_err(StorageError::blocks("write a block"))?;
        self.next_block += 1;
        Ok(())
    }
}

/// Beside the one being received and the one being written.
const BLOCKS_WAITING: usize = 1;
