//! One call as its rule sees it: arguments matched to the pinned schema, defaults filled in (T7), and a
//! record of which arguments the rule has looked at. What no rule looks at must be the default.

use super::facts::Typed;
use super::premise::{Premise, is_dropped, require};
use super::refusal::Objection;
use super::resolve::{Resolver, default, is_default, typed_argument};
use crate::dtype::DType;
use crate::program::RawArgument;
use crate::schema::{Kind, Schema};
use crate::typed::{
    Argument, Dependence, Extent, MemoryFormat, NamedArgument, Number, ParameterId, ParameterView,
    TappedParameter, ValueId, ValueType,
};
use std::cell::Cell;

/// An argument after names are resolved.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Given {
    None,
    Tensor(ValueId),
    Tensors(Vec<ValueId>),
    Optionals(Vec<Option<ValueId>>),
    Number(Number),
    Items(Vec<Item>),
    Floats(Vec<f64>),
    Str(String),
    DType(DType),
    MemoryFormat(MemoryFormat),
    /// B·k where a number is expected.
    BatchSize(u64),
}

/// An element of an integer list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Int(i64),
    Batch(u64),
}

/// What names stand for while a program is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Value(ValueId),
    Size(Extent),
    /// Defined by a refused node: whoever uses it is not judged.
    Unknown,
}

/// A call with resolved arguments.
pub(crate) struct Call<'c> {
    pub(crate) schema: &'static Schema,
    given: Vec<Given>,
    read: Vec<Cell<bool>>,
    replaced: Vec<Option<Argument>>,
    values: &'c [Typed],
}

/// Why arguments could not be resolved.
pub(crate) enum Unresolved {
    /// Depends on a refused node.
    Unknown,
    /// A refusal of its own.
    Objection(Objection),
}

impl From<Objection> for Unresolved {
    fn from(objection: Objection) -> Self {
        Self::Objection(objection)
    }
}

impl<'c> Call<'c> {
    /// Matches raw arguments with the schema.
    pub(crate) fn resolve(
        schema: &'static Schema,
        arguments: &[(String, RawArgument)],
        lookup: &dyn Fn(&str) -> Named,
        values: &'c [Typed],
    ) -> Result<Self, Unresolved> {
        for (name, _) in arguments {
            if !schema.arguments.iter().any(|argument| argument.name == *name) {
                let reason = format!("the schema `{}` has no argument {name:?}", schema.text);
                return Err(Objection::denied(
                    reason,
                    "export with the torch version BastionAI is built for",
                )
                .into());
            }
        }
        let mut given = Vec::with_capacity(schema.arguments.len());
        for argument in &schema.arguments {
            let raw = arguments
                .iter()
                .find(|(name, _)| *name == argument.name)
                .map(|(_, raw)| raw);
            given.push(match raw {
                Some(raw) => Resolver {
                    argument,
                    lookup,
                    operator: &schema.name,
                }
                .given(raw)?,
                None => default(argument)?,
            });
        }
        let count = given.len();
        Ok(Self {
            schema,
            given,
            read: vec![Cell::new(false); count],
            replaced: vec![None; count],
            values,
        })
    }

    fn position(&self, name: &str) -> usize {
        let found = self
            .schema
            .arguments
            .iter()
            .position(|argument| argument.name == name);
        found.expect("rules name arguments of their own schema (every rule is run by a test)")
    }

    /// The argument, marked as looked at.
    pub(crate) fn read(&self, name: &str) -> &Given {
        let position = self.position(name);
        self.read[position].set(true);
        &self.given[position]
    }

    /// Writes the argument into the typed graph as this instead.
    pub(crate) fn replace(&mut self, name: &str, value: Argument) {
        let position = self.position(name);
        self.read[position].set(true);
        self.replaced[position] = Some(value);
    }

