//! What one unit of privacy is in each dataset of a run, in words: the contract says what its owner protects, and columns
//! of one name and type are joined over the datasets of a run (rule D9).

use crate::state::Dataset;
use serde::Deserialize;

/// Of a contract no more than this is read here; crate `graph` knows all of it.
#[derive(Deserialize)]
struct Declared {
    privacy_unit: Unit,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Unit {
    Record,
    Column(UnitColumn),
}

#[derive(Deserialize, PartialEq)]
struct UnitColumn {
    name: String,
    dtype: String,
}

/// The unit of each of a run's datasets, in order: `per record, per dataset`, `per patient_id` or
/// `per patient_id, joined over datasets north, south`.
pub fn privacy_units(datasets: &[&Dataset]) -> Vec<String> {
    let described: Vec<(&str, &str)> = datasets
        .iter()
        .map(|dataset| (dataset.name(), dataset.contract_json()))
        .collect();
    statements(&described)
}

fn statements(datasets: &[(&str, &str)]) -> Vec<String> {
    let units: Vec<Unit> = datasets.iter().map(|(_, contract)| unit(contract)).collect();
    let statement = |unit: &Unit| {
        let Unit::Column(column) = unit else {
            return PER_RECORD.to_owned();
        };
        let joined: Vec<&str> = datasets
            .iter()
            .zip(&units)
            .filter(|(_, other)| *other == unit)
            .map(|((name, _), _)| *name)
            .collect();
        match joined.len() {
            0 | 1 => format!("per {}", column.name),
            _ => format!("per {}, joined over datasets {}", column.name, joined.join(", ")),
        }
    };
    units.iter().map(statement).collect()
}

/// A contract of a form that is not known here was never entered by this program: datasets of before had records.
fn unit(contract_json: &str) -> Unit {
    serde_json::from_str(contract_json).map_or(Unit::Record, |declared: Declared| declared.privacy_unit)
}

/// Rule D9: two datasets of one run may hold the same person.
pub(crate) const PER_RECORD: &str = "per record, per dataset";

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, dtype: &str, most: u32) -> String {
        format!(
            r#"{{"version":1,"columns":[],"privacy_unit":{{"column":{{"name":"{name}","dtype":"{dtype}","max_records":{most},
               "declared_units":16}}}},"declared_size":16}}"#
        )
    }

    #[test]
    fn columns_of_one_name_and_type_are_joined_whatever_else_they_declare() {
        let (north, south) = (
            column("patient_id", "string", 5),
            column("patient_id", "string", 2),
        );
        let (east, west) = (column("patient_id", "i64", 5), column("citizen", "string", 5));
        let record = r#"{"version":1,"columns":[],"privacy_unit":"record","declared_size":16}"#;
        let found = statements(&[
            ("north", &north),
            ("east", &east),
            ("south", &south),
            ("west", &west),
            ("old", record),
        ]);
        let joined = "per patient_id, joined over datasets north, south";
        assert_eq!(
            found,
            [
                joined,
                "per patient_id",
                joined,
                "per citizen",
                "per record, per dataset"
            ]
        );
    }
}
