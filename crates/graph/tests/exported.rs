//! Models exported by the pinned torch (`scripts/generate_graph_fixtures.py`), through reader and checker.

use bastionai_graph::archive::{Archive, Limits};
use bastionai_graph::typed::TypedGraph;
use bastionai_graph::{Refusals, check};

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

#[test]
fn accepted() {
    for name in [
        "classifier",
        "cross_entropy",
        "regressor",
        "binary",
        "broadcast",
        "zoo",
    ] {
        match checked(name) {
            Ok(graph) => println!("== {name}\n{graph}"),
            Err(refusals) => panic!("{name}: {refusals}"),
        }
    }
}

#[test]
fn refused() {
    for name in ["refused_batch_norm", "refused_batch_mean"] {
        println!("== {name}\n{}", checked(name).expect_err(name));
    }
}
