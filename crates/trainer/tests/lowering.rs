//! Products in bfloat16 change speed and rounding, never what one record may do to the sum.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use bastionai_graph::dtype::DType;
use bastionai_trainer::{Engine, Settings};
use support::models::{self, Model};
use support::*;
use tch::{Kind, Tensor};

const BATCH: i64 = 8;

fn lowered(model: &Model, max_grad_norm: f64, clipping: Clipping) -> Engine {
    model.engine(Settings {
        compute: Compute::Bfloat16,
        ..settings_clipping(BATCH as u32, max_grad_norm, clipping)
    })
}

#[test]
fn removing_any_record_moves_a_lowered_sum_by_at_most_the_charged_sensitivity() {
    for (position, model) in models::all(DType::F32, BATCH).into_iter().enumerate() {
        // Every clipping has its test in float32; here each model has one of them.
        let clipping = CLIPPINGS[position % CLIPPINGS.len()];
        let engine = lowered(&model, 0.5, clipping);
        assert_eq!(
            engine.l2_sensitivity(),
            model
                .engine(settings_clipping(BATCH as u32, 0.5, clipping))
                .l2_sensitivity(),
            "{}: rounding of products is no error of the sum",
            model.name
        );
        for value in [3e38, f64::NAN] {
            let inputs: Vec<Tensor> = model
                .inputs
                .iter()
                .map(|input| match input.kind() {
                    Kind::Int64 => input.copy(),
                    _ => with_row(input, 5, value),
                })
                .collect();
            let sum = |without: Option<i64>| {
                let mask: Vec<bool> = (0..BATCH).map(|row| Some(row) != without).collect();
                joined(&engine.clipped_sums(&present(&engine, &inputs, &mask)).unwrap().0)
            };
            let moved = distance(&sum(None), &sum(Some(5)));
            assert!(
                moved <= engine.l2_sensitivity(),
                "{} {value}: {moved}",
                model.name
            );
        }
    }
}

#[test]
fn what_is_summed_is_clipped_from_the_gradients_as_they_were_computed() {
    for model in models::all(DType::F32, BATCH) {
        let engine = lowered(&model, 0.05, Clipping::Flat);
        let batch = full(&engine, &model.inputs);
        let rows = |each: &Tensor| each.flatten(1, -1);
        let gradients: Vec<Tensor> = engine
            .per_sample_gradients(&batch)
            .unwrap()
            .iter()
            .map(rows)
            .collect();
        let all = Tensor::cat(&gradients, 1);
        let norms = all.norm_scalaropt_dim(2, [1i64], true);
        let factors = (0.05f64 / &norms).clamp_max(1.0);
        let expected = Vec::<f64>::try_from((all * factors).sum_dim_intlist(0, false, Kind::Double)).unwrap();
        let difference = distance(&joined(&engine.clipped_sums(&batch).unwrap().0), &expected);
        assert!(difference < 0.05 * 1e-4, "{}: {difference}", model.name);
    }
}

#[test]
fn losses_are_those_of_float32_rounded() {
    let mut rounded = 0;
    for model in models::all(DType::F32, BATCH) {
        let losses = |engine: &Engine| {
            let batch = full(engine, &model.inputs);
            engine.clipped_sums(&batch).unwrap().1.losses
        };
        let exact = losses(&model.engine(settings(BATCH as u32, 1.0)));
        let lowered = losses(&lowered(&model, 1.0, Clipping::Flat));
        let apart = distance(&exact, &lowered) / norm(&exact);
        assert!(apart < 0.05, "{}: {apart}", model.name);
        rounded += usize::from(apart > 1e-6);
    }
    assert!(
        rounded > 5,
        "only {rounded} models have products that were lowered"
    );
}

#[test]
fn a_model_in_float64_stays_in_it() {
    let model = models::classifier(DType::F64, BATCH);
    let sums = |engine: &Engine| engine.clipped_sums(&full(engine, &model.inputs)).unwrap().0;
    let plain = model.engine(settings(BATCH as u32, 1.0));
    assert_eq!(sums(&plain), sums(&lowered(&model, 1.0, Clipping::Flat)));
}
