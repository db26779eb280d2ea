//! The units of privacy of a run: which datasets share them, how many records of each a step uses, and, once the datasets
//! are open, which rows are whose (rule D9).
//!
//! Identifiers stay in this process. A trainer gets a number for each row, drawn by order of an HMAC of the identifier
//! under a key of the run, which it does not get: numbers say which rows belong together, and nothing of who or in which
//! other run. They are the same at every start of the run's trainer: with correlated noise a unit's number says in which
//! steps it may have its turn, and a unit that changed would have more turns than were paid for.

use crate::errors::{Failure, Reason};
use bastionai_graph::contract::{DataContract, UnitColumn};
use bastionai_wire::trainer::MAX_FRAME_BYTES;
use bastionai_wire::units::{NO_UNIT, Units};
use ring::hmac;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// What the contracts of a run's datasets say about units, and what the scientist asked for.
pub(crate) fn units(contracts: &[(&str, &DataContract)], asked: Option<u32>) -> Result<Units, Failure> {
    let invalid = |message: String| Err(Failure::new(Reason::RunSpecInvalid, message));
    let mut groups: Vec<Joined<'_>> = Vec::new();
    let of_datasets: Vec<Option<u32>> = contracts
        .iter()
        .map(|(_, contract)| contract.unit_column().map(|column| join(&mut groups, column)))
        .collect();
    let Some(default) = groups.iter().map(|group| group.smallest).min() else {
        return match asked {
            None | Some(1) => Ok(Units::records(contracts.len())),
            Some(asked) => invalid(format!(
                "records_per_unit {asked}: the unit of these datasets is the record; leave records_per_unit out"
            )),
        };
    };
    let too_long = |contract: &DataContract| contract.declared_size.saturating_mul(4) > MAX_FRAME_BYTES;
    if let Some((name, _)) = contracts
        .iter()
        .find(|(_, contract)| contract.unit_column().is_some() && too_long(contract))
    {
        return invalid(format!(
            "dataset `{name}` declares more records than can be numbered by unit: split it"
        ));
    }
    let most = groups.iter().map(|group| group.records).max().unwrap_or(default);
    let chosen = asked.map_or(default, u64::from);
    if !(1..=most).contains(&chosen) {
        return invalid(format!(
            "records_per_unit {chosen} must be from 1 to {most}, the most records that a unit of these datasets can have"
        ));
    }
    if let Some(group) = groups.iter().find(|group| group.units >= u64::from(NO_UNIT)) {
        return invalid(format!(
            "the datasets joined by `{}` declare {} units together, more than 2^32 - 2: use fewer of them",
            group.column.name, group.units
        ));
    }
    Ok(Units {
        records_per_unit: u32::try_from(chosen).map_err(Failure::internal)?,
        of_datasets,
        groups: groups.iter().map(|group| group.units).collect(),
    })
}

/// Datasets whose columns name the same units.
struct Joined<'c> {
    column: &'c UnitColumn,
    /// Declared, together.
    units: u64,
    /// Most records of a unit, together, and in the one that declares fewest.
    records: u64,
    smallest: u64,
}

/// The group of a column, made if it is the first of its kind.
fn join<'c>(groups: &mut Vec<Joined<'c>>, column: &'c UnitColumn) -> u32 {
    let known = groups.iter().position(|group| group.column.joins(column));
    let position = known.unwrap_or_else(|| {
        groups.push(Joined {
            column,
            units: 0,
            records: 0,
            smallest: u64::MAX,
        });
        groups.len() - 1
    });
    let group = &mut groups[position];
    group.units = group.units.saturating_add(column.declared_units);
    group.records = group.records.saturating_add(column.max_records);
    group.smallest = group.smallest.min(column.max_records);
    position as u32
}

