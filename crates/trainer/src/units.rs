//! Which rows are protected together: for each slot of each group its records. Numbers only; identifiers stay with the
//! server.

use crate::error::{EngineError, Result};
use bastionai_wire::trainer::DatasetShape;
use bastionai_wire::units::{NO_UNIT, Units};

/// The units of a run's datasets.
#[derive(Clone, Debug)]
pub struct UnitRows {
    records_per_unit: usize,
    of_datasets: Vec<Option<u32>>,
    groups: Vec<Group>,
}

/// Slots of one group, and their rows, counted through all datasets' capacities.
#[derive(Clone, Debug)]
struct Group {
    slots: u64,
    /// As they came: (slot, row).
    members: Vec<(u32, u64)>,
    /// Of each slot, where its rows begin among `members`; made by [`UnitRows::complete`].
    starts: Vec<usize>,
}

impl UnitRows {
    /// Groups without rows.
    ///
    /// # Errors
    /// [`EngineError::Job`] when the job's units do not fit its datasets.
    pub fn new(units: &Units, datasets: usize) -> Result<Self> {
        let refuse = |text: &str| Err(EngineError::Job(text.into()));
        if units.of_datasets.len() != datasets || units.records_per_unit == 0 {
            return refuse("a job says of each dataset what its units are, of at least one record each");
        }
        let known = |group: &u32| (*group as usize) < units.groups.len();
        if !units.of_datasets.iter().flatten().all(known) {
            return refuse("a dataset is in a group of units that there is not");
        }
        if units.groups.iter().any(|slots| *slots >= u64::from(NO_UNIT)) {
            return refuse("a group has more units than can be numbered");
        }
        let group = |&slots: &u64| Group {
            slots,
            members: Vec::new(),
            starts: Vec::new(),
        };
        Ok(Self {
            records_per_unit: units.records_per_unit as usize,
            of_datasets: units.of_datasets.clone(),
            groups: units.groups.iter().map(group).collect(),
        })
    }

    /// Each record of these datasets is a unit.
    pub fn of_records(datasets: usize) -> Self {
        Self {
            records_per_unit: 1,
            of_datasets: vec![None; datasets],
            groups: Vec::new(),
        }
    }

    /// Whether a dataset's rows are numbered by unit.
    pub fn are_numbered(&self, dataset: usize) -> bool {
        self.of_datasets.get(dataset).copied().flatten().is_some()
    }

    /// Takes the slot of each row of a dataset, whose rows begin at `offset`: u32, little-endian.
    ///
    /// # Errors
    /// [`EngineError::Job`] when a record has no slot of its group, or padding has one.
    pub fn fill(&mut self, dataset: usize, shape: &DatasetShape, offset: u64, numbers: &[u8]) -> Result<()> {
        let refuse = || EngineError::Job("a dataset's rows do not have the units of its group".into());
        let group = self
            .of_datasets
            .get(dataset)
            .copied()
            .flatten()
            .ok_or_else(refuse)?;
        let group = &mut self.groups[group as usize];
        let (numbers, rest) = numbers.as_chunks::<4>();
        if numbers.len() as u64 != shape.capacity || !rest.is_empty() {
            return Err(refuse());
        }
        for (row, number) in (0u64..).zip(numbers) {
            let slot = u32::from_le_bytes(*number);
            match (row < shape.rows, slot) {
                (true, slot) if u64::from(slot) < group.slots => group.members.push((slot, offset + row)),
                (false, NO_UNIT) => {}
                _ => return Err(refuse()),
            }
        }
        Ok(())
    }

    /// Sorts the rows by unit, when all are there.
    pub fn complete(&mut self) {
        for group in &mut self.groups {
            group.members.sort_unstable();
            let mut next = 0;
            let first = |slot: u64| {
                while group
                    .members
                    .get(next)
                    .is_some_and(|(of, _)| u64::from(*of) < slot)
                {
                    next += 1;
                }
                next
            };
            group.starts = (0..=group.slots).map(first).collect();
        }
    }

    /// Rows of every unit in a batch.
    pub fn records_per_unit(&self) -> usize {
        self.records_per_unit
    }

    /// Slots that can be drawn: rows of datasets whose unit is the record, and slots of groups.
    pub(crate) fn declared(&self, datasets: &[DatasetShape]) -> u64 {
        let of_records = datasets.iter().zip(&self.of_datasets);
        let rows = of_records.filter(|(_, group)| group.is_none());
        let rows = rows.map(|(shape, _)| shape.capacity);
        rows.chain(self.groups.iter().map(|group| group.slots))
            .fold(0, u64::saturating_add)
    }

    /// Number of groups.
    pub(crate) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Slots of a group.
    pub(crate) fn slots(&self, group: usize) -> u64 {
        self.groups[group].slots
    }

    /// The rows of a slot; none for one without a unit.
    pub(crate) fn rows(&self, group: usize, slot: u64) -> impl Iterator<Item = u64> + '_ {
        let (group, slot) = (&self.groups[group], slot as usize);
        group.members[group.starts[slot]..group.starts[slot + 1]]
            .iter()
            .map(|(_, row)| *row)
    }
}

#[cfg(test)]
impl UnitRows {
    /// Takes a unit away with all its records.
    pub(crate) fn remove(&mut self, group: usize, slot: u32) {
        self.groups[group].members.retain(|(of, _)| *of != slot);
        self.complete();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(slots: &[u32]) -> Vec<u8> {
        slots.iter().flat_map(|slot| slot.to_le_bytes()).collect()
    }

    fn units() -> UnitRows {
        let units = Units {
            records_per_unit: 2,
            of_datasets: vec![Some(0), None, Some(0)],
            groups: vec![4],
        };
        UnitRows::new(&units, 3).unwrap()
    }

    fn shape(capacity: u64, rows: u64) -> DatasetShape {
        DatasetShape { capacity, rows }
    }

    #[test]
    fn a_unit_has_its_rows_of_all_datasets() {
        let mut units = units();
        units
            .fill(0, &shape(4, 3), 0, &numbers(&[3, 1, 3, NO_UNIT]))
            .unwrap();
        units.fill(2, &shape(2, 2), 9, &numbers(&[1, 0])).unwrap();
        units.complete();
        let rows = |slot| units.rows(0, slot).collect::<Vec<u64>>();
        assert_eq!((rows(0), rows(1)), (vec![10], vec![1, 9]));
        assert_eq!((rows(2), rows(3)), (vec![], vec![0, 2]));
    }

    #[test]
    fn numbers_that_are_not_of_the_group_are_refused() {
        let mut units = units();
        for wrong in [
            vec![0, 1, 4, NO_UNIT],
            vec![0, 1, NO_UNIT, NO_UNIT],
            vec![0, 1, 2, 3],
            vec![0, 1, 2],
        ] {
            assert!(
                units.fill(0, &shape(4, 3), 0, &numbers(&wrong)).is_err(),
                "{wrong:?}"
            );
        }
        assert!(units.fill(1, &shape(1, 1), 4, &numbers(&[0])).is_err());
        let broken = |change: fn(&mut Units)| {
            let mut units = Units {
                records_per_unit: 2,
                of_datasets: vec![Some(0)],
                groups: vec![4],
            };
            change(&mut units);
            UnitRows::new(&units, 1).is_err()
        };
        assert!(!broken(|_| ()));
        assert!(broken(|units| units.records_per_unit = 0));
        assert!(broken(|units| units.of_datasets = vec![Some(1)]));
        assert!(broken(|units| units.of_datasets = vec![]));
        assert!(broken(|units| units.groups = vec![u64::from(u32::MAX)]));
    }
}
