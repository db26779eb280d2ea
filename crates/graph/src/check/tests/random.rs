//! Random programs: whatever the checker accepts, the second oracle must find sound.
//!
//! For every operator of the table programs are grown around it: arguments are drawn by kind, and a call that
//! is refused is mostly drawn again, so that accepted programs are deep and refused ones are near misses.

mod recurrent;
mod windows;

use super::build::{Build, t};
use super::oracle::judge;
use crate::check::Checker;
use crate::check::call::Named;
use crate::dtype::DType;
use crate::program::{Program, RawArgument, RawOutput, RawSize};
use crate::schema::{Kind, Schema, SchemaArgument, table};
use crate::typed::{Dependence, Extent, ValueType};
use std::collections::HashMap;

/// xorshift64*: reproducible, and good enough to draw programs.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize) % end
    }
    fn pick<'s, T>(&mut self, from: &'s [T]) -> &'s T {
        &from[self.below(from.len())]
    }
    fn one_in(&mut self, odds: usize) -> bool {
        self.below(odds) == 0
    }
    fn dim(&mut self) -> i64 {
        self.below(6) as i64 - 3
    }
}

/// The types of all values so far, every node taken as live; None when one is refused.
fn types(build: &Build) -> Option<Vec<(String, ValueType)>> {
    let program = Program::new(build.parts.clone()).expect("names are defined once and before use");
    let mut checker = Checker::new(&program, true);
    checker.inputs(&build.columns);
    program.nodes().iter().for_each(|node| checker.node(node, true));
    let all = checker.names.iter().filter_map(|(name, named)| match named {
        Named::Value(id) => Some((
            (*name).to_owned(),
            checker.typed[id.0 as usize].value_type.clone(),
        )),
        _ => None,
    });
    let mut all: Vec<_> = all.collect();
    all.sort_by(|one, other| one.0.cmp(&other.0));
    checker.refusals.is_empty().then_some(all)
}

/// A classifier with inputs of many shapes, so that every operator finds arguments.
fn ground() -> (Build, Vec<RawSize>) {
    let mut build = Build::empty();
    for (name, dtype, shape, classes) in [
        ("x", DType::F32, &[6][..], None),
        ("m", DType::F32, &[2, 3], None),
        ("n", DType::F32, &[3, 2], None),
        ("q", DType::F32, &[3], None),
        ("t", DType::F32, &[], None),
        ("u", DType::F32, &[1], None),
        ("y", DType::I64, &[], Some(2)),
        ("yy", DType::I64, &[2], Some(2)),
        ("flag", DType::Bool, &[], None),
        ("mask", DType::Bool, &[6], None),
        ("signal", DType::F32, &[2, 4], None),
        ("image", DType::F32, &[2, 2, 2], None),
        ("volume", DType::F32, &[1, 2, 2, 2], None),
    ] {
        build.input(name, dtype, shape, classes);
    }
    for (name, shape) in [
        ("c", &[][..]),
        ("c3", &[3]),
        ("c6", &[6]),
        ("c36", &[3, 6]),
        ("c63", &[6, 3]),
        ("c22", &[2, 2]),
        ("c1", &[1]),
        ("c2", &[2]),
        ("kernel1", &[2, 2, 2]),
        ("kernel2", &[2, 2, 2, 1]),
        ("kernel3", &[1, 1, 2, 1, 2]),
    ] {
        build.constant(name, DType::F32, shape);
    }
    build.constant("ci", DType::I64, &[2]);
    build.constant("cb", DType::Bool, &[3]);
    build.parameter("w", &[3, 6], true);
    build.parameter("b", &[3], true);
    build.parameter("emb", &[2, 3], true);
    build.call_as(
        "logits",
        "linear.default",
        &[("input", t("x")), ("weight", t("w")), ("bias", t("b"))],
    );
    let arguments = [
        ("self", t("logits")),
        ("target", t("y")),
        ("reduction", RawArgument::Int(0)),
    ];
    build.call_as("loss", "cross_entropy_loss.default", &arguments);
    let size = build.size("x", 0);
    let double = build.size_op("mul", size.clone(), RawSize::Int(2));
    build.call_as(
        "iota",
        "arange.default",
        &[("end", RawArgument::Size(size.clone()))],
    );
    (build, vec![size, double])
}

