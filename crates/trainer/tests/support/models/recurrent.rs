//! Recurrent layers, beside libtorch's own on the same parameters.

use super::*;

const STEPS: u64 = 4;
const WIDTH: u64 = 3;
const HIDDEN: u64 = 2;

/// One recurrent layer of the graph.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    pub operator: &'static str,
    pub layers: u64,
    pub both_ways: bool,
    pub biases: bool,
    pub batch_first: bool,
    /// First states of the record's own instead of zeros.
    pub own_states: bool,
    /// Of the parameters in order, whether each is trained.
    pub trained: fn(usize) -> bool,
    pub dropout: f64,
}

pub const LSTM: Layer = Layer {
    operator: "lstm",
    layers: 1,
    both_ways: false,
    biases: true,
    batch_first: true,
    own_states: false,
    trained: |_| true,
    dropout: 0.0,
};

/// One of each kind of cell.
pub fn all(dtype: DType, batch: i64) -> Vec<Model> {
    let two_ways = Layer {
        layers: 2,
        both_ways: true,
        ..LSTM
    };
    let gru = Layer {
        operator: "gru",
        batch_first: false,
        own_states: true,
        ..LSTM
    };
    let tanh = Layer {
        operator: "rnn_tanh",
        both_ways: true,
        biases: false,
        own_states: true,
        ..LSTM
    };
    [two_ways, gru, tanh]
        .iter()
        .map(|layer| model(layer, dtype, batch))
        .collect()
}

/// What a hostile job may get wrong: shapes of the parameters in order, and of the first states' cells.
pub struct Wrong {
    pub parameter: Option<(usize, &'static [u64])>,
    pub states: u64,
    pub layers: i64,
}

impl Layer {
    pub fn cells(&self) -> u64 {
        self.layers * (1 + u64::from(self.both_ways))
    }

    fn gates(&self) -> u64 {
        match self.operator {
            "lstm" => 4,
            "gru" => 3,
            _ => 1,
        }
    }

    fn per_cell(&self) -> usize {
        if self.biases { 4 } else { 2 }
    }

    /// Shapes of all parameters.
    pub fn shapes(&self) -> Vec<Vec<u64>> {
        let (rows, directions) = (self.gates() * HIDDEN, 1 + u64::from(self.both_ways));
        (0..self.cells())
            .flat_map(|cell| {
                let width = if cell < directions {
                    WIDTH
                } else {
                    HIDDEN * directions
                };
                let shapes = [vec![rows, width], vec![rows, HIDDEN], vec![rows], vec![rows]];
                shapes.into_iter().take(self.per_cell())
            })
            .collect()
    }

    /// The graph: squares of all outputs, of the last outputs and of the last cell states, summed for each record.
    pub fn graph(&self, dtype: DType, wrong: &Wrong) -> TypedGraph {
        let mut g = Builder::default();
        let x = g.input("x", dtype, &[STEPS, WIDTH]);
        let cells = wrong.states;
        let is_lstm = self.operator == "lstm";
        let states: Vec<ValueId> = (0..if is_lstm { 2 } else { 1 })
            .map(|state| self.state(&mut g, dtype, cells, state))
            .collect();
        let mut shapes = self.shapes();
        if let Some((position, shape)) = wrong.parameter {
            shapes[position] = shape.to_vec();
        }
        let parameters: Vec<ValueId> = shapes
            .iter()
            .enumerate()
            .map(|(position, shape)| {
                g.parameter(&format!("p{position}"), dtype, shape, (self.trained)(position))
            })
            .collect();
        let directions = 1 + u64::from(self.both_ways);
        let turn = [("dims", Argument::Ints(vec![1, 0, 2]))];
        let (fed, outputs) = if self.batch_first {
            (x, [b(1), n(STEPS), n(directions * HIDDEN)])
        } else {
            let turned = [&[("self", v(x))], &turn[..]].concat();
            let steps_first = g.node("permute", &turned, dtype, &[n(STEPS), b(1), n(WIDTH)]);
            (steps_first, [n(STEPS), b(1), n(directions * HIDDEN)])
        };
        let hx = if is_lstm {
            Argument::Values(states.clone())
        } else {
            v(states[0])
        };
        let given = [
            ("input", v(fed)),
            ("hx", hx),
            ("params", Argument::Values(parameters.clone())),
            ("has_biases", Argument::Bool(self.biases)),
            ("num_layers", Argument::Int(wrong.layers)),
            ("dropout", Argument::Float(FloatBits::new(self.dropout))),
            ("train", Argument::Bool(true)),
            ("bidirectional", Argument::Bool(self.both_ways)),
            ("batch_first", Argument::Bool(self.batch_first)),
        ];
        let last = [n(self.cells()), b(1), n(HIDDEN)];
        let results: &[&[Extent]] = if is_lstm {
            &[&outputs, &last, &last]
        } else {
            &[&outputs, &last]
        };
        let results = g.nodes(&format!("{}.input", self.operator), &given, dtype, results);
        let tapped: Vec<Option<TappedParameter>> = parameters
            .iter()
            .enumerate()
            .map(|(position, parameter)| (self.trained)(position).then(|| g.tapped(*parameter)))
            .collect();
        if tapped.iter().any(Option::is_some) {
            let of =
                |cell: &[Option<TappedParameter>], position: usize| cell.get(position).cloned().flatten();
            let cells = tapped.chunks(self.per_cell()).map(|cell| RecurrentCell {
                weight_ih: of(cell, 0),
                weight_hh: of(cell, 1),
                bias_ih: of(cell, 2),
                bias_hh: of(cell, 3),
            });
            g.tap(Tap::Recurrent {
                cells: cells.collect(),
            });
        }
        let mut total: Option<ValueId> = None;
        for (position, result) in results.iter().enumerate() {
            let shape = if position == 0 { outputs } else { last };
            let over = shape.iter().position(|extent| *extent == b(1)).unwrap() as i64;
            let squared = g.node("square", &[("self", v(*result))], dtype, &shape);
            let dims = Argument::Ints((0..3).filter(|axis| *axis != over).collect());
            let each = g.node(
                "sum.dim_IntList",
                &[("self", v(squared)), ("dim", dims)],
                dtype,
                &[b(1)],
            );
            total = Some(match total {
                None => each,
                Some(sum) => g.node(
                    "add.Tensor",
                    &[("self", v(sum)), ("other", v(each))],
                    dtype,
                    &[b(1)],
                ),
            });
        }
        g.finish(total.unwrap())
    }

