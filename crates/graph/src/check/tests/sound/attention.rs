//! Products of data with data, and attention within a sample.

use super::*;
use crate::typed::{Dependence, Extent};

fn last_type(graph: &TypedGraph, operator: &str) -> crate::typed::ValueType {
    let node = graph
        .nodes()
        .iter()
        .find(|node| node.operator == operator)
        .unwrap();
    graph.values()[node.outputs[0].0 as usize].value_type.clone()
}

fn sum_sample(b: &mut Build, value: &str, axes: &[i64]) -> String {
    b.call("sum.dim_IntList", &[("self", t(value)), ("dim", ints(axes))])
}

fn transposed(b: &mut Build, value: &str) -> String {
    b.call(
        "transpose.int",
        &[("self", t(value)), ("dim0", i(-2)), ("dim1", i(-1))],
    )
}

/// `m` with one head, `[B, 1, 2, 3]`.
fn one_head(b: &mut Build) -> String {
    b.call("unsqueeze.default", &[("self", t("m")), ("dim", i(1))])
}

fn attend(b: &mut Build, value: &str, more: &[(&'static str, RawArgument)]) -> String {
    let mut arguments = vec![("query", t(value)), ("key", t(value)), ("value", t(value))];
    arguments.extend_from_slice(more);
    b.call("scaled_dot_product_attention.default", &arguments)
}

#[test]
fn products_of_a_sample_with_itself_are_accepted() {
    let graph = with(|b| {
        let other = transposed(b, "m");
        let weights = b.call("bmm.default", &[("self", t("m")), ("mat2", t(&other))]);
        sum_sample(b, &weights, &[1, 2])
    });
    let product = last_type(&graph, "bmm");
    assert_eq!(product.dependence, Dependence::PerSample { axis: 0 });
    assert_eq!(
        product.shape,
        [Extent::Batch(1), Extent::Fixed(2), Extent::Fixed(2)]
    );
    with(|b| {
        let heads = one_head(b);
        let other = transposed(b, &heads);
        let weights = b.call("matmul.default", &[("self", t(&heads)), ("other", t(&other))]);
        sum_sample(b, &weights, &[1, 2, 3])
    });
    with(|b| {
        let column = b.call("slice.Tensor", &[("self", t("x")), ("dim", i(1)), ("end", i(3))]);
        let column = b.call("unsqueeze.default", &[("self", t(&column)), ("dim", i(2))]);
        let dots = b.call("matmul.default", &[("self", t("m")), ("other", t(&column))]);
        sum_sample(b, &dots, &[1, 2])
    });
}

#[test]
fn heads_folded_into_the_batch_axis_stay_within_their_sample() {
    let graph = with(|b| {
        let size = b.size("x", 0);
        let folded = b.size_op("mul", size.clone(), k(2));
        let heads = b.call(
            "view.default",
            &[("self", t("m")), ("size", sizes(&[folded, k(1), k(3)]))],
        );
        let other = transposed(b, &heads);
        let weights = b.call("bmm.default", &[("self", t(&heads)), ("mat2", t(&other))]);
        let weights = b.call("softmax.int", &[("self", t(&weights)), ("dim", i(-1))]);
        let values = b.call("bmm.default", &[("self", t(&weights)), ("mat2", t(&heads))]);
        let back = b.call(
            "view.default",
            &[("self", t(&values)), ("size", sizes(&[size, k(2), k(3)]))],
        );
        sum_sample(b, &back, &[1, 2])
    });
    assert_eq!(last_type(&graph, "bmm").shape[0], Extent::Batch(2));
}

#[test]
fn constants_multiply_data_from_either_side() {
    with(|b| {
        let columns = transposed(b, "m");
        let left = b.call("matmul.default", &[("self", t("c33")), ("other", t(&columns))]);
        sum_sample(b, &left, &[1, 2])
    });
    let graph = with(|b| {
        let columns = b.call("t.default", &[("self", t("x"))]);
        let left = b.call("matmul.default", &[("self", t("frozen")), ("other", t(&columns))]);
        sum_sample(b, &left, &[0])
    });
    assert_eq!(
        last_type(&graph, "matmul").dependence,
        Dependence::PerSample { axis: 1 }
    );
    with(|b| {
        let columns = transposed(b, "m");
        let vector = b.call("matmul.default", &[("self", t("c3")), ("other", t(&columns))]);
        rows(b, &vector)
    });
    with(|b| {
        b.constant("heads", DType::F32, &[2, 3, 4]);
        let one = b.call("unsqueeze.default", &[("self", t("m")), ("dim", i(2))]);
        let each = b.call("matmul.default", &[("self", t(&one)), ("other", t("heads"))]);
        sum_sample(b, &each, &[1, 2, 3])
    });
}

#[test]
fn a_trainable_vector_on_the_right_is_tapped() {
    let graph = with(|b| b.call("matmul.default", &[("self", t("x")), ("other", t("w6"))]));
    let node = graph
        .nodes()
        .iter()
        .find(|node| node.operator == "matmul")
        .unwrap();
    assert!(matches!(&node.tap, Some(Tap::MatMul { weight: Some(_), .. })));
}

#[test]
fn what_baddbmm_adds_is_tapped_with_its_scale() {
    let graph = with(|b| {
        b.parameter("bias", &[2, 2], true);
        let columns = transposed(b, "m");
        let arguments = [
            ("self", t("bias")),
            ("batch1", t("m")),
            ("batch2", t(&columns)),
            ("beta", f(-0.5)),
            ("alpha", f(2.0)),
        ];
        let sum = b.call("baddbmm.default", &arguments);
        sum_sample(b, &sum, &[1, 2])
    });
    let node = graph
        .nodes()
        .iter()
        .find(|node| node.operator == "baddbmm")
        .unwrap();
    let Some(Tap::BroadcastAdd { scale, .. }) = &node.tap else {
        panic!("{:?}", node.tap)
    };
    assert_eq!(scale.get(), -0.5);
}

#[test]
fn attention_within_a_sample_is_accepted_with_every_kind_of_mask() {
    let mask = |shape: &'static [u64], dtype| {
        move |b: &mut Build| {
            b.constant("mask", dtype, shape);
            let heads = one_head(b);
            let attended = attend(b, &heads, &[("attn_mask", t("mask"))]);
            sum_sample(b, &attended, &[1, 2, 3])
        }
    };
    with(mask(&[2, 2], DType::Bool));
    with(mask(&[2, 2], DType::F32));
    with(mask(&[1, 1, 1, 2], DType::F32));
    with(|b| {
        let heads = one_head(b);
        let plain = attend(b, &heads, &[]);
        let causal = attend(b, &plain, &[("is_causal", flag(true)), ("scale", f(0.25))]);
        let dropped = attend(b, &causal, &[("dropout_p", f(0.1))]);
        sum_sample(b, &dropped, &[1, 2, 3])
    });
    with(|b| {
        let key = b.call("slice.Tensor", &[("self", t("x")), ("dim", i(1)), ("end", i(2))]);
        let keep = b.call("gt.Scalar", &[("self", t(&key)), ("other", f(0.0))]);
        let size = b.size("x", 0);
        let keep = b.call(
            "view.default",
            &[("self", t(&keep)), ("size", sizes(&[size, k(1), k(1), k(2)]))],
        );
        let heads = one_head(b);
        let attended = attend(b, &heads, &[("attn_mask", t(&keep))]);
        sum_sample(b, &attended, &[1, 2, 3])
    });
}

#[test]
fn attention_of_another_length_and_width_is_typed_by_query_and_value() {
    let graph = with(|b| {
        b.input("keys", DType::F32, &[5, 3], None);
        b.input("values", DType::F32, &[5, 4], None);
        let arguments = [("query", t("m")), ("key", t("keys")), ("value", t("values"))];
        let attended = b.call("scaled_dot_product_attention.default", &arguments);
        sum_sample(b, &attended, &[1, 2])
    });
    let attended = last_type(&graph, "scaled_dot_product_attention");
    assert_eq!(
        attended.shape,
        [Extent::Batch(1), Extent::Fixed(2), Extent::Fixed(4)]
    );
}

/// No leak, but libtorch would read out of bounds or raise: refused with what to do.
#[test]
fn attention_of_shapes_that_do_not_fit_is_refused() {
    let refused = |name: &str, shape: &[u64], more: &[(&'static str, RawArgument)]| {
        let mut b = Build::classifier();
        b.input("other", DType::F32, shape, None);
        b.constant("wide", DType::F32, &[2, 3]);
        b.constant("row", DType::F32, &[2]);
        b.constant("numbers", DType::I64, &[2, 2]);
        let mut arguments = vec![("query", t("m")), ("key", t("m")), ("value", t("m"))];
        arguments.retain(|(role, _)| *role != name);
        if ["query", "key", "value"].contains(&name) {
            arguments.push((
                ["query", "key", "value"]
                    .into_iter()
                    .find(|role| *role == name)
                    .unwrap(),
                t("other"),
            ));
        }
        arguments.extend_from_slice(more);
        let attended = b.bad("scaled_dot_product_attention.default", &arguments);
        let total = sum_sample(&mut b, &attended, &[1, 2]);
        b.returns_loss_plus(&total);
        let refusals = b.check().unwrap_err().refusals;
        assert_eq!(refusals[0].node, b.blamed);
        refusals[0].reason.clone()
    };
    assert!(refused("value", &[9, 3], &[]).contains("one length"));
    assert!(refused("key", &[2, 4], &[]).contains("one width"));
    assert!(refused("key", &[1, 2, 3], &[]).contains("different samples"));
    let mask = |name: &str| vec![("attn_mask", t(name))];
    for name in ["wide", "row", "numbers"] {
        let reason = refused("", &[1], &mask(name));
        assert!(
            reason.contains("the mask") || reason.contains("do not broadcast"),
            "{name}: {reason}"
        );
    }
    let both = [("attn_mask", t("c1")), ("is_causal", flag(true))];
    assert!(refused("", &[1], &both).contains("both given"));
    assert!(refused("", &[1], &[("dropout_p", f(1.0))]).contains("[0, 1)"));
}
