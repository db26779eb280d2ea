//! The canonical typed graph: what the server sends to the trainer, and what the run digest covers.
//!
//! Rule T9 (soundness): the trainer never sees the archive, only this. Values are numbered, defined
//! before use, and every one carries the type the checker inferred; the trainer asserts each actual
//! shape and dtype against it.

mod tap;

pub use tap::{Convolution, ParameterView, RecurrentCell, Tap, TappedParameter};

use crate::dtype::DType;
use serde::{Deserialize, Serialize};

/// Version of the canonical encoding; it is the first byte of [`TypedGraph::to_bytes`].
pub const TYPED_GRAPH_VERSION: u8 = 2;

/// Index of a value in [`TypedGraph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValueId(pub u32);

/// Index of a parameter in [`TypedGraph::parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ParameterId(pub u32);

/// One extent: a literal, or `B·k` with `k ≥ 1`, where `B` is the physical batch size (rule T1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// A constant.
    Fixed(u64),
    /// `B` times this constant.
    Batch(u64),
}

/// How a value depends on the samples of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dependence {
    /// Parameters, constants and deterministic functions of them: no sample enters.
    Shared,
    /// Along `axis` the value is B consecutive blocks (extent `Batch(inner)`);
    /// block `i` depends on sample `i` alone.
    PerSample {
        /// The batch axis, counted from the front.
        axis: u8,
    },
    /// `arange(B)`, also with more axes after the first: element `[i, ...]` is `i`. Usable only to index the batch
    /// axis of a `PerSample` value (rule T1).
    BatchIota,
}

/// The inferred type of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ValueType {
    /// Which samples may influence it.
    pub dependence: Dependence,
    /// One extent per axis; `Extent::Batch` appears exactly on the batch axis.
    pub shape: Vec<Extent>,
    /// Element type.
    pub dtype: DType,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The `n`-th column of [`TypedGraph::inputs`], batch-major.
    Input(u32),
    /// A trainable or frozen parameter (tied names share one).
    Parameter(ParameterId),
    /// A read-only buffer or lifted constant: index into [`TypedGraph::constants`].
    Constant(u32),
    /// An output of a node.
    Node {
        /// Index into [`TypedGraph::nodes`].
        node: u32,
        /// Which of its outputs.
        output: u32,
    },
}

/// A value: its origin, its type, and whether any *trainable* parameter influences it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// The exported name, for messages only.
    pub name: String,
    /// Where it comes from.
    pub origin: Origin,
    /// Its inferred type.
    pub value_type: ValueType,
    /// True when a trainable parameter reaches it: its gradient is needed.
    pub requires_grad: bool,
}

/// One model input: a column of the contract, by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// Column of the data contract.
    pub column: String,
    /// Element type.
    pub dtype: DType,
    /// Extents of one record (without the batch axis).
    pub shape: Vec<u64>,
}

/// A parameter, after ties are resolved by (file, offset, sizes, strides).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameter {
    /// Every fully qualified name that shares this storage, sorted; the first names it.
    pub names: Vec<String>,
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<u64>,
    /// Whether `requires_grad` was set and the loss's gradient reaches a tap of it: only then is it
    /// trained, charged and sent back.
    pub trainable: bool,
}

/// A read-only buffer or lifted constant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Constant {
    /// Exported name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<u64>,
}

/// One argument of a node, already checked against the operator's rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Argument {
    /// `None`.
    None,
    /// A tensor.
    Value(ValueId),
    /// A tensor list.
    Values(Vec<ValueId>),
    /// A list of optional tensors (`index.Tensor`).
    OptionalValues(Vec<Option<ValueId>>),
    /// An integer (never mentions B).
    Int(i64),
    /// A size list; only here may B appear. The `end` of an `arange` whose result is a `BatchIota`
    /// is the one-element list `[Batch(1)]`.
    Sizes(Vec<Extent>),
    /// An integer list (dims, strides, …); `-1` in a size list is resolved by the checker.
    Ints(Vec<i64>),
    /// A float, by its bits, so that equality and the digest are exact.
    Float(FloatBits),
    /// Floats.
    Floats(Vec<FloatBits>),
    /// A bool.
    Bool(bool),
    /// Bools.
    Bools(Vec<bool>),
    /// An allow-listed string (`rounding_mode`, `approximate`).
    Str(String),
    /// A dtype.
    DType(DType),
    /// A number in a Tensor slot (`add.Tensor(x, 1)`): a wrapped number.
    NumberAsTensor(Number),
    /// A memory format (`clone`, `contiguous`).
    MemoryFormat(MemoryFormat),
}

