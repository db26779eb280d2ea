//! The untyped program: what an archive says, before anything is believed.
//!
//! Well-formed only in the sense of rule T9: every name is defined once and before it is used.
//! Shapes and dtypes recorded in the archive are kept as [`Hint`]s, for the checker to contradict.

use crate::dtype::DType;
use std::collections::{HashMap, HashSet};

/// A tensor program as read. Built by [`Program::new`] only.
#[derive(Clone, Debug)]
pub struct Program {
    parts: ProgramParts,
}

/// The fields of a [`Program`].
#[derive(Clone, Debug, Default)]
pub struct ProgramParts {
    /// Parameters, ties resolved.
    pub parameters: Vec<ProgramParameter>,
    /// Buffers and lifted constants.
    pub constants: Vec<ProgramConstant>,
    /// Graph inputs in order.
    pub inputs: Vec<ProgramInput>,
    /// Calls in order.
    pub nodes: Vec<ProgramNode>,
    /// Graph outputs in order.
    pub outputs: Vec<ProgramOutput>,
    /// Recorded type of each tensor value, by name.
    pub hints: HashMap<String, Hint>,
}

/// A stored parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct ProgramParameter {
    /// Every qualified name that shares it, sorted.
    pub names: Vec<String>,
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<u64>,
    /// As recorded: whether it is to be trained.
    pub requires_grad: bool,
}

/// A stored buffer or constant.
#[derive(Clone, Debug, PartialEq)]
pub struct ProgramConstant {
    /// Qualified name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<u64>,
}

/// A graph input.
#[derive(Clone, Debug, PartialEq)]
pub struct ProgramInput {
    /// Value name.
    pub name: String,
    /// What it stands for.
    pub kind: InputKind,
}

/// What a graph input stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// Index into [`ProgramParts::parameters`].
    Parameter(usize),
    /// Index into [`ProgramParts::constants`].
    Constant(usize),
    /// The next model input.
    User,
}

/// A graph output.
#[derive(Clone, Debug, PartialEq)]
pub struct ProgramOutput {
    /// What the signature says it is: `output`, or a mutation of something.
    pub kind: OutputKind,
    /// The value.
    pub value: RawArgument,
}

/// What a graph output is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// A result.
    Result,
    /// The new value of a buffer, parameter or input: state, refused by the checker (rule T8).
    Mutation,
}

/// One call.
#[derive(Clone, Debug, PartialEq)]
pub struct ProgramNode {
    /// Node name.
    pub name: String,
    /// E.g. `torch.ops.aten.linear.default` or `_operator.mul`.
    pub target: String,
    /// Arguments given, by schema name.
    pub arguments: Vec<(String, RawArgument)>,
    /// Names defined: tensors, tensors of one list, or a size.
    pub outputs: Vec<RawOutput>,
    /// Python `file:line`, as recorded.
    pub source: Option<String>,
}

/// What one output slot of a node defines.
#[derive(Clone, Debug, PartialEq)]
pub enum RawOutput {
    /// A tensor.
    Tensor(String),
    /// A list of tensors.
    Tensors(Vec<String>),
    /// A size.
    Size(String),
    /// Something this version has no rule for, by its tag.
    Unsupported(&'static str),
}

/// An argument as serialised.
#[derive(Clone, Debug, PartialEq)]
pub enum RawArgument {
    /// None.
    None,
    /// A tensor by name.
    Tensor(String),
    /// Tensors by name.
    Tensors(Vec<String>),
    /// Tensors or None.
    OptionalTensors(Vec<Option<String>>),
    /// Integer.
    Int(i64),
    /// Integers.
    Ints(Vec<i64>),
    /// Float.
    Float(f64),
    /// Floats.
    Floats(Vec<f64>),
    /// Bool.
    Bool(bool),
    /// Bools.
    Bools(Vec<bool>),
    /// String.
    Str(String),
    /// A symbolic integer, or an integer among such.
    Size(RawSize),
    /// Symbolic integers.
    Sizes(Vec<RawSize>),
    /// Serialised scalar type.
    ScalarType(i64),
    /// Serialised memory format.
    MemoryFormat(i64),
    /// Serialised layout.
    Layout(i64),
    /// Device type.
    Device(String),
    /// Something this version has no rule for, by its tag.
    Unsupported(&'static str),
}

/// One extent in a size list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawSize {
    /// The size of this name.
    Name(String),
    /// A constant.
    Int(i64),
}

/// Recorded type of a tensor value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// `None` for a dtype without rules here.
    pub dtype: Option<DType>,
    /// Recorded extents.
    pub shape: Vec<HintExtent>,
}

