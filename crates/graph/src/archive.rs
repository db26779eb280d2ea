//! The `.pt2` reader: `torch.export.save` bytes to an untyped [`Program`], without pickle.
//!
//! Reads stored ZIP members, `models/model.json` (schema major 8) and the raw weight files. Never opens
//! `data/sample_inputs/model.pt`, which is a pickle. Never panics, whatever the bytes (fuzzed).

mod crc;
mod json;
mod model;
mod storages;
mod strict;
mod tensors;
#[cfg(test)]
mod tests;

mod zip;

use crate::contract::InputColumn;
use crate::program::{HintExtent, InputKind, Program, ProgramError};
use std::collections::HashMap;

/// What an archive may cost to read.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest archive.
    pub max_archive_bytes: u64,
    /// Longest single JSON member.
    pub max_json_bytes: u64,
    /// Most ZIP members.
    pub max_members: usize,
    /// Most graph nodes.
    pub max_nodes: usize,
    /// Most bytes of all parameters and constants, once contiguous.
    pub max_tensor_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_archive_bytes: 1 << 30,
            max_json_bytes: 32 << 20,
            max_members: 20_000,
            max_nodes: 20_000,
            max_tensor_bytes: 1 << 30,
        }
    }
}

/// Why an archive cannot be read. It is the scientist's own file, so messages may quote it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// Some limit of [`Limits`].
    #[error("{what}: {found}, more than the limit of {limit}")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// How much there is.
        found: u64,
        /// How much may be.
        limit: u64,
    },
    /// Not a ZIP file as `torch.export.save` writes it.
    #[error("not a .pt2 archive: {0}; write it with bastionai.export or torch.export.save")]
    Zip(String),
    /// A member that has no place in such an archive, or lacks.
    #[error("archive member {member:?}: {reason}")]
    Member {
        /// Its name.
        member: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor stored as a pickle.
    #[error(
        "tensor {tensor:?} is stored as a pickle, which is code and is never read; store plain CPU tensors only"
    )]
    Pickle {
        /// Its name.
        tensor: String,
    },
    /// JSON that is malformed, repeats a key, or lacks a field.
    #[error("{member}: {reason}")]
    Json {
        /// Which file.
        member: String,
        /// What is wrong.
        reason: String,
    },
    /// Another schema.
    #[error("the archive has export schema {major}.{minor}; this version reads major 8 (torch 2.6 to 2.13)")]
    Schema {
        /// Major version found.
        major: i64,
        /// Minor version found.
        minor: i64,
    },
    /// A parameter, buffer or constant that cannot be used.
    #[error("tensor {tensor:?}: {reason}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// The graph is not well formed.
    #[error("{0}")]
    Program(#[from] ProgramError),
}

/// A read archive: the untyped program and the bytes of its tensors.
#[derive(Clone, Debug)]
pub struct Archive {
    program: Program,
    parameters: Vec<Vec<u8>>,
    constants: Vec<Vec<u8>>,
}

impl Archive {
    /// Reads a `.pt2` archive.
    ///
    /// # Errors
    /// [`ArchiveError`] for everything that is not exactly what `torch.export.save` writes.
    pub fn read(bytes: &[u8], limits: &Limits) -> Result<Self, ArchiveError> {
        let found = bytes.len() as u64;
        if found > limits.max_archive_bytes {
            return Err(ArchiveError::Limit {
                what: "archive bytes",
                found,
                limit: limits.max_archive_bytes,
            });
        }
        let members = zip::Members::read(bytes, limits.max_members)?;
        let model = json::Model::parse(members.json("models/model.json", limits.max_json_bytes)?)?;
        let loaded = tensors::load(&members, limits)?;
        model::assemble(model, loaded, limits)
    }

    /// The untyped program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Contiguous little-endian bytes of parameter `i` of the typed graph; `None` past the last.
    pub fn parameter_bytes(&self, i: usize) -> Option<&[u8]> {
        self.parameters.get(i).map(Vec::as_slice)
    }

    /// Contiguous little-endian bytes of constant `i` of the typed graph; `None` past the last.
    pub fn constant_bytes(&self, i: usize) -> Option<&[u8]> {
        self.constants.get(i).map(Vec::as_slice)
    }

    /// Input columns read off the archive's own example shapes (axis 0 is taken as the batch), for
    /// `bastionai check` without a contract. Names are the graph's input names.
    ///
    /// # Errors
    /// [`ArchiveError::Tensor`] for an input without a usable recorded shape.
    pub fn example_inputs(&self) -> Result<Vec<InputColumn>, ArchiveError> {
        let users = self
            .program
            .inputs()
            .iter()
            .filter(|input| matches!(input.kind, InputKind::User));
        users.map(|input| self.example_input(&input.name)).collect()
    }

    fn example_input(&self, name: &str) -> Result<InputColumn, ArchiveError> {
        let wrong = |reason: &str| ArchiveError::Tensor {
            tensor: name.to_owned(),
            reason: reason.into(),
        };
        let hint = self
            .program
            .hint(name)
            .ok_or_else(|| wrong("no recorded shape"))?;
        let dtype = hint.dtype.ok_or_else(|| wrong("its dtype is not supported"))?;
        let record = hint
            .shape
            .get(1..)
            .ok_or_else(|| wrong("a scalar input has no batch axis"))?;
        let fixed = |extent: &HintExtent| match extent {
            HintExtent::Fixed(size) => Ok(*size),
            HintExtent::Symbolic(_) => Err(wrong("an axis other than the first is dynamic")),
        };
        let shape = record.iter().map(fixed).collect::<Result<_, _>>()?;
        Ok(InputColumn {
            column: name.to_owned(),
            dtype,
            shape,
            domain: None,
        })
    }
}

pub use storages::storages;
pub(crate) use tensors::dtype_from_archive;

/// Tensors by qualified name, before the signature says which are used.
pub(crate) type TensorMap = HashMap<String, tensors::StoredTensor>;
