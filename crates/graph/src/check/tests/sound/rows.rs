//! `x[arange(B), ...]` in the forms that libraries write it.

use super::*;
use crate::typed::{Dependence, Extent};

/// `arange(B)[:, None]`, as Hugging Face's masks number the samples.
fn numbers(b: &mut Build, axes: usize) -> String {
    let size = b.size("x", 0);
    let mut numbers = b.call("arange.default", &[("end", RawArgument::Size(size))]);
    for axis in 1..axes {
        let dim = i64::try_from(axis).unwrap();
        numbers = b.call(
            "slice.Tensor",
            &[("self", t(&numbers)), ("dim", i(0)), ("start", i(0))],
        );
        numbers = b.call("unsqueeze.default", &[("self", t(&numbers)), ("dim", i(dim))]);
    }
    numbers
}

fn index(b: &mut Build, of: &str, by: &[&str]) -> String {
    let indices = RawArgument::OptionalTensors(by.iter().map(|name| Some((*name).to_owned())).collect());
    b.call("index.Tensor", &[("self", t(of)), ("indices", indices)])
}

fn shape_of(graph: &TypedGraph, operator: &str) -> (Dependence, Vec<Extent>) {
    let node = graph
        .nodes()
        .iter()
        .find(|node| node.operator == operator)
        .unwrap();
    let value_type = &graph.values()[node.outputs[0].0 as usize].value_type;
    (value_type.dependence, value_type.shape.clone())
}

#[test]
fn columns_that_are_the_same_for_every_sample_are_read_from_its_own_block() {
    let graph = with(|b| {
        let numbers = numbers(b, 2);
        let columns = b.call("arange.default", &[("end", i(4))]);
        let columns = b.call("unsqueeze.default", &[("self", t(&columns)), ("dim", i(0))]);
        let read = index(b, "x", &[&numbers, &columns]);
        rows(b, &read)
    });
    let per_sample = Dependence::PerSample { axis: 0 };
    assert_eq!(
        shape_of(&graph, "index"),
        (per_sample, vec![Extent::Batch(1), Extent::Fixed(4)])
    );
}

#[test]
fn a_mask_of_hugging_face_is_read_with_four_axes() {
    let graph = with(|b| {
        let numbers = numbers(b, 4);
        let columns = b.call("arange.default", &[("end", i(6))]);
        let arguments = [("self", t(&columns)), ("size", sizes(&[k(1), k(1), k(1), k(6)]))];
        let columns = b.call("view.default", &arguments);
        let read = index(b, "x", &[&numbers, &columns]);
        b.call(
            "sum.dim_IntList",
            &[("self", t(&read)), ("dim", ints(&[1, 2, 3]))],
        )
    });
    assert_eq!(shape_of(&graph, "index").1.len(), 4);
}

#[test]
fn a_samples_own_indices_are_read_from_its_own_block_and_guarded() {
    let graph = with(|b| {
        let size = b.size("x", 0);
        let numbers = numbers(b, 1);
        let arguments = [("self", t(&numbers)), ("size", sizes(&[size, k(1)]))];
        let numbers = b.call("view.default", &arguments);
        let own = b.call("unsqueeze.default", &[("self", t("y")), ("dim", i(1))]);
        let read = index(b, "logits", &[&numbers, &own]);
        rows(b, &read)
    });
    let node = graph
        .nodes()
        .iter()
        .find(|node| node.operator == "index")
        .unwrap();
    let guards = value_guards(&graph, node);
    assert_eq!(guards.len(), 1);
    assert_eq!((guards[0].minimum, guards[0].maximum), (-3, 2));
}

#[test]
fn axes_after_the_indices_stay() {
    let graph = with(|b| {
        let numbers = numbers(b, 1);
        let read = index(b, "m", &[&numbers]);
        b.call("sum.dim_IntList", &[("self", t(&read)), ("dim", ints(&[1, 2]))])
    });
    assert_eq!(
        shape_of(&graph, "index").1,
        [Extent::Batch(1), Extent::Fixed(2), Extent::Fixed(3)]
    );
}
