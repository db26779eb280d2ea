//! Recurrent layers against libtorch's own: gradients of every parameter for each record, whatever is trained, in every
//! form of layer; and weights that libtorch would read out of bounds.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use bastionai_graph::dtype::DType;
use bastionai_trainer::selftest::self_test;
use bastionai_trainer::{Engine, EngineError};
use support::models;
use support::models::recurrent::{LSTM, Layer, Wrong, model};
use support::*;
use tch::{Kind, Tensor};

const BATCH: i64 = 5;

fn gradients_equal_autograds(layer: &Layer) {
    // Without drawing, so that dropout is no difference.
    let model = model(layer, DType::F64, BATCH);
    let engine = model.engine(settings(BATCH as u32, 1.0));
    let own = engine
        .per_sample_gradients(&full(&engine, &model.inputs))
        .unwrap();
    let alone: Vec<Vec<Tensor>> = (0..BATCH).map(|row| model.alone(row)).collect();
    assert_eq!(own.len(), alone[0].len(), "{layer:?}");
    for (position, own) in own.iter().enumerate() {
        let rows: Vec<&Tensor> = alone.iter().map(|gradients| &gradients[position]).collect();
        let expected = Tensor::stack(&rows, 0);
        let difference = f64::try_from((own - &expected).abs().max()).unwrap();
        let largest = f64::try_from(expected.abs().max()).unwrap();
        assert!(largest > 1e-6, "{layer:?} {position}: a test of zeros");
        assert!(
            difference < 1e-11 * largest.max(1.0),
            "{layer:?} {position}: {difference}"
        );
    }
}

#[test]
fn gradients_equal_autograd_of_libtorchs_layer_in_every_form() {
    set_up();
    let mut count = 0;
    for operator in ["lstm", "gru", "rnn_tanh", "rnn_relu"] {
        for (layers, both_ways, biases) in [
            (1, false, true),
            (1, false, false),
            (1, true, true),
            (2, false, true),
            (2, true, true),
            (3, true, false),
        ] {
            for (batch_first, own_states) in [(true, false), (true, true), (false, true)] {
                gradients_equal_autograds(&Layer {
                    operator,
                    layers,
                    both_ways,
                    biases,
                    batch_first,
                    own_states,
                    dropout: 0.3,
                    ..LSTM
                });
                count += 1;
            }
        }
    }
    assert_eq!(count, 72);
}

#[test]
fn gradients_are_right_whichever_parameters_are_trained() {
    set_up();
    let choices: [fn(usize) -> bool; 8] = [
        |position| position == 0,
        |position| position == 1,
        |position| position == 2,
        |position| position == 3,
        |position| position % 4 >= 2,
        |position| position % 4 != 1,
        |position| position >= 4,
        |position| position < 4,
    ];
    for operator in ["lstm", "gru", "rnn_relu"] {
        for trained in choices {
            gradients_equal_autograds(&Layer {
                operator,
                layers: 2,
                both_ways: true,
                own_states: true,
                trained,
                ..LSTM
            });
        }
    }
}

