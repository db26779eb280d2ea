//! Sealed blocks, keys and the ledger's persistence; synchronous, behind a BlockStore trait.
