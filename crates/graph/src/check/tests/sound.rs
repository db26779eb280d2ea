//! Sound programs are accepted, typed as expected, and pass the second oracle.

mod attention;
mod draws;
mod functions;
mod order;
pub(super) mod recurrent;
mod repeat;
#[path = "sound/rows.rs"]
mod sample_rows;

use super::build::{Build, f, flag, i, ints, k, sizes, t};
use super::oracle::judge;
use crate::dtype::DType;
use crate::program::{Hint, HintExtent, RawArgument, RawSize};
use crate::typed::{Argument, ParameterView, Tap, TypedGraph};
use crate::{ValueGuard, value_guards};

fn accepted(build: &Build) -> TypedGraph {
    let graph = build.check().unwrap_or_else(|refusals| panic!("{refusals}"));
    judge(&graph).unwrap();
    assert_eq!(TypedGraph::from_bytes(&graph.to_bytes()).unwrap(), graph);
    graph
}

fn with(build: impl FnOnce(&mut Build) -> String) -> TypedGraph {
    let mut program = Build::classifier();
    let value = build(&mut program);
    program.returns_loss_plus(&value);
    accepted(&program)
}

fn rows(b: &mut Build, value: &str) -> String {
    b.call("sum.dim_IntList", &[("self", t(value)), ("dim", ints(&[1]))])
}

#[test]
fn a_classifier_is_accepted_with_a_tap_of_its_layer() {
    let mut build = Build::classifier();
    build.returns("loss");
    let graph = accepted(&build);
    let Some(Tap::Linear {
        weight: Some(weight),
        bias: Some(bias),
        ..
    }) = &graph.nodes()[0].tap
    else {
        panic!()
    };
    assert_eq!((weight.parameter.0, bias.parameter.0), (0, 1));
    assert!(weight.views.is_empty());
    let trainable: Vec<bool> = graph
        .parameters()
        .iter()
        .map(|parameter| parameter.trainable)
        .collect();
    assert_eq!(
        trainable,
        [true, true, false, false],
        "w6 does not reach the loss, `frozen` is frozen"
    );
}

#[test]
fn omitted_arguments_are_filled_from_the_schema() {
    let mut build = Build::classifier();
    build.returns("loss");
    let graph = accepted(&build);
    let names: Vec<&str> = graph.nodes()[1]
        .arguments
        .iter()
        .map(|argument| argument.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "self",
            "target",
            "weight",
            "reduction",
            "ignore_index",
            "label_smoothing"
        ]
    );
    assert_eq!(graph.nodes()[1].arguments[4].value, Argument::Int(-100));
}

#[test]
fn reshapes_that_keep_samples_whole_are_accepted() {
    with(|b| {
        let flat = b.call("view.default", &[("self", t("m")), ("size", ints(&[-1, 3]))]);
        let sums = b.call("sum.dim_IntList", &[("self", t(&flat)), ("dim", ints(&[-1]))]);
        let size = b.size("x", 0);
        let back = b.call(
            "view.default",
            &[("self", t(&sums)), ("size", sizes(&[size, k(2)]))],
        );
        rows(b, &back)
    });
    with(|b| {
        let permuted = b.call("permute.default", &[("self", t("m")), ("dims", ints(&[1, 0, 2]))]);
        let size = b.size("m", 0);
        let longer = b.size_op("mul", size, k(3));
        let kept = b.call(
            "reshape.default",
            &[("self", t(&permuted)), ("shape", sizes(&[k(2), longer]))],
        );
        let sums = b.call("sum.dim_IntList", &[("self", t(&kept)), ("dim", ints(&[0]))]);
        let size = b.size("m", 0);
        let back = b.call(
            "view.default",
            &[("self", t(&sums)), ("size", sizes(&[size, k(3)]))],
        );
        rows(b, &back)
    });
    with(|b| {
        let front = b.call("unsqueeze.default", &[("self", t("x")), ("dim", i(0))]);
        let size = b.size("x", 0);
        let other = b.call(
            "view.default",
            &[
                ("self", t(&front)),
                ("size", sizes(&[k(1), k(1), size, k(2), k(3)])),
            ],
        );
        let flat = b.call("squeeze.dims", &[("self", t(&other)), ("dim", ints(&[0, 1]))]);
        b.call("sum.dim_IntList", &[("self", t(&flat)), ("dim", ints(&[1, 2]))])
    });
}

