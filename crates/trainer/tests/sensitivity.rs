//! One record more or less moves the sum by at most the charged sensitivity, whatever the record holds.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use bastionai_graph::dtype::DType;
use bastionai_graph::typed::{Argument, Tap};
use support::hostile::{HOSTILE, with_hostile_row};
use support::models::{self, Model};
use support::*;
use tch::Tensor;

const BATCH: i64 = 16;
const MAX_GRAD_NORM: f64 = 0.5;

/// Every model under every clipping.
fn models_and_clippings() -> impl Iterator<Item = (Model, Clipping)> {
    CLIPPINGS.into_iter().flat_map(|clipping| {
        models::all(DType::F32, BATCH)
            .into_iter()
            .map(move |model| (model, clipping))
    })
}

fn sum_without(engine: &bastionai_trainer::Engine, inputs: &[Tensor], row: Option<i64>) -> Vec<f64> {
    let mask: Vec<bool> = (0..BATCH).map(|each| Some(each) != row).collect();
    joined(&engine.clipped_sums(&present(engine, inputs, &mask)).unwrap().0)
}

#[test]
fn removing_any_record_moves_the_sum_by_at_most_the_charged_sensitivity() {
    for (model, clipping) in models_and_clippings() {
        let engine = model.engine(settings_clipping(BATCH as u32, MAX_GRAD_NORM, clipping));
        let sensitivity = engine.l2_sensitivity();
        assert!(
            sensitivity > MAX_GRAD_NORM && sensitivity < 1.02 * MAX_GRAD_NORM,
            "{}: {sensitivity}",
            model.name
        );
        for value in HOSTILE.into_iter().chain([1e3, -1e6]) {
            let row = 5;
            let inputs = with_hostile_row(&model, row, value);
            let whole = sum_without(&engine, &inputs, None);
            assert!(whole.iter().all(|sum| sum.is_finite()), "{} {value}", model.name);
            for removed in [row, 0, BATCH - 1] {
                let moved = distance(&whole, &sum_without(&engine, &inputs, Some(removed)));
                assert!(
                    moved <= sensitivity,
                    "{} {clipping:?} {value}: moved by {moved}",
                    model.name
                );
            }
        }
    }
}

#[test]
fn a_record_with_a_non_finite_gradient_counts_as_zero() {
    for (model, clipping) in models_and_clippings() {
        let engine = model.engine(settings_clipping(BATCH as u32, MAX_GRAD_NORM, clipping));
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let inputs = with_hostile_row(&model, 3, value);
            assert_eq!(
                sum_without(&engine, &inputs, None),
                sum_without(&engine, &inputs, Some(3)),
                "{}",
                model.name
            );
        }
    }
}

#[test]
fn the_bound_is_used_a_clipped_record_moves_the_sum_by_nearly_the_clipping_norm() {
    let model = models::classifier(DType::F32, BATCH);
    for clipping in CLIPPINGS {
        let engine = model.engine(settings_clipping(BATCH as u32, 1e-3, clipping));
        let all = sum_without(&engine, &model.inputs, None);
        // AUTO-S brings short gradients to less than C: what counts is the record that moves the sum most.
        let moved = (0..BATCH)
            .map(|record| distance(&all, &sum_without(&engine, &model.inputs, Some(record))))
            .fold(0.0, f64::max);
        assert!((moved - 1e-3).abs() < 3e-5, "{clipping:?}: {moved}");
    }
}

#[test]
fn an_empty_batch_adds_exactly_zero() {
    for model in models::all(DType::F32, BATCH) {
        let engine = model.engine(settings(BATCH as u32, MAX_GRAD_NORM));
        for value in HOSTILE {
            let inputs = with_hostile_row(&model, 2, value);
            let (sums, results) = engine
                .clipped_sums(&present(&engine, &inputs, &[false; BATCH as usize]))
                .unwrap();
            assert!(joined(&sums).iter().all(|&sum| sum == 0.0), "{}", model.name);
            assert!(results.counted.iter().all(|&counted| !counted));
        }
    }
}

#[test]
fn two_cancelling_tokens_cannot_smuggle_a_large_gradient_past_the_clip() {
    // G1: x1 = x2 = a·u, g1 = b·v + δ·w, g2 = −b·v with a = b = 1e3. Ghost norm² in f32: 0; true norm a·δ = 100.
    for (delta, clipping) in [0.1, 10.0, 1e-3]
        .into_iter()
        .flat_map(|delta| CLIPPINGS.map(|clipping| (delta, clipping)))
    {
        let model = models::cancelling(&[1e3, 0.0, 1e3, 0.0], &[1e3, delta, -1e3, 0.0], BATCH);
        let engine = model.engine(settings_clipping(BATCH as u32, 1.0, clipping));
        let whole = sum_without(&engine, &model.inputs, None);
        let moved = distance(&whole, &sum_without(&engine, &model.inputs, Some(4)));
        assert!(
            moved <= engine.l2_sensitivity(),
            "δ = {delta} {clipping:?}: moved by {moved}"
        );
        let (_, results) = engine.clipped_sums(&full(&engine, &model.inputs)).unwrap();
        assert!(
            results.norm_bounds[0] >= 1e3 * f64::from(delta as f32) * (1.0 - 1e-9),
            "δ = {delta}"
        );
    }
}

