//! Models exported by the pinned torch, through reader, checker and engine, against PyTorch's own numbers
//! (tests/data/generate_gradients.py).
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use bastionai_graph::archive::{Archive, Limits};
use bastionai_graph::dtype::DType;
use bastionai_trainer::selftest::self_test;
use bastionai_trainer::{Engine, Settings};
use serde_json::Value;
use support::*;
use tch::{Kind, Tensor};

const BATCH: u32 = 16;
const ACCEPTED: [&str; 12] = [
    "classifier",
    "cross_entropy",
    "regressor",
    "binary",
    "broadcast",
    "zoo",
    "encoder",
    "text",
    "functions",
    "composed",
    "images",
    "plain",
];

fn engine(name: &str, settings: Settings) -> Engine {
    set_up();
    let path = format!(
        "{}/../graph/tests/fixtures/{name}.pt2",
        env!("CARGO_MANIFEST_DIR")
    );
    let archive = Archive::read(&std::fs::read(path).unwrap(), &Limits::default()).unwrap();
    let graph = bastionai_graph::check(&archive, &archive.example_inputs().unwrap()).unwrap();
    let bytes = |count: usize, of: &dyn Fn(usize) -> Option<Vec<u8>>| {
        (0..count).map(|i| of(i).unwrap()).collect::<Vec<_>>()
    };
    let parameters = bytes(graph.parameters().len(), &|i| {
        archive.parameter_bytes(i).map(<[u8]>::to_vec)
    });
    let constants = bytes(graph.constants().len(), &|i| {
        archive.constant_bytes(i).map(<[u8]>::to_vec)
    });
    Engine::new(graph, &parameters, &constants, settings).expect(name)
}

/// The same made-up rows as in generate_gradients.py.
fn inputs(engine: &Engine) -> Vec<Tensor> {
    let one = |(position, input): (usize, &bastionai_graph::typed::Input)| {
        let shape: Vec<i64> = std::iter::once(i64::from(BATCH))
            .chain(input.shape.iter().map(|&e| e as i64))
            .collect();
        let count: i64 = shape.iter().product();
        let numbers = Tensor::arange(count, (Kind::Int64, tch::Device::Cpu)) * 7919 + 13 * position as i64;
        match input.dtype {
            DType::F32 => (numbers.remainder(1000).to_kind(Kind::Double) / 500.0 - 1.0).to_kind(Kind::Float),
            DType::F64 => numbers.remainder(1000).to_kind(Kind::Double) / 500.0 - 1.0,
            DType::I64 => numbers.remainder(2),
            DType::I32 => numbers.remainder(2).to_kind(Kind::Int),
            DType::U8 => numbers.remainder(2).to_kind(Kind::Uint8),
            DType::Bool => numbers.remainder(2).to_kind(Kind::Bool),
        }
        .reshape(&shape[..])
    };
    engine.graph().inputs().iter().enumerate().map(one).collect()
}

#[test]
fn every_accepted_model_starts() {
    for name in ACCEPTED {
        self_test(&mut engine(name, settings(BATCH, 1.0)))
            .unwrap_or_else(|error| panic!("{name}: {error} {:?}", error.detail()));
    }
}