/// Draws the arguments of one call.
struct Draw<'d> {
    random: &'d mut Random,
    values: &'d [(String, ValueType)],
    sizes: &'d [RawSize],
    first: Option<ValueType>,
}

impl Draw<'_> {
    fn call(&mut self, schema: &Schema) -> Vec<(String, RawArgument)> {
        let own = windows::arguments(self, schema).or_else(|| recurrent::arguments(self, schema));
        if let Some(arguments) = own {
            return arguments;
        }
        let mut arguments = Vec::new();
        for argument in &schema.arguments {
            let must = argument.default.is_none() || argument.name == "reduction";
            if !must && !self.random.one_in(2) {
                continue;
            }
            if let Some(value) = self.argument(schema, argument) {
                arguments.push((argument.name.clone(), value));
            }
        }
        arguments
    }

    fn argument(&mut self, schema: &Schema, argument: &SchemaArgument) -> Option<RawArgument> {
        Some(match argument.kind {
            Kind::Tensor => self.tensor(schema, argument),
            Kind::Tensors => {
                let count = 1 + self.random.below(3);
                let names: Vec<String> = (0..count).map(|_| self.like_first(|_| true)).collect();
                RawArgument::Tensors(names)
            }
            Kind::OptionalTensors => self.indices(),
            Kind::Int => RawArgument::Int(self.int(&argument.name)),
            Kind::Ints => self.ints(&argument.name),
            Kind::Floats => RawArgument::Floats(vec![2.0]),
            Kind::Float => RawArgument::Float(*self.random.pick(&[0.5, 0.1, 1.0])),
            Kind::Scalar if argument.name == "end" && !self.random.one_in(3) => {
                RawArgument::Int(1 + self.random.below(6) as i64)
            }
            Kind::Scalar if self.random.one_in(15) => RawArgument::Size(self.random.pick(self.sizes).clone()),
            Kind::Scalar => self
                .random
                .pick(&[RawArgument::Int(2), RawArgument::Float(0.5), RawArgument::Int(1)])
                .clone(),
            Kind::Bool => {
                let unusual = [
                    "half_to_float",
                    "implicit",
                    "sparse",
                    "sparse_grad",
                    "scale_grad_by_freq",
                    "enable_gqa",
                    "non_blocking",
                ];
                let rarely = unusual.contains(&argument.name.as_str());
                RawArgument::Bool(self.random.one_in(if rarely { 10 } else { 2 }))
            }
            Kind::Str => RawArgument::Str((*self.random.pick(&["none", "tanh"])).into()),
            Kind::ScalarType => RawArgument::ScalarType(*self.random.pick(&[7, 7, 5, 8])),
            Kind::Layout | Kind::Device | Kind::MemoryFormat => return None,
        })
    }

    fn tensor(&mut self, schema: &Schema, argument: &SchemaArgument) -> RawArgument {
        if argument.optional && self.random.one_in(2) {
            return RawArgument::None;
        }
        let shared = |value_type: &ValueType| value_type.dependence == Dependence::Shared;
        let name = match (schema.name.as_str(), argument.name.as_str()) {
            (_, "condition" | "mask")
            | (
                "__and__" | "__or__" | "__xor__" | "bitwise_and" | "bitwise_or" | "bitwise_xor"
                | "bitwise_not",
                _,
            ) => self.like_first(|value_type| value_type.dtype == DType::Bool),
            ("bmm" | "baddbmm" | "scaled_dot_product_attention", _) if argument.name != "attn_mask" => {
                let same = self
                    .first
                    .clone()
                    .filter(|_| schema.name == "scaled_dot_product_attention");
                let same = same.filter(|_| !self.random.one_in(4));
                self.like_first(|value_type| {
                    let per_sample = !shared(value_type) && value_type.dtype.is_float();
                    let like = same.as_ref().is_none_or(|first| first == value_type);
                    per_sample && value_type.shape.len() == 3 && like
                })
            }
            ("matmul", "other") if self.random.one_in(2) => {
                self.like_first(|value_type| value_type.dtype.is_float() && value_type.shape.len() >= 2)
            }
            (_, "weight" | "mat2") | ("matmul", "other") => self.like_first(|value_type| {
                shared(value_type) && value_type.dtype.is_float() && value_type.shape.len() == 2
            }),
            (_, "bias") => self.like_first(|value_type| shared(value_type) && value_type.shape.len() == 1),
            (
                "gather" | "embedding" | "one_hot" | "cross_entropy_loss" | "nll_loss" | "nll_loss_nd",
                "index" | "indices" | "target" | "self",
            ) if argument.name != "self" || schema.name == "one_hot" => {
                self.like_first(|value_type| value_type.dtype == DType::I64)
            }
            _ if self.first.is_none() => self.like_first(|value_type| value_type.dtype.is_float()),
            _ => self.second(),
        };
        if self.first.is_none() {
            self.first = self
                .values
                .iter()
                .find(|(found, _)| *found == name)
                .map(|(_, value_type)| value_type.clone());
        }
        t(&name)
    }

    fn like_first(&mut self, wanted: impl Fn(&ValueType) -> bool) -> String {
        let fitting: Vec<&String> = self
            .values
            .iter()
            .filter(|(_, found)| wanted(found))
            .map(|(name, _)| name)
            .collect();
        if fitting.is_empty() || self.random.one_in(15) {
            return self.random.pick(self.values).0.clone();
        }
        (*self.random.pick(&fitting)).clone()
    }

    fn second(&mut self) -> String {
        let first = self.first.clone();
        if self.random.one_in(2) {
            return self.like_first(|value_type| Some(value_type) == first.as_ref());
        }
        self.like_first(|_| true)
    }

    fn indices(&mut self) -> RawArgument {
        let named = |names: &[Option<&str>]| {
            RawArgument::OptionalTensors(names.iter().map(|name| name.map(str::to_owned)).collect())
        };
        let choices = [
            named(&[Some("iota"), Some("y")]),
            named(&[Some("iota")]),
            named(&[None, Some("ci")]),
            named(&[Some("y")]),
            named(&[Some("ci")]),
            named(&[None, Some("y")]),
            named(&[Some("yy")]),
            named(&[Some("iota"), Some("iota")]),
            named(&[None, Some("iota")]),
        ];
        self.random.pick(&choices).clone()
    }

    fn int(&mut self, name: &str) -> i64 {
        match name {
            "reduction" => i64::from(self.random.one_in(10)),
            "num_classes" => *self.random.pick(&[2, 3, -1]),
            "num_groups" | "split_size" | "step" | "k" => 1 + self.random.below(3) as i64,
            "ignore_index" => -100,
            "start" | "end" | "index" | "padding_idx" => self.random.dim(),
            _ => self.random.dim(),
        }
    }

    fn ints(&mut self, name: &str) -> RawArgument {
        let shape = self
            .first
            .as_ref()
            .map(|value_type| value_type.shape.clone())
            .unwrap_or_default();
        let literal = |extent: &Extent| match extent {
            Extent::Fixed(size) => RawSize::Int(*size as i64),
            Extent::Batch(_) => RawSize::Int(-1),
        };
        let mut sizes: Vec<RawSize> = match name {
            "normalized_shape" => shape
                .iter()
                .skip(self.random.below(shape.len().max(1)))
                .map(literal)
                .collect(),
            "dims" => return RawArgument::Ints(self.permutation(shape.len())),
            "dim" => {
                let count = *self.random.pick(&[1, 1, 1, 2, 2, 0]);
                return RawArgument::Ints((0..count).map(|_| self.random.dim()).collect());
            }
            "split_sizes" => {
                return RawArgument::Ints(
                    self.random
                        .pick(&[vec![1, 2], vec![1, 1], vec![2, 4], vec![1, 5]])
                        .clone(),
                );
            }
            _ => shape.iter().map(literal).collect(),
        };
        if ["size", "shape"].contains(&name) {
            self.edit_sizes(&mut sizes);
        }
        RawArgument::Sizes(sizes)
    }

    fn edit_sizes(&mut self, sizes: &mut Vec<RawSize>) {
        for _ in 0..self.random.below(3) {
            let place = self.random.below(sizes.len() + 1);
            match self.random.below(6) {
                0 => sizes.insert(place, RawSize::Int(1)),
                1 if place < sizes.len() => sizes[place] = RawSize::Int(-1),
                2 if place < sizes.len() => sizes[place] = self.random.pick(self.sizes).clone(),
                3 if place + 1 < sizes.len() => {
                    if let (RawSize::Int(one), RawSize::Int(other)) =
                        (sizes[place].clone(), sizes.remove(place + 1))
                    {
                        sizes[place] = RawSize::Int(if one < 0 || other < 0 { -1 } else { one * other });
                    }
                }
                4 => sizes.reverse(),
                _ => sizes.insert(0, self.random.pick(self.sizes).clone()),
            }
        }
    }

    fn permutation(&mut self, rank: usize) -> Vec<i64> {
        let mut dims: Vec<i64> = (0..rank as i64).collect();
        for place in (1..rank).rev() {
            dims.swap(place, self.random.below(place + 1));
        }
        dims
    }
}