#[test]
fn tokens_that_cancel_almost_fully_are_clipped_for_it() {
    // In f64 too there is an a where the norm is lost; κ then bounds what the contraction can get wrong.
    let model = models::cancelling(&[3e15, 0.0, 3e15, 0.0], &[3e15, 1e-3, -3e15, 0.0], BATCH);
    for clipping in CLIPPINGS {
        let engine = model.engine(settings_clipping(BATCH as u32, 1.0, clipping));
        let whole = sum_without(&engine, &model.inputs, None);
        let moved = distance(&whole, &sum_without(&engine, &model.inputs, Some(0)));
        assert!(moved <= engine.l2_sensitivity(), "{clipping:?}: moved by {moved}");
    }
}

#[test]
fn automatic_clipping_of_tiny_gradients_stays_finite_and_within_the_sensitivity() {
    // Factors above 1: gradients of about 1e-12 and 1e-30 are scaled up by C/γ_s = 100.
    for scale in [1e-6, 1e-15, 1e-25] {
        let model = models::cancelling(&[scale, 0.0, 0.0, scale], &[scale, 0.0, 0.0, 2.0 * scale], BATCH);
        let engine = model.engine(settings_clipping(BATCH as u32, 1.0, Clipping::Automatic));
        let whole = sum_without(&engine, &model.inputs, None);
        assert!(whole.iter().all(|sum| sum.is_finite()));
        let moved = distance(&whole, &sum_without(&engine, &model.inputs, Some(0)));
        assert!(moved <= engine.l2_sensitivity(), "{scale}: moved by {moved}");
    }
}

#[test]
fn an_index_out_of_range_fails_nothing_and_counts_as_zero() {
    // G4: an error for one record would tell whether the record is there.
    for model in [
        models::classifier(DType::F32, BATCH),
        models::flattened(DType::F32, BATCH),
    ] {
        let engine = model.engine(settings(BATCH as u32, MAX_GRAD_NORM));
        let sound = sum_without(&engine, &model.inputs, Some(6));
        for label in [99, -1, i64::MAX, i64::MIN] {
            let labels = model.inputs[1].copy();
            let _ = labels.get(6).fill_(label);
            let inputs = [model.inputs[0].shallow_clone(), labels];
            let (sums, results) = engine.clipped_sums(&full(&engine, &inputs)).unwrap();
            assert_eq!(joined(&sums), sound, "{} {label}", model.name);
            assert_eq!(results.counted.iter().filter(|&&counted| !counted).count(), 1);
        }
    }
}

#[test]
fn the_ignored_class_is_in_range() {
    let model = models::classifier(DType::F32, BATCH);
    let engine = model.engine(settings(BATCH as u32, MAX_GRAD_NORM));
    let labels = model.inputs[1].copy();
    let _ = labels.get(1).fill_(-100);
    let inputs = [model.inputs[0].shallow_clone(), labels];
    let (_, results) = engine.clipped_sums(&full(&engine, &inputs)).unwrap();
    assert!(results.counted[1]);
    assert_eq!(results.losses[1], 0.0);
}

#[test]
fn a_parameter_that_reaches_data_without_a_tap_is_refused() {
    let mut g = Builder::default();
    let x = g.input("x", DType::F32, &[3]);
    let w = g.parameter("w", DType::F32, &[3], true);
    let arguments = [("self", Argument::Value(x)), ("other", Argument::Value(w))];
    let h = g.node("mul.Tensor", &arguments, DType::F32, &[b(1), n(3)]);
    let dim = ("dim", Argument::Ints(vec![1]));
    let loss = g.node(
        "sum.dim_IntList",
        &[("self", Argument::Value(h)), dim],
        DType::F32,
        &[b(1)],
    );
    let graph = g.finish(loss);
    set_up();
    let error = bastionai_trainer::Engine::new(graph, &[vec![0; 12]], &[], settings(4, 1.0))
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("mul_0") && error.to_string().contains("G2"),
        "{error}"
    );
}

#[test]
fn a_scaled_parameter_is_no_view_of_it() {
    // G2: linear(x, 100·w) tapped at 100·w would have a sensitivity of 100·C in w.
    let mut g = Builder::default();
    let x = g.input("x", DType::F32, &[3]);
    let w = g.parameter("w", DType::F32, &[2, 3], true);
    let hundred = (
        "other",
        Argument::NumberAsTensor(bastionai_graph::typed::Number::Int(100)),
    );
    let scaled = g.node(
        "mul.Tensor",
        &[("self", Argument::Value(w)), hundred],
        DType::F32,
        &[n(2), n(3)],
    );
    let arguments = [("input", Argument::Value(x)), ("weight", Argument::Value(scaled))];
    let h = g.node("linear", &arguments, DType::F32, &[b(1), n(2)]);
    let weight = bastionai_graph::typed::TappedParameter {
        value: scaled,
        ..g.tapped(w)
    };
    g.tap(Tap::Linear {
        input: x,
        weight: Some(weight),
        bias: None,
    });
    let dim = ("dim", Argument::Ints(vec![1]));
    let loss = g.node(
        "sum.dim_IntList",
        &[("self", Argument::Value(h)), dim],
        DType::F32,
        &[b(1)],
    );
    set_up();
    let error = bastionai_trainer::Engine::new(g.finish(loss), &[vec![0; 24]], &[], settings(4, 1.0))
        .err()
        .unwrap();
    assert!(error.to_string().contains("not a view"), "{error}");
}

