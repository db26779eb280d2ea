//! Models of convolutions, pooling and channel-wise parameters, as typed graph and as plain autograd.

use super::models::{Model, kind, v};
use super::*;

fn ints(values: &[i64]) -> Argument {
    Argument::Ints(values.to_vec())
}

/// What a test says of a convolution; every axis alike but for the kernel.
#[derive(Clone, Copy)]
struct Conv {
    stride: i64,
    padding: i64,
    dilation: i64,
    groups: i64,
    /// Output padding of a transposed one.
    transposed: Option<i64>,
}

const PLAIN: Conv = Conv {
    stride: 1,
    padding: 0,
    dilation: 1,
    groups: 1,
    transposed: None,
};

impl Builder {
    /// A tapped convolution of `weight`'s rank.
    fn conv(
        &mut self,
        (input, weight, bias): (ValueId, ValueId, Option<ValueId>),
        conv: Conv,
        shape: &[Extent],
    ) -> ValueId {
        let (dtype, kernel) = self.weight_of(weight);
        let axes = kernel.len();
        let all = |value: i64| ints(&vec![value; axes]);
        let operator = match (conv.transposed, axes) {
            (None, _) => format!("conv{axes}d"),
            (Some(_), 1) => "conv_transpose1d".into(),
            (Some(_), _) => format!("conv_transpose{axes}d.input"),
        };
        let mut given = vec![
            ("input", v(input)),
            ("weight", v(weight)),
            ("stride", all(conv.stride)),
            ("padding", all(conv.padding)),
            ("dilation", all(conv.dilation)),
            ("groups", Argument::Int(conv.groups)),
        ];
        given.extend(bias.map(|bias| ("bias", v(bias))));
        given.extend(conv.transposed.map(|extra| ("output_padding", all(extra))));
        let output = self.node(&operator, &given, dtype, shape);
        let many = |value: i64| vec![value as u64; axes];
        self.tap(Tap::Convolution {
            input,
            weight: Some(self.tapped(weight)),
            bias: bias.map(|bias| self.tapped(bias)),
            geometry: Convolution {
                kernel,
                stride: many(conv.stride),
                padding_before: many(conv.padding),
                padding_after: many(conv.padding),
                dilation: many(conv.dilation),
                groups: conv.groups as u64,
                transposed: conv.transposed.is_some(),
            },
        });
        output
    }

    fn weight_of(&self, weight: ValueId) -> (DType, Vec<u64>) {
        let value_type = self.type_of(weight);
        let kernel = value_type.shape[2..].iter().map(|extent| match extent {
            Extent::Fixed(size) | Extent::Batch(size) => *size,
        });
        (value_type.dtype, kernel.collect())
    }

    fn squares(&mut self, value: ValueId, dtype: DType, shape: &[Extent]) -> ValueId {
        let squared = self.node("square", &[("self", v(value))], dtype, shape);
        let dims: Vec<i64> = (1..shape.len() as i64).collect();
        self.node(
            "sum.dim_IntList",
            &[("self", v(squared)), ("dim", ints(&dims))],
            dtype,
            &[b(1)],
        )
    }
}

fn squares(value: &Tensor) -> Tensor {
    let dims: Vec<i64> = (1..value.dim() as i64).collect();
    value.square().sum_dim_intlist(&dims[..], false, value.kind())
}

