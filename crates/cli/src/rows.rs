//! A CSV file as record batches under a data contract. Errors name row and column, never a value.

use anyhow::{Context, bail};
use bastionai_client::{DataContract, RecordBatch};
use bastionai_graph::contract::{Column, Domain};
use bastionai_graph::dtype::DType;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;

/// Rows per batch.
const BATCH_ROWS: u64 = 4096;

/// Reads every row; a column of `n > 1` elements is `name_0 … name_{n-1}`, row-major. Identifiers of units come last.
pub(crate) fn read_csv(path: &Path, contract: &DataContract) -> anyhow::Result<Vec<RecordBatch>> {
    let origin = || path.display().to_string();
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_path(path)
        .with_context(|| format!("cannot read {}", origin()))?;
    let header = reader.headers().with_context(origin)?.clone();
    let places = contract
        .columns
        .iter()
        .map(|column| locate(&header, column))
        .collect::<anyhow::Result<Vec<_>>>()
        .with_context(origin)?;
    let unit = contract
        .unit_column()
        .map(|unit| Ok::<_, anyhow::Error>((unit, find(&header, &unit.name)?)))
        .transpose()
        .with_context(origin)?;
    let mut batches = Vec::new();
    let mut batch = empty(contract);
    for (row, record) in reader.records().enumerate() {
        // The csv crate's own messages name line and field count, not contents.
        let record = record.with_context(origin)?;
        for ((column, places), bytes) in contract.columns.iter().zip(&places).zip(&mut batch.columns) {
            for &place in places {
                let cell = record.get(place).unwrap_or_default();
                if push(bytes, column, cell).is_none() {
                    bail!(
                        "{}: row {row}, column `{}`: not a {} of its contract",
                        origin(),
                        column.name,
                        column.dtype.torch_name()
                    );
                }
            }
        }
        if let (Some((unit, place)), Some(identifiers)) = (unit, batch.columns.last_mut()) {
            let encoded = unit.dtype.encode(record.get(place).unwrap_or_default());
            identifiers.extend(encoded.map_err(|reason| {
                anyhow::anyhow!("{}: row {row}, column `{}`: {reason}", origin(), unit.name)
            })?);
        }
        batch.rows += 1;
        if batch.rows == BATCH_ROWS {
            batches.push(std::mem::replace(&mut batch, empty(contract)));
        }
    }
    if batch.rows > 0 {
        batches.push(batch);
    }
    Ok(batches)
}

/// Rows to train on, and `fraction` of them held out, drawn at random without replacement.
pub(crate) fn split(
    batches: Vec<RecordBatch>,
    contract: &DataContract,
    fraction: f64,
) -> anyhow::Result<(RecordBatch, RecordBatch)> {
    if let Some(unit) = contract.unit_column() {
        bail!(
            "--test-fraction splits by record, and would put records of one `{}` on both sides: split the file by it, and \
             put both parts",
            unit.name
        );
    }
    let rows: u64 = batches.iter().map(|batch| batch.rows).sum();
    if !(fraction > 0.0 && fraction < 1.0) || rows < 2 {
        bail!("--test-fraction {fraction}: give a share between 0 and 1, of a file with at least two rows");
    }
    let held_out = ((fraction * rows as f64).round() as u64).clamp(1, rows - 1);
    // Keyed by the system's randomness: which rows are held out depends on nothing in them.
    let keys = RandomState::new();
    let mut order: Vec<u64> = (0..rows).collect();
    order.sort_by_cached_key(|row| keys.hash_one(row));
    let chosen: HashSet<u64> = order.into_iter().take(held_out as usize).collect();
    let (mut train, mut test) = (empty(contract), empty(contract));
    let mut row = 0;
    for batch in batches {
        for at in 0..batch.rows as usize {
            let part = if chosen.contains(&row) {
                &mut test
            } else {
                &mut train
            };
            for ((column, from), to) in contract.columns.iter().zip(&batch.columns).zip(&mut part.columns) {
                let width = column.record_bytes() as usize;
                to.extend_from_slice(&from[at * width..(at + 1) * width]);
            }
            part.rows += 1;
            row += 1;
        }
    }
    Ok((train, test))
}

fn empty(contract: &DataContract) -> RecordBatch {
    RecordBatch {
        rows: 0,
        columns: vec![Vec::new(); contract.stored_column_bytes().len()],
    }
}

fn locate(header: &csv::StringRecord, column: &Column) -> anyhow::Result<Vec<usize>> {
    match column.elements() {
        1 => Ok(vec![find(header, &column.name)?]),
        elements => (0..elements)
            .map(|element| find(header, &format!("{}_{element}", column.name)))
            .collect(),
    }
}

fn find(header: &csv::StringRecord, name: &str) -> anyhow::Result<usize> {
    header
        .iter()
        .position(|found| found == name)
        .with_context(|| format!("column `{name}` of the contract is missing"))
}

/// Appends one cell, little-endian; `None` if it is no such value. Ranges are the contract's to check.
fn push(bytes: &mut Vec<u8>, column: &Column, cell: &str) -> Option<()> {
    let class = match &column.domain {
        Domain::Classes { names } => names.iter().position(|name| name == cell),
        Domain::Range { .. } | Domain::Bool => None,
    };
    let integer = || class.map_or_else(|| cell.parse::<i64>().ok(), |index| i64::try_from(index).ok());
    match column.dtype {
        DType::F32 => bytes.extend(cell.parse::<f32>().ok()?.to_le_bytes()),
        DType::F64 => bytes.extend(cell.parse::<f64>().ok()?.to_le_bytes()),
        DType::I64 => bytes.extend(integer()?.to_le_bytes()),
        DType::I32 => bytes.extend(i32::try_from(integer()?).ok()?.to_le_bytes()),
        DType::U8 => bytes.push(u8::try_from(integer()?).ok()?),
        DType::Bool => bytes.push(match cell {
            "0" | "false" | "False" => 0,
            "1" | "true" | "True" => 1,
            _ => return None,
        }),
    }
    Some(())
}
