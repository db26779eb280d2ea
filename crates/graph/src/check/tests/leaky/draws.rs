//! Random values drawn once for several samples (T3), or as often as there are samples (T1).

use super::*;

pub(super) fn cases() -> Vec<Case> {
    vec![
        mutant("rand of one", "T3", P::RandomnessPerSample, ByOracle, |b| {
            bad_plus(b, "rand.default", &[("size", ints(&[1]))])
        }),
        mutant(
            "noise of one row added to every sample",
            "T3",
            P::RandomnessPerSample,
            ByOracle,
            |b| {
                let noise = b.bad("randn.default", &[("size", ints(&[6]))]);
                let noisy = b.call("add.Tensor", &[("self", t("x")), ("other", t(&noise))]);
                let rows = b.call("sum.dim_IntList", &[("self", t(&noisy)), ("dim", ints(&[1]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        mutant(
            "noise of a weight's shape",
            "T3",
            P::RandomnessPerSample,
            ByOracle,
            |b| {
                let noise = b.bad("randn_like.default", &[("self", t("frozen"))]);
                let hidden = b.call("linear.default", &[("input", t("x")), ("weight", t(&noise))]);
                let rows = b.call("sum.dim_IntList", &[("self", t(&hidden)), ("dim", ints(&[1]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        mutant(
            "stochastic depth of the whole batch",
            "T3",
            P::RandomnessPerSample,
            ByOracle,
            |b| {
                let drawn = b.bad("rand_like.default", &[("self", t("c1"))]);
                let kept = b.call("lt.Scalar", &[("self", t(&drawn)), ("other", f(0.8))]);
                let kept = b.call(
                    "_to_copy.default",
                    &[("self", t(&kept)), ("dtype", RawArgument::ScalarType(7))],
                );
                let path = b.call("mul.Tensor", &[("self", t("loss")), ("other", t(&kept))]);
                b.returns(&path);
            },
        ),
        case("a draw for every pair of samples", "T1", |b| {
            let size = b.size("x", 0);
            let square = b.bad("rand.default", &[("size", sizes(&[size.clone(), size]))]);
            let rows = b.call("sum.dim_IntList", &[("self", t(&square)), ("dim", ints(&[1]))]);
            b.returns_loss_plus(&rows);
        }),
        case("a draw from a generator of its own", "T3", |b| {
            let size = b.size("x", 0);
            bad_plus(b, "rand.generator", &[("size", sizes(&[size]))]);
        }),
    ]
}
