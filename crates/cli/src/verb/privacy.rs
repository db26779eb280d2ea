//! `bastionai epsilon` and `bastionai calibrate`: the accountants without a server.

use crate::arguments::{
    AccountantArgument, AccountingArguments, CalibrateArguments, EpsilonArguments, ProfileForm,
    SoughtArgument,
};
use crate::output;
use anyhow::{Context, bail};
use bastionai_privacy::accountant::{self, Accountant, PrivacyProfile};
use bastionai_privacy::calibrate::Target;
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_privacy::specification::{Release, composed};
use serde::Serialize;
use std::io::Read;
use std::path::Path;

#[derive(Serialize)]
struct EpsilonAnswer {
    event: DpEvent,
    delta: f64,
    epsilon: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    epsilon_lower_bound: Option<f64>,
    accountant: &'static str,
    neighboring_relation: NeighboringRelation,
}

/// Answers one query, or every row of a CSV file.
pub(crate) fn epsilon(arguments: &EpsilonArguments, json: bool) -> anyhow::Result<()> {
    let relation = arguments.accounting.relation;
    let accountant = accountant_of(arguments.accounting);
    if let Some(path) = &arguments.csv {
        return answer_csv(path, "sigma", "eps", json, |sigma, q, steps, delta| {
            Ok(accountant.epsilon(&DpEvent::dp_sgd(sigma, q, steps), relation, delta)?)
        });
    }
    let event = asked_event(arguments)?;
    if let Some(form) = arguments.profile {
        if accountant != Accountant::Pld {
            bail!("--profile is that of privacy loss distributions: leave --accountant out");
        }
        let smallest_delta = arguments.delta.unwrap_or(SMALLEST_DELTA);
        let points =
            PrivacyProfile::new(&event, relation, smallest_delta)?.points(arguments.points as usize)?;
        return print_profile(&event, relation, &points, form, json);
    }
    let delta = arguments.delta.context("--delta is needed, or --csv FILE")?;
    let epsilon = accountant.epsilon(&event, relation, delta)?;
    let lower_bound = arguments
        .lower_bound
        .then(|| accountant::epsilon_lower_bound(&event, relation, delta))
        .transpose()?;
    if json {
        // JSON has no infinity.
        if !epsilon.is_finite() {
            bail!("no ε holds for this at δ = {delta}");
        }
        return output::json(&EpsilonAnswer {
            event,
            delta,
            epsilon,
            epsilon_lower_bound: lower_bound,
            accountant: accountant.name(),
            neighboring_relation: relation,
        });
    }
    println!("{epsilon}");
    if let Some(lower_bound) = lower_bound {
        println!("{lower_bound}");
    }
    Ok(())
}

#[derive(Serialize)]
struct ProfileAnswer<'a> {
    event: &'a DpEvent,
    points: Vec<ProfilePoint>,
    accountant: &'static str,
    neighboring_relation: NeighboringRelation,
}

#[derive(Serialize)]
struct ProfilePoint {
    delta: f64,
    epsilon: f64,
}

fn print_profile(
    event: &DpEvent,
    relation: NeighboringRelation,
    points: &[(f64, f64)],
    form: ProfileForm,
    json: bool,
) -> anyhow::Result<()> {
    if json {
        if let Some((_, delta)) = points.iter().find(|(epsilon, _)| !epsilon.is_finite()) {
            bail!("no ε holds for this at δ = {delta}");
        }
        return output::json(&ProfileAnswer {
            event,
            points: points
                .iter()
                .map(|&(epsilon, delta)| ProfilePoint { delta, epsilon })
                .collect(),
            accountant: Accountant::Pld.name(),
            neighboring_relation: relation,
        });
    }
    match form {
        ProfileForm::Table => {
            let row = |&(epsilon, delta): &(f64, f64)| vec![format!("{delta:.4e}"), format!("{epsilon:.6}")];
            output::table(&["δ", "ε"], &points.iter().map(row).collect::<Vec<_>>());
        }
        ProfileForm::Csv => {
            let mut writer = csv::Writer::from_writer(std::io::stdout().lock());
            writer.write_record(["delta", "eps"])?;
            for (epsilon, delta) in points {
                writer.write_record([delta.to_string(), epsilon.to_string()])?;
            }
            writer.flush()?;
        }
    }
    Ok(())
}

/// From here up a profile is tight where none is named.
const SMALLEST_DELTA: f64 = 1e-10;

fn accountant_of(arguments: AccountingArguments) -> Accountant {
    match arguments.accountant {
        AccountantArgument::Pld => Accountant::Pld,
        AccountantArgument::Rdp => Accountant::Rdp,
    }
}

