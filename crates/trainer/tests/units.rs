//! All records of a unit are clipped as one, and come and go as one.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use bastionai_graph::dtype::DType;
use bastionai_trainer::engine::Settings;
use bastionai_trainer::selftest;
use support::models::{self, Model};
use support::*;
use tch::{Kind, Tensor};

/// Records of a unit.
const LENGTH: i64 = 3;
const UNITS: i64 = 5;
const BATCH: i64 = UNITS * LENGTH;
const MAX_GRAD_NORM: f64 = 0.5;

/// Whole units, one of two records, one of one, one of none.
const PRESENT: [bool; BATCH as usize] = [
    true, true, true, true, true, false, true, false, false, false, false, false, true, true, true,
];

fn of_units(max_grad_norm: f64, clipping: Clipping) -> Settings {
    Settings {
        records_per_unit: LENGTH as u32,
        ..settings_clipping(BATCH as u32, max_grad_norm, clipping)
    }
}

fn rows(unit: i64) -> std::ops::Range<i64> {
    unit * LENGTH..(unit + 1) * LENGTH
}

/// The gradient of each unit's summed loss, by autograd on its records alone: `[UNITS, ..]` for each parameter.
fn alone(model: &Model, present: &[bool]) -> Vec<Tensor> {
    let of_unit = |unit: i64| -> Vec<Tensor> {
        let records = rows(unit)
            .filter(|row| present[*row as usize])
            .map(|row| model.alone(row));
        let sums =
            records.reduce(|sum, next| sum.iter().zip(&next).map(|(one, other)| one + other).collect());
        sums.unwrap_or_else(|| model.alone(0).iter().map(Tensor::zeros_like).collect())
    };
    let units: Vec<Vec<Tensor>> = (0..UNITS).map(of_unit).collect();
    (0..units[0].len())
        .map(|parameter| Tensor::stack(&units.iter().map(|unit| &unit[parameter]).collect::<Vec<_>>(), 0))
        .collect()
}

#[test]
fn a_units_gradient_is_that_of_its_summed_loss_by_autograd() {
    for model in models::all(DType::F64, BATCH) {
        let engine = model.engine(of_units(1.0, Clipping::Flat));
        for mask in [&[true; BATCH as usize], &PRESENT] {
            let batch = present(&engine, &model.inputs, mask);
            let found = engine.per_sample_gradients(&batch).unwrap();
            for (found, expected) in found.iter().zip(alone(&model, mask)) {
                let expected = expected.to_kind(Kind::Double);
                assert_eq!(found.size(), expected.size(), "{}", model.name);
                let largest = f64::try_from(expected.abs().max()).unwrap();
                let difference = f64::try_from((found - &expected).abs().max()).unwrap();
                assert!(
                    largest > 1e-6 && difference < 1e-11 * largest.max(1.0),
                    "{}: {difference}",
                    model.name
                );
            }
        }
    }
}

#[test]
fn clipped_sums_are_those_of_units_clipped_as_one() {
    for dtype in [DType::F64, DType::F32] {
        for model in models::all(dtype, BATCH) {
            let gradients: Vec<Tensor> = alone(&model, &PRESENT)
                .iter()
                .map(|each| each.flatten(1, -1).to_kind(Kind::Double))
                .collect();
            let norm = |each: &Tensor| each.norm_scalaropt_dim(2, [1i64], true);
            let all = Tensor::cat(&gradients, 1);
            for max_grad_norm in [0.05, 1.0, 1e3] {
                let share = max_grad_norm / (gradients.len() as f64).sqrt();
                let tiny = 1e-300;
                let flat = &all * (max_grad_norm / (norm(&all) + tiny)).clamp_max(1.0);
                let layers = gradients
                    .iter()
                    .map(|each| each * (share / (norm(each) + tiny)).clamp_max(1.0));
                let per_layer = Tensor::cat(&layers.collect::<Vec<_>>(), 1);
                let automatic = &all * (max_grad_norm / (norm(&all) + 0.01));
                let cases = [
                    (Clipping::Flat, flat),
                    (Clipping::PerLayer, per_layer),
                    (Clipping::Automatic, automatic),
                ];
                for (clipping, expected) in cases {
                    let engine = model.engine(of_units(max_grad_norm, clipping));
                    let batch = present(&engine, &model.inputs, &PRESENT);
                    let (sums, results) = engine.clipped_sums(&batch).unwrap();
                    let expected =
                        Vec::<f64>::try_from(expected.sum_dim_intlist(0, false, Kind::Double)).unwrap();
                    let tolerance = max_grad_norm * if dtype == DType::F64 { 1e-6 } else { 1e-4 };
                    let difference = distance(&joined(&sums), &expected);
                    assert!(
                        difference < tolerance,
                        "{} {dtype:?} {clipping:?} {max_grad_norm}: {difference}",
                        model.name
                    );
                    assert_eq!(results.counted, [true, true, true, false, true], "{}", model.name);
                    assert_eq!(results.present, PRESENT);
                    let norms = Vec::<f64>::try_from(norm(&all).flatten(0, -1)).unwrap();
                    for (bound, norm) in results.norm_bounds.iter().zip(norms) {
                        assert!(
                            *bound >= norm * (1.0 - 1e-5),
                            "{}: {bound} for {norm}",
                            model.name
                        );
                    }
                }
            }
        }
    }
}

