//! Embeddings, positions, class tokens and ties.

use super::models::{Model, kind, v};
use super::*;

/// All models of this file.
pub fn all(dtype: DType, batch: i64) -> Vec<Model> {
    vec![
        tokens(dtype, batch),
        tied_head(dtype, batch, 40, 30),
        tied_head(dtype, batch, 6, 3),
        recurrent(dtype, batch),
        two_columns(dtype, batch),
    ]
}

fn ids(batch: i64, tokens: i64, words: i64) -> Tensor {
    randint(words, &[batch, tokens])
}

fn embed(g: &mut Builder, table: ValueId, ids: ValueId, padding: i64, shape: &[Extent]) -> ValueId {
    let dtype = g.dtype(table);
    let arguments = [
        ("weight", v(table)),
        ("indices", v(ids)),
        ("padding_idx", Argument::Int(padding)),
    ];
    let rows = g.node("embedding", &arguments, dtype, shape);
    g.tap(Tap::Embedding {
        indices: ids,
        weight: g.tapped(table),
        padding_idx: u64::try_from(padding).ok(),
    });
    rows
}

fn add(g: &mut Builder, left: ValueId, right: ValueId, shape: &[Extent]) -> ValueId {
    let dtype = g.dtype(left);
    g.node(
        "add.Tensor",
        &[("self", v(left)), ("other", v(right))],
        dtype,
        shape,
    )
}

fn mul(g: &mut Builder, left: ValueId, right: ValueId, shape: &[Extent]) -> ValueId {
    let dtype = g.dtype(left);
    g.node(
        "mul.Tensor",
        &[("self", v(left)), ("other", v(right))],
        dtype,
        shape,
    )
}

/// `Σ tanh(value)²` within each record.
fn squares(g: &mut Builder, value: ValueId, shape: &[Extent]) -> ValueId {
    let dtype = g.dtype(value);
    let bent = g.node("tanh", &[("self", v(value))], dtype, shape);
    let squared = g.node("square", &[("self", v(bent))], dtype, shape);
    let dims = ("dim", Argument::Ints((1..shape.len() as i64).collect()));
    g.node("sum.dim_IntList", &[("self", v(squared)), dims], dtype, &[b(1)])
}

/// A class token before five tokens with positions 1..6 of seven; word 2 is padding.
pub fn tokens(dtype: DType, batch: i64) -> Model {
    let mut g = Builder::default();
    let words = g.input("words", DType::I64, &[5]);
    let x = g.input("x", dtype, &[6, 3]);
    let table = g.parameter("table", dtype, &[6, 3], true);
    let pos = g.parameter("pos", dtype, &[7, 3], true);
    let cls = g.parameter("cls", dtype, &[1, 1, 3], true);
    let rows = [b(1), n(5), n(3)];
    let hidden = embed(&mut g, table, words, 2, &rows);
    let (start, end) = (("start", Argument::Int(1)), ("end", Argument::Int(6)));
    let at = g.node("arange.start", &[start, end], DType::I64, &[n(5)]);
    let places = g.node(
        "embedding",
        &[("weight", v(pos)), ("indices", v(at))],
        dtype,
        &[n(5), n(3)],
    );
    let hidden = add(&mut g, hidden, places, &rows);
    let narrow = ParameterView::Narrow {
        axis: 0,
        start: 1,
        length: 5,
    };
    g.tap(Tap::BroadcastAdd {
        parameter: TappedParameter {
            value: places,
            views: vec![narrow, ParameterView::Reshape(vec![5, 3])],
            ..g.tapped(pos)
        },
        scale: FloatBits::new(1.0),
    });
    let size = ("size", Argument::Sizes(vec![b(1), n(1), n(3)]));
    let first = g.node("expand", &[("self", v(cls)), size], dtype, &[b(1), n(1), n(3)]);
    g.tap(Tap::Expand {
        parameter: g.tapped(cls),
    });
    let all = [b(1), n(6), n(3)];
    let joined = ("tensors", Argument::Values(vec![first, hidden]));
    let hidden = g.node("cat", &[joined, ("dim", Argument::Int(1))], dtype, &all);
    let scaled = mul(&mut g, hidden, x, &all);
    let loss = squares(&mut g, scaled, &all);
    let k = kind(dtype);
    Model {
        name: "tokens",
        graph: g.finish(loss),
        parameters: vec![rand(k, &[6, 3]), rand(k, &[7, 3]), rand(k, &[1, 1, 3])],
        constants: vec![],
        inputs: vec![ids(batch, 5, 6), rand(k, &[batch, 6, 3])],
        reference: Box::new(move |p, i| {
            let rows = Tensor::embedding(&p[0], &i[0], 2, false, false) + p[1].narrow(0, 1, 5);
            let first = p[2].expand([i[0].size()[0], 1, 3], false);
            let hidden = Tensor::cat(&[first, rows], 1) * &i[1];
            hidden.tanh().square().sum_dim_intlist(&[1i64, 2][..], false, k)
        }),
    }
}

