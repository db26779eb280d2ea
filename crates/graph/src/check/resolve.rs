//! From serialised arguments to what a schema's types allow, and from there into the typed graph.

use super::call::{Given, Item, Named, Unresolved, as_float, batch_size_misused};
use super::premise::{Premise, require};
use super::refusal::Objection;
use crate::program::{RawArgument, RawSize};
use crate::schema::{DefaultValue, Kind, SchemaArgument};
use crate::typed::{Argument, Extent, FloatBits, MemoryFormat, Number, ValueId};

/// Turns one serialised argument into what the schema's type allows.
pub(super) struct Resolver<'r> {
    pub(super) argument: &'r SchemaArgument,
    pub(super) operator: &'r str,
    pub(super) lookup: &'r dyn Fn(&str) -> Named,
}

impl Resolver<'_> {
    pub(super) fn given(&self, raw: &RawArgument) -> Result<Given, Unresolved> {
        use RawArgument as Raw;
        if *raw == Raw::None {
            return if self.argument.optional {
                Ok(Given::None)
            } else {
                Err(self.wrong("None"))
            };
        }
        match (self.argument.kind, raw) {
            (Kind::Tensor, Raw::Tensor(name)) => self.value(name).map(Given::Tensor),
            (Kind::Tensor | Kind::Scalar | Kind::Int | Kind::Float, Raw::Size(size)) => {
                self.scalar_size(size)
            }
            (Kind::Tensor | Kind::Scalar, raw) => self.number(raw),
            (Kind::Tensors, Raw::Tensors(names)) => self.values(names).map(Given::Tensors),
            (Kind::OptionalTensors, Raw::Tensors(names)) => Ok(Given::Optionals(
                self.values(names)?.into_iter().map(Some).collect(),
            )),
            (Kind::OptionalTensors, Raw::OptionalTensors(names)) => {
                let value = |name: &Option<String>| name.as_ref().map(|name| self.value(name)).transpose();
                names
                    .iter()
                    .map(value)
                    .collect::<Result<_, _>>()
                    .map(Given::Optionals)
            }
            (Kind::Int, Raw::Int(_))
            | (Kind::Bool, Raw::Bool(_))
            | (Kind::Float, Raw::Float(_) | Raw::Int(_)) => self.number(raw),
            (Kind::Ints, Raw::Ints(values)) => Ok(Given::Items(
                values.iter().map(|value| Item::Int(*value)).collect(),
            )),
            (Kind::Ints, Raw::Int(value)) => Ok(Given::Items(vec![Item::Int(*value)])),
            (Kind::Ints, Raw::Sizes(sizes)) => sizes
                .iter()
                .map(|size| self.item(size))
                .collect::<Result<_, _>>()
                .map(Given::Items),
            (Kind::Floats, Raw::Floats(values)) => Ok(Given::Floats(values.clone())),
            (Kind::Str, Raw::Str(text)) => Ok(Given::Str(text.clone())),
            (Kind::ScalarType, Raw::ScalarType(code)) => self.scalar_type(*code),
            (Kind::MemoryFormat, Raw::MemoryFormat(1)) => Ok(Given::MemoryFormat(MemoryFormat::Contiguous)),
            (Kind::MemoryFormat, Raw::MemoryFormat(4)) => Ok(Given::MemoryFormat(MemoryFormat::Preserve)),
            // The engine places tensors; torch/_export/serde/schema.py: Strided is 7.
            (Kind::Layout, Raw::Layout(7)) => Ok(Given::None),
            (Kind::Device, Raw::Device(kind)) if kind == "cpu" => Ok(Given::None),
            (_, raw) => Err(self.wrong(&format!("{raw:?}"))),
        }
    }

    fn wrong(&self, found: &str) -> Unresolved {
        let reason = format!(
            "argument {:?} is {found}, which has no rule here",
            self.argument.name
        );
        Objection::denied(reason, "export on the CPU with ordinary tensors and constants").into()
    }

    fn value(&self, name: &str) -> Result<ValueId, Unresolved> {
        match (self.lookup)(name) {
            Named::Value(id) => Ok(id),
            Named::Unknown => Err(Unresolved::Unknown),
            Named::Size(_) => Err(self.wrong(&format!("the size {name:?}"))),
        }
    }

    fn values(&self, names: &[String]) -> Result<Vec<ValueId>, Unresolved> {
        names.iter().map(|name| self.value(name)).collect()
    }

    fn item(&self, size: &RawSize) -> Result<Item, Unresolved> {
        match size {
            RawSize::Int(value) => Ok(Item::Int(*value)),
            RawSize::Name(name) => match (self.lookup)(name) {
                Named::Size(Extent::Batch(inner)) => Ok(Item::Batch(inner)),
                Named::Size(Extent::Fixed(value)) => i64::try_from(value)
                    .map(Item::Int)
                    .map_err(|_| self.wrong("a size above 2^63")),
                Named::Unknown => Err(Unresolved::Unknown),
                Named::Value(_) => Err(self.wrong(&format!("the tensor {name:?}"))),
            },
        }
    }

    fn scalar_size(&self, size: &RawSize) -> Result<Given, Unresolved> {
        let item = self.item(size)?;
        let Item::Batch(inner) = item else {
            let Item::Int(value) = item else {
                return Err(self.wrong("a size"));
            };
            return Ok(Given::Number(Number::Int(value)));
        };
        // `arange(B)` is the one place where B is a number; its result is a BatchIota.
        let is_arange = self.operator == "arange" && self.argument.name == "end";
        let name = &self.argument.name;
        require(Premise::BatchSizeOnlyInSizeLists, is_arange, || {
            let objection = batch_size_misused(name);
            (objection.reason, objection.remedy)
        })?;
        Ok(Given::BatchSize(inner))
    }

    fn number(&self, raw: &RawArgument) -> Result<Given, Unresolved> {
        let number = match raw {
            RawArgument::Int(value) => Number::Int(*value),
            RawArgument::Float(value) => Number::Float(FloatBits::new(*value)),
            RawArgument::Bool(value) => Number::Bool(*value),
            other => return Err(self.wrong(&format!("{other:?}"))),
        };
        Ok(Given::Number(number))
    }

    fn scalar_type(&self, code: i64) -> Result<Given, Unresolved> {
        let dtype = crate::archive::dtype_from_archive(code);
        dtype.map(Given::DType).ok_or_else(|| {
            let reason = format!("the dtype (serialised code {code}) has no rule here");
            Objection::denied(reason, "use float32, float64, int32, int64, uint8 or bool").into()
        })
    }
}

