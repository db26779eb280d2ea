//! Recurrent layers over the steps of a sample.

use super::*;
use crate::typed::{Dependence, Extent, RecurrentCell, ValueType};

/// Arguments of a recurrent layer over `m` `[B, 2, 3]`, hidden size 4, with zeros as first states.
pub(in super::super) struct Layer {
    pub(in super::super) operator: &'static str,
    pub(in super::super) gates: u64,
    pub(in super::super) layers: i64,
    pub(in super::super) both_ways: bool,
    pub(in super::super) biases: bool,
    pub(in super::super) batch_first: bool,
    pub(in super::super) trainable: bool,
}

pub(in super::super) const LSTM: Layer = Layer {
    operator: "lstm.input",
    gates: 4,
    layers: 1,
    both_ways: false,
    biases: true,
    batch_first: true,
    trainable: true,
};

const HIDDEN: u64 = 4;

impl Layer {
    fn cells(&self) -> i64 {
        self.layers * (1 + i64::from(self.both_ways))
    }

    /// Parameters `r0`, `r1`, … of the right shapes.
    pub(in super::super) fn parameters(&self, b: &mut Build) -> Vec<String> {
        let rows = self.gates * HIDDEN;
        let mut names = Vec::new();
        for cell in 0..self.cells() {
            let is_first = cell <= i64::from(self.both_ways);
            let width = if is_first {
                3
            } else {
                HIDDEN * (1 + u64::from(self.both_ways))
            };
            let shapes: [&[u64]; 4] = [&[rows, width], &[rows, HIDDEN], &[rows], &[rows]];
            for shape in &shapes[..if self.biases { 4 } else { 2 }] {
                let name = format!("r{}", names.len());
                b.parameter(&name, shape, self.trainable);
                names.push(name);
            }
        }
        names
    }

    /// Zeros `[cells, B, hidden]`, as torch.nn makes them.
    pub(in super::super) fn zeros(&self, b: &mut Build) -> String {
        let batch = b.size("x", 0);
        let shape = [k(self.cells()), batch, k(HIDDEN as i64)];
        b.call("zeros.default", &[("size", sizes(&shape))])
    }

    pub(in super::super) fn arguments(
        &self,
        input: &str,
        states: &[&str],
        parameters: &[String],
    ) -> Vec<(&'static str, RawArgument)> {
        let states = if self.operator == "lstm.input" {
            RawArgument::Tensors(states.iter().map(|name| (*name).to_owned()).collect())
        } else {
            t(states[0])
        };
        vec![
            ("input", t(input)),
            ("hx", states),
            ("params", RawArgument::Tensors(parameters.to_vec())),
            ("has_biases", flag(self.biases)),
            ("num_layers", i(self.layers)),
            ("dropout", f(0.1)),
            ("train", flag(true)),
            ("bidirectional", flag(self.both_ways)),
            ("batch_first", flag(self.batch_first)),
        ]
    }

    pub(in super::super) fn results(&self) -> usize {
        if self.operator == "lstm.input" { 3 } else { 2 }
    }

    /// Outputs and last states over `input`.
    fn over(&self, b: &mut Build, input: &str) -> Vec<String> {
        let parameters = self.parameters(b);
        let zeros = self.zeros(b);
        let arguments = self.arguments(input, &[&zeros, &zeros], &parameters);
        b.calls(self.operator, &arguments, self.results())
    }
}

fn sum(b: &mut Build, value: &str, dims: &[i64]) -> String {
    b.call("sum.dim_IntList", &[("self", t(value)), ("dim", ints(dims))])
}

fn node_types(graph: &TypedGraph, operator: &str) -> Vec<ValueType> {
    let node = graph
        .nodes()
        .iter()
        .find(|node| node.operator == operator)
        .unwrap();
    node.outputs
        .iter()
        .map(|id| graph.values()[id.0 as usize].value_type.clone())
        .collect()
}

fn cells(graph: &TypedGraph) -> &[RecurrentCell] {
    let tap = graph.nodes().iter().find_map(|node| match &node.tap {
        Some(Tap::Recurrent { cells }) => Some(cells),
        _ => None,
    });
    tap.expect("a tapped recurrent layer")
}

