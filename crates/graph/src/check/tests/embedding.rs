//! Embeddings, position embeddings, class tokens and causal masks: sound variants with their taps, leaky ones refused.

use super::build::{Build, flag, i, ints, k, sizes, t};
use super::leaky::{Case, Seen, mutant};
use super::oracle::judge;
use crate::check::premise::Premise as P;
use crate::dtype::DType;
use crate::program::RawArgument;
use crate::typed::{Dependence, Extent, ParameterView, Tap, TypedGraph};

/// The classifier's ground, with token ids `ids` of 5 words, a table `emb` for them, positions `pos`, a token `cls`.
fn tokens(b: &mut Build) {
    b.input("ids", DType::I64, &[4], Some(5));
    b.parameter("emb", &[5, 6], true);
    b.parameter("pos", &[7, 6], true);
    b.parameter("cls", &[1, 1, 6], true);
}

fn embed(b: &mut Build, table: &str, ids: &str) -> String {
    b.call("embedding.default", &[("weight", t(table)), ("indices", t(ids))])
}

fn summed(b: &mut Build, value: &str, dims: &[i64]) -> String {
    b.call("sum.dim_IntList", &[("self", t(value)), ("dim", ints(dims))])
}

fn accepted(build: impl FnOnce(&mut Build) -> String) -> TypedGraph {
    let mut program = Build::classifier();
    tokens(&mut program);
    let value = build(&mut program);
    let rows = summed(&mut program, &value, &[1, 2]);
    program.returns_loss_plus(&rows);
    let graph = program.check().unwrap_or_else(|refusals| panic!("{refusals}"));
    judge(&graph).unwrap();
    assert_eq!(TypedGraph::from_bytes(&graph.to_bytes()).unwrap(), graph);
    graph
}

fn trained(graph: &TypedGraph) -> Vec<&str> {
    let trained = graph.parameters().iter().filter(|parameter| parameter.trainable);
    trained.map(|parameter| parameter.names[0].as_str()).collect()
}

fn tap_of(graph: &TypedGraph, wanted: impl Fn(&Tap) -> bool) -> &Tap {
    let mut taps = graph.nodes().iter().filter_map(|node| node.tap.as_ref());
    taps.find(|tap| wanted(tap)).expect("the tap")
}

#[test]
fn a_trainable_table_is_tapped_where_its_rows_are_read_by_per_sample_ids() {
    let graph = accepted(|b| embed(b, "emb", "ids"));
    let Tap::Embedding {
        weight,
        padding_idx: None,
        ..
    } = tap_of(&graph, |tap| matches!(tap, Tap::Embedding { .. }))
    else {
        panic!("{graph}")
    };
    assert!(weight.views.is_empty());
    assert_eq!(trained(&graph), ["w", "b", "emb"]);
}

#[test]
fn the_padding_row_is_named_in_the_tap_and_a_negative_one_is_none() {
    for (given, expected) in [(0, Some(0)), (4, Some(4)), (-1, None), (-3, None)] {
        let graph = accepted(|b| {
            b.call(
                "embedding.default",
                &[
                    ("weight", t("emb")),
                    ("indices", t("ids")),
                    ("padding_idx", i(given)),
                ],
            )
        });
        let tap = tap_of(&graph, |tap| matches!(tap, Tap::Embedding { .. }));
        assert!(
            matches!(tap, Tap::Embedding { padding_idx, .. } if *padding_idx == expected),
            "{given}: {tap:?}"
        );
    }
}

#[test]
fn ids_of_any_shape_of_the_sample_are_accepted() {
    let flat = accepted(|b| {
        let size = b.size_op_mul_x(4);
        let flat = b.call("view.default", &[("self", t("ids")), ("size", sizes(&[size]))]);
        let rows = embed(b, "emb", &flat);
        let size = b.size("x", 0);
        b.call(
            "view.default",
            &[("self", t(&rows)), ("size", sizes(&[size, k(4), k(6)]))],
        )
    });
    assert_eq!(trained(&flat), ["w", "b", "emb"]);
    let single = accepted(|b| {
        let rows = embed(b, "emb", "y");
        b.call("unsqueeze.default", &[("self", t(&rows)), ("dim", i(1))])
    });
    assert_eq!(trained(&single), ["w", "b", "emb"]);
    let narrow = accepted(|b| {
        let ids = b.call(
            "_to_copy.default",
            &[("self", t("ids")), ("dtype", RawArgument::ScalarType(4))],
        );
        embed(b, "emb", &ids)
    });
    assert_eq!(trained(&narrow), ["w", "b", "emb"]);
}