/// The schema's default of an omitted argument (rule T7).
pub(super) fn default(argument: &SchemaArgument) -> Result<Given, Unresolved> {
    let Some(default) = &argument.default else {
        let reason = format!("argument {:?} is missing and has no default", argument.name);
        return Err(Objection::denied(reason, "export again; the archive is not what torch writes").into());
    };
    Ok(match default {
        DefaultValue::None => Given::None,
        DefaultValue::Int(_) if argument.kind == Kind::MemoryFormat => {
            Given::MemoryFormat(MemoryFormat::Contiguous)
        }
        DefaultValue::Int(value) => Given::Number(Number::Int(*value)),
        DefaultValue::Float(value) => Given::Number(Number::Float(FloatBits::new(*value))),
        DefaultValue::Bool(value) => Given::Number(Number::Bool(*value)),
        DefaultValue::Str(text) => Given::Str(text.clone()),
        DefaultValue::Empty => Given::Items(Vec::new()),
        DefaultValue::Ints(values) => Given::Items(values.iter().copied().map(Item::Int).collect()),
    })
}

/// Whether a value is the schema's default.
pub(super) fn is_default(given: &Given, default: &DefaultValue) -> bool {
    match (given, default) {
        (Given::None, DefaultValue::None) => true,
        (Given::Number(Number::Bool(value)), DefaultValue::Bool(default)) => value == default,
        (Given::Number(Number::Int(value)), DefaultValue::Int(default)) => value == default,
        (Given::Number(Number::Float(value)), DefaultValue::Int(default)) => value.get() == *default as f64,
        (Given::Number(number @ (Number::Int(_) | Number::Float(_))), DefaultValue::Float(default)) => {
            as_float(*number) == *default
        }
        (Given::Str(text), DefaultValue::Str(default)) => text == default,
        (Given::Items(items), DefaultValue::Empty) => items.is_empty(),
        (Given::Items(items), DefaultValue::Ints(values)) => {
            items.iter().copied().eq(values.iter().copied().map(Item::Int))
        }
        _ => false,
    }
}

/// The argument as the typed graph lists it.
pub(super) fn typed_argument(given: Given, argument: &SchemaArgument) -> Argument {
    match given {
        Given::None => Argument::None,
        Given::Number(_) if argument.name == "pin_memory" => Argument::None,
        Given::Tensor(id) => Argument::Value(id),
        Given::Tensors(ids) => Argument::Values(ids),
        Given::Optionals(ids) => Argument::OptionalValues(ids),
        Given::Number(number) if argument.kind == Kind::Tensor => Argument::NumberAsTensor(number),
        Given::Number(number) if argument.kind == Kind::Float => {
            Argument::Float(FloatBits::new(as_float(number)))
        }
        Given::Number(Number::Int(value)) => Argument::Int(value),
        Given::Number(Number::Float(value)) => Argument::Float(value),
        Given::Number(Number::Bool(value)) => Argument::Bool(value),
        Given::Items(items) => items_argument(&items),
        Given::Floats(values) => Argument::Floats(values.into_iter().map(FloatBits::new).collect()),
        Given::Str(text) => Argument::Str(text),
        Given::DType(dtype) => Argument::DType(dtype),
        Given::MemoryFormat(format) => Argument::MemoryFormat(format),
        Given::BatchSize(inner) => Argument::Sizes(vec![Extent::Batch(inner)]),
    }
}

fn items_argument(items: &[Item]) -> Argument {
    let ints: Option<Vec<i64>> = items
        .iter()
        .map(|item| match item {
            Item::Int(value) => Some(*value),
            Item::Batch(_) => None,
        })
        .collect();
    ints.map_or_else(
        || {
            let extent = |item: &Item| match item {
                Item::Int(value) => Extent::Fixed(value.unsigned_abs()),
                Item::Batch(inner) => Extent::Batch(*inner),
            };
            Argument::Sizes(items.iter().map(extent).collect())
        },
        Argument::Ints,
    )
}