#[test]
fn the_whole_batch_axis_may_be_sliced_as_it_is() {
    with(|b| {
        let all = b.call(
            "slice.Tensor",
            &[
                ("self", t("x")),
                ("dim", i(0)),
                ("start", i(0)),
                ("end", i(i64::MAX)),
            ],
        );
        b.call(
            "select.int",
            &[("self", t(&all)), ("dim", i(1)), ("index", i(-1))],
        )
    });
}

#[test]
fn label_indexing_by_arange_is_accepted_and_guarded() {
    let graph = with(|b| {
        let size = b.size("x", 0);
        let iota = b.call("arange.default", &[("end", RawArgument::Size(size))]);
        let indices = RawArgument::OptionalTensors(vec![Some(iota), Some("y".into())]);
        b.call("index.Tensor", &[("self", t("logits")), ("indices", indices)])
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
fn every_operator_that_can_raise_on_a_value_says_its_range() {
    let graph = with(|b| {
        let index = b.call("unsqueeze.default", &[("self", t("y")), ("dim", i(1))]);
        let picked = b.call(
            "gather.default",
            &[("self", t("logits")), ("dim", i(-1)), ("index", t(&index))],
        );
        let hot = b.call("one_hot.default", &[("self", t("y")), ("num_classes", i(3))]);
        let row = b.call(
            "embedding.default",
            &[("weight", t("table")), ("indices", t("y"))],
        );
        let parts = [picked, hot, row].map(|part| rows(b, &part));
        let sum = b.call("add.Tensor", &[("self", t(&parts[0])), ("other", t(&parts[1]))]);
        b.call("add.Tensor", &[("self", t(&sum)), ("other", t(&parts[2]))])
    });
    let guard = |operator: &str| {
        let node = graph
            .nodes()
            .iter()
            .find(|node| node.operator == operator)
            .unwrap();
        let ValueGuard {
            minimum,
            maximum,
            also_allowed,
            ..
        } = value_guards(&graph, node)[0];
        (minimum, maximum, also_allowed)
    };
    assert_eq!(guard("gather"), (0, 2, None));
    assert_eq!(guard("one_hot"), (0, 2, None));
    assert_eq!(guard("embedding"), (0, 2, None));
    assert_eq!(guard("cross_entropy_loss"), (0, 2, Some(-100)));
    assert!(value_guards(&graph, &graph.nodes()[0]).is_empty());
}

#[test]
fn shared_tables_constants_and_factories_mix_with_samples() {
    with(|b| {
        let row = b.call(
            "index.Tensor",
            &[
                ("self", t("table")),
                ("indices", RawArgument::OptionalTensors(vec![Some("y".into())])),
            ],
        );
        let size = b.size("x", 0);
        let zeros = b.call("zeros.default", &[("size", sizes(&[size.clone(), k(2)]))]);
        let sum = b.call("add.Tensor", &[("self", t(&row)), ("other", t(&zeros))]);
        let two = b.call(
            "select.int",
            &[("self", t("c33")), ("dim", i(0)), ("index", i(1))],
        );
        let spread = b.call(
            "expand.default",
            &[("self", t(&two)), ("size", sizes(&[size, k(3)]))],
        );
        let joined = b.call(
            "cat.default",
            &[
                ("tensors", RawArgument::Tensors(vec![sum, spread])),
                ("dim", i(-1)),
            ],
        );
        rows(b, &joined)
    });
}

#[test]
fn parameters_enter_taps_as_whole_views() {
    let graph = with(|b| {
        let transposed = b.call("t.default", &[("self", t("w"))]);
        let hidden = b.call("matmul.default", &[("self", t("x")), ("other", t(&transposed))]);
        rows(b, &hidden)
    });
    let node = graph
        .nodes()
        .iter()
        .find(|node| node.operator == "matmul")
        .unwrap();
    let Some(Tap::MatMul {
        weight: Some(weight),
        bias: None,
        ..
    }) = &node.tap
    else {
        panic!("{:?}", node.tap)
    };
    assert_eq!(weight.views, [ParameterView::Permute(vec![1, 0])]);
    let graph = with(|b| {
        let row = b.call("view.default", &[("self", t("w6")), ("size", ints(&[1, 6]))]);
        let scaled = b.call("mul.Tensor", &[("self", t(&row)), ("other", t("x"))]);
        let shifted = b.call(
            "sub.Tensor",
            &[("self", t(&scaled)), ("other", t("w6")), ("alpha", f(2.0))],
        );
        rows(b, &shifted)
    });
    let taps: Vec<_> = graph
        .nodes()
        .iter()
        .filter_map(|node| node.tap.as_ref())
        .collect();
    let Tap::BroadcastMul { parameter, .. } = taps[1] else {
        panic!()
    };
    assert_eq!(parameter.views, [ParameterView::Reshape(vec![1, 6])]);
    let Tap::BroadcastAdd { scale, .. } = taps[2] else {
        panic!()
    };
    assert_eq!(scale.get(), -2.0);
}

#[test]
fn layer_norm_and_addmm_are_tapped() {
    let graph = with(|b| {
        let normed = b.call(
            "layer_norm.default",
            &[
                ("input", t("x")),
                ("normalized_shape", ints(&[6])),
                ("weight", t("w6")),
            ],
        );
        let weight = b.call("permute.default", &[("self", t("w")), ("dims", ints(&[1, 0]))]);
        let hidden = b.call(
            "addmm.default",
            &[("self", t("b")), ("mat1", t(&normed)), ("mat2", t(&weight))],
        );
        rows(b, &hidden)
    });
    let taps: Vec<_> = graph
        .nodes()
        .iter()
        .filter_map(|node| node.tap.as_ref())
        .collect();
    assert!(matches!(
        taps[1],
        Tap::LayerNorm {
            weight: Some(_),
            bias: None,
            ..
        }
    ));
    assert!(matches!(
        taps[2],
        Tap::MatMul {
            weight: Some(_),
            bias: Some(_),
            ..
        }
    ));
}

#[test]
fn functions_of_frozen_or_detached_parameters_are_free() {
    let graph = with(|b| {
        let scaled = b.call("mul.Tensor", &[("self", t("frozen")), ("other", i(100))]);
        let hidden = b.call("linear.default", &[("input", t("x")), ("weight", t(&scaled))]);
        let detached = b.call("detach.default", &[("self", t("w6"))]);
        let doubled = b.call("mul.Tensor", &[("self", t(&detached)), ("other", i(2))]);
        let other = b.call("maximum.default", &[("self", t("x")), ("other", t(&doubled))]);
        let sums = [hidden, other].map(|part| rows(b, &part));
        b.call("add.Tensor", &[("self", t(&sums[0])), ("other", t(&sums[1]))])
    });
    assert!(!graph.parameters()[2].trainable);
}

#[test]
fn taps_whose_gradient_is_cut_off_are_not_trained() {
    let graph = with(|b| {
        let hidden = b.call("mul.Tensor", &[("self", t("x")), ("other", t("w6"))]);
        let cut = b.call("detach.default", &[("self", t(&hidden))]);
        rows(b, &cut)
    });
    let node = graph.nodes().iter().find(|node| node.operator == "mul").unwrap();
    assert!(node.tap.is_none());
    assert!(!graph.parameters()[2].trainable);
}

#[test]
fn dropout_of_samples_is_accepted() {
    with(|b| {
        let dropped = b.calls(
            "native_dropout.default",
            &[("input", t("x")), ("p", f(0.5)), ("train", flag(true))],
            2,
        );
        rows(b, &dropped[0])
    });
}

#[test]
fn dead_code_is_dropped_and_not_judged() {
    let mut build = Build::classifier();
    build.call("sum.default", &[("self", t("x"))]);
    build.call("no_such_operator.default", &[("self", t("x"))]);
    build.returns("loss");
    assert_eq!(accepted(&build).nodes().len(), 2);
}

#[test]
fn the_known_wrong_record_of_cross_entropy_is_passed_over_and_what_follows_from_it() {
    let mut build = Build::classifier();
    let halved = build.call("mul.Tensor", &[("self", t("loss")), ("other", f(0.5))]);
    for name in ["loss", &halved] {
        build.hint(
            name,
            Hint {
                dtype: Some(DType::F32),
                shape: Vec::new(),
            },
        );
    }
    build.returns(&halved);
    accepted(&build);
    build.hint(
        "logits",
        Hint {
            dtype: Some(DType::F32),
            shape: vec![HintExtent::Fixed(4), HintExtent::Fixed(3)],
        },
    );
    assert!(build.check().unwrap_err().to_string().contains("logits"));
}

#[test]
fn class_probabilities_and_smoothing_are_accepted() {
    with(|b| {
        let soft = b.call("softmax.int", &[("self", t("logits")), ("dim", i(1))]);
        let arguments = [
            ("self", t("logits")),
            ("target", t(&soft)),
            ("reduction", i(0)),
            ("label_smoothing", f(0.1)),
        ];
        b.call("cross_entropy_loss.default", &arguments)
    });
}

#[test]
fn digests_cover_arguments_and_names() {
    let digest =
        |value: f64| with(|b| b.call("mul.Tensor", &[("self", t("t")), ("other", f(value))])).digest();
    assert_eq!(digest(2.0), digest(2.0));
    assert_ne!(digest(2.0), digest(2.0 + f64::EPSILON * 2.0));
}

#[test]
fn sizes_of_samples_are_plain_numbers() {
    with(|b| {
        let RawSize::Name(name) = b.size("x", 1) else {
            unreachable!()
        };
        b.call(
            "div.Tensor",
            &[
                ("self", t("t")),
                ("other", RawArgument::Size(RawSize::Name(name))),
            ],
        )
    });
}

#[test]
fn inputs_that_do_not_fit_the_contract_are_refused_by_name() {
    let mut build = Build::classifier();
    build.returns("loss");
    build.columns[0].shape = vec![5];
    let text = build.check().unwrap_err().to_string();
    assert!(
        text.contains("logits") && text.contains("does not match the weight"),
        "{text}"
    );
    build.columns.pop();
    assert!(
        build
            .check()
            .unwrap_err()
            .to_string()
            .contains("5 inputs and 4 columns")
    );
}

#[test]
fn more_axes_than_any_model_has_are_refused() {
    let mut build = Build::classifier();
    let mut value = "t".to_owned();
    for _ in 0..300 {
        value = build.call("unsqueeze.default", &[("self", t(&value)), ("dim", i(0))]);
    }
    let sum = build.call("sum.default", &[("self", t(&value))]);
    build.returns_loss_plus(&sum);
    let refusals = build.check().unwrap_err().refusals;
    assert!(
        refusals.len() == 1 && refusals[0].reason.contains("more than 16"),
        "{refusals:?}"
    );
    let mut build = Build::classifier();
    build.returns("loss");
    build.columns[1].shape = vec![1; 300];
    assert!(build.check().is_err());
}

#[test]
fn the_typed_graph_prints_every_value_and_tap() {
    let mut build = Build::classifier();
    build.returns("loss");
    let text = accepted(&build).to_string();
    assert!(text.contains("%x: f32[B, 6] = input     column \"x\""), "{text}");
    assert!(
        text.contains(
            "%logits: f32[B, 3] = linear(input=%x, weight=%w, bias=%b)  tap linear(w, b)  # model.py:0"
        ),
        "{text}"
    );
    assert!(text.ends_with("return %loss"));
}

#[test]
fn every_accepted_exported_model_passes_the_second_oracle() {
    use crate::archive::{Archive, Limits};
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let mut judged = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let archive = Archive::read(&std::fs::read(&path).unwrap(), &Limits::default()).unwrap();
        let verdict = crate::check(&archive, &archive.example_inputs().unwrap());
        let is_refused = path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("refused_");
        assert_eq!(verdict.is_err(), is_refused, "{}", path.display());
        if let Ok(graph) = verdict {
            judge(&graph).unwrap_or_else(|leak| panic!("{}: {leak}", path.display()));
            judged += 1;
        }
    }
    assert!(judged >= 6);
}
