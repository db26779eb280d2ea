//! One record more or less moves the sum of a whole step by no more than is charged: sampler, cut, places, padding,
//! micro-batches, clipping and rounding together, whatever the records hold.

use crate::canaries::{Audited, NEXT_TO_NOTHING, drawn, job};
use crate::short_or_long;
use crate::support::models::{self, Model};
use crate::support::*;
use bastionai_graph::dtype::DType;
use bastionai_trainer::records::Records;
use bastionai_trainer::sample::PooledSampler;
use bastionai_trainer::{Engine, Settings};
use bastionai_wire::trainer::{DatasetShape, Job, LossRelease};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use tch::{Kind, Tensor};

/// Of two datasets: slots, and records among them. The neighbour lacks the last record of the second.
const SHAPES: [(u64, u64); 2] = [(8, 6), (16, 12)];
const CAPACITY: u64 = SHAPES[0].0 + SHAPES[1].0;
const VICTIM: u64 = SHAPES[0].0 + SHAPES[1].1 - 1;
const PHYSICAL_BATCH_SIZE: u32 = 4;

/// Not finite, huge, tiny, opposite, ordinary.
pub(crate) const HOSTILE: [f64; 13] = [
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    3e38,
    -3e38,
    1e19,
    -1e10,
    1e3,
    1e-19,
    1e-38,
    1e-45,
    0.0,
    -0.0,
];

/// Indices and labels in and out of range.
const HOSTILE_INTEGERS: [i64; 6] = [0, 1, -1, -100, 99, i64::MAX];

fn shapes(has_victim: bool) -> Vec<DatasetShape> {
    let mut shapes = SHAPES.map(|(capacity, rows)| DatasetShape { capacity, rows });
    shapes[1].rows -= u64::from(!has_victim);
    shapes.into()
}

/// A step to audit.
#[derive(Clone, Debug)]
struct Case {
    seed: i64,
    model: prop::sample::Index,
    clipping: Clipping,
    max_grad_norm: f64,
    threshold: u64,
    micro_batches: u32,
    key: [u8; 32],
    /// Rows with one value all over, by position in [`HOSTILE`] and [`HOSTILE_INTEGERS`].
    hostile: Vec<(u64, prop::sample::Index)>,
    /// The adversary of G1: lengths of two tokens' inputs and output gradients, and what is left when they cancel.
    cancelling: Option<[f64; 3]>,
}

fn cases() -> impl Strategy<Value = Case> {
    let decades = |range: std::ops::RangeInclusive<i32>| range.prop_map(|e| 10f64.powi(e));
    let cancelling = [decades(-20..=18), decades(-20..=18), decades(-12..=12)];
    let row = prop_oneof![3 => Just(VICTIM), 2 => 0..CAPACITY];
    let run = (
        any::<prop::sample::Index>(),
        prop::sample::select(CLIPPINGS.to_vec()),
        prop::sample::select(vec![1e-3, 0.5, 1.0, 1e4]),
        // Rates of a quarter, three quarters and one.
        prop::sample::select(vec![1 << 62, 3 << 62, u64::MAX]),
        1u32..=5,
    );
    let data = (
        any::<i64>(),
        any::<[u8; 32]>(),
        prop::collection::vec((row, any::<prop::sample::Index>()), 0..5),
        prop::option::weighted(0.2, cancelling),
    );
    (run, data).prop_map(
        |((model, clipping, max_grad_norm, threshold, micro_batches), data)| {
            let (seed, key, hostile, cancelling) = data;
            Case {
                seed,
                model,
                clipping,
                max_grad_norm,
                threshold,
                micro_batches,
                key,
                hostile,
                cancelling,
            }
        },
    )
}

impl Case {
    fn model(&self) -> Model {
        match self.cancelling {
            Some([a, b, left]) => models::cancelling(&[a, 0.0, a, 0.0], &[b, left, -b, 0.0], CAPACITY as i64),
            None => drawn(self.seed, || {
                let mut all = models::all(DType::F32, CAPACITY as i64);
                let chosen = self.model.index(all.len());
                all.swap_remove(chosen)
            }),
        }
    }

    fn columns(&self, model: &Model) -> Vec<Tensor> {
        let column = |input: &Tensor| {
            let column = input.copy();
            for (row, value) in &self.hostile {
                let mut row = column.get(*row as i64);
                let _ = if input.kind() == Kind::Int64 {
                    row.fill_(HOSTILE_INTEGERS[value.index(HOSTILE_INTEGERS.len())])
                } else {
                    row.fill_(HOSTILE[value.index(HOSTILE.len())])
                };
            }
            column
        };
        model.inputs.iter().map(column).collect()
    }

    fn places(&self, has_victim: bool, step: u64) -> Vec<Option<u64>> {
        let cap = (PHYSICAL_BATCH_SIZE * self.micro_batches) as usize;
        let order = self.key.map(|byte| !byte);
        let sampler = PooledSampler::new(self.key, &order, self.threshold, shapes(has_victim), cap);
        sampler.places(step).unwrap()
    }
}

