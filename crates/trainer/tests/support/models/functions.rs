//! Functions of trainable parameters in taps (G2).

use super::*;

fn number(value: f64) -> Argument {
    Argument::NumberAsTensor(Number::Float(FloatBits::new(value)))
}

fn of(value: ValueId) -> [(&'static str, Argument); 1] {
    [("self", v(value))]
}

fn both(left: ValueId, right: ValueId) -> [(&'static str, Argument); 2] {
    [("self", v(left)), ("other", v(right))]
}

/// `linear(x, 100·w)`: tapped at `100·w` it would have a hundred times its sensitivity in `w`.
pub fn scaled(dtype: DType, batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", dtype, &[3]);
    let w = g.parameter("w", dtype, &[2, 3], true);
    let hundred = [("self", v(w)), ("other", number(100.0))];
    let hundredfold = g.node("mul.Tensor", &hundred, dtype, &[n(2), n(3)]);
    let arguments = [("input", v(x)), ("weight", v(hundredfold))];
    let h = g.node("linear", &arguments, dtype, &[b(1), n(2)]);
    g.tap(Tap::Linear {
        input: x,
        weight: Some(g.function(hundredfold, &[w])),
        bias: None,
    });
    let h = g.node("tanh", &of(h), dtype, &[b(1), n(2)]);
    let dim = ("dim", Argument::Ints(vec![1]));
    let loss = g.node("sum.dim_IntList", &[("self", v(h)), dim], dtype, &[b(1)]);
    let k = kind(dtype);
    Model {
        name: "scaled",
        graph: g.finish(loss),
        parameters: vec![rand(k, &[2, 3]) * 0.01],
        constants: vec![],
        inputs: vec![rand(k, &[batch, 3])],
        reference: Box::new(move |p, i| {
            let weight: Tensor = &p[0] * 100.0;
            i[0].linear::<Tensor>(&weight, None)
                .tanh()
                .sum_dim_intlist(1, false, k)
        }),
    }
}

/// `frozen + down·up` in a layer on `[B, T, 4]`, `up` once more by itself, and a scale `exp(log_scale)` that a direction
/// of another layer is normalised by: functions of several parameters, used twice, beside plain uses of the same.
pub fn merged(dtype: DType, batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", dtype, &[3, 4]);
    let frozen = g.parameter("frozen", dtype, &[4, 4], false);
    let down = g.parameter("down", dtype, &[4, 2], true);
    let up = g.parameter("up", dtype, &[2, 4], true);
    let log_scale = g.parameter("log_scale", dtype, &[4], true);
    let direction = g.parameter("direction", dtype, &[4, 4], true);
    let square = [n(4), n(4)];
    let product = g.node("mm", &[("self", v(down)), ("mat2", v(up))], dtype, &square);
    let weight = g.node("add.Tensor", &both(frozen, product), dtype, &square);
    let rows = [b(1), n(3), n(4)];
    let layer = |g: &mut Builder, input: ValueId, weight: ValueId, of: &[ValueId]| {
        let h = g.node(
            "linear",
            &[("input", v(input)), ("weight", v(weight))],
            dtype,
            &rows,
        );
        g.tap(Tap::Linear {
            input,
            weight: Some(g.function(weight, of)),
            bias: None,
        });
        h
    };
    let h = layer(&mut g, x, weight, &[down, up]);
    let h = g.node("tanh", &of(h), dtype, &rows);
    let h = layer(&mut g, h, weight, &[down, up]);
    let narrow = [b(1), n(3), n(2)];
    let own = g.linear(h, up, None, &narrow);
    let scale = g.node("exp", &of(log_scale), dtype, &[n(4)]);
    let data = h;
    let h = g.node("mul.Tensor", &both(data, scale), dtype, &rows);
    g.tap(Tap::BroadcastMul {
        parameter: g.function(scale, &[log_scale]),
        other: data,
    });
    let norms = [
        ("self", v(direction)),
        ("dim", Argument::Ints(vec![1])),
        ("keepdim", Argument::Bool(true)),
    ];
    let norm = g.node("linalg_vector_norm", &norms, dtype, &[n(4), n(1)]);
    let unit = g.node("div.Tensor", &both(direction, norm), dtype, &square);
    let normalised = g.node("mul.Tensor", &both(unit, scale), dtype, &square);
    let h = layer(&mut g, h, normalised, &[log_scale, direction]);
    let squares = |g: &mut Builder, value: ValueId, shape: &[Extent]| {
        let squared = g.node("square", &of(value), dtype, shape);
        let dims = ("dim", Argument::Ints(vec![1, 2]));
        g.node("sum.dim_IntList", &[("self", v(squared)), dims], dtype, &[b(1)])
    };
    let (one, two) = (squares(&mut g, h, &rows), squares(&mut g, own, &narrow));
    let loss = g.node("add.Tensor", &both(one, two), dtype, &[b(1)]);
    let k = kind(dtype);
    Model {
        name: "merged",
        graph: g.finish(loss),
        parameters: vec![
            rand(k, &[4, 4]),
            rand(k, &[4, 2]),
            rand(k, &[2, 4]),
            rand(k, &[4]),
            rand(k, &[4, 4]),
        ],
        constants: vec![],
        inputs: vec![rand(k, &[batch, 3, 4])],
        reference: Box::new(move |p, i| {
            let weight = &p[0] + p[1].mm(&p[2]);
            let h = i[0].linear::<Tensor>(&weight, None).tanh();
            let h = h.linear::<Tensor>(&weight, None);
            let own = h.linear::<Tensor>(&p[2], None);
            let scale = p[3].exp();
            let norm = p[4].norm_scalaropt_dim(2, [1i64], true);
            let normalised = &p[4] / norm * &scale;
            let h = (h * &scale).linear::<Tensor>(&normalised, None);
            h.square().sum_dim_intlist(&[1i64, 2][..], false, k)
                + own.square().sum_dim_intlist(&[1i64, 2][..], false, k)
        }),
    }
}
