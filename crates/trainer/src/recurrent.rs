//! `lstm`, `gru`, `rnn_tanh`, `rnn_relu`: run by our own cells, so that their parameters can be tapped.
//!
//! libtorch's operators are opaque, and read out of bounds when a weight is too small. Here the input projections of all
//! steps are one matrix product, and what remains, step by step, is one node of the autograd graph (`shim/recurrence.h`)
//! whose backward pass gives the gradient of the projections: `[rows, steps, gates]`. With a step's input those rows
//! give the input weight's gradient, with its previous output the recurrent weight's, and alone the biases': ordinary
//! contractions over T rows a record. Of GRU the recurrent projections have a gradient of their own.

use crate::accelerated;
use crate::device::{beside, is_on_host};
use crate::error::{EngineError, Result};
use crate::executor::{Randomness, Tapped};
use crate::ffi::{self, Edge, Recurrence};
use crate::operators::Guard;
use crate::program::{BatchAxis, Call, Expected, Prepared};
use crate::taps::sides;
use bastionai_graph::typed::RecurrentCell;
use tch::{Kind, Tensor};

/// What a cell computes, with the shim's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CellKind {
    Lstm = 0,
    Gru = 1,
    Tanh = 2,
    Relu = 3,
}

impl CellKind {
    pub(crate) fn of(operator: &str) -> Option<Self> {
        match operator {
            "lstm" => Some(Self::Lstm),
            "gru" => Some(Self::Gru),
            "rnn_tanh" => Some(Self::Tanh),
            "rnn_relu" => Some(Self::Relu),
            _ => None,
        }
    }

    fn gates(self) -> i64 {
        match self {
            Self::Lstm => 4,
            Self::Gru => 3,
            Self::Tanh | Self::Relu => 1,
        }
    }
}

/// One direction of one layer: where its parameters are among the values.
struct CellValues {
    weight_ih: usize,
    weight_hh: usize,
    /// Of the input's and of the recurrent projections.
    biases: Option<[usize; 2]>,
    /// Elements of a step of its input.
    input_width: i64,
}

/// A recurrent node, its shapes checked.
pub(crate) struct Layers {
    kind: CellKind,
    input: usize,
    h0: usize,
    c0: Option<usize>,
    /// Layer by layer, in each the forward direction first.
    cells: Vec<CellValues>,
    directions: usize,
    dropout: f64,
    batch_first: bool,
    batch: BatchAxis,
    /// B·inner.
    rows: i64,
    steps: i64,
    hidden: i64,
}

impl Layers {
    /// `None` for other operators.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] when input, states and weights do not fit one another.
    pub(crate) fn new(operator: &str, call: &Call, expected: &[Expected]) -> Result<Option<Self>> {
        if call.guard != Guard::Recurrent {
            return Ok(None);
        }
        match fitting(operator, call, expected) {
            Some(layers) => Ok(Some(layers)),
            None => Err(EngineError::Unsupported {
                node: call.name.clone(),
                reason: "input, first states and weights do not fit one another".into(),
            }),
        }
    }

    pub(crate) fn kind(&self) -> CellKind {
        self.kind
    }

    /// Directions of all layers.
    pub(crate) fn cells(&self) -> usize {
        self.cells.len()
    }

    /// Widths of the input and of the gates of a cell's projections, and of its recurrent ones.
    pub(crate) fn widths(&self, cell: usize) -> Option<[(i64, i64); 2]> {
        let gates = self.gates();
        let cell = self.cells.get(cell)?;
        Some([(cell.input_width, gates), (self.hidden, gates)])
    }

    /// Of all projections.
    pub(crate) fn shape(&self) -> [i64; 3] {
        [self.rows, self.steps, self.gates()]
    }

    /// Where the records are in projections.
    pub(crate) fn batch(&self) -> BatchAxis {
        BatchAxis {
            axis: 0,
            ..self.batch
        }
    }

    fn gates(&self) -> i64 {
        self.kind.gates() * self.hidden
    }

