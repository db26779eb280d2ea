//! Reshapes and expansions that move elements between samples (T6).

use super::*;

pub(super) fn cases() -> Vec<Case> {
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
