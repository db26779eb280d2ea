//! Models of every kind of tap, as typed graph and as plain autograd.

pub mod attention;
pub mod draws;
pub mod functions;
pub mod recurrent;

use super::*;

/// The model again, in plain autograd.
pub type Reference = Box<dyn Fn(&[Tensor], &[Tensor]) -> Tensor>;

/// A model: its graph, its parameters, and the same computation for one batch by plain autograd.
pub struct Model {
    pub name: &'static str,
    pub graph: TypedGraph,
    pub parameters: Vec<Tensor>,
    pub constants: Vec<Tensor>,
    pub inputs: Vec<Tensor>,
    pub reference: Reference,
}

impl Model {
    pub fn engine(&self, settings: Settings) -> Engine {
        set_up();
        let parameters: Vec<_> = self.parameters.iter().map(bytes_of).collect();
        let constants: Vec<_> = self.constants.iter().map(bytes_of).collect();
        Engine::new(self.graph.clone(), &parameters, &constants, settings).expect(self.name)
    }

    /// Gradients of record `row` alone, by plain autograd.
    pub fn alone(&self, row: i64) -> Vec<Tensor> {
        let parameters: Vec<_> = self
            .parameters
            .iter()
            .map(|each| each.detach().copy().set_requires_grad(true))
            .collect();
        let inputs: Vec<_> = self.inputs.iter().map(|each| each.narrow(0, row, 1)).collect();
        (self.reference)(&parameters, &inputs)
            .sum(Kind::Double)
            .backward();
        let trainable = self.graph.parameters().iter().map(|each| each.trainable);
        parameters
            .iter()
            .zip(trainable)
            .filter(|(_, trainable)| *trainable)
            .map(|(each, _)| each.grad())
            .collect()
    }
}

pub fn kind(dtype: DType) -> Kind {
    if dtype == DType::F64 {
        Kind::Double
    } else {
        Kind::Float
    }
}

pub fn v(value: ValueId) -> Argument {
    Argument::Value(value)
}

/// linear → relu → linear → cross-entropy per sample; the first bias frozen.
pub fn classifier(dtype: DType, batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", dtype, &[6]);
    let y = g.input("y", DType::I64, &[]);
    let w1 = g.parameter("w1", dtype, &[5, 6], true);
    let b1 = g.parameter("b1", dtype, &[5], false);
    let w2 = g.parameter("w2", dtype, &[3, 5], true);
    let b2 = g.parameter("b2", dtype, &[3], true);
    let h = g.linear(x, w1, Some(b1), &[b(1), n(5)]);
    let h = g.node("relu", &[("self", v(h))], dtype, &[b(1), n(5)]);
    let z = g.linear(h, w2, Some(b2), &[b(1), n(3)]);
    let arguments = [("self", v(z)), ("target", v(y)), ("reduction", Argument::Int(0))];
    let loss = g.node("cross_entropy_loss", &arguments, dtype, &[b(1)]);
    let k = kind(dtype);
    Model {
        name: "classifier",
        graph: g.finish(loss),
        parameters: vec![rand(k, &[5, 6]), rand(k, &[5]), rand(k, &[3, 5]), rand(k, &[3])],
        constants: vec![],
        inputs: vec![rand(k, &[batch, 6]), randint(3, &[batch])],
        reference: Box::new(|p, i| {
            let h = i[0].linear(&p[0], Some(&p[1])).relu();
            h.linear(&p[2], Some(&p[3])).cross_entropy_loss::<Tensor>(
                &i[1],
                None,
                tch::Reduction::None,
                -100,
                0.0,
            )
        }),
    }
}