#[test]
fn a_layer_whose_shapes_do_not_fit_is_refused_before_it_runs() {
    set_up();
    /// Which parameter has which shape instead.
    type Reshaped = Option<(usize, &'static [u64])>;
    let wrongs: [(Reshaped, u64, i64); 9] = [
        (Some((0, &[8, 2])), 1, 1),
        (Some((0, &[7, 3])), 1, 1),
        (Some((1, &[8, 1])), 1, 1),
        (Some((1, &[2, 2])), 1, 1),
        (Some((2, &[4])), 1, 1),
        (Some((3, &[16])), 1, 1),
        (None, 2, 1),
        (None, 1, 2),
        (None, 1, 0),
    ];
    for (parameter, states, layers) in wrongs {
        let wrong = Wrong {
            parameter,
            states,
            layers,
        };
        let graph = LSTM.graph(DType::F32, &wrong);
        let bytes: Vec<Vec<u8>> = graph
            .parameters()
            .iter()
            .map(|each| vec![0; 4 * each.shape.iter().product::<u64>() as usize])
            .collect();
        let error = Engine::new(graph, &bytes, &[], settings(4, 1.0)).err().unwrap();
        assert!(
            matches!(&error, EngineError::Unsupported { node, .. } if node.starts_with("lstm")),
            "{parameter:?} {states} {layers}: {error}"
        );
    }
}

#[test]
fn dropout_between_layers_is_drawn_anew_for_every_record_and_every_batch() {
    let layer = Layer {
        layers: 2,
        dropout: 0.5,
        ..LSTM
    };
    let model = model(&layer, DType::F32, 8);
    let mut engine = model.engine(settings(8, 1.0));
    let rows = model.inputs[0].narrow(0, 0, 1).repeat([8, 1, 1]);
    let losses = |engine: &Engine| {
        let inputs = [rows.shallow_clone()];
        engine.clipped_sums(&full(engine, &inputs)).unwrap().1.losses
    };
    let (first, second) = (losses(&engine), losses(&engine));
    assert!(
        (1..8).any(|row| first[row] != first[0]),
        "equal rows dropped the same: {first:?}"
    );
    assert_ne!(first, second);
    self_test(&mut engine).unwrap();
}

/// In f32 the cells have their own vectorised functions: as near to the true ones as libtorch's.
#[test]
fn losses_and_gradients_in_f32_are_those_of_f64_to_rounding() {
    for (operator, scale) in [
        ("lstm", 1.0),
        ("gru", 1.0),
        ("rnn_tanh", 1.0),
        ("lstm", 6.0),
        ("gru", 6.0),
        ("rnn_tanh", 6.0),
    ] {
        let layer = Layer {
            operator,
            both_ways: true,
            ..LSTM
        };
        let narrow = model(&layer, DType::F32, 64);
        let narrow = models::Model {
            inputs: narrow.inputs.iter().map(|input| input * scale).collect(),
            ..narrow
        };
        let wide = |tensors: &[Tensor]| {
            tensors
                .iter()
                .map(|each| each.to_kind(Kind::Double))
                .collect::<Vec<_>>()
        };
        let exact = models::Model {
            parameters: wide(&narrow.parameters),
            inputs: wide(&narrow.inputs),
            ..model(&layer, DType::F64, 64)
        };
        let gradients = |model: &models::Model| {
            let engine = model.engine(settings(64, 1.0));
            engine
                .per_sample_gradients(&full(&engine, &model.inputs))
                .unwrap()
        };
        for (narrow, exact) in gradients(&narrow).iter().zip(gradients(&exact)) {
            let apart =
                f64::try_from((narrow - &exact).norm()).unwrap() / f64::try_from(exact.norm()).unwrap();
            assert!(apart < 2e-6, "{operator} {scale}: {apart}");
        }
    }
}

/// A record of NaN has NaN states and counts as nothing; the others keep their bits.
#[test]
fn a_poisoned_record_changes_no_other() {
    for model in models::recurrent::all(DType::F32, 8) {
        let engine = model.engine(settings(8, 1.0));
        let (_, reference) = engine.clipped_sums(&full(&engine, &model.inputs)).unwrap();
        for value in [f64::NAN, f64::INFINITY, -3e38] {
            let mut inputs: Vec<Tensor> = model.inputs.iter().map(Tensor::shallow_clone).collect();
            inputs[0] = with_row(&inputs[0], 2, value);
            let (sums, results) = engine.clipped_sums(&full(&engine, &inputs)).unwrap();
            assert!(joined(&sums).iter().all(|sum| sum.is_finite()));
            assert!(!results.counted[2] || value.is_finite(), "{} {value}", model.name);
            for row in (0..8).filter(|row| *row != 2) {
                assert_eq!(results.losses[row].to_bits(), reference.losses[row].to_bits());
                assert_eq!(
                    results.norm_bounds[row].to_bits(),
                    reference.norm_bounds[row].to_bits()
                );
            }
        }
    }
}
