//! Random values drawn for every sample.

use super::*;

#[test]
fn stochastic_depth_by_rows_is_accepted() {
    let graph = with(|b| {
        let size = b.size("x", 0);
        let drawn = b.call("rand.default", &[("size", sizes(&[size, k(1)]))]);
        let kept = b.call("lt.Scalar", &[("self", t(&drawn)), ("other", f(0.8))]);
        let kept = b.call(
            "_to_copy.default",
            &[("self", t(&kept)), ("dtype", RawArgument::ScalarType(7))],
        );
        let kept = b.call("div.Scalar", &[("self", t(&kept)), ("other", f(0.8))]);
        let path = b.call("mul.Tensor", &[("self", t("x")), ("other", t(&kept))]);
        rows(b, &path)
    });
    let drawn = graph.nodes().iter().find(|node| node.operator == "rand").unwrap();
    assert!(!graph.values()[drawn.outputs[0].0 as usize].requires_grad);
}

#[test]
fn stochastic_depth_by_rounding_down_is_accepted() {
    with(|b| {
        let size = b.size("x", 0);
        let drawn = b.call("rand.default", &[("size", sizes(&[size, k(1)]))]);
        let shifted = b.call("add.Tensor", &[("self", t(&drawn)), ("other", f(0.8))]);
        let kept = b.call("floor.default", &[("self", t(&shifted))]);
        let path = b.call("mul.Tensor", &[("self", t("x")), ("other", t(&kept))]);
        rows(b, &path)
    });
}

#[test]
fn noise_on_every_sample_is_accepted_whatever_its_axis() {
    for operator in ["rand_like.default", "randn_like.default"] {
        with(|b| {
            let turned = b.call("t.default", &[("self", t("x"))]);
            let noise = b.call(operator, &[("self", t(&turned))]);
            let noisy = b.call("add.Tensor", &[("self", t(&turned)), ("other", t(&noise))]);
            b.call("sum.dim_IntList", &[("self", t(&noisy)), ("dim", ints(&[0]))])
        });
    }
    with(|b| {
        let size = b.size("x", 0);
        let noise = b.call("randn.default", &[("size", sizes(&[k(6), size]))]);
        let turned = b.call("t.default", &[("self", t(&noise))]);
        let noisy = b.call("add.Tensor", &[("self", t("x")), ("other", t(&turned))]);
        rows(b, &noisy)
    });
}

#[test]
fn integers_are_not_drawn() {
    let mut build = Build::classifier();
    let drawn = build.call(
        "rand_like.default",
        &[("self", t("t")), ("dtype", RawArgument::ScalarType(5))],
    );
    build.returns_loss_plus(&drawn);
    let refusals = build.check().unwrap_err().to_string();
    assert!(refusals.contains("not floating"), "{refusals}");
}
