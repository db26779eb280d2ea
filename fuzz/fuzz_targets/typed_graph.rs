//! The canonical typed graph: decoding never panics, and only canonical bytes decode.
#![no_main]

use bastionai_graph::typed::TypedGraph;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(graph) = TypedGraph::from_bytes(bytes) {
        assert_eq!(graph.to_bytes(), bytes);
    }
});