#[test]
fn consecutive_positions_are_a_slice_of_their_table() {
    let with_positions = |positions: fn(&mut Build) -> String| {
        accepted(move |b| {
            let rows = embed(b, "emb", "ids");
            let at = positions(b);
            let positions = embed(b, "pos", &at);
            b.call("add.Tensor", &[("self", t(&rows)), ("other", t(&positions))])
        })
    };
    let plain = with_positions(|b| b.call("arange.default", &[("end", i(4))]));
    let batched = with_positions(|b| {
        let at = b.call("arange.start", &[("start", i(0)), ("end", i(4))]);
        b.call("unsqueeze.default", &[("self", t(&at)), ("dim", i(0))])
    });
    let offset = with_positions(|b| {
        let at = b.call("arange.default", &[("end", i(4))]);
        b.call("add.Tensor", &[("self", t(&at)), ("other", i(2))])
    });
    let cut = with_positions(|b| {
        let all = b.call("arange.default", &[("end", i(7))]);
        b.call(
            "slice.Tensor",
            &[("self", t(&all)), ("start", i(3)), ("end", i(7))],
        )
    });
    for (graph, start) in [(plain, 0), (batched, 0), (offset, 2), (cut, 3)] {
        let Tap::BroadcastAdd { parameter, .. } =
            tap_of(&graph, |tap| matches!(tap, Tap::BroadcastAdd { .. }))
        else {
            panic!()
        };
        let slice = ParameterView::Narrow {
            axis: 0,
            start,
            length: 4,
        };
        assert_eq!(parameter.views[0], slice, "{graph}");
        assert_eq!(trained(&graph), ["w", "b", "emb", "pos"]);
    }
}

#[test]
fn positions_expanded_to_the_batch_are_read_as_per_sample_ids() {
    let graph = accepted(|b| {
        let at = b.call("arange.default", &[("end", i(4))]);
        let size = b.size("x", 0);
        let at = b.call(
            "expand.default",
            &[("self", t(&at)), ("size", sizes(&[size, k(-1)]))],
        );
        embed(b, "pos", &at)
    });
    assert!(matches!(
        tap_of(&graph, |tap| matches!(tap, Tap::Embedding { .. })),
        Tap::Embedding { .. }
    ));
    assert_eq!(trained(&graph), ["w", "b", "pos"]);
}

#[test]
fn slices_of_a_parameter_are_views_of_it() {
    let taken = |part: fn(&mut Build) -> String| {
        accepted(move |b| {
            let rows = embed(b, "emb", "ids");
            let part = part(b);
            b.call("mul.Tensor", &[("self", t(&rows)), ("other", t(&part))])
        })
    };
    let sliced = taken(|b| {
        b.call(
            "slice.Tensor",
            &[("self", t("pos")), ("start", i(-5)), ("end", i(6))],
        )
    });
    let selected = taken(|b| {
        b.call(
            "select.int",
            &[("self", t("pos")), ("dim", i(0)), ("index", i(-1))],
        )
    });
    let split = taken(|b| b.calls("split.Tensor", &[("self", t("pos")), ("split_size", i(4))], 2)[0].clone());
    let unbound = taken(|b| b.calls("unbind.int", &[("self", t("pos"))], 7)[6].clone());
    for (graph, start, length) in [(sliced, 2, 4), (selected, 6, 1), (split, 0, 4), (unbound, 6, 1)] {
        let tap = tap_of(&graph, |tap| matches!(tap, Tap::BroadcastMul { .. }));
        let Tap::BroadcastMul { parameter, .. } = tap else {
            panic!()
        };
        let narrow = ParameterView::Narrow {
            axis: 0,
            start,
            length,
        };
        assert_eq!(parameter.views[0], narrow, "{graph}");
    }
}

#[test]
fn a_class_token_expanded_to_the_batch_is_tapped() {
    let graph = accepted(|b| {
        let rows = embed(b, "emb", "ids");
        let size = b.size("ids", 0);
        let cls = b.call(
            "expand.default",
            &[("self", t("cls")), ("size", sizes(&[size, k(-1), k(-1)]))],
        );
        b.call(
            "cat.default",
            &[("tensors", RawArgument::Tensors(vec![cls, rows])), ("dim", i(1))],
        )
    });
    let Tap::Expand { parameter } = tap_of(&graph, |tap| matches!(tap, Tap::Expand { .. })) else {
        panic!()
    };
    assert!(parameter.views.is_empty());
    assert_eq!(trained(&graph), ["w", "b", "emb", "cls"]);
}

