//! Attention and products of data with data.

use super::*;

const LENGTH: u64 = 4;
const HEADS: u64 = 2;
const WIDTH: u64 = 3;
const EMBEDDING: u64 = HEADS * WIDTH;

fn sizes(extents: &[Extent]) -> Argument {
    Argument::Sizes(extents.to_vec())
}

fn heads(g: &mut Builder, value: ValueId, dtype: DType) -> ValueId {
    let split = [b(1), n(LENGTH), n(HEADS), n(WIDTH)];
    let value = g.node(
        "view",
        &[("self", v(value)), ("size", sizes(&split))],
        dtype,
        &split,
    );
    g.node(
        "permute",
        &[("self", v(value)), ("dims", Argument::Ints(vec![0, 2, 1, 3]))],
        dtype,
        &[b(1), n(HEADS), n(LENGTH), n(WIDTH)],
    )
}

fn squares(g: &mut Builder, value: ValueId, dtype: DType, shape: &[Extent]) -> ValueId {
    let squared = g.node("square", &[("self", v(value))], dtype, shape);
    let dims = Argument::Ints((1..shape.len() as i64).collect());
    g.node(
        "sum.dim_IntList",
        &[("self", v(squared)), ("dim", dims)],
        dtype,
        &[b(1)],
    )
}

/// Self-attention of two heads with four tapped projections, every sample with a mask of its own.
pub fn self_attention(dtype: DType, batch: i64) -> Model {
    let mut g = Builder::default();
    let rows = [b(1), n(LENGTH), n(EMBEDDING)];
    let x = g.input("x", dtype, &[LENGTH, EMBEDDING]);
    let weights: Vec<ValueId> = ["q", "k", "v", "o"]
        .iter()
        .map(|name| g.parameter(name, dtype, &[EMBEDDING, EMBEDDING], true))
        .collect();
    let first = [("dim", Argument::Int(2)), ("index", Argument::Int(0))];
    let first = g.node(
        "select.int",
        &[&[("self", v(x))], &first[..]].concat(),
        dtype,
        &[b(1), n(LENGTH)],
    );
    let keep = g.node(
        "gt.Scalar",
        &[
            ("self", v(first)),
            ("other", Argument::Float(FloatBits::new(-0.5))),
        ],
        DType::Bool,
        &[b(1), n(LENGTH)],
    );
    let mask = [b(1), n(1), n(1), n(LENGTH)];
    let keep = g.node(
        "view",
        &[("self", v(keep)), ("size", sizes(&mask))],
        DType::Bool,
        &mask,
    );
    let projected: Vec<ValueId> = weights[..3]
        .iter()
        .map(|weight| {
            let projected = g.linear(x, *weight, None, &rows);
            heads(&mut g, projected, dtype)
        })
        .collect();
    let arguments = [
        ("query", v(projected[0])),
        ("key", v(projected[1])),
        ("value", v(projected[2])),
        ("attn_mask", v(keep)),
    ];
    let shape = [b(1), n(HEADS), n(LENGTH), n(WIDTH)];
    let attended = g.node("scaled_dot_product_attention", &arguments, dtype, &shape);
    let back = g.node(
        "permute",
        &[("self", v(attended)), ("dims", Argument::Ints(vec![0, 2, 1, 3]))],
        dtype,
        &[b(1), n(LENGTH), n(HEADS), n(WIDTH)],
    );
    let joined = g.node(
        "reshape",
        &[("self", v(back)), ("shape", sizes(&rows))],
        dtype,
        &rows,
    );
    let out = g.linear(joined, weights[3], None, &rows);
    let loss = squares(&mut g, out, dtype, &rows);
    let k = kind(dtype);
    let width = EMBEDDING as i64;
    // A record whose keys are all masked has no softmax in the reference.
    let records = rand(k, &[batch, LENGTH as i64, width]);
    let _ = records.select(1, 0).select(1, 0).fill_(1.0);
    let split = [-1, LENGTH as i64, HEADS as i64, WIDTH as i64];
    Model {
        name: "self_attention",
        graph: g.finish(loss),
        parameters: (0..4).map(|_| rand(k, &[width, width])).collect(),
        constants: vec![],
        inputs: vec![records],
        reference: Box::new(move |p, i| {
            let heads = |weight: &Tensor| {
                let projected = i[0].linear::<Tensor>(weight, None);
                projected.reshape(split).permute([0, 2, 1, 3])
            };
            let masked = i[0].select(2, 0).le(-0.5).reshape([-1, 1, 1, LENGTH as i64]);
            let scores = heads(&p[0]).matmul(&heads(&p[1]).transpose(-1, -2)) / (WIDTH as f64).sqrt();
            let weights = scores.masked_fill(&masked, f64::NEG_INFINITY).softmax(-1, k);
            let attended = weights.matmul(&heads(&p[2])).permute([0, 2, 1, 3]);
            let out = attended
                .reshape([-1, LENGTH as i64, width])
                .linear::<Tensor>(&p[3], None);
            out.square().sum_dim_intlist(&[1i64, 2][..], false, k)
        }),
    }
}

