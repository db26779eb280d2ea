//! Embeddings and ties: ids out of range are no oracle, cross terms are exact, and a large table costs no more than
//! its tokens.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use bastionai_graph::dtype::DType;
use bastionai_graph::typed::{Argument, Tap};
use bastionai_trainer::Engine;
use bastionai_trainer::engine::Sums;
use support::models::Model;
use support::*;
use tch::{Kind, Tensor};

const BATCH: i64 = 8;

fn ids_of(model: &Model, row: i64, id: i64) -> Vec<Tensor> {
    let mut inputs: Vec<Tensor> = model.inputs.iter().map(Tensor::copy).collect();
    let _ = inputs[0].get(row).fill_(id);
    inputs[0] = inputs[0].contiguous();
    inputs
}

#[test]
fn an_id_beyond_the_table_fails_nothing_and_counts_as_zero() {
    // G4: `embedding` with one row on `(x > t).long()` would fail exactly when a record has the attribute.
    for model in text::all(DType::F32, BATCH)
        .into_iter()
        .filter(|model| model.name != "recurrent")
    {
        let engine = model.engine(settings(BATCH as u32, 0.5));
        let mut mask = [true; BATCH as usize];
        mask[3] = false;
        let (without, _) = engine
            .clipped_sums(&present(&engine, &model.inputs, &mask))
            .unwrap();
        for id in [1_000_000, -1, i64::MAX, i64::MIN] {
            let inputs = ids_of(&model, 3, id);
            let (sums, results) = engine.clipped_sums(&full(&engine, &inputs)).unwrap();
            assert_eq!(joined(&sums), joined(&without), "{} {id}", model.name);
            assert!(!results.counted[3]);
            assert_eq!(results.counted.iter().filter(|&&counted| counted).count(), 7);
        }
    }
}

#[test]
fn a_record_of_padding_only_trains_no_row_of_the_table() {
    let model = text::tokens(DType::F64, BATCH);
    let engine = model.engine(settings(BATCH as u32, 0.5));
    let inputs = ids_of(&model, 1, 2);
    let gradients = engine.per_sample_gradients(&full(&engine, &inputs)).unwrap();
    assert_eq!(f64::try_from(gradients[0].get(1).abs().max()).unwrap(), 0.0);
    assert!(
        f64::try_from(gradients[1].get(1).abs().max()).unwrap() > 0.0,
        "positions still train"
    );
    let (_, results) = engine.clipped_sums(&full(&engine, &inputs)).unwrap();
    assert!(results.counted[1]);
}

#[test]
fn norms_of_ties_have_their_cross_terms() {
    // Opacus' ghost clipping refuses ties (#349), fastDP leaves the cross terms out.
    for model in text::all(DType::F64, BATCH) {
        let engine = model.engine(settings(BATCH as u32, 1.0));
        let (_, results) = engine.clipped_sums(&full(&engine, &model.inputs)).unwrap();
        for (row, bound) in results.norm_bounds.iter().enumerate() {
            let gradients = model.alone(row as i64);
            let squared: f64 = gradients
                .iter()
                .map(|each| f64::try_from(each.square().sum(Kind::Double)).unwrap())
                .sum();
            let norm = squared.sqrt();
            assert!(
                (bound - norm).abs() < 1e-6 * norm,
                "{}: {bound} for {norm}",
                model.name
            );
        }
    }
}

/// `table[ids]·x`, squared: `rows` of 16.
fn large(rows: u64) -> Model {
    let mut g = Builder::default();
    let ids = g.input("ids", DType::I64, &[32]);
    let x = g.input("x", DType::F32, &[32, 16]);
    let table = g.parameter("table", DType::F32, &[rows, 16], true);
    let shape = [b(1), n(32), n(16)];
    let arguments = [
        ("weight", Argument::Value(table)),
        ("indices", Argument::Value(ids)),
    ];
    let hidden = g.node("embedding", &arguments, DType::F32, &shape);
    g.tap(Tap::Embedding {
        indices: ids,
        weight: g.tapped(table),
        padding_idx: None,
    });
    let both = [("self", Argument::Value(hidden)), ("other", Argument::Value(x))];
    let scaled = g.node("mul.Tensor", &both, DType::F32, &shape);
    let bent = g.node("tanh", &[("self", Argument::Value(scaled))], DType::F32, &shape);
    let dims = ("dim", Argument::Ints(vec![1, 2]));
    let loss = g.node(
        "sum.dim_IntList",
        &[("self", Argument::Value(bent)), dims],
        DType::F32,
        &[b(1)],
    );
    Model {
        name: "large",
        graph: g.finish(loss),
        parameters: vec![Tensor::zeros([rows as i64, 16], (Kind::Float, tch::Device::Cpu))],
        constants: vec![],
        inputs: vec![randint(rows as i64, &[64, 32]), rand(Kind::Float, &[64, 32, 16])],
        reference: Box::new(|_, _| unreachable!("only its cost is looked at")),
    }
}

/// A line of `/proc/self/status`, in bytes.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn a_table_of_a_million_rows_costs_its_tokens_and_not_its_rows() {
    // Opacus instantiated [B, rows, width] here (PR #694): 64 GiB. One dense f64 gradient alone would be 128 MiB.
    let add = |engine: &Engine, model: &Model, sums: &mut Sums| {
        engine.add_clipped(&full(engine, &model.inputs), sums).unwrap();
    };
    // What libtorch allocates once is allocated by a small model.
    let small = large(64);
    let engine = small.engine(settings(64, 1.0));
    add(&engine, &small, &mut engine.zero_sums());
    let model = large(1 << 20);
    let engine = model.engine(settings(64, 1.0));
    let mut sums = engine.zero_sums();
    sums.0[0] = vec![1; 16 << 20]; // zeroed memory is mapped at the first write only
    std::fs::write("/proc/self/clear_refs", "5").unwrap(); // resets the peak
    let before = memory("VmRSS");
    add(&engine, &model, &mut sums);
    let grown = memory("VmHWM").saturating_sub(before);
    assert!(grown < 48 << 20, "{} MiB at the peak", grown >> 20);
    let touched = sums.0[0]
        .chunks(16)
        .filter(|row| row.iter().any(|&sum| sum != 1))
        .count();
    assert!(touched > 1500 && touched <= 64 * 32, "{touched} rows");
}
