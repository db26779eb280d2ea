//! A small language for programs, so that leaky graphs need no torch.

use crate::contract::{Domain, InputColumn};
use crate::dtype::DType;
use crate::program::{
    Hint, InputKind, OutputKind, Program, ProgramConstant, ProgramInput, ProgramNode, ProgramOutput,
    ProgramParameter, ProgramParts, RawArgument, RawOutput, RawSize,
};
use crate::typed::TypedGraph;
use crate::{Refusals, check_program, check_scores_program};

/// A program under construction. Every call's name is `n<number>`.
#[derive(Clone)]
pub(super) struct Build {
    pub(super) parts: ProgramParts,
    pub(super) columns: Vec<InputColumn>,
    /// The node that must be refused.
    pub(super) blamed: String,
    next: usize,
}

/// A tensor argument.
pub(super) fn t(name: &str) -> RawArgument {
    RawArgument::Tensor(name.to_owned())
}

/// An integer argument.
pub(super) fn i(value: i64) -> RawArgument {
    RawArgument::Int(value)
}

/// An integer list argument.
pub(super) fn ints(values: &[i64]) -> RawArgument {
    RawArgument::Ints(values.to_vec())
}

/// A float argument.
pub(super) fn f(value: f64) -> RawArgument {
    RawArgument::Float(value)
}

/// A bool argument.
pub(super) fn flag(value: bool) -> RawArgument {
    RawArgument::Bool(value)
}

/// A size list argument.
pub(super) fn sizes(sizes: &[RawSize]) -> RawArgument {
    RawArgument::Sizes(sizes.to_vec())
}

/// A constant size.
pub(super) fn k(size: i64) -> RawSize {
    RawSize::Int(size)
}

impl Build {
    /// No inputs, no nodes.
    pub(super) fn empty() -> Self {
        Self {
            parts: ProgramParts::default(),
            columns: Vec::new(),
            blamed: String::new(),
            next: 0,
        }
    }

    /// The common ground of the leaky graphs: `x` f32[B,6], `m` f32[B,2,3], `y` labels of 3 classes,
    /// `t` f32[B], `flag` bool[B]; constants `c3`, `c33`, `c6`, `c1`, `table`; parameters `w`, `b`, `w6`, `frozen`;
    /// and `loss`, a cross-entropy of `linear(x, w, b)`.
    pub(super) fn classifier() -> Self {
        let mut build = Self::empty();
        build.input("x", DType::F32, &[6], None);
        build.input("m", DType::F32, &[2, 3], None);
        build.input("y", DType::I64, &[], Some(3));
        build.input("t", DType::F32, &[], None);
        build.input("flag", DType::Bool, &[], None);
        for (name, shape) in [
            ("c1", &[1][..]),
            ("c3", &[3]),
            ("c33", &[3, 3]),
            ("c6", &[6]),
            ("table", &[3, 2]),
        ] {
            build.constant(name, DType::F32, shape);
        }
        build.constant("ci", DType::I64, &[3]);
        build.parameter("w", &[3, 6], true);
        build.parameter("b", &[3], true);
        build.parameter("w6", &[6], true);
        build.parameter("frozen", &[3, 6], false);
        build.call_as(
            "logits",
            "linear.default",
            &[("input", t("x")), ("weight", t("w")), ("bias", t("b"))],
        );
        build.call_as(
            "loss",
            "cross_entropy_loss.default",
            &[("self", t("logits")), ("target", t("y")), ("reduction", i(0))],
        );
        build
    }

    pub(super) fn input(&mut self, name: &str, dtype: DType, shape: &[u64], classes: Option<usize>) {
        let domain = classes.map(|classes| Domain::Classes {
            names: (0..classes).map(|class| class.to_string()).collect(),
        });
        self.columns.push(InputColumn {
            column: name.into(),
            dtype,
            shape: shape.to_vec(),
            domain,
        });
        self.parts.inputs.push(ProgramInput {
            name: name.into(),
            kind: InputKind::User,
        });
    }

    pub(super) fn constant(&mut self, name: &str, dtype: DType, shape: &[u64]) {
        let kind = InputKind::Constant(self.parts.constants.len());
        self.parts.constants.push(ProgramConstant {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
        });
        self.parts.inputs.push(ProgramInput {
            name: name.into(),
            kind,
        });
    }