/// The sum of a step as `Training::step` makes it, in grid units.
fn sum(engine: &Engine, records: &Records, places: &[Option<u64>]) -> Vec<i64> {
    let mut sums = engine.zero_sums();
    for places in places.chunks_exact(PHYSICAL_BATCH_SIZE as usize) {
        let (inputs, present) = records.gather(places).unwrap();
        let batch = engine.batch(inputs, present).unwrap();
        engine.add_clipped(&batch, &mut sums).unwrap();
    }
    sums.0.concat()
}

fn rows(places: &[Option<u64>]) -> BTreeSet<u64> {
    places.iter().flatten().copied().collect()
}

/// The step of the neighbour, coupled as the proof in `bastionai_trainer::sample` couples it: where the victim stands
/// there is padding or, in a sample that was full, the record that had to give way; the others stay where they are.
/// Also how many records' terms differ. The two samples are those that one key gives.
fn coupled(with: &[Option<u64>], without: &[Option<u64>]) -> (Vec<Option<u64>>, usize) {
    let (with_rows, without_rows) = (rows(with), rows(without));
    let came: Vec<u64> = with_rows.difference(&without_rows).copied().collect();
    let gave_way: Vec<u64> = without_rows.difference(&with_rows).copied().collect();
    assert!(
        came.is_empty() || came == [VICTIM],
        "{came:?} came with the victim"
    );
    assert!(
        gave_way.is_empty() || (came == [VICTIM] && gave_way.len() == 1 && without_rows.len() == with.len()),
        "{gave_way:?} gave way in a sample of {} of {}",
        without_rows.len(),
        with.len()
    );
    let place = |row: &Option<u64>| {
        if *row == Some(VICTIM) {
            gave_way.first().copied()
        } else {
            *row
        }
    };
    (with.iter().map(place).collect(), came.len() + gave_way.len())
}

/// What the cases of a whole test met, and how near they came to the bound.
#[derive(Default)]
struct Met {
    came: Cell<u32>,
    exchanged: Cell<u32>,
    largest: RefCell<[f64; 2]>,
}

#[test]
fn no_record_moves_the_sum_of_a_step_by_more_than_is_charged() {
    let met = Met::default();
    let config = Config {
        cases: short_or_long(200, 5000),
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&cases(), |case| audit(&case, &met))
        .unwrap();
    let (came, exchanged, largest) = (met.came.get(), met.exchanged.get(), met.largest.borrow());
    println!(
        "victim came {came} times, {exchanged} times for another; moved by at most {largest:?} of the bound"
    );
    assert!(
        came > 20 && exchanged > 20,
        "{came} and {exchanged}: nothing was tested"
    );
    assert!(
        largest[0] > 0.9,
        "{largest:?}: the bound was never nearly reached"
    );
}

fn audit(case: &Case, met: &Met) -> Result<(), TestCaseError> {
    let model = case.model();
    let engine = model.engine(Settings {
        micro_batches: case.micro_batches,
        ..settings_clipping(PHYSICAL_BATCH_SIZE, case.max_grad_norm, case.clipping)
    });
    let mut records = Records::new(engine.graph().inputs(), &shapes(true)).unwrap();
    for (input, column) in case.columns(&model).iter().enumerate() {
        records.fill(input, 0, CAPACITY, &bytes_of(column)).unwrap();
    }
    for step in 1..=3 {
        let with = case.places(true, step);
        let (without, terms) = coupled(&with, &case.places(false, step));
        let both = [&with, &without].map(|places| sum(&engine, &records, places));
        let squares = both[0]
            .iter()
            .zip(&both[1])
            .map(|(l, r)| ((l - r) as f64).powi(2));
        let moved = squares.sum::<f64>().sqrt() * engine.grid().width();
        let bound = terms as f64 * engine.l2_sensitivity();
        prop_assert!(
            moved <= bound,
            "{}, step {step}: {terms} terms moved the sum by {moved}, charged are {bound}",
            model.name
        );
        if terms > 0 {
            let count = if terms == 1 { &met.came } else { &met.exchanged };
            count.set(count.get() + 1);
            let mut largest = met.largest.borrow_mut();
            largest[terms - 1] = largest[terms - 1].max(moved / bound);
        }
    }
    Ok(())
}

/// The same of `Training` itself, with everything drawn and noise that hides nothing: its released sums and losses.
#[test]
fn a_hostile_record_moves_what_a_training_releases_by_no_more_than_is_charged() {
    let max_loss = 2.0;
    let release = LossRelease {
        max_loss,
        noise_multiplier: NEXT_TO_NOTHING,
    };
    let model = drawn(5, || models::classifier(DType::F32, 16));
    for clipping in CLIPPINGS {
        for value in HOSTILE {
            let columns = [with_row(&model.inputs[0], 11, value), model.inputs[1].copy()];
            let run = |rows| Job {
                physical_batch_size: 4,
                micro_batches: 4,
                clipping,
                loss: Some(release),
                ..job(rows, 16)
            };
            let [mut with, mut without] = [12, 11].map(|rows| Audited::new(&model, &run(rows), &columns));
            let both = [with.step(), without.step()];
            let moved = distance(&both[0].sums.concat(), &both[1].sums.concat());
            assert!(
                moved <= with.l2_sensitivity() + 1e-3,
                "{clipping:?} {value}: moved by {moved}"
            );
            let moved = (both[0].loss - both[1].loss).abs();
            assert!(
                moved <= max_loss + 1e-3,
                "{clipping:?} {value}: the loss moved by {moved}"
            );
        }
    }
}
