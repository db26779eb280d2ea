//! The oracles of soundness.md on models of every tap: what happens to one record changes nothing of another, to the
//! bit, at a fixed physical batch size.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use bastionai_graph::dtype::DType;
use bastionai_trainer::selftest::self_test;
use bastionai_trainer::{Engine, EngineError};
use support::models;
use support::*;
use tch::{Kind, Tensor};

const BATCH: i64 = 16;

/// Loss bits and norm-bound bits of every record.
fn fingerprints(engine: &Engine, inputs: &[Tensor], mask: &[bool]) -> Vec<(u64, u64)> {
    let (_, results) = engine.clipped_sums(&present(engine, inputs, mask)).unwrap();
    results
        .losses
        .iter()
        .zip(&results.norm_bounds)
        .map(|(loss, norm)| (loss.to_bits(), norm.to_bits()))
        .collect()
}

fn gradients(engine: &Engine, inputs: &[Tensor]) -> Vec<Tensor> {
    engine.per_sample_gradients(&full(engine, inputs)).unwrap()
}

fn same_but(left: &[Tensor], right: &[Tensor], row: i64) -> bool {
    left.iter().zip(right).all(|(left, right)| {
        (0..BATCH)
            .filter(|&each| each != row)
            .all(|each| left.get(each).equal(&right.get(each)))
    })
}

fn perturbations(input: &Tensor, row: i64) -> Vec<Tensor> {
    let changed = |values: &[f64]| {
        values
            .iter()
            .map(|&value| with_row(input, row, value))
            .collect::<Vec<_>>()
    };
    match input.kind() {
        Kind::Int64 => changed(&[0.0, 1.0, 1e9, -1.0, -9.2e18]),
        _ => {
            let flipped = input.copy();
            flipped.get(row).copy_(&-input.get(row));
            let mut all = changed(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 3e38, 1e20, 1e-40, 0.0]);
            all.push(flipped);
            all
        }
    }
}

#[test]
fn perturbing_a_record_leaves_the_others_bit_for_bit() {
    let rounding = models::amplified_rounding(BATCH);
    for model in models::all(DType::F32, BATCH).into_iter().chain([rounding]) {
        let engine = model.engine(settings(BATCH as u32, 1.0));
        let mask = [true; BATCH as usize];
        let reference = fingerprints(&engine, &model.inputs, &mask);
        let reference_gradients = gradients(&engine, &model.inputs);
        for row in [0, 7, BATCH - 1] {
            for (position, input) in model.inputs.iter().enumerate() {
                for perturbed in perturbations(input, row) {
                    let mut inputs: Vec<Tensor> = model.inputs.iter().map(Tensor::shallow_clone).collect();
                    inputs[position] = perturbed;
                    let after = fingerprints(&engine, &inputs, &mask);
                    for each in (0..BATCH as usize).filter(|&each| each != row as usize) {
                        assert_eq!(
                            after[each], reference[each],
                            "{} row {each} after {row}",
                            model.name
                        );
                    }
                    assert!(
                        same_but(&gradients(&engine, &inputs), &reference_gradients, row),
                        "{}",
                        model.name
                    );
                }
            }
        }
    }
}

/// The inputs with all rows but those of `keep` turned into padding, at their places, as random placement does it.
fn padded(inputs: &[Tensor], keep: &[bool]) -> Vec<Tensor> {
    inputs
        .iter()
        .map(|input| {
            let padded = input.copy();
            for row in (0..BATCH).filter(|&row| !keep[row as usize]) {
                let _ = padded.get(row).zero_();
            }
            padded
        })
        .collect()
}

#[test]
fn removing_a_record_leaves_the_others_bit_for_bit() {
    for model in models::all(DType::F32, BATCH) {
        let engine = model.engine(settings(BATCH as u32, 1.0));
        let reference = fingerprints(&engine, &model.inputs, &[true; BATCH as usize]);
        for row in 0..BATCH as usize {
            let mut keep = [true; BATCH as usize];
            keep[row] = false;
            let after = fingerprints(&engine, &padded(&model.inputs, &keep), &keep);
            for each in (0..BATCH as usize).filter(|&each| each != row) {
                assert_eq!(after[each], reference[each], "{}", model.name);
            }
        }
    }
}

