//! Marked `gpu`: runs on a CUDA device against runs on the CPU. `make test-gpu` runs them and insists on a device; where
//! others run them and there is none, they say why and pass.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use bastionai_graph::dtype::DType;
use bastionai_trainer::Device;
use support::devices::{BATCH, a_few, every_model_agrees, learns_the_same, moved};
use support::models;
use support::*;

/// CUDA; `None`, with the reason printed, where it cannot be used and nobody insisted (`BASTIONAI_GPU`).
fn cuda() -> Option<Device> {
    let device = Device::Cuda;
    let ready = device
        .load()
        .and_then(|()| device.start())
        .and_then(|_| device.exercise());
    match ready {
        Ok(()) => Some(device),
        Err(error) => {
            assert!(std::env::var_os("BASTIONAI_GPU").is_none(), "{error}");
            eprintln!("not compared on a GPU: {error}");
            None
        }
    }
}

#[test]
#[ignore = "gpu: needs a CUDA device"]
fn gpu_runs_have_the_gradients_norms_and_sums_of_the_cpu() {
    if let Some(device) = cuda() {
        every_model_agrees(device);
    }
}

#[test]
#[ignore = "gpu: needs a CUDA device"]
fn gpu_runs_pass_their_self_test_and_learn_what_the_cpu_learns() {
    let Some(device) = cuda() else { return };
    for model in a_few() {
        learns_the_same(&model, device);
    }
}

#[test]
#[ignore = "gpu: needs a CUDA device"]
fn gpu_sums_of_the_same_rows_have_the_same_bits() {
    let Some(device) = cuda() else { return };
    for model in models::all(DType::F32, BATCH) {
        let engine = moved(&model, settings(BATCH as u32, 0.5), device);
        let sums = || {
            let mut sums = engine.zero_sums();
            let batch = full(&engine, &model.inputs);
            engine.add_clipped(&batch, &mut sums).unwrap();
            sums
        };
        let first = sums();
        for _ in 0..20 {
            assert_eq!(sums(), first, "{}", model.name);
        }
    }
}
