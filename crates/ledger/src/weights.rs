//! The digest of trained weights, the same for server and client.

use crate::id::Digest32;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// One tensor of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightTensor {
    /// Every fully qualified name that shares it, sorted.
    pub names: Vec<String>,
    /// PyTorch's name of the element type, e.g. `float32`.
    pub dtype: String,
    /// Extents.
    pub shape: Vec<u64>,
    /// Bytes in the concatenated data.
    pub size_bytes: u64,
}

/// SHA-256 over a label, the tensors' descriptions and their bytes, every field length-prefixed (u64,
/// little-endian). `data` is the tensors' bytes concatenated in order.
pub fn weights_digest(tensors: &[WeightTensor], data: &[u8]) -> Digest32 {
    let mut hasher = Sha256::new();
    hasher.update(WEIGHTS_LABEL);
    hasher.update((tensors.len() as u64).to_le_bytes());
    for tensor in tensors {
        hasher.update((tensor.names.len() as u64).to_le_bytes());
        tensor
            .names
            .iter()
            .for_each(|name| update_prefixed(&mut hasher, name.as_bytes()));
        update_prefixed(&mut hasher, tensor.dtype.as_bytes());
        hasher.update((tensor.shape.len() as u64).to_le_bytes());
        tensor
            .shape
            .iter()
            .for_each(|extent| hasher.update(extent.to_le_bytes()));
        hasher.update(tensor.size_bytes.to_le_bytes());
    }
    update_prefixed(&mut hasher, data);
    Digest32::from_bytes(hasher.finalize().into())
}

fn update_prefixed(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

const WEIGHTS_LABEL: &[u8] = b"bastionai/v1/weights\0";
