//! Repeating, flipping and rolling the batch axis (T7), and BatchNorm under its core name.

use super::*;

/// [B·k, 6] laid out as [B, 6k], summed and added to the loss.
fn blocks_summed(b: &mut Build, value: &str) {
    let size = b.size("x", 0);
    let blocks = b.call(
        "view.default",
        &[("self", t(value)), ("size", sizes(&[size, k(-1)]))],
    );
    let rows = b.call("sum.dim_IntList", &[("self", t(&blocks)), ("dim", ints(&[1]))]);
    b.returns_loss_plus(&rows);
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        mutant("the batch repeated", "T7", P::BatchAxisUntouched, ByOracle, |b| {
            let bad = b.bad("repeat.default", &[("self", t("x")), ("repeats", ints(&[2, 1]))]);
            blocks_summed(b, &bad);
        }),
        mutant(
            "the batch repeated by the batch size",
            "T7",
            P::BatchAxisUntouched,
            ByOracle,
            |b| {
                let size = b.size("x", 0);
                let repeats = ("repeats", sizes(&[size, k(1)]));
                let bad = b.bad("repeat.default", &[("self", t("x")), repeats]);
                blocks_summed(b, &bad);
            },
        ),
        case("a sample repeated along a second batch axis", "T1", |b| {
            let size = b.size("x", 0);
            let repeats = ("repeats", sizes(&[size, k(1), k(1)]));
            let bad = b.bad("repeat.default", &[("self", t("x")), repeats]);
            let rows = b.call("sum.dim_IntList", &[("self", t(&bad)), ("dim", ints(&[0, 2]))]);
            b.returns_loss_plus(&rows);
        }),
        case("everything repeated in one axis", "T7", |b| {
            bad_then_mean(
                b,
                "repeat_interleave.self_int",
                &[("self", t("x")), ("repeats", i(2))],
            );
        }),
        mutant("the batch flipped", "T7", P::BatchAxisUntouched, ByOracle, |b| {
            bad_plus(b, "flip.default", &[("self", t("t")), ("dims", ints(&[0]))]);
        }),
        mutant(
            "the batch flipped, axis from the end",
            "T7",
            P::BatchAxisUntouched,
            ByOracle,
            |b| bad_rows(b, "flip.default", &[("self", t("x")), ("dims", ints(&[1, -2]))]),
        ),
        mutant("the batch rolled", "T7", P::BatchAxisUntouched, ByOracle, |b| {
            let arguments = [("self", t("x")), ("shifts", ints(&[1])), ("dims", ints(&[0]))];
            bad_rows(b, "roll.default", &arguments);
        }),
        mutant(
            "roll of the flat tensor",
            "T7",
            P::EmptyDimsMeanAll,
            ByOracle,
            |b| {
                bad_rows(b, "roll.default", &[("self", t("x")), ("shifts", ints(&[1]))]);
            },
        ),
        case("BatchNorm by the saved statistics of its core name", "T7", |b| {
            let names = b.calls(
                "_native_batch_norm_legit_no_training.default",
                &frozen("c3", "c3"),
                3,
            );
            b.blamed = names[0].clone();
            let mean = b.call("mean.default", &[("self", t(&names[1]))]);
            let rows = b.call("sum.dim_IntList", &[("self", t(&names[0])), ("dim", ints(&[1]))]);
            let both = b.call("add.Tensor", &[("self", t(&rows)), ("other", t(&mean))]);
            b.returns_loss_plus(&both);
        }),
        case(
            "BatchNorm under its core name by statistics of the data",
            "T7",
            |b| {
                let names = b.calls(
                    "_native_batch_norm_legit_no_training.default",
                    &frozen("c3", "logits"),
                    3,
                );
                b.blamed = names[0].clone();
                let rows = b.call("sum.dim_IntList", &[("self", t(&names[0])), ("dim", ints(&[1]))]);
                b.returns_loss_plus(&rows);
            },
        ),
    ]
}

/// Core ATen's BatchNorm of the logits by fixed statistics.
fn frozen(mean: &str, variance: &str) -> Vec<(&'static str, RawArgument)> {
    vec![
        ("input", t("logits")),
        ("weight", RawArgument::None),
        ("bias", RawArgument::None),
        ("running_mean", t(mean)),
        ("running_var", t(variance)),
        ("momentum", f(0.1)),
        ("eps", f(1e-5)),
    ]
}
