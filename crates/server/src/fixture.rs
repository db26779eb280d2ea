//! A checked graph for unit tests: 4 inputs, 8 hidden, 2 outputs.

use bastionai_graph::archive::{Archive, Limits};
use bastionai_graph::contract::DataContract;
use bastionai_graph::typed::TypedGraph;

const MLP: &[u8] = include_bytes!("../tests/fixtures/mlp.pt2");
const CONTRACT: &[u8] = br#"{"version":1,"columns":[
  {"name":"x","dtype":"f32","shape":[4],"domain":{"range":{"minimum":[-10.0],"maximum":[10.0]}}},
  {"name":"y","dtype":"i64","shape":[],"domain":{"classes":{"names":["benign","malignant"]}}}],
  "privacy_unit":"record","declared_size":64}"#;

pub(crate) fn mlp() -> TypedGraph {
    let inputs = DataContract::parse_json(CONTRACT)
        .unwrap()
        .inputs(&["x", "y"])
        .unwrap();
    bastionai_graph::check(&Archive::read(MLP, &Limits::default()).unwrap(), &inputs).unwrap()
}
