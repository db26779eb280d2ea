//! Models exported by the pinned torch (`scripts/generate_graph_fixtures.py`), through reader and checker.

use bastionai_graph::archive::{Archive, Limits};
use bastionai_graph::contract::Domain;
use bastionai_graph::typed::{TYPED_GRAPH_VERSION, Tap, TypedGraph};
use bastionai_graph::{Refusals, check, value_guards};

fn read(name: &str) -> Archive {
    let path = format!("{}/tests/fixtures/{name}.pt2", env!("CARGO_MANIFEST_DIR"));
    Archive::read(
        &std::fs::read(path).expect("the fixture is committed"),
        &Limits::default(),
    )
    .expect("it reads")
}

fn checked(name: &str) -> Result<TypedGraph, Refusals> {
    let archive = read(name);
    check(
        &archive,
        &archive.example_inputs().expect("inputs have recorded shapes"),
    )
}

fn accepted(name: &str) -> TypedGraph {
    checked(name).unwrap_or_else(|refusals| panic!("{name}: {refusals}"))
}

#[test]
fn exported_models_are_accepted_and_encode_canonically() {
    for name in [
        "classifier",
        "cross_entropy",
        "regressor",
        "binary",
        "broadcast",
        "zoo",
        "encoder",
        "text",
        "functions",
        "composed",
        "images",
        "plain",
    ] {
        let graph = accepted(name);
        assert_eq!(
            TypedGraph::from_bytes(&graph.to_bytes()).expect("it decodes"),
            graph
        );
        assert_eq!(graph.digest(), accepted(name).digest());
    }
}

/// Run digests, and so receipts, cover this form: it changes only with [`TYPED_GRAPH_VERSION`].
#[test]
fn the_canonical_form_of_a_real_graph_is_pinned() {
    assert_eq!(TYPED_GRAPH_VERSION, 2);
    assert_eq!(
        hex::encode(accepted("classifier").digest()),
        "af83aacff4183bc390c8adbca72621cca95d8404d1451084c44a8fa4ffa6671d"
    );
}

#[test]
fn bytes_of_parameters_and_constants_follow_the_typed_graph() {
    for name in ["classifier", "broadcast", "zoo"] {
        let (archive, graph) = (read(name), accepted(name));
        for (index, parameter) in graph.parameters().iter().enumerate() {
            let bytes = parameter.shape.iter().product::<u64>() * parameter.dtype.size_bytes() as u64;
            assert_eq!(
                archive.parameter_bytes(index).map(|found| found.len() as u64),
                Some(bytes)
            );
        }
        for (index, constant) in graph.constants().iter().enumerate() {
            let bytes = constant.shape.iter().product::<u64>() * constant.dtype.size_bytes() as u64;
            assert_eq!(
                archive.constant_bytes(index).map(|found| found.len() as u64),
                Some(bytes)
            );
        }
    }
}

#[test]
fn layers_of_the_classifier_are_tapped_and_its_label_index_is_guarded() {
    let graph = accepted("classifier");
    let taps: Vec<_> = graph
        .nodes()
        .iter()
        .filter_map(|node| node.tap.as_ref())
        .collect();
    assert!(
        matches!(
            taps.as_slice(),
            [Tap::Linear { .. }, Tap::LayerNorm { .. }, Tap::Linear { .. }]
        ),
        "{taps:?}"
    );
    let guards: Vec<_> = graph
        .nodes()
        .iter()
        .flat_map(|node| value_guards(&graph, node))
        .collect();
    assert_eq!(guards.len(), 1);
    assert_eq!((guards[0].minimum, guards[0].maximum), (0, 2));
}

#[test]
fn tied_frozen_and_unused_parameters_are_told_apart() {
    let graph = accepted("broadcast");
    let trained = |name: &str| {
        let found = graph
            .parameters()
            .iter()
            .find(|parameter| parameter.names.iter().any(|own| own == name));
        found.expect("the module has it").trainable
    };
    assert!(trained("encode.weight") && trained("tied.weight") && trained("shift") && trained("scale"));
    assert!(!trained("frozen") && !trained("unused"));
    let uses = graph.nodes().iter().filter(|node| {
        matches!(&node.tap, Some(Tap::Linear { weight: Some(weight), .. })
        if graph.parameters()[weight.parameter.0 as usize].names.len() == 2)
    });
    assert_eq!(uses.count(), 2);
}