fn sum_of(engine: &bastionai_trainer::Engine, inputs: &[Tensor], mask: &[bool]) -> Vec<f64> {
    joined(&engine.clipped_sums(&present(engine, inputs, mask)).unwrap().0)
}

fn without(unit: i64) -> Vec<bool> {
    let own = rows(unit);
    (0..BATCH)
        .map(|row| PRESENT[row as usize] && !own.contains(&row))
        .collect()
}

fn hostile(model: &Model, row: i64, value: f64) -> Vec<Tensor> {
    let replaced = |input: &Tensor| match input.kind() {
        Kind::Int64 => input.copy(),
        _ => with_row(input, row, value),
    };
    model.inputs.iter().map(replaced).collect()
}

#[test]
fn removing_any_unit_moves_the_sum_by_at_most_the_charged_sensitivity() {
    for model in models::all(DType::F32, BATCH) {
        for clipping in CLIPPINGS {
            let engine = model.engine(of_units(MAX_GRAD_NORM, clipping));
            let sensitivity = engine.l2_sensitivity();
            assert!(
                sensitivity > MAX_GRAD_NORM && sensitivity < 1.02 * MAX_GRAD_NORM,
                "{}: {sensitivity}",
                model.name
            );
            for value in [f64::NAN, f64::INFINITY, 3e38, -3e38, 1e19, 1e-45, 1e3, -1e6] {
                // In the second unit, beside a record and padding.
                let inputs = hostile(&model, 4, value);
                let whole = sum_of(&engine, &inputs, &PRESENT);
                assert!(whole.iter().all(|sum| sum.is_finite()), "{} {value}", model.name);
                for unit in [0, 1, 2, 4] {
                    let moved = distance(&whole, &sum_of(&engine, &inputs, &without(unit)));
                    assert!(
                        moved <= sensitivity,
                        "{} {clipping:?} {value}: moved by {moved}",
                        model.name
                    );
                }
            }
        }
    }
}

#[test]
fn the_bound_is_used_a_clipped_unit_moves_the_sum_by_nearly_the_clipping_norm_and_no_more() {
    let model = models::classifier(DType::F32, BATCH);
    let engine = model.engine(of_units(1e-3, Clipping::Flat));
    let all = sum_of(&engine, &model.inputs, &PRESENT);
    for unit in [0, 1, 2, 4] {
        let moved = distance(&all, &sum_of(&engine, &model.inputs, &without(unit)));
        assert!((moved - 1e-3).abs() < 3e-5, "unit {unit}: {moved}");
    }
}

/// Rule G3: what pads a unit is selected out before anything is added up, whatever it is.
#[test]
fn what_stands_behind_a_units_records_adds_nothing_bit_for_bit() {
    for model in models::all(DType::F32, BATCH) {
        for clipping in CLIPPINGS {
            let engine = model.engine(of_units(MAX_GRAD_NORM, clipping));
            let expected = sum_of(&engine, &model.inputs, &PRESENT);
            for value in [f64::NAN, f64::INFINITY, -3e38, 1e19, 7.0] {
                let mut inputs = hostile(&model, 5, value);
                inputs = inputs
                    .iter()
                    .map(|input| match input.kind() {
                        Kind::Int64 => input.copy(),
                        _ => with_row(input, 7, value),
                    })
                    .collect();
                assert_eq!(
                    sum_of(&engine, &inputs, &PRESENT),
                    expected,
                    "{} {value}",
                    model.name
                );
            }
        }
    }
}

