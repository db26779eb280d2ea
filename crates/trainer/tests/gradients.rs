//! Per-sample gradients against batch-of-one autograd, and clipped sums against their definition.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use bastionai_graph::dtype::DType;
use support::models::{self, Model};
use support::*;
use tch::{Kind, Tensor};

const BATCH: i64 = 7;

fn largest_difference(left: &Tensor, right: &Tensor) -> f64 {
    f64::try_from(
        (left.to_kind(Kind::Double) - right.to_kind(Kind::Double))
            .abs()
            .max(),
    )
    .unwrap()
}

/// Per-sample gradients of each trainable parameter by running every record alone.
fn alone(model: &Model) -> Vec<Tensor> {
    let rows: Vec<Vec<Tensor>> = (0..BATCH).map(|row| model.alone(row)).collect();
    (0..rows[0].len())
        .map(|parameter| Tensor::stack(&rows.iter().map(|row| &row[parameter]).collect::<Vec<_>>(), 0))
        .collect()
}

#[test]
fn per_sample_gradients_equal_autograd_on_each_record_alone() {
    for model in models::all(DType::F64, BATCH) {
        let engine = model.engine(settings(BATCH as u32, 1.0));
        let batched = engine
            .per_sample_gradients(&full(&engine, &model.inputs))
            .unwrap();
        let expected = alone(&model);
        assert_eq!(batched.len(), expected.len(), "{}", model.name);
        for (batched, expected) in batched.iter().zip(&expected) {
            assert_eq!(batched.size(), expected.size(), "{}", model.name);
            let largest = f64::try_from(expected.abs().max()).unwrap();
            assert!(largest > 1e-6, "{}: a test of zeros", model.name);
            let tolerance = 1e-11 * largest.max(1.0);
            assert!(
                largest_difference(batched, expected) < tolerance,
                "{}",
                model.name
            );
        }
    }
}

#[test]
fn sums_take_no_memory_before_the_first_micro_batch_and_the_second_is_added_to_it_exactly() {
    for dtype in [DType::F64, DType::F32] {
        for model in models::all(dtype, BATCH) {
            let engine = model.engine(settings(BATCH as u32, 0.5));
            let some: Vec<bool> = (0..BATCH).map(|row| row % 3 != 1).collect();
            let batches = [
                full(&engine, &model.inputs),
                present(&engine, &model.inputs, &some),
            ];
            let mut both = engine.zero_sums();
            assert!(both.0.iter().all(|sums| sums.capacity() == 0), "{}", model.name);
            let mut apart = vec![0; engine.trainable().iter().map(|tensor| tensor.numel()).sum()];
            for batch in &batches {
                engine.add_clipped(batch, &mut both).unwrap();
                let mut one = engine.zero_sums();
                engine.add_clipped(batch, &mut one).unwrap();
                let one = one.0.concat();
                assert!(
                    one.iter().any(|&units| units != 0),
                    "{}: a test of zeros",
                    model.name
                );
                apart.iter_mut().zip(&one).for_each(|(sum, units)| *sum += units);
            }
            assert_eq!(both.0.concat(), apart, "{} {dtype:?}", model.name);
        }
    }
}

#[test]
fn clipped_sums_are_the_sums_of_clipped_gradients() {
    for dtype in [DType::F64, DType::F32] {
        for model in models::all(dtype, BATCH) {
            for max_grad_norm in [0.05, 1.0, 1e3] {
                let engine = model.engine(settings(BATCH as u32, max_grad_norm));
                let (sums, results) = engine.clipped_sums(&full(&engine, &model.inputs)).unwrap();
                let gradients: Vec<Tensor> = alone(&model)
                    .iter()
                    .map(|each| each.flatten(1, -1).to_kind(Kind::Double))
                    .collect();
                let all = Tensor::cat(&gradients, 1);
                let norms = all.norm_scalaropt_dim(2, [1i64], true);
                let factors = (max_grad_norm / &norms).clamp_max(1.0);
                let expected =
                    Vec::<f64>::try_from((all * factors).sum_dim_intlist(0, false, Kind::Double)).unwrap();
                let tolerance = max_grad_norm * if dtype == DType::F64 { 1e-6 } else { 1e-4 };
                let difference = distance(&joined(&sums), &expected);
                assert!(
                    difference < tolerance,
                    "{} {dtype:?} {max_grad_norm}: {difference}",
                    model.name
                );
                let norms = Vec::<f64>::try_from(norms.flatten(0, -1)).unwrap();
                for (bound, norm) in results.norm_bounds.iter().zip(norms) {
                    assert!(
                        *bound >= norm * (1.0 - 1e-5) && *bound <= norm * 1.001 + 1e-6,
                        "{}: {bound} for {norm}",
                        model.name
                    );
                }
            }
        }
    }
}