    pub(super) fn parameter(&mut self, name: &str, shape: &[u64], requires_grad: bool) {
        let kind = InputKind::Parameter(self.parts.parameters.len());
        let shape = shape.to_vec();
        self.parts.parameters.push(ProgramParameter {
            names: vec![name.into()],
            dtype: DType::F32,
            shape,
            requires_grad,
        });
        self.parts.inputs.push(ProgramInput {
            name: name.into(),
            kind,
        });
    }

    /// Records a type for a value, as an archive does.
    pub(super) fn hint(&mut self, name: &str, hint: Hint) {
        self.parts.hints.insert(name.into(), hint);
    }

    fn fresh(&mut self) -> String {
        self.next += 1;
        format!("n{}", self.next)
    }

    pub(super) fn node(
        &mut self,
        target: String,
        arguments: &[(&str, RawArgument)],
        outputs: Vec<RawOutput>,
    ) {
        let name = outputs
            .first()
            .map_or_else(|| target.clone(), |output| output.names()[0].clone());
        let arguments = arguments
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        let source = Some(format!("model.py:{}", self.parts.nodes.len()));
        self.parts.nodes.push(ProgramNode {
            name,
            target,
            arguments,
            outputs,
            source,
        });
    }

    /// A call of one tensor result with this name.
    pub(super) fn call_as(
        &mut self,
        name: &str,
        operator: &str,
        arguments: &[(&str, RawArgument)],
    ) -> String {
        self.node(
            format!("torch.ops.aten.{operator}"),
            arguments,
            vec![RawOutput::Tensor(name.into())],
        );
        name.to_owned()
    }

    /// A call of one tensor result.
    pub(super) fn call(&mut self, operator: &str, arguments: &[(&str, RawArgument)]) -> String {
        let name = self.fresh();
        self.call_as(&name, operator, arguments)
    }

    /// A call that must be refused.
    pub(super) fn bad(&mut self, operator: &str, arguments: &[(&str, RawArgument)]) -> String {
        self.blamed = self.call(operator, arguments);
        self.blamed.clone()
    }

    /// A call of several tensor results.
    pub(super) fn calls(
        &mut self,
        operator: &str,
        arguments: &[(&str, RawArgument)],
        count: usize,
    ) -> Vec<String> {
        let names: Vec<String> = (0..count).map(|_| self.fresh()).collect();
        let outputs = names.iter().map(|name| RawOutput::Tensor(name.clone())).collect();
        self.node(format!("torch.ops.aten.{operator}"), arguments, outputs);
        names
    }

    /// The size of an axis.
    pub(super) fn size(&mut self, of: &str, dim: i64) -> RawSize {
        let name = self.fresh();
        let arguments = [("self", t(of)), ("dim", i(dim))];
        self.node(
            "torch.ops.aten.sym_size.int".into(),
            &arguments,
            vec![RawOutput::Size(name.clone())],
        );
        RawSize::Name(name)
    }

    /// Arithmetic on sizes, e.g. `mul`, `floordiv`.
    pub(super) fn size_op(&mut self, operator: &str, a: RawSize, b: RawSize) -> RawSize {
        let name = self.fresh();
        let arguments = [("a", RawArgument::Size(a)), ("b", RawArgument::Size(b))];
        self.node(
            format!("_operator.{operator}"),
            &arguments,
            vec![RawOutput::Size(name.clone())],
        );
        RawSize::Name(name)
    }

    /// Adds a value to the loss and returns the sum.
    pub(super) fn returns_loss_plus(&mut self, value: &str) {
        let sum = self.call("add.Tensor", &[("self", t("loss")), ("other", t(value))]);
        self.returns(&sum);
    }

    /// Returns a value.
    pub(super) fn returns(&mut self, value: &str) {
        self.parts.outputs.push(ProgramOutput {
            kind: OutputKind::Result,
            value: t(value),
        });
    }

    /// Returns a value as the new state of something.
    pub(super) fn mutates(&mut self, value: &str) {
        self.parts.outputs.push(ProgramOutput {
            kind: OutputKind::Mutation,
            value: t(value),
        });
    }

    pub(super) fn check(&self) -> Result<TypedGraph, Refusals> {
        let program = Program::new(self.parts.clone()).expect("names are defined once and before use");
        check_program(&program, &self.columns)
    }

    pub(super) fn check_scores(&self) -> Result<TypedGraph, Refusals> {
        let program = Program::new(self.parts.clone()).expect("names are defined once and before use");
        check_scores_program(&program, &self.columns)
    }
}
