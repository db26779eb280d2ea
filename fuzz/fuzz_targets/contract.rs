//! An owner's contract: parsing never panics, and the canonical form is a fixed point.
#![no_main]

use bastionai_graph::contract::DataContract;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(contract) = DataContract::parse_json(bytes) {
        let canonical = contract.to_canonical_json();
        let again = DataContract::parse_json(&canonical).expect("the canonical form parses");
        assert_eq!(again.to_canonical_json(), canonical);
    }
});
