//! Messages only, no logic: [`v1`] is the gRPC contract between clients and server, generated from
//! `proto/`; [`trainer`] is what server and trainer say to each other over pipes.
#![forbid(unsafe_code)]

/// The gRPC contract `bastionai.v1`; `proto/bastionai/v1/bastionai.proto` documents every field.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("bastionai.v1");
}

pub mod trainer;