#[test]
fn a_record_alone_among_padding_has_the_same_bits() {
    for model in models::all(DType::F32, BATCH) {
        let engine = model.engine(settings(BATCH as u32, 1.0));
        let reference = fingerprints(&engine, &model.inputs, &[true; BATCH as usize]);
        for row in 0..BATCH as usize {
            let mut keep = [false; BATCH as usize];
            keep[row] = true;
            let alone = fingerprints(&engine, &padded(&model.inputs, &keep), &keep);
            assert_eq!(alone[row], reference[row], "{}", model.name);
        }
    }
}

/// To rounding only: MKL does not round every row of a product alike. Random places make that harmless
/// (`bastionai_trainer::sample`); any larger difference would be a dependence on the place.
#[test]
fn permuting_the_batch_permutes_the_results() {
    for model in models::all(DType::F64, BATCH) {
        let engine = model.engine(settings(BATCH as u32, 1.0));
        let (_, reference) = engine.clipped_sums(&full(&engine, &model.inputs)).unwrap();
        let order: Vec<i64> = (0..BATCH).map(|row| (row * 5 + 3) % BATCH).collect();
        let index = Tensor::from_slice(&order);
        let inputs: Vec<Tensor> = model
            .inputs
            .iter()
            .map(|input| input.index_select(0, &index))
            .collect();
        let (_, permuted) = engine.clipped_sums(&full(&engine, &inputs)).unwrap();
        for (position, &source) in order.iter().enumerate() {
            let both = [
                (permuted.losses[position], reference.losses[source as usize]),
                (
                    permuted.norm_bounds[position],
                    reference.norm_bounds[source as usize],
                ),
            ];
            for (permuted, reference) in both {
                assert!(
                    (permuted - reference).abs() <= 1e-12 * reference.abs().max(1.0),
                    "{}",
                    model.name
                );
            }
        }
    }
}

#[test]
fn the_start_up_test_passes_for_every_model() {
    for model in models::all(DType::F32, 64) {
        self_test(&mut model.engine(settings(64, 1.0))).expect(model.name);
    }
}

#[test]
fn draws_are_anew_for_every_record_and_every_batch_and_none_are_made_at_the_start() {
    set_up();
    for operator in ["rand", "randn", "rand_like", "randn_like"] {
        let (graph, parameters) = models::draws::drawn(operator);
        let mut engine = Engine::new(graph, &parameters, &[], settings(BATCH as u32, 1.0)).unwrap();
        self_test(&mut engine).expect(operator);
        let inputs = [rand(Kind::Float, &[1, 3]).repeat([BATCH, 1])];
        let losses = || engine.clipped_sums(&full(&engine, &inputs)).unwrap().1.losses;
        let mut both = [losses(), losses()].concat();
        both.sort_by(f64::total_cmp);
        assert!(
            both.windows(2).all(|pair| pair[0] != pair[1]),
            "{operator}: equal rows drew the same: {both:?}"
        );
    }
}

#[test]
fn the_start_up_test_finds_rows_that_influence_one_another() {
    let mut engine = models::leaky(64).engine(settings(64, 1.0));
    assert!(matches!(
        self_test(&mut engine),
        Err(EngineError::RowsInteract {
            physical_batch_size: 64
        })
    ));
}

#[test]
fn a_type_the_checker_did_not_prove_stops_the_run() {
    let engine = models::mistyped(8).engine(settings(8, 1.0));
    let model = models::mistyped(8);
    let error = engine.clipped_sums(&full(&engine, &model.inputs)).err().unwrap();
    assert!(
        matches!(&error, EngineError::TypeDiffers { node } if node.starts_with("relu")),
        "{error}"
    );
}