/// A program under growth.
struct Growth {
    build: Build,
    sizes: Vec<RawSize>,
    grown: Vec<String>,
    refused: bool,
}

impl Growth {
    /// Adds one call of the operator; keeps a refused one only at `keep_odds`. Returns whether one was accepted.
    fn add(&mut self, random: &mut Random, schema: &Schema, attempts: usize, keep_odds: usize) -> bool {
        let Some(values) = types(&self.build) else {
            return false;
        };
        for _ in 0..attempts {
            let mut draw = Draw {
                random,
                values: &values,
                sizes: &self.sizes,
                first: None,
            };
            let arguments = draw.call(schema);
            let lists =
                ["split", "split_with_sizes", "unbind", "broadcast_tensors"].contains(&schema.name.as_str());
            let returned = schema.text.rsplit("-> ").next().unwrap_or_default();
            let count = if lists {
                1 + random.below(6)
            } else {
                returned.matches("Tensor").count()
            };
            let mut next = self.build.clone();
            let given: Vec<(&str, RawArgument)> = arguments
                .iter()
                .map(|(name, value)| (name.as_str(), value.clone()))
                .collect();
            let names = next.calls(&format!("{}.{}", schema.name, schema.overload), &given, count);
            if types(&next).is_some() {
                self.build = next;
                self.grown.extend(names);
                return true;
            }
            if random.one_in(keep_odds) {
                self.build = next;
                self.grown.extend(names);
                self.refused = true;
                return false;
            }
        }
        false
    }

