//! Functions of trainable parameters where no tap takes them, or that draw (G2, T3).

use super::*;

fn doubled(b: &mut Build) -> String {
    b.call("mul.Tensor", &[("self", t("w6")), ("other", i(2))])
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        mutant(
            "the larger of data and a function of a parameter",
            "G2",
            P::ParametersAreTapped,
            No,
            |b| {
                let function = doubled(b);
                bad_rows(b, "maximum.default", &[("self", t("x")), ("other", t(&function))]);
            },
        ),
        mutant(
            "data over a function of a parameter",
            "G2",
            P::ParametersAreTapped,
            No,
            |b| {
                let function = b.call("exp.default", &[("self", t("w6"))]);
                bad_rows(b, "div.Tensor", &[("self", t("x")), ("other", t(&function))]);
            },
        ),
        mutant(
            "a function of a parameter chosen by data",
            "G2",
            P::ParametersAreTapped,
            No,
            |b| {
                let function = doubled(b);
                let gate = b.call("gt.Scalar", &[("self", t("x")), ("other", i(0))]);
                let arguments = [("condition", t(&gate)), ("self", t("x")), ("other", t(&function))];
                bad_rows(b, "where.self", &arguments);
            },
        ),
        mutant(
            "a function of a parameter joined to data",
            "G2",
            P::ParametersAreTapped,
            No,
            |b| {
                let function = doubled(b);
                let product = b.call("matmul.default", &[("self", t("w")), ("other", t(&function))]);
                let labels = b.call("unsqueeze.default", &[("self", t("y")), ("dim", i(1))]);
                let size = b.size("x", 0);
                let table = b.call("unsqueeze.default", &[("self", t(&product)), ("dim", i(0))]);
                let frozen = b.call("detach.default", &[("self", t(&table))]);
                let wide = b.call(
                    "expand.default",
                    &[("self", t(&frozen)), ("size", sizes(&[size, k(3)]))],
                );
                let picked = b.call(
                    "gather.default",
                    &[("self", t(&wide)), ("dim", i(1)), ("index", t(&labels))],
                );
                let function = b.call(
                    "select.int",
                    &[("self", t(&function)), ("dim", i(0)), ("index", i(0))],
                );
                bad_rows(
                    b,
                    "minimum.default",
                    &[("self", t(&picked)), ("other", t(&function))],
                );
            },
        ),
        mutant(
            "a function of a parameter on another axis than the first",
            "G2",
            P::TapsAreBatchFirst,
            No,
            |b| {
                let function = b.call("exp.default", &[("self", t("w"))]);
                let permuted = b.call("permute.default", &[("self", t("m")), ("dims", ints(&[1, 0, 2]))]);
                let both = RawArgument::Tensors(vec![permuted.clone(), permuted]);
                let joined = b.call("cat.default", &[("tensors", both), ("dim", i(2))]);
                let bad = b.bad(
                    "linear.default",
                    &[("input", t(&joined)), ("weight", t(&function))],
                );
                let rows = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[0, 2]))]);
                b.returns_loss_plus(&rows);
            },
        ),
        mutant(
            "a function of a parameter that draws",
            "T3",
            P::RandomnessPerSample,
            ByOracle,
            |b| {
                let bad = b.bad(
                    "dropout.default",
                    &[("input", t("w")), ("p", f(0.5)), ("train", flag(true))],
                );
                let hidden = b.call("linear.default", &[("input", t("x")), ("weight", t(&bad))]);
                let rows = b.call("sum.dim_IntList", &[("self", t(&hidden)), ("dim", ints(&[1]))]);
                b.returns_loss_plus(&rows);
            },
        ),
    ]
}
