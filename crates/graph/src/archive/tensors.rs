//! Stored tensors: bounds-checked views of whole storages, made contiguous.

use super::json::{Payload, PayloadConfig, Size, TensorMeta};
use super::zip::{Members, member};
use super::{ArchiveError, Limits, TensorMap, strict};
use crate::dtype::DType;
use std::collections::HashMap;

/// What makes two names one tensor: (file, offset, sizes, strides).
pub(crate) type TieKey = (String, u64, Vec<u64>, Vec<u64>);

/// A parameter, buffer or constant with its contiguous bytes.
pub(crate) struct StoredTensor {
    pub(crate) tie: TieKey,
    pub(crate) is_parameter: bool,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    pub(crate) requires_grad: bool,
    /// First and one-past-last byte of the storage that the view can touch.
    pub(crate) extent_bytes: (u64, u64),
    pub(crate) bytes: Vec<u8>,
}

const MAX_RANK: usize = 16;
const STRIDED_LAYOUT: i64 = 7;

/// Loads every tensor the two config files name.
pub(super) fn load(members: &Members<'_>, limits: &Limits) -> Result<TensorMap, ArchiveError> {
    let mut tensors = HashMap::new();
    let mut budget = limits.max_tensor_bytes;
    for (folder, file) in [
        ("weights", "model_weights_config.json"),
        ("constants", "model_constants_config.json"),
    ] {
        let path = format!("data/{folder}/{file}");
        let config: PayloadConfig =
            strict::from_slice(members.json(&path, limits.max_json_bytes)?).map_err(|error| {
                ArchiveError::Json {
                    member: path.clone(),
                    reason: error.to_string(),
                }
            })?;
        for (name, payload) in config.config {
            let tensor = load_one(members, folder, &name, payload, limits, &mut budget)?;
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(wrong(&name, "is named by both config files"));
            }
        }
    }
    Ok(tensors)
}

fn load_one(
    members: &Members<'_>,
    folder: &str,
    name: &str,
    payload: Payload,
    limits: &Limits,
    budget: &mut u64,
) -> Result<StoredTensor, ArchiveError> {
    if payload.use_pickle {
        return Err(ArchiveError::Pickle {
            tensor: name.to_owned(),
        });
    }
    let meta = payload
        .tensor_meta
        .ok_or_else(|| wrong(name, "is not a tensor; custom objects cannot be sent"))?;
    let path = format!("data/{folder}/{}", payload.path_name);
    let storage = members.get(&path).ok_or_else(|| member(&path, "is missing"))?;
    let view = View::new(name, &meta, storage.len() as u64)?;
    if view.bytes > *budget {
        let found = limits
            .max_tensor_bytes
            .saturating_sub(*budget)
            .saturating_add(view.bytes);
        return Err(ArchiveError::Limit {
            what: "bytes of tensors",
            found,
            limit: limits.max_tensor_bytes,
        });
    }
    *budget -= view.bytes;
    if meta.requires_grad && view.overlaps_itself() {
        return Err(wrong(
            name,
            "is trainable and several of its elements share memory; call .contiguous() on it",
        ));
    }
    Ok(StoredTensor {
        bytes: view.gather(storage),
        tie: (path, view.offset, view.shape.clone(), view.strides.clone()),
        is_parameter: payload.is_param,
        dtype: view.dtype,
        requires_grad: meta.requires_grad,
        extent_bytes: view.extent_bytes,
        shape: view.shape,
    })
}

/// A strided view whose every element lies inside its storage.
struct View {
    dtype: DType,
    shape: Vec<u64>,
    strides: Vec<u64>,
    /// In elements.
    offset: u64,
    bytes: u64,
    extent_bytes: (u64, u64),
}