    /// The loss plus every grown value, reduced to one number a sample.
    fn finish(mut self) -> Build {
        let known: HashMap<String, ValueType> = types(&self.build).unwrap_or_default().into_iter().collect();
        let mut total = "loss".to_owned();
        for name in std::mem::take(&mut self.grown) {
            let reduced = match known.get(&name) {
                Some(value_type) => self.reduce(&name, value_type),
                None => name,
            };
            total = self
                .build
                .call("add.Tensor", &[("self", t(&total)), ("other", t(&reduced))]);
        }
        self.build.returns(&total);
        self.build
    }

    fn reduce(&mut self, name: &str, value_type: &ValueType) -> String {
        if value_type.dependence == Dependence::BatchIota {
            return "t".into();
        }
        let detached = self.build.call("detach.default", &[("self", t(name))]);
        let float = self.build.call(
            "_to_copy.default",
            &[("self", t(&detached)), ("dtype", RawArgument::ScalarType(7))],
        );
        let Dependence::PerSample { axis } = value_type.dependence else {
            return self.build.call("sum.default", &[("self", t(&float))]);
        };
        let others: Vec<i64> = (0..value_type.shape.len() as i64)
            .filter(|other| *other != i64::from(axis))
            .collect();
        let flat = if others.is_empty() {
            float
        } else {
            self.build.call(
                "sum.dim_IntList",
                &[("self", t(&float)), ("dim", RawArgument::Ints(others))],
            )
        };
        let Extent::Batch(inner) = value_type.shape[usize::from(axis)] else {
            return flat;
        };
        let rows = [self.sizes[0].clone(), RawSize::Int(inner as i64)];
        let rows = self.build.call(
            "view.default",
            &[("self", t(&flat)), ("size", RawArgument::Sizes(rows.to_vec()))],
        );
        self.build.call(
            "sum.dim_IntList",
            &[("self", t(&rows)), ("dim", RawArgument::Ints(vec![1]))],
        )
    }
}

