//! Hostile graphs of huge shapes: refused by node while the trainer starts, never a panic. The checker refuses most of
//! them before; here nothing rests on that.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use bastionai_graph::dtype::DType;
use bastionai_graph::typed::{Argument, Extent, FloatBits, ParameterView, Tap, TappedParameter, ValueId};
use bastionai_trainer::{Engine, EngineError};
use support::*;

/// The error of starting on a graph whose loss is the sum over every axis of `hidden` but the batch.
fn refused(mut g: Builder, hidden: ValueId, parameters: &[Vec<u8>]) -> (String, String) {
    let rank = g.type_of(hidden).shape.len() as i64;
    let arguments = [
        ("self", Argument::Value(hidden)),
        ("dim", Argument::Ints((1..rank).collect())),
    ];
    let loss = g.node("sum.dim_IntList", &arguments, DType::F32, &[b(1)]);
    set_up();
    match Engine::new(g.finish(loss), parameters, &[], settings(4, 1.0)).err() {
        Some(EngineError::Unsupported { node, reason }) => (node, reason),
        other => panic!("{other:?}"),
    }
}

fn expanded(g: &mut Builder, value: ValueId, shape: &[Extent]) -> ValueId {
    let arguments = [
        ("self", Argument::Value(value)),
        ("size", Argument::Sizes(shape.to_vec())),
    ];
    g.node("expand", &arguments, DType::F32, shape)
}

#[test]
fn a_tapped_value_of_more_elements_than_can_be_counted_is_refused_by_name() {
    let mut g = Builder::default();
    let x = g.input("x", DType::F32, &[1, 1]);
    let w = g.parameter("w", DType::F32, &[1], true);
    let shape = [b(1), n(1 << 31), n(1 << 31)];
    let wide = expanded(&mut g, x, &shape);
    let arguments = [("self", Argument::Value(wide)), ("other", Argument::Value(w))];
    let hidden = g.node("mul.Tensor", &arguments, DType::F32, &shape);
    g.tap(Tap::BroadcastMul {
        parameter: g.tapped(w),
        other: wide,
    });
    let (node, reason) = refused(g, hidden, &[vec![0; 4]]);
    assert_eq!(node, "expand_0");
    assert!(reason.contains("more than 2^60 elements"), "{reason}");
}

#[test]
fn a_trained_layer_over_no_rows_is_refused() {
    let mut g = Builder::default();
    let x = g.input("x", DType::F32, &[0, 3]);
    let w = g.parameter("w", DType::F32, &[2, 3], true);
    let hidden = g.linear(x, w, None, &[b(1), n(0), n(2)]);
    let (_, reason) = refused(g, hidden, &[vec![0; 24]]);
    assert!(reason.contains("no elements"), "{reason}");
}

#[test]
fn a_normalisation_over_other_axes_than_its_inputs_is_refused() {
    for normalized_shape in [vec![1 << 40, 1 << 40], vec![u64::MAX], vec![2, 3, 3]] {
        let mut g = Builder::default();
        let x = g.input("x", DType::F32, &[3]);
        let w = g.parameter("w", DType::F32, &[3], true);
        let arguments = [
            ("input", Argument::Value(x)),
            ("normalized_shape", Argument::Ints(vec![3])),
            ("weight", Argument::Value(w)),
        ];
        let hidden = g.node("layer_norm", &arguments, DType::F32, &[b(1), n(3)]);
        g.tap(Tap::LayerNorm {
            input: x,
            normalized_shape,
            weight: Some(g.tapped(w)),
            bias: None,
            eps: FloatBits::new(1e-5),
        });
        let (node, reason) = refused(g, hidden, &[vec![0; 12]]);
        assert_eq!(node, "layer_norm_0");
        assert!(reason.contains("last axes of its input"), "{reason}");
    }
}

#[test]
fn a_view_through_a_shape_that_cannot_be_counted_is_refused() {
    let mut g = Builder::default();
    let x = g.input("x", DType::F32, &[3]);
    let w = g.parameter("w", DType::F32, &[2, 3], true);
    let hidden = g.linear(x, w, None, &[b(1), n(2)]);
    let views = [vec![1 << 33, 1 << 33], vec![2, 3]].map(ParameterView::Reshape);
    g.tap(Tap::Linear {
        input: x,
        weight: Some(TappedParameter {
            views: views.to_vec(),
            ..g.tapped(w)
        }),
        bias: None,
    });
    let (node, reason) = refused(g, hidden, &[vec![0; 24]]);
    assert_eq!(node, "linear_0");
    assert!(reason.contains("do not lead from the parameter"), "{reason}");
}