/// `linear` on `[B, T, 4]` with `T` long or short against the widths (Gram or instantiated norms), then squares.
pub fn sequence(dtype: DType, batch: i64, length: u64, width: u64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", dtype, &[length, 4]);
    let w = g.parameter("w", dtype, &[width, 4], true);
    let bias = g.parameter("b", dtype, &[width], true);
    let h = g.linear(x, w, Some(bias), &[b(1), n(length), n(width)]);
    let t = g.node("tanh", &[("self", v(h))], dtype, &[b(1), n(length), n(width)]);
    let s = g.node("square", &[("self", v(t))], dtype, &[b(1), n(length), n(width)]);
    let dims = ("dim", Argument::Ints(vec![1, 2]));
    let loss = g.node("sum.dim_IntList", &[("self", v(s)), dims], dtype, &[b(1)]);
    let (k, t, o) = (kind(dtype), length as i64, width as i64);
    Model {
        name: "sequence",
        graph: g.finish(loss),
        parameters: vec![rand(k, &[o, 4]), rand(k, &[o])],
        constants: vec![],
        inputs: vec![rand(k, &[batch, t, 4])],
        reference: Box::new(move |p, i| {
            i[0].linear(&p[0], Some(&p[1]))
                .tanh()
                .square()
                .sum_dim_intlist(&[1i64, 2][..], false, k)
        }),
    }
}

/// layer_norm with affine parameters, minus a broadcast parameter, times another, squared error.
pub fn normalised(dtype: DType, batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", dtype, &[3, 4]);
    let scale = g.parameter("scale", dtype, &[4], true);
    let shift = g.parameter("shift", dtype, &[4], true);
    let position = g.parameter("position", dtype, &[1, 3, 4], true);
    let gain = g.parameter("gain", dtype, &[3, 1], true);
    let target = g.constant("target", dtype, &[4]);
    let full = [b(1), n(3), n(4)];
    let normalized = ("normalized_shape", Argument::Sizes(vec![n(4)]));
    let h = g.node(
        "layer_norm",
        &[
            ("input", v(x)),
            normalized,
            ("weight", v(scale)),
            ("bias", v(shift)),
        ],
        dtype,
        &full,
    );
    g.tap(Tap::LayerNorm {
        input: x,
        normalized_shape: vec![4],
        weight: Some(g.tapped(scale)),
        bias: Some(g.tapped(shift)),
        eps: FloatBits::new(1e-5),
    });
    let moved = g.node(
        "sub.Tensor",
        &[("self", v(h)), ("other", v(position))],
        dtype,
        &full,
    );
    g.tap(Tap::BroadcastAdd {
        parameter: g.tapped(position),
        scale: FloatBits::new(-1.0),
    });
    let scaled = g.node(
        "mul.Tensor",
        &[("self", v(moved)), ("other", v(gain))],
        dtype,
        &full,
    );
    g.tap(Tap::BroadcastMul {
        parameter: g.tapped(gain),
        other: moved,
    });
    let error = g.node(
        "sub.Tensor",
        &[("self", v(scaled)), ("other", v(target))],
        dtype,
        &full,
    );
    let squared = g.node("square", &[("self", v(error))], dtype, &full);
    let dims = ("dim", Argument::Ints(vec![1, 2]));
    let loss = g.node("mean.dim", &[("self", v(squared)), dims], dtype, &[b(1)]);
    let k = kind(dtype);
    let constant = rand(k, &[4]);
    let target = constant.copy();
    Model {
        name: "normalised",
        graph: g.finish(loss),
        parameters: vec![
            rand(k, &[4]),
            rand(k, &[4]),
            rand(k, &[1, 3, 4]),
            rand(k, &[3, 1]),
        ],
        constants: vec![constant],
        inputs: vec![rand(k, &[batch, 3, 4])],
        reference: Box::new(move |p, i| {
            let h = i[0].layer_norm([4], Some(&p[0]), Some(&p[1]), 1e-5, false);
            (((h - &p[2]) * &p[3]) - &target)
                .square()
                .mean_dim(&[1i64, 2][..], false, k)
        }),
    }
}