#[test]
fn a_parameter_expanded_along_the_sample_and_the_batch_is_tapped() {
    let graph = accepted(|b| {
        let size = b.size("x", 0);
        b.call(
            "expand.default",
            &[("self", t("w6")), ("size", sizes(&[size, k(3), k(6)]))],
        )
    });
    assert_eq!(trained(&graph), ["w", "b", "w6"]);
}

#[test]
fn a_table_used_again_as_the_last_layer_has_two_taps() {
    let graph = accepted(|b| {
        let rows = embed(b, "emb", "ids");
        b.call("linear.default", &[("input", t(&rows)), ("weight", t("emb"))])
    });
    let taps: Vec<u32> = graph
        .nodes()
        .iter()
        .filter_map(|node| node.tap.as_ref())
        .flat_map(Tap::parameters)
        .map(|tapped| tapped.parameter.0)
        .collect();
    let table = graph
        .parameters()
        .iter()
        .position(|parameter| parameter.names == ["emb"])
        .unwrap() as u32;
    assert_eq!(taps.iter().filter(|parameter| **parameter == table).count(), 2);
}

#[test]
fn masks_made_from_lengths_and_positions_are_within_the_sample() {
    let graph = accepted(|b| {
        let rows = embed(b, "emb", "ids");
        let at = b.call("arange.default", &[("end", i(4))]);
        let lengths = b.call("unsqueeze.default", &[("self", t("y")), ("dim", i(1))]);
        let kept = b.call("lt.Tensor", &[("self", t(&at)), ("other", t(&lengths))]);
        let padding = b.call("eq.Scalar", &[("self", t("ids")), ("other", i(0))]);
        let padding = b.call("bitwise_not.default", &[("self", t(&padding))]);
        let both = b.call(
            "bitwise_and.Tensor",
            &[("self", t(&kept)), ("other", t(&padding))],
        );
        let either = b.call("bitwise_xor.Tensor", &[("self", t(&both)), ("other", t(&kept))]);
        let size = b.size("ids", 0);
        let wide = b.call("unsqueeze.default", &[("self", t(&either)), ("dim", i(2))]);
        let wide = b.call(
            "expand.default",
            &[("self", t(&wide)), ("size", sizes(&[size, k(4), k(6)]))],
        );
        b.call(
            "masked_fill.Scalar",
            &[("self", t(&rows)), ("mask", t(&wide)), ("value", i(0))],
        )
    });
    assert_eq!(trained(&graph), ["w", "b", "emb"]);
}

#[test]
fn causal_masks_of_constants_and_of_samples_are_accepted() {
    let graph = accepted(|b| {
        let ones = b.call("ones.default", &[("size", ints(&[4, 4]))]);
        let causal = b.call("tril.default", &[("self", t(&ones))]);
        let hidden = embed(b, "emb", "ids");
        let transposed = b.call(
            "transpose.int",
            &[("self", t(&hidden)), ("dim0", i(1)), ("dim1", i(2))],
        );
        let mixed = b.call(
            "matmul.default",
            &[("self", t(&transposed)), ("other", t(&causal))],
        );
        b.call("triu.default", &[("self", t(&mixed)), ("diagonal", i(-1))])
    });
    let last = graph.nodes().iter().find(|node| node.operator == "triu").unwrap();
    let value_type = &graph.values()[last.outputs[0].0 as usize].value_type;
    assert_eq!(value_type.dependence, Dependence::PerSample { axis: 0 });
    assert_eq!(
        value_type.shape,
        [Extent::Batch(1), Extent::Fixed(6), Extent::Fixed(4)]
    );
}

#[test]
fn a_table_that_a_detach_cuts_off_is_not_trained() {
    let graph = accepted(|b| {
        let rows = embed(b, "emb", "ids");
        b.call("detach.default", &[("self", t(&rows))])
    });
    assert_eq!(trained(&graph), ["w", "b"]);
}

impl Build {
    fn size_op_mul_x(&mut self, by: i64) -> crate::program::RawSize {
        let size = self.size("x", 0);
        self.size_op("mul", size, k(by))
    }
}

