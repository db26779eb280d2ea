//! Sound convolutions, pooling, resampling and channel-wise operators: accepted, tapped, and judged by the oracle.

use super::build::{Build, f, flag, i, ints, t};
use super::oracle::judge;
use crate::dtype::DType;
use crate::program::RawArgument;
use crate::typed::{Argument, Tap, TypedGraph};

/// A sound program beside the classifier: its value and the number of its taps.
type Sound = (&'static str, usize, fn(&mut Build) -> String);

/// Operator, input, and its other arguments.
type Hostile = (&'static str, &'static str, Vec<(&'static str, RawArgument)>);

/// `image` f32[B,2,4,4], `signal` f32[B,2,6], `volume` f32[B,1,2,3,3].
fn ground() -> Build {
    let mut build = Build::classifier();
    build.input("image", DType::F32, &[2, 4, 4], None);
    build.input("signal", DType::F32, &[2, 6], None);
    build.input("volume", DType::F32, &[1, 2, 3, 3], None);
    build.constant("c2", DType::F32, &[2]);
    build
}

fn parameter(b: &mut Build, shape: &[u64]) -> RawArgument {
    let name = format!("p{}", b.parts.parameters.len());
    b.parameter(&name, shape, true);
    t(&name)
}

fn accepted(name: &str, build: fn(&mut Build) -> String) -> TypedGraph {
    let mut program = ground();
    let value = build(&mut program);
    let rank = {
        let mut alone = program.clone();
        alone.returns(&value);
        rank_of(&alone, &value)
    };
    let axes: Vec<i64> = (1..rank).collect();
    let reduced = program.call("sum.dim_IntList", &[("self", t(&value)), ("dim", ints(&axes))]);
    program.returns_loss_plus(&reduced);
    let graph = program
        .check()
        .unwrap_or_else(|refusals| panic!("{name}: {refusals}"));
    judge(&graph).unwrap_or_else(|leak| panic!("{name}: {leak}"));
    assert_eq!(
        TypedGraph::from_bytes(&graph.to_bytes()).unwrap(),
        graph,
        "{name}"
    );
    graph
}

/// Rank of a value, by the refusal of returning it, which names its type.
fn rank_of(build: &Build, value: &str) -> i64 {
    let program = crate::program::Program::new(build.parts.clone()).unwrap();
    let mut checker = crate::check::Checker::new(&program, true);
    checker.inputs(&build.columns);
    program.nodes().iter().for_each(|node| checker.node(node, true));
    assert!(checker.refusals.is_empty(), "{value}: {:?}", checker.refusals);
    let crate::check::call::Named::Value(id) = checker.names[value] else {
        panic!("{value} is no value")
    };
    checker.typed[id.0 as usize].value_type.shape.len() as i64
}

fn same() -> RawArgument {
    RawArgument::Str("same".into())
}

fn sound() -> Vec<Sound> {
    vec![
        ("conv1d", 1, |b| {
            let given = [
                ("input", t("signal")),
                ("weight", parameter(b, &[3, 2, 2])),
                ("bias", parameter(b, &[3])),
            ];
            b.call("conv1d.default", &given)
        }),
        ("conv1d with stride, padding and dilation", 1, |b| {
            let given = [
                ("input", t("signal")),
                ("weight", parameter(b, &[3, 2, 3])),
                ("stride", ints(&[2])),
                ("padding", ints(&[2])),
                ("dilation", ints(&[2])),
            ];
            b.call("conv1d.default", &given)
        }),
        ("a depthwise conv1d with two outputs a channel", 1, |b| {
            let given = [
                ("input", t("signal")),
                ("weight", parameter(b, &[4, 1, 3])),
                ("groups", i(2)),
            ];
            b.call("conv1d.default", &given)
        }),
        ("conv1d with padding same and an even kernel", 1, |b| {
            let given = [
                ("input", t("signal")),
                ("weight", parameter(b, &[2, 2, 4])),
                ("padding", same()),
            ];
            b.call("conv1d.padding", &given)
        }),
        ("conv2d", 1, |b| {
            let given = [
                ("input", t("image")),
                ("weight", parameter(b, &[3, 2, 3, 2])),
                ("bias", parameter(b, &[3])),
            ];
            b.call("conv2d.default", &given)
        }),
        ("conv2d with one number for both axes", 1, |b| {
            let given = [
                ("input", t("image")),
                ("weight", parameter(b, &[3, 2, 2, 2])),
                ("stride", ints(&[2])),
                ("padding", ints(&[1])),
            ];
            b.call("conv2d.default", &given)
        }),
        ("conv2d with padding same and dilation", 1, |b| {
            let given = [
                ("input", t("image")),
                ("weight", parameter(b, &[1, 2, 2, 3])),
                ("padding", same()),
                ("dilation", ints(&[1, 2])),
            ];
            b.call("conv2d.padding", &given)
        }),
        ("conv2d with padding valid", 1, |b| {
            let given = [("input", t("image")), ("weight", parameter(b, &[1, 2, 4, 4]))];
            b.call("conv2d.padding", &given)
        }),
        ("a frozen kernel with a trained bias", 1, |b| {
            b.constant("kernel", DType::F32, &[2, 2, 2, 2]);
            let given = [
                ("input", t("image")),
                ("weight", t("kernel")),
                ("bias", parameter(b, &[2])),
            ];
            b.call("conv2d.default", &given)
        }),
        ("a frozen convolution", 0, |b| {
            b.constant("kernel", DType::F32, &[2, 2, 2, 2]);
            b.call(
                "conv2d.default",
                &[("input", t("image")), ("weight", t("kernel")), ("bias", t("c2"))],
            )
        }),
        ("a kernel that is a view of a parameter", 1, |b| {
            let flat = parameter(b, &[2, 8]);
            let view = b.call("view.default", &[("self", flat), ("size", ints(&[2, 2, 2, 2]))]);
            b.call("conv2d.default", &[("input", t("image")), ("weight", t(&view))])
        }),
        ("two convolutions with one kernel", 2, |b| {
            let kernel = parameter(b, &[2, 2, 1, 1]);
            let once = b.call(
                "conv2d.default",
                &[("input", t("image")), ("weight", kernel.clone())],
            );
            b.call("conv2d.default", &[("input", t(&once)), ("weight", kernel)])
        }),
        ("conv3d", 1, |b| {
            let given = [
                ("input", t("volume")),
                ("weight", parameter(b, &[2, 1, 2, 2, 2])),
                ("bias", parameter(b, &[2])),
            ];
            b.call("conv3d.default", &given)
        }),
        ("conv3d with padding same", 1, |b| {
            let given = [
                ("input", t("volume")),
                ("weight", parameter(b, &[1, 1, 2, 1, 3])),
                ("padding", same()),
            ];
            b.call("conv3d.padding", &given)
        }),
        ("conv_transpose1d", 1, |b| {
            let given = [
                ("input", t("signal")),
                ("weight", parameter(b, &[2, 3, 2])),
                ("bias", parameter(b, &[3])),
            ];
            b.call("conv_transpose1d.default", &given)
        }),
        (
            "conv_transpose1d with stride, padding, output padding and groups",
            1,
            |b| {
                let given = [
                    ("input", t("signal")),
                    ("weight", parameter(b, &[2, 1, 3])),
                    ("stride", ints(&[3])),
                    ("padding", ints(&[1])),
                    ("output_padding", ints(&[2])),
                    ("groups", i(2)),
                ];
                b.call("conv_transpose1d.default", &given)
            },
        ),
        ("conv_transpose2d with dilation", 1, |b| {
            let given = [
                ("input", t("image")),
                ("weight", parameter(b, &[2, 1, 2, 3])),
                ("stride", ints(&[2, 1])),
                ("dilation", ints(&[1, 2])),
            ];
            b.call("conv_transpose2d.input", &given)
        }),
        ("conv_transpose3d", 1, |b| {
            let given = [("input", t("volume")), ("weight", parameter(b, &[1, 1, 1, 2, 2]))];
            b.call("conv_transpose3d.input", &given)
        }),
        ("the general operator, transposed", 1, |b| {
            let given = [
                ("input", t("signal")),
                ("weight", parameter(b, &[2, 3, 2])),
                ("bias", RawArgument::None),
                ("stride", ints(&[2])),
                ("padding", ints(&[0])),
                ("dilation", ints(&[1])),
                ("transposed", flag(true)),
                ("output_padding", ints(&[1])),
                ("groups", i(1)),
            ];
            b.call("convolution.default", &given)
        }),
        ("max_pool1d of samples as channels of one another's", 0, |b| {
            b.call(
                "max_pool1d.default",
                &[("self", t("x")), ("kernel_size", ints(&[2]))],
            )
        }),
        ("max_pool1d with dilation and ceil_mode", 0, |b| {
            let given = [
                ("self", t("signal")),
                ("kernel_size", ints(&[2])),
                ("stride", ints(&[3])),
                ("dilation", ints(&[2])),
                ("ceil_mode", flag(true)),
            ];
            b.call("max_pool1d.default", &given)
        }),
        ("max_pool2d", 0, |b| {
            let given = [
                ("self", t("image")),
                ("kernel_size", ints(&[2])),
                ("stride", ints(&[1])),
                ("padding", ints(&[1])),
            ];
            b.call("max_pool2d.default", &given)
        }),
        ("max_pool2d with indices that gather", 0, |b| {
            let found = b.calls(
                "max_pool2d_with_indices.default",
                &[("self", t("image")), ("kernel_size", ints(&[2]))],
                2,
            );
            let flat = b.call("flatten.using_ints", &[("self", t("image")), ("start_dim", i(2))]);
            let index = b.call(
                "flatten.using_ints",
                &[("self", t(&found[1])), ("start_dim", i(2))],
            );
            b.call(
                "gather.default",
                &[("self", t(&flat)), ("dim", i(2)), ("index", t(&index))],
            )
        }),
        ("max_pool3d", 0, |b| {
            b.call(
                "max_pool3d.default",
                &[("self", t("volume")), ("kernel_size", ints(&[1, 2, 2]))],
            )
        }),
        ("avg_pool1d", 0, |b| {
            b.call(
                "avg_pool1d.default",
                &[("self", t("signal")), ("kernel_size", ints(&[3]))],
            )
        }),
        ("avg_pool2d in ceil_mode without counting padding", 0, |b| {
            let given = [
                ("self", t("image")),
                ("kernel_size", ints(&[3, 3])),
                ("stride", ints(&[2, 2])),
                ("padding", ints(&[1, 1])),
                ("ceil_mode", flag(true)),
                ("count_include_pad", flag(false)),
            ];
            b.call("avg_pool2d.default", &given)
        }),
        ("avg_pool3d", 0, |b| {
            b.call(
                "avg_pool3d.default",
                &[("self", t("volume")), ("kernel_size", ints(&[2]))],
            )
        }),
        ("global average pooling", 0, |b| {
            b.call(
                "adaptive_avg_pool2d.default",
                &[("self", t("image")), ("output_size", ints(&[1, 1]))],
            )
        }),
        ("adaptive pooling to more than there is", 0, |b| {
            b.call(
                "adaptive_avg_pool1d.default",
                &[("self", t("signal")), ("output_size", ints(&[9]))],
            )
        }),
        ("adaptive maxima", 0, |b| {
            b.calls(
                "adaptive_max_pool2d.default",
                &[("self", t("image")), ("output_size", ints(&[3, 2]))],
                2,
            )[0]
            .clone()
        }),
        ("nearest upsampling by a factor", 0, |b| {
            let given = [
                ("input", t("image")),
                ("output_size", RawArgument::None),
                ("scale_factors", RawArgument::Floats(vec![1.5, 2.0])),
            ];
            b.call("upsample_nearest2d.vec", &given)
        }),
        ("bilinear upsampling to a size", 0, |b| {
            let given = [
                ("input", t("image")),
                ("output_size", ints(&[7, 3])),
                ("align_corners", flag(true)),
                ("scale_factors", RawArgument::None),
            ];
            b.call("upsample_bilinear2d.vec", &given)
        }),
        ("zeros around an image", 0, |b| {
            b.call(
                "constant_pad_nd.default",
                &[("self", t("image")), ("pad", ints(&[1, 2, 0, 1]))],
            )
        }),
        ("a cropped image", 0, |b| {
            b.call(
                "pad.default",
                &[("self", t("image")), ("pad", ints(&[-1, -1, 1, -2]))],
            )
        }),
        ("a reflected signal", 0, |b| {
            b.call(
                "pad.default",
                &[
                    ("self", t("signal")),
                    ("pad", ints(&[5, 2])),
                    ("mode", RawArgument::Str("reflect".into())),
                ],
            )
        }),
        ("a circular image", 0, |b| {
            b.call(
                "pad.default",
                &[
                    ("self", t("image")),
                    ("pad", ints(&[1, 0, 4, 1])),
                    ("mode", RawArgument::Str("circular".into())),
                ],
            )
        }),
        ("channels to pixels and back", 0, |b| {
            let small = b.call(
                "pixel_unshuffle.default",
                &[("self", t("image")), ("downscale_factor", i(2))],
            );
            b.call(
                "pixel_shuffle.default",
                &[("self", t(&small)), ("upscale_factor", i(2))],
            )
        }),
        ("group_norm with scale and shift", 1, |b| {
            let given = [
                ("input", t("image")),
                ("num_groups", i(2)),
                ("weight", parameter(b, &[2])),
                ("bias", parameter(b, &[2])),
            ];
            b.call("group_norm.default", &given)
        }),
        ("instance_norm with scale and shift", 1, |b| {
            let given = [
                ("input", t("signal")),
                ("weight", parameter(b, &[2])),
                ("bias", parameter(b, &[2])),
                ("running_mean", RawArgument::None),
                ("running_var", RawArgument::None),
                ("use_input_stats", flag(true)),
                ("momentum", f(0.1)),
                ("eps", f(1e-5)),
                ("cudnn_enabled", flag(true)),
            ];
            b.call("instance_norm.default", &given)
        }),
        ("batch_norm by fixed statistics with a trained scale", 1, |b| {
            let given = [
                ("input", t("image")),
                ("weight", parameter(b, &[2])),
                ("bias", t("c2")),
                ("running_mean", t("c2")),
                ("running_var", t("c2")),
                ("training", flag(false)),
                ("momentum", f(0.1)),
                ("eps", f(1e-5)),
                ("cudnn_enabled", flag(true)),
            ];
            b.call("batch_norm.default", &given)
        }),
        ("rms_norm with a trained scale", 1, |b| {
            let given = [
                ("input", t("m")),
                ("normalized_shape", ints(&[3])),
                ("weight", parameter(b, &[3])),
            ];
            b.call("rms_norm.default", &given)
        }),
        ("prelu with a slope a channel", 1, |b| {
            let given = [("self", t("image")), ("weight", parameter(b, &[2]))];
            b.call("prelu.default", &given)
        }),
        ("prelu with one slope", 1, |b| {
            let given = [("self", t("x")), ("weight", parameter(b, &[1]))];
            b.call("prelu.default", &given)
        }),
        ("dropout of whole channels", 0, |b| {
            b.call(
                "feature_dropout.default",
                &[("input", t("image")), ("p", f(0.5)), ("train", flag(true))],
            )
        }),
    ]
}

#[test]
fn convolutions_pools_and_norms_of_a_sample_are_accepted_with_their_taps() {
    for (name, taps, build) in sound() {
        let graph = accepted(name, build);
        let found = graph.nodes().iter().filter(|node| node.tap.is_some()).count();
        assert_eq!(found, taps + 1, "{name}: its own taps and the classifier's");
    }
}

#[test]
fn a_convolutions_numbers_are_written_out_for_every_axis() {
    let graph = accepted("conv2d", |b| {
        let given = [
            ("input", t("image")),
            ("weight", parameter(b, &[3, 2, 2, 2])),
            ("stride", ints(&[2])),
        ];
        b.call("conv2d.default", &given)
    });
    let node = graph
        .nodes()
        .iter()
        .find(|node| node.operator == "conv2d")
        .unwrap();
    let value = |name: &str| {
        &node
            .arguments
            .iter()
            .find(|argument| argument.name == name)
            .unwrap()
            .value
    };
    assert_eq!(*value("stride"), Argument::Ints(vec![2, 2]));
    assert_eq!(*value("padding"), Argument::Ints(vec![0, 0]));
    let Some(Tap::Convolution { geometry, .. }) = &node.tap else {
        panic!()
    };
    assert_eq!(
        (&geometry.kernel[..], &geometry.dilation[..], geometry.groups),
        (&[2, 2][..], &[1, 1][..], 1)
    );
}

/// Numbers that no operator takes are refused by the checker, with a remedy, before libtorch sees them.
#[test]
fn hostile_extents_are_refused() {
    let conv = |name: &'static str, value: &'static [i64]| {
        move |b: &mut Build| {
            let weight = parameter(b, &[3, 2, 2, 2]);
            b.call(
                "conv2d.default",
                &[("input", t("image")), ("weight", weight), (name, ints(value))],
            )
        }
    };
    for (name, value) in [
        ("stride", &[0][..]),
        ("stride", &[-1, 1]),
        ("stride", &[1, 1, 1]),
        ("stride", &[i64::MAX]),
        ("dilation", &[0, 1]),
        ("dilation", &[i64::MAX, i64::MAX]),
        ("dilation", &[9]),
        ("padding", &[-1]),
        ("padding", &[i64::MAX]),
        ("padding", &[1 << 40, 1]),
    ] {
        let mut build = ground();
        let value_name = conv(name, value)(&mut build);
        build.returns(&value_name);
        let refusals = build.check().expect_err(name).refusals;
        assert_eq!(refusals[0].node, value_name, "{name} {value:?}");
        assert!(!refusals[0].remedy.is_empty());
    }
    let others: Vec<Hostile> = vec![
        (
            "conv1d.default",
            "signal",
            vec![("weight", t("wide")), ("groups", i(0))],
        ),
        (
            "conv1d.default",
            "signal",
            vec![("weight", t("wide")), ("groups", i(-2))],
        ),
        (
            "conv1d.default",
            "signal",
            vec![("weight", t("wide")), ("groups", i(3))],
        ),
        ("conv1d.default", "signal", vec![("weight", t("long"))]),
        ("conv1d.default", "image", vec![("weight", t("wide"))]),
        ("conv2d.default", "image", vec![("weight", t("wide"))]),
        (
            "conv1d.default",
            "signal",
            vec![("weight", t("wide")), ("bias", t("c1"))],
        ),
        (
            "conv_transpose1d.default",
            "signal",
            vec![("weight", t("wide")), ("output_padding", ints(&[1]))],
        ),
        (
            "conv_transpose1d.default",
            "signal",
            vec![("weight", t("wide")), ("padding", ints(&[60]))],
        ),
        (
            "conv1d.padding",
            "signal",
            vec![("weight", t("wide")), ("stride", ints(&[2])), ("padding", same())],
        ),
        (
            "conv1d.padding",
            "signal",
            vec![
                ("weight", t("wide")),
                ("padding", RawArgument::Str("full".into())),
            ],
        ),
    ];
    for (operator, input, mut given) in others {
        let mut build = ground();
        build.constant("wide", DType::F32, &[2, 2, 2]);
        build.constant("long", DType::F32, &[2, 2, 7]);
        given.push(("input", t(input)));
        let value = build.call(operator, &given);
        build.returns(&value);
        assert_eq!(
            build.check().expect_err(operator).refusals[0].node,
            value,
            "{operator} {given:?}"
        );
    }
    let selves: Vec<Hostile> = vec![
        ("max_pool2d.default", "image", vec![("kernel_size", ints(&[0]))]),
        ("max_pool2d.default", "image", vec![("kernel_size", ints(&[5]))]),
        ("max_pool2d.default", "image", vec![("kernel_size", ints(&[]))]),
        (
            "max_pool2d.default",
            "image",
            vec![("kernel_size", ints(&[2])), ("padding", ints(&[2]))],
        ),
        (
            "max_pool2d.default",
            "image",
            vec![("kernel_size", ints(&[2])), ("dilation", ints(&[1 << 16]))],
        ),
        (
            "max_pool2d.default",
            "image",
            vec![("kernel_size", ints(&[2])), ("stride", ints(&[0, 1]))],
        ),
        (
            "avg_pool2d.default",
            "image",
            vec![("kernel_size", ints(&[2])), ("divisor_override", i(0))],
        ),
        ("avg_pool1d.default", "volume", vec![("kernel_size", ints(&[2]))]),
        (
            "adaptive_avg_pool2d.default",
            "image",
            vec![("output_size", ints(&[0, 1]))],
        ),
        (
            "adaptive_avg_pool2d.default",
            "image",
            vec![("output_size", ints(&[1 << 40, 1]))],
        ),
        (
            "constant_pad_nd.default",
            "image",
            vec![("pad", ints(&[1, 1, 1]))],
        ),
        ("constant_pad_nd.default", "image", vec![("pad", ints(&[-2, -2]))]),
        ("constant_pad_nd.default", "image", vec![("pad", ints(&[-9, 10]))]),
        (
            "constant_pad_nd.default",
            "image",
            vec![("pad", ints(&[i64::MAX, i64::MAX]))],
        ),
        ("constant_pad_nd.default", "image", vec![("pad", ints(&[1; 12]))]),
        (
            "pad.default",
            "signal",
            vec![
                ("pad", ints(&[6, 0])),
                ("mode", RawArgument::Str("reflect".into())),
            ],
        ),
        (
            "pad.default",
            "signal",
            vec![
                ("pad", ints(&[7, 0])),
                ("mode", RawArgument::Str("circular".into())),
            ],
        ),
        (
            "pad.default",
            "signal",
            vec![
                ("pad", ints(&[-1, 0])),
                ("mode", RawArgument::Str("replicate".into())),
            ],
        ),
        (
            "pad.default",
            "signal",
            vec![("pad", ints(&[1, 0])), ("mode", RawArgument::Str("wrap".into()))],
        ),
        ("pixel_shuffle.default", "image", vec![("upscale_factor", i(2))]),
        ("pixel_shuffle.default", "image", vec![("upscale_factor", i(0))]),
        (
            "pixel_shuffle.default",
            "image",
            vec![("upscale_factor", i(i64::MIN))],
        ),
        (
            "pixel_unshuffle.default",
            "image",
            vec![("downscale_factor", i(3))],
        ),
        ("prelu.default", "image", vec![("weight", t("c3"))]),
    ];
    for (operator, value, mut given) in selves {
        let mut build = ground();
        given.push(("self", t(value)));
        let value = build.call(operator, &given);
        build.returns(&value);
        assert_eq!(
            build.check().expect_err(operator).refusals[0].node,
            value,
            "{operator} {given:?}"
        );
    }
    for factors in [
        vec![f64::NAN, 1.0],
        vec![f64::INFINITY, 1.0],
        vec![-1.0, 1.0],
        vec![0.1, 1.0],
        vec![1e300, 1.0],
        vec![2.0],
        vec![],
    ] {
        let mut build = ground();
        let given = [
            ("input", t("image")),
            ("output_size", RawArgument::None),
            ("scale_factors", RawArgument::Floats(factors.clone())),
        ];
        let value = build.call("upsample_nearest2d.vec", &given);
        build.returns(&value);
        assert_eq!(build.check().unwrap_err().refusals[0].node, value, "{factors:?}");
    }
}

#[test]
fn indices_of_a_pool_are_known_to_lie_in_its_plane() {
    // The plane has 16 elements: gathering from 15 could fail on a value (G4) and is refused.
    let mut build = ground();
    let found = build.calls(
        "max_pool2d_with_indices.default",
        &[("self", t("image")), ("kernel_size", ints(&[2]))],
        2,
    );
    let hot = build.call(
        "one_hot.default",
        &[("self", t(&found[1])), ("num_classes", i(15))],
    );
    let sums = build.call(
        "sum.dim_IntList",
        &[("self", t(&hot)), ("dim", ints(&[1, 2, 3, 4]))],
    );
    build.returns_loss_plus(&sums);
    let refusals = build.check().unwrap_err().refusals;
    assert_eq!(
        (refusals[0].node.as_str(), refusals[0].rule.as_deref()),
        (hot.as_str(), Some("G4"))
    );
}
