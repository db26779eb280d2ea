//! Stochastic depth and noise: a layer's output times what is drawn.

use super::*;

/// `Σ (r ∘ (x·Wᵀ))²` over `x` `[B, 3]`, with `r` drawn by this operator: `[B, 1]` of `rand` and `randn`, `[B, 3]` of
/// `rand_like` and `randn_like`.
pub fn drawn(operator: &str) -> (TypedGraph, Vec<Vec<u8>>) {
    let mut g = Builder::default();
    let dtype = DType::F32;
    let x = g.input("x", dtype, &[3]);
    let w = g.parameter("w", dtype, &[3, 3], true);
    let h = g.linear(x, w, None, &[b(1), n(3)]);
    let r = if operator.ends_with("_like") {
        g.node(operator, &[("self", v(h))], dtype, &[b(1), n(3)])
    } else {
        let size = ("size", Argument::Sizes(vec![b(1), n(1)]));
        g.node(operator, &[size], dtype, &[b(1), n(1)])
    };
    let path = g.node(
        "mul.Tensor",
        &[("self", v(h)), ("other", v(r))],
        dtype,
        &[b(1), n(3)],
    );
    let squared = g.node("square", &[("self", v(path))], dtype, &[b(1), n(3)]);
    let dim = ("dim", Argument::Ints(vec![1]));
    let loss = g.node("sum.dim_IntList", &[("self", v(squared)), dim], dtype, &[b(1)]);
    (g.finish(loss), vec![bytes_of(&rand(Kind::Float, &[3, 3]))])
}