#[test]
fn a_record_that_is_not_finite_takes_its_unit_with_it() {
    for model in models::all(DType::F32, BATCH) {
        let engine = model.engine(of_units(MAX_GRAD_NORM, Clipping::Flat));
        let has_floats = model.inputs.iter().any(|input| input.kind() != Kind::Int64);
        if !has_floats {
            continue;
        }
        for value in [f64::NAN, f64::INFINITY] {
            let inputs = hostile(&model, 3, value);
            let (sums, results) = engine.clipped_sums(&present(&engine, &inputs, &PRESENT)).unwrap();
            // A graph may make a number of it.
            if !results.counted[1] {
                assert_eq!(
                    joined(&sums),
                    sum_of(&engine, &inputs, &without(1)),
                    "{}",
                    model.name
                );
            }
        }
    }
    let model = models::classifier(DType::F32, BATCH);
    let engine = model.engine(of_units(MAX_GRAD_NORM, Clipping::Flat));
    let inputs = hostile(&model, 3, f64::NAN);
    let (_, results) = engine.clipped_sums(&present(&engine, &inputs, &PRESENT)).unwrap();
    assert_eq!(results.counted, [true, false, true, false, true]);
}

#[test]
fn a_record_out_of_range_is_left_out_of_its_unit_alone() {
    for model in [
        models::classifier(DType::F32, BATCH),
        models::flattened(DType::F32, BATCH),
    ] {
        let engine = model.engine(of_units(MAX_GRAD_NORM, Clipping::Flat));
        let mut absent = PRESENT;
        absent[3] = false;
        let expected = sum_of(&engine, &model.inputs, &absent);
        for label in [99, -1, i64::MAX, i64::MIN] {
            let labels = model.inputs[1].copy();
            let _ = labels.get(3).fill_(label);
            let inputs = [model.inputs[0].shallow_clone(), labels];
            let (sums, results) = engine.clipped_sums(&present(&engine, &inputs, &PRESENT)).unwrap();
            assert_eq!(joined(&sums), expected, "{} {label}", model.name);
            assert!(results.counted[1] && !results.present[3]);
        }
    }
}

/// G1 over the records of a unit: each gradient is long, together they nearly cancel, and a norm in f32 sees nothing.
#[test]
fn records_of_a_unit_that_nearly_cancel_cannot_hide_what_is_left() {
    let model = models::classifier(DType::F32, BATCH);
    for scale in [1e3, 1e6] {
        // The same record twice with opposite labels: of two classes the gradients of the last layer cancel but for a part.
        let x = &model.inputs[0] * scale;
        let labels = model.inputs[1].copy();
        x.get(1).copy_(&x.get(0));
        x.get(2).copy_(&x.get(0));
        for (row, label) in [(0, 0), (1, 1), (2, 2)] {
            let _ = labels.get(row).fill_(label);
        }
        let inputs = [x, labels];
        let engine = model.engine(of_units(1.0, Clipping::Flat));
        let moved = distance(
            &sum_of(&engine, &inputs, &PRESENT),
            &sum_of(&engine, &inputs, &without(0)),
        );
        assert!(moved <= engine.l2_sensitivity(), "{scale}: moved by {moved}");
    }
}

#[test]
fn the_self_test_passes_on_units() {
    for model in models::all(DType::F32, BATCH) {
        let mut engine = model.engine(of_units(MAX_GRAD_NORM, Clipping::Flat));
        selftest::self_test(&mut engine).expect(model.name);
    }
}

/// Noise mode `hardened`, in integers without tolerance.
mod hardened {
    use super::*;
    use support::hostile::HOSTILE;

    /// C² in square units of the grid.
    const ALLOWANCE: u128 = 1 << 60;

