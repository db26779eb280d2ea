//! A reader of the schema strings libtorch prints, for just the types of the table.

use super::{DefaultValue, Kind, Schema, SchemaArgument};

/// `aten::name.overload(arguments) -> results`.
pub(super) fn schema(text: &'static str) -> Option<Schema> {
    let (head, rest) = text.strip_prefix("aten::")?.split_once('(')?;
    let (name, overload) = head.split_once('.').unwrap_or((head, "default"));
    let arguments = split_arguments(rest)?;
    let arguments = arguments
        .into_iter()
        .filter(|part| *part != "*")
        .map(argument)
        .collect::<Option<_>>()?;
    Some(Schema {
        name: name.into(),
        overload: overload.into(),
        text,
        arguments,
    })
}

/// Splits at top-level commas up to the parenthesis that closes the list.
fn split_arguments(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (at, character) in text.char_indices() {
        match character {
            '(' | '[' => depth += 1,
            ')' if depth == 0 => {
                parts.push(text[start..at].trim());
                parts.retain(|part| !part.is_empty());
                return Some(parts);
            }
            ')' | ']' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    None
}

fn argument(text: &str) -> Option<SchemaArgument> {
    let (declared, default) = match text.split_once('=') {
        Some((declared, default)) => (declared, Some(default_value(default)?)),
        None => (text, None),
    };
    let (kind, name) = declared.rsplit_once(' ')?;
    let (kind, optional) = kind_of(kind)?;
    Some(SchemaArgument {
        name: name.into(),
        kind,
        optional,
        default,
    })
}

/// The type and whether None is allowed; alias sets such as `(a)` and `(a -> *)` are dropped.
fn kind_of(text: &str) -> Option<(Kind, bool)> {
    let plain = match (text.find('('), text.find(')')) {
        (Some(open), Some(close)) if !text[open..close].contains('!') => {
            format!("{}{}", &text[..open], text.get(close + 1..)?)
        }
        (None, None) => text.to_owned(),
        _ => return None,
    };
    let (plain, optional) = plain
        .strip_suffix('?')
        .map_or((plain.as_str(), false), |plain| (plain, true));
    let kind = match plain {
        "Tensor" => Kind::Tensor,
        "Tensor[]" => Kind::Tensors,
        "Tensor?[]" => Kind::OptionalTensors,
        "int" | "SymInt" => Kind::Int,
        "int[]" | "SymInt[]" | "int[1]" | "SymInt[1]" | "int[2]" | "SymInt[2]" | "int[3]" | "SymInt[3]" => {
            Kind::Ints
        }
        "float[]" => Kind::Floats,
        "float" => Kind::Float,
        "Scalar" => Kind::Scalar,
        "bool" => Kind::Bool,
        "str" => Kind::Str,
        "ScalarType" => Kind::ScalarType,
        "Layout" => Kind::Layout,
        "Device" => Kind::Device,
        "MemoryFormat" => Kind::MemoryFormat,
        _ => return None,
    };
    Some((kind, optional))
}

fn default_value(text: &str) -> Option<DefaultValue> {
    Some(match text {
        "None" => DefaultValue::None,
        "True" => DefaultValue::Bool(true),
        "False" => DefaultValue::Bool(false),
        "[]" => DefaultValue::Empty,
        text if text.starts_with('[') => {
            let elements = text.strip_prefix('[')?.strip_suffix(']')?.split(", ");
            DefaultValue::Ints(elements.map(str::parse).collect::<Result<_, _>>().ok()?)
        }
        text if text.starts_with('"') => DefaultValue::Str(text.trim_matches('"').to_owned()),
        text => match text.parse() {
            Ok(value) => DefaultValue::Int(value),
            Err(_) => DefaultValue::Float(text.parse().ok()?),
        },
    })
}
