//! The typed graph as text, for `bastionai check` and for messages.

use crate::dtype::DType;
use crate::typed::{
    Argument, Dependence, Extent, Number, Origin, Tap, TypedGraph, TypedNode, ValueId, ValueType,
};
use std::fmt::{self, Write};

/// A type as people read it: `f32[B, 30]`, `shared f32[16, 30]`, `i64 iota[B]`.
pub(crate) fn ty(value_type: &ValueType) -> String {
    let extents: Vec<String> = value_type
        .shape
        .iter()
        .map(|extent| extent_text(*extent))
        .collect();
    let (prefix, suffix) = match value_type.dependence {
        Dependence::Shared => ("shared ", ""),
        Dependence::PerSample { .. } => ("", ""),
        Dependence::BatchIota => ("", " iota"),
    };
    format!(
        "{prefix}{}{suffix}[{}]",
        dtype_text(value_type.dtype),
        extents.join(", ")
    )
}

fn dtype_text(dtype: DType) -> &'static str {
    match dtype {
        DType::U8 => "u8",
        DType::I32 => "i32",
        DType::I64 => "i64",
        DType::F32 => "f32",
        DType::F64 => "f64",
        DType::Bool => "bool",
    }
}

fn extent_text(extent: Extent) -> String {
    match extent {
        Extent::Fixed(size) => size.to_string(),
        Extent::Batch(1) => "B".into(),
        Extent::Batch(inner) => format!("{inner}*B"),
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&ty(self))
    }
}

impl fmt::Display for TypedGraph {
    /// One line a value: inputs, parameters, constants, then nodes in order with types and taps.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for value in self.values() {
            let what = match value.origin {
                Origin::Input(index) => {
                    format!("input     column {:?}", self.inputs()[index as usize].column)
                }
                Origin::Parameter(id) => {
                    let parameter = &self.parameters()[id.0 as usize];
                    let trained = if parameter.trainable {
                        "trained"
                    } else {
                        "not trained"
                    };
                    format!("parameter {} ({trained})", parameter.names.join(" = "))
                }
                Origin::Constant(index) => format!("constant  {}", self.constants()[index as usize].name),
                Origin::Node { .. } => continue,
            };
            writeln!(formatter, "%{}: {} = {what}", value.name, value.value_type)?;
        }
        for node in self.nodes() {
            self.write_node(formatter, node)?;
        }
        let results = self.results().values();
        let names: Vec<String> = results.iter().map(|id| format!("%{}", self.name(*id))).collect();
        write!(formatter, "return {}", names.join(", "))
    }
}

impl TypedGraph {
    fn name(&self, id: ValueId) -> &str {
        &self.values()[id.0 as usize].name
    }

    fn write_node(&self, formatter: &mut fmt::Formatter<'_>, node: &TypedNode) -> fmt::Result {
        let outputs: Vec<String> = node
            .outputs
            .iter()
            .map(|id| {
                let value = &self.values()[id.0 as usize];
                format!("%{}: {}", value.name, value.value_type)
            })
            .collect();
        let arguments: Vec<String> = node
            .arguments
            .iter()
            .filter(|argument| argument.value != Argument::None)
            .map(|argument| format!("{}={}", argument.name, self.argument_text(&argument.value)))
            .collect();
        let overload = if node.overload == "default" {
            String::new()
        } else {
            format!(".{}", node.overload)
        };
        write!(
            formatter,
            "{} = {}{overload}({})",
            outputs.join(", "),
            node.operator,
            arguments.join(", ")
        )?;
        if let Some(tap) = &node.tap {
            write!(formatter, "  tap {}", self.tap_text(tap))?;
        }
        match &node.source {
            Some(source) => writeln!(formatter, "  # {source}"),
            None => writeln!(formatter),
        }
    }

    fn argument_text(&self, argument: &Argument) -> String {
        let list = |parts: Vec<String>| format!("[{}]", parts.join(", "));
        let value = |id: &ValueId| format!("%{}", self.name(*id));
        match argument {
            Argument::None => "None".into(),
            Argument::Value(id) => value(id),
            Argument::Values(ids) => list(ids.iter().map(value).collect()),
            Argument::OptionalValues(ids) => list(
                ids.iter()
                    .map(|id| id.as_ref().map_or_else(|| "None".into(), value))
                    .collect(),
            ),
            Argument::Int(int) => int.to_string(),
            Argument::Sizes(extents) => list(extents.iter().map(|extent| extent_text(*extent)).collect()),
            Argument::Ints(ints) => list(ints.iter().map(i64::to_string).collect()),
            Argument::Float(float) => float.get().to_string(),
            Argument::Floats(floats) => list(floats.iter().map(|float| float.get().to_string()).collect()),
            Argument::Bool(value) => value.to_string(),
            Argument::Bools(values) => list(values.iter().map(bool::to_string).collect()),
            Argument::Str(text) => format!("{text:?}"),
            Argument::DType(dtype) => dtype_text(*dtype).into(),
            Argument::NumberAsTensor(Number::Int(int)) => int.to_string(),
            Argument::NumberAsTensor(Number::Float(float)) => float.get().to_string(),
            Argument::NumberAsTensor(Number::Bool(value)) => value.to_string(),
            Argument::MemoryFormat(format) => format!("{format:?}").to_lowercase(),
        }
    }

    fn tap_text(&self, tap: &Tap) -> String {
        let kind = match tap {
            Tap::Linear { .. } => "linear",
            Tap::MatMul { .. } => "matmul",
            Tap::LayerNorm { .. } => "layer_norm",
            Tap::BroadcastAdd { .. } => "add",
            Tap::BroadcastMul { .. } => "mul",
            Tap::Embedding { .. } => "embedding",
            Tap::Expand { .. } => "expand",
            Tap::Convolution { .. } => "convolution",
            Tap::GroupNorm { .. } => "group_norm",
            Tap::FrozenBatchNorm { .. } => "batch_norm",
            Tap::RmsNorm { .. } => "rms_norm",
            Tap::Prelu { .. } => "prelu",
            Tap::Recurrent { .. } => "recurrent",
        };
        let mut text = format!("{kind}(");
        for (index, tapped) in tap.parameters().into_iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            let names: Vec<&str> = tapped
                .parameters()
                .iter()
                .map(|id| self.parameters()[id.0 as usize].names[0].as_str())
                .collect();
            let names = names.join(", ");
            let _ = match tapped.function() {
                None => write!(text, "{separator}{names}"),
                Some(_) => write!(text, "{separator}f({names})"),
            };
        }
        text.push(')');
        text
    }
}
