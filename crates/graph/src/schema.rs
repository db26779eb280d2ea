//! The schemas of the allowed operators, as the pinned libtorch prints them (rule T7).
//!
//! `schema/aten.txt` is written by `scripts/generate_schema_table.py`; the trainer compares every
//! [`Schema::text`] with its own libtorch's at start and refuses to run on a difference.

mod parse;

use std::collections::HashMap;
use std::sync::OnceLock;

const TABLE: &str = include_str!("schema/aten.txt");

/// One operator.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    /// Name without the namespace, which is always `aten`.
    pub name: String,
    /// Overload; `default` for the empty one.
    pub overload: String,
    /// The whole schema, exactly as `c10::toString(FunctionSchema)` prints it.
    pub text: &'static str,
    /// Arguments in order.
    pub arguments: Vec<SchemaArgument>,
}

/// One argument.
#[derive(Clone, Debug, PartialEq)]
pub struct SchemaArgument {
    /// Name.
    pub name: String,
    /// Type.
    pub kind: Kind,
    /// Whether None is allowed.
    pub optional: bool,
    /// Value when omitted.
    pub default: Option<DefaultValue>,
}

/// An argument's type, without optionality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `Tensor`
    Tensor,
    /// `Tensor[]`
    Tensors,
    /// `Tensor?[]`
    OptionalTensors,
    /// `int` or `SymInt`
    Int,
    /// `int[]` or `SymInt[]`
    Ints,
    /// `float`
    Float,
    /// `float[]`
    Floats,
    /// `Scalar`
    Scalar,
    /// `bool`
    Bool,
    /// `str`
    Str,
    /// `ScalarType`
    ScalarType,
    /// `Layout`
    Layout,
    /// `Device`
    Device,
    /// `MemoryFormat`
    MemoryFormat,
}

/// A default.
#[derive(Clone, Debug, PartialEq)]
pub enum DefaultValue {
    /// `None`
    None,
    /// A bool.
    Bool(bool),
    /// An integer (also a `MemoryFormat`).
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Str(String),
    /// `[]`
    Empty,
    /// A list of integers: `[1, 1]`.
    Ints(Vec<i64>),
}

/// Every allowed operator, sorted by text.
pub fn table() -> &'static [Schema] {
    static PARSED: OnceLock<Vec<Schema>> = OnceLock::new();
    PARSED.get_or_init(|| {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| parse::schema(line).expect("the generated table parses (tested)"))
            .collect()
    })
}

/// The schema of `name.overload`.
pub fn find(name: &str, overload: &str) -> Option<&'static Schema> {
    static INDEX: OnceLock<HashMap<(&str, &str), &Schema>> = OnceLock::new();
    let entry = |schema: &'static Schema| ((schema.name.as_str(), schema.overload.as_str()), schema);
    INDEX
        .get_or_init(|| table().iter().map(entry).collect())
        .get(&(name, overload))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_parses_and_none_writes_to_its_arguments() {
        assert!(table().len() > 100);
        for schema in table() {
            assert!(
                !schema.text.contains('!'),
                "{} has a write alias (rule T8)",
                schema.text
            );
            assert!(
                !schema.text.contains("Generator"),
                "{} takes a generator",
                schema.text
            );
            assert_eq!(find(&schema.name, &schema.overload), Some(schema));
        }
    }

    #[test]
    fn no_operator_returns_uninitialised_memory_or_is_a_backward() {
        for schema in table() {
            assert!(
                !schema.name.contains("empty") && !schema.name.contains("resize"),
                "{}",
                schema.text
            );
            assert!(
                !schema.name.ends_with("_backward") && !schema.name.ends_with("from_file"),
                "{}",
                schema.text
            );
        }
    }

    #[test]
    fn defaults_are_read_as_libtorch_prints_them() {
        let default = |name: &str, overload: &str, argument: &str| {
            let schema = find(name, overload).unwrap();
            schema
                .arguments
                .iter()
                .find(|found| found.name == argument)
                .unwrap()
                .default
                .clone()
        };
        assert_eq!(
            default("mse_loss", "default", "reduction"),
            Some(DefaultValue::Int(1))
        );
        assert_eq!(
            default("layer_norm", "default", "eps"),
            Some(DefaultValue::Float(1e-5))
        );
        assert_eq!(default("amax", "default", "dim"), Some(DefaultValue::Empty));
        assert_eq!(
            default("gelu", "default", "approximate"),
            Some(DefaultValue::Str("none".into()))
        );
        assert_eq!(default("sum", "dim_IntList", "dim"), None);
        assert_eq!(default("clamp", "default", "min"), Some(DefaultValue::None));
        assert_eq!(default("slice", "Tensor", "step"), Some(DefaultValue::Int(1)));
    }

    /// Compares the table with the pinned libtorch where the project's `.venv` exists.
    #[test]
    fn table_is_up_to_date_with_the_pinned_libtorch() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let python = root.join(".venv/bin/python");
        if !python.exists() {
            println!("skipped: no {}", python.display());
            return;
        }
        let script = root.join("scripts/generate_schema_table.py");
        let output = std::process::Command::new(python)
            .arg(script)
            .arg("--check")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