    /// Outputs, last states, and what was tapped on the way, in the plan's order.
    ///
    /// # Errors
    /// [`EngineError::Torch`] and [`EngineError::Operator`].
    pub(crate) fn run(
        &self,
        call: &Call,
        values: &[Option<Tensor>],
        trained: &[RecurrentCell],
        randomness: Randomness,
    ) -> Result<(Vec<Tensor>, Vec<Tapped>)> {
        let value = |index: usize| {
            values[index].as_ref().ok_or_else(|| EngineError::Operator {
                node: call.name.clone(),
                detail: "an argument is used before it is defined".into(),
            })
        };
        let mut input = value(self.input)?.shallow_clone();
        if !self.batch_first {
            input = input.f_transpose(0, 1)?;
        }
        let (mut outputs, mut cells, mut taps) = (Vec::new(), Vec::new(), Vec::new());
        for layer in self.cells.chunks(self.directions) {
            let mut both = Vec::with_capacity(self.directions);
            for (direction, parameters) in layer.iter().enumerate() {
                let position = outputs.len();
                let state = |of: usize| Ok::<_, EngineError>(value(of)?.f_select(0, position as i64)?);
                let (h0, c0) = (state(self.h0)?, self.c0.map(state).transpose()?);
                let biases = match parameters.biases {
                    Some([input, recurrent]) => {
                        Some([value(input)?.f_detach()?, value(recurrent)?.f_detach()?])
                    }
                    None => None,
                };
                let made = self.cell(
                    call,
                    &Given {
                        input: &input,
                        weight_ih: value(parameters.weight_ih)?.f_detach()?,
                        weight_hh: value(parameters.weight_hh)?,
                        biases,
                        h0,
                        c0,
                        reverse: direction == 1,
                        trained: trained.get(position),
                    },
                    &mut taps,
                )?;
                both.push(made.sequence);
                outputs.push(made.output);
                cells.extend(made.cell);
            }
            input = match &both[..] {
                [only] => only.shallow_clone(),
                _ => Tensor::f_cat(&both, 2)?,
            };
            if outputs.len() < self.cells.len() && randomness == Randomness::Drawn && self.dropout > 0.0 {
                input = input.f_dropout(self.dropout, true)?;
            }
        }
        if !self.batch_first {
            input = input.f_transpose(0, 1)?;
        }
        let mut results = vec![input, Tensor::f_stack(&outputs, 0)?];
        if self.kind == CellKind::Lstm {
            results.push(Tensor::f_stack(&cells, 0)?);
        }
        Ok((results, taps))
    }

    fn cell(&self, call: &Call, given: &Given<'_>, taps: &mut Vec<Tapped>) -> Result<Made> {
        let failed = |_| EngineError::Operator {
            node: call.name.clone(),
            detail: ffi::last_error(),
        };
        let is_gru = self.kind == CellKind::Gru;
        let bias = match &given.biases {
            Some([input, recurrent]) if !is_gru => Some(input.f_add(recurrent)?),
            Some([input, _]) => Some(input.shallow_clone()),
            None => None,
        };
        let recurrent_bias = given
            .biases
            .as_ref()
            .map(|[_, recurrent]| recurrent)
            .filter(|_| is_gru);
        let [projected, recurrent] = given
            .trained
            .map(|cell| sides(self.kind, cell))
            .unwrap_or_default();
        let mut gates = given
            .input
            .f_contiguous()?
            .f_linear(&given.weight_ih, bias.as_ref())?
            .f_contiguous()?;
        let is_trained = !projected.is_empty() || !recurrent.is_empty();
        if is_trained && !gates.requires_grad() {
            gates = gates.f_set_requires_grad(true)?;
        }
        let stand_in = if is_gru && !recurrent.is_empty() {
            let zero = beside(
                &Tensor::f_zeros([1, 1, 1], (gates.kind(), tch::Device::Cpu))?,
                &gates,
            )?;
            Some(zero.f_expand(self.shape(), false)?.f_set_requires_grad(true)?)
        } else {
            None
        };
        let recurrence = Recurrence {
            cell: self.kind as i64,
            reverse: given.reverse,
            gates: &gates,
            recurrent: stand_in.as_ref(),
            weight: given.weight_hh,
            bias: recurrent_bias,
            h0: &given.h0,
            c0: given.c0.as_ref(),
        };
        let results = if is_on_host(&gates) {
            ffi::recurrence(&recurrence).map_err(failed)?
        } else {
            accelerated::recurrence(&recurrence)?
        };
        let mut results = results.into_iter();
        let (Some(sequence), Some(output)) = (results.next(), results.next()) else {
            return Err(EngineError::Operator {
                node: call.name.clone(),
                detail: "a recurrence without results".into(),
            });
        };
        if !projected.is_empty() {
            let saved = given.input.f_detach()?;
            taps.push(tapped(&gates, saved).map_err(failed)?);
        }
        if !recurrent.is_empty() {
            let saved = previous_outputs(&sequence, &given.h0, given.reverse)?;
            taps.push(tapped(stand_in.as_ref().unwrap_or(&gates), saved).map_err(failed)?);
        }
        Ok(Made {
            sequence,
            output,
            cell: results.next(),
        })
    }
}