/// Slots of a run's sample: declared units of all datasets (rule D10).
pub(crate) fn declared_units(units: &Units, declared_sizes: &[u64]) -> u64 {
    let of_records = units.of_datasets.iter().zip(declared_sizes);
    let records = of_records
        .filter(|(group, _)| group.is_none())
        .map(|(_, &size)| size);
    records
        .chain(units.groups.iter().copied())
        .fold(0, u64::saturating_add)
}

/// The identifiers of one dataset, as stored: padded to the declared size.
pub(crate) struct Identifiers {
    /// Its place in the run.
    pub(crate) dataset: usize,
    pub(crate) group: u32,
    /// Rows that are records.
    pub(crate) rows: u64,
    /// Bytes of one identifier.
    pub(crate) width: usize,
    pub(crate) bytes: Zeroizing<Vec<u8>>,
}

/// Secret: drawn once for a run, and sealed with its order.
#[derive(Serialize, Deserialize)]
pub(crate) struct UnitKey(pub(crate) [u8; 32]);

/// A dataset's place in the run, and the numbers of its rows.
type Numbers = (usize, Zeroizing<Vec<u8>>);

/// For each dataset that has identifiers the number of each row's unit, u32, little-endian, [`NO_UNIT`] for padding; of the
/// same length whatever the rows are.
///
/// # Errors
/// [`NoUnits`].
pub(crate) fn number(
    identifiers: &[Identifiers],
    units: &Units,
    key: &UnitKey,
) -> Result<Vec<Numbers>, NoUnits> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key.0);
    let mut numbers: Vec<Numbers> = identifiers
        .iter()
        .map(|each| {
            let padding = NO_UNIT.to_le_bytes();
            (
                each.dataset,
                Zeroizing::new(padding.repeat(each.bytes.len() / each.width.max(1))),
            )
        })
        .collect();
    for (group, &slots) in units.groups.iter().enumerate() {
        let mut tagged = Vec::new();
        for (position, each) in identifiers.iter().enumerate() {
            if each.group as usize != group {
                continue;
            }
            let rows = usize::try_from(each.rows).map_err(|_| NoUnits)?;
            let records = each.bytes.chunks_exact(each.width.max(1)).take(rows).enumerate();
            tagged.extend(records.map(|(row, identifier)| (tag(&key, identifier), position, row)));
        }
        tagged.sort_unstable();
        for (slot, rows) in tagged.chunk_by(|one, other| one.0 == other.0).enumerate() {
            // No dataset has more units than it declares, so that all have a slot.
            let slot = u32::try_from(slot)
                .ok()
                .filter(|&slot| u64::from(slot) < slots)
                .ok_or(NoUnits)?;
            for (_, position, row) in rows {
                numbers[*position].1[row * 4..][..4].copy_from_slice(&slot.to_le_bytes());
            }
        }
    }
    Ok(numbers)
}

fn tag(key: &hmac::Key, identifier: &[u8]) -> [u8; 32] {
    let mut tag = [0; 32];
    tag.copy_from_slice(hmac::sign(key, identifier).as_ref());
    tag
}

/// Units could not be numbered: there are more than were declared.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the records of the run could not be put into their units")]
pub(crate) struct NoUnits;

#[cfg(test)]
mod tests {
    use super::*;