/// One weight used three times: `linear`, its transpose by `matmul`, and again through `t` and `linear`.
pub fn tied(dtype: DType, batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", dtype, &[4]);
    let w = g.parameter("w", dtype, &[3, 4], true);
    let h = g.linear(x, w, None, &[b(1), n(3)]);
    let h = g.node("tanh", &[("self", v(h))], dtype, &[b(1), n(3)]);
    let back = g.node("matmul", &[("self", v(h)), ("other", v(w))], dtype, &[b(1), n(4)]);
    g.tap(Tap::MatMul {
        input: h,
        weight: Some(g.tapped(w)),
        bias: None,
    });
    let back = g.node("sigmoid", &[("self", v(back))], dtype, &[b(1), n(4)]);
    let turned = g.node("t", &[("self", v(w))], dtype, &[n(4), n(3)]);
    let again = g.node(
        "matmul",
        &[("self", v(back)), ("other", v(turned))],
        dtype,
        &[b(1), n(3)],
    );
    let view = TappedParameter {
        value: turned,
        views: vec![ParameterView::Permute(vec![1, 0])],
        ..g.tapped(w)
    };
    g.tap(Tap::MatMul {
        input: back,
        weight: Some(view),
        bias: None,
    });
    let squared = g.node("square", &[("self", v(again))], dtype, &[b(1), n(3)]);
    let dim = ("dim", Argument::Ints(vec![1]));
    let loss = g.node("sum.dim_IntList", &[("self", v(squared)), dim], dtype, &[b(1)]);
    let k = kind(dtype);
    Model {
        name: "tied",
        graph: g.finish(loss),
        parameters: vec![rand(k, &[3, 4])],
        constants: vec![],
        inputs: vec![rand(k, &[batch, 4])],
        reference: Box::new(move |p, i| {
            let h = i[0].linear::<Tensor>(&p[0], None).tanh();
            let back = h.matmul(&p[0]).sigmoid();
            back.matmul(&p[0].tr()).square().sum_dim_intlist(1, false, k)
        }),
    }
}

/// `[B, 2, 3]` seen as `[2B, 3]`, `addmm` with weight `(in, out)`, back to one loss per sample by `gather`.
pub fn flattened(dtype: DType, batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", dtype, &[2, 3]);
    let y = g.input("y", DType::I64, &[2]);
    let w = g.parameter("w", dtype, &[3, 5], true);
    let bias = g.parameter("b", dtype, &[5], true);
    let flat = g.node(
        "view",
        &[("self", v(x)), ("size", Argument::Sizes(vec![b(2), n(3)]))],
        dtype,
        &[b(2), n(3)],
    );
    let z = g.node(
        "addmm",
        &[("self", v(bias)), ("mat1", v(flat)), ("mat2", v(w))],
        dtype,
        &[b(2), n(5)],
    );
    g.tap(Tap::MatMul {
        input: flat,
        weight: Some(g.tapped(w)),
        bias: Some(g.tapped(bias)),
    });
    let size = ("size", Argument::Sizes(vec![b(1), n(2), n(5)]));
    let z = g.node("view", &[("self", v(z)), size], dtype, &[b(1), n(2), n(5)]);
    let p = g.node(
        "log_softmax.int",
        &[("self", v(z)), ("dim", Argument::Int(-1))],
        dtype,
        &[b(1), n(2), n(5)],
    );
    let index = g.node(
        "unsqueeze",
        &[("self", v(y)), ("dim", Argument::Int(2))],
        DType::I64,
        &[b(1), n(2), n(1)],
    );
    let arguments = [("self", v(p)), ("dim", Argument::Int(2)), ("index", v(index))];
    let picked = g.node("gather", &arguments, dtype, &[b(1), n(2), n(1)]);
    let dims = ("dim", Argument::Ints(vec![1, 2]));
    let total = g.node("sum.dim_IntList", &[("self", v(picked)), dims], dtype, &[b(1)]);
    let loss = g.node("neg", &[("self", v(total))], dtype, &[b(1)]);
    let k = kind(dtype);
    Model {
        name: "flattened",
        graph: g.finish(loss),
        parameters: vec![rand(k, &[3, 5]), rand(k, &[5])],
        constants: vec![],
        inputs: vec![rand(k, &[batch, 2, 3]), randint(5, &[batch, 2])],
        reference: Box::new(move |p, i| {
            let z = i[0].matmul(&p[0]) + &p[1];
            -z.log_softmax(-1, k)
                .gather(2, &i[1].unsqueeze(2), false)
                .sum_dim_intlist(&[1i64, 2][..], false, k)
        }),
    }
}