/// Accepted programs that must hold each operator, and programs grown around it at most.
const EXERCISED: usize = 200;
const MOST_PROGRAMS: usize = 3000;

/// Half of the operators each, so that two cores share the work.
#[test]
fn accepted_random_programs_are_sound_and_every_rule_is_exercised() {
    exercise(&table()[..table().len() / 2], Random(0x5EED_0001));
}

#[test]
fn accepted_random_programs_are_sound_and_every_other_rule_is_exercised() {
    exercise(&table()[table().len() / 2..], Random(0x5EED_0003));
}

fn exercise(schemas: &[Schema], mut random: Random) {
    let (mut accepted, mut total) = (0usize, 0usize);
    let mut exercised: HashMap<(String, String), usize> = HashMap::new();
    for schema in schemas {
        let key = (schema.name.clone(), schema.overload.clone());
        for _ in 0..MOST_PROGRAMS {
            if exercised.get(&key).is_some_and(|count| *count >= EXERCISED) {
                break;
            }
            let (mut build, sizes) = ground();
            recurrent::ground(&mut build, schema);
            let mut growth = Growth {
                build,
                sizes,
                grown: Vec::new(),
                refused: false,
            };
            for _ in 0..2 {
                let other = random.pick(table());
                growth.add(&mut random, other, 6, 40);
            }
            growth.add(&mut random, schema, 60, 150);
            let last = random.pick(table());
            growth.add(&mut random, last, 6, 12);
            let refused = growth.refused;
            let program = growth.finish();
            total += 1;
            let Ok(graph) = program.check() else {
                continue;
            };
            assert!(!refused, "a refused node became acceptable");
            accepted += 1;
            for node in graph.nodes() {
                *exercised
                    .entry((node.operator.clone(), node.overload.clone()))
                    .or_default() += 1;
            }
            if let Err(leak) = judge(&graph) {
                panic!("accepted and leaky: {leak}\n{graph}");
            }
        }
    }
    println!("{accepted} of {total} random programs accepted");
    assert!(accepted * 10 >= total * 4, "only {accepted} of {total} accepted");
    for schema in schemas {
        let count = exercised
            .get(&(schema.name.clone(), schema.overload.clone()))
            .copied()
            .unwrap_or(0);
        assert!(
            count >= EXERCISED,
            "{}.{} is in {count} accepted programs only",
            schema.name,
            schema.overload
        );
    }
}

/// Programs with a random call whose outcome does not matter: the checker must never panic.
#[test]
fn the_checker_never_panics_on_random_calls() {
    let mut random = Random(0x5EED_0002);
    for _ in 0..4000 {
        let (build, sizes) = ground();
        let mut growth = Growth {
            build,
            sizes,
            grown: Vec::new(),
            refused: false,
        };
        for _ in 0..4 {
            let schema = random.pick(table());
            let values = types(&growth.build)
                .unwrap_or_else(|| vec![("x".into(), types(&ground().0).unwrap()[0].1.clone())]);
            let mut draw = Draw {
                random: &mut random,
                values: &values,
                sizes: &growth.sizes,
                first: None,
            };
            let arguments = draw.call(schema);
            let given: Vec<(&str, RawArgument)> = arguments
                .iter()
                .map(|(name, value)| (name.as_str(), value.clone()))
                .collect();
            let name = format!("r{}", growth.build.parts.nodes.len());
            growth.build.node(
                format!("torch.ops.aten.{}.{}", schema.name, schema.overload),
                &given,
                vec![RawOutput::Tensor(name.clone())],
            );
            growth.grown.push(name);
        }
        let _ = growth.finish().check();
    }
}