/// The composition of a file, or DP-SGD, its sample cut where a cap is given.
fn asked_event(arguments: &EpsilonArguments) -> anyhow::Result<DpEvent> {
    if let Some(path) = &arguments.composition {
        let releases: Vec<Release> = serde_json::from_reader(open(path)?)
            .with_context(|| format!("{} is not a JSON list of releases", path.display()))?;
        return Ok(composed(&releases));
    }
    let noise_multiplier = arguments
        .noise_multiplier
        .context("--noise-multiplier and --delta are needed, or --composition FILE, or --csv FILE")?;
    let (sampling_probability, steps) = (arguments.sample_rate, arguments.steps);
    Ok(match arguments.dataset_size.zip(arguments.truncated_batch_size) {
        Some((dataset_size, truncated_batch_size)) => DpEvent::TruncatedSubsampledGaussian {
            dataset_size,
            sampling_probability,
            truncated_batch_size,
            noise_multiplier,
        }
        .repeated(steps),
        None => DpEvent::dp_sgd(noise_multiplier, sampling_probability, steps),
    })
}

#[derive(Serialize)]
struct CalibrateAnswer {
    target_epsilon: f64,
    delta: f64,
    noise_multiplier: f64,
    sample_rate: f64,
    steps: u64,
    epochs: f64,
    epsilon: f64,
    accountant: &'static str,
    neighboring_relation: NeighboringRelation,
}

/// Answers one query, or every row of a CSV file.
pub(crate) fn calibrate(arguments: &CalibrateArguments, json: bool) -> anyhow::Result<()> {
    let target = |epsilon: f64, delta: f64| Target {
        relation: arguments.accounting.relation,
        accountant: accountant_of(arguments.accounting),
        ..Target::new(epsilon, delta)
    };
    if let Some(path) = &arguments.csv {
        return answer_csv(path, "eps", "sigma", json, |epsilon, q, steps, delta| {
            Ok(target(epsilon, delta).noise_multiplier(&|sigma| DpEvent::dp_sgd(sigma, q, steps))?)
        });
    }
    let (Some(target_epsilon), Some(delta)) = (arguments.target_epsilon, arguments.delta) else {
        bail!("--target-epsilon and --delta are needed, or --csv FILE");
    };
    let target = target(target_epsilon, delta);
    let found = Plan::meeting(&target, arguments)?;
    if json {
        return output::json(&CalibrateAnswer {
            target_epsilon,
            delta,
            noise_multiplier: found.noise_multiplier,
            sample_rate: found.sample_rate,
            steps: found.steps,
            epochs: found.epochs(),
            epsilon: target
                .accountant
                .epsilon(&found.event(), target.relation, delta)?,
            accountant: target.accountant.name(),
            neighboring_relation: target.relation,
        });
    }
    match arguments.find {
        SoughtArgument::NoiseMultiplier => println!("{}", found.noise_multiplier),
        SoughtArgument::SampleRate => println!("{}", found.sample_rate),
        SoughtArgument::Steps => println!("{}", found.steps),
        SoughtArgument::Epochs => println!("{}", found.epochs()),
    }
    Ok(())
}

/// What a run of DP-SGD is made of.
struct Plan {
    noise_multiplier: f64,
    sample_rate: f64,
    steps: u64,
}

impl Plan {
    /// What is sought is computed from the rest, which must then be named; a rate and steps of 1 need not be.
    fn meeting(target: &Target, arguments: &CalibrateArguments) -> anyhow::Result<Self> {
        let (rate, steps) = (arguments.sample_rate.unwrap_or(1.0), arguments.steps.unwrap_or(1));
        let unneeded = match arguments.find {
            SoughtArgument::NoiseMultiplier => ("--noise-multiplier", arguments.noise_multiplier.is_some()),
            SoughtArgument::SampleRate => ("--sample-rate", arguments.sample_rate.is_some()),
            SoughtArgument::Steps | SoughtArgument::Epochs => ("--steps", arguments.steps.is_some()),
        };
        if let (option, true) = unneeded {
            bail!("{option} is what is sought: leave it out, or say with --find what else is");
        }
        let noise = || {
            arguments
                .noise_multiplier
                .context("--noise-multiplier is needed: it is not what is sought")
        };
        let plan = |noise_multiplier, sample_rate, steps| Self {
            noise_multiplier,
            sample_rate,
            steps,
        };
        Ok(match arguments.find {
            SoughtArgument::NoiseMultiplier => plan(
                target.noise_multiplier(&|noise| DpEvent::dp_sgd(noise, rate, steps))?,
                rate,
                steps,
            ),
            SoughtArgument::SampleRate => {
                let noise = noise()?;
                let rate = target.sampling_probability(&|rate| DpEvent::dp_sgd(noise, rate, steps))?;
                plan(noise, rate, steps)
            }
            SoughtArgument::Steps | SoughtArgument::Epochs => {
                let noise = noise()?;
                let steps = target.steps(&|steps| DpEvent::dp_sgd(noise, rate, steps))?;
                plan(noise, rate, steps)
            }
        })
    }

    fn event(&self) -> DpEvent {
        DpEvent::dp_sgd(self.noise_multiplier, self.sample_rate, self.steps)
    }

    fn epochs(&self) -> f64 {
        self.steps as f64 * self.sample_rate
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
