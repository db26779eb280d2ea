//! Which rows a trainer protects together.

use serde::{Deserialize, Serialize};

/// How records make units of privacy. The server groups them; no identifier reaches a trainer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Units {
    /// Rows of every unit in a batch, k: the k records a step uses of it, or all and padding.
    pub records_per_unit: u32,
    /// For each dataset in run order its group in `groups`; none where each record is a unit.
    pub of_datasets: Vec<Option<u32>>,
    /// Slots of each group: the declared units of its datasets together (rule D10).
    pub groups: Vec<u64>,
}

impl Units {
    /// Every record of so many datasets is a unit.
    pub fn records(datasets: usize) -> Self {
        Self {
            records_per_unit: 1,
            of_datasets: vec![None; datasets],
            groups: Vec::new(),
        }
    }

    /// Whether each record is a unit in all datasets.
    pub fn are_records(&self) -> bool {
        self.of_datasets.iter().all(Option::is_none)
    }
}

/// In place of a unit's number: a row without a record.
pub const NO_UNIT: u32 = u32::MAX;