/// conv2d → group_norm → relu → max_pool2d → conv2d in groups with dilation → linear.
pub fn image(dtype: DType, batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", dtype, &[2, 7, 6]);
    let [w1, b1] = [
        g.parameter("w1", dtype, &[4, 2, 3, 2], true),
        g.parameter("b1", dtype, &[4], true),
    ];
    let [scale, shift] = [
        g.parameter("scale", dtype, &[4], true),
        g.parameter("shift", dtype, &[4], true),
    ];
    let w2 = g.parameter("w2", dtype, &[6, 2, 2, 2], true);
    let [w3, b3] = [
        g.parameter("w3", dtype, &[3, 12], true),
        g.parameter("b3", dtype, &[3], true),
    ];
    let first = Conv { padding: 1, ..PLAIN };
    let wide = [b(1), n(4), n(7), n(7)];
    let h = g.conv((x, w1, Some(b1)), first, &wide);
    let given = [
        ("input", v(h)),
        ("num_groups", Argument::Int(2)),
        ("weight", v(scale)),
        ("bias", v(shift)),
    ];
    let normed = g.node("group_norm", &given, dtype, &wide);
    g.tap(Tap::GroupNorm {
        input: h,
        groups: 2,
        weight: Some(g.tapped(scale)),
        bias: Some(g.tapped(shift)),
        eps: FloatBits::new(1e-5),
    });
    let h = g.node("relu", &[("self", v(normed))], dtype, &wide);
    let pool = [
        ("self", v(h)),
        ("kernel_size", ints(&[3, 2])),
        ("stride", ints(&[2, 2])),
        ("padding", ints(&[1, 0])),
        ("dilation", ints(&[1, 1])),
    ];
    let h = g.node("max_pool2d", &pool, dtype, &[b(1), n(4), n(4), n(3)]);
    let second = Conv {
        dilation: 2,
        groups: 2,
        ..PLAIN
    };
    let h = g.conv((h, w2, None), second, &[b(1), n(6), n(2), n(1)]);
    let h = g.node(
        "flatten.using_ints",
        &[("self", v(h)), ("start_dim", Argument::Int(1))],
        dtype,
        &[b(1), n(12)],
    );
    let h = g.linear(h, w3, Some(b3), &[b(1), n(3)]);
    let loss = g.squares(h, dtype, &[b(1), n(3)]);
    let k = kind(dtype);
    let parameters = [&[4, 2, 3, 2][..], &[4], &[4], &[4], &[6, 2, 2, 2], &[3, 12], &[3]];
    Model {
        name: "image",
        graph: g.finish(loss),
        parameters: parameters.iter().map(|shape| rand(k, shape)).collect(),
        constants: vec![],
        inputs: vec![rand(k, &[batch, 2, 7, 6])],
        reference: Box::new(|p, i| {
            let h = i[0].conv2d(&p[0], Some(&p[1]), [1, 1], [1, 1], [1, 1], 1);
            let h = h.group_norm(2, Some(&p[2]), Some(&p[3]), 1e-5, false).relu();
            let h = h.max_pool2d([3, 2], [2, 2], [1, 0], [1, 1], false);
            let h = h.conv2d::<Tensor>(&p[4], None, [1, 1], [0, 0], [2, 2], 2);
            squares(&h.flatten(1, -1).linear(&p[5], Some(&p[6])))
        }),
    }
}

/// conv1d with `padding="same"` and an even kernel → prelu a channel → depthwise conv1d → instance_norm → avg_pool1d.
pub fn signal(dtype: DType, batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", dtype, &[2, 9]);
    let [w1, b1] = [
        g.parameter("w1", dtype, &[3, 2, 4], true),
        g.parameter("b1", dtype, &[3], true),
    ];
    let slope = g.parameter("slope", dtype, &[3], true);
    let w2 = g.parameter("w2", dtype, &[6, 1, 3], true);
    let [scale, shift] = [
        g.parameter("scale", dtype, &[6], true),
        g.parameter("shift", dtype, &[6], true),
    ];
    let shape = [b(1), n(3), n(9)];
    let same = [
        ("input", v(x)),
        ("weight", v(w1)),
        ("bias", v(b1)),
        ("padding", Argument::Str("same".into())),
    ];
    let h = g.node("conv1d.padding", &same, dtype, &shape);
    g.tap(Tap::Convolution {
        input: x,
        weight: Some(g.tapped(w1)),
        bias: Some(g.tapped(b1)),
        geometry: Convolution {
            kernel: vec![4],
            stride: vec![1],
            padding_before: vec![1],
            padding_after: vec![2],
            dilation: vec![1],
            groups: 1,
            transposed: false,
        },
    });
    let bent = g.node("prelu", &[("self", v(h)), ("weight", v(slope))], dtype, &shape);
    g.tap(Tap::Prelu {
        input: h,
        weight: g.tapped(slope),
    });
    let depthwise = Conv {
        stride: 2,
        padding: 2,
        dilation: 2,
        groups: 3,
        ..PLAIN
    };
    let shape = [b(1), n(6), n(5)];
    let h = g.conv((bent, w2, None), depthwise, &shape);
    let given = [
        ("input", v(h)),
        ("weight", v(scale)),
        ("bias", v(shift)),
        ("running_mean", Argument::None),
        ("running_var", Argument::None),
        ("use_input_stats", Argument::Bool(true)),
        ("momentum", Argument::Float(FloatBits::new(0.1))),
        ("eps", Argument::Float(FloatBits::new(1e-5))),
        ("cudnn_enabled", Argument::Bool(false)),
    ];
    let normed = g.node("instance_norm", &given, dtype, &shape);
    g.tap(Tap::GroupNorm {
        input: h,
        groups: 6,
        weight: Some(g.tapped(scale)),
        bias: Some(g.tapped(shift)),
        eps: FloatBits::new(1e-5),
    });
    let given = [
        ("self", v(normed)),
        ("kernel_size", ints(&[3])),
        ("stride", ints(&[2])),
    ];
    let h = g.node("avg_pool1d", &given, dtype, &[b(1), n(6), n(2)]);
    let loss = g.squares(h, dtype, &[b(1), n(6), n(2)]);
    let k = kind(dtype);
    let parameters = [&[3, 2, 4][..], &[3], &[3], &[6, 1, 3], &[6], &[6]];
    Model {
        name: "signal",
        graph: g.finish(loss),
        parameters: parameters.iter().map(|shape| rand(k, shape)).collect(),
        constants: vec![],
        inputs: vec![rand(k, &[batch, 2, 9])],
        reference: Box::new(|p, i| {
            let h = i[0]
                .conv1d_padding(&p[0], Some(&p[1]), [1], "same", [1], 1)
                .prelu(&p[2]);
            let h = h.conv1d::<Tensor>(&p[3], None, [2], [2], [2], 3);
            let none = None::<&Tensor>;
            let h = h.instance_norm(Some(&p[4]), Some(&p[5]), none, none, true, 0.1, 1e-5, false);
            squares(&h.avg_pool1d([3], [2], [0], false, true))
        }),
    }
}

