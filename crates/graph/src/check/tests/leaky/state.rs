//! Randomness shared by samples (T3), and state from one batch to the next (T8).

use super::*;

pub(super) fn cases() -> Vec<Case> {
    [randomness(), state()].into_iter().flatten().collect()
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
        case("randperm of the batch", "T3", |b| {
            let size = b.size("x", 0);
            bad_plus(b, "randperm.default", &[("n", size_arg(&size))]);
        }),
        case("bernoulli of data", "T3", |b| {
            bad_plus(b, "bernoulli.p", &[("self", t("t")), ("p", f(0.5))])
        }),
    ]
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