#[test]
fn every_layer_direction_and_bias_is_typed_and_tapped_cell_by_cell() {
    for (operator, gates) in [
        ("lstm.input", 4),
        ("gru.input", 3),
        ("rnn_tanh.input", 1),
        ("rnn_relu.input", 1),
    ] {
        for (layers, both_ways, biases) in [
            (1, false, true),
            (2, true, true),
            (3, false, false),
            (1, true, false),
        ] {
            let layer = Layer {
                operator,
                gates,
                layers,
                both_ways,
                biases,
                ..LSTM
            };
            let graph = with(|b| {
                let results = layer.over(b, "m");
                let outputs = sum(b, &results[0], &[1, 2]);
                let last = sum(b, &results[layer.results() - 1], &[0, 2]);
                b.call("add.Tensor", &[("self", t(&outputs)), ("other", t(&last))])
            });
            let types = node_types(&graph, operator.strip_suffix(".input").unwrap());
            let (count, width) = (layer.cells() as u64, HIDDEN * (1 + u64::from(both_ways)));
            assert_eq!(types[0].dependence, Dependence::PerSample { axis: 0 });
            assert_eq!(
                types[0].shape,
                [Extent::Batch(1), Extent::Fixed(2), Extent::Fixed(width)]
            );
            for last in &types[1..] {
                assert_eq!(last.dependence, Dependence::PerSample { axis: 1 });
                assert_eq!(
                    last.shape,
                    [Extent::Fixed(count), Extent::Batch(1), Extent::Fixed(HIDDEN)]
                );
            }
            let per_cell = if biases { 4 } else { 2 };
            assert_eq!(cells(&graph).len() as u64, count);
            for (position, cell) in cells(&graph).iter().enumerate() {
                let named: Vec<&str> = cell
                    .parameters()
                    .map(|tapped| graph.parameters()[tapped.parameter.0 as usize].names[0].as_str())
                    .collect();
                let first = position * per_cell;
                let expected: Vec<String> =
                    (first..first + per_cell).map(|each| format!("r{each}")).collect();
                assert_eq!(named, expected);
            }
        }
    }
}

#[test]
fn steps_first_is_accepted_where_steps_are_first() {
    let layer = Layer {
        batch_first: false,
        ..LSTM
    };
    let graph = with(|b| {
        let turned = b.call("permute.default", &[("self", t("m")), ("dims", ints(&[1, 0, 2]))]);
        let results = layer.over(b, &turned);
        sum(b, &results[0], &[0, 2])
    });
    assert_eq!(
        node_types(&graph, "lstm")[0].dependence,
        Dependence::PerSample { axis: 1 }
    );
}

#[test]
fn several_sequences_of_a_record_stay_within_it() {
    let graph = with(|b| {
        let size = b.size("x", 0);
        let folded = b.size_op("mul", size.clone(), k(2));
        let one_step = [folded.clone(), k(1), k(3)];
        let steps = b.call("view.default", &[("self", t("m")), ("size", sizes(&one_step))]);
        let parameters = LSTM.parameters(b);
        let zeros = b.call("zeros.default", &[("size", sizes(&[k(1), folded, k(4)]))]);
        let arguments = LSTM.arguments(&steps, &[&zeros, &zeros], &parameters);
        let results = b.calls("lstm.input", &arguments, 3);
        let rows = [size, k(2), k(4)];
        let rows = b.call(
            "view.default",
            &[("self", t(&results[0])), ("size", sizes(&rows))],
        );
        sum(b, &rows, &[1, 2])
    });
    assert_eq!(node_types(&graph, "lstm")[0].shape[0], Extent::Batch(2));
}

#[test]
fn first_states_may_be_the_samples_own() {
    with(|b| {
        b.input("h", DType::F32, &[1, 4], None);
        let own = b.call("permute.default", &[("self", t("h")), ("dims", ints(&[1, 0, 2]))]);
        let parameters = LSTM.parameters(b);
        let arguments = LSTM.arguments("m", &[&own, &own], &parameters);
        let results = b.calls("lstm.input", &arguments, 3);
        sum(b, &results[2], &[0, 2])
    });
}