    fn state(&self, g: &mut Builder, dtype: DType, cells: u64, state: usize) -> ValueId {
        let shape = [n(cells), b(1), n(HIDDEN)];
        if self.own_states {
            let rows = g.input(&format!("state{state}"), dtype, &[cells, HIDDEN]);
            let turn = [("self", v(rows)), ("dims", Argument::Ints(vec![1, 0, 2]))];
            return g.node("permute", &turn, dtype, &shape);
        }
        let given = [
            ("size", Argument::Sizes(shape.to_vec())),
            ("dtype", Argument::DType(dtype)),
            ("layout", Argument::None),
            ("device", Argument::None),
            ("pin_memory", Argument::None),
        ];
        g.node("zeros", &given, dtype, &shape)
    }
}

/// The graph and libtorch's own operator.
pub fn model(layer: &Layer, dtype: DType, batch: i64) -> Model {
    let k = kind(dtype);
    let layer = *layer;
    let right = Wrong {
        parameter: None,
        states: layer.cells(),
        layers: layer.layers as i64,
    };
    let long = |shape: &[u64]| shape.iter().map(|extent| *extent as i64).collect::<Vec<_>>();
    let mut inputs = vec![rand(k, &[batch, STEPS as i64, WIDTH as i64])];
    if layer.own_states {
        let states = if layer.operator == "lstm" { 2 } else { 1 };
        let shape = [batch, layer.cells() as i64, HIDDEN as i64];
        inputs.extend((0..states).map(|_| rand(k, &shape)));
    }
    Model {
        name: layer.operator,
        graph: layer.graph(dtype, &right),
        // Positive where a cell is dead below zero.
        parameters: layer
            .shapes()
            .iter()
            .map(|shape| {
                let values = rand(k, &long(shape)) * 0.7;
                // A cell that is dead below zero is kept alive.
                if layer.operator == "rnn_relu" {
                    values.abs()
                } else {
                    values
                }
            })
            .collect(),
        constants: vec![],
        inputs,
        reference: Box::new(move |p, i| {
            let rows = i[0].size()[0];
            let states: Vec<Tensor> = if layer.own_states {
                i[1..]
                    .iter()
                    .map(|state| state.transpose(0, 1).contiguous())
                    .collect()
            } else {
                let shape = [layer.cells() as i64, rows, HIDDEN as i64];
                (0..2).map(|_| Tensor::zeros(shape, (k, Device::Cpu))).collect()
            };
            let (layers, ways) = (layer.layers as i64, layer.both_ways);
            type One = fn(&Tensor, &Tensor, &[Tensor], bool, i64, f64, bool, bool, bool) -> (Tensor, Tensor);
            let run = |one: One| {
                let (outputs, last) = one(&i[0], &states[0], p, layer.biases, layers, 0.0, true, ways, true);
                vec![outputs, last.transpose(0, 1)]
            };
            let results = match layer.operator {
                "lstm" => {
                    let (outputs, last, cell) =
                        i[0].lstm(&states[..], p, layer.biases, layers, 0.0, true, ways, true);
                    vec![outputs, last.transpose(0, 1), cell.transpose(0, 1)]
                }
                "gru" => run(Tensor::gru),
                "rnn_tanh" => run(Tensor::rnn_tanh),
                _ => run(Tensor::rnn_relu),
            };
            let each = results
                .iter()
                .map(|result| result.square().sum_dim_intlist(&[1i64, 2][..], false, k));
            each.reduce(|sum, each| sum + each).unwrap()
        }),
    }
}