/// Transposed convolutions with groups, stride, padding and output padding, prelu, batch_norm by fixed statistics.
pub fn transposed(dtype: DType, batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", dtype, &[4, 3, 2]);
    let [w1, b1] = [
        g.parameter("w1", dtype, &[4, 3, 3, 2], true),
        g.parameter("b1", dtype, &[6], true),
    ];
    let slope = g.parameter("slope", dtype, &[1], true);
    let [scale, shift] = [
        g.parameter("scale", dtype, &[6], true),
        g.parameter("shift", dtype, &[6], true),
    ];
    let w2 = g.parameter("w2", dtype, &[6, 2, 2, 2], true);
    let [mean, variance] = [
        g.constant("mean", dtype, &[6]),
        g.constant("variance", dtype, &[6]),
    ];
    let first = Conv {
        stride: 2,
        padding: 1,
        groups: 2,
        transposed: Some(1),
        ..PLAIN
    };
    let shape = [b(1), n(6), n(6), n(3)];
    let h = g.conv((x, w1, Some(b1)), first, &shape);
    let bent = g.node("prelu", &[("self", v(h)), ("weight", v(slope))], dtype, &shape);
    g.tap(Tap::Prelu {
        input: h,
        weight: g.tapped(slope),
    });
    let given = [
        ("input", v(bent)),
        ("weight", v(scale)),
        ("bias", v(shift)),
        ("running_mean", v(mean)),
        ("running_var", v(variance)),
        ("training", Argument::Bool(false)),
        ("momentum", Argument::Float(FloatBits::new(0.1))),
        ("eps", Argument::Float(FloatBits::new(1e-3))),
        ("cudnn_enabled", Argument::Bool(false)),
    ];
    let normed = g.node("batch_norm", &given, dtype, &shape);
    g.tap(Tap::FrozenBatchNorm {
        input: bent,
        mean,
        variance,
        weight: Some(g.tapped(scale)),
        bias: Some(g.tapped(shift)),
        eps: FloatBits::new(1e-3),
    });
    let second = Conv {
        dilation: 2,
        transposed: Some(0),
        ..PLAIN
    };
    let shape = [b(1), n(2), n(8), n(5)];
    let h = g.conv((normed, w2, None), second, &shape);
    let loss = g.squares(h, dtype, &shape);
    let k = kind(dtype);
    let parameters = [&[4, 3, 3, 2][..], &[6], &[1], &[6], &[6], &[6, 2, 2, 2]];
    let statistics = [rand(k, &[6]), rand(k, &[6]).abs() + 0.5];
    let [mean, variance] = [statistics[0].copy(), statistics[1].copy()];
    Model {
        name: "transposed",
        graph: g.finish(loss),
        parameters: parameters.iter().map(|shape| rand(k, shape)).collect(),
        constants: statistics.into(),
        inputs: vec![rand(k, &[batch, 4, 3, 2])],
        reference: Box::new(move |p, i| {
            let h = i[0].conv_transpose2d(&p[0], Some(&p[1]), [2, 2], [1, 1], [1, 1], 2, [1, 1]);
            let h = h.prelu(&p[2]);
            let h = h.batch_norm(
                Some(&p[3]),
                Some(&p[4]),
                Some(&mean),
                Some(&variance),
                false,
                0.1,
                1e-3,
                false,
            );
            squares(&h.conv_transpose2d::<Tensor>(&p[5], None, [1, 1], [0, 0], [0, 0], 1, [2, 2]))
        }),
    }
}

