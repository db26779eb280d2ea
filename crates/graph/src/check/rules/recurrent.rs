//! lstm, gru, rnn_tanh, rnn_relu over padded sequences: a sample's steps follow one another, samples never do (T7).
//!
//! libtorch reads out of bounds when a weight is too small, so every shape is judged here, and again by the trainer
//! before it runs. The node is typed as one: outputs `[B, T, ..]` or `[T, B, ..]`, last states `[cells, B, hidden]`.

use super::super::call::{Call, batch_axis};
use super::super::facts::{Output, Typed};
use super::super::premise::{Premise, require};
use super::super::refusal::Objection;
use super::contraction::{require_same_dtype, require_shared};
use super::{Outcome, tap};
use crate::display;
use crate::typed::{Extent, RecurrentCell, Tap, ValueType};

/// `lstm(input, hx[2], params, has_biases, num_layers, dropout, train, bidirectional, batch_first)`; the others have
/// one state `hx`.
pub(in super::super) fn recurrent(call: &mut Call<'_>) -> Result<Outcome, Objection> {
    let is_lstm = call.schema.name == "lstm";
    let gates = match call.schema.name.as_str() {
        "lstm" => 4,
        "gru" => 3,
        _ => 1,
    };
    let input = call.tensor("input")?;
    let states = if is_lstm {
        call.tensors("hx")?
    } else {
        vec![call.tensor("hx")?]
    };
    let parameters = call.tensors("params")?;
    let (has_biases, both_ways) = (call.bool("has_biases")?, call.bool("bidirectional")?);
    let layers = call.int("num_layers")?;
    let (dropout, _) = (call.float("dropout")?, call.bool("train")?);
    let batch_first = call.bool("batch_first")?;
    if !(0.0..=1.0).contains(&dropout) {
        return Err(Objection::plain(
            "the dropout probability is not in [0, 1]",
            "use one that is",
        ));
    }
    let operands = [&[input][..], &states, &parameters].concat();
    require_same_dtype(&operands.iter().copied().map(Some).collect::<Vec<_>>())?;
    let sequence = sequence(input, batch_first)?;
    for parameter in &parameters {
        require_shared("weight or bias of a recurrent layer", parameter)?;
    }
    let per_cell = if has_biases { 4 } else { 2 };
    let cells = cells(layers, both_ways, per_cell, &parameters)?;
    let hidden = hidden(&parameters[1].value_type)?;
    let directions = 1 + usize::from(both_ways);
    let width = hidden
        .checked_mul(directions as u64)
        .ok_or_else(|| too_large("the outputs"))?;
    let mut taps = Vec::with_capacity(cells.len());
    for (position, parameters) in cells.iter().enumerate() {
        let is_first = position < directions;
        taps.push(cell(
            parameters,
            gates,
            if is_first { sequence.width } else { width },
            hidden,
        )?);
    }
    judge_states(&states, cells.len() as u64, sequence.batch, hidden, is_lstm)?;
    Ok(outcome(call, input, &states, width, taps))
}

/// What is known of the input.
struct Sequence {
    /// The extent of the batch axis.
    batch: Extent,
    /// Elements of a step.
    width: u64,
}

/// The batch is where the layer takes it to be, and its sequences have a fixed length.
fn sequence(input: &Typed, batch_first: bool) -> Result<Sequence, Objection> {
    let shape = &input.value_type.shape;
    let wanted = usize::from(!batch_first);
    let [Some(batch), Some(steps), Some(width)] = [wanted, 1 - wanted, 2].map(|axis| shape.get(axis)) else {
        let reason = format!(
            "a recurrent layer takes [batch, steps, width], not {}",
            display::ty(&input.value_type)
        );
        return Err(Objection::denied(
            reason,
            "give one sequence a record, with an axis of features",
        ));
    };
    let Some((axis, _)) = batch_axis(&input.value_type) else {
        return Err(Objection::denied(
            "the sequence is the same for all samples",
            "compute its states once, outside of the model, or feed per-sample sequences",
        ));
    };
    require(Premise::DimsExcludeBatch, axis == wanted, || {
        let reason = format!(
            "the layer takes axis {wanted} for the batch, and the batch of {} is axis {axis}: it would carry states from \
             sample to sample",
            display::ty(&input.value_type)
        );
        let remedy =
            "build the layer with batch_first=True for [batch, steps, width], or transpose what is fed";
        (reason, remedy.into())
    })?;
    if shape.len() != 3 || count(*steps) == Some(0) {
        return Err(Objection::plain(
            "a recurrent layer takes [batch, steps, width] with one step or more",
            "give one sequence a record, with an axis of features",
        ));
    }
    let width = count(*width).ok_or_else(|| {
        Objection::denied("the features of a step are the batch", "move the batch to axis 0")
    })?;
    Ok(Sequence { batch: *batch, width })
}