/// Opacus' per-layer clipping with C/√K for each parameter, and AUTO-S, written out from autograd on each record alone.
#[test]
fn clipped_sums_per_layer_and_automatic_are_those_of_their_formulas() {
    for dtype in [DType::F64, DType::F32] {
        for model in models::all(dtype, BATCH) {
            for max_grad_norm in [0.05, 1.0, 1e3] {
                let gradients: Vec<Tensor> = alone(&model)
                    .iter()
                    .map(|each| each.flatten(1, -1).to_kind(Kind::Double))
                    .collect();
                let norm = |each: &Tensor| each.norm_scalaropt_dim(2, [1i64], true);
                let share = max_grad_norm / (gradients.len() as f64).sqrt();
                let per_layer: Vec<Tensor> = gradients
                    .iter()
                    .map(|each| each * (share / norm(each)).clamp_max(1.0))
                    .collect();
                let all = Tensor::cat(&gradients, 1);
                let automatic = &all * (max_grad_norm / (norm(&all) + 0.01));
                for (clipping, expected) in [
                    (Clipping::PerLayer, Tensor::cat(&per_layer, 1)),
                    (Clipping::Automatic, automatic),
                ] {
                    let engine = model.engine(settings_clipping(BATCH as u32, max_grad_norm, clipping));
                    let (sums, _) = engine.clipped_sums(&full(&engine, &model.inputs)).unwrap();
                    let expected =
                        Vec::<f64>::try_from(expected.sum_dim_intlist(0, false, Kind::Double)).unwrap();
                    // A layer's gradient that nearly cancels is scaled up to its share, its f32 rounding with it.
                    let tolerance = max_grad_norm * if dtype == DType::F64 { 1e-6 } else { 1e-3 };
                    let difference = distance(&joined(&sums), &expected);
                    assert!(
                        difference < tolerance,
                        "{} {dtype:?} {clipping:?} {max_grad_norm}: {difference}",
                        model.name
                    );
                }
            }
        }
    }
}

/// What does not fit in memory is computed twice; the sum is the same.
#[test]
fn gradients_that_are_not_kept_give_the_same_sums() {
    for dtype in [DType::F64, DType::F32] {
        for model in models::all(dtype, BATCH) {
            let mut engine = model.engine(settings(BATCH as u32, 0.5));
            let kept = engine.clipped_sums(&full(&engine, &model.inputs)).unwrap();
            engine.keep_gradients(0).unwrap();
            let again = engine.clipped_sums(&full(&engine, &model.inputs)).unwrap();
            let difference = distance(&joined(&kept.0), &joined(&again.0));
            let tolerance = if dtype == DType::F64 { 1e-8 } else { 1e-5 };
            assert!(difference < tolerance, "{} {dtype:?}: {difference}", model.name);
        }
    }
}

#[test]
fn losses_equal_plain_losses() {
    for model in models::all(DType::F32, BATCH) {
        let engine = model.engine(settings(BATCH as u32, 1.0));
        let (_, results) = engine.clipped_sums(&full(&engine, &model.inputs)).unwrap();
        let expected =
            Vec::<f64>::try_from((model.reference)(&model.parameters, &model.inputs).to_kind(Kind::Double))
                .unwrap();
        assert!(
            distance(&results.losses, &expected) < 1e-5 * norm(&expected),
            "{}",
            model.name
        );
    }
}

#[test]
fn a_parameter_whose_uses_cancel_has_a_small_norm_and_one_whose_uses_add_a_large_one() {
    // The cross terms of a tie: skipping them is fastDP's known error.
    let model = models::tied(DType::F64, BATCH);
    let engine = model.engine(settings(BATCH as u32, 1.0));
    let (_, results) = engine.clipped_sums(&full(&engine, &model.inputs)).unwrap();
    for (row, bound) in results.norm_bounds.iter().enumerate() {
        let norm = f64::try_from(model.alone(row as i64)[0].norm()).unwrap();
        assert!((bound - norm).abs() < 1e-6 * norm.max(1.0), "{bound} for {norm}");
    }
}
