//! Evaluations: what is counted, how far one record moves it, and that the noise is what was charged and fresh.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use bastionai_graph::dtype::DType;
use bastionai_trainer::evaluation::Evaluator;
use bastionai_trainer::records::Records;
use bastionai_wire::trainer::{DatasetShape, EvaluationJob, TRAINER_PROTOCOL_VERSION};
use std::cell::Cell;
use support::models::{self, Model};
use support::*;
use tch::Tensor;

const CAPACITY: u64 = 48;

fn job(model: &Model, classes: u32) -> EvaluationJob {
    EvaluationJob {
        version: TRAINER_PROTOCOL_VERSION,
        graph: model.graph.to_bytes(),
        datasets: vec![DatasetShape {
            capacity: CAPACITY,
            rows: 40,
        }],
        physical_batch_size: 16,
        classes,
        has_confusion: true,
        score_bins: Some(16),
        noise_multiplier: 2.0,
        threads: 2,
    }
}

fn try_evaluator(model: &Model, job: &EvaluationJob) -> Result<Evaluator, String> {
    set_up();
    let parameters: Vec<_> = model.parameters.iter().map(bytes_of).collect();
    let constants: Vec<_> = model.constants.iter().map(bytes_of).collect();
    Evaluator::new(model.graph.clone(), parameters, constants, job).map_err(|error| error.to_string())
}

/// The first `rows` records of these inputs, in one dataset.
fn records(model: &Model, inputs: &[Tensor], rows: u64) -> (Records, Vec<DatasetShape>) {
    let datasets = vec![DatasetShape {
        capacity: CAPACITY,
        rows,
    }];
    let mut records = Records::new(model.graph.inputs(), &datasets).unwrap();
    for (input, tensor) in inputs.iter().enumerate() {
        // What lies behind the rows is other records' data: it must not be counted.
        records.fill(input, 0, CAPACITY, &bytes_of(tensor)).unwrap();
    }
    (records, datasets)
}

fn counts(model: &Model, evaluator: &Evaluator, inputs: &[Tensor], rows: u64) -> Vec<Vec<i64>> {
    let (records, datasets) = records(model, inputs, rows);
    evaluator.counts(&records, &datasets).unwrap()
}

fn release(evaluator: &Evaluator, records: &Records, datasets: &[DatasetShape]) -> Vec<Vec<u8>> {
    let released = evaluator.release_unless(|| false, records, datasets).unwrap();
    released.expect("nobody stops it")
}

fn without_row(tensor: &Tensor, row: i64) -> Tensor {
    let rest = tensor.size()[0] - row - 1;
    let parts = [
        tensor.narrow(0, 0, row),
        tensor.narrow(0, row + 1, rest),
        tensor.narrow(0, 0, 1),
    ];
    Tensor::cat(&parts, 0)
}

#[test]
fn the_confusion_is_that_of_libtorch_on_the_records_alone() {
    let model = models::scorer(3, CAPACITY as i64);
    let evaluator = try_evaluator(&model, &job(&model, 3)).unwrap();
    evaluator.self_test().unwrap();
    let found = counts(&model, &evaluator, &model.inputs, 40);
    let predicted = (model.reference)(&model.parameters, &model.inputs).argmax(1, false);
    let mut expected = vec![0; 12];
    for row in 0..40 {
        let at = |tensor: &Tensor| tensor.int64_value(&[row]) as usize;
        expected[at(&model.inputs[1]) * 4 + at(&predicted)] += 1;
    }
    assert_eq!(found[0], expected);
    assert_eq!(found.len(), 4, "the confusion, and one histogram for each class");
    for scores in &found[1..] {
        assert_eq!(scores.iter().sum::<i64>(), 40);
    }
}

#[test]
fn one_record_moves_the_counts_by_at_most_the_stated_sensitivity_whatever_it_holds() {
    for (classes, histograms) in [(1, 2.0), (2, 2.0), (3, 4.0)] {
        let model = models::scorer(classes, CAPACITY as i64);
        let evaluator = try_evaluator(&model, &job(&model, (classes as u32).max(2))).unwrap();
        for value in [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            3e38,
            -3e38,
            1e-45,
            0.0,
            7.5,
        ] {
            for (row, label) in [(0, 1), (17, 0), (39, -3), (20, 99)] {
                let inputs = [with_row(&model.inputs[0], row, value), model.inputs[1].copy()];
                let _ = inputs[1].get(row).fill_(label);
                let whole = counts(&model, &evaluator, &inputs, 40);
                // Removed, the others move up by one row and the places of all are drawn anew.
                let fewer = [without_row(&inputs[0], row), without_row(&inputs[1], row)];
                let without = counts(&model, &evaluator, &fewer, 39);
                let moved: i64 = (whole.concat().iter().zip(without.concat()))
                    .map(|(a, b)| (a - b).pow(2))
                    .sum();
                let is_class = (0..classes.max(2) as i64).contains(&label);
                let expected = if is_class { histograms as i64 } else { 0 };
                assert_eq!(moved, expected, "{classes} classes, {value} with label {label}");
            }
        }
    }
}