impl Argument {
    /// The values this argument refers to, in order.
    pub fn value_ids(&self) -> Vec<ValueId> {
        match self {
            Self::Value(id) => vec![*id],
            Self::Values(ids) => ids.clone(),
            Self::OptionalValues(ids) => ids.iter().flatten().copied().collect(),
            _ => Vec::new(),
        }
    }
}

/// Memory formats with a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryFormat {
    /// `torch.contiguous_format`
    Contiguous,
    /// `torch.preserve_format`
    Preserve,
}

/// An f64 by its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FloatBits(pub u64);

impl FloatBits {
    /// From a float.
    pub fn new(value: f64) -> Self {
        Self(value.to_bits())
    }
    /// The float.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

/// A Python scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Number {
    /// int
    Int(i64),
    /// float
    Float(FloatBits),
    /// bool
    Bool(bool),
}

/// A named argument. Arguments the archive omitted are filled from the pinned schema table (T7),
/// so a node lists *every* argument of its schema, in schema order. `layout`, `device` and `pin_memory`
/// are always None: the engine places tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamedArgument {
    /// The schema's argument name.
    pub name: String,
    /// The value.
    pub value: Argument,
}

/// One call of an allowed ATen operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TypedNode {
    /// Exported node name, for messages.
    pub name: String,
    /// Operator name without namespace, e.g. `linear` (namespace is always `aten`).
    pub operator: String,
    /// Overload, e.g. `default`, `Tensor`, `dim_IntList`. (`default` is the empty overload in ATen.)
    pub overload: String,
    /// All arguments in schema order.
    pub arguments: Vec<NamedArgument>,
    /// Output values; a returned tensor list (`split`, `unbind`, `broadcast_tensors`) is flattened.
    pub outputs: Vec<ValueId>,
    /// How per-sample gradients of the trainable parameters used here are obtained, if any are. Present
    /// only where the loss's gradient reaches the node's first output.
    pub tap: Option<Tap>,
    /// Python `file:line` of the node's stack trace, for messages only.
    pub source: Option<String>,
}

/// What a graph computes for each sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Results {
    /// One loss: `PerSample { axis: 0 }`, shape `[Batch(1)]`, floating. For training.
    Loss(ValueId),
    /// Scores and label. For evaluation: no parameter is trained, so there is no tap.
    Scores {
        /// `PerSample { axis: 0 }`, floating: `[Batch(1)]` or `[Batch(1), Fixed(classes)]`.
        scores: ValueId,
        /// `PerSample { axis: 0 }`, integer or bool, `[Batch(1)]`.
        label: ValueId,
    },
}

impl Results {
    /// The values, in order.
    pub fn values(self) -> Vec<ValueId> {
        match self {
            Self::Loss(loss) => vec![loss],
            Self::Scores { scores, label } => vec![scores, label],
        }
    }
}

/// A proven tensor program: inputs and parameters to one loss per sample, or to scores and label.
///
/// Its only constructors are [`crate::check()`], [`crate::check_scores()`] and [`TypedGraph::from_bytes`] (the trainer trusts
/// the server that proved it; both run in the same TEE).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TypedGraph {
    pub(crate) inputs: Vec<Input>,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) constants: Vec<Constant>,
    pub(crate) values: Vec<Value>,
    pub(crate) nodes: Vec<TypedNode>,
    pub(crate) results: Results,
}

/// Why canonical bytes could not be decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Written by a newer version.
    #[error("typed graph version {found} is not {TYPED_GRAPH_VERSION}; update the trainer with the server")]
    Version {
        /// The version byte found.
        found: u8,
    },
    /// Not a canonical encoding.
    #[error("not a canonical typed graph: {0}")]
    Malformed(#[from] postcard::Error),
    /// No bytes at all, or bytes after the end.
    #[error("typed graph is truncated or has trailing bytes")]
    Length,
    /// The same graph has another, canonical encoding (rule T9: one graph, one digest).
    #[error("typed graph is not in its canonical encoding")]
    NotCanonical,
}