    fn contract(unit: &str) -> DataContract {
        let json = format!(
            r#"{{"version":1,"columns":[{{"name":"x","dtype":"f32","shape":[],"domain":{{"range":{{"minimum":[0.0],
               "maximum":[1.0]}}}}}}],"privacy_unit":{unit},"declared_size":64}}"#
        );
        DataContract::parse_json(json.as_bytes()).unwrap()
    }

    fn by(name: &str, dtype: &str, most: u64, units: u64) -> DataContract {
        contract(&format!(
            r#"{{"column":{{"name":"{name}","dtype":"{dtype}","max_records":{most},"declared_units":{units}}}}}"#
        ))
    }

    fn found(contracts: &[DataContract], asked: Option<u32>) -> Result<Units, String> {
        let named: Vec<(&str, &DataContract)> = contracts.iter().map(|contract| ("a", contract)).collect();
        units(&named, asked).map_err(|failure| tonic::Status::from(failure).message().to_owned())
    }

    #[test]
    fn datasets_share_units_where_name_and_type_are_the_same() {
        let contracts = [
            by("patient_id", "string", 5, 32),
            contract("\"record\""),
            by("patient_id", "i64", 4, 16),
            by("patient_id", "string", 3, 24),
        ];
        let units = found(&contracts, None).unwrap();
        assert_eq!(units.of_datasets, [Some(0), None, Some(1), Some(0)]);
        assert_eq!(
            (units.groups.as_slice(), units.records_per_unit),
            (&[56, 16][..], 3)
        );
        assert_eq!(declared_units(&units, &[64; 4]), 56 + 16 + 64);
        assert_eq!(found(&contracts, Some(8)).unwrap().records_per_unit, 8);
        assert!(found(&contracts, Some(9)).unwrap_err().contains("from 1 to 8"));
    }

    #[test]
    fn records_have_no_records_per_unit() {
        let records = [contract("\"record\""), contract("\"record\"")];
        assert_eq!(found(&records, None).unwrap(), Units::records(2));
        assert_eq!(found(&records, Some(1)).unwrap(), Units::records(2));
        assert!(
            found(&records, Some(2))
                .unwrap_err()
                .contains("leave records_per_unit out")
        );
    }

    fn identifiers(dataset: usize, group: u32, names: &[&str], capacity: usize) -> Identifiers {
        let mut bytes: Vec<u8> = names.iter().flat_map(|name| name.bytes()).collect();
        bytes.resize(capacity, 0);
        Identifiers {
            dataset,
            group,
            rows: names.len() as u64,
            width: 1,
            bytes: Zeroizing::new(bytes),
        }
    }

    fn read(numbers: &[u8]) -> Vec<u32> {
        let (words, _) = numbers.as_chunks::<4>();
        words.iter().map(|word| u32::from_le_bytes(*word)).collect()
    }

    #[test]
    fn rows_of_one_identifier_get_one_number_over_joined_datasets_in_all_of_a_run_and_another_in_each_run() {
        let units = Units {
            records_per_unit: 2,
            of_datasets: vec![Some(0), None, Some(0), Some(1)],
            groups: vec![16, 16],
        };
        let opened = [
            identifiers(0, 0, &["a", "b", "a", "c"], 6),
            identifiers(2, 0, &["b", "d"], 4),
            identifiers(3, 1, &["a"], 2),
        ];
        let mut seen = std::collections::HashSet::new();
        for run in 0..50 {
            let key = UnitKey([run; 32]);
            let numbers = number(&opened, &units, &key).unwrap();
            assert_eq!(numbers, number(&opened, &units, &key).unwrap(), "at every start");
            let all: Vec<(usize, Vec<u32>)> = numbers.iter().map(|(at, own)| (*at, read(own))).collect();
            let [(0, north), (2, south), (3, other)] = &all[..] else {
                panic!("{all:?}")
            };
            let [a, b, again, c, NO_UNIT, NO_UNIT] = north[..] else {
                panic!("{north:?}")
            };
            let [in_south, d, NO_UNIT, NO_UNIT] = south[..] else {
                panic!("{south:?}")
            };
            assert_eq!((a, b), (again, in_south));
            let mut four = vec![a, b, c, d];
            four.sort_unstable();
            assert_eq!(four, [0, 1, 2, 3]);
            assert_eq!(other, &[0, NO_UNIT]);
            seen.insert((a, b, c, d));
        }
        assert!(seen.len() > 10, "their order is the key's");
    }

    #[test]
    fn more_units_than_slots_are_refused() {
        let units = Units {
            records_per_unit: 1,
            of_datasets: vec![Some(0)],
            groups: vec![2],
        };
        assert!(
            number(
                &[identifiers(0, 0, &["a", "b", "c"], 4)],
                &units,
                &UnitKey([1; 32])
            )
            .is_err()
        );
    }
}
