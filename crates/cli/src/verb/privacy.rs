//! `bastionai epsilon` and `bastionai calibrate`: the accountant without a server.

use crate::arguments::{CalibrateArguments, EpsilonArguments};
use crate::output;
use anyhow::{Context, bail};
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_privacy::{accountant, calibrate};
use serde::Serialize;
use std::io::Read;
use std::path::Path;

const RELATION: NeighboringRelation = NeighboringRelation::AddOrRemoveOne;

#[derive(Serialize)]
struct EpsilonAnswer {
    noise_multiplier: f64,
    sample_rate: f64,
    steps: u64,
    delta: f64,
    epsilon: f64,
    accountant: &'static str,
    neighboring_relation: NeighboringRelation,
}

/// Answers one query, or every row of a CSV file.
pub(crate) fn epsilon(arguments: &EpsilonArguments, json: bool) -> anyhow::Result<()> {
    if let Some(path) = &arguments.csv {
        return answer_csv(path, "sigma", "eps", json, |sigma, q, steps, delta| {
            Ok(accountant::epsilon(
                &dp_sgd(sigma, q, steps, None),
                RELATION,
                delta,
            )?)
        });
    }
    let (Some(noise_multiplier), Some(delta)) = (arguments.noise_multiplier, arguments.delta) else {
        bail!("--noise-multiplier and --delta are needed, or --csv FILE");
    };
    let truncation = arguments.dataset_size.zip(arguments.truncated_batch_size);
    let event = dp_sgd(
        noise_multiplier,
        arguments.sample_rate,
        arguments.steps,
        truncation,
    );
    let epsilon = accountant::epsilon(&event, RELATION, delta)?;
    if json {
        return output::json(&EpsilonAnswer {
            noise_multiplier,
            sample_rate: arguments.sample_rate,
            steps: arguments.steps,
            delta,
            epsilon,
            accountant: "pld",
            neighboring_relation: RELATION,
        });
    }
    println!("{epsilon}");
    Ok(())
}

#[derive(Serialize)]
struct CalibrateAnswer {
    target_epsilon: f64,
    delta: f64,
    sample_rate: f64,
    steps: u64,
    noise_multiplier: f64,
    epsilon: f64,
}

/// Answers one query, or every row of a CSV file.
pub(crate) fn calibrate(arguments: &CalibrateArguments, json: bool) -> anyhow::Result<()> {
    if let Some(path) = &arguments.csv {
        return answer_csv(path, "eps", "sigma", json, calibrated);
    }
    let (Some(target_epsilon), Some(delta)) = (arguments.target_epsilon, arguments.delta) else {
        bail!("--target-epsilon and --delta are needed, or --csv FILE");
    };
    let (sample_rate, steps) = (arguments.sample_rate, arguments.steps);
    let noise_multiplier = calibrated(target_epsilon, sample_rate, steps, delta)?;
    if json {
        let epsilon = accountant::epsilon(
            &dp_sgd(noise_multiplier, sample_rate, steps, None),
            RELATION,
            delta,
        )?;
        return output::json(&CalibrateAnswer {
            target_epsilon,
            delta,
            sample_rate,
            steps,
            noise_multiplier,
            epsilon,
        });
    }
    println!("{noise_multiplier}");
    Ok(())
}

fn calibrated(target_epsilon: f64, q: f64, steps: u64, delta: f64) -> anyhow::Result<f64> {
    Ok(calibrate::noise_multiplier(
        target_epsilon,
        delta,
        RELATION,
        &|sigma| dp_sgd(sigma, q, steps, None),
    )?)
}

/// DP-SGD as an event: `steps` Poisson-sampled Gaussians, the sample truncated when `(size, cap)` is given.
fn dp_sgd(noise_multiplier: f64, q: f64, steps: u64, truncation: Option<(u64, u64)>) -> DpEvent {
    let step = match truncation {
        Some((dataset_size, truncated_batch_size)) => DpEvent::TruncatedSubsampledGaussian {
            dataset_size,
            sampling_probability: q,
            truncated_batch_size,
            noise_multiplier,
        },
        None => DpEvent::PoissonSampled {
            sampling_probability: q,
            event: Box::new(DpEvent::Gaussian { noise_multiplier }),
        },
    };
    DpEvent::SelfComposed {
        event: Box::new(step),
        count: steps,
    }
}

/// Reads `known,q,steps,delta` rows (any column order, further columns kept) and appends `answer`.
fn answer_csv(
    path: &Path,
    known: &str,
    answer: &str,
    json: bool,
    query: impl Fn(f64, f64, u64, f64) -> anyhow::Result<f64>,
) -> anyhow::Result<()> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(open(path)?);
    let header = reader.headers()?.clone();
    let column = |name: &str| {
        header.iter().position(|found| found == name).with_context(|| {
            format!(
                "{}: column `{name}` is missing; needed: {known},q,steps,delta",
                path.display()
            )
        })
    };
    let columns = [column(known)?, column("q")?, column("steps")?, column("delta")?];
    let mut rows = Vec::new();
    for (index, row) in reader.records().enumerate() {
        let row = row?;
        let number = |at: usize| -> anyhow::Result<f64> {
            let cell = row.get(columns[at]).unwrap_or_default();
            cell.parse()
                .with_context(|| format!("row {}: `{cell}` is not a number", index + 1))
        };
        let steps = number(2)?;
        if steps.fract() != 0.0 || !(0.0..=9e15).contains(&steps) {
            bail!("row {}: steps must be a whole number, found {steps}", index + 1);
        }
        let value = query(number(0)?, number(1)?, steps as u64, number(3)?)
            .with_context(|| format!("row {}", index + 1))?;
        rows.push((row, value));
    }
    write_rows(&header, answer, &rows, json)
}

fn open(path: &Path) -> anyhow::Result<Box<dyn Read>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(std::io::stdin()));
    }
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Box::new(file))
}

fn write_rows(
    header: &csv::StringRecord,
    answer: &str,
    rows: &[(csv::StringRecord, f64)],
    json: bool,
) -> anyhow::Result<()> {
    // An answer column already there is the asker's own (a reference, say): it is left out, not repeated.
    let kept: Vec<usize> = (0..header.len()).filter(|&at| &header[at] != answer).collect();
    if json {
        let object = |(row, value): &(csv::StringRecord, f64)| -> serde_json::Value {
            let mut object: serde_json::Map<_, _> = kept
                .iter()
                .map(|&at| (header[at].to_string(), parsed(&row[at])))
                .collect();
            object.insert(answer.to_string(), serde_json::json!(value));
            object.into()
        };
        return output::json(&rows.iter().map(object).collect::<Vec<_>>());
    }
    let mut writer = csv::Writer::from_writer(std::io::stdout().lock());
    writer.write_record(kept.iter().map(|&at| &header[at]).chain([answer]))?;
    for (row, value) in rows {
        let value = value.to_string();
        writer.write_record(kept.iter().map(|&at| &row[at]).chain([value.as_str()]))?;
    }
    writer.flush()?;
    Ok(())
}

fn parsed(cell: &str) -> serde_json::Value {
    cell.parse::<f64>()
        .map_or_else(|_| cell.into(), |number| serde_json::json!(number))
}
