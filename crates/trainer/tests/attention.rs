//! Attention: shapes that do not fit never reach libtorch, dropout is drawn for each record, and one record's mask or
//! values leave the others as they are.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use bastionai_graph::dtype::DType;
use bastionai_trainer::selftest::self_test;
use bastionai_trainer::{Engine, EngineError};
use support::models::attention::{attention_of, self_attention};
use support::*;
use tch::{Kind, Tensor};

fn engine(shapes: [&[u64]; 4], dropout: f64) -> Result<Engine, EngineError> {
    set_up();
    let (graph, parameters) = attention_of(shapes, dropout);
    Engine::new(graph, &parameters, &[], settings(8, 1.0))
}

#[test]
fn attention_whose_shapes_do_not_fit_is_refused_before_it_runs() {
    // libtorch's flash kernel reads past the keys' mask when values are longer than keys.
    let refused: [[&[u64]; 4]; 7] = [
        [&[2, 4, 3], &[2, 5, 3], &[2, 500, 3], &[]],
        [&[2, 4, 3], &[2, 5, 7], &[2, 5, 3], &[]],
        [&[2, 4, 3], &[3, 5, 3], &[3, 5, 3], &[]],
        [&[2, 4, 3], &[5, 3], &[5, 3], &[]],
        [&[2, 4, 3], &[2, 5, 3], &[2, 5, 3], &[2, 4, 6]],
        [&[2, 4, 3], &[2, 5, 3], &[2, 5, 3], &[1, 5, 5]],
        [&[2, 4, 3], &[2, 5, 3], &[2, 5, 3], &[1, 2, 4, 5]],
    ];
    for shapes in refused {
        let error = engine(shapes, 0.0).err().unwrap();
        assert!(
            matches!(&error, EngineError::Unsupported { node, .. } if node.starts_with("scaled_dot_product_attention")),
            "{shapes:?}: {error}"
        );
    }
    engine([&[2, 4, 3], &[2, 5, 3], &[2, 5, 6], &[1, 4, 5]], 0.0).unwrap();
}

#[test]
fn the_start_up_test_passes_with_and_without_dropped_weights() {
    let shapes: [&[u64]; 4] = [&[2, 4, 3], &[2, 5, 3], &[2, 5, 3], &[1, 1, 5]];
    for dropout in [0.0, 0.3] {
        self_test(&mut engine(shapes, dropout).unwrap()).unwrap();
    }
}

#[test]
fn dropped_weights_are_drawn_anew_for_every_record_and_every_batch() {
    let shapes: [&[u64]; 4] = [&[1, 4, 3], &[1, 5, 3], &[1, 5, 3], &[]];
    let engine = engine(shapes, 0.5).unwrap();
    let same_row = |shape: &[i64]| rand(Kind::Float, &[1, 1, shape[0], shape[1]]).repeat([8, 1, 1, 1]);
    let mask = Tensor::zeros([8], (Kind::Float, tch::Device::Cpu));
    let inputs = [same_row(&[4, 3]), same_row(&[5, 3]), same_row(&[5, 3]), mask];
    let losses = || engine.clipped_sums(&full(&engine, &inputs)).unwrap().1.losses;
    let (first, second) = (losses(), losses());
    assert!(
        (1..8).any(|row| first[row] != first[0]),
        "equal rows drew the same weights: {first:?}"
    );
    assert_ne!(first, second);
}

#[test]
fn a_record_whose_keys_are_all_masked_changes_no_other() {
    // As the start-up test beside it does, which runs at the same time: rows round alike only at one number of threads.
    tch::set_num_threads(1);
    let model = self_attention(DType::F32, 8);
    let engine = model.engine(settings(8, 1.0));
    let (_, reference) = engine.clipped_sums(&full(&engine, &model.inputs)).unwrap();
    let inputs = [with_row(&model.inputs[0], 2, -9.0)];
    let (sums, results) = engine.clipped_sums(&full(&engine, &inputs)).unwrap();
    assert!(joined(&sums).iter().all(|sum| sum.is_finite()));
    for row in (0..8).filter(|row| *row != 2) {
        assert_eq!(results.losses[row].to_bits(), reference.losses[row].to_bits());
        assert_eq!(
            results.norm_bounds[row].to_bits(),
            reference.norm_bounds[row].to_bits()
        );
    }
}
