//! Compiles the gRPC contract with protox: no `protoc` on the machine is needed. Lists its calls for whoever counts
//! them.

use std::fmt::Write as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let file = root.join("bastionai/v1/bastionai.proto");
    println!("cargo:rerun-if-changed={}", file.display());
    let descriptors = protox::compile([&file], [&root])?;
    let mut calls = String::from("&[\n");
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                writeln!(
                    calls,
                    "Call {{ path: \"/{}.{}/{}\", name: \"{}\", streams: {} }},",
                    file.package(),
                    service.name(),
                    method.name(),
                    snake_case(method.name()),
                    method.client_streaming() || method.server_streaming(),
                )?;
            }
        }
    }
    calls.push(']');
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("calls.rs"), calls)?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}

/// `PriceRun` as `price_run`.
fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}
