//! Recurrent layers that carry states from sample to sample, or whose weights do (T7).

use super::super::sound::recurrent::{LSTM, Layer};
use super::*;

fn turned(b: &mut Build, value: &str) -> String {
    b.call(
        "permute.default",
        &[("self", t(value)), ("dims", ints(&[1, 0, 2]))],
    )
}

/// A layer over `input`, refused, its outputs summed over `axes`. First states have the extent that the layer takes for
/// the batch, so that nothing else is wrong.
fn bad_layer(b: &mut Build, layer: &Layer, input: &str, rows: i64, axes: &[i64]) {
    let parameters = layer.parameters(b);
    let shape = [k(1), k(rows), k(4)];
    let zeros = b.call("zeros.default", &[("size", sizes(&shape))]);
    let arguments = layer.arguments(input, &[&zeros, &zeros], &parameters);
    let results = b.calls(layer.operator, &arguments, layer.results());
    b.blamed = results[0].clone();
    let rows = b.call(
        "sum.dim_IntList",
        &[("self", t(&results[0])), ("dim", ints(axes))],
    );
    b.returns_loss_plus(&rows);
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        mutant(
            "an LSTM that takes the samples for steps",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                let layer = Layer {
                    batch_first: false,
                    ..LSTM
                };
                bad_layer(b, &layer, "m", 2, &[1, 2]);
            },
        ),
        mutant(
            "a batch-first GRU fed steps first",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                let layer = Layer {
                    operator: "gru.input",
                    gates: 3,
                    ..LSTM
                };
                let steps = turned(b, "m");
                bad_layer(b, &layer, &steps, 2, &[0, 2]);
            },
        ),
        mutant(
            "an RNN of one record's features that takes the samples for steps",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                let layer = Layer {
                    operator: "rnn_tanh.input",
                    gates: 1,
                    both_ways: false,
                    ..LSTM
                };
                let one = b.call("slice.Tensor", &[("self", t("m")), ("dim", i(1)), ("end", i(1))]);
                let steps = turned(b, &one);
                bad_layer(b, &layer, &steps, 1, &[0, 2]);
            },
        ),
        case(
            "an LSTM whose recurrent weight is made of the samples",
            "T7",
            |b| {
                let parameters = LSTM.parameters(b);
                let zeros = LSTM.zeros(b);
                let factor = b.call("sum.default", &[("self", t("c3"))]);
                let scaled = b.call("mul.Tensor", &[("self", t("t")), ("other", t(&factor))]);
                let mut weights = parameters;
                weights[2] = scaled;
                let arguments = LSTM.arguments("m", &[&zeros, &zeros], &weights);
                let results = b.calls("lstm.input", &arguments, 3);
                b.blamed = results[0].clone();
                let rows = b.call(
                    "sum.dim_IntList",
                    &[("self", t(&results[0])), ("dim", ints(&[1, 2]))],
                );
                b.returns_loss_plus(&rows);
            },
        ),
    ]
}