/// A bad `[B, n, 6]` or `[n, 6]` value, summed over all but the batch and added to the loss.
fn bad_sum(b: &mut Build, operator: &str, arguments: &[(&str, RawArgument)], dims: &[i64]) {
    let bad = b.bad(operator, arguments);
    let rows = summed(b, &bad, dims);
    b.returns_loss_plus(&rows);
}

/// Leaky programs of these operators.
pub(super) fn cases() -> Vec<Case> {
    use Seen::{ByOracle, No};
    vec![
        mutant(
            "gradients scaled by how often an id occurs in the batch",
            "T7",
            P::UnreadArgumentsAreDefault,
            No,
            |b| {
                tokens(b);
                let arguments = [
                    ("weight", t("emb")),
                    ("indices", t("ids")),
                    ("scale_grad_by_freq", flag(true)),
                ];
                bad_sum(b, "embedding.default", &arguments, &[1, 2]);
            },
        ),
        mutant(
            "sparse gradients of a table",
            "T7",
            P::UnreadArgumentsAreDefault,
            No,
            |b| {
                tokens(b);
                let arguments = [
                    ("weight", t("emb")),
                    ("indices", t("ids")),
                    ("sparse", flag(true)),
                ];
                bad_sum(b, "embedding.default", &arguments, &[1, 2]);
            },
        ),
        mutant(
            "a table of the batch's own rows",
            "T7",
            P::WeightIsShared,
            ByOracle,
            |b| {
                tokens(b);
                let arguments = [("weight", t("x")), ("indices", t("ids"))];
                bad_sum(b, "embedding.default", &arguments, &[1, 2]);
            },
        ),
        mutant(
            "more words than the table has rows",
            "G4",
            P::IndicesWithinContract,
            No,
            |b| {
                tokens(b);
                b.parameter("small", &[3, 6], true);
                let arguments = [("weight", t("small")), ("indices", t("ids"))];
                bad_sum(b, "embedding.default", &arguments, &[1, 2]);
            },
        ),
        mutant(
            "positions beyond their table",
            "G4",
            P::IndicesWithinContract,
            No,
            |b| {
                let at = b.call("arange.default", &[("end", i(6))]);
                let arguments = [("weight", t("frozen")), ("indices", t(&at))];
                let bad = b.bad("embedding.default", &arguments);
                let seen = summed(b, &bad, &[0]);
                let seen = b.call("mul.Tensor", &[("self", t("x")), ("other", t(&seen))]);
                let rows = summed(b, &seen, &[1]);
                b.returns_loss_plus(&rows);
            },
        ),
        mutant(
            "ids with the batch on the second axis",
            "G2",
            P::TapsAreBatchFirst,
            No,
            |b| {
                tokens(b);
                let turned = b.call("t.default", &[("self", t("ids"))]);
                let arguments = [("weight", t("emb")), ("indices", t(&turned))];
                bad_sum(b, "embedding.default", &arguments, &[0, 2]);
            },
        ),
        mutant(
            "a class token with the batch on the second axis",
            "G2",
            P::TapsAreBatchFirst,
            No,
            |b| {
                tokens(b);
                let size = b.size("x", 0);
                let arguments = [("self", t("cls")), ("size", sizes(&[k(3), size, k(6)]))];
                bad_sum(b, "expand.default", &arguments, &[0, 2]);
            },
        ),
        mutant(
            "a causal mask over the batch",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                let bad = b.bad("tril.default", &[("self", t("x"))]);
                let rows = summed(b, &bad, &[1]);
                b.returns_loss_plus(&rows);
            },
        ),
        mutant(
            "the upper triangle over the batch's last axis",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                let turned = b.call("permute.default", &[("self", t("m")), ("dims", ints(&[1, 2, 0]))]);
                let bad = b.bad("triu.default", &[("self", t(&turned)), ("diagonal", i(1))]);
                let rows = summed(b, &bad, &[0, 1]);
                b.returns_loss_plus(&rows);
            },
        ),
    ]
}

#[test]
fn an_arange_from_a_start_to_the_batch_size_is_refused() {
    let mut b = Build::classifier();
    let size = b.size("x", 0);
    let at = b.call(
        "arange.start",
        &[("start", i(0)), ("end", RawArgument::Size(size))],
    );
    b.returns_loss_plus(&at);
    let refusals = b.check().unwrap_err();
    assert!(refusals.to_string().contains("arange.start"), "{refusals}");
}
