//! The verifying client: attested session, data contract, uploads, runs, receipts.
