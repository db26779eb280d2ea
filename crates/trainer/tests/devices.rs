//! Runs on a device against runs on the CPU. The device is one that this test registers with libtorch (`registered/`): it
//! takes every path that a GPU takes but the GPU's own kernels, and refuses to mix memories as a GPU does. The same
//! comparisons on a real one are in `gpu.rs`.
#![allow(clippy::unwrap_used, missing_docs)]

mod registered;
mod support;

use bastionai_graph::dtype::DType;
use bastionai_trainer::{Device, EngineError};
use support::devices::{BATCH, a_few, every_model_agrees, learns_the_same, moved};
use support::models;
use support::*;

fn device() -> Device {
    registered::register();
    Device::Registered
}

#[test]
fn a_run_on_a_device_has_the_gradients_norms_and_sums_of_one_on_the_cpu() {
    every_model_agrees(device());
}

#[test]
fn a_run_on_a_device_passes_its_self_test_and_learns_what_one_on_the_cpu_learns() {
    let device = device();
    for model in a_few() {
        learns_the_same(&model, device);
    }
}

#[test]
fn a_batch_that_was_left_in_host_memory_is_an_error_and_no_number() {
    let device = device();
    let model = models::classifier(DType::F64, BATCH);
    let other = moved(&model, settings(BATCH as u32, 1.0), device);
    // Made by an engine of the CPU, whose batches stay there.
    let host = model.engine(settings(BATCH as u32, 1.0));
    let batch = full(&host, &model.inputs);
    assert!(matches!(
        other.clipped_sums(&batch),
        Err(EngineError::Operator { .. } | EngineError::Torch { .. })
    ));
}