#[test]
fn losses_and_per_sample_gradients_equal_pytorchs() {
    let goldens: Value = serde_json::from_str(include_str!("data/gradients.json")).unwrap();
    for name in ACCEPTED {
        let engine = engine(name, settings(BATCH, 1.0));
        let batch = full(&engine, &inputs(&engine));
        let golden = &goldens["models"][name];
        let losses = floats(&golden["losses"]);
        if !["classifier", "zoo", "encoder"].contains(&name) {
            // Those have dropout, which draws in training; their gradients below are compared without.
            let (_, results) = engine.clipped_sums(&batch).unwrap();
            assert!(
                distance(&results.losses, &losses) < 1e-5 * norm(&losses).max(1.0),
                "{name}"
            );
        }
        let gradients = engine.per_sample_gradients(&batch).unwrap();
        let trained: Vec<_> = engine
            .graph()
            .parameters()
            .iter()
            .filter(|each| each.trainable)
            .collect();
        assert_eq!(trained.len(), gradients.len());
        let mut compared = 0;
        for (parameter, gradient) in trained.iter().zip(&gradients) {
            for row in 0..i64::from(BATCH) {
                let described = &golden["gradients"][row as usize];
                let named = parameter
                    .names
                    .iter()
                    .map(|each| &described[each.as_str()])
                    .find(|value| !value.is_null());
                let Some(expected) = named else { continue };
                let flat = gradient.get(row).flatten(0, -1);
                let expected_norm = expected["norm"].as_f64().unwrap();
                let actual_norm = f64::try_from(flat.norm()).unwrap();
                assert!(
                    (actual_norm - expected_norm).abs() <= 1e-4 * expected_norm + 1e-6,
                    "{name} {:?}",
                    parameter.names
                );
                let head = floats(&expected["head"]);
                let actual = Vec::<f64>::try_from(flat.narrow(0, 0, head.len() as i64)).unwrap();
                assert!(
                    distance(&actual, &head) <= 1e-4 * expected_norm + 1e-6,
                    "{name} {:?}",
                    parameter.names
                );
                compared += 1;
            }
        }
        assert!(
            compared >= trained.len() * BATCH as usize,
            "{name}: {compared} of {} gradients",
            trained.len()
        );
    }
}

/// Convolutions with stride, padding, dilation and groups, transposed ones, pooling and group_norm, against code that is
/// not ours (tests/data/generate_images.py). Opacus adds 1e-6 to a norm before it clips.
#[test]
fn gradients_and_clipped_sums_of_convolutions_equal_torch_funcs_and_opacus() {
    let goldens: Value = serde_json::from_str(include_str!("data/images.json")).unwrap();
    let engine_at = |max_grad_norm: f64| engine("images", settings(BATCH, max_grad_norm));
    let engine = engine_at(1.0);
    let parameters = engine.graph().parameters().iter();
    let names: Vec<String> = parameters.map(|each| each.names[0].clone()).collect();
    assert_eq!(names.len(), goldens["gradients"].as_object().unwrap().len());
    let gradients = engine
        .per_sample_gradients(&full(&engine, &inputs(&engine)))
        .unwrap();
    for (name, gradient) in names.iter().zip(&gradients) {
        for (row, golden) in (0..).zip(goldens["gradients"][name].as_array().unwrap()) {
            let actual = Vec::<f64>::try_from(gradient.get(row).flatten(0, -1)).unwrap();
            let golden = floats(golden);
            assert!(
                distance(&actual, &golden) <= 1e-9 * norm(&golden) + 1e-12,
                "{name} of record {row}"
            );
        }
    }
    for clipped in goldens["clipped"].as_array().unwrap() {
        let max_grad_norm = clipped["max_grad_norm"].as_f64().unwrap();
        let engine = engine_at(max_grad_norm);
        let (sums, _) = engine.clipped_sums(&full(&engine, &inputs(&engine))).unwrap();
        let golden: Vec<Vec<f64>> = names.iter().map(|name| floats(&clipped["sums"][name])).collect();
        let (sums, golden) = (joined(&sums), joined(&golden));
        assert!(
            distance(&sums, &golden) <= 1e-5 * norm(&golden),
            "C = {max_grad_norm}: off by {} of {}",
            distance(&sums, &golden),
            norm(&golden)
        );
    }
}

#[test]
fn every_node_that_the_checker_guards_is_guarded_here() {
    for name in ACCEPTED {
        let engine = engine(name, settings(BATCH, 1.0));
        for node in engine.graph().nodes() {
            for guard in bastionai_graph::value_guards(engine.graph(), node) {
                assert!(
                    engine.guards(&node.name).contains(&guard.index),
                    "{name}: {} is not guarded",
                    node.name
                );
            }
        }
    }
}

fn floats(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|each| each.as_f64().unwrap())
        .collect()
}
