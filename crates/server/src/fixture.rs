//! For unit tests: a checked graph of 4 inputs, 8 hidden, 2 outputs, and a request to train it. What they share with
//! the tests over a socket lies with those, in `tests/`.

#[allow(unreachable_pub)]
#[path = "../tests/common/example.rs"]
pub(crate) mod example;

use crate::spec::{LossRequest, Privacy, RunRequest};
use bastionai_graph::archive::{Archive, Limits};
use bastionai_graph::contract::DataContract;
use bastionai_graph::typed::TypedGraph;
use bastionai_ledger::{DatasetId, Digest32};
use bastionai_wire::{Bands, Clipping, Compute, NoiseMode, Optimizer, Schedule};

pub(crate) const MLP: &[u8] = include_bytes!("../tests/fixtures/mlp.pt2");
pub(crate) const CONTRACT: &str = include_str!("../tests/fixtures/contract.json");

pub(crate) fn mlp() -> TypedGraph {
    let inputs = DataContract::parse_json(CONTRACT.as_bytes())
        .unwrap()
        .inputs(&["x", "y"])
        .unwrap();
    bastionai_graph::check(&Archive::read(MLP, &Limits::default()).unwrap(), &inputs).unwrap()
}

/// A run of [`mlp`] that asks for at most 64 rows at once.
pub(crate) fn request(
    batch_size: u64,
    steps: u64,
    privacy: Privacy,
    loss: Option<LossRequest>,
) -> RunRequest {
    RunRequest {
        records_per_unit: None,
        model: Digest32::from_bytes([0; 32]),
        datasets: vec![DatasetId::from_bytes([0; 16])],
        input_columns: vec!["x".into()],
        model_name: "mlp".into(),
        batch_size,
        max_batch_size: Some(64),
        steps,
        max_grad_norm: 1.0,
        clipping: Clipping::Flat,
        compute: Compute::Float32,
        noise_mode: NoiseMode::Standard,
        privacy,
        delta: None,
        loss,
        optimizer: sgd(0.1, 0.0, false),
        schedule: Schedule::default(),
        initial_weights: None,
        average: None,
        bands: Bands::default(),
        keep_steps: vec![],
    }
}

/// Without dampening and weight decay.
pub(crate) fn sgd(lr: f64, momentum: f64, nesterov: bool) -> Optimizer {
    Optimizer::Sgd {
        lr,
        momentum,
        dampening: 0.0,
        weight_decay: 0.0,
        nesterov,
    }
}
