//! Recurrent layers of one hidden element over `m` and whatever has its form, with all they need in the ground.

use super::super::build::{Build, f, flag, i, ints, t};
use super::Draw;
use crate::dtype::DType;
use crate::program::RawArgument;
use crate::schema::Schema;
use crate::typed::{Dependence, Extent};

fn gates(schema: &Schema) -> Option<u64> {
    match schema.name.as_str() {
        "lstm" => Some(4),
        "gru" => Some(3),
        "rnn_tanh" | "rnn_relu" => Some(1),
        _ => None,
    }
}

/// Weights and first states for one cell and for two.
pub(super) fn ground(build: &mut Build, schema: &Schema) {
    let Some(gates) = gates(schema) else { return };
    build.parameter("cell_ih", &[gates, 3], true);
    build.parameter("cell_hh", &[gates, 1], true);
    build.parameter("cell_b", &[gates], true);
    for (cells, name) in [(1, "state1"), (2, "state2")] {
        let column = format!("{name}_rows");
        build.input(&column, DType::F32, &[cells, 1], None);
        build.call_as(
            name,
            "permute.default",
            &[("self", t(&column)), ("dims", ints(&[1, 0, 2]))],
        );
    }
}

/// None for other operators, and where the ground was not laid.
pub(super) fn arguments(draw: &mut Draw<'_>, schema: &Schema) -> Option<Vec<(String, RawArgument)>> {
    gates(schema)?;
    draw.values.iter().find(|(name, _)| name == "cell_ih")?;
    let batch_first = !draw.random.one_in(8);
    let axis = u8::from(!batch_first);
    let input = draw.like_first(|found| {
        found.dtype.is_float()
            && found.dependence == Dependence::PerSample { axis }
            && found.shape.len() == 3
            && found.shape[2] == Extent::Fixed(3)
    });
    let (layers, both_ways, biases) = *draw.random.pick(&[
        (1, false, true),
        (1, false, false),
        (2, false, true),
        (1, true, true),
        (1, true, false),
        (2, true, true),
    ]);
    let cells = layers * (1 + i64::from(both_ways));
    let state = if cells == 1 { "state1" } else { "state2" };
    let mut parameters = Vec::new();
    for cell in 0..cells {
        let is_first = cell <= i64::from(both_ways);
        parameters.push(if is_first { "cell_ih" } else { "cell_hh" }.to_owned());
        parameters.push("cell_hh".to_owned());
        if biases {
            parameters.extend(["cell_b".to_owned(), "cell_b".to_owned()]);
        }
    }
    if draw.random.one_in(15) {
        parameters.pop();
    }
    let states = if schema.name == "lstm" {
        RawArgument::Tensors(vec![state.to_owned(); 2])
    } else {
        t(state)
    };
    let given = [
        ("input", t(&input)),
        ("hx", states),
        ("params", RawArgument::Tensors(parameters)),
        ("has_biases", flag(biases)),
        ("num_layers", i(layers)),
        ("dropout", f(*draw.random.pick(&[0.0, 0.5]))),
        ("train", flag(draw.random.one_in(2))),
        ("bidirectional", flag(both_ways)),
        ("batch_first", flag(batch_first)),
    ];
    Some(given.map(|(name, value)| (name.to_owned(), value)).to_vec())
}
