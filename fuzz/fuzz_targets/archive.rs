//! A scientist's archive: reading, checking and encoding never panic; what is accepted round-trips.
#![no_main]

use bastionai_graph::archive::{Archive, Limits};
use bastionai_graph::typed::TypedGraph;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(archive) = Archive::read(bytes, &Limits::default()) else { return };
    let Ok(inputs) = archive.example_inputs() else { return };
    if let Ok(graph) = bastionai_graph::check(&archive, &inputs) {
        assert_eq!(TypedGraph::from_bytes(&graph.to_bytes()).expect("own bytes decode"), graph);
    }
});
