//! What a run on a device must have in common with one on the CPU.

use super::models::{self, Model};
use super::*;
use bastionai_trainer::Device;

pub const BATCH: i64 = 6;

pub fn moved(model: &Model, settings: Settings, device: Device) -> Engine {
    let mut engine = model.engine(settings);
    engine.run_on(device).unwrap();
    engine
}

fn close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = norm(expected).max(1e-12);
    let difference = distance(found, expected) / scale;
    assert!(
        difference <= tolerance,
        "{what}: {difference:e} of {scale:e}, {tolerance:e} allowed"
    );
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).unwrap()
}

/// Per-sample gradients, losses, norms and clipped sums of one model, in every way to clip, padding among the rows.
fn agrees(model: &Model, dtype: DType, device: Device) {
    // Of f32: kernels may round as they like, and models amplify it; f64 shows that the formulas are the same.
    let tolerance = if dtype == DType::F64 { 1e-9 } else { 2e-3 };
    let mut rows = vec![true; BATCH as usize];
    rows[2] = false;
    for clipping in CLIPPINGS {
        let settings = settings_clipping(BATCH as u32, 0.5, clipping);
        let (host, other) = (model.engine(settings), moved(model, settings, device));
        let name = format!("{} {dtype:?} {clipping:?}", model.name);
        let batches = [&host, &other].map(|engine| present(engine, &model.inputs, &rows));
        let [(expected, of_host), (found, of_other)] = [(&host, &batches[0]), (&other, &batches[1])]
            .map(|(engine, batch)| engine.clipped_sums(batch).unwrap());
        close(
            &format!("{name}: sums"),
            &joined(&found),
            &joined(&expected),
            tolerance,
        );
        assert_eq!(of_other.counted, of_host.counted, "{name}");
        close(
            &format!("{name}: losses"),
            &of_other.losses,
            &of_host.losses,
            tolerance,
        );
        close(
            &format!("{name}: norms"),
            &of_other.norm_bounds,
            &of_host.norm_bounds,
            tolerance,
        );
        // Either is charged for its own kernels' order of summation.
        let charged = other.l2_sensitivity() / settings.max_grad_norm;
        assert!((1.0..1.02).contains(&charged), "{name}: {charged}");
    }
    let settings = settings(BATCH as u32, 0.5);
    let (host, other) = (model.engine(settings), moved(model, settings, device));
    let [expected, found] =
        [&host, &other].map(|engine| engine.per_sample_gradients(&full(engine, &model.inputs)).unwrap());
    for (found, expected) in found.iter().zip(&expected) {
        let name = format!("{} {dtype:?}: gradients", model.name);
        close(&name, &values(found), &values(expected), tolerance);
    }
}

pub fn every_model_agrees(device: Device) {
    for dtype in [DType::F64, DType::F32] {
        for model in models::all(dtype, BATCH) {
            agrees(&model, dtype, device);
        }
    }
}

/// The self-test that every run passes before a record arrives, and the updates of a few steps.
pub fn learns_the_same(model: &Model, device: Device) {
    let settings = settings(BATCH as u32, 0.5);
    let [host, other] = [Device::Cpu, device].map(|device| {
        let mut engine = moved(model, settings, device);
        selftest::self_test(&mut engine).unwrap();
        for _ in 0..3 {
            let (sums, _) = engine.clipped_sums(&full(&engine, &model.inputs)).unwrap();
            for (parameter, sum) in engine.trainable_mut().into_iter().zip(&sums) {
                let step = Tensor::from_slice(sum).reshape(parameter.size()) * 0.1;
                let _ = parameter.f_sub_(&step.to_kind(parameter.kind())).unwrap();
            }
            engine.renew().unwrap();
        }
        engine
    });
    for (found, expected) in other.trainable().iter().zip(host.trainable()) {
        close(model.name, &values(found), &values(expected), 1e-9);
    }
    assert_eq!(other.state_digest().unwrap().len(), 32);
    assert_ne!(other.device(), host.device());
}

/// A dense, a convolutional and an attention model.
pub fn a_few() -> [Model; 3] {
    [
        models::classifier(DType::F64, BATCH),
        convolutions::image(DType::F64, BATCH),
        models::attention::self_attention(DType::F64, BATCH),
    ]
}