/// A recorded extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HintExtent {
    /// A constant.
    Fixed(u64),
    /// A symbolic expression, as text.
    Symbolic(String),
}

/// Why a program is not well formed (rule T9).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// Two values of one name.
    #[error("the value name {name:?} is defined twice")]
    Repeated {
        /// The name.
        name: String,
    },
    /// A value used before it is defined, or never defined.
    #[error("node {node:?} uses {name:?} before it is defined")]
    Undefined {
        /// Who uses it.
        node: String,
        /// The name.
        name: String,
    },
    /// An argument given twice.
    #[error("node {node:?} gives the argument {argument:?} twice")]
    RepeatedArgument {
        /// Which node.
        node: String,
        /// The argument.
        argument: String,
    },
    /// Graph and signature do not match, or name what does not exist.
    #[error("the graph and its signature do not match: {0}")]
    Signature(String),
}

impl Program {
    /// Checks that names are defined once and before use, and that indices exist.
    ///
    /// # Errors
    /// [`ProgramError`].
    pub fn new(parts: ProgramParts) -> Result<Self, ProgramError> {
        let mut defined = HashSet::new();
        for input in &parts.inputs {
            define(&mut defined, &input.name)?;
            let exists = match input.kind {
                InputKind::Parameter(index) => index < parts.parameters.len(),
                InputKind::Constant(index) => index < parts.constants.len(),
                InputKind::User => true,
            };
            if !exists {
                return Err(ProgramError::Signature(format!(
                    "input {:?} stands for nothing stored",
                    input.name
                )));
            }
        }
        for node in &parts.nodes {
            node.check_names(&mut defined)?;
        }
        for output in &parts.outputs {
            output
                .value
                .names()
                .try_for_each(|name| require_defined(&defined, "output", name))?;
        }
        Ok(Self { parts })
    }

    /// Parameters, ties resolved.
    pub fn parameters(&self) -> &[ProgramParameter] {
        &self.parts.parameters
    }
    /// Buffers and lifted constants.
    pub fn constants(&self) -> &[ProgramConstant] {
        &self.parts.constants
    }
    /// Graph inputs in order.
    pub fn inputs(&self) -> &[ProgramInput] {
        &self.parts.inputs
    }
    /// Calls in order.
    pub fn nodes(&self) -> &[ProgramNode] {
        &self.parts.nodes
    }
    /// Graph outputs in order.
    pub fn outputs(&self) -> &[ProgramOutput] {
        &self.parts.outputs
    }
    /// The recorded type of a value.
    pub fn hint(&self, name: &str) -> Option<&Hint> {
        self.parts.hints.get(name)
    }
}

impl ProgramNode {
    fn check_names(&self, defined: &mut HashSet<String>) -> Result<(), ProgramError> {
        let mut seen = HashSet::new();
        for (argument, value) in &self.arguments {
            if !seen.insert(argument) {
                let (node, argument) = (self.name.clone(), argument.clone());
                return Err(ProgramError::RepeatedArgument { node, argument });
            }
            value
                .names()
                .try_for_each(|name| require_defined(defined, &self.name, name))?;
        }
        self.outputs
            .iter()
            .flat_map(RawOutput::names)
            .try_for_each(|name| define(defined, name))
    }
}

impl RawOutput {
    /// Names this slot defines.
    pub fn names(&self) -> &[String] {
        match self {
            Self::Tensor(name) | Self::Size(name) => std::slice::from_ref(name),
            Self::Tensors(names) => names,
            Self::Unsupported(_) => &[],
        }
    }
}

impl RawArgument {
    /// Names of values this argument uses.
    pub fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Self::Tensor(name) | Self::Size(RawSize::Name(name)) => Box::new(std::iter::once(name.as_str())),
            Self::Tensors(names) => Box::new(names.iter().map(String::as_str)),
            Self::OptionalTensors(names) => Box::new(names.iter().flatten().map(String::as_str)),
            Self::Sizes(sizes) => Box::new(sizes.iter().filter_map(|size| match size {
                RawSize::Name(name) => Some(name.as_str()),
                RawSize::Int(_) => None,
            })),
            _ => Box::new(std::iter::empty()),
        }
    }
}

fn define(defined: &mut HashSet<String>, name: &str) -> Result<(), ProgramError> {
    if defined.insert(name.to_owned()) {
        Ok(())
    } else {
        Err(ProgramError::Repeated {
            name: name.to_owned(),
        })
    }
}

fn require_defined(defined: &HashSet<String>, node: &str, name: &str) -> Result<(), ProgramError> {
    if defined.contains(name) {
        return Ok(());
    }
    Err(ProgramError::Undefined {
        node: node.to_owned(),
        name: name.to_owned(),
    })
}
