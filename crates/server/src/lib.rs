//! gRPC over attested TLS, governance, and supervision of trainers.
