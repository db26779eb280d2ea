//! Ledger entries, hash chain, receipts and the budget state machine; pure, time passed in.
