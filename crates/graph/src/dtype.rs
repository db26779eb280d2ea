//! Element types of tensors, the same set everywhere: contract columns, parameters, graph values.

use serde::{Deserialize, Serialize};

/// A tensor element type. Only these exist here; complex, quantised and 8/16-bit floats have no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DType {
    /// 8-bit unsigned integer (`torch.uint8`).
    U8,
    /// 32-bit signed integer (`torch.int32`).
    I32,
    /// 64-bit signed integer (`torch.int64`).
    I64,
    /// IEEE binary32 (`torch.float32`).
    F32,
    /// IEEE binary64 (`torch.float64`).
    F64,
    /// One byte, 0 or 1 (`torch.bool`).
    Bool,
}

impl DType {
    /// Bytes per element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::U8 | Self::Bool => 1,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }

    /// Whether values are IEEE floats.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }

    /// The name PyTorch prints, without the `torch.` prefix.
    pub const fn torch_name(self) -> &'static str {
        match self {
            Self::U8 => "uint8",
            Self::I32 => "int32",
            Self::I64 => "int64",
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::Bool => "bool",
        }
    }
}