    /// A value with its type and facts.
    pub(crate) fn value(&self, id: ValueId) -> &'c Typed {
        &self.values[id.0 as usize]
    }

    /// A value that does not number the samples of the batch.
    pub(crate) fn plain_value(&self, id: ValueId) -> Result<&'c Typed, Objection> {
        let value = self.value(id);
        let iota = value.value_type.dependence == Dependence::BatchIota;
        require(Premise::IotaOnlyIndexes, !iota, || {
            let reason = "`arange` of the batch size numbers the samples of the batch; a value computed from it leaks \
                          how many there are";
            (
                reason.into(),
                "use it only as the index of the batch axis, as in `log_probs[arange(B), labels]`".into(),
            )
        })?;
        Ok(value)
    }

    /// A tensor argument.
    pub(crate) fn tensor(&self, name: &str) -> Result<&'c Typed, Objection> {
        match self.read(name) {
            Given::Tensor(id) => self.plain_value(*id),
            _ => Err(self.wrong_type(name, "a tensor")),
        }
    }

    /// A tensor argument, if it numbers the samples of the batch.
    pub(crate) fn sample_numbers(&self, name: &str) -> Option<&'c Typed> {
        let Given::Tensor(id) = self.read(name) else {
            return None;
        };
        Some(self.value(*id)).filter(|value| value.value_type.dependence == Dependence::BatchIota)
    }

    /// An optional tensor argument.
    pub(crate) fn optional_tensor(&self, name: &str) -> Result<Option<&'c Typed>, Objection> {
        match self.read(name) {
            Given::None => Ok(None),
            _ => self.tensor(name).map(Some),
        }
    }

    /// A tensor list argument, not empty.
    pub(crate) fn tensors(&self, name: &str) -> Result<Vec<&'c Typed>, Objection> {
        match self.read(name) {
            Given::Tensors(ids) if !ids.is_empty() => ids.iter().map(|id| self.plain_value(*id)).collect(),
            _ => Err(self.wrong_type(name, "a list of tensors")),
        }
    }

    /// A tensor, or a number in a tensor's place.
    pub(crate) fn operand(&self, name: &str) -> Result<Operand<'c>, Objection> {
        match self.read(name) {
            Given::Number(number) => Ok(Operand::Number(*number)),
            Given::BatchSize(_) if is_dropped(Premise::BatchSizeOnlyInSizeLists) => {
                Ok(Operand::Number(Number::Int(1)))
            }
            _ => self.tensor(name).map(Operand::Tensor),
        }
    }

    /// An integer argument.
    pub(crate) fn int(&self, name: &str) -> Result<i64, Objection> {
        match self.read(name) {
            Given::Number(Number::Int(value)) => Ok(*value),
            _ => Err(self.wrong_type(name, "an integer")),
        }
    }

    /// An integer argument or None.
    pub(crate) fn optional_int(&self, name: &str) -> Result<Option<i64>, Objection> {
        match self.read(name) {
            Given::None => Ok(None),
            _ => self.int(name).map(Some),
        }
    }

    /// A bool argument; None counts as `false`.
    pub(crate) fn bool(&self, name: &str) -> Result<bool, Objection> {
        match self.read(name) {
            Given::Number(Number::Bool(value)) => Ok(*value),
            Given::None => Ok(false),
            _ => Err(self.wrong_type(name, "a bool")),
        }
    }

    /// A number argument or None.
    pub(crate) fn number(&self, name: &str) -> Result<Option<Number>, Objection> {
        match self.read(name) {
            Given::None => Ok(None),
            Given::Number(number) => Ok(Some(*number)),
            Given::BatchSize(_) if is_dropped(Premise::BatchSizeOnlyInSizeLists) => Ok(Some(Number::Int(1))),
            _ => Err(self.wrong_type(name, "a number")),
        }
    }

    /// A float argument.
    pub(crate) fn float(&self, name: &str) -> Result<f64, Objection> {
        match self.read(name) {
            Given::Number(number) => Ok(as_float(*number)),
            _ => Err(self.wrong_type(name, "a float")),
        }
    }

    /// A string argument.
    pub(crate) fn string(&self, name: &str) -> Result<&str, Objection> {
        let position = self.position(name);
        self.read[position].set(true);
        match &self.given[position] {
            Given::Str(text) => Ok(text),
            _ => Err(self.wrong_type(name, "a string")),
        }
    }

    /// A dtype argument or None.
    pub(crate) fn dtype(&self, name: &str) -> Result<Option<DType>, Objection> {
        match self.read(name) {
            Given::None => Ok(None),
            Given::DType(dtype) => Ok(Some(*dtype)),
            _ => Err(self.wrong_type(name, "a dtype")),
        }
    }

    /// An integer list that never mentions B, or None.
    pub(crate) fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, Objection> {
        let items = match self.read(name) {
            Given::None => return Ok(None),
            Given::Number(Number::Int(value)) => return Ok(Some(vec![*value])),
            Given::Items(items) => items,
            _ => return Err(self.wrong_type(name, "a list of integers")),
        };
        let int = |item: &Item| match item {
            Item::Int(value) => Ok(*value),
            Item::Batch(_) => Err(batch_size_misused(name)),
        };
        items.iter().map(int).collect::<Result<_, _>>().map(Some)
    }

    /// A list of floats, or None.
    pub(crate) fn floats(&self, name: &str) -> Result<Option<Vec<f64>>, Objection> {
        match self.read(name) {
            Given::None => Ok(None),
            Given::Floats(values) => Ok(Some(values.clone())),
            _ => Err(self.wrong_type(name, "a list of floats")),
        }
    }

    /// A size list, where B may appear.
    pub(crate) fn items(&self, name: &str) -> Result<Vec<Item>, Objection> {
        match self.read(name) {
            Given::Items(items) => Ok(items.clone()),
            _ => Err(self.wrong_type(name, "a list of sizes")),
        }
    }

    /// The `layout`, `device`, `pin_memory` and `memory_format` of factories and copies.
    pub(crate) fn placement(&self) {
        for (position, argument) in self.schema.arguments.iter().enumerate() {
            if matches!(argument.kind, Kind::Layout | Kind::Device | Kind::MemoryFormat)
                || argument.name == "pin_memory"
            {
                self.read[position].set(true);
            }
        }
    }

    fn wrong_type(&self, name: &str, expected: &str) -> Objection {
        let reason = format!("argument {name:?} of `{}` is not {expected}", self.schema.text);
        Objection::denied(reason, "give it as the schema says, as a constant")
    }

    /// Whether a trainable parameter influences any tensor argument.
    pub(crate) fn any_requires_grad(&self) -> bool {
        self.tensor_ids().iter().any(|id| self.value(*id).requires_grad)
    }

    /// Trainable parameters that reach any Shared tensor argument, ascending.
    pub(crate) fn trained_parameters(&self) -> Vec<ParameterId> {
        let reaching = self.tensor_ids().into_iter().map(|id| self.value(id));
        let mut all: Vec<ParameterId> = reaching
            .filter(|value| is_trainable(value))
            .flat_map(|value| value.facts.parameters.iter().copied())
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether all recorded types of the tensor arguments are to be believed.
    pub(crate) fn hints_trusted(&self) -> bool {
        self.tensor_ids()
            .iter()
            .all(|id| self.value(*id).facts.hint_trusted)
    }

    /// All tensor arguments.
    pub(crate) fn tensor_ids(&self) -> Vec<ValueId> {
        let ids = self.given.iter().map(|given| match given {
            Given::Tensor(id) => vec![*id],
            Given::Tensors(ids) => ids.clone(),
            Given::Optionals(ids) => ids.iter().flatten().copied().collect(),
            _ => Vec::new(),
        });
        ids.flatten().collect()
    }

    /// The arguments for the typed graph, after checking that all unread ones are defaults.
    pub(crate) fn finish(self) -> Result<Vec<NamedArgument>, Objection> {
        for (position, argument) in self.schema.arguments.iter().enumerate() {
            let is_default = argument
                .default
                .as_ref()
                .is_some_and(|default| is_default(&self.given[position], default));
            require(
                Premise::UnreadArgumentsAreDefault,
                self.read[position].get() || is_default,
                || {
                    let reason = format!("argument {:?} has a value that no rule allows", argument.name);
                    (reason, "leave it at its default".into())
                },
            )?;
        }
        let finished = self
            .given
            .into_iter()
            .zip(self.replaced)
            .zip(&self.schema.arguments);
        Ok(finished
            .map(|((given, replaced), argument)| NamedArgument {
                name: argument.name.clone(),
                value: replaced.unwrap_or_else(|| typed_argument(given, argument)),
            })
            .collect())
    }
}

