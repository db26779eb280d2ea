//! The batch size where it tells how many samples were drawn (T1).

use super::*;

pub(super) fn cases() -> Vec<Case> {
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
