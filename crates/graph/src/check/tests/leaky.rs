//! Leaky programs for T1, T3–T8, G2 and G4 in several variants; T2 (rounding that depends on the batch size) no type
//! can see: the trainer's oracles have its attack, at the one physical batch size of a run. Each is refused at the very node that leaks,
//! under its rule; most name the premise whose absence alone would let them through (see `mutants`).

mod attention;
mod functions;
mod order;

use super::build::{Build, f, flag, i, ints, k, sizes, t};
use crate::check::premise::Premise;
use crate::dtype::DType;
use crate::program::{Hint, HintExtent, RawArgument, RawSize};

/// How the second oracle sees the leak once the premise is dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// The dependence of the loss.
    ByOracle,
    /// Not in the forward pass (gradients, metadata, ranges): acceptance alone is the defect.
    No,
}

/// One leaky program.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) rule: &'static str,
    pub(super) premise: Option<(Premise, Seen)>,
    pub(super) build: fn(&mut Build),
}

pub(super) const fn case(name: &'static str, rule: &'static str, build: fn(&mut Build)) -> Case {
    Case {
        name,
        rule,
        premise: None,
        build,
    }
}

pub(super) const fn mutant(
    name: &'static str,
    rule: &'static str,
    premise: Premise,
    seen: Seen,
    build: fn(&mut Build),
) -> Case {
    Case {
        name,
        rule,
        premise: Some((premise, seen)),
        build,
    }
}

pub(super) fn size_arg(size: &RawSize) -> RawArgument {
    RawArgument::Size(size.clone())
}

/// A bad reduction of some value to less, reduced to a scalar and added to the loss.
pub(super) fn bad_then_mean(b: &mut Build, operator: &str, arguments: &[(&str, RawArgument)]) {
    let bad = b.bad(operator, arguments);
    let mean = b.call("mean.default", &[("self", t(&bad))]);
    b.returns_loss_plus(&mean);
}

/// A bad value that has the shape of the loss.
fn bad_plus(b: &mut Build, operator: &str, arguments: &[(&str, RawArgument)]) {
    let bad = b.bad(operator, arguments);
    b.returns_loss_plus(&bad);
}

/// A bad [B, n] value, summed over axis 1 and added to the loss.
fn bad_rows(b: &mut Build, operator: &str, arguments: &[(&str, RawArgument)]) {
    let bad = b.bad(operator, arguments);
    let rows = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[1]))]);
    b.returns_loss_plus(&rows);
}

use Premise as P;
use Seen::{ByOracle, No};

