//! Large values at rest: sealed in blocks under a key of their own. Whoever names one keeps its [`ObjectKey`] in a
//! sealed record, written in the transaction that gives it meaning.

use crate::blocks::ObjectId;
use crate::crypto::{BlockSealer, Secret, TAG_BYTES, random_bytes, random_secret};
use crate::error::StorageError;
use crate::vault::Vault;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// What is needed to read an object back. The fields in this order are part of every record that holds one.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub(crate) struct ObjectKey {
    object: [u8; 16],
    key: [u8; 32],
    data_bytes: u64,
    block_bytes: u64,
}

/// An object that is durable but not yet named; dropped before [`NewObject::named`], it is deleted.
pub(crate) struct NewObject<'vault> {
    vault: &'vault Vault,
    key: ObjectKey,
    abandon_on_drop: bool,
}

impl ObjectKey {
    pub(crate) fn id(&self) -> ObjectId {
        ObjectId(self.object)
    }

    /// One block at least, so that the object exists even when it is empty.
    fn blocks(&self, what: &'static str) -> Result<u32, StorageError> {
        let blocks = self.data_bytes.div_ceil(self.block_bytes.max(1)).max(1);
        u32::try_from(blocks).map_err(|_| StorageError::Sealed { what })
    }
}

impl<'vault> NewObject<'vault> {
    /// Writes `parts`, one after the other. `aad` says what they are and whose; the index of a block is added to it.
    pub(crate) fn write(vault: &'vault Vault, aad: &[u8], parts: &[&[u8]]) -> Result<Self, StorageError> {
        if vault.is_poisoned() {
            return Err(StorageError::Poisoned);
        }
        let secret = random_secret()?;
        let new = Self {
            vault,
            key: ObjectKey {
                object: random_bytes()?,
                key: *secret,
                data_bytes: parts.iter().map(|part| part.len() as u64).sum(),
                block_bytes: vault.inner.config.object_block_bytes.max(1),
            },
            abandon_on_drop: true,
        };
        new.write_blocks(&secret, aad, parts)?;
        Ok(new)
    }

    fn write_blocks(&self, secret: &Secret, aad: &[u8], parts: &[&[u8]]) -> Result<(), StorageError> {
        let (sealer, blocks, id) = (BlockSealer::new(secret), &self.vault.inner.blocks, self.key.id());
        let room = self.key.block_bytes.min(self.key.data_bytes) as usize;
        let mut rest = parts.iter().copied().flat_map(|part| part.chunks(room.max(1)));
        let mut left: &[u8] = &[];
        for index in 0..self.key.blocks("an object")? {
            let mut block = Vec::with_capacity(room + TAG_BYTES);
            while block.len() < room {
                if left.is_empty() {
                    let Some(next) = rest.next() else { break };
                    left = next;
                }
                let (taken, after) = left.split_at(left.len().min(room - block.len()));
                block.extend_from_slice(taken);
                left = after;
            }
            sealer.seal(index, &block_aad(aad, index), &mut block);
            blocks
                .put(id, u64::from(index), &block)
                .map_err(StorageError::blocks("write a block"))?;
        }
        blocks.sync(id).map_err(StorageError::blocks("sync"))
    }

    /// For the record that names it.
    pub(crate) fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// From here on a transaction may name it.
    pub(crate) fn named(&mut self) {
        self.abandon_on_drop = false;
    }
}

impl Drop for NewObject<'_> {
    fn drop(&mut self) {
        if self.abandon_on_drop {
            self.vault.delete_object(self.key.id());
        }
    }
}

impl Vault {
    /// Reads an object whole.
    pub(crate) fn read_object(
        &self,
        key: &ObjectKey,
        aad: &[u8],
        what: &'static str,
    ) -> Result<Zeroizing<Vec<u8>>, StorageError> {
        let sealer = BlockSealer::new(&Zeroizing::new(key.key));
        let most = key.block_bytes + TAG_BYTES as u64;
        let mut data = Zeroizing::new(Vec::with_capacity(key.data_bytes as usize));
        for index in 0..key.blocks(what)? {
            let block = self.inner.blocks.get(key.id(), u64::from(index), most);
            let mut block = Zeroizing::new(block.map_err(StorageError::blocks("read a block"))?);
            let length = sealer.open(index, &block_aad(aad, index), &mut block);
            data.extend_from_slice(&block[..length.ok_or(StorageError::Sealed { what })?]);
        }
        if data.len() as u64 == key.data_bytes {
            Ok(data)
        } else {
            Err(StorageError::Sealed { what })
        }
    }

    /// Deletes an object that nothing names any more. Best effort: its key is gone, and the next open sweeps.
    pub(crate) fn delete_object(&self, object: ObjectId) {
        drop(self.inner.blocks.delete(object));
    }
}

fn block_aad(aad: &[u8], index: u32) -> Vec<u8> {
    [aad, &index.to_le_bytes()].concat()
}