    fn engine(model: &Model, max_grad_norm: f64, clipping: Clipping) -> bastionai_trainer::Engine {
        model.engine(Settings {
            noise_mode: NoiseMode::Hardened,
            ..of_units(max_grad_norm, clipping)
        })
    }

    fn integers(engine: &bastionai_trainer::Engine, inputs: &[Tensor], mask: &[bool]) -> Vec<i64> {
        let mut sums = engine.zero_sums();
        engine
            .add_clipped(&present(engine, inputs, mask), &mut sums)
            .unwrap();
        sums.0.concat()
    }

    fn squares(integers: impl IntoIterator<Item = i64>) -> u128 {
        integers
            .into_iter()
            .map(|units| u128::from(units.unsigned_abs()).pow(2))
            .sum()
    }

    fn only(unit: i64) -> Vec<bool> {
        let own = rows(unit);
        (0..BATCH)
            .map(|row| PRESENT[row as usize] && own.contains(&row))
            .collect()
    }

    #[test]
    fn no_unit_moves_the_integers_by_more_than_the_clipping_norm_whatever_its_records_hold() {
        for (position, model) in models::all(DType::F32, BATCH).into_iter().enumerate() {
            let engine = engine(&model, MAX_GRAD_NORM, CLIPPINGS[position % CLIPPINGS.len()]);
            assert_eq!(engine.l2_sensitivity(), MAX_GRAD_NORM, "C itself");
            for value in HOSTILE.into_iter().chain([1e3, -1e6]) {
                let inputs = hostile(&model, 4, value);
                let whole = integers(&engine, &inputs, &PRESENT);
                for unit in [0, 1, 4] {
                    let rest = integers(&engine, &inputs, &without(unit));
                    let moved = squares(whole.iter().zip(&rest).map(|(whole, rest)| whole - rest));
                    assert!(moved <= ALLOWANCE, "{} {value}: {moved}", model.name);
                }
            }
        }
    }

    #[test]
    fn a_unit_is_rounded_and_paid_for_as_one_and_units_add_up_exactly() {
        for (position, model) in models::all(DType::F32, BATCH).into_iter().enumerate() {
            let clipping = CLIPPINGS[position % CLIPPINGS.len()];
            let hardened = engine(&model, 0.05, clipping);
            let whole = integers(&hardened, &model.inputs, &PRESENT);
            let mut one_by_one = vec![0; whole.len()];
            for unit in 0..UNITS {
                let own = integers(&hardened, &model.inputs, &only(unit));
                assert!(squares(own.iter().copied()) <= ALLOWANCE);
                one_by_one.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
            }
            assert_eq!(one_by_one, whole, "{} {clipping:?}", model.name);
            let standard = model.engine(of_units(0.05, clipping));
            let (found, results) = hardened
                .clipped_sums(&present(&hardened, &model.inputs, &PRESENT))
                .unwrap();
            assert_eq!(results.counted, [true, true, true, false, true]);
            let apart = distance(&joined(&found), &sum_of(&standard, &model.inputs, &PRESENT));
            assert!(apart < 0.05 * 1e-4, "{} {clipping:?}: {apart}", model.name);
        }
    }

    #[test]
    fn the_bound_is_used_by_a_unit_of_any_number_of_records() {
        let model = models::classifier(DType::F32, BATCH);
        for clipping in [Clipping::Flat, Clipping::Automatic] {
            let engine = engine(&model, 1e-3, clipping);
            for unit in [0, 1, 2, 4] {
                let own = squares(integers(&engine, &model.inputs, &only(unit)));
                let share = own as f64 / ALLOWANCE as f64;
                assert!(share > 0.9 && share <= 1.0, "{clipping:?} {unit}: {share}");
            }
        }
    }
}

#[test]
fn a_batch_holds_whole_units() {
    let model = models::classifier(DType::F32, BATCH);
    set_up();
    for records_per_unit in [0, 2, 16] {
        let settings = Settings {
            records_per_unit,
            ..settings(BATCH as u32, 1.0)
        };
        let parameters: Vec<_> = model.parameters.iter().map(bytes_of).collect();
        let refused = bastionai_trainer::Engine::new(model.graph.clone(), &parameters, &[], settings)
            .err()
            .unwrap();
        assert!(refused.to_string().contains("whole units"), "{refused}");
    }
}