#[test]
fn an_empty_dataset_is_one_like_any_other() {
    let model = models::scorer(2, CAPACITY as i64);
    let evaluator = try_evaluator(&model, &job(&model, 2)).unwrap();
    assert!(
        counts(&model, &evaluator, &model.inputs, 0)
            .concat()
            .iter()
            .all(|&count| count == 0)
    );
    let (records, datasets) = records(&model, &model.inputs, 0);
    assert_eq!(release(&evaluator, &records, &datasets)[0].len(), 2 * 3 * 8);
}

/// 2 + 34 counts with σ = 2·√2 each: their noise, over many releases, has that standard deviation.
#[test]
fn the_noise_is_what_was_charged_and_fresh_for_each_release() {
    let model = models::scorer(2, CAPACITY as i64);
    let evaluator = try_evaluator(&model, &job(&model, 2)).unwrap();
    let (records, datasets) = records(&model, &model.inputs, 40);
    let exact = evaluator.counts(&records, &datasets).unwrap().concat();
    let mut noise = Vec::new();
    let mut releases = Vec::new();
    for _ in 0..60 {
        let release = release(&evaluator, &records, &datasets).concat();
        let counts = release
            .chunks_exact(8)
            .map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()));
        noise.extend(counts.zip(&exact).map(|(noisy, exact)| (noisy - exact) as f64));
        releases.push(release);
    }
    releases.dedup();
    assert_eq!(releases.len(), 60);
    let n = noise.len() as f64;
    let mean = noise.iter().sum::<f64>() / n;
    let variance = noise.iter().map(|value| value * value).sum::<f64>() / n;
    let expected = 8.0 + 1.0 / 12.0;
    // n = 2400: four standard errors.
    assert!(mean.abs() < 4.0 * (expected / n).sqrt(), "mean {mean}");
    assert!(
        (variance / expected - 1.0).abs() < 4.0 * (2.0 / n).sqrt(),
        "variance {variance}"
    );
}

/// Asked before every batch, the last one too, and never after it: then noise is added and the release leaves.
#[test]
fn a_stopped_evaluation_releases_nothing_at_whichever_batch() {
    let model = models::scorer(2, CAPACITY as i64);
    let evaluator = try_evaluator(&model, &job(&model, 2)).unwrap();
    let (records, datasets) = records(&model, &model.inputs, 40);
    let asked = Cell::new(0);
    let stop_at = |batch| {
        asked.set(0);
        let stopped = || asked.replace(asked.get() + 1) == batch;
        evaluator.release_unless(stopped, &records, &datasets).unwrap()
    };
    assert!(stop_at(u64::MAX).is_some());
    let batches = asked.get();
    assert_eq!(
        batches,
        CAPACITY.div_ceil(u64::from(job(&model, 2).physical_batch_size))
    );
    for batch in 0..batches {
        assert_eq!(stop_at(batch), None, "batch {batch}");
        assert_eq!(asked.get(), batch + 1);
    }
}

#[test]
fn jobs_that_cannot_be_evaluated_are_refused() {
    let model = models::scorer(3, CAPACITY as i64);
    let good = job(&model, 3);
    let refused = |model: &Model, job: EvaluationJob| try_evaluator(model, &job).err().unwrap();
    assert!(refused(&models::classifier(DType::F32, 4), good.clone()).contains("returns a loss"));
    let classes = EvaluationJob {
        classes: 4,
        ..good.clone()
    };
    assert!(refused(&model, classes).contains("classes"));
    for noise_multiplier in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let silent = EvaluationJob {
            noise_multiplier,
            ..good.clone()
        };
        assert!(refused(&model, silent).contains("without noise"));
    }
    let odd = EvaluationJob {
        score_bins: Some(7),
        ..good.clone()
    };
    assert!(refused(&model, odd).contains("even number"));
    let nothing = EvaluationJob {
        score_bins: None,
        has_confusion: false,
        ..good.clone()
    };
    assert!(refused(&model, nothing).contains("neither"));
    let huge = EvaluationJob {
        physical_batch_size: 0,
        ..good
    };
    assert!(refused(&model, huge).contains("physical_batch_size"));
    let engine = bastionai_trainer::Engine::new(
        model.graph.clone(),
        &[bytes_of(&model.parameters[0])],
        &[],
        settings(4, 1.0),
    );
    assert!(engine.err().unwrap().to_string().contains("not trained"));
}