#[test]
fn a_frozen_layer_has_no_tap() {
    let layer = Layer {
        trainable: false,
        ..LSTM
    };
    let graph = with(|b| {
        let results = layer.over(b, "m");
        sum(b, &results[0], &[1, 2])
    });
    let node = graph.nodes().iter().find(|node| node.operator == "lstm").unwrap();
    assert!(node.tap.is_none());
}

/// No leak, but libtorch would read out of bounds or raise: refused with what to do.
#[test]
fn layers_whose_shapes_do_not_fit_are_refused() {
    type Arguments = Vec<(&'static str, RawArgument)>;
    type Change = fn(&mut Build, &mut Arguments);
    let set = |arguments: &mut Arguments, name: &str, value: RawArgument| {
        let slot = arguments.iter_mut().find(|(found, _)| *found == name).unwrap();
        slot.1 = value;
    };
    let refused = |layer: &Layer, change: &dyn Fn(&mut Build, &mut Arguments)| {
        let mut b = Build::classifier();
        let parameters = layer.parameters(&mut b);
        let zeros = layer.zeros(&mut b);
        let mut arguments = layer.arguments("m", &[&zeros, &zeros], &parameters);
        change(&mut b, &mut arguments);
        let results = b.calls(layer.operator, &arguments, layer.results());
        let total = sum(&mut b, &results[0], &[1, 2]);
        b.returns_loss_plus(&total);
        let refusals = b.check().unwrap_err().refusals;
        assert_eq!(refusals[0].node, results[0]);
        refusals[0].reason.clone()
    };
    let names = |names: &[&str]| RawArgument::Tensors(names.iter().map(|name| (*name).to_owned()).collect());
    for (position, shape) in [
        (0, &[16u64, 2][..]),
        (0, &[12, 3]),
        (0, &[16]),
        (1, &[16, 5]),
        (1, &[16]),
        (2, &[15]),
        (3, &[16, 1]),
    ] {
        let reason = refused(&LSTM, &|b, arguments| {
            b.parameter("wrong", shape, true);
            let mut all = ["r0", "r1", "r2", "r3"];
            all[position] = "wrong";
            set(arguments, "params", names(&all));
        });
        assert!(
            reason.contains("fits") || reason.contains("hidden"),
            "{position}: {reason}"
        );
    }
    let count = |value: RawArgument, of: &'static str, wanted: &str| {
        let reason = refused(&LSTM, &|_, arguments| set(arguments, of, value.clone()));
        assert!(reason.contains(wanted), "{of}: {reason}");
    };
    count(names(&["r0", "r1", "r2", "r3", "r3"]), "params", "proj_size");
    count(names(&["r0", "r1", "r2"]), "params", "3 weights and biases");
    count(flag(false), "has_biases", "4 weights and biases");
    count(i(2), "num_layers", "4 weights and biases");
    for none in [0, -1, i64::MIN, i64::MAX] {
        let reason = refused(&LSTM, &|_, arguments| set(arguments, "num_layers", i(none)));
        assert!(
            reason.contains("no layer") || reason.contains("weights and biases"),
            "{reason}"
        );
    }
    count(f(1.5), "dropout", "[0, 1]");
    count(names(&["m"]), "hx", "two first states");
    let changes: [(Change, &str); 4] = [
        (
            |b, arguments| {
                let batch = b.size("x", 0);
                let shape = [k(1), batch, k(3)];
                let short = b.call("zeros.default", &[("size", sizes(&shape))]);
                arguments[1].1 = RawArgument::Tensors(vec![short.clone(), short]);
            },
            "a first state is",
        ),
        (
            |b, arguments| {
                b.constant("fixed", DType::F32, &[1, 3, 4]);
                arguments[1].1 = RawArgument::Tensors(vec!["fixed".into(), "fixed".into()]);
            },
            "a first state is",
        ),
        (
            |_, arguments| arguments[0].1 = t("x"),
            "takes [batch, steps, width]",
        ),
        (
            |_, arguments| arguments[0].1 = t("table3"),
            "same for all samples",
        ),
    ];
    for (change, wanted) in changes {
        let reason = refused(&LSTM, &|b, arguments| {
            b.constant("table3", DType::F32, &[2, 2, 3]);
            change(b, arguments);
        });
        assert!(reason.contains(wanted), "{reason}");
    }
}