impl View {
    fn new(name: &str, meta: &TensorMeta, storage_bytes: u64) -> Result<Self, ArchiveError> {
        let dtype = dtype_from_archive(meta.dtype).ok_or_else(|| {
            wrong(
                name,
                "has a dtype without rules here; use float32, float64, int32, int64, uint8 or bool",
            )
        })?;
        if meta.layout != STRIDED_LAYOUT
            || meta.sizes.len() != meta.strides.len()
            || meta.sizes.len() > MAX_RANK
        {
            return Err(wrong(name, "is not an ordinary strided tensor"));
        }
        let fixed = |size: &Size| match size {
            Size::AsInt(size) => {
                u64::try_from(*size).map_err(|_| wrong(name, "has a negative size or stride"))
            }
            Size::AsExpr(_) => Err(wrong(name, "has a symbolic size")),
        };
        let shape = meta.sizes.iter().map(fixed).collect::<Result<Vec<_>, _>>()?;
        let strides = meta.strides.iter().map(fixed).collect::<Result<Vec<_>, _>>()?;
        let offset = fixed(&meta.storage_offset)?;
        if shape.contains(&0) {
            return Err(wrong(name, "has an axis of extent 0"));
        }
        let outside = || wrong(name, "reaches outside of its stored bytes");
        let size = dtype.size_bytes() as u64;
        let last = shape
            .iter()
            .zip(&strides)
            .try_fold(offset, |last, (extent, stride)| {
                (extent - 1)
                    .checked_mul(*stride)
                    .and_then(|step| last.checked_add(step))
            });
        let end = last
            .and_then(|last| last.checked_add(1)?.checked_mul(size))
            .ok_or_else(outside)?;
        let bytes = shape
            .iter()
            .try_fold(size, |bytes, extent| bytes.checked_mul(*extent))
            .ok_or_else(outside)?;
        if end > storage_bytes {
            return Err(outside());
        }
        Ok(Self {
            dtype,
            shape,
            strides,
            offset,
            bytes,
            extent_bytes: (offset * size, end),
        })
    }

    /// Whether two elements may be the same memory: sorted by stride, each axis must step over the
    /// whole of the axes below it.
    fn overlaps_itself(&self) -> bool {
        let mut axes: Vec<_> = self
            .strides
            .iter()
            .zip(&self.shape)
            .filter(|(_, extent)| **extent > 1)
            .collect();
        axes.sort();
        let mut reach = 1u64;
        axes.iter().any(|(stride, extent)| {
            let overlaps = **stride < reach;
            reach = stride.saturating_mul(**extent - 1).saturating_add(reach);
            overlaps
        })
    }

    fn is_row_major(&self) -> bool {
        let mut expected = 1;
        self.shape
            .iter()
            .zip(&self.strides)
            .rev()
            .all(|(extent, stride)| {
                let fits = *extent == 1 || *stride == expected;
                expected *= extent;
                fits
            })
    }

    /// Copies the elements in row-major order. Ranges were checked in [`Self::new`].
    fn gather(&self, storage: &[u8]) -> Vec<u8> {
        let size = self.dtype.size_bytes();
        let elements = (self.bytes / size as u64) as usize;
        if self.extent_bytes.1 - self.extent_bytes.0 == self.bytes && self.is_row_major() {
            return storage[self.extent_bytes.0 as usize..self.extent_bytes.1 as usize].to_vec();
        }
        let mut bytes = Vec::with_capacity(self.bytes as usize);
        let mut index = vec![0u64; self.shape.len()];
        let mut at = self.offset;
        for _ in 0..elements {
            let start = at as usize * size;
            bytes.extend_from_slice(&storage[start..start + size]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                // Wrapping: the stride of an axis of extent 1 is never taken and may be anything.
                at = at.wrapping_add(self.strides[axis]);
                if index[axis] < self.shape[axis] {
                    break;
                }
                at = at.wrapping_sub(self.strides[axis].wrapping_mul(self.shape[axis]));
                index[axis] = 0;
            }
        }
        bytes
    }
}

/// torch/_export/serde/schema.py, `ScalarType`; only the types this crate has rules for.
pub(crate) fn dtype_from_archive(code: i64) -> Option<DType> {
    match code {
        1 => Some(DType::U8),
        4 => Some(DType::I32),
        5 => Some(DType::I64),
        7 => Some(DType::F32),
        8 => Some(DType::F64),
        12 => Some(DType::Bool),
        _ => None,
    }
}

fn wrong(tensor: &str, reason: &str) -> ArchiveError {
    ArchiveError::Tensor {
        tensor: tensor.to_owned(),
        reason: reason.to_owned(),
    }
}