/// conv3d → rms_norm → adaptive_avg_pool3d.
pub fn volume(dtype: DType, batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", dtype, &[1, 3, 4, 4]);
    let [w, bias] = [
        g.parameter("w", dtype, &[2, 1, 2, 3, 2], true),
        g.parameter("b", dtype, &[2], true),
    ];
    let scale = g.parameter("scale", dtype, &[3, 3], true);
    let shape = [b(1), n(2), n(2), n(3), n(3)];
    let conv = Conv {
        padding: 1,
        stride: 2,
        ..PLAIN
    };
    let h = g.conv((x, w, Some(bias)), conv, &[b(1), n(2), n(2), n(2), n(3)]);
    let given = [("self", v(h)), ("output_size", ints(&[2, 3, 3]))];
    let h = g.node("adaptive_avg_pool3d", &given, dtype, &shape);
    let given = [
        ("input", v(h)),
        ("normalized_shape", Argument::Ints(vec![3, 3])),
        ("weight", v(scale)),
        ("eps", Argument::Float(FloatBits::new(1e-4))),
    ];
    let normed = g.node("rms_norm", &given, dtype, &shape);
    g.tap(Tap::RmsNorm {
        input: h,
        normalized_shape: vec![3, 3],
        weight: g.tapped(scale),
        eps: FloatBits::new(1e-4),
    });
    let loss = g.squares(normed, dtype, &shape);
    let k = kind(dtype);
    Model {
        name: "volume",
        graph: g.finish(loss),
        parameters: vec![rand(k, &[2, 1, 2, 3, 2]), rand(k, &[2]), rand(k, &[3, 3])],
        constants: vec![],
        inputs: vec![rand(k, &[batch, 1, 3, 4, 4])],
        reference: Box::new(|p, i| {
            let h = i[0].conv3d(&p[0], Some(&p[1]), [2, 2, 2], [1, 1, 1], [1, 1, 1], 1);
            squares(
                &h.adaptive_avg_pool3d([2, 3, 3])
                    .rms_norm([3, 3], Some(&p[2]), 1e-4),
            )
        }),
    }
}

/// Few positions and many channels, where Gram matrices are cheapest, then one position for the whole image.
pub fn deep(dtype: DType, batch: i64) -> Model {
    let mut g = Builder::default();
    let x = g.input("x", dtype, &[8, 3, 3]);
    let [w1, b1] = [
        g.parameter("w1", dtype, &[12, 8, 2, 2], true),
        g.parameter("b1", dtype, &[12], true),
    ];
    let w2 = g.parameter("w2", dtype, &[12, 10, 2, 1], true);
    let w3 = g.parameter("w3", dtype, &[5, 10, 3, 2], true);
    let shape = [b(1), n(12), n(2), n(2)];
    let h = g.conv((x, w1, Some(b1)), PLAIN, &shape);
    let h = g.node("tanh", &[("self", v(h))], dtype, &shape);
    let transposed = Conv {
        transposed: Some(0),
        ..PLAIN
    };
    let shape = [b(1), n(10), n(3), n(2)];
    let h = g.conv((h, w2, None), transposed, &shape);
    let h = g.node("sigmoid", &[("self", v(h))], dtype, &shape);
    let shape = [b(1), n(5), n(1), n(1)];
    let h = g.conv((h, w3, None), PLAIN, &shape);
    let loss = g.squares(h, dtype, &shape);
    let k = kind(dtype);
    let parameters = [&[12, 8, 2, 2][..], &[12], &[12, 10, 2, 1], &[5, 10, 3, 2]];
    Model {
        name: "deep",
        graph: g.finish(loss),
        parameters: parameters.iter().map(|shape| rand(k, shape)).collect(),
        constants: vec![],
        inputs: vec![rand(k, &[batch, 8, 3, 3])],
        reference: Box::new(|p, i| {
            let h = i[0].conv2d(&p[0], Some(&p[1]), [1, 1], [0, 0], [1, 1], 1).tanh();
            let h = h.conv_transpose2d::<Tensor>(&p[2], None, [1, 1], [0, 0], [0, 0], 1, [1, 1]);
            squares(
                &h.sigmoid()
                    .conv2d::<Tensor>(&p[3], None, [1, 1], [0, 0], [1, 1], 1),
            )
        }),
    }
}

/// Every model of this file.
pub fn all(dtype: DType, batch: i64) -> Vec<Model> {
    vec![
        image(dtype, batch),
        signal(dtype, batch),
        transposed(dtype, batch),
        volume(dtype, batch),
        deep(dtype, batch),
    ]
}