/// The parameters cell by cell.
fn cells<'p, 'c>(
    layers: i64,
    both_ways: bool,
    per_cell: usize,
    parameters: &'p [&'c Typed],
) -> Result<Vec<&'p [&'c Typed]>, Objection> {
    let count = usize::try_from(layers)
        .ok()
        .and_then(|layers| layers.checked_mul(1 + usize::from(both_ways)))
        .filter(|count| *count > 0)
        .ok_or_else(|| Objection::plain("it has no layer", "use num_layers of at least 1"))?;
    if count.checked_mul(per_cell + 1) == Some(parameters.len()) {
        return Err(Objection::denied(
            "projections of a recurrent layer's outputs (proj_size) have no rule",
            "leave proj_size out, and apply a linear layer to the outputs",
        ));
    }
    if count.checked_mul(per_cell) != Some(parameters.len()) {
        let reason = format!(
            "{} weights and biases where {count} cells have {per_cell} each",
            parameters.len()
        );
        return Err(Objection::plain(reason, "use torch.nn's own recurrent layers"));
    }
    Ok(parameters.chunks(per_cell).collect())
}

fn hidden(weight_hh: &ValueType) -> Result<u64, Objection> {
    match weight_hh.shape.as_slice() {
        [_, Extent::Fixed(hidden)] if *hidden > 0 => Ok(*hidden),
        _ => Err(Objection::plain(
            "the recurrent weight is not [gates, hidden]",
            "use torch.nn's own recurrent layers",
        )),
    }
}

/// Weights `[gates·hidden, width]` and `[gates·hidden, hidden]`, biases `[gates·hidden]`.
fn cell(cell: &[&Typed], gates: u64, width: u64, hidden: u64) -> Result<RecurrentCell, Objection> {
    let rows = hidden.checked_mul(gates).ok_or_else(|| too_large("the gates"))?;
    let wanted: [&[u64]; 4] = [&[rows, width], &[rows, hidden], &[rows], &[rows]];
    for (parameter, wanted) in cell.iter().zip(wanted) {
        let wanted: Vec<Extent> = wanted.iter().copied().map(Extent::Fixed).collect();
        if parameter.value_type.shape != wanted {
            let fitting = ValueType {
                shape: wanted,
                ..parameter.value_type.clone()
            };
            let reason = format!(
                "a weight or bias of the layer is {} where {} fits its input and gates",
                display::ty(&parameter.value_type),
                display::ty(&fitting)
            );
            return Err(Objection::plain(reason, "use torch.nn's own recurrent layers"));
        }
    }
    let tapped = |position: usize| tap::parameter(cell.get(position).copied());
    Ok(RecurrentCell {
        weight_ih: tapped(0),
        weight_hh: tapped(1),
        bias_ih: tapped(2),
        bias_hh: tapped(3),
    })
}

/// First states `[cells, batch, hidden]`: with the very extent of the input's batch, so each sample has its own.
fn judge_states(
    states: &[&Typed],
    cells: u64,
    batch: Extent,
    hidden: u64,
    is_lstm: bool,
) -> Result<(), Objection> {
    if is_lstm && states.len() != 2 {
        return Err(Objection::plain(
            "an LSTM has two first states",
            "give (h_0, c_0), or none",
        ));
    }
    let wanted = [Extent::Fixed(cells), batch, Extent::Fixed(hidden)];
    match states.iter().find(|state| state.value_type.shape != wanted) {
        None => Ok(()),
        Some(state) => Err(Objection::plain(
            format!(
                "a first state is {}, not [{cells}, batch, {hidden}] with the batch of the input",
                display::ty(&state.value_type)
            ),
            "give [layers · directions, batch, hidden], made with the input's batch size, or leave it out for zeros",
        )),
    }
}

fn outcome(
    call: &Call<'_>,
    input: &Typed,
    states: &[&Typed],
    width: u64,
    cells: Vec<RecurrentCell>,
) -> Outcome {
    let any = call.any_requires_grad();
    let mut outputs = input.value_type.clone();
    outputs.shape[2] = Extent::Fixed(width);
    let last = states
        .iter()
        .map(|state| Output::new(state.value_type.clone(), any));
    let tapped = cells.iter().any(|cell| cell.parameters().next().is_some());
    Outcome {
        outputs: std::iter::once(Output::new(outputs, any)).chain(last).collect(),
        tap: tapped.then_some(Tap::Recurrent { cells }),
    }
}

fn too_large(what: &str) -> Objection {
    Objection::plain(format!("the extent of {what} overflows"), "use smaller sizes")
}

/// An extent that is free of B.
fn count(extent: Extent) -> Option<u64> {
    match extent {
        Extent::Fixed(size) => Some(size),
        Extent::Batch(_) => None,
    }
}