/// All leaky programs.
pub(super) fn cases() -> Vec<Case> {
    [
        sizes_of_the_batch(),
        randomness(),
        types(),
        reshapes(),
        operators(),
        state(),
        parameters(),
        super::embedding::cases(),
        attention::cases(),
        super::leaky_windows::cases(),
        functions::cases(),
        order::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn sizes_of_the_batch() -> Vec<Case> {
    vec![
        mutant(
            "loss times the batch size",
            "T1",
            P::BatchSizeOnlyInSizeLists,
            ByOracle,
            |b| {
                let size = b.size("x", 0);
                let scaled = b.bad("mul.Tensor", &[("self", t("loss")), ("other", size_arg(&size))]);
                b.returns(&scaled);
            },
        ),
        mutant(
            "loss over the batch size",
            "T1",
            P::BatchSizeOnlyInSizeLists,
            ByOracle,
            |b| {
                let size = b.size("t", 0);
                let scaled = b.bad("div.Scalar", &[("self", t("loss")), ("other", size_arg(&size))]);
                b.returns(&scaled);
            },
        ),
        mutant(
            "a tensor filled with the batch size",
            "T1",
            P::BatchSizeOnlyInSizeLists,
            ByOracle,
            |b| {
                let size = b.size("t", -1);
                bad_plus(
                    b,
                    "full.default",
                    &[("size", ints(&[1])), ("fill_value", size_arg(&size))],
                );
            },
        ),
        case("an exponent of the batch size", "T1", |b| {
            let size = b.size("m", 0);
            bad_plus(
                b,
                "pow.Tensor_Scalar",
                &[("self", t("t")), ("exponent", size_arg(&size))],
            );
        }),
        case("a dropout probability of the batch size", "T1", |b| {
            let size = b.size("x", 0);
            bad_plus(
                b,
                "dropout.default",
                &[("input", t("t")), ("p", size_arg(&size)), ("train", flag(true))],
            );
        }),
        case("a slice bound of the batch size", "T1", |b| {
            let size = b.size("x", 0);
            let arguments = [
                ("self", t("x")),
                ("dim", i(1)),
                ("start", i(0)),
                ("end", size_arg(&size)),
            ];
            bad_rows(b, "slice.Tensor", &arguments);
        }),
        case("a dimension of the batch size", "T1", |b| {
            let size = b.size("x", 0);
            bad_rows(b, "softmax.int", &[("self", t("x")), ("dim", size_arg(&size))]);
        }),
        case("a reduction over axes numbered by the batch size", "T1", |b| {
            let size = b.size("x", 0);
            bad_plus(b, "sum.dim_IntList", &[("self", t("x")), ("dim", sizes(&[size]))]);
        }),
        case("an assertion", "T1", |b| {
            b.blamed = "torch.ops.aten._assert_async.default".into();
            b.node(b.blamed.clone(), &[("self", t("t"))], Vec::new());
            b.returns("loss");
        }),
        mutant("half the batch", "T1", P::BatchSizeOnlyScaled, No, |b| {
            let size = b.size("x", 0);
            let half = b.size_op("floordiv", size, k(1));
            let RawSize::Name(name) = &half else {
                unreachable!()
            };
            b.blamed = name.clone();
            let zeros = b.call("zeros.default", &[("size", sizes(&[half]))]);
            b.returns_loss_plus(&zeros);
        }),
        case("the batch size squared", "T1", |b| {
            let size = b.size("x", 0);
            let squared = b.size_op("mul", size.clone(), size);
            let RawSize::Name(name) = &squared else {
                unreachable!()
            };
            b.blamed = name.clone();
            let zeros = b.call("zeros.default", &[("size", sizes(&[squared]))]);
            b.returns_loss_plus(&zeros);
        }),
        case("one more than the batch", "T1", |b| {
            let size = b.size("x", 0);
            let more = b.size_op("add", size, k(1));
            let RawSize::Name(name) = &more else {
                unreachable!()
            };
            b.blamed = name.clone();
            let zeros = b.call("zeros.default", &[("size", sizes(&[more]))]);
            b.returns_loss_plus(&zeros);
        }),
        mutant(
            "loss times arange of the batch",
            "T1",
            P::IotaOnlyIndexes,
            ByOracle,
            |b| {
                let size = b.size("x", 0);
                let iota = b.call("arange.default", &[("end", size_arg(&size))]);
                let scaled = b.bad("mul.Tensor", &[("self", t("loss")), ("other", t(&iota))]);
                b.returns(&scaled);
            },
        ),
        mutant(
            "arange of the batch converted to float",
            "T1",
            P::IotaOnlyIndexes,
            ByOracle,
            |b| {
                let size = b.size("x", 0);
                let iota = b.call("arange.default", &[("end", size_arg(&size))]);
                bad_plus(
                    b,
                    "_to_copy.default",
                    &[("self", t(&iota)), ("dtype", RawArgument::ScalarType(7))],
                );
            },
        ),
        mutant(
            "samples below a place in the batch",
            "T1",
            P::IotaOnlyIndexes,
            ByOracle,
            |b| {
                let size = b.size("x", 0);
                let iota = b.call("arange.default", &[("end", size_arg(&size))]);
                bad_plus(b, "lt.Scalar", &[("self", t(&iota)), ("other", i(2))]);
            },
        ),
        mutant(
            "ones expanded over the batch twice",
            "T1",
            P::OneBatchAxis,
            ByOracle,
            |b| {
                let size = b.size("x", 0);
                let column = b.call("unsqueeze.default", &[("self", t("t")), ("dim", i(1))]);
                bad_rows(
                    b,
                    "expand.default",
                    &[("self", t(&column)), ("size", sizes(&[size.clone(), size]))],
                );
            },
        ),
        mutant(
            "ones of the batch squared",
            "T1",
            P::OneBatchAxis,
            ByOracle,
            |b| {
                let size = b.size("x", 0);
                bad_rows(b, "ones.default", &[("size", sizes(&[size.clone(), size]))]);
            },
        ),
        mutant(
            "a constant expanded along the batch, then summed over it",
            "T7",
            P::DimsExcludeBatch,
            ByOracle,
            |b| {
                let size = b.size("x", 0);
                let row = b.call("expand.default", &[("self", t("c1")), ("size", sizes(&[size]))]);
                bad_then_mean(b, "sum.dim_IntList", &[("self", t(&row)), ("dim", ints(&[0]))]);
            },
        ),
    ]
}

fn randomness() -> Vec<Case> {
    vec![
        mutant(
            "dropout of a constant",
            "T3",
            P::RandomnessPerSample,
            ByOracle,
            |b| {
                bad_plus(
                    b,
                    "dropout.default",
                    &[("input", t("c1")), ("p", f(0.5)), ("train", flag(true))],
                );
            },
        ),
        mutant(
            "dropout of a frozen weight",
            "T3",
            P::RandomnessPerSample,
            ByOracle,
            |b| {
                let weight = b.bad(
                    "dropout.default",
                    &[("input", t("frozen")), ("p", f(0.5)), ("train", flag(true))],
                );
                let hidden = b.call("linear.default", &[("input", t("x")), ("weight", t(&weight))]);
                let rows = b.call("sum.dim_IntList", &[("self", t(&hidden)), ("dim", ints(&[1]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        mutant(
            "dropout of a constant, `train` omitted as None",
            "T3",
            P::RandomnessPerSample,
            ByOracle,
            |b| {
                let arguments = [("input", t("c1")), ("p", f(0.5)), ("train", RawArgument::None)];
                let values = b.calls("native_dropout.default", &arguments, 2);
                b.blamed = values[0].clone();
                b.returns_loss_plus(&values[0]);
            },
        ),
        case("rand of one", "T3", |b| {
            bad_plus(b, "rand.default", &[("size", ints(&[1]))])
        }),
        case("randperm of the batch", "T3", |b| {
            let size = b.size("x", 0);
            bad_plus(b, "randperm.default", &[("n", size_arg(&size))]);
        }),
        case("bernoulli of data", "T3", |b| {
            bad_plus(b, "bernoulli.p", &[("self", t("t")), ("p", f(0.5))])
        }),
    ]
}

fn types() -> Vec<Case> {
    vec![
        mutant("[B,1] - [B] is [B,B]", "T4", P::BatchAxesAligned, ByOracle, |b| {
            let column = b.call(
                "slice.Tensor",
                &[("self", t("x")), ("dim", i(1)), ("start", i(0)), ("end", i(1))],
            );
            bad_rows(b, "sub.Tensor", &[("self", t(&column)), ("other", t("t"))]);
        }),
        mutant(
            "[B,1] with [B] in mse_loss",
            "T4",
            P::BatchAxesAligned,
            ByOracle,
            |b| {
                let column = b.call("unsqueeze.default", &[("self", t("t")), ("dim", i(-1))]);
                bad_rows(
                    b,
                    "mse_loss.default",
                    &[("self", t(&column)), ("target", t("t")), ("reduction", i(0))],
                );
            },
        ),
        mutant(
            "where of [B] and [B,1]",
            "T4",
            P::BatchAxesAligned,
            ByOracle,
            |b| {
                let column = b.call("unsqueeze.default", &[("self", t("t")), ("dim", i(1))]);
                let bad = b.bad(
                    "where.self",
                    &[
                        ("condition", t("flag")),
                        ("self", t(&column)),
                        ("other", t(&column)),
                    ],
                );
                let rows = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[0]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        case("the transpose of [B,1] against [B,1]", "T4", |b| {
            let column = b.call("unsqueeze.default", &[("self", t("t")), ("dim", i(1))]);
            let row = b.call("t.default", &[("self", t(&column))]);
            bad_rows(b, "mul.Tensor", &[("self", t(&column)), ("other", t(&row))]);
        }),
        case("[2B] against [B]", "T4", |b| {
            let view = b.call("view.default", &[("self", t("x")), ("size", ints(&[-1, 3]))]);
            let long = b.call("sum.dim_IntList", &[("self", t(&view)), ("dim", ints(&[1]))]);
            bad_plus(b, "add.Tensor", &[("self", t(&long)), ("other", t("t"))]);
        }),
        mutant(
            "a constant with one row per batch slot",
            "T4",
            P::SharedSpansNoBatch,
            ByOracle,
            |b| {
                bad_plus(b, "mul.Tensor", &[("self", t("t")), ("other", t("c3"))]);
            },
        ),
        mutant(
            "a constant equal to B against [B,1]",
            "T4",
            P::SharedSpansNoBatch,
            ByOracle,
            |b| {
                let column = b.call("unsqueeze.default", &[("self", t("t")), ("dim", i(1))]);
                bad_rows(b, "maximum.default", &[("self", t(&column)), ("other", t("c33"))]);
            },
        ),
        mutant(
            "targets from a constant",
            "T4",
            P::SharedSpansNoBatch,
            ByOracle,
            |b| {
                bad_plus(
                    b,
                    "huber_loss.default",
                    &[("self", t("t")), ("target", t("c3")), ("reduction", i(0))],
                );
            },
        ),
        mutant(
            "a constant against the batch in the last place",
            "T4",
            P::SharedSpansNoBatch,
            ByOracle,
            |b| {
                let transposed = b.call("t.default", &[("self", t("x"))]);
                let bad = b.bad("mul.Tensor", &[("self", t(&transposed)), ("other", t("c3"))]);
                let back = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[0]))]);
                b.returns_loss_plus(&back);
            },
        ),
        mutant(
            "a recorded rank that is a lie",
            "T4",
            P::RecordedTypesAgree,
            No,
            |b| {
                let doubled = b.bad("mul.Tensor", &[("self", t("loss")), ("other", i(2))]);
                let shape = vec![
                    HintExtent::Symbolic("s0".into()),
                    HintExtent::Symbolic("s0".into()),
                ];
                b.hint(
                    &doubled,
                    Hint {
                        dtype: Some(DType::F32),
                        shape,
                    },
                );
                b.returns(&doubled);
            },
        ),
        mutant(
            "a second symbol for an axis of the sample",
            "T4",
            P::RecordedTypesAgree,
            No,
            |b| {
                let shape = vec![
                    HintExtent::Symbolic("s0".into()),
                    HintExtent::Symbolic("s1".into()),
                ];
                b.hint(
                    "x",
                    Hint {
                        dtype: Some(DType::F32),
                        shape,
                    },
                );
                b.blamed = "x".into();
                b.returns("loss");
            },
        ),
        mutant("a fixed batch size", "T4", P::RecordedTypesAgree, No, |b| {
            b.hint(
                "t",
                Hint {
                    dtype: Some(DType::F32),
                    shape: vec![HintExtent::Fixed(3)],
                },
            );
            b.blamed = "t".into();
            b.returns("loss");
        }),
        mutant(
            "another dtype than recorded",
            "T4",
            P::RecordedTypesAgree,
            No,
            |b| {
                let shape = vec![HintExtent::Symbolic("s0".into())];
                b.hint(
                    "loss",
                    Hint {
                        dtype: Some(DType::F64),
                        shape,
                    },
                );
                b.blamed = "loss".into();
                b.returns("loss");
            },
        ),
        mutant(
            "one_hot without the number of classes",
            "T5",
            P::ShapesDoNotDependOnValues,
            ByOracle,
            |b| {
                let labels = b.call(
                    "_to_copy.default",
                    &[("self", t("t")), ("dtype", RawArgument::ScalarType(5))],
                );
                let hot = b.bad("one_hot.default", &[("self", t(&labels))]);
                let rows = b.call("sum.dim_IntList", &[("self", t(&hot)), ("dim", ints(&[1]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        case("nonzero", "T5", |b| {
            bad_then_mean(b, "nonzero.default", &[("self", t("t"))])
        }),
        case("item", "T5", |b| {
            bad_plus(b, "item.default", &[("self", t("c1"))])
        }),
        case("masked_select", "T5", |b| {
            bad_then_mean(
                b,
                "masked_select.default",
                &[("self", t("t")), ("mask", t("flag"))],
            )
        }),
        case("the private spelling of item", "T5", |b| {
            bad_plus(b, "_local_scalar_dense.default", &[("self", t("c1"))])
        }),
        case("nonzero as a tuple", "T7", |b| {
            bad_then_mean(b, "nonzero_numpy.default", &[("self", t("t"))])
        }),
        case("boolean indexing", "T7", |b| {
            let indices = RawArgument::OptionalTensors(vec![Some("flag".into())]);
            bad_then_mean(b, "index.Tensor", &[("self", t("t")), ("indices", indices)]);
        }),
    ]
}

fn reshapes() -> Vec<Case> {
    vec![
        mutant(
            "[T,B,D] to [T*B,D]",
            "T6",
            P::LeftAxesPassThrough,
            ByOracle,
            |b| {
                let permuted = b.call("permute.default", &[("self", t("m")), ("dims", ints(&[1, 0, 2]))]);
                let size = b.size("x", 0);
                let merged = b.bad(
                    "reshape.default",
                    &[("self", t(&permuted)), ("shape", ints(&[-1, 3]))],
                );
                let split = b.call(
                    "view.default",
                    &[("self", t(&merged)), ("size", sizes(&[size, k(6)]))],
                );
                let rows = b.call("sum.dim_IntList", &[("self", t(&split)), ("dim", ints(&[1]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        mutant(
            "[T,B,D] flattened from the front",
            "T6",
            P::LeftAxesPassThrough,
            ByOracle,
            |b| {
                let permuted = b.call(
                    "transpose.int",
                    &[("self", t("m")), ("dim0", i(0)), ("dim1", i(1))],
                );
                let size = b.size("x", 0);
                let merged = b.bad(
                    "flatten.using_ints",
                    &[("self", t(&permuted)), ("start_dim", i(0)), ("end_dim", i(1))],
                );
                let split = b.call(
                    "view.default",
                    &[("self", t(&merged)), ("size", sizes(&[size, k(6)]))],
                );
                let rows = b.call("sum.dim_IntList", &[("self", t(&split)), ("dim", ints(&[1]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        mutant(
            "[B,T] to [T,B] by view",
            "T6",
            P::LeftAxesPassThrough,
            ByOracle,
            |b| {
                let size = b.size("x", 0);
                let turned = b.bad(
                    "view.default",
                    &[("self", t("x")), ("size", sizes(&[k(6), size]))],
                );
                let rows = b.call("sum.dim_IntList", &[("self", t(&turned)), ("dim", ints(&[0]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        case("[T,B] to [B,T] by view", "T6", |b| {
            let transposed = b.call("t.default", &[("self", t("x"))]);
            let size = b.size("x", 0);
            bad_rows(
                b,
                "_unsafe_view.default",
                &[("self", t(&transposed)), ("size", sizes(&[size, k(6)]))],
            );
        }),
        case("another factoring of the left axes", "T6", |b| {
            let permuted = b.call("permute.default", &[("self", t("m")), ("dims", ints(&[1, 2, 0]))]);
            let size = b.size("x", 0);
            let turned = b.bad(
                "reshape.default",
                &[("self", t(&permuted)), ("shape", sizes(&[k(3), k(2), size]))],
            );
            let rows = b.call("sum.dim_IntList", &[("self", t(&turned)), ("dim", ints(&[0, 1]))]);
            b.returns_loss_plus(&rows);
        }),
        case("[B,6] to [3B/2,4]", "T6", |b| {
            let odd = b.bad("view.default", &[("self", t("x")), ("size", ints(&[-1, 4]))]);
            let rows = b.call("sum.dim_IntList", &[("self", t(&odd)), ("dim", ints(&[1]))]);
            b.returns_loss_plus(&rows);
        }),
        mutant(
            "[B,6] to constants that happen to fit",
            "T6",
            P::BlocksStayWhole,
            ByOracle,
            |b| {
                bad_then_mean(b, "view.default", &[("self", t("x")), ("size", ints(&[3, 6]))]);
            },
        ),
        mutant(
            "[B] to a constant that happens to fit",
            "T6",
            P::BlocksStayWhole,
            ByOracle,
            |b| {
                bad_then_mean(b, "reshape.default", &[("self", t("t")), ("shape", ints(&[3]))]);
            },
        ),
        case("sizes that only fit another batch", "T6", |b| {
            let size = b.size("x", 0);
            let double = b.size_op("mul", size, k(2));
            let odd = b.bad(
                "view.default",
                &[("self", t("x")), ("size", sizes(&[double, k(6)]))],
            );
            let rows = b.call("sum.dim_IntList", &[("self", t(&odd)), ("dim", ints(&[1]))]);
            b.returns_loss_plus(&rows);
        }),
        case("view as another dtype", "T7", |b| {
            bad_plus(
                b,
                "view.dtype",
                &[("self", t("t")), ("dtype", RawArgument::ScalarType(8))],
            )
        }),
        case("repeat", "T7", |b| {
            bad_plus(b, "repeat.default", &[("self", t("t")), ("repeats", ints(&[2]))])
        }),
    ]
}

fn over_batch(name: &'static str, build: fn(&mut Build)) -> Case {
    mutant(name, "T7", P::DimsExcludeBatch, ByOracle, build)
}

fn operators() -> Vec<Case> {
    let mut cases = vec![
        over_batch("sum over the batch", |b| {
            bad_then_mean(b, "sum.dim_IntList", &[("self", t("x")), ("dim", ints(&[0]))])
        }),
        over_batch("sum over the last axis of [B]", |b| {
            bad_then_mean(b, "sum.dim_IntList", &[("self", t("t")), ("dim", ints(&[-1]))]);
        }),
        over_batch("sum over everything", |b| {
            bad_plus(b, "sum.default", &[("self", t("t"))])
        }),
        over_batch("sum over no dims", |b| {
            bad_plus(b, "sum.dim_IntList", &[("self", t("t")), ("dim", ints(&[]))])
        }),
        over_batch("mean over None", |b| {
            bad_plus(b, "mean.dim", &[("self", t("t")), ("dim", RawArgument::None)])
        }),
        over_batch("mean over both axes", |b| {
            bad_plus(b, "mean.dim", &[("self", t("x")), ("dim", ints(&[1, 0]))])
        }),
        over_batch("mean of the transpose over axis 1", |b| {
            let transposed = b.call("t.default", &[("self", t("x"))]);
            bad_then_mean(
                b,
                "mean.dim",
                &[
                    ("self", t(&transposed)),
                    ("dim", ints(&[1])),
                    ("keepdim", flag(true)),
                ],
            );
        }),
        over_batch("mean of the permuted over axis 1", |b| {
            let permuted = b.call("permute.default", &[("self", t("m")), ("dims", ints(&[2, 0, 1]))]);
            bad_then_mean(b, "mean.dim", &[("self", t(&permuted)), ("dim", ints(&[-2]))]);
        }),
        over_batch("amax over everything", |b| {
            bad_plus(b, "amax.default", &[("self", t("x"))])
        }),
        over_batch("argmax of the flat tensor", |b| {
            bad_plus(b, "argmax.default", &[("self", t("x"))])
        }),
        over_batch("argmin over the batch", |b| {
            bad_plus(b, "argmin.default", &[("self", t("t")), ("dim", i(0))])
        }),
        over_batch("logsumexp over the batch", |b| {
            bad_plus(b, "logsumexp.default", &[("self", t("t")), ("dim", ints(&[0]))]);
        }),
        over_batch("variance of everything", |b| {
            bad_plus(b, "var.correction", &[("self", t("t"))])
        }),
        over_batch("standard deviation over the batch", |b| {
            bad_plus(b, "std.dim", &[("self", t("t")), ("dim", ints(&[0]))]);
        }),
        over_batch("norm of everything", |b| {
            bad_plus(b, "linalg_vector_norm.default", &[("self", t("x"))])
        }),
        over_batch("any over the batch", |b| {
            bad_plus(b, "any.dim", &[("self", t("flag")), ("dim", i(0))])
        }),
        over_batch("max over the batch", |b| {
            let values = b.calls("max.dim", &[("self", t("t")), ("dim", i(-1))], 2);
            b.blamed = values[0].clone();
            b.returns_loss_plus(&values[0]);
        }),
        over_batch("softmax over the batch", |b| {
            bad_plus(b, "softmax.int", &[("self", t("t")), ("dim", i(-1))])
        }),
        over_batch("log_softmax over axis 0", |b| {
            bad_rows(b, "log_softmax.int", &[("self", t("x")), ("dim", i(0))])
        }),
        over_batch("softmax over the batch by its private name", |b| {
            bad_rows(
                b,
                "_softmax.default",
                &[("self", t("x")), ("dim", i(-2)), ("half_to_float", flag(false))],
            );
        }),
        over_batch("layer_norm of the transpose", |b| {
            let transposed = b.call("t.default", &[("self", t("x"))]);
            let bad = b.bad(
                "layer_norm.default",
                &[("input", t(&transposed)), ("normalized_shape", ints(&[3]))],
            );
            let back = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[0]))]);
            b.returns_loss_plus(&back);
        }),
        over_batch("layer_norm over [B]", |b| {
            bad_plus(
                b,
                "layer_norm.default",
                &[("input", t("t")), ("normalized_shape", ints(&[3]))],
            );
        }),
        over_batch("group_norm with the batch as channels", |b| {
            let transposed = b.call("t.default", &[("self", t("x"))]);
            let row = b.call("permute.default", &[("self", t("m")), ("dims", ints(&[1, 2, 0]))]);
            let bad = b.bad("group_norm.default", &[("input", t(&row)), ("num_groups", i(1))]);
            let back = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[0, 1]))]);
            let other = b.call(
                "sum.dim_IntList",
                &[("self", t(&transposed)), ("dim", ints(&[0]))],
            );
            let both = b.call("add.Tensor", &[("self", t(&back)), ("other", t(&other))]);
            b.returns_loss_plus(&both);
        }),
        over_batch("cross-entropy with the batch as classes", |b| {
            let transposed = b.call("t.default", &[("self", t("x"))]);
            let bad = b.bad(
                "cross_entropy_loss.default",
                &[
                    ("self", t(&transposed)),
                    ("target", t(&transposed)),
                    ("reduction", i(0)),
                ],
            );
            let scalar = b.call("mean.default", &[("self", t(&bad))]);
            b.returns_loss_plus(&scalar);
        }),
        mutant(
            "amax with dims given as none",
            "T7",
            P::EmptyDimsMeanAll,
            ByOracle,
            |b| {
                let bad = b.bad("amax.default", &[("self", t("t")), ("dim", ints(&[]))]);
                b.returns_loss_plus(&bad);
            },
        ),
        mutant("argmax with dim None", "T7", P::EmptyDimsMeanAll, ByOracle, |b| {
            bad_plus(
                b,
                "argmax.default",
                &[("self", t("t")), ("dim", RawArgument::None)],
            );
        }),
        mutant(
            "matmul over the batch",
            "T7",
            P::ContractionWithinSample,
            ByOracle,
            |b| {
                let transposed = b.call("t.default", &[("self", t("x"))]);
                bad_then_mean(
                    b,
                    "matmul.default",
                    &[("self", t(&transposed)), ("other", t("c33"))],
                );
            },
        ),
        mutant(
            "linear over the batch",
            "T7",
            P::ContractionWithinSample,
            ByOracle,
            |b| {
                let transposed = b.call("t.default", &[("self", t("x"))]);
                bad_then_mean(
                    b,
                    "linear.default",
                    &[("input", t(&transposed)), ("weight", t("c33"))],
                );
            },
        ),
        mutant(
            "matmul of [B] with a vector",
            "T7",
            P::ContractionWithinSample,
            ByOracle,
            |b| {
                bad_plus(b, "matmul.default", &[("self", t("t")), ("other", t("c3"))]);
            },
        ),
        case("linear with per-sample weights", "T7", |b| {
            bad_rows(b, "linear.default", &[("input", t("x")), ("weight", t("x"))])
        }),
        mutant(
            "class weights from the data",
            "T7",
            P::WeightIsShared,
            ByOracle,
            |b| {
                let arguments = [
                    ("self", t("logits")),
                    ("target", t("y")),
                    ("weight", t("t")),
                    ("reduction", i(0)),
                ];
                bad_plus(b, "cross_entropy_loss.default", &arguments);
            },
        ),
        mutant(
            "a normalisation scale from the data",
            "T7",
            P::WeightIsShared,
            ByOracle,
            |b| {
                let arguments = [
                    ("input", t("x")),
                    ("normalized_shape", ints(&[6])),
                    ("weight", t("t")),
                ];
                bad_rows(b, "layer_norm.default", &arguments);
            },
        ),
        mutant(
            "mse_loss with its reduction omitted",
            "T7",
            P::ReductionNone,
            ByOracle,
            |b| {
                bad_plus(b, "mse_loss.default", &[("self", t("t")), ("target", t("t"))]);
            },
        ),
        mutant(
            "cross-entropy with its reduction omitted",
            "T7",
            P::ReductionNone,
            ByOracle,
            |b| {
                bad_plus(
                    b,
                    "cross_entropy_loss.default",
                    &[("self", t("logits")), ("target", t("y"))],
                );
            },
        ),
        mutant("nll_loss summed", "T7", P::ReductionNone, ByOracle, |b| {
            bad_plus(
                b,
                "nll_loss_nd.default",
                &[("self", t("logits")), ("target", t("y")), ("reduction", i(2))],
            );
        }),
        mutant("BCE averaged", "T7", P::ReductionNone, ByOracle, |b| {
            bad_plus(
                b,
                "binary_cross_entropy_with_logits.default",
                &[("self", t("t")), ("target", t("t")), ("reduction", i(1))],
            );
        }),
        mutant(
            "the first sample's value",
            "T7",
            P::BatchAxisUntouched,
            ByOracle,
            |b| {
                bad_plus(
                    b,
                    "select.int",
                    &[("self", t("t")), ("dim", i(0)), ("index", i(0))],
                );
            },
        ),
        mutant(
            "the last sample, axis from the end",
            "T7",
            P::BatchAxisUntouched,
            ByOracle,
            |b| {
                bad_then_mean(
                    b,
                    "select.int",
                    &[("self", t("x")), ("dim", i(-2)), ("index", i(-1))],
                );
            },
        ),
        mutant(
            "a slice of the batch",
            "T7",
            P::BatchAxisUntouched,
            ByOracle,
            |b| {
                bad_plus(
                    b,
                    "slice.Tensor",
                    &[("self", t("t")), ("dim", i(0)), ("start", i(0)), ("end", i(1))],
                );
            },
        ),
        mutant("every other sample", "T7", P::BatchAxisUntouched, ByOracle, |b| {
            bad_then_mean(
                b,
                "slice.Tensor",
                &[("self", t("x")), ("dim", i(0)), ("step", i(2))],
            );
        }),
        mutant("the batch unbound", "T7", P::BatchAxisUntouched, ByOracle, |b| {
            let parts = b.calls("unbind.int", &[("self", t("t"))], 3);
            b.blamed = parts[0].clone();
            b.returns_loss_plus(&parts[1]);
        }),
        mutant("the batch split", "T7", P::BatchAxisUntouched, ByOracle, |b| {
            let parts = b.calls("split.Tensor", &[("self", t("t")), ("split_size", i(1))], 3);
            b.blamed = parts[0].clone();
            b.returns_loss_plus(&parts[2]);
        }),
        mutant(
            "the batch split by sizes",
            "T7",
            P::BatchAxisUntouched,
            ByOracle,
            |b| {
                let parts = b.calls(
                    "split_with_sizes.default",
                    &[("self", t("t")), ("split_sizes", ints(&[1, 2]))],
                    2,
                );
                b.blamed = parts[0].clone();
                b.returns_loss_plus(&parts[0]);
            },
        ),
        mutant(
            "squeezing the batch axis",
            "T7",
            P::BatchAxisUntouched,
            ByOracle,
            |b| {
                let column = b.call("unsqueeze.default", &[("self", t("t")), ("dim", i(1))]);
                let bad = b.bad("squeeze.default", &[("self", t(&column))]);
                b.returns_loss_plus(&bad);
            },
        ),
        mutant("squeezing dim 0", "T7", P::BatchAxisUntouched, ByOracle, |b| {
            bad_plus(b, "squeeze.dim", &[("self", t("t")), ("dim", i(-1))]);
        }),
        mutant(
            "joining along the batch",
            "T7",
            P::JoinsWithinSample,
            ByOracle,
            |b| {
                let joined = b.bad(
                    "cat.default",
                    &[("tensors", RawArgument::Tensors(vec!["x".into(), "x".into()]))],
                );
                let size = b.size("x", 0);
                let rows = b.call(
                    "view.default",
                    &[("self", t(&joined)), ("size", sizes(&[size, k(12)]))],
                );
                let rows = b.call("sum.dim_IntList", &[("self", t(&rows)), ("dim", ints(&[1]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        mutant(
            "gather from a constant by place in the batch",
            "T7",
            P::GatherWithinSample,
            ByOracle,
            |b| {
                let index = b.call("unsqueeze.default", &[("self", t("y")), ("dim", i(1))]);
                bad_rows(
                    b,
                    "gather.default",
                    &[("self", t("c33")), ("dim", i(1)), ("index", t(&index))],
                );
            },
        ),
        mutant(
            "gather along the batch",
            "T7",
            P::GatherWithinSample,
            ByOracle,
            |b| {
                bad_plus(
                    b,
                    "gather.default",
                    &[("self", t("t")), ("dim", i(0)), ("index", t("y"))],
                );
            },
        ),
        mutant(
            "gather of the first samples by a constant",
            "T7",
            P::GatherWithinSample,
            ByOracle,
            |b| {
                bad_then_mean(
                    b,
                    "gather.default",
                    &[("self", t("t")), ("dim", i(0)), ("index", t("ci"))],
                );
            },
        ),
        mutant(
            "indexing the batch by labels",
            "T7",
            P::IndexWithinSample,
            ByOracle,
            |b| {
                let indices = RawArgument::OptionalTensors(vec![Some("y".into())]);
                bad_rows(b, "index.Tensor", &[("self", t("x")), ("indices", indices)]);
            },
        ),
        mutant(
            "indexing the batch by a constant",
            "T7",
            P::IndexWithinSample,
            ByOracle,
            |b| {
                let indices = RawArgument::Tensors(vec!["ci".into()]);
                bad_then_mean(b, "index.Tensor", &[("self", t("t")), ("indices", indices)]);
            },
        ),
        mutant(
            "a constant's row by place in the batch",
            "T7",
            P::IndexWithinSample,
            ByOracle,
            |b| {
                let size = b.size("x", 0);
                let iota = b.call("arange.default", &[("end", size_arg(&size))]);
                let indices = RawArgument::OptionalTensors(vec![Some(iota)]);
                bad_plus(b, "index.Tensor", &[("self", t("c3")), ("indices", indices)]);
            },
        ),
        case("a sample's column by its place in the batch", "T7", |b| {
            let size = b.size("x", 0);
            let iota = b.call("arange.default", &[("end", size_arg(&size))]);
            let indices = RawArgument::OptionalTensors(vec![Some(iota.clone()), Some(iota)]);
            bad_plus(b, "index.Tensor", &[("self", t("x")), ("indices", indices)]);
        }),
        case("x[:, idx] by per-sample idx", "T7", |b| {
            let indices = RawArgument::OptionalTensors(vec![None, Some("y".into())]);
            bad_rows(b, "index.Tensor", &[("self", t("x")), ("indices", indices)]);
        }),
        mutant(
            "a gradient divided by how often an index occurs",
            "T7",
            P::UnreadArgumentsAreDefault,
            No,
            |b| {
                let arguments = [
                    ("weight", t("table")),
                    ("indices", t("y")),
                    ("scale_grad_by_freq", flag(true)),
                ];
                bad_rows(b, "embedding.default", &arguments);
            },
        ),
        mutant("a sparse gradient", "T7", P::UnreadArgumentsAreDefault, No, |b| {
            let index = b.call("unsqueeze.default", &[("self", t("y")), ("dim", i(1))]);
            let arguments = [
                ("self", t("logits")),
                ("dim", i(1)),
                ("index", t(&index)),
                ("sparse_grad", flag(true)),
            ];
            bad_rows(b, "gather.default", &arguments);
        }),
    ];
    for name in [
        "roll.default",
        "flip.default",
        "bincount.default",
        "histc.default",
        "searchsorted.Tensor",
        "cdist.default",
        "index_put.default",
        "masked_scatter.default",
        "take.default",
        "lstm.input",
        "embedding_bag.default",
        "ctc_loss.IntList",
        "from_file.default",
        "as_strided.default",
        "empty.memory_format",
        "native_layer_norm.default",
    ] {
        assert!(
            crate::check::rules::find(name.split_once('.').unwrap().0, name.split_once('.').unwrap().1)
                .is_none(),
            "{name}"
        );
    }
    cases.push(case("roll of the flat tensor", "T7", |b| {
        bad_plus(b, "roll.default", &[("self", t("t")), ("shifts", ints(&[1]))])
    }));
    cases.push(case("reading a file", "T7", |b| {
        bad_plus(
            b,
            "from_file.default",
            &[("filename", RawArgument::Str("/etc/passwd".into()))],
        );
    }));
    cases
}

fn state() -> Vec<Case> {
    vec![
        mutant("a buffer's new value", "T8", P::NoState, No, |b| {
            let next = b.bad("add.Tensor", &[("self", t("c6")), ("other", i(1))]);
            b.mutates(&next);
            b.returns("loss");
        }),
        mutant("a parameter's new value", "T8", P::NoState, No, |b| {
            let next = b.bad("detach.default", &[("self", t("w6"))]);
            b.mutates(&next);
            b.returns("loss");
        }),
        case("an in-place operator", "T8", |b| {
            bad_plus(b, "relu_.default", &[("self", t("t"))])
        }),
        case("an in-place addition", "T8", |b| {
            bad_plus(b, "add_.Tensor", &[("self", t("t")), ("other", i(1))])
        }),
        case("an out= overload", "T7", |b| {
            bad_plus(
                b,
                "add.out",
                &[("self", t("t")), ("other", t("t")), ("out", t("t"))],
            )
        }),
    ]
}

fn parameters() -> Vec<Case> {
    vec![
        mutant(
            "a parameter where nothing taps it",
            "G2",
            P::ParametersAreTapped,
            No,
            |b| {
                bad_rows(b, "maximum.default", &[("self", t("x")), ("other", t("w6"))]);
            },
        ),
        mutant("data over a parameter", "G2", P::ParametersAreTapped, No, |b| {
            bad_rows(b, "div.Tensor", &[("self", t("x")), ("other", t("w6"))]);
        }),
        mutant(
            "a trainable scale in arithmetic with alpha on the wrong side",
            "G2",
            P::ParametersAreTapped,
            No,
            |b| {
                bad_rows(
                    b,
                    "where.self",
                    &[("condition", t("gate")), ("self", t("x")), ("other", t("w6"))],
                );
                let position = b.parts.nodes.len() - 3;
                let mut gate = Build::empty();
                gate.call_as("gate", "gt.Scalar", &[("self", t("x")), ("other", i(0))]);
                b.parts.nodes.insert(position, gate.parts.nodes.remove(0));
            },
        ),
        mutant("a tap behind another axis", "G2", P::TapsAreBatchFirst, No, |b| {
            let permuted = b.call("permute.default", &[("self", t("m")), ("dims", ints(&[1, 0, 2]))]);
            let joined = b.call(
                "cat.default",
                &[
                    ("tensors", RawArgument::Tensors(vec![permuted.clone(), permuted])),
                    ("dim", i(2)),
                ],
            );
            let hidden = b.bad("linear.default", &[("input", t(&joined)), ("weight", t("w"))]);
            let rows = b.call("sum.dim_IntList", &[("self", t(&hidden)), ("dim", ints(&[0, 2]))]);
            b.returns_loss_plus(&rows);
        }),
        mutant(
            "more classes than outputs",
            "G4",
            P::IndicesWithinContract,
            No,
            |b| {
                let two = b.call(
                    "slice.Tensor",
                    &[
                        ("self", t("logits")),
                        ("dim", i(1)),
                        ("start", i(0)),
                        ("end", i(2)),
                    ],
                );
                bad_plus(
                    b,
                    "nll_loss_nd.default",
                    &[("self", t(&two)), ("target", t("y")), ("reduction", i(0))],
                );
            },
        ),
        mutant(
            "one_hot of fewer classes than declared",
            "G4",
            P::IndicesWithinContract,
            No,
            |b| {
                let hot = b.bad("one_hot.default", &[("self", t("y")), ("num_classes", i(2))]);
                let rows = b.call("sum.dim_IntList", &[("self", t(&hot)), ("dim", ints(&[1]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        case("a loss that fails outside of [0, 1]", "G4", |b| {
            bad_plus(
                b,
                "binary_cross_entropy.default",
                &[("self", t("t")), ("target", t("t")), ("reduction", i(0))],
            );
        }),
        mutant("one loss for all", "T7", P::LossPerSample, ByOracle, |b| {
            let both = b.bad("mul.Tensor", &[("self", t("logits")), ("other", i(2))]);
            b.returns(&both);
        }),
    ]
}

#[test]
fn every_leaky_program_is_refused_at_the_leaking_node_under_its_rule() {
    for case in cases() {
        let mut build = Build::classifier();
        (case.build)(&mut build);
        let refusals = build.check().expect_err(case.name).refusals;
        let found: Vec<_> = refusals
            .iter()
            .map(|refusal| (refusal.node.as_str(), refusal.rule.as_deref()))
            .collect();
        assert_eq!(
            found,
            [(build.blamed.as_str(), Some(case.rule))],
            "{}: {refusals:?}",
            case.name
        );
        assert!(!refusals[0].reason.is_empty() && !refusals[0].remedy.is_empty());
    }
}

#[test]
fn a_refusal_names_node_operator_and_python_line() {
    let mut build = Build::classifier();
    let sum = build.bad("sum.dim_IntList", &[("self", t("x")), ("dim", ints(&[0]))]);
    let mean = build.call("mean.default", &[("self", t(&sum))]);
    build.returns_loss_plus(&mean);
    let refusals = build.check().unwrap_err();
    let text = refusals.to_string();
    assert!(
        text.contains("model.py:2: n1 (aten.sum.dim_IntList): it combines the samples"),
        "{text}"
    );
    let json: serde_json::Value = serde_json::to_value(&refusals).unwrap();
    assert_eq!(json[0]["operator"], "aten.sum.dim_IntList");
    assert_eq!(json[0]["source"], "model.py:2");
}

#[test]
fn all_leaks_of_a_program_are_reported_at_once() {
    let mut build = Build::classifier();
    let one = build.call("sum.default", &[("self", t("t"))]);
    let two = build.call("mul.Tensor", &[("self", t("t")), ("other", t("c3"))]);
    let three = build.call("add.Tensor", &[("self", t(&one)), ("other", t(&two))]);
    build.returns_loss_plus(&three);
    let refusals = build.check().unwrap_err().refusals;
    assert_eq!(
        refusals
            .iter()
            .map(|refusal| refusal.node.as_str())
            .collect::<Vec<_>>(),
        [one.as_str(), two.as_str()]
    );
}
