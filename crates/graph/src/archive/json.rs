//! `models/model.json` and the config files as serde types: torch/_export/serde/schema.py, schema major 8.
//!
//! Only fields that are read are named; unions keep every tag of the schema, so that an argument kind
//! without a rule is refused at its node and not as a parse error.

use super::{ArchiveError, strict};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::HashMap;

/// The whole of `models/model.json`.
#[derive(Deserialize)]
pub(super) struct Model {
    pub(super) graph_module: GraphModule,
}

#[derive(Deserialize)]
struct VersionOnly {
    schema_version: SchemaVersion,
}

#[derive(Deserialize)]
struct SchemaVersion {
    major: i64,
    minor: i64,
}

impl Model {
    /// Parses; looks at the schema version before anything else.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ArchiveError> {
        let wrong = |error: serde_json::Error| ArchiveError::Json {
            member: "models/model.json".into(),
            reason: error.to_string(),
        };
        let VersionOnly { schema_version } = strict::from_slice(bytes).map_err(wrong)?;
        if schema_version.major != 8 {
            let SchemaVersion { major, minor } = schema_version;
            return Err(ArchiveError::Schema { major, minor });
        }
        serde_json::from_slice(bytes).map_err(wrong)
    }
}

#[derive(Deserialize)]
pub(super) struct GraphModule {
    pub(super) graph: Graph,
    pub(super) signature: Signature,
}

#[derive(Deserialize)]
pub(super) struct Graph {
    pub(super) inputs: Vec<Argument>,
    pub(super) outputs: Vec<Argument>,
    pub(super) nodes: Vec<Node>,
    pub(super) tensor_values: HashMap<String, TensorMeta>,
}

#[derive(Deserialize)]
pub(super) struct Node {
    pub(super) target: String,
    pub(super) inputs: Vec<NamedArgument>,
    pub(super) outputs: Vec<Argument>,
    #[serde(default)]
    pub(super) metadata: HashMap<String, String>,
    #[serde(default)]
    pub(super) name: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct NamedArgument {
    pub(super) name: String,
    pub(super) arg: Argument,
}

// The names are the schema's own.
#[allow(clippy::enum_variant_names)]
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Argument {
    AsNone(IgnoredAny),
    AsTensor(Name),
    AsTensors(Vec<Name>),
    AsInt(i64),
    AsInts(Vec<i64>),
    AsFloat(Float),
    AsFloats(Vec<Float>),
    AsString(String),
    AsStrings(IgnoredAny),
    AsSymInt(SymIntArgument),
    AsSymInts(Vec<SymIntArgument>),
    AsScalarType(i64),
    AsMemoryFormat(i64),
    AsLayout(i64),
    AsDevice(Device),
    AsBool(bool),
    AsBools(Vec<bool>),
    AsSymBool(IgnoredAny),
    AsSymBools(IgnoredAny),
    AsGraph(IgnoredAny),
    AsOptionalTensors(Vec<OptionalTensor>),
    AsCustomObj(IgnoredAny),
    AsOperator(IgnoredAny),
    AsSymFloat(IgnoredAny),
    AsSymFloats(IgnoredAny),
    AsOptionalTensor(OptionalTensor),
    AsComplex(IgnoredAny),
    AsNestedTensors(IgnoredAny),
    AsIntLists(IgnoredAny),
    AsStringToArgument(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OptionalTensor {
    AsTensor(Name),
    AsNone(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SymIntArgument {
    AsName(String),
    AsInt(i64),
}

#[derive(Deserialize)]
pub(super) struct Name {
    pub(super) name: String,
}

#[derive(Deserialize)]
pub(super) struct Device {
    #[serde(rename = "type")]
    pub(super) kind: String,
}

/// Non-finite floats are written as strings.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Float {
    Number(f64),
    Text(String),
}

#[derive(Deserialize)]
pub(super) struct TensorMeta {
    pub(super) dtype: i64,
    pub(super) sizes: Vec<Size>,
    pub(super) requires_grad: bool,
    pub(super) strides: Vec<Size>,
    pub(super) storage_offset: Size,
    pub(super) layout: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Size {
    AsInt(i64),
    AsExpr(Expression),
}

#[derive(Deserialize)]
pub(super) struct Expression {
    pub(super) expr_str: String,
}

#[derive(Deserialize)]
pub(super) struct Signature {
    pub(super) input_specs: Vec<InputSpec>,
    pub(super) output_specs: Vec<OutputSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum InputSpec {
    UserInput(ArgumentSpec),
    Parameter(ParameterSpec),
    Buffer(BufferSpec),
    TensorConstant(ConstantSpec),
    CustomObj(IgnoredAny),
    Token(IgnoredAny),
    ConstantInput(IgnoredAny),
}

#[derive(Deserialize)]
pub(super) struct ArgumentSpec {
    pub(super) arg: Argument,
}

#[derive(Deserialize)]
pub(super) struct ParameterSpec {
    pub(super) arg: Name,
    pub(super) parameter_name: String,
}

#[derive(Deserialize)]
pub(super) struct BufferSpec {
    pub(super) arg: Name,
    pub(super) buffer_name: String,
}

#[derive(Deserialize)]
pub(super) struct ConstantSpec {
    pub(super) arg: Name,
    pub(super) tensor_constant_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OutputSpec {
    UserOutput(ArgumentSpec),
    LossOutput(LossSpec),
    BufferMutation(MutationSpec),
    ParameterMutation(MutationSpec),
    UserInputMutation(MutationSpec),
    GradientToParameter(IgnoredAny),
    GradientToUserInput(IgnoredAny),
    Token(IgnoredAny),
}

#[derive(Deserialize)]
pub(super) struct LossSpec {
    pub(super) arg: Name,
}

#[derive(Deserialize)]
pub(super) struct MutationSpec {
    pub(super) arg: Name,
}

/// `model_weights_config.json` and `model_constants_config.json`.
#[derive(Deserialize)]
pub(super) struct PayloadConfig {
    pub(super) config: HashMap<String, Payload>,
}

#[derive(Deserialize)]
pub(super) struct Payload {
    pub(super) path_name: String,
    pub(super) is_param: bool,
    pub(super) use_pickle: bool,
    pub(super) tensor_meta: Option<TensorMeta>,
}