#[test]
fn a_scaled_weight_is_clipped_in_its_own_space() {
    // G2's attack. The gradient in 100·w of these rows is at most √2·|x|, in w a hundred times that.
    let model = models::functions::scaled(DType::F64, BATCH);
    let engine = model.engine(settings(BATCH as u32, 1.0));
    let (_, results) = engine.clipped_sums(&full(&engine, &model.inputs)).unwrap();
    for (row, bound) in results.norm_bounds.iter().enumerate() {
        let norm = f64::try_from(model.alone(row as i64)[0].norm()).unwrap();
        assert!((bound - norm).abs() < 1e-9 * norm, "{bound} for {norm}");
    }
    assert!(
        results.norm_bounds.iter().any(|norm| *norm > 10.0),
        "nothing to clip"
    );
    let whole = sum_without(&engine, &model.inputs, None);
    for row in 0..BATCH {
        let moved = distance(&whole, &sum_without(&engine, &model.inputs, Some(row)));
        assert!(moved <= engine.l2_sensitivity(), "row {row}: moved by {moved}");
    }
}

/// The graph of `scaled` with another account of where its weight comes from.
fn scaled_with(
    change: impl FnOnce(&mut Builder, [bastionai_graph::typed::ValueId; 3]) -> bastionai_graph::typed::ValueId,
) -> String {
    let mut g = Builder::default();
    let x = g.input("x", DType::F32, &[3]);
    let w = g.parameter("w", DType::F32, &[2, 3], true);
    let other = g.parameter("other", DType::F32, &[2, 3], true);
    let weight = change(&mut g, [x, w, other]);
    let arguments = [("input", Argument::Value(x)), ("weight", Argument::Value(weight))];
    g.node("linear", &arguments, DType::F32, &[b(1), n(2)]);
    g.tap(Tap::Linear {
        input: x,
        weight: Some(g.function(weight, &[w])),
        bias: None,
    });
    let h = g.linear(x, other, None, &[b(1), n(2)]);
    let dim = ("dim", Argument::Ints(vec![1]));
    let loss = g.node(
        "sum.dim_IntList",
        &[("self", Argument::Value(h)), dim],
        DType::F32,
        &[b(1)],
    );
    set_up();
    let parameters = [vec![0; 24], vec![0; 24]];
    let error = bastionai_trainer::Engine::new(g.finish(loss), &parameters, &[], settings(4, 1.0));
    error.err().unwrap().to_string()
}

#[test]
fn a_function_of_more_than_it_names_is_refused() {
    let pair = |left, right| [("self", Argument::Value(left)), ("other", Argument::Value(right))];
    let shape = [n(2), n(3)];
    let error = scaled_with(|g, [_, w, other]| g.node("add.Tensor", &pair(w, other), DType::F32, &shape));
    assert!(error.contains("a function of the parameters it names"), "{error}");
    let error = scaled_with(|g, [_, w, _]| {
        let drawn = [
            ("input", Argument::Value(w)),
            ("p", Argument::Float(bastionai_graph::typed::FloatBits::new(0.5))),
            ("train", Argument::Bool(true)),
        ];
        g.node("dropout", &drawn, DType::F32, &shape)
    });
    assert!(error.contains("a function of the parameters it names"), "{error}");
}

/// The checker refuses it as well; here the kernel would write beyond its buffer.
#[test]
fn a_pool_with_a_window_wholly_in_the_padding_is_refused() {
    let mut g = Builder::default();
    let x = g.input("x", DType::F32, &[1, 1, 4]);
    let ints = |values: [i64; 2]| Argument::Ints(values.to_vec());
    let arguments = [
        ("self", Argument::Value(x)),
        ("kernel_size", ints([2, 1])),
        ("stride", ints([1, 1])),
        ("padding", ints([1, 0])),
        ("dilation", ints([2, 1])),
        ("ceil_mode", Argument::Bool(false)),
    ];
    let shape = [b(1), n(1), n(1), n(4)];
    let pooled = g.node("max_pool2d.default", &arguments, DType::F32, &shape);
    let over = ("dim", Argument::Ints(vec![1, 2, 3]));
    let loss = g.node(
        "sum.dim_IntList",
        &[("self", Argument::Value(pooled)), over],
        DType::F32,
        &[b(1)],
    );
    set_up();
    let engine = bastionai_trainer::Engine::new(g.finish(loss), &[], &[], settings(4, 1.0));
    let error = engine.err().unwrap().to_string();
    assert!(error.contains("wholly in the padding"), "{error}");
}