/// `baddbmm` of heads folded into the batch axis onto a tapped bias, `matmul` with the data on both sides, and a tapped
/// vector on the right.
pub fn products(dtype: DType, batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", dtype, &[2, 3]);
    let w = g.parameter("w", dtype, &[4, 3], true);
    let bias = g.parameter("bias", dtype, &[2, 2], true);
    let vector = g.parameter("vector", dtype, &[2], true);
    let h = g.linear(x, w, None, &[b(1), n(2), n(4)]);
    // [B, 2, 4] as [2B, 2, 2]: two heads of a sample after one another.
    let folded = [b(2), n(2), n(2)];
    let left = g.node(
        "view",
        &[("self", v(h)), ("size", sizes(&folded))],
        dtype,
        &folded,
    );
    let swap = [("dim0", Argument::Int(1)), ("dim1", Argument::Int(2))];
    let right = g.node(
        "transpose.int",
        &[&[("self", v(left))], &swap[..]].concat(),
        dtype,
        &folded,
    );
    let scaled = |value: f64| Argument::Float(FloatBits::new(value));
    let arguments = [
        ("self", v(bias)),
        ("batch1", v(left)),
        ("batch2", v(right)),
        ("beta", scaled(0.5)),
        ("alpha", scaled(2.0)),
    ];
    let scores = g.node("baddbmm", &arguments, dtype, &folded);
    g.tap(Tap::BroadcastAdd {
        parameter: g.tapped(bias),
        scale: FloatBits::new(0.5),
    });
    let scores = g.node("tanh", &[("self", v(scores))], dtype, &folded);
    let mixed = g.node("bmm", &[("self", v(scores)), ("mat2", v(left))], dtype, &folded);
    let split = [b(1), n(2), n(2), n(2)];
    let mixed = g.node(
        "view",
        &[("self", v(mixed)), ("size", sizes(&split))],
        dtype,
        &split,
    );
    let wide = [b(1), n(1), n(2), n(2)];
    let other = g.node("view", &[("self", v(h)), ("size", sizes(&split))], dtype, &split);
    let first = [
        ("dim", Argument::Int(1)),
        ("start", Argument::Int(0)),
        ("end", Argument::Int(1)),
    ];
    let other = g.node(
        "slice.Tensor",
        &[&[("self", v(other))], &first[..]].concat(),
        dtype,
        &wide,
    );
    let both = g.node(
        "matmul",
        &[("self", v(mixed)), ("other", v(other))],
        dtype,
        &split,
    );
    let row = [b(1), n(2), n(2)];
    let dots = g.node("matmul", &[("self", v(both)), ("other", v(vector))], dtype, &row);
    g.tap(Tap::MatMul {
        input: both,
        weight: Some(g.tapped(vector)),
        bias: None,
    });
    let loss = squares(&mut g, dots, dtype, &row);
    let k = kind(dtype);
    Model {
        name: "products",
        graph: g.finish(loss),
        parameters: vec![rand(k, &[4, 3]), rand(k, &[2, 2]), rand(k, &[2])],
        constants: vec![],
        inputs: vec![rand(k, &[batch, 2, 3])],
        reference: Box::new(move |p, i| {
            let h = i[0].linear::<Tensor>(&p[0], None).reshape([-1, 2, 2, 2]);
            let scores = (h.matmul(&h.transpose(-1, -2)) * 2.0 + &p[1] * 0.5).tanh();
            let both = scores.matmul(&h).matmul(&h.narrow(1, 0, 1));
            both.matmul(&p[2])
                .square()
                .sum_dim_intlist(&[1i64, 2][..], false, k)
        }),
    }
}

/// Attention whose parts are given, over `x` of one float input: for shapes and dropout.
pub fn attention_of(shapes: [&[u64]; 4], dropout: f64) -> (TypedGraph, Vec<Vec<u8>>) {
    let mut g = Builder::default();
    let dtype = DType::F32;
    let x = g.input("x", dtype, shapes[0]);
    let width = *shapes[0].last().unwrap();
    let w = g.parameter("w", dtype, &[width, width], true);
    let extents = |shape: &[u64]| -> Vec<Extent> {
        std::iter::once(b(1))
            .chain(shape.iter().map(|&extent| n(extent)))
            .collect()
    };
    let query = g.linear(x, w, None, &extents(shapes[0]));
    let others: Vec<ValueId> = ["key", "value", "mask"]
        .iter()
        .zip(&shapes[1..])
        .map(|(name, shape)| g.input(name, dtype, shape))
        .collect();
    let mut arguments = vec![
        ("query", v(query)),
        ("key", v(others[0])),
        ("value", v(others[1])),
    ];
    if !shapes[3].is_empty() {
        arguments.push(("attn_mask", v(others[2])));
    }
    arguments.push(("dropout_p", Argument::Float(FloatBits::new(dropout))));
    let mut shape = extents(shapes[0]);
    *shape.last_mut().unwrap() = n(*shapes[2].last().unwrap());
    let out = g.node("scaled_dot_product_attention", &arguments, dtype, &shape);
    let loss = squares(&mut g, out, dtype, &shape);
    (g.finish(loss), vec![vec![0; 4 * (width * width) as usize]])
}