/// What one cell is run with.
struct Given<'v> {
    /// `[rows, steps, width]`.
    input: &'v Tensor,
    weight_ih: Tensor,
    weight_hh: &'v Tensor,
    biases: Option<[Tensor; 2]>,
    h0: Tensor,
    c0: Option<Tensor>,
    reverse: bool,
    trained: Option<&'v RecurrentCell>,
}

/// What one cell leaves: all outputs, the last one, and LSTM's last cell state.
struct Made {
    sequence: Tensor,
    output: Tensor,
    cell: Option<Tensor>,
}

fn tapped(gates: &Tensor, saved: Tensor) -> std::result::Result<Tapped, ffi::Failed> {
    Ok(Tapped {
        edge: Edge::of(gates)?,
        saved: vec![saved],
        shape: gates.size(),
        kind: gates.kind(),
    })
}

/// What each step's recurrent product was made from.
fn previous_outputs(sequence: &Tensor, h0: &Tensor, reverse: bool) -> Result<Tensor> {
    let first = h0.f_detach()?.f_unsqueeze(1)?;
    let others = sequence
        .f_detach()?
        .f_narrow(1, i64::from(reverse), sequence.size()[1] - 1)?;
    let parts = if reverse { [others, first] } else { [first, others] };
    Ok(Tensor::f_cat(&parts, 1)?)
}

fn fitting(operator: &str, call: &Call, expected: &[Expected]) -> Option<Layers> {
    let kind = CellKind::of(operator)?;
    let argument = |name: &str| call.position(name).map(|position| &call.arguments[position]);
    let flag = |name: &str| match argument(name)? {
        Prepared::Bool(value) => Some(*value),
        _ => None,
    };
    let (has_biases, both_ways, batch_first) =
        (flag("has_biases")?, flag("bidirectional")?, flag("batch_first")?);
    let (Prepared::Value(input), Prepared::Values(parameters)) = (argument("input")?, argument("params")?)
    else {
        return None;
    };
    let states = match (kind, argument("hx")?) {
        (CellKind::Lstm, Prepared::Values(states)) if states.len() == 2 => states.clone(),
        (CellKind::Gru | CellKind::Tanh | CellKind::Relu, Prepared::Value(state)) => vec![*state],
        _ => return None,
    };
    let dropout = match (argument("dropout")?, flag("train")?) {
        (Prepared::Float(p), true) if (0.0..=1.0).contains(p) => *p,
        (Prepared::Float(_), false) => 0.0,
        _ => return None,
    };
    let directions = 1 + usize::from(both_ways);
    let Prepared::Int(layers) = argument("num_layers")? else {
        return None;
    };
    let count = usize::try_from(*layers).ok()?.checked_mul(directions)?;
    let per_cell = if has_biases { 4 } else { 2 };
    if count == 0 || count.checked_mul(per_cell)? != parameters.len() {
        return None;
    }
    let of = expected.get(*input)?;
    let batch = of.batch.filter(|batch| batch.axis == i64::from(!batch_first))?;
    let &[first, second, width] = &of.shape[..] else {
        return None;
    };
    let (rows, steps) = if batch_first {
        (first, second)
    } else {
        (second, first)
    };
    let floating = matches!(of.kind, Kind::Float | Kind::Double);
    let fits = |value: usize, shape: &[i64], batch: Option<BatchAxis>| {
        expected
            .get(value)
            .is_some_and(|found| found.shape == shape && found.kind == of.kind && found.batch == batch)
    };
    let hidden = *expected.get(parameters[1])?.shape.get(1)?;
    let gates = kind.gates().checked_mul(hidden)?;
    if !floating || steps < 1 || hidden < 1 {
        return None;
    }
    let mut cells = Vec::with_capacity(count);
    for (position, cell) in parameters.chunks(per_cell).enumerate() {
        let input_width = if position < directions {
            width
        } else {
            hidden.checked_mul(directions as i64)?
        };
        let biases = match cell {
            [_, _, input, recurrent] => Some([*input, *recurrent]),
            _ => None,
        };
        let fine = fits(cell[0], &[gates, input_width], None)
            && fits(cell[1], &[gates, hidden], None)
            && biases.iter().flatten().all(|bias| fits(*bias, &[gates], None));
        if !fine {
            return None;
        }
        cells.push(CellValues {
            weight_ih: cell[0],
            weight_hh: cell[1],
            biases,
            input_width,
        });
    }
    let state_batch = Some(BatchAxis { axis: 1, ..batch });
    if !states
        .iter()
        .all(|state| fits(*state, &[count as i64, rows, hidden], state_batch))
    {
        return None;
    }
    Some(Layers {
        kind,
        input: *input,
        h0: states[0],
        c0: states.get(1).copied(),
        cells,
        directions,
        dropout,
        batch_first,
        batch,
        rows,
        steps,
        hidden,
    })
}