impl TypedGraph {
    /// Model inputs, in calling order.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }
    /// Parameters, ties resolved.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }
    /// Read-only buffers and lifted constants.
    pub fn constants(&self) -> &[Constant] {
        &self.constants
    }
    /// All values; `ValueId` indexes them.
    pub fn values(&self) -> &[Value] {
        &self.values
    }
    /// Nodes in execution order.
    pub fn nodes(&self) -> &[TypedNode] {
        &self.nodes
    }
    /// What it computes for each sample.
    pub fn results(&self) -> Results {
        self.results
    }
    /// The per-sample loss of a graph to train.
    pub fn loss(&self) -> Option<ValueId> {
        match self.results {
            Results::Loss(loss) => Some(loss),
            Results::Scores { .. } => None,
        }
    }
    /// Scores per sample of a graph to evaluate: 1 for `[B]` and `[B, 1]`, else the number of classes.
    pub fn score_width(&self) -> Option<u64> {
        let Results::Scores { scores, .. } = self.results else {
            return None;
        };
        match self.values.get(scores.0 as usize)?.value_type.shape.get(1) {
            None => Some(1),
            Some(Extent::Fixed(width)) => Some(*width),
            Some(Extent::Batch(_)) => None,
        }
    }
    /// The functions of trainable parameters that taps use, each once, in node order.
    pub fn tapped_functions(&self) -> Vec<&TappedParameter> {
        let taps = self.nodes.iter().filter_map(|node| node.tap.as_ref());
        let mut functions: Vec<&TappedParameter> = Vec::new();
        for tapped in taps.flat_map(Tap::parameters) {
            if tapped.function().is_some() && functions.iter().all(|known| known.value != tapped.value) {
                functions.push(tapped);
            }
        }
        functions
    }

    /// The canonical encoding: version byte, then postcard of the fields in order.
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = postcard::to_stdvec(self).expect("postcard encodes every field type of TypedGraph");
        let mut bytes = Vec::with_capacity(body.len() + 1);
        bytes.push(TYPED_GRAPH_VERSION);
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Decodes [`TypedGraph::to_bytes`].
    ///
    /// # Errors
    /// [`DecodeError`] when the version differs or the bytes are not exactly one encoding.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (&found, body) = bytes.split_first().ok_or(DecodeError::Length)?;
        if found != TYPED_GRAPH_VERSION {
            return Err(DecodeError::Version { found });
        }
        let (graph, rest) = postcard::take_from_bytes::<Self>(body)?;
        if !rest.is_empty() {
            return Err(DecodeError::Length);
        }
        if graph.to_bytes() == bytes {
            Ok(graph)
        } else {
            Err(DecodeError::NotCanonical)
        }
    }

    /// SHA-256 of [`TypedGraph::to_bytes`]: the graph's digest (rule T9).
    pub fn digest(&self) -> [u8; 32] {
        use sha2::{Digest, Sha256};
        Sha256::digest(self.to_bytes()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph() -> TypedGraph {
        TypedGraph {
            inputs: vec![Input {
                column: "x".into(),
                dtype: DType::F32,
                shape: vec![300],
            }],
            parameters: Vec::new(),
            constants: Vec::new(),
            values: Vec::new(),
            nodes: Vec::new(),
            results: Results::Loss(ValueId(0)),
        }
    }

    #[test]
    fn only_the_canonical_encoding_of_this_version_decodes() {
        let bytes = graph().to_bytes();
        assert_eq!(
            hex::encode(&bytes),
            "0201017803".to_owned() + "01ac02" + "000000000000"
        );
        assert_eq!(TypedGraph::from_bytes(&bytes).unwrap(), graph());
        let newer = [&[TYPED_GRAPH_VERSION + 1], &bytes[1..]].concat();
        assert!(matches!(
            TypedGraph::from_bytes(&newer),
            Err(DecodeError::Version { found }) if found == TYPED_GRAPH_VERSION + 1
        ));
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(
            TypedGraph::from_bytes(&longer),
            Err(DecodeError::Length)
        ));
        assert!(matches!(TypedGraph::from_bytes(&[]), Err(DecodeError::Length)));
        assert!(TypedGraph::from_bytes(&bytes[..4]).is_err());
        // The last varint, 0, written in two bytes.
        let overlong = [&bytes[..bytes.len() - 1], &[0x80, 0x00]].concat();
        assert!(TypedGraph::from_bytes(&overlong).is_err());
    }
}
