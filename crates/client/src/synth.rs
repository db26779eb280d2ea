//! Synthetic rows drawn from a contract's public domains, for rehearsals. No private row is involved.

use crate::rows::RecordBatch;
use bastionai_graph::contract::{Column, DataContract, Domain};
use bastionai_graph::dtype::DType;
use sha2::{Digest, Sha256};

/// `rows` rows drawn uniformly from each element's domain. The same contract, row count and seed give
/// the same rows, everywhere and for ever. Every row meets the contract; units of several records are filled one after the
/// other, so that as many rows fit as the contract declares units and records of each.
pub fn synthetic_batch(contract: &DataContract, rows: u64, seed: u64) -> RecordBatch {
    let columns = contract
        .columns
        .iter()
        .map(|column| synthetic_column(column, rows, seed));
    let identifiers = contract.unit_column().map(|unit| {
        let numbers = (0..rows).map(|row| (row / unit.max_records).to_string());
        let encode = |number: String| unit.dtype.encode(&number).expect("a number is an identifier");
        numbers.flat_map(encode).collect()
    });
    RecordBatch {
        rows,
        columns: columns.chain(identifiers).collect(),
    }
}

fn synthetic_column(column: &Column, rows: u64, seed: u64) -> Vec<u8> {
    let mut random = SplitMix64::new(seed, &column.name);
    let elements = column.elements() as usize;
    let mut bytes = Vec::with_capacity(rows as usize * column.record_bytes() as usize);
    for _ in 0..rows {
        for element in 0..elements {
            push_value(column, element, &mut random, &mut bytes);
        }
    }
    bytes
}

fn push_value(column: &Column, element: usize, random: &mut SplitMix64, bytes: &mut Vec<u8>) {
    match &column.domain {
        Domain::Range { minimum, maximum } => {
            let (minimum, maximum) = (bound(minimum, element), bound(maximum, element));
            if column.dtype.is_float() {
                push_float(
                    column.dtype,
                    random.between(minimum, maximum),
                    (minimum, maximum),
                    bytes,
                );
            } else {
                let (low, high) = integer_range(column.dtype, minimum, maximum);
                push_integer(column.dtype, random.integer(low, high), bytes);
            }
        }
        Domain::Classes { names } => {
            push_integer(column.dtype, random.integer(0, names.len() as i64 - 1), bytes)
        }
        Domain::Bool => push_integer(column.dtype, random.integer(0, 1), bytes),
    }
}

fn push_float(dtype: DType, value: f64, (minimum, maximum): (f64, f64), bytes: &mut Vec<u8>) {
    if dtype == DType::F64 {
        return bytes.extend_from_slice(&value.to_le_bytes());
    }
    // Bounds of an f32 column are compared as f32, and rounding is monotone: the value stays inside.
    let value = (value as f32).clamp(minimum as f32, maximum as f32);
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn push_integer(dtype: DType, value: i64, bytes: &mut Vec<u8>) {
    let all = value.to_le_bytes();
    bytes.extend_from_slice(&all[..dtype.size_bytes()]);
}

/// Integers inside the declared bounds and the dtype. `as` saturates, which is what is meant.
fn integer_range(dtype: DType, minimum: f64, maximum: f64) -> (i64, i64) {
    let (least, most) = match dtype {
        DType::U8 | DType::Bool => (0, i64::from(u8::MAX)),
        DType::I32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        _ => (i64::MIN, i64::MAX),
    };
    let low = (minimum.ceil() as i64).clamp(least, most);
    (low, (maximum.floor() as i64).clamp(low, most))
}

fn bound(bounds: &[f64], element: usize) -> f64 {
    *bounds.get(element).or(bounds.first()).unwrap_or(&0.0)
}

/// Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", fig. 16. Not for noise.
struct SplitMix64(u64);

impl SplitMix64 {
    fn new(seed: u64, column: &str) -> Self {
        let digest: [u8; 32] = Sha256::new()
            .chain_update(b"bastionai/v1/synthetic\0")
            .chain_update(seed.to_le_bytes())
            .chain_update(column.as_bytes())
            .finalize()
            .into();
        let (start, _) = digest
            .split_first_chunk::<8>()
            .expect("a digest has more than 8 bytes");
        Self(u64::from_le_bytes(*start))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `[low, high]`; written so that no intermediate overflows for finite bounds.
    fn between(&mut self, low: f64, high: f64) -> f64 {
        let unit = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        (low * (1.0 - unit) + high * unit).clamp(low, high)
    }

    /// In `low..=high`. The bias of the modulus is below 2⁻³² for ranges up to 2³²: fine for a rehearsal.
    fn integer(&mut self, low: i64, high: i64) -> i64 {
        let width = i128::from(high) - i128::from(low) + 1;
        (i128::from(low) + i128::from(self.next()) % width.max(1)) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contract() -> DataContract {
        let json = br#"{"version":1,"columns":[
            {"name":"a","dtype":"f32","shape":[3],"domain":{"range":{"minimum":[-1.0,0.1,5.0],"maximum":[1.0,0.1,5.5]}}},
            {"name":"b","dtype":"f64","shape":[],"domain":{"range":{"minimum":[-1e300],"maximum":[1e300]}}},
            {"name":"c","dtype":"i32","shape":[2],"domain":{"range":{"minimum":[-3.0],"maximum":[3.0]}}},
            {"name":"d","dtype":"u8","shape":[],"domain":{"range":{"minimum":[0.0],"maximum":[255.0]}}},
            {"name":"e","dtype":"bool","shape":[4],"domain":"bool"},
            {"name":"y","dtype":"i64","shape":[],"domain":{"classes":{"names":["p","q","r"]}}}],
            "privacy_unit":"record","declared_size":1024}"#;
        DataContract::parse_json(json).unwrap()
    }

    #[test]
    fn every_synthetic_row_meets_its_contract() {
        for seed in 0..20 {
            synthetic_batch(&contract(), 500, seed)
                .check(&contract(), 0)
                .unwrap();
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_rows_and_another_gives_others() {
        let first = synthetic_batch(&contract(), 100, 7);
        assert_eq!(first, synthetic_batch(&contract(), 100, 7));
        let other = synthetic_batch(&contract(), 100, 8);
        assert!(
            first
                .columns
                .iter()
                .zip(&other.columns)
                .filter(|(a, b)| a == b)
                .count()
                == 0
        );
    }

    #[test]
    fn all_classes_and_both_ends_of_small_ranges_occur() {
        let batch = synthetic_batch(&contract(), 1000, 1);
        let classes: std::collections::BTreeSet<u8> = batch.columns[5].iter().step_by(8).copied().collect();
        assert_eq!(classes.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
        let integers: std::collections::BTreeSet<i32> = batch.columns[2]
            .chunks(4)
            .map(|c| i32::from_le_bytes(c.try_into().unwrap()))
            .collect();
        assert_eq!(
            integers.into_iter().collect::<Vec<_>>(),
            (-3..=3).collect::<Vec<_>>()
        );
    }
}