/// Every model, at one batch size.
pub fn all(dtype: DType, batch: i64) -> Vec<Model> {
    let mut all = vec![
        classifier(dtype, batch),
        sequence(dtype, batch, 3, 2),
        sequence(dtype, batch, 2, 40),
        normalised(dtype, batch),
        tied(dtype, batch),
        flattened(dtype, batch),
    ];
    all.extend(text::all(dtype, batch));
    all.push(attention::self_attention(dtype, batch));
    all.push(attention::products(dtype, batch));
    all.extend(convolutions::all(dtype, batch));
    all.push(functions::scaled(dtype, batch));
    all.push(functions::merged(dtype, batch));
    all.extend(recurrent::all(dtype, batch));
    all
}

/// `x [2] → scale·x`, two tokens whose output gradients are constants of the model: the adversary of G1 chooses both.
pub fn cancelling(tokens: &[f64], gradients: &[f64], batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", DType::F32, &[2, 2]);
    let w = g.parameter("w", DType::F32, &[2, 2], true);
    let factor = g.constant("factor", DType::F32, &[2, 2]);
    let shape = [b(1), n(2), n(2)];
    let h = g.linear(x, w, None, &shape);
    let scaled = g.node(
        "mul.Tensor",
        &[("self", v(h)), ("other", v(factor))],
        DType::F32,
        &shape,
    );
    let dims = ("dim", Argument::Ints(vec![1, 2]));
    let loss = g.node(
        "sum.dim_IntList",
        &[("self", v(scaled)), dims],
        DType::F32,
        &[b(1)],
    );
    let of = |values: &[f64], shape: &[i64]| Tensor::from_slice(values).to_kind(Kind::Float).reshape(shape);
    Model {
        name: "cancelling",
        graph: g.finish(loss),
        parameters: vec![of(&[0.0; 4], &[2, 2])],
        constants: vec![of(gradients, &[2, 2])],
        inputs: vec![of(tokens, &[1, 2, 2]).expand([batch, 2, 2], false).contiguous()],
        reference: Box::new(|_, _| unreachable!("compared with the closed form")),
    }
}