/// A tensor or a wrapped number.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'c> {
    Tensor(&'c Typed),
    Number(Number),
}

impl<'c> Operand<'c> {
    pub(crate) fn tensor(&self) -> Option<&'c Typed> {
        match self {
            Self::Tensor(typed) => Some(typed),
            Self::Number(_) => None,
        }
    }
}

/// A trainable parameter, a view of one, or a function of some, as it enters a tap.
pub(crate) fn tapped(typed: &Typed) -> Option<TappedParameter> {
    let (parameter, views) = match &typed.facts.view {
        Some((parameter, views)) => (*parameter, views.clone()),
        None => {
            let parameters = typed.facts.parameters.clone();
            (*parameters.first()?, vec![ParameterView::Function(parameters)])
        }
    };
    is_trainable(typed).then_some(TappedParameter {
        parameter,
        value: typed.id,
        views,
    })
}

/// Whether this is a Shared value that a trainable parameter influences.
pub(crate) fn is_trainable(typed: &Typed) -> bool {
    typed.requires_grad && typed.value_type.dependence == Dependence::Shared
}

/// The batch axis and its `k`.
pub(crate) fn batch_axis(value_type: &ValueType) -> Option<(usize, u64)> {
    let axis = match value_type.dependence {
        Dependence::PerSample { axis } => usize::from(axis),
        Dependence::BatchIota => 0,
        Dependence::Shared => return None,
    };
    match value_type.shape.get(axis) {
        Some(Extent::Batch(inner)) => Some((axis, *inner)),
        _ => None,
    }
}

pub(crate) fn as_float(number: Number) -> f64 {
    match number {
        Number::Int(value) => value as f64,
        Number::Float(bits) => bits.get(),
        Number::Bool(value) => f64::from(u8::from(value)),
    }
}

pub(crate) fn batch_size_misused(argument: &str) -> Objection {
    Objection {
        rule: Some(Premise::BatchSizeOnlyInSizeLists.rule()),
        reason: format!(
            "argument {argument:?} depends on the batch size, which depends on how many samples were drawn"
        ),
        remedy: "use a constant; the batch size may only be the extent of the batch axis in a size list"
            .into(),
    }
}