#[test]
fn batch_norm_is_refused_with_its_python_line_and_a_remedy() {
    let refusals = checked("refused_batch_norm")
        .expect_err("BatchNorm mixes samples")
        .refusals;
    let mixing = refusals
        .iter()
        .find(|refusal| refusal.rule.as_deref() == Some("T7"))
        .expect("the operator is refused");
    assert!(mixing.operator.contains("batch_norm"));
    assert!(
        mixing
            .source
            .as_deref()
            .is_some_and(|line| line.starts_with("/models/generate_graph_fixtures.py:"))
    );
    assert!(mixing.remedy.contains("bastionai.fix"));
    assert!(
        refusals
            .iter()
            .any(|refusal| refusal.rule.as_deref() == Some("T8"))
    );
}

/// `module.eval()` and plain torch.export: core ATen's name is run as `batch_norm`, whose shapes are checked.
#[test]
fn batch_norm_in_evaluation_mode_is_accepted_with_its_affine_parameters_tapped() {
    let graph = accepted("plain");
    let norm = graph.nodes().iter().find(|node| node.operator == "batch_norm");
    assert!(matches!(
        norm.expect("it is there").tap,
        Some(Tap::FrozenBatchNorm {
            weight: Some(_),
            bias: Some(_),
            ..
        })
    ));
    for operator in ["masked_fill", "repeat", "repeat_interleave", "flip", "roll"] {
        assert!(
            graph.nodes().iter().any(|node| node.operator == operator),
            "{operator}"
        );
    }
}

#[test]
fn every_leak_of_a_module_is_reported_at_its_line() {
    let refusals = checked("refused_batch_mean")
        .expect_err("it centres by the batch")
        .refusals;
    let found: Vec<_> = refusals
        .iter()
        .map(|refusal| (refusal.operator.as_str(), refusal.rule.as_deref()))
        .collect();
    assert_eq!(
        found,
        [("aten.mean.dim", Some("T7")), ("aten.div.Tensor", Some("T1"))]
    );
    assert!(refusals.iter().all(|refusal| refusal.source.is_some()));
}

#[test]
fn a_model_for_fewer_classes_than_the_contract_is_refused() {
    let archive = read("cross_entropy");
    let mut inputs = archive.example_inputs().expect("inputs have recorded shapes");
    let classes = |count: usize| {
        Some(Domain::Classes {
            names: (0..count).map(|class| class.to_string()).collect(),
        })
    };
    inputs[1].domain = classes(3);
    check(&archive, &inputs).expect("three logits for three classes");
    inputs[1].domain = classes(4);
    let refusals = check(&archive, &inputs)
        .expect_err("three logits for four classes")
        .refusals;
    assert_eq!((refusals.len(), refusals[0].rule.as_deref()), (1, Some("G4")));
}

#[test]
fn columns_of_another_shape_or_dtype_are_refused_by_input() {
    let archive = read("regressor");
    let mut inputs = archive.example_inputs().expect("inputs have recorded shapes");
    inputs[0].shape = vec![7];
    let refusals = check(&archive, &inputs).expect_err("exported for six features");
    assert!(
        refusals.to_string().contains("exported for float32[symbolic, 6]"),
        "{refusals}"
    );
}

/// The projections already meet the samples on another axis than the first; what attends later is not judged any more.
#[test]
fn attention_that_takes_the_batch_for_a_sequence_is_refused_at_its_projection() {
    let refusals = checked("refused_sequence_first").expect_err("a leak").refusals;
    assert_eq!(refusals[0].operator, "aten.linear.default", "{refusals:?}");
    assert_eq!(refusals[0].rule.as_deref(), Some("G2"));
    assert!(refusals[0].reason.contains("batch axis is not the first"));
}