/// T2's attack: the same product by two kernels, their rounding difference blown up. The loss is nothing but rounding,
/// so it changes with the batch size; at one physical batch size it must not change with the other rows.
pub fn amplified_rounding(batch: i64) -> Model {
    let (dtype, k) = (DType::F32, Kind::Float);
    let mut g = Builder::default();
    let x = g.input("x", dtype, &[64]);
    let w = g.parameter("w", dtype, &[8, 64], false);
    let bias = g.parameter("b", dtype, &[8], true);
    let product = g.linear(x, w, Some(bias), &[b(1), n(8)]);
    let wide = g.node(
        "unsqueeze",
        &[("self", v(x)), ("dim", Argument::Int(1))],
        dtype,
        &[b(1), n(1), n(64)],
    );
    let each = g.node(
        "mul.Tensor",
        &[("self", v(wide)), ("other", v(w))],
        dtype,
        &[b(1), n(8), n(64)],
    );
    let inner = ("dim", Argument::Ints(vec![2]));
    let again = g.node(
        "sum.dim_IntList",
        &[("self", v(each)), inner],
        dtype,
        &[b(1), n(8)],
    );
    let rounding = g.node(
        "sub.Tensor",
        &[("self", v(product)), ("other", v(again))],
        dtype,
        &[b(1), n(8)],
    );
    let blown = (
        "other",
        Argument::NumberAsTensor(Number::Float(FloatBits::new(1e9))),
    );
    let blown = g.node(
        "mul.Tensor",
        &[("self", v(rounding)), blown],
        dtype,
        &[b(1), n(8)],
    );
    let dim = ("dim", Argument::Ints(vec![1]));
    let loss = g.node("sum.dim_IntList", &[("self", v(blown)), dim], dtype, &[b(1)]);
    Model {
        name: "amplified_rounding",
        graph: g.finish(loss),
        parameters: vec![rand(k, &[8, 64]), rand(k, &[8])],
        constants: vec![],
        inputs: vec![rand(k, &[batch, 64])],
        reference: Box::new(move |p, i| {
            let again = (i[0].unsqueeze(1) * &p[0]).sum_dim_intlist(2, false, k);
            ((i[0].linear(&p[0], Some(&p[1])) - again) * 1e9).sum_dim_intlist(1, false, k)
        }),
    }
}

/// A leak that the checker refuses: a softmax over the batch (rule T7).
pub fn leaky(batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", DType::F32, &[4]);
    let w = g.parameter("w", DType::F32, &[1, 4], true);
    let h = g.linear(x, w, None, &[b(1), n(1)]);
    let h = g.node(
        "softmax.int",
        &[("self", v(h)), ("dim", Argument::Int(0))],
        DType::F32,
        &[b(1), n(1)],
    );
    let loss = g.node(
        "sum.dim_IntList",
        &[("self", v(h)), ("dim", Argument::Ints(vec![1]))],
        DType::F32,
        &[b(1)],
    );
    Model {
        name: "leaky",
        graph: g.finish(loss),
        parameters: vec![rand(Kind::Float, &[1, 4])],
        constants: vec![],
        inputs: vec![rand(Kind::Float, &[batch, 4])],
        reference: Box::new(|_, _| unreachable!("never trained")),
    }
}

/// A graph whose types are not what libtorch makes of it (rule T4).
pub fn mistyped(batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", DType::F32, &[4]);
    let w = g.parameter("w", DType::F32, &[2, 4], true);
    let h = g.linear(x, w, None, &[b(1), n(2)]);
    let h = g.node("relu", &[("self", v(h))], DType::F32, &[b(1), n(1)]);
    let loss = g.node(
        "sum.dim_IntList",
        &[("self", v(h)), ("dim", Argument::Ints(vec![1]))],
        DType::F32,
        &[b(1)],
    );
    Model {
        name: "mistyped",
        graph: g.finish(loss),
        parameters: vec![rand(Kind::Float, &[2, 4])],
        constants: vec![],
        inputs: vec![rand(Kind::Float, &[batch, 4])],
        reference: Box::new(|_, _| unreachable!("never trained")),
    }
}

/// linear → scores of three classes (or of two, or one logit), with the label beside: for evaluations.
pub fn scorer(classes: u64, batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", DType::F32, &[6]);
    let y = g.input("y", DType::I64, &[]);
    let w = g.parameter("w", DType::F32, &[classes, 6], false);
    let z = g.linear(x, w, None, &[b(1), n(classes)]);
    Model {
        name: "scorer",
        graph: g.finish_with(Results::Scores { scores: z, label: y }),
        parameters: vec![rand(Kind::Float, &[classes as i64, 6])],
        constants: vec![],
        inputs: vec![
            rand(Kind::Float, &[batch, 6]),
            randint(classes.max(2) as i64, &[batch]),
        ],
        reference: Box::new(|p, i| i[0].linear::<Tensor>(&p[0], None)),
    }
}