/// A language model in small: the table is the last layer too. Word 3 is padding.
pub fn tied_head(dtype: DType, batch: i64, words: u64, width: u64) -> Model {
    let mut g = Builder::default();
    let tokens = g.input("tokens", DType::I64, &[4]);
    let x = g.input("x", dtype, &[4, width]);
    let table = g.parameter("table", dtype, &[words, width], true);
    let rows = [b(1), n(4), n(width)];
    let hidden = embed(&mut g, table, tokens, 3, &rows);
    let hidden = mul(&mut g, hidden, x, &rows);
    let logits = [b(1), n(4), n(words)];
    let out = g.linear(hidden, table, None, &logits);
    let loss = squares(&mut g, out, &logits);
    let (k, w, d) = (kind(dtype), words as i64, width as i64);
    Model {
        name: if words > 10 {
            "tied_head"
        } else {
            "small_tied_head"
        },
        graph: g.finish(loss),
        parameters: vec![rand(k, &[w, d]) / (d as f64)],
        constants: vec![],
        inputs: vec![ids(batch, 4, w), rand(k, &[batch, 4, d])],
        reference: Box::new(move |p, i| {
            let hidden = Tensor::embedding(&p[0], &i[0], 3, false, false) * &i[1];
            let out = hidden.linear::<Tensor>(&p[0], None).tanh();
            out.square().sum_dim_intlist(&[1i64, 2][..], false, k)
        }),
    }
}

/// One matrix three times in a row, on either side of the product, over two rows of a record.
pub fn recurrent(dtype: DType, batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", dtype, &[2, 20]);
    let w = g.parameter("w", dtype, &[20, 20], true);
    let rows = [b(1), n(2), n(20)];
    let once = g.linear(x, w, None, &rows);
    let once = g.node("tanh", &[("self", v(once))], dtype, &rows);
    let twice = g.node("matmul", &[("self", v(once)), ("other", v(w))], dtype, &rows);
    g.tap(Tap::MatMul {
        input: once,
        weight: Some(g.tapped(w)),
        bias: None,
    });
    let thrice = g.linear(twice, w, None, &rows);
    let loss = squares(&mut g, thrice, &rows);
    let k = kind(dtype);
    Model {
        name: "recurrent",
        graph: g.finish(loss),
        parameters: vec![rand(k, &[20, 20]) / 4.0],
        constants: vec![],
        inputs: vec![rand(k, &[batch, 2, 20])],
        reference: Box::new(move |p, i| {
            let once = i[0].linear::<Tensor>(&p[0], None).tanh();
            let thrice = once.matmul(&p[0]).linear::<Tensor>(&p[0], None);
            thrice.tanh().square().sum_dim_intlist(&[1i64, 2][..], false, k)
        }),
    }
}

/// One table for two columns of ids, one of them a single id of 32 bits.
pub fn two_columns(dtype: DType, batch: i64) -> Model {
    let mut g = Builder::default();
    let words = g.input("words", DType::I64, &[3]);
    let topic = g.input("topic", DType::I64, &[]);
    let x = g.input("x", dtype, &[3, 4]);
    let table = g.parameter("table", dtype, &[5, 4], true);
    let rows = [b(1), n(3), n(4)];
    let hidden = embed(&mut g, table, words, -1, &rows);
    let narrow = ("dtype", Argument::DType(DType::I32));
    let topic = g.node("_to_copy", &[("self", v(topic)), narrow], DType::I32, &[b(1)]);
    let topic = embed(&mut g, table, topic, -1, &[b(1), n(4)]);
    let dim = ("dim", Argument::Int(1));
    let topic = g.node(
        "unsqueeze",
        &[("self", v(topic)), dim],
        dtype,
        &[b(1), n(1), n(4)],
    );
    let hidden = mul(&mut g, hidden, topic, &rows);
    let hidden = mul(&mut g, hidden, x, &rows);
    let loss = squares(&mut g, hidden, &rows);
    let k = kind(dtype);
    Model {
        name: "two_columns",
        graph: g.finish(loss),
        parameters: vec![rand(k, &[5, 4])],
        constants: vec![],
        inputs: vec![ids(batch, 3, 5), randint(5, &[batch]), rand(k, &[batch, 3, 4])],
        reference: Box::new(move |p, i| {
            let topic = Tensor::embedding(&p[0], &i[1], -1, false, false).unsqueeze(1);
            let hidden = Tensor::embedding(&p[0], &i[0], -1, false, false) * topic * &i[2];
            hidden.tanh().square().sum_dim_intlist(&[1i64, 2][..], false, k)
        }),
    }
}
